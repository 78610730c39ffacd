//! Deformable butterfly: a product of factors of r × s blocks, each with a stride of its own.
//!
//! Cost of a row: `Σ in · r` multiply-adds over the factors, one for each parameter.

use serde_json::{Value, json};

use crate::auto_chain::{self, Begin};
use crate::config::{Key, Options, PAD};
use crate::registry::{MAX_SIZE, first_within};
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Init, Link, ParamSpec, Problem, Rng, Structure, StructureError, StructureKind,
};

const NAME: &str = "debut";

const CHAINS: &str = "`auto`, `monotonic`, `bulging` or a list of [out, in, r, s, t]";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "deformable butterfly: factors of r by s blocks at growing strides, for any sizes",
    keys: &[
        Key::new(
            "chain",
            "`auto`, `monotonic` or `bulging` (the rules for 3x3 kernels), or the factors as [out, in, r, s, t]",
            "\"auto\"",
        ),
        Key::new(
            "factors",
            "with `auto`: how many factors, from 1 (dense); by default the cheapest number",
            "",
        ),
        Key::new(
            "speed",
            "with `monotonic` and `bulging`: 0 to 64, higher for more factors before the width shrinks",
            "5",
        ),
        PAD,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let factors = (2..=16).map(|factors| json!({"structure": NAME, "factors": factors, "pad": true}));
        first_within((n_in, n_out), density, factors)
    },
};

/// Sizes of one factor: `in / (s · t)` groups of `t` blocks of r outputs and s inputs, `t` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DebutFactor {
    /// Length of its output, `n_in · r / s`.
    pub n_out: usize,
    /// Length of its input.
    pub n_in: usize,
    /// Outputs of a block.
    pub r: usize,
    /// Inputs of a block.
    pub s: usize,
    /// Distance between the inputs, and between the outputs, of a block.
    pub t: usize,
}

/// `y = R_k ⋯ R_1 x`. With parameter `factorI [in / (s·t), t, r, s]`, called T, a factor is
/// `y[(g·r + ρ)·t + τ] = Σ_σ T[g, τ, ρ, σ] x[(g·s + σ)·t + τ]`.
///
/// The first stride is 1 and each next one is `r · t` of the factor before. Inputs beyond `n_in` are zero, outputs
/// beyond `n_out` dropped.
#[derive(Clone, Debug, PartialEq)]
pub struct Debut {
    factors: Vec<DebutFactor>,
    chain: Chain,
    pad: bool,
}

impl DebutFactor {
    /// The chain of these (r, s): each width is `r / s` of the one before, each stride the product of the r
    /// before.
    ///
    /// Sizes that would overflow saturate, which [`Debut::new`] refuses.
    ///
    /// # Panics
    ///
    /// When an s is 0.
    pub fn chain(n_in: usize, pairs: &[(usize, usize)]) -> Vec<Self> {
        let (mut n_in, mut t) = (n_in, 1usize);
        let mut chain = Vec::with_capacity(pairs.len());
        for &(r, s) in pairs {
            let n_out = n_in.saturating_mul(r) / s;
            chain.push(Self { n_out, n_in, r, s, t });
            (n_in, t) = (n_out, t.saturating_mul(r));
        }
        chain
    }

    /// How many values it holds, `n_in · r`; as many multiply-adds a row.
    pub fn parameters(&self) -> usize {
        self.n_in.saturating_mul(self.r)
    }

    /// Groups of `t` blocks.
    fn groups(&self) -> usize {
        self.n_in / (self.s * self.t)
    }
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let pad = options.flag("pad")?;
    let value = options.required("chain")?;
    for (key, chains, other) in [
        ("factors", &["auto"][..], "a chain other than auto"),
        ("speed", &["monotonic", "bulging"], "a chain other than monotonic or bulging"),
    ] {
        if options.given(key) && value.as_str().is_none_or(|name| !chains.contains(&name)) {
            return Err(StructureError::Conflict { structure: NAME, key, other });
        }
    }
    let conv3x3 = |begin| {
        let speed = options.size("speed", 0, 64)?;
        let (rows, cols) = if pad { auto_chain::padded_conv3x3(n_out, n_in) } else { (n_out, n_in) };
        auto_chain::conv3x3(rows, cols, begin, speed)
    };
    let factors = match &value {
        Value::String(name) if name == "monotonic" => conv3x3(Begin::Monotonic)?,
        Value::String(name) if name == "bulging" => conv3x3(Begin::Bulging)?,
        Value::String(name) if name == "auto" => {
            let extend = |n| if pad { auto_chain::padded(n) } else { n };
            let (rows, cols) = (extend(n_out), extend(n_in));
            match options.value("factors") {
                None => auto_chain::fewest_parameters(rows, cols),
                Some(_) => auto_chain::general(rows, cols, options.size("factors", 1, MAX_SIZE)?)?,
            }
        }
        Value::Array(list) if !list.is_empty() => {
            list.iter().map(|factor| listed(options, factor)).collect::<Result<_, _>>()?
        }
        value => return Err(options.wrong("chain", CHAINS, value)),
    };
    let debut = Debut::new(factors, n_out, n_in)?;
    let Chain { n_in_ext, n_out_ext, .. } = debut.chain;
    for (what, expected, got) in
        [("in of the first factor", n_in, n_in_ext), ("out of the last", n_out, n_out_ext)]
    {
        if expected != got && !pad {
            return Err(StructureError::FactorShape { structure: NAME, what, expected, got });
        }
    }
    Ok(Box::new(Debut { pad, ..debut }))
}

/// One `[out, in, r, s, t]`.
fn listed(options: &Options, factor: &Value) -> Result<DebutFactor, StructureError> {
    let mut sizes = [0; 5];
    let values = factor.as_array().filter(|values| values.len() == sizes.len());
    let values = values.ok_or_else(|| options.wrong("chain", CHAINS, factor))?;
    for (size, value) in sizes.iter_mut().zip(values) {
        *size = options.size_of("chain", value, 1, 2 * MAX_SIZE)?;
    }
    let [n_out, n_in, r, s, t] = sizes;
    Ok(DebutFactor { n_out, n_in, r, s, t })
}

fn samples() -> Vec<Box<dyn Structure>> {
    let one = json!({"structure": NAME});
    let prime = json!({"structure": NAME, "factors": 2, "pad": true});
    let listed = json!({"structure": NAME, "chain": [[6, 4, 3, 2, 1], [3, 6, 1, 2, 3]]});
    let ragged = json!({"structure": NAME, "chain": [[8, 12, 2, 3, 1], [16, 8, 4, 2, 2]], "pad": true});
    [(&one, 1, 1), (&one, 18, 20), (&prime, 13, 7), (&listed, 4, 3), (&ragged, 11, 15)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl Debut {
    /// The product of these factors, first to last, for a layer of at most their outer sizes.
    ///
    /// # Errors
    ///
    /// [`StructureError::ChainFactor`] when a factor does not read what the one before writes, its stride is not
    /// `r · t` of the one before (1 for the first), its input is not a multiple of `s · t`, its output not
    /// `in · r / s`, or the layer is larger; [`StructureError::FactorShape`] without any factor.
    pub fn new(factors: Vec<DebutFactor>, n_out: usize, n_in: usize) -> Result<Self, StructureError> {
        let (Some(first), Some(last)) = (factors.first(), factors.last()) else {
            let what = "the number of factors";
            return Err(StructureError::FactorShape { structure: NAME, what, expected: 1, got: 0 });
        };
        let wrong = |factor, what, expected, got| {
            Err(StructureError::ChainFactor { structure: NAME, factor, what, expected, got })
        };
        // Sizes may come from a file: products that overflow saturate, and then fit nothing.
        let (mut width, mut stride) = (first.n_in, 1usize);
        for (i, factor) in factors.iter().enumerate() {
            let &DebutFactor { n_out, n_in, r, s, t } = factor;
            if n_in != width {
                return wrong(i, "in, which is out of the factor before,", width, n_in);
            }
            if t != stride {
                return wrong(i, "t, which is r · t of the factor before and 1 in the first,", stride, t);
            }
            if [n_in, n_out, r, s].iter().any(|&size| size == 0 || size > 2 * MAX_SIZE) {
                return wrong(
                    i,
                    "each size, which is at least 1,",
                    2 * MAX_SIZE,
                    n_in.max(n_out).max(r).max(s),
                );
            }
            let block = s.saturating_mul(t);
            if !n_in.is_multiple_of(block) {
                return wrong(
                    i,
                    "in, a multiple of s · t,",
                    n_in.div_ceil(block).saturating_mul(block),
                    n_in,
                );
            }
            if n_in / s * r != n_out {
                return wrong(i, "out, which is in · r / s,", n_in / s * r, n_out);
            }
            (width, stride) = (n_out, t.saturating_mul(r));
        }
        let (n_in_ext, n_out_ext) = (first.n_in, last.n_out);
        if n_in_ext < n_in {
            return wrong(0, "in, at least n_in of the layer,", n_in, n_in_ext);
        }
        if n_out_ext < n_out {
            return wrong(factors.len() - 1, "out, at least n_out of the layer,", n_out, n_out_ext);
        }
        let link = |(i, f): (usize, &DebutFactor)| Link::strided(i, f.groups(), f.t, f.r, f.s);
        let links = factors.iter().enumerate().map(link).collect();
        let chain = Chain { n_in, n_in_ext, n_out_ext, n_out, links }.checked();
        let pad = n_in_ext != n_in || n_out_ext != n_out;
        Ok(Self { factors, chain, pad })
    }

    /// Sizes of the factors, first to last.
    pub fn factors(&self) -> &[DebutFactor] {
        &self.factors
    }

    /// Whether every output depends on every input: the bipolar test, in which the product of factors of random
    /// signs has no zero.
    ///
    /// In a chain that fits, at most one path leads from an input to an output, so no sum can cancel, and there is
    /// one for every pair exactly when the last factor is a single group.
    pub fn is_bipolar(&self) -> bool {
        self.factors.last().is_some_and(|last| last.groups() == 1)
    }

    fn spec(&self, at: usize) -> ParamSpec {
        let factor = self.factors[at];
        ParamSpec::new(&format!("factor{at}"), &[factor.groups(), factor.t, factor.r, factor.s])
    }
}

impl Structure for Debut {
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
        (0..self.factors.len()).map(|at| self.spec(at)).collect()
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// Normal with deviation 1/√2 in every factor, whatever a model asks for: a product is not a draw of its dense
    /// matrix.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let normal = |rng: &mut Rng| (rng.normal() * std::f64::consts::FRAC_1_SQRT_2) as f32;
        let draw = |f: &DebutFactor| (0..f.parameters()).map(|_| normal(rng)).collect();
        let mut values: Vec<Vec<f32>> = self.factors.iter().map(draw).collect();
        if let (Init::Zeros, Some(last)) = (init, values.last_mut()) {
            last.fill(0.0);
        }
        values
    }

    fn takes_model_init(&self) -> bool {
        false
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// The product of the factors as matrices: row `(g·r + ρ)·t + τ` of the next product adds
    /// `T[g, τ, ρ, σ]` times row `(g·s + σ)·t + τ` of the one before.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let n_in = self.n_in();
        let mut product = vec![0.0; self.chain.n_in_ext * n_in];
        product.iter_mut().step_by(n_in + 1).take(n_in).for_each(|one| *one = 1.0);
        for (&DebutFactor { n_out, r, s, t, .. }, values) in self.factors.iter().zip(params) {
            let mut next = vec![0.0; n_out * n_in];
            for (row, sums) in next.chunks_exact_mut(n_in).enumerate() {
                let (g, rho, tau) = (row / (r * t), row / t % r, row % t);
                for sigma in 0..s {
                    let value = values[((g * t + tau) * r + rho) * s + sigma];
                    let from = &product[((g * s + sigma) * t + tau) * n_in..][..n_in];
                    sums.iter_mut().zip(from).for_each(|(sum, from)| *sum += value * from);
                }
            }
            product = next;
        }
        product.truncate(self.n_out() * n_in);
        Some(product)
    }

    fn counts(&self) -> Counts {
        let parameters = self.factors.iter().map(DebutFactor::parameters).sum();
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    /// The factors themselves, so that a checkpoint does not depend on the rule that found them.
    fn config(&self) -> Value {
        let factors: Vec<_> = self.factors.iter().map(|f| [f.n_out, f.n_in, f.r, f.s, f.t]).collect();
        json!({"structure": NAME, "chain": factors, "pad": self.pad})
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Rng;

    fn listed(sizes: &[[usize; 5]]) -> Vec<DebutFactor> {
        sizes.iter().map(|&[n_out, n_in, r, s, t]| DebutFactor { n_out, n_in, r, s, t }).collect()
    }

    fn of(factors: Vec<DebutFactor>) -> Debut {
        let (n_out, n_in) = (factors.last().unwrap().n_out, factors[0].n_in);
        Debut::new(factors, n_out, n_in).unwrap()
    }

    #[test]
    fn the_product_matches_the_reference() {
        let debut = of(listed(&[[6, 4, 3, 2, 1], [3, 6, 1, 2, 3]]));
        let value = |i: usize| (7 * i % 5) as f64 - 2.0;
        let (first, second): (Vec<f64>, Vec<f64>) =
            ((0..12).map(value).collect(), (12..18).map(value).collect());
        assert_eq!(debut.apply(&[&first, &second], &[1., 2., 3., 4.]), [-12., -2., -12.]);
        let dense = [-4., 0., 0., -2., 2., -1., 2., -2., 0., 0., -4., 0.];
        assert_eq!(debut.to_dense(&[&first, &second]).unwrap(), dense);
        let shapes: Vec<Vec<usize>> = debut.params().into_iter().map(|spec| spec.shape).collect();
        assert_eq!(shapes, [[2, 1, 3, 2], [1, 3, 1, 2]]);
    }

    /// (r, s) of the chains that ship with the reference, and their sizes and parameters.
    #[test]
    #[rustfmt::skip]
    fn shipped_chains_have_their_parameters() {
        let lenet_conv2 = [(4, 3), (1, 2), (2, 6), (2, 2)];
        let lenet_fc1 = [(16, 25), (2, 2), (1, 2), (2, 2), (2, 2)];
        let lenet_fc2 = [(2, 4), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2)];
        let vgg_conv8 = [(8, 9), (2, 2), (2, 2), (2, 2), (2, 4), (2, 4), (2, 2)];
        let vgg_conv9 = [(8, 9), (2, 2), (2, 2), (2, 2), (2, 4), (2, 4), (2, 4)];
        let resnet_first = [(4, 2), (2, 2), (2, 2), (2, 4), (2, 2), (2, 2), (2, 4), (2, 2)];
        let resnet_3x3 = [(16, 9), (2, 2), (2, 4), (2, 4), (2, 4), (2, 4)];
        let resnet_out = [(4, 2), (2, 2), (2, 2), (2, 2), (2, 2), (2, 2), (4, 2), (2, 2), (2, 2)];
        let resnet_in = [(4, 1), (4, 4), (4, 4), (4, 16), (2, 8)];
        for (n_in, n_out, pairs, parameters, last) in [
            (72, 16, &lenet_conv2[..], 512, [16, 16, 2, 2, 8]),
            (400, 128, &lenet_fc1, 7_680, [128, 128, 2, 2, 64]),
            (128, 64, &lenet_fc2, 896, [64, 64, 2, 2, 32]),
            (2304, 512, &vgg_conv8, 37_888, [512, 512, 2, 2, 256]),
            (4608, 512, &vgg_conv9, 75_776, [512, 1024, 2, 4, 256]),
            (1024, 512, &resnet_first, 23_552, [512, 512, 2, 2, 256]),
            (4608, 512, &resnet_3x3, 120_832, [512, 1024, 2, 4, 256]),
            (512, 2048, &resnet_out, 24_576, [2048, 2048, 2, 2, 1024]),
            (2048, 512, &resnet_in, 110_592, [512, 2048, 2, 8, 256]),
        ] {
            let debut = of(DebutFactor::chain(n_in, pairs));
            let counts = debut.counts();
            assert_eq!((debut.n_out(), counts.parameters, counts.macs), (n_out, parameters, parameters));
            assert_eq!(debut.factors().last(), listed(&[last]).last(), "{n_out} by {n_in}");
            assert!(debut.is_bipolar());
        }
    }

    #[test]
    fn a_chain_that_does_not_fit_names_the_factor() {
        let wrong = |factor, what, expected, got| StructureError::ChainFactor {
            structure: NAME,
            factor,
            what,
            expected,
            got,
        };
        for (factors, expected) in [
            (
                listed(&[[6, 4, 3, 2, 1], [4, 8, 1, 2, 3]]),
                wrong(1, "in, which is out of the factor before,", 6, 8),
            ),
            (
                listed(&[[6, 4, 3, 2, 1], [3, 6, 1, 2, 2]]),
                wrong(1, "t, which is r · t of the factor before and 1 in the first,", 3, 2),
            ),
            (
                listed(&[[6, 4, 3, 2, 2]]),
                wrong(0, "t, which is r · t of the factor before and 1 in the first,", 1, 2),
            ),
            (listed(&[[6, 4, 3, 3, 1]]), wrong(0, "in, a multiple of s · t,", 6, 4)),
            (listed(&[[5, 4, 3, 2, 1]]), wrong(0, "out, which is in · r / s,", 6, 5)),
            (listed(&[[6, 4, 3, 0, 1]]), wrong(0, "each size, which is at least 1,", 2 * MAX_SIZE, 6)),
            (listed(&[[3, 2, 3, 2, 1]]), wrong(0, "in, at least n_in of the layer,", 4, 2)),
            (listed(&[[2, 4, 1, 2, 1]]), wrong(0, "out, at least n_out of the layer,", 3, 2)),
        ] {
            assert_eq!(Debut::new(factors, 3, 4).unwrap_err(), expected);
        }
        let built = |config: Value| crate::build(&config, 12, 10, 0, None).unwrap_err();
        let list = json!({"structure": NAME, "chain": [[8, 12, 2, 3, 1], [16, 8, 4, 2, 2]]});
        let error =
            StructureError::FactorShape { structure: NAME, what: "out of the last", expected: 10, got: 16 };
        assert_eq!(built(list), error);
        for chain in [json!([]), json!([[1, 2, 3]]), json!("bulgy"), json!(3)] {
            let error = built(json!({"structure": NAME, "chain": chain}));
            assert!(matches!(error, StructureError::WrongType { .. }), "{error}");
        }
        for config in [
            json!({"structure": NAME, "speed": 5}),
            json!({"structure": NAME, "chain": "bulging", "factors": 5}),
            json!({"structure": NAME, "chain": [[10, 12, 10, 12, 1]], "factors": 1}),
        ] {
            let error = built(config);
            assert!(matches!(error, StructureError::Conflict { .. }), "{error}");
        }
        let most = json!([[u64::MAX, 1, 1, 1, 1]]);
        let error = built(json!({"structure": NAME, "chain": most}));
        assert!(matches!(error, StructureError::OutOfRange { key: "chain", .. }), "{error}");
    }

    #[test]
    fn values_start_as_normals_of_deviation_one_over_root_two() {
        let built = crate::build(&json!(NAME), 512, 512, 0, None).unwrap();
        let values = built.init(Init::Default, &mut Rng::new(3));
        let (n, squares) =
            values.iter().flatten().fold((0.0, 0.0), |(n, s), v| (n + 1.0, s + f64::from(v * v)));
        // The mean of n squared normals deviates by √(2/n) of itself.
        assert!((squares / n / 0.5 - 1.0).abs() < 6.0 * f64::sqrt(2.0 / n), "{}", squares / n);
        let zero = built.init(Init::Zeros, &mut Rng::new(3));
        assert!(zero.last().unwrap().iter().all(|&v| v == 0.0) && zero[0] == values[0]);
        assert_eq!(built.bias_bound(), 1.0 / f64::sqrt(512.0));
    }

    #[test]
    fn the_3x3_rules_pad_when_asked() {
        let config = json!({"structure": NAME, "chain": "monotonic", "speed": 4, "pad": true});
        let built = crate::build(&config, 2231, 127, 0, None).unwrap();
        let sizes = &built.config()["chain"];
        assert_eq!((&sizes[0][1], &sizes[4][0]), (&json!(2304), &json!(128)));
        let error =
            crate::build(&json!({"structure": NAME, "chain": "bulging"}), 2231, 127, 0, None).unwrap_err();
        assert!(matches!(error, StructureError::FactorShape { expected: 2304, got: 2231, .. }), "{error}");
    }

    /// Pairs of a chain, and its n_in, which is the product of the s times `groups`.
    fn chains() -> impl Strategy<Value = (usize, Vec<(usize, usize)>)> {
        (prop::collection::vec((1usize..5, 1usize..5), 1..5), 1usize..4)
            .prop_map(|(pairs, groups)| (groups * pairs.iter().map(|p| p.1).product::<usize>(), pairs))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]

        #[test]
        fn the_bipolar_test_is_that_of_random_signs((n_in, pairs) in chains(), seed in 0u64..1000) {
            let debut = of(DebutFactor::chain(n_in, &pairs));
            let mut rng = Rng::new(seed);
            let mut sign = |_| if rng.below(2) == 0 { -1.0 } else { 1.0 };
            let signs: Vec<Vec<f64>> =
                debut.factors.iter().map(|f| (0..f.parameters()).map(&mut sign).collect()).collect();
            let signs: Vec<&[f64]> = signs.iter().map(Vec::as_slice).collect();
            let dense = debut.to_dense(&signs).unwrap();
            prop_assert_eq!(dense.iter().all(|&w| w != 0.0), debut.is_bipolar());
        }
    }
}
