// Products with a block-sparse weight on a chip filled once, bf16 with f32 sums, for sm_90a. Blocks whose sides are
// multiples of 32.
//
//   in [rows, n_sum]   out [rows, n_line]   values [n_blocks, block_rows, block_cols]   row-major
//
// Forward and input gradient are one kernel: out = in * blocks, a block used as stored or transposed. The weight is seen as
// tiles of LINE x LINE, 64 where both sides of a block are multiples of it, else 32. An item is ROWS rows of `out` and as
// many lines of its columns as make a panel of 128, half of them for each of two warpgroups. Its steps, made beforehand
// from the pattern, are the lines of the sum at which any of its lines has a tile: the tile of `in` serves all of them.
//
// The tensor cores take a tile of the weight as left and that of `in` as right operand, [64, ROWS] sums a warpgroup: a
// right operand of 256 rows costs shared memory the fewest reads, and 64 columns of `out` are as narrow as products get.
// Where only one of two tiles of 32 is there, zeros stand for the other.
//
// Thread blocks draw items one after the other. Warps of their own fetch by the copy engine, some steps ahead and into the
// next item; results leave by the copy engine while the next item's products run. Rows of `in` that items to come need
// enter the L2 cache as whole runs beforehand: tiles, 128 bytes of each of 256 rows, are slow to read from memory.
//
// Forward, the sums get their bias and activation on the way out: out = f(sums + bias).

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

constexpr u32 PANEL = 128;                       // columns of `out` of an item
constexpr u32 HALF = PANEL / 2;                  // of a warpgroup
constexpr u32 CONSUMERS = 256;                   // threads
constexpr u32 PRODUCERS = 4;                     // warps: the first fetches `in`, two each a warpgroup's weights,
constexpr u32 FETCHERS = 3, PREFETCHER = 3;      // and the last tells the L2 cache what is next
constexpr u32 NONE = 0xffffffffu;

// What a room holds: bit 0 and 1, whether a warpgroup's tiles are there; bit 2, whether they are the item's last; the item.
constexpr u32 LAST = 4, END = 0xffffffffu;

// `steps` [n_panels, panel_steps, 1 + 128 / LINE] and `lines` [n_panels, 128 / LINE] are those of panels.rs. `counters`, zero
// before and after: the next item but for the first of each thread block, and thread blocks that are done. Rows are read
// `ahead` items ahead, a multiple of n_panels; 0 for not at all.
template <u32 LINE, bool AS_STORED, u32 ROWS, u32 ROOMS>
__device__ __forceinline__ void multiply(
    const TensorMap& in_map, const TensorMap& values_map, const TensorMap& out_map, const u32* __restrict__ steps,
    const u32* __restrict__ lines, u32* counters, u32 n_panels, u32 n_items, u32 panel_steps,
    const bf16* in, u32 rows, u32 n_sum, u32 ahead, const bf16* __restrict__ bias, u32 activation)
{
    constexpr u32 TILES = PANEL / LINE;          // of a step
    constexpr u32 OWN_TILES = TILES / 2;         // of a warpgroup
    constexpr u32 TILE_BYTES = LINE * LINE * 2, HALF_BYTES = HALF * LINE * 2, IN_BYTES = ROWS * LINE * 2;
    constexpr u32 ROOM_BYTES = IN_BYTES + 2 * HALF_BYTES;
    constexpr u32 SLICE = 64;                    // rows of `out` that leave at once
    constexpr u32 LINE_BYTES = SLICE * LINE * 2, SLICE_BYTES = OWN_TILES * LINE_BYTES;
    extern __shared__ uint4 shared[];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    __shared__ u64 full[ROOMS], empty[ROOMS];
    __shared__ u32 words[ROOMS], drawn[2];

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < ROOMS; ++i) {
            barrier_init(shared_address(&full[i]), FETCHERS);
            barrier_init(shared_address(&empty[i]), CONSUMERS / 32);
        }
        barriers_ready();
        prefetch(&out_map);
    }
    __syncthreads();

    u32 room = 0, parity = 0;
    const auto next = [&] { next_room<ROOMS>(room, parity); };
    const u32 lane = threadIdx.x % 32;

    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        const u32 producer = threadIdx.x / 32 - CONSUMERS / 32;
        if (lane == 0) prefetch(producer == 0 ? &in_map : &values_map);

        // A step: the line of the sum, then where tiles are in `values`, 8 bits the line and 24 the row of tiles. Each lane
        // has one of 32 steps; after the last of a panel there are NONE.
        struct Step { u32 line, tiles[TILES]; };
        const auto load = [&](u32 item, u32 from) {
            const u32* const at = steps + ((size_t)(item % n_panels) * panel_steps + from + lane) * (1 + TILES);
            const bool some = item < n_items && from < panel_steps;
            Step own;
            own.line = some ? at[0] : NONE;
#pragma unroll
            for (u32 i = 0; i < TILES; ++i) own.tiles[i] = some ? at[1 + i] : NONE;
            return own;
        };
        // Every fetcher arrives at every room, one with nothing to fetch too: none may fall behind by a turn of the rooms.
        const auto fill = [&](u32 word, u32 row, const Step& step) {
            if (lane == 0) {
                const u32 barrier = shared_address(&full[room]), to = base + room * ROOM_BYTES;
                const u32 groups = word == END ? 0 : word & 3;
                barrier_wait(shared_address(&empty[room]), parity ^ 1);
                if (producer == 0) words[room] = word;
                if (producer == 0 ? groups == 0 : (groups >> (producer - 1) & 1) == 0) {
                    barrier_arrive(barrier);
                } else if (producer == 0) {
                    barrier_expect(barrier, IN_BYTES);
                    copy_box(to, &in_map, step.line, row, barrier);
                } else {
                    barrier_expect(barrier, HALF_BYTES);
#pragma unroll
                    for (u32 i = 0; i < OWN_TILES; ++i) {
                        const u32 tile = producer == 1 ? step.tiles[i] : step.tiles[OWN_TILES + i];
                        // Before the values there are zeros.
                        copy_box(to + IN_BYTES + (producer - 1) * HALF_BYTES + i * TILE_BYTES, &values_map, tile & 255,
                                 tile == NONE ? 0u - LINE : (tile >> 8) * LINE, barrier);
                    }
                }
            }
            next();
        };
        // The share of an item in the rows of `in` of its row tile.
        const auto prefetch_share = [&](u32 of) {
            constexpr u32 RUN = 2048;
            const size_t tile_bytes = (size_t)ROWS * n_sum * 2, share = tile_bytes / n_panels / 16 * 16;
            const size_t from = of / n_panels * tile_bytes + of % n_panels * share;
            const size_t end = min((size_t)rows * n_sum * 2, from + share);
            for (size_t at = from + lane * RUN; at < end; at += 32 * RUN)
                prefetch((const char*)in + at, (u32)min((size_t)RUN, end - at));
        };
        // Draws are on their way while the item before is fetched.
        u32 draw = 0, turn = 0;
        const auto tell = [&] {
            if (producer == 0 && lane == 0) drawn[turn % 2] = draw;
            __syncwarp();
            asm volatile("barrier.sync 3, %0;" :: "n"(PRODUCERS * 32) : "memory");
            if (producer == 0 && lane == 0) draw = atomicAdd(counters, 1);
            return drawn[turn++ % 2] + gridDim.x;
        };
        if (producer == 0 && lane == 0) draw = atomicAdd(counters, 1);
        u32 item = blockIdx.x;
        Step own = load(item, 0);
        while (item < n_items) {
            const u32 item_1 = tell();
            const Step own_1 = load(item_1, 0);
            const u32 row = item / n_panels * ROWS;
            if (producer == PREFETCHER) {
                if (item == blockIdx.x)
                    for (u32 early = item; early < ahead; early += gridDim.x) prefetch_share(early);
                if (ahead > 0) prefetch_share(item + ahead);
                item = item_1;
                own = own_1;
                continue;
            }
            for (u32 from = 0;; from += 32) {
                const Step more = load(item, from + 32);
                const u32 n = __popc(__ballot_sync(FULL_WARP, own.line != NONE));
                if (n == 0) fill(item << 3 | LAST, row, own);
                bool last = n == 0;
                for (u32 i = 0; i < n; ++i) {
                    last = i + 1 == n && (n < 32 || __shfl_sync(FULL_WARP, more.line, 0) == NONE);
                    Step step;
                    step.line = __shfl_sync(FULL_WARP, own.line, i);
                    u32 groups = 0;
#pragma unroll
                    for (u32 t = 0; t < TILES; ++t) {
                        step.tiles[t] = __shfl_sync(FULL_WARP, own.tiles[t], i);
                        groups |= step.tiles[t] != NONE ? 1u << t / OWN_TILES : 0;
                    }
                    fill(item << 3 | (last ? LAST : 0) | groups, row, step);
                }
                if (last) break;
                own = more;
            }
            item = item_1;
            own = own_1;
        }
        if (producer == PREFETCHER) return;
        fill(END, 0, own);
        // The last thread block leaves the counters as it found them: all have drawn.
        if (producer == 0 && lane == 0) {
            __threadfence();
            if (atomicInc(counters + 1, gridDim.x - 1) == gridDim.x - 1) *counters = 0;
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    const bool leads = threadIdx.x % 128 == 0;
    const u32 own_out = base + ROOMS * ROOM_BYTES + group * (2 * SLICE_BYTES);
    const auto enter = [&] {
        barrier_wait(shared_address(&full[room]), parity);
        return __shfl_sync(FULL_WARP, words[room], 0);
    };
    const auto together = [&] {
        __syncwarp();
        asm volatile("barrier.sync %0, 128;" :: "r"(1 + group) : "memory");
    };

    const bool ends = bias || activation != IDENTITY;
    for (u32 word = enter(); word != END; word = enter()) {
        const u32 item = word >> 3;
        u32 own_lines[OWN_TILES];
#pragma unroll
        for (u32 i = 0; i < OWN_TILES; ++i) own_lines[i] = lines[(item % n_panels * 2 + group) * OWN_TILES + i];
        float own_bias[2] = {};
        float sums[ROWS / 8][4];
#pragma unroll
        for (u32 j = 0; j < ROWS / 8; ++j)
#pragma unroll
            for (u32 c = 0; c < 4; ++c) sums[j][c] = 0.0f;
        for (;;) {
            if (word >> group & 1) {
                const u32 tiles = base + room * ROOM_BYTES;
                const u64 a = by_lines<LINE>(tiles + IN_BYTES + group * HALF_BYTES, TILE_BYTES), b = by_lines<LINE>(tiles);
                group_arrive();
#pragma unroll
                for (u32 k = 0; k < LINE / 16; ++k)
                    product<ROWS, AS_STORED>(sums, 0, a + k * (AS_STORED ? ACROSS<LINE> : ALONG), b + k * ALONG);
                group_commit();
            }
            if (!AS_STORED && word & LAST && bias) {
                // The warp's 16 columns are rows lane / 4, and 8 more, of the sums.
                const u32 column = threadIdx.x / 32 % 4 * 16 + lane / 4;
                const u32 line = column < LINE ? own_lines[0] : own_lines[OWN_TILES - 1];
                if (line != NONE)
#pragma unroll
                    for (u32 i = 0; i < 2; ++i) own_bias[i] = to_f32(bias[line * LINE + column % LINE + i * 8]);
            }
            // The other warpgroup's products fill the gap.
            group_wait<0>();
            __syncwarp();
            if (lane == 0) barrier_arrive(shared_address(&empty[room]));
            next();
            if (word & LAST) break;
            word = enter();
        }

        // Transposed on the way, eight columns of a row are a piece of 16 bytes.
        constexpr u32 PIECES = LINE / 8;         // of a line
        const u32 piece = threadIdx.x / 32 % 4 * 2 + lane / 8 % 2;
        const auto leave = [&](const auto& end) {
#pragma unroll
            for (u32 slice = 0; slice < ROWS / SLICE; ++slice) {
                // The slice before the last has left.
                if (leads) stores_read<1>();
                together();
                const u32 to_slice = own_out + slice % 2 * SLICE_BYTES;
                const u32 line = to_slice + piece / PIECES * LINE_BYTES;
#pragma unroll
                for (u32 at = 0; at < SLICE / 8; at += 2) {
                    const u32 j = slice * (SLICE / 8) + at;
                    const u32 row = (at + lane / 16) * 8 + lane % 8;
                    const u32 to = line + row * LINE * 2 + (piece ^ (LINE == 64 ? row : row / 2)) % PIECES * 16;
#pragma unroll
                    for (u32 i = 0; i < 2; ++i)
#pragma unroll
                        for (u32 c = 0; c < 4; ++c) sums[j + i][c] = end(sums[j + i][c], own_bias[c / 2]);
                    store_tiles_transposed(to, {pack_bf16(sums[j][0], sums[j][1]), pack_bf16(sums[j][2], sums[j][3]),
                                                pack_bf16(sums[j + 1][0], sums[j + 1][1]),
                                                pack_bf16(sums[j + 1][2], sums[j + 1][3])});
                }
                publish();
                together();
                if (leads) {
#pragma unroll
                    for (u32 i = 0; i < OWN_TILES; ++i)
                        if (own_lines[i] != NONE)
                            store_box(&out_map, own_lines[i], item / n_panels * ROWS + slice * SLICE, to_slice + i * LINE_BYTES);
                    stores_commit();
                }
            }
        };
        if (!AS_STORED && ends) finish(activation, leave);
        else leave([](float sum, float) { return sum; });
    }
    if (leads) stores_read<0>();
}

#define MULTIPLY(NAME, LINE, AS_STORED, ROWS, ROOMS)                                                                  \
    extern "C" __global__ void __launch_bounds__(384, 1) NAME##_##ROWS##_##LINE(                                      \
        const __grid_constant__ TensorMap in_map, const __grid_constant__ TensorMap values_map,                       \
        const __grid_constant__ TensorMap out_map, const u32* steps, const u32* lines, u32* counters, u32 n_panels,   \
        u32 n_items, u32 panel_steps, const bf16* in, u32 rows, u32 n_sum, u32 ahead, const bf16* bias,               \
        u32 activation)                                                                                               \
    {                                                                                                                 \
        multiply<LINE, AS_STORED, ROWS, ROOMS>(in_map, values_map, out_map, steps, lines, counters, n_panels,         \
                                               n_items, panel_steps, in, rows, n_sum, ahead, bias, activation);       \
    }
MULTIPLY(forward, 64, false, 256, 4)
MULTIPLY(forward, 64, false, 128, 6)
MULTIPLY(forward, 32, false, 256, 8)
MULTIPLY(forward, 32, false, 128, 12)
MULTIPLY(input_gradient, 64, true, 256, 4)
MULTIPLY(input_gradient, 64, true, 128, 6)
MULTIPLY(input_gradient, 32, true, 256, 8)
MULTIPLY(input_gradient, 32, true, 128, 12)

#endif
