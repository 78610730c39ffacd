//! The complex Monarch map nearest to a square complex matrix. The DFT is one exactly, up to the order of its
//! inputs.
//!
//! Cost: one decomposition of `[s, p]` for each of the `k·l` slices.

use lacewing_linalg::c64;

use super::monarch::Slices;
use crate::chains::MonarchFactors;

/// Real and imaginary parts of an array.
#[derive(Clone, Debug, PartialEq)]
pub struct Complex {
    /// Real parts.
    pub re: Vec<f64>,
    /// Imaginary parts.
    pub im: Vec<f64>,
}

/// A Monarch map with complex factors, multiplied as [`crate::chains::Monarch`] is.
#[derive(Clone, Debug, PartialEq)]
pub struct ComplexMonarch {
    /// Sizes of the two factors.
    pub factors: MonarchFactors,
    /// The first factor, `[k, q, p]`.
    pub blkdiag1: Complex,
    /// The second factor, `[l, s, r]`.
    pub blkdiag2: Complex,
}

/// The Monarch map nearest to a complex matrix `[n, n]`, row-major, in the Frobenius norm.
///
/// `sizes` are the blocks of the two factors: `k = r = sizes.0`, `l = q = sizes.1`, `p = n / k`, `s = n / l`,
/// so that one channel connects a block of the first factor to one of the second. By default
/// `sizes.0 ≥ sizes.1` are the factor pair of n nearest to √n.
///
/// With the inputs in the order `perm[j · sizes.1 + i] = i · sizes.0 + j`, the DFT matrix is recovered exactly.
///
/// # Panics
///
/// When `re` or `im` has another length than n², n is 0, or a size does not divide n.
pub fn monarch_complex(re: &[f64], im: &[f64], n: usize, sizes: Option<(usize, usize)>) -> ComplexMonarch {
    assert_eq!((re.len(), im.len()), (n * n, n * n), "lengths of the matrix");
    assert!(n > 0, "a matrix of no rows");
    let (k, l) = sizes.unwrap_or_else(|| factor_pair(n));
    assert!(k > 0 && l > 0 && n.is_multiple_of(k) && n.is_multiple_of(l), "sizes {k} and {l} of {n}");
    let factors = MonarchFactors { k, q: l, p: n / k, l, s: n / l, r: k };
    let slices = Slices { factors, n_out: n, n_in: n };
    let [first, second] = slices.nearest(|row, col| c64::new(re[row * n + col], im[row * n + col]));
    ComplexMonarch { factors, blkdiag1: parts(&first), blkdiag2: parts(&second) }
}

/// The two factors of n nearest to √n, the larger first.
fn factor_pair(n: usize) -> (usize, usize) {
    let small = (1..=n.isqrt()).rev().find(|&small| n.is_multiple_of(small)).unwrap_or(1);
    (n / small, small)
}

fn parts(values: &[c64]) -> Complex {
    Complex { re: values.iter().map(|v| v.re).collect(), im: values.iter().map(|v| v.im).collect() }
}

impl ComplexMonarch {
    /// `W [l·s, k·p]`, as [`crate::chains::Monarch`] defines it.
    pub fn to_dense(&self) -> Complex {
        let MonarchFactors { k, q, p, l, s, r } = self.factors;
        let (n_out, n_in) = (l * s, k * p);
        let mut dense = Complex { re: vec![0.0; n_out * n_in], im: vec![0.0; n_out * n_in] };
        for row in 0..n_out {
            let (sigma, lambda) = (row / l, row % l);
            for rho in 0..r {
                let channel = rho * l + lambda;
                let second = (lambda * s + sigma) * r + rho;
                let (re, im) = (self.blkdiag2.re[second], self.blkdiag2.im[second]);
                for i in 0..p {
                    let (first, at) = (channel * p + i, row * n_in + channel / q * p + i);
                    dense.re[at] += re * self.blkdiag1.re[first] - im * self.blkdiag1.im[first];
                    dense.im[at] += re * self.blkdiag1.im[first] + im * self.blkdiag1.re[first];
                }
            }
        }
        dense
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_pair_is_the_one_nearest_to_the_root() {
        for (n, pair) in
            [(512, (32, 16)), (48, (8, 6)), (15, (5, 3)), (36, (6, 6)), (13, (13, 1)), (1, (1, 1))]
        {
            assert_eq!(factor_pair(n), pair);
        }
    }
}
