// Attention by its definition: any head dimension, f32 or bf16. The oracle of kernel.cu, and what runs where
// kernel.cu does not reach.
//
//   q, k, v   views: row t of head h of sample b starts at base + (b * tokens + t) * stride + h * dim
//   out       the same with its own stride      lse [batch, heads, tokens] f32
//   p_ij = exp(scale * q_i.k_j - lse_i)   out_i = sum_j p_ij v_j   ds_ij = p_ij (dout_i.v_j - delta_i), delta_i = dout_i.out_i
//
// Launch: grid (tokens, heads, batch), block 128, shared (tokens + dim + 32) * 4 bytes; the gradient kernels tokens * 8.

template <typename T>
__device__ T* row_of(T* base, unsigned stride, unsigned tokens, unsigned dim, unsigned b, unsigned t, unsigned h) {
    return base + (size_t(b) * tokens + t) * stride + size_t(h) * dim;
}

template <typename T> __device__ float dot(const T* a, const T* b, unsigned dim) {
    float sum = 0.f;
    for (unsigned d = 0; d < dim; d++) sum += to_f32(*(a + d)) * to_f32(*(b + d));
    return sum;
}

// Sum or maximum over the block's 128 threads; the same value in every thread.
template <bool MAX> __device__ float block_all(float value, float* scratch) {
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, value, step);
        value = MAX ? fmaxf(value, other) : value + other;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
    __syncthreads();
    value = scratch[0];
    for (int w = 1; w < 4; w++) value = MAX ? fmaxf(value, scratch[w]) : value + scratch[w];
    return value;
}

template <typename T>
__device__ void forward(const T* q, const T* k, const T* v, unsigned stride, T* out, unsigned out_stride, float* lse,
                        unsigned tokens, unsigned heads, unsigned dim, float scale) {
    extern __shared__ float shared[];
    float* p = shared;
    float* scratch = shared + tokens;
    unsigned i = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const T* qi = row_of(q, stride, tokens, dim, b, i, h);
    float largest = __int_as_float(0xff800000);
    for (unsigned j = threadIdx.x; j < tokens; j += 128) {
        p[j] = scale * dot(qi, row_of(k, stride, tokens, dim, b, j, h), dim);
        largest = fmaxf(largest, p[j]);
    }
    largest = block_all<true>(largest, scratch);
    float total = 0.f;
    for (unsigned j = threadIdx.x; j < tokens; j += 128) total += p[j] = expf(p[j] - largest);
    total = block_all<false>(total, scratch);
    for (unsigned d = threadIdx.x; d < dim; d += 128) {
        float sum = 0.f;
        for (unsigned j = 0; j < tokens; j++) sum += p[j] * to_f32(*(row_of(v, stride, tokens, dim, b, j, h) + d));
        *(row_of(out, out_stride, tokens, dim, b, i, h) + d) = from_f32<T>(sum / total);
    }
    if (threadIdx.x == 0) lse[(size_t(b) * heads + h) * tokens + i] = largest + logf(total);
}

// Rows of dq: block (i, h, b).
template <typename T>
__device__ void grad_q(const T* q, const T* k, const T* v, unsigned stride, const T* out, const T* dout,
                       unsigned out_stride, const float* lse, T* dq, unsigned grad_stride, unsigned tokens,
                       unsigned heads, unsigned dim, float scale) {
    extern __shared__ float shared[];
    unsigned i = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const T* qi = row_of(q, stride, tokens, dim, b, i, h);
    const T* di = row_of(dout, out_stride, tokens, dim, b, i, h);
    float delta = dot(di, row_of(out, out_stride, tokens, dim, b, i, h), dim);
    float norm = lse[(size_t(b) * heads + h) * tokens + i];
    for (unsigned j = threadIdx.x; j < tokens; j += 128) {
        float p = expf(scale * dot(qi, row_of(k, stride, tokens, dim, b, j, h), dim) - norm);
        shared[j] = p * (dot(di, row_of(v, stride, tokens, dim, b, j, h), dim) - delta);
    }
    __syncthreads();
    for (unsigned d = threadIdx.x; d < dim; d += 128) {
        float sum = 0.f;
        for (unsigned j = 0; j < tokens; j++) sum += shared[j] * to_f32(*(row_of(k, stride, tokens, dim, b, j, h) + d));
        *(row_of(dq, grad_stride, tokens, dim, b, i, h) + d) = from_f32<T>(scale * sum);
    }
}

// Rows of dk and dv: block (j, h, b).
template <typename T>
__device__ void grad_kv(const T* q, const T* k, const T* v, unsigned stride, const T* out, const T* dout,
                        unsigned out_stride, const float* lse, T* dk, T* dv, unsigned grad_stride, unsigned tokens,
                        unsigned heads, unsigned dim, float scale) {
    extern __shared__ float shared[];
    float *p = shared, *ds = shared + tokens;
    unsigned j = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    const T* kj = row_of(k, stride, tokens, dim, b, j, h);
    const T* vj = row_of(v, stride, tokens, dim, b, j, h);
    for (unsigned i = threadIdx.x; i < tokens; i += 128) {
        const T* di = row_of(dout, out_stride, tokens, dim, b, i, h);
        float delta = dot(di, row_of(out, out_stride, tokens, dim, b, i, h), dim);
        float norm = lse[(size_t(b) * heads + h) * tokens + i];
        p[i] = expf(scale * dot(row_of(q, stride, tokens, dim, b, i, h), kj, dim) - norm);
        ds[i] = p[i] * (dot(di, vj, dim) - delta);
    }
    __syncthreads();
    for (unsigned d = threadIdx.x; d < dim; d += 128) {
        float sum_k = 0.f, sum_v = 0.f;
        for (unsigned i = 0; i < tokens; i++) {
            sum_k += ds[i] * to_f32(*(row_of(q, stride, tokens, dim, b, i, h) + d));
            sum_v += p[i] * to_f32(*(row_of(dout, out_stride, tokens, dim, b, i, h) + d));
        }
        *(row_of(dk, grad_stride, tokens, dim, b, j, h) + d) = from_f32<T>(scale * sum_k);
        *(row_of(dv, grad_stride, tokens, dim, b, j, h) + d) = from_f32<T>(sum_v);
    }
}

#define INSTANTIATE(SUFFIX, T)                                                                                         \
    extern "C" __global__ void attention_naive_forward_##SUFFIX(const T* q, const T* k, const T* v, unsigned stride,   \
                                                                T* out, unsigned out_stride, float* lse,               \
                                                                unsigned tokens, unsigned heads, unsigned dim,         \
                                                                float scale) {                                         \
        forward<T>(q, k, v, stride, out, out_stride, lse, tokens, heads, dim, scale);                                  \
    }                                                                                                                  \
    extern "C" __global__ void attention_naive_grad_q_##SUFFIX(                                                        \
        const T* q, const T* k, const T* v, unsigned stride, const T* out, const T* dout, unsigned out_stride,         \
        const float* lse, T* dq, unsigned grad_stride, unsigned tokens, unsigned heads, unsigned dim, float scale) {   \
        grad_q<T>(q, k, v, stride, out, dout, out_stride, lse, dq, grad_stride, tokens, heads, dim, scale);            \
    }                                                                                                                  \
    extern "C" __global__ void attention_naive_grad_kv_##SUFFIX(                                                       \
        const T* q, const T* k, const T* v, unsigned stride, const T* out, const T* dout, unsigned out_stride,         \
        const float* lse, T* dk, T* dv, unsigned grad_stride, unsigned tokens, unsigned heads, unsigned dim,           \
        float scale) {                                                                                                 \
        grad_kv<T>(q, k, v, stride, out, dout, out_stride, lse, dk, dv, grad_stride, tokens, heads, dim, scale);       \
    }

INSTANTIATE(f32, float)
INSTANTIATE(bf16, bf16)
