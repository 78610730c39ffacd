//! Scatter and multiply: the values are written into a dense matrix, and one dense product does the rest.
//!
//! Cost: a dense product and, in training, a pass over W; outside training W stays filled in. It takes every pattern and
//! is the one to beat: a sparse kernel that is slower than this does not pay.

use super::block_sparse::Indexed;
use super::{Fill, Kernel, Product, fit};
use lacewing_core::Form;
use lacewing_engine::ops::{self, Activation};
use lacewing_engine::{Cx, EngineError, Var};

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "scatter_dense",
    about: "scatters the values into a dense matrix and multiplies densely: any pattern",
    accepts: |problem| matches!(problem.structure.form(), Form::Pattern(_)),
    pays: |_| true,
    prepare: |problem, device| match problem.structure.form() {
        Form::Pattern(pattern) => Ok(Box::new(ScatterDense::new(Indexed::new(pattern, device)?))),
        _ => unreachable!("accepts patterns only"),
    },
};

#[derive(Debug)]
pub(super) struct ScatterDense {
    pub(super) indexed: Indexed,
    filled: ops::FilledWeight,
}

impl ScatterDense {
    pub(super) fn new(indexed: Indexed) -> Self {
        Self { indexed, filled: ops::FilledWeight::default() }
    }
}

impl Product for ScatterDense {
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
        let fill = || ops::scatter_blocks(cx, &weights[0], &self.indexed.index);
        self.indexed.run(cx, x, bias, act, |x, bias, act| self.filled.linear(cx, x, weights, bias, act, fill))
    }

    fn fill(&self) -> Option<Fill<'_>> {
        let &Indexed { ref index, n_in, n_in_ext, n_out_ext, n_out } = &self.indexed;
        Some(Box::new(move |cx, weights| {
            let w = ops::scatter_blocks(cx, &weights[0], index)?;
            if (n_in, n_out) == (n_in_ext, n_out_ext) {
                return Ok(w);
            }
            let cut = fit(cx, ops::transpose(cx, &fit(cx, w, n_in)?)?, n_out)?;
            ops::transpose(cx, &cut)
        }))
    }

    fn fills(&self) -> bool {
        true
    }
}
