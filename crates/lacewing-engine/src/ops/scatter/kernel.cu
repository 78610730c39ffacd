// Blocks to their places in a matrix, and the gradient back.
//
// scatter_blocks   dense[row(i) br + r, col(i) bc + c] = values[i, r, c]; the rest of dense is left as it is
// gather_blocks    dvalues[i, r, c] += ddense[row(i) br + r, col(i) bc + c]
//
//   values [nnz, br, bc] T   dvalues the same, f32   positions [nnz, 2] u32: (block row, block column)   dense [n_out, n_in] T, ddense T or f32
// Positions are distinct, so no two threads write one place.
// Launch: block 256, grid ceil(nnz br ceil(bc / 8) / 256).

// Calls f(offset in values, offset in dense, first column in the block) for this thread's chunk of a block's row.
template <class F>
__device__ __forceinline__ void at_chunk(const uint2* positions, u32 nnz, u32 br, u32 bc, u32 n_in, F f) {
    const u32 chunks = chunks_of(bc);
    u64 row, block;
    u32 chunk, r;
    divide(global_thread(), chunks, row, chunk);
    divide(row, br, block, r);
    if (block >= nnz) return;
    const uint2 at = positions[block];
    f(row * bc, ((u64)at.x * br + r) * n_in + (u64)at.y * bc, chunk * CHUNK);
}

template <class T>
__device__ __forceinline__ void scatter_blocks(const T* values, const uint2* positions, T* dense, u32 nnz, u32 br,
                                               u32 bc, u32 n_in) {
    const bool vec = (bc | n_in) % CHUNK == 0 && aligned(values, dense);
    at_chunk(positions, nnz, br, bc, n_in, [&](u64 from, u64 to, u32 first) {
        float v[CHUNK];
        if (vec) {
            load8<true>(values + from, first, bc, v);
            store8<true>(dense + to, first, bc, v);
        } else {
            load8<false>(values + from, first, bc, v);
            store8<false>(dense + to, first, bc, v);
        }
    });
}

template <class T>
__device__ __forceinline__ void gather_blocks(const T* ddense, const uint2* positions, float* dvalues, u32 nnz, u32 br,
                                              u32 bc, u32 n_in) {
    const bool vec = (bc | n_in) % CHUNK == 0 && aligned(ddense, dvalues);
    at_chunk(positions, nnz, br, bc, n_in, [&](u64 to, u64 from, u32 first) {
        float v[CHUNK], sum[CHUNK];
        if (vec) {
            load8<true>(ddense + from, first, bc, v);
            load8<true>(dvalues + to, first, bc, sum);
        } else {
            load8<false>(ddense + from, first, bc, v);
            load8<false>(dvalues + to, first, bc, sum);
        }
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) sum[j] += v[j];
        if (vec) store8<true>(dvalues + to, first, bc, sum);
        else store8<false>(dvalues + to, first, bc, sum);
    });
}

#define ENTRIES(T, SUFFIX)                                                                                          \
    extern "C" __global__ void __launch_bounds__(256) scatter_blocks_##SUFFIX(                                      \
        const T* values, const uint2* positions, T* dense, u32 nnz, u32 br, u32 bc, u32 n_in) {                     \
        scatter_blocks(values, positions, dense, nnz, br, bc, n_in);                                                \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(256) gather_blocks_##SUFFIX(                                       \
        const T* ddense, const uint2* positions, float* dvalues, u32 nnz, u32 br, u32 bc, u32 n_in) {               \
        gather_blocks(ddense, positions, dvalues, nnz, br, bc, n_in);                                               \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
