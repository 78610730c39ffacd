//! Dropout on the CPU: the mask is made on the way, several counters side by side.

use lacewing_cpu::map::sweep;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// Counters that run side by side, as lanes of integer registers.
const COUNTERS: usize = 16;
/// Elements that they decide on.
const RUN: usize = 4 * COUNTERS;
/// Elements of one task: few, because ten rounds of multiplications stand behind each.
const TASK: usize = 64 * RUN;

/// `y[i] = x[i] / (1 − p)` where element `i` is kept, else 0.
///
/// `i` is kept if `(w >> 8) · 2⁻²⁴ ≥ p` for word `w = i mod 4` of Philox4x32-10 with key `seed` and counter
/// `offset + i / 4`: the same on every device.
pub(super) fn apply(x: &[f32], y: &mut [f32], seed: u64, offset: u64, p: f32) {
    assert_eq!(x.len(), y.len());
    // Small tensors are one task; the split does not show in the result.
    let step = if y.len() <= 2 * TASK { y.len().max(1) } else { TASK };
    x.par_chunks(step).zip(y.par_chunks_mut(step)).enumerate().for_each(|(task, (x, y))| {
        dispatch(Apply { x, y, seed, offset: offset.wrapping_add((task * step / 4) as u64), p });
    });
}

struct Apply<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    seed: u64,
    offset: u64,
    p: f32,
}

impl Vectorize for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (p, kept) = (isa.splat(self.p), isa.splat(1.0 - self.p));
        let zero = isa.splat(0.0);
        let mut uniforms = [0.0; RUN];
        for (run, (x, y)) in self.x.chunks(RUN).zip(self.y.chunks_mut(RUN)).enumerate() {
            philox_uniforms(self.seed, self.offset.wrapping_add((run * COUNTERS) as u64), &mut uniforms);
            let len = x.len();
            sweep(isa, [x, &uniforms[..len]], [y], |[x, u], _| {
                [isa.select(isa.lt(u, p), zero, isa.div(x, kept))]
            });
        }
    }
}

/// The numbers in `[0, 1)` of [`COUNTERS`] counters from `first` on, four each.
#[inline(always)]
fn philox_uniforms(seed: u64, first: u64, uniforms: &mut [f32; RUN]) {
    let mut key = [seed as u32, (seed >> 32) as u32];
    let mut c = [[0_u32; COUNTERS]; 4];
    for i in 0..COUNTERS {
        let counter = first.wrapping_add(i as u64);
        c[0][i] = counter as u32;
        c[1][i] = (counter >> 32) as u32;
    }
    for _ in 0..10 {
        for i in 0..COUNTERS {
            let a = u64::from(c[0][i]) * 0xD251_1F53;
            let b = u64::from(c[2][i]) * 0xCD9E_8D57;
            c[0][i] = (b >> 32) as u32 ^ c[1][i] ^ key[0];
            c[2][i] = (a >> 32) as u32 ^ c[3][i] ^ key[1];
            c[1][i] = b as u32;
            c[3][i] = a as u32;
        }
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    for i in 0..COUNTERS {
        for word in 0..4 {
            // 24 bits: exact in f32, as an i32 so that one instruction converts.
            uniforms[4 * i + word] = (c[word][i] >> 8) as i32 as f32 * (1.0 / (1 << 24) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::philox;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::uniform;

    #[test]
    fn every_element_follows_its_counter_at_every_level() {
        let p = 0.3;
        for level in Level::available() {
            for len in [0, 1, 3, 4, 5, 63, 64, 65, 3 * TASK + 7] {
                for (seed, offset) in
                    [(0, 0), (0x1234_5678_9ABC_DEF0, u64::from(u32::MAX) - 3), (7, u64::MAX - 1)]
                {
                    let x = uniform(1, len);
                    let mut y = vec![f32::NAN; len];
                    with_level(level, || apply(&x, &mut y, seed, offset, p));
                    for i in 0..len {
                        let word = philox(seed, offset.wrapping_add(i as u64 / 4))[i % 4];
                        let kept = (word >> 8) as f32 / (1 << 24) as f32 >= p;
                        assert_eq!(
                            y[i],
                            if kept { x[i] / (1.0 - p) } else { 0.0 },
                            "element {i} of {len} at {level:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn the_share_dropped_is_p() {
        let (n, p) = (100_000, 0.2_f32);
        let mut y = vec![0.0; n];
        apply(&vec![1.0; n], &mut y, 5, 0, p);
        let dropped = y.iter().filter(|y| **y == 0.0).count() as f64 / n as f64;
        let deviation = (f64::from(p) * f64::from(1.0 - p) / n as f64).sqrt();
        assert!((dropped - f64::from(p)).abs() < 6.0 * deviation, "{dropped}");
    }
}
