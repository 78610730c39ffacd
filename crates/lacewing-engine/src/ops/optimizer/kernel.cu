// Optimizer steps over flat arrays, one pass each, and the sums they need.
//
//   adamw   g = grad scale;  p = p keep;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2
//           p -= step m / (sqrt(v) / root + eps)       keep = 1 - lr wd, step = lr / bc1, root = sqrt(bc2)
//   sgd     g = grad scale + wd p;  buf = momentum buf + g;  p -= lr buf, or lr (g + momentum buf) (nesterov)
//   ema     shadow = decay shadow + rest p
//   sum_of_squares   partial[block] = sum of x^2 in f64;  clip: norm = sqrt(sum of partial), scale = min(1, max / (norm + 1e-6))
//
//   p m v grad buf shadow x [n] f32   copy [n] bf16, p as it is afterwards   scale [1] f32: what clip wrote
// Null where absent: copy, scale. A step leaves grad zero, which saves a pass. buf starts at zero.
// Four elements a thread and 16-byte accesses; the tail and unaligned arrays go one by one.

constexpr u32 PER = 4;

// Calls f(i, n of this thread's elements, whether they may be moved as vectors).
template <class F>
__device__ __forceinline__ void at_quad(u64 n, bool vec, F f) {
    const u64 first = global_thread() * PER;
    if (first + PER <= n && vec) {
        f(first, true);
    } else {
        for (u64 i = first; i < n && i < first + PER; ++i) f(i, false);
    }
}

struct Quad {
    float v[PER];
};
__device__ __forceinline__ Quad load_quad(const float* p, bool vec) {
    if (!vec) return {*p, 0.0f, 0.0f, 0.0f};
    const float4 w = *reinterpret_cast<const float4*>(p);
    return {w.x, w.y, w.z, w.w};
}
__device__ __forceinline__ void store_quad(float* p, const Quad& q, bool vec) {
    if (vec) *reinterpret_cast<float4*>(p) = make_float4(q.v[0], q.v[1], q.v[2], q.v[3]);
    else *p = q.v[0];
}
__device__ __forceinline__ void store_quad(bf16* p, const Quad& q, bool vec) {
    if (vec) *reinterpret_cast<uint2*>(p) = make_uint2(pack_bf16(q.v[0], q.v[1]), pack_bf16(q.v[2], q.v[3]));
    else *p = from_f32<bf16>(q.v[0]);
}

// Launch: block 256, grid ceil(n / 1024).
extern "C" __global__ void __launch_bounds__(256)
    adamw(float* p, bf16* copy, float* grad, float* m, float* v, const float* scale, u64 n, float keep, float beta1_rest,
          float beta2, float beta2_rest, float step, float root, float eps) {
    const float s = scale ? *scale : 1.0f;
    at_quad(n, aligned(p, copy, grad, m, v), [&](u64 i, bool vec) {
        Quad g = load_quad(grad + i, vec), qp = load_quad(p + i, vec), qm = load_quad(m + i, vec),
             qv = load_quad(v + i, vec);
#pragma unroll
        for (u32 j = 0; j < PER; ++j) {
            const float d = g.v[j] * s;
            qm.v[j] = fmaf(beta1_rest, d - qm.v[j], qm.v[j]);
            qv.v[j] = fmaf(beta2_rest * d, d, beta2 * qv.v[j]);
            qp.v[j] = qp.v[j] * keep - step * (qm.v[j] / (sqrtf(qv.v[j]) / root + eps));
        }
        store_quad(p + i, qp, vec);
        store_quad(m + i, qm, vec);
        store_quad(v + i, qv, vec);
        if (copy) store_quad(copy + i, qp, vec);
        store_quad(grad + i, Quad{}, vec);
    });
}

// Launch: block 256, grid ceil(n / 1024).
extern "C" __global__ void __launch_bounds__(256)
    sgd(float* p, bf16* copy, float* grad, float* buf, const float* scale, u64 n, float lr, float momentum,
        float weight_decay, u32 nesterov) {
    const float s = scale ? *scale : 1.0f;
    at_quad(n, aligned(p, copy, grad, buf), [&](u64 i, bool vec) {
        Quad g = load_quad(grad + i, vec), qp = load_quad(p + i, vec), qb = load_quad(buf + i, vec);
#pragma unroll
        for (u32 j = 0; j < PER; ++j) {
            const float d = fmaf(weight_decay, qp.v[j], g.v[j] * s);
            qb.v[j] = fmaf(momentum, qb.v[j], d);
            qp.v[j] = fmaf(-lr, nesterov ? fmaf(momentum, qb.v[j], d) : qb.v[j], qp.v[j]);
        }
        store_quad(p + i, qp, vec);
        store_quad(buf + i, qb, vec);
        if (copy) store_quad(copy + i, qp, vec);
        store_quad(grad + i, Quad{}, vec);
    });
}

// Launch: block 256, grid ceil(n / 8192).
extern "C" __global__ void __launch_bounds__(256) ema(const float* p, float* shadow, u64 n, float decay, float rest) {
    map(n, shadow, [=](float s, float x) { return fmaf(decay, s, rest * x); }, shadow, p);
}

// Launch: block 256, grid P; every block takes an equal run of x.
extern "C" __global__ void __launch_bounds__(256) sum_of_squares(const float* x, double* partial, u64 n) {
    constexpr u32 DEEP = 4, WARPS = 8;
    __shared__ double of_warp[WARPS];
    const bool vec = aligned(x);
    const u64 quads = n / PER;
    const u64 run = (quads + gridDim.x - 1) / gridDim.x;
    const u64 start = blockIdx.x * run;
    const u64 end = start + run < quads ? start + run : quads;

    double sum = 0.0;
    for (u64 q = start + threadIdx.x; q < end; q += blockDim.x * DEEP) {
        Quad v[DEEP];
#pragma unroll
        for (u32 u = 0; u < DEEP; ++u) {
            const u64 i = (q + u * blockDim.x) * PER;
            v[u] = {};
            if (q + u * blockDim.x < end) {
                if (vec) v[u] = load_quad(x + i, true);
                else v[u] = {x[i], x[i + 1], x[i + 2], x[i + 3]};
            }
        }
#pragma unroll
        for (u32 u = 0; u < DEEP; ++u)
#pragma unroll
            for (u32 j = 0; j < PER; ++j) sum = fma((double)v[u].v[j], (double)v[u].v[j], sum);
    }
    if (blockIdx.x == 0 && quads * PER + threadIdx.x < n) {
        const double v = x[quads * PER + threadIdx.x];
        sum = fma(v, v, sum);
    }
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        double total = 0.0;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) total += of_warp[w];
        partial[blockIdx.x] = total;
    }
}

// A norm that is not finite gives a scale that is not either (NaN) or 0 (infinity): both show in the norm.
// Launch: one warp.
extern "C" __global__ void clip(const double* partial, u32 parts, float max_norm, float* norm, float* scale) {
    double sum = 0.0;
#pragma unroll 4
    for (u32 p = threadIdx.x; p < parts; p += WARP) sum += partial[p];
#pragma unroll
    for (u32 d = WARP / 2; d > 0; d /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, d);
    if (threadIdx.x != 0) return;
    const float length = (float)sqrt(sum);
    const float ratio = max_norm / (length + 1e-6f);
    *norm = length;
    *scale = ratio > 1.0f ? 1.0f : ratio;
}
