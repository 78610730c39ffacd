//! Layer norm over the last dimension, alone or fused with the residual addition before it.

use crate::{Result, Scope};
use lacewing_engine::{Cx, EngineError, ParamId, Tensor, Var, ops};

/// `y = γ (x − mean) / √(var + eps) + β` over the last dimension; `γ` starts at 1, `β` at 0, neither decays.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm {
    gamma: ParamId,
    beta: ParamId,
    eps: f32,
}

impl LayerNorm {
    /// Adds `NAME.weight [dim]` and `NAME.bias [dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn new(scope: &mut Scope<'_>, name: &str, dim: usize, eps: f64) -> Result<Self> {
        Self::starting_at(scope, name, dim, eps, 1.0)
    }

    /// As [`LayerNorm::new`], but `γ` starts at 0: the end of a branch that adds nothing at first.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn zeros(scope: &mut Scope<'_>, name: &str, dim: usize, eps: f64) -> Result<Self> {
        Self::starting_at(scope, name, dim, eps, 0.0)
    }

    fn starting_at(scope: &mut Scope<'_>, name: &str, dim: usize, eps: f64, gamma: f32) -> Result<Self> {
        let mut scope = scope.scope(name);
        let gamma = scope.parameter("weight", &[dim], false, |_| vec![gamma; dim])?;
        let beta = scope.parameter("bias", &[dim], false, |_| vec![0.0; dim])?;
        Ok(Self { gamma, beta, eps: eps as f32 })
    }

    /// The norm of `x [..., dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        ops::layer_norm(cx, x, &cx.param_f32(self.gamma), &cx.param_f32(self.beta), self.eps)
    }

    /// `(sum, norm of sum)` with `sum = x + scale · branch`, in one pass; `scale [batch]`, where given, is one number a
    /// sample.
    ///
    /// Shapes: `x` and `branch [batch, ..., dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn add(
        &self,
        cx: &Cx,
        x: &Var,
        branch: &Var,
        scale: Option<&Tensor>,
    ) -> Result<(Var, Var), EngineError> {
        ops::add_layer_norm(
            cx,
            x,
            branch,
            scale,
            &cx.param_f32(self.gamma),
            &cx.param_f32(self.beta),
            self.eps,
        )
    }
}
