//! Hashed SSL: every tile of outputs folds the inputs in its own way, with signs.
//!
//! Cost of a row: `n_out · n_in` multiply-adds as executed, a dense product; `n_out · n_in / reduction` values.
//!
//! Unlike the released layer ([`super::Ssl`]) each tile reads another subspace of the inputs, so the rank of W
//! goes up to `min(n_in, n_out)`. Without signs every fold adds chunks, and W maps an input that is constant in
//! each chunk, with sum 0 over a super-block, to 0: the rank is then at most
//! `n_in − (reduction − 1) · n_in / (reduction · block_k)`.

use std::ops::Range;

use serde_json::{Value, json};

use super::{check_listed, tied_chain};
use crate::config::{Key, Options, PAD};
use crate::project::tied::folded;
use crate::registry::{MAX_SIZE, first_within};
use crate::rng::mix;
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Gather, Init, Origin, ParamSpec, Problem, Rng, Structure, StructureError,
    StructureKind, Target,
};

const NAME: &str = "ssl_hashed";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "few values at many places, by a signed hash for each tile",
    keys: &[
        Key::new("reduction", "inputs that share a weight, at least 1", "2"),
        Key::new("block_k", "inputs of a chunk", "32"),
        Key::new("block_n", "outputs of a tile", "32"),
        Key::new("seed", "seed of the hash, 0 to 2³² − 1; the layer's own without it", ""),
        Key::new("signs", "whether half of the weights are the negative of their value", "true"),
        PAD,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let reductions = ((1.0 / density).ceil() as usize..=n_in).take(16);
        let configs =
            reductions.map(|reduction| json!({"structure": NAME, "reduction": reduction, "pad": true}));
        first_within((n_in, n_out), density, configs)
    },
};

/// The sizes and the seed that define an [`SslHashed`] map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileHash {
    /// Inputs that share a weight, c.
    pub reduction: usize,
    /// Inputs of a chunk, BK.
    pub block_k: usize,
    /// Outputs of a tile, BN.
    pub block_n: usize,
    /// The seed.
    pub seed: u32,
    /// Whether weights have signs.
    pub signs: bool,
}

/// How one chunk of inputs is read by one tile of outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lanes {
    key: u64,
    block_k: usize,
    rotation: usize,
    signs: bool,
}

/// `W[j, (t·c + k)·BK + q] = ± weight[j, t·BK + (q − r) mod BK]` with rotation and signs from the hash of tile
/// `⌊j / BN⌋`, super-block `t` and chunk `k < c`; parameter `weight [n_out, width]` with
/// `width = ⌈n_in / (c·BK)⌉ · BK`.
///
/// With `H` the output function of SplitMix64, `H(z) = mix(z + 0x9E3779B97F4A7C15)`, the key of a tile,
/// super-block and chunk is `h = H(H(H(H(seed) ^ tile) ^ t) ^ k)`. Then `r = h mod BK`, and input q counts negative
/// when bit `q mod 64` of `H(h ^ (⌊q / 64⌋ + 1))` is set.
#[derive(Clone, Debug, PartialEq)]
pub struct SslHashed {
    hash: TileHash,
    pad: bool,
    width: usize,
    chain: Chain,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let reduction = options.size("reduction", 1, MAX_SIZE)?;
    let (block_k, block_n) = (options.size("block_k", 1, MAX_SIZE)?, options.size("block_n", 1, MAX_SIZE)?);
    let signs = options.flag("signs")?;
    let seed = match problem.origin {
        Origin::New { seed, .. } if !options.given("seed") => (Rng::new(seed).fork(NAME).bits() >> 32) as u32,
        _ => options.size("seed", 0, u32::MAX as usize)? as u32,
    };
    let divisors = (1, reduction.saturating_mul(block_k));
    let (_, got) = options.padded((n_out, n_in), divisors, "reduction · block_k")?;
    if got > MAX_SIZE {
        let (structure, size_name, max) = (NAME, "n_in with padding", MAX_SIZE);
        return Err(StructureError::Size { structure, size_name, got, max });
    }
    let hash = TileHash { reduction, block_k, block_n, seed, signs };
    let pad = options.flag("pad")?;
    Ok(Box::new(SslHashed { pad, ..SslHashed::new(hash, n_out, n_in, got / reduction)? }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let square = json!({"structure": NAME, "block_k": 4, "block_n": 4, "seed": 1});
    let thirds =
        json!({"structure": NAME, "reduction": 3, "block_k": 5, "block_n": 2, "pad": true, "seed": 2});
    let plain = json!({"structure": NAME, "block_k": 7, "block_n": 3, "signs": false, "seed": 3});
    let one = json!({"structure": NAME, "reduction": 1, "block_k": 1, "block_n": 1});
    [(&square, 16, 16), (&thirds, 17, 7), (&plain, 14, 5), (&thirds, 1, 1), (&one, 1, 3)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

/// The output function of SplitMix64.
fn split_mix(bits: u64) -> u64 {
    mix(bits.wrapping_add(0x9E37_79B9_7F4A_7C15))
}

impl TileHash {
    fn lanes(&self, tile: usize, superblock: usize, chunk: usize) -> Lanes {
        let numbers = [tile, superblock, chunk];
        let key = numbers.iter().fold(split_mix(u64::from(self.seed)), |h, &n| split_mix(h ^ n as u64));
        Lanes {
            key,
            block_k: self.block_k,
            rotation: (key % self.block_k as u64) as usize,
            signs: self.signs,
        }
    }
}

impl Lanes {
    /// Which value of the super-block input `q` of the chunk reads.
    fn value(&self, q: usize) -> usize {
        (q + self.block_k - self.rotation) % self.block_k
    }

    /// Whether it counts negative.
    fn minus(&self, q: usize) -> bool {
        self.signs && split_mix(self.key ^ (q as u64 / 64 + 1)) >> (q % 64) & 1 == 1
    }
}

impl SslHashed {
    fn new(hash: TileHash, n_out: usize, n_in: usize, width: usize) -> Result<Self, StructureError> {
        check_listed(NAME, "n_out · n_in", [n_out, n_in])?;
        check_listed(NAME, "values with padding", [n_out, width])?;
        let TileHash { reduction, block_k, block_n, .. } = hash;
        let chain = tied_chain(n_out, n_in, n_out * width, |j, i| {
            let (t, chunk, q) = (i / (reduction * block_k), i / block_k % reduction, i % block_k);
            let lanes = hash.lanes(j / block_n, t, chunk);
            (j * width + t * block_k + lanes.value(q), lanes.minus(q))
        });
        Ok(Self { hash, pad: width * reduction != n_in, width, chain })
    }

    /// The sizes and the seed that define the map.
    pub fn hash(&self) -> &TileHash {
        &self.hash
    }

    /// The rows of W of each tile.
    fn tiles(&self) -> impl Iterator<Item = Range<usize>> {
        let (n_out, block_n) = (self.chain.n_out, self.hash.block_n);
        (0..n_out).step_by(block_n).map(move |row| row..n_out.min(row + block_n))
    }

    /// What a tile multiplies its values with: `z[t·BK + p] = Σ_k ± x[(t·c + k)·BK + (p + r) mod BK]`.
    fn fold(&self, tile: usize) -> Gather {
        let TileHash { reduction, block_k, .. } = self.hash;
        Gather::new(self.chain.n_in, self.width, reduction, |at, chunk| {
            let (t, p) = (at / block_k, at % block_k);
            let lanes = self.hash.lanes(tile, t, chunk);
            let q = (p + lanes.rotation) % block_k;
            let input = (t * reduction + chunk) * block_k + q;
            (input < self.chain.n_in).then(|| (input, lanes.minus(q)))
        })
    }
}

impl Structure for SslHashed {
    fn name(&self) -> &'static str {
        NAME
    }

    fn n_in(&self) -> usize {
        self.chain.n_in
    }

    fn n_out(&self) -> usize {
        self.chain.n_out
    }

    fn params(&self) -> Vec<ParamSpec> {
        vec![ParamSpec::new("weight", &[self.n_out(), self.width])]
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        vec![init.draw(self.n_out(), self.n_in(), self.n_out() * self.width, rng)]
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// Tile by tile: the values times the tile's fold.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (n_out, n_in) = (self.n_out(), self.n_in());
        let mut dense = Vec::with_capacity(n_out * n_in);
        for (tile, rows) in self.tiles().enumerate() {
            let fold = self.fold(tile);
            let values = &params[0][rows.start * self.width..rows.end * self.width];
            values.chunks_exact(self.width).for_each(|row| dense.extend(fold.apply_transposed(row)));
        }
        Some(dense)
    }

    /// The signed mean of the weights that share a value, or, with a second moment, least squares over each row's
    /// values: both are the optimum.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        let tiles = self.tiles().enumerate();
        vec![tiles.flat_map(|(tile, rows)| folded(&self.fold(tile), rows, target)).collect()]
    }

    fn counts(&self) -> Counts {
        let parameters = self.n_out() * self.width;
        Counts { parameters, bytes: 4 * parameters, macs: self.chain.macs() }
    }

    fn config(&self) -> Value {
        let TileHash { reduction, block_k, block_n, seed, signs } = self.hash;
        json!({
            "structure": NAME, "reduction": reduction, "block_k": block_k, "block_n": block_n,
            "seed": seed, "signs": signs, "pad": self.pad,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tied::{moment_of, normal_equations};
    use lacewing_linalg::svd;
    use lacewing_testkit::{assert_near, uniform_f64};

    fn built(config: Value, n_in: usize, n_out: usize) -> Box<dyn Structure> {
        let mut config = config;
        config["structure"] = json!(NAME);
        crate::build(&config, n_in, n_out, 0, None).unwrap()
    }

    fn rank(structure: &dyn Structure) -> usize {
        let (n_out, n_in) = (structure.n_out(), structure.n_in());
        let dense = structure.to_dense(&[&uniform_f64(1, structure.counts().parameters)]).unwrap();
        let sigma = svd(&dense, n_out, n_in, usize::MAX).sigma;
        let floor = n_in.max(n_out) as f64 * f64::EPSILON * sigma[0];
        sigma.iter().filter(|&&s| s > floor).count()
    }

    #[test]
    fn the_hash_never_changes() {
        // Checkpoints depend on it. The first is the published first output of SplitMix64 for seed 0.
        assert_eq!(split_mix(0), 0xE220_A839_7B1D_CDAF);
        let hash = TileHash { reduction: 2, block_k: 100, block_n: 1, seed: 7, signs: true };
        let lanes = hash.lanes(3, 2, 1);
        assert_eq!(lanes.rotation, 17);
        let minus: Vec<usize> = (60..70).filter(|&q| lanes.minus(q)).collect();
        assert_eq!(minus, [62, 65, 68, 69]);
        assert_eq!((0..100).filter(|&q| lanes.minus(q)).count(), 52);
        let small = built(json!({"block_k": 4, "block_n": 1, "seed": 1}), 8, 2);
        let values: Vec<f64> = (1..=8).map(f64::from).collect();
        #[rustfmt::skip]
        assert_eq!(small.to_dense(&[&values]).unwrap(), [
            -3., 4., 1., -2., 4., 1., -2., 3.,
            -7., -8., -5., -6., -5., -6., 7., 8.,
        ]);
    }

    #[test]
    fn every_value_is_used_by_each_of_c_inputs() {
        for (c, block_k, n_in, n_out) in [(2, 8, 48, 20), (3, 5, 30, 7), (1, 4, 12, 5), (7, 1, 21, 3)] {
            let map = built(json!({"reduction": c, "block_k": block_k, "block_n": 4}), n_in, n_out);
            let values = map.counts().parameters;
            let index: Vec<f64> = (1..=values).map(|i| i as f64).collect();
            let dense = map.to_dense(&[&index]).unwrap();
            let mut uses = vec![0; values];
            dense.iter().for_each(|&i| uses[i.abs() as usize - 1] += 1);
            assert!(uses.iter().all(|&uses| uses == c), "{uses:?}");
            // Each row uses its own values only.
            let width = values / n_out;
            assert!(
                dense
                    .chunks(n_in)
                    .enumerate()
                    .all(|(j, row)| { row.iter().all(|&i| (i.abs() as usize - 1) / width == j) })
            );
        }
    }

    #[test]
    fn the_rank_is_not_capped_by_the_reduction() {
        for (c, n) in [(2, 64), (4, 64), (8, 64)] {
            let config = json!({"reduction": c, "block_k": 8, "block_n": 8, "seed": 5});
            assert_eq!(rank(&*built(config.clone(), n, n)), n, "reduction {c}");
            let mut plain = config;
            plain["signs"] = json!(false);
            let got = rank(&*built(plain, n, n));
            assert!(got > n / c && got <= n - (c - 1) * n / (8 * c), "reduction {c} without signs: {got}");
        }
        // A single tile has the released layer's rank.
        assert_eq!(rank(&*built(json!({"reduction": 4, "block_k": 8, "block_n": 64}), 64, 64)), 16);
    }

    #[test]
    fn half_of_the_weights_are_negative_and_none_without_signs() {
        // Rows of a tile share their signs: with one row a tile every weight is a draw of its own.
        let n = 128;
        for (signs, share, deviation) in [(true, 0.5, 0.5 / n as f64), (false, 0.0, 0.0)] {
            let map = built(json!({"block_n": 1, "signs": signs, "seed": 9}), n, n);
            let dense = map.to_dense(&[&vec![1.0; map.counts().parameters]]).unwrap();
            let minus = dense.iter().filter(|&&w| w < 0.0).count() as f64 / (n * n) as f64;
            assert!((minus - share).abs() <= 6.0 * deviation, "{minus}");
        }
    }

    #[test]
    fn the_seed_is_the_layers_own_or_the_configs_and_always_in_the_config() {
        let seed = |config: &Value, origin| {
            let built = crate::build(config, 64, 64, origin, None).unwrap();
            let again = crate::restore(&built.config(), 64, 64, &[]).unwrap();
            let values: Vec<f64> = (1..=built.counts().parameters).map(|i| i as f64).collect();
            assert_eq!(again.to_dense(&[&values]), built.to_dense(&[&values]));
            built.config()["seed"].as_u64().unwrap()
        };
        assert_eq!(seed(&json!(NAME), 1), seed(&json!(NAME), 1));
        assert_ne!(seed(&json!(NAME), 1), seed(&json!(NAME), 2));
        assert_eq!(seed(&json!({"structure": NAME, "seed": 3}), 1), 3);
        let error = crate::restore(&json!(NAME), 64, 64, &[]).unwrap_err();
        assert_eq!(error, StructureError::MissingKey { structure: NAME, key: "seed" });
    }

    #[test]
    fn projections_are_the_least_squares_optimum() {
        let thirds = json!({"reduction": 3, "block_k": 4, "block_n": 2, "pad": true, "seed": 4});
        let halves = json!({"reduction": 2, "block_k": 4, "block_n": 3, "seed": 4});
        for (config, n_in, n_out) in [(&halves, 16, 5), (&thirds, 12, 5), (&thirds, 17, 3), (&thirds, 1, 1)] {
            let map = built(config.clone(), n_in, n_out);
            let weight = uniform_f64(2, n_out * n_in);
            let plain = Target::new(n_out, n_in, &weight);
            let near = |got: &[f64], expected: &[f64], bound: f64, what| {
                assert_near(got, expected, &vec![bound; expected.len()], what);
            };
            let got = map.project(&plain).remove(0);
            near(&got, &normal_equations(&*map, &plain), 1e-13, "plain");
            let identity: Vec<f64> = (0..n_in * n_in).map(|at| f64::from(at / n_in == at % n_in)).collect();
            near(&map.project(&plain.with_moment(&identity))[0], &got, 1e-13, "identity");
            let moment = moment_of(n_in, 3);
            let target = plain.with_moment(&moment);
            let weighted = map.project(&target).remove(0);
            near(&weighted, &normal_equations(&*map, &target), 1e-10, "weighted");
            let error = |values: &[f64]| target.output_error(&map.to_dense(&[values]).unwrap()).unwrap();
            assert!(error(&weighted) <= error(&got), "{} {}", error(&weighted), error(&got));
            assert!(
                n_in == 1 || error(&weighted) < 0.97 * error(&got),
                "{} {}",
                error(&weighted),
                error(&got)
            );
        }
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors_with_numbers() {
        let error = crate::build(&json!(NAME), 100, 64, 0, None).unwrap_err().to_string();
        assert!(error.contains("n_in = 100") && error.contains("64 (reduction · block_k)"), "{error}");
        let padded = json!({"structure": NAME, "pad": true});
        assert_eq!(crate::build(&padded, 100, 64, 0, None).unwrap().counts().parameters, 64 * 64);
        for (config, n_in, n_out, size_name) in [
            (json!({"structure": NAME, "seed": 1}), 1 << 24, 1 << 24, "n_out · n_in"),
            (
                json!({"structure": NAME, "block_k": 1 << 24, "reduction": 2, "pad": true, "seed": 1}),
                1,
                1,
                "n_in with padding",
            ),
            (
                json!({"structure": NAME, "block_k": 1 << 20, "reduction": 2, "pad": true, "seed": 1}),
                1,
                1 << 20,
                "values with padding",
            ),
        ] {
            let error = crate::restore(&config, n_in, n_out, &[]).unwrap_err();
            assert!(
                matches!(error, StructureError::Size { size_name: got, .. } if got == size_name),
                "{error}"
            );
        }
    }
}
