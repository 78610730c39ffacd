//! Optimizer steps over flat arrays on the CPU: one pass each, in which the gradient is cleared as well.

use super::{AdamWStep, SgdStep};
use lacewing_cpu::map::{Update, sweep, update};
use lacewing_cpu::parallel::elements_per_task;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// With `g = scale · gradient`: `p ← (1 − lr · decay) p`, `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`,
/// `p ← p − lr (m / c₁) / (√(v / c₂) + eps)`, `gradient ← 0`.
pub(super) fn adamw(
    p: &mut [f32],
    gradient: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    step: &AdamWStep,
    scale: f32,
) {
    assert_eq!((gradient.len(), m.len(), v.len()), (p.len(), p.len(), p.len()));
    let task = elements_per_task(p.len());
    let arrays = p.par_chunks_mut(task).zip(gradient.par_chunks_mut(task));
    arrays.zip(m.par_chunks_mut(task).zip(v.par_chunks_mut(task))).for_each(|((p, gradient), (m, v))| {
        dispatch(AdamW { p, gradient, m, v, step, scale });
    });
}

struct AdamW<'a> {
    p: &'a mut [f32],
    gradient: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    step: &'a AdamWStep,
    scale: f32,
}

impl Vectorize for AdamW<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let step = self.step;
        let (scale, keep) = (isa.splat(self.scale), isa.splat(1.0 - step.lr * step.weight_decay));
        let (rest1, beta2, rest2) =
            (isa.splat(1.0 - step.beta1), isa.splat(step.beta2), isa.splat(1.0 - step.beta2));
        let rate = isa.splat(-step.lr / step.bias_correction1);
        let root = isa.splat(1.0 / step.bias_correction2.sqrt());
        let eps = isa.splat(step.eps);
        sweep(isa, [], [self.p, self.gradient, self.m, self.v], |[], [p, g, m, v]| {
            let g = isa.mul(g, scale);
            let m = isa.mul_add(isa.sub(g, m), rest1, m);
            let v = isa.mul_add(isa.mul(g, g), rest2, isa.mul(v, beta2));
            let change = isa.div(m, isa.mul_add(isa.sqrt(v), root, eps));
            [isa.mul_add(rate, change, isa.mul(p, keep)), isa.splat(0.0), m, v]
        });
    }
}

/// With `g = scale · gradient + decay · p`: `b ← momentum · b + g`, `p ← p − lr b`, or `p − lr (g + momentum · b)` in
/// Nesterov's form; `gradient ← 0`. `b` starts as zeros.
pub(super) fn sgd(p: &mut [f32], gradient: &mut [f32], b: &mut [f32], step: &SgdStep, scale: f32) {
    assert_eq!((gradient.len(), b.len()), (p.len(), p.len()));
    let task = elements_per_task(p.len());
    let arrays = p.par_chunks_mut(task).zip(gradient.par_chunks_mut(task)).zip(b.par_chunks_mut(task));
    arrays.for_each(|((p, gradient), b)| dispatch(Sgd { p, gradient, b, step, scale }));
}

struct Sgd<'a> {
    p: &'a mut [f32],
    gradient: &'a mut [f32],
    b: &'a mut [f32],
    step: &'a SgdStep,
    scale: f32,
}

impl Vectorize for Sgd<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let step = self.step;
        let (scale, decay) = (isa.splat(self.scale), isa.splat(step.weight_decay));
        let (momentum, rate) = (isa.splat(step.momentum), isa.splat(-step.lr));
        sweep(isa, [], [self.p, self.gradient, self.b], |[], [p, g, b]| {
            let g = isa.mul_add(decay, p, isa.mul(g, scale));
            let b = isa.mul_add(momentum, b, g);
            let d = if step.nesterov { isa.mul_add(momentum, b, g) } else { b };
            [isa.mul_add(rate, d, p), isa.splat(0.0), b]
        });
    }
}

/// `shadow ← decay · shadow + (1 − decay) · master`.
pub(super) fn ema(master: &[f32], shadow: &mut [f32], decay: f32) {
    update(Ema { rest: 1.0 - decay }, shadow, [master]);
}

#[derive(Clone, Copy)]
struct Ema {
    rest: f32,
}

impl Update<1> for Ema {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, shadow: I::V, [master]: [I::V; 1]) -> I::V {
        isa.mul_add(isa.sub(master, shadow), isa.splat(self.rest), shadow)
    }
}

/// Elements whose squares are summed in f32 before f64 takes over.
const RUN: usize = 1024;

/// `Σ x²`: short runs in f32 registers, their sums in f64, always in the same order.
pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
    let step = elements_per_task(x.len());
    let partials: Vec<f64> = x.par_chunks(step).map(|x| dispatch(Squares(x))).collect();
    partials.iter().sum()
}

struct Squares<'a>(&'a [f32]);

impl Vectorize for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f64 {
        // Scaling is not needed: a gradient whose squares leave f32's range is not one to train with, and shows as such.
        self.0.chunks(RUN).map(|x| f64::from(lacewing_cpu::reduce::dot(isa, x, x))).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma, uniform, widen};

    const LENGTHS: [usize; 9] = [0, 1, 3, 15, 16, 17, 33, 1000, 40_000];

    #[test]
    fn adamw_follows_its_formula_for_three_steps_at_every_level() {
        for level in Level::available() {
            for len in LENGTHS {
                let (mut p, mut m, mut v) = (uniform(1, len), vec![0.0; len], vec![0.0; len]);
                let (mut p64, mut m64, mut v64) = (widen(&p), widen(&m), widen(&v));
                for t in 1..=3_i32 {
                    let step = AdamWStep {
                        lr: 0.01,
                        beta1: 0.9,
                        beta2: 0.999,
                        eps: 1e-8,
                        weight_decay: 0.1,
                        bias_correction1: 1.0 - 0.9_f32.powi(t),
                        bias_correction2: 1.0 - 0.999_f32.powi(t),
                    };
                    let mut gradient = uniform(10 + t as u64, len);
                    let g64: Vec<f64> = gradient.iter().map(|g| f64::from(*g) * 0.5).collect();
                    with_level(level, || adamw(&mut p, &mut gradient, &mut m, &mut v, &step, 0.5));
                    assert!(gradient.iter().all(|g| *g == 0.0));
                    let (beta1, beta2, lr) =
                        (f64::from(step.beta1), f64::from(step.beta2), f64::from(step.lr));
                    for i in 0..len {
                        p64[i] *= 1.0 - lr * f64::from(step.weight_decay);
                        m64[i] = beta1 * m64[i] + (1.0 - beta1) * g64[i];
                        v64[i] = beta2 * v64[i] + (1.0 - beta2) * g64[i] * g64[i];
                        let root = (v64[i] / f64::from(step.bias_correction2)).sqrt();
                        p64[i] -=
                            lr * m64[i] / f64::from(step.bias_correction1) / (root + f64::from(step.eps));
                    }
                    // A change is at most a few lr; 1 - β loses digits in f32 as 1 / (1 - β₂) says.
                    let bound = vec![gamma(16 * t as usize) * (1.5 + 1000.0 * 4.0 * lr); len];
                    assert_within(&p, &p64, &bound, "p");
                    assert_within(&m, &m64, &vec![gamma(16 * t as usize); len], "m");
                }
            }
        }
    }

    #[test]
    fn sgd_follows_its_formula_for_three_steps_at_every_level() {
        for (level, nesterov) in Level::available().into_iter().flat_map(|l| [(l, false), (l, true)]) {
            for (len, momentum) in LENGTHS.into_iter().flat_map(|l| [(l, 0.0), (l, 0.9)]) {
                let (mut p, mut b) = (uniform(1, len), vec![0.0; len]);
                let (mut p64, mut b64) = (widen(&p), widen(&b));
                let step = SgdStep { lr: 0.1, momentum, nesterov, weight_decay: 0.01 };
                let [lr, momentum, decay] = [step.lr, step.momentum, step.weight_decay].map(f64::from);
                for t in 1..=3 {
                    let mut gradient = uniform(10 + t, len);
                    let g64 = widen(&gradient);
                    with_level(level, || sgd(&mut p, &mut gradient, &mut b, &step, 1.0));
                    assert!(gradient.iter().all(|g| *g == 0.0));
                    for i in 0..len {
                        let g = g64[i] + decay * p64[i];
                        b64[i] = momentum * b64[i] + g;
                        p64[i] -= lr * if nesterov { g + momentum * b64[i] } else { b64[i] };
                    }
                    // Every quantity stays below 8.
                    let bound = vec![8.0 * gamma(8 * t as usize); len];
                    assert_within(&p, &p64, &bound, "p");
                    assert_within(&b, &b64, &bound, "b");
                }
            }
        }
    }

    #[test]
    fn ema_and_norm_meet_f64_at_every_level() {
        for level in Level::available() {
            for len in LENGTHS {
                let (x, mut shadow) = (uniform(1, len), uniform(2, len));
                let pairs = x.iter().zip(&shadow).map(|(x, s)| (f64::from(*x), f64::from(*s)));
                let decay = 0.99_f32;
                let d = f64::from(decay);
                let wanted: Vec<f64> = pairs.clone().map(|(x, s)| d * s + (1.0 - d) * x).collect();
                let bound: Vec<f64> = pairs.map(|(x, s)| gamma(4) * (x.abs() + s.abs())).collect();
                with_level(level, || ema(&x, &mut shadow, decay));
                assert_within(&shadow, &wanted, &bound, "shadow");
                let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                let got = with_level(level, || sum_of_squares(&x));
                assert!((got - squares).abs() <= gamma(RUN) * squares, "{got} for {squares} at {level:?}");
            }
        }
    }
}
