// y [B, N, M] = x [B, M, N] transposed, in tiles of 64 x 64 through shared memory.
//
// A warp reads and writes whole rows of a tile, two elements a lane. The odd pitch puts a column of the tile in
// different banks.
// Launch: block 256, grid (ceil(N / 64), min(ceil(M / 64), 65535), min(B, 65535)).

constexpr u32 TILE = 64;
constexpr u32 WARPS = 8;

template <class T>
struct Pair;
template <>
struct Pair<float> {
    using Word = float2;
};
template <>
struct Pair<bf16> {
    using Word = u32;
};
__device__ __forceinline__ void split(float2 w, float& a, float& b) { a = w.x, b = w.y; }
__device__ __forceinline__ void split(u32 w, bf16& a, bf16& b) { a.bits = (u16)w, b.bits = (u16)(w >> 16); }
__device__ __forceinline__ void join(float a, float b, float2& w) { w = make_float2(a, b); }
__device__ __forceinline__ void join(bf16 a, bf16 b, u32& w) { w = (u32)a.bits | (u32)b.bits << 16; }

template <class T>
__device__ __forceinline__ bool pairs_fit(const T* p, u32 len) {
    return len % 2 == 0 && reinterpret_cast<u64>(p) % (2 * sizeof(T)) == 0;
}

template <class T>
__device__ __forceinline__ void transpose(const T* x, T* y, u32 batch, u32 m, u32 n) {
    using Word = typename Pair<T>::Word;
    __shared__ T tile[TILE][TILE + 1];
    const u32 c = threadIdx.x % WARP * 2;
    const u32 warp = threadIdx.x / WARP;
    const u32 col0 = blockIdx.x * TILE;
    const bool pairs_in = pairs_fit(x, n), pairs_out = pairs_fit(y, m);

    for (u32 b = blockIdx.z; b < batch; b += gridDim.z)
        for (u32 row0 = blockIdx.y * TILE; row0 < m; row0 += gridDim.y * TILE) {
            const T* in = x + (u64)b * m * n;
            T* out = y + (u64)b * m * n;
            if (pairs_in) {
                Word words[TILE / WARPS];
#pragma unroll
                for (u32 i = 0; i < TILE / WARPS; ++i) {
                    const u32 r = row0 + i * WARPS + warp;
                    if (r < m && col0 + c < n) words[i] = *reinterpret_cast<const Word*>(in + (u64)r * n + col0 + c);
                }
#pragma unroll
                for (u32 i = 0; i < TILE / WARPS; ++i) {
                    const u32 r = i * WARPS + warp;
                    if (row0 + r < m && col0 + c < n) split(words[i], tile[r][c], tile[r][c + 1]);
                }
            } else {
                for (u32 r = warp; r < TILE; r += WARPS)
                    for (u32 j = c; j < c + 2; ++j)
                        if (row0 + r < m && col0 + j < n) tile[r][j] = in[(u64)(row0 + r) * n + col0 + j];
            }
            __syncthreads();
#pragma unroll
            for (u32 i = 0; i < TILE / WARPS; ++i) {
                const u32 r = i * WARPS + warp;  // of y: a column of x
                if (col0 + r >= n) break;
                T* to = out + (u64)(col0 + r) * m + row0 + c;
                if (pairs_out) {
                    if (row0 + c < m) join(tile[c][r], tile[c + 1][r], *reinterpret_cast<Word*>(to));
                } else {
                    if (row0 + c < m) to[0] = tile[c][r];
                    if (row0 + c + 1 < m) to[1] = tile[c + 1][r];
                }
            }
            __syncthreads();
        }
}

extern "C" __global__ void __launch_bounds__(256) transpose_f32(const float* x, float* y, u32 batch, u32 m, u32 n) {
    transpose(x, y, batch, m, n);
}
extern "C" __global__ void __launch_bounds__(256) transpose_bf16(const bf16* x, bf16* y, u32 batch, u32 m, u32 n) {
    transpose(x, y, batch, m, n);
}
