//! K-winners on the CPU: one selection a group, groups side by side.
//!
//! Boosted values are compared as integers in the order of the numbers, and everything that decides on them is rounded
//! step by step as written, so that a GPU finds the same winners and the same duty cycles, bit by bit.

use super::{DutyRate, Groups};
use lacewing_cpu::parallel::rows_per_task;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// `boosts[c] = exp(−boost · duty[c])`.
pub(super) fn boosts(duty: &[f32], boost: f32, boosts: &mut [f32]) {
    for (duty, factor) in duty.iter().zip(boosts) {
        *factor = exp(-f64::from(boost) * f64::from(*duty)) as f32;
    }
}

/// Below this the exponential is 0 in f32.
const LEAST: f64 = -104.0;

/// `exp(z)` for `z ≤ 0`, to far below half a unit of f32: `2ⁿ exp(r)` with the power series of r, |r| ≤ ln 2 / 2. Products
/// and sums are rounded one by one, where a library's exponential is another on every device.
fn exp(z: f64) -> f64 {
    if z < LEAST {
        return 0.0;
    }
    /// ln 2 in two parts; the first times a small integer is exact.
    const LN_2: [f64; 2] = [6.931_471_803_691_238e-1, 1.908_214_929_270_587_7e-10];
    let n = (z * std::f64::consts::LOG2_E - 0.5) as i32;
    let r = z - f64::from(n) * LN_2[0] - f64::from(n) * LN_2[1];
    // 1 / i! is rounded once; the factorials themselves are exact.
    let (mut sum, mut factorial) = (0.0, 6_227_020_800.0);
    for i in (1..=13).rev() {
        sum = (sum + 1.0 / factorial) * r;
        factorial /= f64::from(i);
    }
    (sum + 1.0) * f64::from_bits(((1023 + i64::from(n)) as u64) << 52)
}

/// A number as an integer in the same order: −0 is 0, NaN is above all.
fn key(value: f32) -> u32 {
    let bits = if value == 0.0 { 0 } else { value.to_bits() };
    if value.is_nan() {
        u32::MAX
    } else if bits >> 31 == 1 {
        !bits
    } else {
        bits | 1 << 31
    }
}

/// Winners keep their values, the others are 0; `winners` gets a bit a unit, the first the lowest.
///
/// Shapes: `x`, `y [count, units]`, `boosts [channels]`, `winners [count, words]`.
pub(super) fn select(x: &[f32], boosts: &[f32], groups: Groups, y: &mut [f32], winners: Option<&mut [u32]>) {
    let Groups { count, units, .. } = groups;
    assert_eq!((x.len(), y.len(), boosts.len()), (count * units, count * units, groups.channels));
    let rows = rows_per_task(count, units);
    let tasks = x.par_chunks(rows * units).zip(y.par_chunks_mut(rows * units));
    match winners {
        Some(winners) => tasks
            .zip(winners.par_chunks_mut(rows * groups.words()))
            .for_each(|((x, y), winners)| dispatch(Select { x, boosts, groups, y, winners: Some(winners) })),
        None => tasks.for_each(|(x, y)| dispatch(Select { x, boosts, groups, y, winners: None })),
    }
}

/// The groups of one task.
struct Select<'a> {
    x: &'a [f32],
    boosts: &'a [f32],
    groups: Groups,
    y: &'a mut [f32],
    winners: Option<&'a mut [u32]>,
}

impl Vectorize for Select<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, _: I) {
        let Groups { k, units, relu, .. } = self.groups;
        let words = self.groups.words();
        let (mut keys, mut order) = (Vec::with_capacity(units), Vec::with_capacity(units));
        for (at, (x, y)) in self.x.chunks_exact(units).zip(self.y.chunks_exact_mut(units)).enumerate() {
            keys.clear();
            for x in x.chunks_exact(self.boosts.len()) {
                keys.extend(x.iter().zip(self.boosts).map(|(x, boost)| key(x * boost)));
            }
            order.clone_from(&keys);
            let (_, &mut least, above) = order.select_nth_unstable(units - k);
            // Places for those equal to the least winner, in the order of the units.
            let mut left = k - above.iter().filter(|key| **key > least).count();
            let runs = keys.chunks(32).zip(x.chunks(32)).zip(y.chunks_mut(32)).enumerate();
            for (word, ((keys, x), y)) in runs {
                let (mut wins, mut ties) = (0, 0);
                for (bit, &key) in keys.iter().enumerate() {
                    wins |= u32::from(key > least) << bit;
                    ties |= u32::from(key == least) << bit;
                }
                // The lowest bit is the first unit.
                while ties != 0 && left > 0 {
                    wins |= ties & ties.wrapping_neg();
                    ties &= ties - 1;
                    left -= 1;
                }
                if relu {
                    // NaN stays, to be seen.
                    for (bit, &x) in x.iter().enumerate() {
                        wins &= !(u32::from(x <= 0.0) << bit);
                    }
                }
                for (bit, (y, &x)) in y.iter_mut().zip(x).enumerate() {
                    *y = if wins >> bit & 1 == 1 { x } else { 0.0 };
                }
                if let Some(winners) = &mut self.winners {
                    winners[at * words + word] = wins;
                }
            }
        }
    }
}

/// `dx = dy` where a unit won, else 0.
pub(super) fn pass_on(dy: &[f32], winners: &[u32], groups: Groups, dx: &mut [f32]) {
    let (units, words) = (groups.units, groups.words());
    let rows = rows_per_task(groups.count, units);
    let tasks = dy
        .par_chunks(rows * units)
        .zip(dx.par_chunks_mut(rows * units))
        .zip(winners.par_chunks(rows * words));
    tasks.for_each(|((dy, dx), winners)| {
        let groups = dy.chunks_exact(units).zip(dx.chunks_exact_mut(units)).zip(winners.chunks_exact(words));
        for ((dy, dx), bits) in groups {
            for (at, (dy, dx)) in dy.iter().zip(dx).enumerate() {
                *dx = if bits[at / 32] >> (at % 32) & 1 == 1 { *dy } else { 0.0 };
            }
        }
    });
}

/// `wins[c]`: how many of channel c's values are above 0.
pub(super) fn count(y: &[f32], wins: &mut [u32]) {
    let channels = wins.len();
    let rows = rows_per_task(y.len() / channels, channels);
    let counted = y.par_chunks(rows * channels).map(|y| {
        let mut wins = vec![0; channels];
        for y in y.chunks_exact(channels) {
            for (win, y) in wins.iter_mut().zip(y) {
                *win += u32::from(*y > 0.0);
            }
        }
        wins
    });
    let add = |mut a: Vec<u32>, b: Vec<u32>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    wins.copy_from_slice(&counted.reduce(|| vec![0; channels], add));
}

/// The samples seen after a batch of `samples`, and its weight.
pub(super) fn weight(rate: DutyRate, seen: f32, samples: usize) -> (f32, f64) {
    match rate {
        DutyRate::Constant(alpha) => (seen, f64::from(alpha)),
        DutyRate::Period(period) => {
            let seen = (f64::from(seen) + samples as f64).min(f64::from(period));
            (seen as f32, (samples as f64 / seen).min(1.0))
        }
    }
}

/// `duty ← duty + weight (wins / places − duty)`.
pub(super) fn update(wins: &[u32], places: usize, weight: f64, duty: &mut [f32]) {
    for (wins, duty) in wins.iter().zip(duty) {
        let (share, old) = (f64::from(*wins) / places as f64, f64::from(*duty));
        *duty = (old + weight * (share - old)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_testkit::{UNIT_F32, UNIT_F64, gamma};

    #[test]
    fn the_exponential_is_that_of_the_library_but_for_roundings() {
        // The product and the difference that make r leave at most its own unit; the series adds 2 roundings a term.
        let bound = gamma(2 * 13 + 4) * UNIT_F64 / UNIT_F32;
        for i in 0..=208_000 {
            let z = f64::from(i) * LEAST / 208_000.0;
            assert!((exp(z) - z.exp()).abs() <= bound * z.exp(), "exp({z}) = {}, not {}", exp(z), z.exp());
        }
        assert_eq!((exp(0.0), exp(-0.0), exp(f64::NEG_INFINITY)), (1.0, 1.0, 0.0));
        assert_eq!(LEAST.exp() as f32, 0.0);
    }

    #[test]
    fn boosts_are_the_published_ones() {
        let mut found = [0.0; 4];
        boosts(&[0.5, 0.5, 0.0, 0.25], 1.0, &mut found);
        // Published to six places.
        for (found, published) in found.iter().zip([0.606_531, 0.606_531, 1.0, 0.778_801]) {
            assert!((f64::from(*found) - published).abs() <= 0.5e-6 + UNIT_F32, "{found}, not {published}");
        }
        boosts(&[0.2, 0.2, 0.1, 0.1], 1.5, &mut found);
        // The factor of all, exp(β k/n), left out here.
        let common = (1.5_f64 * 0.5).exp();
        for (found, published) in found.iter().zip([1.568_312, 1.568_312, 1.822_119, 1.822_119]) {
            let found = f64::from(*found) * common;
            assert!((found - published).abs() <= 0.5e-6 + 4.0 * UNIT_F32 * found, "{found}, not {published}");
        }
    }

    #[test]
    fn keys_are_in_the_order_of_the_numbers() {
        let tiny = f32::from_bits(1);
        let rising = [f32::NEG_INFINITY, f32::MIN, -1.0, -tiny, 0.0, tiny, 1.0, f32::MAX, f32::INFINITY];
        assert!(rising.windows(2).all(|pair| key(pair[0]) < key(pair[1])));
        assert_eq!(key(-0.0), key(0.0));
        assert!(key(f32::NAN) > key(f32::INFINITY) && key(-f32::NAN) == key(f32::NAN));
    }
}
