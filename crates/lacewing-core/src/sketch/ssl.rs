//! SSL (sketch structured linear), exactly as released: `reduction` inputs are folded to one, then multiplied.
//!
//! Cost of a row: `n_out · n_in / reduction` multiply-adds, and `n_in` additions for the fold.
//!
//! The released definition rotates the inputs by another amount for each tile of outputs, but the rotations of
//! two chunks differ by the same amount in every tile. So the fold is one for all tiles, a tile's own rotation is
//! an order of its weights, and W has rank `n_in / reduction` at most, whatever the seed.

use serde_json::{Value, json};

use super::check_listed;
use crate::config::{Key, Options};
use crate::mersenne::Mersenne;
use crate::project::tied::folded;
use crate::registry::{MAX_SIZE, first_within};
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Gather, Init, Link, ParamSpec, Problem, Rng, Structure, StructureError,
    StructureKind, Target, Weights,
};

const NAME: &str = "ssl";

/// The first hash integer, and the range that the other three are drawn from.
const PRIME: u32 = 45_007;

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "inputs folded by a fixed hash, then a dense product: the released SSL layer",
    keys: &[
        Key::new("reduction", "inputs that share a weight, a power of two; 1 is a dense layer", "2"),
        Key::new("seed", "seed of the hash integers, 0 to 2³² − 1", "1024"),
        Key::new("hash", "instead of seed: the four hash integers [R0, R1, R2, R3]", ""),
        Key::new("block_k", "inputs of a chunk; reduction · block_k must divide n_in", "32"),
        Key::new("block_n", "outputs of a tile", "32"),
        Key::new("vec", "what rotations are multiples of, modulo block_k", "8"),
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let reductions = (0..12).map(|log| 1usize << log);
        let configs = reductions.flat_map(|reduction| {
            [32, 16].map(|block_k| json!({"structure": NAME, "reduction": reduction, "block_k": block_k}))
        });
        first_within((n_in, n_out), density, configs)
    },
};

/// The sizes and integers that define an [`Ssl`] map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SslHash {
    /// Inputs that share a weight, c.
    pub reduction: usize,
    /// R0 to R3.
    pub hash: [u32; 4],
    /// Inputs of a chunk, BK.
    pub block_k: usize,
    /// Outputs of a tile, BN.
    pub block_n: usize,
    /// The factor of every rotation.
    pub vec: usize,
}

/// `W[j, (t·c + k)·BK + q] = weight[j, t·BK + (q − s) mod BK]` with the rotation `s` of tile `⌊j / BN⌋`,
/// super-block `t` and chunk `k < c`; parameter `weight [n_out, n_in / c]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ssl {
    hash: SslHash,
    n_in: usize,
    n_out: usize,
    /// The fold and the dense product; none when c = 1 and there is nothing to fold.
    chain: Option<Chain>,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let reduction = options.size("reduction", 1, MAX_SIZE)?;
    if !reduction.is_power_of_two() {
        return Err(StructureError::NotAPowerOfTwo { structure: NAME, key: "reduction", got: reduction });
    }
    let [block_k, block_n, vec] = {
        let size = |key| options.size(key, 1, MAX_SIZE);
        [size("block_k")?, size("block_n")?, size("vec")?]
    };
    let hash = match options.value("hash") {
        None => SslHash::draw(options.size("seed", 0, u32::MAX as usize)? as u32),
        Some(_) if options.given("seed") => {
            return Err(StructureError::Conflict { structure: NAME, key: "hash", other: "seed" });
        }
        Some(value) => {
            let wrong = || options.wrong("hash", "four whole numbers, [R0, R1, R2, R3]", &value);
            let numbers = value.as_array().filter(|numbers| numbers.len() == 4).ok_or_else(wrong)?;
            let mut hash = [0; 4];
            for (number, into) in numbers.iter().zip(&mut hash) {
                *into = options.size_of("hash", number, 0, u32::MAX as usize)? as u32;
            }
            hash
        }
    };
    Ok(Box::new(Ssl::new(SslHash { reduction, hash, block_k, block_n, vec }, n_out, n_in)?))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let small = json!({"structure": NAME, "block_k": 16, "block_n": 16});
    let prime = json!({"structure": NAME, "reduction": 4, "block_k": 3, "block_n": 2, "vec": 1, "seed": 42});
    let hash = json!({"structure": NAME, "hash": [11511, 11411, 11311, 11211], "block_k": 8, "vec": 3});
    let dense = json!({"structure": NAME, "reduction": 1, "block_k": 1});
    [(&small, 64, 40), (&prime, 24, 7), (&hash, 16, 1), (&dense, 7, 5), (&dense, 1, 1)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl SslHash {
    /// The hash integers of `seed`: the prime 45007, then three draws below it from the generator that PyTorch
    /// seeds.
    pub fn draw(seed: u32) -> [u32; 4] {
        let mut words = Mersenne::new(seed);
        let mut draw = || words.word() % PRIME;
        [PRIME, draw(), draw(), draw()]
    }

    /// `s = ((R3 + R2·tile + R1·(superblock + 1) + R0·(chunk + 1)) · vec) mod block_k`; 0 when `reduction` is 1.
    pub fn rotation(&self, tile: usize, superblock: usize, chunk: usize) -> usize {
        if self.reduction == 1 {
            return 0;
        }
        let [r0, r1, r2, r3] = self.hash.map(u128::from);
        let (tile, superblock, chunk) = (tile as u128, superblock as u128, chunk as u128);
        let sum = r3 + r2 * tile + r1 * (superblock + 1) + r0 * (chunk + 1);
        (sum % self.block_k as u128 * self.vec as u128 % self.block_k as u128) as usize
    }
}

impl Ssl {
    /// The map of `hash` for a layer `[n_out, n_in]`.
    ///
    /// # Errors
    ///
    /// [`StructureError::NotAMultiple`] when `reduction · block_k` does not divide `n_in`: the released kernels
    /// and the released index map disagree there, so there is nothing to be compatible with.
    /// [`StructureError::Size`] for more than 2²⁸ weights.
    pub fn new(hash: SslHash, n_out: usize, n_in: usize) -> Result<Self, StructureError> {
        let SslHash { reduction, block_k, block_n, .. } = hash;
        let divisor = reduction.saturating_mul(block_k);
        if !n_in.is_multiple_of(divisor) {
            return Err(StructureError::NotAMultiple {
                structure: NAME,
                size_name: "n_in",
                size: n_in,
                divisor_name: "reduction · block_k",
                divisor,
                next: n_in.div_ceil(divisor).saturating_mul(divisor),
            });
        }
        let width = n_in / reduction;
        check_listed(NAME, "n_out · n_in / reduction", [n_out, width])?;
        if reduction == 1 {
            return Ok(Self { hash, n_in, n_out, chain: None });
        }
        // What chunk k is rotated by in every tile, and what a tile adds to all its chunks: s = own + common.
        let modulo = |number: u64| number % block_k as u64;
        let [r0, r1, r2, r3] = hash.hash.map(|r| modulo(modulo(u64::from(r)) * modulo(hash.vec as u64)));
        let common = |chunk: usize| modulo(r0 * modulo(chunk as u64 + 1)) as usize;
        let own = |tile: usize, t: usize| {
            modulo(r3 + modulo(r2 * modulo(tile as u64)) + modulo(r1 * modulo(t as u64 + 1))) as usize
        };
        let fold = Gather::new(n_in, width, reduction, |at, chunk| {
            let (t, p) = (at / block_k, at % block_k);
            Some(((t * reduction + chunk) * block_k + (p + common(chunk)) % block_k, false))
        });
        let tied = Gather::new(n_out * width, n_out * width, 1, |at, _| {
            let (j, t, p) = (at / width, at % width / block_k, at % block_k);
            Some((j * width + t * block_k + (p + block_k - own(j / block_n, t)) % block_k, false))
        });
        let weights = Weights::Tied { param: 0, gather: tied };
        let product = Link::Blocks { weights, groups: 1, stride: 1, q: n_out, p: width };
        let links = vec![Link::Gather(fold), product];
        let chain = Chain { n_in, n_in_ext: n_in, n_out_ext: n_out, n_out, links }.checked();
        Ok(Self { hash, n_in, n_out, chain: Some(chain) })
    }

    /// The sizes and integers that define the map.
    pub fn hash(&self) -> &SslHash {
        &self.hash
    }

    /// Columns of the parameter.
    fn width(&self) -> usize {
        self.n_in / self.hash.reduction
    }
}

impl Structure for Ssl {
    fn name(&self) -> &'static str {
        NAME
    }

    fn n_in(&self) -> usize {
        self.n_in
    }

    fn n_out(&self) -> usize {
        self.n_out
    }

    fn params(&self) -> Vec<ParamSpec> {
        vec![ParamSpec::new("weight", &[self.n_out, self.width()])]
    }

    fn form(&self) -> Form<'_> {
        self.chain.as_ref().map_or(Form::Dense, Form::Chain)
    }

    /// Xavier uniform of the parameter as it is stored, whatever a model asks for.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let rule = if init == Init::Zeros { init } else { Init::XavierUniform };
        vec![rule.draw(self.n_out, self.width(), self.n_out * self.width(), rng)]
    }

    fn takes_model_init(&self) -> bool {
        false
    }

    /// Biases start at zero.
    fn bias_bound(&self) -> f64 {
        0.0
    }

    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let SslHash { reduction, block_k, block_n, .. } = self.hash;
        let mut dense = vec![0.0; self.n_out * self.n_in];
        for (block, dense) in dense.chunks_exact_mut(block_k).enumerate() {
            let blocks = self.n_in / block_k;
            let (j, t, chunk) = (block / blocks, block % blocks / reduction, block % reduction);
            let values = &params[0][j * self.width() + t * block_k..][..block_k];
            dense.copy_from_slice(values);
            dense.rotate_right(self.hash.rotation(j / block_n, t, chunk));
        }
        Some(dense)
    }

    /// The mean of the weights that share a value, or, with a second moment, least squares over each row's values:
    /// both are the optimum.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        let Some(chain) = &self.chain else { return vec![target.weight.to_vec()] };
        let [Link::Gather(fold), Link::Blocks { weights: Weights::Tied { gather, .. }, .. }] =
            &chain.links[..]
        else {
            unreachable!("a fold and a product")
        };
        // The product's weights are the parameter in another order.
        let product = folded(fold, 0..self.n_out, target);
        vec![gather.apply_transposed(&product)]
    }

    fn counts(&self) -> Counts {
        let parameters = self.n_out * self.width();
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    fn config(&self) -> Value {
        let SslHash { reduction, hash, block_k, block_n, vec } = self.hash;
        json!({
            "structure": NAME, "reduction": reduction, "hash": hash,
            "block_k": block_k, "block_n": block_n, "vec": vec,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::project;
    use crate::project::tied::{moment_of, normal_equations};
    use lacewing_linalg::svd;
    use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64};

    fn hash(reduction: usize, block_k: usize) -> SslHash {
        SslHash { reduction, hash: SslHash::draw(1024), block_k, block_n: 32, vec: 8 }
    }

    #[test]
    fn hash_integers_are_those_the_released_layer_draws() {
        for (seed, expected) in [
            (1024, [20011, 38363, 15263]),
            (42, [42355, 8976, 26801]),
            (0, [29440, 22221, 32190]),
            (1, [42280, 10019, 33951]),
            (1111, [6874, 12227, 2741]),
            (1025, [40705, 34282, 8274]),
            (43, [23735, 41110, 24041]),
        ] {
            let [r0, rest @ ..] = SslHash::draw(seed);
            assert_eq!((r0, rest), (45007, expected), "seed {seed}");
        }
    }

    #[test]
    fn rotations_match_the_reference() {
        let row =
            |hash: SslHash, tile, t| -> Vec<usize> { (0..8).map(|k| hash.rotation(tile, t, k)).collect() };
        let hash_32 = hash(8, 32);
        assert_eq!(row(hash_32, 0, 0), [8, 0, 24, 16, 8, 0, 24, 16]);
        assert_eq!(row(hash_32, 1, 0), [0, 24, 16, 8, 0, 24, 16, 8]);
        assert_eq!(row(hash_32, 0, 1), [0, 24, 16, 8, 0, 24, 16, 8]);
        assert_eq!(row(hash(8, 64), 0, 0), [8, 0, 56, 48, 40, 32, 24, 16]);
        assert_eq!(row(hash(8, 64), 1, 0), [32, 24, 16, 8, 0, 56, 48, 40]);
        assert_eq!(row(hash(8, 16), 0, 0), [8, 0, 8, 0, 8, 0, 8, 0]);
        let constants = SslHash { hash: [11511, 11411, 11311, 11211], ..hash(2, 32) };
        assert_eq!(row(constants, 0, 0)[..2], [8, 0]);
        assert_eq!(row(constants, 1, 0)[..2], [0, 24]);
    }

    #[test]
    fn indices_and_products_match_the_reference() {
        let ssl = Ssl::new(hash(2, 32), 64, 64).unwrap();
        let index: Vec<f64> = (0..2048).map(f64::from).collect();
        let dense = ssl.to_dense(&[&index]).unwrap();
        for (k, j, expected) in [
            (0, 0, 24.),
            (1, 0, 25.),
            (31, 0, 23.),
            (32, 0, 0.),
            (0, 32, 1024.),
            (32, 32, 1032.),
            (63, 63, 2023.),
        ] {
            assert_eq!(dense[j * 64 + k], expected, "input {k}, output {j}");
        }
        let x: Vec<f64> = (0..64).map(f64::from).collect();
        let weight: Vec<f64> = (0..2048).map(|i| f64::from(i) / 100.0).collect();
        let y = ssl.apply(&[&weight], &x);
        let Form::Chain(chain) = ssl.form() else { panic!("a fold and a product") };
        let by_form = chain.links.iter().fold(x, |x, link| link.apply(&[&weight], &x));
        let expected = [336.32, 981.44, 20335.04, 20980.16, 40978.88];
        let bound = expected.map(|y| 2.0 * gamma_of(70, UNIT_F64) * y);
        for (y, what) in [(y, "definition"), (by_form, "form")] {
            assert_near(&[0, 1, 31, 32, 63].map(|j| y[j]), &expected, &bound, what);
        }
    }

    #[test]
    fn every_value_is_used_by_each_of_c_inputs_and_the_rank_is_n_in_over_c() {
        for (n_in, n_out, reduction, block_k) in [(128, 128, 2, 32), (128, 96, 4, 16), (256, 64, 8, 32)] {
            let ssl = Ssl::new(hash(reduction, block_k), n_out, n_in).unwrap();
            let index: Vec<f64> = (0..ssl.counts().parameters).map(|i| i as f64).collect();
            let mut uses = vec![0; index.len()];
            ssl.to_dense(&[&index]).unwrap().iter().for_each(|&i| uses[i as usize] += 1);
            assert!(uses.iter().all(|&uses| uses == reduction));
            let dense = ssl.to_dense(&[&uniform_f64(1, index.len())]).unwrap();
            let sigma = svd(&dense, n_out, n_in, usize::MAX).sigma;
            let floor = n_in as f64 * f64::EPSILON * sigma[0];
            assert_eq!(sigma.iter().filter(|&&s| s > floor).count(), n_in / reduction);
        }
    }

    #[test]
    fn projections_are_the_least_squares_optimum() {
        let small = SslHash { block_n: 3, vec: 1, ..hash(2, 4) };
        for (hash, n_out, n_in) in [(small, 7, 16), (SslHash { reduction: 4, ..small }, 5, 16)] {
            let ssl = Ssl::new(hash, n_out, n_in).unwrap();
            let weight = uniform_f64(2, n_out * n_in);
            let plain = Target::new(n_out, n_in, &weight);
            let near = |got: &[f64], expected: &[f64], bound: f64, what| {
                assert_near(got, expected, &vec![bound; expected.len()], what);
            };
            let got = ssl.project(&plain).remove(0);
            near(&got, &normal_equations(&ssl, &plain), 1e-13, "plain");
            let identity: Vec<f64> = (0..n_in * n_in).map(|at| f64::from(at / n_in == at % n_in)).collect();
            near(&ssl.project(&plain.with_moment(&identity))[0], &got, 1e-13, "identity");
            let moment = moment_of(n_in, 3);
            let target = plain.with_moment(&moment);
            let weighted = ssl.project(&target).remove(0);
            near(&weighted, &normal_equations(&ssl, &target), 1e-10, "weighted");
            let error = |values: &[f64]| target.output_error(&ssl.to_dense(&[values]).unwrap()).unwrap();
            assert!(error(&weighted) < 0.95 * error(&got), "{} {}", error(&weighted), error(&got));
            // Fewer calibration rows than inputs: only one direction counts, and it is met exactly.
            let x = uniform_f64(4, n_in);
            let moment: Vec<f64> = (0..n_in * n_in).map(|at| x[at / n_in] * x[at % n_in]).collect();
            let found = project(&ssl, &plain.with_moment(&moment));
            assert!(found.output_error.unwrap() < 1e-7 && found.error.is_finite());
        }
    }

    #[test]
    fn the_config_holds_the_integers_and_not_the_seed() {
        let built = crate::build(&json!({"structure": NAME, "seed": 42}), 64, 64, 7, None).unwrap();
        assert_eq!(
            built.config(),
            json!({
                "structure": NAME, "reduction": 2, "hash": [45007, 42355, 8976, 26801],
                "block_k": 32, "block_n": 32, "vec": 8,
            })
        );
        let both = json!({"structure": NAME, "seed": 42, "hash": [1, 2, 3, 4]});
        let error = crate::build(&both, 64, 64, 0, None).unwrap_err();
        assert_eq!(error, StructureError::Conflict { structure: NAME, key: "hash", other: "seed" });
    }

    #[test]
    fn sizes_and_keys_that_do_not_fit_are_errors_with_numbers() {
        for (config, n_in, expected) in [
            (
                json!(NAME),
                100,
                "`ssl`: n_in = 100 is not a multiple of 64 (reduction · block_k), and this structure has no \
                 padding; the next size that fits is 128",
            ),
            (json!({"structure": NAME, "reduction": 3}), 64, "`ssl.reduction` must be a power of two, got 3"),
            (
                json!({"structure": NAME, "hash": [1, 2, 3]}),
                64,
                "`ssl.hash` must be four whole numbers, [R0, R1, R2, R3], got [1,2,3]",
            ),
            (
                json!({"structure": NAME, "hash": [1, 2, 3, 4294967296u64]}),
                64,
                "`ssl.hash` must be between 0 and 4294967295, got 4294967296",
            ),
            (json!({"structure": NAME, "vec": 0}), 64, "`ssl.vec` must be between 1 and 16777216, got 0"),
            (
                json!({"structure": NAME, "block_k": 16777216, "reduction": 16777216}),
                64,
                "`ssl`: n_in = 64 is not a multiple of 281474976710656 (reduction · block_k), and this structure \
                 has no padding; the next size that fits is 281474976710656",
            ),
            (json!({"structure": NAME, "pad": true}), 64, "`ssl` has no key `pad`"),
        ] {
            assert_eq!(crate::build(&config, n_in, 64, 0, None).unwrap_err().to_string(), expected);
        }
        let error = crate::restore(&json!(NAME), 1 << 24, 1 << 24, &[]).unwrap_err().to_string();
        assert!(error.contains("n_out · n_in / reduction") && error.contains("268435456"), "{error}");
    }

    #[test]
    fn values_start_xavier_uniform_of_the_stored_shape() {
        let built = crate::build(&json!(NAME), 256, 64, 0, None).unwrap();
        let values = built.init(Init::Default, &mut Rng::new(1));
        let most = values[0].iter().fold(0f32, |most, v| most.max(v.abs()));
        let bound = (6.0f32 / (64.0 + 128.0)).sqrt();
        assert!(most <= bound && most > 0.99 * bound, "{most} of {bound}");
        assert_eq!(values, built.init(Init::TruncNormal { std: 0.02 }, &mut Rng::new(1)));
        assert_eq!(built.bias_bound(), 0.0);
    }
}
