// Weight gradients of a block-sparse weight on a chip filled once, bf16 with f32 sums, for sm_90a. Blocks whose sides are
// multiples of 32.
//
//   d_y [rows, n_out]   x [rows, n_in]   d_values [n_blocks, block_rows, block_cols] += (d_y' x) at the blocks   row-major
//
// The weight is seen as tiles of LINE x LINE, 64 where both sides of a block are multiples of it, else 32. A chunk is 64
// outputs (one line of 64, or two of 32) and up to 256 inputs at which any of them has a tile: what a warpgroup's sums hold,
// and as wide as products get, since the 64 outputs are read from shared memory for each. An item is two chunks, one a
// warpgroup, over some of the rows. Chunks of the same inputs are in one item, which then reads these once.
//
// Sums along rows have both operands lying across. One warp fetches rooms of ROWS rows by the copy engine, a tile a lane.
// Each part of the rows has sums of its own, which `add_parts` adds in order: the same bits every time.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

constexpr u32 ROWS = 32;                     // of a room
constexpr u32 ROOMS = 5;
constexpr u32 DOWN = 64, ACROSS_MOST = 256;  // outputs and inputs of a chunk
constexpr u32 CONSUMERS = 256;               // threads
constexpr u32 LANES = 32;
constexpr u32 NONE = 0xffffffffu;

// `copies` [n_items, 32]: lines that a lane fetches, first those of d_y of both chunks, then those of x. `widths` [n_items,
// 2]: inputs of a chunk in products of 64, or 0. `tiles` [n_items, 2, 64 / LINE, 256 / LINE]: where in d_values the tiles of a
// chunk are, 8 bits the line and 24 the row of tiles. All as in chunks.rs.
//
// `sums` [parts, n_values], overwritten at the tiles; with one part d_values, added to. Launch: (CONSUMERS + 32) threads.
template <u32 LINE>
__device__ __forceinline__ void weight_gradient(
    const TensorMap& d_y_map, const TensorMap& x_map, float* sums, const u32* __restrict__ copies,
    const u32* __restrict__ widths, const u32* __restrict__ tiles, u32 n_items, u32 parts, u32 part_rows, u32 rows,
    u32 block_cols, u64 n_values)
{
    constexpr u32 A_TILES = DOWN / LINE, B_TILES = ACROSS_MOST / LINE;
    constexpr u32 TILE_BYTES = ROWS * LINE * 2;
    constexpr u32 B_START = 2 * A_TILES * TILE_BYTES;
    constexpr u32 ROOM_BYTES = 2 * (A_TILES + B_TILES) * TILE_BYTES;
    extern __shared__ uint4 shared[];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    __shared__ u64 full[ROOMS], empty[ROOMS];

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < ROOMS; ++i) {
            barrier_init(shared_address(&full[i]), 1);
            barrier_init(shared_address(&empty[i]), CONSUMERS / 32);
        }
        barriers_ready();
    }
    __syncthreads();

    u32 room = 0, parity = 0;
    const auto next = [&] { next_room<ROOMS>(room, parity); };
    const u32 lane = threadIdx.x % 32;
    // Parts of an item follow each other; every other turn goes the other way, since the first items are the largest.
    const u32 n_all = n_items * parts;
    const auto of_turn = [&](u32 turn) {
        return turn * gridDim.x + (turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    };
    const u32 turns = (n_all + gridDim.x - 1) / gridDim.x;

    if (threadIdx.x >= CONSUMERS) {
        const bool of_x = lane >= 2 * A_TILES;
        const TensorMap* const map = of_x ? &x_map : &d_y_map;
        if (lane == 0) prefetch(&d_y_map);
        if (lane == LANES - 1) prefetch(&x_map);
        for (u32 turn = 0; turn < turns; ++turn) {
            const u32 at = of_turn(turn);
            if (at >= n_all) continue;
            const u32 line = copies[at / parts * LANES + lane];
            const u32 bytes = __popc(__ballot_sync(FULL_WARP, line != NONE)) * TILE_BYTES;
            const u32 first = at % parts * part_rows, end = min(rows, first + part_rows);
            for (u32 row = first; row < end; row += ROWS) {
                const u32 barrier = shared_address(&full[room]);
                if (lane == 0) {
                    barrier_wait(shared_address(&empty[room]), parity ^ 1);
                    barrier_expect(barrier, bytes);
                }
                __syncwarp();
                if (line != NONE) copy_box(base + room * ROOM_BYTES + lane * TILE_BYTES, map, line, row, barrier);
                next();
            }
        }
        return;
    }

    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    const u32 own_row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    for (u32 turn = 0; turn < turns; ++turn) {
        const u32 at = of_turn(turn);
        if (at >= n_all) continue;
        const u32 item = at / parts;
        const u32 first = at % parts * part_rows, end = min(rows, first + part_rows);
        const u32 n_steps = (end - first + ROWS - 1) / ROWS;
        const u32 width = widths[item * 2 + group];
        // A second chunk of the first one's inputs fetches none.
        const bool apart = copies[item * LANES + 2 * A_TILES + group * B_TILES] != NONE;
        float c[ACROSS_MOST / 8][4];
#pragma unroll
        for (u32 j = 0; j < ACROSS_MOST / 8; ++j)
#pragma unroll
            for (u32 i = 0; i < 4; ++i) c[j][i] = 0.0f;
        const auto walk = [&](const auto& multiply) {
            u32 before = 0;
            for (u32 step = 0; step < n_steps; ++step) {
                barrier_wait(shared_address(&full[room]), parity);
                const u32 from = base + room * ROOM_BYTES;
                const u64 a = by_lines<LINE>(from + group * A_TILES * TILE_BYTES, TILE_BYTES);
                const u64 b = by_lines<LINE>(from + B_START + (apart ? group * B_TILES * TILE_BYTES : 0), TILE_BYTES);
                multiply(a, b);
                // The room before is free when this one's products are the only ones on their way.
                __syncwarp();
                if (step > 0 && lane == 0) barrier_arrive(shared_address(&empty[before]));
                before = room;
                next();
            }
            group_wait<0>();
            __syncwarp();
            if (lane == 0) barrier_arrive(shared_address(&empty[before]));
        };
#define WALK(N)                                                                                                       \
    walk([&](u64 a, u64 b) {                                                                                          \
        group_arrive();                                                                                               \
        _Pragma("unroll") for (u32 k = 0; k < ROWS / 16; ++k)                                                         \
            product<N, 1, 1>(c, 0, a + k * ACROSS<LINE>, b + k * ACROSS<LINE>);                                       \
        group_commit();                                                                                               \
        group_wait<1>();                                                                                              \
    })
        if (width == 4) WALK(256);
        else if (width == 3) WALK(192);
        else if (width == 2) WALK(128);
        else if (width == 1) WALK(64);
        else walk([](u64, u64) {});
#undef WALK

        const u32* const own_tiles = tiles + ((size_t)item * 2 + group) * (A_TILES * B_TILES) + own_row / LINE * B_TILES;
        float* const to = sums + at % parts * (parts > 1 ? n_values : 0);
#pragma unroll
        for (u32 b = 0; b < B_TILES; ++b) {
            const u32 tile = own_tiles[b];
            if (tile == NONE) continue;
            float* const corner =
                to + ((size_t)(tile >> 8) * LINE + own_row % LINE) * block_cols + (tile & 255) * LINE + lane % 4 * 2;
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
#pragma unroll
                for (u32 j = 0; j < LINE / 8; ++j) {
                    float2* const sum = (float2*)(corner + (size_t)half * 8 * block_cols + j * 8);
                    const float2 was = parts > 1 ? make_float2(0.0f, 0.0f) : *sum;
                    const float(&own)[4] = c[b * (LINE / 8) + j];
                    *sum = make_float2(was.x + own[half * 2], was.y + own[half * 2 + 1]);
                }
        }
    }
}

#define WEIGHT_GRADIENT(LINE)                                                                                         \
    extern "C" __global__ void __launch_bounds__(288, 1) weight_gradient_##LINE(                                      \
        const __grid_constant__ TensorMap d_y_map, const __grid_constant__ TensorMap x_map, float* sums,              \
        const u32* copies, const u32* widths, const u32* tiles, u32 n_items, u32 parts, u32 part_rows, u32 rows,      \
        u32 block_cols, u64 n_values)                                                                                 \
    {                                                                                                                 \
        weight_gradient<LINE>(d_y_map, x_map, sums, copies, widths, tiles, n_items, parts, part_rows, rows,           \
                              block_cols, n_values);                                                                  \
    }
WEIGHT_GRADIENT(64)
WEIGHT_GRADIENT(32)

// d_values += the sums of all parts, in their order; four numbers a thread.
extern "C" __global__ void __launch_bounds__(256) add_parts(const float* sums, float* d_values, u64 n_values, u32 parts)
{
    const u64 at = ((u64)blockIdx.x * 256 + threadIdx.x) * 4;
    if (at >= n_values) return;
    float4 sum = *(const float4*)(d_values + at);
    for (u32 part = 0; part < parts; ++part) {
        const float4 more = *(const float4*)(sums + part * n_values + at);
        sum = make_float4(sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w);
    }
    *(float4*)(d_values + at) = sum;
}

#endif
