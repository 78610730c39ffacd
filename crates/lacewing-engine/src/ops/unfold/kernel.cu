// Windows of images as rows, and back.
//
// unfold  y[b, (i, j), (ky, kx), c] = x[b, i stride + ky - padding, j stride + kx - padding, c], 0 outside
// fold    dx[b, row, col, c] = sum of dy over every (i, j, ky, kx) that reads the pixel, taps in order
//
//   x, dx [B, H, W, C] T   y, dy [B, down across, kh kw, C] T
// A thread writes one chunk of channels. Launch: block 256, grid ceil(n ceil(C / 8) / 256), n = elements written / C.

struct Shape {
    u32 batch, height, width, channels, down, across, kh, kw, stride, padding;
};

template <bool VEC, class T>
__device__ __forceinline__ void unfold(const T* x, T* y, const Shape s) {
    u64 row, place;
    u32 chunk, tap, i, j;
    divide(global_thread(), chunks_of(s.channels), row, chunk);
    const u64 to = row;
    divide(row, s.kh * s.kw, place, tap);
    divide(place, s.across, place, j);
    divide(place, s.down, place, i);
    if (place >= s.batch) return;
    // Above or left of the image the difference wraps around and is too large as well.
    const u32 top = i * s.stride + tap / s.kw - s.padding, left = j * s.stride + tap % s.kw - s.padding;
    float v[CHUNK] = {};
    if (top < s.height && left < s.width)
        load8<VEC>(x + ((place * s.height + top) * s.width + left) * s.channels, chunk * CHUNK, s.channels, v);
    store8<VEC>(y + to * s.channels, chunk * CHUNK, s.channels, v);
}

template <bool VEC, class T>
__device__ __forceinline__ void fold(const T* dy, T* dx, const Shape s) {
    u64 pixel, b;
    u32 chunk, row, col;
    divide(global_thread(), chunks_of(s.channels), pixel, chunk);
    divide(pixel, s.width, b, col);
    divide(b, s.height, b, row);
    if (b >= s.batch) return;
    float sum[CHUNK] = {};
    for (u32 ky = 0; ky < s.kh; ++ky) {
        const u32 down = row + s.padding - ky, i = down / s.stride;
        if (row + s.padding < ky || down % s.stride != 0 || i >= s.down) continue;
        for (u32 kx = 0; kx < s.kw; ++kx) {
            const u32 across = col + s.padding - kx, j = across / s.stride;
            if (col + s.padding < kx || across % s.stride != 0 || j >= s.across) continue;
            float v[CHUNK];
            const u64 from = ((b * s.down + i) * s.across + j) * (s.kh * s.kw) + ky * s.kw + kx;
            load8<VEC>(dy + from * s.channels, chunk * CHUNK, s.channels, v);
#pragma unroll
            for (u32 c = 0; c < CHUNK; ++c) sum[c] += v[c];
        }
    }
    store8<VEC>(dx + pixel * s.channels, chunk * CHUNK, s.channels, sum);
}

#define ENTRY(NAME, T, SUFFIX)                                                                                      \
    extern "C" __global__ void __launch_bounds__(256) NAME##_##SUFFIX(                                              \
        const T* from, T* to, u32 batch, u32 height, u32 width, u32 channels, u32 down, u32 across, u32 kh, u32 kw, \
        u32 stride, u32 padding) {                                                                                  \
        const Shape s = {batch, height, width, channels, down, across, kh, kw, stride, padding};                    \
        if (channels % CHUNK == 0 && aligned(from, to)) NAME<true>(from, to, s);                                    \
        else NAME<false>(from, to, s);                                                                              \
    }

ENTRY(unfold, float, f32)
ENTRY(unfold, bf16, bf16)
ENTRY(fold, float, f32)
ENTRY(fold, bf16, bf16)
