// Attention with warpgroup products (wgmma), for sm_90a and head dimension 64, the whole sequence in shared memory.
// Views, sizes and conventions are those of kernel.cu.
//
// attention_forward_wide_d64             sm_90a, T <= 256, faster from about T = 100
//   (q, k, v, out, lse, batch, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch, out_row, out_batch, scale, causal)
//   block 128 C, grid min(B * H, SMS * resident), shared 768 R + 1024
//     for each head of this block:  wait for its Q, K, V; start copying the next head's; then as above, 64 queries a warpgroup
//   The tensor cores read K and V from shared memory themselves (wgmma), once for 64 queries instead of once for 16, which is
//   what bounds the kernel above. Warps past T skip the softmax.
//
// attention_backward_wide_d64            sm_90a, T <= 224, faster from about T = 100
//   the arguments of attention_backward_short
//   block 256, grid min(B * H, SMS), shared 128 R (4 + C) + 8 R + 1024
//     the same plan with wgmma: a warpgroup takes 64 keys, then (dQ) 64 queries at a time; dS^T lies in C panels of 64
//     queries, swizzled as the tensor cores want a transposed A operand
//   Two warpgroups at 255 registers beat three or four with smaller steps (measured), since the step of 64 queries needs the
//   registers: dK and dV 64, S and dO V^T 64, P and dS 32, K and V operands 32.

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
namespace attention {


// Operand descriptor: 128-byte rows, swizzled as in tile_offset<64>, groups of eight rows 1024 bytes apart.
__device__ __forceinline__ unsigned long long operand(u32 address) {
    return (unsigned long long)((address & 0x3ffff) >> 4) | (64ull << 16) | (64ull << 32) | (1ull << 62);
}

__device__ __forceinline__ void warpgroup_arrive() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void warpgroup_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// Makes this thread's shared-memory writes (and its finished copies) visible to the tensor cores' operand reads.
__device__ __forceinline__ void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define ATTENTION_ACCUMULATORS_16(c)                                                                                          \
    "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3])
#define ATTENTION_ACCUMULATORS_64(c)                                                                                          \
    ATTENTION_ACCUMULATORS_16(c), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]),   \
        "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]),              \
        "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]),              \
        "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])

// c[64 x 64] = (add ? c : 0) + a[64 x 16] b[16 x 64]. The rows of b's tile run along the reduction when TRANSPOSED_B is 1,
// along the columns of c when it is 0.
template <int TRANSPOSED_B>
__device__ __forceinline__ void warpgroup_mma(float (&c)[8][4], const u32 (&a)[4], unsigned long long b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
        "%25,%26,%27,%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, p, 1, 1, %38;\n}\n"
        : ATTENTION_ACCUMULATORS_64(c)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED_B)
        : "memory");
}

// c[64 x 16], likewise.
template <int TRANSPOSED_B>
__device__ __forceinline__ void warpgroup_mma(float (&c)[2][4], const u32 (&a)[4], unsigned long long b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, p, 1, 1, "
        "%14;\n}\n"
        : ATTENTION_ACCUMULATORS_16(c)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add), "n"(TRANSPOSED_B)
        : "memory");
}

// Both operands from shared memory, the rows of both tiles along the reduction.
__device__ __forceinline__ void warpgroup_mma_transposed(float (&c)[8][4], unsigned long long a, unsigned long long b, int add) {
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,"
        "%25,%26,%27,%28,%29,%30,%31}, "
        "%32, %33, p, 1, 1, 1, 1;\n}\n"
        : ATTENTION_ACCUMULATORS_64(c)
        : "l"(a), "l"(b), "r"(add)
        : "memory");
}

// A-operand fragments of 16 rows of a tile; zeros for rows from `rows` on, which the tile does not have.
__device__ __forceinline__ void load_operand(u32 (&a)[4][4], u32 tile, int first_row, int rows) {
    const u32 down = lane_offset_down<64>();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        a[i][0] = a[i][1] = a[i][2] = a[i][3] = 0;
        if (first_row < rows) {
            load_matrices(a[i], tile + first_row * 128 + (down ^ (i * 32)));
        }
    }
}

template <int BLOCKS, bool MASKED>
__device__ __forceinline__ void forward_wide_step(float (&o)[1][8][4], float (&row_max)[1][2], float (&row_sum)[1][2],
                                                  const u32 (&q)[4][4], u32 k_tile, u32 v_tile, int first_key, int first_row,
                                                  int tokens, int causal, float scale_log2) {
    const unsigned long long k_block = operand(k_tile + first_key * 128);
    const unsigned long long v_block = operand(v_tile + first_key * 128);
    float s[1][2 * BLOCKS][4];
    warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        warpgroup_mma<0>(s[0], q[i], k_block + i * 2, i > 0);
    }
    warpgroup_commit();
    warpgroup_wait();
    if (first_row < tokens) {
        softmax_step<64, 1, BLOCKS, MASKED>(s, o, row_max, row_sum, first_key, first_row, tokens, causal, scale_log2);
    }
    u32 p[BLOCKS][4];
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
        pack_operand(p[n], s[0][2 * n], s[0][2 * n + 1]);
    }
    warpgroup_arrive();
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
        warpgroup_mma<1>(o[0], p[n], v_block + n * 128, 1);
    }
    warpgroup_commit();
    warpgroup_wait();
}

__device__ __forceinline__ void forward_wide(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int batch,
                                             int heads, int tokens, i64 q_row, i64 q_batch, i64 k_row, i64 k_batch, i64 v_row,
                                             i64 v_batch, i64 out_row, i64 out_batch, float scale, int causal) {
    const int lane = threadIdx.x & 31;
    const int rows = (tokens + 15) & ~15;
    const u32 matrix_bytes = rows * 128;
    const u32 base = (shared_base() + 1023) & ~1023u;
    const int first_row = __shfl_sync(ALL_LANES, threadIdx.x >> 5, 0) * 16;
    const int group_row = first_row & ~63;
    const int key_end = causal ? min(tokens, group_row + 64) : tokens;
    const float scale_log2 = scale * LOG2_E;
    auto fetch = [&](int bh, u32 slot) {
        const i64 b = bh / heads;
        const int column = (bh % heads) * 64;
        copy_tile<64>(slot, q + b * q_batch + column, q_row, 0, rows, tokens);
        copy_tile<64>(slot + matrix_bytes, k + b * k_batch + column, k_row, 0, rows, tokens);
        copy_tile<64>(slot + 2 * matrix_bytes, v + b * v_batch + column, v_row, 0, rows, tokens);
        copy_commit();
    };
    int turn = 0;
    fetch(blockIdx.x, base);
    for (int bh = blockIdx.x; bh < batch * heads; bh += gridDim.x, turn ^= 1) {
        const u32 q_tile = base + turn * 3 * matrix_bytes;
        const u32 k_tile = q_tile + matrix_bytes;
        const u32 v_tile = k_tile + matrix_bytes;
        copy_wait();
        publish_shared();
        __syncthreads();
        if (bh + gridDim.x < batch * heads) {
            fetch(bh + gridDim.x, base + (turn ^ 1) * 3 * matrix_bytes);
        }
        u32 q_rows[4][4];
        load_operand(q_rows, q_tile, first_row, rows);
        float o[1][8][4];
        float row_max[1][2];
        float row_sum[1][2];
        clear(o);
        fill(row_max, -infinity());
        fill(row_sum, 0.0f);
        int key = 0;
#pragma unroll 1
        for (; key + 64 <= key_end; key += 64) {
            if (causal) {
                forward_wide_step<4, true>(o, row_max, row_sum, q_rows, k_tile, v_tile, key, first_row, tokens, causal, scale_log2);
            } else {
                forward_wide_step<4, false>(o, row_max, row_sum, q_rows, k_tile, v_tile, key, first_row, tokens, 0, scale_log2);
            }
        }
#pragma unroll 1
        for (; key < key_end; key += 16) {
            forward_wide_step<1, true>(o, row_max, row_sum, q_rows, k_tile, v_tile, key, first_row, tokens, causal, scale_log2);
        }
        float factor[1][2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = quad_sum(row_sum[0][half]);
            factor[0][half] = 1.0f / sum;
            const int row = first_row + half * 8 + (lane >> 2);
            if (row < tokens && (lane & 3) == 0) {
                lse[(i64)bh * tokens + row] = (row_max[0][half] + log2_fast(sum)) * LN_2;
            }
        }
        store_rows<64, 1>(o, factor, out + (bh / heads) * out_batch + (bh % heads) * 64, out_row, first_row, tokens);
    }
}

// 16 * BLOCKS queries against this warpgroup's 64 keys, as backward_step; dS^T goes to the swizzled panel `ds` of these
// queries. Leaves the two last products under way.
template <int BLOCKS>
__device__ __forceinline__ void backward_wide_step(float (&dk)[1][8][4], float (&dv)[1][8][4], const u32 (&k)[4][4],
                                                   const u32 (&v)[4][4], u32 q_block, u32 do_block, u32 statistics,
                                                   u32 delta_bytes, u32 ds, int first_query, int first_key, int rows,
                                                   int tokens, int causal, float scale_log2) {
    const int lane = threadIdx.x & 31;
    const unsigned long long q_operand = operand(q_block);
    const unsigned long long do_operand = operand(do_block);
    float s[1][2 * BLOCKS][4];
    float dp[1][2 * BLOCKS][4];
    warpgroup_arrive();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        warpgroup_mma<0>(s[0], k[i], q_operand + i * 2, i > 0);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        warpgroup_mma<0>(dp[0], v[i], do_operand + i * 2, i > 0);
    }
    warpgroup_commit();
    warpgroup_wait();
    u32 p_rows[1][BLOCKS][4];
    u32 ds_rows[1][BLOCKS][4];
    gradient_step<1, BLOCKS>(p_rows, ds_rows, s, dp, statistics, delta_bytes, first_query, first_key, tokens, causal, scale_log2);
    warpgroup_arrive();
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
        warpgroup_mma<1>(dv[0], p_rows[0][n], do_operand + n * 128, 1);
        warpgroup_mma<1>(dk[0], ds_rows[0][n], q_operand + n * 128, 1);
    }
    warpgroup_commit();
    if (first_key < rows) {
#pragma unroll
        for (int n = 0; n < BLOCKS; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = first_key + (i & 1) * 8 + (lane >> 2);
                const int chunk = ((first_query & 63) >> 3) + n * 2 + (i >> 1);
                store_shared(ds + tile_offset<64>(key, chunk) + (lane & 3) * 4, ds_rows[0][n][i]);
            }
        }
    }
}

// Two warpgroups hold a whole (sample, head): attention_backward_wide_d64 above.
__device__ __forceinline__ void backward_wide(const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* dout,
                                              const float* lse, bf16* dq, bf16* dk, bf16* dv, int batch, int heads, int tokens,
                                              i64 q_row, i64 q_batch, i64 k_row, i64 k_batch, i64 v_row, i64 v_batch,
                                              i64 out_row, i64 out_batch, i64 dout_row, i64 dout_batch, i64 dq_row,
                                              i64 dq_batch, i64 dk_row, i64 dk_batch, i64 dv_row, i64 dv_batch, float scale,
                                              int causal) {
    constexpr int GROUPS = 2;
    constexpr int THREADS = 128 * GROUPS;
    constexpr int PIECES = 224 * 8 / THREADS;
    // Through a shuffle, so that the compiler sees one value for the whole warp and keeps the products asynchronous.
    const int group = __shfl_sync(ALL_LANES, threadIdx.x >> 7, 0);
    const int warp_row = __shfl_sync(ALL_LANES, (threadIdx.x >> 5) & 3, 0) * 16;
    const int rows = (tokens + 15) & ~15;
    const u32 matrix_bytes = rows * 128;
    const u32 q_tile = (shared_base() + 1023) & ~1023u;
    const u32 do_tile = q_tile + matrix_bytes;
    const u32 k_tiles = do_tile + matrix_bytes;
    const u32 ds_panels = k_tiles + 2 * matrix_bytes;
    const int panels = (rows + 63) / 64;
    const u32 statistics = ds_panels + panels * matrix_bytes;
    const u32 delta_bytes = rows * 4;
    const float scale_log2 = scale * LOG2_E;

    u32 v_rows[1][4][4];
    uint4 out_pieces[PIECES];
    float row_lse;
    auto fetch_shared = [&](int bh, u32 k_tile) {
        const i64 b = bh / heads;
        const int column = (bh % heads) * 64;
        copy_tile<64>(q_tile, q + b * q_batch + column, q_row, 0, rows, tokens);
        copy_tile<64>(k_tile, k + b * k_batch + column, k_row, 0, rows, tokens);
        copy_tile<64>(do_tile, dout + b * dout_batch + column, dout_row, 0, rows, tokens);
        copy_commit();
    };
    auto fetch_registers = [&](int bh) {
        const i64 b = bh / heads;
        const int column = (bh % heads) * 64;
        load_rows<64, 1>(v_rows, v + b * v_batch + column, v_row, group * 64 + warp_row, tokens);
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            const int row = (threadIdx.x + THREADS * i) / 8;
            out_pieces[i] = make_uint4(0, 0, 0, 0);
            if (row < tokens) {
                out_pieces[i] = __ldg((const uint4*)(out + b * out_batch + row * out_row + column + (threadIdx.x & 7) * 8));
            }
        }
        row_lse = infinity();
        if (threadIdx.x < tokens) {
            row_lse = lse[(i64)bh * tokens + threadIdx.x] * LOG2_E;
        }
    };

    int turn = 0;
    fetch_shared(blockIdx.x, k_tiles);
    fetch_registers(blockIdx.x);
    for (int bh = blockIdx.x; bh < batch * heads; bh += gridDim.x, turn ^= 1) {
        const u32 k_tile = k_tiles + turn * matrix_bytes;
        const i64 b = bh / heads;
        const int column = (bh % heads) * 64;
        copy_wait();
        publish_shared();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            const int row = (threadIdx.x + THREADS * i) / 8;
            const uint4 x = out_pieces[i];
            uint4 y = make_uint4(0, 0, 0, 0);
            if (row < rows) {
                y = load_shared_vector(do_tile + tile_offset<64>(row, threadIdx.x & 7));
            }
            float sum = low_half(x.x) * low_half(y.x) + high_half(x.x) * high_half(y.x);
            sum += low_half(x.y) * low_half(y.y) + high_half(x.y) * high_half(y.y);
            sum += low_half(x.z) * low_half(y.z) + high_half(x.z) * high_half(y.z);
            sum += low_half(x.w) * low_half(y.w) + high_half(x.w) * high_half(y.w);
#pragma unroll
            for (int step = 4; step > 0; step >>= 1) {
                sum += __shfl_xor_sync(ALL_LANES, sum, step);
            }
            if ((threadIdx.x & 7) == 0 && row < rows) {
                store_shared(statistics + delta_bytes + row * 4, sum);
            }
        }
        if (threadIdx.x < rows) {
            store_shared(statistics + threadIdx.x * 4, row_lse);
        }
        __syncthreads();

        float factor[1][2];
#pragma unroll 1
        for (int block = group; block < panels; block += GROUPS) {
            const int first_key = block * 64 + warp_row;
            u32 k_rows[4][4];
            load_operand(k_rows, k_tile, first_key, rows);
            float dk_rows[1][8][4];
            float dv_rows[1][8][4];
            clear(dk_rows);
            clear(dv_rows);
            int query = causal ? block * 64 : 0;
#pragma unroll 1
            for (; query + 64 <= rows; query += 64) {
                backward_wide_step<4>(dk_rows, dv_rows, k_rows, v_rows[0], q_tile + query * 128,
                                      do_tile + query * 128, statistics + query * 4, delta_bytes,
                                      ds_panels + (query / 64) * matrix_bytes, query, first_key, rows, tokens, causal,
                                      scale_log2);
            }
#pragma unroll 1
            for (; query < rows; query += 16) {
                backward_wide_step<1>(dk_rows, dv_rows, k_rows, v_rows[0], q_tile + query * 128,
                                      do_tile + query * 128, statistics + query * 4, delta_bytes,
                                      ds_panels + (query / 64) * matrix_bytes, query, first_key, rows, tokens, causal,
                                      scale_log2);
            }
            warpgroup_wait();
            publish_shared();
            load_rows<64, 1>(v_rows, v + b * v_batch + column, v_row, first_key + 64 * GROUPS, tokens);
            fill(factor, scale);
            store_rows<64, 1>(dk_rows, factor, dk + b * dk_batch + column, dk_row, first_key, tokens);
            fill(factor, 1.0f);
            store_rows<64, 1>(dv_rows, factor, dv + b * dv_batch + column, dv_row, first_key, tokens);
        }
        __syncthreads();

        // Q, dO and the other K tile are free: the next head's loads run under the last product.
        if (bh + gridDim.x < batch * heads) {
            fetch_shared(bh + gridDim.x, k_tiles + (turn ^ 1) * matrix_bytes);
            fetch_registers(bh + gridDim.x);
        }
#pragma unroll 1
        for (int panel = group; panel < panels; panel += GROUPS) {
            const int key_end = causal ? min(rows, panel * 64 + 64) : rows;
            const u32 ds = ds_panels + panel * matrix_bytes;
            float dq_rows[1][8][4];
            clear(dq_rows);
            const unsigned long long ds_operand = operand(ds);
            const unsigned long long k_operand = operand(k_tile);
#pragma unroll 1
            for (int block = 0; block < key_end / 16; ++block) {
                warpgroup_arrive();
                warpgroup_mma_transposed(dq_rows[0], ds_operand + block * 128, k_operand + block * 128, 1);
                warpgroup_commit();
            }
            warpgroup_wait();
            fill(factor, scale);
            store_rows<64, 1>(dq_rows, factor, dq + b * dq_batch + column, dq_row, panel * 64 + warp_row, tokens);
        }
    }
}

}  // namespace attention

extern "C" __global__ __launch_bounds__(512, 1) void attention_forward_wide_d64(
    const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int batch, int heads, int tokens, i64 q_row, i64 q_batch,
    i64 k_row, i64 k_batch, i64 v_row, i64 v_batch, i64 out_row, i64 out_batch, float scale, int causal) {
    attention::forward_wide(q, k, v, out, lse, batch, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch, out_row,
                            out_batch, scale, causal);
}

extern "C" __global__ __launch_bounds__(256, 1) void attention_backward_wide_d64(
    const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* dout, const float* lse, bf16* dq, bf16* dk, bf16* dv,
    int batch, int heads, int tokens, i64 q_row, i64 q_batch, i64 k_row, i64 k_batch, i64 v_row, i64 v_batch, i64 out_row,
    i64 out_batch, i64 dout_row, i64 dout_batch, i64 dq_row, i64 dq_batch, i64 dk_row, i64 dk_batch, i64 dv_row, i64 dv_batch,
    float scale, int causal) {
    attention::backward_wide(q, k, v, out, dout, lse, dq, dk, dv, batch, heads, tokens, q_row, q_batch, k_row, k_batch, v_row,
                             v_batch, out_row, out_batch, dout_row, dout_batch, dq_row, dq_batch, dk_row, dk_batch, dv_row,
                             dv_batch, scale, causal);
}
#endif
