//! Few rows: every output is a dot product over the blocks of its row, read once as they are stored.
//!
//! Nothing is transposed or packed, which would cost as much as the product. The gradients are those of the panels.

use super::{Blocks, panels};
use crate::finish::Target;
use crate::parallel::share;
use crate::simd::{Isa, Level, MAX_LANES, Vectorize};

/// Rows up to which this is faster than turning the blocks.
const MOST_ROWS: usize = 4;
/// Stored values of one task at least: a few microseconds.
const TASK_VALUES: usize = 32 * 1024;
/// The most tasks.
const TASKS: usize = 16;

/// `y (+)= x Wᵀ`: here for few rows, else by panels.
pub(super) fn forward(blocks: &Blocks, values: &[f32], x: &[f32], y: Target<'_>, accumulate: bool) {
    let rows = y.rows();
    if rows > MOST_ROWS || blocks.bc < 8 || blocks.n_in == 0 {
        return panels::forward(blocks, values, x, y, accumulate);
    }
    let parts = (values.len() * rows / TASK_VALUES).clamp(1, TASKS);
    let mut tasks = Vec::new();
    for (x, mut right) in x.chunks_exact(blocks.n_in).zip(y.bands(1)) {
        for groups in blocks.by_row.parts(parts.div_ceil(rows)) {
            let (left, rest) = right.split_cols(groups.len() * blocks.br);
            tasks.push((x, groups.start, left));
            right = rest;
        }
    }
    let level = Level::current();
    share(tasks, |(x, first, mut y)| {
        level.run(Dots { blocks, values, x, first, y: y.sums().row_mut(0), accumulate });
        y.finish(level);
    });
}

/// The outputs of some groups, for one row.
struct Dots<'a> {
    blocks: &'a Blocks,
    values: &'a [f32],
    x: &'a [f32],
    first: usize,
    y: &'a mut [f32],
    accumulate: bool,
}

impl Vectorize for Dots<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        // What is known beforehand is unrolled, and its sums stay in registers.
        match self.blocks.bc {
            8 => self.sweep::<I, 8>(isa),
            16 => self.sweep::<I, 16>(isa),
            32 => self.sweep::<I, 32>(isa),
            64 => self.sweep::<I, 64>(isa),
            _ => self.sweep::<I, 1>(isa),
        }
    }
}

impl Dots<'_> {
    /// All outputs, for blocks of `BC` inputs, or of any number where those are not there.
    #[inline(always)]
    fn sweep<I: Isa, const BC: usize>(self, isa: I) {
        let (br, bc) = (self.blocks.br, self.blocks.bc);
        for (group, y) in self.y.chunks_exact_mut(br).enumerate() {
            // As many outputs as there are lanes, so that the lanes of their sums are added together.
            for (part, y) in y.chunks_mut(I::LANES).enumerate() {
                let mut sums = [isa.splat(0.0); MAX_LANES];
                for (block, input, _) in self.blocks.by_row.of(self.first + group) {
                    let x = &self.x[input * bc..][..bc];
                    let values = &self.values[block * br * bc..][..br * bc][part * I::LANES * bc..];
                    match (x.as_chunks::<BC>().0.first(), values.as_chunks::<BC>().0.get(..I::LANES)) {
                        (Some(x), Some(values)) if BC == bc && BC >= I::LANES => {
                            whole(isa, &mut sums, x, values)
                        }
                        _ => any(isa, &mut sums, x, values, y.len()),
                    }
                }
                let mut lanes = [0.0; MAX_LANES];
                isa.store(&mut lanes, isa.sum_each(&mut sums));
                for (y, sum) in y.iter_mut().zip(lanes) {
                    *y = if self.accumulate { *y + sum } else { sum };
                }
            }
        }
    }
}

/// `sums[r] += values[r] ∘ x`, for as many outputs as there are lanes.
#[inline(always)]
fn whole<I: Isa, const BC: usize>(isa: I, sums: &mut [I::V; MAX_LANES], x: &[f32; BC], values: &[[f32; BC]]) {
    for k in (0..BC).step_by(I::LANES) {
        let x = isa.load(&x[k..]);
        for r in 0..I::LANES {
            sums[r] = isa.mul_add(isa.load(&values[r][k..]), x, sums[r]);
        }
    }
}

/// The same for `outputs` and blocks of any size.
#[inline(always)]
fn any<I: Isa>(isa: I, sums: &mut [I::V; MAX_LANES], x: &[f32], values: &[f32], outputs: usize) {
    let bc = x.len();
    for (sum, values) in sums.iter_mut().zip(values.chunks_exact(bc)).take(outputs) {
        let (w, tail) = (values.chunks_exact(I::LANES), bc / I::LANES * I::LANES);
        for (w, x) in w.zip(x.chunks_exact(I::LANES)) {
            *sum = isa.mul_add(isa.load(w), isa.load(x), *sum);
        }
        if tail < bc {
            let (w, x) = (isa.load_partial(&values[tail..]), isa.load_partial(&x[tail..]));
            *sum = isa.mul_add(w, x, *sum);
        }
    }
}
