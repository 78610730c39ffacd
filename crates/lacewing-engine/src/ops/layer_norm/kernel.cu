// Layer normalization over the last dimension, with the residual sum before it fused in.
//
// forward    s = x + scale[row / rows_per_scale] * r    (s = x without r; scale 1 without scale)
//            mean, rstd over the columns of s as stored; y = (s - mean) * rstd * gamma + beta
// backward   g = dy * gamma, h = (s - mean) * rstd
//            dx = rstd * (g - avg(g) - h * avg(g * h)) + dsum    (dsum 0 where null)
//            dgamma += sum over rows of dy * h, dbeta += sum over rows of dy
//
// One warp a row, the row in registers: K chunks a lane, so C % 8 == 0 and C <= 256 K (`_kK` entries). In backward the
// warps are persistent and keep the parameters' gradients in registers, so that one pass over memory gives both; the
// blocks' sums go to partial [P, 2, C] and `finish` adds them up in order. Any other C takes the `_any` entries, which
// read the row again (from L1) instead of keeping it, and a separate pass over columns.
//
//   x r sum y dy dsum dx [R, C] T    gamma beta dgamma dbeta [C] f32    mean rstd [R] f32    scale [R / rows_per_scale] f32
// Null where absent: r and sum, scale, mean, rstd, dsum, dgamma, dbeta. dx may be dsum or dy.

constexpr u32 FORWARD_WARPS = 4;
constexpr u32 BACKWARD_WARPS = 8;

// ---- forward -----------------------------------------------------------------------------------------------------

// Launch: block 128, grid ceil(R / 4).
template <class T, u32 K>
__device__ __forceinline__ void forward(const T* x, const T* r, const float* scale, const float* gamma,
                                        const float* beta, T* sum, T* y, float* mean, float* rstd, u32 rows, u32 cols,
                                        u32 rows_per_scale, float eps) {
    const u32 lane = threadIdx.x % WARP;
    const u32 row = blockIdx.x * FORWARD_WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    const u64 at = (u64)row * cols;

    Raw<T> raw[K], raw_r[K];
#pragma unroll
    for (u32 k = 0; k < K; ++k) {
        const u32 first = (k * WARP + lane) * CHUNK;
        if (first < cols) {
            raw[k] = load_raw(x + at + first);
            if (r) raw_r[k] = load_raw(r + at + first);
        }
    }
    const float s = r && scale ? scale[row / rows_per_scale] : 1.0f;

    float v[K][CHUNK];
    float total = 0.0f;
#pragma unroll
    for (u32 k = 0; k < K; ++k) {
        const u32 first = (k * WARP + lane) * CHUNK;
        if (first < cols) {
            unpack(raw[k], v[k]);
            if (r) {
                float add[CHUNK];
                unpack(raw_r[k], add);
#pragma unroll
                for (u32 j = 0; j < CHUNK; ++j) v[k][j] = stored<T>(fmaf(s, add[j], v[k][j]));
                store_raw(sum + at + first, v[k]);
            }
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) total += v[k][j];
        }
    }
    const float m = warp_sum(total) / (float)cols;

    float squares = 0.0f;
#pragma unroll
    for (u32 k = 0; k < K; ++k)
        if ((k * WARP + lane) * CHUNK < cols)
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) {
                const float d = v[k][j] - m;
                squares = fmaf(d, d, squares);
            }
    const float rs = 1.0f / sqrtf(warp_sum(squares) / (float)cols + eps);

#pragma unroll
    for (u32 k = 0; k < K; ++k) {
        const u32 first = (k * WARP + lane) * CHUNK;
        if (first < cols) {
            float g[CHUNK], b[CHUNK];
            load8<true>(gamma, first, cols, g);
            load8<true>(beta, first, cols, b);
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) v[k][j] = fmaf((v[k][j] - m) * rs, g[j], b[j]);
            store_raw(y + at + first, v[k]);
        }
    }
    if (lane == 0) {
        if (mean) mean[row] = m;
        if (rstd) rstd[row] = rs;
    }
}

// Launch: block 128, grid ceil(R / 4).
template <class T>
__device__ __forceinline__ void forward_any(const T* x, const T* r, const float* scale, const float* gamma,
                                            const float* beta, T* sum, T* y, float* mean, float* rstd, u32 rows,
                                            u32 cols, u32 rows_per_scale, float eps) {
    const u32 lane = threadIdx.x % WARP;
    const u32 row = blockIdx.x * FORWARD_WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    const u64 at = (u64)row * cols;
    const float s = r && scale ? scale[row / rows_per_scale] : 1.0f;

    float total = 0.0f;
    for (u32 c = lane; c < cols; c += WARP) {
        float v = to_f32(x[at + c]);
        if (r) {
            v = stored<T>(fmaf(s, to_f32(r[at + c]), v));
            sum[at + c] = from_f32<T>(v);
        }
        total += v;
    }
    const float m = warp_sum(total) / (float)cols;
    const T* in = r ? sum : x;  // each lane reads back what it wrote itself

    float squares = 0.0f;
    for (u32 c = lane; c < cols; c += WARP) {
        const float d = to_f32(in[at + c]) - m;
        squares = fmaf(d, d, squares);
    }
    const float rs = 1.0f / sqrtf(warp_sum(squares) / (float)cols + eps);
    for (u32 c = lane; c < cols; c += WARP)
        y[at + c] = from_f32<T>(fmaf((to_f32(in[at + c]) - m) * rs, gamma[c], beta[c]));
    if (lane == 0) {
        if (mean) mean[row] = m;
        if (rstd) rstd[row] = rs;
    }
}

// ---- backward ----------------------------------------------------------------------------------------------------

// Launch: block 256, grid P.
template <class T, u32 K>
__device__ __forceinline__ void backward(const T* dy, const T* x, const float* gamma, const float* mean,
                                         const float* rstd, const T* dsum, T* dx, float* partial, u32 rows, u32 cols) {
    alignas(16) __shared__ float shared_gamma[K * WARP * CHUNK];
    __shared__ float sums[2][K * WARP * CHUNK];
    for (u32 c = threadIdx.x; c < K * WARP * CHUNK; c += blockDim.x) {
        shared_gamma[c] = c < cols ? gamma[c] : 0.0f;
        sums[0][c] = 0.0f;
        sums[1][c] = 0.0f;
    }
    __syncthreads();

    const u32 lane = threadIdx.x % WARP;
    const u32 warp = threadIdx.x / WARP;
    const float per_col = 1.0f / (float)cols;
    float dgamma[K][CHUNK] = {}, dbeta[K][CHUNK] = {};

    for (u32 row = blockIdx.x * BACKWARD_WARPS + warp; row < rows; row += gridDim.x * BACKWARD_WARPS) {
        const u64 at = (u64)row * cols;
        Raw<T> raw_dy[K], raw_x[K], raw_dsum[K];
#pragma unroll
        for (u32 k = 0; k < K; ++k) {
            const u32 first = (k * WARP + lane) * CHUNK;
            if (first < cols) {
                raw_dy[k] = load_raw(dy + at + first);
                raw_x[k] = load_raw(x + at + first);
                if (dsum) raw_dsum[k] = load_raw(dsum + at + first);
            }
        }
        const float m = mean[row], rs = rstd[row];

        float avg_g = 0.0f, avg_gh = 0.0f;
#pragma unroll
        for (u32 k = 0; k < K; ++k) {
            const u32 first = (k * WARP + lane) * CHUNK;
            if (first < cols) {
                float d[CHUNK], v[CHUNK], w[CHUNK];
                unpack(raw_dy[k], d);
                unpack(raw_x[k], v);
                load8<true>(shared_gamma, first, cols, w);
#pragma unroll
                for (u32 j = 0; j < CHUNK; ++j) {
                    const float h = (v[j] - m) * rs;
                    const float g = d[j] * w[j];
                    avg_g += g;
                    avg_gh = fmaf(g, h, avg_gh);
                    dgamma[k][j] = fmaf(d[j], h, dgamma[k][j]);
                    dbeta[k][j] += d[j];
                }
            }
        }
        avg_g = warp_sum(avg_g) * per_col;
        avg_gh = warp_sum(avg_gh) * per_col;

#pragma unroll
        for (u32 k = 0; k < K; ++k) {
            const u32 first = (k * WARP + lane) * CHUNK;
            if (first < cols) {
                float d[CHUNK], v[CHUNK], w[CHUNK], add[CHUNK] = {};
                unpack(raw_dy[k], d);
                unpack(raw_x[k], v);
                if (dsum) unpack(raw_dsum[k], add);
                load8<true>(shared_gamma, first, cols, w);
#pragma unroll
                for (u32 j = 0; j < CHUNK; ++j) {
                    const float h = (v[j] - m) * rs;
                    v[j] = fmaf(rs, fmaf(d[j], w[j], -avg_g) - h * avg_gh, add[j]);
                }
                store_raw(dx + at + first, v);
            }
        }
    }

    // The warps add in turn: the order of a column's sum does not depend on who is first.
    for (u32 turn = 0; turn < BACKWARD_WARPS; ++turn) {
        if (turn == warp)
#pragma unroll
            for (u32 k = 0; k < K; ++k)
#pragma unroll
                for (u32 j = 0; j < CHUNK; ++j) {
                    const u32 c = (k * WARP + lane) * CHUNK + j;
                    sums[0][c] += dgamma[k][j];
                    sums[1][c] += dbeta[k][j];
                }
        __syncthreads();
    }
    float* mine = partial + (u64)blockIdx.x * 2 * cols;
    for (u32 c = threadIdx.x; c < cols; c += blockDim.x) {
        mine[c] = sums[0][c];
        mine[cols + c] = sums[1][c];
    }
}

// dx alone. Launch: block 128, grid ceil(R / 4).
template <class T>
__device__ __forceinline__ void backward_any(const T* dy, const T* x, const float* gamma, const float* mean,
                                             const float* rstd, const T* dsum, T* dx, u32 rows, u32 cols) {
    const u32 lane = threadIdx.x % WARP;
    const u32 row = blockIdx.x * FORWARD_WARPS + threadIdx.x / WARP;
    if (row >= rows) return;
    const u64 at = (u64)row * cols;
    const float m = mean[row], rs = rstd[row];
    float avg_g = 0.0f, avg_gh = 0.0f;
    for (u32 c = lane; c < cols; c += WARP) {
        const float g = to_f32(dy[at + c]) * gamma[c];
        avg_g += g;
        avg_gh = fmaf(g, (to_f32(x[at + c]) - m) * rs, avg_gh);
    }
    avg_g = warp_sum(avg_g) / (float)cols;
    avg_gh = warp_sum(avg_gh) / (float)cols;
    for (u32 c = lane; c < cols; c += WARP) {
        const float h = (to_f32(x[at + c]) - m) * rs;
        const float g = to_f32(dy[at + c]) * gamma[c];
        const float add = dsum ? to_f32(dsum[at + c]) : 0.0f;
        dx[at + c] = from_f32<T>(fmaf(rs, g - avg_g - h * avg_gh, add));
    }
}

// The parameters' partial sums alone, before `backward_any` may overwrite dy.
// Launch: block (32, 8), grid (ceil(C / 32), P).
template <class T>
__device__ __forceinline__ void backward_params_any(const T* dy, const T* x, const float* mean, const float* rstd,
                                                    float* partial, u32 rows, u32 cols) {
    constexpr u32 GROUPS = 8;
    __shared__ float sums[2][GROUPS][WARP];
    const u32 col = blockIdx.x * WARP + threadIdx.x;
    float dgamma = 0.0f, dbeta = 0.0f;
    if (col < cols)
#pragma unroll 4
        for (u32 row = blockIdx.y * GROUPS + threadIdx.y; row < rows; row += gridDim.y * GROUPS) {
            const u64 at = (u64)row * cols + col;
            const float d = to_f32(dy[at]);
            dgamma = fmaf(d, (to_f32(x[at]) - mean[row]) * rstd[row], dgamma);
            dbeta += d;
        }
    sums[0][threadIdx.y][threadIdx.x] = dgamma;
    sums[1][threadIdx.y][threadIdx.x] = dbeta;
    __syncthreads();
    if (threadIdx.y < 2 && col < cols) {
        float total = 0.0f;
#pragma unroll
        for (u32 g = 0; g < GROUPS; ++g) total += sums[threadIdx.y][g][threadIdx.x];
        partial[((u64)blockIdx.y * 2 + threadIdx.y) * cols + col] = total;
    }
}

// ---- entry points ------------------------------------------------------------------------------------------------

#define FORWARD(NAME, T, BODY)                                                                                      \
    extern "C" __global__ void __launch_bounds__(128)                                                               \
        NAME(const T* x, const T* r, const float* scale, const float* gamma, const float* beta, T* sum, T* y,      \
             float* mean, float* rstd, u32 rows, u32 cols, u32 rows_per_scale, float eps) {                         \
        BODY(x, r, scale, gamma, beta, sum, y, mean, rstd, rows, cols, rows_per_scale, eps);                        \
    }
#define BACKWARD(NAME, T, K)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256, K < 4 && K * sizeof(T) <= 8 ? 2 : 1)                          \
        NAME(const T* dy, const T* x, const float* gamma, const float* mean, const float* rstd, const T* dsum,      \
             T* dx, float* partial, u32 rows, u32 cols) {                                                           \
        backward<T, K>(dy, x, gamma, mean, rstd, dsum, dx, partial, rows, cols);                                    \
    }
#define ENTRIES(T, SUFFIX)                                                                                          \
    FORWARD(layer_norm_forward_k1_##SUFFIX, T, (forward<T, 1>))                                                     \
    FORWARD(layer_norm_forward_k2_##SUFFIX, T, (forward<T, 2>))                                                     \
    FORWARD(layer_norm_forward_k3_##SUFFIX, T, (forward<T, 3>))                                                     \
    FORWARD(layer_norm_forward_k4_##SUFFIX, T, (forward<T, 4>))                                                     \
    FORWARD(layer_norm_forward_any_##SUFFIX, T, (forward_any<T>))                                                   \
    BACKWARD(layer_norm_backward_k1_##SUFFIX, T, 1)                                                                 \
    BACKWARD(layer_norm_backward_k2_##SUFFIX, T, 2)                                                                 \
    BACKWARD(layer_norm_backward_k3_##SUFFIX, T, 3)                                                                 \
    BACKWARD(layer_norm_backward_k4_##SUFFIX, T, 4)                                                                 \
    extern "C" __global__ void layer_norm_backward_any_##SUFFIX(                                                    \
        const T* dy, const T* x, const float* gamma, const float* mean, const float* rstd, const T* dsum, T* dx,    \
        u32 rows, u32 cols) {                                                                                       \
        backward_any<T>(dy, x, gamma, mean, rstd, dsum, dx, rows, cols);                                            \
    }                                                                                                               \
    extern "C" __global__ void layer_norm_backward_params_any_##SUFFIX(                                             \
        const T* dy, const T* x, const float* mean, const float* rstd, float* partial, u32 rows, u32 cols) {        \
        backward_params_any<T>(dy, x, mean, rstd, partial, rows, cols);                                             \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)

// Launch: block (32, 16), grid (ceil(C / 32), 2).
extern "C" __global__ void layer_norm_finish(const float* partial, float* dgamma, float* dbeta, u32 parts, u32 cols) {
    float* out = blockIdx.y == 0 ? dgamma : dbeta;
    if (out) finish_columns(partial + (u64)blockIdx.y * cols, parts, 2ull * cols, cols, out);
}
