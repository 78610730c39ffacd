// Prepended to every kernel file of the engine; NVRTC sees one source and no include.
//
// Storage is `float` or `bf16`, arithmetic is f32. Work is cut into chunks of eight neighboring elements: one
// 16-byte access in bf16, two in f32. `VEC` in a template says that a chunk is whole and its address a multiple of
// 16; without it elements go one by one and those past the end of the row read as 0 and are not written.
// No `__restrict__`: an elementwise output may be one of its inputs, since a thread reads its chunks before it
// writes them.
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 CHUNK = 8;
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

struct bf16 {
    u16 bits;
};

// ---- conversions: to f32 exact, from f32 to nearest even -------------------------------------------------------

__device__ __forceinline__ float to_f32(float x) { return x; }
__device__ __forceinline__ float to_f32(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <class T>
__device__ __forceinline__ T from_f32(float x);
template <>
__device__ __forceinline__ float from_f32<float>(float x) {
    return x;
}
template <>
__device__ __forceinline__ bf16 from_f32<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// What is left of x after it was stored as T.
template <class T>
__device__ __forceinline__ float stored(float x) {
    return to_f32(from_f32<T>(x));
}

// ---- chunks ----------------------------------------------------------------------------------------------------

// A chunk as it lies in memory: what to keep in registers while more loads are under way.
template <class T>
struct Raw;
template <>
struct Raw<float> {
    float4 lo, hi;
};
template <>
struct Raw<bf16> {
    uint4 bits;
};

__device__ __forceinline__ Raw<float> load_raw(const float* p) {
    const float4* q = reinterpret_cast<const float4*>(p);
    return {q[0], q[1]};
}
__device__ __forceinline__ Raw<bf16> load_raw(const bf16* p) { return {*reinterpret_cast<const uint4*>(p)}; }

__device__ __forceinline__ void unpack(const Raw<float>& raw, float (&v)[CHUNK]) {
    v[0] = raw.lo.x, v[1] = raw.lo.y, v[2] = raw.lo.z, v[3] = raw.lo.w;
    v[4] = raw.hi.x, v[5] = raw.hi.y, v[6] = raw.hi.z, v[7] = raw.hi.w;
}
__device__ __forceinline__ void unpack(const Raw<bf16>& raw, float (&v)[CHUNK]) {
    const u32 words[4] = {raw.bits.x, raw.bits.y, raw.bits.z, raw.bits.w};
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        v[2 * i] = __uint_as_float(words[i] << 16);
        v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
}

__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ __forceinline__ void store_raw(float* p, const float (&v)[CHUNK]) {
    float4* q = reinterpret_cast<float4*>(p);
    q[0] = make_float4(v[0], v[1], v[2], v[3]);
    q[1] = make_float4(v[4], v[5], v[6], v[7]);
}
__device__ __forceinline__ void store_raw(bf16* p, const float (&v)[CHUNK]) {
    *reinterpret_cast<uint4*>(p) = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                                              pack_bf16(v[6], v[7]));
}

// Elements `first..first + 8` of a row of `len`.
template <bool VEC, class T>
__device__ __forceinline__ void load8(const T* row, u64 first, u64 len, float (&v)[CHUNK]) {
    if constexpr (VEC) {
        unpack(load_raw(row + first), v);
    } else {
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) v[j] = first + j < len ? to_f32(row[first + j]) : 0.0f;
    }
}
template <bool VEC, class T>
__device__ __forceinline__ void store8(T* row, u64 first, u64 len, const float (&v)[CHUNK]) {
    if constexpr (VEC) {
        store_raw(row + first, v);
    } else {
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j)
            if (first + j < len) row[first + j] = from_f32<T>(v[j]);
    }
}

// A chunk on its way: as it came where it is whole, so that many in flight cost few registers.
template <bool VEC, class T>
struct Held {
    float v[CHUNK];
    __device__ __forceinline__ void load(const T* row, u64 first, u64 len) { load8<false>(row, first, len, v); }
    __device__ __forceinline__ void get(float (&out)[CHUNK]) const {
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) out[j] = v[j];
    }
};
template <class T>
struct Held<true, T> {
    Raw<T> raw;
    __device__ __forceinline__ void load(const T* row, u64 first, u64) { raw = load_raw(row + first); }
    __device__ __forceinline__ void get(float (&out)[CHUNK]) const { unpack(raw, out); }
};

template <class... P>
__device__ __forceinline__ bool aligned(const P*... p) {
    return (((reinterpret_cast<u64>(p)) | ... | 0ull) & 15) == 0;
}

// q = i / d, r = i % d; the 32-bit division, several times cheaper, where it does.
__device__ __forceinline__ void divide(u64 i, u32 d, u64& q, u32& r) {
    if ((i >> 32) == 0) {
        const u32 small = (u32)i / d;
        q = small;
        r = (u32)i - small * d;
    } else {
        q = i / d;
        r = (u32)(i - q * d);
    }
}

__device__ __forceinline__ u32 chunks_of(u32 len) { return (len + CHUNK - 1) / CHUNK; }
__device__ __forceinline__ u64 global_thread() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// ---- elementwise: y[i] = f(x0[i], x1[i], ...) --------------------------------------------------------------------

[[maybe_unused]] constexpr u32 MAP_UNROLL = 4;

template <bool VEC>
__device__ __forceinline__ void load_all(float (*)[CHUNK], u64, u64) {}
template <bool VEC, class A, class... In>
__device__ __forceinline__ void load_all(float (*v)[CHUNK], u64 first, u64 n, const A* a, const In*... rest) {
    load8<VEC>(a, first, n, v[0]);
    load_all<VEC>(v + 1, first, n, rest...);
}

template <u32 INPUTS, class F>
__device__ __forceinline__ float apply(F f, const float (*v)[CHUNK], u32 j) {
    if constexpr (INPUTS == 0) return f();
    else if constexpr (INPUTS == 1) return f(v[0][j]);
    else return f(v[0][j], v[1][j]);
}

// Launch: block 256, grid ceil(n / (256 * MAP_UNROLL * CHUNK)).
template <class T, class F, class... In>
__device__ __forceinline__ void map(u64 n, T* y, F f, const In*... x) {
    constexpr u32 INPUTS = sizeof...(In);
    constexpr u32 SLOTS = INPUTS == 0 ? 1 : INPUTS;
    const u64 start = (u64)blockIdx.x * blockDim.x * MAP_UNROLL;
    const u64 mine = start + threadIdx.x;
    if (aligned(y, x...) && (start + blockDim.x * MAP_UNROLL) * CHUNK <= n) {
        float v[MAP_UNROLL][SLOTS][CHUNK];
#pragma unroll
        for (u32 u = 0; u < MAP_UNROLL; ++u) load_all<true>(v[u], (mine + u * blockDim.x) * CHUNK, n, x...);
#pragma unroll
        for (u32 u = 0; u < MAP_UNROLL; ++u) {
            float out[CHUNK];
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) out[j] = apply<INPUTS>(f, v[u], j);
            store8<true>(y, (mine + u * blockDim.x) * CHUNK, n, out);
        }
    } else {
        for (u32 u = 0; u < MAP_UNROLL; ++u) {
            const u64 first = (mine + u * blockDim.x) * CHUNK;
            if (first >= n) return;
            float v[SLOTS][CHUNK], out[CHUNK];
            load_all<false>(v, first, n, x...);
#pragma unroll
            for (u32 j = 0; j < CHUNK; ++j) out[j] = apply<INPUTS>(f, v, j);
            store8<false>(y, first, n, out);
        }
    }
}

// ---- reductions, in an order that the launch fixes ---------------------------------------------------------------

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) x += __shfl_xor_sync(ALL_LANES, x, d);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, d));
    return x;
}

// Over a one-dimensional block of whole warps; every thread gets the result.
template <class F>
__device__ __forceinline__ float block_reduce(float x, float neutral, F warp_reduce) {
    __shared__ float of_warp[WARP];
    x = warp_reduce(x);
    if (blockDim.x == WARP) return x;
    const u32 lane = threadIdx.x % WARP;
    __syncthreads();  // a previous call's readers
    if (lane == 0) of_warp[threadIdx.x / WARP] = x;
    __syncthreads();
    return warp_reduce(lane < blockDim.x / WARP ? of_warp[lane] : neutral);
}
__device__ __forceinline__ float block_sum(float x) {
    return block_reduce(x, 0.0f, [](float v) { return warp_sum(v); });
}
__device__ __forceinline__ float block_max(float x) {
    return block_reduce(x, -__int_as_float(0x7f800000), [](float v) { return warp_max(v); });
}

// Second stage of a column sum: out[c] += sum over p of partial[p * stride + c].
// Launch: block (32, 16), grid.x ceil(cols / 32).
__device__ __forceinline__ void finish_columns(const float* partial, u32 parts, u64 stride, u32 cols, float* out) {
    constexpr u32 GROUPS = 16;
    __shared__ float sums[GROUPS][WARP];
    const u32 col = blockIdx.x * WARP + threadIdx.x;
    float sum = 0.0f;
    if (col < cols)
#pragma unroll 8
        for (u32 p = threadIdx.y; p < parts; p += GROUPS) sum += partial[p * stride + col];
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && col < cols) {
        float total = 0.0f;
#pragma unroll
        for (u32 g = 0; g < GROUPS; ++g) total += sums[g][threadIdx.x];
        out[col] += total;
    }
}

// ---- random bits: Philox4x32-10 ----------------------------------------------------------------------------------

__device__ __forceinline__ uint4 philox(u64 seed, u64 counter) {
    u32 key0 = (u32)seed, key1 = (u32)(seed >> 32);
    uint4 c = make_uint4((u32)counter, (u32)(counter >> 32), 0, 0);
#pragma unroll
    for (u32 round = 0; round < 10; ++round) {
        const u64 a = (u64)0xD2511F53u * c.x;
        const u64 b = (u64)0xCD9E8D57u * c.z;
        c = make_uint4((u32)(b >> 32) ^ c.y ^ key0, (u32)b, (u32)(a >> 32) ^ c.w ^ key1, (u32)a);
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return c;
}
