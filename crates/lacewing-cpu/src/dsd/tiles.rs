//! Tiles of rows, for kernels that multiply them by panels: read where they are, or from a copy.
//!
//! In a copy the columns of each input block are cut into pieces of a cache line; a tile holds, piece by piece, that
//! of every one of its rows. Columns that fill no piece and rows that fill no tile are followed by zeros.

use crate::simd::{Isa, MatRef, Vectorize};

/// Columns of a piece.
pub(super) const PIECE: usize = 16;
/// The greatest height of a tile.
const MOST: usize = 24;

/// Columns of packed rows.
pub(super) fn cols(n_in: usize, inner: usize) -> usize {
    n_in / inner * inner.next_multiple_of(PIECE)
}

/// What `rows` rows take, whatever the height of a tile.
pub(super) fn len(n_in: usize, inner: usize, rows: usize) -> usize {
    (rows + MOST) * cols(n_in, inner)
}

/// First row and height of each tile of `rows`: `height`, and towards the end smaller multiples of `step`, so that few
/// rows of a tile are empty and none is much lower than the one before.
#[inline(always)]
pub(super) fn of(rows: usize, height: usize, step: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let left = rows - rows.min(row);
        if left == 0 {
            return None;
        }
        let uneven = height > 2 * step && left > height && left <= height + step;
        let tall = if uneven { height - step } else { left.next_multiple_of(step).min(height) };
        row += tall;
        Some((row - tall, tall))
    })
}

/// Where a kernel finds the rows of a tile.
pub(super) trait Source: Copy {
    /// Whether they have been copied by tiles of [`height`].
    const COPIED: bool;
    /// Some columns of the rows of a tile.
    type Columns<'s, const R: usize, const P: usize>: At
    where
        Self: 's;

    /// Columns `k..k + P` of an input block, of the `R` rows from `row` on. Where they are copied they lie in one piece,
    /// or `k` is zero.
    fn columns<const R: usize, const P: usize>(
        &self,
        row: usize,
        input: usize,
        k: usize,
    ) -> Self::Columns<'_, R, P>;
    /// Asks for an input block.
    fn prefetch<I: Isa, const R: usize>(&self, isa: I, row: usize, input: usize);
}

/// Some columns of the rows of a tile.
pub(super) trait At {
    /// Column `k` of row `r`.
    fn at(&self, r: usize, k: usize) -> f32;
}

impl<const R: usize, const P: usize> At for [&[f32; P]; R] {
    #[inline(always)]
    fn at(&self, r: usize, k: usize) -> f32 {
        self[r][k]
    }
}

/// Pieces of `R` rows, one after the other, from a column of the first on.
pub(super) struct Pieces<'a, const R: usize> {
    lines: &'a [[f32; PIECE]],
    from: usize,
}

impl<const R: usize> At for Pieces<'_, R> {
    #[inline(always)]
    fn at(&self, r: usize, k: usize) -> f32 {
        self.lines[k / PIECE * R + r][self.from + k % PIECE]
    }
}

/// Rows as they are. The address of each takes a register: not for tiles of many rows.
#[derive(Clone, Copy)]
pub(super) struct Direct<'a> {
    x: MatRef<'a>,
    /// Columns of an input block.
    inner: usize,
}

impl<'a> Direct<'a> {
    /// Of what the columns of an input block should be a multiple.
    pub(super) const LEAST: usize = 4;

    /// Rows of contiguous columns, the input blocks being of `inner` of them.
    pub(super) fn new(x: MatRef<'a>, inner: usize) -> Self {
        Self { x, inner }
    }
}

impl Source for Direct<'_> {
    const COPIED: bool = false;
    type Columns<'s, const R: usize, const P: usize>
        = [&'s [f32; P]; R]
    where
        Self: 's;

    #[inline(always)]
    fn columns<const R: usize, const P: usize>(&self, row: usize, input: usize, k: usize) -> [&[f32; P]; R] {
        self.x.strips(row, input * self.inner + k)
    }

    #[inline(always)]
    fn prefetch<I: Isa, const R: usize>(&self, isa: I, row: usize, input: usize) {
        for k in (0..self.inner).step_by(PIECE) {
            (0..R).for_each(|r| self.x.prefetch(isa, row + r, input * self.inner + k));
        }
    }
}

/// Rows that [`Pack`] has copied.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    x: &'a [f32],
    /// Columns of a row, and of an input block.
    cols: usize,
    wide: usize,
}

impl<'a> Packed<'a> {
    /// Rows of `n_in` columns, the input blocks being of `inner` of them.
    pub(super) fn new(x: &'a [f32], n_in: usize, inner: usize) -> Self {
        Self { x, cols: cols(n_in, inner), wide: inner.next_multiple_of(PIECE) }
    }
}

impl Source for Packed<'_> {
    const COPIED: bool = true;
    type Columns<'s, const R: usize, const P: usize>
        = Pieces<'s, R>
    where
        Self: 's;

    #[inline(always)]
    fn columns<const R: usize, const P: usize>(&self, row: usize, input: usize, k: usize) -> Pieces<'_, R> {
        let start = row * self.cols + (input * self.wide + k / PIECE * PIECE) * R;
        let x = &self.x[start..][..P.next_multiple_of(PIECE) * R];
        Pieces { lines: x.as_chunks().0, from: k % PIECE }
    }

    #[inline(always)]
    fn prefetch<I: Isa, const R: usize>(&self, _: I, _: usize, _: usize) {
        // One stream, which the machine sees.
    }
}

/// The height of the tiles that [`Pack`] makes for blocks of `width` outputs, a multiple of three: with the sums of as
/// many rows in registers, two registers of outputs each or one, the operands find room beside them.
#[inline(always)]
pub(super) fn height<I: Isa>(width: usize) -> usize {
    match (I::LANES == 16, width >= 2 * I::LANES) {
        (true, true) => 12,
        (true, false) => 24,
        (false, true) => 6,
        (false, false) => 12,
    }
}

/// Copies `from [rows, n_in]`.
pub(super) struct Pack<'a> {
    pub(super) to: &'a mut [f32],
    pub(super) from: MatRef<'a>,
    /// Columns of an input block.
    pub(super) inner: usize,
    /// Outputs of a block.
    pub(super) width: usize,
}

impl Vectorize for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { to, from, inner, width } = self;
        let (cols, wide) = (cols(from.cols(), inner), inner.next_multiple_of(PIECE));
        let height = height::<I>(width);
        for (row, height) in of(from.rows(), height, height / 3) {
            let tile = &mut to[row * cols..][..height * cols];
            for r in 0..height {
                if row + r >= from.rows() {
                    tile.chunks_exact_mut(PIECE).skip(r).step_by(height).for_each(|piece| piece.fill(0.0));
                    continue;
                }
                let from = from.row(row + r);
                if inner == wide {
                    for (piece, from) in from.chunks_exact(PIECE).enumerate() {
                        let to = &mut tile[(piece * height + r) * PIECE..][..PIECE];
                        for (to, from) in to.chunks_exact_mut(I::LANES).zip(from.chunks_exact(I::LANES)) {
                            isa.store(to, isa.load(from));
                        }
                    }
                    continue;
                }
                for (block, from) in from.chunks_exact(inner).enumerate() {
                    for (piece, from) in from.chunks(PIECE).enumerate() {
                        let at = ((block * wide / PIECE + piece) * height + r) * PIECE;
                        tile[at..][..from.len()].copy_from_slice(from);
                        tile[at + from.len()..at + PIECE].fill(0.0);
                    }
                }
            }
        }
    }
}
