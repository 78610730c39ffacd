//! Masks drawn on a canvas: the smaller layer size down, the larger across, turned where W stands upright.
//!
//! The element masks of early sparse networks are unions of rectangles drawn this way. A mask here answers, row by
//! row, which columns of W it keeps, so nothing of the size of W is held and a file is checked as it is read.

use std::ops::Range;

use serde_json::Value;

use crate::config::{Key, Options};
use crate::pattern::merged;
use crate::registry::MAX_SIZE;
use crate::{Pattern, Problem, StructureError};

pub(crate) const WINDOW: Key = Key::new("window", "side of a window, in rows of the canvas", "6");
pub(crate) const STRIPES: Key = Key::new("stripes", "how many stripes on either side of the diagonal", "3");
pub(crate) const STEP: Key = Key::new("step", "how many times its place a window is wide", "1");
pub(crate) const ROUND: Key = Key::new(
    "block",
    "any weight in such a part of the canvas fills it: one number, or [rows, cols], rows along the smaller size",
    "1",
);
pub(crate) const SHARE: Key = Key::new("density", "share of tiles kept, rounded up, above 0 to 1", "0.1");
/// Bounds the windows that a row of blocks can meet, whatever a file says.
const MAX_EACH: usize = 1 << 12;

/// The canvas of `W [n_out, n_in]`: `[min, max]` of the two, transposed where `n_in ≤ n_out`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Canvas {
    pub(crate) n_out: usize,
    pub(crate) n_in: usize,
}

impl Canvas {
    /// Rows of the canvas.
    pub(crate) fn min(self) -> usize {
        self.n_out.min(self.n_in)
    }

    /// Columns of the canvas.
    pub(crate) fn max(self) -> usize {
        self.n_out.max(self.n_in)
    }

    /// Columns of the canvas for each row, rounded up.
    pub(crate) fn ratio(self) -> usize {
        self.max().div_ceil(self.min())
    }

    /// What is (down, across) on the canvas as (down, across) in W, and the other way around.
    pub(crate) fn turn<T>(self, (down, across): (T, T)) -> (T, T) {
        if self.n_in <= self.n_out { (across, down) } else { (down, across) }
    }
}

/// Windows along the diagonal of a canvas and along stripes beside it.
///
/// For every offset P and every i = 0, window, 2·window, … below min, with `at(j) = ⌊j·d⌋` and
/// `end(j) = ⌊j·d + step·d·window⌋`: rows `[P + i, P + i + height)` by columns `[at(i), end(i))`, and rows
/// `[i, i + height)` by columns `[at(i + P), end(i + P))`, clipped at the edges. Then every `block` that holds a
/// weight is filled, and the first `n_global` rows and columns are. Rows beyond the canvas repeat it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stripes {
    pub(crate) canvas: Canvas,
    pub(crate) window: usize,
    pub(crate) height: usize,
    pub(crate) step: usize,
    pub(crate) d: f64,
    pub(crate) offsets: Vec<usize>,
    pub(crate) block: (usize, usize),
    pub(crate) n_global: usize,
}

/// The keys that masks of stripes share.
pub(crate) struct StripeOptions {
    pub(crate) window: usize,
    pub(crate) stripes: usize,
    pub(crate) step: usize,
    pub(crate) block: (usize, usize),
}

impl StripeOptions {
    pub(crate) fn read(options: &Options) -> Result<Self, StructureError> {
        let value = options.required("block")?;
        let size = |value: &Value| options.size_of("block", value, 1, MAX_EACH);
        let block = match value.as_array().map(Vec::as_slice) {
            Some([rows, cols]) => (size(rows)?, size(cols)?),
            Some(_) => return Err(options.wrong("block", "a whole number or [rows, cols]", &value)),
            None => (size(&value)?, size(&value)?),
        };
        Ok(Self {
            window: options.size("window", 1, MAX_SIZE)?,
            stripes: options.size("stripes", 1, MAX_EACH)?,
            step: options.size("step", 1, MAX_EACH)?,
            block,
        })
    }
}

impl Stripes {
    /// Rows and columns of W that a filled block covers.
    fn rounding(&self) -> (usize, usize) {
        self.canvas.turn(self.block)
    }

    /// The blocks that the mask is made of: those filled, where all of them are whole, else single weights.
    pub(crate) fn tile(&self) -> (usize, usize) {
        let (rows, cols) = self.rounding();
        let whole =
            |size: usize, tile: usize| size.is_multiple_of(tile) && self.n_global.is_multiple_of(tile);
        if whole(self.canvas.n_out, rows) && whole(self.canvas.n_in, cols) { (rows, cols) } else { (1, 1) }
    }

    /// Columns of W kept in `row`, as ranges apart from each other, ascending.
    pub(crate) fn row(&self, row: usize) -> Vec<Range<usize>> {
        let Canvas { n_out, n_in } = self.canvas;
        let row = row % n_out;
        if row < self.n_global {
            return std::iter::once(0..n_in).collect();
        }
        let (rows, cols) = self.rounding();
        let first = row / rows * rows;
        let mut kept = self.windows(first..(first + rows).min(n_out));
        for range in &mut kept {
            *range = range.start / cols * cols..range.end.next_multiple_of(cols).min(n_in);
        }
        kept.push(0..self.n_global);
        merged(kept)
    }

    /// Columns of W that some window covers in one of `rows`, in any order.
    fn windows(&self, rows: Range<usize>) -> Vec<Range<usize>> {
        let (n_windows, n_in) = (self.canvas.min().div_ceil(self.window), self.canvas.n_in);
        let width = self.step as f64 * self.d * self.window as f64;
        let mut kept = Vec::new();
        for &offset in &self.offsets {
            for (below, right) in [(offset, 0), (0, offset)] {
                // Both sides of a window never fall with its number, so those on these rows are consecutive.
                let rectangle = |t: usize| {
                    let down = t * self.window + below;
                    let across = (t * self.window + right) as f64 * self.d;
                    let across = across as usize..(across + width) as usize;
                    self.canvas.turn((down..down.saturating_add(self.height), across))
                };
                let (mut low, mut high) = (0, n_windows);
                while low < high {
                    let middle = low.midpoint(high);
                    if rectangle(middle).0.end <= rows.start { low = middle + 1 } else { high = middle }
                }
                let mut last: Option<Range<usize>> = None;
                for (down, across) in (low..n_windows).map(rectangle) {
                    if down.start >= rows.end || across.start >= n_in {
                        break;
                    }
                    let across = across.start..across.end.min(n_in);
                    // Neighbours touch, so this is one range for each offset however many windows there are.
                    match &mut last {
                        Some(last) if across.start <= last.end => last.end = last.end.max(across.end),
                        _ => kept.extend(last.replace(across)),
                    }
                }
                kept.extend(last);
            }
        }
        kept
    }
}

/// Equal tiles of a canvas, window by window · ⌈max/min⌉; those at the far edges may be clipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiles {
    pub(crate) canvas: Canvas,
    /// Rows and columns of W in a tile.
    pub(crate) side: (usize, usize),
    /// Rows and columns of tiles in W.
    pub(crate) grid: (usize, usize),
}

impl Tiles {
    /// Tiles of `window` rows of the canvas; `n_across` of them side by side, all there are where it is `None`.
    pub(crate) fn new(canvas: Canvas, window: usize, n_across: Option<usize>) -> Self {
        let width = window.saturating_mul(canvas.ratio());
        let n_across = n_across.unwrap_or(canvas.max().div_ceil(width));
        let grid = canvas.turn((canvas.min().div_ceil(window), n_across));
        Self { canvas, side: canvas.turn((window, width)), grid }
    }

    /// How many tiles there are.
    pub(crate) fn count(&self) -> usize {
        self.grid.0 * self.grid.1
    }

    /// ⌈density · tiles⌉; a product within its rounding error of a whole number is that number.
    ///
    /// # Errors
    ///
    /// [`StructureError::EmptyPattern`] at density 0.
    pub(crate) fn kept(&self, structure: &'static str, density: f64) -> Result<usize, StructureError> {
        let places = self.count();
        let product = density * places as f64;
        let nearest = product.round();
        let near = (product - nearest).abs() <= f64::EPSILON * product;
        match if near { nearest } else { product.ceil() } as usize {
            0 => Err(StructureError::EmptyPattern { structure, places, density }),
            kept => Ok(kept.min(places)),
        }
    }

    /// The row and column of a tile of this number, row-major in W.
    pub(crate) fn at(&self, number: usize) -> (u32, u32) {
        ((number / self.grid.1) as u32, (number % self.grid.1) as u32)
    }

    /// The pattern of the tiles saved, of which there must be `kept`, or else of those that `choose` gives, sorted.
    pub(crate) fn pattern(
        &self,
        structure: &'static str,
        problem: &Problem<'_>,
        kept: usize,
        choose: impl FnOnce() -> Vec<(u32, u32)>,
    ) -> Result<Pattern, StructureError> {
        let Canvas { n_out, n_in } = self.canvas;
        let (rows, cols) = self.side;
        let block = if n_out.is_multiple_of(rows) && n_in.is_multiple_of(cols) { self.side } else { (1, 1) };
        // Where weights are saved one by one, the tiles they lie in; that the tiles are full is checked below.
        let saved = Pattern::saved_positions(structure, problem, (n_out / block.0, n_in / block.1))?;
        let tiles = saved.map(|saved| {
            let whole = |(row, col): (u32, u32)| {
                ((row as usize * block.0 / rows) as u32, (col as usize * block.1 / cols) as u32)
            };
            let mut tiles: Vec<_> = saved.into_iter().map(whole).collect();
            tiles.retain(|&(_, col)| (col as usize) < self.grid.1);
            tiles.retain(|&(row, _)| (row as usize) < self.grid.0);
            tiles.sort_unstable();
            tiles.dedup();
            tiles
        });
        let tiles = tiles.unwrap_or_else(choose);
        let row = |row: usize| {
            let row = (row / rows) as u32;
            let first = tiles.partition_point(|tile| tile.0 < row);
            let on_row = tiles[first..].iter().take_while(|tile| tile.0 == row);
            merged(
                on_row
                    .map(|&(_, col)| col as usize * cols)
                    .map(|start| start..start.saturating_add(cols).min(n_in))
                    .collect(),
            )
        };
        let pattern = Pattern::of_rows(structure, problem, (n_out, n_in), block, row)?;
        if tiles.len() != kept {
            let what = "the number of saved tiles";
            return Err(StructureError::FactorShape { structure, what, expected: kept, got: tiles.len() });
        }
        Ok(pattern)
    }
}
