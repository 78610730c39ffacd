//! Softmax cross-entropy on the CPU: a row is read once from memory, its later sweeps come from the first cache.

use lacewing_cpu::map::sweep;
use lacewing_cpu::parallel::rows_per_task;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use lacewing_cpu::{math, reduce};
use rayon::prelude::*;

/// Loss and gradient for one class a row; the target is `(1 − smoothing) onehot + smoothing / classes`. A label that
/// is no class gives a NaN loss.
///
/// Shapes: `logits`, `dlogits [rows, classes]`, `labels`, `loss [rows]`.
pub(super) fn forward_labels(
    logits: &[f32],
    labels: &[u32],
    smoothing: f32,
    grad_scale: f32,
    classes: usize,
    loss: &mut [f32],
    dlogits: &mut [f32],
) {
    assert_eq!(labels.len(), loss.len());
    let (hit, miss) = (1.0 - smoothing, smoothing / classes as f32);
    each_row(logits, classes, loss, dlogits, |r, logits, loss, dlogits| {
        let label = labels[r] as usize;
        dispatch(LabelRow { logits, label, hit, miss, grad_scale, loss, dlogits });
    });
}

/// Loss and gradient for a distribution a row.
///
/// Shapes: `logits`, `soft`, `dlogits [rows, classes]`, `loss [rows]`.
pub(super) fn forward_soft(
    logits: &[f32],
    soft: &[f32],
    grad_scale: f32,
    classes: usize,
    loss: &mut [f32],
    dlogits: &mut [f32],
) {
    assert_eq!(soft.len(), logits.len());
    each_row(logits, classes, loss, dlogits, |r, logits, loss, dlogits| {
        let soft = &soft[r * classes..][..classes];
        dispatch(SoftRow { logits, soft, grad_scale, loss, dlogits });
    });
}

fn each_row(
    logits: &[f32],
    classes: usize,
    loss: &mut [f32],
    dlogits: &mut [f32],
    row: impl Fn(usize, &[f32], &mut f32, &mut [f32]) + Sync,
) {
    let rows = loss.len();
    assert_eq!((logits.len(), dlogits.len()), (rows * classes, rows * classes));
    let step = rows_per_task(rows, classes);
    let elements = logits.par_chunks(step * classes).zip(dlogits.par_chunks_mut(step * classes));
    loss.par_chunks_mut(step).zip(elements).enumerate().for_each(|(task, (loss, (logits, dlogits)))| {
        let rows = logits.chunks_exact(classes).zip(dlogits.chunks_exact_mut(classes));
        for (r, (loss, (logits, dlogits))) in loss.iter_mut().zip(rows).enumerate() {
            row(task * step + r, logits, loss, dlogits);
        }
    });
}

struct LabelRow<'a> {
    logits: &'a [f32],
    label: usize,
    hit: f32,
    miss: f32,
    grad_scale: f32,
    loss: &'a mut f32,
    dlogits: &'a mut [f32],
}

impl Vectorize for LabelRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { logits, label, hit, miss, grad_scale, loss, dlogits } = self;
        let classes = logits.len();
        let top = reduce::max(isa, logits);
        exponentials(isa, logits, top, dlogits);
        let sum = reduce::sum(isa, dlogits);
        let exponential = dlogits.get(label).copied();
        let (scale, miss_all, grad) = (isa.splat(1.0 / sum), isa.splat(miss), isa.splat(grad_scale));
        sweep(isa, [], [&mut *dlogits], |[], [e]| [isa.mul(isa.sub(isa.mul(e, scale), miss_all), grad)]);
        let Some(exponential) = exponential else {
            *loss = f32::NAN;
            return;
        };
        dlogits[label] = (exponential / sum - (hit + miss)) * grad_scale;
        // The target's sum times log Σ exp, less its product with the logits, all less the greatest logit.
        let mut weighted = hit * (logits[label] - top);
        if miss != 0.0 {
            weighted += miss * (reduce::sum(isa, logits) - classes as f32 * top);
        }
        *loss = (hit + miss * classes as f32) * sum.ln() - weighted;
    }
}

struct SoftRow<'a> {
    logits: &'a [f32],
    soft: &'a [f32],
    grad_scale: f32,
    loss: &'a mut f32,
    dlogits: &'a mut [f32],
}

impl Vectorize for SoftRow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { logits, soft, grad_scale, loss, dlogits } = self;
        let top = reduce::max(isa, logits);
        exponentials(isa, logits, top, dlogits);
        let sum = reduce::sum(isa, dlogits);
        let (zero, top_all) = (isa.splat(0.0), isa.splat(top));
        let (scale, grad) = (isa.splat(1.0 / sum), isa.splat(grad_scale));
        let mut weighted = zero;
        sweep(isa, [logits, soft], [dlogits], |[logit, soft], [e]| {
            // A class masked out by -∞ and not asked for costs nothing.
            let product = isa.mul(soft, isa.sub(logit, top_all));
            let asked = isa.lt(zero, isa.abs(soft));
            weighted = isa.add(weighted, isa.select(asked, product, zero));
            [isa.mul(isa.sub(isa.mul(e, scale), soft), grad)]
        });
        *loss = reduce::sum(isa, soft) * sum.ln() - isa.reduce_add(weighted);
    }
}

/// `e[c] = exp(logits[c] − top)`.
#[inline(always)]
fn exponentials<I: Isa>(isa: I, logits: &[f32], top: f32, e: &mut [f32]) {
    let top = isa.splat(top);
    sweep(isa, [logits], [e], |[x], _| [math::exp(isa, isa.sub(x, top))]);
}

/// How many classes of a row beat its label: a greater logit, an equal one of lower index, or NaN; all of them where
/// the label is no class.
///
/// Shapes: `logits [rows, classes]`, `labels`, `ranks [rows]`.
pub(super) fn ranks(logits: &[f32], labels: &[u32], classes: usize, ranks: &mut [u32]) {
    assert_eq!((logits.len(), labels.len()), (ranks.len() * classes, ranks.len()));
    let step = rows_per_task(ranks.len(), classes);
    let rows = logits.par_chunks(step * classes).zip(labels.par_chunks(step));
    ranks.par_chunks_mut(step).zip(rows).for_each(|(ranks, (logits, labels))| {
        for ((rank, logits), &label) in ranks.iter_mut().zip(logits.chunks_exact(classes)).zip(labels) {
            let label = label as usize;
            *rank = logits.get(label).map_or(classes, |&mine| {
                let behind = |c: usize, other: f32| other < mine || (other == mine && c >= label);
                logits.iter().enumerate().filter(|&(c, &other)| c != label && !behind(c, other)).count()
            }) as u32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma, uniform};

    /// Loss and gradient of one row in f64, with the greatest |logit − top|.
    fn exact(logits: &[f32], target: impl Fn(usize) -> f64, grad_scale: f64) -> (f64, Vec<f64>, f64) {
        let z: Vec<f64> = logits.iter().map(|x| f64::from(*x)).collect();
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let lse = top + z.iter().map(|z| (z - top).exp()).sum::<f64>().ln();
        let loss = (0..z.len()).map(|c| target(c) * (lse - z[c])).sum();
        let gradient = (0..z.len()).map(|c| ((z[c] - lse).exp() - target(c)) * grad_scale).collect();
        (loss, gradient, z.iter().fold(0.0, |m: f64, z| m.max(top - z)))
    }

    #[test]
    fn loss_and_gradient_meet_the_definition_at_every_level() {
        for level in Level::available() {
            for (rows, classes) in [(0, 4), (1, 1), (3, 10), (2, 15), (2, 17), (5, 100), (40, 1000)] {
                let logits: Vec<f32> = uniform(1, rows * classes).iter().map(|x| x * 30.0).collect();
                let labels: Vec<u32> = (0..rows).map(|r| (r * 7 % classes) as u32).collect();
                let soft: Vec<f32> =
                    uniform(2, rows * classes).iter().map(|x| x.abs() / classes as f32).collect();
                for smoothing in [None, Some(0.0), Some(0.1)] {
                    let (mut loss, mut grad) = (vec![f32::NAN; rows], vec![f32::NAN; logits.len()]);
                    let scale = 0.25;
                    with_level(level, || match smoothing {
                        None => forward_soft(&logits, &soft, scale, classes, &mut loss, &mut grad),
                        Some(s) => forward_labels(&logits, &labels, s, scale, classes, &mut loss, &mut grad),
                    });
                    for r in 0..rows {
                        let at = r * classes..(r + 1) * classes;
                        let target = |c: usize| match smoothing {
                            None => f64::from(soft[at.start + c]),
                            Some(s) => {
                                let hit = if c == labels[r] as usize { 1.0 - f64::from(s) } else { 0.0 };
                                hit + f64::from(s) / classes as f64
                            }
                        };
                        let (wanted, gradient, spread) = exact(&logits[at.clone()], target, f64::from(scale));
                        let error = gamma(classes + 8) * (1.0 + spread) * 4.0;
                        let what = format!("{rows}x{classes} at {level:?}, smoothing {smoothing:?}");
                        assert_within(&loss[r..=r], &[wanted], &[error], &what);
                        assert_within(&grad[at], &gradient, &vec![error * f64::from(scale); classes], &what);
                    }
                }
            }
        }
    }

    #[test]
    fn a_label_that_is_no_class_gives_nan_and_the_last_rank() {
        let (mut loss, mut grad, mut rank) = ([0.0], [0.0; 3], [0]);
        forward_labels(&[1.0, 2.0, 3.0], &[3], 0.0, 1.0, 3, &mut loss, &mut grad);
        ranks(&[1.0, 2.0, 3.0], &[3], 3, &mut rank);
        assert!(loss[0].is_nan());
        assert_eq!(rank, [3]);
    }

    #[test]
    fn a_class_masked_out_costs_nothing() {
        let (mut loss, mut grad) = ([0.0], [0.0; 3]);
        let logits = [0.0, f32::NEG_INFINITY, 0.0];
        forward_soft(&logits, &[1.0, 0.0, 0.0], 1.0, 3, &mut loss, &mut grad);
        assert_eq!((loss, grad), ([std::f32::consts::LN_2], [-0.5, 0.0, 0.5]));
        forward_labels(&logits, &[2], 0.0, 1.0, 3, &mut loss, &mut grad);
        assert_eq!((loss, grad), ([std::f32::consts::LN_2], [0.5, 0.0, -0.5]));
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        let logits = [1.0, 3.0, 3.0, 2.0, 3.0];
        for (label, wanted) in [(0, 4), (1, 0), (2, 1), (3, 3), (4, 2)] {
            let mut rank = [9];
            ranks(&logits, &[label], 5, &mut rank);
            assert_eq!(rank, [wanted], "label {label}");
        }
        let mut rank = [9];
        ranks(&[f32::NAN, 1.0], &[1], 2, &mut rank);
        assert_eq!(rank, [1], "NaN beats every label");
    }
}
