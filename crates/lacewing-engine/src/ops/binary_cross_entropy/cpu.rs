//! Binary cross-entropy on the CPU: two sweeps over a row, of which the second finds it in the first cache.

use super::Values;
use lacewing_cpu::map::sweep;
use lacewing_cpu::parallel::rows_per_task;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use lacewing_cpu::{math, reduce};
use rayon::prelude::*;

/// Loss and gradient for one class a row, whose target is `values.on` there and `values.off` elsewhere. A label that is
/// no class gives a NaN loss.
///
/// Shapes: `logits`, `dlogits [rows, classes]`, `labels`, `loss [rows]`.
pub(super) fn forward_labels(
    logits: &[f32],
    labels: &[u32],
    values: Values,
    grad_scale: f32,
    classes: usize,
    loss: &mut [f32],
    dlogits: &mut [f32],
) {
    assert_eq!(labels.len(), loss.len());
    each_row(logits, classes, loss, dlogits, |target, r, logits, loss, dlogits| {
        target.fill(values.off);
        let label = labels[r] as usize;
        if let Some(t) = target.get_mut(label) {
            *t = values.on;
        }
        dispatch(Row { logits, target, threshold: None, grad_scale, loss, dlogits });
        if label >= classes {
            *loss = f32::NAN;
        }
    });
}

/// Loss and gradient for a target a logit, compared with the threshold where there is one.
///
/// Shapes: `logits`, `soft`, `dlogits [rows, classes]`, `loss [rows]`.
pub(super) fn forward_soft(
    logits: &[f32],
    soft: &[f32],
    threshold: Option<f32>,
    grad_scale: f32,
    classes: usize,
    loss: &mut [f32],
    dlogits: &mut [f32],
) {
    assert_eq!(soft.len(), logits.len());
    each_row(logits, classes, loss, dlogits, |_, r, logits, loss, dlogits| {
        let target = &soft[r * classes..][..classes];
        dispatch(Row { logits, target, threshold, grad_scale, loss, dlogits });
    });
}

/// Calls `row(spare, r, logits, loss, dlogits)` for every row; `spare` is room for the targets of one.
fn each_row(
    logits: &[f32],
    classes: usize,
    loss: &mut [f32],
    dlogits: &mut [f32],
    row: impl Fn(&mut [f32], usize, &[f32], &mut f32, &mut [f32]) + Sync,
) {
    let rows = loss.len();
    assert_eq!((logits.len(), dlogits.len()), (rows * classes, rows * classes));
    let step = rows_per_task(rows, classes);
    let elements = logits.par_chunks(step * classes).zip(dlogits.par_chunks_mut(step * classes));
    loss.par_chunks_mut(step).zip(elements).enumerate().for_each(|(task, (loss, (logits, dlogits)))| {
        let mut spare = vec![0.0; classes];
        let rows = logits.chunks_exact(classes).zip(dlogits.chunks_exact_mut(classes));
        for (r, (loss, (logits, dlogits))) in loss.iter_mut().zip(rows).enumerate() {
            row(&mut spare, task * step + r, logits, loss, dlogits);
        }
    });
}

struct Row<'a> {
    logits: &'a [f32],
    target: &'a [f32],
    threshold: Option<f32>,
    grad_scale: f32,
    loss: &'a mut f32,
    dlogits: &'a mut [f32],
}

impl Vectorize for Row<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { logits, target, threshold, grad_scale, loss, dlogits } = self;
        let (zero, one) = (isa.splat(0.0), isa.splat(1.0));
        let against = |t| match threshold {
            Some(threshold) => isa.select(isa.lt(isa.splat(threshold), t), one, zero),
            None => t,
        };
        // ln(1 + eˣ) − t x = ln(1 + e^{-|x|}) + x ([x > 0] − t), whose terms do not cancel.
        sweep(isa, [logits, target], [&mut *dlogits], |[x, t], _| {
            let step = isa.select(isa.lt(zero, x), one, zero);
            [isa.mul_add(x, isa.sub(step, against(t)), math::softplus_excess(isa, x))]
        });
        *loss = reduce::sum(isa, dlogits) / logits.len() as f32;
        let scale = isa.splat(grad_scale / logits.len() as f32);
        sweep(isa, [logits, target], [dlogits], |[x, t], _| {
            [isa.mul(isa.sub(math::sigmoid(isa, x), against(t)), scale)]
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma, uniform};

    /// Loss and gradient of one row in f64 by the definition, and Σ |x| + 1 for the bound.
    fn exact(logits: &[f32], target: impl Fn(usize) -> f64, grad_scale: f64) -> (f64, Vec<f64>, f64) {
        let (mut loss, mut gradient, mut size) = (0.0, Vec::new(), 0.0);
        let n = logits.len() as f64;
        for (c, &x) in logits.iter().enumerate() {
            let (x, t) = (f64::from(x), target(c));
            // −ln σ(x) = ln(1 + e^{-x}), in f64 exact enough at these sizes whatever the sign.
            loss += (t * (-x).exp().ln_1p() + (1.0 - t) * x.exp().ln_1p()) / n;
            gradient.push((1.0 / (1.0 + (-x).exp()) - t) * grad_scale / n);
            size += (x.abs() + 1.0) / n;
        }
        (loss, gradient, size)
    }

    #[test]
    fn loss_and_gradient_meet_the_definition_at_every_level() {
        for level in Level::available() {
            for (rows, classes) in [(0, 4), (1, 1), (3, 10), (2, 15), (2, 17), (5, 100), (40, 1000)] {
                let logits: Vec<f32> = uniform(1, rows * classes).iter().map(|x| x * 30.0).collect();
                let labels: Vec<u32> = (0..rows).map(|r| (r * 7 % classes) as u32).collect();
                let soft: Vec<f32> = uniform(2, rows * classes).iter().map(|x| x.abs()).collect();
                for (smoothing, threshold) in [
                    (None, None),
                    (None, Some(0.5)),
                    (Some(0.0), None),
                    (Some(0.1), None),
                    (Some(0.1), Some(0.2)),
                ] {
                    let (mut loss, mut grad) = (vec![f32::NAN; rows], vec![f32::NAN; logits.len()]);
                    let scale = 0.25;
                    with_level(level, || match smoothing {
                        None => forward_soft(&logits, &soft, threshold, scale, classes, &mut loss, &mut grad),
                        Some(s) => {
                            let values = Values::new(s, threshold, classes);
                            forward_labels(&logits, &labels, values, scale, classes, &mut loss, &mut grad);
                        }
                    });
                    for r in 0..rows {
                        let at = r * classes..(r + 1) * classes;
                        let target = |c: usize| {
                            let t = smoothing.map_or(f64::from(soft[at.start + c]), |s| {
                                let hit = if c == labels[r] as usize { 1.0 - f64::from(s) } else { 0.0 };
                                hit + f64::from(s) / classes as f64
                            });
                            threshold.map_or(t, |threshold| f64::from(u8::from(t > f64::from(threshold))))
                        };
                        let (wanted, gradient, size) = exact(&logits[at.clone()], target, f64::from(scale));
                        let what = format!("{rows}x{classes} at {level:?}, {smoothing:?}, {threshold:?}");
                        assert_within(&loss[r..=r], &[wanted], &[gamma(classes + 8) * size], &what);
                        // A sigmoid of 4 ulp, a target of 3 roundings, their difference and its scale.
                        let error = gamma(12) * f64::from(scale) / classes as f64;
                        assert_within(&grad[at], &gradient, &vec![error; classes], &what);
                    }
                }
            }
        }
    }

    #[test]
    fn a_confident_and_right_model_keeps_a_loss_above_zero() {
        let (mut loss, mut grad) = ([0.0], [0.0; 2]);
        forward_soft(&[30.0, -30.0], &[1.0, 0.0], None, 1.0, 2, &mut loss, &mut grad);
        let wanted = (-30f64).exp();
        assert_within(&loss, &[wanted], &[gamma(16) * wanted], "two answers of 30 to 1 in e");
    }

    #[test]
    fn a_label_that_is_no_class_and_a_logit_that_is_no_number_give_nan() {
        let (mut loss, mut grad) = ([0.0], [0.0; 3]);
        let values = Values::new(0.0, None, 3);
        forward_labels(&[1.0, 2.0, 3.0], &[3], values, 1.0, 3, &mut loss, &mut grad);
        assert!(loss[0].is_nan());
        forward_labels(&[1.0, f32::NAN, 3.0], &[0], values, 1.0, 3, &mut loss, &mut grad);
        assert!(loss[0].is_nan() && grad[1].is_nan());
    }
}
