//! Factors by magnitude on the CPU: the least key that is kept is found digit by digit, from counts.

use super::{DIGITS, MaskFactors};
use crate::Tensor;
use lacewing_cpu::parallel::elements_per_task;
use rayon::prelude::*;

/// Shapes: all of one length; `out` may be `values`.
pub(super) fn magnitude_scale(
    by: &Tensor,
    values: &Tensor,
    kept: usize,
    factors: MaskFactors,
    out: &Tensor,
    accumulate: bool,
) {
    // Taken out before `out`, which may be the same memory, is written.
    let values = values.read().to_vec();
    let (by, mut out) = (by.read(), out.write());
    let least = least_kept(&by, kept);
    let step = elements_per_task(by.len());
    out.par_chunks_mut(step).zip(by.par_chunks(step)).zip(values.par_chunks(step)).enumerate().for_each(
        |(task, ((out, by), values))| {
            for (i, ((out, &by), value)) in out.iter_mut().zip(by).zip(values).enumerate() {
                let counts = key(by, task * step + i) >= least;
                let value = value * if counts { factors.kept } else { factors.dropped };
                *out = if accumulate { *out + value } else { value };
            }
        },
    );
}

/// The rank of weight `i`: by magnitude, among equals by index.
fn key(weight: f32, i: usize) -> u64 {
    // Without its sign a float's bits are in the order of its value.
    u64::from(weight.abs().to_bits()) << 32 | i as u64
}

/// A key that exactly the `kept` largest reach.
fn least_kept(by: &[f32], kept: usize) -> u64 {
    let step = elements_per_task(by.len());
    let (mut least, mut left) = (0u64, kept);
    for (shift, bits) in DIGITS {
        let count = |(task, by): (usize, &[f32])| {
            let mut counts = vec![0usize; 1 << bits];
            for (i, &weight) in by.iter().enumerate() {
                let key = key(weight, task * step + i);
                if (key ^ least) >> (shift + bits) == 0 {
                    counts[(key >> shift) as usize % (1 << bits)] += 1;
                }
            }
            counts
        };
        let add = |mut a: Vec<usize>, b: Vec<usize>| {
            a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
            a
        };
        let counts = by.par_chunks(step).enumerate().map(count).reduce(|| vec![0; 1 << bits], add);
        let mut digit = counts.len() - 1;
        while counts[digit] < left {
            left -= counts[digit];
            digit -= 1;
        }
        least |= (digit as u64) << shift;
        // All weights of the digit are kept: lower digits do not matter.
        if counts[digit] == left {
            break;
        }
    }
    least
}
