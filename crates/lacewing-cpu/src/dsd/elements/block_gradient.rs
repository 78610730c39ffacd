//! The weight gradient of blocks of few outputs and inputs: dot products of packed rows, as many at once as a register
//! has lanes, so that their sums are added up together.

use super::super::Blocks;
use super::pack::Pack;
use crate::parallel::{share, within_pool};
use crate::scratch::scratch;
use crate::simd::{Isa, Level, MAX_LANES, Vectorize};
use std::ops::Range;

/// Registers of a row of a run, at most.
const RUN: usize = 16;
/// Columns that one task packs.
const STRIP: usize = 64;
/// The most tasks.
const TASKS: usize = 16;

/// `dvalues[b] += dyᵀ x` at the place of every block `b`.
pub(in super::super) fn weight_gradient(blocks: &Blocks, dy: &[f32], x: &[f32], dvalues: &mut [f32]) {
    if dvalues.is_empty() {
        return;
    }
    let (n_out, n_in) = (blocks.n_out, blocks.n_in);
    // Once, since what is packed is as wide as the registers that will read it.
    let level = Level::current();
    let lanes = level.lanes();
    let most = RUN * lanes;
    let mut sweep = || {
        for (dy, x) in dy.chunks(most * n_out).zip(x.chunks(most * n_in)) {
            let rows = dy.len() / n_out;
            let width = rows.next_multiple_of(lanes);
            scratch(width * (n_in + n_out), |memory| {
                let (xt, dyt) = memory.split_at_mut(width * n_in);
                let mut strips = Vec::new();
                for (to, from, stride) in [(&mut *xt, x, n_in), (&mut *dyt, dy, n_out)] {
                    for (strip, to) in to.chunks_mut(STRIP * width).enumerate() {
                        strips.push(Pack { to, from: &from[strip * STRIP..], stride, rows, width });
                    }
                }
                share(strips, |strip| level.run(strip));
                let (xt, dyt) = (&*xt, &*dyt);
                let mut tasks = Vec::new();
                let mut rest = &mut *dvalues;
                for groups in blocks.by_row.parts(TASKS) {
                    let starts = &blocks.by_row.starts;
                    let len = (starts[groups.end] - starts[groups.start]) * blocks.br * blocks.bc;
                    let (own, others) = rest.split_at_mut(len);
                    tasks.push((groups, own));
                    rest = others;
                }
                share(tasks, |(groups, dvalues)| {
                    let dots = Dots { blocks, groups, width, dvalues, xt, dyt };
                    match (lanes, blocks.br) {
                        (16, 4..) => level.run(Tiled::<4, 4>(dots)),
                        (16, 2..) => level.run(Tiled::<2, 8>(dots)),
                        (16, _) => level.run(Tiled::<1, 16>(dots)),
                        (8, 2..) => level.run(Tiled::<2, 4>(dots)),
                        (8, _) => level.run(Tiled::<1, 8>(dots)),
                        (_, 2..) => level.run(Tiled::<2, 2>(dots)),
                        _ => level.run(Tiled::<1, 4>(dots)),
                    }
                });
            });
        }
    };
    within_pool(&mut sweep);
}

/// The blocks of some groups.
struct Dots<'a> {
    blocks: &'a Blocks,
    groups: Range<usize>,
    width: usize,
    /// Of the groups.
    dvalues: &'a mut [f32],
    xt: &'a [f32],
    dyt: &'a [f32],
}

/// [`Dots`] by tiles of `R` outputs and `C` inputs of any blocks of a group, `R · C` being the lanes of a register.
struct Tiled<'a, const R: usize, const C: usize>(Dots<'a>);

impl<const R: usize, const C: usize> Vectorize for Tiled<'_, R, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Dots { blocks, groups, width, dvalues, xt, dyt } = self.0;
        let (br, bc, starts) = (blocks.br, blocks.bc, &blocks.by_row.starts);
        let before = starts[groups.start];
        for group in groups {
            let inputs = &blocks.by_row.inputs[starts[group]..starts[group + 1]];
            let dvalues = &mut dvalues[(starts[group] - before) * br * bc..][..inputs.len() * br * bc];
            let cols = inputs.len() * bc;
            // Column `c` of the group is column `c % bc` of its block `c / bc`.
            let (mut block, mut col) = (0, 0);
            for first in (0..cols).step_by(C) {
                let (mut xs, mut to) = ([&xt[..width]; C], [usize::MAX; C]);
                let own = C.min(cols - first);
                for c in 0..own {
                    xs[c] = &xt[(inputs[block] as usize * bc + col) * width..][..width];
                    to[c] = block * br * bc + col;
                    col += 1;
                    if col == bc {
                        (block, col) = (block + 1, 0);
                    }
                }
                for row in (0..br).step_by(R) {
                    let high = R.min(br - row);
                    let dys: [&[f32]; R] = std::array::from_fn(|r| {
                        &dyt[(group * br + row + r.min(high - 1)) * width..][..width]
                    });
                    let mut all = tile::<I, R, C>(isa, &dys, &xs, width);
                    let sum = isa.sum_each(&mut all);
                    if (br, bc) == (R, C) {
                        let values = &mut dvalues[to[0]..][..R * C];
                        isa.store(values, isa.add(isa.load(values), sum));
                        continue;
                    }
                    let mut sums = [0.0; MAX_LANES];
                    isa.store(&mut sums, sum);
                    for (r, sums) in sums.chunks_exact(C).take(high).enumerate() {
                        if bc.is_multiple_of(C) {
                            let values = &mut dvalues[to[0] + (row + r) * bc..][..C];
                            values.iter_mut().zip(sums).for_each(|(value, sum)| *value += sum);
                            continue;
                        }
                        for (&to, sum) in to[..own].iter().zip(sums) {
                            dvalues[to + (row + r) * bc] += sum;
                        }
                    }
                }
            }
        }
    }
}

/// The products of each row of `dy` with each of `x`, lane by lane.
#[inline(always)]
fn tile<I: Isa, const R: usize, const C: usize>(
    isa: I,
    dy: &[&[f32]; R],
    x: &[&[f32]; C],
    width: usize,
) -> [I::V; MAX_LANES] {
    let mut sums = [[isa.splat(0.0); C]; R];
    let dy: [&[f32]; R] = std::array::from_fn(|r| &dy[r][..width]);
    let x: [&[f32]; C] = std::array::from_fn(|c| &x[c][..width]);
    let mut at = 0;
    while at + I::LANES <= width {
        let held: [I::V; R] = std::array::from_fn(|r| isa.load(&dy[r][at..at + I::LANES]));
        for c in 0..C {
            let x = isa.load(&x[c][at..at + I::LANES]);
            for r in 0..R {
                sums[r][c] = isa.mul_add(held[r], x, sums[r][c]);
            }
        }
        at += I::LANES;
    }
    let mut all = [isa.splat(0.0); MAX_LANES];
    for r in 0..R {
        for c in 0..C {
            all[(r * C + c) % MAX_LANES] = sums[r][c];
        }
    }
    all
}
