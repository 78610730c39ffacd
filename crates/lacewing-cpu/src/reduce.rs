//! Reductions of one row, inside a [`Vectorize`](crate::simd::Vectorize): four running registers, so that the
//! latency of an addition is hidden; a fixed order for each level.

use crate::simd::Isa;

/// Registers that run side by side.
const RUNNING: usize = 4;

/// `step` over all registers of slices of one length; `tail` fills the last, partial one.
#[inline(always)]
fn fold<I: Isa, const N: usize>(
    isa: I,
    x: [&[f32]; N],
    start: I::V,
    step: impl Fn(I::V, [I::V; N]) -> I::V,
    tail: impl Fn([&[f32]; N]) -> [I::V; N],
    join: impl Fn(I::V, I::V) -> I::V,
) -> I::V {
    let len = x[0].len();
    let x = x.map(|x| &x[..len]);
    let mut running = [start; RUNNING];
    let mut at = 0;
    while at + RUNNING * I::LANES <= len {
        for (r, sum) in running.iter_mut().enumerate() {
            let from = at + r * I::LANES;
            *sum = step(*sum, std::array::from_fn(|i| isa.load(&x[i][from..from + I::LANES])));
        }
        at += RUNNING * I::LANES;
    }
    while at + I::LANES <= len {
        running[0] = step(running[0], std::array::from_fn(|i| isa.load(&x[i][at..at + I::LANES])));
        at += I::LANES;
    }
    if at < len {
        running[1] = step(running[1], tail(x.map(|x| &x[at..])));
    }
    join(join(running[0], running[1]), join(running[2], running[3]))
}

/// `Σ x`.
#[inline(always)]
pub fn sum<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let zero = isa.splat(0.0);
    let load = |[x]: [&[f32]; 1]| [isa.load_partial(x)];
    isa.reduce_add(fold(isa, [x], zero, |sum, [x]| isa.add(sum, x), load, |a, b| isa.add(a, b)))
}

/// `Σ (x - center)²`.
#[inline(always)]
pub fn squared_deviations<I: Isa>(isa: I, x: &[f32], center: f32) -> f32 {
    let (zero, middle) = (isa.splat(0.0), isa.splat(center));
    // Lanes without an element hold the center, whose deviation is zero.
    let load = |[x]: [&[f32]; 1]| {
        let mut lanes = [center; crate::simd::MAX_LANES];
        lanes[..x.len()].copy_from_slice(x);
        [isa.load(&lanes)]
    };
    let step = |sum, [x]: [I::V; 1]| {
        let d = isa.sub(x, middle);
        isa.mul_add(d, d, sum)
    };
    isa.reduce_add(fold(isa, [x], zero, step, load, |a, b| isa.add(a, b)))
}

/// `Σ a b`. Panics if `b` is shorter than `a`.
#[inline(always)]
pub fn dot<I: Isa>(isa: I, a: &[f32], b: &[f32]) -> f32 {
    let zero = isa.splat(0.0);
    let load = |[a, b]: [&[f32]; 2]| [isa.load_partial(a), isa.load_partial(b)];
    let step = |sum, [a, b]: [I::V; 2]| isa.mul_add(a, b, sum);
    isa.reduce_add(fold(isa, [a, b], zero, step, load, |a, b| isa.add(a, b)))
}

/// The greatest element, -∞ of none; unspecified with a NaN among them.
#[inline(always)]
pub fn max<I: Isa>(isa: I, x: &[f32]) -> f32 {
    let least = isa.splat(f32::NEG_INFINITY);
    let load = |[x]: [&[f32]; 1]| {
        let mut lanes = [f32::NEG_INFINITY; crate::simd::MAX_LANES];
        lanes[..x.len()].copy_from_slice(x);
        [isa.load(&lanes)]
    };
    isa.reduce_max(fold(isa, [x], least, |max, [x]| isa.max(max, x), load, |a, b| isa.max(a, b)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Level, Vectorize};

    struct All<'a>(&'a [f32]);

    impl Vectorize for All<'_> {
        type Output = [f32; 4];
        #[inline(always)]
        fn run<I: Isa>(self, isa: I) -> [f32; 4] {
            let x = self.0;
            [sum(isa, x), squared_deviations(isa, x, 3.0), dot(isa, x, x), max(isa, x)]
        }
    }

    /// Small integers: every order of the sums is exact.
    #[test]
    fn every_length_at_every_level() {
        for level in Level::available() {
            for len in [0, 1, 3, 4, 5, 15, 16, 17, 63, 64, 65, 127, 197] {
                let x: Vec<f32> = (0..len).map(|i| (i * 37 % 101) as f32 - 120.0).collect();
                let wanted = [
                    x.iter().sum::<f32>(),
                    x.iter().map(|x| (x - 3.0) * (x - 3.0)).sum(),
                    x.iter().map(|x| x * x).sum(),
                    x.iter().copied().fold(f32::NEG_INFINITY, f32::max),
                ];
                assert_eq!(level.run(All(&x)), wanted, "{len} at {level:?}");
            }
        }
    }
}
