//! Products by panels: a few registers of columns of `b`, one row after the other, meet tiles of rows of `a`, whose sums
//! stay in registers for a run of the inner dimension.
//!
//! A tile of 8 rows and 3 registers reads 11 values for 24 multiply-adds, so their rate is the limit where many rows share
//! a panel. Where few do it is the memory that panels come from: each tile asks for a part of the next run.

use crate::finish::Target;
use crate::parallel::share;
use crate::scratch::scratch;
use crate::simd::{Isa, Level, MatMut, MatRef, Vectorize, load, store};

/// Inner elements of a run: those of a panel fit the first cache beside a tile of rows (36 of 48 KiB).
const RUN: usize = 192;
/// Inner elements that lie together of every row of a tile: a cache line.
const PIECE: usize = 16;
/// A multiple of the height of any whole tile.
const HEIGHTS: usize = 24;
/// Elements of `a` that are copied at a time.
const COPIED: usize = 4 * 1024 * 1024;
/// Tasks at most, about.
const TASKS: usize = 32;
/// Rows of a task at least, where they are cut.
const TASK_ROWS: usize = 128;
/// Flops of a task about at least: the first lines of its panels come late, and below it is not worth to wake a thread.
const TASK_FLOPS: usize = 4 << 20;

/// Elements that `b [k, n]` takes in the order that [`product`] reads it at a level.
pub(super) fn len(level: Level, k: usize, n: usize) -> usize {
    n.div_ceil(width(level)) * width(level) * long(k)
}

/// Puts `b` in that order, by all threads. Panics unless the elements of its rows or those of its columns are contiguous.
pub(super) fn pack(level: Level, b: MatRef<'_>, to: &mut [f32]) {
    pack_by(level, width(level), b, to);
}

/// In panels of `width` columns, each with zeros to a whole number of pieces.
pub(super) fn pack_by(level: Level, width: usize, b: MatRef<'_>, to: &mut [f32]) {
    let size = width * long(b.rows());
    let tasks = to.chunks_mut(size.max(1)).enumerate().collect();
    share(tasks, |(panel, to)| level.run(Pack { to, from: columns(b, panel * width, width), width }));
}

/// `out (+)= a b`, finished, by a `b` that [`pack`] has packed for this level. Panics unless the elements of the rows of `out` and `a` are
/// contiguous.
pub(super) fn product(out: Target<'_>, accumulate: bool, a: MatRef<'_>, (b, level): (&[f32], Level)) {
    let (k, n) = (a.cols(), out.cols());
    if n == 0 {
        return;
    }
    let parallel = 2 * a.rows() * n * k > TASK_FLOPS;
    let most = (COPIED / long(k).max(1)).max(TASK_ROWS);
    for (first, out) in (0..a.rows()).step_by(most).zip(out.bands(most)) {
        let a = a.rows_at(first, out.rows());
        some_rows(out, accumulate, a, (b, level), parallel);
    }
}

/// The same for as many rows as may be copied at once.
fn some_rows(out: Target<'_>, accumulate: bool, a: MatRef<'_>, (b, level): (&[f32], Level), parallel: bool) {
    let (rows, cols, k) = (out.rows(), out.cols(), a.cols());
    let (width, long) = (width(level), long(k));
    let panels = cols.div_ceil(width);
    // Parts of rows where there are few panels, of panels where there are many: by the shape alone.
    let tasks = (2 * rows * cols * k / TASK_FLOPS).next_power_of_two().min(TASKS);
    let parts = tasks.div_ceil(panels).min(rows.div_ceil(TASK_ROWS));
    let band = rows.div_ceil(parts).next_multiple_of(HEIGHTS);
    let group = panels.div_ceil(tasks.div_ceil(parts)) * width;
    scratch(rows * long, |copy| {
        let bands = copy.chunks_mut(band * long.max(1)).enumerate().collect();
        each(parallel && rows > band, bands, |(i, to): (usize, &mut [f32])| {
            let from = a.rows_at(i * band, to.len() / long);
            level.run(Copy { to, from });
        });
        let mut tasks = Vec::new();
        for (first, out) in (0..rows).step_by(band).zip(out.bands(band)) {
            let x = &copy[first * long..][..out.rows() * long];
            tasks.extend((0..cols).step_by(group).zip(out.strips(group)).map(|(col, out)| (x, col, out)));
        }
        each(parallel, tasks, |(x, col, mut out)| {
            let mut right = out.sums();
            let mut panels = &b[col * long..];
            while right.cols() > 0 {
                let cols = width.min(right.cols());
                let (now, rest) = right.split_cols(cols);
                level.run(Panel { out: now, accumulate, x, panels, long });
                (right, panels) = (rest, &panels[width * long..]);
            }
            out.finish(level);
        });
    });
}

/// Runs `f` on each task, by all threads or by this one.
fn each<T: Send>(parallel: bool, tasks: Vec<T>, f: impl Fn(T) + Sync) {
    if parallel { share(tasks, f) } else { tasks.into_iter().for_each(f) }
}

/// Columns of a panel.
fn width(level: Level) -> usize {
    match level.lanes() {
        8 => 16,
        lanes => 3 * lanes,
    }
}

/// Inner elements with the zeros that fill the last piece.
fn long(k: usize) -> usize {
    k.next_multiple_of(PIECE)
}

/// Columns from `first` on, at most `width`.
fn columns(b: MatRef<'_>, first: usize, width: usize) -> MatRef<'_> {
    b.cols_at(first, width.min(b.cols() - first))
}

/// A panel of a few columns, zeros in place of those that are missing, and of the rows that fill the last piece.
struct Pack<'a> {
    to: &'a mut [f32],
    from: MatRef<'a>,
    width: usize,
}

impl Vectorize for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { to, from, width } = self;
        let (k, cols) = (from.rows(), from.cols());
        to[if cols < width { 0 } else { k * width }..].fill(0.0);
        if from.col_stride() == 1 {
            for (r, to) in to.chunks_exact_mut(width).enumerate().take(k) {
                to[..cols].copy_from_slice(from.row(r));
            }
            return;
        }
        let from = from.t();
        let (high, wide) = (cols / I::LANES * I::LANES, k / I::LANES * I::LANES);
        for at in (0..wide).step_by(I::LANES) {
            for col in (0..high).step_by(I::LANES) {
                let square = from.load_transposed(isa, col, at);
                for (i, &values) in square[..I::LANES].iter().enumerate() {
                    isa.store(&mut to[(at + i) * width + col..], values);
                }
            }
        }
        for col in 0..cols {
            let from = from.row(col);
            for at in if col < high { wide } else { 0 }..k {
                to[at * width + col] = from[at];
            }
        }
    }
}

/// The height of the next tile of at most `most` rows, `left` rows being left.
#[inline(always)]
fn height(left: usize, most: usize) -> usize {
    match left {
        _ if left >= most => most,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// The greatest height of a tile.
#[inline(always)]
fn tallest<I: Isa>() -> usize {
    // With the sums of these rows, and what they multiply, in registers: 28 of 32, or 15 of 16.
    if I::LANES == 8 { 6 } else { 8 }
}

/// Rows by tiles, in each by pieces, in each by rows. Zeros follow the last elements.
struct Copy<'a> {
    to: &'a mut [f32],
    from: MatRef<'a>,
}

impl Vectorize for Copy<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { to, from } = self;
        let (rows, k) = (from.rows(), from.cols());
        let long = long(k);
        let mut row = 0;
        while row < rows {
            let height = height(rows - row, tallest::<I>());
            let tile = &mut to[row * long..][..height * long];
            for r in 0..height {
                let (pieces, last) = from.row(row + r).as_chunks::<PIECE>();
                let mut to = tile[r * PIECE..].chunks_mut(height * PIECE);
                for (from, to) in pieces.iter().zip(&mut to) {
                    for lane in (0..PIECE).step_by(I::LANES) {
                        isa.store(&mut to[lane..], isa.load(&from[lane..]));
                    }
                }
                if let (Some(to), false) = (to.next(), last.is_empty()) {
                    to[..last.len()].copy_from_slice(last);
                    to[last.len()..PIECE].fill(0.0);
                }
            }
            row += height;
        }
    }
}

/// `out (+)= x · panel` for all rows of a task and the columns of one panel.
struct Panel<'a> {
    out: MatMut<'a>,
    accumulate: bool,
    /// Rows as [`Copy`] leaves them.
    x: &'a [f32],
    /// The panel, and those that follow.
    panels: &'a [f32],
    long: usize,
}

impl Vectorize for Panel<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        if I::LANES == 8 { self.sweep::<I, 6, 2>(isa) } else { self.sweep::<I, 8, 3>(isa) }
    }
}

impl Panel<'_> {
    #[inline(always)]
    fn sweep<I: Isa, const R: usize, const V: usize>(&mut self, isa: I) {
        if self.out.cols() == V * I::LANES {
            self.runs::<I, R, V, false>(isa);
        } else {
            self.runs::<I, R, V, true>(isa);
        }
    }

    #[inline(always)]
    fn runs<I: Isa, const R: usize, const V: usize, const TAIL: bool>(&mut self, isa: I) {
        let rows = self.out.rows();
        // Tiles that ask for a part of the next run each: the lines of a row of the panel, or one or two of them.
        let asking = (rows / R).clamp(1, V);
        let lines = V.div_ceil(asking);
        let mut start = 0;
        // Once at least, since nothing is zero as well.
        loop {
            let len = RUN.min(self.long - start);
            let (mut row, mut asked) = (0, 0);
            while row < rows {
                let run = Run { start, len, lines: if asked < asking { lines } else { 0 }, part: asked };
                row += match height(rows - row, R) {
                    4 => self.tile::<I, 4, V, TAIL>(isa, row, run),
                    2 => self.tile::<I, 2, V, TAIL>(isa, row, run),
                    1 => self.tile::<I, 1, V, TAIL>(isa, row, run),
                    _ => self.tile::<I, R, V, TAIL>(isa, row, run),
                };
                asked += 1;
            }
            start += len;
            if start == self.long {
                break;
            }
        }
    }

    /// The rows from `row` on; returns `R`.
    #[inline(always)]
    fn tile<I: Isa, const R: usize, const V: usize, const TAIL: bool>(
        &mut self,
        isa: I,
        row: usize,
        run: Run,
    ) -> usize {
        let width = V * I::LANES;
        let x = &self.x[row * self.long + run.start * R..][..run.len * R];
        let (now, next) = self.panels[run.start * width..].split_at(run.len * width);
        let mut ahead = run.part * run.lines * run.len * I::LANES;
        let mut sums = [[isa.splat(0.0); V]; R];
        let add = self.accumulate || run.start > 0;
        for r in 0..R {
            let out = self.out.row_mut(row + r);
            let len = out.len();
            for v in 0..V {
                let out = &mut out[if TAIL { len.min(v * I::LANES) } else { v * I::LANES }..];
                if add {
                    sums[r][v] = load::<I, TAIL>(isa, out);
                } else {
                    isa.prefetch(out, 0);
                }
            }
        }
        let pieces = x.as_chunks::<PIECE>().0.chunks_exact(R);
        for (x, w) in pieces.zip(now.chunks_exact(PIECE * width)) {
            for (k, w) in (0..PIECE).zip(w.chunks_exact(width)) {
                for line in 0..V {
                    if line < run.lines {
                        isa.prefetch(next, ahead + line * I::LANES);
                    }
                }
                ahead += run.lines * I::LANES;
                let mut columns = [isa.splat(0.0); V];
                for v in 0..V {
                    columns[v] = isa.load(&w[v * I::LANES..]);
                }
                for r in 0..R {
                    let x = isa.splat(x[r][k]);
                    for v in 0..V {
                        sums[r][v] = isa.mul_add(x, columns[v], sums[r][v]);
                    }
                }
            }
        }
        for r in 0..R {
            let out = self.out.row_mut(row + r);
            let len = out.len();
            for v in 0..V {
                let out = &mut out[if TAIL { len.min(v * I::LANES) } else { v * I::LANES }..];
                store::<I, TAIL>(isa, out, sums[r][v]);
            }
        }
        R
    }
}

/// Inner elements that a tile multiplies, and how many lines of each row of the panel after them it asks for: the
/// `part`-th such share.
#[derive(Clone, Copy)]
struct Run {
    start: usize,
    len: usize,
    lines: usize,
    part: usize,
}
