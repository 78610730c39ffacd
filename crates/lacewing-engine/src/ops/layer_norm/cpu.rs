//! Layer norm on the CPU: each row is read from memory once per pass, its later sweeps come from the first cache.

use lacewing_cpu::map::sweep;
use lacewing_cpu::parallel::{add_partials, partial_rows, rows_per_task};
use lacewing_cpu::reduce::{squared_deviations, sum as sum_of};
use lacewing_cpu::scratch::scratch;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// `y = (x − mean) · rstd · gamma + beta` for each row, `rstd = 1 / √(var + eps)`.
///
/// Shapes: `x`, `y [rows, cols]`, `gamma`, `beta [cols]`, `mean`, `rstd [rows]`.
pub(super) fn forward(
    x: &[f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let (rows, cols) = (mean.len(), gamma.len());
    assert_eq!((x.len(), y.len(), rstd.len()), (rows * cols, rows * cols, rows));
    if cols == 0 {
        return;
    }
    let step = rows_per_task(rows, cols);
    let stats = mean.par_chunks_mut(step).zip(rstd.par_chunks_mut(step));
    let rows = x.par_chunks(step * cols).zip(y.par_chunks_mut(step * cols));
    rows.zip(stats).for_each(|((x, y), (mean, rstd))| {
        dispatch(Forward { x: Input::Given(x), gamma, beta, eps, y, mean, rstd });
    });
}

/// `sum = x + s · branch` and `y` its layer norm; `row_scale` holds one `s` for every `per_scale` rows, 1 if absent.
///
/// Shapes as [`forward`]; `branch`, `sum [rows, cols]`, `row_scale [rows / per_scale]`.
pub(super) fn forward_residual(
    x: &[f32],
    branch: &[f32],
    row_scale: Option<&[f32]>,
    per_scale: usize,
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    sum: &mut [f32],
    y: &mut [f32],
    mean: &mut [f32],
    rstd: &mut [f32],
) {
    let (rows, cols) = (mean.len(), gamma.len());
    assert_eq!((x.len(), branch.len(), sum.len()), (rows * cols, rows * cols, rows * cols));
    assert_eq!((y.len(), rstd.len()), (rows * cols, rows));
    if cols == 0 {
        return;
    }
    let step = rows_per_task(rows, cols);
    let stats = mean.par_chunks_mut(step).zip(rstd.par_chunks_mut(step));
    let inputs = x.par_chunks(step * cols).zip(branch.par_chunks(step * cols));
    let outputs = sum.par_chunks_mut(step * cols).zip(y.par_chunks_mut(step * cols));
    inputs.zip(outputs).zip(stats).enumerate().for_each(|(task, (((x, branch), (sum, y)), (mean, rstd)))| {
        let scales = row_scale.map(|scales| Scales { scales, per_scale, first_row: task * step });
        dispatch(Forward { x: Input::Sum { x, branch, scales, sum }, gamma, beta, eps, y, mean, rstd });
    });
}

struct Scales<'a> {
    scales: &'a [f32],
    per_scale: usize,
    first_row: usize,
}

enum Input<'a> {
    Given(&'a [f32]),
    Sum { x: &'a [f32], branch: &'a [f32], scales: Option<Scales<'a>>, sum: &'a mut [f32] },
}

struct Forward<'a> {
    x: Input<'a>,
    gamma: &'a [f32],
    beta: &'a [f32],
    eps: f32,
    y: &'a mut [f32],
    mean: &'a mut [f32],
    rstd: &'a mut [f32],
}

impl Vectorize for Forward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let cols = self.gamma.len();
        let stats = self.mean.iter_mut().zip(self.rstd.iter_mut());
        for (r, (y, (mean, rstd))) in self.y.chunks_exact_mut(cols).zip(stats).enumerate() {
            let row = r * cols..(r + 1) * cols;
            let x = match &mut self.x {
                Input::Given(x) => &x[row],
                Input::Sum { x, branch, scales, sum } => {
                    let scale = |s: &Scales<'_>| s.scales[(s.first_row + r) / s.per_scale];
                    let scale = isa.splat(scales.as_ref().map_or(1.0, scale));
                    let sum = &mut sum[row.clone()];
                    sweep(isa, [&x[row.clone()], &branch[row]], [sum], |[x, b], _| {
                        // Two roundings, as `residual` has: with recomputation the sum is made there.
                        [isa.add(x, isa.mul(scale, b))]
                    });
                    sum
                }
            };
            *mean = sum_of(isa, x) / cols as f32;
            *rstd = 1.0 / (squared_deviations(isa, x, *mean) / cols as f32 + self.eps).sqrt();
            let (center, scale) = (isa.splat(*mean), isa.splat(*rstd));
            sweep(isa, [x, self.gamma, self.beta], [y], |[x, gamma, beta], _| {
                let normal = isa.mul(isa.sub(x, center), scale);
                [isa.mul_add(normal, gamma, beta)]
            });
        }
    }
}

/// With `n = (x − mean) · rstd` and `g = dy · gamma`, for each row: `dx = rstd (g − ḡ − n · mean(g n)) + dsum`;
/// `dgamma += Σ_rows dy · n`, `dbeta += Σ_rows dy`. `dsum` is what reaches `x` past the norm.
///
/// Shapes: `dy`, `x`, `dsum`, `dx [rows, cols]`, `gamma`, `dgamma`, `dbeta [cols]`, `mean`, `rstd [rows]`.
pub(super) fn backward(
    dy: &[f32],
    x: &[f32],
    gamma: &[f32],
    mean: &[f32],
    rstd: &[f32],
    dsum: Option<&[f32]>,
    dx: &mut [f32],
    dgamma: Option<&mut [f32]>,
    dbeta: Option<&mut [f32]>,
) {
    let (rows, cols) = (mean.len(), gamma.len());
    assert_eq!((dy.len(), x.len(), dx.len(), rstd.len()), (rows * cols, rows * cols, rows * cols, rows));
    assert!(dsum.is_none_or(|dsum| dsum.len() == rows * cols));
    if cols == 0 || rows == 0 {
        return;
    }
    let step = partial_rows(rows, cols);
    let tasks = rows.div_ceil(step);
    scratch(2 * tasks * cols, |partials| {
        let (gammas, betas) = partials.split_at_mut(tasks * cols);
        let partials = gammas.par_chunks_mut(cols).zip(betas.par_chunks_mut(cols));
        dx.par_chunks_mut(step * cols).zip(partials).enumerate().for_each(|(task, (dx, (dgamma, dbeta)))| {
            let rows = task * step..task * step + dx.len() / cols;
            let elements = rows.start * cols..rows.end * cols;
            dispatch(Backward {
                dy: &dy[elements.clone()],
                x: &x[elements.clone()],
                gamma,
                mean: &mean[rows.clone()],
                rstd: &rstd[rows],
                dsum: dsum.map(|dsum| &dsum[elements]),
                dx,
                dgamma,
                dbeta,
            });
        });
        if let Some(dgamma) = dgamma {
            add_partials(dgamma, gammas);
        }
        if let Some(dbeta) = dbeta {
            add_partials(dbeta, betas);
        }
    });
}

struct Backward<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    gamma: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
    dsum: Option<&'a [f32]>,
    dx: &'a mut [f32],
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
}

impl Vectorize for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.gamma.len();
        self.dgamma.fill(0.0);
        self.dbeta.fill(0.0);
        for (r, dx) in self.dx.chunks_exact_mut(cols).enumerate() {
            let row = r * cols..(r + 1) * cols;
            let (dy, x) = (&self.dy[row.clone()], &self.x[row.clone()]);
            let (center, scale) = (isa.splat(self.mean[r]), isa.splat(self.rstd[r]));
            let (mut sum_g, mut sum_gn) = (isa.splat(0.0), isa.splat(0.0));
            // Lanes beyond the row hold zeros in dy and gamma, so they add nothing.
            let params = [&mut *self.dgamma, &mut *self.dbeta];
            sweep(isa, [dy, x, self.gamma], params, |[dy, x, gamma], [dgamma, dbeta]| {
                let normal = isa.mul(isa.sub(x, center), scale);
                let g = isa.mul(dy, gamma);
                sum_g = isa.add(sum_g, g);
                sum_gn = isa.mul_add(g, normal, sum_gn);
                [isa.mul_add(dy, normal, dgamma), isa.add(dbeta, dy)]
            });
            let mean_g = isa.splat(isa.reduce_add(sum_g) / cols as f32);
            let mean_gn = isa.splat(isa.reduce_add(sum_gn) / cols as f32);
            let slope = |dy, x, gamma| {
                let normal = isa.mul(isa.sub(x, center), scale);
                let rest = isa.sub(isa.sub(isa.mul(dy, gamma), mean_g), isa.mul(normal, mean_gn));
                isa.mul(rest, scale)
            };
            match self.dsum {
                None => sweep(isa, [dy, x, self.gamma], [dx], |[dy, x, gamma], _| [slope(dy, x, gamma)]),
                Some(dsum) => {
                    sweep(isa, [dy, x, self.gamma, &dsum[row]], [dx], |[dy, x, gamma, dsum], _| {
                        [isa.add(slope(dy, x, gamma), dsum)]
                    });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma as error_of, uniform, widen};

    const SIZES: [(usize, usize); 9] =
        [(0, 8), (1, 1), (1, 15), (3, 16), (2, 17), (5, 33), (7, 64), (4, 385), (300, 130)];
    const EPS: f32 = 1e-5;

    struct Exact {
        normal: Vec<f64>,
        mean: f64,
        rstd: f64,
        /// Greatest |x − mean| · rstd a row could have, for the bounds.
        spread: f64,
    }

    fn exact(x: &[f64]) -> Exact {
        let n = x.len() as f64;
        let mean = x.iter().sum::<f64>() / n;
        let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
        let rstd = 1.0 / (var + f64::from(EPS)).sqrt();
        let size = x.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        Exact { normal: x.iter().map(|x| (x - mean) * rstd).collect(), mean, rstd, spread: size * rstd }
    }

    #[test]
    fn forward_meets_the_definition_at_every_level() {
        for level in Level::available() {
            for (rows, cols) in SIZES {
                let (x, branch) = (uniform(1, rows * cols), uniform(2, rows * cols));
                let (gamma, beta) = (uniform(3, cols), uniform(4, cols));
                let per_scale = 2;
                let scales = uniform(5, rows.div_ceil(per_scale));
                for scale in [None, Some(&scales[..])] {
                    let (mut sum, mut y) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
                    let (mut mean, mut rstd) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                    with_level(level, || {
                        forward_residual(
                            &x, &branch, scale, per_scale, &gamma, &beta, EPS, &mut sum, &mut y, &mut mean,
                            &mut rstd,
                        );
                    });
                    for r in 0..rows {
                        let s = scale.map_or(1.0, |s| f64::from(s[r / per_scale]));
                        let at = r * cols..(r + 1) * cols;
                        let pairs = x[at.clone()].iter().zip(&branch[at.clone()]);
                        let wanted: Vec<f64> =
                            pairs.clone().map(|(x, b)| f64::from(*x) + s * f64::from(*b)).collect();
                        let bound: Vec<f64> = pairs
                            .map(|(x, b)| error_of(2) * (f64::from(x.abs()) + (s * f64::from(*b)).abs()))
                            .collect();
                        assert_within(&sum[at.clone()], &wanted, &bound, "sum");
                        check_row(&sum[at.clone()], &gamma, &beta, &y[at], mean[r], rstd[r]);
                    }
                }
                let mut again = vec![f32::NAN; x.len()];
                let (mut mean, mut rstd) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                with_level(level, || forward(&x, &gamma, &beta, EPS, &mut again, &mut mean, &mut rstd));
                for r in 0..rows {
                    let at = r * cols..(r + 1) * cols;
                    check_row(&x[at.clone()], &gamma, &beta, &again[at], mean[r], rstd[r]);
                }
            }
        }
    }

    fn check_row(x: &[f32], gamma: &[f32], beta: &[f32], y: &[f32], mean: f32, rstd: f32) {
        let cols = x.len();
        let exact = exact(&widen(x));
        // Mean and variance are sums of `cols` terms: each normal is off by γ of them times the spread of the row.
        let error = error_of(2 * cols + 16) * (1.0 + exact.spread) * (1.0 + exact.spread);
        assert!((f64::from(mean) - exact.mean).abs() <= error, "mean {mean} for {}", exact.mean);
        assert!((f64::from(rstd) / exact.rstd - 1.0).abs() <= error, "rstd {rstd} for {}", exact.rstd);
        let wanted: Vec<f64> =
            (0..cols).map(|c| exact.normal[c] * f64::from(gamma[c]) + f64::from(beta[c])).collect();
        let bound: Vec<f64> = (0..cols)
            .map(|c| {
                (error * (1.0 + exact.normal[c].abs())) * f64::from(gamma[c].abs())
                    + error_of(2) * wanted[c].abs()
            })
            .collect();
        assert_within(y, &wanted, &bound, "y");
    }

    #[test]
    fn backward_meets_the_definition_at_every_level() {
        for level in Level::available() {
            for (rows, cols) in SIZES {
                let (x, dy, dsum) =
                    (uniform(1, rows * cols), uniform(2, rows * cols), uniform(6, rows * cols));
                let (gamma, beta) = (uniform(3, cols), uniform(4, cols));
                let start = uniform(7, cols);
                let (mut mean, mut rstd) = (vec![0.0; rows], vec![0.0; rows]);
                forward(&x, &gamma, &beta, EPS, &mut vec![0.0; x.len()], &mut mean, &mut rstd);
                for dsum in [None, Some(&dsum[..])] {
                    let mut dx = vec![f32::NAN; x.len()];
                    let (mut dgamma, mut dbeta) = (start.clone(), start.clone());
                    with_level(level, || {
                        let (dgamma, dbeta) = (Some(&mut dgamma[..]), Some(&mut dbeta[..]));
                        backward(&dy, &x, &gamma, &mean, &rstd, dsum, &mut dx, dgamma, dbeta);
                    });
                    let mut sums: Vec<(f64, f64)> =
                        start.iter().map(|s| (f64::from(*s), f64::from(s.abs()))).collect();
                    let mut betas = sums.clone();
                    let mut widest = 1.0;
                    for r in 0..rows {
                        let at = r * cols..(r + 1) * cols;
                        let row = exact(&widen(&x[at.clone()]));
                        widest = f64::max(widest, (1.0 + row.spread).powi(2));
                        let g: Vec<f64> =
                            (0..cols).map(|c| f64::from(dy[at.start + c]) * f64::from(gamma[c])).collect();
                        let mean_g = g.iter().sum::<f64>() / cols as f64;
                        let mean_gn =
                            g.iter().zip(&row.normal).map(|(g, n)| g * n).sum::<f64>() / cols as f64;
                        let extra = |c: usize| dsum.map_or(0.0, |d| f64::from(d[at.start + c]));
                        let wanted: Vec<f64> = (0..cols)
                            .map(|c| row.rstd * (g[c] - mean_g - row.normal[c] * mean_gn) + extra(c))
                            .collect();
                        let error = error_of(6 * cols + 64) * (1.0 + row.spread).powi(3);
                        let bound: Vec<f64> = (0..cols)
                            .map(|c| {
                                error * row.rstd * (1.0 + row.normal[c].abs()) + error_of(2) * extra(c).abs()
                            })
                            .collect();
                        assert_within(&dx[at.clone()], &wanted, &bound, "dx");
                        for c in 0..cols {
                            let dy = f64::from(dy[at.start + c]);
                            let term = dy * row.normal[c];
                            sums[c] = (sums[c].0 + term, sums[c].1 + dy.abs() * (1.0 + row.normal[c].abs()));
                            betas[c] = (betas[c].0 + dy, betas[c].1 + dy.abs());
                        }
                    }
                    for (got, sums, k) in [(&dgamma, &sums, rows + 2 * cols + 16), (&dbeta, &betas, rows + 1)]
                    {
                        let wanted: Vec<f64> = sums.iter().map(|s| s.0).collect();
                        let bound: Vec<f64> = sums.iter().map(|s| error_of(k) * s.1 * widest).collect();
                        assert_within(got, &wanted, &bound, "parameter gradient");
                    }
                }
            }
        }
    }
}
