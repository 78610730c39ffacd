//! Both factors of a Monarch map in one launch, on a Hopper GPU: in passes that record nothing, and in those that record for sizes
//! whose backward pass has kernels.
//!
//! Other recorded passes run the factors by [`super::block_linear()`], one after the other.

use super::activation::{self, Activation};
use super::linear::{check_bias, with_cols};
use crate::{Cx, DType, Device, EngineError, Result, Var};
use lacewing_core::chains::MonarchFactors;
use lacewing_cuda::Finish;
use lacewing_cuda::monarch::{Gradients, Operands, Plan, supported};
use std::sync::Arc;

/// How a GPU cuts a Monarch map into tiles. Cloning shares it.
#[derive(Debug, Clone)]
pub struct MonarchPlan(Arc<Plan>);

impl MonarchPlan {
    /// The plan for these factors; none for sizes that the kernel does not take ([`Plan::new`]).
    pub fn new(factors: MonarchFactors) -> Option<Self> {
        Plan::new(factors).map(Arc::new).map(Self)
    }

    /// Whether what lies between the factors stays in the multiprocessors ([`Plan::resident`]).
    pub fn is_resident(&self) -> bool {
        self.0.resident().is_some()
    }

    /// Whether the device has what the kernel is written for.
    pub fn runs_on(&self, device: &Device) -> bool {
        match device {
            Device::Cpu => false,
            Device::Cuda(gpu) => supported(gpu),
        }
    }

    /// Whether the device has kernels for passes that record; compiles them.
    ///
    /// # Errors
    ///
    /// What the compiler or the driver answers.
    pub fn trains_on(&self, device: &Device) -> Result<bool> {
        match (device, self.0.training()) {
            (Device::Cuda(gpu), Some(training)) => Ok(training.runs_on(gpu)?),
            _ => Ok(false),
        }
    }
}

/// `y = f(W x + b)` with `W` the Monarch map of `first [k, q, p]` and `second [l, s, r]`; what lies between them is rounded to
/// bf16.
///
/// Shapes: `x [..., k·p]`, `bias [l·s]` → `[..., l·s]`, all bf16. Cost: `rows · (k·q·p + l·s·r)` MACs forward, twice that
/// backward; x and y pass through memory once. A pass that records keeps x and what lies between the factors, with an
/// activation also what goes into it.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit, a CPU's
/// tensors included; [`EngineError::Value`] in a pass that records where the plan [trains](MonarchPlan::trains_on) on no device.
pub fn monarch(
    cx: &Cx,
    x: &Var,
    [first, second]: [&Var; 2],
    plan: &MonarchPlan,
    bias: Option<&Var>,
    act: Activation,
) -> Result<Var> {
    let MonarchFactors { k, q, p, l, s, r } = plan.0.factors();
    let inputs: Vec<&Var> = [x, first, second].into_iter().chain(bias).collect();
    let records = cx.records(&inputs);
    if records && plan.0.training().is_none() {
        let (expected, got) = ("one that records nothing".into(), "one that records".into());
        return Err(EngineError::Value { op: OP, what: "pass", expected, got });
    }
    x.value().expect_dtype(OP, "x", DType::Bf16)?;
    let Some(gpu) = x.value().gpu() else {
        let (expected, got) = ("a GPU".into(), x.value().device().to_string());
        return Err(EngineError::Device { op: OP, operand: "x", expected, got });
    };
    if x.shape().last() != Some(&(k * p)) {
        let (expected, got) = (format!("[..., {}]", k * p), x.shape().to_vec());
        return Err(EngineError::Shape { op: OP, operand: "x", expected, got });
    }
    for (name, w, len) in [("first", first, k * q * p), ("second", second, l * s * r)] {
        w.value().expect_dtype(OP, name, DType::Bf16)?;
        w.value().expect_device(OP, name, x.value())?;
        if w.value().len() != len {
            let (expected, got) = (format!("{len} values"), w.shape().to_vec());
            return Err(EngineError::Shape { op: OP, operand: name, expected, got });
        }
    }
    check_bias(x.value(), l * s, bias)?;
    let pre = x.value().like(&with_cols(x.shape(), l * s))?;
    let (x_here, rows) = (x.value().region(), x.value().rows());
    let [first_here, second_here] = [first, second].map(|w| w.value().region());
    let bias_here = bias.map(|bias| bias.value().region());
    // What goes into the activation is kept where it is recorded.
    let applied = if records { Activation::Identity } else { act };
    let operands = Operands {
        x: &x_here,
        first: &first_here,
        second: &second_here,
        y: &pre.region(),
        finish: Finish { bias: bias_here.as_ref(), activation: applied },
    };
    let Some(training) = plan.0.training().filter(|_| records) else {
        plan.0.run(gpu, rows, &operands)?;
        return Ok(cx.constant(pre));
    };
    let kept = gpu.region(training.kept_bytes(rows))?;
    training.forward(gpu, rows, &operands, &kept)?;
    let y = activation::finish_linear(&pre, None, act)?;
    let pre = (act != Activation::Identity).then_some(pre);
    let vars = [x, first, second].map(Clone::clone);
    let (bias, plan, gpu) = (bias.cloned(), plan.clone(), gpu.clone());
    Ok(cx.record(y, &inputs, move |gradients, dy| {
        let dy = activation::backward_linear(gradients, dy, pre.as_ref(), act, bias.as_ref())?;
        drop(pre);
        let [x, first, second] = vars;
        let [d_first, d_second] = [gradients.sink(&first)?, gradients.sink(&second)?]
            .map(|sink| sink.map(|(sum, holds_sum)| (sum.region(), holds_sum)));
        // Made with du, wanted or not.
        let dx = x.value().like(x.shape())?;
        let training = plan.0.training().expect("it ran");
        let operands = Gradients {
            d_y: &dy.region(),
            x: &x.value().region(),
            first: &first.value().region(),
            second: &second.value().region(),
            kept: &kept,
            d_x: &dx.region(),
            d_first: d_first.as_ref().map(|(sum, adds)| (sum, *adds)),
            d_second: d_second.as_ref().map(|(sum, adds)| (sum, *adds)),
        };
        training.backward(&gpu, rows, &operands)?;
        gradients.add(&x, dx)
    }))
}

const OP: &str = "monarch";
