//! Panels: each group of blocks that share outputs is swept by tiles of rows, whose sums stay in registers from the
//! first block of the group to the last, so an output is written once.
//!
//! Both products read a block as a panel `[inner, width]`, `width` being its outputs: as stored for the input
//! gradient, turned for the forward product. The other operand is read where it is ([`Direct`]) where a tile has two
//! registers of outputs a row, else from a copy by tiles ([`super::tiles`]).

use super::order::Order;
use super::tiles::{self, At, Direct, PIECE, Pack, Packed, Source};
use super::{Blocks, Kernel, Packing, dots, outer};
use crate::finish::Target;
use crate::parallel::share;
use crate::scratch::scratch;
use crate::simd::{Isa, Level, MatMut, MatRef, Vectorize, load, store};
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "dsd/panels",
    accepts: |_| true,
    forward: dots::forward,
    input_gradient,
    weight_gradient: outer::weight_gradient,
    packings: &[Packing {
        // Turned for one product, or multiplied by a loop of any size, a single row is faster as it is stored.
        pays: |blocks, rows, kept| {
            let known = matches!((blocks.br, blocks.bc), (16, 16) | (32, 32));
            rows > 1 || kept && known && Level::current().lanes() == 16
        },
        len: Blocks::nnz_values,
        pack: turn,
        forward: forward_turned,
    }],
};

/// Rows of one task: with a few thousand columns they fit the second cache.
const BAND: usize = 48;
/// The same where rows are copied, every task its own, and are at most [`MANY_ROWS`]: threads share them evenly.
const LOW_BAND: usize = 16;
/// Tasks at least, where there is enough to cut.
const TASKS: usize = 16;
/// Rows up to which tiles with two registers of outputs a row read them where they are: every address of a row takes a
/// register, so that tiles are lower than those of copies.
const MANY_ROWS: usize = BAND * TASKS;
/// Rows of a product up to which no tile is higher than they are: nothing is done for rows that are not there.
const LOWEST: usize = 2;
/// The same with one register, where low tiles cost more, if a column is read less than `OFTEN` on average.
const FEW_ROWS: usize = 32;
const OFTEN: usize = 16;
/// How often a copy of a column is read, at least, for tasks to have their own.
const WORTH: usize = 8;
/// Elements of a strip of outputs that is finished while it is near: 64 KiB.
const FINISHED: usize = 16 * 1024;
/// Values that one task turns.
const TURNED: usize = 16 * 1024;

/// `y (+)= x Wᵀ`, the blocks turned once.
pub(super) fn forward(blocks: &Blocks, values: &[f32], x: &[f32], y: Target<'_>, accumulate: bool) {
    scratch(values.len(), |turned| {
        turn(blocks, values, turned);
        forward_turned(blocks, turned, x, y, accumulate);
    });
}

/// `y (+)= x Wᵀ` with blocks that [`turn`] has turned.
fn forward_turned(blocks: &Blocks, turned: &[f32], x: &[f32], y: Target<'_>, accumulate: bool) {
    let (x, low) = (MatRef::row_major(x, y.rows(), blocks.n_in), y.rows() <= LOWEST);
    products(&blocks.by_row, turned, (blocks.bc, blocks.br), x, y, accumulate, low);
}

/// The same for an `x` whose rows may lie apart. A row has the same bits alone as among others.
pub(crate) fn by_panels(blocks: &Blocks, turned: &[f32], x: MatRef<'_>, y: Target<'_>, accumulate: bool) {
    products(&blocks.by_row, turned, (blocks.bc, blocks.br), x, y, accumulate, false);
}

fn input_gradient(blocks: &Blocks, values: &[f32], dy: &[f32], dx: Target<'_>, accumulate: bool) {
    let dy = MatRef::row_major(dy, dx.rows(), blocks.n_out);
    products(&blocks.by_col, values, (blocks.br, blocks.bc), dy, dx, accumulate, false);
}

/// Every block `[br, bc]` as `[bc, br]`.
fn turn(blocks: &Blocks, values: &[f32], panels: &mut [f32]) {
    let (height, width) = (blocks.br, blocks.bc);
    let step = TURNED.div_ceil(height * width) * height * width;
    let level = Level::current();
    let tasks = panels.chunks_mut(step).zip(values.chunks(step)).collect();
    share(tasks, |(to, from)| level.run(Turn { to, from, height, width }));
}

struct Turn<'a> {
    to: &'a mut [f32],
    from: &'a [f32],
    height: usize,
    width: usize,
}

impl Vectorize for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let (height, width) = (self.height, self.width);
        let (high, wide) = (height / I::LANES * I::LANES, width / I::LANES * I::LANES);
        let blocks = self.to.chunks_exact_mut(height * width).zip(self.from.chunks_exact(height * width));
        for (to, from) in blocks {
            for i in (0..high).step_by(I::LANES) {
                for j in (0..wide).step_by(I::LANES) {
                    let square = isa.load_transposed(|at| &from[(i + at) * width + j..]);
                    for (at, &column) in square[..I::LANES].iter().enumerate() {
                        isa.store(&mut to[(j + at) * height + i..], column);
                    }
                }
            }
            for i in 0..height {
                for j in (if i < high { wide } else { 0 })..width {
                    to[j * height + i] = from[i * width + j];
                }
            }
        }
    }
}

fn products(
    groups: &Order,
    panels: &[f32],
    (inner, width): (usize, usize),
    x: MatRef<'_>,
    y: Target<'_>,
    accumulate: bool,
    low: bool,
) {
    if y.cols() == 0 {
        return;
    }
    // Once, so that what is packed is tiled for the level that will read it.
    let level = Level::current();
    let (rows, n_in) = (y.rows(), x.cols());
    let uses = groups.inputs.len() * inner / n_in.max(1);
    let few =
        low || if width >= 2 * level.lanes() { rows <= MANY_ROWS } else { rows <= FEW_ROWS && uses < OFTEN };
    let direct = few && inner.is_multiple_of(Direct::LEAST);
    let band = if direct || rows > MANY_ROWS { BAND } else { LOW_BAND };
    let most = TASKS.div_ceil(rows.div_ceil(band).max(1));
    let parts = if direct { most } else { (uses / WORTH).clamp(1, most) };
    let mut tasks = Vec::new();
    for (first, mut right) in (0..rows).step_by(band).zip(y.bands(band)) {
        let x = x.rows_at(first, right.rows());
        for range in groups.parts(parts) {
            let (y, rest) = right.split_cols(range.len() * width);
            right = rest;
            tasks.push((x, range, y));
        }
    }
    share(tasks, |(x, range, y)| {
        let near = (FINISHED / (y.rows() * width)).max(1);
        let by_strips = |product: &dyn Fn(Range<usize>, MatMut<'_>)| {
            for (start, mut strip) in range.clone().step_by(near).zip(y.strips(near * width)) {
                product(start..range.end.min(start + near), strip.sums());
                strip.finish(level);
            }
        };
        if direct {
            let x = Direct::new(x, inner);
            return by_strips(&|range, y| {
                level.run(Products { groups, panels, inner, width, range, x, y, accumulate, low });
            });
        }
        scratch(tiles::len(n_in, inner, band), |to| {
            level.run(Pack { to, from: x, inner, width });
            let x = Packed::new(to, n_in, inner);
            by_strips(&|range, y| {
                level.run(Products { groups, panels, inner, width, range, x, y, accumulate, low: false });
            });
        });
    });
}

/// `y[:, group] (+)= Σ x[:, input block] · panel` over the blocks of every group of a range, for the rows of a
/// band.
struct Products<'a, S> {
    groups: &'a Order,
    panels: &'a [f32],
    inner: usize,
    width: usize,
    range: Range<usize>,
    x: S,
    /// The outputs of the range.
    y: MatMut<'a>,
    accumulate: bool,
    /// Whether tiles are as low as the rows, at most [`LOWEST`].
    low: bool,
}

/// A loop of at most 24 steps that is unrolled for certain: sums indexed in a loop that is not would lie in
/// memory.
macro_rules! by_hand {
    ($step:ident < $end:ident, $body:block) => {
        by_hand!(@ $step $end $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23)
    };
    (@ $step:ident $end:ident $body:block $($at:literal)*) => {$(
        if $at < $end {
            // The compiler wants an index of the array even where this is never run.
            let $step = if $at < $end { $at } else { 0 };
            $body
        }
    )*};
}

impl<S: Source> Vectorize for Products<'_, S> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        // The heights of tiles that have been copied, and lower ones where the address of each row takes a register.
        let this = &mut self;
        match (I::LANES == 16, S::COPIED, this.width >= 2 * I::LANES) {
            (true, false, _) => this.sweep::<I, 8, 4, 4>(isa),
            (true, true, true) => this.sweep::<I, 12, 8, 4>(isa),
            (true, true, false) => this.sweep::<I, 24, 16, 8>(isa),
            (false, true, false) => this.sweep::<I, 12, 8, 4>(isa),
            (false, ..) => this.sweep::<I, 6, 4, 2>(isa),
        }
    }
}

impl<S: Source> Products<'_, S> {
    /// All groups and rows by tiles of `R` rows, the last ones of `H` or `Q`, all multiples of `Q`.
    #[inline(always)]
    fn sweep<I: Isa, const R: usize, const H: usize, const Q: usize>(&mut self, isa: I) {
        let rows = self.y.rows();
        if !S::COPIED && self.low {
            for group in self.range.clone() {
                match rows {
                    1 => self.across::<I, 1>(isa, group, 0),
                    _ => self.across::<I, 2>(isa, group, 0),
                }
            }
            return;
        }
        for group in self.range.clone() {
            for (row, height) in tiles::of(rows, R, Q) {
                if height == R {
                    self.across::<I, R>(isa, group, row);
                } else if height == H || H == Q {
                    self.across::<I, H>(isa, group, row);
                } else {
                    self.across::<I, Q>(isa, group, row);
                }
            }
        }
    }

    /// All outputs of a group for one tile.
    #[inline(always)]
    fn across<I: Isa, const R: usize>(&mut self, isa: I, group: usize, row: usize) {
        // Squares of a power of two are most blocks there are.
        if I::LANES == 16 && (self.width, self.inner) == (32, 32) && R <= 12 {
            return self.tile::<I, R, 2, 32, false>(isa, 0, group, row);
        }
        if I::LANES == 16 && (self.width, self.inner) == (16, 16) {
            return self.tile::<I, R, 1, 16, false>(isa, 0, group, row);
        }
        let mut at = 0;
        while R <= 12 && self.width - at >= 2 * I::LANES {
            self.tile::<I, R, 2, 0, false>(isa, at, group, row);
            at += 2 * I::LANES;
        }
        while self.width - at >= I::LANES {
            self.tile::<I, R, 1, 0, false>(isa, at, group, row);
            at += I::LANES;
        }
        if at < self.width {
            self.tile::<I, R, 1, 0, true>(isa, at, group, row);
        }
    }

    #[inline(always)]
    fn tile<I: Isa, const R: usize, const V: usize, const SIZE: usize, const TAIL: bool>(
        &mut self,
        isa: I,
        at: usize,
        group: usize,
        row: usize,
    ) {
        let (inner, width) = (self.inner, self.width);
        let rows = self.y.rows() - row;
        let end = if TAIL { width } else { at + V * I::LANES };
        let first = (group - self.range.start) * width;
        let mut sums = [[isa.splat(0.0); V]; R];
        if self.accumulate {
            by_hand!(r < R, {
                if r < rows {
                    let y = &self.y.row_mut(row + r)[first..][at..end];
                    for v in 0..V {
                        sums[r][v] = load::<I, TAIL>(isa, &y[v * I::LANES..]);
                    }
                }
            });
        }
        // Of few sums each would wait for its last product: they are made in parts.
        let parts = if R <= LOWEST { (4 / (R * V)).max(1) } else { 1 };
        let mut others = [[[isa.splat(0.0); V]; R]; 3];
        // The outputs are far away more often than not: they come while the sums are made.
        for r in 0..R.min(rows) {
            let y = &self.y.row_mut(row + r)[first..][at..end];
            (0..V).for_each(|v| isa.prefetch(y, v * I::LANES));
        }
        for (block, input, next) in self.groups.of(group) {
            let panel_at = |block: usize| &self.panels[block * inner * width..][..inner * width];
            self.x.prefetch::<I, R>(isa, row, next.1);
            let (panel, next) = (panel_at(block), &panel_at(next.0)[at..]);
            if SIZE > 0 {
                // A size that is known leaves few addresses to compute.
                let x = self.x.columns::<R, SIZE>(row, input, 0);
                let panel = &panel[..SIZE * SIZE];
                for piece in (0..SIZE).step_by(PIECE) {
                    by_hand!(k < PIECE, {
                        let k = piece + k;
                        (0..V).for_each(|v| isa.prefetch(next, k * SIZE + v * I::LANES));
                        let sums = if k % parts > 0 { &mut others[k % parts - 1] } else { &mut sums };
                        step::<I, R, V, TAIL>(isa, sums, |r| x.at(r, k), &panel[k * SIZE..][..SIZE]);
                    });
                }
                continue;
            }
            let mut k = 0;
            while k + PIECE <= inner {
                k = self.part::<I, R, V, PIECE, TAIL>(
                    isa,
                    &mut sums,
                    (row, input, k),
                    (panel, next),
                    at..end,
                );
            }
            // What is left of a block, by its sizes, which are mostly powers of two.
            if k + 8 <= inner {
                k = self.part::<I, R, V, 8, TAIL>(isa, &mut sums, (row, input, k), (panel, next), at..end);
            }
            if k + 4 <= inner {
                k = self.part::<I, R, V, 4, TAIL>(isa, &mut sums, (row, input, k), (panel, next), at..end);
            }
            while k < inner {
                k = self.part::<I, R, V, 1, TAIL>(isa, &mut sums, (row, input, k), (panel, next), at..end);
            }
        }
        by_hand!(r < R, {
            if r < rows {
                let y = &mut self.y.row_mut(row + r)[first..][at..end];
                for v in 0..V {
                    let sum =
                        others[..parts - 1].iter().fold(sums[r][v], |sum, other| isa.add(sum, other[r][v]));
                    store::<I, TAIL>(isa, &mut y[v * I::LANES..], sum);
                }
            }
        });
    }

    /// Adds the products of `P` columns from `k` on; returns where they end.
    #[inline(always)]
    fn part<I: Isa, const R: usize, const V: usize, const P: usize, const TAIL: bool>(
        &self,
        isa: I,
        sums: &mut [[I::V; V]; R],
        (row, input, k): (usize, usize, usize),
        (panel, next): (&[f32], &[f32]),
        outputs: Range<usize>,
    ) -> usize {
        let x = self.x.columns::<R, P>(row, input, k);
        let rows = panel[k * self.width..].chunks_exact(self.width);
        for (i, w) in (0..P).zip(rows) {
            (0..V).for_each(|v| isa.prefetch(next, (k + i) * self.width + v * I::LANES));
            step::<I, R, V, TAIL>(isa, sums, |r| x.at(r, i), &w[outputs.clone()]);
        }
        k + P
    }
}

/// Adds the products of a column, `x(r)` of row `r`, with a row of a panel.
#[inline(always)]
fn step<I: Isa, const R: usize, const V: usize, const TAIL: bool>(
    isa: I,
    sums: &mut [[I::V; V]; R],
    x: impl Fn(usize) -> f32,
    w: &[f32],
) {
    let w: [I::V; V] = std::array::from_fn(|v| load::<I, TAIL>(isa, &w[v * I::LANES..]));
    for r in 0..R {
        let x = isa.splat(x(r));
        for v in 0..V {
            sums[r][v] = isa.mul_add(x, w[v], sums[r][v]);
        }
    }
}
