//! Rows packed by tiles, for kernels that multiply a tile of rows by a panel.
//!
//! The columns of each input block are cut into pieces of a cache line; a tile holds, piece by piece, that of
//! every one of its rows. Columns that fill no piece and rows that fill no tile are followed by zeros.

use crate::simd::{Isa, Vectorize};

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

/// First row and height of each tile of `rows`, `height` being a multiple of three: that height, and towards the
/// end two thirds or one third of it, so that few rows of a tile are empty.
#[inline(always)]
pub(super) fn of(rows: usize, height: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let left = rows - rows.min(row);
        let third = height / 3;
        let tall = match left {
            0 => return None,
            left if left <= third => third,
            left if left <= 2 * third || (left > height && left <= 4 * third) => 2 * third,
            _ => height,
        };
        row += tall;
        Some((row - tall, tall))
    })
}

/// The height of the tiles that outputs of `width` a block are computed by: with the sums of as many rows in
/// registers, two registers of outputs each or one, the operands find room beside them.
#[inline(always)]
pub(super) fn height<I: Isa>(width: usize) -> usize {
    match (I::LANES == 16, width >= 2 * I::LANES) {
        (true, true) => 12,
        (true, false) => 24,
        (false, true) => 6,
        (false, false) => 12,
    }
}

/// Packs `from [rows, n_in]`.
pub(super) struct Pack<'a> {
    pub(super) to: &'a mut [f32],
    pub(super) from: &'a [f32],
    pub(super) n_in: usize,
    pub(super) rows: usize,
    /// Columns of an input block.
    pub(super) inner: usize,
    /// Outputs of a block.
    pub(super) width: usize,
}

impl Vectorize for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (n_in, inner) = (self.n_in, self.inner);
        let (cols, wide) = (cols(n_in, inner), inner.next_multiple_of(PIECE));
        for (row, height) in of(self.rows, height::<I>(self.width)) {
            let tile = &mut self.to[row * cols..][..height * cols];
            for r in 0..height {
                if row + r >= self.rows {
                    tile.chunks_exact_mut(PIECE).skip(r).step_by(height).for_each(|piece| piece.fill(0.0));
                    continue;
                }
                let from = &self.from[(row + r) * n_in..][..n_in];
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
