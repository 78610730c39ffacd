//! Where the blocks of a weight are: by rows for `y = x W'`, by columns for `d_x = d_y W`.

use super::chunks::Chunks;
use super::panels::{NONE, Panels, Tiles};
use crate::{CudaError, Device, Region};

/// Arrays of the index, all `u32`; lengths in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Index {
    /// First slot of a block row `[n_out / block_rows + 1]`.
    row_offsets: Vec<u32>,
    /// Block column of a slot `[n_blocks]`.
    cols: Vec<u32>,
    /// Block row of a slot `[n_blocks]`.
    rows: Vec<u32>,
    /// First entry of a block column `[n_in / block_cols + 1]`.
    col_offsets: Vec<u32>,
    /// Block row of an entry, entries sorted by column, then row `[n_blocks]`.
    by_col_rows: Vec<u32>,
    /// Slot of an entry `[n_blocks]`.
    by_col_slots: Vec<u32>,
}

/// [`Panels`] on the device.
#[derive(Debug, Clone)]
pub(super) struct OnDevice {
    pub(super) line: usize,
    pub(super) n_panels: usize,
    pub(super) panel_steps: usize,
    pub(super) steps: Region,
    pub(super) lines: Region,
}

/// [`Chunks`] on the device.
#[derive(Debug, Clone)]
pub(super) struct ChunksOnDevice {
    pub(super) line: usize,
    pub(super) n_items: usize,
    /// Tiles that all items fetch.
    pub(super) n_tiles: usize,
    pub(super) copies: Region,
    pub(super) widths: Region,
    pub(super) tiles: Region,
}

/// What the kernels go by that see the weight as tiles.
#[derive(Debug, Clone)]
pub(super) struct Tiled {
    /// Of the weight and its transpose.
    pub(super) panels: [OnDevice; 2],
    pub(super) chunks: ChunksOnDevice,
}

/// The positions of a weight's blocks on the device. Positions are inside the weight, each at most once, sorted by
/// row, then column: what the kernels rely on.
#[derive(Debug, Clone)]
pub struct BlockPattern {
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    pub(super) block_rows: usize,
    pub(super) block_cols: usize,
    n_blocks: usize,
    pub(super) row_offsets: Region,
    pub(super) cols: Region,
    pub(super) rows: Region,
    pub(super) col_offsets: Region,
    pub(super) by_col_rows: Region,
    pub(super) by_col_slots: Region,
    /// Where blocks can be cut into tiles and the device has kernels that take them.
    pub(super) tiled: Option<Tiled>,
    /// Two numbers, zero between launches.
    pub(super) counters: Region,
}

const CALL: &str = "block pattern";

impl BlockPattern {
    /// The pattern of `W [n_out, n_in]` whose blocks of `block_rows x block_cols` are at `positions` (block row, block
    /// column), in the order of their values.
    ///
    /// # Errors
    ///
    /// [`CudaError::Dimension`] if blocks do not divide the weight, or a position is outside it or not above the one
    /// before it; what the upload answers.
    pub fn new(
        device: &Device,
        (n_out, n_in): (usize, usize),
        (block_rows, block_cols): (usize, usize),
        positions: &[(u32, u32)],
    ) -> Result<Self, CudaError> {
        let index = Index::new((n_out, n_in), (block_rows, block_cols), positions)?;
        let tiled = if device.properties().is_hopper() {
            let of = |transposed| Tiles::new((n_out, n_in), (block_rows, block_cols), positions, transposed);
            of(false).zip(of(true)).map(|(forward, transposed)| {
                ([Panels::new(&forward), Panels::new(&transposed)], Chunks::new(&forward))
            })
        } else {
            None
        };
        let arrays = [
            &index.row_offsets,
            &index.cols,
            &index.rows,
            &index.col_offsets,
            &index.by_col_rows,
            &index.by_col_slots,
        ];
        let counters = vec![0; 2];
        let of_tiles = tiled.iter().flat_map(|([forward, transposed], chunks)| {
            let Chunks { copies, widths, tiles, .. } = chunks;
            [&forward.steps, &forward.lines, &transposed.steps, &transposed.lines, copies, widths, tiles]
        });
        let words: Vec<u32> =
            arrays.into_iter().chain([&counters]).chain(of_tiles).flatten().copied().collect();
        let all = device.region(words.len() * size_of::<u32>())?;
        device.upload(&all, bytemuck::cast_slice(&words))?;
        let mut at = 0;
        let mut next = |array: &Vec<u32>| {
            let bytes = size_of_val(array.as_slice());
            at += bytes;
            all.slice(at - bytes, bytes)
        };
        let [row_offsets, cols, rows, col_offsets, by_col_rows, by_col_slots] = arrays.map(&mut next);
        let counters = next(&counters);
        let tiled = tiled.map(|(panels, chunks)| {
            let panels = panels.map(|Panels { line, n_panels, panel_steps, steps, lines }| OnDevice {
                line,
                n_panels,
                panel_steps,
                steps: next(&steps),
                lines: next(&lines),
            });
            let Chunks { line, n_items, copies, widths, tiles } = chunks;
            let n_tiles = copies.iter().filter(|line| **line != NONE).count();
            let [copies, widths, tiles] = [copies, widths, tiles].map(|array| next(&array));
            Tiled { panels, chunks: ChunksOnDevice { line, n_items, n_tiles, copies, widths, tiles } }
        });
        Ok(Self {
            n_out,
            n_in,
            block_rows,
            block_cols,
            n_blocks: positions.len(),
            row_offsets,
            cols,
            rows,
            col_offsets,
            by_col_rows,
            by_col_slots,
            tiled,
            counters,
        })
    }

    /// Rows and columns of the weight.
    #[must_use]
    pub fn shape(&self) -> (usize, usize) {
        (self.n_out, self.n_in)
    }

    /// Rows and columns of a block.
    #[must_use]
    pub fn block(&self) -> (usize, usize) {
        (self.block_rows, self.block_cols)
    }

    /// Blocks kept.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.n_blocks
    }

    /// Values kept: the length of `values`.
    #[must_use]
    pub fn n_values(&self) -> usize {
        self.n_blocks * self.block_rows * self.block_cols
    }

    /// One of the arrays, to ask which device they are on.
    pub(super) fn region(&self) -> &Region {
        &self.cols
    }
}

impl Index {
    fn new(
        (n_out, n_in): (usize, usize),
        (block_rows, block_cols): (usize, usize),
        positions: &[(u32, u32)],
    ) -> Result<Self, CudaError> {
        let wrong = |dimension, expected, got| CudaError::Dimension { call: CALL, dimension, expected, got };
        let divides = |dimension, block: usize, n: usize| {
            let expected = format!("a divisor of {n}");
            if block > 0 && n.is_multiple_of(block) {
                Ok(n / block)
            } else {
                Err(wrong(dimension, expected, block))
            }
        };
        let n_rows = divides("block_rows", block_rows, n_out)?;
        let n_cols = divides("block_cols", block_cols, n_in)?;
        for (slot, &(row, col)) in positions.iter().enumerate() {
            if row as usize >= n_rows {
                return Err(wrong("block row", format!("below {n_rows}"), row as usize));
            }
            if col as usize >= n_cols {
                return Err(wrong("block column", format!("below {n_cols}"), col as usize));
            }
            if slot > 0 && positions[slot - 1] >= (row, col) {
                return Err(wrong("position", String::from("sorted by row, then column, each once"), slot));
            }
        }
        let mut by_col: Vec<u32> = (0..positions.len() as u32).collect();
        by_col.sort_by_key(|&slot| (positions[slot as usize].1, positions[slot as usize].0));
        let rows: Vec<u32> = positions.iter().map(|at| at.0).collect();
        let cols: Vec<u32> = positions.iter().map(|at| at.1).collect();
        Ok(Self {
            row_offsets: offsets(n_rows, &rows),
            col_offsets: offsets(n_cols, &cols),
            by_col_rows: by_col.iter().map(|&slot| rows[slot as usize]).collect(),
            by_col_slots: by_col,
            rows,
            cols,
        })
    }
}

/// Where each of `n` groups starts among its members sorted, and where the last ends.
fn offsets(n: usize, groups: &[u32]) -> Vec<u32> {
    let mut offsets = vec![0; n + 1];
    for &group in groups {
        offsets[group as usize + 1] += 1;
    }
    for i in 0..n {
        offsets[i + 1] += offsets[i];
    }
    offsets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transposed_index_lists_the_same_blocks_by_column() {
        let index = Index::new((6, 8), (2, 2), &[(0, 1), (0, 3), (2, 0), (2, 1)]).expect("a valid pattern");
        assert_eq!(index.row_offsets, [0, 2, 2, 4]);
        assert_eq!(index.cols, [1, 3, 0, 1]);
        assert_eq!(index.rows, [0, 0, 2, 2]);
        assert_eq!(index.col_offsets, [0, 1, 3, 3, 4]);
        assert_eq!(index.by_col_rows, [2, 0, 2, 0]);
        assert_eq!(index.by_col_slots, [2, 0, 3, 1]);
    }

    #[test]
    fn a_pattern_that_kernels_could_not_trust_is_refused_with_its_number() {
        let message = |block, positions: &[(u32, u32)]| {
            Index::new((6, 8), block, positions).expect_err("must be refused").to_string()
        };
        assert_eq!(message((4, 2), &[]), "block pattern: block_rows must be a divisor of 6, got 4");
        assert_eq!(message((2, 0), &[]), "block pattern: block_cols must be a divisor of 8, got 0");
        assert_eq!(message((2, 2), &[(3, 0)]), "block pattern: block row must be below 3, got 3");
        assert_eq!(message((2, 2), &[(0, 4)]), "block pattern: block column must be below 4, got 4");
        let twice = "block pattern: position must be sorted by row, then column, each once, got 1";
        assert_eq!(message((2, 2), &[(1, 1), (1, 1)]), twice);
    }
}
