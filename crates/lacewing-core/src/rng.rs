//! Seeded random numbers, the same on every machine: ChaCha8 words, own distributions.
//!
//! Integers, uniforms and permutations are exact everywhere. Normals pass through the platform's `ln`, `sin` and
//! `cos`, whose last f64 bit may differ; results are rounded to f32, where that shows about once in 2²⁸ draws.

use std::collections::BTreeSet;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng as _, SeedableRng};

/// A seeded stream of random numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rng {
    key: u64,
    words: ChaCha8Rng,
}

impl Rng {
    /// The stream of `seed`, at its start.
    pub fn new(seed: u64) -> Self {
        Self { key: seed, words: ChaCha8Rng::seed_from_u64(seed) }
    }

    /// The stream of `key` after `position` words: what [`Rng::key`] and [`Rng::position`] said of another.
    pub fn resume(key: u64, position: u128) -> Self {
        let mut rng = Self::new(key);
        rng.words.set_word_pos(position);
        rng
    }

    /// A stream of its own for `name`, at its start. It depends on this stream's seed and on the name, not on how
    /// much was drawn, so a layer that is added or removed leaves the draws of the others alone.
    pub fn fork(&self, name: &str) -> Self {
        let mut key = mix(self.key ^ 0x6A09_E667_F3BC_C908);
        for &byte in name.as_bytes() {
            key = mix(key ^ u64::from(byte)).wrapping_add(0x9E37_79B9_7F4A_7C15);
        }
        Self::new(mix(key ^ name.len() as u64))
    }

    /// The seed of this stream.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// How many 32-bit words were drawn.
    pub fn position(&self) -> u128 {
        self.words.get_word_pos()
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.words.next_u64()
    }

    /// Uniform in `[0, 1)`, a multiple of 2⁻⁵³.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[low, high)`.
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in `0..n`, without bias.
    ///
    /// # Panics
    ///
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "no number is below 0");
        // Words beyond the last whole multiple of n would favor small results.
        let limit = u64::MAX - (u64::MAX % n + 1) % n;
        loop {
            let word = self.bits();
            if word <= limit {
                return word % n;
            }
        }
    }

    /// Standard normal.
    pub fn normal(&mut self) -> f64 {
        self.normal_pair().0
    }

    /// Two independent standard normals.
    pub(crate) fn normal_pair(&mut self) -> (f64, f64) {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * self.unit()).sin_cos();
        (radius * cos, radius * sin)
    }

    /// Normal with deviation `std`, values beyond ±2 (absolute, whatever `std` is) drawn again.
    ///
    /// # Panics
    ///
    /// When `std` is not a number in `[0, 100]`: beyond, almost every draw would be drawn again.
    pub fn trunc_normal(&mut self, std: f64) -> f64 {
        assert!((0.0..=100.0).contains(&std), "deviation {std} of a normal cut at ±2");
        loop {
            let value = self.normal() * std;
            if value.abs() <= 2.0 {
                return value;
            }
        }
    }

    /// The numbers `0..n` in random order.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    /// Puts `items` in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }

    /// `count` different numbers of `0..n`, ascending, every set equally likely.
    ///
    /// # Panics
    ///
    /// When `count > n`.
    pub fn sample(&mut self, n: u64, count: usize) -> Vec<u64> {
        assert!(count as u64 <= n, "{count} different numbers of {n}");
        if (count as u64).saturating_mul(8) < n {
            // Floyd: one draw a number, no list of all n.
            let mut chosen = BTreeSet::new();
            for last in n - count as u64..n {
                let number = self.below(last + 1);
                chosen.insert(if chosen.contains(&number) { last } else { number });
            }
            return chosen.into_iter().collect();
        }
        let mut left = count as u64;
        (0..n)
            .filter(|&number| {
                let take = left > 0 && self.below(n - number) < left;
                left -= u64::from(take);
                take
            })
            .collect()
    }
}

/// A bijection of 64 bits in which every input bit reaches every output bit.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_never_changes() {
        // Checkpoints and published results depend on these words.
        let mut rng = Rng::new(1);
        assert_eq!([rng.bits(), rng.bits()], WORDS_OF_SEED_1);
        assert_eq!(Rng::new(1).fork("blocks.0.mlp.fc1").key(), FORK_OF_SEED_1);
    }
    const WORDS_OF_SEED_1: [u64; 2] = [7_424_550_030_962_593_201, 1_482_817_706_323_250_795];
    const FORK_OF_SEED_1: u64 = 2_457_652_899_934_518_236;

    #[test]
    fn a_fork_depends_on_the_name_and_not_on_what_was_drawn() {
        let mut rng = Rng::new(7);
        let before = rng.fork("a");
        rng.bits();
        assert_eq!(before, rng.fork("a"));
        assert_ne!(before, rng.fork("b"));
        assert_ne!(before, Rng::new(8).fork("a"));
        assert_ne!(rng.fork("ab").key(), rng.fork("a").fork("b").key());
    }

    #[test]
    fn a_resumed_stream_goes_on_where_it_was() {
        let mut rng = Rng::new(3);
        for _ in 0..17 {
            rng.normal();
        }
        let mut again = Rng::resume(rng.key(), rng.position());
        assert_eq!(
            (0..9).map(|_| rng.bits()).collect::<Vec<_>>(),
            (0..9).map(|_| again.bits()).collect::<Vec<_>>()
        );
    }

    #[test]
    fn samples_are_ascending_different_and_complete() {
        let mut rng = Rng::new(5);
        for (n, count) in [(1, 0), (1, 1), (10, 10), (1000, 3), (1000, 900), (1 << 40, 50)] {
            let sample = rng.sample(n, count);
            assert_eq!(sample.len(), count);
            assert!(sample.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(sample.iter().all(|&number| number < n));
        }
    }

    #[test]
    fn moments_of_the_distributions_are_within_six_deviations() {
        let mut rng = Rng::new(11);
        let n = 40_000;
        let normal: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = normal.iter().sum::<f64>() / f64::from(n);
        let square = normal.iter().map(|x| x * x).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 6.0 / f64::from(n).sqrt());
        assert!((square - 1.0).abs() < 6.0 * (2.0 / f64::from(n)).sqrt());
        assert!((0..n).all(|_| rng.trunc_normal(1.5).abs() <= 2.0));
        let hits = (0..n).filter(|_| rng.below(3) == 0).count() as f64;
        let expected = f64::from(n) / 3.0;
        assert!((hits - expected).abs() < 6.0 * (expected * 2.0 / 3.0).sqrt());
        // Three quarters of 2⁶⁴: plain remainders would put half of the draws in the first third.
        let hits = (0..n).filter(|_| rng.below(3 << 62) < 1 << 62).count() as f64;
        assert!((hits - expected).abs() < 6.0 * (expected * 2.0 / 3.0).sqrt());
    }
}
