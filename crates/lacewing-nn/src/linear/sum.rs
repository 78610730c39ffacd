//! Sums: both branches by their own kernels, then one pass that weighs and adds. Outside training, where a branch
//! multiplies densely, the weights of both are added instead, for one product.

use super::{Kernel, Product};
use lacewing_core::{Form, Gate};
use lacewing_engine::ops::{self, Activation};
use lacewing_engine::{Cx, EngineError, Var};
use std::ops::Range;

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "sum",
    about: "each branch by its own kernel, weighed and added in one pass",
    accepts: |problem| matches!(problem.structure.form(), Form::Sum(_)),
    pays: |_| true,
    prepare: |problem, device| match problem.structure.form() {
        Form::Sum(sum) => Ok(Box::new(Branches {
            a: problem.of(sum.a.as_ref()).prepare(device)?,
            b: problem.of(sum.b.as_ref()).prepare(device)?,
            a_params: sum.a_params.clone(),
            b_params: sum.b_params.clone(),
            gate: sum.gate,
            filled: ops::FilledWeight::default(),
        })),
        _ => unreachable!("accepts sums only"),
    },
};

#[derive(Debug)]
struct Branches {
    a: Box<dyn Product>,
    b: Box<dyn Product>,
    a_params: Range<usize>,
    b_params: Range<usize>,
    gate: Gate,
    filled: ops::FilledWeight,
}

/// The sum of both branches' outputs, or of their weights, by a gate that is not learned.
fn weigh(cx: &Cx, a: &Var, b: &Var, gate: Gate) -> Result<Var, EngineError> {
    match gate {
        Gate::Fixed(0.5) => ops::scale(cx, &ops::add(cx, a, b)?, 0.5),
        Gate::Fixed(g) => ops::add(cx, &ops::scale(cx, a, (1.0 - g) as f32)?, &ops::scale(cx, b, g as f32)?),
        Gate::Plain | Gate::Learned { .. } => ops::add(cx, a, b),
    }
}

impl Product for Branches {
    fn kernel(&self) -> String {
        format!("{}({}, {})", KERNEL.name, self.a.kernel(), self.b.kernel())
    }

    fn run(
        &self,
        cx: &Cx,
        x: &Var,
        weights: &[Var],
        bias: Option<&Var>,
        act: Activation,
    ) -> Result<Var, EngineError> {
        let (a_weights, b_weights) = (&weights[self.a_params.clone()], &weights[self.b_params.clone()]);
        if !cx.is_training()
            && (self.a.fills() || self.b.fills())
            && let (Some(fill_a), Some(fill_b)) = (self.a.fill(), self.b.fill())
            && !matches!(self.gate, Gate::Learned { .. })
        {
            return self.filled.linear(cx, x, weights, bias, act, || {
                weigh(cx, &fill_a(cx, a_weights)?, &fill_b(cx, b_weights)?, self.gate)
            });
        }
        let a = self.a.run(cx, x, a_weights, None, Activation::Identity)?;
        let b = self.b.run(cx, x, b_weights, None, Activation::Identity)?;
        let y = match self.gate {
            Gate::Learned { weight, bias } => {
                let w = cx.reshape(&weights[weight], &[1, weights[weight].value().len()])?;
                let logits = ops::linear(cx, x, &w, Some(&weights[bias]), Activation::Identity)?;
                ops::gated_sum(cx, &a, &b, &logits)?
            }
            gate => weigh(cx, &a, &b, gate)?,
        };
        ops::bias_activation(cx, y, bias, act)
    }
}
