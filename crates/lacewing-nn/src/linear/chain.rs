//! Chains: one batched product a factor, a transpose where the permutation moves anything.
//!
//! Cost: the factors' multiply-adds, and a pass over the activations for each transpose, padding or truncation that is
//! not free.

use super::{Kernel, Product, fit};
use lacewing_core::{Chain, Form, Link};
use lacewing_engine::ops::{self, Activation};
use lacewing_engine::{Cx, EngineError, Var};

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "chain",
    about: "a batched product for each block-diagonal factor, a transpose for each permutation",
    accepts: |problem| matches!(problem.structure.form(), Form::Chain(_)),
    pays: |_| true,
    prepare: |problem, _| match problem.structure.form() {
        Form::Chain(chain) => Ok(Box::new(Links(chain.clone()))),
        _ => unreachable!("accepts chains only"),
    },
};

/// A chain, one link after the other.
#[derive(Debug)]
pub(super) struct Links(pub(super) Chain);

/// `y = W x` by the chain's links, without bias or activation.
pub(super) fn apply(cx: &Cx, chain: &Chain, x: &Var, weights: &[Var]) -> Result<Var, EngineError> {
    let mut y = fit(cx, x.clone(), chain.n_in_ext)?;
    for link in &chain.links {
        y = step(cx, &y, link, weights)?;
    }
    fit(cx, y, chain.n_out)
}

impl Product for Links {
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
        let chain = &self.0;
        let mut y = fit(cx, x.clone(), chain.n_in_ext)?;
        let (last, links) = chain.links.split_last().expect("a chain has links");
        for link in links {
            y = step(cx, &y, link, weights)?;
        }
        // A last factor of one block is a dense product, whose epilogue takes bias and activation.
        if let (&Link::Blocks { param, blocks: 1, .. }, true) = (last, chain.n_out == chain.n_out_ext) {
            return ops::linear(cx, &y, &matrix(cx, &weights[param])?, bias, act);
        }
        y = step(cx, &y, last, weights)?;
        ops::bias_activation(cx, fit(cx, y, chain.n_out)?, bias, act)
    }
}

fn step(cx: &Cx, x: &Var, link: &Link, weights: &[Var]) -> Result<Var, EngineError> {
    match *link {
        Link::Blocks { param, blocks: 1, .. } => {
            ops::linear(cx, x, &matrix(cx, &weights[param])?, None, Activation::Identity)
        }
        Link::Blocks { param, blocks, q, p } => {
            ops::block_linear(cx, x, &cx.reshape(&weights[param], &[blocks, q, p])?)
        }
        // One row or one column: the order of the elements does not change.
        Link::Transpose { rows: 1, .. } | Link::Transpose { cols: 1, .. } => Ok(x.clone()),
        Link::Transpose { rows, cols } => {
            let lead = &x.shape()[..x.shape().len() - 1];
            let split = cx.reshape(x, &[lead, &[rows, cols]].concat())?;
            let turned = ops::transpose(cx, &split)?;
            cx.reshape(&turned, x.shape())
        }
    }
}

/// A factor of one block as `[q, p]`.
fn matrix(cx: &Cx, w: &Var) -> Result<Var, EngineError> {
    let shape = w.shape();
    cx.reshape(w, &shape[shape.len() - 2..])
}
