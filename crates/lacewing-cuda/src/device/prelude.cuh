// Put before every source: 16-bit floats without CUDA's headers, sums over a warp and a block, and the instructions
// that have no C++ spelling. All of it lives in namespace lw; a source says `using namespace lw;` if it likes.

namespace lw {

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

constexpr u32 FULL_WARP = 0xffffffffu;

struct bf16 { u16 bits; };   // upper half of a float
struct f16 { u16 bits; };    // IEEE half

// ---- conversions, to the nearest even ----

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }
__device__ __forceinline__ float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ __forceinline__ bf16 to_bf16(float x) {
    bf16 y;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    const u32 bits = __float_as_uint(x);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    y.bits = is_nan ? 0x7fff : (u16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
    return y;
}
__device__ __forceinline__ f16 to_f16(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

template <typename T> __device__ __forceinline__ T from_f32(float x);
template <> __device__ __forceinline__ float from_f32<float>(float x) { return x; }
template <> __device__ __forceinline__ bf16 from_f32<bf16>(float x) { return to_bf16(x); }
template <> __device__ __forceinline__ f16 from_f32<f16>(float x) { return to_f16(x); }

// Two bf16 in one word, `first` at the lower address.
__device__ __forceinline__ u32 pack_bf16(float first, float second) {
#if __CUDA_ARCH__ >= 800
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return (u32)to_bf16(first).bits | ((u32)to_bf16(second).bits << 16);
#endif
}
__device__ __forceinline__ float first_bf16(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float second_bf16(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// ---- reductions in a fixed order; every lane gets the result ----

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(FULL_WARP, x, step);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_WARP, x, step));
    return x;
}

// Sum over a block of any shape whose threads are a multiple of 32; `scratch` is shared and holds a float a warp.
__device__ __forceinline__ float block_sum(float x, float* scratch) {
    const u32 thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const u32 n_warps = (blockDim.x * blockDim.y * blockDim.z) / 32;
    x = warp_sum(x);
    __syncthreads();
    if (thread % 32 == 0) scratch[thread / 32] = x;
    __syncthreads();
    float sum = 0.0f;
    for (u32 warp = 0; warp < n_warps; ++warp) sum += scratch[warp];
    return sum;
}

#if __CUDA_ARCH__ >= 800

// ---- copies from global to shared memory that pass no register ----

__device__ __forceinline__ u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

// 16 bytes, both addresses multiples of 16; zeros where not `valid` (then `from` is not read, but must be an address).
__device__ __forceinline__ void copy_async_16(void* to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `PENDING` committed groups are on their way.
template <int PENDING> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory");
}

// ---- tensor cores ----

// Four 8x8 tiles of 16-bit numbers; lane i gives the address of row i % 8 of tile i / 8.
__device__ __forceinline__ void load_tiles(u32 (&to)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}
__device__ __forceinline__ void load_tiles(u32 (&to)[4], const void* row) { load_tiles(to, shared_address(row)); }
// The same, each tile transposed.
__device__ __forceinline__ void load_tiles_transposed(u32 (&to)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3]) : "r"(row) : "memory");
}
__device__ __forceinline__ void load_tiles_transposed(u32 (&to)[4], const void* row) {
    load_tiles_transposed(to, shared_address(row));
}
// d[16, 8] += a[16, 16] b[16, 8], bf16 inputs, f32 sums. Of d, a lane holds rows lane/4 (d0, d1) and lane/4 + 8
// (d2, d3), columns 2 (lane % 4) and the next.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

#endif

}  // namespace lw
