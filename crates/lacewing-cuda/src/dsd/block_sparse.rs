//! Launches `block_sparse.cu`: tensor cores, bf16, blocks of multiples of 16.

use super::{Kernel, Problem, Product, grid, tile};
use crate::{CudaError, Device, Source, Type};

pub(super) static SOURCE: Source = Source { name: "block_sparse", code: include_str!("block_sparse.cu") };

pub(super) const KERNEL: Kernel = Kernel {
    name: "block_sparse",
    about: "bf16 on tensor cores (mma.m16n8k16), blocks of multiples of 16, f32 sums",
    finishes: false,
    accepts,
    run,
};

/// As in the source: rows of a tile, rows of a chunk, threads, numbers between rows in shared memory.
const TILE_ROWS: usize = 128;
const CHUNK: usize = 64;
const THREADS: [u32; 3] = [128, 1, 1];
const PAD: usize = 8;

fn accepts(device: &Device, problem: &Problem<'_>, aligned: bool) -> bool {
    let (block_rows, block_cols) = problem.pattern.block();
    // Shared memory of two stages of the largest tiles is 55,296 bytes, which capability 8.0 and all after it have.
    device.properties().capability >= (8, 0)
        && problem.of == Type::Bf16
        && aligned
        && block_rows.is_multiple_of(16)
        && block_cols.is_multiple_of(16)
        && u32::try_from(problem.rows.max(problem.pattern.n_out).max(problem.pattern.n_in)).is_ok()
}

/// Tiles' sides, for [`tile`].
const TILES: [usize; 3] = [64, 32, 16];

fn run(device: &Device, problem: &Problem<'_>, product: &Product<'_>) -> Result<(), CudaError> {
    let pattern = problem.pattern;
    let (block_rows, block_cols) = pattern.block();
    let size = Type::Bf16.size_bytes();
    // `accepts` saw that these fit.
    let [rows, n_in, n_out, block_rows_arg, block_cols_arg] =
        [problem.rows, pattern.n_in, pattern.n_out, block_rows, block_cols].map(|n| (n as u32).into());
    let n_row_tiles = problem.rows.div_ceil(TILE_ROWS);
    let ((m_place, m_tile), (n_place, n_tile)) = (tile(block_rows, TILES), tile(block_cols, TILES));
    match *product {
        Product::Forward { x, values, y, .. } => {
            let name = ["forward_64", "forward_32", "forward_16"][m_place];
            let shared = 2 * (TILE_ROWS + m_tile) * (n_tile + PAD) * size;
            let function = device.function(&SOURCE, name)?;
            let grid = grid(n_row_tiles * (pattern.n_out / m_tile))?;
            let (row_offsets, cols) = (&pattern.row_offsets, &pattern.cols);
            let operands = [x.into(), values.into(), y.into(), row_offsets.into(), cols.into()];
            let sizes = [rows, n_in, n_out, block_rows_arg, block_cols_arg, (n_tile as u32).into()];
            let args = [&operands[..], &sizes[..]].concat();
            // SAFETY: the kernel's parameters in its order; `check` saw the operands' sizes, the pattern is inside
            // the weight, and the kernel guards the last row tile.
            unsafe { function.launch(grid, THREADS, shared as u32, &args) }
        }
        Product::InputGradient { d_y, values, d_x } => {
            let name = ["input_gradient_64", "input_gradient_32", "input_gradient_16"][n_place];
            let shared = 2 * (TILE_ROWS * (m_tile + PAD) + m_tile * (n_tile + PAD)) * size;
            let function = device.function(&SOURCE, name)?;
            let grid = grid(n_row_tiles * (pattern.n_in / n_tile))?;
            let (by_rows, by_slots) = (&pattern.by_col_rows, &pattern.by_col_slots);
            let col_offsets = &pattern.col_offsets;
            let operands =
                [d_y.into(), values.into(), d_x.into(), col_offsets.into(), by_rows.into(), by_slots.into()];
            let sizes = [rows, n_in, n_out, block_rows_arg, block_cols_arg, (m_tile as u32).into()];
            let args = [&operands[..], &sizes[..]].concat();
            // SAFETY: as for the forward product.
            unsafe { function.launch(grid, THREADS, shared as u32, &args) }
        }
        Product::WeightGradient { d_y, x, d_values } => {
            let name = [
                ["weight_gradient_64x64", "weight_gradient_64x32", "weight_gradient_64x16"],
                ["weight_gradient_32x64", "weight_gradient_32x32", "weight_gradient_32x16"],
                ["weight_gradient_16x64", "weight_gradient_16x32", "weight_gradient_16x16"],
            ][m_place][n_place];
            let shared = 2 * CHUNK * (m_tile + PAD + n_tile + PAD) * size;
            let function = device.function(&SOURCE, name)?;
            let grid = grid(pattern.n_blocks() * (block_rows / m_tile) * (block_cols / n_tile))?;
            let operands =
                [d_y.into(), x.into(), d_values.into(), (&pattern.rows).into(), (&pattern.cols).into()];
            let sizes = [rows, n_out, n_in, block_rows_arg, block_cols_arg];
            let args = [operands, sizes].concat();
            // SAFETY: as for the forward product; every thread block adds to values of its own.
            unsafe { function.launch(grid, THREADS, shared as u32, &args) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tile_is_the_largest_that_divides_the_block() {
        assert_eq!([16, 32, 48, 64, 96, 128].map(|block| tile(block, TILES).1), [16, 32, 16, 64, 32, 64]);
    }

    #[test]
    fn the_sums_of_a_weight_gradient_fit_in_the_room_of_its_tiles() {
        for (m, n) in [(16, 16), (16, 64), (64, 16), (64, 64)] {
            assert!(m * n * 4 <= 2 * CHUNK * (m + PAD + n + PAD) * 2, "{m}x{n}");
        }
    }
}
