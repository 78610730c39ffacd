// y = a Monarch map of x in one launch, for maps whose weights fit the registers of a cluster of thread blocks and stay
// there. For sm_90a, bf16 with f32 sums.
//
//   x [rows, BLOCKS SIDE]   first, second [BLOCKS, SIDE, SIDE]   bias [BLOCKS SIDE] or null   y [rows, BLOCKS SIDE]
//
//   u[kappa SIDE + j] = sum_i first[kappa, j, i] x[kappa SIDE + i]                               rounded to bf16
//   y[sigma BLOCKS + lambda] = f(bias[sigma BLOCKS + lambda] + sum_rho second[lambda, sigma, rho] u[rho BLOCKS + lambda])
//
// A thread block has OWN blocks of either factor. For a tile of TILE rows it makes u of its kappas, sends each of the others
// what their lambdas need, gets what its own need, makes y of these, sends each what belongs to its run of COLS outputs, and
// stores its own run: x and y pass through memory once, u and the permutations through the shared memory of the cluster.
//
// What is sent are pieces [own lambda][row][8 numbers of the sum or of sigma], as the tensor cores and `ldmatrix` take them.
// Four warpgroups do it, each while the others are at other tiles: first factor, second factor, stores, and the copies between.
// Rooms in shared memory are taken in turn. Who sends from a room may fill it again when its pieces have been used where they
// went, which is when there is a room for them again: one barrier, `*_free`, tells both.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

constexpr u32 OWN = BLOCKS / CLUSTER;
constexpr u32 SENT = OWN * TILE * 16;        // bytes to one thread block for a tile
constexpr u32 BYTES = CLUSTER * SENT;        // of a tile of x, u or y that a thread block has
constexpr u32 ARRIVING = BYTES - SENT;       // from the others
constexpr u32 COLS = BLOCKS * SIDE / CLUSTER;
constexpr u32 LINES = OWN * SIDE / 64;       // of x
constexpr u32 STEPS = SIDE / 16;             // of a sum
static_assert(OWN == 2 && SIDE == 128 && BLOCKS == 32 && TILE == 32, "what the places of numbers below are made for");

// Rooms: of x, of u and y as they are sent, and as they arrive.
constexpr u32 X_AT = 0, U_SENT_AT = X_AT + X_ROOMS * BYTES, U_AT = U_SENT_AT + U_ROOMS * BYTES,
              Y_SENT_AT = U_AT + U_ROOMS * BYTES, Y_AT = Y_SENT_AT + Y_ROOMS * BYTES;

// While the kernel starts, the weights lie where u and y will be, by rows as the registers want them; 16 bytes between rows
// put eight of them in different banks.
constexpr u32 WEIGHT_ROW = SIDE * 2 + 16, FACTOR_BYTES = OWN * SIDE * WEIGHT_ROW;
static_assert(FACTOR_BYTES <= 2 * U_ROOMS * BYTES && FACTOR_BYTES <= 2 * Y_ROOMS * BYTES, "room for the weights");

typedef u32 Weights[OWN][2][STEPS][4];
typedef float Sums[OWN][2][TILE / 8][4];

// c[64, 32] += a[64, 16] b[16, 32], a from registers.
__device__ __forceinline__ void product_of(float (&c)[4][4], const u32 (&a)[4], u64 b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {" REGS_16 "}, {%16, %17, %18, %19}, %20, 1, 1, 1, 0;"
                 : SUMS_16(c, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b) : "memory");
}

extern "C" __global__ void __launch_bounds__(512, 1) __cluster_dims__(CLUSTER, 1, 1)
monarch_cluster(const __grid_constant__ TensorMap x_map, bf16* __restrict__ y, const bf16* __restrict__ first,
                const bf16* __restrict__ second, const bf16* __restrict__ bias, u32 rows, u32 activation) {
    extern __shared__ uint4 shared[];
    __shared__ u64 x_full[X_ROOMS], x_free[X_ROOMS];
    __shared__ u64 u_sent[U_ROOMS], u_full[U_ROOMS], u_used[U_ROOMS], u_free[U_ROOMS];
    __shared__ u64 y_sent[Y_ROOMS], y_full[Y_ROOMS], y_free[Y_ROOMS];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    u8* const rooms = reinterpret_cast<u8*>(shared) + (base - shared_address(shared));
    const u32 rank = cluster_rank(), lane = threadIdx.x % 32;
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0), warp = __shfl_sync(FULL_WARP, threadIdx.x / 32 % 4, 0);
    const u32 n_clusters = gridDim.x / CLUSTER, n_tiles = (rows + TILE - 1) / TILE, tile0 = blockIdx.x / CLUSTER;
    const auto of = [](u64& barrier) { return shared_address(&barrier); };

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < X_ROOMS; ++i) {
            barrier_init(of(x_full[i]), 1);
            barrier_init(of(x_free[i]), 4);
        }
        for (u32 i = 0; i < U_ROOMS; ++i) {
            barrier_init(of(u_sent[i]), 4);
            barrier_init(of(u_full[i]), 2);
            barrier_init(of(u_used[i]), 4);
            barrier_init(of(u_free[i]), CLUSTER);
        }
        for (u32 i = 0; i < Y_ROOMS; ++i) {
            barrier_init(of(y_sent[i]), 4);
            barrier_init(of(y_full[i]), 2);
            barrier_init(of(y_free[i]), CLUSTER);
        }
        barriers_ready();
        for (u32 i = 0; i < U_ROOMS; ++i) barrier_expect(of(u_full[i]), ARRIVING);
        for (u32 i = 0; i < Y_ROOMS; ++i) barrier_expect(of(y_full[i]), ARRIVING);
    }
    __syncwarp();
    cluster_arrive();

    // Rows of weights in the order of the places of sums: eight rows to each thread block of the cluster. Of the first factor
    // they are four outputs for either of its lambdas, the other way round in the second block; then a number of one block
    // and the same of the other, exchanged in half of the lanes, are eight of a sum of one lambda. Of the other lambda the
    // fours come in the other order, and so do the columns of its weights.
    constexpr u32 COPIES = OWN * SIDE / 32;
    uint4 copied[2][COPIES];
    const u32 eight = threadIdx.x % 16;
#pragma unroll
    for (u32 factor = 0; factor < 2; ++factor)
#pragma unroll
        for (u32 i = 0; i < COPIES; ++i) {
            const u32 row = i * 32 + threadIdx.x / 16, at = row % SIDE, block = row / SIDE;
            const u32 j = at % 4 * BLOCKS + at / 8 * OWN + (at / 4 % 2 ^ block);
            const u32 from = (rank * OWN + block) * SIDE + (factor == 0 ? j : at);
            uint4 w = reinterpret_cast<const uint4*>((factor == 0 ? first : second) + (size_t)from * SIDE)[eight];
            if (factor == 1 && block == 1) w = make_uint4(w.z, w.w, w.x, w.y);
            copied[factor][i] = w;
        }
#pragma unroll
    for (u32 factor = 0; factor < 2; ++factor) {
#pragma unroll
        for (u32 i = 0; i < COPIES; ++i) {
            const u32 to = (factor == 0 ? U_SENT_AT : Y_SENT_AT) + (i * 32 + threadIdx.x / 16) * WEIGHT_ROW + eight * 16;
            *reinterpret_cast<uint4*>(rooms + to) = copied[factor][i];
        }
        if (factor == 0) cluster_wait();
        // The warpgroup of the factor waits for all of it.
        if (group == factor) asm volatile("bar.sync %0, 512;" :: "r"(2 + factor) : "memory");
        else asm volatile("bar.arrive %0, 512;" :: "r"(2 + factor) : "memory");
    }
    // Then everybody may send to its rooms.
    const auto take = [&](Weights& weights, u32 at, u64* free, u32 n_rooms) {
#pragma unroll
        for (u32 block = 0; block < OWN; ++block)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
#pragma unroll
                for (u32 step = 0; step < STEPS; ++step) {
                    const u32 row = block * SIDE + half * 64 + warp * 16 + lane % 16;
                    load_tiles(weights[block][half][step], rooms + at + row * WEIGHT_ROW + step * 32 + lane / 16 * 16);
                }
        publish();
        asm volatile("bar.sync %0, 128;" :: "r"(4 + group) : "memory");
        if (threadIdx.x % 128 < CLUSTER)
            for (u32 i = 0; i < n_rooms; ++i) barrier_arrive_at(address_at(of(free[i]), threadIdx.x % 128));
    };

    u32 room = 0, parity = 0, out = 0, out_parity = 0;
    // Eight sums of 32 rows, the columns of `words`, to their rows of a piece; one's own has arrived.
    const auto place = [&](u32 sent, u32 own, u32 half, u32 eight, u32 lambda, u32 row, const u32 (&words)[4]) {
        const u32 to = half * 8 + warp * 2 + eight;
        store_tiles_transposed(base + (to == rank ? own : sent) + out * BYTES + to * SENT + (lambda * TILE + row) * 16, words);
    };
    const auto done = [&](u64& barrier) {
        publish();
        __syncwarp();
        if (lane == 0) barrier_arrive(of(barrier));
    };
    const auto multiply = [](Sums& sums, const Weights& w, const auto& operand) {
        group_arrive();
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step)
#pragma unroll
            for (u32 block = 0; block < OWN; ++block)
#pragma unroll
                for (u32 half = 0; half < 2; ++half) product_of(sums[block][half], w[block][half][step], operand(block, step));
        group_commit();
        group_wait<0>();
    };
    if (group == 3) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        // Each begins with another, or all would send to one.
        const u32 to = (lane + rank) % CLUSTER;
        if (warp == 0 && lane == 0) {
            for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
                barrier_wait(of(x_free[room]), parity ^ 1);
                barrier_expect(of(x_full[room]), BYTES);
                copy_box(base + X_AT + room * BYTES, &x_map, rank * LINES, tile * TILE, of(x_full[room]));
                next_room<X_ROOMS>(room, parity);
            }
        } else if (warp > 0 && lane < CLUSTER) {
            for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
                const auto send = [&](u32 from, u32 at, u64& barrier) {
                    if (to == rank) return barrier_arrive(of(barrier));
                    copy_to(address_at(base + at + room * BYTES + rank * SENT, to), base + from + room * BYTES + to * SENT, SENT,
                            address_at(of(barrier), to));
                };
                if (warp == 1) {
                    barrier_wait(of(u_sent[room]), parity);
                    send(U_SENT_AT, U_AT, u_full[room]);
                } else if (warp == 2) {
                    barrier_wait(of(u_used[room]), parity);
                    barrier_arrive_at(address_at(of(u_free[room]), to));
                } else {
                    barrier_wait(of(y_sent[room]), parity);
                    send(Y_SENT_AT, Y_AT, y_full[room]);
                    next_room<Y_ROOMS>(room, parity);
                    continue;
                }
                next_room<U_ROOMS>(room, parity);
            }
        }
    } else if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        // Of four tiles a lane gets two lambdas each, eight that stand side by side in y: 512 bytes of a warp do.
        const u32 pair = lane % 8 / 2, source = 4 * pair + lane / 8, lambda = lane % 2;
        const u8* const from = rooms + Y_AT + source * SENT + lambda * (TILE * 16);
        bf16* const to = y + rank * COLS + lane / 4 * BLOCKS + lane % 4 * 8;
        for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
            barrier_wait(of(y_full[room]), parity);
            if (threadIdx.x % 128 == 0) barrier_expect(of(y_full[room]), ARRIVING);
#pragma unroll 4
            for (u32 of_tile = warp; of_tile < TILE; of_tile += 4) {
                u32 words[4];
                load_tiles_transposed(words, from + room * BYTES + (of_tile ^ lane % 8) * 16);
                const u32 row = tile * TILE + of_tile;
                if (row < rows) store_16(to + (size_t)row * (BLOCKS * SIDE), words);
            }
            asm volatile("bar.sync 1, 128;" ::: "memory");
            if (threadIdx.x % 128 < CLUSTER) barrier_arrive_at(address_at(of(y_free[room]), threadIdx.x % 128));
            next_room<Y_ROOMS>(room, parity);
        }
    } else if (group == 0) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        Weights weights;
        take(weights, U_SENT_AT, u_free, U_ROOMS);
        for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
            Sums sums = {};
            barrier_wait(of(x_full[room]), parity);
            multiply(sums, weights, [&](u32 block, u32 step) {
                const u32 line = block * (SIDE / 64) + step / 4;
                return by_lines<64>(base + X_AT + room * BYTES + line * (TILE * 128)) + step % 4 * ALONG;
            });
            if (lane == 0) barrier_arrive(of(x_free[room]));
            next_room<X_ROOMS>(room, parity);
            barrier_wait(of(u_free[out]), out_parity);
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
#pragma unroll
                for (u32 eight = 0; eight < 2; ++eight) {
                    u32 words[2][4];
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) {
                        const auto packed = [&](u32 block) {
                            return pack_bf16(sums[block][half][j][2 * eight], sums[block][half][j][2 * eight + 1]);
                        };
                        words[0][j] = lane < 16 ? packed(0) : packed(1);
                        words[1][j] = lane < 16 ? packed(1) : packed(0);
                    }
                    for (u32 lambda = 0; lambda < OWN; ++lambda)
                        place(U_SENT_AT, U_AT, half, eight, lambda, lane, words[lambda]);
                }
            done(u_sent[out]);
            next_room<U_ROOMS>(out, out_parity);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        Weights weights;
        take(weights, Y_SENT_AT, y_free, Y_ROOMS);
        float start[OWN][2][2];
        for (u32 block = 0; block < OWN; ++block)
            for (u32 half = 0; half < 2; ++half)
                for (u32 eight = 0; eight < 2; ++eight) {
                    const u32 sigma = half * 64 + warp * 16 + eight * 8 + lane / 4;
                    start[block][half][eight] = bias ? to_f32(bias[sigma * BLOCKS + rank * OWN + block]) : 0.0f;
                }
        for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
            Sums sums;
#pragma unroll
            for (u32 i = 0; i < OWN * 2 * (TILE / 8) * 4; ++i)
                sums[i / 32][i / 16 % 2][i / 4 % 4][i % 4] = start[i / 32][i / 16 % 2][i / 2 % 2];
            barrier_wait(of(u_full[room]), parity);
            if (threadIdx.x % 128 == 0) barrier_expect(of(u_full[room]), ARRIVING);
            multiply(sums, weights, [&](u32 block, u32 step) {
                return descriptor(base + U_AT + room * BYTES + step * (2 * SENT) + block * (TILE * 16), SENT, 128, 0);
            });
            if (lane == 0) barrier_arrive(of(u_used[room]));
            next_room<U_ROOMS>(room, parity);
            barrier_wait(of(y_free[out]), out_parity);
            const auto leave = [&](const auto& end) {
#pragma unroll
                for (u32 i = 0; i < OWN * 4; ++i) {
                    const u32 half = i / 4, eight = i / 2 % 2, lambda = i % 2;
                    u32 words[4];
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) {
                        const float(&pair)[4] = sums[lambda][half][j];
                        words[j] = pack_bf16(end(pair[2 * eight], 0.0f), end(pair[2 * eight + 1], 0.0f));
                    }
                    // Rows of the eight pieces that are read at once stand in eight banks.
                    place(Y_SENT_AT, Y_AT, half, eight, lambda, lane ^ (rank / 4 * 2 + lambda), words);
                }
            };
            // The sums began with the bias.
            if (activation != IDENTITY) finish(activation, leave);
            else leave([](float sum, float) { return sum; });
            done(y_sent[out]);
            next_room<Y_ROOMS>(out, out_parity);
        }
    }
    // Nobody leaves whose barriers and memory others still reach.
    __syncwarp();
    cluster_sync();
}

#endif
