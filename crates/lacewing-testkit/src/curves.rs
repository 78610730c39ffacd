//! Activations in f64, to its last digits.

use std::f64::consts::PI;

/// `erf(x)` for `|x| < 2` by its Taylor series.
fn erf_near(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        term *= -x * x / n as f64;
        sum += term / (2 * n + 1) as f64;
    }
    2.0 / PI.sqrt() * sum
}

/// `1 - erf(x)` for `x ≥ 0`: by the continued fraction beyond 2.
fn erfc(x: f64) -> f64 {
    if x < 2.0 {
        1.0 - erf_near(x)
    } else {
        let fraction = (1..200).rev().fold(x, |f, n| x + n as f64 / 2.0 / f);
        (-x * x).exp() / PI.sqrt() / fraction
    }
}

/// The error function.
pub fn erf(x: f64) -> f64 {
    if x.abs() < 2.0 { erf_near(x) } else { x.signum() * (1.0 - erfc(x.abs())) }
}

/// Φ, the normal distribution function. GELU is `x Φ(x)`.
pub fn normal_cdf(x: f64) -> f64 {
    let tail = erfc(x.abs() / 2f64.sqrt()) / 2.0;
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`.
pub fn gelu_tanh(x: f64) -> f64 {
    let u = (2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3));
    x / (1.0 + (-2.0 * u).exp())
}
