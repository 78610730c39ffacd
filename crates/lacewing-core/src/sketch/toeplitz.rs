//! Toeplitz: every diagonal of W is one value.
//!
//! Cost of a row: `n_out · n_in` multiply-adds as executed, a dense product; `n_in + n_out − 1` values.

use serde_json::{Value, json};

use super::{check_listed, tied_chain};
use crate::config::Options;
use crate::project::tied::scatter_mean;
use crate::registry::first_within;
use crate::structure::check_params;
use crate::{Built, Chain, Counts, Form, Init, ParamSpec, Problem, Rng, Structure, StructureKind, Target};

const NAME: &str = "toeplitz";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "W[i, j] depends on i − j",
    keys: &[],
    build,
    samples,
    sized: |n_in, n_out, density| first_within((n_in, n_out), density, [json!({"structure": NAME})]),
};

/// `W[i, j] = diagonals[i − j + n_in − 1]`, parameter `diagonals [n_in + n_out − 1]`: from the upper right corner
/// to the lower left one.
#[derive(Clone, Debug, PartialEq)]
pub struct Toeplitz {
    chain: Chain,
}

fn build(_: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    check_listed(NAME, "n_out · n_in", [n_out, n_in])?;
    let chain = tied_chain(n_out, n_in, n_in + n_out - 1, |i, j| (i + n_in - 1 - j, false));
    Ok(Box::new(Toeplitz { chain }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    [(7, 7), (5, 11), (6, 1), (1, 3), (1, 1)]
        .map(|(n_in, n_out)| crate::build(&json!(NAME), n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl Structure for Toeplitz {
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
        vec![ParamSpec::new("diagonals", &[self.n_in() + self.n_out() - 1])]
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

    /// Row i is the window of `n_in` values that ends i after the upper right corner, read backwards.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        Some(params[0].windows(self.n_in()).flat_map(|window| window.iter().rev().copied()).collect())
    }

    /// Means along the diagonals, the least-squares optimum; a second moment is not taken into account.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        scatter_mean(&self.chain, target).expect("one tied link")
    }

    fn counts(&self) -> Counts {
        let parameters = self.n_in() + self.n_out() - 1;
        Counts { parameters, bytes: 4 * parameters, macs: self.chain.macs() }
    }

    fn config(&self) -> Value {
        json!({"structure": NAME})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::project::tied::normal_equations;
    use lacewing_testkit::uniform_f64;

    #[test]
    fn small_matrices_are_as_written_out() {
        for (n_in, n_out, expected) in [
            (3, 2, &[3., 2., 1., 4., 3., 2.][..]),
            (2, 3, &[2., 1., 3., 2., 4., 3.]),
            (1, 2, &[1., 2.]),
            (2, 1, &[2., 1.]),
        ] {
            let built = crate::build(&json!(NAME), n_in, n_out, 0, None).unwrap();
            let values: Vec<f64> = (1..n_in + n_out).map(|i| i as f64).collect();
            assert_eq!(built.to_dense(&[&values]).unwrap(), expected);
        }
    }

    #[test]
    fn projections_are_the_least_squares_optimum() {
        for sample in samples() {
            let (n_out, n_in) = (sample.n_out(), sample.n_in());
            let weight = uniform_f64(3, n_out * n_in);
            let target = Target::new(n_out, n_in, &weight);
            let expected = normal_equations(&*sample, &target);
            let got = sample.project(&target);
            assert!(got[0].iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-13), "{n_in} {n_out}");
        }
    }

    #[test]
    fn layers_too_large_to_list_are_errors() {
        let error = crate::build(&json!(NAME), 1 << 20, 1 << 20, 0, None).unwrap_err().to_string();
        assert_eq!(error, "`toeplitz`: n_out · n_in must be between 1 and 268435456, got 1099511627776");
    }
}
