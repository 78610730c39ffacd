//! Mixup: every picture becomes a convex combination with its partner, and so does its target.

use super::picture::ImageShape;
use super::pipeline::{BatchStep, Step, for_each_pair};
use super::random::Draws;
use super::{AugmentError, Settings, require};
use serde::{Deserialize, Serialize};

/// Settings of `mixup`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mixup {
    /// The weight of a picture is drawn from Beta(alpha, alpha); above 0.
    pub alpha: f64,
    /// Chance that a batch that was assigned to mixup is mixed, 0 to 1.
    pub prob: f64,
    /// Share of the batches assigned to mixup, relative to the other mixing steps; above 0.
    pub share: f64,
}

impl Default for Mixup {
    fn default() -> Self {
        Self { alpha: 0.8, prob: 1.0, share: 1.0 }
    }
}

impl Settings for Mixup {
    const NAME: &'static str = "mixup";
    const ABOUT: &'static str = "blend pairs of pictures and their targets";

    fn check(&self) -> Result<(), AugmentError> {
        require(Self::NAME, "alpha", self.alpha, "above 0", self.alpha > 0.0 && self.alpha.is_finite())?;
        require(Self::NAME, "prob", self.prob, "0 to 1", (0.0..=1.0).contains(&self.prob))?;
        require(Self::NAME, "share", self.share, "above 0", self.share > 0.0 && self.share.is_finite())
    }

    fn step(self) -> Step {
        Step::Batch(Box::new(self))
    }
}

impl BatchStep for Mixup {
    fn share(&self) -> f64 {
        self.share
    }

    /// `x_i ← λ·x_i + (1-λ)·x_j` with `j = B-1-i` and one `λ ~ Beta(alpha, alpha)` a batch. Returns λ.
    fn apply(&self, images: &mut [f32], shape: ImageShape, draws: &mut Draws) -> f64 {
        if !draws.chance(self.prob) {
            return 1.0;
        }
        let lambda = draws.beta(self.alpha);
        let (own, other) = (lambda as f32, (1.0 - lambda) as f32);
        for_each_pair(images, shape, |a, b| {
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (own * *a + other * *b, own * *b + other * *a);
            }
        });
        lambda
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::random::Purpose;

    #[test]
    fn pairs_are_blended_with_the_returned_weight() {
        let shape = ImageShape::new(1, 1, 2);
        let before = [1.0, 2.0, 10.0, 20.0, 100.0, 200.0];
        let mut images = before;
        let lambda =
            Mixup::default().apply(&mut images, shape, &mut Draws::new(Purpose::Batch, 1, 0, 0)) as f32;
        assert!(0.0 < lambda && lambda < 1.0);
        for i in 0..6 {
            let partner = before[(2 - i / 2) * 2 + i % 2];
            let expected = if i / 2 == 1 { before[i] } else { lambda * before[i] + (1.0 - lambda) * partner };
            assert!((images[i] - expected).abs() <= 3.0 * f32::EPSILON * (before[i] + partner));
        }
    }
}
