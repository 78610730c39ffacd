//! Random numbers inside a step: a seed and a position, nothing else, so that any part can be repeated.

use std::cell::Cell;

/// Hands out disjoint ranges of one counter-based stream (Philox keyed by run seed and step).
///
/// A recomputed block starts again from the position its first pass started at and draws the same numbers.
#[derive(Debug, Clone)]
pub struct StepRng {
    seed: u64,
    next: Cell<u64>,
}

impl StepRng {
    /// The stream of optimizer step `step` in the run seeded `seed`.
    pub fn new(seed: u64, step: u64) -> Self {
        Self { seed: mix(seed ^ mix(step.wrapping_add(0x9E37_79B9_7F4A_7C15))), next: Cell::new(0) }
    }

    /// The key of the stream.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Reserves `n` numbers; returns the counter of their first block of four.
    pub fn reserve(&self, n: usize) -> u64 {
        let at = self.next.get();
        self.next.set(at + n.div_ceil(4) as u64);
        at
    }

    /// Where the stream stands.
    pub fn position(&self) -> u64 {
        self.next.get()
    }

    /// The same stream, standing at `position`.
    pub fn at(&self, position: u64) -> Self {
        Self { seed: self.seed, next: Cell::new(position) }
    }

    /// `n` numbers in `[0, 1)`, drawn on the host: for decisions a sample, such as stochastic depth.
    pub fn uniforms(&self, n: usize) -> Vec<f32> {
        let first = self.reserve(n);
        (0..n)
            .map(|i| (philox(self.seed, first + i as u64 / 4)[i % 4] >> 8) as f32 / (1u32 << 24) as f32)
            .collect()
    }
}

/// SplitMix64's finalizer: every input bit reaches every output bit.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Philox4x32-10 (Salmon et al., SC 2011): four words from a 64-bit key and a 64-bit counter.
pub(crate) fn philox(key: u64, counter: u64) -> [u32; 4] {
    let mut key = [key as u32, (key >> 32) as u32];
    let mut c = [counter as u32, (counter >> 32) as u32, 0, 0];
    for _ in 0..10 {
        let (a, b) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
        c = [(b >> 32) as u32 ^ c[1] ^ key[0], b as u32, (a >> 32) as u32 ^ c[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_meets_the_published_vector() {
        // Random123's known answers for philox4x32-10, key 0 and counter 0.
        assert_eq!(philox(0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    }

    #[test]
    fn a_position_repeats_its_numbers() {
        let rng = StepRng::new(1, 2);
        rng.reserve(7);
        let from = rng.position();
        let first = rng.uniforms(9);
        assert_eq!(rng.at(from).uniforms(9), first);
        assert_ne!(rng.uniforms(9), first);
    }
}
