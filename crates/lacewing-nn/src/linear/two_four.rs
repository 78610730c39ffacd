//! N:M patterns of at most two values in every four inputs on a Hopper GPU's sparse tensor cores.
//!
//! Other GPUs and few rows go the way that would be taken without it.

use super::block_sparse::Indexed;
use super::scatter_dense::ScatterDense;
use super::{DeviceKind, Fill, Kernel, Problem, Product};
use lacewing_core::{Axis, Form, Pattern, PatternKind};
use lacewing_engine::ops::{self, Activation, TwoFourIndex};
use lacewing_engine::{Cx, DType, Device, EngineError, Var};

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "two_four",
    about: "the sparse tensor cores of Hopper GPUs, bf16: N:M along inputs, at most two in every four; sides multiples of 64",
    accepts: |problem| pattern(problem).is_some(),
    pays: |_| true,
    prepare: |problem, device| match pattern(problem) {
        Some(pattern) => Ok(Box::new(TwoFour::new(problem, pattern, device)?)),
        None => unreachable!("accepts such patterns only"),
    },
};

/// The pattern, if the kernel takes it.
fn pattern<'a>(problem: &Problem<'a>) -> Option<&'a Pattern> {
    let Form::Pattern(pattern) = problem.structure.form() else { return None };
    let two_of_four = match pattern.kind {
        PatternKind::Nm { n, m, axis: Axis::Row } => n <= 2 && m.is_multiple_of(4) || (n, m) == (1, 2),
        _ => false,
    };
    let sides = [pattern.n_out_ext, pattern.n_in_ext].iter().all(|side| side.is_multiple_of(64));
    let takes = problem.device == DeviceKind::Cuda && problem.dtype == DType::Bf16;
    (takes && two_of_four && sides).then_some(pattern)
}

/// What it costs, in multiply-adds that cuBLASLt does meanwhile at 730 TFLOP/s, from an H200 (768 to 16,384 wide, 16 to 32,768
/// rows): 0.28 µs for 64 inputs however few the rows, and 2 µs less than cuBLASLt for starting and ending. Beyond the rows
/// that take as long, its multiply-adds do.
const STEP: usize = 102_000_000;
const START: usize = 730_000_000;
/// Below so many multiply-adds of the dense product, 23 µs, either may be faster by a tenth, as their tiles happen to fit.
const LEAST: usize = 8_500_000_000;

/// Rows from which on it is faster than a dense product.
fn least_rows(pattern: &Pattern) -> usize {
    let (n_in, n_out) = (pattern.n_in_ext, pattern.n_out_ext);
    (STEP * (n_in / 64)).saturating_sub(START).max(LEAST).div_ceil(n_in * n_out)
}

#[derive(Debug)]
struct TwoFour {
    /// And the rows from which on it is taken: all, where it was asked for. None on a GPU that is no Hopper.
    index: Option<(TwoFourIndex, usize)>,
    otherwise: ScatterDense,
}

impl TwoFour {
    fn new(problem: &Problem<'_>, pattern: &Pattern, device: &Device) -> Result<Self, EngineError> {
        let otherwise = ScatterDense::new(Indexed::new(pattern, device)?);
        let rows = if problem.forced == Some(KERNEL.name) { 0 } else { least_rows(pattern) };
        let index = TwoFourIndex::new(&otherwise.indexed.index)?.map(|index| (index, rows));
        Ok(Self { index, otherwise })
    }
}

impl Product for TwoFour {
    fn kernel(&self) -> String {
        match self.index {
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
        match &self.index {
            Some((index, rows)) if x.value().rows() >= *rows => {
                self.otherwise.indexed.run(cx, x, bias, act, |x, bias, act| {
                    ops::two_four_linear(cx, x, &weights[0], index, bias, act)
                })
            }
            _ => self.otherwise.run(cx, x, weights, bias, act),
        }
    }

    fn fill(&self) -> Option<Fill<'_>> {
        self.otherwise.fill()
    }
}
