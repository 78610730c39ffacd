//! Chains on a CPU, all factors at once: the activations are read and written one time and stay in cache between.
//!
//! Cost: the factors' multiply-adds; backward the factors' outputs are made again rather than kept.

use super::chain::{Links, Step};
use super::{DeviceKind, Kernel, Problem, Product};
use lacewing_core::{Form, Link};
use lacewing_engine::ops::{self, Activation, ChainPlan};
use lacewing_engine::{Cx, Device, EngineError, Var};
use std::sync::Arc;

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "fused_chain",
    about: "all factors of a chain at once, a few rows at a time in cache; permutations move nothing",
    accepts: |problem| problem.device == DeviceKind::Cpu && plan(problem).is_some(),
    pays: |_| true,
    prepare: |problem, device| Ok(Box::new(FusedChain::new(problem, device)?)),
};

/// Weights of a factor, on average, from which on a few rows are faster factor by factor: a tile of 16 costs as much as one
/// row. Measured on a Xeon with AVX-512: a row 1.1 times as fast with 33,000, 2.4 with 150,000; on two cores of another,
/// Monarch and block-diagonal maps of 4 and 16 blocks, 768 to 3072 wide, 2 rows 1.1 to 3.8 times, 4 rows 0.8 to 2.9, and 8
/// rows 0.6 to 1.6, without a permutation and with twice the weights 1.1 to 1.6.
const FEW_ROWS_WEIGHTS: usize = 64 * 1024;
const FEW_ROWS: usize = 4;
const FEW_ROWS_PLAIN: usize = 8;

/// Rows from which on blocks that lie side by side, as in low rank and block-diagonal maps, are: without a permutation there
/// is less to save, and a matrix library multiplies them 1.2 to 1.5 times as fast (128 to 512 wide, 4,096 rows).
const PLAIN_ROWS: usize = 256;

/// Rows up to which chains of whole matrices, as low rank maps are, run factor by factor however small: there is nothing to
/// save. Measured on two cores with AVX-512, ranks of 61 and 256, 256 to 3072 wide: 0.31 to 0.89 of the time at 2 to 8
/// rows, 0.73 to 0.94 at 12, 0.6 to 1.2 at 16.
const FEW_ROWS_WHOLE: usize = 12;

/// Weights of a block from which on gradients are faster factor by factor, and what is made forward is worth keeping:
/// with blocks of 256 × 256 a training step took 0.6 of the time, with 32 × 32 and smaller ones 1.4 to 2.3.
const LARGE_BLOCK: usize = 64 * 64;

fn plan(problem: &Problem<'_>) -> Option<ChainPlan> {
    let Form::Chain(chain) = problem.structure.form() else { return None };
    ChainPlan::new(chain)
}

#[derive(Debug)]
struct FusedChain {
    plan: Arc<ChainPlan>,
    /// The chain factor by factor, and where the weights of each come from.
    links: Links,
    /// Whether all blocks read and write what lies side by side.
    plain: bool,
    /// Whether all factors are whole matrices.
    whole: bool,
    /// Weights of the largest.
    largest: usize,
}

impl FusedChain {
    fn new(problem: &Problem<'_>, device: &Device) -> Result<Self, EngineError> {
        let plan = Arc::new(plan(problem).expect("accepts chains with a plan only"));
        let Form::Chain(chain) = problem.structure.form() else { unreachable!("accepts chains only") };
        let plain = chain.links.iter().all(|link| matches!(link, Link::Blocks { stride: 1, .. }));
        let whole = chain.links.iter().all(|link| matches!(link, Link::Blocks { groups: 1, stride: 1, .. }));
        let largest = plan.shapes().map(|[_, q, p]| q * p).max().unwrap_or(0);
        Ok(Self { plan, links: Links::new(KERNEL.name, problem, device)?, plain, whole, largest })
    }
}

impl Product for FusedChain {
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
        let rows = x.value().rows();
        let weights_of_factor = self.plan.macs() / self.plan.shapes().count().max(1);
        let few = weights_of_factor >= FEW_ROWS_WEIGHTS && rows <= FEW_ROWS
            || self.plain && weights_of_factor >= 2 * FEW_ROWS_WEIGHTS && rows <= FEW_ROWS_PLAIN
            || self.whole && rows <= FEW_ROWS_WHOLE;
        let train = self.largest >= LARGE_BLOCK && weights.iter().chain([x]).any(|var| cx.records(&[var]));
        if few || train || rows >= PLAIN_ROWS && self.plain {
            return self.links.run(cx, x, weights, bias, act);
        }
        let source = |step: &Step| match step {
            Step::Blocks(source, _) => Some(source.get(cx, weights)),
            Step::Transpose { .. } | Step::Gather(_) => None,
        };
        let factors: Vec<Var> = self.links.steps.iter().filter_map(source).collect::<Result<_, _>>()?;
        ops::chain(cx, x, &factors, &self.plan, bias, act)
    }
}
