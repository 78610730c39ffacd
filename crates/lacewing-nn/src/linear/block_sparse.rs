//! Block-sparse product: only the stored blocks are multiplied, or single values.
//!
//! Cost: stored values times rows. The engine's kernel tables choose how on each device.

use super::{DeviceKind, Kernel, Problem, Product, fit};
use lacewing_core::{Form, Pattern};
use lacewing_engine::ops::{self, Activation, BlockIndex};
use lacewing_engine::{Cx, DType, Device, EngineError, Var};

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "block_sparse",
    about: "multiplies the stored blocks only: 8×8 up, in bf16 of multiples of 16; single values on the CPU",
    accepts,
    pays,
    prepare: |problem, device| match problem.structure.form() {
        Form::Pattern(pattern) => Ok(Box::new(BlockSparse(Indexed::new(pattern, device)?))),
        _ => unreachable!("accepts patterns only"),
    },
};

fn accepts(problem: &Problem<'_>) -> bool {
    let Form::Pattern(Pattern { block: (rows, cols), .. }) = problem.structure.form() else { return false };
    let least = *rows.min(cols);
    if problem.device == DeviceKind::Cpu {
        return true;
    }
    let multiple = if problem.dtype == DType::Bf16 { 16 } else { 1 };
    least >= 8 && rows % multiple == 0 && cols % multiple == 0
}

/// Below the density where multiplying stored blocks beats [`super::scatter_dense`]: break-evens measured on an H200
/// in bf16 (768 to 4096 wide, 8192 rows, forward and training step; in f32, of which tensor cores take no blocks, a product
/// took ten times a dense one's time at 10 %), and on two Intel cores with AVX-512 in f32, forward and training
/// step (768 to 3072 wide, 16 to 1024 rows). There blocks of 16 up always win, and beat a dense layer as well up to 0.85;
/// single values at a half took 0.86 of a dense layer's time forward and 1.3 of it in a training step, blocks of 4 0.56 to
/// 0.74 and 0.74 to 0.78. At these break-evens blocks of 4 × 4 and 1 × 4 forward take 0.2 to 0.55 of the copy's time, in a
/// training step 0.6 to 1.25.
fn pays(problem: &Problem<'_>) -> bool {
    let Form::Pattern(pattern) = problem.structure.form() else { return false };
    let (rows, cols) = pattern.block;
    // Of narrow layers more of the time goes to what is read and written besides.
    let by_width = |wide, narrow| if pattern.n_out.min(pattern.n_in) >= 2048 { wide } else { narrow };
    let break_even = match (problem.device, problem.dtype, rows.min(cols)) {
        (DeviceKind::Cuda, DType::Bf16, 128..) => by_width(0.6, 0.33),
        (DeviceKind::Cuda, DType::Bf16, 64..) => by_width(0.5, 0.3),
        (DeviceKind::Cuda, DType::Bf16, 32..) => by_width(0.27, 0.15),
        (DeviceKind::Cuda, DType::Bf16, _) => by_width(0.05, 0.03),
        (DeviceKind::Cuda, ..) => 0.01,
        (DeviceKind::Cpu, _, 16..) => 1.0,
        (DeviceKind::Cpu, _, 4..) => 0.75,
        (DeviceKind::Cpu, ..) => 0.6,
    };
    problem.structure.density() <= break_even
}

#[derive(Debug)]
struct BlockSparse(Indexed);

impl Product for BlockSparse {
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
        self.0.run(cx, x, bias, act, |x, bias, act| {
            ops::block_sparse_linear(cx, x, &weights[0], &self.0.index, bias, act)
        })
    }
}

/// A pattern with its indices on the device.
#[derive(Debug)]
pub(super) struct Indexed {
    pub(super) index: BlockIndex,
    pub(super) n_in: usize,
    pub(super) n_in_ext: usize,
    pub(super) n_out_ext: usize,
    pub(super) n_out: usize,
}

impl Indexed {
    pub(super) fn new(pattern: &Pattern, device: &Device) -> Result<Self, EngineError> {
        let &Pattern { n_in, n_in_ext, n_out_ext, n_out, block, ref positions, .. } = pattern;
        let index = BlockIndex::new(device, (n_out_ext, n_in_ext), block, positions)?;
        Ok(Self { index, n_in, n_in_ext, n_out_ext, n_out })
    }
    /// `product` with the input padded to the pattern's size and the output cut from it, before its end if there is a cut.
    pub(super) fn run(
        &self,
        cx: &Cx,
        x: &Var,
        bias: Option<&Var>,
        act: Activation,
        product: impl FnOnce(&Var, Option<&Var>, Activation) -> Result<Var, EngineError>,
    ) -> Result<Var, EngineError> {
        let x = fit(cx, x.clone(), self.n_in_ext)?;
        if self.n_out == self.n_out_ext {
            return product(&x, bias, act);
        }
        let y = product(&x, None, Activation::Identity)?;
        ops::bias_activation(cx, fit(cx, y, self.n_out)?, bias, act)
    }
}
