// Pieces of the attention kernels: scalars, tensor-core fragments, shared-memory tiles. Stands before kernel.cu and
// before wide.cu.


typedef long long i64;

namespace attention {

// A warp works on TILES tiles of 16 rows. The entry points take one: two halve the shared-memory reads a product but leave too
// few warps to hide latency (measured at T = 197, D = 64: forward 226 us for 205, backward_short 594 for 524).
//
// Rows of the key (or query) tile that streams through shared memory in the kernels for any T.
constexpr int STREAM_ROWS = 64;
constexpr int STREAM_BLOCKS = STREAM_ROWS / 16;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float low_half(u32 word) { return __uint_as_float(word << 16); }
__device__ __forceinline__ float high_half(u32 word) { return __uint_as_float(word & 0xffff0000u); }

__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// c[16 x 8] += a[16 x 16] b[16 x 8]
__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two accumulators side by side, rounded to bf16, are the A operand of a product over their 16 columns.
__device__ __forceinline__ void pack_operand(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = pack_bf16(left[0], left[1]);
    a[1] = pack_bf16(left[2], left[3]);
    a[2] = pack_bf16(right[0], right[1]);
    a[3] = pack_bf16(right[2], right[3]);
}

__device__ __forceinline__ void load_matrices(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(u32 (&r)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(address) : "memory");
}

__device__ __forceinline__ void store_shared(u32 address, u32 word) {
    asm volatile("st.shared.u32 [%0], %1;" :: "r"(address), "r"(word) : "memory");
}

__device__ __forceinline__ void store_shared(u32 address, float x) {
    asm volatile("st.shared.f32 [%0], %1;" :: "r"(address), "f"(x) : "memory");
}

__device__ __forceinline__ float2 load_shared_pair(u32 address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}

__device__ __forceinline__ uint4 load_shared_vector(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

// 16 bytes to shared memory in the background; zeros when `valid` is false.
__device__ __forceinline__ void copy_async(u32 address, const void* source, bool valid) {
    const int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(address), "l"(source), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

// A tile in shared memory holds rows of D bf16. The 16-byte chunk `c` of row `r` lies at chunk c ^ swizzle(r), so that the
// eight rows that one 8 x 8 matrix load touches fall into eight different groups of four banks.
template <int D>
__device__ __forceinline__ int swizzle(int row) {
    return D >= 64 ? row & 7 : (row >> 1) & 3;
}

template <int D>
__device__ __forceinline__ u32 tile_offset(int row, int chunk) {
    return (u32)(row * D * 2 + ((chunk ^ swizzle<D>(row)) << 4));
}

// Where this lane points its matrix loads inside a 16 x 16 block of a tile. With `across`, the second 8 x 8 matrix is the
// right neighbor of the first (B operand whose reduction runs along the row); without, the lower neighbor (A operand, or
// B operand of a transposed load). XOR with 32 * k moves to the k-th 16 columns; adding 16 rows' bytes moves down.
template <int D>
__device__ __forceinline__ u32 lane_offset_across() {
    const int lane = threadIdx.x & 31;
    return tile_offset<D>(((lane >> 4) << 3) + (lane & 7), (lane >> 3) & 1);
}

template <int D>
__device__ __forceinline__ u32 lane_offset_down() {
    const int lane = threadIdx.x & 31;
    return tile_offset<D>((((lane >> 3) & 1) << 3) + (lane & 7), lane >> 4);
}

// Rows first_row .. first_row + rows of a [tokens, D] view into a tile, by all threads of the block; zeros past `tokens`.
template <int D>
__device__ __forceinline__ void copy_tile(u32 tile, const bf16* source, i64 row_stride, int first_row, int rows, int tokens) {
    constexpr int CHUNKS = D / 8;
    for (int i = threadIdx.x; i < rows * CHUNKS; i += blockDim.x) {
        const int row = i / CHUNKS;
        const int chunk = i % CHUNKS;
        const bool valid = first_row + row < tokens;
        const bf16* from = source + (valid ? (i64)(first_row + row) * row_stride + chunk * 8 : 0);
        copy_async(tile + tile_offset<D>(row, chunk), from, valid);
    }
}

// A-operand fragments of 16 * TILES rows, straight from device memory; zeros past `tokens`.
template <int D, int TILES>
__device__ __forceinline__ void load_rows(u32 (&a)[TILES][D / 16][4], const bf16* source, i64 row_stride, int first_row,
                                          int tokens) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + m * 16 + half * 8 + (lane >> 2);
            const bool valid = row < tokens;
            const u32* from = (const u32*)(source + (valid ? (i64)row * row_stride : 0)) + (lane & 3);
#pragma unroll
            for (int k = 0; k < D / 16; ++k) {
                a[m][k][half] = valid ? __ldg(from + k * 8) : 0u;
                a[m][k][half + 2] = valid ? __ldg(from + k * 8 + 4) : 0u;
            }
        }
    }
}

// The four lanes of a quad hold a 4 x 4 block of words by columns; afterwards lane i holds row i.
__device__ __forceinline__ uint4 transpose_quad(u32 x0, u32 x1, u32 x2, u32 x3) {
    const bool odd = threadIdx.x & 1;
    const bool upper = threadIdx.x & 2;
    const u32 got01 = __shfl_xor_sync(ALL_LANES, odd ? x0 : x1, 1);
    const u32 got23 = __shfl_xor_sync(ALL_LANES, odd ? x2 : x3, 1);
    const u32 y0 = odd ? got01 : x0;
    const u32 y1 = odd ? x1 : got01;
    const u32 y2 = odd ? got23 : x2;
    const u32 y3 = odd ? x3 : got23;
    const u32 got_a = __shfl_xor_sync(ALL_LANES, upper ? y0 : y2, 2);
    const u32 got_b = __shfl_xor_sync(ALL_LANES, upper ? y1 : y3, 2);
    return upper ? make_uint4(got_a, got_b, y2, y3) : make_uint4(y0, y1, got_a, got_b);
}

// Accumulators of 16 * TILES rows, times factor[tile][half], to device memory in 16-byte pieces.
template <int D, int TILES>
__device__ __forceinline__ void store_rows(const float (&c)[TILES][D / 8][4], const float (&factor)[TILES][2], bf16* target,
                                           i64 row_stride, int first_row, int tokens) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + m * 16 + half * 8 + (lane >> 2);
            const float f = factor[m][half];
            bf16* to = target + (i64)row * row_stride + (lane & 3) * 8;
#pragma unroll
            for (int n = 0; n < D / 8; n += 4) {
                u32 w[4];
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    w[i] = pack_bf16(c[m][n + i][half * 2] * f, c[m][n + i][half * 2 + 1] * f);
                }
                const uint4 piece = transpose_quad(w[0], w[1], w[2], w[3]);
                if (row < tokens) {
                    *(uint4*)(to + n * 8) = piece;
                }
            }
        }
    }
}

template <int TILES>
__device__ __forceinline__ void fill(float (&x)[TILES][2], float value) {
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
        x[m][0] = value;
        x[m][1] = value;
    }
}

template <int TILES, int N>
__device__ __forceinline__ void clear(float (&c)[TILES][N][4]) {
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                c[m][n][i] = 0.0f;
            }
        }
    }
}

__device__ __forceinline__ u32 shared_base() {
    extern __shared__ __align__(1024) unsigned char shared_memory[];
    return (u32)__cvta_generic_to_shared(shared_memory);
}

// Turns the products s of 16 * BLOCKS keys into exp2(scale_log2 s - maximum), and brings the row's running maximum, its
// sum and the output so far to the new maximum.
template <int D, int TILES, int BLOCKS, bool MASKED>
__device__ __forceinline__ void softmax_step(float (&s)[TILES][2 * BLOCKS][4], float (&o)[TILES][D / 8][4],
                                             float (&row_max)[TILES][2], float (&row_sum)[TILES][2], int first_key,
                                             int first_row, int tokens, int causal, float scale_log2) {
    const int lane = threadIdx.x & 31;
    if (MASKED) {
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = first_row + m * 16 + half * 8 + (lane >> 2);
                const int end = causal ? min(tokens, row + 1) : tokens;
#pragma unroll
                for (int n = 0; n < 2 * BLOCKS; ++n) {
                    const int key = first_key + n * 8 + (lane & 3) * 2;
                    if (key >= end) s[m][n][half * 2] = -infinity();
                    if (key + 1 >= end) s[m][n][half * 2 + 1] = -infinity();
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float top = -infinity();
#pragma unroll
            for (int n = 0; n < 2 * BLOCKS; ++n) {
                top = fmaxf(top, fmaxf(s[m][n][half * 2], s[m][n][half * 2 + 1]));
            }
            // The first step always holds key 0, which every row sees: the maximum is finite from then on.
            const float now = fmaxf(row_max[m][half], quad_max(top) * scale_log2);
            const float shrink = exp2_fast(row_max[m][half] - now);
            row_max[m][half] = now;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < 2 * BLOCKS; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const float p = exp2_fast(fmaf(s[m][n][half * 2 + i], scale_log2, -now));
                    s[m][n][half * 2 + i] = p;
                    sum += p;
                }
            }
            row_sum[m][half] = row_sum[m][half] * shrink + sum;
#pragma unroll
            for (int n = 0; n < D / 8; ++n) {
                o[m][n][half * 2] *= shrink;
                o[m][n][half * 2 + 1] *= shrink;
            }
        }
    }
}

// P^T = exp2(scale_log2 s - lse) and dS^T = P^T (dp - delta) of keys (rows) and 16 * BLOCKS queries (columns), in bf16 as A
// operands. `statistics` holds lse * log2(e) of the queries, and `delta_bytes` further on their delta. Keys past the end,
// and keys later than the query under the causal flag, get P = 0; queries past the end come with lse = inf.
template <int TILES, int BLOCKS>
__device__ __forceinline__ void gradient_step(u32 (&p_rows)[TILES][BLOCKS][4], u32 (&ds_rows)[TILES][BLOCKS][4],
                                              float (&s)[TILES][2 * BLOCKS][4], const float (&dp)[TILES][2 * BLOCKS][4],
                                              u32 statistics, u32 delta_bytes, int first_query, int first_key, int tokens,
                                              int causal, float scale_log2) {
    const int lane = threadIdx.x & 31;
    if (first_key + 16 * TILES > tokens || (causal && first_key + 16 * TILES > first_query)) {
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
#pragma unroll
            for (int n = 0; n < 2 * BLOCKS; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int key = first_key + m * 16 + (i >> 1) * 8 + (lane >> 2);
                    const int query = first_query + n * 8 + (lane & 3) * 2 + (i & 1);
                    if (key >= tokens || (causal && key > query)) s[m][n][i] = -infinity();
                }
            }
        }
    }
#pragma unroll
    for (int n = 0; n < 2 * BLOCKS; ++n) {
        const u32 at = statistics + (n * 8 + (lane & 3) * 2) * 4;
        const float2 lse = load_shared_pair(at);
        const float2 delta = load_shared_pair(at + delta_bytes);
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const float p0 = exp2_fast(fmaf(s[m][n][half * 2], scale_log2, -lse.x));
                const float p1 = exp2_fast(fmaf(s[m][n][half * 2 + 1], scale_log2, -lse.y));
                const int i = (n & 1) * 2 + half;
                p_rows[m][n / 2][i] = pack_bf16(p0, p1);
                ds_rows[m][n / 2][i] = pack_bf16(p0 * (dp[m][n][half * 2] - delta.x), p1 * (dp[m][n][half * 2 + 1] - delta.y));
            }
        }
    }
}

// 16 queries (rows of the q and dout tiles) against this warp's keys, everything transposed so that keys are rows:
//     P^T = exp(scale K Q^T - lse),  dS^T = P^T * (V dO^T - delta),  dV += P^T dO,  dK += dS^T Q

}  // namespace attention
