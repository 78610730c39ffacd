//! Chains: one batched product a factor, a transpose where the permutation moves anything, a gather for a fixed map.
//!
//! Cost: the factors' multiply-adds, and a pass over the activations for each transpose, gather, padding or truncation
//! that is not free. Weights that are tied are gathered from their few values each time, a pass over the weights.

use super::{Fill, Kernel, Problem, Product, fit};
use lacewing_core::{Chain, Form, Gather, Link, Weights};
use lacewing_engine::ops::strided_blocks::MAX_SIDE;
use lacewing_engine::ops::{self, Activation, GatherIndex};
use lacewing_engine::{Cx, DType, Device, EngineError, Tensor, Var};

const NAME: &str = "chain";

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: NAME,
    about: "a batched product for each block-diagonal factor, one pass for small strided blocks, permutations between",
    accepts: |problem| matches!(problem.structure.form(), Form::Chain(_)),
    pays: |_| true,
    prepare: |problem, device| Ok(Box::new(Links::new(NAME, problem, device)?)),
};

/// A chain on its device, one step after the other.
#[derive(Debug)]
pub(super) struct Links {
    kernel: &'static str,
    pub(super) n_in: usize,
    n_in_ext: usize,
    n_out_ext: usize,
    n_out: usize,
    pub(super) steps: Vec<Step>,
}

/// A link with what it needs on the device.
#[derive(Debug)]
pub(super) enum Step {
    Blocks(Source, Blocks),
    Transpose { batch: usize, rows: usize, cols: usize },
    Gather(GatherIndex),
}

/// Sizes of a [`Link::Blocks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    pub(super) groups: usize,
    pub(super) stride: usize,
    pub(super) q: usize,
    pub(super) p: usize,
}

/// Where the weights of a step come from.
#[derive(Debug)]
pub(super) enum Source {
    /// With what a dense product by it keeps.
    Param(usize, ops::PackedWeight),
    Tied(usize, GatherIndex),
    /// Flat, in the compute type.
    Constant(Tensor),
    /// `W.flat[i] = a.flat[index_a(i)] · b.flat[index_b(i)]`.
    Product(Box<[(Source, GatherIndex); 2]>),
}

impl Links {
    /// The chain of the problem's structure.
    pub(super) fn new(
        kernel: &'static str,
        problem: &Problem<'_>,
        device: &Device,
    ) -> Result<Self, EngineError> {
        let Form::Chain(chain) = problem.structure.form() else { unreachable!("accepts chains only") };
        let &Chain { n_in, n_in_ext, n_out_ext, n_out, ref links } = chain;
        let steps =
            links.iter().map(|link| Step::new(link, problem.dtype, device)).collect::<Result<_, _>>()?;
        Ok(Self { kernel, n_in, n_in_ext, n_out_ext, n_out, steps })
    }

    /// `y = W x`, without bias or activation.
    pub(super) fn apply(&self, cx: &Cx, x: &Var, weights: &[Var]) -> Result<Var, EngineError> {
        let mut y = fit(cx, x.clone(), self.n_in_ext)?;
        for step in &self.steps {
            y = step.run(cx, y, weights)?;
        }
        fit(cx, y, self.n_out)
    }

    /// The product of the factors, `[n_out, n_in]`, by [`identity`].
    pub(super) fn composed(&self, cx: &Cx, identity: &Tensor, weights: &[Var]) -> Result<Var, EngineError> {
        let columns = self.apply(cx, &cx.constant(identity.clone()), weights)?;
        ops::transpose(cx, &columns)
    }
}

/// The rows of what a chain makes the columns of its weight of, `[n, n]`.
pub(super) fn identity(n: usize, dtype: DType, device: &Device) -> Result<Tensor, EngineError> {
    let mut identity = vec![0.0; n * n];
    identity.iter_mut().step_by(n + 1).for_each(|one| *one = 1.0);
    ops::cast(&Tensor::from_f32(device, &identity, &[n, n])?, dtype)
}

impl Product for Links {
    fn kernel(&self) -> String {
        self.kernel.to_owned()
    }

    fn run(
        &self,
        cx: &Cx,
        x: &Var,
        weights: &[Var],
        bias: Option<&Var>,
        act: Activation,
    ) -> Result<Var, EngineError> {
        // A last factor of one block is a dense product, whose epilogue takes bias and activation.
        if let Some((Step::Blocks(source, sizes), steps)) = self.steps.split_last()
            && sizes.groups * sizes.stride == 1
            && self.n_out == self.n_out_ext
        {
            let mut y = fit(cx, x.clone(), self.n_in_ext)?;
            for step in steps {
                y = step.run(cx, y, weights)?;
            }
            let w = cx.reshape(&source.get(cx, weights)?, &[sizes.q, sizes.p])?;
            return ops::linear_packed(cx, &y, &w, bias, act, source.packed());
        }
        ops::bias_activation(cx, self.apply(cx, x, weights)?, bias, act)
    }

    fn fill(&self) -> Option<Fill<'_>> {
        Some(Box::new(|cx, weights| {
            let identity = identity(self.n_in, cx.compute_dtype(), &cx.params().device())?;
            self.composed(cx, &identity, weights)
        }))
    }
}

impl Step {
    fn new(link: &Link, dtype: DType, device: &Device) -> Result<Self, EngineError> {
        let indexed =
            |gather: &Gather| GatherIndex::new(device, gather.n_in(), gather.terms(), gather.codes());
        Ok(match link {
            Link::Blocks { weights, .. } => {
                let source = match weights {
                    Weights::Param(param) => Source::Param(*param, Default::default()),
                    Weights::Tied { param, gather } => Source::Tied(*param, indexed(gather)?),
                    Weights::Constant(values) => {
                        let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
                        let values = Tensor::from_f32(device, &values, &[values.len()])?;
                        Source::Constant(ops::cast(&values, dtype)?)
                    }
                };
                Step::Blocks(source, Blocks::of(link).expect("blocks have sizes"))
            }
            &Link::Transpose { batch, rows, cols } => Step::Transpose { batch, rows, cols },
            Link::Gather(gather) => Step::Gather(indexed(gather)?),
        })
    }

    fn run(&self, cx: &Cx, x: Var, weights: &[Var]) -> Result<Var, EngineError> {
        match *self {
            Step::Blocks(ref source, Blocks { groups, stride, q, p }) => {
                let (w, blocks) = (source.get(cx, weights)?, groups * stride);
                if blocks == 1 {
                    let w = cx.reshape(&w, &[q, p])?;
                    return ops::linear_packed(cx, &x, &w, None, Activation::Identity, source.packed());
                }
                let w = cx.reshape(&w, &[blocks, q, p])?;
                if q.max(p) <= MAX_SIDE {
                    return ops::strided_blocks(cx, &x, &w, stride);
                }
                let x = transpose(cx, x, groups, p, stride)?;
                let y = ops::block_linear(cx, &x, &w)?;
                transpose(cx, y, groups, stride, q)
            }
            Step::Transpose { batch, rows, cols } => transpose(cx, x, batch, rows, cols),
            Step::Gather(ref index) => ops::gather(cx, &x, index),
        }
    }
}

impl Blocks {
    /// Those of a link, if it has any.
    pub(super) fn of(link: &Link) -> Option<Self> {
        match *link {
            Link::Blocks { groups, stride, q, p, .. } => Some(Self { groups, stride, q, p }),
            Link::Transpose { .. } | Link::Gather(_) => None,
        }
    }
}

impl Source {
    /// Where a dense product keeps them packed: not what is computed anew for each.
    fn packed(&self) -> Option<&ops::PackedWeight> {
        if let Self::Param(_, packed) = self { Some(packed) } else { None }
    }

    /// The weights, flat.
    pub(super) fn get(&self, cx: &Cx, weights: &[Var]) -> Result<Var, EngineError> {
        let flat = |var: &Var| cx.reshape(var, &[var.value().len()]);
        match self {
            Source::Param(param, _) => flat(&weights[*param]),
            Source::Tied(param, index) => ops::gather(cx, &flat(&weights[*param])?, index),
            Source::Constant(values) => Ok(cx.constant(values.clone())),
            Source::Product(factors) => {
                let of = |(source, index): &(Source, GatherIndex)| {
                    ops::gather(cx, &source.get(cx, weights)?, index)
                };
                let (a, b) = (of(&factors[0])?, of(&factors[1])?);
                let n = b.value().len();
                ops::strided_blocks(cx, &a, &cx.reshape(&b, &[n, 1, 1])?, n)
            }
        }
    }
}

/// Reads x as `[.., batch, rows, cols]` and writes it as `[.., batch, cols, rows]`.
fn transpose(cx: &Cx, x: Var, batch: usize, rows: usize, cols: usize) -> Result<Var, EngineError> {
    // One row or one column: the order of the elements does not change.
    if rows == 1 || cols == 1 {
        return Ok(x);
    }
    let lead = &x.shape()[..x.shape().len() - 1];
    let split = cx.reshape(&x, &[lead, &[batch, rows, cols]].concat())?;
    let turned = ops::transpose(cx, &split)?;
    cx.reshape(&turned, x.shape())
}
