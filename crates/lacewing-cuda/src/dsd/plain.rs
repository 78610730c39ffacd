//! Launches `plain.cu`: any type, any block, no tensor cores. The last row of the table.

use super::{Kernel, Problem, Product, grid};
use crate::{Arg, CudaError, Device, Source, Type};

pub(super) static SOURCE: Source = Source { name: "plain", code: include_str!("plain.cu") };

pub(super) const KERNEL: Kernel = Kernel {
    name: "plain",
    about: "any type and block, one thread an output, f32 sums",
    finishes: false,
    accepts,
    run,
};

/// Columns and rows of `out` that a thread block computes; one thread each.
const TILE_COLS: usize = 32;
const TILE_ROWS: usize = 8;
const THREADS: [u32; 3] = [TILE_COLS as u32, TILE_ROWS as u32, 1];

fn accepts(_: &Device, _: &Problem<'_>, _: bool) -> bool {
    true
}

fn place(of: Type) -> usize {
    match of {
        Type::F32 => 0,
        Type::Bf16 => 1,
        Type::F16 => 2,
    }
}

fn run(device: &Device, problem: &Problem<'_>, product: &Product<'_>) -> Result<(), CudaError> {
    let pattern = problem.pattern;
    let (block_rows, block_cols) = pattern.block();
    let of = place(problem.of);
    let arg = |n: usize| Arg::U64(n as u64);
    let [rows, n_in, n_out] = [problem.rows, pattern.n_in, pattern.n_out].map(arg);
    let block = [block_rows, block_cols].map(arg);
    let n_row_tiles = problem.rows.div_ceil(TILE_ROWS);
    match *product {
        Product::Forward { x, values, y, .. } => {
            let function = device.function(&SOURCE, ["forward_float", "forward_bf16", "forward_f16"][of])?;
            let grid = grid(n_row_tiles * pattern.n_out.div_ceil(TILE_COLS))?;
            let (row_offsets, cols) = (&pattern.row_offsets, &pattern.cols);
            let operands = [x.into(), values.into(), y.into(), row_offsets.into(), cols.into()];
            let args = [&operands[..], &[rows, n_in, n_out], &block].concat();
            // SAFETY: the kernel's parameters in its order; `check` saw the operands' sizes, the pattern is inside
            // the weight, and the kernel guards the edges.
            unsafe { function.launch(grid, THREADS, 0, &args) }
        }
        Product::InputGradient { d_y, values, d_x } => {
            let name = ["input_gradient_float", "input_gradient_bf16", "input_gradient_f16"][of];
            let function = device.function(&SOURCE, name)?;
            let grid = grid(n_row_tiles * pattern.n_in.div_ceil(TILE_COLS))?;
            let (by_rows, by_slots) = (&pattern.by_col_rows, &pattern.by_col_slots);
            let col_offsets = &pattern.col_offsets;
            let operands =
                [d_y.into(), values.into(), d_x.into(), col_offsets.into(), by_rows.into(), by_slots.into()];
            let args = [&operands[..], &[rows, n_in, n_out], &block].concat();
            // SAFETY: as for the forward product.
            unsafe { function.launch(grid, THREADS, 0, &args) }
        }
        Product::WeightGradient { d_y, x, d_values } => {
            let name = ["weight_gradient_float", "weight_gradient_bf16", "weight_gradient_f16"][of];
            let function = device.function(&SOURCE, name)?;
            let grid = grid(pattern.n_blocks() * block_rows * block_cols.div_ceil(TILE_COLS))?;
            let operands =
                [d_y.into(), x.into(), d_values.into(), (&pattern.rows).into(), (&pattern.cols).into()];
            let args = [&operands[..], &[rows, n_out, n_in], &block].concat();
            // SAFETY: as for the forward product; every thread adds to a value of its own.
            unsafe { function.launch(grid, THREADS, 0, &args) }
        }
    }
}
