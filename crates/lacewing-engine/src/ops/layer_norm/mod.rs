//! Layer norm, alone and behind the residual sum of a pre-norm block.

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, DType, EngineError, Gradients, Result, Tensor, Var};

/// `y = (x − mean) / √(var + eps) · gamma + beta` over the last dimension, statistics in f32.
///
/// Shapes: `x [..., n]`, `gamma [n]`, `beta [n]` (both f32) → `[..., n]`.
///
/// # Errors
///
/// [`EngineError::Shape`] or [`EngineError::DType`] naming the operand that does not fit.
pub fn layer_norm(cx: &Cx, x: &Var, gamma: &Var, beta: &Var, eps: f32) -> Result<Var> {
    check(x.value(), gamma, beta)?;
    normalize(cx, x.clone(), gamma, beta, eps, |stats, y| {
        let x = x.value();
        match x.gpu() {
            None => cpu::forward(
                &x.read(),
                &gamma.value().read(),
                &beta.value().read(),
                eps,
                &mut y.write(),
                &mut stats.mean.write(),
                &mut stats.rstd.write(),
            ),
            Some(gpu) => {
                cuda::forward(gpu, x, gamma.value(), beta.value(), eps, y, &stats.mean, &stats.rstd)?;
            }
        }
        Ok(())
    })
}

/// `sum = x + s · branch` and `y = layer_norm(sum)` in one pass: what stands between two halves of a pre-norm block.
///
/// Shapes: `x`, `branch [batch, ..., n]`; `row_scale [batch]` f32, one factor a sample (stochastic depth), 1 if absent.
/// Returns `(sum, y)`.
///
/// # Errors
///
/// [`EngineError::Shape`] or [`EngineError::DType`] naming the operand that does not fit.
pub fn add_layer_norm(
    cx: &Cx,
    x: &Var,
    branch: &Var,
    row_scale: Option<&Tensor>,
    gamma: &Var,
    beta: &Var,
    eps: f32,
) -> Result<(Var, Var)> {
    check(x.value(), gamma, beta)?;
    branch.value().expect_shape("add_layer_norm", "branch", x.shape())?;
    branch.value().expect_dtype("add_layer_norm", "branch", x.value().dtype())?;
    let per_scale = super::elementwise::rows_per_scale("add_layer_norm", x.value(), row_scale)?;
    let sum_value = x.value().like(x.shape())?;
    let sum = super::elementwise::record_residual(cx, sum_value.clone(), x, branch, row_scale);
    let y = normalize(cx, sum.clone(), gamma, beta, eps, |stats, y| {
        let (x, branch) = (x.value(), branch.value());
        match x.gpu() {
            None => cpu::forward_residual(
                &x.read(),
                &branch.read(),
                row_scale.map(Tensor::read).as_deref(),
                per_scale,
                &gamma.value().read(),
                &beta.value().read(),
                eps,
                &mut sum_value.write(),
                &mut y.write(),
                &mut stats.mean.write(),
                &mut stats.rstd.write(),
            ),
            Some(gpu) => cuda::forward_residual(
                gpu,
                x,
                branch,
                row_scale,
                per_scale,
                gamma.value(),
                beta.value(),
                eps,
                &sum_value,
                y,
                &stats.mean,
                &stats.rstd,
            )?,
        }
        Ok(())
    })?;
    Ok((sum, y))
}

/// What the backward pass needs of each row.
struct Stats {
    mean: Tensor,
    rstd: Tensor,
}

fn normalize(
    cx: &Cx,
    x: Var,
    gamma: &Var,
    beta: &Var,
    eps: f32,
    forward: impl FnOnce(&Stats, &Tensor) -> Result<()>,
) -> Result<Var> {
    if eps.is_nan() || eps <= 0.0 {
        return Err(crate::tape::value_error("layer_norm", "eps", "a positive number", eps));
    }
    let rows = x.value().rows();
    let stats =
        Stats { mean: x.value().beside(DType::F32, &[rows])?, rstd: x.value().beside(DType::F32, &[rows])? };
    let y = x.value().like(x.shape())?;
    forward(&stats, &y)?;
    let inputs = [x.clone(), gamma.clone(), beta.clone()];
    let (gamma, beta) = (gamma.clone(), beta.clone());
    Ok(cx.record(y, &inputs.each_ref(), move |gradients, dy| {
        backward(gradients, &dy, &x, &gamma, &beta, &stats)
    }))
}

fn backward(
    gradients: &mut Gradients,
    dy: &Tensor,
    x: &Var,
    gamma: &Var,
    beta: &Var,
    stats: &Stats,
) -> Result<()> {
    let dgamma = gradients.sink_to_add(gamma)?;
    let dbeta = gradients.sink_to_add(beta)?;
    // What already reached `x` past the norm, through the residual stream, is added in the same pass.
    let dsum = gradients.take(x);
    let dx = dy.like(dy.shape())?;
    let value = x.value();
    match dy.gpu() {
        None => Tensor::write_two(dgamma.as_ref(), dbeta.as_ref(), |dgamma, dbeta| {
            cpu::backward(
                &dy.read(),
                &value.read(),
                &gamma.value().read(),
                &stats.mean.read(),
                &stats.rstd.read(),
                dsum.as_ref().map(Tensor::read).as_deref(),
                &mut dx.write(),
                dgamma,
                dbeta,
            );
        }),
        Some(gpu) => cuda::backward(
            gpu,
            dy,
            value,
            gamma.value(),
            &stats.mean,
            &stats.rstd,
            dsum.as_ref(),
            &dx,
            dgamma.as_ref(),
            dbeta.as_ref(),
        )?,
    }
    gradients.add(x, dx)
}

fn check(x: &Tensor, gamma: &Var, beta: &Var) -> Result<()> {
    if x.shape().is_empty() || x.cols() == 0 {
        let expected = "[..., n] with n > 0".into();
        return Err(EngineError::Shape { op: "layer_norm", operand: "x", expected, got: x.shape().to_vec() });
    }
    super::matmul::expect_float("layer_norm", "x", x)?;
    for (operand, var) in [("gamma", gamma), ("beta", beta)] {
        var.value().expect_shape("layer_norm", operand, &[x.cols()])?;
        var.value().expect_dtype("layer_norm", operand, DType::F32)?;
        var.value().expect_device("layer_norm", operand, x)?;
    }
    Ok(())
}
