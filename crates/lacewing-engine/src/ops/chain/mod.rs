//! A whole chain of block-diagonal factors in one pass over the activations: the CPU's fused kernel.
//!
//! On a GPU chains run factor by factor, by [`super::block_linear()`] and [`super::strided_blocks()`].

use super::activation::{self, Activation};
use super::linear::{check_bias, with_cols};
use crate::{Cx, DType, EngineError, Kept, Result, Tensor, Var};
use lacewing_core::Chain;
use lacewing_cpu::chain::{Packed, Plan};
use std::ops::Deref;
use std::sync::Arc;

/// What each factor of a chain reads, and the weights as it reads them.
#[derive(Debug)]
pub struct ChainPlan {
    plan: Plan,
    packed: Kept<Packed>,
}

impl ChainPlan {
    /// The plan of a chain; none where it has none ([`Plan::new`]).
    pub fn new(chain: &Chain) -> Option<Self> {
        Some(Self { plan: Plan::new(chain)?, packed: Kept::default() })
    }
}

impl Deref for ChainPlan {
    type Target = Plan;

    fn deref(&self) -> &Plan {
        &self.plan
    }
}

/// `y = f(W x + b)` with `W` the product of the plan's factors and permutations; `weights` are the factors' blocks in
/// order.
///
/// Shapes: `x [..., n_in]`, each weight `blocks · q · p` values, `bias [n_out]` → `[..., n_out]`. Cost: `rows · Σ blocks ·
/// q · p` MACs forward, three times that backward, where the factors' outputs are made again. Nothing but x is kept, and
/// the pre-activation where there is an activation.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit,
/// tensors of a GPU included.
pub fn chain(
    cx: &Cx,
    x: &Var,
    weights: &[Var],
    plan: &Arc<ChainPlan>,
    bias: Option<&Var>,
    act: Activation,
) -> Result<Var> {
    let wrong = |operand, expected: String, got: &Tensor| {
        Err(EngineError::Shape { op: OP, operand, expected, got: got.shape().to_vec() })
    };
    super::matmul::expect_float(OP, "x", x.value())?;
    if x.value().gpu().is_some() {
        let (expected, got) = ("cpu".into(), x.value().device().to_string());
        return Err(EngineError::Device { op: OP, operand: "x", expected, got });
    }
    if x.shape().last() != Some(&plan.n_in()) {
        return wrong("x", format!("[..., {}]", plan.n_in()), x.value());
    }
    if weights.len() != plan.shapes().count() {
        let (expected, got) = (format!("{} factors", plan.shapes().count()), weights.len().to_string());
        return Err(EngineError::Value { op: OP, what: "number of weights", expected, got });
    }
    for (w, shape) in weights.iter().zip(plan.shapes()) {
        w.value().expect_dtype(OP, "w", x.value().dtype())?;
        w.value().expect_device(OP, "w", x.value())?;
        if w.value().len() != shape.iter().product::<usize>() {
            return wrong("w", format!("{shape:?}"), w.value());
        }
    }
    check_bias(x.value(), plan.n_out(), bias)?;
    let pre = x.value().like(&with_cols(x.shape(), plan.n_out()))?;
    // In training weights do not come again, and for few rows they are not worth it.
    let packs = plan.packs(x.value().rows()) || !cx.is_training();
    let tensors: Vec<&Tensor> = weights.iter().map(Var::value).collect();
    let inputs: Vec<&Var> = weights.iter().chain([x]).chain(bias).collect();
    let y = activation::finished_product(cx, &inputs, &pre, bias.map(Var::value), act, |y| {
        with_weights(weights, |weights| {
            let x = &x.value().read();
            let done = if packs {
                let packed = plan.packed.of(&tensors, |memory| plan.pack(weights, memory));
                packed.and_then(|packed| plan.forward_packed(weights, &packed, x, y))
            } else {
                plan.forward(weights, x, y)
            };
            done.expect(CHECKED);
        });
    })?;
    let (x_var, w_vars, bias, plan) = (x.clone(), weights.to_vec(), bias.cloned(), plan.clone());
    let pre = (act != Activation::Identity).then_some(pre);
    Ok(cx.record(y, &inputs, move |gradients, dy| {
        let dy = activation::backward_linear(gradients, dy, pre.as_ref(), act, bias.as_ref())?;
        drop(pre);
        let x = x_var.value();
        let dx = gradients.wants(&x_var).then(|| x.like(x.shape())).transpose()?;
        // Of their own, not the parameters' sums: one parameter may be the weights of several factors.
        let own = |w: &Var| {
            gradients.wants(w).then(|| Tensor::zeros(&x.device(), DType::F32, w.shape())).transpose()
        };
        let dw = w_vars.iter().map(own).collect::<Result<Vec<_>>>()?;
        {
            let mut dx = dx.as_ref().map(Tensor::write);
            let mut dw: Vec<_> = dw.iter().map(|dw| dw.as_ref().map(Tensor::write)).collect();
            let mut dw: Vec<_> = dw.iter_mut().map(|dw| dw.as_deref_mut()).collect();
            with_weights(&w_vars, |weights| {
                plan.gradients(weights, &x.read(), &dy.read(), dx.as_deref_mut(), &mut dw).expect(CHECKED);
            });
        }
        for (w, dw) in w_vars.iter().zip(dw) {
            dw.map_or(Ok(()), |dw| gradients.add(w, dw))?;
        }
        dx.map_or(Ok(()), |dx| gradients.add(&x_var, dx))
    }))
}

const OP: &str = "chain";

/// The operands were checked by the op, so a refusal is a bug of ours.
const CHECKED: &str = "operands were checked";

/// Calls `f` with the weights' values.
fn with_weights(weights: &[Var], f: impl FnOnce(&[&[f32]])) {
    let read: Vec<_> = weights.iter().map(|w| w.value().read()).collect();
    f(&read.iter().map(|w| &**w).collect::<Vec<&[f32]>>());
}
