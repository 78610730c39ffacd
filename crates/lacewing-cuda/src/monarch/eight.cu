// y = a Monarch map of x in one launch, for maps of eight blocks whose weights fit the registers of a cluster of eight thread
// blocks and stay there. For sm_90a, bf16 with f32 sums.
//
//   x [rows, 8 P]   first [8, Q, P]   second [8, S, Q]   bias [8 S] or null   y [rows, 8 S]
//
//   u[kappa Q + j] = sum_i first[kappa, j, i] x[kappa P + i]                               rounded to bf16
//   y[sigma 8 + lambda] = f(bias[sigma 8 + lambda] + sum_rho second[lambda, sigma, rho] u[rho 8 + lambda])
//
// A thread block has one block of either factor. For a tile of TILE rows it makes u of its kappa, sends each of the others what
// its lambda needs, gets what its own needs, makes y of that, sends each what belongs to its run of S outputs, and stores its
// own run: x and y pass through memory once, u and the permutations through the shared memory of the cluster.
//
// What is sent to one are Q / 8 or S / 8 numbers of a row, in whole sixteens: pieces [8 of them][row], as the tensor cores and
// `ldmatrix` take them, and zeros at the end. A warp makes all that one or two of the others get and sends it itself, as soon
// as they have room. Rooms in shared memory are taken in turn; who sends from a room may fill it again when it has been used
// where it went, which is when there is room for the next.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

constexpr u32 CLUSTER = 8;
// Of the numbers that one thread block sends to another: how many, and in how many sixteens.
constexpr u32 OF_U = Q / CLUSTER, OF_Y = S / CLUSTER, U_SIXTEENS = (OF_U + 15) / 16, Y_SIXTEENS = (OF_Y + 15) / 16;
constexpr u32 SIXTEEN = 2 * TILE * 16;  // bytes
constexpr u32 X_BYTES = TILE * P * 2, U_SENT = U_SIXTEENS * SIXTEEN, Y_SENT = Y_SIXTEENS * SIXTEEN;
constexpr u32 U_BYTES = CLUSTER * U_SENT, Y_BYTES = CLUSTER * Y_SENT;
constexpr u32 U_ARRIVING = U_BYTES - U_SENT, Y_ARRIVING = Y_BYTES - Y_SENT;  // from the others
constexpr u32 FIRST_STEPS = P / 16, SECOND_STEPS = CLUSTER * U_SIXTEENS;     // of a sum
// Sixteens that a warp makes.
constexpr u32 FIRST_OF_WARP = CLUSTER * U_SIXTEENS / (4 * FIRST_GROUPS), SECOND_OF_WARP = CLUSTER * Y_SIXTEENS / (4 * SECOND_GROUPS);
static_assert(P % X_LINE == 0 && Q % 32 == 0 && S % 32 == 0, "what the places of numbers below are made for");
static_assert(FIRST_OF_WARP % U_SIXTEENS == 0 && SECOND_OF_WARP % Y_SIXTEENS == 0, "all of what one gets from one warp");

// Rooms: of x, of u and y as they are sent, and as they arrive.
constexpr u32 X_AT = 0, U_SENT_AT = X_AT + X_ROOMS * X_BYTES, U_AT = U_SENT_AT + U_ROOMS * U_BYTES,
              Y_SENT_AT = U_AT + U_ROOMS * U_BYTES, Y_AT = Y_SENT_AT + Y_ROOMS * Y_BYTES, OUT_AT = Y_AT + Y_ROOMS * Y_BYTES;
// Warps that turn y into rows, and rows of a tile that each has.
constexpr u32 STORERS = 2, PART = TILE / STORERS, OUT_BYTES = TILE * S * 2;

// A thread has as many registers when it starts, the most that all can have; then its warpgroup takes what it needs.
constexpr u32 THREADS = (FIRST_GROUPS + SECOND_GROUPS + 1) * 128, STARTS_WITH = 65536 / THREADS / 8 * 8;
template <u32 REGISTERS> __device__ __forceinline__ void take_registers() {
    if constexpr (REGISTERS < STARTS_WITH) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" :: "n"(REGISTERS));
    else asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" :: "n"(REGISTERS));
}

typedef float Sums[TILE / 8][4];  // 16 outputs of a warp, TILE rows

// Rows of a piece of y are exchanged by it, so that those which are read at once stand in eight banks.
__device__ __forceinline__ u32 turn_of(u32 source) { return source % 2; }

extern "C" __global__ void __launch_bounds__(THREADS, 1) __cluster_dims__(CLUSTER, 1, 1)
monarch_eight(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap y_map,
              const bf16* __restrict__ first, const bf16* __restrict__ second, const bf16* __restrict__ bias,
              u32 rows, u32 activation) {
    extern __shared__ uint4 shared[];
    __shared__ u64 x_full[X_ROOMS], x_free[X_ROOMS], u_full[U_ROOMS], u_used[U_ROOMS], y_full[Y_ROOMS];
    // For what goes to each.
    __shared__ u64 u_free[U_ROOMS][CLUSTER], y_free[Y_ROOMS][CLUSTER];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    u8* const rooms = reinterpret_cast<u8*>(shared) + (base - shared_address(shared));
    const u32 rank = cluster_rank(), lane = threadIdx.x % 32;
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0), warp = __shfl_sync(FULL_WARP, threadIdx.x / 32 % 4, 0);
    const u32 n_clusters = gridDim.x / CLUSTER, n_tiles = (rows + TILE - 1) / TILE, tile0 = blockIdx.x / CLUSTER;
    const auto of = [](u64& barrier) { return shared_address(&barrier); };

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < X_ROOMS; ++i) {
            barrier_init(of(x_full[i]), 1);
            barrier_init(of(x_free[i]), FIRST_GROUPS * 4);
        }
        for (u32 i = 0; i < U_ROOMS; ++i) {
            barrier_init(of(u_full[i]), 2);
            barrier_init(of(u_used[i]), SECOND_GROUPS * 4);
            for (u32 to = 0; to < CLUSTER; ++to) barrier_init(of(u_free[i][to]), 1);
        }
        for (u32 i = 0; i < Y_ROOMS; ++i) {
            barrier_init(of(y_full[i]), 2);
            for (u32 to = 0; to < CLUSTER; ++to) barrier_init(of(y_free[i][to]), STORERS);
        }
        barriers_ready();
        for (u32 i = 0; i < U_ROOMS; ++i) barrier_expect(of(u_full[i]), U_ARRIVING);
        for (u32 i = 0; i < Y_ROOMS; ++i) barrier_expect(of(y_full[i]), Y_ARRIVING);
    }
    __syncwarp();
    cluster_arrive();

    u32 room = 0, parity = 0, out = 0, out_parity = 1;
    // Eight of sixteen outputs of the warp: to their rows of a piece.
    const auto place = [&](u32 row, u32 half, const Sums& sums, const auto& end) {
        u32 words[TILE / 32][4];
#pragma unroll
        for (u32 j = 0; j < TILE / 8; ++j) words[j / 4][j % 4] = pack_bf16(end(sums[j][2 * half]), end(sums[j][2 * half + 1]));
#pragma unroll
        for (u32 j = 0; j < TILE / 32; ++j) store_tiles_transposed(row + j * 512, words[j]);
    };
    // A lane for each that gets something from the warp waits until it has room, and when all is placed sends it; one's own
    // has arrived. What is sent is `from` in the first room, gets `there`, and the barrier there is `bell`.
    const auto await_room = [&](u32 to0, u32 count, u64 (&free)[CLUSTER]) {
        if (lane < count) barrier_wait(of(free[to0 + lane]), out_parity);
        __syncwarp();
    };
    const auto send = [&](u32 to0, u32 count, u32 from, u32 there, u32 bytes, u32 room_bytes, u32 bell) {
        publish();
        __syncwarp();
        if (lane >= count) return;
        if (to0 + lane == rank) barrier_arrive(bell + out * 8);
        else copy_to(there + out * room_bytes, from + out * room_bytes, bytes, bell + out * 8);
    };

    if (group == FIRST_GROUPS + SECOND_GROUPS) {
        take_registers<COPIES_REGISTERS>();
        cluster_wait();
        if (warp == 0 && lane == 0) {
            for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
                barrier_wait(of(x_free[room]), parity ^ 1);
                barrier_expect(of(x_full[room]), X_BYTES);
                copy_box(base + X_AT + room * X_BYTES, &x_map, rank * (P / X_LINE), tile * TILE, of(x_full[room]));
                next_room<X_ROOMS>(room, parity);
            }
        } else if (warp == 1 && lane < CLUSTER) {
            const u32 free = address_at(of(u_free[0][rank]), lane);
            for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
                barrier_wait(of(u_used[room]), parity);
                barrier_arrive_at(free + room * (CLUSTER * 8));
                next_room<U_ROOMS>(room, parity);
            }
        } else if (warp >= 4 - STORERS) {
            // Of eight outputs of each lambda and four rows a lane gets the eight of one output that stand side by side in y. A
            // warp does so for half of the rows, and leaves the storing to the copy engine: stores of its own hold up everybody's
            // way to shared memory.
            const u32 part = warp % STORERS, source = lane / 8 * 2 + lane % 2, n_octets = OF_Y / 8 + (OF_Y % 8 > 0);
            const u32 from = base + Y_AT + source * Y_SENT + part * (PART * 16) + (lane % 8 / 2 * 2 ^ turn_of(source)) * 16;
            const u32 row = lane % 4 * 2, sigma = lane / 4;
            const u32 in_rows = base + OUT_AT + part * (OUT_BYTES / STORERS)
                              + (Y_LINE == 64 ? row * 128 + (sigma ^ row) * 16
                                              : sigma / 4 * (PART * 64) + row * 64 + (sigma % 4 ^ row / 2) * 16);
            const u32 free = address_at(of(y_free[0][rank]), lane % CLUSTER);
            for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
                barrier_wait(of(y_full[room]), parity);
                if (part == 0 && lane == 0) barrier_expect(of(y_full[room]), Y_ARRIVING);
                if (lane == 0) stores_read<OUT_ROOMS - 1>();
                __syncwarp();
                const u32 here = from + room * Y_BYTES, there = in_rows + out * OUT_BYTES;
#pragma unroll
                for (u32 octet = 0; octet < n_octets; ++octet)
                    // Four on their way at once, or each would wait for the one before.
#pragma unroll
                    for (u32 row8 = 0; row8 < PART / 8; row8 += 2) {
                        u32 words[4][4];
#pragma unroll
                        for (u32 i = 0; i < 4; ++i)
                            load_tiles_transposed(words[i], (here ^ i % 2 * 16) + (row8 + i / 2) * 128 + octet * (TILE * 16));
#pragma unroll
                        for (u32 i = 0; i < 4; ++i) {
                            const u32 odd = i % 2, to = Y_LINE == 64 ? (there ^ odd * 16) + odd * 128 : there ^ odd * 64;
                            if (octet * 8 + sigma < OF_Y) store_16_shared(to + (row8 + i / 2) * (Y_LINE * 16) + octet * (PART * 128), words[i]);
                        }
                    }
                publish();
                __syncwarp();
                if (lane == 0) {
                    store_box(&y_map, rank * (S / Y_LINE), tile * TILE + part * PART, base + OUT_AT + out * OUT_BYTES + part * (OUT_BYTES / STORERS));
                    stores_commit();
                }
                if (lane < CLUSTER) barrier_arrive_at(free + room * (CLUSTER * 8));
                next_room<Y_ROOMS>(room, parity);
                next_room<OUT_ROOMS>(out, out_parity);
            }
            if (lane == 0) stores_read<0>();
        }
    } else if (group < FIRST_GROUPS) {
        take_registers<FIRST_REGISTERS>();
        // A quarter of a sixteen are four numbers that follow each other in the sum of lambda, as the second factor's lanes have them.
        const u32 to0 = (group * 4 + warp) * (FIRST_OF_WARP / U_SIXTEENS);
        u32 weights[FIRST_OF_WARP][FIRST_STEPS][4];
#pragma unroll
        for (u32 i = 0; i < FIRST_OF_WARP; ++i)
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 to = to0 + i / U_SIXTEENS, number = i % U_SIXTEENS * 16 + lane / 8 * 4 + half * 2 + lane / 4 % 2;
                const bf16* const from = first + (size_t)(rank * Q + to + number * CLUSTER) * P + lane % 4 * 2;
#pragma unroll
                for (u32 step = 0; step < FIRST_STEPS; ++step)
#pragma unroll
                    for (u32 eight = 0; eight < 2; ++eight)
                        weights[i][step][eight * 2 + half] =
                            number < OF_U ? *reinterpret_cast<const u32*>(from + step * 16 + eight * 8) : 0;
            }
        cluster_wait();
        u32 placed[FIRST_OF_WARP];
#pragma unroll
        for (u32 i = 0; i < FIRST_OF_WARP; ++i) {
            const u32 to = to0 + i / U_SIXTEENS;
            placed[i] = base + (to == rank ? U_AT : U_SENT_AT) + to * U_SENT + i % U_SIXTEENS * SIXTEEN + lane * 16;
        }
        const u32 to = (to0 + lane) % CLUSTER, from = base + U_SENT_AT + to * U_SENT;
        const u32 there = address_at(base + U_AT + rank * U_SENT, to), bell = to == rank ? of(u_full[0]) : address_at(of(u_full[0]), to);
        for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
            barrier_wait(of(x_full[room]), parity);
            Sums sums[FIRST_OF_WARP];
            group_arrive();
#pragma unroll
            for (u32 step = 0; step < FIRST_STEPS; ++step)
#pragma unroll
                for (u32 i = 0; i < FIRST_OF_WARP; ++i)
                    product_of(step > 0, sums[i], weights[i][step],
                               by_lines<X_LINE>(base + X_AT + room * X_BYTES + step / (X_LINE / 16) * (TILE * X_LINE * 2)) + step % (X_LINE / 16) * ALONG);
            group_commit();
            await_room(to0, FIRST_OF_WARP / U_SIXTEENS, u_free[out]);
            group_wait<0>();
            if (lane == 0) barrier_arrive(of(x_free[room]));
#pragma unroll
            for (u32 i = 0; i < FIRST_OF_WARP; ++i)
#pragma unroll
                for (u32 half = 0; half < 2; ++half)
                    place(placed[i] + out * U_BYTES + half * (TILE * 16), half, sums[i], [](float sum) { return sum; });
            send(to0, FIRST_OF_WARP / U_SIXTEENS, from, there, U_SENT, U_BYTES, bell);
            next_room<X_ROOMS>(room, parity);
            next_room<U_ROOMS>(out, out_parity);
        }
    } else {
        take_registers<SECOND_REGISTERS>();
        const u32 to0 = ((group - FIRST_GROUPS) * 4 + warp) * (SECOND_OF_WARP / Y_SIXTEENS);
        u32 weights[SECOND_OF_WARP][SECOND_STEPS][4];
        float start[SECOND_OF_WARP][2];
#pragma unroll
        for (u32 i = 0; i < SECOND_OF_WARP; ++i)
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 number = i % Y_SIXTEENS * 16 + half * 8 + lane / 4;
                const u32 sigma = (to0 + i / Y_SIXTEENS) * OF_Y + number;
                start[i][half] = bias && number < OF_Y ? to_f32(bias[sigma * CLUSTER + rank]) : 0.0f;
#pragma unroll
                for (u32 step = 0; step < SECOND_STEPS; ++step) {
                    const u32 source = step / U_SIXTEENS, rho = step % U_SIXTEENS * 16 + lane % 4 * 4;
                    uint2 four = make_uint2(0, 0);
                    if (number < OF_Y && rho < OF_U)
                        four = *reinterpret_cast<const uint2*>(second + (size_t)(rank * S + sigma) * Q + source * OF_U + rho);
                    weights[i][step][half] = four.x;
                    weights[i][step][2 + half] = four.y;
                }
            }
        cluster_wait();
        u32 placed[SECOND_OF_WARP];
#pragma unroll
        for (u32 i = 0; i < SECOND_OF_WARP; ++i) {
            const u32 to = to0 + i / Y_SIXTEENS;
            placed[i] = base + (to == rank ? Y_AT : Y_SENT_AT) + to * Y_SENT + i % Y_SIXTEENS * SIXTEEN + (lane ^ turn_of(rank)) * 16;
        }
        const u32 to = (to0 + lane) % CLUSTER, from = base + Y_SENT_AT + to * Y_SENT;
        const u32 there = address_at(base + Y_AT + rank * Y_SENT, to), bell = to == rank ? of(y_full[0]) : address_at(of(y_full[0]), to);
        for (u32 tile = tile0; tile < n_tiles; tile += n_clusters) {
            barrier_wait(of(u_full[room]), parity);
            if (threadIdx.x == FIRST_GROUPS * 128) barrier_expect(of(u_full[room]), U_ARRIVING);
            Sums sums[SECOND_OF_WARP];
#pragma unroll
            for (u32 i = 0; i < SECOND_OF_WARP * (TILE / 2); ++i) sums[i / (TILE / 2)][i / 4 % (TILE / 8)][i % 4] = start[i / (TILE / 2)][i / 2 % 2];
            group_arrive();
#pragma unroll
            for (u32 step = 0; step < SECOND_STEPS; ++step)
#pragma unroll
                for (u32 i = 0; i < SECOND_OF_WARP; ++i)
                    product_of(true, sums[i], weights[i][step], descriptor(base + U_AT + room * U_BYTES + step * SIXTEEN, TILE * 16, 128, 0));
            group_commit();
            await_room(to0, SECOND_OF_WARP / Y_SIXTEENS, y_free[out]);
            group_wait<0>();
            if (lane == 0) barrier_arrive(of(u_used[room]));
            const auto leave = [&](const auto& end) {
#pragma unroll
                for (u32 i = 0; i < SECOND_OF_WARP; ++i)
#pragma unroll
                    for (u32 half = 0; half < 2; ++half)
                        place(placed[i] + out * Y_BYTES + half * (TILE * 16), half, sums[i], [&](float sum) { return end(sum, 0.0f); });
            };
            // The sums began with the bias.
            if (activation != IDENTITY) finish(activation, leave);
            else leave([](float sum, float) { return sum; });
            send(to0, SECOND_OF_WARP / Y_SIXTEENS, from, there, Y_SENT, Y_BYTES, bell);
            next_room<U_ROOMS>(room, parity);
            next_room<Y_ROOMS>(out, out_parity);
        }
    }
    // Nobody leaves whose barriers and memory others still reach.
    __syncwarp();
    cluster_sync();
}

#endif
