// Batch norm over the rows of x, column by column.
//
// statistics  mean, var (biased) of each column
// normalize   y = (x - mean) * rstd * gamma + beta, rstd = 1 / sqrt(var + eps)
// backward    h = (x - mean) * rstd, averages over the rows
//             dgamma += sum of dy * h, dbeta += sum of dy, dx = gamma * rstd * (dy - avg(dy) - h * avg(dy * h))
// update      r += momentum * (factor * batch - r)
//
// Every pass over rows has one launch: a block owns `per` rows and blockDim.x chunks of columns, its threadIdx.y takes
// every blockDim.y-th of the rows and keeps what belongs to its columns in registers. Sums over the rows of a block go to
// partial [P, 2, C], P = gridDim.y = ceil(R / per), which the `finish` kernels add up in f64, in order.
// Launch: block (L, 256 / L), L a power of two up to 32, grid (ceil(C / (8 L)), P).
//
//   x y dy dx [R, C] T    mean var gamma beta dgamma dbeta [C] f32    sums [2, C] f32: of dy * h, of dy

constexpr u32 THREADS = 256;

// Where a thread works.
struct Share {
    u32 col;              // first of its chunk
    u64 first, end, step; // rows
    u32 rows;             // of the block
};

__device__ __forceinline__ Share share_of(u32 rows, u32 per) {
    const u64 start = (u64)blockIdx.y * per;
    const u64 end = start + per < rows ? start + per : rows;
    return {(blockIdx.x * blockDim.x + threadIdx.x) * CHUNK, start + threadIdx.y, end, blockDim.y, (u32)(end - start)};
}

// Rows of the block that thread `y` takes.
__device__ __forceinline__ u32 rows_of(u32 y, u32 rows) { return y < rows ? (rows - y - 1) / blockDim.y + 1 : 0; }

// Columns of the block: the floats a threadIdx.y has in each shared array.
__device__ __forceinline__ u32 width() { return blockDim.x * CHUNK; }

template <bool VEC>
__device__ __forceinline__ void load_rstd(const float* var, u32 col, u32 cols, float eps, float (&rstd)[CHUNK]) {
    load8<VEC>(var, col, cols, rstd);
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) rstd[j] = 1.0f / sqrtf(rstd[j] + eps);
}

// ---- statistics ----------------------------------------------------------------------------------------------------

template <bool VEC, class T>
__device__ __forceinline__ void statistics(const T* x, float* partial, u32 rows, u32 cols, u32 per) {
    __shared__ float means[THREADS * CHUNK], squares[THREADS * CHUNK];
    const Share s = share_of(rows, per);
    float mean[CHUNK] = {}, square[CHUNK] = {};
    if (s.col < cols) {
        float n = 0.0f;
#pragma unroll 4
        for (u64 row = s.first; row < s.end; row += s.step) {
            float v[CHUNK];
            load8<VEC>(x + row * cols, s.col, cols, v);
            n += 1.0f;
            const float part = 1.0f / n;
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) {
                const float off = v[j] - mean[j];
                mean[j] = fmaf(off, part, mean[j]);
                square[j] = fmaf(off, v[j] - mean[j], square[j]);
            }
        }
    }
    const u32 at = threadIdx.y * width() + threadIdx.x * CHUNK;
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) {
        means[at + j] = mean[j];
        squares[at + j] = square[j];
    }
    __syncthreads();
    const u32 own = threadIdx.y * blockDim.x + threadIdx.x, col = blockIdx.x * width() + own;
    if (own >= width() || col >= cols) return;
    float sum = 0.0f;
    for (u32 y = 0; y < blockDim.y; ++y) sum = fmaf((float)rows_of(y, s.rows), means[y * width() + own], sum);
    const float center = sum / (float)s.rows;
    float total = 0.0f;
    for (u32 y = 0; y < blockDim.y; ++y) {
        const float off = means[y * width() + own] - center;
        total += squares[y * width() + own] + (float)rows_of(y, s.rows) * off * off;
    }
    float* mine = partial + (u64)blockIdx.y * 2 * cols;
    mine[col] = center;
    mine[cols + col] = total;
}

constexpr u32 GROUPS = 16;

// Adds up what threadIdx.y = 0 .. 15 hold of a column; every thread gets the sum.
__device__ __forceinline__ double sum_groups(double x, double (&sums)[GROUPS][WARP]) {
    __syncthreads();  // a previous call's readers
    sums[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    double total = 0.0;
#pragma unroll
    for (u32 g = 0; g < GROUPS; ++g) total += sums[g][threadIdx.x];
    return total;
}

// Launch: block (32, 16), grid ceil(C / 32).
extern "C" __global__ void batch_norm_finish_statistics(const float* partial, float* mean, float* var, u32 rows,
                                                        u32 cols, u32 per, u32 parts) {
    __shared__ double sums[GROUPS][WARP];
    const u32 col = blockIdx.x * WARP + threadIdx.x;
    const auto rows_in = [=](u32 p) { return (double)(p + 1 < parts ? per : rows - p * per); };
    double sum = 0.0;
    if (col < cols)
#pragma unroll 4
        for (u32 p = threadIdx.y; p < parts; p += GROUPS) sum += rows_in(p) * partial[(u64)p * 2 * cols + col];
    const double center = sum_groups(sum, sums) / rows;
    double square = 0.0;
    if (col < cols)
#pragma unroll 4
        for (u32 p = threadIdx.y; p < parts; p += GROUPS) {
            const double off = partial[(u64)p * 2 * cols + col] - center;
            square += partial[((u64)p * 2 + 1) * cols + col] + rows_in(p) * off * off;
        }
    const double total = sum_groups(square, sums);
    if (threadIdx.y == 0 && col < cols) {
        mean[col] = (float)center;
        var[col] = (float)(total / rows);
    }
}

// Launch: block 256, grid (ceil(C / 256), 2): means, then variances.
extern "C" __global__ void batch_norm_update(const float* mean, const float* var, float* running_mean,
                                             float* running_var, float unbias, float momentum, u32 cols) {
    const u32 col = blockIdx.x * blockDim.x + threadIdx.x;
    if (col >= cols) return;
    const bool first = blockIdx.y == 0;
    const float batch = first ? mean[col] : unbias * var[col];
    float* running = first ? running_mean : running_var;
    running[col] += momentum * (batch - running[col]);
}

// ---- forward -------------------------------------------------------------------------------------------------------

template <bool VEC, class T>
__device__ __forceinline__ void normalize(const T* x, const float* mean, const float* var, const float* gamma,
                                          const float* beta, T* y, float eps, u32 rows, u32 cols, u32 per) {
    const Share s = share_of(rows, per);
    if (s.col >= cols) return;
    float m[CHUNK], scale[CHUNK], g[CHUNK], b[CHUNK];
    load8<VEC>(mean, s.col, cols, m);
    load_rstd<VEC>(var, s.col, cols, eps, scale);
    load8<VEC>(gamma, s.col, cols, g);
    load8<VEC>(beta, s.col, cols, b);
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) scale[j] *= g[j];
#pragma unroll 4
    for (u64 row = s.first; row < s.end; row += s.step) {
        float v[CHUNK];
        load8<VEC>(x + row * cols, s.col, cols, v);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) v[j] = fmaf(v[j] - m[j], scale[j], b[j]);
        store8<VEC>(y + row * cols, s.col, cols, v);
    }
}

// ---- backward ------------------------------------------------------------------------------------------------------

template <bool VEC, class T>
__device__ __forceinline__ void sums(const T* dy, const T* x, const float* mean, const float* var, float* partial,
                                     float eps, u32 rows, u32 cols, u32 per) {
    __shared__ float gammas[THREADS * CHUNK], betas[THREADS * CHUNK];
    const Share s = share_of(rows, per);
    float dgamma[CHUNK] = {}, dbeta[CHUNK] = {};
    if (s.col < cols) {
        float m[CHUNK], rstd[CHUNK];
        load8<VEC>(mean, s.col, cols, m);
        load_rstd<VEC>(var, s.col, cols, eps, rstd);
#pragma unroll 4
        for (u64 row = s.first; row < s.end; row += s.step) {
            float d[CHUNK], v[CHUNK];
            load8<VEC>(dy + row * cols, s.col, cols, d);
            load8<VEC>(x + row * cols, s.col, cols, v);
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) {
                dgamma[j] = fmaf(d[j], (v[j] - m[j]) * rstd[j], dgamma[j]);
                dbeta[j] += d[j];
            }
        }
    }
    const u32 at = threadIdx.y * width() + threadIdx.x * CHUNK;
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) {
        gammas[at + j] = dgamma[j];
        betas[at + j] = dbeta[j];
    }
    __syncthreads();
    const u32 own = threadIdx.y * blockDim.x + threadIdx.x, col = blockIdx.x * width() + own;
    if (own >= width() || col >= cols) return;
    float of_gamma = 0.0f, of_beta = 0.0f;
    for (u32 y = 0; y < blockDim.y; ++y) {
        of_gamma += gammas[y * width() + own];
        of_beta += betas[y * width() + own];
    }
    float* mine = partial + (u64)blockIdx.y * 2 * cols;
    mine[col] = of_gamma;
    mine[cols + col] = of_beta;
}

// Null where absent: dgamma, dbeta. Launch: block (32, 16), grid (ceil(C / 32), 2): gamma, then beta.
extern "C" __global__ void batch_norm_finish_sums(const float* partial, float* sums, float* dgamma, float* dbeta,
                                                  u32 cols, u32 parts) {
    __shared__ double of_group[GROUPS][WARP];
    const u32 col = blockIdx.x * WARP + threadIdx.x;
    double sum = 0.0;
    if (col < cols)
#pragma unroll 4
        for (u32 p = threadIdx.y; p < parts; p += GROUPS) sum += partial[((u64)p * 2 + blockIdx.y) * cols + col];
    const float total = (float)sum_groups(sum, of_group);
    if (threadIdx.y != 0 || col >= cols) return;
    sums[blockIdx.y * cols + col] = total;
    float* gradient = blockIdx.y == 0 ? dgamma : dbeta;
    if (gradient) gradient[col] += total;
}

template <bool VEC, class T>
__device__ __forceinline__ void backward(const T* dy, const T* x, const float* mean, const float* var,
                                         const float* gamma, const float* sums, T* dx, float eps, u32 rows, u32 cols,
                                         u32 per) {
    const Share s = share_of(rows, per);
    if (s.col >= cols) return;
    // dx = scale * dy - slope * (x - mean) - shift.
    float m[CHUNK], scale[CHUNK], slope[CHUNK], shift[CHUNK], g[CHUNK];
    load8<VEC>(mean, s.col, cols, m);
    load_rstd<VEC>(var, s.col, cols, eps, scale);
    load8<VEC>(gamma, s.col, cols, g);
    load8<VEC>(sums, s.col, cols, slope);
    load8<VEC>(sums + cols, s.col, cols, shift);
    const float part = 1.0f / (float)rows;
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) {
        const float rstd = scale[j];
        scale[j] *= g[j];
        slope[j] *= part * rstd * scale[j];
        shift[j] *= part * scale[j];
    }
#pragma unroll 4
    for (u64 row = s.first; row < s.end; row += s.step) {
        float d[CHUNK], v[CHUNK];
        load8<VEC>(dy + row * cols, s.col, cols, d);
        load8<VEC>(x + row * cols, s.col, cols, v);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) v[j] = fmaf(d[j], scale[j], -fmaf(v[j] - m[j], slope[j], shift[j]));
        store8<VEC>(dx + row * cols, s.col, cols, v);
    }
}

// ---- entry points --------------------------------------------------------------------------------------------------

#define ENTRIES(T, SUFFIX)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        batch_norm_statistics_##SUFFIX(const T* x, float* partial, u32 rows, u32 cols, u32 per) {                   \
        if (cols % CHUNK == 0 && aligned(x)) statistics<true>(x, partial, rows, cols, per);                         \
        else statistics<false>(x, partial, rows, cols, per);                                                        \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) batch_norm_normalize_##SUFFIX(                                \
        const T* x, const float* mean, const float* var, const float* gamma, const float* beta, T* y, float eps,    \
        u32 rows, u32 cols, u32 per) {                                                                              \
        if (cols % CHUNK == 0 && aligned(x, mean, var, gamma, beta, y))                                             \
            normalize<true>(x, mean, var, gamma, beta, y, eps, rows, cols, per);                                    \
        else normalize<false>(x, mean, var, gamma, beta, y, eps, rows, cols, per);                                  \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        batch_norm_sums_##SUFFIX(const T* dy, const T* x, const float* mean, const float* var, float* partial,      \
                                 float eps, u32 rows, u32 cols, u32 per) {                                          \
        if (cols % CHUNK == 0 && aligned(dy, x, mean, var))                                                         \
            sums<true>(dy, x, mean, var, partial, eps, rows, cols, per);                                            \
        else sums<false>(dy, x, mean, var, partial, eps, rows, cols, per);                                          \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) batch_norm_backward_##SUFFIX(                                 \
        const T* dy, const T* x, const float* mean, const float* var, const float* gamma, const float* sums, T* dx, \
        float eps, u32 rows, u32 cols, u32 per) {                                                                   \
        if (cols % CHUNK == 0 && aligned(dy, x, mean, var, gamma, sums, dx))                                        \
            backward<true>(dy, x, mean, var, gamma, sums, dx, eps, rows, cols, per);                                \
        else backward<false>(dy, x, mean, var, gamma, sums, dx, eps, rows, cols, per);                              \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
