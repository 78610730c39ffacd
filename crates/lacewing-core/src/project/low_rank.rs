//! The nearest matrix of a given rank.
//!
//! With the left singular vectors `U` of `W R`, where `R Rᵀ` is the second moment of the inputs (or the
//! identity), the optimum is `U Uᵀ W`: it minimizes `‖(W − Ŵ) R‖`, the error of the outputs, and needs no
//! inverse of R, so a singular moment does no harm. Cost: a singular value decomposition of `[n_out, n_in]`,
//! and a Cholesky factorization for R.

use lacewing_linalg::{factor_of, matmul, svd};

use super::Target;

/// `a [rank, n_in]` and `b [n_out, rank]` with `b a` nearest to W, column t of b as long as row t of a. Without
/// a second moment that is `a = √S Vᵀ`, `b = U √S`.
pub(crate) fn project(rank: usize, target: &Target<'_>) -> Vec<Vec<f64>> {
    let (n_out, n_in) = (target.n_out, target.n_in);
    let left = match target.moment {
        None => svd(target.weight, n_out, n_in, rank).left,
        Some(moment) => {
            let root = factor_of(moment, n_in);
            svd(&matmul(target.weight, &root, (n_out, n_in, n_in)), n_out, n_in, rank).left
        }
    };
    let mut a = matmul(&left.concat(), target.weight, (rank, n_out, n_in));
    let mut b = vec![0.0; n_out * rank];
    for (t, left) in left.iter().enumerate() {
        let row = &mut a[t * n_in..][..n_in];
        let root = row.iter().map(|v| v * v).sum::<f64>().sqrt().sqrt();
        if root != 0.0 {
            row.iter_mut().for_each(|v| *v /= root);
            left.iter().enumerate().for_each(|(i, u)| b[i * rank + t] = u * root);
        }
    }
    vec![a, b]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vector t of an orthonormal basis of cosines.
    fn cosine(n: usize, t: usize) -> impl Fn(usize) -> f64 {
        let n = n as f64;
        move |i| (2.0 / n).sqrt() * (std::f64::consts::PI * (i as f64 + 0.5) * (t + 1) as f64 / n).cos()
    }

    #[test]
    fn what_is_lost_is_the_singular_values_behind_the_cut() {
        // W = Σ σ_t q_t p_tᵀ and M = Σ d_t² p_t p_tᵀ, singular: the values of W M^½ are σ_t d_t = 0, 3, 4, 7.
        let (n_out, n_in, rank) = (9, 7, 2);
        let (sigma, d) = ([5.0, 3.0, 2.0, 1.0], [0.0, 1.0, 2.0, 7.0]);
        let sum = |n: [usize; 2], weights: [f64; 4]| -> Vec<f64> {
            let term = |at: usize, t: usize| cosine(n[0], t)(at / n[1]) * cosine(n[1], t)(at % n[1]);
            (0..n[0] * n[1]).map(|at| (0..4).map(|t| weights[t] * term(at, t)).sum()).collect()
        };
        let weight = sum([n_out, n_in], sigma);
        let moment = sum([n_in, n_in], d.map(|d| d * d));
        let plain = Target::new(n_out, n_in, &weight);
        let product = |params: &[Vec<f64>]| matmul(&params[1], &params[0], (n_out, rank, n_in));
        let params = project(rank, &plain);
        assert!((plain.error(&product(&params)) - (5.0f64 / 39.0).sqrt()).abs() < 1e-14);
        for t in 0..rank {
            let a: f64 = params[0][t * n_in..][..n_in].iter().map(|v| v * v).sum();
            let b: f64 = params[1].iter().skip(t).step_by(rank).map(|v| v * v).sum();
            assert!((a - sigma[t]).abs() < 1e-13 && (b - sigma[t]).abs() < 1e-13, "{a} {b}");
        }
        let seeing = plain.with_moment(&moment);
        let dense = product(&project(rank, &seeing));
        assert!((seeing.output_error(&dense).unwrap() - (9.0f64 / 74.0).sqrt()).abs() < 1e-14);
    }
}
