//! Block butterfly: a butterfly whose scalars are square matrices, so that each factor is a batch of small
//! products.
//!
//! Cost of a row: `2 · n · b² · log₂ n` multiply-adds a block, for every `n·b` outputs, with b × b matrices.

use serde_json::{Value, json};

use crate::butterfly::{
    BLOCKS, ButterflyFactors, ButterflyProduct, ButterflyShape, INCREASING, MAX_BLOCKS, check_sizes,
};
use crate::config::{Key, Options};
use crate::registry::first_within;
use crate::{Built, Problem, Rng, Structure, StructureError, StructureKind};

const NAME: &str = "block_butterfly";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "a butterfly of square matrices instead of scalars",
    keys: &[
        Key::new("block", "side of the matrices, 1 to the smaller of n_in and 4096", "32"),
        BLOCKS,
        INCREASING,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let blocks = (0..=7).rev().map(|log| json!({"structure": NAME, "block": 1 << log}));
        first_within((n_in, n_out), density, blocks)
    },
};

/// The greatest side of a matrix.
const MAX_BLOCK: usize = 1 << 12;

/// What defines a block butterfly besides the sizes of its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockButterflyConfig {
    /// Side of the matrices, 1 to the smaller of n_in and 4096.
    pub block: usize,
    /// Butterflies one after the other, 1 to 64. The direction flips after each.
    pub blocks: usize,
    /// Whether the strides of the first block grow.
    pub increasing: bool,
}

/// A butterfly on n vectors of length b, `n = 2^⌈log₂ ⌈n_in / b⌉⌉` but at least 2.
///
/// A factor of stride s reads x as `[n / 2s, 2, s, b]` and computes
/// `y[g, i, σ, α] = Σ_{j, β} T[g·s + σ, i, j, α, β] x[g, j, σ, β]`. Directions, stacks, padding and names are
/// those of [`Butterfly`](super::Butterfly), with `n·b` outputs to a stack.
///
/// Parameters are `twiddle.b.f [stacks, n/2, 2·b, 2·b]`, where `T[t, i, j, α, β]` is at row `2·α + i` and column
/// `2·β + j` of matrix t: within a matrix the index of the pair runs fastest, which lets a plain transposition
/// bring the two vectors of a pair together. A tensor `[stacks, blocks, log₂ n, n/2, 2, 2, b, b]` becomes these
/// parameters by taking one factor at a time and moving its axes `(i, j, α, β)` to `(α, i, β, j)`.
pub type BlockButterfly = ButterflyProduct<BlockButterflyConfig>;

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let config = BlockButterflyConfig {
        block: options.size("block", 1, n_in.min(MAX_BLOCK))?,
        blocks: options.size("blocks", 1, MAX_BLOCKS)?,
        increasing: options.flag("increasing")?,
    };
    Ok(Box::new(BlockButterfly::new(config, n_out, n_in)?))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let even = json!({"structure": NAME, "block": 2});
    let ragged = json!({"structure": NAME, "block": 3, "increasing": false});
    let twice = json!({"structure": NAME, "block": 2, "blocks": 2});
    let scalar = json!({"structure": NAME, "block": 1, "blocks": 2, "increasing": false});
    [(&even, 16, 16), (&ragged, 11, 7), (&twice, 7, 19), (&scalar, 5, 6), (&scalar, 1, 1)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl ButterflyFactors for BlockButterflyConfig {
    const NAME: &'static str = NAME;

    fn shape(&self) -> ButterflyShape {
        ButterflyShape { side: self.block, blocks: self.blocks, increasing: self.increasing }
    }

    /// N(0, 1 / 2b), which keeps the variance from factor to factor.
    fn draw(&self, twiddle: &mut [f32], rng: &mut Rng) {
        let std = (0.5 / self.block as f64).sqrt();
        twiddle.fill_with(|| (rng.normal() * std) as f32);
    }

    fn to_config(&self) -> Value {
        let Self { block, blocks, increasing } = self;
        json!({"structure": NAME, "block": block, "blocks": blocks, "increasing": increasing})
    }
}

impl BlockButterfly {
    /// A block butterfly for a layer `[n_out, n_in]`.
    ///
    /// # Errors
    ///
    /// [`StructureError::OutOfRange`] for a `block` or `blocks` outside its range; [`StructureError::Size`] for a
    /// size of 0 or above 2²⁴, and for several stacks of more than 2²² outputs together.
    pub fn new(config: BlockButterflyConfig, n_out: usize, n_in: usize) -> Result<Self, StructureError> {
        let BlockButterflyConfig { block, blocks, .. } = config;
        check_sizes(NAME, blocks, n_out, n_in)?;
        let most = n_in.min(MAX_BLOCK);
        if !(1..=most).contains(&block) {
            let (got, high) = (block as f64, most as f64);
            return Err(StructureError::OutOfRange { structure: NAME, key: "block", got, low: 1.0, high });
        }
        Self::stacked(config, n_out, n_in)
    }
}

#[cfg(test)]
mod tests {
    use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64};

    use super::*;
    use crate::chains::{Butterfly, ButterflyConfig};
    use crate::{Chain, Form, Init, ParamSpec};

    fn slices(params: &[Vec<f64>]) -> Vec<&[f64]> {
        params.iter().map(Vec::as_slice).collect()
    }

    #[test]
    fn matrices_of_one_number_are_a_butterfly() {
        for (n_in, n_out, blocks, increasing) in [(8, 8, 1, true), (7, 20, 2, false), (1, 3, 3, true)] {
            let config = BlockButterflyConfig { block: 1, blocks, increasing };
            let block = BlockButterfly::new(config, n_out, n_in).unwrap();
            let config = ButterflyConfig { blocks, increasing, ..ButterflyConfig::default() };
            let scalar = Butterfly::new(config, n_out, n_in).unwrap();
            assert_eq!(chain_of(&block), chain_of(&scalar));
            let params: Vec<Vec<f64>> = block
                .params()
                .iter()
                .enumerate()
                .map(|(i, spec)| uniform_f64(i as u64, spec.count()))
                .collect();
            assert_eq!(block.to_dense(&slices(&params)), scalar.to_dense(&slices(&params)));
            let names = |specs: Vec<ParamSpec>| specs.into_iter().map(|spec| spec.name).collect::<Vec<_>>();
            assert_eq!(names(block.params()), names(scalar.params()));
        }
    }

    fn chain_of(structure: &dyn Structure) -> &Chain {
        let Form::Chain(chain) = structure.form() else { panic!("not a chain") };
        chain
    }

    /// One factor by the formula over all indices, on the tensor `[n/2, 2, 2, b, b]`.
    fn naive(twiddle: &[f64], x: &[f64], stride: usize, b: usize) -> Vec<f64> {
        let groups = x.len() / (2 * stride * b);
        let at = |g, j, sigma, beta| ((g * 2 + j) * stride + sigma) * b + beta;
        let mut y = vec![0.0; x.len()];
        for (index, t) in twiddle.iter().enumerate() {
            let (beta, alpha) = (index % b, index / b % b);
            let (j, i) = (index / (b * b) % 2, index / (2 * b * b) % 2);
            let (sigma, g) = (index / (4 * b * b) % stride, index / (4 * b * b) / stride);
            assert!(g < groups);
            y[at(g, i, sigma, alpha)] += t * x[at(g, j, sigma, beta)];
        }
        y
    }

    /// Axes `(i, j, α, β)` of each matrix moved to `(α, i, β, j)`, by the documented places.
    fn moved(twiddle: &[f64], b: usize) -> Vec<f64> {
        let mut values = vec![0.0; twiddle.len()];
        for (index, &t) in twiddle.iter().enumerate() {
            let (beta, alpha) = (index % b, index / b % b);
            let (j, i) = (index / (b * b) % 2, index / (2 * b * b) % 2);
            let matrix = index / (4 * b * b);
            values[matrix * 4 * b * b + (2 * alpha + i) * 2 * b + 2 * beta + j] = t;
        }
        values
    }

    #[test]
    fn products_match_the_naive_definition() {
        for b in [1, 2, 4, 6] {
            for levels in [3, 4] {
                for (blocks, increasing) in [(1, true), (1, false), (2, true), (3, false)] {
                    let n = 1usize << levels;
                    let config = BlockButterflyConfig { block: b, blocks, increasing };
                    let structure = BlockButterfly::new(config, n * b, n * b).unwrap();
                    assert_eq!((structure.n(), structure.stacks()), (n, 1));
                    let count = 2 * n * b * b;
                    assert_eq!(structure.counts().parameters, count * levels * blocks);
                    let twiddles: Vec<Vec<f64>> =
                        (0..levels * blocks).map(|i| uniform_f64(i as u64, count)).collect();
                    let params: Vec<Vec<f64>> = twiddles.iter().map(|t| moved(t, b)).collect();
                    let x = uniform_f64(99, n * b);
                    let (mut y, mut sums) = (x.clone(), x.iter().map(|v| v.abs()).collect::<Vec<_>>());
                    for (at, twiddle) in twiddles.iter().enumerate() {
                        let (block, factor) = (at / levels, at % levels);
                        let grows = if block % 2 == 0 { increasing } else { !increasing };
                        let stride = if grows { 1 << factor } else { n >> (factor + 1) };
                        y = naive(twiddle, &y, stride, b);
                        let positive: Vec<f64> = twiddle.iter().map(|t| t.abs()).collect();
                        sums = naive(&positive, &sums, stride, b);
                    }
                    // A dense row adds n·b terms once more.
                    let k = 2 * b * twiddles.len() + n * b + 8;
                    let bound: Vec<f64> = sums.iter().map(|s| 2.0 * gamma_of(k, UNIT_F64) * s).collect();
                    assert_near(&structure.apply(&slices(&params), &x), &y, &bound, "definition");
                    let links = &chain_of(&structure).links;
                    let got = links.iter().fold(x, |x, link| link.apply(&slices(&params), &x));
                    assert_near(&got, &y, &bound, "links");
                }
            }
        }
    }

    #[test]
    fn normal_values_keep_the_variance_and_zeros_are_in_the_last_factor() {
        let config = BlockButterflyConfig { block: 8, blocks: 2, increasing: true };
        let structure = BlockButterfly::new(config, 64, 64).unwrap();
        let values = structure.init(Init::Default, &mut Rng::new(1));
        let count = structure.counts().parameters as f64;
        let square = values.iter().flatten().map(|&v| f64::from(v * v)).sum::<f64>() / count;
        assert!((square - 1.0 / 16.0).abs() < 6.0 * (2.0 / count).sqrt() / 16.0, "{square}");
        let zeros = structure.init(Init::Zeros, &mut Rng::new(1));
        let (last, others) = zeros.split_last().unwrap();
        assert!(last.iter().all(|&v| v == 0.0));
        assert_eq!(others, &values[..others.len()]);
    }

    #[test]
    fn what_cannot_be_is_an_error_with_numbers() {
        for (config, n_in, n_out, expected) in [
            (json!(NAME), 16, 16, "`block_butterfly.block` must be between 1 and 16, got 32"),
            (
                json!({"structure": NAME, "blocks": 65}),
                64,
                64,
                "`block_butterfly.blocks` must be between 1 and 64, got 65",
            ),
            (
                json!({"structure": NAME, "block": 1}),
                3,
                1 << 24,
                "`block_butterfly`: n_out, padded to whole stacks, must be between 1 and 4194304, got 16777216",
            ),
        ] {
            let error = crate::build(&config, n_in, n_out, 0, None).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        let config = json!({"structure": NAME, "block": 4096, "blocks": 64});
        let huge = crate::build(&config, 1 << 24, 1 << 24, 0, None).unwrap();
        assert_eq!(huge.counts().parameters, (64 * 12) << 37);
    }
}
