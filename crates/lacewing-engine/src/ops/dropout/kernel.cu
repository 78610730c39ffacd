// y = keep(i) ? x / (1 - p) : 0, the backward of it too.
//
//   bits(i) = philox4x32-10(key = seed, counter = (offset + i / 4, 0, 0))[i % 4]
//   keep(i) = (bits(i) >> 8) 2^-24 >= p
//
// The mask is a function of (seed, offset, i) alone: the CPU and the backward make it again instead of storing it.
// Launch: block 256, grid ceil(n / 2048).

template <bool VEC, class T>
__device__ __forceinline__ void dropout(const T* x, T* y, u64 first, u64 n, u64 seed, u64 offset, float p) {
    float v[CHUNK];
    load8<VEC>(x, first, n, v);
    const uint4 low = philox(seed, offset + first / 4);
    const uint4 high = philox(seed, offset + first / 4 + 1);
    const u32 bits[CHUNK] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
    const float kept = 1.0f - p;
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) v[j] = (float)(bits[j] >> 8) * 5.9604644775390625e-8f >= p ? v[j] / kept : 0.0f;
    store8<VEC>(y, first, n, v);
}

template <class T>
__device__ __forceinline__ void dropout(const T* x, T* y, u64 n, u64 seed, u64 offset, float p) {
    const u64 first = global_thread() * CHUNK;
    if (first >= n) return;
    if (aligned(x, y) && first + CHUNK <= n) dropout<true>(x, y, first, n, seed, offset, p);
    else dropout<false>(x, y, first, n, seed, offset, p);
}

extern "C" __global__ void __launch_bounds__(256)
    dropout_f32(const float* x, float* y, u64 n, u64 seed, u64 offset, float p) {
    dropout(x, y, n, seed, offset, p);
}
extern "C" __global__ void __launch_bounds__(256)
    dropout_bf16(const bf16* x, bf16* y, u64 n, u64 seed, u64 offset, float p) {
    dropout(x, y, n, seed, offset, p);
}
