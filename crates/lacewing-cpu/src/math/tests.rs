//! Dense sweeps of every function at every level against f64.

use super::*;
use crate::simd::{Level, Vectorize};
use lacewing_testkit::{erf, gelu_tanh as gelu_tanh_exact, normal_cdf};
use std::f64::consts::PI;

fn density(x: f64) -> f64 {
    (-x * x / 2.0).exp() / (2.0 * PI).sqrt()
}

fn gelu_tanh_slope(x: f64) -> f64 {
    let u = (2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3));
    let du = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
    let s = 1.0 / (1.0 + (-2.0 * u).exp());
    s + x * s * (1.0 - s) * 2.0 * du
}

/// Distance between the neighbours of `x` in f32.
fn ulp(x: f64) -> f64 {
    let exponent = x.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    2f64.powi(exponent as i32 - 23)
}

struct Map<'a, const F: usize>(&'a mut [f32]);

impl<const F: usize> Vectorize for Map<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for chunk in self.0.chunks_mut(I::LANES) {
            let x = isa.load_partial(chunk);
            let y = match F {
                0 => exp(isa, x),
                1 => super::erf(isa, x),
                2 => tanh(isa, x),
                3 => sigmoid(isa, x),
                4 => gelu(isa, x),
                5 => gelu_derivative(isa, x),
                6 => gelu_tanh(isa, x),
                8 => softplus_excess(isa, x),
                _ => gelu_tanh_derivative(isa, x),
            };
            isa.store_partial(chunk, y);
        }
    }
}

/// Every level stays within `bound(x, exact)` on 200,001 points of `from..=to`, and returns NaN for NaN.
fn sweep<const F: usize>(
    name: &str,
    (from, to): (f64, f64),
    exact: impl Fn(f64) -> f64,
    bound: impl Fn(f64, f64) -> f64,
) {
    let steps = 200_000;
    let mut xs: Vec<f32> =
        (0..=steps).map(|i| (from + (to - from) * f64::from(i) / f64::from(steps)) as f32).collect();
    xs.extend([0.0, -0.0, 1e-30, -1e-30, 1e-7, -1e-7]);
    for level in Level::available() {
        let mut ys = xs.clone();
        ys.push(f32::NAN);
        level.run(Map::<F>(&mut ys));
        assert!(ys.pop().is_some_and(f32::is_nan), "{name} of NaN at {level:?}");
        let mut worst = (0.0, 0.0, 0.0, 0.0);
        for (&x, &y) in xs.iter().zip(&ys) {
            let wanted = exact(f64::from(x));
            let excess = (f64::from(y) - wanted).abs() / bound(f64::from(x), wanted);
            if excess > worst.0 || excess.is_nan() {
                worst = (excess, f64::from(x), f64::from(y), wanted);
            }
        }
        let (excess, x, got, wanted) = worst;
        assert!(excess <= 1.0, "{name}({x}) at {level:?}: {got}, exactly {wanted}: {excess} of the bound");
    }
}

/// `n` ulp.
fn ulps(n: f64) -> impl Fn(f64, f64) -> f64 {
    move |_, wanted| n * ulp(wanted)
}

#[test]
fn exp_is_within_2_ulp() {
    sweep::<0>("exp", (-104.0, 88.7), f64::exp, ulps(2.0));
}

#[test]
fn erf_is_within_3_ulp() {
    sweep::<1>("erf", (-5.0, 5.0), erf, ulps(3.0));
}

#[test]
fn tanh_is_within_3_ulp() {
    sweep::<2>("tanh", (-12.0, 12.0), f64::tanh, ulps(3.0));
}

#[test]
fn sigmoid_is_within_4_ulp() {
    sweep::<3>("sigmoid", (-87.0, 87.0), |x| 1.0 / (1.0 + (-x).exp()), ulps(4.0));
}

#[test]
fn softplus_excess_is_within_5_ulp() {
    sweep::<8>("softplus_excess", (-87.0, 87.0), |x| (-x.abs()).exp().ln_1p(), ulps(5.0));
}

#[test]
fn gelu_keeps_its_relative_precision_in_the_tail() {
    sweep::<4>("gelu", (-12.0, 12.0), |x| x * normal_cdf(x), |x, y| (4.0 + x * x) * ulp(y));
}

#[test]
fn the_derivatives_and_gelu_tanh_are_within_their_bounds() {
    sweep::<5>("gelu'", (-20.0, 20.0), |x| normal_cdf(x) + x * density(x), |_, _| 2f64.powi(-22));
    sweep::<6>("gelu_tanh", (-20.0, 20.0), gelu_tanh_exact, |x, _| (1.0 + x.abs()) * 2f64.powi(-22));
    sweep::<7>("gelu_tanh'", (-20.0, 20.0), gelu_tanh_slope, |_, _| 2f64.powi(-20));
}

#[test]
fn infinities_have_their_limits() {
    for level in Level::available() {
        let limits = |run: &dyn Fn(&mut [f32])| {
            let mut xs = [f32::NEG_INFINITY, f32::INFINITY, -200.0, 200.0];
            run(&mut xs);
            xs
        };
        let inf = f32::INFINITY;
        assert_eq!(limits(&|x| level.run(Map::<0>(x))), [0.0, inf, 0.0, inf], "exp at {level:?}");
        assert_eq!(limits(&|x| level.run(Map::<1>(x))), [-1.0, 1.0, -1.0, 1.0], "erf at {level:?}");
        assert_eq!(limits(&|x| level.run(Map::<2>(x))), [-1.0, 1.0, -1.0, 1.0], "tanh at {level:?}");
        assert_eq!(limits(&|x| level.run(Map::<5>(x))), [0.0, 1.0, 0.0, 1.0], "gelu' at {level:?}");
        assert_eq!(limits(&|x| level.run(Map::<7>(x))), [0.0, 1.0, 0.0, 1.0], "gelu_tanh' at {level:?}");
    }
}
