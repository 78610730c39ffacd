//! Balancing a chain: between two factors every channel may be scaled up in one and down in the other. The map stays the
//! same; factors of equal size train better and stay in the range of f32.
//!
//! Weights without an effect have any size, and would decide those of others: of outputs that are cut off, on
//! channels that are 0 or that nothing goes on from. They are brought down to the usual size of their factor first.

use super::normal_equations::Grid;
use crate::{Chain, Link, Rng, Weights};

/// Passes over the chain; each brings neighbours together, and a few reach the ends of a long one.
const PASSES: usize = 4;

/// Rounds of limiting weights without an effect and balancing the others.
const ROUNDS: usize = 6;

/// Random rows that measure how much reaches a channel, and how much goes on from it.
const PROBES: usize = 8;

/// Weights whose effect on the map is below this share of the largest of their factor's have none.
const NO_EFFECT: f64 = 1e-12;

/// Scales the channels between neighbouring factors so that what writes a channel and what reads it have equal norms.
/// Factors with fixed, tied or shared weights stay as they are.
pub(super) fn balance(chain: &Chain, params: &mut [Vec<f64>]) {
    for _ in 0..ROUNDS {
        let live = limit(chain, params);
        level(chain, params, &live);
    }
    limit(chain, params);
}

/// Root mean squares of what the channels before each link, and behind the last, are for random rows; and of what
/// random outputs are, taken back there.
fn reach(chain: &Chain, params: &[Vec<f64>]) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
    let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
    let sizes = || chain.links.iter().map(|link| link.sizes().0).chain([chain.n_out_ext]);
    let zeros = || sizes().map(|size| vec![0.0; size]).collect::<Vec<_>>();
    let (mut arrives, mut leaves) = (zeros(), zeros());
    let mut rng = Rng::new(0);
    let mut row = |n: usize, all: usize| -> Vec<f64> {
        (0..all).map(|at| if at < n { rng.normal() } else { 0.0 }).collect()
    };
    let add = |sums: &mut [f64], x: &[f64]| sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
    for _ in 0..PROBES {
        let mut x = row(chain.n_in, chain.n_in_ext);
        add(&mut arrives[0], &x);
        for (link, sums) in chain.links.iter().zip(&mut arrives[1..]) {
            x = link.apply(&slices, &x);
            add(sums, &x);
        }
        let mut y = row(chain.n_out, chain.n_out_ext);
        add(&mut leaves[chain.links.len()], &y);
        for (link, sums) in chain.links.iter().zip(&mut leaves).rev() {
            y = link.apply_transposed(&slices, &y);
            add(sums, &y);
        }
    }
    for sums in arrives.iter_mut().chain(&mut leaves) {
        sums.iter_mut().for_each(|sum| *sum = (*sum / PROBES as f64).sqrt());
    }
    (arrives, leaves)
}

/// Brings weights without an effect down to the root mean square of those with one, and says which those are.
fn limit(chain: &Chain, params: &mut [Vec<f64>]) -> Vec<Vec<bool>> {
    let mut live: Vec<Vec<bool>> = params.iter().map(|values| vec![true; values.len()]).collect();
    let (arrives, leaves) = reach(chain, params);
    for (at, link) in chain.links.iter().enumerate() {
        let Some((param, grid)) = factor(chain, link) else { continue };
        let effects: Vec<f64> = params[param]
            .iter()
            .enumerate()
            .map(|(value, v)| {
                let (output, input) = grid.place(value);
                v.abs() * arrives[at][input] * leaves[at + 1][output]
            })
            .collect();
        let most = effects.iter().copied().fold(0.0, f64::max);
        let squares = params[param].iter().zip(&effects).filter(|&(_, &effect)| effect > NO_EFFECT * most);
        let (count, sum) = squares.fold((0, 0.0), |(count, sum), (v, _)| (count + 1, sum + v * v));
        let usual = (sum / f64::from(count.max(1))).sqrt();
        for ((v, effect), live) in params[param].iter_mut().zip(effects).zip(&mut live[param]) {
            *live = effect > NO_EFFECT * most;
            if !*live && count > 0 {
                *v = v.clamp(-usual, usual);
            }
        }
    }
    live
}

/// The parameter of a factor of its own, and where its values lie.
fn factor(chain: &Chain, link: &Link) -> Option<(usize, Grid)> {
    match *link {
        Link::Blocks { weights: Weights::Param(param), groups, stride, q, p } => {
            (uses(chain, param) == 1).then_some((param, Grid { groups, stride, q, p }))
        }
        _ => None,
    }
}

/// Where [`Link::Transpose`] brings a channel.
fn transposed(from: usize, rows: usize, cols: usize) -> usize {
    let size = rows * cols;
    from / size * size + from % cols * rows + from % size / cols
}

/// Makes the norms on both sides of each channel equal, by the weights that are `live`.
fn level(chain: &Chain, params: &mut [Vec<f64>], live: &[Vec<bool>]) {
    let factor = |at: usize| factor(chain, &chain.links[at]);
    // From the last link back: a channel that nothing reads must not count as a reader of those before it.
    for at in (0..PASSES).flat_map(|_| (0..chain.links.len()).rev()) {
        let Some((writer, writes)) = factor(at) else { continue };
        // Where each channel arrives behind the transpositions in between.
        let mut place: Vec<usize> = (0..chain.links[at].sizes().1).collect();
        let mut next = at + 1;
        while let Some(&Link::Transpose { batch: _, rows, cols }) = chain.links.get(next) {
            place.iter_mut().for_each(|channel| *channel = transposed(*channel, rows, cols));
            next += 1;
        }
        let Some((reader, grid)) = (next < chain.links.len()).then(|| factor(next)).flatten() else {
            continue;
        };
        let mut written = vec![0.0; place.len()];
        for (value, v) in params[writer].iter().enumerate().filter(|&(value, _)| live[writer][value]) {
            written[writes.place(value).0] += v * v;
        }
        let mut read = vec![0.0; place.len()];
        for (value, v) in params[reader].iter().enumerate().filter(|&(value, _)| live[reader][value]) {
            read[grid.place(value).1] += v * v;
        }
        let both = (0..place.len()).map(|channel| (written[channel] * read[place[channel]]).sqrt());
        let live: Vec<f64> = both.filter(|&size| size > 0.0 && size.is_finite()).collect();
        let usual = if live.is_empty() { 1.0 } else { live.iter().sum::<f64>() / live.len() as f64 };
        // What nothing reads, or nothing writes, has any size without an effect: it gets the usual one, lest a long chain
        // multiplies such sizes to infinity.
        let scale = |channel: usize| {
            let scale = match (written[channel], read[place[channel]]) {
                (written, 0.0) => (usual / written).sqrt(),
                (0.0, read) => (read / usual).sqrt(),
                (written, read) => (read / written).powf(0.25),
            };
            if scale.is_finite() && scale > 0.0 { scale } else { 1.0 }
        };
        let scales: Vec<f64> = (0..place.len()).map(scale).collect();
        let mut arriving = vec![1.0; place.len()];
        for (channel, &place) in place.iter().enumerate() {
            arriving[place] = scales[channel];
        }
        for (value, v) in params[writer].iter_mut().enumerate() {
            *v *= scales[writes.place(value).0];
        }
        for (value, v) in params[reader].iter_mut().enumerate() {
            *v /= arriving[grid.place(value).1];
        }
    }
}

/// How many links have the values of a parameter.
fn uses(chain: &Chain, wanted: usize) -> usize {
    let own = |link: &&Link| match link {
        Link::Blocks { weights: Weights::Param(param) | Weights::Tied { param, .. }, .. } => *param == wanted,
        _ => false,
    };
    chain.links.iter().filter(own).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_stays_and_the_norms_meet() {
        let (n, block) = (16, 4);
        let links = vec![
            Link::blocks(0, 4, 4, 4),
            Link::Transpose { batch: 1, rows: 4, cols: block },
            Link::blocks(1, 4, 4, 4),
            Link::strided(2, 2, 4, 2, 2),
        ];
        let chain = Chain { n_in: n, n_in_ext: n, n_out_ext: n, n_out: n, links }.checked();
        let mut rng = Rng::new(3);
        let mut params: Vec<Vec<f64>> =
            [64, 64, 32].map(|len| (0..len).map(|_| rng.normal()).collect()).into();
        params[0].iter_mut().for_each(|v| *v *= 1e12);
        params[1].iter_mut().enumerate().for_each(|(at, v)| *v *= if at % 3 == 0 { 1e-9 } else { 1e-14 });
        let x: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let run = |params: &[Vec<f64>]| {
            let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
            chain.links.iter().fold(x.clone(), |x, link| link.apply(&slices, &x))
        };
        let before = run(&params);
        balance(&chain, &mut params);
        let largest = before.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        for (a, b) in run(&params).iter().zip(&before) {
            // Each value was scaled by a few rounded factors.
            assert!((a - b).abs() <= 256.0 * f64::EPSILON * largest, "{a} is not {b}");
        }
        let norms: Vec<f64> =
            params.iter().map(|values| values.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
        assert!(norms.iter().all(|norm| norm / norms[0] < 10.0 && norms[0] / norm < 10.0), "{norms:?}");
    }

    #[test]
    fn channels_that_nothing_reads_stay_in_range() {
        let mut rng = Rng::new(5);
        let links: Vec<Link> = (0..6).map(|at| Link::blocks(at, 1, 4, 4)).collect();
        let chain = Chain { n_in: 4, n_in_ext: 4, n_out_ext: 4, n_out: 4, links }.checked();
        let mut params: Vec<Vec<f64>> = (0..6).map(|_| (0..16).map(|_| rng.normal()).collect()).collect();
        for pair in 0..5 {
            // Channel 3 is written ever larger, and not read.
            params[pair][12..].iter_mut().for_each(|v| *v *= 1e60);
            params[pair + 1].iter_mut().skip(3).step_by(4).for_each(|v| *v = 0.0);
        }
        // Channel 0 of the last interface is read, and not written.
        params[4][..4].fill(0.0);
        params[5].iter_mut().step_by(4).for_each(|v| *v *= 1e80);
        balance(&chain, &mut params);
        let largest = params.iter().flatten().fold(0.0, |most: f64, v| most.max(v.abs()));
        assert!(largest < 1e3, "{largest}");
        for values in &params {
            assert!(values.iter().any(|v| v.abs() > 1e-3), "{values:?}");
        }
    }

    #[test]
    fn weights_without_an_effect_do_not_decide() {
        // A butterfly of 2 × 2 blocks whose outputs beyond the first two are cut off, and have grown.
        let links: Vec<Link> = (0..4).map(|at| Link::strided(at, 8 >> at, 1 << at, 2, 2)).collect();
        let chain = Chain { n_in: 16, n_in_ext: 16, n_out_ext: 16, n_out: 2, links }.checked();
        let mut rng = Rng::new(5);
        let mut params: Vec<Vec<f64>> = (0..4).map(|_| (0..32).map(|_| rng.normal()).collect()).collect();
        for (at, values) in params.iter_mut().enumerate() {
            for (value, v) in values.iter_mut().enumerate() {
                let grid = Grid { groups: 8 >> at, stride: 1 << at, q: 2, p: 2 };
                let cut = if at == 3 { 2 } else { 16 };
                if grid.place(value).0 >= cut || (at == 2 && grid.place(value).0 % 8 >= 2) {
                    *v *= 1e100;
                }
            }
        }
        let map = |params: &[Vec<f64>]| -> Vec<f64> {
            let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
            (0..16)
                .flat_map(|i| {
                    let x: Vec<f64> = (0..16).map(|at| f64::from(u8::from(at == i))).collect();
                    let y = chain.links.iter().fold(x, |x, link| link.apply(&slices, &x));
                    y[..2].to_vec()
                })
                .collect()
        };
        let before = map(&params);
        balance(&chain, &mut params);
        let largest = params.iter().flatten().fold(0.0, |most: f64, v| most.max(v.abs()));
        assert!(largest < 1e2, "{largest}");
        let most = before.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        for (a, b) in map(&params).iter().zip(&before) {
            assert!((a - b).abs() <= 1e-9 * most, "{a} is not {b}");
        }
    }
}
