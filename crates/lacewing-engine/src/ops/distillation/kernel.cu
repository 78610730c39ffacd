// A loss and its gradient blended with the distance from a teacher's softened distribution.
//
//   p = softmax(logits inverse),  q = softmax(teacher inverse)        inverse = 1 / T
//   loss = hard loss + soft_loss sum of q (log q - log p)             hard = 1 - alpha, soft_loss = alpha T^2
//   dlogits = hard dlogits + soft_gradient (p - q)                    soft_gradient = alpha T grad_scale
//
//   logits teacher dlogits [R, C] T   loss [R] f32
//
// One block a row, a thread every blockDim.x-th class; rows are read again from the caches.

template <class T>
__device__ __forceinline__ void distill(const T* logits, const T* teacher, T* dlogits, float* loss, u32 cols, float inverse,
                                        float hard, float soft_loss, float soft_gradient) {
    const u64 at = (u64)blockIdx.x * cols;
    const T *x = logits + at, *y = teacher + at;
    T* dx = dlogits + at;
    float top_x = -__int_as_float(0x7f800000), top_y = top_x;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) {
        top_x = fmaxf(top_x, to_f32(x[c]));
        top_y = fmaxf(top_y, to_f32(y[c]));
    }
    top_x = block_max(top_x);
    top_y = block_max(top_y);
    float sum_x = 0.0f, sum_y = 0.0f;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) {
        sum_x += expf((to_f32(x[c]) - top_x) * inverse);
        sum_y += expf((to_f32(y[c]) - top_y) * inverse);
    }
    const float lse_x = logf(block_sum(sum_x)), lse_y = logf(block_sum(sum_y));
    float divergence = 0.0f;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) {
        const float log_p = (to_f32(x[c]) - top_x) * inverse - lse_x, log_q = (to_f32(y[c]) - top_y) * inverse - lse_y;
        const float q = expf(log_q);
        // A class that the teacher rules out costs nothing.
        if (q > 0.0f) divergence = fmaf(q, log_q - log_p, divergence);
        dx[c] = from_f32<T>(hard * to_f32(dx[c]) + soft_gradient * (expf(log_p) - q));
    }
    divergence = block_sum(divergence);
    if (threadIdx.x == 0) loss[blockIdx.x] = hard * loss[blockIdx.x] + soft_loss * divergence;
}

// Launch: block 32 where C <= 256, else 256; grid R.
#define ENTRIES(T, SUFFIX)                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256)                                                                      \
        distillation_##SUFFIX(const T* logits, const T* teacher, T* dlogits, float* loss, u32 cols, float inverse,         \
                              float hard, float soft_loss, float soft_gradient) {                                          \
        distill(logits, teacher, dlogits, loss, cols, inverse, hard, soft_loss, soft_gradient);                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
