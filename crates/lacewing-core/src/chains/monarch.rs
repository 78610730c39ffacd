//! Monarch: two block-diagonal factors with a stride permutation after each.
//!
//! Cost of a row: `k·q·p + l·s·r` multiply-adds, about `(1 + min/max) / blocks` of dense for `[n_out, n_in]`.
//! Every output depends on every input, which a single block-diagonal factor cannot give.

use serde_json::{Value, json};

use crate::config::{Key, Options, PAD};
use crate::init::uniform;
use crate::registry::{MAX_SIZE, first_within};
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Init, Link, ParamSpec, Problem, Rng, Structure, StructureError,
    StructureKind, Target, project,
};

const NAME: &str = "monarch";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "two block-diagonal factors with stride permutations",
    keys: &[
        Key::new("blocks", "blocks of both factors, 1 to the larger of n_in and n_out", "4"),
        Key::new("factors", "instead of blocks: both factor shapes, [[k, q, p], [l, s, r]]", ""),
        PAD,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let blocks = 1..=n_in.min(n_out);
        first_within(
            (n_in, n_out),
            density,
            blocks.map(|blocks| json!({"structure": NAME, "blocks": blocks, "pad": true})),
        )
    },
};

/// Sizes of the two factors: `blkdiag1 [k, q, p]` and `blkdiag2 [l, s, r]` with `k·q = l·r`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MonarchFactors {
    /// Blocks of the first factor.
    pub k: usize,
    /// Outputs of a block of the first factor.
    pub q: usize,
    /// Inputs of a block of the first factor.
    pub p: usize,
    /// Blocks of the second factor.
    pub l: usize,
    /// Outputs of a block of the second factor.
    pub s: usize,
    /// Inputs of a block of the second factor.
    pub r: usize,
}

/// `y = P₂ · blockdiag(blkdiag2) · P₁ · blockdiag(blkdiag1) · x`.
///
/// With `u[κ·q + j] = Σ_i blkdiag1[κ, j, i] x[κ·p + i]`, the second factor reads `v[λ, ρ] = u[ρ·l + λ]` and the output
/// is `y[σ·l + λ] = Σ_ρ blkdiag2[λ, σ, ρ] v[λ, ρ]`: `k·p` inputs, `l·s` outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Monarch {
    factors: MonarchFactors,
    chain: Chain,
    /// As in the config, when the shapes come from it.
    blocks: Option<usize>,
    pad: bool,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let pad = options.flag("pad")?;
    let Some(value) = options.value("factors") else {
        let blocks = options.size("blocks", 1, n_in.max(n_out))?;
        let (n_out_ext, n_in_ext) = options.padded((n_out, n_in), (blocks, blocks), "blocks")?;
        let (outputs, inputs) = (n_out_ext / blocks, n_in_ext / blocks);
        // The width between the factors is the smaller of the two, so the larger side has the larger factor.
        let q = inputs.min(outputs);
        let factors = MonarchFactors { k: blocks, q, p: inputs, l: blocks, s: outputs, r: q };
        return Ok(Box::new(Monarch { blocks: Some(blocks), pad, ..Monarch::new(factors, n_out, n_in)? }));
    };
    if options.given("blocks") {
        return Err(StructureError::Conflict { structure: NAME, key: "factors", other: "blocks" });
    }
    let expected = "two shapes, [[k, q, p], [l, s, r]]";
    let mut sizes = Vec::with_capacity(6);
    for factor in value.as_array().ok_or_else(|| options.wrong("factors", expected, &value))? {
        let shape = factor.as_array().filter(|shape| shape.len() == 3);
        for size in shape.ok_or_else(|| options.wrong("factors", expected, &value))? {
            sizes.push(options.size_of("factors", size, 1, MAX_SIZE)?);
        }
    }
    let &[k, q, p, l, s, r] = sizes.as_slice() else {
        return Err(options.wrong("factors", expected, &value));
    };
    let monarch = Monarch::new(MonarchFactors { k, q, p, l, s, r }, n_out, n_in)?;
    let Chain { n_in_ext, n_out_ext, .. } = monarch.chain;
    for (what, expected, got) in [("k · p", n_in, n_in_ext), ("l · s", n_out, n_out_ext)] {
        if expected != got && !pad {
            return Err(StructureError::FactorShape { structure: NAME, what, expected, got });
        }
    }
    Ok(Box::new(Monarch { pad, ..monarch }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let square = json!({"structure": NAME, "blocks": 3});
    let padded = json!({"structure": NAME, "blocks": 4, "pad": true});
    let general = json!({"structure": NAME, "factors": [[2, 3, 4], [3, 4, 2]]});
    [(&square, 9, 9), (&padded, 13, 6), (&padded, 5, 18), (&padded, 9, 3), (&general, 8, 12)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl Monarch {
    /// A Monarch map of any two factors that fit, for a layer `[n_out, n_in]` of at most `[l·s, k·p]`.
    ///
    /// # Errors
    ///
    /// [`StructureError::FactorShape`] when `k·q ≠ l·r` or when the layer is larger than the factors.
    pub fn new(factors: MonarchFactors, n_out: usize, n_in: usize) -> Result<Self, StructureError> {
        let MonarchFactors { k, q, p, l, s, r } = factors;
        let wrong =
            |what, expected, got| StructureError::FactorShape { structure: NAME, what, expected, got };
        // Sizes may come from a file: products that overflow saturate, and then fit nothing.
        let (n_in_ext, n_out_ext) = (k.saturating_mul(p), l.saturating_mul(s));
        let (written, read) = (k.saturating_mul(q), l.saturating_mul(r));
        if written != read || written == usize::MAX {
            return Err(wrong("k · q, which the second factor reads as l · r,", read, written));
        }
        for (what, needed, got) in [("k · p", n_in, n_in_ext), ("l · s", n_out, n_out_ext)] {
            if got < needed || got > 2 * MAX_SIZE {
                return Err(wrong(what, needed, got));
            }
        }
        let links = vec![
            Link::blocks(0, k, q, p),
            // Reads u[ρ·l + λ] and writes y[σ·l + λ]: both stride permutations are in the stride.
            Link::strided(1, 1, l, s, r),
        ];
        let chain = Chain { n_in, n_in_ext, n_out_ext, n_out, links }.checked();
        Ok(Self { factors, chain, blocks: None, pad: n_in_ext != n_in || n_out_ext != n_out })
    }

    /// Sizes of the two factors.
    pub fn factors(&self) -> &MonarchFactors {
        &self.factors
    }
}

impl Structure for Monarch {
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
        let MonarchFactors { k, q, p, l, s, r } = self.factors;
        vec![ParamSpec::new("blkdiag1", &[k, q, p]), ParamSpec::new("blkdiag2", &[l, s, r])]
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// U(±1/√p) and U(±1/√r), whatever a model asks for: a product is not a draw of its dense matrix.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let MonarchFactors { k, q, p, l, s, r } = self.factors;
        let first = uniform(1.0 / (p as f64).sqrt(), k * q * p, rng);
        let bound = if init == Init::Zeros { 0.0 } else { 1.0 / (r as f64).sqrt() };
        vec![first, uniform(bound, l * s * r, rng)]
    }

    fn takes_model_init(&self) -> bool {
        false
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_out() as f64).sqrt()
    }

    /// `W[σ·l + λ, κ·p + i] = Σ blkdiag2[λ, σ, ρ] blkdiag1[κ, j, i]` over all (ρ, j) with `ρ·l + λ = κ·q + j`.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let MonarchFactors { q, p, l, s, r, .. } = self.factors;
        let (n_out, n_in) = (self.n_out(), self.n_in());
        let mut dense = vec![0.0; n_out * n_in];
        for row in 0..n_out {
            let (sigma, lambda) = (row / l, row % l);
            for rho in 0..r {
                let (kappa, j) = ((rho * l + lambda) / q, (rho * l + lambda) % q);
                let second = params[1][(lambda * s + sigma) * r + rho];
                for i in 0..p.min(n_in.saturating_sub(kappa * p)) {
                    dense[row * n_in + kappa * p + i] += second * params[0][(kappa * q + j) * p + i];
                }
            }
        }
        Some(dense)
    }

    /// Without a second moment the optimum, by slices of W. With one the optimum only if the moment is block-diagonal
    /// over the first factor's blocks, else better for the outputs than without.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        project::monarch::project(self.factors, target)
    }

    fn counts(&self) -> Counts {
        let MonarchFactors { k, q, p, l, s, r } = self.factors;
        let parameters = k * q * p + l * s * r;
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    fn config(&self) -> Value {
        let MonarchFactors { k, q, p, l, s, r } = self.factors;
        match self.blocks {
            Some(blocks) => json!({"structure": NAME, "blocks": blocks, "pad": self.pad}),
            None => json!({"structure": NAME, "factors": [[k, q, p], [l, s, r]], "pad": self.pad}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors filled row-major with ((5i) mod 7) − 3 and ((3i) mod 5) − 2, and the product with 1, 2, 3, ….
    fn golden([k, q, p]: [usize; 3], [l, s, r]: [usize; 3]) -> (Monarch, Vec<f64>, Vec<f64>, Vec<f64>) {
        let monarch = Monarch::new(MonarchFactors { k, q, p, l, s, r }, l * s, k * p).unwrap();
        let w1: Vec<f64> = (0..k * q * p).map(|i| (i * 5 % 7) as f64 - 3.0).collect();
        let w2: Vec<f64> = (0..l * s * r).map(|i| (i * 3 % 5) as f64 - 2.0).collect();
        let x: Vec<f64> = (1..=k * p).map(|i| i as f64).collect();
        let y = monarch.apply(&[&w1, &w2], &x);
        (monarch, w1, w2, y)
    }

    #[test]
    fn products_match_the_reference() {
        let (monarch, w1, w2, y) = golden([2, 3, 3], [3, 2, 2]);
        assert_eq!(y, [6., 38., -2., 15., 26., -2.]);
        #[rustfmt::skip]
        let dense = [
            6., -4., 0., 0., -2., 3.,    0., 0., 0., -2., 2., 6.,    -2., -6., 4., 0., 0., 0.,
            3., -2., 0., 0., -4., 6.,    -2., 3., 1., -1., 1., 3.,   2., 6., -4., 2., 0., -2.,
        ];
        assert_eq!(monarch.to_dense(&[&w1, &w2]).unwrap(), dense);
        let (.., y) = golden([2, 3, 4], [3, 4, 2]);
        assert_eq!(y, [8., -20., 17., -5., 37., 16., 12., 44., -25., -1., -34., -26.]);
        let (.., y) = golden([2, 3, 4], [2, 2, 3]);
        assert_eq!(y, [5., -22., -48., 3.]);
    }

    #[test]
    fn factor_shapes_match_the_reference() {
        for (n_in, n_out, blocks, first, second, parameters) in [
            (768, 3072, 8, [8, 96, 96], [8, 384, 96], 368_640),
            (3072, 768, 8, [8, 96, 384], [8, 96, 96], 368_640),
            (768, 3072, 4, [4, 192, 192], [4, 768, 192], 737_280),
            (3072, 768, 4, [4, 192, 768], [4, 192, 192], 737_280),
            (784, 392, 15, [15, 27, 53], [15, 27, 27], 32_400),
            (64, 64, 4, [4, 16, 16], [4, 16, 16], 2_048),
        ] {
            let config = json!({"structure": NAME, "blocks": blocks, "pad": true});
            let built = crate::build(&config, n_in, n_out, 0, None).unwrap();
            let shapes: Vec<Vec<usize>> = built.params().into_iter().map(|spec| spec.shape).collect();
            assert_eq!(shapes, [first, second]);
            assert_eq!(built.counts().parameters, parameters);
        }
    }

    #[test]
    fn values_start_within_one_over_root_of_the_last_dimension_and_models_do_not_reach_them() {
        let built = crate::build(&json!({"structure": NAME, "blocks": 4}), 256, 64, 0, None).unwrap();
        let values = built.init(Init::Default, &mut Rng::new(1));
        for (values, bound) in values.iter().zip([1.0 / 8.0, 1.0 / 4.0]) {
            let most = values.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(most <= bound && most > 0.98 * bound, "{most} of {bound}");
        }
        assert_eq!(values, built.init(Init::TruncNormal { std: 0.02 }, &mut Rng::new(1)));
        assert!(built.init(Init::Zeros, &mut Rng::new(1))[1].iter().all(|&v| v == 0.0));
        assert_eq!(built.bias_bound(), 1.0 / 8.0);
    }

    #[test]
    fn factors_that_do_not_fit_are_errors_with_numbers() {
        for (factors, what, expected, got) in [
            (json!([[2, 3, 4], [2, 4, 2]]), "k · q, which the second factor reads as l · r,", 4, 6),
            (json!([[2, 3, 4], [3, 4, 2]]), "k · p", 9, 8),
        ] {
            let error = crate::build(&json!({"structure": NAME, "factors": factors}), 9, 12, 0, None);
            assert_eq!(
                error.unwrap_err(),
                StructureError::FactorShape { structure: NAME, what, expected, got }
            );
        }
        let config = json!({"structure": NAME, "blocks": 8});
        let error = crate::build(&config, 100, 64, 0, None).unwrap_err().to_string();
        assert!(
            error.contains("n_in = 100") && error.contains("pad: true") && error.contains("104"),
            "{error}"
        );
    }
}
