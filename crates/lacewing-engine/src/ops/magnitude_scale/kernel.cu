// Weights times one factor where they are among the k largest magnitudes of all and another where they are not.
//
//   key(i) = bits of |by[i]|, then i         among equals the lowest index is the smallest: all keys differ
//   least  = the k-th largest key            magnitude_count and magnitude_digit, a digit of up to 11 bits at a time
//   out[i] = values[i] * (key(i) >= least ? kept : dropped)   (+ out[i])
//
//   by values [n] f32   out [n] T, may be values   state: zeros at first
//
// Counts are integers, so the order in which atomics come does not show. Where all of a digit's weights are kept, lower digits
// do not matter: the passes that are left return at once.

constexpr u32 BINS = 2048;

struct State {
    u64 least;
    u32 left;  // weights still to be found at or above the digit
    u32 done;
    u32 counts[BINS];
};

// Without its sign a float's bits are in the order of its value.
__device__ __forceinline__ u64 key_of(const float* by, u64 i) {
    return (u64)(__float_as_uint(by[i]) & 0x7fffffffu) << 32 | i;
}

// Of the keys that agree with `least` above the digit, how many have each digit.
// Launch: block 256, any grid.
extern "C" __global__ void __launch_bounds__(256) magnitude_count(const float* by, State* state, u64 n, u32 shift, u32 bits) {
    __shared__ u32 counts[BINS];
    if (state->done) return;
    const u32 bins = 1u << bits;
    for (u32 d = threadIdx.x; d < bins; d += 256) counts[d] = 0;
    __syncthreads();
    const u64 least = state->least;
    for (u64 i = global_thread(); i < n; i += (u64)gridDim.x * 256) {
        const u64 key = key_of(by, i);
        if ((key ^ least) >> (shift + bits) == 0) atomicAdd(&counts[(u32)(key >> shift) & (bins - 1)], 1u);
    }
    __syncthreads();
    for (u32 d = threadIdx.x; d < bins; d += 256)
        if (counts[d] > 0) atomicAdd(&state->counts[d], counts[d]);
}

// The digit in which the k-th largest key falls; the counts are zeros again. `k` is 0 after the first digit.
// Launch: one block of 256.
extern "C" __global__ void __launch_bounds__(256) magnitude_digit(State* state, u32 k, u32 shift, u32 bits) {
    __shared__ u32 sums[256];
    if (state->done) return;
    const u32 per = (1u << bits) / 256, t = threadIdx.x;
    const u32 left = k > 0 ? k : state->left;
    // Thread 0 has the highest digits.
    const u32 top = (1u << bits) - 1 - t * per;
    u32 own = 0;
    for (u32 j = 0; j < per; ++j) own += state->counts[top - j];
    sums[t] = own;
    __syncthreads();
    for (u32 d = 1; d < 256; d *= 2) {
        const u32 other = t >= d ? sums[t - d] : 0;
        __syncthreads();
        sums[t] += other;
        __syncthreads();
    }
    const u32 sum = sums[t];
    if (sum - own < left && left <= sum) {
        u32 rest = left - (sum - own), digit = top;
        while (state->counts[digit] < rest) rest -= state->counts[digit--];
        state->least |= (u64)digit << shift;
        state->left = rest;
        state->done = rest == state->counts[digit];
    }
    __syncthreads();
    for (u32 j = 0; j < per; ++j) state->counts[top - j] = 0;
}

template <class T>
__device__ __forceinline__ void scale_by_key(const float* by, const float* values, T* out, const State* state, u64 n,
                                             float kept, float dropped, u32 accumulate) {
    const u64 i = global_thread();
    if (i >= n) return;
    const float value = values[i] * (key_of(by, i) >= state->least ? kept : dropped);
    out[i] = from_f32<T>(accumulate ? to_f32(out[i]) + value : value);
}

// Launch: block 256, grid ceil(n / 256).
extern "C" __global__ void __launch_bounds__(256)
    magnitude_scale_f32(const float* by, const float* values, float* out, const State* state, u64 n, float kept,
                        float dropped, u32 accumulate) {
    scale_by_key(by, values, out, state, n, kept, dropped, accumulate);
}
extern "C" __global__ void __launch_bounds__(256)
    magnitude_scale_bf16(const float* by, const float* values, bf16* out, const State* state, u64 n, float kept,
                         float dropped, u32 accumulate) {
    scale_by_key(by, values, out, state, n, kept, dropped, accumulate);
}
