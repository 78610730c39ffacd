//! The random numbers of data loading.
//!
//! Every stream is a ChaCha8 generator whose 256-bit key *is* `(seed, epoch, index, purpose)`, so a draw depends on what
//! it is for and never on which thread makes it or on what was drawn before.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for; streams of different purposes are unrelated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The order of an epoch; index 0.
    Order = 1,
    /// The augmentation of one sample; index = its place in the data set.
    Sample = 2,
    /// The mixing of one batch; index = its place in the epoch.
    Batch = 3,
}

/// A stream of random numbers, a pure function of `(seed, epoch, index, purpose)`.
#[derive(Clone, Debug)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// The stream for one purpose.
    pub fn new(purpose: Purpose, seed: u64, epoch: u64, index: u64) -> Self {
        let mut key = [0; 32];
        for (part, value) in key.as_chunks_mut::<8>().0.iter_mut().zip([seed, epoch, index, purpose as u64]) {
            *part = value.to_le_bytes();
        }
        Self(ChaCha8Rng::from_seed(key))
    }

    /// Uniform in `[0, 1)`, 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Uniform in `0..n` without bias: the high word of `x·n`, redrawn while the low word is among the `2³² mod n` surplus.
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u32) -> u32 {
        let surplus = n.wrapping_neg() % n;
        loop {
            let product = u64::from(self.0.next_u32()) * u64::from(n);
            if product as u32 >= surplus {
                return (product >> 32) as u32;
            }
        }
    }

    /// Standard normal (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Gamma(`shape`, 1) by Marsaglia and Tsang's squeeze; below 1 through `Gamma(a) = Gamma(a+1)·U^(1/a)`.
    fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            return self.gamma(shape + 1.0) * (1.0 - self.unit()).powf(shape.recip());
        }
        let d = shape - 1.0 / 3.0;
        let c = (9.0 * d).sqrt().recip();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Beta(`alpha`, `alpha`), in `[0, 1]`.
    pub fn beta(&mut self, alpha: f64) -> f64 {
        let (a, b) = (self.gamma(alpha), self.gamma(alpha));
        // Both underflow for a tiny alpha, whose limit is a fair coin.
        if a + b > 0.0 { a / (a + b) } else { f64::from(self.below(2)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_depend_on_every_part_of_the_key() {
        let first = |p, s, e, i| Draws::new(p, s, e, i).unit();
        let base = first(Purpose::Sample, 1, 2, 3);
        assert_eq!(base, first(Purpose::Sample, 1, 2, 3));
        for other in [(Purpose::Batch, 1, 2, 3), (Purpose::Sample, 2, 2, 3), (Purpose::Sample, 1, 3, 3)] {
            assert_ne!(base, first(other.0, other.1, other.2, other.3));
        }
        assert_ne!(base, first(Purpose::Sample, 1, 2, 4));
    }

    #[test]
    fn moments_lie_within_five_standard_errors() {
        let n = 20_000;
        for alpha in [0.2, 0.8, 1.0, 4.0] {
            let mut draws = Draws::new(Purpose::Batch, 7, 0, 0);
            let x: Vec<f64> = (0..n).map(|_| draws.beta(alpha)).collect();
            assert!(x.iter().all(|v| (0.0..=1.0).contains(v)));
            let variance = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            let mean = x.iter().sum::<f64>() / n as f64;
            assert!((mean - 0.5).abs() < 5.0 * (variance / n as f64).sqrt(), "alpha {alpha}: mean {mean}");
            let spread = x.iter().map(|v| (v - 0.5).powi(2)).sum::<f64>() / n as f64;
            // A square in [0, 1/4] has a variance of at most mean·(1/4 - mean).
            let error = (variance * (0.25 - variance) / n as f64).sqrt();
            assert!(
                (spread - variance).abs() < 5.0 * error,
                "alpha {alpha}: variance {spread} against {variance}"
            );
        }
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut draws = Draws::new(Purpose::Sample, 0, 0, 0);
        let (n, k) = (60_000, 6);
        let mut seen = [0_u32; 6];
        for _ in 0..n {
            seen[draws.below(k) as usize] += 1;
        }
        let p = 1.0 / f64::from(k);
        let deviation = (f64::from(n) * p * (1.0 - p)).sqrt();
        for count in seen {
            assert!((f64::from(count) - f64::from(n) * p).abs() < 5.0 * deviation, "{seen:?}");
        }
        assert_eq!(draws.below(1), 0);
    }
}
