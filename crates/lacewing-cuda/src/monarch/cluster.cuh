// What the kernels of a cluster of sixteen thread blocks share, which keep 32 blocks of 128 x 128 of either factor in their
// registers, two of each in a thread block, and exchange what is between them. For sm_90a, bf16 with f32 sums.
//
// What one sends another are pieces [own block there][row][8 numbers of the sum there]: the tensor cores take them so. They lie
// in rooms in shared memory, taken in turn: first where they were made, for all sixteen, then where they arrive, from all
// sixteen. Who sends from a room may fill it again when its pieces have been used where they went, which is when there is a room
// for them again: one barrier, `*_free`, tells both. One's own pieces are made where they would arrive.
//
// Warps of their own issue the copies: sixteen that the warps which multiply issue cost a tenth of all time.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

using namespace lw;

constexpr u32 OWN = BLOCKS / CLUSTER;                               // of either factor in a thread block
constexpr u32 PIECE = TILE * 16, SENT = OWN * PIECE;                // bytes, for one of its blocks, to one thread block
constexpr u32 BYTES = CLUSTER * SENT;                               // of a tile that a thread block has
// Of dy and as it is kept: bytes between pieces put eight in different banks.
constexpr u32 Y_PIECE = PIECE + DY_PAD, Y_SENT = OWN * Y_PIECE, Y_BYTES = CLUSTER * Y_SENT;
constexpr u32 LINES = OWN * SIDE / 64, STEPS = SIDE / 16;           // of its columns, of a sum
static_assert(OWN == 2 && SIDE == 128 && BLOCKS == 32 && TILE == 32, "what the places of numbers are made for");

// While a kernel starts, the weights lie where rooms will be; 16 bytes between rows put eight of them in different banks.
constexpr u32 WEIGHT_ROW = SIDE * 2 + 16, FACTOR_BYTES = OWN * SIDE * WEIGHT_ROW;

typedef u32 Weights[OWN][2][STEPS][4];
typedef float Sums[OWN][2][TILE / 8][4];

// Tiles of a cluster.
struct Tiles {
    u32 first, step, end;
    __device__ explicit Tiles(u32 rows) : first(blockIdx.x / CLUSTER), step(gridDim.x / CLUSTER), end((rows + TILE - 1) / TILE) {}
};

// Which number of u of its thread block is number `at` that it makes, of its block `block`: eight for each thread block of the
// cluster, four for either of its blocks there, the other way round in the second block. A number of one block and the same of the
// other, exchanged in half of the lanes by `turn`, are then eight of a sum. Of the second block there the fours come in the
// other order, and so do the columns of its weights.
__device__ __forceinline__ u32 by_first(u32 at, u32 block) { return at % 4 * BLOCKS + at / 8 * OWN + (at / 4 % 2 ^ block); }
__device__ __forceinline__ u32 by_second(u32 at, u32 block) { return at ^ block * 4; }

// Rows `from(row, block)` of both blocks of a factor [BLOCKS, SIDE, SIDE] to shared memory, by all 512 threads; fours of columns
// of the second block exchanged if EXCHANGED.
template <bool EXCHANGED, class From>
__device__ __forceinline__ void lay_out(u32 to, const bf16* factor, const From& from) {
    u32 words[OWN * SIDE / 32][4];
    const u32 eight = threadIdx.x % 16;
#pragma unroll
    for (u32 i = 0; i < OWN * SIDE / 32; ++i) {
        const u32 row = i * 32 + threadIdx.x / 16, block = row / SIDE;
        const bf16* const at = factor + (size_t)((cluster_rank() * OWN + block) * SIDE + from(row % SIDE, block)) * SIDE;
        const uint4 w = reinterpret_cast<const uint4*>(at)[eight];
        const bool exchanged = EXCHANGED && block == 1;
        words[i][0] = exchanged ? w.z : w.x;
        words[i][1] = exchanged ? w.w : w.y;
        words[i][2] = exchanged ? w.x : w.z;
        words[i][3] = exchanged ? w.y : w.w;
    }
#pragma unroll
    for (u32 i = 0; i < OWN * SIDE / 32; ++i) store_16_shared(to + (i * 32 + threadIdx.x / 16) * WEIGHT_ROW + eight * 16, words[i]);
}

// The left operand of a warp of four from there, or its transpose.
template <bool TRANSPOSED> __device__ __forceinline__ void take(Weights& weights, u32 from, u32 warp, u32 lane) {
#pragma unroll
    for (u32 block = 0; block < OWN; ++block)
#pragma unroll
        for (u32 half = 0; half < 2; ++half)
#pragma unroll
            for (u32 step = 0; step < STEPS; ++step) {
                const u32 out = half * 64 + warp * 16, in = step * 16;
                if constexpr (TRANSPOSED) {
                    const u32 row = block * SIDE + in + lane / 16 * 8 + lane % 8, col = out + lane / 8 % 2 * 8;
                    load_tiles_transposed(weights[block][half][step], from + row * WEIGHT_ROW + col * 2);
                } else {
                    const u32 row = block * SIDE + out + lane % 16, col = in + lane / 16 * 8;
                    load_tiles(weights[block][half][step], from + row * WEIGHT_ROW + col * 2);
                }
            }
    publish();
}

// When all have their weights, all rooms may be filled; who fills only his own does not `wait`, until he ends.
__device__ __forceinline__ void begin(bool wait = true) {
    __syncwarp();
    cluster_arrive();
    if (wait) cluster_wait();
}

// Queues the products of a tile; `operand(block, step)` is the right one's descriptor.
template <class Operand>
__device__ __forceinline__ void multiply(bool adds, Sums& sums, const Weights& weights, const Operand& operand) {
    group_arrive();
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step)
#pragma unroll
        for (u32 block = 0; block < OWN; ++block)
#pragma unroll
            for (u32 half = 0; half < 2; ++half)
                product_of(adds || step > 0, sums[block][half], weights[block][half][step], operand(block, step));
    group_commit();
}
// Of what has arrived in pieces.
__device__ __forceinline__ u64 arrived(u32 room, u32 sent, u32 piece, u32 block, u32 step) {
    return descriptor(room + step * (2 * sent) + block * piece, sent, 128, 0);
}

// Eights of u of a tile to their pieces, in the room where they are sent and, one's own, in that where they arrive.
__device__ __forceinline__ void turn(const Sums& sums, u32 sent_room, u32 room, u32 rank, u32 warp, u32 lane) {
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
            const u32 to = half * 8 + warp * 2 + eight, row = (to == rank ? room : sent_room) + to * SENT + lane * 16;
            store_tiles_transposed(row, words[0]);
            store_tiles_transposed(row + PIECE, words[1]);
        }
}

// What the warp wrote to shared memory is there: at `barrier`.
__device__ __forceinline__ void written(u32 barrier, u32 lane) {
    publish();
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
}

// Rooms of one exchange, and their barriers.
template <u32 COUNT> struct Barriers {
    // Pieces to send are made; they have arrived; they have been used; there is room for them.
    u64 sent[COUNT], full[COUNT], used[COUNT], free[COUNT];

    __device__ void init(u32 makers, u32 users) {
        for (u32 i = 0; i < COUNT; ++i) {
            barrier_init(shared_address(&sent[i]), makers);
            barrier_init(shared_address(&full[i]), 2);
            barrier_init(shared_address(&used[i]), users);
            barrier_init(shared_address(&free[i]), CLUSTER);
        }
    }
    __device__ void expect(u32 arriving) {
        for (u32 i = 0; i < COUNT; ++i) barrier_expect(shared_address(&full[i]), arriving);
    }

    // A lane for each thread block. Each begins with another, or all would send to one.
    __device__ void send(const Tiles& tiles, u32 from, u32 there, u32 sent_bytes, u32 lane) {
        u32 room = 0, parity = 0;
        const u32 rank = cluster_rank(), to = (lane + rank) % CLUSTER, bytes = CLUSTER * sent_bytes;
        const u32 at = address_at(there + rank * sent_bytes, to), own = shared_address(&full[0]), bell = address_at(own, to);
        for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
            barrier_wait(shared_address(&sent[room]), parity);
            if (to == rank) barrier_arrive(own + room * 8);
            else copy_to(at + room * bytes, from + to * sent_bytes + room * bytes, sent_bytes, bell + room * 8);
            next_room<COUNT>(room, parity);
        }
    }

    // Likewise: tells who sent that a room has been used. Before, what arrived there is written to `kept`, if there is one: [tile]
    // [thread block][bytes of a room].
    __device__ void pass_on(const Tiles& tiles, u8* kept, u32 there, u32 bytes, u32 lane) {
        u32 room = 0, parity = 0;
        const u32 rank = cluster_rank(), bell = address_at(shared_address(&free[0]), (lane + rank) % CLUSTER);
        for (u32 tile = tiles.first; tile < tiles.end; tile += tiles.step) {
            if (kept) {
                barrier_wait(shared_address(&full[room]), parity);
                if (lane == 0) {
                    store_run(kept + ((size_t)tile * CLUSTER + rank) * bytes, there + room * bytes, bytes);
                    stores_commit();
                    stores_read<0>();
                }
                __syncwarp((1u << CLUSTER) - 1);
            }
            barrier_wait(shared_address(&used[room]), parity);
            barrier_arrive_at(bell + room * 8);
            next_room<COUNT>(room, parity);
        }
        if (lane == 0) stores_written();
    }
};

#endif
