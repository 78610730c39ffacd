//! Some rows times a matrix whose columns are contiguous (a layer's weight as it is stored): dot products, every
//! lane of a register adding its own share of a sum, and the lanes each other at the end.
//!
//! Each column is read once and meets the rows of a band while it is in the first cache; with one row that is the
//! speed of memory. Rows are packed, and columns copied by the first tile that reads them, since a load that crosses
//! two cache lines takes as long as two, and since rows that lie a power of two apart would share their places in the
//! cache.

use crate::parallel::within_pool;
use crate::scratch::scratch;
use crate::simd::{Isa, Level, MAX_LANES, MatMut, MatRef, Vectorize};
use rayon::prelude::*;

/// Rows up to which this is faster than turning the matrix (measured on AVX-512, 768 to 4096 wide): with a sum of
/// [`LONG`] or more elements, and with a shorter one, of which more is the adding of lanes.
const MOST_ROWS: usize = 200;
const MOST_SHORT: usize = 32;
const LONG: usize = 512;
/// The least inner size: below, a sum is mostly its ends.
const LEAST_INNER: usize = 64;
/// Inner elements that lie together of every row of a tile: a cache line.
const PIECE: usize = 16;
/// Rows of a tile; the last ones are of 2 and 1.
const TALL: usize = 4;
/// Columns of a tile at most.
const WIDE: usize = 6;
/// Columns of one task.
const TASK_COLS: usize = 16 * WIDE;
/// Of rows that are multiplied together, elements at most: they stay in the second cache.
const BAND: usize = 256 * 1024;
/// Inner elements of a run: what a tile reads of a run stays in the first cache.
const RUN: usize = 512;

/// Whether these operands are for [`product`].
pub(super) fn accepts(out: &MatMut<'_>, a: MatRef<'_>, b: MatRef<'_>) -> bool {
    let fits = a.cols() == b.rows() && out.rows() == a.rows() && out.cols() == b.cols();
    let contiguous = out.col_stride() == 1 && a.col_stride() == 1 && b.row_stride() == 1;
    let most = if a.cols() >= LONG { MOST_ROWS } else { MOST_SHORT };
    fits && contiguous && (1..=most).contains(&out.rows()) && a.cols() >= LEAST_INNER
}

/// `out (+)= a b`, by all threads if `parallel`.
pub(super) fn product(out: MatMut<'_>, accumulate: bool, a: MatRef<'_>, b: MatRef<'_>, parallel: bool) {
    let columns = b.t();
    if parallel && (columns.rows() > TASK_COLS || a.rows() > band(a.cols().next_multiple_of(PIECE))) {
        within_pool(|| with_packed(out, accumulate, a, columns, true));
    } else {
        with_packed(out, accumulate, a, columns, false);
    }
}

/// The same, `a` packed; of `b`, the `columns` are rows.
fn with_packed(out: MatMut<'_>, accumulate: bool, a: MatRef<'_>, columns: MatRef<'_>, parallel: bool) {
    // Once, so that all of a product is computed by the same instructions.
    let level = Level::current();
    let (rows, long) = (a.rows(), a.cols().next_multiple_of(PIECE));
    let band = band(long);
    scratch(rows * long, |packed| {
        let pack = |(i, to): (usize, &mut [f32])| {
            let from = a.rows_at(i * band, to.len() / long);
            level.run(Pack { to, from });
        };
        if parallel && rows > band {
            packed.par_chunks_mut(band * long).enumerate().for_each(pack);
        } else {
            packed.chunks_mut(band * long).enumerate().for_each(pack);
        }
        let step = if parallel { TASK_COLS } else { columns.rows() };
        let (mut tasks, mut below) = (Vec::new(), out);
        for x in packed.chunks(band * long) {
            let (mut right, rest) = below.split_rows(x.len() / long);
            below = rest;
            for first in (0..columns.rows()).step_by(step) {
                let (out, rest) = right.split_cols(step.min(columns.rows() - first));
                right = rest;
                let columns = columns.rows_at(first, out.cols());
                tasks.push(Task { out, accumulate, x, columns, level });
            }
        }
        if parallel {
            tasks.into_par_iter().for_each(Task::run);
        } else {
            tasks.into_iter().for_each(Task::run);
        }
    });
}

/// Rows that are multiplied together, packed in `long` elements each.
fn band(long: usize) -> usize {
    (BAND / long).max(1).next_multiple_of(TALL)
}

/// Inner elements of each run of `k`: whole pieces, about as many in each, or all of them where no second tile
/// reads a column.
fn run_of(rows: usize, k: usize) -> usize {
    let runs = if rows <= height(rows) { 1 } else { k.div_ceil(RUN) };
    k.div_ceil(runs).next_multiple_of(PIECE)
}

/// Rows of the next tile, `left` rows being left.
#[inline(always)]
fn height(left: usize) -> usize {
    match left {
        TALL.. => TALL,
        2.. => 2,
        _ => 1,
    }
}

/// Rows by runs, in each by tiles, in each by pieces, in each by rows. Zeros follow the last elements.
struct Pack<'a> {
    to: &'a mut [f32],
    from: MatRef<'a>,
}

impl Vectorize for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { mut to, from } = self;
        let (rows, k) = (from.rows(), from.cols());
        let run = run_of(rows, k);
        for start in (0..k).step_by(run) {
            let len = run.min(k - start);
            let mut row = 0;
            while row < rows {
                let tall = height(rows - row);
                let (tile, rest) = to.split_at_mut(tall * len.next_multiple_of(PIECE));
                to = rest;
                for r in 0..tall {
                    let from = &from.row(row + r)[start..][..len];
                    let pieces = tile[r * PIECE..].chunks_mut(tall * PIECE);
                    for (to, from) in pieces.zip(from.chunks(PIECE)) {
                        if from.len() < PIECE {
                            to[..from.len()].copy_from_slice(from);
                            to[from.len()..PIECE].fill(0.0);
                            continue;
                        }
                        for lane in (0..PIECE).step_by(I::LANES) {
                            isa.store(&mut to[lane..], isa.load(&from[lane..]));
                        }
                    }
                }
                row += tall;
            }
        }
    }
}

/// Some columns of a product.
struct Task<'a> {
    out: MatMut<'a>,
    accumulate: bool,
    /// The packed rows.
    x: &'a [f32],
    /// The columns of b, as rows.
    columns: MatRef<'a>,
    level: Level,
}

impl Task<'_> {
    fn run(mut self) {
        // The sums of a tile and what it multiplies: 29 of 32 registers, or 13 of 16.
        let wide = match self.level {
            Level::Avx512 | Level::Neon => WIDE,
            Level::Avx2 | Level::Scalar => 2,
        };
        let (rows, cols) = (self.out.rows(), self.out.cols());
        let run = run_of(rows, self.columns.cols());
        scratch((run + rows * MAX_LANES) * WIDE, |memory| {
            let (panel, sums) = memory.split_at_mut(run * WIDE);
            let mut col = 0;
            while col < cols {
                col += match (cols - col).min(wide) {
                    WIDE => self.columns::<WIDE>(col, run, panel, sums),
                    2.. => self.columns::<2>(col, run, panel, sums),
                    _ => self.columns::<1>(col, run, panel, sums),
                };
            }
        });
    }

    /// All rows of the columns `col..col + C`; returns `C`.
    fn columns<const C: usize>(
        &mut self,
        col: usize,
        run: usize,
        panel: &mut [f32],
        sums: &mut [f32],
    ) -> usize {
        let (k, rows) = (self.columns.cols(), self.out.rows());
        let columns = self.columns.rows_at(col, C);
        let mut x = self.x;
        for start in (0..k).step_by(run) {
            let len = run.min(k - start);
            let whole = len.next_multiple_of(PIECE);
            let (now, rest) = x.split_at(rows * whole);
            x = rest;
            let (first, last) = (start == 0, start + len == k);
            let next = if last && col + C < self.columns.rows() {
                self.columns.row(col + C)
            } else {
                &columns.row(0)[(start + len).min(k - 1)..]
            };
            self.level.run(Tiles::<C> {
                columns: columns.cols_at(start, len),
                next,
                stride: self.columns.row_stride(),
                panel: &mut panel[..C * whole],
                sums,
                first,
                last,
                x: now,
                out: self.out.reborrow(),
                col,
                accumulate: self.accumulate,
            });
        }
        C
    }
}

/// `C` columns of all rows, over a run of the inner dimension.
struct Tiles<'a, const C: usize> {
    columns: MatRef<'a>,
    /// The first column of the next run, and how far apart its columns are.
    next: &'a [f32],
    stride: usize,
    /// For a copy of the columns, by pieces.
    panel: &'a mut [f32],
    /// The sums so far, lane by lane.
    sums: &'a mut [f32],
    first: bool,
    last: bool,
    /// The packed rows.
    x: &'a [f32],
    out: MatMut<'a>,
    col: usize,
    accumulate: bool,
}

impl<const C: usize> Vectorize for Tiles<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let rows = self.out.rows();
        let mut row = match (rows, height(rows)) {
            (TALL, _) => self.tile::<I, TALL, true, false>(isa, 0),
            (2, _) => self.tile::<I, 2, true, false>(isa, 0),
            (1, _) => self.tile::<I, 1, true, false>(isa, 0),
            (_, TALL) => self.tile::<I, TALL, true, true>(isa, 0),
            _ => self.tile::<I, 2, true, true>(isa, 0),
        };
        while row < rows {
            row += match height(rows - row) {
                TALL => self.tile::<I, TALL, false, false>(isa, row),
                2 => self.tile::<I, 2, false, false>(isa, row),
                _ => self.tile::<I, 1, false, false>(isa, row),
            };
        }
    }
}

impl<const C: usize> Tiles<'_, C> {
    /// The rows from `row` on; returns `R`. The `FIRST` tile reads the columns where they are, and with `COPY` copies
    /// them for the others.
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const FIRST: bool, const COPY: bool>(
        &mut self,
        isa: I,
        row: usize,
    ) -> usize {
        let len = self.columns.cols();
        let whole = len.next_multiple_of(PIECE);
        let x = &self.x[row * whole..][..R * whole];
        let kept = &mut self.sums[row * WIDE * MAX_LANES..][..R * C * I::LANES];
        let mut sums = [[isa.splat(0.0); C]; R];
        if !self.first {
            for r in 0..R {
                for c in 0..C {
                    sums[r][c] = isa.load(&kept[(r * C + c) * I::LANES..]);
                }
            }
        }
        let pieces = x.chunks_exact(R * PIECE).zip(self.panel.chunks_exact_mut(C * PIECE));
        if FIRST {
            let mut from: [&[f32]; C] = [&[]; C];
            for c in 0..C {
                from[c] = &self.columns.row(c)[..len];
            }
            for ((x, w), at) in pieces.zip((0..).step_by(PIECE)) {
                if at + PIECE <= len {
                    for lane in (0..PIECE).step_by(I::LANES) {
                        let mut rows = [isa.splat(0.0); R];
                        for r in 0..R {
                            rows[r] = isa.load(&x[r * PIECE + lane..]);
                        }
                        for c in 0..C {
                            let column = isa.load(&from[c][at + lane..]);
                            if COPY {
                                isa.store(&mut w[c * PIECE + lane..], column);
                            }
                            for r in 0..R {
                                sums[r][c] = isa.mul_add(rows[r], column, sums[r][c]);
                            }
                        }
                    }
                    continue;
                }
                for c in 0..C {
                    let (to, from) = (&mut w[c * PIECE..][..PIECE], &from[c][at..]);
                    to[..from.len()].copy_from_slice(from);
                    to[from.len()..].fill(0.0);
                }
                step::<I, R, C>(isa, &mut sums, x, w);
            }
        } else {
            // Each tile asks for two columns of the next run.
            let at = 2 * (row / R - 1).min(C / 2) * self.stride;
            for ((x, w), ahead) in pieces.zip((at..).step_by(PIECE)) {
                isa.prefetch(self.next, ahead);
                isa.prefetch(self.next, ahead + self.stride);
                step::<I, R, C>(isa, &mut sums, x, w);
            }
        }
        if !self.last {
            for r in 0..R {
                for c in 0..C {
                    isa.store(&mut kept[(r * C + c) * I::LANES..], sums[r][c]);
                }
            }
            return R;
        }
        let mut lanes = [0.0; 2 * MAX_LANES];
        reduce::<I, R, C>(isa, &sums, &mut lanes);
        for r in 0..R {
            let out = &mut self.out.row_mut(row + r)[self.col..self.col + C];
            for c in 0..C {
                let sum = lanes[r * C + c];
                out[c] = if self.accumulate { out[c] + sum } else { sum };
            }
        }
        R
    }
}

/// Adds the products of a piece.
#[inline(always)]
fn step<I: Isa, const R: usize, const C: usize>(isa: I, sums: &mut [[I::V; C]; R], x: &[f32], w: &[f32]) {
    let (x, w) = (&x[..R * PIECE], &w[..C * PIECE]);
    for lane in (0..PIECE).step_by(I::LANES) {
        let mut rows = [isa.splat(0.0); R];
        for r in 0..R {
            rows[r] = isa.load(&x[r * PIECE + lane..]);
        }
        for c in 0..C {
            let column = isa.load(&w[c * PIECE + lane..]);
            for r in 0..R {
                sums[r][c] = isa.mul_add(rows[r], column, sums[r][c]);
            }
        }
    }
}

/// The sum of the lanes of every register, row by row: always added in halves, so that the size of a tile changes
/// no bit.
#[inline(always)]
fn reduce<I: Isa, const R: usize, const C: usize>(
    isa: I,
    sums: &[[I::V; C]; R],
    lanes: &mut [f32; 2 * MAX_LANES],
) {
    let mut first = 0;
    while first < R * C {
        let mut some = [isa.splat(0.0); MAX_LANES];
        for r in 0..R {
            for c in 0..C {
                let at = r * C + c;
                if at >= first && at < first + I::LANES {
                    some[at - first] = sums[r][c];
                }
            }
        }
        isa.store(&mut lanes[first..], isa.sum_each(&mut some));
        first += I::LANES;
    }
}
