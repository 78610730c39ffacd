// Sums and factors of the blocks [rows, cols] of a matrix [n_out, n_in]; those at its ends may be cut.
//
//   score_blocks   scores[b] -= sum of gradient weight over block b, a warp a block, in a fixed order
//   scale_blocks   out[i] = values[i] mask[block of i], a thread an element
//
//   gradient weight values [n_out, n_in] f32   scores mask [ceil(n_out / rows), ceil(n_in / cols)] f32   out T, may be values

// Launch: block 256, grid ceil(blocks / 8).
extern "C" __global__ void __launch_bounds__(256)
    score_blocks(const float* gradient, const float* weight, float* scores, u32 n_out, u32 n_in, u32 rows, u32 cols) {
    const u32 across = (n_in + cols - 1) / cols, down = (n_out + rows - 1) / rows;
    const u64 block = global_thread() / WARP;
    if (block >= (u64)across * down) return;
    u64 block_row;
    u32 block_col;
    divide(block, across, block_row, block_col);
    float sum = 0.0f;
    for (u64 at = threadIdx.x % WARP; at < (u64)rows * cols; at += WARP) {
        u64 i;
        u32 j;
        divide(at, cols, i, j);
        const u64 row = block_row * rows + i, col = (u64)block_col * cols + j;
        if (row < n_out && col < n_in) sum = fmaf(gradient[row * n_in + col], weight[row * n_in + col], sum);
    }
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
    if (threadIdx.x % WARP == 0) scores[block] -= sum;
}

template <class T>
__device__ __forceinline__ void scale_by_block(const float* values, const float* mask, T* out, u32 n_out, u32 n_in, u32 rows,
                                               u32 cols) {
    const u64 i = global_thread();
    if (i >= (u64)n_out * n_in) return;
    u64 row;
    u32 col;
    divide(i, n_in, row, col);
    const u32 across = (n_in + cols - 1) / cols;
    out[i] = from_f32<T>(values[i] * mask[row / rows * across + col / cols]);
}

// Launch: block 256, grid ceil(n_out n_in / 256).
extern "C" __global__ void __launch_bounds__(256)
    scale_blocks_f32(const float* values, const float* mask, float* out, u32 n_out, u32 n_in, u32 rows, u32 cols) {
    scale_by_block(values, mask, out, n_out, n_in, rows, cols);
}
extern "C" __global__ void __launch_bounds__(256)
    scale_blocks_bf16(const float* values, const float* mask, bf16* out, u32 n_out, u32 n_in, u32 rows, u32 cols) {
    scale_by_block(values, mask, out, n_out, n_in, rows, cols);
}
