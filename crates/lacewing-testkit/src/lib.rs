//! Oracles in f64, seeded inputs, computed tolerances and a gradient check. A dev-dependency only.
//!
//! The one tolerance rule: a value summed from k products in precision u is within `γₖ · Σ|wᵢ xᵢ|` of the exact one,
//! with `γₖ = k u / (1 − k u)`, whatever the order of the sum. An [`Oracle`] carries the value and the Σ|…| beside
//! it, so no test needs a literal epsilon.
#![forbid(unsafe_code)]

mod curves;
mod gradient;
mod oracle;

pub use curves::{erf, gelu_tanh, normal_cdf};
pub use gradient::{Slope, assert_gradient, slope, slopes};
pub use oracle::{Oracle, linear, matmul};

/// Half the distance from 1 to the next f32: the greatest relative error of one f32 operation.
pub const UNIT_F32: f64 = 5.960_464_477_539_063e-8;
/// The same for bf16.
pub const UNIT_BF16: f64 = 0.003_906_25;
/// The same for f16.
pub const UNIT_F16: f64 = 0.000_488_281_25;
/// The same for f64.
pub const UNIT_F64: f64 = 1.110_223_024_625_156_5e-16;

/// `γₖ` in f32: the relative error of k operations in a row.
pub fn gamma(k: usize) -> f64 {
    gamma_of(k, UNIT_F32)
}

/// `γₖ = k u / (1 − k u)` for unit roundoff `u`.
///
/// # Panics
///
/// When `k u` reaches 1: no bound holds.
pub fn gamma_of(k: usize, unit: f64) -> f64 {
    let error = k as f64 * unit;
    assert!(error < 1.0, "no bound holds for {k} operations at unit roundoff {unit:e}");
    error / (1.0 - error)
}

/// `len` values in `[-1, 1)`, multiples of 2⁻²³; the same `seed` gives the same values everywhere.
pub fn uniform(seed: u64, len: usize) -> Vec<f32> {
    // SplitMix64.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    };
    (0..len).map(|_| (next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// [`uniform`] in f64.
pub fn uniform_f64(seed: u64, len: usize) -> Vec<f64> {
    widen(&uniform(seed, len))
}

/// The same values in f64.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// Checks f32 values against exact ones, element by element.
///
/// # Panics
///
/// When an element is farther from `expected` than its own `bound`, or is NaN; the message has the worst one.
#[track_caller]
pub fn assert_within(got: &[f32], expected: &[f64], bound: &[f64], what: &str) {
    assert_near(&widen(got), expected, bound, what);
}

/// [`assert_within`] for f64 values.
///
/// # Panics
///
/// As [`assert_within`].
#[track_caller]
pub fn assert_near(got: &[f64], expected: &[f64], bound: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    assert_eq!(bound.len(), expected.len(), "{what}: length of the bound");
    // How far outside its bound an element is; NaN counts as farthest.
    let excess = |i: usize| {
        let error = (got[i] - expected[i]).abs() - bound[i];
        if error.is_nan() { f64::INFINITY } else { error }
    };
    let Some(worst) = (0..got.len()).max_by(|&i, &j| excess(i).total_cmp(&excess(j))) else { return };
    let n_outside = (0..got.len()).filter(|&i| excess(i) > 0.0).count();
    assert!(
        n_outside == 0,
        "{what}[{worst}] = {}, expected {} ± {:e} ({n_outside} of {} outside)",
        got[worst],
        expected[worst],
        bound[worst],
        got.len(),
    );
}

/// Checks a low-precision result against the exact one: at most twice as far off as a plain version in that precision.
///
/// The distance is the greatest over all elements, so that a lucky element of the plain version demands nothing.
///
/// # Panics
///
/// When `got` is farther off than that, or holds a NaN.
#[track_caller]
pub fn assert_at_most_twice(got: &[f32], plain: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    assert_eq!(plain.len(), expected.len(), "{what}: length of the plain version");
    assert!(got.iter().all(|value| !value.is_nan()), "{what} holds a NaN");
    let farthest = |values: &[f32]| {
        let errors = values.iter().zip(expected).map(|(&value, &exact)| (f64::from(value) - exact).abs());
        errors.fold(0.0, f64::max)
    };
    let (got, plain) = (farthest(got), farthest(plain));
    assert!(got <= 2.0 * plain, "{what} is off by up to {got:e}, the plain version by {plain:e}");
}

/// How many f32 values lie between `a` and `b`: 0 when equal (also +0 and −0), `u32::MAX` for a NaN.
///
/// ```
/// assert_eq!(lacewing_testkit::ulps(1.0, 1.0 + f32::EPSILON), 1);
/// ```
pub fn ulps(a: f32, b: f32) -> u32 {
    if a.is_nan() || b.is_nan() {
        return u32::MAX;
    }
    // Bits as an integer that grows with the value.
    let rank = |value: f32| {
        let magnitude = i64::from(value.to_bits() & 0x7FFF_FFFF);
        if value.is_sign_negative() { -magnitude } else { magnitude }
    };
    rank(a).abs_diff(rank(b)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_values_are_seeded_and_in_range() {
        assert_eq!(uniform(1, 100), uniform(1, 100));
        assert_ne!(uniform(1, 100), uniform(2, 100));
        let values = uniform(3, 10_000);
        assert!(values.iter().all(|v| (-1.0..1.0).contains(v)));
        let mean = values.iter().sum::<f32>() / 10_000.0;
        assert!(mean.abs() < 6.0 * (1.0f32 / 3.0 / 10_000.0).sqrt(), "{mean}");
    }

    #[test]
    fn ulps_count_floats() {
        assert_eq!(ulps(0.0, -0.0), 0);
        assert_eq!(ulps(0.0, f32::from_bits(1)), 1);
        assert_eq!(ulps(-f32::from_bits(1), f32::from_bits(1)), 2);
        assert_eq!(ulps(f32::NAN, 1.0), u32::MAX);
    }

    #[test]
    #[should_panic(expected = "y[1] = 3, expected 2 ± 5e-1 (1 of 2 outside)")]
    fn an_element_outside_its_bound_fails_with_its_place() {
        assert_within(&[1.0, 3.0], &[1.0, 2.0], &[0.0, 0.5], "y");
    }

    #[test]
    #[should_panic(expected = "y[0] = NaN")]
    fn nan_is_within_no_bound() {
        assert_within(&[f32::NAN], &[1.0], &[f64::INFINITY], "y");
    }

    #[test]
    #[should_panic(expected = "off by up to")]
    fn three_times_the_plain_error_fails() {
        assert_at_most_twice(&[1.75], &[1.25], &[1.0], "y");
    }

    #[test]
    fn units_are_those_of_the_formats() {
        assert_eq!(UNIT_F32, f64::from(f32::EPSILON) / 2.0);
        assert_eq!(UNIT_F64, f64::EPSILON / 2.0);
        assert_eq!(UNIT_BF16, 2f64.powi(-8));
        assert_eq!(UNIT_F16, 2f64.powi(-11));
    }
}
