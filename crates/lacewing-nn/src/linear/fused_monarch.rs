//! Monarch maps on a Hopper GPU, both factors in one launch: what lies between them stays in the L2 cache or the
//! multiprocessors.
//!
//! For passes that record nothing, and for those that record where the sizes have kernels for it ([`MonarchPlan::trains_on`]). Others,
//! other GPUs and rows too few to pay go the way that would be taken without it.

use super::chain::{self, Blocks};
use super::{DeviceKind, Fill, Kernel, Problem, Product, composed};
use lacewing_core::chains::MonarchFactors;
use lacewing_core::{Form, Link, Weights};
use lacewing_engine::ops::{self, Activation, MonarchPlan};
use lacewing_engine::{Cx, DType, Device, EngineError, Var};

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "fused_monarch",
    about: "both factors of a Monarch map in one launch, bf16 on Hopper; in training for 32 blocks of 128",
    accepts: |problem| plan(problem).is_some(),
    pays,
    prepare: |problem, device| Ok(Box::new(FusedMonarch::new(problem, device)?)),
};

/// What it costs, in multiply-adds that cuBLASLt does meanwhile at 750 TFLOP/s, from an H200 (8 to 32 blocks, 768 to 4096
/// wide, 16 to 32,768 rows): 18 µs for starting and ending, then for each row whichever takes longer, its values on their
/// way at 3.7 TB/s (those of x and y, and twice those between, unless they stay where they are) or its multiply-adds at 250
/// TFLOP/s.
const START: usize = 6_750_000_000;
const VALUE: usize = 200;
const MULTIPLY_ADD: usize = 3;
/// Of kernels whose weights stay in registers: 3.5 µs more than a dense product, which reads more weights than they do.
const RESIDENT_START: usize = 1_300_000_000;

/// Rows from which on it is faster than a dense product; none where it never is.
fn least_rows(problem: &Problem<'_>) -> Option<usize> {
    let factors = factors(problem)?;
    let MonarchFactors { k, q, p, l, s, r } = factors;
    let resident = MonarchPlan::new(factors)?.is_resident();
    let (start, between) = if resident { (RESIDENT_START, 0) } else { (START, 2 * k * q) };
    let row = (VALUE * (k * p + l * s + between)).max(MULTIPLY_ADD * (k * q * p + l * s * r));
    let dense = k * p * l * s;
    let gain = dense.checked_sub(row).filter(|&gain| gain > 0)?;
    Some(if resident && VALUE * dense > start + row { 1 } else { start.div_ceil(gain) })
}

fn pays(problem: &Problem<'_>) -> bool {
    least_rows(problem).is_some()
}

/// The sizes of a chain that is a Monarch map of two parameters, neither padded nor cut.
fn factors(problem: &Problem<'_>) -> Option<MonarchFactors> {
    let Form::Chain(chain) = problem.structure.form() else { return None };
    let [first, second] = &chain.links[..] else { return None };
    for (at, link) in [first, second].into_iter().enumerate() {
        match link {
            Link::Blocks { weights: Weights::Param(param), .. } if *param == at => {}
            _ => return None,
        }
    }
    let (a, b) = (Blocks::of(first)?, Blocks::of(second)?);
    let whole = chain.n_in == chain.n_in_ext && chain.n_out == chain.n_out_ext;
    let monarch = a.stride == 1 && b.groups == 1;
    (whole && monarch).then_some(MonarchFactors { k: a.groups, q: a.q, p: a.p, l: b.stride, s: b.q, r: b.p })
}

fn plan(problem: &Problem<'_>) -> Option<MonarchPlan> {
    let takes = problem.device == DeviceKind::Cuda && problem.dtype == DType::Bf16;
    takes.then(|| factors(problem)).flatten().and_then(MonarchPlan::new)
}

#[derive(Debug)]
struct FusedMonarch {
    /// And the rows from which on it is taken: all, where it was asked for. None on a GPU that is no Hopper.
    plan: Option<(MonarchPlan, usize)>,
    /// Whether it takes passes that record.
    trains: bool,
    otherwise: Box<dyn Product>,
}

impl FusedMonarch {
    fn new(problem: &Problem<'_>, device: &Device) -> Result<Self, EngineError> {
        let rows = if problem.forced == Some(KERNEL.name) { Some(0) } else { least_rows(problem) };
        let plan = plan(problem).filter(|plan| plan.runs_on(device)).zip(rows);
        let trains = plan.as_ref().map_or(Ok(false), |(plan, _)| plan.trains_on(device))?;
        let otherwise = if (composed::KERNEL.pays)(problem) { &composed::KERNEL } else { &chain::KERNEL };
        Ok(Self { plan, trains, otherwise: (otherwise.prepare)(problem, device)? })
    }
}

impl Product for FusedMonarch {
    fn kernel(&self) -> String {
        match self.plan {
            Some(_) => format!("{}({})", KERNEL.name, self.otherwise.kernel()),
            None => self.otherwise.kernel(),
        }
    }

    fn run(
        &self,
        cx: &Cx,
        x: &Var,
        weights: &[Var],
        bias: Option<&Var>,
        act: Activation,
    ) -> Result<Var, EngineError> {
        if let (Some((plan, rows)), [first, second]) = (&self.plan, weights)
            && x.value().rows() >= *rows
            && (self.trains || !weights.iter().chain([x]).chain(bias).any(|var| cx.records(&[var])))
        {
            return ops::monarch(cx, x, [first, second], plan, bias, act);
        }
        self.otherwise.run(cx, x, weights, bias, act)
    }

    fn fill(&self) -> Option<Fill<'_>> {
        self.otherwise.fill()
    }

    fn fills(&self) -> bool {
        self.otherwise.fills()
    }
}
