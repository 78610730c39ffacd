//! Token sequences on the CPU.

use lacewing_cpu::map::sweep;
use lacewing_cpu::parallel::rows_per_task;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// `y[b] = [cls; x[b]] + pos`.
///
/// Shapes: `x [batch, n, dim]`, `cls [dim]`, `pos [n', dim]`, `y [batch, n', dim]`, `n' = n + 1` with `cls`, else `n`.
pub(super) fn embed(
    x: &[f32],
    cls: Option<&[f32]>,
    pos: &[f32],
    y: &mut [f32],
    batch: usize,
    n: usize,
    dim: usize,
) {
    let front = usize::from(cls.is_some()) * dim;
    let (sample_x, sample_y) = (n * dim, n * dim + front);
    assert_eq!((x.len(), pos.len(), y.len()), (batch * sample_x, sample_y, batch * sample_y));
    if y.is_empty() {
        return;
    }
    let step = rows_per_task(batch, sample_y);
    y.par_chunks_mut(step * sample_y).enumerate().for_each(|(task, y)| {
        for (at, y) in y.chunks_exact_mut(sample_y).enumerate() {
            let x = &x[(task * step + at) * sample_x..][..sample_x];
            let (first, rest) = y.split_at_mut(front);
            dispatch(Add { a: cls.unwrap_or_default(), b: &pos[..front], y: first });
            dispatch(Add { a: x, b: &pos[front..], y: rest });
        }
    });
}

/// `y = a + b`.
struct Add<'a> {
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
}

impl Vectorize for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        sweep(isa, [self.a, self.b], [self.y], |[a, b], _| [isa.add(a, b)]);
    }
}

/// `dx[b] = dy[b]` without its class token, `dcls += Σ_b dy[b, 0]`, `dpos += Σ_b dy[b]`.
///
/// Shapes: those of [`embed`]; `with_cls` says whether it had a class token.
pub(super) fn embed_backward(
    dy: &[f32],
    dx: &mut [f32],
    dcls: Option<&mut [f32]>,
    dpos: Option<&mut [f32]>,
    batch: usize,
    n: usize,
    dim: usize,
    with_cls: bool,
) {
    let front = usize::from(with_cls) * dim;
    let (sample_x, sample_y) = (n * dim, n * dim + front);
    assert_eq!((dy.len(), dx.len()), (batch * sample_y, batch * sample_x));
    if sample_y == 0 {
        return;
    }
    if sample_x > 0 {
        let step = rows_per_task(batch, sample_x);
        dx.par_chunks_mut(step * sample_x).zip(dy.par_chunks(step * sample_y)).for_each(|(dx, dy)| {
            for (dx, dy) in dx.chunks_exact_mut(sample_x).zip(dy.chunks_exact(sample_y)) {
                dx.copy_from_slice(&dy[front..]);
            }
        });
    }
    if let Some(dcls) = dcls {
        assert_eq!(dcls.len(), front);
        dispatch(AddSamples { dy, stride: sample_y, first: 0, sums: dcls });
    }
    if let Some(dpos) = dpos {
        assert_eq!(dpos.len(), sample_y);
        // Each task owns tokens of `dpos` and adds the samples in order.
        let step = rows_per_task(sample_y / dim, dim * batch.max(1)) * dim;
        dpos.par_chunks_mut(step).enumerate().for_each(|(task, sums)| {
            dispatch(AddSamples { dy, stride: sample_y, first: task * step, sums });
        });
    }
}

/// `sums += Σ_b dy[b · stride + first ..]`.
struct AddSamples<'a> {
    dy: &'a [f32],
    stride: usize,
    first: usize,
    sums: &'a mut [f32],
}

impl Vectorize for AddSamples<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for dy in self.dy.chunks_exact(self.stride) {
            sweep(isa, [&dy[self.first..][..self.sums.len()]], [&mut *self.sums], |[dy], [sum]| {
                [isa.add(sum, dy)]
            });
        }
    }
}

/// `y[b] = 1/n Σ_t x[b, t]`. Shapes: `x [batch, n, dim]`, `y [batch, dim]`.
pub(super) fn mean_pool(x: &[f32], y: &mut [f32], batch: usize, n: usize, dim: usize) {
    assert_eq!((x.len(), y.len()), (batch * n * dim, batch * dim));
    if y.is_empty() {
        return;
    }
    let step = rows_per_task(batch, n * dim);
    y.par_chunks_mut(step * dim).enumerate().for_each(|(task, y)| {
        for (at, y) in y.chunks_exact_mut(dim).enumerate() {
            dispatch(Mean { x: &x[(task * step + at) * n * dim..][..n * dim], y });
        }
    });
}

struct Mean<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Vectorize for Mean<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let n = self.x.len() / self.y.len();
        let share = isa.splat(1.0 / n as f32);
        self.y.fill(0.0);
        for x in self.x.chunks_exact(self.y.len()) {
            sweep(isa, [x], [&mut *self.y], |[x], [sum]| [isa.add(sum, x)]);
        }
        sweep(isa, [], [self.y], |[], [sum]| [isa.mul(sum, share)]);
    }
}

/// `dx[b, t] = dy[b] / n`. Shapes: `dy [batch, dim]`, `dx [batch, n, dim]`.
pub(super) fn mean_pool_backward(dy: &[f32], dx: &mut [f32], batch: usize, n: usize, dim: usize) {
    assert_eq!((dy.len(), dx.len()), (batch * dim, batch * n * dim));
    if dx.is_empty() {
        return;
    }
    let share = 1.0 / n as f32;
    let step = rows_per_task(batch, n * dim);
    dx.par_chunks_mut(step * n * dim).zip(dy.par_chunks(step * dim)).for_each(|(dx, dy)| {
        for (dx, dy) in dx.chunks_exact_mut(n * dim).zip(dy.chunks_exact(dim)) {
            let (first, rest) = dx.split_at_mut(dim);
            first.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = dy * share);
            rest.chunks_exact_mut(dim).for_each(|dx| dx.copy_from_slice(first));
        }
    });
}

/// `y[b] = x[b, token]`. Shapes: `x [batch, n, dim]`, `y [batch, dim]`.
pub(super) fn select(x: &[f32], y: &mut [f32], batch: usize, n: usize, dim: usize, token: usize) {
    assert_eq!((x.len(), y.len()), (batch * n * dim, batch * dim));
    assert!(token < n);
    if y.is_empty() {
        return;
    }
    for (y, x) in y.chunks_exact_mut(dim).zip(x.chunks_exact(n * dim)) {
        y.copy_from_slice(&x[token * dim..][..dim]);
    }
}

/// `dx[b, token] = dy[b]`, 0 elsewhere. Shapes: `dy [batch, dim]`, `dx [batch, n, dim]`.
pub(super) fn select_backward(dy: &[f32], dx: &mut [f32], batch: usize, n: usize, dim: usize, token: usize) {
    assert_eq!((dy.len(), dx.len()), (batch * dim, batch * n * dim));
    assert!(token < n);
    if dx.is_empty() {
        return;
    }
    let step = rows_per_task(batch, n * dim);
    dx.par_chunks_mut(step * n * dim).zip(dy.par_chunks(step * dim)).for_each(|(dx, dy)| {
        for (dx, dy) in dx.chunks_exact_mut(n * dim).zip(dy.chunks_exact(dim)) {
            dx.fill(0.0);
            dx[token * dim..][..dim].copy_from_slice(dy);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma, uniform};

    const SIZES: [(usize, usize, usize); 7] =
        [(0, 3, 4), (1, 1, 1), (2, 3, 15), (3, 2, 16), (2, 5, 17), (1, 4, 33), (16, 65, 64)];

    #[test]
    fn embedding_adds_and_its_gradient_sums_over_samples() {
        for level in Level::available() {
            for ((batch, n, dim), with_cls) in SIZES.into_iter().flat_map(|s| [(s, false), (s, true)]) {
                let n_all = n + usize::from(with_cls);
                let (x, cls, pos) = (uniform(1, batch * n * dim), uniform(2, dim), uniform(3, n_all * dim));
                let (dy, start) = (uniform(4, batch * n_all * dim), uniform(5, n_all * dim));
                let mut y = vec![f32::NAN; dy.len()];
                let (mut dx, mut dcls, mut dpos) =
                    (vec![f32::NAN; x.len()], start[..dim].to_vec(), start.clone());
                with_level(level, || {
                    embed(&x, with_cls.then_some(&cls[..]), &pos, &mut y, batch, n, dim);
                    let dcls = with_cls.then_some(&mut dcls[..]);
                    embed_backward(&dy, &mut dx, dcls, Some(&mut dpos), batch, n, dim, with_cls);
                });
                let front = n_all - n;
                for (i, y) in y.iter().enumerate() {
                    let (b, t, c) = (i / (n_all * dim), i / dim % n_all, i % dim);
                    let token = if t < front { cls[c] } else { x[(b * n + t - front) * dim + c] };
                    assert_eq!(*y, token + pos[t * dim + c], "y[{b}, {t}, {c}] at {level:?}");
                    if t >= front {
                        assert_eq!(dx[(b * n + t - front) * dim + c], dy[i], "dx[{b}, {t}, {c}]");
                    }
                }
                let sums = |i: usize, f: fn(f64) -> f64| {
                    let terms = (0..batch).map(|b| f(f64::from(dy[b * n_all * dim + i])));
                    f(f64::from(start[i])) + terms.sum::<f64>()
                };
                let wanted: Vec<f64> = (0..n_all * dim).map(|i| sums(i, |x| x)).collect();
                let bound: Vec<f64> = (0..n_all * dim).map(|i| gamma(batch) * sums(i, f64::abs)).collect();
                assert_within(&dpos, &wanted, &bound, "dpos");
                if with_cls {
                    assert_within(&dcls, &wanted[..dim], &bound[..dim], "dcls");
                }
            }
        }
    }

    #[test]
    fn pooling_averages_and_selection_picks() {
        for level in Level::available() {
            for (batch, n, dim) in SIZES {
                let (x, dy) = (uniform(1, batch * n * dim), uniform(2, batch * dim));
                let (mut y, mut dx) = (vec![f32::NAN; dy.len()], vec![f32::NAN; x.len()]);
                with_level(level, || {
                    mean_pool(&x, &mut y, batch, n, dim);
                    mean_pool_backward(&dy, &mut dx, batch, n, dim);
                });
                let column = |i: usize, f: fn(f64) -> f64| {
                    let terms = (0..n).map(|t| f(f64::from(x[(i / dim * n + t) * dim + i % dim])));
                    terms.sum::<f64>() / n as f64
                };
                let wanted: Vec<f64> = (0..y.len()).map(|i| column(i, |x| x)).collect();
                let bound: Vec<f64> = (0..y.len()).map(|i| gamma(n + 2) * column(i, f64::abs)).collect();
                assert_within(&y, &wanted, &bound, "mean");
                for (i, dx) in dx.iter().enumerate() {
                    assert_eq!(*dx, dy[i / (n * dim) * dim + i % dim] * (1.0 / n as f32), "dx at {i}");
                }
                let token = n - 1;
                select(&x, &mut y, batch, n, dim, token);
                dx.fill(f32::NAN);
                select_backward(&dy, &mut dx, batch, n, dim, token);
                for (i, dx) in dx.iter().enumerate() {
                    let (b, t, c) = (i / (n * dim), i / dim % n, i % dim);
                    assert_eq!(*dx, if t == token { dy[b * dim + c] } else { 0.0 }, "dx at {i}");
                    assert!(t != token || y[b * dim + c] == x[i], "y[{b}, {c}]");
                }
            }
        }
    }
}
