//! Distillation on the CPU, in f64: a row of logits is nothing beside the passes that made it.

use super::Blend;
use crate::Tensor;
use rayon::prelude::*;

pub(super) fn blend(logits: &Tensor, teacher: &Tensor, loss: &Tensor, dlogits: &Tensor, blend: Blend) {
    let classes = logits.cols();
    let (z, teacher) = (logits.read(), teacher.read());
    let (mut loss, mut dlogits) = (loss.write(), dlogits.write());
    let rows = z.par_chunks(classes).zip(teacher.par_chunks(classes));
    loss.par_iter_mut().zip(dlogits.par_chunks_mut(classes)).zip(rows).for_each(
        |((loss, dlogits), (z, teacher))| {
            let (p, q) = (log_softmax(z, blend.inverse), log_softmax(teacher, blend.inverse));
            let mut divergence = 0.0;
            for (d, (p, q)) in dlogits.iter_mut().zip(p.into_iter().zip(q)) {
                // A class that the teacher rules out costs nothing.
                if q.exp() > 0.0 {
                    divergence += q.exp() * (q - p);
                }
                let soft = f64::from(blend.soft_gradient) * (p.exp() - q.exp());
                *d = (f64::from(blend.hard) * f64::from(*d) + soft) as f32;
            }
            *loss =
                (f64::from(blend.hard) * f64::from(*loss) + f64::from(blend.soft_loss) * divergence) as f32;
        },
    );
}

/// `log softmax(z · inverse)`.
fn log_softmax(z: &[f32], inverse: f32) -> Vec<f64> {
    let top = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scaled = |z: f32| f64::from(inverse) * (f64::from(z) - f64::from(top));
    let lse = z.iter().map(|&z| scaled(z).exp()).sum::<f64>().ln();
    z.iter().map(|&z| scaled(z) - lse).collect()
}
