//! Balancing a chain: between two factors every channel may be scaled up in one and down in the other. The map stays the
//! same; factors of equal size train better and stay in the range of f32.

use super::normal_equations::Grid;
use crate::{Chain, Link, Weights};

/// Passes over the chain; each brings neighbours together, and a few reach the ends of a long one.
const PASSES: usize = 4;

/// Scales the channels between neighbouring factors so that what writes a channel and what reads it have equal norms.
/// Factors with fixed, tied or shared weights stay as they are.
pub(super) fn balance(chain: &Chain, params: &mut [Vec<f64>]) {
    let factor = |at: usize| match chain.links[at] {
        Link::Blocks { weights: Weights::Param(param), groups, stride, q, p } => {
            let uses = chain.links.iter().filter(|link| reads(link, param)).count();
            (uses == 1).then_some((param, Grid { groups, stride, q, p }))
        }
        _ => None,
    };
    for at in (0..PASSES).flat_map(|_| 0..chain.links.len()) {
        let Some((writer, writes)) = factor(at) else { continue };
        // Where each channel arrives behind the transpositions in between.
        let mut place: Vec<usize> = (0..chain.links[at].sizes().1).collect();
        let mut next = at + 1;
        while let Some(&Link::Transpose { batch: _, rows, cols }) = chain.links.get(next) {
            let size = rows * cols;
            let moved = |from: usize| from / size * size + from % cols * rows + from % size / cols;
            place.iter_mut().for_each(|channel| *channel = moved(*channel));
            next += 1;
        }
        let Some((reader, grid)) = (next < chain.links.len()).then(|| factor(next)).flatten() else {
            continue;
        };
        let mut written = vec![0.0; place.len()];
        for (value, v) in params[writer].iter().enumerate() {
            written[writes.place(value).0] += v * v;
        }
        let mut read = vec![0.0; place.len()];
        for (value, v) in params[reader].iter().enumerate() {
            read[grid.place(value).1] += v * v;
        }
        let scale = |channel: usize| {
            let scale = (read[place[channel]] / written[channel]).powf(0.25);
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

fn reads(link: &Link, wanted: usize) -> bool {
    match link {
        Link::Blocks { weights: Weights::Param(param) | Weights::Tied { param, .. }, .. } => *param == wanted,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rng;

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
}
