//! Horizontal flip: left and right change places with a given probability.

use super::pipeline::{Canvas, SampleStep, Step};
use super::random::Draws;
use super::{AugmentError, Settings, require};
use serde::{Deserialize, Serialize};

/// Settings of `horizontal_flip`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HorizontalFlip {
    /// Chance that a picture is flipped, 0 to 1.
    pub prob: f64,
}

impl Default for HorizontalFlip {
    fn default() -> Self {
        Self { prob: 0.5 }
    }
}

impl Settings for HorizontalFlip {
    const NAME: &'static str = "horizontal_flip";
    const ABOUT: &'static str = "mirror a picture left to right";

    fn check(&self) -> Result<(), AugmentError> {
        require(Self::NAME, "prob", self.prob, "0 to 1", (0.0..=1.0).contains(&self.prob))
    }

    fn step(self) -> Step {
        Step::Train(Box::new(self))
    }
}

impl SampleStep for HorizontalFlip {
    fn apply(&self, canvas: &mut Canvas, draws: &mut Draws) {
        if draws.chance(self.prob) {
            let width = canvas.picture.shape.width;
            canvas.picture.pixels.chunks_exact_mut(width).for_each(<[u8]>::reverse);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::picture::ImageShape;
    use crate::augment::random::Purpose;

    #[test]
    fn certain_and_impossible_flips() {
        for (prob, expected) in [(1.0, [3, 2, 1, 6, 5, 4]), (0.0, [1, 2, 3, 4, 5, 6])] {
            let mut canvas = Canvas::new();
            canvas.picture.copy_from(ImageShape::new(1, 2, 3), &[1, 2, 3, 4, 5, 6]);
            HorizontalFlip { prob }.apply(&mut canvas, &mut Draws::new(Purpose::Sample, 0, 0, 0));
            assert_eq!(canvas.picture.pixels, expected);
        }
    }
}
