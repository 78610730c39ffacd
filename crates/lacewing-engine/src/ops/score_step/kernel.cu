// Adam on the scores of places, a thread a score.
//
//   g = penalty sigma'(s - shift) - movement;  m += (1 - beta1)(g - m);  v = beta2 v + (1 - beta2) g^2
//   s -= rate (m / (sqrt(v) / root + eps)),  movement = 0       rate = lr / bc1, root = sqrt(bc2)
//
//   scores movement m v [n] f32

// Launch: block 256, grid ceil(n / 256).
extern "C" __global__ void __launch_bounds__(256)
    score_step(float* scores, float* movement, float* m, float* v, u64 n, float beta1_rest, float beta2, float beta2_rest,
               float rate, float root, float eps, float penalty, float shift) {
    const u64 i = global_thread();
    if (i >= n) return;
    const float s = scores[i];
    const float sigmoid = 1.0f / (1.0f + expf(shift - s));
    const float g = penalty * (sigmoid * (1.0f - sigmoid)) - movement[i];
    const float mean = fmaf(g - m[i], beta1_rest, m[i]);
    const float square = fmaf(beta2_rest * g, g, beta2 * v[i]);
    scores[i] = s - rate * (mean / (sqrtf(square) / root + eps));
    m[i] = mean;
    v[i] = square;
    movement[i] = 0.0f;
}
