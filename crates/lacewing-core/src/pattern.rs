//! Where the stored values of a weight sit: single elements or equal blocks on a grid.
//!
//! Cost of a product with one row: `values_len()` multiply-adds; the index costs 4 bytes a block and a row.

use std::ops::Range;

use crate::{IndexBuffer, Init, Problem, Rng, StructureError};

/// Values at chosen places of `W [n_out_ext, n_in_ext]`; inputs beyond `n_in` are zero, outputs beyond `n_out` dropped.
///
/// Parameter 0 holds them: `[nnz, rows, cols]` of a block, or `[nnz]` for 1×1 blocks, in the order of `positions`;
/// `values[t][i][j]` is `W[positions[t].0 · rows + i, positions[t].1 · cols + j]`.
///
/// Kernels rely on this: `positions` is sorted row-major without repetition, lies inside [`Pattern::grid`], and the
/// block divides both extended sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Length of one row of output.
    pub n_out: usize,
    /// Length of one row of input.
    pub n_in: usize,
    /// Output length with padding.
    pub n_out_ext: usize,
    /// Input length with padding.
    pub n_in_ext: usize,
    /// Rows and columns of a block; (1, 1) for patterns of elements.
    pub block: (usize, usize),
    /// Block row and block column of every stored block.
    pub positions: Vec<(u32, u32)>,
    /// What else is known about the places.
    pub kind: PatternKind,
}

/// What is known about the places of a [`Pattern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternKind {
    /// Any elements.
    Unstructured,
    /// Exactly `n` of every `m` consecutive elements along `axis`.
    Nm {
        /// Kept in a group.
        n: usize,
        /// Elements of a group.
        m: usize,
        /// Along which the group runs.
        axis: Axis,
    },
    /// Any blocks.
    Block,
}

/// The direction of an N:M group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Consecutive inputs of one output: along the sum of a product.
    Row,
    /// Consecutive outputs of one input.
    Col,
}

/// A [`Pattern`] listed by block column, for products with Wᵀ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByColumn {
    /// Column c holds entries `starts[c]..starts[c + 1]`.
    pub starts: Vec<u32>,
    /// Block row of each entry, ascending inside a column.
    pub rows: Vec<u32>,
    /// Index of each entry in [`Pattern::positions`].
    pub slots: Vec<u32>,
}

impl Pattern {
    /// Rows and columns of the grid of blocks.
    pub fn grid(&self) -> (usize, usize) {
        (self.n_out_ext / self.block.0, self.n_in_ext / self.block.1)
    }

    /// How many blocks are stored.
    pub fn nnz(&self) -> usize {
        self.positions.len()
    }

    /// How many values are stored.
    pub fn values_len(&self) -> usize {
        self.nnz() * self.block.0 * self.block.1
    }

    /// What a schedule of masks ends with: so many weights kept of every so many. N:M has its own groups; of other places the
    /// whole weight is one, of which as many are kept as are stored.
    pub fn mask_group(&self) -> (usize, usize) {
        match self.kind {
            PatternKind::Nm { n, m, .. } => (n, m),
            _ => (self.nnz(), self.grid().0 * self.grid().1),
        }
    }

    /// Where each block row starts in [`Pattern::positions`]; one entry more than there are block rows.
    pub fn row_starts(&self) -> Vec<u32> {
        starts(self.grid().0, self.positions.iter().map(|&(row, _)| row))
    }

    /// Block column of each stored block; with [`Pattern::row_starts`], the compressed rows.
    pub fn cols(&self) -> Vec<u32> {
        self.positions.iter().map(|&(_, col)| col).collect()
    }

    /// The same places by block column.
    pub fn by_column(&self) -> ByColumn {
        let starts = starts(self.grid().1, self.positions.iter().map(|&(_, col)| col));
        let mut next = starts.clone();
        let (mut rows, mut slots) = (vec![0; self.nnz()], vec![0; self.nnz()]);
        for (slot, &(row, col)) in self.positions.iter().enumerate() {
            let at = &mut next[col as usize];
            rows[*at as usize] = row;
            slots[*at as usize] = slot as u32;
            *at += 1;
        }
        ByColumn { starts, rows, slots }
    }

    /// Calls `visit(index in the values, row, col)` for every stored value inside `[n_out, n_in]`.
    pub fn for_each(&self, mut visit: impl FnMut(usize, usize, usize)) {
        let (rows, cols) = self.block;
        for (slot, &(block_row, block_col)) in self.positions.iter().enumerate() {
            let (row0, col0) = (block_row as usize * rows, block_col as usize * cols);
            for i in 0..rows.min(self.n_out.saturating_sub(row0)) {
                for j in 0..cols.min(self.n_in.saturating_sub(col0)) {
                    visit((slot * rows + i) * cols + j, row0 + i, col0 + j);
                }
            }
        }
    }

    /// `[n_out, n_in]`, true where a value is stored.
    pub fn mask(&self) -> Vec<bool> {
        let mut mask = vec![false; self.n_out * self.n_in];
        self.for_each(|_, row, col| mask[row * self.n_in + col] = true);
        mask
    }

    /// The values that `dense [n_out, n_in]` has at the stored places; zero in the padding.
    ///
    /// # Panics
    ///
    /// When `dense` has another length.
    pub fn gather<T: Copy + Default>(&self, dense: &[T]) -> Vec<T> {
        assert_eq!(dense.len(), self.n_out * self.n_in, "length of the dense weight");
        let mut values = vec![T::default(); self.values_len()];
        self.for_each(|at, row, col| values[at] = dense[row * self.n_in + col]);
        values
    }

    /// `W [n_out, n_in]` with `values` at the stored places and zeros elsewhere.
    ///
    /// # Panics
    ///
    /// When `values` has another length than [`Pattern::values_len`].
    pub fn scatter<T: Copy + Default>(&self, values: &[T]) -> Vec<T> {
        assert_eq!(values.len(), self.values_len(), "length of the values");
        let mut dense = vec![T::default(); self.n_out * self.n_in];
        self.for_each(|at, row, col| dense[row * self.n_in + col] = values[at]);
        dense
    }

    /// A dense draw scaled by √(block columns / blocks in the row), so that every output starts with the variance
    /// a dense layer gives it: for the default rule U(±1/√(inputs of that output)).
    pub(crate) fn init(&self, init: Init, rng: &mut Rng) -> Vec<f32> {
        let mut values = init.draw(self.n_out_ext, self.n_in_ext, self.values_len(), rng);
        let (starts, n_cols) = (self.row_starts(), self.grid().1);
        let per_block = self.block.0 * self.block.1;
        for pair in starts.windows(2).filter(|pair| pair[0] < pair[1]) {
            let scale = (n_cols as f64 / f64::from(pair[1] - pair[0])).sqrt();
            for value in &mut values[pair[0] as usize * per_block..pair[1] as usize * per_block] {
                *value = (f64::from(*value) * scale) as f32;
            }
        }
        values
    }

    /// Compressed rows as buffers: `cols [nnz]` and `row_starts [block rows + 1]`.
    pub(crate) fn buffers(&self) -> Vec<IndexBuffer> {
        let buffer = |name: &str, data: Vec<u32>| {
            let shape = vec![data.len()];
            IndexBuffer { name: name.to_owned(), data, shape }
        };
        vec![buffer("cols", self.cols()), buffer("row_starts", self.row_starts())]
    }

    /// The positions that [`Pattern::buffers`] saved for a grid of `n_rows` by `n_cols` blocks, or `None` for a
    /// fresh layer.
    pub(crate) fn saved_positions(
        structure: &'static str,
        problem: &Problem<'_>,
        (n_rows, n_cols): (usize, usize),
    ) -> Result<Option<Vec<(u32, u32)>>, StructureError> {
        let Some([cols, starts]) = problem.saved(structure, ["cols", "row_starts"])? else { return Ok(None) };
        starts.expect_shape(structure, &[n_rows + 1])?;
        cols.expect_shape(structure, &[cols.data.len()])?;
        if cols.data.is_empty() {
            return Err(StructureError::EmptyPattern { structure, places: n_rows * n_cols, density: 0.0 });
        }
        let nnz = cols.data.len() as u64;
        let mut low = 0;
        for (at, &start) in starts.data.iter().enumerate() {
            // The first is 0, the last is nnz, and they never fall.
            let (low_here, high) = (if at == n_rows { nnz } else { low }, if at == 0 { 0 } else { nnz });
            if !(low_here..=high).contains(&u64::from(start)) {
                return Err(starts.bad_value(structure, at, low_here, high));
            }
            low = u64::from(start);
        }
        let mut positions = Vec::with_capacity(cols.data.len());
        for (row, pair) in starts.data.windows(2).enumerate() {
            let mut low = 0;
            for at in pair[0] as usize..pair[1] as usize {
                let col = cols.data[at];
                if u64::from(col) < low || col as usize >= n_cols {
                    return Err(cols.bad_value(structure, at, low, n_cols as u64 - 1));
                }
                low = u64::from(col) + 1;
                positions.push((row as u32, col));
            }
        }
        Ok(Some(positions))
    }

    /// The pattern of `W [n_out_ext, n_in_ext]` that keeps the columns `row(r)` in row r, as whole `block`s of
    /// which `row` is asked for the first rows.
    ///
    /// A saved pattern must be the same. It is compared as the places come, so nothing larger than it is built.
    pub(crate) fn of_rows(
        structure: &'static str,
        problem: &Problem<'_>,
        (n_out_ext, n_in_ext): (usize, usize),
        block: (usize, usize),
        row: impl Fn(usize) -> Vec<Range<usize>>,
    ) -> Result<Self, StructureError> {
        let (n_out, n_in) = problem.shape();
        let kind = if block == (1, 1) { PatternKind::Unstructured } else { PatternKind::Block };
        let positions = Vec::new();
        let mut pattern = Self { n_out, n_in, n_out_ext, n_in_ext, block, positions, kind };
        let saved = Self::saved_positions(structure, problem, pattern.grid())?;
        for block_row in 0..pattern.grid().0 {
            let cols = row(block_row * block.0).into_iter().flat_map(|r| r.start / block.1..r.end / block.1);
            for place in cols.map(|col| (block_row as u32, col as u32)) {
                let at = pattern.nnz();
                if let Some(saved) = saved.as_ref().filter(|saved| saved.get(at) != Some(&place)) {
                    let got = saved.get(at).copied();
                    return Err(StructureError::PatternDiffers { structure, at, expected: Some(place), got });
                }
                pattern.positions.push(place);
            }
        }
        if let Some(&got) = saved.as_ref().and_then(|saved| saved.get(pattern.nnz())) {
            let (at, got) = (pattern.nnz(), Some(got));
            return Err(StructureError::PatternDiffers { structure, at, expected: None, got });
        }
        Ok(pattern)
    }
}

/// The same columns in ranges apart from each other, ascending.
pub(crate) fn merged(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.retain(|range| range.start < range.end);
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let touches = next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
    ranges
}

/// Prefix sums of how often each of `0..n` occurs.
fn starts(n: usize, ids: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut starts = vec![0; n + 1];
    for id in ids {
        starts[id as usize + 1] += 1;
    }
    for at in 1..=n {
        starts[at] += starts[at - 1];
    }
    starts
}
