//! Optimizers over the flat arrays of [`Params`]: one fused pass a step, whatever the number of parameters.

use crate::ops::optimizer as kernels;
use crate::{DType, EngineError, Params, Result, Tensor};

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, for parameters that decay.
    pub weight_decay: f32,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.05 }
    }
}

/// SGD's constants.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdConfig {
    /// Momentum; 0 for none.
    pub momentum: f32,
    /// Nesterov's form of it.
    pub nesterov: bool,
    /// Added to the gradient as `weight_decay · p`, for parameters that decay.
    pub weight_decay: f32,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false, weight_decay: 0.0 }
    }
}

/// Updates parameters from their gradients.
pub trait Optimizer {
    /// One step with learning rate `lr`; gradients are scaled down first where their norm exceeds `clip_norm`, and are
    /// zero afterwards. Nothing is waited for.
    ///
    /// # Errors
    ///
    /// What the device reports.
    fn step(&mut self, params: &Params, lr: f32, clip_norm: Option<f32>) -> Result<()>;

    /// Steps taken.
    fn steps(&self) -> u64;

    /// What a checkpoint must hold besides the number of steps: flat arrays shaped as the masters, by name.
    fn state(&self) -> Vec<(&'static str, &Tensor)>;

    /// Says how many steps have been taken, after the arrays of [`Optimizer::state`] were overwritten.
    fn set_steps(&mut self, steps: u64);
}

/// Norm of the gradient and the factor that clips it, on the device.
struct Clip {
    norm: Tensor,
    scale: Tensor,
}

impl Clip {
    fn new(params: &Params) -> Result<Self> {
        let one = |value: f32| Tensor::from_f32(&params.device(), &[value], &[1]);
        Ok(Self { norm: one(0.0)?, scale: one(1.0)? })
    }

    fn measure<'a>(&'a self, params: &Params, clip_norm: Option<f32>) -> Result<Option<&'a Tensor>> {
        let Some(max_norm) = clip_norm else { return Ok(None) };
        kernels::clip(params.flat_gradient()?, max_norm, &self.norm, &self.scale)?;
        Ok(Some(&self.scale))
    }
}

/// AdamW (Loshchilov & Hutter 2019), as PyTorch computes it:
/// `p ← p(1 − lr·wd)`, `m ← β₁m + (1−β₁)g`, `v ← β₂v + (1−β₂)g²`, `p ← p − lr · (m/(1−β₁ᵗ)) / (√(v/(1−β₂ᵗ)) + ε)`.
pub struct AdamW {
    config: AdamWConfig,
    steps: u64,
    first: Tensor,
    second: Tensor,
    clip: Clip,
}

impl AdamW {
    /// With zero moments.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn new(params: &Params, config: AdamWConfig) -> Result<Self> {
        let zeros = || Tensor::zeros(&params.device(), DType::F32, params.flat_master().shape());
        Ok(Self { config, steps: 0, first: zeros()?, second: zeros()?, clip: Clip::new(params)? })
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, params: &Params, lr: f32, clip_norm: Option<f32>) -> Result<()> {
        self.steps += 1;
        let scale = self.clip.measure(params, clip_norm)?;
        let AdamWConfig { beta1, beta2, eps, weight_decay } = self.config;
        for (part, weight_decay) in parts(params, weight_decay) {
            let step = kernels::AdamWStep {
                lr,
                beta1,
                beta2,
                eps,
                weight_decay,
                // In f64: 1 − β₂ᵗ loses half its digits in f32 at the first steps.
                bias_correction1: (1.0 - f64::from(beta1).powf(self.steps as f64)) as f32,
                bias_correction2: (1.0 - f64::from(beta2).powf(self.steps as f64)) as f32,
            };
            let flat = Flat::of(params, part)?;
            kernels::adamw(&flat, &part.of(&self.first), &part.of(&self.second), &step, scale)?;
        }
        Ok(())
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("first_moment", &self.first), ("second_moment", &self.second)]
    }

    fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }
}

/// SGD with momentum, as PyTorch computes it: `g ← g + wd·p`, `b ← μb + g`, `p ← p − lr·b` (or `lr·(g + μb)`).
pub struct Sgd {
    config: SgdConfig,
    steps: u64,
    momentum: Tensor,
    clip: Clip,
}

impl Sgd {
    /// With no momentum yet.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn new(params: &Params, config: SgdConfig) -> Result<Self> {
        let momentum = Tensor::zeros(&params.device(), DType::F32, params.flat_master().shape())?;
        Ok(Self { config, steps: 0, momentum, clip: Clip::new(params)? })
    }
}

impl Optimizer for Sgd {
    fn step(&mut self, params: &Params, lr: f32, clip_norm: Option<f32>) -> Result<()> {
        self.steps += 1;
        let scale = self.clip.measure(params, clip_norm)?;
        let SgdConfig { momentum, nesterov, weight_decay } = self.config;
        for (part, weight_decay) in parts(params, weight_decay) {
            let step = kernels::SgdStep { lr, momentum, nesterov, weight_decay };
            // The buffer starts at zero, so the first step's `μ·0 + g` is PyTorch's special case.
            kernels::sgd(&Flat::of(params, part)?, &part.of(&self.momentum), &step, scale)?;
        }
        Ok(())
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn state(&self) -> Vec<(&'static str, &Tensor)> {
        vec![("momentum", &self.momentum)]
    }

    fn set_steps(&mut self, steps: u64) {
        self.steps = steps;
    }
}

/// A range of the flat arrays.
#[derive(Clone, Copy)]
struct Part {
    start: usize,
    len: usize,
}

impl Part {
    fn of(self, flat: &Tensor) -> Tensor {
        flat.slice_flat(self.start, &[self.len])
    }
}

/// The arrays of one fused update, all of one length.
pub(crate) struct Flat {
    pub(crate) master: Tensor,
    pub(crate) copy: Option<Tensor>,
    pub(crate) gradient: Tensor,
}

impl Flat {
    fn of(params: &Params, part: Part) -> Result<Self> {
        Ok(Self {
            master: part.of(params.flat_master()),
            copy: params.flat_copy().map(|copy| part.of(copy)),
            gradient: part.of(params.flat_gradient()?),
        })
    }
}

/// The decayed prefix and the rest, each with its weight decay.
fn parts(params: &Params, weight_decay: f32) -> impl Iterator<Item = (Part, f32)> {
    let (decayed, total) = (params.n_decayed(), params.flat_master().len());
    let parts = [
        (Part { start: 0, len: decayed }, weight_decay),
        (Part { start: decayed, len: total - decayed }, 0.0),
    ];
    parts.into_iter().filter(|(part, _)| part.len > 0)
}

/// `average ← decay · average + (1 − decay) · values`: an exponential moving average of anything, such as a gradient.
///
/// Shapes: both the same, f32.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] when they differ; what the device reports.
pub fn moving_average(values: &Tensor, average: &Tensor, decay: f32) -> Result<()> {
    const OP: &str = "moving_average";
    average.expect_shape(OP, "average", values.shape())?;
    average.expect_device(OP, "average", values)?;
    values.expect_dtype(OP, "values", DType::F32)?;
    average.expect_dtype(OP, "average", DType::F32)?;
    kernels::ema(values, average, decay)?;
    average.wrote();
    Ok(())
}

/// An exponential moving average of the parameters: `s ← d s + (1 − d) p`.
///
/// At step `t`, from 1, `d` is `decay`; warmed up it is `min(decay, (1 + t) / (10 + t))`, so that early steps do not keep
/// the random start.
pub struct Ema {
    decay: f32,
    warmup: bool,
    flat: Tensor,
}

impl Ema {
    /// Starts from the parameters as they are.
    ///
    /// # Errors
    ///
    /// [`EngineError::Value`] unless `0 ≤ decay < 1`; what the device reports.
    pub fn new(params: &Params, decay: f32, warmup: bool) -> Result<Self> {
        if !(0.0..1.0).contains(&decay) {
            let (op, what, expected) = ("ema", "decay", "0 ≤ decay < 1".to_owned());
            return Err(EngineError::Value { op, what, expected, got: decay.to_string() });
        }
        let flat = Tensor::empty(&params.device(), DType::F32, params.flat_master().shape())?;
        flat.copy_from(params.flat_master())?;
        Ok(Self { decay, warmup, flat })
    }

    /// Takes the parameters of step `step` (from 1) in.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn update(&mut self, params: &Params, step: u64) -> Result<()> {
        let warm = if self.warmup { (1.0 + step as f32) / (10.0 + step as f32) } else { 1.0 };
        kernels::ema(params.flat_master(), &self.flat, self.decay.min(warm))
    }

    /// The averages, flat as the masters.
    pub fn flat(&self) -> &Tensor {
        &self.flat
    }

    /// Exchanges the averages with the parameters: for evaluating them, and again to go on training.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn swap(&mut self, params: &Params) -> Result<()> {
        let kept = Tensor::empty(&params.device(), DType::F32, self.flat.shape())?;
        kept.copy_from(params.flat_master())?;
        params.flat_master().copy_from(&self.flat)?;
        self.flat.copy_from(&kept)?;
        params.refresh_copy()
    }
}
