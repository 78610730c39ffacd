//! Padding and truncating the last dimension: how a structure meets sizes that its blocks do not divide.

mod cpu;
pub(crate) mod cuda;

use super::linear::with_cols;
use crate::{Cx, EngineError, Result, Tensor, Var};

/// `x` with `cols` columns: zeros are added on the right, or columns cut off.
///
/// # Errors
///
/// [`EngineError::Shape`] for a scalar.
pub fn resize_cols(cx: &Cx, x: &Var, cols: usize) -> Result<Var> {
    if x.shape().is_empty() {
        let expected = "one dimension or more".into();
        return Err(EngineError::Shape { op: "resize_cols", operand: "x", expected, got: Vec::new() });
    }
    super::matmul::expect_float("resize_cols", "x", x.value())?;
    let n_in = x.value().cols();
    if cols == n_in {
        return Ok(x.clone());
    }
    let y = resized(x.value(), cols)?;
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| gradients.add(&x_var, resized(&dy, n_in)?)))
}

fn resized(x: &Tensor, cols: usize) -> Result<Tensor> {
    let y = x.like(&with_cols(x.shape(), cols))?;
    match y.gpu() {
        None => cpu::resize_cols(&x.read(), &mut y.write(), x.rows(), x.cols(), cols),
        Some(gpu) => cuda::resize_cols(gpu, x, &y, x.rows(), x.cols(), cols)?,
    }
    Ok(y)
}
