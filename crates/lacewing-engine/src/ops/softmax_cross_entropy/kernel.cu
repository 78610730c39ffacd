// Softmax cross-entropy with its gradient, and the rank of the label.
//
//   z = logits - max,  lse = log(sum exp(z)),  t = soft target, or (1 - e) onehot(label) + e / C
//   loss = sum of t * (lse - z)        dlogits = (exp(z - lse) - t) * grad_scale
//   rank = how many classes beat the label: a greater logit, an equal one of lower index, or NaN
//
//   logits dlogits [R, C] T (may be the same)   labels [R] u32   targets [R, C] f32   loss [R] f32   rank [R] u32
//
// One block a row. Up to 8 columns a thread the row stays in registers; a longer one is read again from L1 or L2.
// A label that is no class gives a NaN loss and rank C: a device cannot answer with an error. Null dlogits: no gradient.

struct Label {
    u32 label;
    float hit, miss;
    __device__ float operator()(u64 col) const { return col == label ? hit + miss : miss; }
};
struct Soft {
    const float* row;
    __device__ float operator()(u64 col) const { return row[col]; }
};

template <class T, class Target>
__device__ __forceinline__ void softmax(const T* x, Target target, T* dx, float* loss, u32 cols, float grad_scale) {
    const bool vec = cols % CHUNK == 0 && aligned(x, dx);
    const u32 chunks = chunks_of(cols);
    const bool kept = chunks <= blockDim.x;
    const u32 mine = threadIdx.x * CHUNK;

    float v[CHUNK];
    const auto load = [&](u32 first) {
        if (vec) load8<true>(x, first, cols, v);
        else load8<false>(x, first, cols, v);
    };
    if (kept && mine < cols) load(mine);

    float top = -__int_as_float(0x7f800000);
    for (u32 c = threadIdx.x; c < chunks; c += blockDim.x) {
        if (!kept) load(c * CHUNK);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j)
            if (c * CHUNK + j < cols) top = fmaxf(top, v[j]);
    }
    top = block_max(top);

    float sum = 0.0f, weight = 0.0f, dot = 0.0f;  // of exp(z), of t, of t z
    for (u32 c = threadIdx.x; c < chunks; c += blockDim.x) {
        if (!kept) load(c * CHUNK);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j)
            if (c * CHUNK + j < cols) {
                const float t = target(c * CHUNK + j);
                const float z = v[j] - top;
                sum += expf(z);
                weight += t;
                // A class masked out by -inf and not asked for costs nothing.
                if (t != 0.0f) dot = fmaf(t, z, dot);
            }
    }
    sum = block_sum(sum);
    weight = block_sum(weight);
    dot = block_sum(dot);
    if (threadIdx.x == 0) *loss = fmaf(weight, logf(sum), -dot);
    if (!dx) return;

    const float scale = 1.0f / sum;
    for (u32 c = threadIdx.x; c < chunks; c += blockDim.x) {
        if (!kept) load(c * CHUNK);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j)
            if (c * CHUNK + j < cols) v[j] = (expf(v[j] - top) * scale - target(c * CHUNK + j)) * grad_scale;
        if (vec) store8<true>(dx, c * CHUNK, cols, v);
        else store8<false>(dx, c * CHUNK, cols, v);
    }
}

// Launch: block 32 where C <= 256, else 256; grid R.
template <class T>
__device__ __forceinline__ void with_labels(const T* logits, const u32* labels, T* dlogits, float* loss, u32 cols,
                                            float smoothing, float grad_scale) {
    const u64 at = (u64)blockIdx.x * cols;
    const u32 label = labels[blockIdx.x];
    float* out = loss + blockIdx.x;
    const Label target = {label, 1.0f - smoothing, smoothing / (float)cols};
    softmax(logits + at, target, dlogits ? dlogits + at : nullptr, out, cols, grad_scale);
    if (label >= cols && threadIdx.x == 0) *out = __int_as_float(0x7fc00000);
}

// Launch: as `with_labels`.
template <class T>
__device__ __forceinline__ void with_targets(const T* logits, const float* targets, T* dlogits, float* loss, u32 cols,
                                             float grad_scale) {
    const u64 at = (u64)blockIdx.x * cols;
    softmax(logits + at, Soft{targets + at}, dlogits ? dlogits + at : nullptr, loss + blockIdx.x, cols, grad_scale);
}

// Launch: block 128, a warp a row, grid ceil(R / 4).
template <class T>
__device__ __forceinline__ void ranks(const T* logits, const u32* labels, u32* rank, u32 rows, u32 cols) {
    const u32 row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) return;
    const u32 lane = threadIdx.x % WARP;
    const T* x = logits + (u64)row * cols;
    const u32 label = labels[row];
    if (label >= cols) {
        if (lane == 0) rank[row] = cols;
        return;
    }
    const float mine = to_f32(x[label]);
    u32 ahead = 0;
#pragma unroll 4
    for (u32 c = lane; c < cols; c += WARP) {
        const float other = to_f32(x[c]);
        const bool behind = other < mine || (other == mine && c >= label);
        ahead += c != label && !behind;
    }
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) ahead += __shfl_xor_sync(ALL_LANES, ahead, d);
    if (lane == 0) rank[row] = ahead;
}

#define ENTRIES(T, SUFFIX)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) softmax_cross_entropy_labels_##SUFFIX(                        \
        const T* logits, const u32* labels, T* dlogits, float* loss, u32 cols, float smoothing, float grad_scale) { \
        with_labels(logits, labels, dlogits, loss, cols, smoothing, grad_scale);                                    \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) softmax_cross_entropy_targets_##SUFFIX(                       \
        const T* logits, const float* targets, T* dlogits, float* loss, u32 cols, float grad_scale) {               \
        with_targets(logits, targets, dlogits, loss, cols, grad_scale);                                             \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                               \
        ranks_##SUFFIX(const T* logits, const u32* labels, u32* rank, u32 rows, u32 cols) {                         \
        ranks(logits, labels, rank, rows, cols);                                                                    \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
