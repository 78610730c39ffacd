// y = a Monarch map of x in one launch, for maps whose weights fit the registers of a cluster of thread blocks and stay
// there, as in cluster.cuh. For sm_90a, bf16 with f32 sums.
//
//   x [rows, BLOCKS SIDE]   first, second [BLOCKS, SIDE, SIDE]   bias [BLOCKS SIDE] or null   y [rows, BLOCKS SIDE]
//
//   u[kappa SIDE + j] = sum_i first[kappa, j, i] x[kappa SIDE + i]                               rounded to bf16
//   y[sigma BLOCKS + lambda] = f(bias[sigma BLOCKS + lambda] + sum_rho second[lambda, sigma, rho] u[rho BLOCKS + lambda])
//
// For a tile of TILE rows a thread block makes u of its kappas, sends each of the others what their lambdas need, gets what its
// own need, makes y of these, sends each what belongs to its run of outputs, and stores its own run: x and y pass through
// memory once, u and the permutations through the shared memory of the cluster. u as it arrived goes to `kept`, if there is one
// (for the gradients of the weights): [tile][thread block][sender][own lambda][row][8 rhos], those of `by_second`.
//
// Four warpgroups do it, each while the others are at other tiles: first factor, second factor, stores, and the copies between.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Rooms: of x, of u and y as they are sent, and as they arrive.
constexpr u32 X_AT = 0, U_SENT_AT = X_AT + X_ROOMS * BYTES, U_AT = U_SENT_AT + U_ROOMS * BYTES,
              Y_SENT_AT = U_AT + U_ROOMS * BYTES, Y_AT = Y_SENT_AT + Y_ROOMS * BYTES, END_AT = Y_AT + Y_ROOMS * BYTES;
static_assert(2 * FACTOR_BYTES <= END_AT - U_SENT_AT, "room for the weights");

extern "C" __global__ void __launch_bounds__(512, 1) __cluster_dims__(CLUSTER, 1, 1)
monarch_cluster(const __grid_constant__ TensorMap x_map, bf16* __restrict__ y, const bf16* __restrict__ first,
                const bf16* __restrict__ second, const bf16* __restrict__ bias, u32 rows, u32 activation, u8* kept) {
    extern __shared__ uint4 shared[];
    __shared__ u64 x_full[X_ROOMS], x_free[X_ROOMS];
    __shared__ Barriers<U_ROOMS> of_u;
    __shared__ Barriers<Y_ROOMS> of_y;
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    const u32 rank = cluster_rank(), lane = threadIdx.x % 32;
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0), warp = __shfl_sync(FULL_WARP, threadIdx.x / 32 % 4, 0);
    const Tiles tiles(rows);
    const auto of = [](u64& barrier) { return shared_address(&barrier); };

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < X_ROOMS; ++i) {
            barrier_init(of(x_full[i]), 1);
            barrier_init(of(x_free[i]), 4);
        }
        of_u.init(4, 4);
        of_y.init(4, 4);
        barriers_ready();
        of_u.expect(BYTES - SENT);
        of_y.expect(BYTES - SENT);
    }
    lay_out<false>(base + U_SENT_AT, first, by_first);
    lay_out<true>(base + U_SENT_AT + FACTOR_BYTES, second, [](u32 at, u32) { return at; });
    __syncthreads();

    u32 room = 0, parity = 0, out = 0, out_parity = 1;
    if (group == 3) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        begin(warp > 0);
        if (warp == 0 && lane == 0) {
            for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
                barrier_wait(of(x_free[room]), parity ^ 1);
                barrier_expect(of(x_full[room]), BYTES);
                copy_box(base + X_AT + room * BYTES, &x_map, rank * LINES, tile * TILE, of(x_full[room]));
                next_room<X_ROOMS>(room, parity);
            }
        } else if (lane < CLUSTER) {
            if (warp == 1) of_u.send(tiles, base + U_SENT_AT, base + U_AT, SENT, lane);
            if (warp == 2) of_u.pass_on(tiles, kept, base + U_AT, BYTES, lane);
            if (warp == 3) of_y.send(tiles, base + Y_SENT_AT, base + Y_AT, SENT, lane);
        }
        __syncwarp();
        if (warp == 0) cluster_wait();
    } else if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        begin();
        // Of four tiles a lane gets two lambdas each, eight that stand side by side in y: 512 bytes of a warp do.
        const u32 pair = lane % 8 / 2, source = 4 * pair + lane / 8, lambda = lane % 2;
        const u32 from = base + Y_AT + source * SENT + lambda * PIECE, free = address_at(of(of_y.free[0]), threadIdx.x % CLUSTER);
        bf16* const to = y + rank * (OWN * SIDE) + lane * 8;
        for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
            barrier_wait(of(of_y.full[room]), parity);
            if (threadIdx.x % 128 == 0) barrier_expect(of(of_y.full[room]), BYTES - SENT);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                // Four on their way at once, or each would wait for the one before.
                u32 words[4][4];
#pragma unroll
                for (u32 i = 0; i < 4; ++i)
                    load_tiles_transposed(words[i], from + room * BYTES + (warp + (half * 4 + i) * 4 ^ lane % 8) * 16);
#pragma unroll
                for (u32 i = 0; i < 4; ++i) {
                    const u32 row = tile * TILE + warp + (half * 4 + i) * 4;
                    if (row < rows) store_16(to + (size_t)row * (BLOCKS * SIDE), words[i]);
                }
            }
            asm volatile("bar.sync 1, 128;" ::: "memory");
            if (threadIdx.x % 128 < CLUSTER) barrier_arrive_at(free + room * 8);
            next_room<Y_ROOMS>(room, parity);
        }
    } else if (group == 0) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        Weights weights;
        take<false>(weights, base + U_SENT_AT, warp, lane);
        begin();
        for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
            Sums sums;
            barrier_wait(of(x_full[room]), parity);
            multiply(false, sums, weights, [&](u32 block, u32 step) {
                const u32 line = block * (SIDE / 64) + step / 4;
                return by_lines<64>(base + X_AT + room * BYTES + line * (TILE * 128)) + step % 4 * ALONG;
            });
            barrier_wait(of(of_u.free[out]), out_parity);
            group_wait<0>();
            if (lane == 0) barrier_arrive(of(x_free[room]));
            next_room<X_ROOMS>(room, parity);
            turn(sums, base + U_SENT_AT + out * BYTES, base + U_AT + out * BYTES, rank, warp, lane);
            written(of(of_u.sent[out]), lane);
            next_room<U_ROOMS>(out, out_parity);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        Weights weights;
        take<false>(weights, base + U_SENT_AT + FACTOR_BYTES, warp, lane);
        float start[OWN][2][2];
        for (u32 block = 0; block < OWN; ++block)
            for (u32 half = 0; half < 2; ++half)
                for (u32 eight = 0; eight < 2; ++eight) {
                    const u32 sigma = half * 64 + warp * 16 + eight * 8 + lane / 4;
                    start[block][half][eight] = bias ? to_f32(bias[sigma * BLOCKS + rank * OWN + block]) : 0.0f;
                }
        begin();
        for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
            Sums sums;
#pragma unroll
            for (u32 i = 0; i < OWN * 2 * (TILE / 8) * 4; ++i)
                sums[i / 32][i / 16 % 2][i / 4 % 4][i % 4] = start[i / 32][i / 16 % 2][i / 2 % 2];
            barrier_wait(of(of_u.full[room]), parity);
            if (threadIdx.x % 128 == 0) barrier_expect(of(of_u.full[room]), BYTES - SENT);
            multiply(true, sums, weights, [&](u32 block, u32 step) {
                return arrived(base + U_AT + room * BYTES, SENT, PIECE, block, step);
            });
            barrier_wait(of(of_y.free[out]), out_parity);
            group_wait<0>();
            if (lane == 0) barrier_arrive(of(of_u.used[room]));
            next_room<U_ROOMS>(room, parity);
            const auto leave = [&](const auto& end) {
#pragma unroll
                for (u32 i = 0; i < OWN * 4; ++i) {
                    const u32 half = i / 4, eight = i / 2 % 2, lambda = i % 2, to = half * 8 + warp * 2 + eight;
                    u32 words[4];
#pragma unroll
                    for (u32 j = 0; j < 4; ++j) {
                        const float(&pair)[4] = sums[lambda][half][j];
                        words[j] = pack_bf16(end(pair[2 * eight], 0.0f), end(pair[2 * eight + 1], 0.0f));
                    }
                    // Rows of the eight pieces that are read at once stand in eight banks.
                    const u32 row = lane ^ (rank / 4 * 2 + lambda), at = to == rank ? Y_AT : Y_SENT_AT;
                    store_tiles_transposed(base + at + out * BYTES + to * SENT + lambda * PIECE + row * 16, words);
                }
            };
            // The sums began with the bias.
            if (activation != IDENTITY) finish(activation, leave);
            else leave([](float sum, float) { return sum; });
            written(of(of_y.sent[out]), lane);
            next_room<Y_ROOMS>(out, out_parity);
        }
    }
    // Nobody leaves whose barriers and memory others still reach.
    __syncwarp();
    cluster_sync();
}

#endif
