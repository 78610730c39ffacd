//! Dense = sparse x dense: products with a block-sparse weight, and the table of kernels that compute them.
//!
//! The weight `W [n_out, n_in]` is zero outside blocks of `block_rows x block_cols`; `values [n_blocks, block_rows,
//! block_cols]` holds them in the order of their positions. The first row of [`KERNELS`] that accepts a problem runs
//! it. No kernel uses atomics: the same problem gives the same bits.
//!
//! Cost of each product: 2 rows n_blocks block_rows block_cols flops.

mod block_sparse;
mod chunks;
mod panels;
mod pattern;
mod persistent;
mod plain;
mod warpgroup;
mod weight_gradient;

pub use pattern::BlockPattern;

use crate::{CudaError, Device, Finish, Region, Source, Type};

/// What a kernel is chosen by.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// Where the blocks are.
    pub pattern: &'a BlockPattern,
    /// Rows of `x` and `y`.
    pub rows: usize,
    /// Type of values, `x` and `y`.
    pub of: Type,
}

/// Which product, with its operands: row-major, dense between rows, of the problem's type unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub enum Product<'a> {
    /// `y = f(x W' + b)` by kernels that finish, else `y = x W'`: [`Ran::finished`] tells.
    Forward {
        /// `[rows, n_in]`.
        x: &'a Region,
        /// `[n_blocks, block_rows, block_cols]`.
        values: &'a Region,
        /// `[rows, n_out]`, overwritten.
        y: &'a Region,
        /// `f` and `b`.
        finish: Finish<'a>,
    },
    /// `d_x = d_y W`.
    InputGradient {
        /// `[rows, n_out]`.
        d_y: &'a Region,
        /// `[n_blocks, block_rows, block_cols]`.
        values: &'a Region,
        /// `[rows, n_in]`, overwritten.
        d_x: &'a Region,
    },
    /// `d_values += (d_y' x)` at the blocks.
    WeightGradient {
        /// `[rows, n_out]`.
        d_y: &'a Region,
        /// `[rows, n_in]`.
        x: &'a Region,
        /// `[n_blocks, block_rows, block_cols]`, f32 always, added to.
        d_values: &'a Region,
    },
}

/// A row of the table.
#[derive(Debug)]
pub struct Kernel {
    /// Name by which it can be forced.
    pub name: &'static str,
    /// What it is, in a line.
    pub about: &'static str,
    /// Whether it ends a forward product with bias and activation.
    finishes: bool,
    /// Whether it takes the problem on this device; `aligned` if every operand starts at a multiple of 16 bytes.
    accepts: fn(device: &Device, problem: &Problem<'_>, aligned: bool) -> bool,
    run: fn(device: &Device, problem: &Problem<'_>, product: &Product<'_>) -> Result<(), CudaError>,
}

/// Every kernel, best first; the last takes anything.
pub static KERNELS: &[Kernel] = &[persistent::KERNEL, warpgroup::KERNEL, block_sparse::KERNEL, plain::KERNEL];

/// The sources of the kernels.
pub static SOURCES: &[&Source] = &[
    &persistent::SOURCE,
    &weight_gradient::SOURCE,
    &warpgroup::SOURCE,
    &block_sparse::SOURCE,
    &plain::SOURCE,
];

const CALL: &str = "block-sparse product";

/// What became of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Ran {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Whether bias and activation were applied.
    pub finished: bool,
}

/// Queues the product with the first kernel that accepts it.
///
/// # Errors
///
/// [`CudaError::OperandBytes`] or [`CudaError::WrongDevice`] before anything is queued, or what the driver answers.
pub fn run(device: &Device, problem: &Problem<'_>, product: &Product<'_>) -> Result<Ran, CudaError> {
    run_among(device, problem, product, |_| true)
}

/// Queues the product with the kernel of this name.
///
/// # Errors
///
/// [`CudaError::NoKernel`] if there is no such kernel or it does not take the problem; else as [`run`].
pub fn run_with(
    device: &Device,
    problem: &Problem<'_>,
    product: &Product<'_>,
    name: &str,
) -> Result<Ran, CudaError> {
    run_among(device, problem, product, |kernel| kernel.name == name)
}

fn run_among(
    device: &Device,
    problem: &Problem<'_>,
    product: &Product<'_>,
    admits: impl Fn(&Kernel) -> bool,
) -> Result<Ran, CudaError> {
    let aligned = problem.check(device, product)?;
    let takes = |kernel: &&Kernel| admits(kernel) && (kernel.accepts)(device, problem, aligned);
    let Some(kernel) = KERNELS.iter().find(takes) else {
        let names: Vec<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
        let BlockPattern { n_out, n_in, block_rows, block_cols, .. } = *problem.pattern;
        return Err(CudaError::NoKernel {
            product: "block-sparse",
            problem: format!("[{n_out}, {n_in}] in blocks of {block_rows}x{block_cols}, {:?}", problem.of),
            kernels: names.join(", "),
        });
    };
    (kernel.run)(device, problem, product)?;
    Ok(Ran { kernel: kernel.name, finished: kernel.finishes })
}

impl Problem<'_> {
    /// Checks the operands' sizes; whether all of them start at multiples of 16 bytes.
    fn check(&self, device: &Device, product: &Product<'_>) -> Result<bool, CudaError> {
        let pattern = self.pattern;
        let size = self.of.size_bytes();
        let (x_bytes, y_bytes) = (self.rows * pattern.n_in * size, self.rows * pattern.n_out * size);
        let n_values = pattern.n_values();
        let operands = match *product {
            Product::Forward { x, values, y, finish } => {
                if let Some(bias) = finish.bias {
                    device.holds(CALL, "bias", bias, pattern.n_out * size)?;
                }
                [("x", x, x_bytes), ("values", values, n_values * size), ("y", y, y_bytes)]
            }
            Product::InputGradient { d_y, values, d_x } => {
                [("d_y", d_y, y_bytes), ("values", values, n_values * size), ("d_x", d_x, x_bytes)]
            }
            Product::WeightGradient { d_y, x, d_values } => {
                let gradient_bytes = n_values * Type::F32.size_bytes();
                [("d_y", d_y, y_bytes), ("x", x, x_bytes), ("d_values", d_values, gradient_bytes)]
            }
        };
        for (name, region, bytes) in operands {
            device.holds(CALL, name, region, bytes)?;
        }
        device.is_here(CALL, "pattern", pattern.region())?;
        Ok(operands.iter().all(|(_, region, _)| region.ptr() % 16 == 0))
    }
}

/// The largest of three `tiles`, descending, that divides a block, or the last: its place and itself.
fn tile(block: usize, tiles: [usize; 3]) -> (usize, usize) {
    tiles.into_iter().enumerate().find(|(_, tile)| block.is_multiple_of(*tile)).unwrap_or((2, tiles[2]))
}

/// A launch's one-dimensional grid.
///
/// # Errors
///
/// [`CudaError::Dimension`] beyond the 2^31 - 1 blocks that a launch may have.
fn grid(n_blocks: usize) -> Result<[u32; 3], CudaError> {
    match i32::try_from(n_blocks) {
        Ok(n_blocks) => Ok([n_blocks.cast_unsigned(), 1, 1]),
        Err(_) => Err(CudaError::Dimension {
            call: CALL,
            dimension: "blocks of the launch",
            expected: format!("at most {}", i32::MAX),
            got: n_blocks,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_source_of_the_folder_is_listed_and_every_kernel_has_one_of_its_name() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dsd");
        let entries = std::fs::read_dir(folder).expect("the folder of this file").flatten();
        let in_folder: BTreeSet<String> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
            .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
            .collect();
        let in_table: BTreeSet<String> = SOURCES.iter().map(|source| source.name.to_owned()).collect();
        assert_eq!(in_folder, in_table);
        let names: BTreeSet<String> = KERNELS.iter().map(|kernel| kernel.name.to_owned()).collect();
        assert!(names.is_subset(&in_table), "{names:?} {in_table:?}");
        assert_eq!(KERNELS.len(), names.len());
    }
}
