// Products with a block-sparse weight on tensor cores, bf16 with f32 sums. Blocks of multiples of 16 by 16.
//
//   x [rows, n_in]   y [rows, n_out]   values [n_blocks, block_rows, block_cols]   all bf16, row-major
//
// Forward and input gradient are one kernel: out = in * blocks, where a block of the sum is used as stored or
// transposed. A thread block owns TILE_ROWS rows and TILE columns of one block column of `out`:
//
//   for each block of this line of the pattern, for each `depth` columns of it:
//       in tile [TILE_ROWS, depth], weight tile -> shared, the next pair on its way while this one is multiplied
//       sums += in tile * weight tile                     4 warps, 32 rows each
//   out tile = sums, rounded once
//
// Weight gradient: a thread block owns TILE_M x TILE_N of one block and walks all rows, CHUNK at a time; each of its
// 4 warps takes a quarter of a chunk's rows for the whole tile, and their sums are added in the order of the warps.
//
// Every row of a tile in shared memory is PAD longer than its numbers, so that ldmatrix meets 8 different banks.
// Needs addresses at multiples of 16 bytes; `depth` 16, 32 or 64 and a divisor of the block, TILEs likewise.

using namespace lw;

constexpr u32 TILE_ROWS = 128;
constexpr u32 CHUNK = 64;
constexpr u32 THREADS = 128;
constexpr u32 PAD = 8;

// Queues a copy of `n_rows` rows of `width` numbers, `stride` apart, to rows of `width + PAD`; zeros for rows at or
// past `end`. `width` is a multiple of 8.
__device__ __forceinline__ void fetch(
    bf16* to, const bf16* from, size_t stride, u32 n_rows, u32 width, u32 end)
{
    const u32 per_row = width / 8;
    for (u32 i = threadIdx.x; i < n_rows * per_row; i += THREADS) {
        const u32 row = i / per_row;
        const u32 at = (i % per_row) * 8;
        const bool valid = row < end;
        copy_async_16(to + row * (width + PAD) + at, valid ? from + row * stride + at : from, valid);
    }
}

// b[k, n] of 16 by 16, from rows of k (n contiguous): registers 0, 1 for the first 8 columns, 2, 3 for the next.
__device__ __forceinline__ void load_b_by_k(u32 (&b)[4], const bf16* tile, u32 width) {
    const u32 lane = threadIdx.x % 32;
    load_tiles_transposed(b, tile + ((lane / 8 % 2) * 8 + lane % 8) * width + (lane / 16) * 8);
}

// The same from rows of n (k contiguous).
__device__ __forceinline__ void load_b_by_n(u32 (&b)[4], const bf16* tile, u32 width) {
    const u32 lane = threadIdx.x % 32;
    load_tiles(b, tile + ((lane / 16) * 8 + lane % 8) * width + (lane / 8 % 2) * 8);
}

struct Lines {
    const u32* offsets;   // of the line of `out` [lines + 1]
    const u32* blocks;    // block of `in` an entry multiplies [n_blocks]
    const u32* slots;     // where an entry's values are; null if entry and slot are one
};

// AS_STORED: a block's rows run along the sum (input gradient); else along `out` (forward).
template <u32 TILE, bool AS_STORED>
__device__ __forceinline__ void multiply(
    const bf16* __restrict__ in, const bf16* __restrict__ values, bf16* __restrict__ out, Lines lines,
    u32 rows, u32 n_sum, u32 n_line, u32 block_sum, u32 block_line, u32 block_cols, u32 depth)
{
    extern __shared__ uint4 shared[];
    const u32 in_width = depth + PAD;
    const u32 weight_width = AS_STORED ? TILE + PAD : depth + PAD;
    const u32 in_len = TILE_ROWS * in_width;
    const u32 weight_len = (AS_STORED ? depth : TILE) * weight_width;
    bf16* const in_tiles = (bf16*)shared;                   // two of each
    bf16* const weight_tiles = in_tiles + 2 * in_len;

    const u32 n_tiles = n_line / TILE;
    const u32 tile = blockIdx.x % n_tiles;
    const u32 row0 = blockIdx.x / n_tiles * TILE_ROWS;
    const u32 line = tile * TILE / block_line;
    const u32 within = tile * TILE % block_line;            // first column of the tile inside its block
    const u32 warp = threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32;

    const u32 first = lines.offsets[line];
    const u32 per_block = block_sum / depth;
    const u32 n_steps = (lines.offsets[line + 1] - first) * per_block;
    const size_t block_len = (size_t)block_sum * block_line;

    const auto fetch_step = [&](u32 step) {
        const u32 entry = first + step / per_block;
        const u32 k = step % per_block * depth;
        const u32 slot = lines.slots ? lines.slots[entry] : entry;
        const u32 stage = step % 2;
        const bf16* from = in + (size_t)row0 * n_sum + (size_t)lines.blocks[entry] * block_sum + k;
        fetch(in_tiles + stage * in_len, from, n_sum, TILE_ROWS, depth, rows - row0);
        const bf16* block = values + slot * block_len;
        if (AS_STORED)
            fetch(weight_tiles + stage * weight_len, block + k * block_cols + within, block_cols, depth, TILE, depth);
        else
            fetch(weight_tiles + stage * weight_len, block + within * block_cols + k, block_cols, TILE, depth, TILE);
    };

    float sums[2][TILE / 8][4] = {};
    if (n_steps > 0) fetch_step(0);
    copy_async_commit();
    for (u32 step = 0; step < n_steps; ++step) {
        if (step + 1 < n_steps) fetch_step(step + 1);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        const bf16* in_tile = in_tiles + step % 2 * in_len + warp * 32 * in_width;
        const bf16* weight_tile = weight_tiles + step % 2 * weight_len;
        for (u32 k = 0; k < depth; k += 16) {
            u32 a[2][4];
#pragma unroll
            for (u32 i = 0; i < 2; ++i)
                load_tiles(a[i], in_tile + (i * 16 + lane % 16) * in_width + k + (lane / 16) * 8);
#pragma unroll
            for (u32 j = 0; j < TILE / 16; ++j) {
                u32 b[4];
                if (AS_STORED) load_b_by_k(b, weight_tile + k * weight_width + j * 16, weight_width);
                else load_b_by_n(b, weight_tile + j * 16 * weight_width + k, weight_width);
#pragma unroll
                for (u32 i = 0; i < 2; ++i) {
                    mma_bf16(sums[i][2 * j], a[i], b[0], b[1]);
                    mma_bf16(sums[i][2 * j + 1], a[i], b[2], b[3]);
                }
            }
        }
        __syncthreads();
    }

#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 row = row0 + warp * 32 + i * 16 + lane / 4;
#pragma unroll
        for (u32 j = 0; j < TILE / 8; ++j) {
            bf16* at = out + (size_t)row * n_line + tile * TILE + j * 8 + lane % 4 * 2;
            if (row < rows) *(u32*)at = pack_bf16(sums[i][j][0], sums[i][j][1]);
            if (row + 8 < rows) *(u32*)(at + (size_t)8 * n_line) = pack_bf16(sums[i][j][2], sums[i][j][3]);
        }
    }
}

template <u32 TILE_M, u32 TILE_N>
__device__ __forceinline__ void weight_gradient(
    const bf16* __restrict__ d_y, const bf16* __restrict__ x, float* __restrict__ d_values,
    const u32* __restrict__ block_row, const u32* __restrict__ block_col,
    u32 rows, u32 n_out, u32 n_in, u32 block_rows, u32 block_cols)
{
    extern __shared__ uint4 shared[];
    constexpr u32 M_WIDTH = TILE_M + PAD, N_WIDTH = TILE_N + PAD;
    constexpr u32 M_LEN = CHUNK * M_WIDTH, N_LEN = CHUNK * N_WIDTH;
    bf16* const m_tiles = (bf16*)shared;                    // two of each
    bf16* const n_tiles = m_tiles + 2 * M_LEN;

    const u32 across = block_cols / TILE_N;
    const u32 per_block = block_rows / TILE_M * across;
    const u32 slot = blockIdx.x / per_block;
    const u32 m0 = blockIdx.x % per_block / across * TILE_M;
    const u32 n0 = blockIdx.x % across * TILE_N;
    const u32 warp = threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32;
    const bf16* const m_from = d_y + (size_t)block_row[slot] * block_rows + m0;
    const bf16* const n_from = x + (size_t)block_col[slot] * block_cols + n0;
    const u32 n_steps = (rows + CHUNK - 1) / CHUNK;

    const auto fetch_step = [&](u32 step) {
        const size_t row = (size_t)step * CHUNK;
        fetch(m_tiles + step % 2 * M_LEN, m_from + row * n_out, n_out, CHUNK, TILE_M, rows - (u32)row);
        fetch(n_tiles + step % 2 * N_LEN, n_from + row * n_in, n_in, CHUNK, TILE_N, rows - (u32)row);
    };

    float sums[TILE_M / 16][TILE_N / 8][4] = {};
    if (n_steps > 0) fetch_step(0);
    copy_async_commit();
    for (u32 step = 0; step < n_steps; ++step) {
        if (step + 1 < n_steps) fetch_step(step + 1);
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        const bf16* m_tile = m_tiles + step % 2 * M_LEN + warp * 16 * M_WIDTH;
        const bf16* n_tile = n_tiles + step % 2 * N_LEN + warp * 16 * N_WIDTH;
        u32 a[TILE_M / 16][4];
#pragma unroll
        for (u32 i = 0; i < TILE_M / 16; ++i)
            load_tiles_transposed(
                a[i], m_tile + ((lane / 16) * 8 + lane % 8) * M_WIDTH + i * 16 + (lane / 8 % 2) * 8);
#pragma unroll
        for (u32 j = 0; j < TILE_N / 16; ++j) {
            u32 b[4];
            load_b_by_k(b, n_tile + j * 16, N_WIDTH);
#pragma unroll
            for (u32 i = 0; i < TILE_M / 16; ++i) {
                mma_bf16(sums[i][2 * j], a[i], b[0], b[1]);
                mma_bf16(sums[i][2 * j + 1], a[i], b[2], b[3]);
            }
        }
        __syncthreads();
    }

    // The tiles are used up (an empty last group may be pending, which writes nothing): their room takes the sums.
    copy_async_wait<0>();
    __syncthreads();
    float* const total = (float*)shared;                    // [TILE_M, TILE_N]
    for (u32 turn = 0; turn < THREADS / 32; ++turn) {
        if (warp == turn) {
#pragma unroll
            for (u32 i = 0; i < TILE_M / 16; ++i)
#pragma unroll
                for (u32 j = 0; j < TILE_N / 8; ++j)
#pragma unroll
                    for (u32 c = 0; c < 4; ++c) {
                        const u32 row = i * 16 + lane / 4 + c / 2 * 8;
                        float* at = total + row * TILE_N + j * 8 + lane % 4 * 2 + c % 2;
                        *at = turn == 0 ? sums[i][j][c] : *at + sums[i][j][c];
                    }
        }
        __syncthreads();
    }
    float* const to = d_values + ((size_t)slot * block_rows + m0) * block_cols + n0;
    for (u32 i = threadIdx.x; i < TILE_M * TILE_N; i += THREADS)
        to[(size_t)(i / TILE_N) * block_cols + i % TILE_N] += total[i];
}

#define MULTIPLY(TILE)                                                                                                \
    extern "C" __global__ void __launch_bounds__(THREADS) forward_##TILE(                                             \
        const bf16* x, const bf16* values, bf16* y, const u32* row_offsets, const u32* cols, u32 rows, u32 n_in,      \
        u32 n_out, u32 block_rows, u32 block_cols, u32 depth)                                                         \
    {                                                                                                                 \
        multiply<TILE, false>(x, values, y, Lines{row_offsets, cols, nullptr}, rows, n_in, n_out, block_cols,         \
                              block_rows, block_cols, depth);                                                         \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) input_gradient_##TILE(                                      \
        const bf16* d_y, const bf16* values, bf16* d_x, const u32* col_offsets, const u32* by_col_rows,               \
        const u32* by_col_slots, u32 rows, u32 n_in, u32 n_out, u32 block_rows, u32 block_cols, u32 depth)            \
    {                                                                                                                 \
        multiply<TILE, true>(d_y, values, d_x, Lines{col_offsets, by_col_rows, by_col_slots}, rows, n_out, n_in,      \
                             block_rows, block_cols, block_cols, depth);                                              \
    }
MULTIPLY(16)
MULTIPLY(32)
MULTIPLY(64)

#define WEIGHT_GRADIENT(TILE_M, TILE_N)                                                                               \
    extern "C" __global__ void __launch_bounds__(THREADS) weight_gradient_##TILE_M##x##TILE_N(                        \
        const bf16* d_y, const bf16* x, float* d_values, const u32* block_row, const u32* block_col, u32 rows,        \
        u32 n_out, u32 n_in, u32 block_rows, u32 block_cols)                                                          \
    {                                                                                                                 \
        weight_gradient<TILE_M, TILE_N>(d_y, x, d_values, block_row, block_col, rows, n_out, n_in, block_rows,        \
                                        block_cols);                                                                  \
    }
WEIGHT_GRADIENT(16, 16)
WEIGHT_GRADIENT(16, 32)
WEIGHT_GRADIENT(16, 64)
WEIGHT_GRADIENT(32, 16)
WEIGHT_GRADIENT(32, 32)
WEIGHT_GRADIENT(32, 64)
WEIGHT_GRADIENT(64, 16)
WEIGHT_GRADIENT(64, 32)
WEIGHT_GRADIENT(64, 64)
