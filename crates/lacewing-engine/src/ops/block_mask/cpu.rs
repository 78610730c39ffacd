//! Sums and factors of blocks on the CPU.

use lacewing_cpu::parallel::rows_per_task;
use rayon::prelude::*;

/// `scores[b] −= Σ values` over each block of `values [n_out, n_in]`, row by row.
pub(super) fn subtract_sums(values: &[f32], scores: &mut [f32], n_in: usize, (rows, cols): (usize, usize)) {
    let per_row = n_in.div_ceil(cols);
    let pairs = scores.par_chunks_mut(per_row.max(1)).zip(values.par_chunks((rows * n_in).max(1)));
    pairs.for_each(|(scores, values)| {
        for line in values.chunks(n_in) {
            for (score, block) in scores.iter_mut().zip(line.chunks(cols)) {
                *score -= block.iter().sum::<f32>();
            }
        }
    });
}

/// `out = values · mask[b]`.
pub(super) fn scale(
    values: &[f32],
    mask: &[f32],
    out: &mut [f32],
    n_in: usize,
    (rows, cols): (usize, usize),
) {
    let per_row = n_in.div_ceil(cols);
    let step = rows_per_task(values.len() / n_in.max(1), n_in);
    let chunk = (step * n_in).max(1);
    out.par_chunks_mut(chunk).zip(values.par_chunks(chunk)).enumerate().for_each(|(task, (out, values))| {
        for (row, (out, values)) in out.chunks_mut(n_in).zip(values.chunks(n_in)).enumerate() {
            let mask = &mask[(task * step + row) / rows * per_row..][..per_row];
            for ((out, values), &factor) in out.chunks_mut(cols).zip(values.chunks(cols)).zip(mask) {
                out.iter_mut().zip(values).for_each(|(out, value)| *out = value * factor);
            }
        }
    });
}
