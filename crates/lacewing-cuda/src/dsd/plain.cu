// Products with a block-sparse weight in plain arithmetic: any type, any block, sums in f32.
//
//   x [rows, n_in]   y [rows, n_out]   values [n_blocks, block_rows, block_cols]
//
// Forward and input gradient are one kernel: one thread an element of `out`, 32 columns by 8 rows a thread block,
// thread blocks numbered columns first. An element of a block is at n * stride_line + k * stride_sum, where n runs
// along `out` and k along the sum.
//
// Weight gradient: a thread block owns 32 columns of one row of one block; its 8 warps take every 8th row of x and
// d_y each, and their sums are added in the order of the warps.

using namespace lw;

template <typename T>
__device__ __forceinline__ void multiply(
    const T* __restrict__ in, const T* __restrict__ values, T* __restrict__ out, const u32* __restrict__ offsets,
    const u32* __restrict__ blocks, const u32* __restrict__ slots, u64 rows, u64 n_sum, u64 n_line,
    u64 block_sum, u64 block_line, u64 stride_line, u64 stride_sum)
{
    const u64 n_tiles = (n_line + 31) / 32;
    const u64 col = blockIdx.x % n_tiles * 32 + threadIdx.x;
    const u64 row = blockIdx.x / n_tiles * 8 + threadIdx.y;
    if (row >= rows || col >= n_line) return;

    const u64 line = col / block_line;
    const T* const in_row = in + row * n_sum;
    float sum = 0.0f;
    for (u32 entry = offsets[line]; entry < offsets[line + 1]; ++entry) {
        const u32 slot = slots ? slots[entry] : entry;
        const T* const block = values + slot * block_sum * block_line + col % block_line * stride_line;
        const T* const part = in_row + blocks[entry] * block_sum;
        for (u64 k = 0; k < block_sum; ++k)
            sum = fmaf(to_f32(part[k]), to_f32(block[k * stride_sum]), sum);
    }
    out[row * n_line + col] = from_f32<T>(sum);
}

template <typename T>
__device__ __forceinline__ void weight_gradient(
    const T* __restrict__ d_y, const T* __restrict__ x, float* __restrict__ d_values,
    const u32* __restrict__ block_row, const u32* __restrict__ block_col, u64 rows, u64 n_out, u64 n_in,
    u64 block_rows, u64 block_cols)
{
    __shared__ float sums[8][32];
    const u64 n_tiles = (block_cols + 31) / 32;
    const u64 col = blockIdx.x % n_tiles * 32 + threadIdx.x;
    const u64 line = blockIdx.x / n_tiles;                  // slot and row of the block
    const u64 slot = line / block_rows;
    const T* const left = d_y + block_row[slot] * block_rows + line % block_rows;
    const T* const right = x + block_col[slot] * block_cols + col;

    float sum = 0.0f;
    if (col < block_cols)
        for (u64 row = threadIdx.y; row < rows; row += 8)
            sum = fmaf(to_f32(left[row * n_out]), to_f32(right[row * n_in]), sum);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || col >= block_cols) return;
    for (u32 warp = 1; warp < 8; ++warp) sum += sums[warp][threadIdx.x];
    d_values[line * block_cols + col] += sum;
}

#define KERNELS(T)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(256) forward_##T(                                                    \
        const T* x, const T* values, T* y, const u32* row_offsets, const u32* cols, u64 rows, u64 n_in, u64 n_out,    \
        u64 block_rows, u64 block_cols)                                                                               \
    {                                                                                                                 \
        multiply<T>(x, values, y, row_offsets, cols, nullptr, rows, n_in, n_out, block_cols, block_rows, block_cols,  \
                    1);                                                                                               \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) input_gradient_##T(                                             \
        const T* d_y, const T* values, T* d_x, const u32* col_offsets, const u32* by_col_rows,                        \
        const u32* by_col_slots, u64 rows, u64 n_in, u64 n_out, u64 block_rows, u64 block_cols)                       \
    {                                                                                                                 \
        multiply<T>(d_y, values, d_x, col_offsets, by_col_rows, by_col_slots, rows, n_out, n_in, block_rows,          \
                    block_cols, 1, block_cols);                                                                       \
    }                                                                                                                 \
    extern "C" __global__ void __launch_bounds__(256) weight_gradient_##T(                                            \
        const T* d_y, const T* x, float* d_values, const u32* block_row, const u32* block_col, u64 rows, u64 n_out,   \
        u64 n_in, u64 block_rows, u64 block_cols)                                                                     \
    {                                                                                                                 \
        weight_gradient<T>(d_y, x, d_values, block_row, block_col, rows, n_out, n_in, block_rows, block_cols);        \
    }
KERNELS(float)
KERNELS(bf16)
KERNELS(f16)
