//! Sums by alternating projection: what one branch leaves is the other's target.
//!
//! Cost: the branches' own projections, for two starts of at most [`ROUNDS`] rounds each.

use super::{Target, dense_of};
use crate::{Gate, ParamSpec, Structure, Sum};

/// Rounds at most.
const ROUNDS: usize = 20;

/// A round that lowers the error by a smaller share is the last.
const LEAST_GAIN: f64 = 1e-4;

/// Parameters of one start and the error after each round, which never rises.
struct Descent {
    branches: [Vec<Vec<f64>>; 2],
    errors: Vec<f64>,
}

/// The better of two descents, one starting with the first branch and one with the second.
///
/// A constant gate is divided out of the branches. A learned gate is set to weight 0 and bias 0, which is ½ for
/// every input.
pub(super) fn project(sum: &Sum, specs: &[ParamSpec], target: &Target<'_>) -> Vec<Vec<f64>> {
    let [a_first, b_first] = [0, 1].map(|start| descend(sum, target, start));
    let last = |descent: &Descent| descent.errors.last().copied().unwrap_or(f64::NAN);
    let best = if last(&b_first) < last(&a_first) { b_first } else { a_first };
    let mut params: Vec<Vec<f64>> = specs.iter().map(|spec| vec![0.0; spec.count()]).collect();
    for (range, branch) in [&sum.a_params, &sum.b_params].into_iter().zip(best.branches) {
        range.clone().zip(branch).for_each(|(at, values)| params[at] = values);
    }
    params
}

/// What a gate multiplies the branches with.
fn weights(gate: Gate) -> [f64; 2] {
    match gate {
        Gate::Plain => [1.0, 1.0],
        Gate::Fixed(g) => [1.0 - g, g],
        Gate::Learned { .. } => [0.5, 0.5],
    }
}

fn descend(sum: &Sum, target: &Target<'_>, start: usize) -> Descent {
    let (structures, weights) = ([&*sum.a, &*sum.b], weights(sum.gate));
    let error = |[a, b]: [&[f64]; 2]| {
        let total: Vec<f64> = a.iter().zip(b).map(|(a, b)| a + b).collect();
        target.output_error(&total).unwrap_or_else(|| target.error(&total))
    };
    let mut shares = [0, 1].map(|_| vec![0.0; target.weight.len()]);
    let mut branches = [0, 1].map(|at| {
        let specs: Vec<ParamSpec> = structures[at].params();
        specs.iter().map(|spec| vec![0.0; spec.count()]).collect::<Vec<_>>()
    });
    let mut errors = Vec::new();
    let mut least = f64::INFINITY;
    for round in 0..ROUNDS {
        let before = least;
        for at in [start, 1 - start] {
            // A branch that the gate shuts off stays zero.
            if weights[at] == 0.0 {
                continue;
            }
            let (params, share) = branch(structures[at], weights[at], target, &shares[1 - at]);
            let candidate = error(if at == 0 { [&share, &shares[1]] } else { [&shares[0], &share] });
            // A branch without an optimum in closed form may come out worse than it was. The first steps always
            // count, also those of a target with NaN.
            if round == 0 || candidate <= least {
                least = candidate;
                branches[at] = params;
                shares[at] = share;
            }
        }
        errors.push(least);
        if least.is_nan() || least >= before * (1.0 - LEAST_GAIN) {
            break;
        }
    }
    Descent { branches, errors }
}

/// The parameters of one branch for what the other leaves, and its share of the sum.
fn branch(
    structure: &dyn Structure,
    weight: f64,
    target: &Target<'_>,
    other: &[f64],
) -> (Vec<Vec<f64>>, Vec<f64>) {
    let left: Vec<f64> = target.weight.iter().zip(other).map(|(w, other)| (w - other) / weight).collect();
    let params = structure.project(&Target { weight: &left, ..*target });
    let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
    let share = dense_of(structure, &slices).into_iter().map(|v| weight * v).collect();
    (params, share)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Form, Rng};
    use serde_json::json;

    fn draw(len: usize, seed: u64) -> Vec<f64> {
        let mut rng = Rng::new(seed);
        (0..len).map(|_| rng.normal()).collect()
    }

    #[test]
    fn the_error_never_rises_and_ends_below_that_of_either_branch() {
        let (n_in, n_out) = (22, 31);
        let weight = draw(n_in * n_out, 1);
        let mut moment = crate::project::Moment::new(n_in);
        moment.add(&draw(40 * n_in, 2).iter().map(|&v| v as f32).collect::<Vec<_>>());
        let moment = moment.mean();
        for gate in ["learned", "fixed", "plain"] {
            let config = json!({
                "structure": "pixelfly", "butterfly_size": 4, "n_factors": 2, "block": 3, "rank": 3, "gate": gate,
                "pad": true,
            });
            let built = crate::build(&config, n_in, n_out, 0, None).unwrap();
            let Form::Sum(sum) = built.form() else { panic!("not a sum") };
            let plain = Target::new(n_out, n_in, &weight);
            for target in [plain, plain.with_moment(&moment)] {
                let descents = [0, 1].map(|start| descend(sum, &target, start));
                for descent in &descents {
                    assert!(descent.errors.len() > 1, "{gate}");
                    assert!(descent.errors.windows(2).all(|pair| pair[1] <= pair[0]), "{:?}", descent.errors);
                }
                let best = crate::project(&*built, &target);
                let best = best.output_error.unwrap_or(best.error);
                let least = descents.map(|d| *d.errors.last().unwrap()).into_iter().fold(1.0, f64::min);
                assert!((best - least).abs() < 1e-12, "{best} {least}");
                for alone in [&sum.a, &sum.b] {
                    let alone = crate::project(&**alone, &target);
                    assert!(best < alone.output_error.unwrap_or(alone.error), "{gate}");
                }
            }
        }
    }

    #[test]
    fn a_branch_that_is_shut_off_stays_zero_and_nan_ends() {
        let branch = |config: serde_json::Value| crate::build(&config, 6, 6, 0, None).unwrap();
        for (gate, zero) in [(Gate::Fixed(0.0), 1), (Gate::Fixed(1.0), 0)] {
            let (a, b) =
                (branch(json!("dense")), branch(json!({"structure": "unstructured", "density": 0.5})));
            let sum = Sum { a, b, a_params: 0..1, b_params: 1..2, gate };
            let specs = [sum.a.params(), sum.b.params()].concat();
            let weight = draw(36, 3);
            let params = project(&sum, &specs, &Target::new(6, 6, &weight));
            assert!(params[zero].iter().all(|&v| v == 0.0));
            assert!(params[1 - zero].iter().any(|&v| v != 0.0));
            let params = project(&sum, &specs, &Target::new(6, 6, &[f64::NAN; 36]));
            assert!(params[1 - zero].iter().all(|v| v.is_nan()));
        }
    }
}
