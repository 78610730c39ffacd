//! Gradients by central differences, with an estimate of their own error.

use crate::UNIT_F64;

/// A numerical derivative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slope {
    /// Its value.
    pub value: f64,
    /// How far off it may be: what extrapolation still changed, and the rounding of f over the step.
    pub error: f64,
}

/// First step of a central difference, relative to the point; each next one is half of it.
const FIRST_STEP: f64 = 1.0 / 16.0;
const STEPS: usize = 10;

/// `df/dt` at `t` by central differences over shrinking steps, extrapolated to step 0.
///
/// `(f(t + h) − f(t − h)) / 2h` errs by even powers of h, so combining steps h and h/2 removes one power at a time. The
/// value returned is the entry of that table with the least estimated error.
pub fn slope(mut f: impl FnMut(f64) -> f64, t: f64) -> Slope {
    let mut best = Slope { value: f64::NAN, error: f64::INFINITY };
    let mut above: Vec<f64> = Vec::new();
    let mut step = FIRST_STEP * t.abs().max(1.0);
    for _ in 0..STEPS {
        let (high, low) = (t + step, t - step);
        let (f_high, f_low) = (f(high), f(low));
        // A sum of a few dozen terms of f's size rounds by about that many units.
        let rounding = 64.0 * UNIT_F64 * (f_high.abs() + f_low.abs() + f64::MIN_POSITIVE) / step;
        let mut row = vec![(f_high - f_low) / (high - low)];
        for (column, &coarse) in above.iter().enumerate() {
            let power = 4f64.powi(column as i32 + 1);
            let finer = (power * row[column] - coarse) / (power - 1.0);
            let error = (finer - row[column]).abs().max((finer - coarse).abs()) + rounding;
            row.push(finer);
            if error < best.error {
                best = Slope { value: finer, error };
            }
        }
        above = row;
        step /= 2.0;
    }
    best
}

/// `∂f/∂x_i` for every `i`, at `x`.
pub fn slopes(mut f: impl FnMut(&[f64]) -> f64, x: &[f64]) -> Vec<Slope> {
    let mut moved = x.to_vec();
    let mut along = |i: usize| {
        let found = slope(
            |t| {
                moved[i] = t;
                f(&moved)
            },
            x[i],
        );
        moved[i] = x[i];
        found
    };
    (0..x.len()).map(&mut along).collect()
}

/// Checks `gradient` against central differences of `f` at `x`; `allowed[i]` is the error that `gradient[i]` itself
/// may have (its own rounding; zeros when it was computed in f64).
///
/// # Panics
///
/// When an element is off by more than the differences' own error and what is allowed, or when the differences are
/// so uncertain that they could not tell.
#[track_caller]
pub fn assert_gradient(
    f: impl FnMut(&[f64]) -> f64,
    x: &[f64],
    gradient: &[f64],
    allowed: &[f64],
    what: &str,
) {
    assert_eq!(gradient.len(), x.len(), "{what}: length of the gradient");
    assert_eq!(allowed.len(), x.len(), "{what}: length of the errors allowed");
    let slopes = slopes(f, x);
    let scale = slopes.iter().fold(f64::MIN_POSITIVE, |scale, slope| scale.max(slope.value.abs()));
    for (i, Slope { value, error }) in slopes.into_iter().enumerate() {
        assert!(
            error <= scale.max(1.0) * UNIT_F64.sqrt(),
            "{what}[{i}]: differences give only {value} ± {error:e}"
        );
        let bound = error + allowed[i] + 4.0 * UNIT_F64 * scale;
        assert!(
            (gradient[i] - value).abs() <= bound,
            "{what}[{i}] = {}, differences give {value} ± {bound:e}",
            gradient[i],
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_within_their_error_and_sharp() {
        for (f, derivative, t) in [
            (f64::exp as fn(f64) -> f64, f64::exp as fn(f64) -> f64, 1.0),
            (f64::sin, f64::cos, 2.5),
            (f64::tanh, |t| 1.0 - t.tanh().powi(2), -0.3),
            (|t| t.powi(3), |t| 3.0 * t * t, 100.0),
            (|_| 5.0, |_| 0.0, 0.0),
        ] {
            let Slope { value, error } = slope(f, t);
            let exact = derivative(t);
            assert!((value - exact).abs() <= error, "{value} against {exact} ± {error:e}");
            assert!(error <= exact.abs().max(1.0) * UNIT_F64.sqrt(), "{error:e}");
        }
    }

    fn product(x: &[f64]) -> f64 {
        x[0] * x[1] + x[1].exp()
    }

    #[test]
    fn a_right_gradient_passes() {
        let x = [0.5f64, -1.5];
        assert_gradient(product, &x, &[x[1], x[0] + x[1].exp()], &[0.0; 2], "gradient");
    }

    #[test]
    #[should_panic(expected = "gradient[1]")]
    fn a_gradient_off_by_a_millionth_fails() {
        let x = [0.5f64, -1.5];
        let wrong = (x[0] + x[1].exp()) * (1.0 + 1e-6);
        assert_gradient(product, &x, &[x[1], wrong], &[0.0; 2], "gradient");
    }

    #[test]
    #[should_panic(expected = "differences give only")]
    fn a_kink_cannot_pass_for_a_slope() {
        assert_gradient(|x| (x[0] - 1e-5).abs(), &[0.0], &[-1.0], &[0.0], "gradient");
    }
}
