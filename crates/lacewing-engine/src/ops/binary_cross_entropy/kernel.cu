// Binary cross-entropy with logits, with its gradient.
//
//   t = on for the label, off for the others; or a soft target, 1 above the threshold and 0 elsewhere where there is one
//   loss = mean of ln(1 + exp(-|x|)) + x ([x > 0] - t)        dlogits = (sigmoid(x) - t) * grad_scale / C
//
//   logits dlogits [R, C] T (may be the same)   labels [R] u32   targets [R, C] f32   loss [R] f32
//
// One block a row, each logit read once. A label that is no class gives a NaN loss: a device cannot answer with an error.

struct Label {
    u32 label;
    float on, off;
    __device__ float operator()(u32 col) const { return col == label ? on : off; }
};
struct Soft {
    const float* row;
    bool compared;
    float threshold;
    __device__ float operator()(u32 col) const {
        const float t = row[col];
        return compared ? (t > threshold ? 1.0f : 0.0f) : t;
    }
};

template <class T, class Target>
__device__ __forceinline__ void sigmoids(const T* x, Target target, T* dx, float* loss, u32 cols, float grad_scale) {
    const bool vec = cols % CHUNK == 0 && aligned(x, dx);
    const u32 chunks = chunks_of(cols);
    const float scale = grad_scale / (float)cols;
    float sum = 0.0f;
    for (u32 c = threadIdx.x; c < chunks; c += blockDim.x) {
        float v[CHUNK];
        if (vec) load8<true>(x, c * CHUNK, cols, v);
        else load8<false>(x, c * CHUNK, cols, v);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j)
            if (c * CHUNK + j < cols) {
                const float t = target(c * CHUNK + j);
                const float e = expf(-fabsf(v[j]));
                sum += fmaf(v[j], (v[j] > 0.0f ? 1.0f : 0.0f) - t, log1pf(e));
                v[j] = ((v[j] < 0.0f ? e : 1.0f) / (1.0f + e) - t) * scale;
            }
        if (vec) store8<true>(dx, c * CHUNK, cols, v);
        else store8<false>(dx, c * CHUNK, cols, v);
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) *loss = sum / (float)cols;
}

// Launch: block 32 where C <= 256, else 256; grid R.
template <class T>
__device__ __forceinline__ void with_labels(const T* logits, const u32* labels, T* dlogits, float* loss, u32 cols,
                                            float on, float off, float grad_scale) {
    const u64 at = (u64)blockIdx.x * cols;
    const u32 label = labels[blockIdx.x];
    float* out = loss + blockIdx.x;
    sigmoids(logits + at, Label{label, on, off}, dlogits + at, out, cols, grad_scale);
    if (label >= cols && threadIdx.x == 0) *out = __int_as_float(0x7fc00000);
}

// Launch: as `with_labels`.
template <class T>
__device__ __forceinline__ void with_targets(const T* logits, const float* targets, T* dlogits, float* loss, u32 cols,
                                             u32 compared, float threshold, float grad_scale) {
    const u64 at = (u64)blockIdx.x * cols;
    const Soft target = {targets + at, compared != 0, threshold};
    sigmoids(logits + at, target, dlogits + at, loss + blockIdx.x, cols, grad_scale);
}

#define ENTRIES(T, SUFFIX)                                                                                            \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        binary_cross_entropy_labels_##SUFFIX(const T* logits, const u32* labels, T* dlogits, float* loss, u32 cols,   \
                                             float on, float off, float grad_scale) {                                 \
        with_labels(logits, labels, dlogits, loss, cols, on, off, grad_scale);                                        \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                 \
        binary_cross_entropy_targets_##SUFFIX(const T* logits, const float* targets, T* dlogits, float* loss,         \
                                              u32 cols, u32 compared, float threshold, float grad_scale) {            \
        with_targets(logits, targets, dlogits, loss, cols, compared, threshold, grad_scale);                          \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
