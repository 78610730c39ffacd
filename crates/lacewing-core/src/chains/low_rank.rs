//! Low rank: a narrow waist of `rank` channels.
//!
//! Cost of a row: `rank · (n_in + n_out)` multiply-adds.

use serde_json::{Value, json};

use crate::config::{Key, Options};
use crate::init::uniform;
use crate::spectrum::gaussian_truncation;
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Init, Link, ParamSpec, Problem, Rng, Structure, StructureError,
    StructureKind, Target, project,
};

const NAME: &str = "low_rank";

pub(crate) const RANK: Key =
    Key::new("rank", "a whole number, or a ratio of the smaller of n_in and n_out", "0.1");

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "a product of two thin matrices",
    keys: &[
        RANK,
        Key::new(
            "init",
            "linear: each factor as a dense layer | svd: the best approximation of a dense draw",
            "\"linear\"",
        ),
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let rank = (density * n_in as f64 * n_out as f64) as usize / (n_in + n_out);
        (rank > 0).then(|| json!({"structure": NAME, "rank": rank.min(n_in).min(n_out)}))
    },
};

/// `y = B (A x)`, parameters `a [rank, n_in]` and `b [n_out, rank]`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    chain: Chain,
    rank: usize,
    /// Whether the default init is that of a dense layer, truncated.
    spectral: bool,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let spectral = options.choice("init", &[("linear", false), ("svd", true)], "`linear` or `svd`")?;
    Ok(Box::new(LowRank { spectral, ..LowRank::read(options, problem)? }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let thin = json!({"structure": NAME, "rank": 2});
    let ratio = json!({"structure": NAME, "rank": 0.5});
    let spectral = json!({"structure": NAME, "rank": 1, "init": "svd"});
    [(&thin, 5, 7), (&ratio, 9, 6), (&spectral, 3, 1)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl LowRank {
    /// Reads `rank`; `options` may have more. The default init is linear.
    pub(crate) fn read(options: &Options, problem: &Problem<'_>) -> Result<Self, StructureError> {
        let (n_out, n_in) = problem.shape();
        let most = n_in.min(n_out);
        let value = options.required("rank")?;
        let rank = if value.is_u64() {
            options.size("rank", 1, most)?
        } else {
            match (options.number("rank", 0.0, 1.0)? * most as f64) as usize {
                0 => {
                    return Err(options.range("rank", value.as_f64().unwrap_or(0.0), 1.0 / most as f64, 1.0));
                }
                rank => rank,
            }
        };
        let links = vec![Link::blocks(0, 1, rank, n_in), Link::blocks(1, 1, n_out, rank)];
        Ok(Self {
            chain: Chain { n_in, n_in_ext: n_in, n_out_ext: n_out, n_out, links },
            rank,
            spectral: false,
        })
    }

    /// Width of the waist.
    pub fn rank(&self) -> usize {
        self.rank
    }
}

impl Structure for LowRank {
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
        vec![ParamSpec::new("a", &[self.rank, self.n_in()]), ParamSpec::new("b", &[self.n_out(), self.rank])]
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// By default U(±1/√n_in) and U(±1/√rank). A model's rule, and by default `init: svd`, gives the best
    /// approximation of rank `rank` to a dense draw of normals with that rule's deviation, `a = √S Vᵀ` and `b = U √S`.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let (n_out, n_in, rank) = (self.n_out(), self.n_in(), self.rank);
        match init {
            Init::Default | Init::Zeros if !self.spectral || init == Init::Zeros => {
                let a = uniform(1.0 / (n_in as f64).sqrt(), rank * n_in, rng);
                let bound = if init == Init::Zeros { 0.0 } else { 1.0 / (rank as f64).sqrt() };
                vec![a, uniform(bound, n_out * rank, rng)]
            }
            _ => {
                let draw = gaussian_truncation(n_out, n_in, rank, rng);
                let std = init.deviation(n_out, n_in);
                let (mut a, mut b) = (vec![0.0; rank * n_in], vec![0.0; n_out * rank]);
                for (t, &sigma) in draw.sigma.iter().enumerate() {
                    let root = (sigma * std).sqrt();
                    for (to, from) in a[t * n_in..][..n_in].iter_mut().zip(&draw.right[t]) {
                        *to = (root * from) as f32;
                    }
                    for (row, from) in draw.left[t].iter().enumerate() {
                        b[row * rank + t] = (root * from) as f32;
                    }
                }
                vec![a, b]
            }
        }
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// `W = B A`.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (n_out, n_in) = (self.n_out(), self.n_in());
        let mut dense = vec![0.0; n_out * n_in];
        for row in 0..n_out {
            for t in 0..self.rank {
                for col in 0..n_in {
                    dense[row * n_in + col] += params[1][row * self.rank + t] * params[0][t * n_in + col];
                }
            }
        }
        Some(dense)
    }

    /// The optimum, with a second moment or without, its factors balanced.
    fn project(&self, target: &Target<'_>) -> Vec<Vec<f64>> {
        project::low_rank::project(self.rank, target)
    }

    fn counts(&self) -> Counts {
        let parameters = self.rank * (self.n_in() + self.n_out());
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    fn config(&self) -> Value {
        let init = if self.spectral { "svd" } else { "linear" };
        json!({"structure": NAME, "rank": self.rank, "init": init})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_of_nothing_is_an_error() {
        for (rank, n) in [(json!(0), 8), (json!(0.1), 8), (json!(9), 8), (json!(1.5), 8)] {
            let error = crate::build(&json!({"structure": NAME, "rank": rank}), n, 20, 0, None).unwrap_err();
            assert!(matches!(error, StructureError::OutOfRange { key: "rank", .. }), "{rank}: {error}");
        }
        let error = crate::build(&json!({"structure": NAME, "rank": "half"}), 8, 8, 0, None).unwrap_err();
        assert!(matches!(error, StructureError::WrongType { .. }), "{error}");
    }

    #[test]
    fn a_models_init_balances_the_factors_and_has_the_size_of_the_dense_draw() {
        // At full rank nothing is truncated: the squares of W add up to those of a dense draw.
        let (n_out, n_in, std) = (60, 40, 0.02);
        let built = crate::build(&json!({"structure": NAME, "rank": 1.0}), n_in, n_out, 0, None).unwrap();
        let values = built.init(Init::TruncNormal { std }, &mut Rng::new(9));
        let values: Vec<Vec<f64>> =
            values.iter().map(|v| v.iter().map(|&v| f64::from(v)).collect()).collect();
        let w = built.to_dense(&[&values[0], &values[1]]).unwrap();
        let (n, squares) = ((n_out * n_in) as f64, w.iter().map(|w| w * w).sum::<f64>());
        let expected = n * std * std;
        // A sum of n squared normals deviates by √(2n).
        assert!((squares / expected - 1.0).abs() < 6.0 * (2.0 / n).sqrt(), "{squares} of {expected}");
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
        let (a, b) = (norm(&values[0]), norm(&values[1]));
        assert!((a / b - 1.0).abs() < 100.0 * f64::from(f32::EPSILON), "{a} against {b}");
    }

    #[test]
    fn a_spectral_init_is_the_truncation_of_a_dense_draw() {
        let f64s = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
        let norm = |values: &[f64]| values.iter().map(|v| v * v).sum::<f64>();
        for (n_in, n_out, rank) in [(48, 80, 48), (48, 80, 6), (64, 17, 1)] {
            let config = json!({"structure": NAME, "rank": rank, "init": "svd"});
            let built = crate::build(&config, n_in, n_out, 0, None).unwrap();
            let values = built.init(Init::Default, &mut Rng::new(3));
            let (a, b) = (f64s(&values[0]), f64s(&values[1]));
            // Balance: aᵢ and bᵢ, the rows of a and the columns of b, have the same length √σᵢ, falling with i.
            let mut last = f64::INFINITY;
            for t in 0..rank {
                let (row, col) =
                    (norm(&a[t * n_in..][..n_in]), (0..n_out).map(|r| b[r * rank + t].powi(2)).sum::<f64>());
                assert!((row / col - 1.0).abs() < 100.0 * f64::from(f32::EPSILON), "{row} against {col}");
                assert!(row <= last * (1.0 + 100.0 * f64::from(f32::EPSILON)));
                last = row;
            }
            // Norm: at full rank that of U(±1/√n_in), n_out·n_in values of variance 1/(3·n_in); at a lower rank more
            // than that rank's share of it and no more than the whole.
            let squares = norm(&built.to_dense(&[&a, &b]).unwrap());
            let (whole, n) = (n_out as f64 / 3.0, (n_out * n_in) as f64);
            let slack = 6.0 * (2.0 / n).sqrt();
            let share = rank as f64 / n_in.min(n_out) as f64;
            assert!(
                squares < whole * (1.0 + slack) && squares > whole * share * (1.0 - slack),
                "{squares} of {whole}"
            );
            assert_eq!(built.config()["init"], "svd");
            assert!(built.init(Init::Zeros, &mut Rng::new(3))[1].iter().all(|&v| v == 0.0));
        }
    }

    #[test]
    fn an_init_that_is_neither_is_an_error() {
        let error = crate::build(&json!({"structure": NAME, "init": "magic"}), 20, 20, 0, None).unwrap_err();
        assert_eq!(error.to_string(), "`low_rank.init` must be `linear` or `svd`, got \"magic\"");
    }
}
