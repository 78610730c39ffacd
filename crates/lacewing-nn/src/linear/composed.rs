//! Chains on a GPU with many rows: the factors are multiplied out, and one dense product does the rest.
//!
//! A factor by itself reads and writes the activations once, a permutation once more, so a chain makes about eight
//! passes over them where a dense product makes two. On a GPU whose matrix units outrun its memory that costs more
//! than the dense product up to widths of about 1500. Multiplying the factors out costs the chain on `n_in` rows,
//! little beside many rows of activations. The function is the chain's, its gradients reach the factors.

use super::chain::{self, Links};
use super::{DeviceKind, Kernel, Problem, Product};
use lacewing_core::{Chain, Form};
use lacewing_engine::ops::{self, Activation};
use lacewing_engine::{Cx, DType, Device, EngineError, Tensor, Var};

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "composed",
    about: "multiplies a chain's factors out and runs one dense product, where rows are many",
    accepts: |problem| matches!(problem.structure.form(), Form::Chain(_)),
    pays,
    prepare: |problem, device| match problem.structure.form() {
        Form::Chain(chain) => Ok(Box::new(Composed::new(chain, problem.dtype, device)?)),
        _ => unreachable!("accepts chains only"),
    },
};

/// Rows of activations for each of `n_in` from which on composing is worth its price.
const ROWS_PER_COLUMN: usize = 4;

/// On a GPU, where the layer is too narrow for a chain's passes over memory: with n_in·n_out / (n_in + n_out) operations
/// a byte in the dense product, and four times its traffic in the chain. An H200 does 800 TFLOP/s in bf16 and moves
/// 4.26 TB/s, which puts the balance at 750; other chips are near it.
fn pays(problem: &Problem<'_>) -> bool {
    let (n_in, n_out) = (problem.structure.n_in(), problem.structure.n_out());
    problem.device == DeviceKind::Cuda && n_in * n_out < 750 * (n_in + n_out)
}

#[derive(Debug)]
struct Composed {
    chain: Links,
    n_in: usize,
    /// `[n_in, n_in]`.
    identity: Tensor,
}

impl Composed {
    fn new(chain: &Chain, dtype: DType, device: &Device) -> Result<Self, EngineError> {
        let n_in = chain.n_in;
        let mut identity = vec![0.0; n_in * n_in];
        identity.iter_mut().step_by(n_in + 1).for_each(|one| *one = 1.0);
        let identity = ops::cast(&Tensor::from_f32(device, &identity, &[n_in, n_in])?, dtype)?;
        Ok(Self { chain: Links(chain.clone()), n_in, identity })
    }
}

impl Product for Composed {
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
        if x.value().rows() < ROWS_PER_COLUMN * self.n_in {
            return self.chain.run(cx, x, weights, bias, act);
        }
        let columns = chain::apply(cx, &self.chain.0, &cx.constant(self.identity.clone()), weights)?;
        ops::linear(cx, x, &ops::transpose(cx, &columns)?, bias, act)
    }
}
