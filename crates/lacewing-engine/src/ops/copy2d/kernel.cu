// dst[r, dst_off + c] = src[r, src_off + c] for c < n, and 0 for n <= c < width: pads, truncates or places columns.
//
//   src [R, src_cols] T   dst [R, dst_cols] T   n <= width, src_off + n <= src_cols, dst_off + width <= dst_cols
//
// Bits are moved, not converted, so one pair of entry points serves every type of 2 or 4 bytes; a thread moves 16 bytes.
// Launch: block 256, grid ceil(R * ceil(width / per_thread) / 256), per_thread = 16 bytes of elements.

template <class T>
__device__ __forceinline__ void copy2d(const T* src, T* dst, u32 rows, u32 src_cols, u32 src_off, u32 dst_cols,
                                       u32 dst_off, u32 n, u32 width) {
    constexpr u32 PER = 16 / sizeof(T);
    const u32 pieces = (width + PER - 1) / PER;
    const u64 i = global_thread();
    if (i >= (u64)rows * pieces) return;
    u64 row;
    u32 piece;
    divide(i, pieces, row, piece);
    const u32 first = piece * PER;
    const T* from = src + row * src_cols + src_off + first;
    T* to = dst + row * dst_cols + dst_off + first;
    const bool whole = (src_cols | src_off | dst_cols | dst_off | n | width) % PER == 0 && aligned(src, dst);
    if (whole) {
        uint4 v = make_uint4(0, 0, 0, 0);
        if (first < n) v = *reinterpret_cast<const uint4*>(from);
        *reinterpret_cast<uint4*>(to) = v;
    } else {
#pragma unroll
        for (u32 j = 0; j < PER; ++j)
            if (first + j < width) to[j] = first + j < n ? from[j] : T(0);
    }
}

extern "C" __global__ void __launch_bounds__(256)
    copy2d_f32(const u32* src, u32* dst, u32 rows, u32 src_cols, u32 src_off, u32 dst_cols, u32 dst_off, u32 n,
               u32 width) {
    copy2d(src, dst, rows, src_cols, src_off, dst_cols, dst_off, n, width);
}
extern "C" __global__ void __launch_bounds__(256)
    copy2d_bf16(const u16* src, u16* dst, u32 rows, u32 src_cols, u32 src_off, u32 dst_cols, u32 dst_off, u32 n,
                u32 width) {
    copy2d(src, dst, rows, src_cols, src_off, dst_cols, dst_off, n, width);
}
