//! Windowed attention on the CPU: copies between a map and its windows, and what stands around the products.

use super::{LENGTH_MIN, LOG_SCALE_MAX, OTHER_REGION, Rows, Sizes};
use crate::Tensor;
use lacewing_cpu::map::sweep;
use lacewing_cpu::parallel::rows_per_task;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use lacewing_cpu::{math, reduce};
use rayon::prelude::*;

/// What the cosines of a head are multiplied by.
fn scale_of(log_scale: f32) -> f32 {
    log_scale.min(LOG_SCALE_MAX).exp()
}

/// `heads[g, i] =` the head's part of the row of the token at place `i` of the group's window.
///
/// Shapes: `heads [groups, places, dim]`.
pub(super) fn heads(rows: Rows<'_>, token_of: &Tensor, heads: &mut [f32], sizes: Sizes) {
    let Sizes { windows, places, heads: n_heads, dim, .. } = sizes;
    let (x, token_of) = (rows.tensor.read(), token_of.read_u32());
    let group = places * dim;
    let step = rows_per_task(sizes.groups(), group);
    heads.par_chunks_mut(step * group).enumerate().for_each(|(task, heads)| {
        for (g, heads) in (task * step..).zip(heads.chunks_exact_mut(group)) {
            let (window, head) = (g / n_heads % windows, g % n_heads);
            let first = g / n_heads / windows * sizes.tokens();
            let tokens = &token_of[window * places..][..places];
            for (&token, to) in tokens.iter().zip(heads.chunks_exact_mut(dim)) {
                let at = rows.offset + (first + token as usize) * rows.stride + head * dim;
                to.copy_from_slice(&x[at..][..dim]);
            }
        }
    });
}

/// Brings rows to length 1 and multiplies them by the scale of their head; `inverse` gets one over the lengths.
///
/// Shapes: `heads [groups, places, dim]`, `inverse [groups, places]`, `log_scale [heads]`.
pub(super) fn to_unit(heads: &mut [f32], inverse: &mut [f32], log_scale: Option<&[f32]>, sizes: Sizes) {
    let Sizes { places, heads: n_heads, dim, .. } = sizes;
    let step = rows_per_task(sizes.groups(), places * dim);
    let groups = heads.par_chunks_mut(step * places * dim).zip(inverse.par_chunks_mut(step * places));
    groups.enumerate().for_each(|(task, (heads, inverse))| {
        let groups = heads.chunks_exact_mut(places * dim).zip(inverse.chunks_exact_mut(places));
        for (g, (heads, inverse)) in (task * step..).zip(groups) {
            let scale = log_scale.map_or(1.0, |log_scale| scale_of(log_scale[g % n_heads]));
            dispatch(ToUnit { heads, inverse, scale });
        }
    });
}

struct ToUnit<'a> {
    heads: &'a mut [f32],
    inverse: &'a mut [f32],
    scale: f32,
}

impl Vectorize for ToUnit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let dim = self.heads.len() / self.inverse.len();
        for (x, inverse) in self.heads.chunks_exact_mut(dim).zip(self.inverse) {
            *inverse = 1.0 / reduce::dot(isa, x, x).sqrt().max(LENGTH_MIN);
            let factor = isa.splat(*inverse * self.scale);
            sweep(isa, [], [x], |[], [x]| [isa.mul(x, factor)]);
        }
    }
}

/// Scores, the bias still to be added, become probabilities.
///
/// Shapes: `scores [groups, places, places]`, `bias [heads, places, places]`, `regions [windows · places]`.
pub(super) fn softmax(scores: &mut [f32], bias: &[f32], regions: Option<&Tensor>, sizes: Sizes) {
    let Sizes { windows, places, heads, .. } = sizes;
    let regions = regions.map(Tensor::read_u32);
    let group = places * places;
    let step = rows_per_task(sizes.groups(), group);
    scores.par_chunks_mut(step * group).enumerate().for_each(|(task, scores)| {
        for (g, scores) in (task * step..).zip(scores.chunks_exact_mut(group)) {
            let bias = &bias[g % heads * group..][..group];
            let window = g / heads % windows;
            let regions = regions.as_ref().map(|regions| &regions[window * places..][..places]);
            dispatch(Softmax { scores, bias, regions, places });
        }
    });
}

struct Softmax<'a> {
    scores: &'a mut [f32],
    bias: &'a [f32],
    regions: Option<&'a [u32]>,
    places: usize,
}

impl Vectorize for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let n = self.places;
        for (i, (scores, bias)) in self.scores.chunks_exact_mut(n).zip(self.bias.chunks_exact(n)).enumerate()
        {
            sweep(isa, [bias], [&mut *scores], |[b], [s]| [isa.add(s, b)]);
            if let Some(regions) = self.regions {
                for (score, &region) in scores.iter_mut().zip(regions) {
                    *score -= if region == regions[i] { 0.0 } else { OTHER_REGION };
                }
            }
            let top = isa.splat(reduce::max(isa, scores));
            sweep(isa, [], [&mut *scores], |[], [s]| [math::exp(isa, isa.sub(s, top))]);
            let share = isa.splat(1.0 / reduce::sum(isa, scores));
            sweep(isa, [], [scores], |[], [p]| [isa.mul(p, share)]);
        }
    }
}

/// `d`, the gradient of the probabilities `p`, becomes that of the scores. Shapes: both `[.., places]`.
pub(super) fn softmax_backward(p: &[f32], d: &mut [f32], places: usize) {
    let step = rows_per_task(d.len() / places, places) * places;
    d.par_chunks_mut(step).zip(p.par_chunks(step)).for_each(|(d, p)| {
        dispatch(SoftmaxBackward { p, d, places });
    });
}

struct SoftmaxBackward<'a> {
    p: &'a [f32],
    d: &'a mut [f32],
    places: usize,
}

impl Vectorize for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (p, d) in self.p.chunks_exact(self.places).zip(self.d.chunks_exact_mut(self.places)) {
            let mean = isa.splat(reduce::dot(isa, p, d));
            sweep(isa, [p], [d], |[p], [d]| [isa.mul(p, isa.sub(d, mean))]);
        }
    }
}

/// The inverse of [`heads`]: the rows of the map from their heads.
///
/// Shapes: `heads [groups, places, dim]`.
pub(super) fn tokens(heads: &[f32], place_of: &Tensor, rows: Rows<'_>, sizes: Sizes) {
    let (dim, place_of) = (sizes.dim, place_of.read_u32());
    let mut data = rows.tensor.write();
    let step = rows_per_task(sizes.batch * sizes.tokens(), sizes.width());
    data.par_chunks_mut(rows.stride).with_min_len(step).enumerate().for_each(|(row, to)| {
        let from = group_rows(row, &place_of, sizes);
        for (from, to) in from.zip(to[rows.offset..].chunks_exact_mut(dim)) {
            to.copy_from_slice(&heads[from * dim..][..dim]);
        }
    });
}

/// [`super::Problem::unit_gradient`].
///
/// Shapes: `g` and the unit rows `[groups, places, dim]`, their inverse lengths `[groups, places]`; of the scale its
/// logarithm `[heads]` and the terms of its gradient `[batch · tokens, heads]`.
pub(super) fn unit_gradient(
    g: &[f32],
    (unit, inverse): (&Tensor, &Tensor),
    scale: Option<(&Tensor, &Tensor)>,
    place_of: &Tensor,
    rows: Rows<'_>,
    sizes: Sizes,
) {
    let (n_rows, dim) = (sizes.batch * sizes.tokens(), sizes.dim);
    let (unit, inverse, place_of) = (unit.read(), inverse.read(), place_of.read_u32());
    let log_scale = scale.map(|(log_scale, _)| log_scale.read());
    let mut along = scale.map(|(_, along)| along.write());
    let along: Vec<Option<&mut [f32]>> = match &mut along {
        Some(along) => along.chunks_exact_mut(sizes.heads).map(Some).collect(),
        None => (0..n_rows).map(|_| None).collect(),
    };
    let mut data = rows.tensor.write();
    let step = rows_per_task(n_rows, sizes.width());
    let all = data.par_chunks_mut(rows.stride).zip(along).with_min_len(step);
    all.enumerate().for_each(|(row, (to, mut along))| {
        let from = group_rows(row, &place_of, sizes);
        for (head, (from, out)) in from.zip(to[rows.offset..].chunks_exact_mut(dim)).enumerate() {
            let log_scale = log_scale.as_ref().map_or(0.0, |log_scale| log_scale[head]);
            let (g, unit) = (&g[from * dim..][..dim], &unit[from * dim..][..dim]);
            let term = dispatch(Across { g, unit, scale: scale_of(log_scale), inverse: inverse[from], out });
            if let Some(along) = &mut along {
                // Beyond its greatest the scale does not follow its logarithm.
                along[head] = if log_scale <= LOG_SCALE_MAX { term } else { 0.0 };
            }
        }
    });
}

/// Where the heads of row `row` of the maps are: rows of `[groups · places]`.
fn group_rows(row: usize, place_of: &[u32], sizes: Sizes) -> impl Iterator<Item = usize> {
    let Sizes { windows, places, heads, .. } = sizes;
    let (sample, token) = (row / sizes.tokens(), row % sizes.tokens());
    let (window, place) = (place_of[token] as usize / places, place_of[token] as usize % places);
    let first = (sample * windows + window) * heads;
    (first..first + heads).map(move |group| group * places + place)
}

/// `out = r s (g − u (u · g))`, where `unit` is `s u`; gives `s u · g`.
struct Across<'a> {
    g: &'a [f32],
    unit: &'a [f32],
    scale: f32,
    inverse: f32,
    out: &'a mut [f32],
}

impl Vectorize for Across<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        let term = reduce::dot(isa, self.g, self.unit);
        let along = isa.splat(-term / (self.scale * self.scale));
        let factor = isa.splat(self.inverse * self.scale);
        sweep(isa, [self.g, self.unit], [self.out], |[g, u], _| [isa.mul(isa.mul_add(u, along, g), factor)]);
        term
    }
}
