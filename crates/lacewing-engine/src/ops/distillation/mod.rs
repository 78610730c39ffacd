//! Distillation: a part of the loss and of its gradient is the distance from a teacher's softened distribution.

mod cpu;
pub(crate) mod cuda;

use super::softmax_cross_entropy::check;
use crate::{DType, EngineError, Result, Tensor};

const OP: &str = "distillation";

/// How much a teacher counts, and how soft its distribution is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// α: the teacher's share of the loss, 0 to 1.
    pub alpha: f32,
    /// T: what logits are divided by, above 0.
    pub temperature: f32,
}

/// Blends a loss with the distance from a teacher (Hinton et al. 2015), with `p = softmax(logits / T)` and
/// `q = softmax(teacher / T)`: `loss[r] ← (1 − α) loss[r] + α T² KL(q ‖ p)` and
/// `dlogits ← (1 − α) dlogits + α T (p − q) · grad_scale`, the gradient of `grad_scale · Σ loss` as for the loss blended with.
///
/// Shapes: `logits`, `teacher`, `dlogits [rows, classes]` of one float type; `loss [rows]` f32. Both of `loss` and `dlogits` are
/// overwritten; the teacher gets no gradient.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit;
/// [`EngineError::Value`] for a share or a temperature out of range.
pub fn distillation(
    logits: &Tensor,
    teacher: &Tensor,
    (loss, dlogits): (&Tensor, &Tensor),
    Distillation { alpha, temperature }: Distillation,
    grad_scale: f32,
) -> Result<()> {
    let (rows, classes) = check(OP, logits)?;
    for (operand, tensor) in [("teacher", teacher), ("dlogits", dlogits)] {
        tensor.expect_shape(OP, operand, &[rows, classes])?;
        tensor.expect_dtype(OP, operand, logits.dtype())?;
        tensor.expect_device(OP, operand, logits)?;
    }
    loss.expect_shape(OP, "loss", &[rows])?;
    loss.expect_dtype(OP, "loss", DType::F32)?;
    loss.expect_device(OP, "loss", logits)?;
    let value = |what, expected: &str, got: f32| {
        Err(EngineError::Value { op: OP, what, expected: expected.to_owned(), got: got.to_string() })
    };
    if !(0.0..=1.0).contains(&alpha) {
        return value("alpha", "0 to 1", alpha);
    }
    if !(temperature.is_finite() && temperature > 0.0) {
        return value("temperature", "above 0", temperature);
    }
    let blend = Blend {
        inverse: 1.0 / temperature,
        hard: 1.0 - alpha,
        soft_loss: alpha * temperature * temperature,
        soft_gradient: alpha * temperature * grad_scale,
    };
    match logits.gpu() {
        None => cpu::blend(logits, teacher, loss, dlogits, blend),
        Some(gpu) => cuda::blend(gpu, logits, teacher, loss, dlogits, blend)?,
    }
    loss.wrote();
    dlogits.wrote();
    Ok(())
}

/// The factors of a blend.
#[derive(Clone, Copy, Debug)]
struct Blend {
    /// 1 / T.
    inverse: f32,
    /// 1 − α.
    hard: f32,
    /// α T².
    soft_loss: f32,
    /// α T · grad_scale.
    soft_gradient: f32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::ops::{Target, softmax_cross_entropy};
    use lacewing_testkit::uniform;

    fn log_softmax(z: &[f64], t: f64) -> Vec<f64> {
        let top = z.iter().copied().fold(f64::NEG_INFINITY, f64::max) / t;
        let lse = top + z.iter().map(|z| (z / t - top).exp()).sum::<f64>().ln();
        z.iter().map(|z| z / t - lse).collect()
    }

    /// The blended loss of a row by its definition.
    fn exact(z: &[f64], teacher: &[f64], label: usize, alpha: f64, t: f64) -> f64 {
        let (p, q) = (log_softmax(z, t), log_softmax(teacher, t));
        let kl: f64 = q.iter().zip(&p).map(|(q, p)| q.exp() * (q - p)).sum();
        -(1.0 - alpha) * log_softmax(z, 1.0)[label] + alpha * t * t * kl
    }

    #[test]
    fn loss_and_gradient_meet_the_definition() {
        let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>();
        for device in Device::all_for_tests() {
            for (rows, classes, alpha, temperature) in [
                (0, 3, 0.5, 2.0),
                (1, 1, 0.5, 2.0),
                (3, 10, 0.5, 2.0),
                (4, 33, 0.0, 3.0),
                (2, 1000, 1.0, 4.0),
                (5, 7, 0.25, 0.5),
            ] {
                let draw = |seed| uniform(seed, rows * classes).iter().map(|x| x * 5.0).collect::<Vec<f32>>();
                let (z, teacher) = (draw(1), draw(2));
                let labels: Vec<u32> = (0..rows).map(|r| (r * 7 % classes) as u32).collect();
                let shape = [rows, classes];
                let tensor = |values: &[f32]| Tensor::from_f32(&device, values, &shape).unwrap();
                let (logits, of_teacher) = (tensor(&z), tensor(&teacher));
                let labelled = Tensor::from_u32(&device, &labels, &[rows]).unwrap();
                let target = Target::Classes { labels: &labelled, smoothing: 0.0 };
                let scale = 0.25;
                let (loss, dlogits) = softmax_cross_entropy(&logits, target, scale).unwrap();
                let blend = Distillation { alpha, temperature };
                distillation(&logits, &of_teacher, (&loss, &dlogits), blend, scale).unwrap();
                let (loss, dlogits) = (loss.to_f32().unwrap(), dlogits.to_f32().unwrap());
                let (alpha, t) = (f64::from(alpha), f64::from(temperature));
                for r in 0..rows {
                    let at = r * classes..(r + 1) * classes;
                    let (z, teacher) = (wide(&z[at.clone()]), wide(&teacher[at.clone()]));
                    let label = labels[r] as usize;
                    let wanted = exact(&z, &teacher, label, alpha, t);
                    // Logarithms up to 10 / T + ln C and their weights up to T², in sums of C roundings at most.
                    let unit = lacewing_testkit::gamma(classes + 16);
                    let error = unit * (1.0 + t * t) * (10.0 / t.min(1.0) + (classes as f64).ln()) * 2.0;
                    assert!((f64::from(loss[r]) - wanted).abs() <= error, "{} {wanted}", loss[r]);
                    for c in 0..classes {
                        // A central difference of the definition; its own error is h² times the third derivative, below 2 / T.
                        let h = 1e-4;
                        let moved = |by: f64| {
                            let mut z = z.clone();
                            z[c] += by;
                            exact(&z, &teacher, label, alpha, t)
                        };
                        let slope = 0.25 * (moved(h) - moved(-h)) / (2.0 * h);
                        let got = f64::from(dlogits[at.start + c]);
                        let bound = unit * (1.0 + t) * 8.0 + h * h * (1.0 + 2.0 / t);
                        assert!((got - slope).abs() <= bound, "[{r}, {c}]: {got} {slope}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_teacher_who_agrees_adds_nothing_and_misfits_are_named() {
        let tensor = |values: &[f32], shape: &[usize]| Tensor::from_f32(&Device::Cpu, values, shape).unwrap();
        // Logits that differ by a constant are one distribution.
        let (z, teacher) = (tensor(&[0.0, 1.0, -2.0], &[1, 3]), tensor(&[4.0, 5.0, 2.0], &[1, 3]));
        let (loss, dlogits) = (tensor(&[8.0], &[1]), tensor(&[1.0, 2.0, -3.0], &[1, 3]));
        let blend = Distillation { alpha: 0.5, temperature: 2.0 };
        distillation(&z, &teacher, (&loss, &dlogits), blend, 1.0).unwrap();
        assert!((loss.to_f32().unwrap()[0] - 4.0).abs() < 1e-5);
        for (got, wanted) in dlogits.to_f32().unwrap().into_iter().zip([0.5, 1.0, -1.5]) {
            assert!((got - wanted).abs() < 1e-5f32, "{got} {wanted}");
        }
        let wrong = |teacher: &Tensor, blend| {
            distillation(&z, teacher, (&loss, &dlogits), blend, 1.0).unwrap_err().to_string()
        };
        let error = wrong(&tensor(&[0.0; 4], &[1, 4]), blend);
        assert!(error.contains("teacher") && error.contains("[1, 4]"), "{error}");
        assert!(wrong(&teacher, Distillation { alpha: 1.5, ..blend }).contains("alpha"));
        assert!(wrong(&teacher, Distillation { temperature: 0.0, ..blend }).contains("temperature"));
    }
}
