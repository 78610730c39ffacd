// y[b, (i, j), (ch, py, px)] = images[b, ch, i p + py, j p + px]
//
//   images [B, Ch, H, W] f32   y [B, (H / p)(W / p), Ch p p] T   p divides H and W
//
// A thread writes one chunk of y: where 8 divides p that is a run along px, contiguous in the image as well.
// Launch: block 256, grid ceil(B Ch H W / 2048).

template <class T>
__device__ __forceinline__ void patchify(const float* images, T* y, u32 batch, u32 channels, u32 height, u32 width,
                                         u32 p) {
    const u32 across = width / p, down = height / p;
    const u64 n = (u64)batch * channels * height * width;
    const u64 first = global_thread() * CHUNK;
    if (first >= n) return;

    const auto source = [&](u64 i) {
        u64 q;
        u32 px, py, ch, j, row;
        divide(i, p, q, px);
        divide(q, p, q, py);
        divide(q, channels, q, ch);
        divide(q, across, q, j);
        divide(q, down, q, row);
        return ((q * channels + ch) * height + row * p + py) * width + j * p + px;
    };
    float v[CHUNK];
    if (p % CHUNK == 0 && width % 4 == 0 && aligned(images, y)) {
        load8<true>(images, source(first), n, v);
        store8<true>(y, first, n, v);
    } else {
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j)
            if (first + j < n) v[j] = images[source(first + j)];
        store8<false>(y, first, n, v);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    patchify_f32(const float* images, float* y, u32 batch, u32 channels, u32 height, u32 width, u32 p) {
    patchify(images, y, batch, channels, height, width, p);
}
extern "C" __global__ void __launch_bounds__(256)
    patchify_bf16(const float* images, bf16* y, u32 batch, u32 channels, u32 height, u32 width, u32 p) {
    patchify(images, y, batch, channels, height, width, p);
}
