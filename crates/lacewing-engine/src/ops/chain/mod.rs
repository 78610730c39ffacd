//! A whole chain of block-diagonal factors in one pass over the activations: the CPU's fused kernel.
//!
//! On a GPU chains run factor by factor, by [`super::block_linear`] and [`super::strided_blocks`].

use super::activation::{self, Activation};
use super::linear::{check_bias, with_cols};
use crate::tensor::Version;
use crate::{Cx, DType, EngineError, Result, Tensor, Var};
use lacewing_core::Chain;
use lacewing_cpu::chain::{Packed, Plan};
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// What each factor of a chain reads, and the weights of the latest products as they read them.
#[derive(Debug)]
pub struct ChainPlan {
    plan: Plan,
    latest: Mutex<Option<Latest>>,
}

/// The weights of the latest product: they are the same as long as nobody writes to them.
#[derive(Debug)]
struct Latest {
    versions: Vec<Version>,
    /// Not of few rows with weights that may not come again.
    packed: Option<Arc<Packed>>,
}

impl ChainPlan {
    /// The plan of a chain; none where it has none ([`Plan::new`]).
    pub fn new(chain: &Chain) -> Option<Self> {
        Some(Self { plan: Plan::new(chain)?, latest: Mutex::default() })
    }

    /// `weights` packed, here or before, where that pays for a product of `rows` rows.
    fn packed(&self, weights: &[Var], read: &[&[f32]], rows: usize) -> Option<Arc<Packed>> {
        let versions: Vec<Version> = weights.iter().map(|w| w.value().version()).collect::<Option<_>>()?;
        // Held for a moment only: packing is done by all threads, and one that waits may be given another product.
        let latest = || self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let before = latest().take();
        let again = before.as_ref().is_some_and(|before| before.versions == versions);
        let kept = before.and_then(|before| before.packed);
        let packed = match kept {
            Some(kept) if again => Some(kept),
            kept if again || self.plan.packs(rows) => {
                Some(Arc::new(self.plan.pack(read, kept.and_then(Arc::into_inner)).expect(CHECKED)))
            }
            _ => None,
        };
        *latest() = Some(Latest { versions, packed: packed.clone() });
        packed
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
    let (vars, rows) = (weights, x.value().rows());
    let inputs: Vec<&Var> = weights.iter().chain([x]).chain(bias).collect();
    let y = activation::finished_product(cx, &inputs, &pre, bias.map(Var::value), act, |y| {
        with_weights(weights, |weights| {
            let x = &x.value().read();
            let done = match plan.packed(vars, weights, rows) {
                Some(packed) => plan.forward_packed(weights, &packed, x, y),
                None => plan.forward(weights, x, y),
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
