//! Choosing a structure for every layer within a budget: a knapsack over candidates.
//!
//! The sum of `sensitivity · loss²` over the layers is made least under the sum of costs, exactly up to a grid of costs
//! that is rounded upwards. A layer's sensitivity is what its loss does to the logits, measured by replacing that layer
//! alone; without calibration all layers count the same.

use super::candidates::{Candidate, Layer, dense_costs};
use super::{Calibration, ConvertError, Metric, Source, assemble};
use std::collections::BTreeSet;

/// Steps of the grid of costs.
const GRID: usize = 20_000;

/// Choices that meet the budget: the best mixture first, then the best of each family alone.
pub(super) fn choose(
    layers: &[Layer],
    choices: &[Vec<Candidate>],
    metric: Metric,
    fraction: f64,
    source: &Source,
    calibration: Option<&Calibration>,
) -> Result<Vec<Vec<Candidate>>, ConvertError> {
    if let Some(at) = choices.iter().position(Vec::is_empty) {
        let Layer { name, n_in, n_out, .. } = &layers[at];
        return Err(ConvertError::NoSize { layer: name.clone(), n_in: *n_in, n_out: *n_out });
    }
    let dense_each = dense_costs(layers, metric)?;
    let dense: u64 = dense_each.iter().sum();
    let budget = fraction * dense as f64;
    let least: u64 = choices.iter().map(|list| list.iter().map(|c| c.cost).min().unwrap_or(0)).sum();
    if least as f64 > budget {
        let least = least as f64 / dense as f64;
        return Err(ConvertError::Budget { fraction, metric: metric.name(), layers: layers.len(), least });
    }
    let weights = match calibration {
        Some(calibration) => sensitivities(layers, choices, fraction, &dense_each, source, calibration)?,
        None => vec![1.0; layers.len()],
    };
    // A budget between two steps of the grid may fit nothing although the cheapest fit: those come last.
    let pick = |of: &dyn Fn(&Candidate) -> bool| {
        let lists: Vec<Vec<&Candidate>> =
            choices.iter().map(|list| list.iter().filter(|candidate| of(candidate)).collect()).collect();
        let items: Vec<Vec<(u64, f64)>> = lists
            .iter()
            .zip(&weights)
            .map(|(list, weight)| list.iter().map(|c| (c.cost, weight * c.loss().powi(2))).collect())
            .collect();
        let chosen = knapsack(&items, budget)?;
        Some(chosen.iter().zip(&lists).map(|(&at, list)| list[at].clone()).collect::<Vec<Candidate>>())
    };
    let mut options: Vec<Vec<Candidate>> = pick(&|_| true).into_iter().collect();
    let families: BTreeSet<&str> = choices.iter().flatten().map(|c| c.structure.name()).collect();
    for family in families {
        options.extend(pick(&|candidate| candidate.structure.name() == family));
        // The same share everywhere: the largest size of each layer that fits it.
        let even = |(list, dense): (&Vec<Candidate>, &u64)| {
            let own = list.iter().filter(|c| c.structure.name() == family);
            own.filter(|c| c.cost as f64 <= fraction * *dense as f64).max_by_key(|c| c.cost).cloned()
        };
        options.extend(choices.iter().zip(&dense_each).map(even).collect::<Option<Vec<Candidate>>>());
    }
    if options.is_empty() {
        let cheapest =
            |list: &Vec<Candidate>| list.iter().min_by_key(|c| c.cost).expect("never empty").clone();
        options.push(choices.iter().map(cheapest).collect());
    }
    Ok(options)
}

/// How much of a layer's squared loss arrives at the logits, measured with the nearest candidate that costs at most its
/// even share of the budget.
fn sensitivities(
    layers: &[Layer],
    choices: &[Vec<Candidate>],
    fraction: f64,
    dense: &[u64],
    source: &Source,
    calibration: &Calibration,
) -> Result<Vec<f64>, ConvertError> {
    let mut weights = Vec::with_capacity(layers.len());
    for ((layer, list), &dense) in layers.iter().zip(choices).zip(dense) {
        let nearest = |candidates: &mut dyn Iterator<Item = &'_ Candidate>| -> Option<Candidate> {
            candidates.min_by(|a, b| a.loss().total_cmp(&b.loss())).cloned()
        };
        let share = fraction * dense as f64;
        let even = nearest(&mut list.iter().filter(|c| c.cost as f64 <= share && c.loss() > 0.0));
        let Some(probe) = even.or_else(|| nearest(&mut list.iter().filter(|c| c.loss() > 0.0))) else {
            weights.push(1.0);
            continue;
        };
        let loss = probe.loss();
        let (_, built) = assemble(source, std::slice::from_ref(layer), std::slice::from_ref(&probe))?;
        weights.push((calibration.logit_error(&built)? / loss).powi(2));
    }
    Ok(weights)
}

/// The item of each list, `(cost, loss)`, that makes the sum of losses least with costs of at most `budget` together;
/// none when no choice fits on the grid.
fn knapsack(lists: &[Vec<(u64, f64)>], budget: f64) -> Option<Vec<usize>> {
    // Whole units where they fit the grid: then the choice is exact.
    let step = (budget / GRID as f64).max(1.0);
    let capacity = (budget / step * (1.0 + 4.0 * f64::EPSILON)) as usize;
    // Rounded up, so that what fits the grid fits the budget. What divides exactly must not round up by an error of ε.
    let on_grid = |cost: u64| (cost as f64 / step * (1.0 - 4.0 * f64::EPSILON)).ceil() as usize;
    // best[c] is the least loss of the lists so far at a cost of at most c; came[l][c] the item taken there.
    let mut best = vec![0.0; capacity + 1];
    let mut came = Vec::with_capacity(lists.len());
    for list in lists {
        let (mut next, mut from) = (vec![f64::INFINITY; capacity + 1], vec![usize::MAX; capacity + 1]);
        for (item, &(cost, loss)) in list.iter().enumerate() {
            let cost = on_grid(cost);
            for at in cost..=capacity {
                let total = best[at - cost] + loss;
                if total < next[at] {
                    (next[at], from[at]) = (total, item);
                }
            }
        }
        best = next;
        came.push(from);
    }
    let mut at = capacity;
    let mut chosen = Vec::with_capacity(lists.len());
    for (list, from) in lists.iter().zip(&came).rev() {
        let item = from[at];
        at -= on_grid(list.get(item)?.0);
        chosen.push(item);
    }
    chosen.reverse();
    Some(chosen)
}

#[cfg(test)]
mod tests {
    use super::knapsack;

    /// Every combination.
    fn exhaustive(lists: &[Vec<(u64, f64)>], budget: u64) -> Option<f64> {
        let Some((first, rest)) = lists.split_first() else { return Some(0.0) };
        let losses = first
            .iter()
            .filter(|item| item.0 <= budget)
            .filter_map(|&(cost, loss)| Some(loss + exhaustive(rest, budget - cost)?));
        losses.min_by(f64::total_cmp)
    }

    #[test]
    fn the_choice_is_the_best_of_all() {
        let mut state = 7u64;
        let mut draw = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        for _ in 0..50 {
            let lists: Vec<Vec<(u64, f64)>> =
                (0..4).map(|_| (0..5).map(|_| (1 + draw(90), draw(1000) as f64 / 7.0)).collect()).collect();
            let budget = 40 + draw(200);
            let chosen = knapsack(&lists, budget as f64);
            let loss = chosen.as_ref().map(|chosen| {
                let items = || chosen.iter().zip(&lists).map(|(&at, list)| list[at]);
                assert!(items().map(|item| item.0).sum::<u64>() <= budget);
                items().map(|item| item.1).sum::<f64>()
            });
            match (loss, exhaustive(&lists, budget)) {
                (Some(got), Some(best)) => assert!((got - best).abs() < 1e-9, "{got} is not {best}"),
                (got, best) => assert_eq!(got, best),
            }
        }
    }

    #[test]
    fn an_exact_fit_fits_and_an_impossible_one_is_none() {
        assert_eq!(knapsack(&[vec![(30, 1.0)], vec![(70, 1.0), (10, 2.0)]], 100.0), Some(vec![0, 0]));
        assert_eq!(knapsack(&[vec![(30, 1.0)], vec![(71, 1.0)]], 100.0), None);
    }
}
