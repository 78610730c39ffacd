// Activation functions, the bias before them, and the gradients of both.
//
//   kind 0 identity   1 relu   2 gelu, exact: x Phi(x)   3 gelu, tanh: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
//
// bias_act            pre += bias (null: as it is); y = f(pre) of pre as stored (null y: the bias alone)
// act_backward        dpre = dy * f'(pre)
// act_backward_bias   the same, and dbias += column sums of dpre
// bias_grad           dbias += column sums of d
//
//   pre y dy dpre d [R, C] T    bias [C] T    dbias [C] f32    partial [P, C] f32
//
// A thread owns one chunk of columns and walks down the rows, four at a time: the bias stays in registers and so does
// the column sum. Column sums end in two stages, partial and `activation_finish`. dpre may be dy or pre, y may be pre.

enum Kind : u32 { IDENTITY, RELU, GELU, GELU_TANH };

constexpr u32 GROUPS = 8;  // rows a block works on at once
constexpr u32 DEEP = 4;    // rows a thread has in flight

template <u32 KIND>
__device__ __forceinline__ float act(float x) {
    if constexpr (KIND == RELU) {
        return x < 0.0f ? 0.0f : x;  // NaN stays
    } else if constexpr (KIND == GELU) {
        return 0.5f * x * (1.0f + erff(x * 0.70710678f));
    } else if constexpr (KIND == GELU_TANH) {
        return 0.5f * x * (1.0f + tanhf(0.79788456f * fmaf(0.044715f * x, x * x, x)));
    } else {
        return x;
    }
}

template <u32 KIND>
__device__ __forceinline__ float act_grad(float x) {
    if constexpr (KIND == RELU) {
        return x > 0.0f ? 1.0f : 0.0f;
    } else if constexpr (KIND == GELU) {
        const float density = 0.39894228f * __expf(-0.5f * x * x);
        return fmaf(x, density, 0.5f * (1.0f + erff(x * 0.70710678f)));
    } else if constexpr (KIND == GELU_TANH) {
        const float t = tanhf(0.79788456f * fmaf(0.044715f * x, x * x, x));
        const float slope = 0.79788456f * fmaf(3.0f * 0.044715f * x, x, 1.0f);
        return fmaf(0.5f * x * (1.0f - t * t), slope, 0.5f * (1.0f + t));
    } else {
        return 1.0f;
    }
}

// ---- forward -----------------------------------------------------------------------------------------------------

// Launch: block (32, 8), grid (ceil(C / 256), ceil(R / 32) or less).
template <bool VEC, u32 KIND, class T>
__device__ __forceinline__ void bias_act(T* pre, const T* bias, T* y, u32 rows, u32 cols) {
    const u32 first = (blockIdx.x * WARP + threadIdx.x) * CHUNK;
    if (first >= cols) return;
    float b[CHUNK] = {};
    if (bias) load8<VEC>(bias, first, cols, b);
    constexpr u32 D = VEC ? DEEP : 1;
    for (u32 top = blockIdx.y * GROUPS * D; top < rows; top += gridDim.y * GROUPS * D) {
        Held<VEC, T> held[D];
#pragma unroll
        for (u32 u = 0; u < D; ++u) {
            const u32 row = top + u * GROUPS + threadIdx.y;
            if (row < rows) held[u].load(pre + (u64)row * cols, first, cols);
        }
#pragma unroll
        for (u32 u = 0; u < D; ++u) {
            const u32 row = top + u * GROUPS + threadIdx.y;
            if (row >= rows) break;
            float v[CHUNK];
            held[u].get(v);
            if (bias) {
#pragma unroll
                for (u32 j = 0; j < CHUNK; ++j) v[j] = stored<T>(v[j] + b[j]);
                store8<VEC>(pre + (u64)row * cols, first, cols, v);
            }
            if (y) {
#pragma unroll
                for (u32 j = 0; j < CHUNK; ++j) v[j] = act<KIND>(v[j]);
                store8<VEC>(y + (u64)row * cols, first, cols, v);
            }
        }
    }
}

template <u32 KIND, class T>
__device__ __forceinline__ void bias_act(T* pre, const T* bias, T* y, u32 rows, u32 cols) {
    if (cols % CHUNK == 0 && aligned(pre, bias, y)) bias_act<true, KIND>(pre, bias, y, rows, cols);
    else bias_act<false, KIND>(pre, bias, y, rows, cols);
}

// ---- backward ----------------------------------------------------------------------------------------------------

// Column sums of dy * f'(pre), which goes to dpre, or of dy alone (SUM_ONLY).
// Launch: block (32, 8), grid (ceil(C / 256), P).
template <bool VEC, bool SUM_ONLY, u32 KIND, class T>
__device__ __forceinline__ void column_pass(const T* dy, const T* pre, T* dpre, float* partial, u32 rows, u32 cols) {
    __shared__ float sums[GROUPS][WARP * CHUNK];
    const u32 first = (blockIdx.x * WARP + threadIdx.x) * CHUNK;
    float sum[CHUNK] = {};
    constexpr u32 D = VEC ? DEEP : 1;
    if (first < cols)
        for (u32 top = blockIdx.y * GROUPS * D; top < rows; top += gridDim.y * GROUPS * D) {
            Held<VEC, T> held_dy[D], held_pre[D];
#pragma unroll
            for (u32 u = 0; u < D; ++u) {
                const u32 row = top + u * GROUPS + threadIdx.y;
                if (row < rows) {
                    held_dy[u].load(dy + (u64)row * cols, first, cols);
                    if constexpr (!SUM_ONLY) held_pre[u].load(pre + (u64)row * cols, first, cols);
                }
            }
#pragma unroll
            for (u32 u = 0; u < D; ++u) {
                const u32 row = top + u * GROUPS + threadIdx.y;
                if (row >= rows) break;
                float d[CHUNK];
                held_dy[u].get(d);
                if constexpr (!SUM_ONLY) {
                    float x[CHUNK];
                    held_pre[u].get(x);
#pragma unroll
                    for (u32 j = 0; j < CHUNK; ++j) d[j] *= act_grad<KIND>(x[j]);
                    store8<VEC>(dpre + (u64)row * cols, first, cols, d);
                }
#pragma unroll
                for (u32 j = 0; j < CHUNK; ++j) sum[j] += d[j];
            }
        }
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) sums[threadIdx.y][threadIdx.x * CHUNK + j] = sum[j];
    __syncthreads();
    const u32 c = threadIdx.y * WARP + threadIdx.x;  // 256 threads, 256 columns
    const u32 col = blockIdx.x * WARP * CHUNK + c;
    if (col >= cols) return;
    float total = 0.0f;
#pragma unroll
    for (u32 g = 0; g < GROUPS; ++g) total += sums[g][c];
    partial[(u64)blockIdx.y * cols + col] = total;
}

template <bool SUM_ONLY, u32 KIND, class T>
__device__ __forceinline__ void column_pass(const T* dy, const T* pre, T* dpre, float* partial, u32 rows, u32 cols) {
    if (cols % CHUNK == 0 && aligned(dy, pre, dpre))
        column_pass<true, SUM_ONLY, KIND>(dy, pre, dpre, partial, rows, cols);
    else column_pass<false, SUM_ONLY, KIND>(dy, pre, dpre, partial, rows, cols);
}

// ---- entry points: the kind is part of the name --------------------------------------------------------------------

#define KIND_ENTRIES(NAME, KIND, T, SUFFIX)                                                                         \
    extern "C" __global__ void __launch_bounds__(256, sizeof(T) == 2 ? 4 : 2)                                       \
        bias_act_##NAME##_##SUFFIX(T* pre, const T* bias, T* y, u32 rows, u32 cols) {                               \
        bias_act<KIND>(pre, bias, y, rows, cols);                                                                   \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        act_backward_##NAME##_##SUFFIX(const T* dy, const T* pre, T* dpre, u64 n) {                                 \
        map(n, dpre, [](float d, float x) { return d * act_grad<KIND>(x); }, dy, pre);                              \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256, sizeof(T) == 2 ? 3 : 2) act_backward_bias_##NAME##_##SUFFIX(  \
        const T* dy, const T* pre, T* dpre, float* partial, u32 rows, u32 cols) {                                   \
        column_pass<false, KIND>(dy, pre, dpre, partial, rows, cols);                                               \
    }
#define ENTRIES(T, SUFFIX)                                                                                          \
    KIND_ENTRIES(identity, IDENTITY, T, SUFFIX)                                                                     \
    KIND_ENTRIES(relu, RELU, T, SUFFIX)                                                                             \
    KIND_ENTRIES(gelu, GELU, T, SUFFIX)                                                                             \
    KIND_ENTRIES(gelu_tanh, GELU_TANH, T, SUFFIX)                                                                   \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        bias_grad_##SUFFIX(const T* d, float* partial, u32 rows, u32 cols) {                                        \
        column_pass<true, IDENTITY>(d, (const T*)nullptr, (T*)nullptr, partial, rows, cols);                        \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)

// Launch: block (32, 16), grid ceil(C / 32).
extern "C" __global__ void activation_finish(const float* partial, float* dbias, u32 parts, u32 cols) {
    finish_columns(partial, parts, cols, cols, dbias);
}
