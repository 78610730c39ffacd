//! Batch norm: each channel normalized over all places of all samples.

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, DType, EngineError, Gradients, Result, Tensor, Var};

/// What a batch norm learns of its inputs besides its parameters: `[n]` f32 each.
#[derive(Clone, Debug)]
pub struct RunningStats {
    /// Mean of each channel.
    pub mean: Tensor,
    /// Variance of each channel, as an unbiased estimate.
    pub var: Tensor,
}

/// `y = (x − mean) / √(var + eps) · gamma + beta` for each channel, the last dimension; statistics in f32.
///
/// In training mean and variance (biased) are those of the rows of x, and a gradient goes through them; when the pass is
/// over ([`Cx::afterwards`]) each running statistic `r` moves to `r + momentum · (s − r)`, `s` the mean or the unbiased
/// variance. In evaluation they are the running ones. As PyTorch has it.
///
/// Shapes: `x [..., n]`, `gamma`, `beta [n]` f32 → `[..., n]`. Cost: x is read twice forward, and with dy twice backward.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit, as x
/// does not in training with a single row, which has no variance; [`EngineError::Value`] unless `0 ≤ momentum ≤ 1` and
/// `eps > 0`.
pub fn batch_norm(
    cx: &Cx,
    x: &Var,
    gamma: &Var,
    beta: &Var,
    running: &RunningStats,
    momentum: f32,
    eps: f32,
) -> Result<Var> {
    check(cx, x.value(), gamma, beta, running)?;
    if !(0.0..=1.0).contains(&momentum) {
        return Err(crate::tape::value_error("batch_norm", "momentum", "from 0 to 1", momentum));
    }
    if eps.is_nan() || eps <= 0.0 {
        return Err(crate::tape::value_error("batch_norm", "eps", "a positive number", eps));
    }
    if !cx.is_training() {
        return Ok(cx.constant(normalize(x.value(), running, gamma, beta, eps)?));
    }
    let batch = statistics(x.value())?;
    let y = normalize(x.value(), &batch, gamma, beta, eps)?;
    let (rows, running, seen) = (x.value().rows(), running.clone(), batch.clone());
    cx.afterwards(move || update(&running, &seen, rows, momentum));
    let inputs = [x.clone(), gamma.clone(), beta.clone()];
    let [x, gamma, beta] = inputs.clone();
    Ok(cx.record(y, &inputs.each_ref(), move |gradients, dy| {
        backward(gradients, &dy, &x, &gamma, &beta, &batch, eps)
    }))
}

/// Mean and biased variance of each column of `x`.
fn statistics(x: &Tensor) -> Result<RunningStats> {
    let column = || x.beside(DType::F32, &[x.cols()]);
    let stats = RunningStats { mean: column()?, var: column()? };
    match x.gpu() {
        None => cpu::statistics(&x.read(), &mut stats.mean.write(), &mut stats.var.write()),
        Some(gpu) => cuda::statistics(gpu, x, &stats)?,
    }
    Ok(stats)
}

fn normalize(x: &Tensor, stats: &RunningStats, gamma: &Var, beta: &Var, eps: f32) -> Result<Tensor> {
    let y = x.like(x.shape())?;
    let (gamma, beta) = (gamma.value(), beta.value());
    match x.gpu() {
        None => cpu::normalize(
            &x.read(),
            (&stats.mean.read(), &stats.var.read()),
            &gamma.read(),
            &beta.read(),
            eps,
            &mut y.write(),
        ),
        Some(gpu) => cuda::normalize(gpu, x, stats, gamma, beta, eps, &y)?,
    }
    Ok(y)
}

/// `r ← r + momentum · (s − r)` for both statistics; `batch` over `rows` holds the biased variance.
fn update(running: &RunningStats, batch: &RunningStats, rows: usize, momentum: f32) -> Result<()> {
    let unbias = (rows as f64 / (rows as f64 - 1.0)) as f32;
    match running.mean.gpu() {
        None => {
            let pairs = [(&running.mean, &batch.mean, 1.0), (&running.var, &batch.var, unbias)];
            for (running, batch, factor) in pairs {
                cpu::update(&mut running.write(), &batch.read(), factor, momentum);
            }
        }
        Some(gpu) => {
            cuda::update(gpu, running, batch, unbias, momentum)?;
            running.mean.wrote();
            running.var.wrote();
        }
    }
    Ok(())
}

fn backward(
    gradients: &mut Gradients,
    dy: &Tensor,
    x: &Var,
    gamma: &Var,
    beta: &Var,
    batch: &RunningStats,
    eps: f32,
) -> Result<()> {
    let dgamma = gradients.sink_to_add(gamma)?;
    let dbeta = gradients.sink_to_add(beta)?;
    let dx = dy.like(dy.shape())?;
    match dy.gpu() {
        None => Tensor::write_two(dgamma.as_ref(), dbeta.as_ref(), |dgamma, dbeta| {
            cpu::backward(
                &dy.read(),
                &x.value().read(),
                (&batch.mean.read(), &batch.var.read()),
                &gamma.value().read(),
                eps,
                &mut dx.write(),
                dgamma,
                dbeta,
            );
        }),
        Some(gpu) => cuda::backward(
            gpu,
            dy,
            x.value(),
            batch,
            gamma.value(),
            eps,
            &dx,
            dgamma.as_ref(),
            dbeta.as_ref(),
        )?,
    }
    gradients.add(x, dx)
}

fn check(cx: &Cx, x: &Tensor, gamma: &Var, beta: &Var, running: &RunningStats) -> Result<()> {
    let rows = if cx.is_training() { 2 } else { 0 };
    if x.shape().is_empty() || x.cols() == 0 || x.rows() < rows {
        let expected = match rows {
            0 => "[..., n] with n > 0".into(),
            _ => "[..., n] with n > 0 and at least two rows to have a variance".into(),
        };
        return Err(EngineError::Shape { op: "batch_norm", operand: "x", expected, got: x.shape().to_vec() });
    }
    super::matmul::expect_float("batch_norm", "x", x)?;
    for (operand, tensor) in [
        ("gamma", gamma.value()),
        ("beta", beta.value()),
        ("running mean", &running.mean),
        ("running variance", &running.var),
    ] {
        tensor.expect_shape("batch_norm", operand, &[x.cols()])?;
        tensor.expect_dtype("batch_norm", operand, DType::F32)?;
        tensor.expect_device("batch_norm", operand, x)?;
    }
    Ok(())
}
