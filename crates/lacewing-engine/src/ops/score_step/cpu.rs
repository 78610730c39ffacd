//! Adam on scores on the CPU: scores are few beside weights, so that plain lines do.

use super::{BETA1, BETA2, Constants, EPS};
use crate::Tensor;

pub(super) fn step(scores: &Tensor, movement: &Tensor, [first, second]: [&Tensor; 2], constants: Constants) {
    let Constants { rate, root, penalty, shift } = constants;
    // Taken out, since all may lie in one array of parameters.
    let (mut s, gathered) = (scores.read().to_vec(), movement.read().to_vec());
    let (mut m, mut v) = (first.read().to_vec(), second.read().to_vec());
    let (rest1, beta2, rest2) = ((1.0 - BETA1) as f32, BETA2 as f32, (1.0 - BETA2) as f32);
    for ((s, moved), (m, v)) in s.iter_mut().zip(gathered).zip(m.iter_mut().zip(&mut v)) {
        let sigmoid = 1.0 / (1.0 + (shift - *s).exp());
        let g = penalty * (sigmoid * (1.0 - sigmoid)) - moved;
        *m = (g - *m).mul_add(rest1, *m);
        *v = (rest2 * g).mul_add(g, beta2 * *v);
        *s -= rate * (*m / (v.sqrt() / root + EPS));
    }
    for (tensor, values) in [(scores, s), (first, m), (second, v)] {
        tensor.write().copy_from_slice(&values);
    }
    movement.write().fill(0.0);
}
