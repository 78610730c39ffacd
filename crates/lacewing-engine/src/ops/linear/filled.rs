//! The weight of a structured layer that multiplies densely: a dense matrix, made once for as long as the parameters stay.

use super::{Activation, PackedWeight, linear_packed};
use crate::{Cx, EngineError, Kept, Result, Tensor, Var};

/// A dense weight made of a layer's parameters. It takes a dense layer's memory until they change or training goes on.
#[derive(Debug, Default)]
pub struct FilledWeight {
    weight: Kept<Tensor>,
    packed: PackedWeight,
}

impl FilledWeight {
    /// `y = f(x Wᵀ + b)` with the weight `[n_out, n_in]` that `fill` makes of the layer's `weights`: again for each
    /// product in training, where gradients reach them through it.
    ///
    /// # Errors
    ///
    /// Those of `fill` and of the product.
    pub fn linear(
        &self,
        cx: &Cx,
        x: &Var,
        weights: &[Var],
        bias: Option<&Var>,
        act: Activation,
        fill: impl FnOnce() -> Result<Var>,
    ) -> Result<Var> {
        if cx.is_training() {
            self.weight.forget();
            return linear_packed(cx, x, &fill()?, bias, act, Some(&self.packed));
        }
        let parameters: Vec<&Tensor> = weights.iter().map(Var::value).collect();
        // Nobody writes to what the weight is made of.
        let reads: Vec<_> = parameters.iter().filter(|w| w.gpu().is_none()).map(|w| w.read()).collect();
        let weight = self.weight.of(&parameters, |_| Ok::<_, EngineError>(fill()?.value().clone()))?;
        drop(reads);
        let weight = cx.constant((*weight).clone());
        linear_packed(cx, x, &weight, bias, act, Some(&self.packed))
    }
}
