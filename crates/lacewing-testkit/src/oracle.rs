//! Products of dense matrices in f64, each with the sum of magnitudes that its error bound needs.

use crate::{gamma, gamma_of};

/// Exact values (up to f64) and, for each, `Σ|terms|`.
#[derive(Clone, Debug, PartialEq)]
pub struct Oracle {
    /// The values.
    pub value: Vec<f64>,
    /// The sum of the magnitudes of each value's terms.
    pub magnitude: Vec<f64>,
}

impl Oracle {
    /// The bound of each value when computed in f32 from exact inputs with `k` operations in a row on any term:
    /// `γₖ · Σ|terms|`, and the least normal number for underflow.
    pub fn bound(&self, k: usize) -> Vec<f64> {
        let factor = gamma(k);
        self.magnitude.iter().map(|m| factor * m + f64::from(f32::MIN_POSITIVE)).collect()
    }

    /// [`Oracle::bound`] in a precision of unit roundoff `unit`, without room for underflow.
    pub fn bound_of(&self, k: usize, unit: f64) -> Vec<f64> {
        let factor = gamma_of(k, unit);
        self.magnitude.iter().map(|m| factor * m).collect()
    }

    /// Adds `bias [n_out]` to every row.
    #[must_use]
    pub fn plus_bias(mut self, bias: &[f64]) -> Self {
        let rows = self.value.chunks_exact_mut(bias.len()).zip(self.magnitude.chunks_exact_mut(bias.len()));
        for (values, magnitudes) in rows {
            for ((value, magnitude), bias) in values.iter_mut().zip(magnitudes).zip(bias) {
                *value += bias;
                *magnitude += bias.abs();
            }
        }
        self
    }
}

/// `y = x Wᵀ`: a linear layer without bias. In f32 [`Oracle::bound`] holds with `k = n_in`, one more with a bias.
///
/// Shapes: `x [rows, n_in]`, `w [n_out, n_in]`, result `[rows, n_out]`.
///
/// # Panics
///
/// When a length does not fit.
pub fn linear(x: &[f64], w: &[f64], n_in: usize) -> Oracle {
    assert!(
        n_in > 0 && x.len().is_multiple_of(n_in) && w.len().is_multiple_of(n_in),
        "lengths for n_in {n_in}"
    );
    let (mut value, mut magnitude) = (Vec::new(), Vec::new());
    for x in x.chunks_exact(n_in) {
        for w in w.chunks_exact(n_in) {
            value.push(w.iter().zip(x).map(|(w, x)| w * x).sum());
            magnitude.push(w.iter().zip(x).map(|(w, x)| (w * x).abs()).sum());
        }
    }
    Oracle { value, magnitude }
}

/// `c = a b`. In f32 [`Oracle::bound`] holds with k = `inner`.
///
/// Shapes: `a [rows, inner]`, `b [inner, cols]`, result `[rows, cols]`.
///
/// # Panics
///
/// When a length does not fit.
pub fn matmul(a: &[f64], b: &[f64], rows: usize, inner: usize, cols: usize) -> Oracle {
    assert_eq!((a.len(), b.len()), (rows * inner, inner * cols), "lengths");
    let (mut value, mut magnitude) = (vec![0.0; rows * cols], vec![0.0; rows * cols]);
    for row in 0..rows {
        for i in 0..inner {
            for col in 0..cols {
                let term = a[row * inner + i] * b[i * cols + col];
                value[row * cols + col] += term;
                magnitude[row * cols + col] += term.abs();
            }
        }
    }
    Oracle { value, magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{assert_within, uniform, widen};

    #[test]
    fn values_and_magnitudes_of_small_products() {
        let y = linear(&[1.0, -2.0], &[3.0, 4.0, 5.0, 6.0], 2).plus_bias(&[-1.0, 1.0]);
        assert_eq!(y, Oracle { value: vec![-6.0, -6.0], magnitude: vec![12.0, 18.0] });
        let c = matmul(&[1.0, -2.0], &[3.0, 5.0, 4.0, 6.0], 1, 2, 2);
        assert_eq!(c, Oracle { value: vec![-5.0, -7.0], magnitude: vec![11.0, 17.0] });
    }

    #[test]
    fn sums_in_f32_are_within_the_bound_in_either_order_and_a_dropped_term_is_not() {
        let (x, w) = (uniform(1, 300), uniform(2, 300));
        let oracle = linear(&widen(&x), &widen(&w), 300);
        let terms: Vec<f32> = x.iter().zip(&w).map(|(x, w)| x * w).collect();
        for sum in [terms.iter().sum::<f32>(), terms.iter().rev().sum()] {
            assert_within(&[sum], &oracle.value, &oracle.bound(300), "sum");
        }
        let dropped = terms[1..].iter().sum::<f32>();
        assert!((f64::from(dropped) - oracle.value[0]).abs() > oracle.bound(300)[0]);
    }
}
