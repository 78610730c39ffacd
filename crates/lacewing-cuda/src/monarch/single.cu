// y = a Monarch map of x in one launch, for maps whose weights fit the registers of a thread block and stay there. For
// sm_90a, bf16 with f32 sums.
//
//   x [rows, BLOCKS SIDE]   first, second [BLOCKS, SIDE, SIDE]   bias [BLOCKS SIDE] or null   y [rows, BLOCKS SIDE]
//
//   u[kappa SIDE + j] = sum_i first[kappa, j, i] x[kappa SIDE + i]                               rounded to bf16
//   y[sigma BLOCKS + lambda] = f(bias[sigma BLOCKS + lambda] + sum_rho second[lambda, sigma, rho] u[rho BLOCKS + lambda])
//
// A warp has eight blocks of a factor. Of a row it makes, for each j, the sums of eight kappas: eight numbers that stand side by
// side in the sum of lambda = j. The second factor's warps likewise make eight lambdas of each sigma, which stand side by side in
// y. So a permutation is a store of 16 bytes.
//
// A warp copies tiles of TILE rows of x, a warpgroup multiplies by the first factor, one by the second, and a warp copies y away,
// each while the others are at other tiles. Rooms in shared memory are taken in turn.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

static_assert(BLOCKS == 32 && SIDE == 32, "four warps of eight blocks, sums of two steps");
constexpr u32 BYTES = TILE * BLOCKS * SIDE * 2;   // of a tile
constexpr u32 X_AT = 0, U_AT = X_AT + X_ROOMS * BYTES, Y_AT = U_AT + U_ROOMS * BYTES;
constexpr u32 FACTOR_BYTES = BLOCKS * SIDE * SIDE * 2;
static_assert(FACTOR_BYTES <= U_ROOMS * BYTES && FACTOR_BYTES <= Y_ROOMS * BYTES, "room for the weights");

// Rows of 64 bytes, eight of which are read at once: where 16 bytes of one lie. `turn`, 0 or 1, is another order.
__device__ __forceinline__ u32 in_rows(u32 row, u32 eight, u32 turn = 0) {
    return row / 2 * 128 + ((row % 2 * 4 + eight) ^ (row / 2 % 4 + 4 * turn)) * 16;
}
// In lines of 64 columns, as the copy engine has them.
__device__ __forceinline__ u32 in_lines(u32 row, u32 eight) {
    return (eight / 8 * TILE + row) * 128 + (eight % 8 ^ row % 8) * 16;
}

extern "C" __global__ void __launch_bounds__(384, 1)
monarch_single(const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap y_map,
               const bf16* __restrict__ first, const bf16* __restrict__ second, const bf16* __restrict__ bias,
               u32 rows, u32 activation) {
    extern __shared__ uint4 shared[];
    __shared__ u64 x_full[X_ROOMS], x_free[X_ROOMS], u_full[U_ROOMS], u_free[U_ROOMS], y_full[Y_ROOMS], y_free[Y_ROOMS];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    u8* const rooms = reinterpret_cast<u8*>(shared) + (base - shared_address(shared));
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0), warp = __shfl_sync(FULL_WARP, threadIdx.x / 32 % 4, 0);
    const u32 lane = threadIdx.x % 32, n_tiles = (rows + TILE - 1) / TILE;
    const auto of = [](u64& barrier) { return shared_address(&barrier); };

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < X_ROOMS; ++i) {
            barrier_init(of(x_full[i]), 1);
            barrier_init(of(x_free[i]), 4);
        }
        for (u32 i = 0; i < U_ROOMS; ++i) {
            barrier_init(of(u_full[i]), 4);
            barrier_init(of(u_free[i]), 4);
        }
        for (u32 i = 0; i < Y_ROOMS; ++i) {
            barrier_init(of(y_full[i]), 4);
            barrier_init(of(y_free[i]), 1);
        }
        barriers_ready();
    }
    __syncthreads();

    u32 room = 0, parity = 0, out = 0, out_parity = 1;
    if (group == 2) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (warp == 0 && lane == 0) {
            for (u32 tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
                barrier_wait(of(x_free[room]), parity ^ 1);
                barrier_expect(of(x_full[room]), BYTES);
                copy_box(base + X_AT + room * BYTES, &x_map, 0, tile * TILE, of(x_full[room]));
                next_room<X_ROOMS>(room, parity);
            }
        } else if (warp == 1 && lane == 0) {
            for (u32 tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
                barrier_wait(of(y_full[room]), parity);
                store_box(&y_map, 0, tile * TILE, base + Y_AT + room * BYTES);
                stores_commit();
                stores_read<0>();
                barrier_arrive(of(y_free[room]));
                next_room<Y_ROOMS>(room, parity);
            }
        }
        return;
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    // The weights come by way of the rooms that the warpgroup will fill.
    u32 weights[8][2][2][4];
    {
        u8* const staged = rooms + (group == 0 ? U_AT : Y_AT);
        const uint4* const from = reinterpret_cast<const uint4*>(group == 0 ? first : second);
        // All on their way at once.
        uint4 words[FACTOR_BYTES / 16 / 128];
#pragma unroll
        for (u32 i = 0; i < FACTOR_BYTES / 16 / 128; ++i) words[i] = from[i * 128 + threadIdx.x % 128];
#pragma unroll
        for (u32 i = 0; i < FACTOR_BYTES / 16 / 128; ++i) {
            const u32 at = i * 128 + threadIdx.x % 128;
            *reinterpret_cast<uint4*>(staged + in_rows(at / 4, at % 4)) = words[i];
        }
        asm volatile("bar.sync %0, 128;" :: "r"(1 + group) : "memory");
#pragma unroll
        for (u32 block = 0; block < 8; ++block)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
#pragma unroll
                for (u32 step = 0; step < 2; ++step)
                    load_tiles(weights[block][half][step],
                               staged + in_rows((warp * 8 + block) * SIDE + half * 16 + lane % 16, step * 2 + lane / 16));
        publish();
        asm volatile("bar.sync %0, 128;" :: "r"(1 + group) : "memory");
    }
    // For the eight blocks, 32 outputs by eight rows; `operand` is where 16 bytes of a sum are for this lane.
    const auto multiply = [&](float (&sums)[8][2][4], const auto& operand) {
#pragma unroll
        for (u32 block = 0; block < 8; ++block) {
#pragma unroll
            for (u32 i = 0; i < 8; ++i) sums[block][i / 4][i % 4] = 0.0f;
            u32 b[4];
            load_tiles(b, operand(block));
#pragma unroll
            for (u32 step = 0; step < 2; ++step)
#pragma unroll
                for (u32 half = 0; half < 2; ++half)
                    mma_bf16(sums[block][half], weights[block][half][step], b[2 * step], b[2 * step + 1]);
        }
    };
    const auto arrive = [&](u64& barrier) {
        __syncwarp();
        if (lane == 0) barrier_arrive(of(barrier));
    };

    if (group == 0) {
        for (u32 tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
            barrier_wait(of(x_full[room]), parity);
            barrier_wait(of(u_free[out]), out_parity);
            const u8* const x = rooms + X_AT + room * BYTES;
            u8* const u = rooms + U_AT + out * BYTES;
#pragma unroll 1
            for (u32 rows8 = 0; rows8 < TILE / 8; ++rows8) {
                float sums[8][2][4];
                multiply(sums, [&](u32 block) { return x + in_lines(rows8 * 8 + lane % 8, (warp * 8 + block) * 4 + lane / 8); });
#pragma unroll
                for (u32 i = 0; i < 8; ++i) {
                    const u32 lambda = i / 2 * 8 + lane / 4, row = rows8 * 8 + lane % 4 * 2 + i % 2;
                    const auto two = [&](u32 block) { return pack_bf16(sums[block][i / 4][i % 4], sums[block + 1][i / 4][i % 4]); };
                    *reinterpret_cast<uint4*>(u + lambda * (TILE * 64) + in_rows(row, warp, lambda % 2)) =
                        make_uint4(two(0), two(2), two(4), two(6));
                }
            }
            arrive(x_free[room]);
            arrive(u_full[out]);
            next_room<X_ROOMS>(room, parity);
            next_room<U_ROOMS>(out, out_parity);
        }
    } else {
        for (u32 tile = blockIdx.x; tile < n_tiles; tile += gridDim.x) {
            barrier_wait(of(u_full[room]), parity);
            barrier_wait(of(y_free[out]), out_parity);
            const u8* const u = rooms + U_AT + room * BYTES;
            u8* const staged = rooms + Y_AT + out * BYTES;
#pragma unroll 1
            for (u32 rows8 = 0; rows8 < TILE / 8; ++rows8) {
                float sums[8][2][4];
                multiply(sums, [&](u32 block) {
                    const u32 lambda = warp * 8 + block;
                    return u + lambda * (TILE * 64) + in_rows(rows8 * 8 + lane % 8, lane / 8, lambda % 2);
                });
                const auto leave = [&](const auto& end) {
#pragma unroll
                    for (u32 i = 0; i < 8; ++i) {
                        const u32 sigma = i / 2 * 8 + lane / 4, row = rows8 * 8 + lane % 4 * 2 + i % 2;
                        uint4 start = make_uint4(0, 0, 0, 0);
                        if (bias) start = *reinterpret_cast<const uint4*>(bias + sigma * BLOCKS + warp * 8);
                        const auto two = [&](u32 block, u32 starts) {
                            return pack_bf16(end(sums[block][i / 4][i % 4], first_bf16(starts)),
                                             end(sums[block + 1][i / 4][i % 4], second_bf16(starts)));
                        };
                        *reinterpret_cast<uint4*>(staged + in_lines(row, sigma * 4 + warp)) =
                            make_uint4(two(0, start.x), two(2, start.y), two(4, start.z), two(6, start.w));
                    }
                };
                finish(activation, leave);
            }
            publish();
            arrive(u_free[room]);
            arrive(y_full[out]);
            next_room<U_ROOMS>(room, parity);
            next_room<Y_ROOMS>(out, out_parity);
        }
    }
}

#endif
