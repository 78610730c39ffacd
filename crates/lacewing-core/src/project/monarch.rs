//! The Monarch map nearest to a matrix.
//!
//! Outputs `λ, λ + l, λ + 2l, …` meet the inputs of block κ in one slice of W, and the only channels that
//! connect the two are the `j` with `(κ·q + j) mod l = λ`. So the slice may be any matrix whose rank is the
//! number of those channels, the slices partition W, and the truncated singular value decomposition of each is
//! the optimum in the Frobenius norm. Cost: one decomposition of `[s, p]` for each of the `k·l` slices.
//!
//! The second moment M of the inputs couples the slices of one λ, and the optimum has no closed form unless M
//! is block-diagonal over the blocks of inputs. Of one slice, the others held, it has: so slices are improved
//! in turn.

use lacewing_linalg::{Scalar, matmul, solve_symmetric, square_roots, svd, transposed};

use super::Target;
use crate::chains::MonarchFactors;

/// Where the slices of a layer `[n_out, n_in]` lie.
#[derive(Clone, Copy)]
pub(super) struct Slices {
    pub(super) factors: MonarchFactors,
    pub(super) n_out: usize,
    pub(super) n_in: usize,
}

impl Slices {
    /// The outputs of λ that are not padding: row σ of the slices is `σ·l + λ`.
    fn rows(&self, lambda: usize) -> Vec<usize> {
        (lambda..self.n_out).step_by(self.factors.l).collect()
    }

    /// The first input of block κ, and how many of its inputs are not padding.
    fn cols(&self, kappa: usize) -> (usize, usize) {
        let p = self.factors.p;
        let start = self.n_in.min(kappa * p);
        (start, p.min(self.n_in - start))
    }

    /// The channels between κ and λ: outputs j of the first factor's block and inputs ρ of the second's.
    fn channels(&self, lambda: usize, kappa: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let MonarchFactors { q, l, .. } = self.factors;
        let first = (lambda + l - kappa * q % l) % l;
        (first..q).step_by(l).map(move |j| (j, (kappa * q + j) / l))
    }

    /// Both factors from the slices' decompositions, for a matrix given by its entries. Every singular value is
    /// split evenly over the two factors; channels without one are zero.
    pub(super) fn nearest<T: Scalar>(&self, entry: impl Fn(usize, usize) -> T) -> [Vec<T>; 2] {
        let MonarchFactors { k, q, p, l, s, r } = self.factors;
        let (mut first, mut second) = (vec![T::default(); k * q * p], vec![T::default(); l * s * r]);
        for lambda in 0..l {
            let rows = self.rows(lambda);
            for kappa in 0..k {
                let (start, width) = self.cols(kappa);
                let slice: Vec<T> = rows
                    .iter()
                    .flat_map(|&row| (start..start + width).map(move |col| (row, col)))
                    .map(|(row, col)| entry(row, col))
                    .collect();
                let rank = self.channels(lambda, kappa).count();
                let svd = svd(&slice, rows.len(), width, rank);
                for (t, (j, rho)) in self.channels(lambda, kappa).take(svd.sigma.len()).enumerate() {
                    let root = svd.sigma[t].sqrt();
                    for (i, v) in svd.right[t].iter().enumerate() {
                        first[(kappa * q + j) * p + i] = v.conj().scaled(root);
                    }
                    for (sigma, u) in svd.left[t].iter().enumerate() {
                        second[(lambda * s + sigma) * r + rho] = u.scaled(root);
                    }
                }
            }
        }
        [first, second]
    }
}

/// `blkdiag1` and `blkdiag2` nearest to the target: the global optimum without a second moment, or with one
/// that is block-diagonal; else the better of two starts, improved until the error settles.
pub(crate) fn project(factors: MonarchFactors, target: &Target<'_>) -> Vec<Vec<f64>> {
    let slices = Slices { factors, n_out: target.n_out, n_in: target.n_in };
    let nearest = slices.nearest(|row, col| target.weight[row * target.n_in + col]);
    match target.moment {
        None => nearest.into(),
        Some(moment) => weighted(&slices, target.weight, moment, nearest),
    }
}

/// Sweeps over the slices at most.
const SWEEPS: usize = 10;

/// A sweep that lowers the squared error by a smaller share is the last.
const LEAST_GAIN: f64 = 1e-2;

/// The slices of one λ: `W_λ ≈ U V`, with what follows from it.
#[derive(Clone)]
struct Strip {
    /// `U [rows, r]`.
    u: Vec<f64>,
    /// `V [r, n_in]`, row ρ zero outside its block of inputs.
    v: Vec<f64>,
    /// `V M`.
    v_moment: Vec<f64>,
    /// `W_λ − U V`.
    left: Vec<f64>,
    /// `(W_λ − U V) M`.
    left_moment: Vec<f64>,
}

/// What the strip of one λ comes near to.
struct Weighted<'a> {
    slices: &'a Slices,
    lambda: usize,
    rows: usize,
    moment: &'a [f64],
    /// `(M_κκ^½, M_κκ^−½)` of every κ.
    roots: &'a [(Vec<f64>, Vec<f64>)],
}

fn weighted(slices: &Slices, weight: &[f64], moment: &[f64], nearest: [Vec<f64>; 2]) -> Vec<Vec<f64>> {
    let MonarchFactors { k, q, p, l, s, r } = slices.factors;
    let n_in = slices.n_in;
    let roots: Vec<_> = (0..k)
        .map(|kappa| {
            let (start, width) = slices.cols(kappa);
            square_roots(&columns(&moment[start * n_in..][..width * n_in], n_in, start, width), width)
        })
        .collect();
    let [mut first, mut second] = nearest;
    for lambda in 0..l {
        let rows = slices.rows(lambda);
        if rows.is_empty() {
            continue;
        }
        let problem = Weighted { slices, lambda, rows: rows.len(), moment, roots: &roots };
        let own: Vec<f64> = rows.iter().flat_map(|row| &weight[row * n_in..][..n_in]).copied().collect();
        let channels = || (0..k).flat_map(|kappa| slices.channels(lambda, kappa).map(move |c| (kappa, c)));
        let (mut u, mut v) = (vec![0.0; rows.len() * r], vec![0.0; r * n_in]);
        for (kappa, (j, rho)) in channels() {
            let (start, width) = slices.cols(kappa);
            v[rho * n_in + start..][..width].copy_from_slice(&first[(kappa * q + j) * p..][..width]);
            for row in 0..rows.len() {
                u[row * r + rho] = second[(lambda * s + row) * r + rho];
            }
        }
        let (u, v) = problem.solve(own, u, v);
        for (kappa, (j, rho)) in channels() {
            let (start, width) = slices.cols(kappa);
            first[(kappa * q + j) * p..][..width].copy_from_slice(&v[rho * n_in + start..][..width]);
            for row in 0..rows.len() {
                second[(lambda * s + row) * r + rho] = u[row * r + rho];
            }
        }
    }
    vec![first, second]
}

impl Weighted<'_> {
    /// The better of the nearest strip `u v` and the one that is optimal for the diagonal blocks of M, then
    /// improved.
    ///
    /// The nearest itself where it is exact up to rounding: only noise is to be gained where M is singular.
    fn solve(&self, weight: Vec<f64>, u: Vec<f64>, v: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
        let (n_in, r) = (self.slices.n_in, self.slices.factors.r);
        let zero = Strip {
            u: vec![0.0; u.len()],
            v: vec![0.0; v.len()],
            v_moment: vec![0.0; v.len()],
            left_moment: matmul(&weight, self.moment, (self.rows, n_in, n_in)),
            left: weight,
        };
        let mut nearest = zero.clone();
        for kappa in 0..self.slices.factors.k {
            let (start, width) = self.slices.cols(kappa);
            let channels = self.channels(kappa);
            let u: Vec<f64> =
                u.chunks_exact(r).flat_map(|u| channels.iter().map(move |&rho| u[rho])).collect();
            let v: Vec<f64> =
                channels.iter().flat_map(|rho| &v[rho * n_in + start..][..width]).copied().collect();
            self.put(&mut nearest, kappa, &channels, &u, &v);
        }
        if nearest.energy() <= n_in as f64 * f64::EPSILON * zero.energy() {
            return (u, v);
        }
        let mut best = self.refit(nearest);
        let diagonal = self.refit(self.sweep(zero, false));
        if diagonal.energy() < best.energy() {
            best = diagonal;
        }
        for _ in 0..SWEEPS {
            let next = self.refit(self.sweep(best.clone(), true));
            let (before, after) = (best.energy(), next.energy());
            if after < before {
                best = next;
            }
            if after.is_nan() || after >= before * (1.0 - LEAST_GAIN) {
                break;
            }
        }
        self.balanced(best)
    }

    /// The inputs ρ of the second factor that see block κ: columns of U, rows of V.
    fn channels(&self, kappa: usize) -> Vec<usize> {
        self.slices.channels(self.lambda, kappa).map(|(_, rho)| rho).collect()
    }

    /// Every slice in turn at its optimum given the others: `R M_:κ M_κκ^−½` cut to its rank, `R` being what
    /// the other slices leave. Not `coupled`, from a strip of zeros, each as if M were block-diagonal.
    fn sweep(&self, mut strip: Strip, coupled: bool) -> Strip {
        let Slices { factors: MonarchFactors { k, .. }, n_in, .. } = *self.slices;
        for kappa in 0..k {
            let (start, width) = self.slices.cols(kappa);
            let channels = self.channels(kappa);
            if width == 0 || channels.is_empty() {
                continue;
            }
            let (root, inverse) = &self.roots[kappa];
            let scaled = if coupled {
                self.take(&mut strip, kappa, &channels);
                let product = columns(&strip.left_moment, n_in, start, width);
                matmul(&product, inverse, (self.rows, width, width))
            } else {
                // Slices of other blocks have changed other columns only.
                matmul(&columns(&strip.left, n_in, start, width), root, (self.rows, width, width))
            };
            let svd = svd(&scaled, self.rows, width, channels.len());
            let v = matmul(&svd.right.concat(), inverse, (svd.sigma.len(), width, width));
            let (sigma, left) = (&svd.sigma, &svd.left);
            let u: Vec<f64> =
                (0..self.rows).flat_map(|row| left.iter().zip(sigma).map(move |(u, s)| u[row] * s)).collect();
            self.put(&mut strip, kappa, &channels[..svd.sigma.len()], &u, &v);
        }
        strip
    }

    /// Sets the slice of block κ, which is zero, to `u [rows, channels] · v [channels, inputs of κ]`.
    fn put(&self, strip: &mut Strip, kappa: usize, channels: &[usize], u: &[f64], v: &[f64]) {
        let Slices { factors: MonarchFactors { r, .. }, n_in, .. } = *self.slices;
        let (start, width) = self.slices.cols(kappa);
        let n = channels.len();
        let v_moment = matmul(v, &self.moment[start * n_in..][..width * n_in], (n, width, n_in));
        self.add(strip, kappa, (u, v, &v_moment), -1.0);
        for (t, &rho) in channels.iter().enumerate() {
            (0..self.rows).for_each(|row| strip.u[row * r + rho] = u[row * n + t]);
            strip.v[rho * n_in + start..][..width].copy_from_slice(&v[t * width..][..width]);
            strip.v_moment[rho * n_in..][..n_in].copy_from_slice(&v_moment[t * n_in..][..n_in]);
        }
    }

    /// Makes the slice of block κ zero.
    fn take(&self, strip: &mut Strip, kappa: usize, channels: &[usize]) {
        let Slices { factors: MonarchFactors { r, .. }, n_in, .. } = *self.slices;
        let (start, width) = self.slices.cols(kappa);
        let rows_of = |from: &[f64], start: usize, width: usize| -> Vec<f64> {
            channels.iter().flat_map(|rho| &from[rho * n_in + start..][..width]).copied().collect()
        };
        let u: Vec<f64> =
            strip.u.chunks_exact(r).flat_map(|u| channels.iter().map(move |&rho| u[rho])).collect();
        let (v, v_moment) = (rows_of(&strip.v, start, width), rows_of(&strip.v_moment, 0, n_in));
        self.add(strip, kappa, (&u, &v, &v_moment), 1.0);
        for &rho in channels {
            (0..self.rows).for_each(|row| strip.u[row * r + rho] = 0.0);
            strip.v[rho * n_in..][..n_in].fill(0.0);
            strip.v_moment[rho * n_in..][..n_in].fill(0.0);
        }
    }

    /// Adds `sign · u v` to what is left.
    fn add(&self, strip: &mut Strip, kappa: usize, (u, v, v_moment): (&[f64], &[f64], &[f64]), sign: f64) {
        let n_in = self.slices.n_in;
        let (start, width) = self.slices.cols(kappa);
        let n = u.len() / self.rows;
        let slice = matmul(u, v, (self.rows, n, width));
        for (row, left) in strip.left.chunks_exact_mut(n_in).enumerate() {
            let slice = &slice[row * width..][..width];
            left[start..][..width].iter_mut().zip(slice).for_each(|(left, v)| *left += sign * v);
        }
        let product = matmul(u, v_moment, (self.rows, n, n_in));
        strip.left_moment.iter_mut().zip(product).for_each(|(left, v)| *left += sign * v);
    }

    /// The best U for this V, solved for its change.
    fn refit(&self, mut strip: Strip) -> Strip {
        let (n_in, r) = (self.slices.n_in, self.slices.factors.r);
        let v = transposed(&strip.v, r, n_in);
        let features = matmul(&strip.v_moment, &v, (r, n_in, r));
        let change = solve_symmetric(&features, &matmul(&strip.left_moment, &v, (self.rows, n_in, r)), r);
        for (values, rows_of) in [(&mut strip.left, &strip.v), (&mut strip.left_moment, &strip.v_moment)] {
            let gone = matmul(&change, rows_of, (self.rows, r, n_in));
            values.iter_mut().zip(gone).for_each(|(value, gone)| *value -= gone);
        }
        strip.u.iter_mut().zip(change).for_each(|(u, change)| *u += change);
        strip
    }

    /// U and V with every channel scaled so that its column of U is as long as its row of V.
    fn balanced(&self, Strip { mut u, mut v, .. }: Strip) -> (Vec<f64>, Vec<f64>) {
        let (n_in, r) = (self.slices.n_in, self.slices.factors.r);
        let norm = |values: &mut dyn Iterator<Item = &f64>| values.map(|v| v * v).sum::<f64>().sqrt();
        for rho in 0..r {
            let row = &mut v[rho * n_in..][..n_in];
            let (of_u, of_v) = (norm(&mut u.iter().skip(rho).step_by(r)), norm(&mut row.iter()));
            if of_u > 0.0 && of_v > 0.0 {
                let scale = (of_v / of_u).sqrt();
                row.iter_mut().for_each(|v| *v /= scale);
                u.iter_mut().skip(rho).step_by(r).for_each(|u| *u *= scale);
            }
        }
        (u, v)
    }
}

impl Strip {
    /// The squared error of the outputs, `tr((W_λ − U V) M (W_λ − U V)ᵀ)`.
    fn energy(&self) -> f64 {
        self.left.iter().zip(&self.left_moment).map(|(a, b)| a * b).sum()
    }
}

/// Columns `start..start + width` of `a [rows, n]`.
fn columns(a: &[f64], n: usize, start: usize, width: usize) -> Vec<f64> {
    a.chunks_exact(n).flat_map(|row| &row[start..][..width]).copied().collect()
}
