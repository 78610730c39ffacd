// The tokens of a vision transformer: class token and positions before the blocks, pooling after them.
//
// embed      y[b, 0] = cls + pos[0] where there is a cls (L = 1, else 0), y[b, L + n] = x[b, n] + pos[L + n]
//            backward: dx[b, n] = dy[b, L + n], dpos += sum over b of dy[b], dcls += sum over b of dy[b, 0]
// mean_pool  y[b] = average over n of x[b, n]; backward: dx[b, n] = dy[b] / N
// select     y[b] = x[b, t]; backward: dx[b, t] = dy[b], 0 elsewhere
//
//   x dx [B, N, C] T   y dy [B, N + L, C] T (embed), [B, C] T (pooling)   cls dcls [C] f32   pos dpos [N + L, C] f32
//   partial [P, N + L, C] f32: embed_backward's sums over the batch, one a blockIdx.y, which embed_finish adds up.
// Null where absent: cls, pos, dcls, dpos.

// Launch: block 256, grid ceil(B (N + L) ceil(C / 8) / 256).
template <bool VEC, class T>
__device__ __forceinline__ void embed(const T* x, const float* cls, const float* pos, T* y, u32 batch, u32 tokens,
                                      u32 cols) {
    const u32 lead = cls ? 1 : 0;
    const u32 chunks = chunks_of(cols), out_tokens = tokens + lead;
    const u64 i = global_thread();
    if (i >= (u64)batch * out_tokens * chunks) return;
    u64 at, b;
    u32 chunk, token;
    divide(i, chunks, at, chunk);
    divide(at, out_tokens, b, token);
    const u32 first = chunk * CHUNK;
    float v[CHUNK], p[CHUNK] = {};
    if (pos) load8<VEC>(pos + (u64)token * cols, first, cols, p);
    if (token < lead) load8<VEC>(cls, first, cols, v);
    else load8<VEC>(x + (b * tokens + token - lead) * cols, first, cols, v);
#pragma unroll
    for (u32 j = 0; j < CHUNK; ++j) v[j] += p[j];
    store8<VEC>(y + at * cols, first, cols, v);
}

// Launch: block 128, grid (ceil((N + L) ceil(C / 8) / 128), P).
template <bool VEC, class T>
__device__ __forceinline__ void embed_backward(const T* dy, T* dx, float* partial, u32 batch, u32 tokens, u32 lead,
                                               u32 cols) {
    constexpr u32 D = VEC ? 8 : 1;
    const u32 chunks = chunks_of(cols), out_tokens = tokens + lead;
    u64 row;
    u32 chunk;
    divide(global_thread(), chunks, row, chunk);
    if (row >= out_tokens) return;
    const u32 token = (u32)row, first = chunk * CHUNK;
    float sum[CHUNK] = {};
    for (u32 base = blockIdx.y; base < batch; base += gridDim.y * D) {
        Held<VEC, T> held[D];
#pragma unroll
        for (u32 u = 0; u < D; ++u) {
            const u32 b = base + u * gridDim.y;
            if (b < batch) held[u].load(dy + ((u64)b * out_tokens + token) * cols, first, cols);
        }
#pragma unroll
        for (u32 u = 0; u < D; ++u) {
            const u32 b = base + u * gridDim.y;
            if (b >= batch) break;
            float v[CHUNK];
            held[u].get(v);
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) sum[j] += v[j];
            if (token >= lead) store8<VEC>(dx + ((u64)b * tokens + token - lead) * cols, first, cols, v);
        }
    }
    store8<VEC>(partial + ((u64)blockIdx.y * out_tokens + token) * cols, first, cols, sum);
}

// Launch: block 256, grid ceil((N + L) C / 256).
extern "C" __global__ void tokens_embed_finish(const float* partial, float* dcls, float* dpos, u32 parts,
                                               u32 out_tokens, u32 cols) {
    const u64 n = (u64)out_tokens * cols;
    const u64 i = global_thread();
    if (i >= n) return;
    float sum = 0.0f;
#pragma unroll 8
    for (u32 p = 0; p < parts; ++p) sum += partial[p * n + i];
    if (dpos) dpos[i] += sum;
    if (dcls && i < cols) dcls[i] += sum;
}

// Launch: block (32, 8), grid (ceil(C / 256), min(B, 65535)).
template <bool VEC, class T>
__device__ __forceinline__ void mean_pool(const T* x, T* y, u32 batch, u32 tokens, u32 cols) {
    constexpr u32 GROUPS = 8, D = VEC ? 8 : 1;
    __shared__ float sums[GROUPS][WARP * CHUNK];
    const u32 first = (blockIdx.x * WARP + threadIdx.x) * CHUNK;
    const u32 c = threadIdx.y * WARP + threadIdx.x;
    const u32 col = blockIdx.x * WARP * CHUNK + c;
    for (u32 b = blockIdx.y; b < batch; b += gridDim.y) {
        const T* in = x + (u64)b * tokens * cols;
        float sum[CHUNK] = {};
        if (first < cols)
            for (u32 top = threadIdx.y; top < tokens; top += GROUPS * D) {
                Held<VEC, T> held[D];
#pragma unroll
                for (u32 u = 0; u < D; ++u)
                    if (top + u * GROUPS < tokens) held[u].load(in + (u64)(top + u * GROUPS) * cols, first, cols);
#pragma unroll
                for (u32 u = 0; u < D; ++u) {
                    if (top + u * GROUPS >= tokens) break;
                    float v[CHUNK];
                    held[u].get(v);
#pragma unroll
                    for (u32 j = 0; j < CHUNK; ++j) sum[j] += v[j];
                }
            }
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) sums[threadIdx.y][threadIdx.x * CHUNK + j] = sum[j];
        __syncthreads();
        if (col < cols) {
            float total = 0.0f;
#pragma unroll
            for (u32 g = 0; g < GROUPS; ++g) total += sums[g][c];
            y[(u64)b * cols + col] = from_f32<T>(total / (float)tokens);
        }
        __syncthreads();
    }
}

// dx[b, n] = dy[b] * weight for token n = t, or for all with t = ALL_TOKENS; 0 for the others.
// Launch: block 256, grid ceil(B N ceil(C / 8) / 256).
constexpr u32 ALL_TOKENS = 0xffffffffu;
template <bool VEC, class T>
__device__ __forceinline__ void spread(const T* dy, T* dx, u32 batch, u32 tokens, u32 cols, u32 t, float weight) {
    const u32 chunks = chunks_of(cols);
    const u64 i = global_thread();
    if (i >= (u64)batch * tokens * chunks) return;
    u64 at, b;
    u32 chunk, token;
    divide(i, chunks, at, chunk);
    divide(at, tokens, b, token);
    float v[CHUNK] = {};
    if (t == ALL_TOKENS || t == token) {
        load8<VEC>(dy + b * cols, chunk * CHUNK, cols, v);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) v[j] *= weight;
    }
    store8<VEC>(dx + at * cols, chunk * CHUNK, cols, v);
}

// Launch: block 256, grid ceil(B ceil(C / 8) / 256).
template <bool VEC, class T>
__device__ __forceinline__ void select(const T* x, T* y, u32 batch, u32 tokens, u32 cols, u32 t) {
    const u32 chunks = chunks_of(cols);
    const u64 i = global_thread();
    if (i >= (u64)batch * chunks) return;
    u64 b;
    u32 chunk;
    divide(i, chunks, b, chunk);
    float v[CHUNK];
    load8<VEC>(x + (b * tokens + t) * cols, chunk * CHUNK, cols, v);
    store8<VEC>(y + b * cols, chunk * CHUNK, cols, v);
}

#define ENTRIES(T, SUFFIX)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) tokens_embed_##SUFFIX(                                        \
        const T* x, const float* cls, const float* pos, T* y, u32 batch, u32 tokens, u32 cols) {                    \
        if (cols % CHUNK == 0 && aligned(x, cls, pos, y)) embed<true>(x, cls, pos, y, batch, tokens, cols);         \
        else embed<false>(x, cls, pos, y, batch, tokens, cols);                                                     \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128) tokens_embed_backward_##SUFFIX(                               \
        const T* dy, T* dx, float* partial, u32 batch, u32 tokens, u32 lead, u32 cols) {                            \
        if (cols % CHUNK == 0 && aligned(dy, dx, partial))                                                          \
            embed_backward<true>(dy, dx, partial, batch, tokens, lead, cols);                                       \
        else embed_backward<false>(dy, dx, partial, batch, tokens, lead, cols);                                     \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        tokens_mean_pool_##SUFFIX(const T* x, T* y, u32 batch, u32 tokens, u32 cols) {                              \
        if (cols % CHUNK == 0 && aligned(x)) mean_pool<true>(x, y, batch, tokens, cols);                            \
        else mean_pool<false>(x, y, batch, tokens, cols);                                                           \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) tokens_spread_##SUFFIX(                                       \
        const T* dy, T* dx, u32 batch, u32 tokens, u32 cols, u32 t, float weight) {                                 \
        if (cols % CHUNK == 0 && aligned(dy, dx)) spread<true>(dy, dx, batch, tokens, cols, t, weight);             \
        else spread<false>(dy, dx, batch, tokens, cols, t, weight);                                                 \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256)                                                               \
        tokens_select_##SUFFIX(const T* x, T* y, u32 batch, u32 tokens, u32 cols, u32 t) {                          \
        if (cols % CHUNK == 0 && aligned(x, y)) select<true>(x, y, batch, tokens, cols, t);                         \
        else select<false>(x, y, batch, tokens, cols, t);                                                           \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
