//! Both factors of a Monarch map in one launch, on a Hopper GPU, in passes that record nothing.
//!
//! A recorded pass keeps what lies between the factors, so it runs them by [`super::block_linear()`], one after the other.

use super::activation::Activation;
use super::linear::{check_bias, with_cols};
use crate::{Cx, DType, Device, EngineError, Result, Var};
use lacewing_core::chains::MonarchFactors;
use lacewing_cuda::Finish;
use lacewing_cuda::monarch::{Operands, Plan, supported};

/// How a GPU cuts a Monarch map into tiles.
#[derive(Debug)]
pub struct MonarchPlan(Plan);

impl MonarchPlan {
    /// The plan for these factors; none for sizes that the kernel does not take ([`Plan::new`]).
    pub fn new(factors: MonarchFactors) -> Option<Self> {
        Plan::new(factors).map(Self)
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
}

/// `y = f(W x + b)` with `W` the Monarch map of `first [k, q, p]` and `second [l, s, r]`; what lies between them is rounded to
/// bf16.
///
/// Shapes: `x [..., k·p]`, `bias [l·s]` → `[..., l·s]`, all bf16. Cost: `rows · (k·q·p + l·s·r)` MACs; x and y pass through
/// memory once.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit, a CPU's
/// tensors included; [`EngineError::Value`] in a pass that records: there are no gradients.
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
    if cx.records(&inputs) {
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
    let y = x.value().like(&with_cols(x.shape(), l * s))?;
    let bias = bias.map(|bias| bias.value().region());
    let operands = Operands {
        x: &x.value().region(),
        first: &first.value().region(),
        second: &second.value().region(),
        y: &y.region(),
        finish: Finish { bias: bias.as_ref(), activation: act },
    };
    plan.0.run(gpu, x.value().rows(), &operands)?;
    Ok(cx.constant(y))
}

const OP: &str = "monarch";
