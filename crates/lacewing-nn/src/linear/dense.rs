//! Dense: one product, bias and activation in its epilogue.

use super::{Kernel, Product};
use lacewing_core::Form;
use lacewing_engine::ops::{self, Activation};
use lacewing_engine::{Cx, EngineError, Var};

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "dense",
    about: "one dense product with bias and activation in its epilogue",
    accepts: |problem| matches!(problem.structure.form(), Form::Dense),
    pays: |_| true,
    prepare: |_, _| Ok(Box::new(Dense::default())),
};

#[derive(Debug, Default)]
struct Dense(ops::PackedWeight);

impl Product for Dense {
    fn kernel(&self) -> String {
        KERNEL.name.to_owned()
    }

    fn run(
        &self,
        cx: &Cx,
        x: &Var,
        weights: &[Var],
        bias: Option<&Var>,
        act: Activation,
    ) -> Result<Var, EngineError> {
        ops::linear_packed(cx, x, &weights[0], bias, act, Some(&self.0))
    }
}
