//! Elementwise ops on the CPU, one pass each.

use lacewing_cpu::map::{Map, Update, map, sweep, update};
use lacewing_cpu::math;
use lacewing_cpu::parallel::rows_per_task;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// `y = a + b`.
pub(super) fn add(a: &[f32], b: &[f32], y: &mut [f32]) {
    map(Sum, [a, b], y);
}

/// `y += a`.
pub(super) fn add_assign(y: &mut [f32], a: &[f32]) {
    update(Sum, y, [a]);
}

/// `y = s x`.
pub(super) fn scale(x: &[f32], s: f32, y: &mut [f32]) {
    map(Scale(s), [x], y);
}

#[derive(Clone, Copy)]
struct Sum;

impl Map<2> for Sum {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, [a, b]: [I::V; 2]) -> I::V {
        isa.add(a, b)
    }
}

impl Update<1> for Sum {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, y: I::V, [a]: [I::V; 1]) -> I::V {
        isa.add(y, a)
    }
}

#[derive(Clone, Copy)]
struct Scale(f32);

impl Map<1> for Scale {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, [x]: [I::V; 1]) -> I::V {
        isa.mul(isa.splat(self.0), x)
    }
}

/// `y = s σ(x)`.
pub(super) fn sigmoid(x: &[f32], s: f32, y: &mut [f32]) {
    map(Sigmoid(s), [x], y);
}

/// `dx = dy · y (1 − y / s)`.
pub(super) fn sigmoid_backward(dy: &[f32], y: &[f32], s: f32, dx: &mut [f32]) {
    map(SigmoidBackward(1.0 / s), [dy, y], dx);
}

#[derive(Clone, Copy)]
struct Sigmoid(f32);

impl Map<1> for Sigmoid {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, [x]: [I::V; 1]) -> I::V {
        isa.mul(isa.splat(self.0), math::sigmoid(isa, x))
    }
}

#[derive(Clone, Copy)]
struct SigmoidBackward(f32);

impl Map<2> for SigmoidBackward {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, [dy, y]: [I::V; 2]) -> I::V {
        let rest = isa.sub(isa.splat(1.0), isa.mul(y, isa.splat(self.0)));
        isa.mul(dy, isa.mul(y, rest))
    }
}

/// `y[r, :] = s[r / per_scale] x[r, :]`.
///
/// Shapes: `x`, `y [rows, cols]`, `s [rows / per_scale]`.
pub(super) fn scale_rows(x: &[f32], s: &[f32], per_scale: usize, y: &mut [f32], cols: usize) {
    assert_eq!(x.len(), y.len());
    if y.is_empty() {
        return;
    }
    let step = rows_per_task(y.len() / cols, cols);
    x.par_chunks(step * cols).zip(y.par_chunks_mut(step * cols)).enumerate().for_each(|(task, (x, y))| {
        dispatch(ScaleRows { x, s, per_scale, first_row: task * step, y, cols });
    });
}

struct ScaleRows<'a> {
    x: &'a [f32],
    s: &'a [f32],
    per_scale: usize,
    first_row: usize,
    y: &'a mut [f32],
    cols: usize,
}

impl Vectorize for ScaleRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let rows = self.x.chunks_exact(self.cols).zip(self.y.chunks_exact_mut(self.cols));
        for (r, (x, y)) in rows.enumerate() {
            let s = isa.splat(self.s[(self.first_row + r) / self.per_scale]);
            sweep(isa, [x], [y], |[x], _| [isa.mul(s, x)]);
        }
    }
}

/// The logistic function of a gate; a number a row, so not worth a register.
fn logistic(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// `y[r, :] = (1 − k) a[r, :] + k b[r, :]` with `k = σ(gate[r])`.
///
/// Shapes: `a`, `b`, `y [rows, cols]`, `gate [rows]`.
pub(super) fn gated_sum_forward(a: &[f32], b: &[f32], gate: &[f32], y: &mut [f32], cols: usize) {
    assert_eq!((a.len(), b.len(), gate.len() * cols), (y.len(), y.len(), y.len()));
    if y.is_empty() {
        return;
    }
    let step = rows_per_task(gate.len(), cols);
    let inputs = a.par_chunks(step * cols).zip(b.par_chunks(step * cols)).zip(gate.par_chunks(step));
    y.par_chunks_mut(step * cols).zip(inputs).for_each(|(y, ((a, b), gate))| {
        dispatch(GatedSum { a, b, gate, y, cols });
    });
}

struct GatedSum<'a> {
    a: &'a [f32],
    b: &'a [f32],
    gate: &'a [f32],
    y: &'a mut [f32],
    cols: usize,
}

impl Vectorize for GatedSum<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let rows = self.a.chunks_exact(self.cols).zip(self.b.chunks_exact(self.cols));
        for (((a, b), gate), y) in rows.zip(self.gate).zip(self.y.chunks_exact_mut(self.cols)) {
            let k = logistic(*gate);
            let (open, closed) = (isa.splat(k), isa.splat(1.0 - k));
            sweep(isa, [a, b], [y], |[a, b], _| [isa.mul_add(open, b, isa.mul(closed, a))]);
        }
    }
}

/// `da = (1 − k) dy`, `db = k dy`, `dgate[r] = k (1 − k) Σ_c dy (b − a)` with `k = σ(gate[r])`.
///
/// Shapes: `dy`, `a`, `b`, `da`, `db [rows, cols]`, `gate`, `dgate [rows]`.
pub(super) fn gated_sum_backward(
    dy: &[f32],
    a: &[f32],
    b: &[f32],
    gate: &[f32],
    da: &mut [f32],
    db: &mut [f32],
    dgate: &mut [f32],
    cols: usize,
) {
    let len = gate.len() * cols;
    assert_eq!([dy.len(), a.len(), b.len(), da.len(), db.len()], [len; 5]);
    assert_eq!(dgate.len(), gate.len());
    if len == 0 {
        return dgate.fill(0.0);
    }
    let step = rows_per_task(gate.len(), cols);
    let inputs = dy.par_chunks(step * cols).zip(a.par_chunks(step * cols)).zip(b.par_chunks(step * cols));
    let outputs = da.par_chunks_mut(step * cols).zip(db.par_chunks_mut(step * cols));
    let gates = gate.par_chunks(step).zip(dgate.par_chunks_mut(step));
    inputs.zip(outputs).zip(gates).for_each(|((((dy, a), b), (da, db)), (gate, dgate))| {
        dispatch(GatedSumBackward { dy, a, b, gate, da, db, dgate, cols });
    });
}

struct GatedSumBackward<'a> {
    dy: &'a [f32],
    a: &'a [f32],
    b: &'a [f32],
    gate: &'a [f32],
    da: &'a mut [f32],
    db: &'a mut [f32],
    dgate: &'a mut [f32],
    cols: usize,
}

impl Vectorize for GatedSumBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.cols;
        for (r, (gate, dgate)) in self.gate.iter().zip(self.dgate).enumerate() {
            let row = r * cols..(r + 1) * cols;
            let k = logistic(*gate);
            let (open, closed) = (isa.splat(k), isa.splat(1.0 - k));
            let mut dot = isa.splat(0.0);
            let inputs = [&self.dy[row.clone()], &self.a[row.clone()], &self.b[row.clone()]];
            sweep(isa, inputs, [&mut self.da[row.clone()], &mut self.db[row]], |[dy, a, b], _| {
                dot = isa.mul_add(dy, isa.sub(b, a), dot);
                [isa.mul(closed, dy), isa.mul(open, dy)]
            });
            *dgate = k * (1.0 - k) * isa.reduce_add(dot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma, uniform, widen};

    const SIZES: [(usize, usize); 8] =
        [(0, 3), (1, 1), (2, 15), (4, 16), (6, 17), (1, 33), (9, 64), (700, 61)];

    #[test]
    fn sums_and_scales_are_those_of_single_numbers() {
        for level in Level::available() {
            for (rows, cols) in SIZES {
                let (a, b, s) =
                    (uniform(1, rows * cols), uniform(2, rows * cols), uniform(3, rows.div_ceil(2)));
                let mut y = vec![f32::NAN; a.len()];
                let zipped: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
                with_level(level, || add(&a, &b, &mut y));
                assert_eq!(y, zipped, "add at {level:?}");
                y.copy_from_slice(&b);
                with_level(level, || add_assign(&mut y, &a));
                assert_eq!(y, zipped, "add_assign at {level:?}");
                with_level(level, || scale(&a, 0.3, &mut y));
                assert_eq!(y, a.iter().map(|a| 0.3 * a).collect::<Vec<_>>(), "scale at {level:?}");
                with_level(level, || scale_rows(&a, &s, 2, &mut y, cols));
                let wanted: Vec<f32> = a.iter().enumerate().map(|(i, a)| s[i / cols / 2] * a).collect();
                assert_eq!(y, wanted, "scale_rows at {level:?}");
            }
        }
    }

    #[test]
    fn the_gated_sum_and_its_gradient_meet_the_definition() {
        for level in Level::available() {
            for (rows, cols) in SIZES {
                let (a, b, dy) = (uniform(1, rows * cols), uniform(2, rows * cols), uniform(3, rows * cols));
                let gate: Vec<f32> = uniform(4, rows).iter().map(|g| g * 5.0).collect();
                let mut y = vec![f32::NAN; a.len()];
                let (mut da, mut db, mut dgate) = (y.clone(), y.clone(), vec![f32::NAN; rows]);
                with_level(level, || {
                    gated_sum_forward(&a, &b, &gate, &mut y, cols);
                    gated_sum_backward(&dy, &a, &b, &gate, &mut da, &mut db, &mut dgate, cols);
                });
                let k: Vec<f64> = gate.iter().map(|g| 1.0 / (1.0 + (-f64::from(*g)).exp())).collect();
                let (a, b, dy) = (widen(&a), widen(&b), widen(&dy));
                let each = |f: &dyn Fn(usize, f64) -> f64| {
                    (0..a.len()).map(|i| f(i, k[i / cols])).collect::<Vec<f64>>()
                };
                // A gate is right to a few roundings, absolutely; so is all that is linear in it.
                let bound = |size: &[f64]| size.iter().map(|s| gamma(8) * s.abs()).collect::<Vec<f64>>();
                let sizes = each(&|i, _| a[i].abs() + b[i].abs());
                assert_within(&y, &each(&|i, k| (1.0 - k) * a[i] + k * b[i]), &bound(&sizes), "y");
                assert_within(&da, &each(&|i, k| (1.0 - k) * dy[i]), &bound(&dy), "da");
                assert_within(&db, &each(&|i, k| k * dy[i]), &bound(&dy), "db");
                let terms = each(&|i, _| dy[i] * (b[i] - a[i]));
                let sum = |r: usize, f: &dyn Fn(f64) -> f64| {
                    terms[r * cols..][..cols].iter().map(|t| f(*t)).sum::<f64>()
                };
                let wanted: Vec<f64> = (0..rows).map(|r| k[r] * (1.0 - k[r]) * sum(r, &|t| t)).collect();
                let bound: Vec<f64> = (0..rows)
                    .map(|r| {
                        gamma(cols + 16)
                            * (0..cols).map(|c| sizes[r * cols + c] * dy[r * cols + c].abs()).sum::<f64>()
                    })
                    .collect();
                assert_within(&dgate, &wanted, &bound, "dgate");
            }
        }
    }
}
