// Products with a block-sparse weight by warpgroups (wgmma), bf16 with f32 sums, for sm_90a. Blocks of 32 or of multiples
// of 64 by the same.
//
//   x [rows, n_in]   y [rows, n_out]   values [n_blocks, block_rows, block_cols]   all bf16, row-major
//
// Forward and input gradient are one kernel: out = in * blocks, where a block of the sum is used as stored or transposed. A
// thread block owns ROWS rows and TILE columns of one block column of `out`, half of the rows for each of its warpgroups:
//
//   for each DEPTH of the sum, one block's columns or those of two blocks of 32:
//       in tile [ROWS, DEPTH], weight tile -> shared, some steps ahead
//       sums += in tile * weight tile, read from shared memory by the tensor cores
//   out tile = sums, rounded once, through shared memory so that whole lines are written
//
// Other thread blocks of the multiprocessor fill the gaps between a step's products and the next's. What bounds them is what
// shared memory gets from the L2 cache: ROWS TILE / (ROWS + TILE) flops a byte.
//
// Weight gradient: a thread block owns a tile of one block and walks rows. In tiles of 64 x 64 each warpgroup takes half of
// a step's rows; of tiles of 128 x 128 half of the outputs.
//
// Tiles in shared memory are panels of rows of 128 bytes, their pieces of 16 bytes swizzled as the tensor cores want them:
// piece p of row r is at p ^ (r % 8). The addresses of all operands are multiples of 16 bytes.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

constexpr u32 DEPTH = 64;
constexpr u32 ROWS = 128;
constexpr u32 THREADS = 256;
constexpr u32 LINE = 128;                      // bytes of a row of a panel

__device__ __forceinline__ void copy(u32 to, const bf16* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ u32 panels_base() {
    extern __shared__ uint4 shared[];
    return (shared_address(shared) + 1023) & ~1023u;
}

struct Lines {
    const u32* offsets;   // of the line of `out` [lines + 1]
    const u32* blocks;    // block of `in` an entry multiplies [n_blocks]
    const u32* slots;     // where an entry's values are; null if entry and slot are one
};

// AS_STORED: a block's rows run along the sum (input gradient); else along `out` (forward).
template <u32 TILE, bool AS_STORED, u32 STAGES>
__device__ __forceinline__ void multiply(
    const bf16* __restrict__ in, const bf16* __restrict__ values, bf16* __restrict__ out, Lines lines,
    u32 rows, u32 n_sum, u32 n_line, u32 block_sum, u32 block_line)
{
    constexpr u32 IN_BYTES = ROWS * LINE;
    constexpr u32 PANELS = (TILE + 63) / 64;                // of a weight tile as stored
    constexpr u32 WEIGHT_BYTES = AS_STORED ? PANELS * DEPTH * LINE : TILE * LINE;
    constexpr u32 STAGE_BYTES = IN_BYTES + WEIGHT_BYTES;
    const u32 base = panels_base();

    const u32 n_tiles = n_line / TILE;
    const u32 tile = blockIdx.x % n_tiles;
    const u32 row0 = blockIdx.x / n_tiles * ROWS;
    const u32 line = tile * TILE / block_line;
    const u32 within = tile * TILE % block_line;            // first column of the tile inside its block
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    const u32 block_cols = AS_STORED ? block_line : block_sum;

    const u32 first = lines.offsets[line], end = lines.offsets[line + 1];
    const u32 per_block = block_sum >= DEPTH ? block_sum / DEPTH : 1;   // steps of a block,
    const u32 per_step = block_sum >= DEPTH ? 1 : DEPTH / block_sum;    // or blocks of a step
    const u32 n_steps = (end - first + per_step - 1) / per_step * per_block;
    const size_t block_len = (size_t)block_sum * block_line;

    // Each thread copies one piece of every 32nd row of a panel.
    const u32 piece = threadIdx.x % 8, row = threadIdx.x / 8;
    const u32 at = row * LINE + (piece ^ (row % 8)) * 16;
    const bf16* const in_row = in + (size_t)(row0 + row) * n_sum;
    const auto fetch = [&](u32 step) {
        const u32 to = base + step % STAGES * STAGE_BYTES + at;
        const u32 entry = first + step / per_block * per_step, within_block = step % per_block * DEPTH;
        {
            const u32 own = entry + piece * 8 / block_sum % per_step;
            const bool valid = own < end;
            const u32 col = (valid ? lines.blocks[own] : 0) * block_sum + within_block + piece * 8 % block_sum % DEPTH;
#pragma unroll
            for (u32 i = 0; i < ROWS / 32; ++i) {
                const bool here = valid && row0 + row + i * 32 < rows;
                copy(to + i * 32 * LINE, here ? in_row + (size_t)(i * 32) * n_sum + col : in, here);
            }
        }
        const auto slot = [&](u32 own) { return lines.slots ? lines.slots[own] : own; };
        if (AS_STORED) {
#pragma unroll
            for (u32 i = 0; i < DEPTH / 32; ++i) {
                const u32 own = entry + (row + i * 32) / block_sum % per_step;
                const bool valid = own < end && piece * 8 < TILE;
                const bf16* block = values + (valid ? slot(own) * block_len : 0);
                const u32 k = within_block + (row + i * 32) % block_sum % DEPTH;
#pragma unroll
                for (u32 p = 0; p < PANELS; ++p)
                    copy(to + IN_BYTES + (p * DEPTH + i * 32) * LINE,
                         valid ? block + (size_t)k * block_cols + within + p * 64 + piece * 8 : values, valid);
            }
        } else {
            const u32 own = entry + piece * 8 / block_sum % per_step;
            const bool valid = own < end;
            const bf16* block = values + (valid ? slot(own) * block_len : 0);
            const u32 k = within_block + piece * 8 % block_sum % DEPTH;
#pragma unroll
            for (u32 i = 0; i < TILE / 32; ++i)
                copy(to + IN_BYTES + i * 32 * LINE,
                     valid ? block + (size_t)(within + row + i * 32) * block_cols + k : values, valid);
        }
    };

    float sums[TILE / 8][4];
#pragma unroll
    for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
        for (u32 c = 0; c < 4; ++c) sums[j][c] = 0.0f;

#pragma unroll
    for (u32 step = 0; step < STAGES - 1; ++step) {
        if (step < n_steps) fetch(step);
        copy_async_commit();
    }
    for (u32 step = 0; step < n_steps; ++step) {
        copy_async_wait<STAGES - 2>();
        publish();
        __syncthreads();
        const u32 stage = base + step % STAGES * STAGE_BYTES;
        const u64 a = by_lines<64>(stage + group * (ROWS / 2) * LINE, 0), b = by_lines<64>(stage + IN_BYTES, DEPTH * LINE);
        group_arrive();
#pragma unroll
        for (u32 k = 0; k < DEPTH / 16; ++k)
            product<TILE, 0, AS_STORED>(sums, 0, a + k * ALONG, b + k * (AS_STORED ? ACROSS<64> : ALONG));
        group_commit();
        // All warpgroups are through with the last step: its room is free.
        if (step + STAGES - 1 < n_steps) fetch(step + STAGES - 1);
        copy_async_commit();
        group_wait<0>();
    }
    copy_async_wait<0>();
    __syncthreads();

    // [ROWS, TILE] and 16 bytes a row, so that the rows of a warp's words are in banks of their own.
    constexpr u32 WIDTH = TILE + 8;
    const u32 lane = threadIdx.x % 32, own_row = threadIdx.x / 32 % 4 * 16 + lane / 4 + group * (ROWS / 2);
#pragma unroll
    for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 to = base + ((own_row + half * 8) * WIDTH + j * 8 + lane % 4 * 2) * 2;
            asm volatile("st.shared.b32 [%0], %1;" :: "r"(to),
                         "r"(pack_bf16(sums[j][half * 2], sums[j][half * 2 + 1])) : "memory");
        }
    __syncthreads();
    constexpr u32 PIECES = TILE / 8;
#pragma unroll
    for (u32 i = 0; i < ROWS * PIECES / THREADS; ++i) {
        const u32 all = i * THREADS + threadIdx.x, r = all / PIECES, p = all % PIECES;
        if (row0 + r < rows) {
            uint4 words;
            asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                         : "r"(base + (r * WIDTH + p * 8) * 2) : "memory");
            *(uint4*)(out + (size_t)(row0 + r) * n_line + tile * TILE + p * 8) = words;
        }
    }
}

// Tiles of TILE x TILE of a block: `d_y` and `x` by panels of 64 columns, CHUNK rows of both in a stage. Tiles are few, so
// rows may be cut into parts with sums of their own, which `add_parts` adds; a part of all rows adds to what is there.
template <u32 TILE, u32 CHUNK>
__device__ __forceinline__ void weight_gradient(
    const bf16* __restrict__ d_y, const bf16* __restrict__ x, float* __restrict__ sums_of_parts,
    const u32* __restrict__ block_row, const u32* __restrict__ block_col,
    u32 all_rows, u32 n_out, u32 n_in, u32 block_rows, u32 block_cols, u32 part_rows, u64 n_values)
{
    constexpr u32 STAGES = 3;
    constexpr u32 PANELS = TILE / 64;
    constexpr u32 PANEL_BYTES = CHUNK * LINE;
    constexpr u32 STAGE_BYTES = 2 * PANELS * PANEL_BYTES;
    const u32 base = panels_base();
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);

    const u32 across = block_cols / TILE;
    const u32 per_block = block_rows / TILE * across;
    const u32 n_tiles = (u32)(n_values / (TILE * TILE));
    const u32 part = blockIdx.x / n_tiles, tile = blockIdx.x % n_tiles;
    const u32 slot = tile / per_block;
    const u32 m0 = tile % per_block / across * TILE;
    const u32 n0 = tile % across * TILE;
    const u32 rows = min(part_rows, all_rows - part * part_rows);
    const u32 n_steps = (rows + CHUNK - 1) / CHUNK;

    const u32 piece = threadIdx.x % 8, row = threadIdx.x / 8;
    const u32 at = row * LINE + (piece ^ (row % 8)) * 16;
    const bf16* const m_from = d_y + (size_t)(part * part_rows + row) * n_out + block_row[slot] * block_rows + m0 + piece * 8;
    const bf16* const n_from = x + (size_t)(part * part_rows + row) * n_in + block_col[slot] * block_cols + n0 + piece * 8;
    const auto fetch = [&](u32 step) {
        const u32 to = base + step % STAGES * STAGE_BYTES + at;
#pragma unroll
        for (u32 i = 0; i < CHUNK / 32; ++i) {
            const u32 down = step * CHUNK + i * 32;
            const bool valid = row + down < rows;
            const bf16* m = valid ? m_from + (size_t)down * n_out : d_y;
            const bf16* n = valid ? n_from + (size_t)down * n_in : x;
#pragma unroll
            for (u32 p = 0; p < PANELS; ++p) {
                copy(to + p * PANEL_BYTES + i * 32 * LINE, valid ? m + p * 64 : m, valid);
                copy(to + (PANELS + p) * PANEL_BYTES + i * 32 * LINE, valid ? n + p * 64 : n, valid);
            }
        }
    };

    float sums[TILE / 8][4];
#pragma unroll
    for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
        for (u32 c = 0; c < 4; ++c) sums[j][c] = 0.0f;

#pragma unroll
    for (u32 step = 0; step < STAGES - 1; ++step) {
        if (step < n_steps) fetch(step);
        copy_async_commit();
    }
    for (u32 step = 0; step < n_steps; ++step) {
        copy_async_wait<STAGES - 2>();
        publish();
        __syncthreads();
        const u32 stage = base + step % STAGES * STAGE_BYTES;
        // Half of the rows, or half of the outputs.
        const u64 a = by_lines<64>(stage + group * (TILE == 64 ? 64 * LINE : PANEL_BYTES), PANEL_BYTES);
        const u64 b = by_lines<64>(stage + PANELS * PANEL_BYTES + (TILE == 64 ? group * 64 * LINE : 0), PANEL_BYTES);
        group_arrive();
#pragma unroll
        for (u32 k = 0; k < 4; ++k) product<TILE, 1, 1>(sums, 0, a + k * ACROSS<64>, b + k * ACROSS<64>);
        group_commit();
        if (step + STAGES - 1 < n_steps) fetch(step + STAGES - 1);
        copy_async_commit();
        group_wait<0>();
    }
    copy_async_wait<0>();
    __syncthreads();

    const bool alone = part_rows >= all_rows;
    float* const to = sums_of_parts + part * n_values + ((size_t)slot * block_rows + m0) * block_cols + n0;
    const u32 lane = threadIdx.x % 32, own_row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    if (TILE == 64) {
        // The second group's sums are added to the first's, always in this order.
        const u32 mine = base + threadIdx.x % 128 * 4;
#pragma unroll
        for (u32 i = 0; i < 32; ++i)
            if (group == 1)
                asm volatile("st.shared.f32 [%0], %1;" :: "r"(mine + i * 512), "f"(sums[i / 4][i % 4]) : "memory");
        __syncthreads();
        if (group == 1) return;
#pragma unroll
        for (u32 i = 0; i < 32; ++i) {
            float other;
            asm volatile("ld.shared.f32 %0, [%1];" : "=f"(other) : "r"(mine + i * 512) : "memory");
            sums[i / 4][i % 4] += other;
        }
    }
#pragma unroll
    for (u32 j = 0; j < TILE / 8; ++j)
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 r = own_row + half * 8 + (TILE == 64 ? 0 : group * 64);
            float2* sum = (float2*)(to + (size_t)r * block_cols + j * 8 + lane % 4 * 2);
            const float2 was = alone ? *sum : make_float2(0.0f, 0.0f);
            *sum = make_float2(was.x + sums[j][half * 2], was.y + sums[j][half * 2 + 1]);
        }
}

#define MULTIPLY(TILE, STAGES, BLOCKS)                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) forward_##TILE(                                     \
        const bf16* x, const bf16* values, bf16* y, const u32* row_offsets, const u32* cols, u32 rows, u32 n_in,      \
        u32 n_out, u32 block_rows, u32 block_cols)                                                                    \
    {                                                                                                                 \
        multiply<TILE, false, STAGES>(x, values, y, Lines{row_offsets, cols, nullptr}, rows, n_in, n_out, block_cols, \
                                      block_rows);                                                                    \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) input_gradient_##TILE(                              \
        const bf16* d_y, const bf16* values, bf16* d_x, const u32* col_offsets, const u32* by_col_rows,               \
        const u32* by_col_slots, u32 rows, u32 n_in, u32 n_out, u32 block_rows, u32 block_cols)                       \
    {                                                                                                                 \
        multiply<TILE, true, STAGES>(d_y, values, d_x, Lines{col_offsets, by_col_rows, by_col_slots}, rows, n_out,    \
                                     n_in, block_rows, block_cols);                                                   \
    }
MULTIPLY(32, 2, 4)
MULTIPLY(64, 3, 3)
MULTIPLY(128, 3, 2)

#define WEIGHT_GRADIENT(TILE, CHUNK)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) weight_gradient_##TILE(                                  \
        const bf16* d_y, const bf16* x, float* sums, const u32* block_row, const u32* block_col, u32 rows,            \
        u32 n_out, u32 n_in, u32 block_rows, u32 block_cols, u32 part_rows, u64 n_values)                             \
    {                                                                                                                 \
        weight_gradient<TILE, CHUNK>(d_y, x, sums, block_row, block_col, rows, n_out, n_in, block_rows, block_cols,   \
                                     part_rows, n_values);                                                            \
    }
WEIGHT_GRADIENT(64, 128)
WEIGHT_GRADIENT(128, 64)

#endif
