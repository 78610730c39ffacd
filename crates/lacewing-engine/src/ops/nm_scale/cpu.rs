//! Factors by N:M on the CPU: a selection in each group.

use super::{MaskFactors, NmGroups};
use crate::Tensor;
use lacewing_core::Axis;
use lacewing_cpu::parallel::rows_per_task;
use rayon::prelude::*;

/// Shapes: all `[n_out, n_in]` f32; `out` may be `values`.
pub(super) fn nm_scale(
    by: &Tensor,
    values: &Tensor,
    groups: NmGroups,
    factors: MaskFactors,
    out: &Tensor,
    accumulate: bool,
) {
    let n_in = by.cols();
    // Taken out before `out`, which may be the same memory, is written.
    let values = values.read().to_vec();
    let (by, mut out) = (by.read(), out.write());
    // Rows that a group spans.
    let lines = if groups.axis == Axis::Row { 1 } else { groups.m };
    let step = rows_per_task(by.len() / n_in.max(1), n_in).next_multiple_of(lines);
    let chunk = (step * n_in).max(1);
    out.par_chunks_mut(chunk).zip(by.par_chunks(chunk)).zip(values.par_chunks(chunk)).for_each(
        |((out, by), values)| {
            let mut keys = Vec::with_capacity(groups.m);
            let mut group = |starts: usize, len: usize, stride: usize| {
                let threshold = lowest_kept(by, (starts, len, stride), groups, &mut keys);
                for (j, at) in (starts..).step_by(stride).take(len).enumerate() {
                    let factor = if key(by[at], j) >= threshold { factors.kept } else { factors.dropped };
                    let value = values[at] * factor;
                    out[at] = if accumulate { out[at] + value } else { value };
                }
            };
            let span = lines * n_in;
            for first in (0..by.len()).step_by(span.max(1)) {
                match groups.axis {
                    Axis::Row => (0..n_in)
                        .step_by(groups.m)
                        .for_each(|col| group(first + col, groups.m.min(n_in - col), 1)),
                    Axis::Col => {
                        let rows = lines.min((by.len() - first) / n_in);
                        (0..n_in).for_each(|col| group(first + col, rows, n_in));
                    }
                }
            }
        },
    );
}

/// The rank of the `j`th weight of a group: by magnitude, among equals by index.
fn key(weight: f32, j: usize) -> u64 {
    // Without its sign a float's bits are in the order of its value.
    u64::from(weight.abs().to_bits()) << 32 | j as u64
}

/// The rank of the lowest weight kept in the group of `len` weights at `start`, `stride` apart; zeros follow up to m.
fn lowest_kept(
    by: &[f32],
    (start, len, stride): (usize, usize, usize),
    NmGroups { n, m, .. }: NmGroups,
    keys: &mut Vec<u64>,
) -> u64 {
    keys.clear();
    let weights = (start..).step_by(stride).take(len).map(|at| by[at]);
    keys.extend(weights.chain(std::iter::repeat_n(0.0, m - len)).enumerate().map(|(j, w)| key(w, j)));
    *keys.select_nth_unstable(m - n).1
}
