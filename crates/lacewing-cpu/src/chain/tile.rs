//! Rows to tiles and back.

use crate::simd::{Isa, MAX_LANES, MatMut, Vectorize, load};

/// `x [rows, cols]` to `[cols + 1, R · LANES]`: missing rows are zero, and so is the last feature.
pub(super) struct Read<'a, const R: usize> {
    pub(super) x: &'a [f32],
    pub(super) cols: usize,
    pub(super) tile: &'a mut [f32],
}

impl<const R: usize> Vectorize for Read<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { x, cols, tile } = self;
        let (size, rows) = (R * I::LANES, x.len() / cols);
        for r in 0..R {
            for first in (0..cols).step_by(I::LANES) {
                let width = I::LANES.min(cols - first);
                let square = if width == I::LANES && (r + 1) * I::LANES <= rows {
                    isa.load_transposed(|row| &x[(r * I::LANES + row) * cols + first..])
                } else {
                    let mut square = [isa.splat(0.0); MAX_LANES];
                    for (row, v) in (r * I::LANES..rows).zip(&mut square[..I::LANES]) {
                        *v = load::<I, true>(isa, &x[row * cols + first..][..width]);
                    }
                    isa.transpose(&mut square);
                    square
                };
                let features = tile[first * size..].chunks_exact_mut(size);
                for (feature, &v) in features.take(width).zip(&square) {
                    isa.store(&mut feature[r * I::LANES..], v);
                }
            }
        }
        tile[cols * size..][..size].fill(0.0);
    }
}

/// The features `at [terms, cols]` of a tile, added, to `y [rows, cols]`: all outputs, or some.
pub(super) struct Write<'a, const R: usize> {
    pub(super) tile: &'a [f32],
    pub(super) at: &'a [u32],
    pub(super) y: MatMut<'a>,
}

impl<const R: usize> Vectorize for Write<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { tile, at, mut y } = self;
        let (size, rows, cols) = (R * I::LANES, y.rows(), y.cols());
        for first in (0..cols).step_by(I::LANES) {
            let width = I::LANES.min(cols - first);
            for r in 0..R {
                let feature = |at: u32| &tile[at as usize * size + r * I::LANES..];
                let square = if at.len() == cols && width == I::LANES {
                    isa.load_transposed(|lane| feature(at[first + lane]))
                } else {
                    let mut square = [isa.splat(0.0); MAX_LANES];
                    for (term, at) in at.chunks_exact(cols).enumerate() {
                        for (v, &at) in square.iter_mut().zip(&at[first..first + width]) {
                            let feature = isa.load(feature(at));
                            *v = if term == 0 { feature } else { isa.add(*v, feature) };
                        }
                    }
                    isa.transpose(&mut square);
                    square
                };
                for (row, &v) in (r * I::LANES..rows).zip(&square[..I::LANES]) {
                    let to = &mut y.row_mut(row)[first..][..width];
                    if width == I::LANES { isa.store(to, v) } else { isa.store_partial(to, v) }
                }
            }
        }
    }
}
