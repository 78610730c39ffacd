// K-winners: of each group of units the k with the largest x boost keep their value, the others are 0.
//
//   boost[c] = exp(-beta duty[c])          c = unit % C, a unit's channel
//   y[i] = x[i] if x[i] boost[i % C] is among the k largest of its group, of equals the lowest index first; else 0
//   duty[c] += a (wins[c] / places - duty[c])
//
//   x y dy dx [G, U] T   boosts duty [C] f32   winners [G, ceil(U / 32)] u32, a bit a unit   wins [C] u32
//   clock [2] f32: samples seen up to the period, beta
//
// Products that decide are rounded step by step, as on the CPU: the same bits on every device. Only integers are added
// by atomics.

// A number as an integer in the same order: -0 is 0, NaN is above all.
__device__ __forceinline__ u32 key_of(float value) {
    const u32 bits = value == 0.0f ? 0u : __float_as_uint(value);
    if (value != value) return 0xffffffffu;
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

// exp(z), z <= 0: 2^n times the power series of what is left, |r| <= ln 2 / 2.
__device__ __forceinline__ double exp_of(double z) {
    if (z < -104.0) return 0.0;
    const int n = (int)__dadd_rn(__dmul_rn(z, 1.4426950408889634), -0.5);
    double r = __dadd_rn(z, -__dmul_rn((double)n, 6.931471803691238e-1));
    r = __dadd_rn(r, -__dmul_rn((double)n, 1.9082149292705877e-10));
    double sum = 0.0, factorial = 6227020800.0;
    for (int i = 13; i >= 1; --i) {
        sum = __dmul_rn(__dadd_rn(sum, __ddiv_rn(1.0, factorial)), r);
        factorial = __ddiv_rn(factorial, (double)i);
    }
    return __dmul_rn(__dadd_rn(sum, 1.0), __longlong_as_double((long long)(1023 + n) << 52));
}

// Launch: block 256, grid ceil(C / 256). `clock` null: beta is `boost`.
extern "C" __global__ void __launch_bounds__(256)
    k_winners_boosts(const float* duty, const float* clock, float boost, float* boosts, u32 channels) {
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= channels) return;
    const double beta = clock ? clock[1] : boost;
    boosts[c] = __double2float_rn(exp_of(__dmul_rn(-beta, (double)duty[c])));
}

// The least winning key is found digit by digit, eight bits a time from the top: the digits' counts, then the digit in
// which the k-th largest falls. A last sweep in the order of the units gives the places left to those equal to it.
// Launch: a block a group, of 32 threads or 256.
template <class T>
__device__ __forceinline__ void select(const T* x, const float* boosts, T* y, u32* winners, u32 units, u32 channels,
                                       u32 k, bool relu) {
    constexpr u32 DIGITS = 256;
    constexpr u32 PER_LANE = DIGITS / WARP;
    __shared__ u32 counts[DIGITS];
    __shared__ u32 found[2];  // the key as far as it is known, places left below it
    __shared__ u32 ties_of_warp[256 / WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    x += (u64)blockIdx.x * units;
    y += (u64)blockIdx.x * units;
    const auto key = [&](u32 unit) { return key_of(__fmul_rn(to_f32(x[unit]), boosts[unit % channels])); };

    u32 least = 0, left = k;
    for (u32 shift = 32; shift > 0;) {
        shift -= 8;
        for (u32 d = threadIdx.x; d < DIGITS; d += blockDim.x) counts[d] = 0;
        __syncthreads();
        for (u32 unit = threadIdx.x; unit < units; unit += blockDim.x) {
            const u32 own = key(unit);
            // In two shifts: one by 32 is not defined.
            if (((own ^ least) >> shift) >> 8 == 0) atomicAdd(&counts[(own >> shift) % DIGITS], 1u);
        }
        __syncthreads();
        if (warp == 0) {
            // Lane 0 holds the highest digits.
            u32 digit = DIGITS - 1 - PER_LANE * lane;
            u32 own = 0;
            for (u32 j = 0; j < PER_LANE; ++j) own += counts[digit - j];
            u32 sum = own;
            for (u32 d = 1; d < WARP; d *= 2) {
                const u32 other = __shfl_up_sync(ALL_LANES, sum, d);
                if (lane >= d) sum += other;
            }
            if (sum - own < left && left <= sum) {
                u32 rest = left - (sum - own);
                while (counts[digit] < rest) rest -= counts[digit--];
                found[0] = least | digit << shift;
                found[1] = rest;
            }
        }
        __syncthreads();
        least = found[0];
        left = found[1];
    }

    const u32 words = (units + WARP - 1) / WARP;
    u32 tied = 0;
    for (u32 base = 0; base < units; base += blockDim.x) {
        const u32 unit = base + threadIdx.x;
        const bool inside = unit < units;
        const u32 own = inside ? key(unit) : 0;
        const bool tie = inside && own == least;
        const u32 ties = __ballot_sync(ALL_LANES, tie);
        __syncthreads();  // the last round's readers
        if (lane == 0) ties_of_warp[warp] = __popc(ties);
        __syncthreads();
        u32 ahead = tied + __popc(ties & ((1u << lane) - 1));
        for (u32 w = 0; w < warps; ++w) {
            if (w < warp) ahead += ties_of_warp[w];
            tied += ties_of_warp[w];
        }
        const float value = inside ? to_f32(x[unit]) : 0.0f;
        bool wins = inside && (own > least || (tie && ahead < left));
        // NaN stays, to be seen.
        if (relu && value <= 0.0f) wins = false;
        const u32 bits = __ballot_sync(ALL_LANES, wins);
        if (winners && lane == 0 && inside) winners[(u64)blockIdx.x * words + unit / WARP] = bits;
        if (inside) y[unit] = from_f32<T>(wins ? value : 0.0f);
    }
}

// A chunk at a time where groups are whole chunks, whose bits are then in one word.
// Launch: block 256, grid ceil(n / (256 * CHUNK)).
template <bool VEC, class T>
__device__ __forceinline__ void pass_on(const T* dy, const u32* winners, T* dx, u64 first, u64 n, u32 units) {
    const u32 words = (units + WARP - 1) / WARP;
    float v[CHUNK];
    load8<VEC>(dy, first, n, v);
    u64 group;
    u32 unit;
    divide(first, units, group, unit);
    if constexpr (VEC) {
        const u32 bits = winners[group * words + unit / WARP] >> (unit % WARP);
#pragma unroll
        for (u32 j = 0; j < CHUNK; ++j) v[j] = bits >> j & 1 ? v[j] : 0.0f;
    } else {
        for (u32 j = 0; j < CHUNK && first + j < n; ++j) {
            if (!(winners[group * words + unit / WARP] >> (unit % WARP) & 1)) v[j] = 0.0f;
            if (++unit == units) unit = 0, ++group;
        }
    }
    store8<VEC>(dx, first, n, v);
}

template <class T>
__device__ __forceinline__ void pass_on(const T* dy, const u32* winners, T* dx, u64 n, u32 units) {
    const u64 first = global_thread() * CHUNK;
    if (first >= n) return;
    if (aligned(dy, dx) && units % CHUNK == 0) pass_on<true>(dy, winners, dx, first, n, units);
    else pass_on<false>(dy, winners, dx, first, n, units);
}

// Launch: block (32, 8), grid (ceil(C / 32), any).
template <class T>
__device__ __forceinline__ void count(const T* y, u32* wins, u64 rows, u32 channels) {
    __shared__ u32 counts[8][WARP];
    const u32 c = blockIdx.x * WARP + threadIdx.x;
    u32 own = 0;
    if (c < channels)
        for (u64 row = blockIdx.y * 8 + threadIdx.y; row < rows; row += (u64)gridDim.y * 8)
            own += to_f32(y[row * channels + c]) > 0.0f;
    counts[threadIdx.y][threadIdx.x] = own;
    __syncthreads();
    if (threadIdx.y > 0 || c >= channels) return;
    u32 sum = 0;
    for (u32 part = 0; part < 8; ++part) sum += counts[part][threadIdx.x];
    if (sum > 0) atomicAdd(&wins[c], sum);
}

// Launch: one block of 256. `period` 0: every batch has the weight `alpha`.
extern "C" __global__ void __launch_bounds__(256)
    k_winners_update(const u32* wins, float* duty, float* clock, u32 channels, u64 places, u64 samples, float alpha,
                     u32 period, float boost) {
    double seen = clock[0], weight = alpha;
    if (period > 0) {
        seen = fmin(__dadd_rn(seen, (double)samples), (double)period);
        weight = fmin(__ddiv_rn((double)samples, seen), 1.0);
    }
    for (u32 c = threadIdx.x; c < channels; c += blockDim.x) {
        const double share = __ddiv_rn((double)wins[c], (double)places), old = duty[c];
        duty[c] = __double2float_rn(__dadd_rn(old, __dmul_rn(weight, __dadd_rn(share, -old))));
    }
    __syncthreads();  // the readers of the clock
    if (threadIdx.x > 0) return;
    clock[0] = __double2float_rn(seen);
    clock[1] = boost;
}

#define ENTRIES(T, SUFFIX)                                                                                         \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        k_winners_select_##SUFFIX(const T* x, const float* boosts, T* y, u32* winners, u32 units, u32 channels,    \
                                  u32 k, u32 relu) {                                                               \
        select(x, boosts, y, winners, units, channels, k, relu != 0);                                              \
    }                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        k_winners_pass_on_##SUFFIX(const T* dy, const u32* winners, T* dx, u64 n, u32 units) {                     \
        pass_on(dy, winners, dx, n, units);                                                                        \
    }                                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                              \
        k_winners_count_##SUFFIX(const T* y, u32* wins, u64 rows, u32 channels) {                                  \
        count(y, wins, rows, channels);                                                                            \
    }

ENTRIES(float, f32)
ENTRIES(bf16, bf16)
