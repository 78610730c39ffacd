// The gradients of both factors of a Monarch map that cluster.cu takes, of what it and input_gradient.cu kept. For sm_90a, bf16
// with f32 sums.
//
//   d_first[kappa, j, i] (+)= sum_row du[row, kappa SIDE + j] x[row, kappa SIDE + i]
//   d_second[lambda, sigma, rho] (+)= sum_row dy[row, sigma BLOCKS + lambda] u[row, rho BLOCKS + lambda]     f32, in place
//
// An item is OWN blocks of a factor, those that one thread block of the other kernels had. Four thread blocks have a quarter of
// the row tiles each, their sums in registers: two in a cluster add theirs, then whichever pair comes last adds that of the
// other, which left it in `parts`. Sums of two: the same bits, whoever is last.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

constexpr u32 PAIR = 2, QUARTERS = 2 * PAIR;
constexpr u32 OPERAND = (Y_BYTES + 1023) / 1024 * 1024, ROOM_BYTES = 2 * OPERAND;
constexpr u32 SUM_ROW = SIDE + 8;  // so many apart two rows of four are in different banks
static_assert(OWN * SIDE * SUM_ROW * 4 <= ROOMS * ROOM_BYTES, "room for the sums");
constexpr u32 CONSUMERS = OWN * 128;
constexpr u32 FOURS = SIDE / PAIR * (SIDE / 4) / 128;  // of sums, of a thread
constexpr u32 BATCH = 8;                               // of them loaded at once, or each would wait for the one before

// Of shared memory in the cluster.
__device__ __forceinline__ float4 load_16_at(u32 at) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "r"(at));
    return v;
}

// `parts` [4 CLUSTER][pair][...], 64 KB each; `counters` [4 CLUSTER], zero. A factor without a result costs nothing.
extern "C" __global__ void __launch_bounds__(CONSUMERS + 32, 1) __cluster_dims__(PAIR, 1, 1)
monarch_weight_gradients(const __grid_constant__ TensorMap x_map, const u8* __restrict__ kept_u, const u8* __restrict__ kept_dy,
                         const u8* __restrict__ kept_du, float* d_first, float* d_second, u32 add_first, u32 add_second,
                         float4* parts, u32* counters, u32 rows) {
    extern __shared__ uint4 shared[];
    __shared__ u64 full[ROOMS], empty[ROOMS];
    __shared__ u32 earlier;
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    const u32 rank = cluster_rank(), pair = blockIdx.x / PAIR % 2, item = blockIdx.x / QUARTERS;
    const u32 owner = item % CLUSTER, factor = item / CLUSTER, lane = threadIdx.x % 32;
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0), warp = __shfl_sync(FULL_WARP, threadIdx.x / 32 % 4, 0);
    const u32 n_tiles = (rows + TILE - 1) / TILE, quarter = pair * PAIR + rank;
    float* const to = factor == 0 ? d_first : d_second;
    if (!to) return;

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < ROOMS; ++i) {
            barrier_init(shared_address(&full[i]), 1);
            barrier_init(shared_address(&empty[i]), CONSUMERS / 32);
        }
        barriers_ready();
    }
    __syncthreads();
    u32 room = 0, parity = 0;
    if (group == OWN) {
        if (lane == 0)
            // The last tiles first: they were written last, and may be in the L2 cache yet.
            for (u32 n = quarter; n < n_tiles; n += QUARTERS) {
                const u32 tile = n_tiles - 1 - n, barrier = shared_address(&full[room]), a = base + room * ROOM_BYTES, b = a + OPERAND;
                const size_t at = (size_t)tile * CLUSTER + owner;
                barrier_wait(shared_address(&empty[room]), parity ^ 1);
                barrier_expect(barrier, (factor == 0 ? BYTES : Y_BYTES) + BYTES);
                if (factor == 0) {
                    copy_run(a, kept_du + at * BYTES, BYTES, barrier);
                    copy_box(b, &x_map, owner * LINES, tile * TILE, barrier);
                } else {
                    copy_run(a, kept_dy + at * Y_BYTES, Y_BYTES, barrier);
                    copy_run(b, kept_u + at * BYTES, BYTES, barrier);
                }
                next_room<ROOMS>(room, parity);
            }
        __syncwarp();
        cluster_sync();
    } else {
        // A warpgroup has a block. Rows of the tile run along the sum, both operands lie across it.
        float sums[2][SIDE / 8][4] = {};
        u32 before = ROOMS;
        const auto walk = [&](const auto& left, const auto& right) {
            for (u32 n = quarter; n < n_tiles; n += QUARTERS) {
                barrier_wait(shared_address(&full[room]), parity);
                const u32 a = base + room * ROOM_BYTES;
                group_arrive();
#pragma unroll
                for (u32 k = 0; k < TILE / 16; ++k)
#pragma unroll
                    for (u32 half = 0; half < 2; ++half)
                        product<SIDE, 1, 1>(sums[half], 0, left(a, half, k), right(a + OPERAND, k));
                group_commit();
                group_wait<1>();
                // The room before is free when this one's products are the only ones on their way.
                if (before < ROOMS && lane == 0) barrier_arrive(shared_address(&empty[before]));
                before = room;
                next_room<ROOMS>(room, parity);
            }
            group_wait<0>();
        };
        const auto piece = [](u32 at, u32 sent, u32 half, u32 k) { return descriptor(at + half * 8 * sent + k * 256, 128, sent, 0); };
        if (factor == 0)
            walk([&](u32 a, u32 half, u32 k) { return piece(a + group * PIECE, SENT, half, k); },
                 [&](u32 b, u32 k) { return by_lines<64>(b + group * (SIDE / 64) * (TILE * 128), TILE * 128) + k * ACROSS<64>; });
        else
            walk([&](u32 a, u32 half, u32 k) { return piece(a + group * Y_PIECE, Y_SENT, half, k); },
                 [&](u32 b, u32 k) { return piece(b + group * PIECE, SENT, 0, k); });

        // When all have read the rooms, the sums lie there.
        asm volatile("bar.sync 1, %0;" :: "n"(CONSUMERS) : "memory");
        const u32 own = base + group * (SIDE * SUM_ROW * 4);
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 j = 0; j < SIDE / 8; ++j)
#pragma unroll
                for (u32 eight = 0; eight < 2; ++eight) {
                    const u32 row = half * 64 + warp * 16 + eight * 8 + lane / 4, at = own + (row * SUM_ROW + j * 8 + lane % 4 * 2) * 4;
                    asm volatile("st.shared.v2.f32 [%0], {%1, %2};"
                                 :: "r"(at), "f"(sums[half][j][2 * eight]), "f"(sums[half][j][2 * eight + 1]) : "memory");
                }
        cluster_sync();
        // Each of the pair has half of the rows of both blocks.
        const auto row_of = [&](u32 i) { return rank * (SIDE / PAIR) + (i * 128 + threadIdx.x % 128) / (SIDE / 4); };
        const u32 four = threadIdx.x % (SIDE / 4);
        float4 mine[FOURS], others[BATCH];
        const auto add = [](float4& a, const float4& b) { a = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); };
        const u32 counter = item * PAIR + rank;
        float4* const part = parts + (size_t)counter * (2 * FOURS * CONSUMERS) + threadIdx.x;
#pragma unroll
        for (u32 first = 0; first < FOURS; first += BATCH) {
#pragma unroll
            for (u32 i = 0; i < BATCH; ++i) {
                const u32 at = own + (row_of(first + i) * SUM_ROW + four * 4) * 4;
                mine[first + i] = load_16_at(address_at(at, 0));
                others[i] = load_16_at(address_at(at, 1));
            }
#pragma unroll
            for (u32 i = 0; i < BATCH; ++i) {
                add(mine[first + i], others[i]);
                part[(pair * FOURS + first + i) * CONSUMERS] = mine[first + i];
            }
        }
        __threadfence();
        asm volatile("bar.sync 1, %0;" :: "n"(CONSUMERS) : "memory");
        if (threadIdx.x == 0) earlier = atomicAdd(&counters[counter], 1);
        asm volatile("bar.sync 1, %0;" :: "n"(CONSUMERS) : "memory");
        if (earlier) {
            __threadfence();
            const auto result = [&](u32 i) {
                const u32 row = factor == 0 ? by_first(row_of(i), group) : row_of(i);
                const u32 column = factor == 0 ? four * 4 : by_second(four * 4, group);
                return reinterpret_cast<float4*>(to + ((size_t)(owner * OWN + group) * SIDE + row) * SIDE + column);
            };
            const bool adds = factor == 0 ? add_first : add_second;
#pragma unroll
            for (u32 first = 0; first < FOURS; first += BATCH) {
#pragma unroll
                for (u32 i = 0; i < BATCH; ++i) others[i] = __ldcg(&part[((pair ^ 1) * FOURS + first + i) * CONSUMERS]);
#pragma unroll
                for (u32 i = 0; i < BATCH; ++i) add(mine[first + i], others[i]);
                if (adds) {
#pragma unroll
                    for (u32 i = 0; i < BATCH; ++i) others[i] = *result(first + i);
#pragma unroll
                    for (u32 i = 0; i < BATCH; ++i) add(mine[first + i], others[i]);
                }
#pragma unroll
                for (u32 i = 0; i < BATCH; ++i) *result(first + i) = mine[first + i];
            }
        }
    }
    // Nobody leaves whose shared memory the other still reads.
    __syncwarp();
    cluster_sync();
}

#endif
