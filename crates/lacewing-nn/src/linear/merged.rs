//! Chains of small strided blocks, two links at a time: a base-4 butterfly as an execution form, same parameters.
//!
//! Two links whose strides follow each other are one link of blocks `q₂q₁ × p₂p₁`, whose weights are products of
//! theirs. A pass over the activations is saved for each pair, for as many multiply-adds or a few more; the products
//! cost a pass over the merged weights. Gradients reach both factors. Forward and backward took 0.6 to 0.8 of the
//! chain's time for butterflies of 128 to 1024 at 4,096 rows on one Xeon core, so it pays wherever it accepts; blocks of
//! 8×8 took as long as those of 4×4.

use super::chain::{Blocks, Links, Source, Step};
use super::{Kernel, Problem};
use lacewing_core::Form;
use lacewing_engine::ops::GatherIndex;
use lacewing_engine::{Device, EngineError};

const NAME: &str = "merged";

/// The row of the table.
pub(super) const KERNEL: Kernel = Kernel {
    name: NAME,
    about: "as chain, with pairs of small strided factors multiplied into one: butterflies by 4×4 instead of 2×2",
    accepts,
    pays: |_| true,
    prepare: |problem, device| Ok(Box::new(links(problem, device)?)),
};

/// The largest side of a merged block.
const MAX_MERGED: usize = 4;

fn accepts(problem: &Problem<'_>) -> bool {
    let Form::Chain(chain) = problem.structure.form() else { return false };
    let sizes: Vec<_> = chain.links.iter().map(Blocks::of).collect();
    sizes.windows(2).any(|pair| matches!(pair, &[Some(a), Some(b)] if Pair::of(a, b).is_some()))
}

/// The chain of the problem's structure, merged.
pub(super) fn links(problem: &Problem<'_>, device: &Device) -> Result<Links, EngineError> {
    let mut links = Links::new(NAME, problem, device)?;
    links.steps = merge(links.steps, device)?;
    Ok(links)
}

/// Joins each link to the one before it while the blocks stay small.
fn merge(steps: Vec<Step>, device: &Device) -> Result<Vec<Step>, EngineError> {
    let mut merged: Vec<Step> = Vec::with_capacity(steps.len());
    for step in steps {
        let pair = match (merged.last(), &step) {
            (Some(&Step::Blocks(_, a)), &Step::Blocks(_, b)) => Pair::of(a, b),
            _ => None,
        };
        match (pair, step) {
            (Some(pair), Step::Blocks(second, _)) => {
                let Some(Step::Blocks(first, _)) = merged.pop() else { unreachable!("matched above") };
                let (from_first, from_second) = pair.indices(device)?;
                let factors = Box::new([(first, from_first), (second, from_second)]);
                merged.push(Step::Blocks(Source::Product(factors), pair.merged()));
            }
            (_, step) => merged.push(step),
        }
    }
    Ok(merged)
}

/// Two links that are one: either the second's stride is the first's times q₁ (rising), or the first's is the second's
/// times p₂.
#[derive(Clone, Copy, Debug)]
struct Pair {
    first: Blocks,
    second: Blocks,
    rising: bool,
}

impl Pair {
    fn of(mut first: Blocks, mut second: Blocks) -> Option<Self> {
        // Columns times a vector: any stride is theirs.
        if first.q * first.p == 1 {
            first = Blocks { stride: second.stride, groups: second.groups * second.p, ..first };
        } else if second.q * second.p == 1 {
            second = Blocks { stride: first.stride * first.q, groups: first.groups, ..second };
        }
        let rising = second.stride == first.stride * first.q;
        let falling = first.stride == second.stride * second.p;
        let small = (first.q * second.q).max(first.p * second.p) <= MAX_MERGED;
        (small && (rising || falling)).then_some(Self { first, second, rising })
    }

    fn merged(&self) -> Blocks {
        let Self { first, second, rising } = *self;
        let (groups, stride) =
            if rising { (second.groups, first.stride) } else { (first.groups, second.stride) };
        Blocks { groups, stride, q: second.q * first.q, p: second.p * first.p }
    }

    /// For each weight of the merged link `[groups · stride, q, p]` which of the first's and of the second's make it.
    fn indices(&self, device: &Device) -> Result<(GatherIndex, GatherIndex), EngineError> {
        let Self { first, second, rising } = *self;
        let Blocks { groups, stride, q, p } = self.merged();
        let (mut of_first, mut of_second) = (Vec::new(), Vec::new());
        for (block, j, i) in (0..groups * stride).flat_map(|b| (0..q * p).map(move |at| (b, at / p, at % p)))
        {
            let (g, s) = (block / stride, block % stride);
            // (Block, output, input) in each factor: output j₁ of the first is what input i₂ of the second reads.
            let (a, b) = if rising {
                let ((j2, j1), (i2, i1)) = ((j / first.q, j % first.q), (i / first.p, i % first.p));
                (
                    ((g * second.p + i2) * first.stride + s, j1, i1),
                    (g * second.stride + j1 * first.stride + s, j2, i2),
                )
            } else {
                let ((j1, j2), (i1, i2)) = ((j / second.q, j % second.q), (i / second.p, i % second.p));
                (
                    (g * first.stride + i2 * second.stride + s, j1, i1),
                    ((g * first.q + j1) * second.stride + s, j2, i2),
                )
            };
            let flat =
                |(block, j, i): (usize, usize, usize), of: Blocks| ((block * of.q + j) * of.p + i) as u32;
            of_first.push(flat(a, first));
            of_second.push(flat(b, second));
        }
        let index = |of: Blocks, codes: &[u32]| {
            GatherIndex::new(device, of.groups * of.stride * of.q * of.p, 1, codes)
        };
        Ok((index(first, &of_first)?, index(second, &of_second)?))
    }
}
