//! Transposition on the CPU, in square blocks that fit the first cache.

use lacewing_cpu::parallel::TASK;
use rayon::prelude::*;

/// Side of a block: 32 rows of 128 bytes, read and written.
const BLOCK: usize = 32;

/// `y[b, n, m] = x[b, m, n]`.
pub(super) fn transpose(x: &[f32], y: &mut [f32], batch: usize, m: usize, n: usize) {
    assert_eq!((x.len(), y.len()), (batch * m * n, batch * m * n));
    if y.is_empty() {
        return;
    }
    // A task is a run of whole strips: BLOCK rows of `y`, BLOCK columns of `x`.
    let strips = if y.len() < 2 * TASK { n.div_ceil(BLOCK) } else { TASK.div_ceil(BLOCK * m) };
    let matrices = |(b, y): (usize, &mut [f32])| {
        let x = &x[b * m * n..][..m * n];
        y.par_chunks_mut(strips * BLOCK * m).enumerate().for_each(|(run, y)| {
            for (s, y) in y.chunks_mut(BLOCK * m).enumerate() {
                strip(x, y, m, n, (run * strips + s) * BLOCK);
            }
        });
    };
    if y.len() < 2 * TASK {
        y.chunks_exact_mut(m * n).enumerate().for_each(matrices);
    } else {
        y.par_chunks_mut(m * n).enumerate().for_each(matrices);
    }
}

/// Rows `first..` of `xᵀ`, up to [`BLOCK`] of them.
fn strip(x: &[f32], y: &mut [f32], m: usize, n: usize, first: usize) {
    for top in (0..m).step_by(BLOCK) {
        let height = BLOCK.min(m - top);
        for (c, y) in y.chunks_exact_mut(m).enumerate() {
            for (r, y) in y[top..][..height].iter_mut().enumerate() {
                *y = x[(top + r) * n + first + c];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_finds_its_place() {
        for (batch, m, n) in [
            (0, 2, 2),
            (1, 1, 1),
            (2, 3, 5),
            (1, 32, 32),
            (2, 33, 31),
            (3, 197, 100),
            (1, 700, 70),
            (9, 65, 129),
        ] {
            let x: Vec<f32> = (0..batch * m * n).map(|i| i as f32).collect();
            let mut y = vec![f32::NAN; x.len()];
            transpose(&x, &mut y, batch, m, n);
            for (i, y) in y.iter().enumerate() {
                let (b, c, r) = (i / (m * n), i / m % n, i % m);
                assert_eq!(*y, x[(b * m + r) * n + c], "[{b}, {c}, {r}] of {batch}x{n}x{m}");
            }
        }
    }
}
