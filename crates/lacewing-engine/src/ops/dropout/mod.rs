//! Dropout, and the factors of stochastic depth.

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, DType, Result, Tensor, Var};

/// Each element is kept with probability `1 − p` and divided by it, or zeroed. The identity outside training.
///
/// The numbers are those of the step's Philox stream, the same on every device; nothing is stored for the backward
/// pass, which draws them again.
///
/// # Errors
///
/// [`crate::EngineError::Value`] unless `0 ≤ p < 1`.
pub fn dropout(cx: &Cx, x: &Var, p: f32) -> Result<Var> {
    check("dropout", p)?;
    if !cx.is_training() || p == 0.0 {
        return Ok(x.clone());
    }
    let (seed, offset) = (cx.rng().seed(), cx.rng().reserve(x.value().len()));
    let y = apply(x.value(), seed, offset, p)?;
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| gradients.add(&x_var, apply(&dy, seed, offset, p)?)))
}

/// Stochastic depth: one factor a sample, 0 with probability `p`, else `1 / (1 − p)`, for
/// [`super::residual`] and [`super::add_layer_norm`]. `None` where it changes nothing.
///
/// # Errors
///
/// [`crate::EngineError::Value`] unless `0 ≤ p < 1`.
pub fn drop_path_scale(cx: &Cx, batch: usize, p: f32) -> Result<Option<Tensor>> {
    check("drop_path", p)?;
    if !cx.is_training() || p == 0.0 {
        return Ok(None);
    }
    let draws = cx.rng().uniforms(batch);
    let factors: Vec<f32> = draws.iter().map(|&u| if u >= p { 1.0 / (1.0 - p) } else { 0.0 }).collect();
    Tensor::from_f32(&cx.params().device(), &factors, &[batch]).map(Some)
}

fn apply(x: &Tensor, seed: u64, offset: u64, p: f32) -> Result<Tensor> {
    debug_assert_ne!(x.dtype(), DType::U32);
    let y = x.like(x.shape())?;
    match y.gpu() {
        None => cpu::apply(&x.read(), &mut y.write(), seed, offset, p),
        Some(gpu) => cuda::apply(gpu, x, &y, seed, offset, p)?,
    }
    Ok(y)
}

fn check(op: &'static str, p: f32) -> Result<()> {
    if (0.0..1.0).contains(&p) {
        return Ok(());
    }
    Err(crate::tape::value_error(op, "p", "0 ≤ p < 1", p))
}
