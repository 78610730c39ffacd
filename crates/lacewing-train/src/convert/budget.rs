//! Choosing a structure for every layer within a budget: a knapsack over candidates.
//!
//! The sum of `sensitivity · loss²` over the layers is made least under the sum of costs, exactly up to a grid of costs
//! that is rounded upwards. A layer's sensitivity is what its loss does to the logits with that layer alone replaced;
//! without calibration all layers count the same. Of this mixture and each family alone the choice that keeps the logits
//! nearest is then improved: what one step more and one step less does to the logits is measured for every layer
//! within the choice, and a knapsack over those steps moves parameters to where they count.

use super::candidates::{Candidate, Layer, Pool};
use super::{Calibration, ConvertError, Progress, Source, Step, assemble};
use std::collections::BTreeSet;

/// Steps of the grid of costs.
const GRID: usize = 20_000;

/// How often a choice is improved at most.
const ROUNDS: usize = 6;

/// Ratio of the densities of neighbouring sizes then.
const STEP: f64 = 1.19;

/// The error of logits that are not finite.
const BROKEN: f64 = 1e6;

/// What choices are measured with.
struct Judge<'a> {
    source: &'a Source,
    layers: &'a [Layer],
    calibration: &'a Calibration,
    progress: Progress<'a>,
}

impl Judge<'_> {
    /// The error of the logits with the layers of `chosen` replaced; dense ones stay as they are.
    fn error(&self, chosen: &[(usize, &Candidate)]) -> Result<f64, ConvertError> {
        let replaced: Vec<_> = chosen.iter().map(|&(at, candidate)| (&self.layers[at], candidate)).collect();
        let error = self.calibration.logit_error(&assemble(self.source, &replaced)?.1)?;
        Ok(if error.is_finite() { error.min(BROKEN) } else { BROKEN })
    }

    fn whole(&self, chosen: &[Candidate]) -> Result<f64, ConvertError> {
        let error = self.error(&chosen.iter().enumerate().collect::<Vec<_>>())?;
        (self.progress)(Step::Judged { error });
        Ok(error)
    }

    /// How much of each layer's squared loss arrives at the logits, of the nearest candidate that costs at most its even
    /// share of the budget, replaced alone.
    fn alone(&self, pool: &Pool<'_>, fraction: f64) -> Result<Vec<f64>, ConvertError> {
        let weights = pool.choices.iter().zip(&pool.dense).enumerate().map(|(at, (list, &dense))| {
            let lossy = || list.iter().filter(|c| c.loss() > 0.0);
            let nearest = |a: &&Candidate, b: &&Candidate| a.loss().total_cmp(&b.loss());
            let even = lossy().filter(|c| c.cost as f64 <= fraction * dense as f64).min_by(nearest);
            let Some(probe) = even.or_else(|| lossy().min_by(nearest)) else { return Ok(1.0) };
            Ok((self.error(&[(at, probe)])? / probe.loss()).powi(2))
        });
        weights.collect()
    }

    /// The choice that the steps of single layers from `chosen`, of `error`, promise most for; none without a step.
    ///
    /// Each layer may stay, or take the size of its family that is next cheaper or next dearer.
    fn moved(
        &self,
        pool: &Pool<'_>,
        chosen: &[Candidate],
        error: f64,
        budget: f64,
    ) -> Result<Option<Vec<Candidate>>, ConvertError> {
        let mut steps: Vec<Vec<&Candidate>> = Vec::with_capacity(chosen.len());
        let mut items = Vec::with_capacity(chosen.len());
        for (at, (own, list)) in chosen.iter().zip(&pool.choices).enumerate() {
            let family = || list.iter().filter(|c| c.structure.name() == own.structure.name());
            let cheaper = family().filter(|c| c.cost < own.cost).max_by_key(|c| c.cost);
            let dearer = family().filter(|c| c.cost > own.cost).min_by_key(|c| c.cost);
            let mut options = vec![own];
            let mut costs = vec![(own.cost, 0.0)];
            for step in cheaper.into_iter().chain(dearer) {
                let mut all: Vec<_> = chosen.iter().enumerate().collect();
                all[at].1 = step;
                options.push(step);
                costs.push((step.cost, self.error(&all)?.powi(2) - error.powi(2)));
            }
            steps.push(options);
            items.push(costs);
        }
        let Some(picked) = knapsack(&items, budget) else { return Ok(None) };
        if picked.iter().all(|&step| step == 0) {
            return Ok(None);
        }
        Ok(Some(picked.iter().zip(&steps).map(|(&at, options)| options[at].clone()).collect()))
    }
}

/// The choice within `fraction` of what the layers cost dense that keeps the logits nearest.
pub(super) fn choose(
    pool: &mut Pool<'_>,
    fraction: f64,
    source: &Source,
    calibration: Option<&Calibration>,
    progress: Progress<'_>,
) -> Result<Vec<Candidate>, ConvertError> {
    let budget = affordable(pool, fraction)?;
    // A budget between two steps of the grid may fit nothing although the cheapest fit: those come last.
    let cheapest =
        |pool: &Pool<'_>| -> Vec<Candidate> { pool.choices.iter().map(|list| list[0].clone()).collect() };
    let Some(calibration) = calibration else {
        let even = vec![1.0; pool.layers.len()];
        return Ok(pick(pool, &even, budget, |_| true).unwrap_or_else(|| cheapest(pool)));
    };
    let judge = Judge { source, layers: pool.layers, calibration, progress };
    let alone = judge.alone(pool, fraction)?;
    let first = pick(pool, &alone, budget, |_| true).unwrap_or_else(|| cheapest(pool));
    let mut best = (judge.whole(&first)?, first);
    for option in of_one_family(pool, &alone, budget, fraction) {
        let error = judge.whole(&option)?;
        if error < best.0 {
            best = (error, option);
        }
    }
    for _ in 0..ROUNDS {
        pool.refine(&best.1, STEP)?;
        let Some(option) = judge.moved(pool, &best.1, best.0, budget)? else { break };
        let error = judge.whole(&option)?;
        if error >= best.0 {
            break;
        }
        best = (error, option);
    }
    Ok(best.1)
}

/// What may be spent, where every layer has a size and the cheapest fit.
fn affordable(pool: &Pool<'_>, fraction: f64) -> Result<f64, ConvertError> {
    if let Some(at) = pool.choices.iter().position(Vec::is_empty) {
        let Layer { name, n_in, n_out, .. } = &pool.layers[at];
        return Err(ConvertError::NoSize { layer: name.clone(), n_in: *n_in, n_out: *n_out });
    }
    let dense = pool.dense.iter().sum::<u64>() as f64;
    let least = pool.choices.iter().map(|list| list[0].cost).sum::<u64>() as f64;
    if least > fraction * dense {
        let (metric, layers) = (pool.metric.name(), pool.layers.len());
        return Err(ConvertError::Budget { fraction, metric, layers, least: least / dense });
    }
    Ok(fraction * dense)
}

/// The candidates among `of` that make the weighed sum of squared losses least.
fn pick(
    pool: &Pool<'_>,
    weights: &[f64],
    budget: f64,
    of: impl Fn(&Candidate) -> bool,
) -> Option<Vec<Candidate>> {
    let lists: Vec<Vec<&Candidate>> =
        pool.choices.iter().map(|list| list.iter().filter(|candidate| of(candidate)).collect()).collect();
    let items: Vec<Vec<(u64, f64)>> = lists
        .iter()
        .zip(weights)
        .map(|(list, weight)| list.iter().map(|c| (c.cost, weight * c.loss().powi(2))).collect())
        .collect();
    let chosen = knapsack(&items, budget)?;
    Some(chosen.iter().zip(&lists).map(|(&at, list)| list[at].clone()).collect())
}

/// Each family alone: its best sizes, and the same share of the budget everywhere.
fn of_one_family(pool: &Pool<'_>, weights: &[f64], budget: f64, fraction: f64) -> Vec<Vec<Candidate>> {
    let families: BTreeSet<&str> = pool.choices.iter().flatten().map(|c| c.structure.name()).collect();
    let mut options = Vec::new();
    for family in families {
        options.extend(pick(pool, weights, budget, |candidate| candidate.structure.name() == family));
        // The largest size of each layer that fits its share.
        let even = |(list, dense): (&Vec<Candidate>, &u64)| {
            let own = list.iter().filter(|c| c.structure.name() == family);
            own.filter(|c| c.cost as f64 <= fraction * *dense as f64).max_by_key(|c| c.cost).cloned()
        };
        options.extend(pool.choices.iter().zip(&pool.dense).map(even).collect::<Option<Vec<Candidate>>>());
    }
    options
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
