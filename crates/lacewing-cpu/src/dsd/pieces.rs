//! Up to four rows times blocks of four or eight inputs: a block's values are read once as they lie, a register of them
//! meeting the block's piece of a row, over and over.

use super::Blocks;
use crate::finish::Target;
use crate::parallel::share;
use crate::simd::{Isa, Level, MatMut, Vectorize};
use std::ops::Range;

/// Rows up to which the products are made here.
const MOST_ROWS: usize = 4;
/// Values of one task at least: a few microseconds.
const TASK_VALUES: usize = 32 * 1024;
/// The most tasks.
const TASKS: usize = 16;
/// Values ahead that are asked for.
const AHEAD: usize = 512;
/// Values of a block at most.
const VALUES: usize = 64;

/// Whether [`forward`] takes so many rows.
pub(super) fn accepts(blocks: &Blocks, rows: usize) -> bool {
    rows <= MOST_ROWS && matches!(blocks.bc, 4 | 8) && blocks.br * blocks.bc <= VALUES
}

/// `y (+)= x Wᵀ`.
pub(super) fn forward(blocks: &Blocks, values: &[f32], x: &[f32], y: Target<'_>, accumulate: bool) {
    let rows = y.rows();
    let mut tasks = Vec::new();
    let mut right = y;
    for groups in blocks.by_row.parts((values.len() * rows / TASK_VALUES).clamp(1, TASKS)) {
        let (left, rest) = right.split_cols(groups.len() * blocks.br);
        tasks.push((groups, left));
        right = rest;
    }
    let level = Level::current();
    share(tasks, |(groups, mut y)| {
        let sums = Sums { blocks, values, x, groups, y: y.sums(), accumulate };
        if blocks.bc == 4 {
            level.run(Pieces::<4>(sums))
        } else {
            level.run(Pieces::<8>(sums))
        }
        y.finish(level);
    });
}

/// The outputs of some groups.
struct Sums<'a> {
    blocks: &'a Blocks,
    values: &'a [f32],
    x: &'a [f32],
    groups: Range<usize>,
    y: MatMut<'a>,
    accumulate: bool,
}

/// [`Sums`] of blocks of `BC` inputs.
struct Pieces<'a, const BC: usize>(Sums<'a>);

impl<const BC: usize> Vectorize for Pieces<'_, BC> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        match (self.0.blocks.br * BC).div_ceil(I::LANES) {
            1 => self.sweep::<I, 1, 4>(isa),
            2 => self.sweep::<I, 2, 2>(isa),
            3..=4 => self.sweep::<I, 4, 1>(isa),
            5..=8 => self.sweep::<I, 8, 1>(isa),
            _ => self.sweep::<I, 16, 1>(isa),
        }
    }
}

impl<const BC: usize> Pieces<'_, BC> {
    /// Blocks of up to `N` registers, `U` of them at a time.
    #[inline(always)]
    fn sweep<I: Isa, const N: usize, const U: usize>(&mut self, isa: I) {
        let Sums { blocks, values, x, accumulate, .. } = self.0;
        let (br, n_in, starts) = (blocks.br, blocks.n_in, &blocks.by_row.starts);
        let size = br * BC;
        for group in self.0.groups.clone() {
            let range = starts[group]..starts[group + 1];
            let inputs = &blocks.by_row.inputs[range.clone()];
            let values = &values[range.start * size..range.end * size];
            for r in 0..self.0.y.rows() {
                let x = &x[r * n_in..][..n_in];
                let piece = |input: u32| &x[input as usize * BC..][..BC];
                let mut held = [[isa.splat(0.0); N]; U];
                let (some, some_inputs) = (values.chunks_exact(U * size), inputs.chunks_exact(U));
                let rest = some.remainder().chunks_exact(size).zip(some_inputs.remainder());
                for (values, inputs) in some.zip(some_inputs) {
                    isa.prefetch(values, AHEAD);
                    for u in 0..U {
                        meet::<I, N, BC>(isa, &mut held[u], &values[u * size..][..size], piece(inputs[u]));
                    }
                }
                for (values, &input) in rest {
                    meet::<I, N, BC>(isa, &mut held[0], values, piece(input));
                }
                let mut lanes = [0.0; VALUES];
                for (n, lanes) in lanes.chunks_exact_mut(I::LANES).take(N).enumerate() {
                    let sum = (1..U).fold(held[0][n], |sum, u| isa.add(sum, held[u][n]));
                    isa.store(lanes, sum);
                }
                let y = &mut self.0.y.row_mut(r)[(group - self.0.groups.start) * br..][..br];
                for (y, lanes) in y.iter_mut().zip(lanes.chunks_exact(BC)) {
                    let sum = lanes.iter().sum::<f32>();
                    *y = if accumulate { *y + sum } else { sum };
                }
            }
        }
    }
}

/// Adds the products of a block's values, each in its lane, with its piece of a row.
#[inline(always)]
fn meet<I: Isa, const N: usize, const BC: usize>(
    isa: I,
    held: &mut [I::V; N],
    values: &[f32],
    piece: &[f32],
) {
    for n in 0..N {
        let from = n * I::LANES;
        // The last registers of a block may be empty, or not full.
        let Some(values) = values.get(from..) else { continue };
        let w = if values.len() >= I::LANES { isa.load(values) } else { isa.load_partial(values) };
        let x = if BC <= I::LANES { isa.repeat::<BC>(piece) } else { isa.load(&piece[from % BC..]) };
        held[n] = isa.mul_add(w, x, held[n]);
    }
}
