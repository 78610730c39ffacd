//! Least squares for maps whose values are used at several places of W.

use std::ops::Range;

use lacewing_linalg::{matmul, solve_symmetric};

use super::Target;
use crate::{Chain, Gather, Link, Weights};

/// The projection of `target` onto a chain of one link with tied weights, or `None` for another chain.
///
/// Each value is the signed mean of the weights it stands for, 0 where it stands for none. Every weight is one
/// value, so the design matrix has orthogonal columns and the mean is the least-squares optimum. A second
/// moment is not taken into account: it would couple all the values.
pub(crate) fn scatter_mean(chain: &Chain, target: &Target<'_>) -> Option<Vec<Vec<f64>>> {
    let [Link::Blocks { weights: Weights::Tied { gather, .. }, groups: _, stride, q, p }] = &chain.links[..]
    else {
        return None;
    };
    let (stride, q, p) = (*stride, *q, *p);
    let (mut sums, mut counts) = (vec![0.0; gather.n_in()], vec![0usize; gather.n_in()]);
    for at in 0..gather.n_out() {
        let (g, s, j, i) = (at / (p * q * stride), at / (p * q) % stride, at / p % q, at % p);
        let (row, col) = ((g * q + j) * stride + s, (g * p + i) * stride + s);
        if row < target.n_out && col < target.n_in {
            for (value, sign) in gather.terms_of(at) {
                sums[value] += sign * target.weight[row * target.n_in + col];
                counts[value] += 1;
            }
        }
    }
    let means = sums.iter().zip(&counts).map(|(sum, &count)| sum / count.max(1) as f64);
    Some(vec![means.collect()])
}

/// The V `[rows, f.n_out()]` for which `V F` is nearest to the given rows of the target, in its norm, where
/// `(F x)[o] = Σ_t ± x[f(o, t)]` reads each input at most once.
///
/// Without a second moment `F Fᵀ` is diagonal and V the signed means. With one, V solves `V (F M Fᵀ) = W M Fᵀ`;
/// of several solutions it is the one of least norm.
pub(crate) fn folded(fold: &Gather, rows: Range<usize>, target: &Target<'_>) -> Vec<f64> {
    let (n_in, n) = (target.n_in, fold.n_out());
    let weight = &target.weight[rows.start * n_in..rows.end * n_in];
    let folded = |x: &[f64]| -> Vec<f64> { x.chunks_exact(n_in).flat_map(|x| fold.apply(x)).collect() };
    let Some(moment) = target.moment else {
        let counts: Vec<f64> = (0..n).map(|o| fold.terms_of(o).count().max(1) as f64).collect();
        let mut v = folded(weight);
        v.chunks_exact_mut(n).for_each(|v| v.iter_mut().zip(&counts).for_each(|(v, count)| *v /= count));
        return v;
    };
    // M Fᵀ [n_in, n], then its rows folded as well: F M Fᵀ.
    let right = folded(moment);
    let mut gram = vec![0.0; n * n];
    for o in 0..n {
        for (i, sign) in fold.terms_of(o) {
            let sums = gram[o * n..][..n].iter_mut().zip(&right[i * n..][..n]);
            sums.for_each(|(sum, value)| *sum += sign * value);
        }
    }
    solve_symmetric(&gram, &matmul(weight, &right, (rows.len(), n_in, n)), n)
}

/// What the closed forms are tested against: the normal equations of the whole map, from its dense matrices at
/// unit parameters.
#[cfg(test)]
pub(crate) fn normal_equations(structure: &dyn crate::Structure, target: &Target<'_>) -> Vec<f64> {
    let (n_out, n_in, n) = (target.n_out, target.n_in, structure.counts().parameters);
    let identity: Vec<f64> = (0..n_in * n_in).map(|at| f64::from(at / n_in == at % n_in)).collect();
    let moment = target.moment.unwrap_or(&identity);
    let times_moment = |w: &[f64]| matmul(w, moment, (n_out, n_in, n_in));
    let unit = |at: usize| {
        let mut values = vec![0.0; n];
        values[at] = 1.0;
        structure.to_dense(&[&values]).expect("a sketch has a dense matrix")
    };
    let basis: Vec<Vec<f64>> = (0..n).map(unit).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let right = times_moment(target.weight);
    let right: Vec<f64> = basis.iter().map(|b| dot(b, &right)).collect();
    let weighted: Vec<Vec<f64>> = basis.iter().map(|b| times_moment(b)).collect();
    let gram: Vec<f64> = (0..n * n).map(|at| dot(&basis[at / n], &weighted[at % n])).collect();
    solve_symmetric(&gram, &right, n)
}

/// A second moment `[n, n]` of `2 n` correlated normal inputs.
#[cfg(test)]
pub(crate) fn moment_of(n: usize, seed: u64) -> Vec<f64> {
    let mut rng = crate::Rng::new(seed);
    let rows = 2 * n;
    let common: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
    let mut x = Vec::with_capacity(rows * n);
    for _ in 0..rows {
        let shared = rng.normal();
        x.extend((0..n).map(|i| rng.normal() + shared * common[i]));
    }
    let transposed = lacewing_linalg::transposed(&x, rows, n);
    matmul(&transposed, &x, (n, rows, n)).into_iter().map(|sum| sum / rows as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_testkit::uniform_f64;

    #[test]
    fn strided_blocks_with_signs_and_padding_average_what_they_stand_for() {
        // Two 2×2 blocks at stride 2, seen through the 3×3 corner of a 4×4 map: value 0 stands at W[0,0], W[0,2],
        // W[1,1] and, negative, W[2,0]; value 1 at W[2,2]; value 2 nowhere.
        let places = [Some((0, false)), Some((0, false)), Some((0, true)), Some((1, false))];
        let places = [&places[..], &[Some((0, false)), Some((1, false)), None, Some((1, true))]].concat();
        let gather = Gather::new(3, 8, 1, |at, _| places[at]);
        let weights = Weights::Tied { param: 0, gather };
        let links = vec![Link::Blocks { weights, groups: 1, stride: 2, q: 2, p: 2 }];
        let chain = Chain { n_in: 3, n_in_ext: 4, n_out_ext: 4, n_out: 3, links }.checked();
        let weight = [1., 10., 2., 20., 3., 30., 4., 40., 5.];
        let got = scatter_mean(&chain, &Target::new(3, 3, &weight)).unwrap();
        assert_eq!(got, [vec![(1. + 2. - 4. + 3.) / 4., 5., 0.]]);
    }

    #[test]
    fn other_chains_are_left_to_others() {
        let chain =
            Chain { n_in: 2, n_in_ext: 2, n_out_ext: 2, n_out: 2, links: vec![Link::blocks(0, 1, 2, 2)] };
        assert_eq!(scatter_mean(&chain, &Target::new(2, 2, &uniform_f64(1, 4))), None);
    }

    #[test]
    fn folds_without_a_moment_are_folds_with_the_identity() {
        let fold = Gather::new(5, 3, 2, |o, t| (2 * o + t < 5).then_some((2 * o + t, t == 1)));
        let weight = uniform_f64(2, 4 * 5);
        let identity: Vec<f64> = (0..25).map(|at| f64::from(at / 5 == at % 5)).collect();
        let target = Target::new(4, 5, &weight);
        let plain = folded(&fold, 1..3, &target);
        assert_eq!(plain[2], weight[5 + 4]);
        assert_eq!(plain[0], (weight[5] - weight[5 + 1]) / 2.0);
        let weighted = folded(&fold, 1..3, &target.with_moment(&identity));
        assert!(plain.iter().zip(weighted).all(|(a, b)| (a - b).abs() < 1e-14));
    }
}
