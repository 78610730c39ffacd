//! Launches `batch_norm/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::RunningStats;
use crate::ops::launch::{
    CHUNK, Entry, blocks, entry, expect, expect_some, of, ptr, ptr_or_null, size, source,
};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("batch_norm");

const STATISTICS: Entry = entry!("batch_norm_statistics");
const NORMALIZE: Entry = entry!("batch_norm_normalize");
const SUMS: Entry = entry!("batch_norm_sums");
const BACKWARD: Entry = entry!("batch_norm_backward");

/// The kernel's `THREADS`.
const THREADS: usize = 256;
/// Blocks that the rows are spread over. The same on every device, so that the sums are.
const BLOCKS: usize = 1056;
/// Rows a thread takes at least, where there are as many.
const DEEP: usize = 4;

/// The launch that every pass over rows has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passes {
    rows: usize,
    cols: usize,
    /// Threads side by side, a chunk of columns each.
    lanes: usize,
    /// Blocks side by side.
    across: usize,
    /// Rows of a block.
    per: usize,
    /// Blocks below each other, none of them without a row.
    parts: usize,
}

impl Passes {
    fn of(rows: usize, cols: usize) -> Self {
        let chunks = cols.div_ceil(CHUNK);
        let lanes = chunks.next_power_of_two().min(32);
        let across = chunks.div_ceil(lanes);
        let most = rows.div_ceil(DEEP * THREADS / lanes);
        let per = rows.div_ceil((BLOCKS / across).clamp(1, most.max(1)));
        Self { rows, cols, lanes, across, per, parts: rows.div_ceil(per.max(1)) }
    }

    fn grid(self) -> [u32; 3] {
        [size(self.across), size(self.parts), 1]
    }

    fn block(self) -> [u32; 3] {
        [size(self.lanes), size(THREADS / self.lanes), 1]
    }

    /// The last arguments of its kernels.
    fn args(self) -> [Arg; 3] {
        [self.rows, self.cols, self.per].map(|n| size(n).into())
    }

    fn expect(self, dtype: DType, whole: &[(&str, &Tensor)], columns: &[(&str, &Tensor)]) {
        for &(name, tensor) in whole {
            expect(&[(name, tensor, dtype, self.rows * self.cols)]);
        }
        for &(name, tensor) in columns {
            expect(&[(name, tensor, DType::F32, self.cols)]);
        }
    }
}

/// Mean and biased variance of each column.
///
/// Shapes: `x [rows, cols]`, the statistics `[cols]` f32; at least one row.
pub(super) fn statistics(gpu: &Device, x: &Tensor, stats: &RunningStats) -> Result<(), CudaError> {
    let passes = Passes::of(x.rows(), x.cols());
    passes.expect(x.dtype(), &[("x", x)], &[("mean", &stats.mean), ("var", &stats.var)]);
    let Passes { cols, parts, .. } = passes;
    let partial = gpu.region(parts * 2 * cols * 4)?;
    let kernel = gpu.function(&SOURCE, of(STATISTICS, x.dtype()))?;
    let args = [&[ptr(x), Arg::from(&partial)][..], &passes.args()].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `partial` has two rows for
    // each block in y, each of which has rows of x.
    unsafe { kernel.launch(passes.grid(), passes.block(), 0, &args) }?;
    let kernel = gpu.function(&SOURCE, "batch_norm_finish_statistics")?;
    let outputs = [Arg::from(&partial), ptr(&stats.mean), ptr(&stats.var)];
    let args = [&outputs[..], &passes.args(), &[size(parts).into()]].concat();
    // SAFETY: the arguments are the kernel's in its order; it reads the `parts` pairs of rows written above.
    unsafe { kernel.launch([blocks(cols, 32), 1, 1], [32, 16, 1], 0, &args) }
}

/// `y = (x − mean) / √(var + eps) · gamma + beta`.
///
/// Shapes: `x`, `y [rows, cols]`, the others `[cols]` f32.
pub(super) fn normalize(
    gpu: &Device,
    x: &Tensor,
    stats: &RunningStats,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
    y: &Tensor,
) -> Result<(), CudaError> {
    let passes = Passes::of(x.rows(), x.cols());
    let columns = [("mean", &stats.mean), ("var", &stats.var), ("gamma", gamma), ("beta", beta)];
    passes.expect(x.dtype(), &[("x", x), ("y", y)], &columns);
    if x.is_empty() {
        return Ok(());
    }
    let kernel = gpu.function(&SOURCE, of(NORMALIZE, x.dtype()))?;
    let operands = [x, &stats.mean, &stats.var, gamma, beta, y].map(ptr);
    let args = [&operands[..], &[eps.into()], &passes.args()].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch(passes.grid(), passes.block(), 0, &args) }
}

/// `dx`, and `dgamma += …`, `dbeta += …` where wanted.
///
/// Shapes: `dy`, `x`, `dx [rows, cols]`, the others `[cols]` f32; at least one row.
pub(super) fn backward(
    gpu: &Device,
    dy: &Tensor,
    x: &Tensor,
    stats: &RunningStats,
    gamma: &Tensor,
    eps: f32,
    dx: &Tensor,
    dgamma: Option<&Tensor>,
    dbeta: Option<&Tensor>,
) -> Result<(), CudaError> {
    let passes = Passes::of(x.rows(), x.cols());
    let columns = [("mean", &stats.mean), ("var", &stats.var), ("gamma", gamma)];
    passes.expect(x.dtype(), &[("dy", dy), ("x", x), ("dx", dx)], &columns);
    let Passes { cols, parts, .. } = passes;
    expect_some("dgamma", dgamma, DType::F32, cols);
    expect_some("dbeta", dbeta, DType::F32, cols);
    let (partial, sums) = (gpu.region(parts * 2 * cols * 4)?, gpu.region(2 * cols * 4)?);
    let [mean, var] = [&stats.mean, &stats.var].map(ptr);
    let inputs = [ptr(dy), ptr(x), mean, var];

    let kernel = gpu.function(&SOURCE, of(SUMS, x.dtype()))?;
    let args = [&inputs[..], &[Arg::from(&partial), eps.into()], &passes.args()].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `partial` has two rows for
    // each block in y.
    unsafe { kernel.launch(passes.grid(), passes.block(), 0, &args) }?;
    let kernel = gpu.function(&SOURCE, "batch_norm_finish_sums")?;
    let outputs = [Arg::from(&sums), ptr_or_null(dgamma), ptr_or_null(dbeta)];
    let args = [&[Arg::from(&partial)][..], &outputs, &[size(cols).into(), size(parts).into()]].concat();
    // SAFETY: the arguments are the kernel's in its order; it reads the `parts` pairs of rows written above and skips a
    // null gradient.
    unsafe { kernel.launch([blocks(cols, 32), 2, 1], [32, 16, 1], 0, &args) }?;

    let kernel = gpu.function(&SOURCE, of(BACKWARD, x.dtype()))?;
    let operands = [ptr(gamma), Arg::from(&sums), ptr(dx), eps.into()];
    let args = [&inputs[..], &operands, &passes.args()].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `sums` has two rows.
    unsafe { kernel.launch(passes.grid(), passes.block(), 0, &args) }
}

/// `r ← r + momentum · (s − r)`, `s` the batch's mean, and its variance times `unbias`.
///
/// Shapes: all `[cols]` f32.
pub(super) fn update(
    gpu: &Device,
    running: &RunningStats,
    batch: &RunningStats,
    unbias: f32,
    momentum: f32,
) -> Result<(), CudaError> {
    let cols = batch.mean.len();
    let operands = [&batch.mean, &batch.var, &running.mean, &running.var];
    operands.iter().for_each(|tensor| expect(&[("statistics", tensor, DType::F32, cols)]));
    let kernel = gpu.function(&SOURCE, "batch_norm_update")?;
    let args = [&operands.map(ptr)[..], &[unbias.into(), momentum.into(), size(cols).into()]].concat();
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above.
    unsafe { kernel.launch([blocks(cols, 256), 2, 1], [256, 1, 1], 0, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_one_block_and_every_block_a_row() {
        for rows in [1, 2, 31, 32, 33, 1000, 1 << 20] {
            for cols in [1, 8, 9, 64, 130, 256, 257, 2048, 1 << 20] {
                let Passes { lanes, across, per, parts, .. } = Passes::of(rows, cols);
                assert!(THREADS.is_multiple_of(lanes) && lanes * CHUNK <= THREADS, "{rows} {cols}");
                assert!(across * lanes * CHUNK >= cols, "{rows} {cols}");
                assert!(parts * per >= rows && (parts - 1) * per < rows, "{rows} {cols}");
                assert!(parts * across <= BLOCKS.max(across), "{rows} {cols}");
            }
        }
    }
}
