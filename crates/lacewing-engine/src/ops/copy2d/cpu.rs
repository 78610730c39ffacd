//! Copies of column ranges on the CPU.

use lacewing_cpu::parallel::rows_per_task;
use rayon::prelude::*;

/// `y[r, c] = x[r, c]` where `x` has column `c`, else 0: padding or truncation of the last dimension.
///
/// Shapes: `x [rows, x_cols]`, `y [rows, y_cols]`.
pub(super) fn resize_cols(x: &[f32], y: &mut [f32], rows: usize, x_cols: usize, y_cols: usize) {
    assert_eq!((x.len(), y.len()), (rows * x_cols, rows * y_cols));
    let shared = x_cols.min(y_cols);
    if shared == 0 {
        return y.fill(0.0);
    }
    let step = rows_per_task(rows, x_cols.max(y_cols));
    y.par_chunks_mut(step * y_cols).zip(x.par_chunks(step * x_cols)).for_each(|(y, x)| {
        for (y, x) in y.chunks_exact_mut(y_cols).zip(x.chunks_exact(x_cols)) {
            y[..shared].copy_from_slice(&x[..shared]);
            y[shared..].fill(0.0);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_kept_cut_or_zero() {
        for (rows, from, to) in
            [(0, 3, 4), (1, 1, 1), (3, 5, 7), (3, 7, 5), (2, 0, 3), (2, 3, 0), (900, 60, 64)]
        {
            let x: Vec<f32> = (0..rows * from).map(|i| 1.0 + i as f32).collect();
            let mut y = vec![f32::NAN; rows * to];
            resize_cols(&x, &mut y, rows, from, to);
            for (i, y) in y.iter().enumerate() {
                let (r, c) = (i / to, i % to);
                assert_eq!(*y, if c < from { x[r * from + c] } else { 0.0 }, "({r}, {c}), {from} to {to}");
            }
        }
    }
}
