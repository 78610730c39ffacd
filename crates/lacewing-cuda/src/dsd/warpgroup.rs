//! Launches `warpgroup.cu`: Hopper's warpgroup products, bf16, blocks of 32 or of multiples of 64.

use super::{Kernel, Problem, Product, block_sparse, grid, tile, weight_gradient};
use crate::source::hopper;
use crate::{CudaError, Device, Source, Type};

pub(super) static SOURCE: Source = hopper!("warpgroup", "warpgroup.cu");

pub(super) const KERNEL: Kernel = Kernel {
    name: "warpgroup",
    about: "bf16 on Hopper's tensor cores (wgmma), blocks of 32 or of multiples of 64, f32 sums, from 128 rows up: few tiles, and \
            weight gradients",
    finishes: false,
    accepts,
    run,
};

/// As in the source: columns of a step, rows of a tile, threads, bytes of a row of a panel.
const DEPTH: usize = 64;
const ROWS: usize = 128;
const THREADS: usize = 256;
const LINE: usize = 128;
/// Panels start at multiples of it; what a thread block gets does not.
const PANEL_START: usize = 1024;
/// Rows from which tiles of [`ROWS`] pay.
const LEAST_ROWS: usize = 128;
/// Thread blocks of a weight gradient that fill it, and rows that each walks at least.
const RESIDENT: usize = 264;
const PART_ROWS: usize = 512;
/// Bytes of a stage of a weight gradient, and stages.
const GRADIENT_STAGE: usize = 256 * LINE;
const GRADIENT_STAGES: usize = 3;

/// Tiles' sides, for [`tile`].
const TILES: [usize; 3] = [128, 64, 32];

/// Entries, and stages in shared memory, by [`tile`]'s place.
const FORWARD: [&str; 3] = ["forward_128", "forward_64", "forward_32"];
const INPUT_GRADIENT: [&str; 3] = ["input_gradient_128", "input_gradient_64", "input_gradient_32"];
const STAGES: [usize; 3] = [3, 3, 2];

fn accepts(device: &Device, problem: &Problem<'_>, aligned: bool) -> bool {
    let (block_rows, block_cols) = problem.pattern.block();
    let fits = |block: usize| block == 32 || block.is_multiple_of(64);
    device.properties().is_hopper()
        && problem.of == Type::Bf16
        && aligned
        && problem.rows >= LEAST_ROWS
        && fits(block_rows)
        && fits(block_cols)
        && u32::try_from(problem.rows.max(problem.pattern.n_out).max(problem.pattern.n_in)).is_ok()
}

/// Picoseconds that a weight gradient takes on an H200, about: some for starting, and some for each row of a tile. None where
/// it is another kernel's.
pub(super) fn gradient_time(problem: &Problem<'_>) -> Option<u64> {
    let (block_rows, block_cols) = problem.pattern.block();
    let side = tile(block_rows, TILES).1.min(tile(block_cols, TILES).1);
    let (start, row) = match side {
        128 => (28_000_000, 60),
        64 => (17_000_000, 27),
        _ => return None,
    };
    Some(start + row * (problem.rows * (problem.pattern.n_values() / (side * side))) as u64)
}

/// In how many parts the rows of a weight gradient of `n_tiles` are cut, and rows of a part.
fn parts(rows: usize, n_tiles: usize) -> (usize, usize) {
    let parts = (RESIDENT / n_tiles.max(1)).min(rows / PART_ROWS).max(1);
    let part_rows = rows.div_ceil(parts);
    (rows.div_ceil(part_rows), part_rows)
}

fn run(device: &Device, problem: &Problem<'_>, product: &Product<'_>) -> Result<(), CudaError> {
    let pattern = problem.pattern;
    let (block_rows, block_cols) = pattern.block();
    // `accepts` saw that these fit.
    let [rows, n_in, n_out, block_rows_arg, block_cols_arg] =
        [problem.rows, pattern.n_in, pattern.n_out, block_rows, block_cols].map(|n| (n as u32).into());
    let sizes = [rows, n_in, n_out, block_rows_arg, block_cols_arg];
    let threads = [THREADS as u32, 1, 1];
    match *product {
        Product::Forward { x, values, y, .. } => {
            let (place, tile) = tile(block_rows, TILES);
            let shared = STAGES[place] * (ROWS + tile) * LINE + PANEL_START;
            let function = device.function(&SOURCE, FORWARD[place])?;
            let grid = grid(problem.rows.div_ceil(ROWS) * (pattern.n_out / tile))?;
            let (row_offsets, cols) = (&pattern.row_offsets, &pattern.cols);
            let operands = [x.into(), values.into(), y.into(), row_offsets.into(), cols.into()];
            let args = [operands, sizes].concat();
            // SAFETY: the kernel's parameters in its order; `check` saw the operands' sizes, the pattern is inside
            // the weight, and the kernel guards the last row tile.
            unsafe { function.launch(grid, threads, shared as u32, &args) }
        }
        Product::InputGradient { d_y, values, d_x } => {
            let (place, tile) = tile(block_cols, TILES);
            let weight_rows = tile.div_ceil(DEPTH) * DEPTH;
            let shared = STAGES[place] * (ROWS + weight_rows) * LINE + PANEL_START;
            let function = device.function(&SOURCE, INPUT_GRADIENT[place])?;
            let grid = grid(problem.rows.div_ceil(ROWS) * (pattern.n_in / tile))?;
            let (by_rows, by_slots) = (&pattern.by_col_rows, &pattern.by_col_slots);
            let col_offsets = &pattern.col_offsets;
            let operands =
                [d_y.into(), values.into(), d_x.into(), col_offsets.into(), by_rows.into(), by_slots.into()];
            let args = [&operands[..], &sizes[..]].concat();
            // SAFETY: as for the forward product.
            unsafe { function.launch(grid, threads, shared as u32, &args) }
        }
        Product::WeightGradient { d_y, x, d_values } => {
            let tile = tile(block_rows, TILES).1.min(tile(block_cols, TILES).1);
            let name = match tile {
                128 => "weight_gradient_128",
                64 => "weight_gradient_64",
                _ => return (block_sparse::KERNEL.run)(device, problem, product),
            };
            let n_values = pattern.n_values();
            let n_tiles = n_values / (tile * tile);
            let (parts, part_rows) = parts(problem.rows, n_tiles);
            let bytes = Type::F32.size_bytes();
            let partial = (parts > 1).then(|| device.region(parts * n_values * bytes)).transpose()?;
            let function = device.function(&SOURCE, name)?;
            let operands = [
                d_y.into(),
                x.into(),
                partial.as_ref().unwrap_or(d_values).into(),
                (&pattern.rows).into(),
                (&pattern.cols).into(),
            ];
            let sizes = [rows, n_out, n_in, block_rows_arg, block_cols_arg];
            let cut = [(part_rows as u32).into(), (n_values as u64).into()];
            let args = [&operands[..], &sizes[..], &cut[..]].concat();
            let shared = GRADIENT_STAGES * GRADIENT_STAGE + PANEL_START;
            // SAFETY: as for the forward product; every thread block adds to values of its own, or writes to those of
            // its part, of which there are as many.
            unsafe { function.launch(grid(n_tiles * parts)?, threads, shared as u32, &args) }?;
            let Some(partial) = partial else { return Ok(()) };
            weight_gradient::add_parts(device, &partial, parts, d_values, n_values)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tile_is_the_largest_that_divides_the_block() {
        assert_eq!(
            [32, 64, 128, 192, 256, 320].map(|block| tile(block, TILES).1),
            [32, 64, 128, 64, 128, 64]
        );
    }

    #[test]
    fn parts_cover_the_rows_and_none_is_empty() {
        for rows in [128, 511, 1024, 1025, 8192, 50_000] {
            for n_tiles in [1, 11, 58, 264, 4096] {
                let (parts, part_rows) = parts(rows, n_tiles);
                assert!(parts * part_rows >= rows && (parts - 1) * part_rows < rows, "{rows} {n_tiles}");
                assert!(parts == 1 || (part_rows >= PART_ROWS && parts * n_tiles <= RESIDENT));
            }
        }
    }
}
