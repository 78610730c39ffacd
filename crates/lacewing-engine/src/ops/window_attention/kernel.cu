// Windowed attention around its products: copies between maps and heads, and the softmax.
//
// A group is one head of one window of one sample, g = (sample * windows + window) * heads + head; N places a window, D a
// head. All rows of a map are `stride` elements apart.
//
//   heads           y[g, i, :] = the head's part of row token_of[window, i] of the map x; with `inverse` divided by its
//                   length (LENGTH_MIN at least), whose inverse is kept, and with `log_scale` times exp(min(it, LOG_MAX))
//   tokens          the inverse copy: x from y
//   softmax         p = softmax(s + bias[head] - OTHER where the regions of the two places differ), over the last dimension
//   softmax_backward  ds = p (dp - sum of p dp)
//   unit_gradient   dx = r s (g - u (u . g)), where `unit` holds s u, r = inverse; along = s u . g, 0 where the scale is cut
//
//   token_of regions [windows, N] u32   place_of [tokens] u32   heads unit [groups, N, D] T   inverse [groups, N] f32
//   s dp [groups, N, N] f32   p ds [groups, N, N] T   bias [heads, N, N] f32   log_scale [heads] f32
//   g [groups, N, D] f32   along [batch * tokens, heads] f32
//
// A warp a row, everywhere. Launch: block 256, grid ceil(rows / 8); rows = groups N.

constexpr float LOG_MAX = 4.6051702f;
constexpr float OTHER = 100.0f;
constexpr float LENGTH_MIN = 1e-12f;

struct Shape {
    u32 windows, places, heads, dim;
};

__device__ __forceinline__ u32 this_row() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }
__device__ __forceinline__ float scale_of(float log_scale) { return expf(fminf(log_scale, LOG_MAX)); }

template <class T>
__device__ __forceinline__ void heads(const T* x, u64 stride, const u32* token_of, const float* log_scale,
                                      float* inverse, T* y, u32 rows, Shape shape) {
    const u32 row = this_row();
    if (row >= rows) return;
    const u32 lane = threadIdx.x % WARP;
    const u32 group = row / shape.places, head = group % shape.heads;
    const u32 window = group / shape.heads % shape.windows, sample = group / shape.heads / shape.windows;
    const u32 token = token_of[window * shape.places + row % shape.places];
    x += ((u64)sample * shape.windows * shape.places + token) * stride + head * shape.dim;
    y += (u64)row * shape.dim;
    float factor = 1.0f;
    if (inverse) {
        float sum = 0.0f;
        for (u32 c = lane; c < shape.dim; c += WARP) sum = fmaf(to_f32(x[c]), to_f32(x[c]), sum);
        factor = 1.0f / fmaxf(sqrtf(warp_sum(sum)), LENGTH_MIN);
        if (lane == 0) inverse[row] = factor;
        if (log_scale) factor *= scale_of(log_scale[head]);
    }
    for (u32 c = lane; c < shape.dim; c += WARP) y[c] = inverse ? from_f32<T>(to_f32(x[c]) * factor) : x[c];
}

// The row of [groups, N] of head `row % heads` of row `row / heads` of the maps.
__device__ __forceinline__ u32 group_row(const u32* place_of, u32 row, Shape shape) {
    const u32 tokens = shape.windows * shape.places;
    const u32 head = row % shape.heads, map_row = row / shape.heads;
    const u32 place = place_of[map_row % tokens];
    const u32 window = map_row / tokens * shape.windows + place / shape.places;
    return (window * shape.heads + head) * shape.places + place % shape.places;
}

template <class T>
__device__ __forceinline__ void tokens(const T* y, const u32* place_of, T* x, u64 stride, u32 rows, Shape shape) {
    const u32 row = this_row();
    if (row >= rows) return;
    y += (u64)group_row(place_of, row, shape) * shape.dim;
    x += row / shape.heads * stride + row % shape.heads * shape.dim;
    for (u32 c = threadIdx.x % WARP; c < shape.dim; c += WARP) x[c] = y[c];
}

template <class T>
__device__ __forceinline__ void softmax(const float* s, const float* bias, const u32* regions, T* p, u32 rows,
                                        Shape shape) {
    const u32 row = this_row();
    if (row >= rows) return;
    const u32 lane = threadIdx.x % WARP, n = shape.places;
    const u32 group = row / n, i = row % n;
    s += (u64)row * n;
    p += (u64)row * n;
    bias += ((u64)(group % shape.heads) * n + i) * n;
    if (regions) regions += group / shape.heads % shape.windows * n;
    const u32 own = regions ? regions[i] : 0;
    const auto score = [&](u32 j) { return s[j] + bias[j] - (regions && regions[j] != own ? OTHER : 0.0f); };
    float top = -__int_as_float(0x7f800000);
    for (u32 j = lane; j < n; j += WARP) top = fmaxf(top, score(j));
    top = warp_max(top);
    float sum = 0.0f;
    for (u32 j = lane; j < n; j += WARP) sum += expf(score(j) - top);
    const float share = 1.0f / warp_sum(sum);
    for (u32 j = lane; j < n; j += WARP) p[j] = from_f32<T>(expf(score(j) - top) * share);
}

template <class T>
__device__ __forceinline__ void softmax_backward(const T* p, const float* dp, T* ds, u32 rows, u32 n) {
    const u32 row = this_row();
    if (row >= rows) return;
    const u64 at = (u64)row * n;
    const u32 lane = threadIdx.x % WARP;
    float mean = 0.0f;
    for (u32 j = lane; j < n; j += WARP) mean = fmaf(to_f32(p[at + j]), dp[at + j], mean);
    mean = warp_sum(mean);
    for (u32 j = lane; j < n; j += WARP) ds[at + j] = from_f32<T>(to_f32(p[at + j]) * (dp[at + j] - mean));
}

template <class T>
__device__ __forceinline__ void unit_gradient(const float* g, const T* unit, const float* inverse,
                                              const float* log_scale, float* along, const u32* place_of, T* dx,
                                              u64 stride, u32 rows, Shape shape) {
    const u32 row = this_row();
    if (row >= rows) return;
    const u32 lane = threadIdx.x % WARP, head = row % shape.heads;
    const u32 from = group_row(place_of, row, shape);
    g += (u64)from * shape.dim;
    unit += (u64)from * shape.dim;
    dx += row / shape.heads * stride + head * shape.dim;
    float dot = 0.0f;
    for (u32 c = lane; c < shape.dim; c += WARP) dot = fmaf(to_f32(unit[c]), g[c], dot);
    dot = warp_sum(dot);
    const float log = log_scale ? log_scale[head] : 0.0f, scale = scale_of(log);
    if (along && lane == 0) along[row] = log <= LOG_MAX ? dot : 0.0f;
    const float factor = inverse[from] * scale, back = -dot / (scale * scale);
    for (u32 c = lane; c < shape.dim; c += WARP) dx[c] = from_f32<T>(fmaf(to_f32(unit[c]), back, g[c]) * factor);
}

#define KERNEL(NAME, SUFFIX) extern "C" __global__ void __launch_bounds__(256) window_attention_##NAME##_##SUFFIX
#define ENTRIES(T, SUFFIX)                                                                                          \
    KERNEL(heads, SUFFIX)(const T* x, u64 stride, const u32* token_of, const float* log_scale, float* inverse,      \
                          T* y, u32 rows, u32 windows, u32 places, u32 n_heads, u32 dim) {                          \
        heads(x, stride, token_of, log_scale, inverse, y, rows, Shape{windows, places, n_heads, dim});              \
    }                                                                                                               \
    KERNEL(tokens, SUFFIX)(const T* y, const u32* place_of, T* x, u64 stride, u32 rows, u32 windows, u32 places,    \
                           u32 n_heads, u32 dim) {                                                                  \
        tokens(y, place_of, x, stride, rows, Shape{windows, places, n_heads, dim});                                 \
    }                                                                                                               \
    KERNEL(softmax, SUFFIX)(const float* s, const float* bias, const u32* regions, T* p, u32 rows, u32 windows,     \
                            u32 places, u32 n_heads, u32 dim) {                                                     \
        softmax(s, bias, regions, p, rows, Shape{windows, places, n_heads, dim});                                   \
    }                                                                                                               \
    KERNEL(softmax_backward, SUFFIX)(const T* p, const float* dp, T* ds, u32 rows, u32 places) {                    \
        softmax_backward(p, dp, ds, rows, places);                                                                  \
    }                                                                                                               \
    KERNEL(unit_gradient, SUFFIX)(const float* g, const T* unit, const float* inverse, const float* log_scale,      \
                                  float* along, const u32* place_of, T* dx, u64 stride, u32 rows, u32 windows,      \
                                  u32 places, u32 n_heads, u32 dim) {                                               \
        unit_gradient(g, unit, inverse, log_scale, along, place_of, dx, stride, rows,                               \
                      Shape{windows, places, n_heads, dim});                                                        \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
