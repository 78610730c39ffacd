//! Batch norm over channels, the last dimension, with its running statistics.

use crate::{Result, Scope};
use lacewing_engine::ops::{self, RunningStats};
use lacewing_engine::{Cx, EngineError, ParamId, Var};

/// Sizes and options of a [`BatchNorm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormOptions {
    /// Channels.
    pub dim: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Share of a running statistic that one training pass replaces.
    pub momentum: f64,
    /// Whether `γ` starts at 0, so that a residual block starts as its shortcut.
    pub zero: bool,
}

/// `y = γ (x − mean) / √(var + eps) + β` for each channel, as [`ops::batch_norm()`] has it: by the batch's statistics in
/// training, by the running ones in evaluation. `γ` starts at 1 (or 0), `β` at 0; neither decays.
///
/// The running statistics are constants of the model, from 0 and 1: they are in its checkpoints, no optimizer touches
/// them, and an average of the weights averages them as well, like timm's averages a model's buffers. They move at the
/// end of a training pass, once for each batch also where gradients of several are accumulated.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    gamma: ParamId,
    beta: ParamId,
    running_mean: ParamId,
    running_var: ParamId,
    eps: f32,
    momentum: f32,
}

impl BatchNorm {
    /// Adds `NAME.weight`, `NAME.bias`, `NAME.running_mean` and `NAME.running_var`, `[dim]` each.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn new(scope: &mut Scope<'_>, name: &str, options: BatchNormOptions) -> Result<Self> {
        let BatchNormOptions { dim, eps, momentum, zero } = options;
        let mut scope = scope.scope(name);
        let start = if zero { 0.0 } else { 1.0 };
        Ok(Self {
            gamma: scope.parameter("weight", &[dim], false, |_| vec![start; dim])?,
            beta: scope.parameter("bias", &[dim], false, |_| vec![0.0; dim])?,
            running_mean: scope.statistic("running_mean", &[dim], || vec![0.0; dim])?,
            running_var: scope.statistic("running_var", &[dim], || vec![1.0; dim])?,
            eps: eps as f32,
            momentum: momentum as f32,
        })
    }

    /// The norm of `x [..., dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports, as for a single row in training.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let running = RunningStats {
            mean: cx.params().master(self.running_mean),
            var: cx.params().master(self.running_var),
        };
        let (gamma, beta) = (cx.param_f32(self.gamma), cx.param_f32(self.beta));
        ops::batch_norm(cx, x, &gamma, &beta, &running, self.momentum, self.eps)
    }
}
