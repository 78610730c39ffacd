//! Strided matrix views. [`MatMut`] can be cut by rows and columns into views of one buffer that never share
//! an element, so that threads may fill them at once (the heads of an attention, tiles of a product).

use super::{Isa, MAX_LANES};
use std::marker::PhantomData;

/// A read-only strided matrix: element `(r, c)` is `data[r · row_stride + c · col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct MatRef<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// One past the greatest offset of a `rows × cols` view.
fn span(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

impl<'a> MatRef<'a> {
    /// A view of `data` with strides in elements. Panics if it would leave `data`.
    #[inline]
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        let needed = span(rows, cols, row_stride, col_stride);
        assert!(needed <= data.len(), "a view of {needed} elements in a slice of {}", data.len());
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// Contiguous rows.
    #[inline]
    pub fn row_major(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    /// The same elements, rows and columns exchanged.
    #[inline]
    pub fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// Rows `start..start + len`.
    #[inline]
    pub fn rows_at(self, start: usize, len: usize) -> Self {
        assert!(start + len <= self.rows);
        let at = (start * self.row_stride).min(self.data.len());
        Self { data: &self.data[at..], rows: len, ..self }
    }

    /// Columns `start..start + len`.
    #[inline]
    pub fn cols_at(self, start: usize, len: usize) -> Self {
        self.t().rows_at(start, len).t()
    }

    /// Row `r` as a slice. Panics unless the columns are contiguous.
    #[inline]
    pub fn row(self, r: usize) -> &'a [f32] {
        assert!(self.col_stride == 1 || self.cols <= 1);
        assert!(r < self.rows);
        if self.cols == 0 { &[] } else { &self.data[r * self.row_stride..][..self.cols] }
    }

    /// Rows.
    #[inline]
    pub fn rows(self) -> usize {
        self.rows
    }

    /// Columns.
    #[inline]
    pub fn cols(self) -> usize {
        self.cols
    }

    /// Elements between rows.
    #[inline]
    pub fn row_stride(self) -> usize {
        self.row_stride
    }

    /// Elements between columns.
    #[inline]
    pub fn col_stride(self) -> usize {
        self.col_stride
    }

    /// The square of as many rows and columns as a register has lanes, from `(row, col)` on: a register each column.
    /// Panics unless it lies in the view and the columns are contiguous.
    #[inline(always)]
    pub fn load_transposed<I: Isa>(self, isa: I, row: usize, col: usize) -> [I::V; MAX_LANES] {
        assert!(self.col_stride == 1 && row + I::LANES <= self.rows && col + I::LANES <= self.cols);
        let start = row * self.row_stride + col;
        let from = &self.data[start..start + (I::LANES - 1) * self.row_stride + I::LANES];
        isa.load_transposed(|at| {
            assert!(at < I::LANES);
            // SAFETY: the slice above reaches to the end of the last row, and the rows before end before that.
            unsafe { from.get_unchecked(at * self.row_stride..at * self.row_stride + I::LANES) }
        })
    }

    /// Columns `col..col + P` of each of `R` rows from `row` on; of the last row, where there are no more. Panics unless
    /// `row` and the columns are in the view and the columns contiguous.
    #[inline(always)]
    pub fn strips<const R: usize, const P: usize>(self, row: usize, col: usize) -> [&'a [f32; P]; R] {
        assert!(self.col_stride == 1 && row < self.rows && col + P <= self.cols);
        let last = self.rows - 1;
        std::array::from_fn(|r| {
            let start = (row + r).min(last) * self.row_stride + col;
            // SAFETY: the row and the columns are in the view, all of whose elements are in `data`.
            let strip = unsafe { self.data.get_unchecked(start..start + P) };
            strip.first_chunk().expect("as long")
        })
    }

    /// Asks for the cache line of an element, which need not exist.
    #[inline(always)]
    pub fn prefetch<I: Isa>(self, isa: I, row: usize, col: usize) {
        isa.prefetch(self.data, row * self.row_stride + col * self.col_stride);
    }

    pub(super) fn as_ptr(self) -> *const f32 {
        self.data.as_ptr()
    }
}

/// A writable strided matrix whose elements are all distinct.
#[derive(Debug)]
pub struct MatMut<'a> {
    /// Points to element (0, 0); every `(r, c)` of the shape is inside the borrowed slice, and no other live
    /// view holds the same element.
    data: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
    borrow: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `MatMut` is an exclusive borrow of its elements, as `&mut [f32]` is.
unsafe impl Send for MatMut<'_> {}
// SAFETY: `&MatMut` gives read access only, as `&&mut [f32]` does.
unsafe impl Sync for MatMut<'_> {}

impl<'a> MatMut<'a> {
    /// A view of `data` with strides in elements. Panics if it would leave `data`, or if two of its places
    /// would be the same element.
    #[inline]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        let needed = span(rows, cols, row_stride, col_stride);
        assert!(needed <= data.len(), "a view of {needed} elements in a slice of {}", data.len());
        let distinct = rows <= 1 && (cols <= 1 || col_stride > 0)
            || cols <= 1 && row_stride > 0
            || col_stride > 0 && row_stride > (cols - 1) * col_stride
            || row_stride > 0 && col_stride > (rows - 1) * row_stride;
        assert!(needed == 0 || distinct, "strides {row_stride}, {col_stride} repeat an element");
        Self { data: data.as_mut_ptr(), rows, cols, row_stride, col_stride, borrow: PhantomData }
    }

    /// Contiguous rows.
    #[inline]
    pub fn row_major(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::new(data, rows, cols, cols, 1)
    }

    /// The same elements, rows and columns exchanged.
    #[inline]
    pub fn t(self) -> Self {
        let Self { rows, cols, row_stride, col_stride, .. } = self;
        Self { rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride, ..self }
    }

    /// The same view, borrowed for a shorter time.
    #[inline]
    pub fn reborrow(&mut self) -> MatMut<'_> {
        MatMut { borrow: PhantomData, ..*self }
    }

    /// Rows before `at`, and the others.
    #[inline]
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        assert!(at <= self.rows);
        let (first, rest) = (at, self.rows - at);
        // Wrapping: with `rest == 0` or no columns this may point past the slice, and is then never used.
        let below = self.data.wrapping_add(at * self.row_stride);
        (Self { rows: first, ..self }, Self { data: below, rows: rest, ..self })
    }

    /// Columns before `at`, and the others.
    #[inline]
    pub fn split_cols(self, at: usize) -> (Self, Self) {
        let (left, right) = self.t().split_rows(at);
        (left.t(), right.t())
    }

    /// Cut into `rows / row_step · cols / col_step` equal tiles, row of tiles by row of tiles.
    /// Panics if the steps do not divide the shape.
    pub fn tiles(self, row_step: usize, col_step: usize) -> Vec<Self> {
        assert!(row_step > 0 && self.rows.is_multiple_of(row_step), "{} rows by {row_step}", self.rows);
        assert!(col_step > 0 && self.cols.is_multiple_of(col_step), "{} columns by {col_step}", self.cols);
        let mut tiles = Vec::with_capacity(self.rows / row_step * (self.cols / col_step));
        let mut below = self;
        while below.rows > 0 {
            let (mut right, rest) = below.split_rows(row_step);
            below = rest;
            while right.cols > 0 {
                let (tile, rest) = right.split_cols(col_step);
                tiles.push(tile);
                right = rest;
            }
        }
        tiles
    }

    /// Row `r` as a slice. Panics unless the columns are contiguous.
    #[inline(always)]
    pub fn row_mut(&mut self, r: usize) -> &mut [f32] {
        assert!(self.col_stride == 1 || self.cols <= 1);
        assert!(r < self.rows);
        // SAFETY: row `r` is inside the view, and so inside the borrowed slice.
        let row = unsafe { self.data.add(if self.cols == 0 { 0 } else { r * self.row_stride }) };
        // SAFETY: its `cols` contiguous elements are in the view, which holds them exclusively.
        unsafe { std::slice::from_raw_parts_mut(row, self.cols) }
    }

    /// Writes a square of as many rows and columns as a register has lanes, a register each row, from `(row, col)` on,
    /// or adds it to what is there. Panics unless it lies in the view and the columns are contiguous.
    #[inline(always)]
    pub fn store_square<I: Isa>(
        &mut self,
        isa: I,
        (row, col): (usize, usize),
        square: &[I::V; MAX_LANES],
        accumulate: bool,
    ) {
        assert!(self.col_stride == 1 && row + I::LANES <= self.rows && col + I::LANES <= self.cols);
        for (at, &values) in square[..I::LANES].iter().enumerate() {
            // SAFETY: row `row + at` of the view, from column `col` on, is inside the borrowed slice.
            let to = unsafe { self.data.add((row + at) * self.row_stride + col) };
            // SAFETY: its `LANES` contiguous elements are in the view, which holds them exclusively.
            let to = unsafe { std::slice::from_raw_parts_mut(to, I::LANES) };
            isa.store(to, if accumulate { isa.add(isa.load(to), values) } else { values });
        }
    }

    /// Sets every element.
    pub fn fill(&mut self, value: f32) {
        for r in 0..self.rows {
            for c in 0..self.cols {
                // SAFETY: `(r, c)` is inside the view, and so inside the borrowed slice.
                let element = unsafe { self.data.add(r * self.row_stride + c * self.col_stride) };
                // SAFETY: the element is held exclusively.
                unsafe { element.write(value) };
            }
        }
    }

    /// Rows.
    #[inline]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    #[inline]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Elements between rows.
    #[inline]
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Elements between columns.
    #[inline]
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data
    }
}
