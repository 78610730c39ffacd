//! Launches `layer_norm/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use crate::ops::launch::{
    CHUNK, Entry, aligned, blocks, entry, expect, expect_some, of, ptr, ptr_or_null, size, source,
};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("layer_norm");

/// By chunks a lane; the first takes any number of columns.
const FORWARD: [Entry; 5] = [
    entry!("layer_norm_forward_any"),
    entry!("layer_norm_forward_k1"),
    entry!("layer_norm_forward_k2"),
    entry!("layer_norm_forward_k3"),
    entry!("layer_norm_forward_k4"),
];
const BACKWARD: [Entry; 5] = [
    entry!("layer_norm_backward_any"),
    entry!("layer_norm_backward_k1"),
    entry!("layer_norm_backward_k2"),
    entry!("layer_norm_backward_k3"),
    entry!("layer_norm_backward_k4"),
];
const BACKWARD_PARAMS: Entry = entry!("layer_norm_backward_params_any");

/// Rows a block of the forward pass normalizes: one a warp.
const FORWARD_ROWS: usize = 4;
/// Rows a block of the backward pass has in work.
const BACKWARD_ROWS: usize = 8;
/// Blocks that share the rows of the backward pass: two for each of an H200's multiprocessors. The same on every
/// device, so that the sums are.
const PARTS: usize = 264;

/// `y = LN(x)`, with each row's mean and 1/std.
///
/// Shapes: `x`, `y [rows, cols]`; `gamma`, `beta [cols]` f32; `mean`, `rstd [rows]` f32.
pub(super) fn forward(
    gpu: &Device,
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
    y: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
) -> Result<(), CudaError> {
    launch_forward(gpu, x, None, None, 1, gamma, beta, eps, None, y, mean, rstd)
}

/// `sum = x + row_scale[row / rows_per_scale] · branch` and `y = LN(sum)`.
///
/// Shapes: as [`forward`]; `branch`, `sum [rows, cols]`; `row_scale [rows / rows_per_scale]` f32, 1 if absent.
pub(super) fn forward_residual(
    gpu: &Device,
    x: &Tensor,
    branch: &Tensor,
    row_scale: Option<&Tensor>,
    rows_per_scale: usize,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
    sum: &Tensor,
    y: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
) -> Result<(), CudaError> {
    launch_forward(
        gpu,
        x,
        Some(branch),
        row_scale,
        rows_per_scale,
        gamma,
        beta,
        eps,
        Some(sum),
        y,
        mean,
        rstd,
    )
}

fn launch_forward(
    gpu: &Device,
    x: &Tensor,
    branch: Option<&Tensor>,
    row_scale: Option<&Tensor>,
    rows_per_scale: usize,
    gamma: &Tensor,
    beta: &Tensor,
    eps: f32,
    sum: Option<&Tensor>,
    y: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
) -> Result<(), CudaError> {
    let (rows, cols, dtype) = (x.rows(), x.cols(), x.dtype());
    let len = rows * cols;
    expect(&[("x", x, dtype, len), ("y", y, dtype, len)]);
    expect(&[("gamma", gamma, DType::F32, cols), ("beta", beta, DType::F32, cols)]);
    expect(&[("mean", mean, DType::F32, rows), ("rstd", rstd, DType::F32, rows)]);
    expect_some("branch", branch, dtype, len);
    expect_some("sum", sum, dtype, len);
    expect_some("row_scale", row_scale, DType::F32, rows.div_ceil(rows_per_scale.max(1)));
    let whole = aligned(&[x, branch.unwrap_or(x), sum.unwrap_or(x), y, gamma, beta]);
    let kernel = gpu.function(&SOURCE, of(FORWARD[chunks_a_lane(cols, whole)], dtype))?;
    let args = [
        ptr(x),
        ptr_or_null(branch),
        ptr_or_null(row_scale),
        ptr(gamma),
        ptr(beta),
        ptr_or_null(sum),
        ptr(y),
        ptr(mean),
        ptr(rstd),
        size(rows).into(),
        size(cols).into(),
        size(rows_per_scale.max(1)).into(),
        eps.into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above, `branch` and `sum` come
    // together, and the kernel returns beyond the last row.
    unsafe { kernel.launch([blocks(rows, FORWARD_ROWS), 1, 1], [128, 1, 1], 0, &args) }
}

/// `dx = LN'(dy) + dsum`, `dgamma += …`, `dbeta += …`.
///
/// Shapes: `dy`, `x`, `dsum`, `dx [rows, cols]`, `x` what was normalized; `gamma`, `dgamma`, `dbeta [cols]` f32;
/// `mean`, `rstd [rows]` f32. `dx` may be `dy` or `dsum`.
pub(super) fn backward(
    gpu: &Device,
    dy: &Tensor,
    x: &Tensor,
    gamma: &Tensor,
    mean: &Tensor,
    rstd: &Tensor,
    dsum: Option<&Tensor>,
    dx: &Tensor,
    dgamma: Option<&Tensor>,
    dbeta: Option<&Tensor>,
) -> Result<(), CudaError> {
    let (rows, cols, dtype) = (x.rows(), x.cols(), x.dtype());
    let len = rows * cols;
    expect(&[("dy", dy, dtype, len), ("x", x, dtype, len), ("dx", dx, dtype, len)]);
    expect(&[
        ("gamma", gamma, DType::F32, cols),
        ("mean", mean, DType::F32, rows),
        ("rstd", rstd, DType::F32, rows),
    ]);
    expect_some("dsum", dsum, dtype, len);
    let wants_params = dgamma.is_some() || dbeta.is_some();
    let whole = aligned(&[dy, x, dsum.unwrap_or(x), dx]);
    let k = chunks_a_lane(cols, whole);
    let parts = rows.div_ceil(BACKWARD_ROWS).min(PARTS);
    let partial = gpu.region(parts * 2 * cols * 4)?;
    let operands = [ptr(dy), ptr(x), ptr(gamma), ptr(mean), ptr(rstd), ptr_or_null(dsum), ptr(dx)];
    let shape = [size(rows).into(), size(cols).into()];

    if k == 0 {
        if wants_params {
            let kernel = gpu.function(&SOURCE, of(BACKWARD_PARAMS, dtype))?;
            let args = [ptr(dy), ptr(x), ptr(mean), ptr(rstd), Arg::from(&partial), shape[0], shape[1]];
            // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `partial` has
            // two rows for each block in y.
            unsafe { kernel.launch([blocks(cols, 32), size(parts), 1], [32, 8, 1], 0, &args) }?;
        }
        let kernel = gpu.function(&SOURCE, of(BACKWARD[k], dtype))?;
        let args = [&operands[..], &shape].concat();
        // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it returns beyond
        // the last row.
        unsafe { kernel.launch([blocks(rows, FORWARD_ROWS), 1, 1], [128, 1, 1], 0, &args) }?;
    } else {
        let kernel = gpu.function(&SOURCE, of(BACKWARD[k], dtype))?;
        let args = [&operands[..], &[Arg::from(&partial)], &shape].concat();
        // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; `partial` has two
        // rows for each block.
        unsafe { kernel.launch([size(parts), 1, 1], [256, 1, 1], 0, &args) }?;
    }
    if !wants_params {
        return Ok(());
    }
    expect_some("dgamma", dgamma, DType::F32, cols);
    expect_some("dbeta", dbeta, DType::F32, cols);
    let kernel = gpu.function(&SOURCE, "layer_norm_finish")?;
    let args =
        [Arg::from(&partial), ptr_or_null(dgamma), ptr_or_null(dbeta), size(parts).into(), size(cols).into()];
    // SAFETY: the arguments are the kernel's in its order; `partial` holds `parts` pairs of rows, the sums a row each
    // or nothing, which the kernel skips.
    unsafe { kernel.launch([blocks(cols, 32), 2, 1], [32, 16, 1], 0, &args) }
}

/// Chunks of a row in each lane's registers; 0 for the kernels that take any row.
fn chunks_a_lane(cols: usize, whole: bool) -> usize {
    let k = cols.div_ceil(32 * CHUNK);
    if whole && cols.is_multiple_of(CHUNK) && k < FORWARD.len() { k } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::chunks_a_lane;

    #[test]
    fn rows_that_fit_registers_stay_there() {
        for (cols, k) in
            [(1, 0), (8, 1), (256, 1), (264, 2), (768, 3), (1024, 4), (1032, 0), (1000, 4), (1001, 0)]
        {
            assert_eq!(chunks_a_lane(cols, true), k, "{cols}");
            assert_eq!(chunks_a_lane(cols, false), 0, "{cols}");
        }
    }
}
