// Weights times one factor where N:M keeps them and another where it drops them.
//
//   out[i] = values[i] * (rank(i) < n ? kept : dropped)   (+ out[i])
//
// rank(i) counts the weights of i's group that are larger, or as large and of a higher index; beyond the end of a line
// weights are zeros. A thread has one weight and reads its group, which its neighbors read as well.
//
//   by values [rows, cols] f32   out [rows, cols] T, may be values

template <class T>
__device__ __forceinline__ void scale_by_rank(const float* by, const float* values, T* out, u32 rows, u32 cols, u32 n,
                                              u32 m, u32 along_rows, float kept, float dropped, u32 accumulate) {
    const u64 i = global_thread();
    if (i >= (u64)rows * cols) return;
    u64 row;
    u32 col;
    divide(i, cols, row, col);
    const u32 place = along_rows ? col : (u32)row;
    const u32 len = along_rows ? cols : rows;
    const u32 stride = along_rows ? 1 : cols;
    const u32 in_group = place % m;
    const float* group = by + (i - (u64)in_group * stride);
    const u32 mine = __float_as_uint(by[i]) & 0x7fffffffu;
    const u32 first = place - in_group;
    u32 rank = 0;
    for (u32 j = 0; j < m; ++j) {
        const u32 other = first + j < len ? __float_as_uint(group[(u64)j * stride]) & 0x7fffffffu : 0u;
        rank += other > mine || (other == mine && j > in_group);
    }
    const float value = values[i] * (rank < n ? kept : dropped);
    out[i] = from_f32<T>(accumulate ? to_f32(out[i]) + value : value);
}

// Launch: block 256, grid ceil(rows cols / 256).
extern "C" __global__ void __launch_bounds__(256)
    nm_scale_f32(const float* by, const float* values, float* out, u32 rows, u32 cols, u32 n, u32 m, u32 along_rows,
                 float kept, float dropped, u32 accumulate) {
    scale_by_rank(by, values, out, rows, cols, n, m, along_rows, kept, dropped, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    nm_scale_bf16(const float* by, const float* values, bf16* out, u32 rows, u32 cols, u32 n, u32 m, u32 along_rows,
                  float kept, float dropped, u32 accumulate) {
    scale_by_rank(by, values, out, rows, cols, n, m, along_rows, kept, dropped, accumulate);
}
