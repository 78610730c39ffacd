// y = a Monarch map of x in one launch: what lies between the factors goes through the L2 cache, not through memory. For
// sm_90a, bf16 with f32 sums.
//
//   x [rows, K P]   first [K, Q, P]   second [L, S, R]   bias [L S] or null   y [rows, L S]   row-major, K Q = L R
//
//   u[kappa Q + j] = sum_i first[kappa, j, i] x[kappa P + i]                                     rounded to bf16
//   y[sigma L + lambda] = f(bias[sigma L + lambda] + sum_rho second[lambda, sigma, rho] u[rho L + lambda])
//
// The sizes are constants of the compilation. Work comes in items that thread blocks draw one after the other:
//
//   first item:  HIGH rows, 2 GROUP columns of u. They leave as [lambda][rho / 8][row][8], which the tensor cores take, so
//                that a second item fetches runs of bytes: the permutation is made on the way out of the registers.
//   second item: LOW rows, WIDTH outputs of LAMBDAS lambdas, which stand side by side in y, 32 bytes at least: half sectors
//                halve what the L2 cache takes (1.2 for 2.7 TB/s on an H100).
//
// Items of the second factor come `lag` row tiles after those of the first, and u is a ring of `ring` row tiles. An item
// waits for items drawn before it only, and those are being worked on: no deadlock, however few thread blocks run at once.
//
// One thread fetches tiles ahead with the copy engine, two warpgroups multiply, three warps write what they leave in shared
// memory, each while the others go on.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

constexpr u32 HIGH = 256;                                  // rows of a row tile
constexpr u32 LAMBDAS = L == 8 ? 8 : 16;                   // of a second item
constexpr bool WHOLE_LINES = L == LAMBDAS;                 // its outputs of a row are a run
constexpr u32 N_MID = K * Q;

// First factor: N1 columns of a block at once, GROUP columns of one or more blocks in the accumulators.
constexpr u32 GROUP = GROUP_BLOCKS * N1;
constexpr u32 ITEM_COLS = 2 * GROUP;
constexpr u32 FIRST_ITEMS = N_MID / ITEM_COLS;             // of a row tile
constexpr u32 FIRST_STEPS = P / FIRST_LINE;
constexpr u32 FIRST_X_BYTES = HIGH / 2 * FIRST_LINE * 2;   // half of the rows
constexpr u32 FIRST_W_BYTES = N1 * FIRST_LINE * 2;

// Second factor.
constexpr u32 LOW = HALVES * 64;
constexpr u32 SECOND_ITEMS = (HIGH / LOW) * (S / WIDTH) * (L / LAMBDAS);
constexpr u32 SECOND_LINES = DEPTH / SECOND_LINE;
constexpr u32 SECOND_STEPS = R / DEPTH;
constexpr u32 SECOND_U_BYTES = LOW * DEPTH * 2;
constexpr u32 SECOND_LINE_BYTES = WIDTH * SECOND_LINE * 2;
constexpr u32 SECOND_W_BYTES = SECOND_LINES * SECOND_LINE_BYTES;

// Shared memory: ROOMS rooms for a tile of an operand, then the results of an item.
constexpr u32 most(u32 a, u32 b) { return a > b ? a : b; }
constexpr u32 FIRST_ROOM = most(FIRST_X_BYTES, FIRST_W_BYTES), SECOND_ROOM = most(SECOND_U_BYTES, SECOND_W_BYTES);
constexpr u32 ROOM_BYTES = (most(FIRST_ROOM, SECOND_ROOM) + 1023) / 1024 * 1024;
constexpr u32 CONSUMERS = 256;
constexpr u32 STORERS = 3;                                 // warps

// Rows of results before they leave, and what keeps the words of a warp in different banks.
constexpr u32 FIRST_OUT = HIGH * 16 + 32;                  // of a lambda and eight rhos
constexpr u32 SECOND_OUT = WIDTH * LAMBDAS * 2 + 16;       // of a row

// ---- counters that all thread blocks see ----

__device__ __forceinline__ void wait_for(const u32* counter, u32 count) {
    u32 seen;
    for (;;) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
        if (seen >= count) return;
        __nanosleep(64);
    }
}
__device__ __forceinline__ void count(u32* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(counter) : "memory");
}

struct Item {
    bool second;
    u32 tile, index;
    // Of a second item.
    __device__ u32 lambda() const { return index % (L / LAMBDAS) * LAMBDAS; }
    __device__ u32 sigma() const { return index / (L / LAMBDAS) % (S / WIDTH) * WIDTH; }
    __device__ u32 low() const { return index / (L / LAMBDAS * (S / WIDTH)); }
};
// Item `ticket` of all: for each row tile those of the first factor, then those of the second `lag` tiles behind.
__device__ __forceinline__ Item item(u32 ticket, u32 n_tiles, u32 lag) {
    if (ticket < lag * FIRST_ITEMS) return {false, ticket / FIRST_ITEMS, ticket % FIRST_ITEMS};
    ticket -= lag * FIRST_ITEMS;
    constexpr u32 BOTH = FIRST_ITEMS + SECOND_ITEMS;
    if (ticket < (n_tiles - lag) * BOTH) {
        const u32 tile = ticket / BOTH, index = ticket % BOTH;
        if (index < FIRST_ITEMS) return {false, tile + lag, index};
        return {true, tile, index - FIRST_ITEMS};
    }
    ticket -= (n_tiles - lag) * BOTH;
    return {true, n_tiles - lag + ticket / SECOND_ITEMS, ticket % SECOND_ITEMS};
}

constexpr u32 END = 0xffffffffu;

// `counters`: zero at the start; the next ticket, then for each row tile the items of the first factor that are done, then
// those of the second. `mid`: `ring` row tiles of u, HIGH * N_MID numbers each. `lag` is at most the number of row tiles,
// and less than `ring` unless that is as many.
extern "C" __global__ void __launch_bounds__(384, 1) monarch(
    const __grid_constant__ TensorMap x_map, const __grid_constant__ TensorMap first_map,
    const __grid_constant__ TensorMap second_map, const bf16* bias, bf16* y, bf16* mid, u32* counters, u32 rows, u32 lag,
    u32 ring, u32 activation)
{
    extern __shared__ uint4 shared[];
    const u32 base = (shared_address(shared) + 1023) & ~1023u;
    const u32 out = base + ROOMS * ROOM_BYTES;
    __shared__ u64 full[ROOMS], empty[ROOMS], staged, stored;
    __shared__ u32 tickets[ROOMS], staged_ticket;
    const u32 n_tiles = (rows + HIGH - 1) / HIGH;
    const u32 n_items = n_tiles * (FIRST_ITEMS + SECOND_ITEMS);
    u32* const first_done = counters + 1;
    u32* const second_done = first_done + n_tiles;
    const auto place = [&](u32 tile) { return mid + (size_t)(tile % ring) * (HIGH * N_MID); };

    if (threadIdx.x == 0) {
        for (u32 i = 0; i < ROOMS; ++i) {
            barrier_init(shared_address(&full[i]), 1);
            barrier_init(shared_address(&empty[i]), CONSUMERS);
        }
        barrier_init(shared_address(&staged), CONSUMERS);
        barrier_init(shared_address(&stored), STORERS);
        barriers_ready();
    }
    __syncthreads();

    u32 room = 0, parity = 0;
    const auto next = [&] { next_room<ROOMS>(room, parity); };

    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x >= CONSUMERS + 32) {
            const u32 lane = threadIdx.x % 32, storer = threadIdx.x / 32 - CONSUMERS / 32 - 1;
            for (u32 n = 0;; ++n) {
                barrier_wait(shared_address(&staged), n % 2);
                const u32 ticket = staged_ticket;
                if (ticket == END) return;
                const Item it = item(ticket, n_tiles, lag);
                if (!it.second) {
                    constexpr u32 EIGHTS = ITEM_COLS / L / 8;      // of rhos
                    for (u32 all = storer * 32 + lane; all < EIGHTS * L * (HIGH / LOW); all += 32 * STORERS) {
                        const u32 low = all % (HIGH / LOW), run = all / (HIGH / LOW);
                        const u32 lambda = run % L, eight = it.index * EIGHTS + run / L;
                        store_run(place(it.tile) + (size_t)(low * L + lambda) * (LOW * R) + eight * (LOW * 8),
                                  out + run * FIRST_OUT + low * LOW * 16, LOW * 16);
                    }
                    stores_commit();
                    stores_read<0>();
                } else {
                    if (storer == 0 && lane == 0) count(second_done + it.tile);
                    const u32 lambda0 = it.lambda(), sigma0 = it.sigma();
                    const u32 row0 = it.tile * HIGH + it.low() * LOW;
                    const u32 end = min(rows - min(row0, rows), LOW);
                    if (WHOLE_LINES) {
                        for (u32 row = storer * 32 + lane; row < end; row += 32 * STORERS)
                            store_run(y + (size_t)(row0 + row) * (L * S) + sigma0 * L, out + row * SECOND_OUT,
                                      WIDTH * L * 2);
                        stores_commit();
                        stores_read<0>();
                    } else {
                        for (u32 row = storer; row < end; row += STORERS) {
                            // Two pieces of 16 bytes an output of all lambdas.
                            constexpr u32 PIECES = WIDTH * 2 / 32;
                            uint4 words[PIECES];
#pragma unroll
                            for (u32 i = 0; i < PIECES; ++i)
                                asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                                             : "=r"(words[i].x), "=r"(words[i].y), "=r"(words[i].z), "=r"(words[i].w)
                                             : "r"(out + row * SECOND_OUT + (i * 32 + lane) * 16) : "memory");
                            bf16* const to =
                                y + (size_t)(row0 + row) * (L * S) + (sigma0 + lane / 2) * L + lambda0 + lane % 2 * 8;
#pragma unroll
                            for (u32 i = 0; i < PIECES; ++i) __stcs((uint4*)(to + i * 16 * L), words[i]);
                        }
                    }
                }
                __syncwarp();
                if (lane == 0) barrier_arrive(shared_address(&stored));
                if (!it.second) {
                    stores_written();
                    asm volatile("fence.proxy.async;" ::: "memory");
                    __threadfence();
                    __syncwarp();
                    if (lane == 0) count(first_done + it.tile);
                }
            }
        }
        if (threadIdx.x != CONSUMERS) return;
        // Makes ready the next room; `copy` gets its address and the barrier at which the bytes arrive.
        const auto fill = [&](u32 ticket, u32 bytes, const auto& copy) {
            const u32 barrier = shared_address(&full[room]);
            barrier_wait(shared_address(&empty[room]), parity ^ 1);
            tickets[room] = ticket;
            if (bytes == 0) return barrier_arrive(barrier);
            barrier_expect(barrier, bytes);
            copy(base + room * ROOM_BYTES, barrier);
            next();
        };
        for (;;) {
            const u32 ticket = atomicAdd(counters, 1);
            if (ticket >= n_items) return fill(END, 0, [](u32, u32) {});
            const Item it = item(ticket, n_tiles, lag);
            if (!it.second) {
                if (it.tile >= ring) wait_for(second_done + it.tile - ring, SECOND_ITEMS);
                for (u32 part = 0; part < ITEM_COLS / N1; ++part) {
                    const u32 column = it.index * ITEM_COLS + part * N1, line = column / Q * FIRST_STEPS;
                    for (u32 step = 0; step < FIRST_STEPS; ++step) {
                        for (u32 half = 0; half < 2; ++half)
                            fill(ticket, FIRST_X_BYTES, [&](u32 to, u32 barrier) {
                                copy_box(to, &x_map, line + step, it.tile * HIGH + half * (HIGH / 2), barrier);
                            });
                        fill(ticket, FIRST_W_BYTES,
                             [&](u32 to, u32 barrier) { copy_box(to, &first_map, step, column, barrier); });
                    }
                }
            } else {
                wait_for(first_done + it.tile, FIRST_ITEMS * STORERS);
                asm volatile("fence.proxy.async;" ::: "memory");
                const u32 lambda0 = it.lambda(), sigma0 = it.sigma();
                for (u32 lambda = lambda0; lambda < lambda0 + LAMBDAS; ++lambda) {
                    const bf16* const from = place(it.tile) + (size_t)(it.low() * L + lambda) * (LOW * R);
                    for (u32 step = 0; step < SECOND_STEPS; ++step) {
                        fill(ticket, SECOND_U_BYTES, [&](u32 to, u32 barrier) {
                            copy_run(to, from + step * (LOW * DEPTH), SECOND_U_BYTES, barrier);
                        });
                        fill(ticket, SECOND_W_BYTES, [&](u32 to, u32 barrier) {
                            copy_box(to, &second_map, step * SECOND_LINES, lambda * S + sigma0, barrier);
                        });
                    }
                }
            }
        }
    }

    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const u32 group = __shfl_sync(FULL_WARP, threadIdx.x / 128, 0);
    const u32 lane = threadIdx.x % 32;
    const u32 own_row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    // Waits for the next room; its address.
    const auto enter = [&](u32& own) {
        barrier_wait(shared_address(&full[room]), parity);
        own = room;
        next();
        return base + own * ROOM_BYTES;
    };
    const auto leave = [&](u32 own) { barrier_arrive(shared_address(&empty[own])); };
    // The results of the item before have left.
    const auto out_free = [&](u32 n) { barrier_wait(shared_address(&stored), n % 2 ^ 1); };
    const auto out_ready = [&](u32 ticket) {
        publish();
        if (threadIdx.x == 0) staged_ticket = ticket;
        barrier_arrive(shared_address(&staged));
    };
    for (u32 n = 0;; ++n) {
        barrier_wait(shared_address(&full[room]), parity);
        const u32 ticket = tickets[room];
        if (ticket == END) {
            out_free(n);
            out_ready(END);
            return;
        }
        const Item it = item(ticket, n_tiles, lag);
        if (!it.second) {
            // Each warpgroup has half of the rows.
            constexpr u32 QUADS = GROUP / L / 4;
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                float sums[2][GROUP / 8][4];
#pragma unroll
                for (u32 i = 0; i < 2; ++i)
#pragma unroll
                    for (u32 j = 0; j < GROUP / 8; ++j)
#pragma unroll
                        for (u32 c = 0; c < 4; ++c) sums[i][j][c] = 0.0f;
#pragma unroll
                for (u32 block = 0; block < GROUP_BLOCKS; ++block)
                    for (u32 step = 0; step < FIRST_STEPS; ++step) {
                        u32 own[3];
                        const u32 low_rows = enter(own[0]), high_rows = enter(own[1]), weights = enter(own[2]);
                        const u64 a = by_lines<FIRST_LINE>(group ? high_rows : low_rows);
                        const u64 b = by_lines<FIRST_LINE>(weights);
                        group_arrive();
#pragma unroll
                        for (u32 k = 0; k < FIRST_LINE / 16; ++k)
#pragma unroll
                            for (u32 i = 0; i < 2; ++i)
                                product<N1>(sums[i], block * (N1 / 8), a + i * (64 * FIRST_LINE * 2 / 16) + k * 2, b + k * 2);
                        group_commit();
                        group_wait<0>();
                        for (u32 i = 0; i < 3; ++i) leave(own[i]);
                    }
                if (half == 0) out_free(n);
                // Column c of a group is rho c / L, lambda c % L: a thread has four rhos of a lambda, 8 bytes.
#pragma unroll
                for (u32 i = 0; i < 2; ++i)
#pragma unroll
                    for (u32 quad = 0; quad < QUADS; ++quad)
#pragma unroll
                        for (u32 eighth = 0; eighth < L / 8; ++eighth)
#pragma unroll
                            for (u32 c = 0; c < 4; ++c) {
                                constexpr u32 APART = L / 8;
                                const u32 j = quad * 4 * APART + eighth;
                                const u32 all = half * QUADS + quad;
                                const u32 lambda = eighth * 8 + lane % 4 * 2 + c % 2;
                                const u32 row = group * (HIGH / 2) + i * 64 + own_row + c / 2 * 8;
                                const u32 to = out + (all / 2 * L + lambda) * FIRST_OUT + row * 16 + all % 2 * 8;
                                asm volatile("st.shared.v2.b32 [%0], {%1, %2};" :: "r"(to),
                                             "r"(pack_bf16(sums[i][j][c], sums[i][j + APART][c])),
                                             "r"(pack_bf16(sums[i][j + 2 * APART][c], sums[i][j + 3 * APART][c])) : "memory");
                            }
            }
            out_ready(ticket);
        } else {
            // Each warpgroup has half of the rows, or of 64 rows half of the outputs.
            constexpr u32 SUBTILES = HALVES > 1 ? HALVES / 2 : 1;
            constexpr u32 N2 = HALVES > 1 ? WIDTH : WIDTH / 2;
            const u32 lambda0 = it.lambda(), sigma0 = it.sigma();
            const u32 group_row = HALVES > 1 ? group * (LOW / 2) : 0;
            const u32 group_col = HALVES > 1 ? 0 : group * N2;
#pragma unroll 1
            for (u32 four = 0; four < LAMBDAS / 4; ++four) {
                u32 words[2][SUBTILES][N2 / 8][4];
#pragma unroll
                for (u32 pair = 0; pair < 2; ++pair) {
                    float sums[2][SUBTILES][N2 / 8][4];
#pragma unroll
                    for (u32 e = 0; e < 2; ++e) {
                        const u32 lambda = lambda0 + four * 4 + pair * 2 + e;
#pragma unroll
                        for (u32 j = 0; j < N2 / 8; ++j)
#pragma unroll
                            for (u32 c = 0; c < 2; ++c) {
                                const u32 sigma = sigma0 + group_col + j * 8 + lane % 4 * 2 + c;
                                const float start = bias ? to_f32(bias[sigma * L + lambda]) : 0.0f;
#pragma unroll
                                for (u32 i = 0; i < SUBTILES; ++i) sums[e][i][j][c] = sums[e][i][j][c + 2] = start;
                            }
                        for (u32 step = 0; step < SECOND_STEPS; ++step) {
                            u32 own[2];
                            const u32 rhos = enter(own[0]), weights = enter(own[1]);
                            const u64 a = descriptor(rhos + group_row * 16, LOW * 16, 128, 0);
                            const u64 b = by_lines<SECOND_LINE>(weights + group_col * SECOND_LINE * 2);
                            group_arrive();
#pragma unroll
                            for (u32 k = 0; k < DEPTH / 16; ++k)
#pragma unroll
                                for (u32 i = 0; i < SUBTILES; ++i)
                                    product<N2>(sums[e][i], 0, a + i * (64 * 16 / 16) + k * (2 * LOW * 16 / 16),
                                                b + k * 16 / SECOND_LINE * (SECOND_LINE_BYTES / 16) + k * 16 % SECOND_LINE / 8);
                            group_commit();
                            group_wait<0>();
                            for (u32 i = 0; i < 2; ++i) leave(own[i]);
                        }
                    }
                    const auto leave = [&](const auto& end) {
#pragma unroll
                        for (u32 i = 0; i < SUBTILES; ++i)
#pragma unroll
                            for (u32 j = 0; j < N2 / 8; ++j)
#pragma unroll
                                for (u32 c = 0; c < 4; ++c)
                                    words[pair][i][j][c] = pack_bf16(end(sums[0][i][j][c], 0.0f), end(sums[1][i][j][c], 0.0f));
                    };
                    // The sums began with the bias.
                    if (activation != IDENTITY) finish(activation, leave);
                    else leave([](float sum, float) { return sum; });
                }
                if (four == 0) out_free(n);
#pragma unroll
                for (u32 i = 0; i < SUBTILES; ++i)
#pragma unroll
                    for (u32 j = 0; j < N2 / 8; ++j)
#pragma unroll
                        for (u32 c = 0; c < 4; ++c) {
                            const u32 row = group_row + i * 64 + own_row + c / 2 * 8;
                            const u32 col = group_col + j * 8 + lane % 4 * 2 + c % 2;
                            asm volatile("st.shared.v2.b32 [%0], {%1, %2};" :: "r"(out + row * SECOND_OUT + col * LAMBDAS * 2 + four * 8),
                                         "r"(words[0][i][j][c]), "r"(words[1][i][j][c]) : "memory");
                        }
            }
            out_ready(ticket);
        }
    }
}

#endif
