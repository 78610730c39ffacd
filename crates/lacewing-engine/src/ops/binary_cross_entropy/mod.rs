//! Binary cross-entropy with logits: every class is a yes-or-no question of its own. Loss and its gradient.

mod cpu;
pub(crate) mod cuda;

use super::softmax_cross_entropy::{Target, check};
use crate::{DType, Result, Tensor};

/// `loss[r] = mean over c of ln(1 + eˣ) − t x` with `x = logits[r, c]`, `t = t[r, c]`, which is
/// `−t ln σ(x) − (1 − t) ln(1 − σ(x))`; `dlogits = (σ(x) − t) · grad_scale / classes`.
///
/// With a `threshold` a target is 1 where it exceeds it and 0 elsewhere, after smoothing.
///
/// Shapes: `logits [rows, classes]` → loss `[rows]` f32, dlogits as the logits. The gradient is that of
/// `grad_scale · Σ loss`: pass `1 / rows` for the mean over rows and classes. Labels out of range give a NaN loss rather
/// than a wrong one.
///
/// # Errors
///
/// [`EngineError::Shape`](crate::EngineError::Shape) or [`EngineError::DType`](crate::EngineError::DType) naming the
/// operand that does not fit.
pub fn binary_cross_entropy(
    logits: &Tensor,
    target: Target<'_>,
    threshold: Option<f32>,
    grad_scale: f32,
) -> Result<(Tensor, Tensor)> {
    let (rows, classes) = check(OP, logits)?;
    target.check(OP, logits, rows, classes)?;
    let loss = logits.beside(DType::F32, &[rows])?;
    let dlogits = logits.like(logits.shape())?;
    match (logits.gpu(), target) {
        (None, Target::Classes { labels, smoothing }) => {
            let values = Values::new(smoothing, threshold, classes);
            let (labels, logits) = (labels.read_u32(), logits.read());
            cpu::forward_labels(
                &logits,
                &labels,
                values,
                grad_scale,
                classes,
                &mut loss.write(),
                &mut dlogits.write(),
            );
        }
        (None, Target::Soft(soft)) => cpu::forward_soft(
            &logits.read(),
            &soft.read(),
            threshold,
            grad_scale,
            classes,
            &mut loss.write(),
            &mut dlogits.write(),
        ),
        (Some(gpu), Target::Classes { labels, smoothing }) => {
            let values = Values::new(smoothing, threshold, classes);
            cuda::forward_labels(gpu, logits, labels, values, grad_scale, &loss, &dlogits)?;
        }
        (Some(gpu), Target::Soft(soft)) => {
            cuda::forward_soft(gpu, logits, soft, threshold, grad_scale, &loss, &dlogits)?;
        }
    }
    Ok((loss, dlogits))
}

const OP: &str = "binary_cross_entropy";

/// The two values of a target that is one class.
#[derive(Clone, Copy)]
struct Values {
    /// Of the class.
    on: f32,
    /// Of the others.
    off: f32,
}

impl Values {
    /// `on = 1 − ε + ε / classes`, `off = ε / classes`, each against the threshold where there is one.
    fn new(smoothing: f32, threshold: Option<f32>, classes: usize) -> Self {
        let off = smoothing / classes as f32;
        let against = |t: f32| threshold.map_or(t, |threshold| f32::from(t > threshold));
        Self { on: against(1.0 - smoothing + off), off: against(off) }
    }
}
