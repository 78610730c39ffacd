// Products with a weight of at most two values in every four inputs, by Hopper's sparse tensor cores, bf16 with f32 sums.
//
// in [rows, n_in]   out [rows, n_out]   values [n_out, n_in / 2], two of each four inputs   row-major
//
// The tensor cores take 64 outputs of the weight as left and ROWS rows of `in` as right operand. Shared memory is what bounds
// them: 64 inputs of 256 rows are read in 576 cycles for both warpgroups, multiplied in 512 and written in 256. The more
// rows, the less of the weight is read for each.
//
// A thread block has an item of PANEL outputs and ROWS rows, half of the outputs for each of two warpgroups. Thread blocks
// in pairs have the same rows: each fetches half of what they need of `in` for both, or the L2 cache would be what bounds.
// Items are walked in bands of SPAN row tiles, as many outputs of each as thread blocks have room for at once. What is
// left after the last full round is cut into items of LOW rows if that leaves no thread block with two.
//
// Which two of four a value is for, its metadata, comes straight into registers: 16 bytes a thread for four steps.

namespace lw {

constexpr u32 NO_VALUE = 0xffffffffu;

__device__ __forceinline__ u32 first_thread() { return blockIdx.x * blockDim.x + threadIdx.x; }

// Places in their fours of the eight values of sixteen inputs, two bits each, the first lowest.
__device__ __forceinline__ u32 places_of(const u16* metadata, u32 out, u32 sixteenth, u32 n_in) {
    const u32 step = sixteenth / 4, n_fours = (n_in / 64 + 3) / 4;
    const u32 thread = out % 64 / 16 * 32 + out % 8 * 4 + sixteenth % 4;
    const size_t word = ((size_t)(out / 64 * n_fours + step / 4) * 128 + thread) * 4 + step % 4;
    return metadata[word * 2 + out / 8 % 2];
}

}  // namespace lw

// The values with zeros beside them where fours have fewer than two: `slots` [n], the place of a value or NO_VALUE.
extern "C" __global__ void pack_values(const lw::u16* values, const lw::u32* slots, lw::u16* packed, lw::u32 n)
{
    for (lw::u32 i = lw::first_thread(); i < n; i += gridDim.x * blockDim.x) {
        const lw::u32 slot = slots[i];
        packed[i] = slot == lw::NO_VALUE ? (lw::u16)0 : values[slot];
    }
}

// weight [n_out, n_in] of packed values. A thread has sixteen inputs.
extern "C" __global__ void fill_weight(const uint4* packed, const lw::u16* metadata, uint4* weight, lw::u32 n_out, lw::u32 n_in)
{
    using namespace lw;
    const u32 across = n_in / 16;
    for (u32 i = first_thread(); i < n_out * across; i += gridDim.x * blockDim.x) {
        const u32 places = places_of(metadata, i / across, i % across, n_in);
        const uint4 values = packed[i];
        const u32 pairs[4] = {values.x, values.y, values.z, values.w};
        u64 fours[4];
#pragma unroll
        for (u32 at = 0; at < 4; ++at)
            fours[at] = (u64)(pairs[at] & 0xffff) << ((places >> at * 4 & 3) * 16)
                        | (u64)(pairs[at] >> 16) << ((places >> (at * 4 + 2) & 3) * 16);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u64 first = fours[half * 2], second = fours[half * 2 + 1];
            weight[i * 2 + half] = make_uint4((u32)first, (u32)(first >> 32), (u32)second, (u32)(second >> 32));
        }
    }
}

// d_values += their places in d_weight [n_out, n_in]; `slots` where values are packed anew, else null.
extern "C" __global__ void gather_values(
    const float4* d_weight, const lw::u16* metadata, const lw::u32* slots, float* d_values, lw::u32 n_out, lw::u32 n_in)
{
    using namespace lw;
    const u32 across = n_in / 16;
    for (u32 i = first_thread(); i < n_out * across; i += gridDim.x * blockDim.x) {
        const u32 places = places_of(metadata, i / across, i % across, n_in);
#pragma unroll
        for (u32 at = 0; at < 4; ++at) {
            const float4 four = d_weight[i * 4 + at];
#pragma unroll
            for (u32 which = 0; which < 2; ++which) {
                const u32 place = places >> (at * 4 + which * 2) & 3, packed = i * 8 + at * 2 + which;
                const u32 slot = slots ? slots[packed] : packed;
                const float value = place == 0 ? four.x : place == 1 ? four.y : place == 2 ? four.z : four.w;
                if (slot != NO_VALUE) d_values[slot] += value;
            }
        }
    }
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

constexpr u32 CLUSTER = 2, PANEL = 128, GROUPS = 2;
constexpr u32 CONSUMERS = GROUPS * 128;          // threads; the first thread after them fetches
constexpr u32 STEP = 64;                         // inputs
constexpr u32 LOW = 64, SPAN = 8;
constexpr u32 SLICE = 32;                        // rows of `out` that leave at once
constexpr u32 SLICES = 3;                        // that a warpgroup has room for

// c[64, N] += a[64, 32] b[32, N], of a's 32 columns two of each four as `metadata` says, of half HALF of the threads; with
// `add` zero c is overwritten.
#define SPARSE_PRODUCT(N, REGS, A, B, C, D, E, ...)                                                                  \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %" #D ", 0;\n"                                              \
                 "wgmma.mma_async.sp.sync.aligned.m64n" #N "k32.f32.bf16.bf16 {" REGS "}, %" #A ", %" #B ", %" #C     \
                 ", %" #E ", adds, 1, 1, 0, 0;\n}"                                                                   \
                 : __VA_ARGS__ : "l"(a), "l"(b), "r"(metadata), "r"(add), "n"(HALF) : "memory")
template <u32 N, int HALF, u32 COUNT>
__device__ __forceinline__ void sparse_product(float (&c)[COUNT][4], u64 a, u64 b, u32 metadata, u32 add) {
    static_assert(N == 64 || N == 128 || N == 256, "a width that is used");
    if constexpr (N == 64) SPARSE_PRODUCT(64, REGS_32, 32, 33, 34, 35, 36, SUMS_32(c, 0));
    if constexpr (N == 128) SPARSE_PRODUCT(128, REGS_64, 64, 65, 66, 67, 68, SUMS_64(c, 0));
    if constexpr (N == 256) SPARSE_PRODUCT(256, REGS_128, 128, 129, 130, 131, 132, SUMS_64(c, 0), SUMS_64(c, 16));
}

// A number that the compiler knows.
template <u32 N> struct Width { static constexpr u32 value = N; };

// `metadata` [n_out / 64 rounded up to whole pairs of panels, n_steps / 4 rounded up, 128 threads, 4 steps]. Items below `n_high`
// have ROWS rows, those up to `n_items` LOW.
template <u32 ROWS, u32 ROOMS>
__device__ __forceinline__ void multiply(
    const TensorMap& in_map, const TensorMap& low_map, const TensorMap& values_map, const TensorMap& out_map,
    const uint4* __restrict__ metadata, u32 n_row_tiles, u32 n_out_tiles, u32 n_high, u32 n_items, u32 n_steps,
    const bf16* __restrict__ bias, u32 n_out, u32 activation)
{
    constexpr u32 IN_BYTES = ROWS * STEP * 2, HALF_BYTES = 64 * STEP, VALUE_BYTES = GROUPS * HALF_BYTES;
    constexpr u32 ROOM_BYTES = IN_BYTES + VALUE_BYTES, SLICE_BYTES = SLICE * 128, PARTS = ROWS / LOW;
    extern __shared__ uint4 shared[];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    __shared__ u64 full[ROOMS], empty[ROOMS];
    const u32 rank = cluster_rank(), cluster = blockIdx.x / CLUSTER, n_clusters = gridDim.x / CLUSTER;

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < ROOMS; ++i) {
            barrier_init(shared_address(&full[i]), 1);
            barrier_init(shared_address(&empty[i]), CLUSTER * CONSUMERS / 32);
        }
        barriers_ready();
        prefetch(&out_map);
    }
    __syncthreads();
    cluster_sync();

    // The first row, and which of the pairs of panels.
    const auto place = [&](u32 item, u32& row, u32& out_tile) {
        const u32 part = item < n_high ? 0 : (item - n_high) % PARTS;
        if (item >= n_high) item = n_high + (item - n_high) / PARTS;
        const u32 first = item / (SPAN * n_out_tiles) * SPAN, high = min(SPAN, n_row_tiles - first);
        const u32 wide = max(n_clusters / high, 1u), of_band = item - first * n_out_tiles;
        const u32 column = of_band / (wide * high) * wide, width = min(wide, n_out_tiles - column);
        const u32 at = of_band - column * high;
        row = (first + at / width) * ROWS + part * LOW;
        out_tile = column + at % width;
    };
    u32 room = 0, parity = 0;

    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == CONSUMERS) {
            prefetch(&in_map);
            prefetch(&values_map);
            for (u32 item = cluster; item < n_items; item += n_clusters) {
                u32 row, out_tile;
                place(item, row, out_tile);
                const TensorMap* const map = item < n_high ? &in_map : &low_map;
                const u32 rows = (item < n_high ? ROWS : LOW), share = rows / CLUSTER;
                for (u32 step = 0; step < n_steps; ++step) {
                    const u32 barrier = shared_address(&full[room]), to = base + room * ROOM_BYTES;
                    // Of both thread blocks: a room is filled in both.
                    barrier_wait(shared_address(&empty[room]), parity ^ 1);
                    barrier_expect(barrier, rows * STEP * 2 + VALUE_BYTES);
                    copy_box_to(to + rank * share * STEP * 2, map, step, row + rank * share, barrier, (1 << CLUSTER) - 1);
                    copy_box(to + IN_BYTES, &values_map, step, (out_tile * CLUSTER + rank) * PANEL, barrier);
                    next_room<ROOMS>(room, parity);
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0), lane = threadIdx.x % 32;
        const bool leads = threadIdx.x % 128 == 0, ends = bias || activation != IDENTITY;
        const u32 own_out = base + ROOMS * ROOM_BYTES + group * (SLICES * SLICE_BYTES);
        u32 turn = 0;
        const u32 n_fours = (n_steps + 3) / 4;
        const auto together = [&] {
            __syncwarp();
            asm volatile("barrier.sync %0, 128;" :: "r"(1 + group) : "memory");
        };
        float sums[ROWS / 8][4];

        const auto add_up = [&](auto n, u32 out) {
            const uint4* const from = metadata + (size_t)(out / 64) * n_fours * 128 + threadIdx.x % 128;
            uint4 four = *from;
            for (u32 at = 0; at < n_fours; ++at) {
                uint4 next_four = four;
                if (at + 1 < n_fours) next_four = from[(at + 1) * 128];
                const u32 words[4] = {four.x, four.y, four.z, four.w};
                // Two steps together wait half as often.
#pragma unroll
                for (u32 pair = 0; pair < 4; pair += 2) {
                    u32 first = room;
                    const u32 left = n_steps - at * 4 - pair;
                    if ((int)left <= 0) break;
#pragma unroll
                    for (u32 i = 0; i < 2; ++i) {
                        if (i == left) break;
                        barrier_wait(shared_address(&full[room]), parity);
                        const u32 tiles = base + room * ROOM_BYTES;
                        const u64 a = by_lines<STEP / 2>(tiles + IN_BYTES + group * HALF_BYTES), b = by_lines<STEP>(tiles);
                        group_arrive();
                        sparse_product<n.value, 0>(sums, a, b, words[pair + i], at + pair + i);
                        sparse_product<n.value, 1>(sums, a + ALONG, b + 2 * ALONG, words[pair + i], 1);
                        next_room<ROOMS>(room, parity);
                    }
                    group_commit();
                    group_wait<0>();
                    __syncwarp();
#pragma unroll
                    for (u32 i = 0; i < 2; ++i) {
                        if (i == left) break;
                        if (lane < CLUSTER) barrier_arrive_at(address_at(shared_address(&empty[first]), lane));
                        if (++first == ROOMS) first = 0;
                    }
                }
                four = next_four;
            }
        };
        // Transposed on the way, eight columns of a row are a piece of 16 bytes.
        const u32 piece = threadIdx.x / 32 % 4 * 2 + lane / 8 % 2;
        const auto leave = [&](auto n, u32 row, u32 out, const auto& end) {
            // The warp's 16 columns are rows lane / 4, and 8 more, of the sums.
            float own_bias[2] = {};
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                const u32 column = out + threadIdx.x / 32 % 4 * 16 + lane / 4 + i * 8;
                if (bias && column < n_out) own_bias[i] = to_f32(bias[column]);
            }
#pragma unroll
            for (u32 slice = 0; slice < n.value / SLICE; ++slice) {
                const u32 to_slice = own_out + turn * SLICE_BYTES;
                if (++turn == SLICES) turn = 0;
#pragma unroll
                for (u32 at = 0; at < SLICE / 8; at += 2) {
                    const u32 j = slice * (SLICE / 8) + at;
                    const u32 to_row = (at + lane / 16) * 8 + lane % 8;
                    const u32 to = to_slice + to_row * 128 + (piece ^ to_row % 8) * 16;
#pragma unroll
                    for (u32 i = 0; i < 2; ++i)
#pragma unroll
                        for (u32 c = 0; c < 4; ++c) sums[j + i][c] = end(sums[j + i][c], own_bias[c / 2]);
                    store_tiles_transposed(to, {pack_bf16(sums[j][0], sums[j][1]), pack_bf16(sums[j][2], sums[j][3]),
                                                pack_bf16(sums[j + 1][0], sums[j + 1][1]),
                                                pack_bf16(sums[j + 1][2], sums[j + 1][3])});
                }
                publish();
                // All but the last of those before have left: there is room for the next slice. One wait for all of it.
                if (leads) stores_read<SLICES - 2>();
                together();
                // Clipped where the rows end; a line beyond the columns is none.
                if (leads) {
                    if (out < n_out) store_box(&out_map, out / 64, row + slice * SLICE, to_slice);
                    stores_commit();
                }
            }
        };
        const auto work = [&](auto n, u32 row, u32 out) {
            add_up(n, out);
            if (ends) finish(activation, [&](const auto& end) { leave(n, row, out, end); });
            else leave(n, row, out, [](float sum, float) { return sum; });
        };
        for (u32 item = cluster; item < n_items; item += n_clusters) {
            u32 row, out_tile;
            place(item, row, out_tile);
            const u32 out = (out_tile * CLUSTER + rank) * PANEL + group * 64;
            if (item < n_high) work(Width<ROWS>(), row, out);
            else work(Width<LOW>(), row, out);
        }
        if (leads) stores_read<0>();
    }
    // Nobody leaves whose barriers and memory the other still reaches.
    __syncwarp();
    cluster_sync();
}

#define MULTIPLY(ROWS, ROOMS)                                                                                         \
    extern "C" __global__ void __launch_bounds__(384, 1) __cluster_dims__(2, 1, 1) two_four_##ROWS(                   \
        const __grid_constant__ TensorMap in_map, const __grid_constant__ TensorMap low_map,                          \
        const __grid_constant__ TensorMap values_map, const __grid_constant__ TensorMap out_map,                      \
        const uint4* metadata, u32 n_row_tiles, u32 n_out_tiles, u32 n_high, u32 n_items, u32 n_steps,                \
        const bf16* bias, u32 n_out, u32 activation)                                                                  \
    {                                                                                                                 \
        multiply<ROWS, ROOMS>(in_map, low_map, values_map, out_map, metadata, n_row_tiles, n_out_tiles, n_high,       \
                              n_items, n_steps, bias, n_out, activation);                                             \
    }
MULTIPLY(256, 5)
MULTIPLY(128, 8)

#endif
