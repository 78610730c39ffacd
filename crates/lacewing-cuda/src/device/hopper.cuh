// Put before sources for Hopper, after the prelude: warpgroup products (wgmma), barriers in shared memory, and copies by the
// copy engine.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

namespace lw {

// What the copy engine needs to know of a matrix, `const __grid_constant__` parameters.
struct alignas(64) TensorMap { u64 opaque[16]; };

// ---- products ----

__device__ __forceinline__ u64 descriptor(u32 address, u32 leading, u32 stride, u64 swizzle) {
    return (u64)((address & 0x3ffff) >> 4) | ((u64)(leading >> 4) << 16) | ((u64)(stride >> 4) << 32) | (swizzle << 62);
}
// An operand whose rows are lines of LINE numbers, 64 or 32, swizzled as the copy engine does it. Sixteen numbers of the sum
// are ALONG descriptors apart, or ACROSS<LINE> where the rows run along the sum; then tiles of LINE columns are `leading`
// bytes apart.
constexpr u32 ALONG = 32 / 16;
template <u32 LINE> constexpr u32 ACROSS = 16 * LINE * 2 / 16;
template <u32 LINE> __device__ __forceinline__ u64 by_lines(u32 address, u32 leading = 0) {
    static_assert(LINE == 32 || LINE == 64, "64 or 128 bytes");
    return descriptor(address, leading, LINE * 16, LINE == 64 ? 1 : 2);
}

#define SUMS_4(c, i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define SUMS_8(c, i) SUMS_4(c, i), SUMS_4(c, i + 1)
#define SUMS_16(c, i) SUMS_8(c, i), SUMS_8(c, i + 2)
#define SUMS_32(c, i) SUMS_16(c, i), SUMS_16(c, i + 4)
#define SUMS_64(c, i) SUMS_32(c, i), SUMS_32(c, i + 8)
#define REGS_4(a, b, c, d) "%" #a ",%" #b ",%" #c ",%" #d
#define REGS_8 REGS_4(0, 1, 2, 3) "," REGS_4(4, 5, 6, 7)
#define REGS_16 REGS_8 "," REGS_4(8, 9, 10, 11) "," REGS_4(12, 13, 14, 15)
#define REGS_24 REGS_16 "," REGS_4(16, 17, 18, 19) "," REGS_4(20, 21, 22, 23)
#define REGS_32 REGS_24 "," REGS_4(24, 25, 26, 27) "," REGS_4(28, 29, 30, 31)
#define REGS_40 REGS_32 "," REGS_4(32, 33, 34, 35) "," REGS_4(36, 37, 38, 39)
#define REGS_48 REGS_40 "," REGS_4(40, 41, 42, 43) "," REGS_4(44, 45, 46, 47)
#define REGS_56 REGS_48 "," REGS_4(48, 49, 50, 51) "," REGS_4(52, 53, 54, 55)
#define REGS_64 REGS_56 "," REGS_4(56, 57, 58, 59) "," REGS_4(60, 61, 62, 63)
#define REGS_72 REGS_64 "," REGS_4(64, 65, 66, 67) "," REGS_4(68, 69, 70, 71)
#define REGS_80 REGS_72 "," REGS_4(72, 73, 74, 75) "," REGS_4(76, 77, 78, 79)
#define REGS_88 REGS_80 "," REGS_4(80, 81, 82, 83) "," REGS_4(84, 85, 86, 87)
#define REGS_96 REGS_88 "," REGS_4(88, 89, 90, 91) "," REGS_4(92, 93, 94, 95)
#define REGS_104 REGS_96 "," REGS_4(96, 97, 98, 99) "," REGS_4(100, 101, 102, 103)
#define REGS_112 REGS_104 "," REGS_4(104, 105, 106, 107) "," REGS_4(108, 109, 110, 111)
#define REGS_120 REGS_112 "," REGS_4(112, 113, 114, 115) "," REGS_4(116, 117, 118, 119)
#define REGS_128 REGS_120 "," REGS_4(120, 121, 122, 123) "," REGS_4(124, 125, 126, 127)

// c[64, N] += a[64, 16] b[16, N] at eight columns `at` of c, both from shared memory. With A_ACROSS the rows of a's tile
// run along the sum, else along c; with B_ACROSS b's likewise.
#define PRODUCT(N, REGS, A, B, C, D, ...)                                                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, %" #A ", %" #B                \
                 ", 1, 1, 1, %" #C ", %" #D ";"                                                                      \
                 : __VA_ARGS__ : "l"(a), "l"(b), "n"(A_ACROSS), "n"(B_ACROSS) : "memory")
template <u32 N, int A_ACROSS = 0, int B_ACROSS = 0, u32 COUNT>
__device__ __forceinline__ void product(float (&c)[COUNT][4], u32 at, u64 a, u64 b) {
    static_assert(N == 16 || N == 32 || N == 48 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256,
                  "a width that is used");
    if constexpr (N == 16) PRODUCT(16, REGS_8, 8, 9, 10, 11, SUMS_8(c, at));
    if constexpr (N == 32) PRODUCT(32, REGS_16, 16, 17, 18, 19, SUMS_16(c, at));
    if constexpr (N == 48) PRODUCT(48, REGS_24, 24, 25, 26, 27, SUMS_16(c, at), SUMS_8(c, at + 4));
    if constexpr (N == 64) PRODUCT(64, REGS_32, 32, 33, 34, 35, SUMS_32(c, at));
    if constexpr (N == 96) PRODUCT(96, REGS_48, 48, 49, 50, 51, SUMS_32(c, at), SUMS_16(c, at + 8));
    if constexpr (N == 128) PRODUCT(128, REGS_64, 64, 65, 66, 67, SUMS_64(c, at));
    if constexpr (N == 192) PRODUCT(192, REGS_96, 96, 97, 98, 99, SUMS_64(c, at), SUMS_32(c, at + 16));
    if constexpr (N == 256) PRODUCT(256, REGS_128, 128, 129, 130, 131, SUMS_64(c, at), SUMS_64(c, at + 16));
}

// c[64, 8 COUNT] = a[64, 16] b[16, 8 COUNT], added to what c holds if `adds`; a from registers.
#define PRODUCT_OF(REGS, A0, A1, A2, A3, B, ADDS, ...)                                                                         \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %" #ADDS ", 0;\n"                                                     \
                 "wgmma.mma_async.sync.aligned.m64n" REGS "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B                    \
                 ", adds, 1, 1, 0;\n}"                                                                                         \
                 : __VA_ARGS__ : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"((u32)adds) : "memory")
template <u32 COUNT> __device__ __forceinline__ void product_of(bool adds, float (&c)[COUNT][4], const u32 (&a)[4], u64 b) {
    static_assert(COUNT == 4 || COUNT == 8, "a width that is used");
    if constexpr (COUNT == 4) PRODUCT_OF("32k16.f32.bf16.bf16 {" REGS_16, 16, 17, 18, 19, 20, 21, SUMS_16(c, 0));
    else PRODUCT_OF("64k16.f32.bf16.bf16 {" REGS_32, 32, 33, 34, 35, 36, 37, SUMS_32(c, 0));
}

__device__ __forceinline__ void group_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void group_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory");
}

// ---- barriers in shared memory ----

__device__ __forceinline__ void barrier_init(u32 barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(barrier), "r"(count) : "memory");
}
// After the last of them, before others use them.
__device__ __forceinline__ void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" :: "r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%0], %1;" :: "r"(barrier), "r"(bytes) : "memory");
}
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    asm volatile("{\n.reg .pred done;\nagain:\n"
                 "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n}" :: "r"(barrier), "r"(parity) : "memory");
}

// Rooms in shared memory are taken in turn, by the copies that fill them and by who reads them; `parity` is that of the turn.
template <u32 COUNT> __device__ __forceinline__ void next_room(u32& room, u32& parity) {
    if (++room == COUNT) {
        room = 0;
        parity ^= 1;
    }
}

// ---- copies to shared memory that end at a barrier ----

// The copy engine will need it soon; the L2 cache should have these bytes, a multiple of 16 at one.
__device__ __forceinline__ void prefetch(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" :: "l"(map) : "memory");
}
__device__ __forceinline__ void prefetch(const void* at, u32 bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" :: "l"(at), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy_box(u32 to, const TensorMap* map, u32 line, u32 row, u32 barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];"
                 :: "r"(to), "l"(map), "r"(0), "r"(row), "r"(line), "r"(barrier) : "memory");
}
__device__ __forceinline__ void copy_run(u32 to, const void* from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(to), "l"(from), "r"(bytes), "r"(barrier) : "memory");
}

// ---- clusters of thread blocks ----

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
// Of all threads of the cluster, their warps together; who waits has arrived.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_sync() {
    cluster_arrive();
    cluster_wait();
}
// Where what is `here` in one's own shared memory is in that of another thread block of the cluster.
__device__ __forceinline__ u32 address_at(u32 here, u32 rank) {
    u32 there;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    return there;
}
// At the barrier of another thread block of the cluster, for memory that is read by the tensor cores and written by the copy
// engine alone: neither needs the fence that a release to the cluster would be, half of the time of a product.
__device__ __forceinline__ void barrier_arrive_at(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" :: "r"(barrier) : "memory");
}
// From shared memory to that of another thread block of the cluster, which gets the bytes at its own barrier; `to` and `barrier` there.
__device__ __forceinline__ void copy_to(u32 to, u32 from, u32 bytes, u32 barrier) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :: "r"(to), "r"(from), "r"(bytes), "r"(barrier) : "memory");
}
// To the same place of every thread block in `mask`, each of which gets all bytes at its own barrier.
__device__ __forceinline__ void copy_box_to(u32 to, const TensorMap* map, u32 line, u32 row, u32 barrier, u16 mask) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
                 "[%0], [%1, {%2, %3, %4}], [%5], %6;"
                 :: "r"(to), "l"(map), "r"(0), "r"(row), "r"(line), "r"(barrier), "h"(mask) : "memory");
}

// ---- copies from registers and shared memory ----

// 16 bytes to a multiple of 16. The compiler makes four stores of an assignment that it cannot prove to be aligned.
__device__ __forceinline__ void store_16(void* to, const u32 (&words)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "l"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// The same, to shared memory.
__device__ __forceinline__ void store_16_shared(u32 to, const u32 (&words)[4]) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};"
                 :: "r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}

// Four 8x8 tiles of 16-bit numbers, each transposed, as `load_tiles_transposed` reads them.
__device__ __forceinline__ void store_tiles_transposed(u32 row, const u32 (&from)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};"
                 :: "r"(row), "r"(from[0]), "r"(from[1]), "r"(from[2]), "r"(from[3]) : "memory");
}

// What threads wrote to shared memory becomes visible to the copy engine and the tensor cores.
__device__ __forceinline__ void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Clipped where the matrix ends.
__device__ __forceinline__ void store_box(const TensorMap* map, u32 line, u32 row, u32 from) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%1, %2, %3}], [%4];"
                 :: "l"(map), "r"(0), "r"(row), "r"(line), "r"(from) : "memory");
}
__device__ __forceinline__ void store_run(void* to, u32 from, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
                 :: "l"(to), "r"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Shared memory of all stores but the last PENDING groups may be written again.
template <int PENDING> __device__ __forceinline__ void stores_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" :: "n"(PENDING) : "memory");
}
__device__ __forceinline__ void stores_written() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// ---- how a layer ends ----

// What is applied to a sum on its way out, numbered as core does.
enum Activation : u32 { IDENTITY, RELU, GELU, GELU_TANH };

__device__ __forceinline__ float relu(float x) { return x < 0.0f ? 0.0f : x; }  // NaN stays

// x (1 + tanh(x p(x^2))) / 2 for either GELU. The fast tanh is off by 2^-11 at most, and p is so chosen that with an exact
// one nothing is off by more than 2.6e-5: in all 2^-11.7 |x|, less than a tenth of what rounding GELU(|x|) to bf16 may cost.
__device__ __forceinline__ float gelu(float x, bool by_tanh) {
    const float a = by_tanh ? 0.79788456f : 0.7975053f, b = by_tanh ? 0.03567741f : 0.03700802f;
    const float c = by_tanh ? 0.0f : -3.519024e-4f;
    const float square = fminf(x * x, 20.0f), half = 0.5f * x;
    float t;
    asm("tanh.approx.f32 %0, %1;" : "=f"(t) : "f"(x * fmaf(fmaf(c, square, b), square, a)));
    return fmaf(half, t, half);
}

// Calls `leave` with what ends a sum and its bias: one of few functions, so that a kernel has one run of instructions for
// each. With a branch for every few sums products without any end took a seventh longer.
template <class Leave>
__device__ __forceinline__ void finish(u32 activation, const Leave& leave) {
    if (activation == IDENTITY) return leave([](float sum, float bias) { return sum + bias; });
    if (activation == RELU) return leave([](float sum, float bias) { return relu(sum + bias); });
    leave([=](float sum, float bias) { return gelu(sum + bias, activation == GELU_TANH); });
}

}  // namespace lw

#endif
