//! Launches `activation/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::Activation;
use crate::ops::launch::{
    CHUNK, Entry, MAP_BLOCK, blocks, blocks_yz, entry, expect, expect_some, of, ptr, ptr_or_null, size,
    source,
};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Region, Source};

pub(crate) static SOURCE: Source = source!("activation");

const BIAS_ACT: [Entry; 4] = [
    entry!("bias_act_identity"),
    entry!("bias_act_relu"),
    entry!("bias_act_gelu"),
    entry!("bias_act_gelu_tanh"),
];
const ACT_BACKWARD: [Entry; 4] = [
    entry!("act_backward_identity"),
    entry!("act_backward_relu"),
    entry!("act_backward_gelu"),
    entry!("act_backward_gelu_tanh"),
];
const ACT_BACKWARD_BIAS: [Entry; 4] = [
    entry!("act_backward_bias_identity"),
    entry!("act_backward_bias_relu"),
    entry!("act_backward_bias_gelu"),
    entry!("act_backward_bias_gelu_tanh"),
];
const BIAS_GRAD: Entry = entry!("bias_grad");

/// Columns a block spans.
const BLOCK_COLS: usize = 32 * CHUNK;
/// Rows a block has in flight.
const BLOCK_ROWS: usize = 32;
/// Blocks a column sum is spread over: six for each of an H200's multiprocessors. The same on every device, so that
/// the sums are.
const SUM_BLOCKS: usize = 792;

fn of_kind(entries: [Entry; 4], act: Activation, dtype: DType) -> &'static str {
    of(entries[act as usize], dtype)
}

/// `pre += bias`, then `y = f(pre)` if there is a `y`.
///
/// Shapes: `pre`, `y [rows, cols]`; `bias [cols]` of the same type.
pub(super) fn bias_act_forward(
    gpu: &Device,
    pre: &Tensor,
    bias: Option<&Tensor>,
    y: Option<&Tensor>,
    act: Activation,
) -> Result<(), CudaError> {
    let (rows, cols, dtype) = (pre.rows(), pre.cols(), pre.dtype());
    expect_some("bias", bias, dtype, cols);
    expect_some("y", y, dtype, rows * cols);
    let kernel = gpu.function(&SOURCE, of_kind(BIAS_ACT, act, dtype))?;
    let args = [ptr(pre), ptr_or_null(bias), ptr_or_null(y), size(rows).into(), size(cols).into()];
    let grid = [blocks(cols, BLOCK_COLS), blocks_yz(rows, BLOCK_ROWS), 1];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it stays within rows and
    // columns.
    unsafe { kernel.launch(grid, [32, 8, 1], 0, &args) }
}

/// `dpre = dy · f'(pre)`, and `dbias +=` its column sums if there is a `dbias`.
///
/// Shapes: `dy`, `pre`, `dpre [rows, cols]`; `dbias [cols]` f32. `dpre` may be `dy`.
pub(super) fn act_backward_bias(
    gpu: &Device,
    dy: &Tensor,
    pre: &Tensor,
    dpre: &Tensor,
    dbias: Option<&Tensor>,
    act: Activation,
) -> Result<(), CudaError> {
    let (rows, cols, dtype) = (pre.rows(), pre.cols(), pre.dtype());
    let len = rows * cols;
    expect(&[("dy", dy, dtype, len), ("dpre", dpre, dtype, len)]);
    let Some(dbias) = dbias else {
        let kernel = gpu.function(&SOURCE, of_kind(ACT_BACKWARD, act, dtype))?;
        let args = [ptr(dy), ptr(pre), ptr(dpre), Arg::U64(len as u64)];
        // SAFETY: the arguments are the kernel's in its order, each of `len` elements.
        return unsafe { kernel.launch([blocks(len, MAP_BLOCK), 1, 1], [256, 1, 1], 0, &args) };
    };
    let sums = ColumnSums::new(gpu, rows, cols)?;
    let kernel = gpu.function(&SOURCE, of_kind(ACT_BACKWARD_BIAS, act, dtype))?;
    let args = [ptr(dy), ptr(pre), ptr(dpre), Arg::from(&sums.partial), size(rows).into(), size(cols).into()];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `partial` has a row for
    // each block in y.
    unsafe { kernel.launch(sums.grid(), [32, 8, 1], 0, &args) }?;
    sums.finish(gpu, dbias)
}

/// `dbias +=` the column sums of `d`.
///
/// Shapes: `d [rows, cols]`, `dbias [cols]` f32.
pub(super) fn bias_grad(gpu: &Device, d: &Tensor, dbias: &Tensor) -> Result<(), CudaError> {
    let (rows, cols) = (d.rows(), d.cols());
    let sums = ColumnSums::new(gpu, rows, cols)?;
    let kernel = gpu.function(&SOURCE, of(BIAS_GRAD, d.dtype()))?;
    let args = [ptr(d), Arg::from(&sums.partial), size(rows).into(), size(cols).into()];
    // SAFETY: the arguments are the kernel's in its order; `partial` has a row for each block in y.
    unsafe { kernel.launch(sums.grid(), [32, 8, 1], 0, &args) }?;
    sums.finish(gpu, dbias)
}

/// A column sum in two stages: each block in y leaves its rows' sums in `partial`, `finish` adds them up in order.
struct ColumnSums {
    /// `[parts, cols]` f32.
    partial: Region,
    parts: usize,
    cols: usize,
}

impl ColumnSums {
    fn new(gpu: &Device, rows: usize, cols: usize) -> Result<Self, CudaError> {
        let parts = parts(rows, cols);
        Ok(Self { partial: gpu.region(parts * cols * 4)?, parts, cols })
    }

    fn grid(&self) -> [u32; 3] {
        [blocks(self.cols, BLOCK_COLS), size(self.parts), 1]
    }

    fn finish(&self, gpu: &Device, sums: &Tensor) -> Result<(), CudaError> {
        expect(&[("dbias", sums, DType::F32, self.cols)]);
        let kernel = gpu.function(&SOURCE, "activation_finish")?;
        let args = [Arg::from(&self.partial), ptr(sums), size(self.parts).into(), size(self.cols).into()];
        // SAFETY: the arguments are the kernel's in its order; `partial` holds `parts` rows of `cols`, `sums` one.
        unsafe { kernel.launch([blocks(self.cols, 32), 1, 1], [32, 16, 1], 0, &args) }
    }
}

/// Blocks in y that share the rows of a column sum.
fn parts(rows: usize, cols: usize) -> usize {
    let across = cols.div_ceil(BLOCK_COLS).max(1);
    (SUM_BLOCKS / across).clamp(1, rows.div_ceil(BLOCK_ROWS).max(1))
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn a_column_sum_fills_the_device_and_no_block_is_idle() {
        assert_eq!((parts(50_432, 3072), parts(50_432, 768)), (66, 264));
        assert_eq!((parts(0, 8), parts(1, 8), parts(33, 8), parts(64, 1 << 20)), (1, 1, 2, 1));
    }
}
