// Elementwise arithmetic, and the two products with a number a row.
//
//   add y = a + b    accumulate y (f32) += x (bf16)    scale y = s x    cast y = x in the other type
//   sigmoid y = s sigmoid(x)    sigmoid_backward dx = dy y (1 - y / s)
//   scale_rows y[r, :] = s[r / rows_per_scale] x[r, :]
//   gated_sum  y[r, :] = (1 - k) a[r, :] + k b[r, :], k = sigmoid(g[r]);
//              backward da = (1 - k) dy, db = k dy, dg[r] = k (1 - k) sum over c of dy (b - a)
//
// An output may be one of the inputs.

// Launch: block 256, grid ceil(R * ceil(C / 8) / 256).
template <bool VEC, class T>
__device__ __forceinline__ void scale_rows(const T* x, const float* s, T* y, u32 rows, u32 cols, u32 rows_per_scale) {
    const u32 chunks = chunks_of(cols);
    const u64 i = global_thread();
    if (i >= (u64)rows * chunks) return;
    u64 row;
    u32 chunk;
    divide(i, chunks, row, chunk);
    float v[CHUNK];
    load8<VEC>(x + row * cols, chunk * CHUNK, cols, v);
    const float scale = s[(u32)row / rows_per_scale];
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) v[j] *= scale;
    store8<VEC>(y + row * cols, chunk * CHUNK, cols, v);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Launch: as `scale_rows`.
template <bool VEC, class T>
__device__ __forceinline__ void gated_sum(const T* a, const T* b, const T* g, T* y, u32 rows, u32 cols) {
    const u32 chunks = chunks_of(cols);
    const u64 i = global_thread();
    if (i >= (u64)rows * chunks) return;
    u64 row;
    u32 chunk;
    divide(i, chunks, row, chunk);
    float u[CHUNK], v[CHUNK];
    load8<VEC>(a + row * cols, chunk * CHUNK, cols, u);
    load8<VEC>(b + row * cols, chunk * CHUNK, cols, v);
    const float k = sigmoid(to_f32(g[row]));
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) v[j] = fmaf(k, v[j], (1.0f - k) * u[j]);
    store8<VEC>(y + row * cols, chunk * CHUNK, cols, v);
}

// Launch: block 256, a warp a row, grid ceil(R / 8).
template <bool VEC, class T>
__device__ __forceinline__ void gated_sum_backward(const T* dy, const T* a, const T* b, const T* g, T* da, T* db,
                                                   T* dg, u32 rows, u32 cols) {
    const u32 row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const u64 at = (u64)row * cols;
    const u32 lane = threadIdx.x % WARP;
    const float k = sigmoid(to_f32(g[row]));
    float dot = 0.0f;
    for (u32 first = lane * CHUNK; first < cols; first += WARP * CHUNK) {
        float d[CHUNK], u[CHUNK], v[CHUNK];
        load8<VEC>(dy + at, first, cols, d);
        load8<VEC>(a + at, first, cols, u);
        load8<VEC>(b + at, first, cols, v);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) {
            dot = fmaf(d[j], v[j] - u[j], dot);
            u[j] = (1.0f - k) * d[j];
            v[j] = k * d[j];
        }
        store8<VEC>(da + at, first, cols, u);
        store8<VEC>(db + at, first, cols, v);
    }
    dot = warp_sum(dot);
    if (lane == 0) dg[row] = from_f32<T>(k * (1.0f - k) * dot);
}

#define MAP(NAME, T, SUFFIX) extern "C" __global__ void __launch_bounds__(256) NAME##_##SUFFIX
#define ENTRIES(T, SUFFIX)                                                                                          \
    MAP(add, T, SUFFIX)(const T* a, const T* b, T* y, u64 n) {                                                      \
        map(n, y, [](float u, float v) { return u + v; }, a, b);                                                    \
    }                                                                                                               \
    MAP(scale, T, SUFFIX)(const T* x, T* y, u64 n, float s) {                                                       \
        map(n, y, [s](float v) { return s * v; }, x);                                                               \
    }                                                                                                               \
    MAP(sigmoid, T, SUFFIX)(const T* x, T* y, u64 n, float s) {                                                     \
        map(n, y, [s](float v) { return s * sigmoid(v); }, x);                                                      \
    }                                                                                                               \
    MAP(sigmoid_backward, T, SUFFIX)(const T* dy, const T* y, T* dx, u64 n, float inverse) {                        \
        map(n, dx, [inverse](float d, float v) { return d * v * (1.0f - v * inverse); }, dy, y);                    \
    }                                                                                                               \
    MAP(scale_rows, T, SUFFIX)(const T* x, const float* s, T* y, u32 rows, u32 cols, u32 rows_per_scale) {          \
        if (cols % CHUNK == 0 && aligned(x, y)) scale_rows<true>(x, s, y, rows, cols, rows_per_scale);              \
        else scale_rows<false>(x, s, y, rows, cols, rows_per_scale);                                                \
    }                                                                                                               \
    MAP(gated_sum, T, SUFFIX)(const T* a, const T* b, const T* g, T* y, u32 rows, u32 cols) {                       \
        if (cols % CHUNK == 0 && aligned(a, b, y)) gated_sum<true>(a, b, g, y, rows, cols);                         \
        else gated_sum<false>(a, b, g, y, rows, cols);                                                              \
    }                                                                                                               \
    MAP(gated_sum_backward, T, SUFFIX)                                                                              \
    (const T* dy, const T* a, const T* b, const T* g, T* da, T* db, T* dg, u32 rows, u32 cols) {                    \
        if (cols % CHUNK == 0 && aligned(dy, a, b, da, db))                                                         \
            gated_sum_backward<true>(dy, a, b, g, da, db, dg, rows, cols);                                          \
        else gated_sum_backward<false>(dy, a, b, g, da, db, dg, rows, cols);                                        \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)

// Named by what they write.
MAP(cast, bf16, f32)(const bf16* x, float* y, u64 n) {
    map(n, y, [](float v) { return v; }, x);
}
MAP(cast, float, bf16)(const float* x, bf16* y, u64 n) {
    map(n, y, [](float v) { return v; }, x);
}
MAP(accumulate, bf16, bf16)(const bf16* x, float* y, u64 n) {
    map(n, y, [](float u, float v) { return u + v; }, y, x);
}
