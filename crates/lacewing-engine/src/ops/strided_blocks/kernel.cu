// Blocks of q x p, both at most 8, whose inputs lie `stride` apart. Block b = g stride + s reads x[r, g, i, s] and
// writes y[r, g, j, s].
//
// strided_blocks           y[j] = sum over i of w[b q p + j w_out + i w_in] x[i]; the strides of w transpose it
// strided_blocks_gradient  partial[part, b, j, i] = sum over the part's rows of dy[j] x[i]
// strided_blocks_finish    dw += the partial sums, in their order
//
//   x [R, n p] T   y, dy [R, n q] T   w [n, q, p] T   partial [P, n, q, p] f32   n blocks

constexpr u32 MAX_SIDE = 8;

// A thread a block, its weights in registers for all its rows where Q and P are known.
// Launch: block 256, grid (ceil(n / 256), any).
template <u32 Q, u32 P, class T>
__device__ __forceinline__ void apply_blocks(const T* x, const T* w, T* y, u32 rows, u32 n, u32 stride, u32 q, u32 p,
                                             u32 w_out, u32 w_in) {
    const u32 b = blockIdx.x * blockDim.x + threadIdx.x;
    if (b >= n) return;
    const u32 g = b / stride, s = b % stride;
    w += (u64)b * q * p;
    const u64 from = (u64)g * p * stride + s, to = (u64)g * q * stride + s;
    if constexpr (Q != 0) {
        float v[Q][P];
#pragma unroll
        for (u32 j = 0; j < Q; ++j)
#pragma unroll
            for (u32 i = 0; i < P; ++i) v[j][i] = to_f32(w[j * w_out + i * w_in]);
        for (u32 r = blockIdx.y; r < rows; r += gridDim.y) {
            float u[P];
#pragma unroll
            for (u32 i = 0; i < P; ++i) u[i] = to_f32(x[(u64)r * n * P + from + i * stride]);
#pragma unroll
            for (u32 j = 0; j < Q; ++j) {
                float sum = 0.0f;
#pragma unroll
                for (u32 i = 0; i < P; ++i) sum = fmaf(v[j][i], u[i], sum);
                y[(u64)r * n * Q + to + j * stride] = from_f32<T>(sum);
            }
        }
    } else {
        for (u32 r = blockIdx.y; r < rows; r += gridDim.y) {
            float u[MAX_SIDE];
#pragma unroll
            for (u32 i = 0; i < MAX_SIDE; ++i) u[i] = i < p ? to_f32(x[(u64)r * n * p + from + i * stride]) : 0.0f;
            for (u32 j = 0; j < q; ++j) {
                float sum = 0.0f;
#pragma unroll
                for (u32 i = 0; i < MAX_SIDE; ++i)
                    if (i < p) sum = fmaf(to_f32(w[j * w_out + i * w_in]), u[i], sum);
                y[(u64)r * n * q + to + j * stride] = from_f32<T>(sum);
            }
        }
    }
}

// Threads in y share the 32 blocks' values and take the q p entries in turn.
// Launch: block (32, 8), grid (ceil(n / 32), P).
template <class T>
__device__ __forceinline__ void gradient(const T* dy, const T* x, float* partial, u32 rows, u32 n, u32 stride, u32 q,
                                         u32 p) {
    const u32 b = blockIdx.x * WARP + threadIdx.x;
    if (b >= n) return;
    const u32 g = b / stride, s = b % stride;
    const u32 first = (u32)((u64)rows * blockIdx.y / gridDim.y), last = (u32)((u64)rows * (blockIdx.y + 1) / gridDim.y);
    for (u32 at = threadIdx.y; at < q * p; at += blockDim.y) {
        const T* left = dy + ((u64)g * q + at / p) * stride + s;
        const T* right = x + ((u64)g * p + at % p) * stride + s;
        float sum = 0.0f;
#pragma unroll 4
        for (u32 r = first; r < last; ++r)
            sum = fmaf(to_f32(left[(u64)r * n * q]), to_f32(right[(u64)r * n * p]), sum);
        partial[((u64)blockIdx.y * n + b) * q * p + at] = sum;
    }
}

#define ENTRIES(T, SUFFIX)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) strided_blocks_##SUFFIX(                                      \
        const T* x, const T* w, T* y, u32 rows, u32 n, u32 stride, u32 q, u32 p, u32 w_out, u32 w_in) {             \
        if (q == 1 && p == 1) apply_blocks<1, 1>(x, w, y, rows, n, stride, q, p, w_out, w_in);                      \
        else if (q == 2 && p == 2) apply_blocks<2, 2>(x, w, y, rows, n, stride, q, p, w_out, w_in);                 \
        else if (q == 4 && p == 4) apply_blocks<4, 4>(x, w, y, rows, n, stride, q, p, w_out, w_in);                 \
        else apply_blocks<0, 0>(x, w, y, rows, n, stride, q, p, w_out, w_in);                                       \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) strided_blocks_gradient_##SUFFIX(                             \
        const T* dy, const T* x, float* partial, u32 rows, u32 n, u32 stride, u32 q, u32 p) {                       \
        gradient(dy, x, partial, rows, n, stride, q, p);                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)

extern "C" __global__ void strided_blocks_finish(const float* partial, float* dw, u32 parts, u32 len) {
    finish_columns(partial, parts, len, len, dw);
}
