//! Singular values and least squares over row-major slices; `faer` does the work.
//!
//! Decompositions take half a minute to compile. No function here leaves one to its callers as a generic, so that
//! happens once, in this crate, and an edit of another crate does not repeat it.
//!
//! Cost: a multiple of `m·n·min(m, n)` for what decomposes or multiplies `[m, n]`.
#![forbid(unsafe_code)]

use std::fmt::Debug;

pub use faer::c64;
use faer::linalg::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::solvers::Solve;
use faer::traits::ComplexField;
use faer::traits::math_utils::{is_finite, nan, one, real};
use faer::{Accum, ColRef, Mat, MatMut, MatRef, Par, Side};

/// The leading singular triples of a real or complex matrix: `A ≈ Σ_t sigma[t] left[t] right[t]ᴴ`.
#[derive(Clone, Debug, PartialEq)]
pub struct Svd<T = f64> {
    /// Singular values, largest first.
    pub sigma: Vec<f64>,
    /// Left singular vectors, each of length `rows`.
    pub left: Vec<Vec<T>>,
    /// Right singular vectors, each of length `cols`.
    pub right: Vec<Vec<T>>,
}

/// The numbers a matrix may hold: `f64` and [`c64`], no others.
pub trait Scalar: Copy + Debug + Default + PartialEq + decomposed::Decomposed {
    /// The complex conjugate; a real number itself.
    fn conj(self) -> Self;

    /// `factor` times the number.
    fn scaled(self, factor: f64) -> Self;
}

impl Scalar for f64 {
    fn conj(self) -> f64 {
        self
    }

    fn scaled(self, factor: f64) -> f64 {
        self * factor
    }
}

impl Scalar for c64 {
    fn conj(self) -> c64 {
        c64::new(self.re, -self.im)
    }

    fn scaled(self, factor: f64) -> c64 {
        c64::new(self.re * factor, self.im * factor)
    }
}

/// Where decompositions are compiled: a method of a type that is known is compiled with its crate, a generic
/// function with its callers'. The module is private, which seals [`Scalar`].
mod decomposed {
    use super::{Svd, c64, decompose};

    pub trait Decomposed: Sized {
        fn svd(a: &[Self], rows: usize, cols: usize, rank: usize) -> Svd<Self>;
    }

    impl Decomposed for f64 {
        fn svd(a: &[f64], rows: usize, cols: usize, rank: usize) -> Svd {
            decompose(a, rows, cols, rank)
        }
    }

    impl Decomposed for c64 {
        fn svd(a: &[c64], rows: usize, cols: usize, rank: usize) -> Svd<c64> {
            decompose(a, rows, cols, rank)
        }
    }
}

/// The first `rank` singular triples of `a [rows, cols]`, or all there are. All NaN when `a` is not finite.
///
/// # Panics
///
/// When `a` has another length than `rows · cols`.
pub fn svd<T: Scalar>(a: &[T], rows: usize, cols: usize, rank: usize) -> Svd<T> {
    T::svd(a, rows, cols, rank)
}

/// [`svd`].
fn decompose<T>(a: &[T], rows: usize, cols: usize, rank: usize) -> Svd<T>
where
    T: ComplexField<Real = f64>,
{
    let rank = rank.min(rows).min(cols);
    if rank > 0 && a.iter().all(is_finite) {
        let a = MatRef::from_row_major_slice(a, rows, cols);
        let found = if rank <= rows.min(cols) / 4 && rows.min(cols) >= LARGE {
            leading(a, rank)
        } else {
            a.thin_svd().ok().map(|svd| triples(svd.U(), svd.S().column_vector(), svd.V(), rank))
        };
        if let Some(found) = found {
            return found;
        }
    }
    let lost = |n| vec![vec![nan(); n]; rank];
    Svd { sigma: vec![f64::NAN; rank], left: lost(rows), right: lost(cols) }
}

/// From this size on, few triples are found by way of the Gram matrix.
const LARGE: usize = 256;

/// The first `rank` columns of `U`, `S`, `V`.
fn triples<T>(u: MatRef<'_, T>, s: ColRef<'_, T>, v: MatRef<'_, T>, rank: usize) -> Svd<T>
where
    T: ComplexField<Real = f64>,
{
    let column = |m: MatRef<'_, T>, t: usize| (0..m.nrows()).map(|i| m[(i, t)].clone()).collect();
    Svd {
        sigma: (0..rank).map(|t| real(&s[t])).collect(),
        left: (0..rank).map(|t| column(u, t)).collect(),
        right: (0..rank).map(|t| column(v, t)).collect(),
    }
}

/// The first triples of a large matrix: the leading eigenvectors of the Gram matrix of its shorter side, then
/// one step of subspace iteration and a decomposition of the small projected matrix.
///
/// Eigenvectors alone would lose what is below √ε times the largest singular value. The step multiplies what is
/// wrong in the subspace by the squared ratio of the singular values behind and before the cut, so that a
/// matrix of this rank comes out to rounding errors.
fn leading<T>(a: MatRef<'_, T>, rank: usize) -> Option<Svd<T>>
where
    T: ComplexField<Real = f64>,
{
    if a.nrows() < a.ncols() {
        let Svd { sigma, left, right } = leading(a.adjoint().to_owned().as_ref(), rank)?;
        return Some(Svd { sigma, left: right, right: left });
    }
    let product = |a: MatRef<'_, T>, b: MatRef<'_, T>| {
        let mut c = Mat::<T>::zeros(a.nrows(), b.ncols());
        matmul::matmul(&mut c, Accum::Replace, a, b, one(), Par::Seq);
        c
    };
    let adjoint = a.adjoint().to_owned();
    let n = a.ncols();
    let eigen = product(adjoint.as_ref(), a).self_adjoint_eigen(Side::Lower).ok()?;
    // Eigenvalues ascend.
    let basis = product(a, eigen.U().subcols(n - rank, rank)).qr().compute_thin_Q();
    let small = product(adjoint.as_ref(), basis.as_ref()).thin_svd().ok()?;
    let left = product(basis.as_ref(), small.V());
    Some(triples(left.as_ref(), small.S().column_vector(), small.U(), rank))
}

/// `c [m, n] = a [m, k] · b [k, n]`.
pub fn matmul(a: &[f64], b: &[f64], (m, k, n): (usize, usize, usize)) -> Vec<f64> {
    let (a, b) = (MatRef::from_row_major_slice(a, m, k), MatRef::from_row_major_slice(b, k, n));
    let mut c = vec![0.0; m * n];
    let into = MatMut::from_row_major_slice_mut(&mut c, m, n);
    matmul::matmul(into, Accum::Replace, a, b, 1.0, Par::Seq);
    c
}

/// Adds the lower triangle of `xᵀ x` of `x [rows, n]` to `sum [n, n]`.
pub fn add_gram(sum: &mut [f64], x: &[f64], n: usize) {
    let x = MatRef::from_row_major_slice(x, x.len() / n.max(1), n);
    let into = MatMut::from_row_major_slice_mut(sum, n, n);
    let (full, lower) = (BlockStructure::Rectangular, BlockStructure::TriangularLower);
    triangular::matmul(into, lower, Accum::Add, x.transpose(), full, x, full, 1.0, Par::Seq);
}

/// `aᵀ [cols, rows]` of `a [rows, cols]`.
pub fn transposed(a: &[f64], rows: usize, cols: usize) -> Vec<f64> {
    (0..rows * cols).map(|at| a[at % rows * cols + at / rows]).collect()
}

/// The X of least norm that minimizes `‖X G − B‖` for a symmetric positive semidefinite `G [n, n]`, `B [m, n]`: the rows
/// of a least-squares problem by its normal equations.
///
/// Directions whose eigenvalue is below `n · ε` times the largest count as absent.
pub fn solve_symmetric(g: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let m = b.len() / n.max(1);
    if !g.iter().chain(b).all(|v| v.is_finite()) {
        return vec![f64::NAN; m * n];
    }
    let gram = MatRef::from_row_major_slice(g, n, n);
    if let Ok(factor) = gram.llt(Side::Lower) {
        let l = factor.L();
        let pivots = (0..n).map(|i| l[(i, i)]);
        let (least, most) =
            pivots.fold((f64::INFINITY, 0f64), |(least, most), p| (least.min(p), most.max(p)));
        // The pivots' ratio is about the root of the condition number; beyond 1e-7 the factor is not to be trusted.
        if least > 1e-7 * most {
            let right = Mat::from_fn(n, m, |i, j| b[j * n + i]);
            let x = factor.solve(right);
            return (0..m * n).map(|at| x[(at % n, at / n)]).collect();
        }
    }
    let Ok(eigen) = gram.self_adjoint_eigen(Side::Lower) else { return vec![f64::NAN; m * n] };
    let (q, values) = (eigen.U(), eigen.S().column_vector());
    let largest = (0..n).map(|i| values[i].abs()).fold(0.0, f64::max);
    let floor = n as f64 * f64::EPSILON * largest;
    let mut x = vec![0.0; m * n];
    for t in (0..n).filter(|&t| values[t] > floor) {
        for (x, b) in x.chunks_exact_mut(n).zip(b.chunks_exact(n)) {
            let share = (0..n).map(|i| b[i] * q[(i, t)]).sum::<f64>() / values[t];
            x.iter_mut().enumerate().for_each(|(i, x)| *x += share * q[(i, t)]);
        }
    }
    x
}

/// The lower triangle `R [n, n]` with `R Rᵀ = M + δ` for a symmetric positive semidefinite `M [n, n]`.
///
/// δ is four units in the last place of the trace: it leaves M what it is to rounding, lets the factorization
/// pass where M is singular, and makes directions that M does not see count last instead of not at all.
pub fn factor_of(m: &[f64], n: usize) -> Vec<f64> {
    let delta = 4.0 * f64::EPSILON * (0..n).map(|i| m[i * n + i]).sum::<f64>();
    if m.iter().all(|v| v.is_finite()) {
        let raised = Mat::from_fn(n, n, |i, j| m[i * n + j] + if i == j { delta } else { 0.0 });
        if let Ok(factor) = raised.llt(Side::Lower) {
            let l = factor.L();
            return (0..n * n).map(|at| if at % n <= at / n { l[(at / n, at % n)] } else { 0.0 }).collect();
        }
    }
    square_roots(m, n).0
}

/// `(M^½, M^−½)` of a symmetric positive semidefinite `M [n, n]`; directions with eigenvalues below `n · ε` times the
/// largest are zero in both.
pub fn square_roots(m: &[f64], n: usize) -> (Vec<f64>, Vec<f64>) {
    let nan = || (vec![f64::NAN; n * n], vec![f64::NAN; n * n]);
    if !m.iter().all(|v| v.is_finite()) {
        return nan();
    }
    let Ok(eigen) = MatRef::from_row_major_slice(m, n, n).self_adjoint_eigen(Side::Lower) else {
        return nan();
    };
    let (q, values) = (eigen.U(), eigen.S().column_vector());
    let largest = (0..n).map(|i| values[i].abs()).fold(0.0, f64::max);
    let floor = n as f64 * f64::EPSILON * largest;
    let power =
        |exponent: f64| {
            let scaled = Mat::from_fn(n, n, |i, t| {
                if values[t] > floor { q[(i, t)] * values[t].powf(exponent) } else { 0.0 }
            });
            let mut root = vec![0.0; n * n];
            let into = MatMut::from_row_major_slice_mut(&mut root, n, n);
            matmul::matmul(into, Accum::Replace, &scaled, q.transpose(), 1.0, Par::Seq);
            root
        };
    (power(0.5), power(-0.5))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_testkit::uniform_f64;

    fn draw(len: usize, seed: u64) -> Vec<f64> {
        uniform_f64(seed, len)
    }

    fn distance(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn triples_make_the_matrix_again() {
        for (rows, cols) in [(1, 1), (3, 5), (7, 2), (12, 12)] {
            let a = draw(rows * cols, 1);
            let svd = svd(&a, rows, cols, usize::MAX);
            let mut sum = vec![0.0; rows * cols];
            for (t, sigma) in svd.sigma.iter().enumerate() {
                for at in 0..rows * cols {
                    sum[at] += sigma * svd.left[t][at / cols] * svd.right[t][at % cols];
                }
            }
            assert!(distance(&a, &sum) < 1e-13, "{rows}x{cols}");
            assert!(svd.sigma.windows(2).all(|pair| pair[0] >= pair[1]));
        }
    }

    #[test]
    fn complex_triples_make_the_matrix_again() {
        // The last is of rank one and goes by way of the Gram matrix.
        for (rows, cols, rank) in [(3, 5, 3), (7, 2, 2), (LARGE, LARGE + 1, 1)] {
            let (u, v) = (draw(2 * rows * rank, 10), draw(2 * cols * rank, 11));
            let number = |values: &[f64], at: usize| c64::new(values[2 * at], values[2 * at + 1]);
            let entry = |at: usize| -> c64 {
                (0..rank).map(|t| number(&u, t * rows + at / cols) * number(&v, t * cols + at % cols)).sum()
            };
            let a: Vec<c64> = (0..rows * cols).map(entry).collect();
            let svd = svd(&a, rows, cols, rank);
            let product = |at: usize| -> c64 {
                let term = |t: usize| svd.left[t][at / cols] * svd.right[t][at % cols].conj();
                (0..rank).map(|t| term(t).scaled(svd.sigma[t])).sum()
            };
            let off = (0..rows * cols).map(|at| (a[at] - product(at)).norm_sqr().sqrt());
            assert!(off.fold(0.0, f64::max) < 1e-14 * (rows + cols) as f64, "{rows}x{cols}");
        }
    }

    #[test]
    fn few_triples_of_a_large_matrix_are_those_of_the_whole_decomposition() {
        // Singular values from 1 to 1e-6 with a cut between 1e-3 and 1e-6, in both orientations.
        let (rows, cols, rank) = (300, LARGE, 5);
        let (u, v) = (draw(rows * 8, 6), draw(cols * 8, 7));
        let scale = |t: usize| if t < rank { 10f64.powf(-(t as f64) * 0.75) } else { 1e-6 };
        let scaled: Vec<f64> = (0..8 * cols).map(|at| v[at] * scale(at / cols)).collect();
        let a = matmul(&u, &scaled, (rows, 8, cols));
        for (a, rows, cols) in [(transposed(&a, rows, cols), cols, rows), (a, rows, cols)] {
            let few = svd(&a, rows, cols, rank);
            let all = svd(&a, rows, cols, LARGE);
            assert!(distance(&few.sigma, &all.sigma[..rank]) < 1e-14 * all.sigma[0]);
            let product = |svd: &Svd, at: usize| -> f64 {
                (0..rank).map(|t| svd.sigma[t] * svd.left[t][at / cols] * svd.right[t][at % cols]).sum()
            };
            let off = (0..rows * cols).map(|at| (product(&few, at) - product(&all, at)).abs());
            assert!(off.fold(0.0, f64::max) < 1e-13 * all.sigma[0]);
        }
    }

    #[test]
    fn what_is_not_finite_comes_out_as_nan() {
        for bad in [f64::NAN, f64::INFINITY] {
            let mut a = draw(9, 8);
            a[4] = bad;
            assert!(svd(&a, 3, 3, 2).sigma.iter().all(|v| v.is_nan()));
            assert!(solve_symmetric(&a, &[1.0; 3], 3).iter().all(|v| v.is_nan()));
            assert!(factor_of(&a, 3).iter().chain(&square_roots(&a, 3).1).all(|v| v.is_nan()));
        }
    }

    #[test]
    fn a_factor_times_its_transpose_is_the_matrix_singular_or_not() {
        let n = 6;
        for waist in [n, 2] {
            let a = draw(n * waist, 9);
            let m = matmul(&a, &transposed(&a, n, waist), (n, waist, n));
            let r = factor_of(&m, n);
            assert!(distance(&matmul(&r, &transposed(&r, n, n), (n, n, n)), &m) < 1e-12);
        }
    }

    #[test]
    fn solutions_solve_and_singular_systems_get_the_least_norm() {
        let (n, m) = (6, 3);
        let a = draw(n * n, 2);
        let g = matmul(&a, &transposed(&a, n, n), (n, n, n));
        let x = draw(m * n, 3);
        let b = matmul(&x, &g, (m, n, n));
        assert!(distance(&solve_symmetric(&g, &b, n), &x) < 1e-9);
        // Rank one: g = v vᵀ, b = c vᵀ has the least-norm solution c v / ‖v‖².
        let v = draw(n, 4);
        let g: Vec<f64> = (0..n * n).map(|at| v[at / n] * v[at % n]).collect();
        let norm: f64 = v.iter().map(|v| v * v).sum();
        let expected: Vec<f64> = v.iter().map(|v| 2.0 * v / norm).collect();
        let b: Vec<f64> = v.iter().map(|v| 2.0 * v).collect();
        assert!(distance(&solve_symmetric(&g, &b, n), &expected) < 1e-12);
    }

    #[test]
    fn roots_square_to_the_matrix() {
        let n = 5;
        let a = draw(n * n, 5);
        let m = matmul(&a, &transposed(&a, n, n), (n, n, n));
        let (root, inverse) = square_roots(&m, n);
        assert!(distance(&matmul(&root, &root, (n, n, n)), &m) < 1e-12);
        let identity: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
        assert!(distance(&matmul(&root, &inverse, (n, n, n)), &identity) < 1e-9);
    }
}
