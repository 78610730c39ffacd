// The largest value of each window, channel by channel; of equal ones the first, and a NaN is larger than any number.
//
// forward   y[b, i, j, c] = max over the taps t = (ky, kx) inside the image of
//           x[b, i stride + ky - padding, j stride + kx - padding, c], taps its t
// backward  dx[b, row, col, c] = sum of dy over every (i, j) that reads the pixel with the tap it took, taps in order
//
//   x, dx [B, H, W, C] T   y, dy [B, down, across, C] T   taps [B, down, across, C] u32, null where nobody asks
// A thread writes one chunk of channels. Launch: block 256, grid ceil(n ceil(C / 8) / 256), n = elements written / C.

struct Shape {
    u32 batch, height, width, channels, down, across, kh, kw, stride, padding;
};

template <bool VEC, class T>
__device__ __forceinline__ void forward(const T* x, T* y, u32* taps, const Shape s) {
    u64 place, b;
    u32 chunk, i, j;
    divide(global_thread(), chunks_of(s.channels), place, chunk);
    const u64 to = place * s.channels;
    divide(place, s.across, b, j);
    divide(b, s.down, b, i);
    if (b >= s.batch) return;
    const u32 c = chunk * CHUNK;
    float best[CHUNK];
    u32 taken[CHUNK];
    bool first = true;
    for (u32 ky = 0; ky < s.kh; ++ky)
        for (u32 kx = 0; kx < s.kw; ++kx) {
            // Above or left of the image the difference wraps around and is too large as well.
            const u32 row = i * s.stride + ky - s.padding, col = j * s.stride + kx - s.padding;
            if (row >= s.height || col >= s.width) continue;
            float v[CHUNK];
            load8<VEC>(x + ((b * s.height + row) * s.width + col) * s.channels, c, s.channels, v);
#pragma unroll
            for (u32 k = 0; k < CHUNK; ++k)
                if (first || v[k] > best[k] || v[k] != v[k]) {
                    best[k] = v[k];
                    taken[k] = ky * s.kw + kx;
                }
            first = false;
        }
    store8<VEC>(y + to, c, s.channels, best);
    if (taps)
#pragma unroll
        for (u32 k = 0; k < CHUNK; ++k)
            if (c + k < s.channels) taps[to + c + k] = taken[k];
}

template <bool VEC, class T>
__device__ __forceinline__ void backward(const T* dy, const u32* taps, T* dx, const Shape s) {
    u64 pixel, b;
    u32 chunk, row, col;
    divide(global_thread(), chunks_of(s.channels), pixel, chunk);
    divide(pixel, s.width, b, col);
    divide(b, s.height, b, row);
    if (b >= s.batch) return;
    const u32 c = chunk * CHUNK;
    float sum[CHUNK] = {};
    for (u32 ky = 0; ky < s.kh; ++ky) {
        const u32 down = row + s.padding - ky, i = down / s.stride;
        if (row + s.padding < ky || down % s.stride != 0 || i >= s.down) continue;
        for (u32 kx = 0; kx < s.kw; ++kx) {
            const u32 across = col + s.padding - kx, j = across / s.stride;
            if (col + s.padding < kx || across % s.stride != 0 || j >= s.across) continue;
            const u64 from = ((b * s.down + i) * s.across + j) * s.channels;
            float v[CHUNK];
            load8<VEC>(dy + from, c, s.channels, v);
#pragma unroll
            for (u32 k = 0; k < CHUNK; ++k)
                if (c + k < s.channels && taps[from + c + k] == ky * s.kw + kx) sum[k] += v[k];
        }
    }
    store8<VEC>(dx + pixel * s.channels, c, s.channels, sum);
}

#define ENTRIES(T, SUFFIX)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) max_pool_forward_##SUFFIX(                                    \
        const T* x, T* y, u32* taps, u32 batch, u32 height, u32 width, u32 channels, u32 down, u32 across, u32 kh,  \
        u32 kw, u32 stride, u32 padding) {                                                                          \
        const Shape s = {batch, height, width, channels, down, across, kh, kw, stride, padding};                    \
        if (channels % CHUNK == 0 && aligned(x, y)) forward<true>(x, y, taps, s);                                   \
        else forward<false>(x, y, taps, s);                                                                         \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) max_pool_backward_##SUFFIX(                                   \
        const T* dy, const u32* taps, T* dx, u32 batch, u32 height, u32 width, u32 channels, u32 down, u32 across,  \
        u32 kh, u32 kw, u32 stride, u32 padding) {                                                                  \
        const Shape s = {batch, height, width, channels, down, across, kh, kw, stride, padding};                    \
        if (channels % CHUNK == 0 && aligned(dy, dx)) backward<true>(dy, taps, dx, s);                              \
        else backward<false>(dy, taps, dx, s);                                                                      \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
