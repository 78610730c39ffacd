//! Softmax cross-entropy: loss and its gradient in one pass over the logits; ranks for top-k accuracy.

mod cpu;
pub(crate) mod cuda;

use crate::{DType, EngineError, Result, Tensor};

/// What the logits should have been.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// One class a row.
    Classes {
        /// `[rows]`, u32, each less than the number of classes.
        labels: &'a Tensor,
        /// Label smoothing ε: the target is `(1 − ε) onehot + ε / classes`.
        smoothing: f32,
    },
    /// A distribution a row, `[rows, classes]` f32: what mixup and cutmix make.
    Soft(&'a Tensor),
}

impl Target<'_> {
    /// Whether it fits `logits`, `[rows, classes]`.
    pub(super) fn check(self, op: &'static str, logits: &Tensor, rows: usize, classes: usize) -> Result<()> {
        match self {
            Target::Classes { labels, .. } => {
                labels.expect_shape(op, "labels", &[rows])?;
                labels.expect_dtype(op, "labels", DType::U32)?;
                labels.expect_device(op, "labels", logits)
            }
            Target::Soft(soft) => {
                soft.expect_shape(op, "soft targets", &[rows, classes])?;
                soft.expect_dtype(op, "soft targets", DType::F32)?;
                soft.expect_device(op, "soft targets", logits)
            }
        }
    }
}

/// `loss[r] = −Σ_c t[r,c] log softmax(logits[r])[c]` and `dlogits = (softmax − t) · grad_scale`.
///
/// Shapes: `logits [rows, classes]` → loss `[rows]` f32, dlogits as the logits. The gradient is that of
/// `grad_scale · Σ loss`: pass `1 / rows` for the mean. Labels out of range give a NaN loss rather than a wrong one.
///
/// # Errors
///
/// [`EngineError::Shape`] or [`EngineError::DType`] naming the operand that does not fit.
pub fn softmax_cross_entropy(
    logits: &Tensor,
    target: Target<'_>,
    grad_scale: f32,
) -> Result<(Tensor, Tensor)> {
    let (rows, classes) = check(OP, logits)?;
    target.check(OP, logits, rows, classes)?;
    let loss = logits.beside(DType::F32, &[rows])?;
    let dlogits = logits.like(logits.shape())?;
    match (logits.gpu(), target) {
        (None, Target::Classes { labels, smoothing }) => cpu::forward_labels(
            &logits.read(),
            &labels.read_u32(),
            smoothing,
            grad_scale,
            classes,
            &mut loss.write(),
            &mut dlogits.write(),
        ),
        (None, Target::Soft(soft)) => cpu::forward_soft(
            &logits.read(),
            &soft.read(),
            grad_scale,
            classes,
            &mut loss.write(),
            &mut dlogits.write(),
        ),
        (Some(gpu), Target::Classes { labels, smoothing }) => {
            cuda::forward_labels(gpu, logits, labels, smoothing, grad_scale, &loss, &dlogits)?;
        }
        (Some(gpu), Target::Soft(soft)) => {
            cuda::forward_soft(gpu, logits, soft, grad_scale, &loss, &dlogits)?
        }
    }
    Ok((loss, dlogits))
}

/// How many logits of a row beat that of its label: 0 is top-1, less than 5 is top-5.
///
/// Ties: the lower class index wins, on every device.
///
/// # Errors
///
/// [`EngineError::Shape`] or [`EngineError::DType`] naming the operand that does not fit.
pub fn ranks(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let (rows, classes) = check("ranks", logits)?;
    labels.expect_shape("ranks", "labels", &[rows])?;
    labels.expect_dtype("ranks", "labels", DType::U32)?;
    labels.expect_device("ranks", "labels", logits)?;
    let ranks = logits.beside(DType::U32, &[rows])?;
    match logits.gpu() {
        None => cpu::ranks(&logits.read(), &labels.read_u32(), classes, &mut ranks.write_u32()),
        Some(gpu) => cuda::ranks(gpu, logits, labels, &ranks)?,
    }
    Ok(ranks)
}

const OP: &str = "softmax_cross_entropy";

/// Rows and classes of the logits of a loss.
pub(super) fn check(op: &'static str, logits: &Tensor) -> Result<(usize, usize)> {
    super::matmul::expect_float(op, "logits", logits)?;
    match *logits.shape() {
        [rows, classes] if classes > 0 => Ok((rows, classes)),
        _ => {
            let expected = "[rows, classes] with classes > 0".into();
            Err(EngineError::Shape { op, operand: "logits", expected, got: logits.shape().to_vec() })
        }
    }
}
