// y[r, o] = sum of +- x[r, index] over the list of o: codes[starts[o]] .. codes[starts[o + 1]], or codes[o] alone
// where `starts` is null. A code is an index, its highest bit a minus sign.
//
//   x [R, n_in] T   starts [n_out + 1]   codes [starts[n_out]]   y [R, n_out] T, summed in f32
//
// gather       a thread an output      launch: block 256, grid ceil(R n_out / 256)
// gather_long  a warp an output        launch: block 256, grid ceil(R n_out / 8)

template <u32 LANES, class T>
__device__ __forceinline__ void gather(const T* x, const u32* starts, const u32* codes, T* y, u32 rows, u32 n_in,
                                       u32 n_out) {
    const u64 i = global_thread() / LANES;
    if (i >= (u64)rows * n_out) return;
    const u32 lane = LANES == 1 ? 0 : threadIdx.x % LANES;
    u64 row;
    u32 o;
    divide(i, n_out, row, o);
    x += row * n_in;
    const u32 end = starts ? starts[o + 1] : o + 1;
    float sum = 0.0f;
    for (u32 at = (starts ? starts[o] : o) + lane; at < end; at += LANES) {
        const u32 code = codes[at];
        const float v = to_f32(x[code & 0x7fffffffu]);
        sum += __uint_as_float(__float_as_uint(v) ^ (code & 0x80000000u));
    }
    if constexpr (LANES != 1) sum = warp_sum(sum);
    if (lane == 0) y[i] = from_f32<T>(sum);
}

#define ENTRIES(T, SUFFIX)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) gather_##SUFFIX(                                              \
        const T* x, const u32* starts, const u32* codes, T* y, u32 rows, u32 n_in, u32 n_out) {                     \
        gather<1>(x, starts, codes, y, rows, n_in, n_out);                                                          \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) gather_long_##SUFFIX(                                         \
        const T* x, const u32* starts, const u32* codes, T* y, u32 rows, u32 n_in, u32 n_out) {                     \
        gather<WARP>(x, starts, codes, y, rows, n_in, n_out);                                                       \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
