//! Panels: each group of blocks that share outputs is swept by tiles of rows, whose sums stay in registers from the
//! first block of the group to the last, so an output is written once.
//!
//! Both products read a block as a panel `[inner, width]`, `width` being its outputs: as stored for the input
//! gradient, turned for the forward product. Of the other operand, a tile's rows lie side by side in pieces of a
//! cache line ([`super::tiles`]), so that every element a tile multiplies is at a fixed distance from one address.

use super::order::Order;
use super::tiles::{self, PIECE, Pack};
use super::{Blocks, Kernel, Packing, dots, outer};
use crate::parallel::within_pool;
use crate::scratch::scratch;
use crate::simd::{Isa, Level, MAX_LANES, MatMut, Vectorize, dispatch};
use rayon::prelude::*;
use std::ops::Range;

pub(super) const KERNEL: Kernel = Kernel {
    name: "dsd/panels",
    accepts: |_| true,
    forward: dots::forward,
    input_gradient,
    weight_gradient: outer::weight_gradient,
    packing: Some(Packing { from_rows: 2, pack: turn, forward: forward_turned }),
};

/// Rows of one task: with a few thousand columns, packed, they fit the second cache.
const BAND: usize = 48;
/// Tasks at least, where there is enough to cut.
const TASKS: usize = 16;
/// Values that one task turns.
const TURNED: usize = 16 * 1024;

/// `y (+)= x Wᵀ`, the blocks turned once.
pub(super) fn forward(blocks: &Blocks, values: &[f32], x: &[f32], y: &mut [f32], accumulate: bool) {
    within_pool(|| {
        scratch(values.len(), |turned| {
            turn(blocks, values, turned);
            forward_turned(blocks, turned, x, y, accumulate);
        });
    });
}

/// `y (+)= x Wᵀ` with blocks that [`turn`] has turned.
fn forward_turned(blocks: &Blocks, turned: &[f32], x: &[f32], y: &mut [f32], accumulate: bool) {
    let (br, bc) = (blocks.br, blocks.bc);
    products(&blocks.by_row, turned, (bc, br), (x, blocks.n_in), (y, blocks.n_out), accumulate);
}

fn input_gradient(blocks: &Blocks, values: &[f32], dy: &[f32], dx: &mut [f32], accumulate: bool) {
    let (br, bc) = (blocks.br, blocks.bc);
    products(&blocks.by_col, values, (br, bc), (dy, blocks.n_out), (dx, blocks.n_in), accumulate);
}

/// Every block `[br, bc]` as `[bc, br]`.
fn turn(blocks: &Blocks, values: &[f32], panels: &mut [f32]) {
    let (height, width) = (blocks.br, blocks.bc);
    let step = TURNED.div_ceil(height * width) * height * width;
    panels.par_chunks_mut(step).zip(values.par_chunks(step)).for_each(|(to, from)| {
        dispatch(Turn { to, from, height, width });
    });
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
                    let mut square = [isa.splat(0.0); MAX_LANES];
                    for (at, square) in square[..I::LANES].iter_mut().enumerate() {
                        *square = isa.load(&from[(i + at) * width + j..]);
                    }
                    isa.transpose(&mut square);
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
    (x, n_in): (&[f32], usize),
    (y, n_out): (&mut [f32], usize),
    accumulate: bool,
) {
    if n_out == 0 {
        return;
    }
    // Once, since what is packed is tiled for the level that will read it.
    let level = Level::current();
    let rows = y.len() / n_out;
    let bands = rows.div_ceil(BAND);
    let all = groups.starts.len() - 1;
    let (cols, packed) = (tiles::cols(n_in, inner), tiles::len(n_in, inner, BAND).max(1));
    let pack = |x: &mut [f32], from: &[f32], rows: usize| {
        level.run(Pack { to: x, from, n_in, rows, inner, width });
    };
    let from = |band: usize, rows: usize| &x[band * BAND * n_in..][..rows * n_in];
    if bands >= TASKS {
        y.par_chunks_mut(BAND * n_out).enumerate().for_each(|(band, y)| {
            scratch(packed, |x| {
                let rows = y.len() / n_out;
                pack(x, from(band, rows), rows);
                let y = MatMut::row_major(y, rows, n_out);
                level.run(Products { groups, panels, inner, width, range: 0..all, cols, x, y, accumulate });
            });
        });
        return;
    }
    // Fewer bands are cut by outputs as well.
    let by_outputs = || {
        scratch(bands * packed, |x| {
            x.par_chunks_mut(packed).enumerate().for_each(|(band, x)| {
                let rows = BAND.min(rows - band * BAND);
                pack(x, from(band, rows), rows);
            });
            let mut tasks = Vec::new();
            let mut below = MatMut::row_major(y, rows, n_out);
            for (band, x) in x.chunks_exact(packed).enumerate() {
                let (mut right, rest) = below.split_rows(BAND.min(rows - band * BAND));
                below = rest;
                for range in groups.parts(TASKS.div_ceil(bands)) {
                    let (left, rest) = right.split_cols(range.len() * width);
                    tasks.push((x, range, left));
                    right = rest;
                }
            }
            tasks.into_par_iter().for_each(|(x, range, y)| {
                level.run(Products { groups, panels, inner, width, range, cols, x, y, accumulate });
            });
        })
    };
    within_pool(by_outputs);
}

/// `y[:, group] (+)= Σ x[:, input block] · panel` over the blocks of every group of a range, for the rows of a
/// band.
struct Products<'a> {
    groups: &'a Order,
    panels: &'a [f32],
    inner: usize,
    width: usize,
    range: Range<usize>,
    /// Packed, with so many columns.
    cols: usize,
    x: &'a [f32],
    /// The outputs of the range.
    y: MatMut<'a>,
    accumulate: bool,
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

/// Loads a register, or with `TAIL` what there is of one.
#[inline(always)]
pub(super) fn load<I: Isa, const TAIL: bool>(isa: I, from: &[f32]) -> I::V {
    if TAIL { isa.load_partial(from) } else { isa.load(from) }
}

/// Stores a register, or with `TAIL` what there is room for.
#[inline(always)]
pub(super) fn store<I: Isa, const TAIL: bool>(isa: I, to: &mut [f32], v: I::V) {
    if TAIL { isa.store_partial(to, v) } else { isa.store(to, v) }
}

impl Vectorize for Products<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        // The tiles of `tiles::height`: 32 registers with 16 lanes, 16 or more with fewer.
        let this = &mut self;
        match (I::LANES == 16, this.width >= 2 * I::LANES) {
            (true, true) => this.sweep::<I, 12, 8, 4>(isa),
            (true, false) => this.sweep::<I, 24, 16, 8>(isa),
            (false, true) => this.sweep::<I, 6, 4, 2>(isa),
            (false, false) => this.sweep::<I, 12, 8, 4>(isa),
        }
    }
}

impl Products<'_> {
    /// All groups and rows by tiles of `R` rows, the last ones of `H` or `Q`.
    #[inline(always)]
    fn sweep<I: Isa, const R: usize, const H: usize, const Q: usize>(&mut self, isa: I) {
        let rows = self.y.rows();
        for group in self.range.clone() {
            for (row, height) in tiles::of(rows, R) {
                if height == R {
                    self.across::<I, R>(isa, group, row);
                } else if height == H {
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
        if I::LANES == 16 && self.width == 32 && R <= 12 {
            return self.tile::<I, R, 2, 32, false>(isa, 0, group, row);
        }
        if I::LANES == 16 && self.width == 16 {
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
    fn tile<I: Isa, const R: usize, const V: usize, const WIDTH: usize, const TAIL: bool>(
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
        // The outputs are far away more often than not: they come while the sums are made.
        for r in 0..R.min(rows) {
            let y = &self.y.row_mut(row + r)[first..][at..end];
            (0..V).for_each(|v| isa.prefetch(y, v * I::LANES));
        }
        let tall = inner.div_ceil(PIECE) * R;
        let x = &self.x[row * self.cols..];
        // A width that is known leaves no address to compute.
        let width = if WIDTH > 0 { WIDTH } else { width };
        for (block, input, next) in self.groups.of(group) {
            let (x, _) = x[input * tall * PIECE..][..tall * PIECE].as_chunks::<PIECE>();
            let panel_at = |block: usize| &self.panels[block * inner * width..][..inner * width];
            let (panel, next) = (panel_at(block), &panel_at(next)[at..]);
            for (piece, x) in x.chunks_exact(R).enumerate() {
                let panel = &panel[piece * PIECE * width..];
                let next = &next[piece * PIECE * width..];
                if let Some(panel) = panel.get(..PIECE * width) {
                    by_hand!(k < PIECE, {
                        step::<I, R, V, TAIL>(
                            isa,
                            &mut sums,
                            x,
                            k,
                            &panel[k * width..][at..end],
                            next,
                            k * width,
                        );
                    });
                } else {
                    for (k, w) in (0..PIECE).zip(panel.chunks_exact(width)) {
                        step::<I, R, V, TAIL>(isa, &mut sums, x, k, &w[at..end], next, k * width);
                    }
                }
            }
        }
        by_hand!(r < R, {
            if r < rows {
                let y = &mut self.y.row_mut(row + r)[first..][at..end];
                for v in 0..V {
                    store::<I, TAIL>(isa, &mut y[v * I::LANES..], sums[r][v]);
                }
            }
        });
    }
}

/// Adds the products of column `k` of a piece with a row of a panel, and asks for `ahead` in the `next` panel.
#[inline(always)]
fn step<I: Isa, const R: usize, const V: usize, const TAIL: bool>(
    isa: I,
    sums: &mut [[I::V; V]; R],
    x: &[[f32; PIECE]],
    k: usize,
    w: &[f32],
    next: &[f32],
    ahead: usize,
) {
    let x = &x[..R];
    for v in 0..V {
        isa.prefetch(next, ahead + v * I::LANES);
    }
    let w: [I::V; V] = std::array::from_fn(|v| load::<I, TAIL>(isa, &w[v * I::LANES..]));
    for r in 0..R {
        let x = isa.splat(x[r][k]);
        for v in 0..V {
            sums[r][v] = isa.mul_add(x, w[v], sums[r][v]);
        }
    }
}
