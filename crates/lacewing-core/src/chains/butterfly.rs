//! Butterfly: log₂ n factors of 2 × 2 blocks, n the power of two that holds the input. FFT, DCT and Hadamard are
//! such products, and two blocks of opposite direction (a Kaleidoscope matrix) hold every permutation and
//! convolution.
//!
//! Cost of a row: `2 · n · log₂ n` multiply-adds a block, for every n outputs.

use std::f64::consts::{FRAC_1_SQRT_2, TAU};

use serde_json::{Value, json};

use crate::butterfly::{
    BLOCKS, ButterflyFactors, ButterflyProduct, ButterflyShape, INCREASING, MAX_BLOCKS, check_sizes,
};
use crate::config::{Key, Options};
use crate::registry::first_within;
use crate::structure::check_params;
use crate::{Built, Problem, Rng, Structure, StructureError, StructureKind};

const NAME: &str = "butterfly";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "log2 n factors of 2 x 2 blocks, as in the FFT",
    keys: &[
        BLOCKS,
        INCREASING,
        Key::new(
            "init",
            "`randn` (normal), `ortho` (random rotations and reflections) or `identity`",
            "\"randn\"",
        ),
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let blocks = (1..=16).rev().map(|blocks| json!({"structure": NAME, "blocks": blocks}));
        first_within((n_in, n_out), density, blocks)
    },
};

/// How the 2 × 2 blocks of a butterfly start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ButterflyInit {
    /// N(0, ½) for each value, which keeps the variance from factor to factor.
    Randn,
    /// Rotations and reflections, equally likely, by a uniform angle: the map is orthogonal.
    Ortho,
    /// The identity.
    Identity,
}

/// What defines a butterfly besides the sizes of its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ButterflyConfig {
    /// Butterflies one after the other, 1 to 64. The direction flips after each.
    pub blocks: usize,
    /// Whether the strides of the first block grow.
    pub increasing: bool,
    /// First values.
    pub init: ButterflyInit,
}

/// Products of 2 × 2 blocks at strides 1, 2, …, n/2 with `n = 2^⌈log₂ n_in⌉`, 2 for one input.
///
/// Factor `f` of block `b` has stride `s = 2^f` where the block is increasing, `s = n / 2^(f+1)` where it is
/// decreasing. With x read as `[n / 2s, 2, s]` it computes `y[g, i, σ] = Σ_j T[g·s + σ, i, j] x[g, j, σ]`. Factors
/// run in the order of their names, `twiddle.b.f`, from f = 0.
///
/// There are `⌈n_out / n⌉` independent stacks of such products, each on the whole input padded with zeros to n;
/// their outputs follow one another and are cut to `n_out`. Parameters are `twiddle.b.f [stacks, n/2, 2, 2]`.
pub type Butterfly = ButterflyProduct<ButterflyConfig>;

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let inits = [
        ("randn", ButterflyInit::Randn),
        ("ortho", ButterflyInit::Ortho),
        ("identity", ButterflyInit::Identity),
    ];
    let config = ButterflyConfig {
        blocks: options.size("blocks", 1, MAX_BLOCKS)?,
        increasing: options.flag("increasing")?,
        init: options.choice("init", &inits, "`randn`, `ortho` or `identity`")?,
    };
    Ok(Box::new(Butterfly::new(config, n_out, n_in)?))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let plain = json!(NAME);
    let down = json!({"structure": NAME, "increasing": false, "init": "ortho"});
    let kaleidoscope = json!({"structure": NAME, "blocks": 2});
    let three = json!({"structure": NAME, "blocks": 3, "increasing": false});
    [(&plain, 8, 8), (&down, 7, 5), (&kaleidoscope, 3, 11), (&three, 5, 16), (&plain, 1, 1), (&plain, 1, 3)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

/// A random rotation or reflection, row-major: `[[d·cos θ, −d·sin θ], [sin θ, cos θ]]` with θ uniform, d = ±1.
pub(super) fn orthogonal(rng: &mut Rng) -> [f64; 4] {
    let (sin, cos) = rng.uniform(0.0, TAU).sin_cos();
    let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
    [sign * cos, -sign * sin, sin, cos]
}

impl ButterflyInit {
    fn name(self) -> &'static str {
        match self {
            Self::Randn => "randn",
            Self::Ortho => "ortho",
            Self::Identity => "identity",
        }
    }

    /// One block of 2 × 2, row-major.
    fn draw(self, rng: &mut Rng) -> [f64; 4] {
        match self {
            Self::Randn => std::array::from_fn(|_| rng.normal() * FRAC_1_SQRT_2),
            Self::Ortho => orthogonal(rng),
            Self::Identity => [1.0, 0.0, 0.0, 1.0],
        }
    }
}

impl Default for ButterflyConfig {
    /// One increasing block with normal values.
    fn default() -> Self {
        Self { blocks: 1, increasing: true, init: ButterflyInit::Randn }
    }
}

impl ButterflyFactors for ButterflyConfig {
    const NAME: &'static str = NAME;

    fn shape(&self) -> ButterflyShape {
        ButterflyShape { side: 1, blocks: self.blocks, increasing: self.increasing }
    }

    fn draw(&self, twiddle: &mut [f32], rng: &mut Rng) {
        twiddle.copy_from_slice(&self.init.draw(rng).map(|value| value as f32));
    }

    fn to_config(&self) -> Value {
        let Self { blocks, increasing, init } = self;
        json!({"structure": NAME, "blocks": blocks, "increasing": increasing, "init": init.name()})
    }
}

impl Butterfly {
    /// A butterfly for a layer `[n_out, n_in]`.
    ///
    /// # Errors
    ///
    /// [`StructureError::OutOfRange`] for no block or more than 64; [`StructureError::Size`] for a size of 0 or
    /// above 2²⁴, and for several stacks of more than 2²² outputs together.
    pub fn new(config: ButterflyConfig, n_out: usize, n_in: usize) -> Result<Self, StructureError> {
        check_sizes(NAME, config.blocks, n_out, n_in)?;
        Self::stacked(config, n_out, n_in)
    }

    /// The butterfly that computes `Wᵀ`, and its parameters.
    ///
    /// The factors run backwards, each block of 2 × 2 transposed, and the first direction is the opposite of what
    /// the last block's was.
    ///
    /// # Errors
    ///
    /// [`StructureError::FactorShape`] when `n_out` needs another power of two than `n_in`, since then the
    /// transpose is not a butterfly; in particular for several stacks.
    ///
    /// # Panics
    ///
    /// When `params` does not match the butterfly.
    pub fn transposed(&self, params: &[&[f64]]) -> Result<(Self, Vec<Vec<f64>>), StructureError> {
        check_params(&self.params(), params);
        let got = self.n_out().next_power_of_two().max(2);
        if got != self.n() {
            let what = "n_out of a butterfly to transpose, padded to a power of two,";
            return Err(StructureError::FactorShape { structure: NAME, what, expected: self.n(), got });
        }
        let ButterflyConfig { blocks, increasing, .. } = self.settings();
        let last_increasing = increasing == (blocks % 2 == 1);
        let config = ButterflyConfig { increasing: !last_increasing, ..self.settings() };
        let flip = |values: &&[f64]| values.chunks_exact(4).flat_map(|t| [t[0], t[2], t[1], t[3]]).collect();
        let params = params.iter().rev().map(flip).collect();
        Ok((Self::new(config, self.n_in(), self.n_out())?, params))
    }
}

#[cfg(test)]
mod tests {
    use lacewing_testkit::{UNIT_F32, UNIT_F64, assert_near, gamma_of, uniform_f64};

    use super::*;
    use crate::{Form, Init};

    fn square(n: usize, blocks: usize, increasing: bool) -> Butterfly {
        Butterfly::new(ButterflyConfig { blocks, increasing, ..ButterflyConfig::default() }, n, n).unwrap()
    }

    fn slices(params: &[Vec<f64>]) -> Vec<&[f64]> {
        params.iter().map(Vec::as_slice).collect()
    }

    fn random(structure: &dyn Structure) -> Vec<Vec<f64>> {
        structure.params().iter().enumerate().map(|(i, spec)| uniform_f64(i as u64, spec.count())).collect()
    }

    fn initial(structure: &dyn Structure, seed: u64) -> Vec<Vec<f64>> {
        let values = structure.init(Init::Default, &mut Rng::new(seed));
        values.into_iter().map(|values| values.into_iter().map(f64::from).collect()).collect()
    }

    #[test]
    fn products_match_the_reference() {
        let twiddle: Vec<f64> = (0..16).map(|i| (i % 5) as f64 - 2.0).collect();
        let params: Vec<&[f64]> = twiddle.chunks(8).collect();
        for (increasing, expected) in [(true, [-8., -3., 10., 10.]), (false, [-13., 14., -2., 10.])] {
            let butterfly = square(4, 1, increasing);
            assert_eq!(butterfly.apply(&params, &[1., 2., 3., 4.]), expected);
            let Form::Chain(chain) = butterfly.form() else { panic!("not a chain") };
            let y = chain.links.iter().fold(vec![1., 2., 3., 4.], |x, link| link.apply(&params, &x));
            assert_eq!(y, expected);
        }
    }

    #[test]
    fn there_are_2_n_log_n_values_a_block_and_stack() {
        for (n_in, n_out, blocks, n, stacks) in [
            (1024, 1024, 1, 1024, 1),
            (784, 10, 2, 1024, 1),
            (256, 512, 1, 256, 2),
            (256, 513, 3, 256, 3),
            (1, 1, 1, 2, 1),
            (1, 7, 2, 2, 4),
        ] {
            let config = ButterflyConfig { blocks, ..ButterflyConfig::default() };
            let butterfly = Butterfly::new(config, n_out, n_in).unwrap();
            assert_eq!((butterfly.n(), butterfly.stacks()), (n, stacks));
            let levels = (0..).find(|&l| 1 << l == n).unwrap();
            assert_eq!(butterfly.counts().parameters, 2 * n * levels * blocks * stacks);
            let specs = butterfly.params();
            assert_eq!(specs.len(), blocks * levels);
            assert_eq!(specs[specs.len() - 1].name, format!("twiddle.{}.{}", blocks - 1, levels - 1));
            assert!(specs.iter().all(|spec| spec.shape == [stacks, n / 2, 2, 2] && !spec.decay));
            assert_eq!(butterfly.bias_bound(), 1.0 / (n_in as f64).sqrt());
        }
    }

    #[test]
    fn a_stack_is_a_butterfly_of_its_own() {
        let config = ButterflyConfig { blocks: 2, ..ButterflyConfig::default() };
        let wide = Butterfly::new(config, 21, 8).unwrap();
        let params = random(&wide);
        let dense = wide.to_dense(&slices(&params)).unwrap();
        for stack in 0..3 {
            let part: Vec<&[f64]> = params.iter().map(|values| &values[stack * 16..][..16]).collect();
            let rows = 8.min(21 - stack * 8);
            let single = Butterfly::new(config, rows, 8).unwrap().to_dense(&part).unwrap();
            assert_eq!(dense[stack * 64..][..rows * 8], single);
        }
    }

    #[test]
    fn orthogonal_values_make_an_orthogonal_matrix_and_identities_the_identity() {
        for (n, blocks, increasing) in [(2, 1, true), (16, 1, true), (32, 2, false), (8, 3, true)] {
            let config = ButterflyConfig { blocks, increasing, init: ButterflyInit::Ortho };
            let butterfly = Butterfly::new(config, n, n).unwrap();
            let params = initial(&butterfly, 3);
            let dense = butterfly.to_dense(&slices(&params)).unwrap();
            let gram: Vec<f64> = (0..n * n)
                .map(|at| (0..n).map(|k| dense[at / n * n + k] * dense[at % n * n + k]).sum())
                .collect();
            // Rounding to f32 moves each factor by at most u·√2 in the spectral norm.
            let moved = (1.0 + 2f64.sqrt() * UNIT_F32).powi(params.len() as i32) - 1.0;
            let bound = 2.0 * moved + moved * moved + gamma_of(4 * n * params.len(), UNIT_F64);
            let identity: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
            assert_near(&gram, &identity, &vec![bound; n * n], "B Bᵀ");

            let config = ButterflyConfig { init: ButterflyInit::Identity, ..config };
            let butterfly = Butterfly::new(config, n, n).unwrap();
            assert_eq!(butterfly.to_dense(&slices(&initial(&butterfly, 3))).unwrap(), identity);
        }
    }

    #[test]
    fn both_determinants_occur_and_normal_values_keep_the_variance() {
        let mut rng = Rng::new(1);
        let draws = 4000;
        let negative = (0..draws).map(|_| orthogonal(&mut rng)).filter(|t| t[0] * t[3] < t[1] * t[2]).count();
        assert!((negative as f64 - 2000.0).abs() < 6.0 * (f64::from(draws) / 4.0).sqrt(), "{negative}");
        let values = initial(&square(256, 1, true), 2);
        let count = values.iter().map(Vec::len).sum::<usize>() as f64;
        let square = values.iter().flatten().map(|v| v * v).sum::<f64>() / count;
        // The square of a normal value of variance ½ has variance ½.
        assert!((square - 0.5).abs() < 6.0 * (0.5 / count).sqrt(), "{square}");
    }

    #[test]
    fn zero_init_makes_only_the_last_factor_zero() {
        let values = square(16, 2, true).init(Init::Zeros, &mut Rng::new(1));
        let (last, others) = values.split_last().unwrap();
        assert!(last.iter().all(|&v| v == 0.0));
        assert!(others.iter().flatten().all(|&v| v != 0.0));
    }

    #[test]
    fn the_transposed_butterfly_computes_the_transposed_matrix() {
        for (n_in, n_out, blocks, increasing) in [
            (2, 2, 1, true),
            (8, 8, 1, true),
            (16, 16, 1, false),
            (8, 8, 2, true),
            (16, 16, 2, false),
            (8, 8, 3, true),
            (8, 8, 4, false),
            (5, 7, 3, false),
            (1, 2, 2, true),
            (1, 1, 1, true),
        ] {
            let config = ButterflyConfig { blocks, increasing, ..ButterflyConfig::default() };
            let butterfly = Butterfly::new(config, n_out, n_in).unwrap();
            let params = random(&butterfly);
            let dense = butterfly.to_dense(&slices(&params)).unwrap();
            let (transposed, flipped) = butterfly.transposed(&slices(&params)).unwrap();
            assert_eq!((transposed.n_in(), transposed.n_out()), (n_out, n_in));
            // With an even number of blocks the direction stays, with an odd number it turns.
            assert_eq!(transposed.settings().increasing, increasing == (blocks % 2 == 0));
            let got = transposed.to_dense(&slices(&flipped)).unwrap();
            let expected: Vec<f64> =
                (0..n_in * n_out).map(|at| dense[at % n_out * n_in + at / n_out]).collect();
            let positive: Vec<Vec<f64>> =
                params.iter().map(|p| p.iter().map(|v| v.abs()).collect()).collect();
            let sums = butterfly.to_dense(&slices(&positive)).unwrap();
            let factor = 2.0 * gamma_of(3 * params.len(), UNIT_F64);
            let bound: Vec<f64> =
                (0..n_in * n_out).map(|at| factor * sums[at % n_out * n_in + at / n_out]).collect();
            assert_near(&got, &expected, &bound, &format!("{config:?}"));
            let (again, back) = transposed.transposed(&slices(&flipped)).unwrap();
            assert_eq!((again, back), (butterfly, params));
        }
    }

    #[test]
    fn what_cannot_be_is_an_error_with_numbers() {
        let butterfly = Butterfly::new(ButterflyConfig::default(), 9, 8).unwrap();
        let params = random(&butterfly);
        let error = butterfly.transposed(&slices(&params)).unwrap_err().to_string();
        assert!(error.contains("must be 8, got 16"), "{error}");
        for (config, n_in, n_out, expected) in [
            (
                json!({"structure": NAME, "blocks": 0}),
                8,
                8,
                "`butterfly.blocks` must be between 1 and 64, got 0",
            ),
            (
                json!({"structure": NAME, "init": "fft"}),
                8,
                8,
                "`butterfly.init` must be `randn`, `ortho` or `identity`, got \"fft\"",
            ),
            (
                json!(NAME),
                1,
                1 << 24,
                "`butterfly`: n_out, padded to whole stacks, must be between 1 and 4194304, got 16777216",
            ),
        ] {
            let error = crate::build(&config, n_in, n_out, 0, None).unwrap_err();
            assert_eq!(error.to_string(), expected);
        }
        for (blocks, n_out, n_in) in
            [(1, 0, 4), (1, 4, 0), (1, usize::MAX, 4), (1, 4, usize::MAX), (65, 4, 4)]
        {
            let config = ButterflyConfig { blocks, ..ButterflyConfig::default() };
            assert!(Butterfly::new(config, n_out, n_in).is_err());
        }
        // One stack of any size only counts.
        let huge =
            crate::build(&json!({"structure": NAME, "blocks": 64}), 1 << 24, 1 << 24, 0, None).unwrap();
        assert_eq!(huge.counts().parameters, (64 * 24) << 25);
    }
}
