//! The leading singular triples of a matrix of standard normals, drawn without drawing the matrix.
//!
//! For such a matrix the singular vectors are independent of the singular values and uniformly distributed, and
//! Householder reflections turn it into a bidiagonal matrix whose entries are independent chi variables. So
//! the values come from a bidiagonal draw (bisection with Sturm counts) and the vectors from orthonormalized normals:
//! O(n·rank·(n + rank)) instead of a singular value decomposition of `[n_out, n_in]`.

use crate::Rng;

/// `Σ_t sigma[t] left[t] right[t]ᵀ`, the best approximation of its rank to a matrix of standard normals.
pub(crate) struct Truncation {
    /// Singular values, largest first.
    pub(crate) sigma: Vec<f64>,
    /// Orthonormal vectors of length `n_out`.
    pub(crate) left: Vec<Vec<f64>>,
    /// Orthonormal vectors of length `n_in`.
    pub(crate) right: Vec<Vec<f64>>,
}

/// Draws a [`Truncation`] to `rank` of an `[n_out, n_in]` matrix. `rank` is at most the smaller of the two.
pub(crate) fn gaussian_truncation(n_out: usize, n_in: usize, rank: usize, rng: &mut Rng) -> Truncation {
    let (long, short) = (n_out.max(n_in), n_out.min(n_in));
    // Diagonal and superdiagonal, alternating: chi with long, short − 1, long − 1, short − 2, … degrees.
    let mut entries = Vec::with_capacity(2 * short);
    for i in 0..short {
        entries.push(chi(long - i, rng));
        if i + 1 < short {
            entries.push(chi(short - 1 - i, rng));
        }
    }
    let sigma = largest_singular_values(&entries, rank);
    Truncation { sigma, left: orthonormal(n_out, rank, rng), right: orthonormal(n_in, rank, rng) }
}

/// The `count` largest singular values of an upper bidiagonal matrix, largest first.
///
/// `entries` are its diagonal and superdiagonal, alternating. They are the off-diagonal of a symmetric tridiagonal
/// matrix with zero diagonal whose eigenvalues are ± the singular values.
fn largest_singular_values(entries: &[f64], count: usize) -> Vec<f64> {
    let at = |i: usize| entries.get(i).copied().unwrap_or(0.0);
    let bound = (0..=entries.len()).map(|i| if i == 0 { 0.0 } else { at(i - 1) } + at(i)).fold(0.0, f64::max);
    // Eigenvalues above x: positive pivots of T − x. A zero pivot counts as a small positive one.
    let tiny = f64::EPSILON * f64::EPSILON * bound;
    let above = |x: f64| {
        let mut pivot = -x;
        let mut n_above = 0;
        for entry in entries {
            pivot = -x - entry * entry / pivot;
            pivot = if pivot == 0.0 { tiny } else { pivot };
            n_above += usize::from(pivot > 0.0);
        }
        n_above
    };
    (0..count)
        .map(|t| {
            let (mut low, mut high) = (0.0, bound);
            loop {
                let middle = f64::midpoint(low, high);
                if middle <= low || middle >= high {
                    return middle;
                }
                if above(middle) > t { low = middle } else { high = middle }
            }
        })
        .collect()
}

/// `count` orthonormal vectors of length `n`, uniformly distributed.
fn orthonormal(n: usize, count: usize, rng: &mut Rng) -> Vec<Vec<f64>> {
    let mut basis: Vec<Vec<f64>> = Vec::with_capacity(count);
    while basis.len() < count {
        let mut vector: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        // Twice is enough: the second pass removes what rounding left in the first.
        for _ in 0..2 {
            for other in &basis {
                let along: f64 = vector.iter().zip(other).map(|(a, b)| a * b).sum();
                vector.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let norm = vector.iter().map(|a| a * a).sum::<f64>().sqrt();
        if norm > 0.0 {
            vector.iter_mut().for_each(|a| *a /= norm);
            basis.push(vector);
        }
    }
    basis
}

/// The length of a vector of `degrees` standard normals.
///
/// Marsaglia and Tsang's rejection for the gamma distribution with shape `degrees / 2`; shapes below 1 take the
/// normal itself.
fn chi(degrees: usize, rng: &mut Rng) -> f64 {
    if degrees == 1 {
        return rng.normal().abs();
    }
    let d = degrees as f64 / 2.0 - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = rng.normal();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.unit()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return (2.0 * d * v).sqrt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singular_values_of_a_known_bidiagonal_matrix() {
        // [[3, 1], [0, 2]]: σ₁² + σ₂² = 14, σ₁ σ₂ = 6.
        let sigma = largest_singular_values(&[3.0, 1.0, 2.0], 2);
        let slack = 64.0 * f64::EPSILON;
        assert!((sigma[0] * sigma[0] + sigma[1] * sigma[1] - 14.0).abs() < 14.0 * slack, "{sigma:?}");
        assert!((sigma[0] * sigma[1] - 6.0).abs() < 6.0 * slack, "{sigma:?}");
        assert!((largest_singular_values(&[5.0], 1)[0] - 5.0).abs() < 5.0 * slack);
    }

    #[test]
    fn vectors_are_orthonormal() {
        let basis = orthonormal(20, 20, &mut Rng::new(1));
        for (i, a) in basis.iter().enumerate() {
            for (j, b) in basis.iter().enumerate() {
                let dot: f64 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                let expected = if i == j { 1.0 } else { 0.0 };
                assert!((dot - expected).abs() < 40.0 * f64::EPSILON, "{i} {j}: {dot}");
            }
        }
    }

    #[test]
    fn a_chi_squared_has_its_degrees_for_mean() {
        let mut rng = Rng::new(2);
        for degrees in [1, 2, 3, 50] {
            let n = 20_000;
            let mean = (0..n).map(|_| chi(degrees, &mut rng).powi(2)).sum::<f64>() / f64::from(n);
            let deviation = (2.0 * degrees as f64 / f64::from(n)).sqrt();
            assert!((mean - degrees as f64).abs() < 6.0 * deviation, "{degrees}: {mean}");
        }
    }
}
