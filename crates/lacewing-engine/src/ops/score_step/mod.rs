//! Training the scores of places: Adam on what [`score_blocks`](super::score_blocks) gathers and on a penalty.

mod cpu;
pub(crate) mod cuda;

use crate::{DType, EngineError, Result, Tensor};

const OP: &str = "score_step";

/// Constants of one step of Adam on scores.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreStep {
    /// Learning rate.
    pub lr: f32,
    /// Steps taken with this one, from 1: for the correction of the moments' bias.
    pub steps: u64,
    /// p: what the derivative of σ counts.
    pub penalty: f32,
    /// s: what is taken from a score before its σ.
    pub shift: f32,
}

/// Decay of the first moment.
const BETA1: f64 = 0.9;
/// Decay of the second moment.
const BETA2: f64 = 0.999;
/// Added to the root of the second moment.
const EPS: f32 = 1e-8;

/// A step as kernels take it.
#[derive(Clone, Copy, Debug)]
struct Constants {
    /// lr / (1 − β₁ᵗ).
    rate: f32,
    /// √(1 − β₂ᵗ).
    root: f32,
    penalty: f32,
    shift: f32,
}

/// One step of Adam (Kingma & Ba 2015) on scores S whose loss has the gradient `g = −movement + p σ'(S − s)`:
/// `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`, `S ← S − lr (m / (1 − β₁ᵗ)) / (√(v / (1 − β₂ᵗ)) + ε)`, with β₁ = 0.9,
/// β₂ = 0.999, ε = 1e-8. `movement` is zero afterwards.
///
/// Shapes: all f32 and alike; `movement` is what [`score_blocks`](super::score_blocks) makes of zeros: −Σ g w of each place.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit;
/// [`EngineError::Value`] when `steps` is 0.
pub fn score_step(
    scores: &Tensor,
    movement: &Tensor,
    [first, second]: [&Tensor; 2],
    step: ScoreStep,
) -> Result<()> {
    scores.expect_dtype(OP, "scores", DType::F32)?;
    for (operand, other) in [("movement", movement), ("first moment", first), ("second moment", second)] {
        other.expect_shape(OP, operand, scores.shape())?;
        other.expect_dtype(OP, operand, DType::F32)?;
        other.expect_device(OP, operand, scores)?;
    }
    if step.steps == 0 {
        let (what, expected) = ("steps", "1 or more".to_owned());
        return Err(EngineError::Value { op: OP, what, expected, got: "0".to_owned() });
    }
    // In f64: 1 − β₂ᵗ loses half its digits in f32 at the first steps.
    let left = |beta: f64| 1.0 - beta.powf(step.steps as f64);
    let constants = Constants {
        rate: (f64::from(step.lr) / left(BETA1)) as f32,
        root: left(BETA2).sqrt() as f32,
        penalty: step.penalty,
        shift: step.shift,
    };
    match scores.gpu() {
        None => cpu::step(scores, movement, [first, second], constants),
        Some(gpu) => cuda::step(gpu, scores, movement, [first, second], constants)?,
    }
    [scores, movement, first, second].into_iter().for_each(Tensor::wrote);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn scores_take_the_path_of_adam_in_f64() {
        let (n, shift, penalty, lr) = (1000, -1.5986, 0.3, 1e-2);
        for device in Device::all_for_tests() {
            let start: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
            let movement = |i: usize, t: u64| ((i * 37 + t as usize * 11) % 19) as f32 / 8.0 - 1.0;
            let tensor = |values: &[f32]| Tensor::from_f32(&device, values, &[n]).unwrap();
            let zeros = || tensor(&vec![0.0; n]);
            let (scores, gathered, m, v) = (tensor(&start), zeros(), zeros(), zeros());
            let mut wanted: Vec<[f64; 3]> = start.iter().map(|&s| [f64::from(s), 0.0, 0.0]).collect();
            for t in 1..=3u64 {
                gathered.set_f32(&(0..n).map(|i| movement(i, t)).collect::<Vec<_>>()).unwrap();
                let step =
                    ScoreStep { lr: lr as f32, steps: t, penalty: penalty as f32, shift: shift as f32 };
                score_step(&scores, &gathered, [&m, &v], step).unwrap();
                assert!(gathered.to_f32().unwrap().iter().all(|&g| g == 0.0));
                for (i, [s, m, v]) in wanted.iter_mut().enumerate() {
                    // The derivative of the penalty by a central difference of its definition.
                    let h = 1e-5;
                    let slope = (sigmoid(*s - shift + h) - sigmoid(*s - shift - h)) / (2.0 * h);
                    let g = penalty * slope - f64::from(movement(i, t));
                    (*m, *v) = (0.9 * *m + 0.1 * g, 0.999 * *v + 0.001 * g * g);
                    let (mean, root) =
                        (*m / (1.0 - 0.9f64.powi(t as i32)), (*v / (1.0 - 0.999f64.powi(t as i32))).sqrt());
                    *s -= lr * mean / (root + 1e-8);
                }
            }
            for (got, [wanted, ..]) in scores.to_f32().unwrap().into_iter().zip(wanted) {
                // A step is at most lr long and its error 2⁻¹⁹ of that (g errs by a few roundings of terms up to 1.5, and is no
                // smaller than 1e-3 here); the score itself is rounded once a step.
                let bound = 3.0 * (4.0 * f64::from(f32::EPSILON) + lr * 2f64.powi(-9) * 2f64.powi(-7));
                assert!((f64::from(got) - wanted).abs() <= bound, "{got} {wanted}");
            }
        }
        let (a, b) =
            (Tensor::zeros(&Device::Cpu, DType::F32, &[2]), Tensor::zeros(&Device::Cpu, DType::F32, &[3]));
        let (a, b) = (a.unwrap(), b.unwrap());
        let step = ScoreStep { lr: 0.1, steps: 1, penalty: 0.0, shift: 0.0 };
        let error = score_step(&a, &a, [&a, &b], step).unwrap_err().to_string();
        assert!(error.contains("second moment") && error.contains("[2]"), "{error}");
        assert!(score_step(&a, &a, [&a, &a], ScoreStep { steps: 0, ..step }).is_err());
    }
}
