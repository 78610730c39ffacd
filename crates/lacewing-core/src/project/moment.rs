//! The second moment of a layer's inputs, gathered batch by batch. Cost of a row: `n²/2` multiply-adds.

use lacewing_linalg::add_gram;

/// Rows that are widened to f64 at a time.
const CHUNK: usize = 512;

/// `Σ x xᵀ` over rows `x [n]`, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    n: usize,
    rows: usize,
    /// Only the lower triangle is summed.
    sum: Vec<f64>,
}

impl Moment {
    /// No rows yet, for inputs of length `n`.
    pub fn new(n: usize) -> Self {
        Self { n, rows: 0, sum: vec![0.0; n * n] }
    }

    /// Adds the rows of `x [rows, n]`.
    ///
    /// # Panics
    ///
    /// When the length of `x` is not a multiple of `n`.
    pub fn add(&mut self, x: &[f32]) {
        assert_eq!(x.len() % self.n, 0, "length of x, a multiple of {}", self.n);
        for x in x.chunks(CHUNK * self.n) {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            add_gram(&mut self.sum, &x, self.n);
        }
        self.rows += x.len() / self.n;
    }

    /// How many rows were added.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// `M = E[x xᵀ]`, `[n, n]`, symmetric to the last bit; zeros before the first row.
    pub fn mean(&self) -> Vec<f64> {
        let (n, rows) = (self.n, self.rows.max(1) as f64);
        let at = |i: usize| (i / n).max(i % n) * n + (i / n).min(i % n);
        (0..n * n).map(|i| self.sum[at(i)] / rows).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

    #[test]
    fn batches_add_up_to_the_mean_of_the_products() {
        let (n, rows) = (5, CHUNK + 7);
        let mut rng = Rng::new(1);
        let x: Vec<f32> = (0..n * rows).map(|_| rng.normal() as f32).collect();
        let mut moment = Moment::new(n);
        assert_eq!(moment.mean(), vec![0.0; n * n]);
        moment.add(&x[..3 * n]);
        moment.add(&[]);
        moment.add(&x[3 * n..]);
        assert_eq!(moment.rows(), rows);
        let mean = moment.mean();
        for at in 0..n * n {
            let terms = x.chunks(n).map(|x| f64::from(x[at / n]) * f64::from(x[at % n]));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + f64::abs(term)));
            // γ for a sum of `rows` products, on either side.
            let bound = 2.0 * rows as f64 * f64::EPSILON * size / rows as f64;
            assert!((mean[at] - sum / rows as f64).abs() <= bound, "{at}");
            assert_eq!(mean[at].to_bits(), mean[at % n * n + at / n].to_bits());
        }
    }

    #[test]
    #[should_panic(expected = "a multiple of 3")]
    fn a_ragged_batch_is_refused() {
        Moment::new(3).add(&[0.0; 4]);
    }
}
