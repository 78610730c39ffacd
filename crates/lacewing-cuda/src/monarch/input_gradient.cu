// dx of a Monarch map in one launch, for maps that cluster.cu takes and by the same means. For sm_90a, bf16 with f32 sums.
//
//   dy [rows, BLOCKS SIDE]   first, second [BLOCKS, SIDE, SIDE]   dx [rows, BLOCKS SIDE]
//
//   du[rho BLOCKS + lambda] = sum_sigma second[lambda, sigma, rho] dy[sigma BLOCKS + lambda]     rounded to bf16
//   dx[kappa SIDE + i] = sum_j first[kappa, j, i] du[kappa SIDE + j]
//
// For a tile of TILE rows a thread block takes a run of dy, sends each of the others what their lambdas need, gets what its own
// need, makes du of these, sends each what their kappas need, and of what it gets makes its own run of dx. What arrives is what
// the gradients of the weights are made of, and goes to `kept_dy` and `kept_du` if there are any: [tile][thread block][sender]
// [own block][row][8 numbers], with DY_PAD bytes after each [row][8] of dy.
//
// Four warpgroups: second factor, first factor, and eight warps for the permutation of dy and the copies.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// Rooms: of dy, of dx, of du and dy as they are sent, and as they arrive.
constexpr u32 IN_AT = 0, OUT_AT = IN_AT + IN_ROOMS * BYTES, U_SENT_AT = OUT_AT + OUT_ROOMS * BYTES,
              U_AT = U_SENT_AT + U_ROOMS * BYTES, Y_SENT_AT = U_AT + U_ROOMS * BYTES, Y_AT = Y_SENT_AT + Y_ROOMS * Y_BYTES,
              END_AT = Y_AT + Y_ROOMS * Y_BYTES;
static_assert(2 * FACTOR_BYTES <= END_AT - OUT_AT, "room for the weights");
constexpr u32 TURNERS = 2;  // warps

// A tile of dy has its lines side by side, so that eight sigmas of a row stand in eight banks: `dy_map` is by rows. `counters`
// [4 CLUSTER]: zeros for the gradients of the weights.
extern "C" __global__ void __launch_bounds__(512, 1) __cluster_dims__(CLUSTER, 1, 1)
monarch_input_gradient(const __grid_constant__ TensorMap dy_map, const __grid_constant__ TensorMap dx_map,
                       const bf16* __restrict__ first, const bf16* __restrict__ second, u32 rows, u8* kept_dy, u8* kept_du,
                       u32* counters) {
    extern __shared__ uint4 shared[];
    __shared__ u64 in_full[IN_ROOMS], in_free[IN_ROOMS], out_full[OUT_ROOMS], out_free[OUT_ROOMS];
    __shared__ Barriers<U_ROOMS> of_u;
    __shared__ Barriers<Y_ROOMS> of_y;
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    const u32 rank = cluster_rank(), lane = threadIdx.x % 32;
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0), warp = __shfl_sync(FULL_WARP, threadIdx.x / 32 % 4, 0);
    const Tiles tiles(rows);
    const auto of = [](u64& barrier) { return shared_address(&barrier); };

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < IN_ROOMS; ++i) {
            barrier_init(of(in_full[i]), 1);
            barrier_init(of(in_free[i]), TURNERS);
        }
        for (u32 i = 0; i < OUT_ROOMS; ++i) {
            barrier_init(of(out_full[i]), 4);
            barrier_init(of(out_free[i]), 1);
        }
        of_y.init(TURNERS, 4);
        of_u.init(4, 4);
        barriers_ready();
        of_y.expect(Y_BYTES - Y_SENT);
        of_u.expect(BYTES - SENT);
    }
    if (blockIdx.x == 0 && threadIdx.x < 4 * CLUSTER) counters[threadIdx.x] = 0;
    lay_out<true>(base + OUT_AT, second, [](u32 at, u32) { return at; });
    lay_out<false>(base + OUT_AT + FACTOR_BYTES, first, by_first);
    __syncthreads();

    u32 room = 0, parity = 0, out = 0, out_parity = 1;
    if (group == 3) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        begin(warp > 0);
        if (warp == 0 && lane == 0) {
            for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
                barrier_wait(of(in_free[room]), parity ^ 1);
                barrier_expect(of(in_full[room]), BYTES);
                copy_box(base + IN_AT + room * BYTES, &dy_map, tile * TILE, rank * LINES, of(in_full[room]));
                next_room<IN_ROOMS>(room, parity);
            }
        } else if (warp == 1 && lane < CLUSTER) {
            of_y.pass_on(tiles, kept_dy, base + Y_AT, Y_BYTES, lane);
        } else if (warp == 2 && lane < CLUSTER) {
            of_u.pass_on(tiles, kept_du, base + U_AT, BYTES, lane);
        } else if (warp == 3 && lane == 0) {
            for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
                barrier_wait(of(out_full[room]), parity);
                store_box(&dx_map, rank * LINES, tile * TILE, base + OUT_AT + room * BYTES);
                stores_commit();
                stores_read<0>();
                barrier_arrive(of(out_free[room]));
                next_room<OUT_ROOMS>(room, parity);
            }
            stores_written();
        }
        __syncwarp();
        if (warp == 0) cluster_wait();
    } else if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        begin();
        if (warp < TURNERS) {
            // Sixteen lambdas of all rows: of a row a tile of eight sigmas and eight lambdas, turned, is a row of eight pieces.
            const u32 sigma = lane % 8, row = lane / 8, line = sigma / 2;
            for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
                barrier_wait(of(of_y.free[out]), out_parity);
                barrier_wait(of(in_full[room]), parity);
#pragma unroll
                for (u32 octet = 0; octet < 2; ++octet) {
                    const u32 lambdas = warp * 2 + octet, to = lambdas * 4 + lane % 8 / 2;
                    const u32 chunk = sigma % 2 * 4 + lambdas ^ row % 2 * 4 + line;
                    const u32 from = base + IN_AT + room * BYTES + row * (LINES * 128) + line * 128 + chunk * 16;
                    const u32 there = base + (to == rank ? Y_AT : Y_SENT_AT) + out * Y_BYTES + to * Y_SENT + lane % 2 * Y_PIECE + row * 16;
#pragma unroll
                    for (u32 i = 0; i < TILE; i += 16) {
                        u32 words[4][4];
#pragma unroll
                        for (u32 j = 0; j < 4; ++j) load_tiles(words[j], from + (i + j * 4) * (LINES * 128));
#pragma unroll
                        for (u32 j = 0; j < 4; ++j) store_tiles_transposed(there + (i + j * 4) * 16, words[j]);
                    }
                }
                written(of(of_y.sent[out]), lane);
                if (lane == 0) barrier_arrive(of(in_free[room]));
                next_room<IN_ROOMS>(room, parity);
                next_room<Y_ROOMS>(out, out_parity);
            }
        } else if (lane < CLUSTER) {
            if (warp == TURNERS) of_y.send(tiles, base + Y_SENT_AT, base + Y_AT, Y_SENT, lane);
            else of_u.send(tiles, base + U_SENT_AT, base + U_AT, SENT, lane);
        }
    } else if (group == 0) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        Weights weights;
        take<true>(weights, base + OUT_AT, warp, lane);
        begin();
        for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
            Sums sums;
            barrier_wait(of(of_y.full[room]), parity);
            if (threadIdx.x == 0) barrier_expect(of(of_y.full[room]), Y_BYTES - Y_SENT);
            multiply(false, sums, weights, [&](u32 block, u32 step) {
                return arrived(base + Y_AT + room * Y_BYTES, Y_SENT, Y_PIECE, block, step);
            });
            barrier_wait(of(of_u.free[out]), out_parity);
            group_wait<0>();
            if (lane == 0) barrier_arrive(of(of_y.used[room]));
            next_room<Y_ROOMS>(room, parity);
            turn(sums, base + U_SENT_AT + out * BYTES, base + U_AT + out * BYTES, rank, warp, lane);
            written(of(of_u.sent[out]), lane);
            next_room<U_ROOMS>(out, out_parity);
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
        Weights weights;
        take<true>(weights, base + OUT_AT + FACTOR_BYTES, warp, lane);
        begin();
        for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
            Sums sums;
            barrier_wait(of(of_u.full[room]), parity);
            if (threadIdx.x % 128 == 0) barrier_expect(of(of_u.full[room]), BYTES - SENT);
            multiply(false, sums, weights, [&](u32 block, u32 step) {
                return arrived(base + U_AT + room * BYTES, SENT, PIECE, block, step);
            });
            barrier_wait(of(out_free[out]), out_parity);
            group_wait<0>();
            if (lane == 0) barrier_arrive(of(of_u.used[room]));
            next_room<U_ROOMS>(room, parity);
#pragma unroll
            for (u32 i = 0; i < OWN * 4; ++i) {
                const u32 line = i / 2, eight = i % 2;
                u32 words[4];
#pragma unroll
                for (u32 j = 0; j < 4; ++j) {
                    const float(&pair)[4] = sums[line / 2][line % 2][j];
                    words[j] = pack_bf16(pair[2 * eight], pair[2 * eight + 1]);
                }
                const u32 chunk = warp * 2 + eight ^ lane % 8;
                store_tiles_transposed(base + OUT_AT + out * BYTES + (line * TILE + lane) * 128 + chunk * 16, words);
            }
            written(of(out_full[out]), lane);
            next_room<OUT_ROOMS>(out, out_parity);
        }
    }
    // Nobody leaves whose barriers and memory others still reach.
    __syncwarp();
    cluster_sync();
}

#endif
