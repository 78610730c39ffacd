// Attention in bf16 with f32 accumulation:  out = softmax(scale q k^T) v  for every (sample, head), and its gradient.
//
//   q, k, v, out and their gradients   bf16 views: head h of token t of sample b is the D elements from
//                                      base + b * X_batch + t * X_row + h * D (strides in elements)
//   lse, delta                         f32 [B, H, T]: natural logarithm of the softmax denominator; sum of dout * out
//   causal                             0, or 1: token t sees keys 0 ..= t
//
// Bases on 16-byte boundaries, strides multiples of 8, scale > 0, T >= 1. D is 32, 64 or 128: pad q, k, v (and dout) with
// zero columns for a D between, keep the scale of the true D, and drop the columns that come out zero. Packed [B, T, 3, H, D]
// tensors and separate ones differ in base and stride only. No atomics and no split sums: the bits depend on the inputs alone,
// for any grid that a kernel allows. Elements outside [B, T, H, D] are neither read nor written.
//
// Where the bytes that a kernel needs exceed the device's limit for a block (227 KiB on sm_90, 163 on sm_80), take the pair
// `keys` and `queries`; they always fit.
//
// Pointers are 64 bits wide, X_row and X_batch i64, heads, tokens, batch and causal i32, scale f32. All blocks are
// one-dimensional; raise MAX_DYNAMIC_SHARED_SIZE_BYTES to the bytes given. M = ceil(T / 16), R = 16 M, C = ceil(T / 64),
// SMS = multiprocessors, and `resident` what the driver's occupancy query says for that block and those bytes.
//
// attention_forward_d{32,64,128}         any T
//   (q, k, v, out, lse, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch, out_row, out_batch, scale, causal)
//   warps W = ceil(M / ceil(M / 8)), block 32 W, grid B * H * ceil(M / W), shared 512 D
//     for each tile of 64 keys, copied one tile ahead:  S = Q K^T; online softmax; O = O * shrink + P V
//   A warp owns 16 queries and never exchanges anything but the four lanes' maxima and sums; W is chosen so that few warps
//   lie past T (T = 197: 2 blocks of 7 warps for 13 tiles). The last tile is cut to whole 16s of keys.
//
// attention_delta_d{32,64,128}           any T, before the two `keys` and `queries` kernels only
//   (out, dout, delta, batch, heads, tokens, out_row, out_batch, dout_row, dout_batch)
//   block 256, grid ceil(B * T * H * (D / 8) / 256), no shared memory
//
// attention_backward_keys_d{32,64,128}   any T
//   (q, k, v, dout, lse, delta, dk, dv, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch, dout_row, dout_batch,
//    dk_row, dk_batch, dv_row, dv_batch, scale, causal)
//   warps W = ceil(M / ceil(M / 4)), block 32 W, grid B * H * ceil(M / W), shared 512 D + 1024
//     for each tile of 64 queries, in steps of 16:  P^T = exp(scale K Q^T - lse); dS^T = P^T * (V dO^T - delta);
//                                                   dV += P^T dO; dK += dS^T Q
// attention_backward_queries_d{32,64,128}
//   (q, k, v, dout, lse, delta, dq, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch, dout_row, dout_batch,
//    dq_row, dq_batch, scale, causal)
//   the same block and grid, shared 512 D
//     for each tile of 64 keys, in steps of 16:  P, dS as above;  dQ += dS K
//   Keys as rows make P^T and dS^T, as they come out of one product, the A operands of the next without a transposition. The
//   price of two kernels is that S and dO V^T are computed twice (7 products for 5); it buys any T and no sum between blocks.
//
// attention_backward_short_d{32,64,128}  T <= 256, 224, 128
//   (q, k, v, out, dout, lse, dq, dk, dv, batch, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch, out_row,
//    out_batch, dout_row, dout_batch, dq_row, dq_batch, dk_row, dk_batch, dv_row, dv_batch, scale, causal)
//   block 32 M, grid min(B * H, SMS * resident), shared 8 R D + 2 R (R + 8) + 8 R
//     for each head of this block:  delta from out and dO
//                                   warp w, keys 16 w ..: for all queries as in `keys`, and dS^T to shared memory
//                                   start copying the next head;  store dK, dV
//                                   warp w, queries 16 w ..: dQ = dS K, reading dS^T transposed
//   All of dS fits, so that the five products are computed once; two barriers a head, and every warp has the same work.
//
// wide.cu has faster kernels for sm_90a; tiles.cuh what both are made of.

namespace attention {

// ---------------------------------------------------------------------------------------------
// Forward
// ---------------------------------------------------------------------------------------------

// One step of the online softmax: BLOCKS blocks of 16 keys against this warp's query rows.
template <int D, int TILES, int BLOCKS, bool MASKED>
__device__ __forceinline__ void forward_step(float (&o)[TILES][D / 8][4], float (&row_max)[TILES][2], float (&row_sum)[TILES][2],
                                             const u32 (&q)[TILES][D / 16][4], u32 k_tile, u32 v_tile, int first_key, int first_row,
                                             int tokens, int causal, float scale_log2) {
    const u32 across = lane_offset_across<D>();
    const u32 down = lane_offset_down<D>();
    float s[TILES][2 * BLOCKS][4];
    clear(s);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int n = 0; n < BLOCKS; ++n) {
            u32 b[4];
            load_matrices(b, k_tile + n * (16 * D * 2) + (across ^ (k * 32)));
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
                mma(s[m][2 * n], q[m][k], b[0], b[1]);
                mma(s[m][2 * n + 1], q[m][k], b[2], b[3]);
            }
        }
    }
    softmax_step<D, TILES, BLOCKS, MASKED>(s, o, row_max, row_sum, first_key, first_row, tokens, causal, scale_log2);
#pragma unroll
    for (int n = 0; n < BLOCKS; ++n) {
        u32 p[TILES][4];
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            pack_operand(p[m], s[m][2 * n], s[m][2 * n + 1]);
        }
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
            u32 b[4];
            load_matrices_transposed(b, v_tile + n * (16 * D * 2) + (down ^ (d * 32)));
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
                mma(o[m][2 * d], p[m], b[0], b[1]);
                mma(o[m][2 * d + 1], p[m], b[2], b[3]);
            }
        }
    }
}

template <int D, int TILES>
__device__ __forceinline__ void forward(const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int heads, int tokens,
                                        i64 q_row, i64 q_batch, i64 k_row, i64 k_batch, i64 v_row, i64 v_batch, i64 out_row,
                                        i64 out_batch, float scale, int causal) {
    constexpr u32 TILE_BYTES = STREAM_ROWS * D * 2;
    const u32 base = shared_base();
    const int rows = (blockDim.x >> 5) * 16 * TILES;
    const int row_blocks = (tokens + rows - 1) / rows;
    const int bh = blockIdx.x / row_blocks;
    const int block_row = (blockIdx.x % row_blocks) * rows;
    const i64 batch = bh / heads;
    const int column = (bh % heads) * D;
    k += batch * k_batch + column;
    v += batch * v_batch + column;

    const int key_end = causal ? min(tokens, block_row + rows) : tokens;
    const int steps = (key_end + STREAM_ROWS - 1) / STREAM_ROWS;
    auto copy_step = [&](int step) {
        const int first = step * STREAM_ROWS;
        const int count = min(STREAM_ROWS, (key_end - first + 15) & ~15);
        const u32 slot = base + (step & 1) * 2 * TILE_BYTES;
        copy_tile<D>(slot, k, k_row, first, count, tokens);
        copy_tile<D>(slot + TILE_BYTES, v, v_row, first, count, tokens);
        copy_commit();
    };
    copy_step(0);

    const int first_row = block_row + (threadIdx.x >> 5) * 16 * TILES;
    const int warp_key_end = causal ? min(tokens, first_row + 16 * TILES) : tokens;
    u32 q_rows[TILES][D / 16][4];
    load_rows<D, TILES>(q_rows, q + batch * q_batch + column, q_row, first_row, tokens);
    float o[TILES][D / 8][4];
    float row_max[TILES][2];
    float row_sum[TILES][2];
    clear(o);
    fill(row_max, -infinity());
    fill(row_sum, 0.0f);
    const float scale_log2 = scale * LOG2_E;

    for (int step = 0; step < steps; ++step) {
        copy_wait();
        __syncthreads();
        if (step + 1 < steps) {
            copy_step(step + 1);
        }
        const int first_key = step * STREAM_ROWS;
        const u32 k_tile = base + (step & 1) * 2 * TILE_BYTES;
        const u32 v_tile = k_tile + TILE_BYTES;
        const int blocks = first_row < tokens ? (warp_key_end - first_key + 15) / 16 : 0;
        const bool whole = first_key + STREAM_ROWS <= (causal ? min(tokens, first_row + 1) : tokens);
#define ATTENTION_STEP(BLOCKS, MASKED)                                                                                        \
    forward_step<D, TILES, BLOCKS, MASKED>(o, row_max, row_sum, q_rows, k_tile, v_tile, first_key, first_row, tokens, causal, \
                                           scale_log2)
        if (whole && blocks > 0) {
            ATTENTION_STEP(STREAM_BLOCKS, false);
        } else if (blocks >= 4) {
            ATTENTION_STEP(4, true);
        } else if (blocks == 3) {
            ATTENTION_STEP(3, true);
        } else if (blocks == 2) {
            ATTENTION_STEP(2, true);
        } else if (blocks == 1) {
            ATTENTION_STEP(1, true);
        }
#undef ATTENTION_STEP
    }

    float factor[TILES][2];
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const float sum = quad_sum(row_sum[m][half]);
            factor[m][half] = 1.0f / sum;
            const int row = first_row + m * 16 + half * 8 + (lane >> 2);
            if (row < tokens && (lane & 3) == 0) {
                lse[(i64)bh * tokens + row] = (row_max[m][half] + log2_fast(sum)) * LN_2;
            }
        }
    }
    store_rows<D, TILES>(o, factor, out + batch * out_batch + column, out_row, first_row, tokens);
}

// ---------------------------------------------------------------------------------------------
// Backward
// ---------------------------------------------------------------------------------------------

// delta[b, h, t] = sum over d of dout * out. D / 8 lanes share a row.
template <int D>
__device__ __forceinline__ void delta_rows(const bf16* out, const bf16* dout, float* delta, int batch, int heads, int tokens,
                                           i64 out_row, i64 out_batch, i64 dout_row, i64 dout_batch) {
    constexpr int CHUNKS = D / 8;
    const i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    const i64 row = index / CHUNKS;
    const int chunk = (int)(index % CHUNKS);
    const bool valid = row < (i64)batch * tokens * heads;
    const int h = (int)(row % heads);
    const i64 bt = row / heads;
    const int t = (int)(bt % tokens);
    const i64 b = bt / tokens;
    float sum = 0.0f;
    if (valid) {
        const uint4 x = __ldg((const uint4*)(out + b * out_batch + t * out_row + h * D + chunk * 8));
        const uint4 y = __ldg((const uint4*)(dout + b * dout_batch + t * dout_row + h * D + chunk * 8));
        const u32 xs[4] = {x.x, x.y, x.z, x.w};
        const u32 ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sum = fmaf(low_half(xs[i]), low_half(ys[i]), sum);
            sum = fmaf(high_half(xs[i]), high_half(ys[i]), sum);
        }
    }
#pragma unroll
    for (int step = CHUNKS / 2; step > 0; step >>= 1) {
        sum += __shfl_xor_sync(ALL_LANES, sum, step);
    }
    if (valid && chunk == 0) {
        delta[(b * heads + h) * tokens + t] = sum;
    }
}

// With KEEP, dS^T goes to the shared buffer `ds` (at this warp's first key and the block's first query), rows
// `ds_row_bytes` apart.
template <int D, int TILES, bool KEEP>
__device__ __forceinline__ void backward_step(float (&dk)[TILES][D / 8][4], float (&dv)[TILES][D / 8][4],
                                              const u32 (&k)[TILES][D / 16][4], const u32 (&v)[TILES][D / 16][4], u32 q_block,
                                              u32 do_block, u32 statistics, u32 delta_bytes, u32 ds, u32 ds_row_bytes,
                                              int first_query, int first_key, int tokens, int causal, float scale_log2) {
    const int lane = threadIdx.x & 31;
    const u32 across = lane_offset_across<D>();
    const u32 down = lane_offset_down<D>();
    float s[TILES][2][4];
    float dp[TILES][2][4];
    clear(s);
    clear(dp);
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
        u32 b[4];
        load_matrices(b, q_block + (across ^ (i * 32)));
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            mma(s[m][0], k[m][i], b[0], b[1]);
            mma(s[m][1], k[m][i], b[2], b[3]);
        }
        load_matrices(b, do_block + (across ^ (i * 32)));
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            mma(dp[m][0], v[m][i], b[0], b[1]);
            mma(dp[m][1], v[m][i], b[2], b[3]);
        }
    }
    u32 p_rows[TILES][1][4];
    u32 ds_rows[TILES][1][4];
    gradient_step<TILES, 1>(p_rows, ds_rows, s, dp, statistics, delta_bytes, first_query, first_key, tokens, causal, scale_log2);
    if (KEEP) {
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                store_shared(ds + (m * 16 + (i & 1) * 8 + (lane >> 2)) * ds_row_bytes + ((i >> 1) * 8 + (lane & 3) * 2) * 2,
                             ds_rows[m][0][i]);
            }
        }
    }
#pragma unroll
    for (int i = 0; i < D / 16; ++i) {
        u32 b[4];
        load_matrices_transposed(b, do_block + (down ^ (i * 32)));
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            mma(dv[m][2 * i], p_rows[m][0], b[0], b[1]);
            mma(dv[m][2 * i + 1], p_rows[m][0], b[2], b[3]);
        }
        load_matrices_transposed(b, q_block + (down ^ (i * 32)));
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
            mma(dk[m][2 * i], ds_rows[m][0], b[0], b[1]);
            mma(dk[m][2 * i + 1], ds_rows[m][0], b[2], b[3]);
        }
    }
}

// A block holds a whole (sample, head): attention_backward_short above.
template <int D, int TILES>
__device__ __forceinline__ void backward_short(const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* dout,
                                               const float* lse, bf16* dq, bf16* dk, bf16* dv, int batch, int heads, int tokens,
                                               i64 q_row, i64 q_batch, i64 k_row, i64 k_batch, i64 v_row, i64 v_batch,
                                               i64 out_row, i64 out_batch, i64 dout_row, i64 dout_batch, i64 dq_row,
                                               i64 dq_batch, i64 dk_row, i64 dk_batch, i64 dv_row, i64 dv_batch, float scale,
                                               int causal) {
    constexpr int CHUNKS = D / 8;
    constexpr int PIECES = TILES * D / 16;
    const int lane = threadIdx.x & 31;
    const int rows = (blockDim.x >> 5) * 16 * TILES;
    const int first_row = (threadIdx.x >> 5) * 16 * TILES;
    const u32 matrix_bytes = rows * D * 2;
    const u32 ds_row_bytes = (rows + 8) * 2;
    const u32 q_tile = shared_base();
    const u32 do_tile = q_tile + matrix_bytes;
    const u32 k_tiles = do_tile + matrix_bytes;
    const u32 ds = k_tiles + 2 * matrix_bytes;
    const u32 statistics = ds + rows * ds_row_bytes;
    const u32 delta_bytes = rows * 4;
    const u32 across = lane_offset_across<D>();
    const u32 down = lane_offset_down<D>();
    const int blocks = (tokens + 15) / 16;
    const float scale_log2 = scale * LOG2_E;

    u32 v_rows[TILES][D / 16][4];
    uint4 out_pieces[PIECES];
    float row_lse;
    // What the turn of head `bh` needs: in shared memory, copied in the background, and in registers.
    auto fetch_shared = [&](int bh, u32 k_tile) {
        const i64 b = bh / heads;
        const int column = (bh % heads) * D;
        copy_tile<D>(q_tile, q + b * q_batch + column, q_row, 0, rows, tokens);
        copy_tile<D>(k_tile, k + b * k_batch + column, k_row, 0, rows, tokens);
        copy_tile<D>(do_tile, dout + b * dout_batch + column, dout_row, 0, rows, tokens);
        copy_commit();
    };
    auto fetch_registers = [&](int bh) {
        const i64 b = bh / heads;
        const int column = (bh % heads) * D;
        load_rows<D, TILES>(v_rows, v + b * v_batch + column, v_row, first_row, tokens);
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            const int row = first_row + (lane + 32 * i) / CHUNKS;
            out_pieces[i] = make_uint4(0, 0, 0, 0);
            if (row < tokens) {
                out_pieces[i] = __ldg((const uint4*)(out + b * out_batch + row * out_row + column + (lane % CHUNKS) * 8));
            }
        }
        const int row = first_row + lane;
        row_lse = infinity();
        if (row < tokens && lane < 16 * TILES) {
            row_lse = lse[(i64)bh * tokens + row] * LOG2_E;
        }
    };

    int turn = 0;
    fetch_shared(blockIdx.x, k_tiles);
    fetch_registers(blockIdx.x);
    for (int bh = blockIdx.x; bh < batch * heads; bh += gridDim.x, turn ^= 1) {
        const u32 k_tile = k_tiles + turn * matrix_bytes;
        copy_wait();
        __syncthreads();
#pragma unroll
        for (int i = 0; i < PIECES; ++i) {
            const int row = first_row + (lane + 32 * i) / CHUNKS;
            const uint4 x = out_pieces[i];
            const uint4 y = load_shared_vector(do_tile + tile_offset<D>(row, lane % CHUNKS));
            float sum = low_half(x.x) * low_half(y.x) + high_half(x.x) * high_half(y.x);
            sum += low_half(x.y) * low_half(y.y) + high_half(x.y) * high_half(y.y);
            sum += low_half(x.z) * low_half(y.z) + high_half(x.z) * high_half(y.z);
            sum += low_half(x.w) * low_half(y.w) + high_half(x.w) * high_half(y.w);
#pragma unroll
            for (int step = CHUNKS / 2; step > 0; step >>= 1) {
                sum += __shfl_xor_sync(ALL_LANES, sum, step);
            }
            if (lane % CHUNKS == 0) {
                store_shared(statistics + delta_bytes + row * 4, sum);
            }
        }
        if (lane < 16 * TILES) {
            store_shared(statistics + (first_row + lane) * 4, row_lse);
        }
        u32 k_rows[TILES][D / 16][4];
#pragma unroll
        for (int m = 0; m < TILES; ++m) {
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                load_matrices(k_rows[m][i], k_tile + (first_row + m * 16) * D * 2 + (down ^ (i * 32)));
            }
        }
        __syncthreads();

        float dk_rows[TILES][D / 8][4];
        float dv_rows[TILES][D / 8][4];
        clear(dk_rows);
        clear(dv_rows);
#pragma unroll 1
        for (int n = causal ? first_row / 16 : 0; n < blocks; ++n) {
            backward_step<D, TILES, true>(dk_rows, dv_rows, k_rows, v_rows, q_tile + n * (16 * D * 2), do_tile + n * (16 * D * 2),
                                          statistics + n * 64, delta_bytes, ds + first_row * ds_row_bytes + n * 32,
                                          ds_row_bytes, n * 16, first_row, tokens, causal, scale_log2);
        }
        __syncthreads();

        // Q, dO and the other K tile are free: the next head's copies run under the stores and the last product.
        if (bh + gridDim.x < batch * heads) {
            fetch_shared(bh + gridDim.x, k_tiles + (turn ^ 1) * matrix_bytes);
        }
        const i64 b = bh / heads;
        const int column = (bh % heads) * D;
        float factor[TILES][2];
        fill(factor, scale);
        store_rows<D, TILES>(dk_rows, factor, dk + b * dk_batch + column, dk_row, first_row, tokens);
        fill(factor, 1.0f);
        store_rows<D, TILES>(dv_rows, factor, dv + b * dv_batch + column, dv_row, first_row, tokens);
        if (bh + gridDim.x < batch * heads) {
            fetch_registers(bh + gridDim.x);
        }

        float dq_rows[TILES][D / 8][4];
        clear(dq_rows);
        const int key_blocks = causal ? min(blocks, first_row / 16 + TILES) : blocks;
        const u32 ds_lane = ds + (((lane >> 4) << 3) + (lane & 7)) * ds_row_bytes + (first_row + ((lane >> 3) & 1) * 8) * 2;
#pragma unroll 1
        for (int n = 0; n < key_blocks; ++n) {
            u32 a[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
                load_matrices_transposed(a[m], ds_lane + n * 16 * ds_row_bytes + m * 32);
            }
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                u32 w[4];
                load_matrices_transposed(w, k_tile + n * (16 * D * 2) + (down ^ (i * 32)));
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    mma(dq_rows[m][2 * i], a[m], w[0], w[1]);
                    mma(dq_rows[m][2 * i + 1], a[m], w[2], w[3]);
                }
            }
        }
        fill(factor, scale);
        store_rows<D, TILES>(dq_rows, factor, dq + b * dq_batch + column, dq_row, first_row, tokens);
    }
}

// dK and dV of this block's keys, streaming Q and dO.
template <int D, int TILES>
__device__ __forceinline__ void backward_keys(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                              const float* delta, bf16* dk, bf16* dv, int heads, int tokens, i64 q_row,
                                              i64 q_batch, i64 k_row, i64 k_batch, i64 v_row, i64 v_batch, i64 dout_row,
                                              i64 dout_batch, i64 dk_row, i64 dk_batch, i64 dv_row, i64 dv_batch, float scale,
                                              int causal) {
    constexpr u32 TILE_BYTES = STREAM_ROWS * D * 2;
    constexpr u32 STATISTICS_BYTES = STREAM_ROWS * 4;
    constexpr u32 SLOT_BYTES = 2 * TILE_BYTES + 2 * STATISTICS_BYTES;
    const u32 base = shared_base();
    const int rows = (blockDim.x >> 5) * 16 * TILES;
    const int row_blocks = (tokens + rows - 1) / rows;
    const int bh = blockIdx.x / row_blocks;
    const int block_row = (blockIdx.x % row_blocks) * rows;
    const i64 batch = bh / heads;
    const int column = (bh % heads) * D;
    q += batch * q_batch + column;
    dout += batch * dout_batch + column;
    lse += (i64)bh * tokens;
    delta += (i64)bh * tokens;

    const int first_step = causal ? block_row / STREAM_ROWS : 0;
    const int steps = (tokens + STREAM_ROWS - 1) / STREAM_ROWS;
    auto copy_step = [&](int step) {
        const int first = step * STREAM_ROWS;
        const int count = min(STREAM_ROWS, (tokens - first + 15) & ~15);
        const u32 slot = base + (step & 1) * SLOT_BYTES;
        copy_tile<D>(slot, q, q_row, first, count, tokens);
        copy_tile<D>(slot + TILE_BYTES, dout, dout_row, first, count, tokens);
        copy_commit();
        for (int i = threadIdx.x; i < STREAM_ROWS; i += blockDim.x) {
            const bool valid = first + i < tokens;
            store_shared(slot + 2 * TILE_BYTES + i * 4, valid ? lse[first + i] * LOG2_E : infinity());
            store_shared(slot + 2 * TILE_BYTES + STATISTICS_BYTES + i * 4, valid ? delta[first + i] : 0.0f);
        }
    };
    copy_step(first_step);

    const int first_row = block_row + (threadIdx.x >> 5) * 16 * TILES;
    u32 k_rows[TILES][D / 16][4];
    u32 v_rows[TILES][D / 16][4];
    load_rows<D, TILES>(k_rows, k + batch * k_batch + column, k_row, first_row, tokens);
    load_rows<D, TILES>(v_rows, v + batch * v_batch + column, v_row, first_row, tokens);
    float dk_rows[TILES][D / 8][4];
    float dv_rows[TILES][D / 8][4];
    clear(dk_rows);
    clear(dv_rows);
    const float scale_log2 = scale * LOG2_E;

    for (int step = first_step; step < steps; ++step) {
        copy_wait();
        __syncthreads();
        if (step + 1 < steps) {
            copy_step(step + 1);
        }
        const u32 slot = base + (step & 1) * SLOT_BYTES;
        const int first_query = step * STREAM_ROWS;
        const int blocks = min(STREAM_BLOCKS, (tokens - first_query + 15) / 16);
        const int begin = causal ? max(0, (first_row - first_query) / 16) : 0;
        if (first_row < tokens) {
#pragma unroll 1
            for (int n = begin; n < blocks; ++n) {
                backward_step<D, TILES, false>(dk_rows, dv_rows, k_rows, v_rows, slot + n * (16 * D * 2),
                                               slot + TILE_BYTES + n * (16 * D * 2), slot + 2 * TILE_BYTES + n * 64,
                                               STATISTICS_BYTES, 0u, 0u, first_query + n * 16, first_row, tokens, causal,
                                               scale_log2);
            }
        }
    }
    float factor[TILES][2];
    fill(factor, scale);
    store_rows<D, TILES>(dk_rows, factor, dk + batch * dk_batch + column, dk_row, first_row, tokens);
    fill(factor, 1.0f);
    store_rows<D, TILES>(dv_rows, factor, dv + batch * dv_batch + column, dv_row, first_row, tokens);
}

// dQ of this block's queries, streaming K and V.
template <int D, int TILES>
__device__ __forceinline__ void backward_queries(const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                                 const float* delta, bf16* dq, int heads, int tokens, i64 q_row, i64 q_batch,
                                                 i64 k_row, i64 k_batch, i64 v_row, i64 v_batch, i64 dout_row, i64 dout_batch,
                                                 i64 dq_row, i64 dq_batch, float scale, int causal) {
    constexpr u32 TILE_BYTES = STREAM_ROWS * D * 2;
    const u32 base = shared_base();
    const int lane = threadIdx.x & 31;
    const int rows = (blockDim.x >> 5) * 16 * TILES;
    const int row_blocks = (tokens + rows - 1) / rows;
    const int bh = blockIdx.x / row_blocks;
    const int block_row = (blockIdx.x % row_blocks) * rows;
    const i64 batch = bh / heads;
    const int column = (bh % heads) * D;
    k += batch * k_batch + column;
    v += batch * v_batch + column;

    const int key_end = causal ? min(tokens, block_row + rows) : tokens;
    const int steps = (key_end + STREAM_ROWS - 1) / STREAM_ROWS;
    auto copy_step = [&](int step) {
        const int first = step * STREAM_ROWS;
        const int count = min(STREAM_ROWS, (key_end - first + 15) & ~15);
        const u32 slot = base + (step & 1) * 2 * TILE_BYTES;
        copy_tile<D>(slot, k, k_row, first, count, tokens);
        copy_tile<D>(slot + TILE_BYTES, v, v_row, first, count, tokens);
        copy_commit();
    };
    copy_step(0);

    const int first_row = block_row + (threadIdx.x >> 5) * 16 * TILES;
    const int warp_key_end = causal ? min(tokens, first_row + 16 * TILES) : tokens;
    u32 q_rows[TILES][D / 16][4];
    u32 do_rows[TILES][D / 16][4];
    load_rows<D, TILES>(q_rows, q + batch * q_batch + column, q_row, first_row, tokens);
    load_rows<D, TILES>(do_rows, dout + batch * dout_batch + column, dout_row, first_row, tokens);
    float row_lse[TILES][2];
    float row_delta[TILES][2];
#pragma unroll
    for (int m = 0; m < TILES; ++m) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = first_row + m * 16 + half * 8 + (lane >> 2);
            const bool valid = row < tokens;
            row_lse[m][half] = valid ? lse[(i64)bh * tokens + row] * LOG2_E : infinity();
            row_delta[m][half] = valid ? delta[(i64)bh * tokens + row] : 0.0f;
        }
    }
    float dq_rows[TILES][D / 8][4];
    clear(dq_rows);
    const float scale_log2 = scale * LOG2_E;
    const u32 across = lane_offset_across<D>();
    const u32 down = lane_offset_down<D>();

    for (int step = 0; step < steps; ++step) {
        copy_wait();
        __syncthreads();
        if (step + 1 < steps) {
            copy_step(step + 1);
        }
        const u32 slot = base + (step & 1) * 2 * TILE_BYTES;
        const int blocks = first_row < tokens ? min(STREAM_BLOCKS, (warp_key_end - step * STREAM_ROWS + 15) / 16) : 0;
#pragma unroll 1
        for (int block = 0; block < blocks; ++block) {
            const u32 k_block = slot + block * (16 * D * 2);
            const u32 v_block = k_block + TILE_BYTES;
            const int first_key = step * STREAM_ROWS + block * 16;
            float s[TILES][2][4];
            float dp[TILES][2][4];
            clear(s);
            clear(dp);
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                u32 w[4];
                load_matrices(w, k_block + (across ^ (i * 32)));
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    mma(s[m][0], q_rows[m][i], w[0], w[1]);
                    mma(s[m][1], q_rows[m][i], w[2], w[3]);
                }
                load_matrices(w, v_block + (across ^ (i * 32)));
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    mma(dp[m][0], do_rows[m][i], w[0], w[1]);
                    mma(dp[m][1], do_rows[m][i], w[2], w[3]);
                }
            }
            if (first_key + 16 > tokens || (causal && first_key + 16 > first_row)) {
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
#pragma unroll
                    for (int n = 0; n < 2; ++n) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const int key = first_key + n * 8 + (lane & 3) * 2 + (i & 1);
                            const int query = first_row + m * 16 + (i >> 1) * 8 + (lane >> 2);
                            if (key >= tokens || (causal && key > query)) s[m][n][i] = -infinity();
                        }
                    }
                }
            }
            u32 ds_rows[TILES][4];
#pragma unroll
            for (int m = 0; m < TILES; ++m) {
#pragma unroll
                for (int n = 0; n < 2; ++n) {
#pragma unroll
                    for (int half = 0; half < 2; ++half) {
                        const float p0 = exp2_fast(fmaf(s[m][n][half * 2], scale_log2, -row_lse[m][half]));
                        const float p1 = exp2_fast(fmaf(s[m][n][half * 2 + 1], scale_log2, -row_lse[m][half]));
                        ds_rows[m][n * 2 + half] = pack_bf16(p0 * (dp[m][n][half * 2] - row_delta[m][half]),
                                                        p1 * (dp[m][n][half * 2 + 1] - row_delta[m][half]));
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < D / 16; ++i) {
                u32 w[4];
                load_matrices_transposed(w, k_block + (down ^ (i * 32)));
#pragma unroll
                for (int m = 0; m < TILES; ++m) {
                    mma(dq_rows[m][2 * i], ds_rows[m], w[0], w[1]);
                    mma(dq_rows[m][2 * i + 1], ds_rows[m], w[2], w[3]);
                }
            }
        }
    }
    float factor[TILES][2];
    fill(factor, scale);
    store_rows<D, TILES>(dq_rows, factor, dq + batch * dq_batch + column, dq_row, first_row, tokens);
}

}  // namespace attention

// ---------------------------------------------------------------------------------------------
// Entry points
// ---------------------------------------------------------------------------------------------

#define ATTENTION_ENTRY_POINTS(D, FORWARD_BLOCKS, SHORT_THREADS, LONG_BLOCKS)                                                     \
    extern "C" __global__ __launch_bounds__(256, FORWARD_BLOCKS) void attention_forward_d##D(                                     \
        const bf16* q, const bf16* k, const bf16* v, bf16* out, float* lse, int heads, int tokens, i64 q_row, i64 q_batch,        \
        i64 k_row, i64 k_batch, i64 v_row, i64 v_batch, i64 out_row, i64 out_batch, float scale, int causal) {                    \
        attention::forward<D, 1>(q, k, v, out, lse, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch, out_row,       \
                                  out_batch, scale, causal);                                                                      \
    }                                                                                                                             \
    extern "C" __global__ __launch_bounds__(256) void attention_delta_d##D(                                                       \
        const bf16* out, const bf16* dout, float* delta, int batch, int heads, int tokens, i64 out_row, i64 out_batch,            \
        i64 dout_row, i64 dout_batch) {                                                                                           \
        attention::delta_rows<D>(out, dout, delta, batch, heads, tokens, out_row, out_batch, dout_row, dout_batch);               \
    }                                                                                                                             \
    extern "C" __global__ __launch_bounds__(SHORT_THREADS, 1) void attention_backward_short_d##D(                                 \
        const bf16* q, const bf16* k, const bf16* v, const bf16* out, const bf16* dout, const float* lse, bf16* dq, bf16* dk,     \
        bf16* dv, int batch, int heads, int tokens, i64 q_row, i64 q_batch, i64 k_row, i64 k_batch, i64 v_row, i64 v_batch,       \
        i64 out_row, i64 out_batch, i64 dout_row, i64 dout_batch, i64 dq_row, i64 dq_batch, i64 dk_row, i64 dk_batch,             \
        i64 dv_row, i64 dv_batch, float scale, int causal) {                                                                      \
        attention::backward_short<D, 1>(q, k, v, out, dout, lse, dq, dk, dv, batch, heads, tokens, q_row, q_batch, k_row, k_batch,\
                                       v_row, v_batch, out_row, out_batch, dout_row, dout_batch, dq_row, dq_batch, dk_row,        \
                                       dk_batch, dv_row, dv_batch, scale, causal);                                                \
    }                                                                                                                             \
    extern "C" __global__ __launch_bounds__(128, LONG_BLOCKS) void attention_backward_keys_d##D(                                  \
        const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta, bf16* dk, bf16* dv,  \
        int heads, int tokens, i64 q_row, i64 q_batch, i64 k_row, i64 k_batch, i64 v_row, i64 v_batch, i64 dout_row,              \
        i64 dout_batch, i64 dk_row, i64 dk_batch, i64 dv_row, i64 dv_batch, float scale, int causal) {                            \
        attention::backward_keys<D, 1>(q, k, v, dout, lse, delta, dk, dv, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch,\
                            dout_row, dout_batch, dk_row, dk_batch, dv_row, dv_batch, scale, causal);                             \
    }                                                                                                                             \
    extern "C" __global__ __launch_bounds__(128, LONG_BLOCKS) void attention_backward_queries_d##D(                               \
        const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse, const float* delta, bf16* dq,            \
        int heads, int tokens, i64 q_row, i64 q_batch, i64 k_row, i64 k_batch, i64 v_row, i64 v_batch, i64 dout_row,              \
        i64 dout_batch, i64 dq_row, i64 dq_batch, float scale, int causal) {                                                      \
        attention::backward_queries<D, 1>(q, k, v, dout, lse, delta, dq, heads, tokens, q_row, q_batch, k_row, k_batch, v_row, v_batch,\
                               dout_row, dout_batch, dq_row, dq_batch, scale, causal);                                            \
    }

ATTENTION_ENTRY_POINTS(32, 2, 512, 3)
ATTENTION_ENTRY_POINTS(64, 2, 448, 3)
ATTENTION_ENTRY_POINTS(128, 1, 256, 2)
