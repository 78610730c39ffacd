//! Losses: what training makes small. One row each; the work is an op of the engine.

use lacewing_engine::ops::{Target, binary_cross_entropy, softmax_cross_entropy};
use lacewing_engine::{EngineError, Tensor};

/// Every loss, in the order they are listed.
pub const LOSSES: &[Loss] = &[
    Loss {
        name: "cross_entropy",
        about: "classes exclude each other: softmax, summed over classes, mean over pictures",
        takes_threshold: false,
        takes_teacher: true,
        of: |logits, target, _, grad_scale| softmax_cross_entropy(logits, target, grad_scale),
    },
    Loss {
        name: "binary_cross_entropy",
        about: "each class a yes or no of its own: sigmoid, mean over classes and pictures",
        takes_threshold: true,
        takes_teacher: false,
        of: binary_cross_entropy,
    },
];

type Of = fn(&Tensor, Target<'_>, Option<f32>, f32) -> Result<(Tensor, Tensor), EngineError>;

/// A loss: a row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Loss {
    /// The name in recipes.
    pub name: &'static str,
    /// One line for lists.
    pub about: &'static str,
    /// Whether targets may be compared with a threshold.
    pub takes_threshold: bool,
    /// Whether a teacher's softmax can be a part of it.
    pub takes_teacher: bool,
    of: Of,
}

impl Loss {
    /// The loss of each picture, `[B]` f32, and its gradient with respect to `logits`, `[B, n_classes]`, times
    /// `grad_scale`. Where the loss takes a `threshold`, targets above it count as 1 and all others as 0.
    ///
    /// # Errors
    ///
    /// [`EngineError`] naming the operand that does not fit.
    pub fn of(
        &self,
        logits: &Tensor,
        target: Target<'_>,
        threshold: Option<f32>,
        grad_scale: f32,
    ) -> Result<(Tensor, Tensor), EngineError> {
        (self.of)(logits, target, threshold, grad_scale)
    }
}

/// The loss called `name`.
pub fn find(name: &str) -> Option<Loss> {
    LOSSES.iter().find(|loss| loss.name == name).copied()
}
