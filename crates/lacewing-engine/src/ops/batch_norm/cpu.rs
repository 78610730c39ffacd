//! Batch norm on the CPU: sums of a task's rows in f32 while they are in cache, those of the tasks in f64.

use lacewing_cpu::map::sweep;
use lacewing_cpu::parallel::rows_per_task;
use lacewing_cpu::scratch::scratch;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// Mean and biased variance of each column.
///
/// Shapes: `x [rows, cols]`, `mean`, `var [cols]`; at least one row.
pub(super) fn statistics(x: &[f32], mean: &mut [f32], var: &mut [f32]) {
    let cols = mean.len();
    let rows = x.len() / cols;
    assert_eq!((x.len(), var.len()), (rows * cols, cols));
    let step = rows_per_task(rows, cols);
    scratch(rows.div_ceil(step) * 2 * cols, |partials| {
        partials.par_chunks_mut(2 * cols).zip(x.par_chunks(step * cols)).for_each(|(partial, x)| {
            let (mean, squares) = partial.split_at_mut(cols);
            dispatch(Moments { x, mean, squares });
        });
        // Around the mean of all: a task's deviations, and that of its own mean for each of its rows.
        let tasks = || {
            let shares = x.chunks(step * cols).map(|x| (x.len() / cols) as f64);
            partials.chunks_exact(2 * cols).zip(shares)
        };
        let mut sums = vec![0f64; cols];
        for (partial, rows) in tasks() {
            sums.iter_mut().zip(partial).for_each(|(sum, &mean)| *sum += rows * f64::from(mean));
        }
        let mut squares = vec![0f64; cols];
        sums.iter_mut().for_each(|sum| *sum /= rows as f64);
        for (partial, rows) in tasks() {
            let (means, own) = partial.split_at(cols);
            for (square, (mean, (&of_task, &own))) in
                squares.iter_mut().zip(sums.iter().zip(means.iter().zip(own)))
            {
                *square += f64::from(own) + rows * (f64::from(of_task) - mean).powi(2);
            }
        }
        mean.iter_mut().zip(sums).for_each(|(mean, of_all)| *mean = of_all as f32);
        var.iter_mut().zip(squares).for_each(|(var, sum)| *var = (sum / rows as f64) as f32);
    });
}

/// The mean of each column of some rows and the sum of squares around it.
struct Moments<'a> {
    x: &'a [f32],
    mean: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Vectorize for Moments<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.mean.len();
        self.mean.fill(0.0);
        self.squares.fill(0.0);
        for x in self.x.chunks_exact(cols) {
            sweep(isa, [x], [&mut *self.mean], |[x], [sum]| [isa.add(sum, x)]);
        }
        let rows = isa.splat((self.x.len() / cols) as f32);
        sweep(isa, [], [&mut *self.mean], |[], [sum]| [isa.div(sum, rows)]);
        for x in self.x.chunks_exact(cols) {
            sweep(isa, [x, &*self.mean], [&mut *self.squares], |[x, mean], [sum]| {
                let off = isa.sub(x, mean);
                [isa.mul_add(off, off, sum)]
            });
        }
    }
}

/// `r ← r + momentum · (factor · batch − r)`.
pub(super) fn update(running: &mut [f32], batch: &[f32], factor: f32, momentum: f32) {
    running.iter_mut().zip(batch).for_each(|(r, batch)| *r += momentum * (factor * batch - *r));
}

fn rstd(var: f32, eps: f32) -> f32 {
    1.0 / (var + eps).sqrt()
}

/// `y = (x − mean) · rstd · gamma + beta`, `rstd = 1 / √(var + eps)`.
///
/// Shapes: `x`, `y [rows, cols]`, `mean`, `var`, `gamma`, `beta [cols]`.
pub(super) fn normalize(
    x: &[f32],
    (mean, var): (&[f32], &[f32]),
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    y: &mut [f32],
) {
    let cols = mean.len();
    assert_eq!((var.len(), gamma.len(), beta.len()), (cols, cols, cols));
    assert_eq!((x.len(), x.len() % cols), (y.len(), 0));
    let scale: Vec<f32> = var.iter().zip(gamma).map(|(&var, gamma)| rstd(var, eps) * gamma).collect();
    let step = rows_per_task(y.len() / cols, cols);
    y.par_chunks_mut(step * cols).zip(x.par_chunks(step * cols)).for_each(|(y, x)| {
        dispatch(Normalize { x, mean, scale: &scale, beta, y });
    });
}

struct Normalize<'a> {
    x: &'a [f32],
    mean: &'a [f32],
    scale: &'a [f32],
    beta: &'a [f32],
    y: &'a mut [f32],
}

impl Vectorize for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.mean.len();
        for (x, y) in self.x.chunks_exact(cols).zip(self.y.chunks_exact_mut(cols)) {
            sweep(isa, [x, self.mean, self.scale, self.beta], [y], |[x, mean, scale, beta], _| {
                [isa.mul_add(isa.sub(x, mean), scale, beta)]
            });
        }
    }
}

/// With `n = (x − mean) · rstd` and averages over the rows of a column: `dgamma += Σ dy · n`, `dbeta += Σ dy`,
/// `dx = gamma · rstd (dy − avg(dy) − n · avg(dy · n))`.
///
/// Shapes: `dy`, `x`, `dx [rows, cols]`, the others `[cols]`; at least one row.
pub(super) fn backward(
    dy: &[f32],
    x: &[f32],
    (mean, var): (&[f32], &[f32]),
    gamma: &[f32],
    eps: f32,
    dx: &mut [f32],
    dgamma: Option<&mut [f32]>,
    dbeta: Option<&mut [f32]>,
) {
    let cols = mean.len();
    let rows = dx.len() / cols;
    assert_eq!((dy.len(), x.len(), dx.len()), (rows * cols, rows * cols, rows * cols));
    assert_eq!((var.len(), gamma.len()), (cols, cols));
    let rstd: Vec<f32> = var.iter().map(|&var| rstd(var, eps)).collect();
    let step = rows_per_task(rows, cols);
    let mut sums = vec![0f64; 2 * cols];
    scratch(rows.div_ceil(step) * 2 * cols, |partials| {
        let inputs = dy.par_chunks(step * cols).zip(x.par_chunks(step * cols));
        partials.par_chunks_mut(2 * cols).zip(inputs).for_each(|(partial, (dy, x))| {
            let (dgamma, dbeta) = partial.split_at_mut(cols);
            dispatch(Sums { dy, x, mean, rstd: &rstd, dgamma, dbeta });
        });
        for partial in partials.chunks_exact(2 * cols) {
            sums.iter_mut().zip(partial).for_each(|(sum, &x)| *sum += f64::from(x));
        }
    });
    let (of_gamma, of_beta) = sums.split_at(cols);
    for (gradient, sums) in [(dgamma, of_gamma), (dbeta, of_beta)] {
        if let Some(gradient) = gradient {
            gradient.iter_mut().zip(sums).for_each(|(gradient, sum)| *gradient += *sum as f32);
        }
    }
    // dx = scale · dy − slope · (x − mean) − shift, each a number a column.
    let columns = |f: &dyn Fn(usize) -> f64| -> Vec<f32> { (0..cols).map(|c| f(c) as f32).collect() };
    let scale = |c: usize| f64::from(gamma[c]) * f64::from(rstd[c]);
    let slope = columns(&|c| scale(c) * f64::from(rstd[c]) * of_gamma[c] / rows as f64);
    let shift = columns(&|c| scale(c) * of_beta[c] / rows as f64);
    let scale = columns(&scale);
    let inputs = dy.par_chunks(step * cols).zip(x.par_chunks(step * cols));
    dx.par_chunks_mut(step * cols).zip(inputs).for_each(|(dx, (dy, x))| {
        dispatch(Backward { dy, x, mean, scale: &scale, slope: &slope, shift: &shift, dx });
    });
}

struct Sums<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    mean: &'a [f32],
    rstd: &'a [f32],
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
}

impl Vectorize for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.mean.len();
        self.dgamma.fill(0.0);
        self.dbeta.fill(0.0);
        for (dy, x) in self.dy.chunks_exact(cols).zip(self.x.chunks_exact(cols)) {
            let sums = [&mut *self.dgamma, &mut *self.dbeta];
            sweep(isa, [dy, x, self.mean, self.rstd], sums, |[dy, x, mean, rstd], [dgamma, dbeta]| {
                let normal = isa.mul(isa.sub(x, mean), rstd);
                [isa.mul_add(dy, normal, dgamma), isa.add(dbeta, dy)]
            });
        }
    }
}

struct Backward<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    mean: &'a [f32],
    scale: &'a [f32],
    slope: &'a [f32],
    shift: &'a [f32],
    dx: &'a mut [f32],
}

impl Vectorize for Backward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.mean.len();
        let rows = self.dy.chunks_exact(cols).zip(self.x.chunks_exact(cols));
        for ((dy, x), dx) in rows.zip(self.dx.chunks_exact_mut(cols)) {
            let inputs = [dy, x, self.mean, self.scale, self.slope, self.shift];
            sweep(isa, inputs, [dx], |[dy, x, mean, scale, slope, shift], _| {
                let through_var = isa.mul_add(isa.sub(x, mean), slope, shift);
                [isa.sub(isa.mul(dy, scale), through_var)]
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma as error_of, uniform};

    const SIZES: [(usize, usize); 8] =
        [(1, 3), (2, 1), (2, 15), (3, 16), (5, 17), (9, 33), (700, 61), (5000, 34)];
    const EPS: f32 = 1e-5;

    /// `f` of each column's values, given as (row, index into the matrix).
    fn columns(
        rows: usize,
        cols: usize,
        f: impl Fn(usize, &mut dyn Iterator<Item = usize>) -> f64,
    ) -> Vec<f64> {
        (0..cols).map(|c| f(c, &mut (0..rows).map(|r| r * cols + c))).collect()
    }

    #[test]
    fn statistics_meet_the_definition_at_every_level() {
        for (level, (rows, cols)) in Level::available().into_iter().flat_map(|l| SIZES.map(|size| (l, size)))
        {
            let x: Vec<f32> = uniform(1, rows * cols).iter().map(|x| x + 3.0).collect();
            let (mut mean, mut var) = (vec![f32::NAN; cols], vec![f32::NAN; cols]);
            with_level(level, || statistics(&x, &mut mean, &mut var));
            let x = |i: usize| f64::from(x[i]);
            let n = rows as f64;
            let means = columns(rows, cols, |_, at| at.map(x).sum::<f64>() / n);
            let bound =
                columns(rows, cols, |_, at| error_of(rows + 2) * at.map(|i| x(i).abs()).sum::<f64>() / n);
            assert_within(&mean, &means, &bound, "mean");
            let vars = columns(rows, cols, |c, at| at.map(|i| (x(i) - means[c]).powi(2)).sum::<f64>() / n);
            // A deviation errs by the rounding of x − mean and by the error of a task's mean, which the merge sees.
            let bound = columns(rows, cols, |c, at| {
                let off = |i: usize| (x(i) - means[c]).abs() + error_of(rows + 2) * 4.0;
                at.map(|i| error_of(rows + 4) * off(i).powi(2) + off(i).powi(2) - (x(i) - means[c]).powi(2))
                    .sum::<f64>()
                    / n
            });
            assert_within(&var, &vars, &bound, "variance");
        }
    }

    #[test]
    fn outputs_and_gradients_meet_the_definition_at_every_level() {
        for (level, (rows, cols)) in Level::available().into_iter().flat_map(|l| SIZES.map(|size| (l, size)))
        {
            let (x, dy) = (uniform(1, rows * cols), uniform(2, rows * cols));
            let (mean, gamma, beta) = (uniform(3, cols), uniform(4, cols), uniform(5, cols));
            let var: Vec<f32> = uniform(6, cols).iter().map(|v| v.abs() + 0.1).collect();
            let (mut y, mut dx) = (vec![f32::NAN; x.len()], vec![f32::NAN; x.len()]);
            let start = uniform(7, cols);
            let (mut dgamma, mut dbeta) = (start.clone(), start.clone());
            with_level(level, || {
                normalize(&x, (&mean, &var), &gamma, &beta, EPS, &mut y);
                let gradients = (Some(&mut dgamma[..]), Some(&mut dbeta[..]));
                backward(&dy, &x, (&mean, &var), &gamma, EPS, &mut dx, gradients.0, gradients.1);
            });
            let wide = |values: &[f32], i: usize| f64::from(values[i]);
            let rstd = |c: usize| 1.0 / (wide(&var, c) + f64::from(EPS)).sqrt();
            let normal = |i: usize| (wide(&x, i) - wide(&mean, i % cols)) * rstd(i % cols);
            let each = |f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
                (0..rows * cols).map(|i| f(i, i % cols)).collect()
            };
            let scaled = |i: usize, c: usize| normal(i) * wide(&gamma, c);
            let bound = each(&|i, c| error_of(8) * (scaled(i, c).abs() + wide(&beta, c).abs()));
            assert_within(&y, &each(&|i, c| scaled(i, c) + wide(&beta, c)), &bound, "y");

            let sums = |f: &dyn Fn(usize) -> f64| columns(rows, cols, |_, at| at.map(f).sum::<f64>());
            let terms: [&dyn Fn(usize) -> f64; 2] = [&|i| wide(&dy, i) * normal(i), &|i| wide(&dy, i)];
            let [of_gamma, of_beta] = terms.map(|term| sums(&term));
            let [most_gamma, most_beta] = terms.map(|term| sums(&|i| term(i).abs()));
            for (got, sums, most, what) in
                [(&dgamma, &of_gamma, &most_gamma, "dgamma"), (&dbeta, &of_beta, &most_beta, "dbeta")]
            {
                let wanted: Vec<f64> = (0..cols).map(|c| wide(&start, c) + sums[c]).collect();
                let bound: Vec<f64> =
                    (0..cols).map(|c| error_of(rows + 8) * (wide(&start, c).abs() + most[c])).collect();
                assert_within(got, &wanted, &bound, what);
            }
            let (n, scale) = (rows as f64, |c: usize| wide(&gamma, c) * rstd(c));
            let wanted =
                each(&|i, c| scale(c) * (wide(&dy, i) - of_beta[c] / n - normal(i) * of_gamma[c] / n));
            let bound = each(&|i, c| {
                let through_var = most_beta[c] / n + normal(i).abs() * most_gamma[c] / n;
                error_of(rows + 16) * scale(c).abs() * (wide(&dy, i).abs() + through_var)
            });
            assert_within(&dx, &wanted, &bound, "dx");
        }
    }
}
