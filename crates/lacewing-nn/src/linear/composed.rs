//! Chains with many rows: the factors are multiplied out, and one dense product does the rest.
//!
//! A factor by itself reads and writes the activations once, a permutation once more, so a chain makes about eight
//! passes over them where a dense product makes two. On a GPU whose matrix units outrun its memory that costs more
//! than the dense product up to widths of about 1500; on a CPU for narrow butterflies of many factors. Multiplying the
//! factors out costs the chain on `n_in` rows, little beside many rows of activations, and nothing outside training, where
//! the product of the factors is kept: on a GPU few rows take the dense way then as well, one launch instead of several.
//! The function is the chain's, its gradients reach the factors.

use super::chain::{self, Links, identity};
use super::{DeviceKind, Fill, Kernel, Problem, Product, merged};
use lacewing_core::{Form, Link};
use lacewing_engine::ops::strided_blocks::MAX_SIDE;
use lacewing_engine::ops::{self, Activation};
use lacewing_engine::{Cx, Device, EngineError, Tensor, Var};

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: "composed",
    about: "multiplies a chain's factors out and runs one dense product, where rows are many",
    accepts: |problem| matches!(problem.structure.form(), Form::Chain(_)),
    pays,
    prepare: |problem, device| Ok(Box::new(Composed::new(problem, device)?)),
};

/// Rows of activations for each of `n_in` from which on composing is worth its price.
const ROWS_PER_COLUMN: usize = 4;

/// Sides from which on one batched product by blocks runs at a dense one's rate: on an H200 768 → 3072 took 0.57 and 0.49 of a
/// dense product's time in 2 and 4 blocks, and with smaller blocks more than all of it.
const LARGE: usize = 192;

/// On a GPU, where the dense product's multiply-adds take less time than the chain's links: 188 multiply-adds for each value
/// that a link reads or writes, as an H200 does 800 TFLOP/s in bf16 and moves 4.26 TB/s, and three for each of the link's
/// own, whose batched products are small. Links of large strided blocks move everything three times, transposed before the
/// product and after it; chains that move less than four times their inputs and outputs, of low rank, take as long as
/// that. On an H100 at 8,192 rows this agrees with what was measured: Monarch with 32 blocks 1.7 times as fast as dense at
/// 4096², with 8 blocks 0.75 there and 0.45 at 2048², low rank at 10 % 1.8, 1.3, and 0.7 at 768 × 3072, butterflies 0.05.
///
/// On a CPU, where a long chain writes more than a dense product's multiply-adds are worth: measured against
/// [`merged`] at 4,096 rows on one core of a Xeon with AVX-512 in f32, forward and backward. With 18 multiply-adds for
/// each value that the links write it took 0.4 to 0.5 of the time (128 → 128), with 21 0.5 to 0.6 (192 → 768), with 32
/// 0.7 to 1.0 (256 → 256), with 57 1.1 to 1.4 (512 → 512), with 102 2.6 (1024 → 1024).
fn pays(problem: &Problem<'_>) -> bool {
    let Form::Chain(chain) = problem.structure.form() else { return false };
    let (n_in, n_out) = (problem.structure.n_in(), problem.structure.n_out());
    match problem.device {
        DeviceKind::Cuda => {
            let passes = |link: &Link| match *link {
                Link::Blocks { stride, q, p, .. } if stride > 1 && q.max(p) > MAX_SIDE => 3,
                _ => 1,
            };
            let cost = |link: &Link, multiply_add: usize| {
                let (read, written) = link.sizes();
                188 * passes(link) * (read + written) + multiply_add * link.macs()
            };
            if let [link @ Link::Blocks { stride: 1, q, p, .. }] = &chain.links[..]
                && *q.min(p) >= LARGE
            {
                return n_in * n_out < cost(link, 1);
            }
            let all: usize = chain.links.iter().map(|link| cost(link, 3)).sum();
            n_in * n_out < all.max(4 * 188 * (n_in + n_out))
        }
        DeviceKind::Cpu => {
            let written: usize = chain.links.iter().map(|link| link.sizes().1).sum();
            chain.links.len() > 4 && n_in * n_out < 40 * written
        }
    }
}

#[derive(Debug)]
struct Composed {
    chain: Links,
    /// `[n_in, n_in]`.
    identity: Tensor,
    filled: ops::FilledWeight,
}

impl Composed {
    fn new(problem: &Problem<'_>, device: &Device) -> Result<Self, EngineError> {
        let chain = match (merged::KERNEL.accepts)(problem) {
            true => merged::links(problem, device)?,
            false => Links::new(chain::KERNEL.name, problem, device)?,
        };
        let identity = identity(chain.n_in, problem.dtype, device)?;
        Ok(Self { chain, identity, filled: ops::FilledWeight::default() })
    }
}

impl Product for Composed {
    fn kernel(&self) -> String {
        format!("{}({})", KERNEL.name, self.chain.kernel())
    }

    fn run(
        &self,
        cx: &Cx,
        x: &Var,
        weights: &[Var],
        bias: Option<&Var>,
        act: Activation,
    ) -> Result<Var, EngineError> {
        let kept = !cx.is_training() && !matches!(x.value().device(), Device::Cpu);
        if !kept && x.value().rows() < ROWS_PER_COLUMN * self.chain.n_in {
            return self.chain.run(cx, x, weights, bias, act);
        }
        self.filled.linear(cx, x, weights, bias, act, || self.chain.composed(cx, &self.identity, weights))
    }

    fn fill(&self) -> Option<Fill<'_>> {
        Some(Box::new(|cx, weights| self.chain.composed(cx, &self.identity, weights)))
    }

    fn fills(&self) -> bool {
        true
    }
}
