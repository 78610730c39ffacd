//! Few rows times a matrix whose columns are contiguous (a layer's weight as it is stored): dot products.
//!
//! Each column is read once and meets every row while it is in the first cache; nothing is packed. With one row that is the
//! speed of memory.

use crate::simd::{Isa, MAX_LANES, MatMut, MatRef, Vectorize, dispatch};
use rayon::prelude::*;

/// Rows up to which this is faster than packing both operands (measured on AVX-512, 768 to 4096 wide).
const MOST_ROWS: usize = 32;
/// Columns of one task.
const TASK_COLS: usize = 64;
/// The least inner size: below, a sum is mostly its ends.
const LEAST_INNER: usize = 64;

/// Whether these operands are for [`product`].
pub(super) fn accepts(out: &MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>) -> bool {
    let fits = a.cols() == b.rows() && out.rows() == a.rows() && out.cols() == b.cols();
    let contiguous = out.col_stride() == 1 && a.col_stride() == 1 && b.row_stride() == 1;
    fits && contiguous && (1..=MOST_ROWS).contains(&out.rows()) && a.cols() >= LEAST_INNER
}

/// `out (+)= a b`, by all threads if `parallel`.
pub(super) fn product(out: MatMut<'_>, accumulate: bool, a: MatRef<'_>, b: MatRef<'_>, parallel: bool) {
    let cols = out.cols();
    let task = |first: usize, out: MatMut<'_>| {
        let columns = b.cols_at(first, out.cols()).t();
        dispatch(Dots { out, accumulate, a, columns });
    };
    if !parallel {
        return task(0, out);
    }
    let (mut tasks, mut right) = (Vec::new(), out);
    for first in (0..cols).step_by(TASK_COLS) {
        let (left, rest) = right.split_cols(TASK_COLS.min(cols - first));
        tasks.push((first, left));
        right = rest;
    }
    tasks.into_par_iter().for_each(|(first, out)| task(first, out));
}

struct Dots<'a> {
    out: MatMut<'a>,
    accumulate: bool,
    a: MatRef<'a>,
    /// The columns of b, as rows.
    columns: MatRef<'a>,
}

impl Vectorize for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        // Registers: rows · columns of sums, no more than there are lanes, so that they are turned as one square.
        match I::LANES {
            16 => self.sweep::<I, 4, 4, 8>(isa),
            8 => self.sweep::<I, 4, 2, 4>(isa),
            _ => self.sweep::<I, 2, 2, 4>(isa),
        }
    }
}

impl Dots<'_> {
    /// Tiles of `R × C`; of a single row `1 × ONE`.
    #[inline(always)]
    fn sweep<I: Isa, const R: usize, const C: usize, const ONE: usize>(&mut self, isa: I) {
        let (rows, cols) = (self.out.rows(), self.out.cols());
        let mut col = 0;
        while rows == 1 && col + ONE <= cols {
            self.tile::<I, 1, ONE>(isa, 0, col);
            col += ONE;
        }
        while col + C <= cols {
            let mut row = 0;
            while row + R <= rows {
                self.tile::<I, R, C>(isa, row, col);
                row += R;
            }
            while row < rows {
                self.tile::<I, 1, C>(isa, row, col);
                row += 1;
            }
            col += C;
        }
        while col < cols {
            (0..rows).for_each(|row| self.tile::<I, 1, 1>(isa, row, col));
            col += 1;
        }
    }

    #[inline(always)]
    fn tile<I: Isa, const R: usize, const C: usize>(&mut self, isa: I, row: usize, col: usize) {
        let k = self.a.cols();
        let a: [&[f32]; R] = std::array::from_fn(|r| &self.a.row(row + r)[..k]);
        let b: [&[f32]; C] = std::array::from_fn(|c| &self.columns.row(col + c)[..k]);
        let mut sums = [[isa.splat(0.0); C]; R];
        let whole = k / I::LANES * I::LANES;
        let mut at = 0;
        while at < whole {
            let b: [I::V; C] = std::array::from_fn(|c| isa.load(&b[c][at..at + I::LANES]));
            for r in 0..R {
                let a = isa.load(&a[r][at..at + I::LANES]);
                for c in 0..C {
                    sums[r][c] = isa.mul_add(a, b[c], sums[r][c]);
                }
            }
            at += I::LANES;
        }
        if whole < k {
            let b: [I::V; C] = std::array::from_fn(|c| isa.load_partial(&b[c][whole..]));
            for r in 0..R {
                let a = isa.load_partial(&a[r][whole..]);
                for c in 0..C {
                    sums[r][c] = isa.mul_add(a, b[c], sums[r][c]);
                }
            }
        }
        let mut square = [isa.splat(0.0); MAX_LANES];
        for r in 0..R {
            square[r * C..][..C].copy_from_slice(&sums[r]);
        }
        isa.transpose(&mut square);
        let mut sum = square[0];
        for &other in &square[1..I::LANES] {
            sum = isa.add(sum, other);
        }
        let mut lanes = [0.0; MAX_LANES];
        isa.store(&mut lanes, sum);
        for r in 0..R {
            let out = &mut self.out.row_mut(row + r)[col..col + C];
            for (out, sum) in out.iter_mut().zip(&lanes[r * C..]) {
                *out = if self.accumulate { *out + sum } else { *sum };
            }
        }
    }
}
