//! Circulant: each column of W is the one before, moved down by one and around.
//!
//! Cost of a row: `n_out · n_in` multiply-adds as executed, a dense product; `max(n_in, n_out)` values, or one
//! value for every `block` weights.

use serde_json::{Value, json};

use super::{check_listed, tied_chain};
use crate::config::{Key, Options, PAD};
use crate::project::tied::scatter_mean;
use crate::registry::{MAX_SIZE, first_within};
use crate::structure::check_params;
use crate::{Built, Chain, Counts, Form, Init, ParamSpec, Problem, Rng, Structure, StructureKind, Target};

const NAME: &str = "circulant";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "W[i, j] depends on (i − j) mod n, in the whole matrix or in each of its square blocks",
    keys: &[Key::new("block", "size of a block, at least 1; one circulant for all of W without it", ""), PAD],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let blocks = ((1.0 / density).ceil() as usize..=n_in.min(n_out)).take(16);
        let configs = blocks.map(|block| json!({"structure": NAME, "block": block, "pad": true}));
        first_within((n_in, n_out), density, configs.chain([json!({"structure": NAME})]))
    },
};

/// `W[i, j] = col[(i − j) mod n]` with `n = max(n_in, n_out)`, parameter `col [n]`.
///
/// With blocks of `b`: `W[i, j] = col[⌊i/b⌋, ⌊j/b⌋, (i − j) mod b]`, parameter
/// `col [⌈n_out/b⌉, ⌈n_in/b⌉, b]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Circulant {
    block: Option<usize>,
    pad: bool,
    chain: Chain,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let pad = options.flag("pad")?;
    check_listed(NAME, "n_out · n_in", [n_out, n_in])?;
    let block = match options.value("block") {
        None => None,
        Some(_) => Some(options.size("block", 1, MAX_SIZE)?),
    };
    let chain = if let Some(b) = block {
        let (n_out_ext, n_in_ext) = options.padded((n_out, n_in), (b, b), "block")?;
        let (rows, cols) = (n_out_ext / b, n_in_ext / b);
        check_listed(NAME, "values with padding", [rows * cols, b])?;
        tied_chain(n_out, n_in, rows * cols * b, |i, j| {
            ((i / b * cols + j / b) * b + (i % b + b - j % b) % b, false)
        })
    } else {
        let n = n_in.max(n_out);
        tied_chain(n_out, n_in, n, |i, j| ((i + n - j) % n, false))
    };
    Ok(Box::new(Circulant { block, pad, chain }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let whole = json!(NAME);
    let blocks = json!({"structure": NAME, "block": 3});
    let padded = json!({"structure": NAME, "block": 4, "pad": true});
    [(&whole, 7, 7), (&whole, 5, 11), (&whole, 6, 1), (&whole, 1, 1), (&blocks, 9, 6), (&padded, 7, 13)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl Circulant {
    /// Size of a block, or `None` when all of W is one circulant.
    pub fn block(&self) -> Option<usize> {
        self.block
    }
}

impl Structure for Circulant {
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
        let (n_out, n_in) = (self.n_out(), self.n_in());
        vec![match self.block {
            None => ParamSpec::new("col", &[n_out.max(n_in)]),
            Some(b) => ParamSpec::new("col", &[n_out.div_ceil(b), n_in.div_ceil(b), b]),
        }]
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        vec![init.draw(self.n_out(), self.n_in(), self.counts().parameters, rng)]
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// Diagonal by diagonal: the values go down and to the right.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (n_out, n_in) = (self.n_out(), self.n_in());
        let b = self.block.unwrap_or(n_out.max(n_in));
        let mut dense = vec![0.0; n_out * n_in];
        for (circulant, col) in params[0].chunks_exact(b).enumerate() {
            let (row0, col0) = (circulant / n_in.div_ceil(b) * b, circulant % n_in.div_ceil(b) * b);
            for (first, value) in col.iter().enumerate() {
                for step in 0..b {
                    let (row, col) = (row0 + (first + step) % b, col0 + step);
                    if row < n_out && col < n_in {
                        dense[row * n_in + col] = *value;
                    }
                }
            }
        }
        Some(dense)
    }

    /// Means along the diagonals, the least-squares optimum; a second moment is not taken into account.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        scatter_mean(&self.chain, target).expect("one tied link")
    }

    fn counts(&self) -> Counts {
        let parameters = self.params()[0].count();
        Counts { parameters, bytes: 4 * parameters, macs: self.chain.macs() }
    }

    fn config(&self) -> Value {
        match self.block {
            None => json!({"structure": NAME, "pad": self.pad}),
            Some(block) => json!({"structure": NAME, "block": block, "pad": self.pad}),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tied::normal_equations;
    use lacewing_testkit::uniform_f64;

    fn dense(config: &Value, n_in: usize, n_out: usize) -> Vec<f64> {
        let built = crate::build(config, n_in, n_out, 0, None).unwrap();
        let values: Vec<f64> = (1..=built.counts().parameters).map(|i| i as f64).collect();
        built.to_dense(&[&values]).unwrap()
    }

    #[test]
    fn small_matrices_are_as_written_out() {
        assert_eq!(dense(&json!(NAME), 3, 3), [1., 3., 2., 2., 1., 3., 3., 2., 1.]);
        // Truncated: the first rows, or the first columns.
        assert_eq!(dense(&json!(NAME), 3, 2), [1., 3., 2., 2., 1., 3.]);
        assert_eq!(dense(&json!(NAME), 2, 3), [1., 3., 2., 1., 3., 2.]);
        let blocks = json!({"structure": NAME, "block": 2, "pad": true});
        #[rustfmt::skip]
        assert_eq!(dense(&blocks, 4, 3), [
            1., 2., 3., 4.,
            2., 1., 4., 3.,
            5., 6., 7., 8.,
        ]);
    }

    #[test]
    fn a_square_circulant_is_a_circular_convolution() {
        let n = 7;
        let built = crate::build(&json!(NAME), n, n, 0, None).unwrap();
        let (col, x) = (uniform_f64(1, n), uniform_f64(2, n));
        let mut convolution = vec![0.0; n];
        for (shift, c) in col.iter().enumerate() {
            x.iter().enumerate().for_each(|(i, x)| convolution[(i + shift) % n] += c * x);
        }
        let bound = vec![2.0 * lacewing_testkit::gamma_of(n, lacewing_testkit::UNIT_F64) * n as f64; n];
        lacewing_testkit::assert_near(&built.apply(&[&col], &x), &convolution, &bound, "convolution");
    }

    #[test]
    fn projections_are_the_least_squares_optimum() {
        for sample in samples() {
            let (n_out, n_in) = (sample.n_out(), sample.n_in());
            let weight = uniform_f64(3, n_out * n_in);
            let target = Target::new(n_out, n_in, &weight);
            let expected = normal_equations(&*sample, &target);
            let got = sample.project(&target);
            assert!(got[0].iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-13), "{}", sample.config());
        }
    }

    #[test]
    fn layers_too_large_to_list_are_errors() {
        let error = crate::build(&json!(NAME), 1 << 20, 1 << 20, 0, None).unwrap_err().to_string();
        assert_eq!(error, "`circulant`: n_out · n_in must be between 1 and 268435456, got 1099511627776");
        let config = json!({"structure": NAME, "block": 1 << 24, "pad": true});
        assert_eq!(crate::build(&config, 5, 7, 0, None).unwrap().counts().parameters, 1 << 24);
        let config = json!({"structure": NAME, "block": 0});
        assert!(crate::build(&config, 4, 4, 0, None).is_err());
        let config = json!({"structure": NAME, "block": 3});
        assert!(crate::build(&config, 4, 6, 0, None).unwrap_err().to_string().contains("n_in = 4"));
    }
}
