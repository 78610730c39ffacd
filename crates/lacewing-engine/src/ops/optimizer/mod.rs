//! The fused updates of [`crate::optim`], over flat arrays.

mod cpu;
pub(crate) mod cuda;

use crate::optim::Flat;
use crate::{Result, Tensor};

/// Constants of one AdamW step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AdamWStep {
    pub(crate) lr: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) eps: f32,
    pub(crate) weight_decay: f32,
    /// `1 − β₁ᵗ`.
    pub(crate) bias_correction1: f32,
    /// `1 − β₂ᵗ`.
    pub(crate) bias_correction2: f32,
}

/// Constants of one SGD step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SgdStep {
    pub(crate) lr: f32,
    pub(crate) momentum: f32,
    pub(crate) nesterov: bool,
    pub(crate) weight_decay: f32,
}

/// One AdamW step; the gradient is multiplied by `scale[0]` and is zero afterwards.
pub(crate) fn adamw(
    flat: &Flat,
    first: &Tensor,
    second: &Tensor,
    step: &AdamWStep,
    scale: Option<&Tensor>,
) -> Result<()> {
    match flat.master.gpu() {
        None => cpu::adamw(
            &mut flat.master.write(),
            &mut flat.gradient.write(),
            &mut first.write(),
            &mut second.write(),
            step,
            scale.map_or(1.0, |scale| scale.read()[0]),
        ),
        Some(gpu) => cuda::adamw(gpu, flat, first, second, step, scale)?,
    }
    wrote(flat);
    Ok(())
}

/// Says that a step has written the parameters.
fn wrote(flat: &Flat) {
    flat.master.wrote();
    flat.copy.iter().for_each(Tensor::wrote);
}

/// One SGD step; the gradient is multiplied by `scale[0]` and is zero afterwards.
pub(crate) fn sgd(flat: &Flat, momentum: &Tensor, step: &SgdStep, scale: Option<&Tensor>) -> Result<()> {
    match flat.master.gpu() {
        None => cpu::sgd(
            &mut flat.master.write(),
            &mut flat.gradient.write(),
            &mut momentum.write(),
            step,
            scale.map_or(1.0, |scale| scale.read()[0]),
        ),
        Some(gpu) => cuda::sgd(gpu, flat, momentum, step, scale)?,
    }
    wrote(flat);
    Ok(())
}

/// `norm[0] = ‖gradient‖₂`, `scale[0] = min(1, max_norm / (norm + 1e-6))`; sums in f64, in a fixed order.
pub(crate) fn clip(gradient: &Tensor, max_norm: f32, norm: &Tensor, scale: &Tensor) -> Result<()> {
    match gradient.gpu() {
        None => {
            let value = cpu::sum_of_squares(&gradient.read()).sqrt() as f32;
            norm.write()[0] = value;
            // Not `min`: a NaN norm has to stay NaN, as on a GPU, and not pass for 1.
            let factor = max_norm / (value + 1e-6);
            scale.write()[0] = if factor > 1.0 { 1.0 } else { factor };
        }
        Some(gpu) => cuda::clip(gpu, gradient, max_norm, norm, scale)?,
    }
    Ok(())
}

/// `shadow ← decay · shadow + (1 − decay) · master`.
pub(crate) fn ema(master: &Tensor, shadow: &Tensor, decay: f32) -> Result<()> {
    match master.gpu() {
        None => cpu::ema(&master.read(), &mut shadow.write(), decay),
        Some(gpu) => cuda::ema(gpu, master, shadow, decay)?,
    }
    Ok(())
}
