//! Cutmix: partners exchange a random box, and their targets mix by its area.

use super::picture::ImageShape;
use super::pipeline::{BatchStep, Step, for_each_pair};
use super::random::Draws;
use super::{AugmentError, Settings, require};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Settings of `cutmix`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cutmix {
    /// The area kept is drawn from Beta(alpha, alpha); above 0.
    pub alpha: f64,
    /// Chance that a batch that was assigned to cutmix is mixed, 0 to 1.
    pub prob: f64,
    /// Share of the batches assigned to cutmix, relative to the other mixing steps; above 0.
    pub share: f64,
}

impl Default for Cutmix {
    fn default() -> Self {
        Self { alpha: 1.0, prob: 1.0, share: 1.0 }
    }
}

impl Settings for Cutmix {
    const NAME: &'static str = "cutmix";
    const ABOUT: &'static str = "exchange a box between pairs of pictures, mix their targets by area";

    fn check(&self) -> Result<(), AugmentError> {
        require(Self::NAME, "alpha", self.alpha, "above 0", self.alpha > 0.0 && self.alpha.is_finite())?;
        require(Self::NAME, "prob", self.prob, "0 to 1", (0.0..=1.0).contains(&self.prob))?;
        require(Self::NAME, "share", self.share, "above 0", self.share > 0.0 && self.share.is_finite())
    }

    fn step(self) -> Step {
        Step::Batch(Box::new(self))
    }
}

/// `floor(√(1-λ)·size)` pixels around a uniform center, clipped to the picture.
fn span(size: usize, lambda: f64, draws: &mut Draws) -> Range<usize> {
    let extent = ((1.0 - lambda).sqrt() * size as f64) as usize;
    let center = draws.below(size as u32) as usize;
    center.saturating_sub(extent / 2)..(center + extent.div_ceil(2)).min(size)
}

impl BatchStep for Cutmix {
    fn share(&self) -> f64 {
        self.share
    }

    /// Pictures `i` and `B-1-i` exchange one box, the same in the whole batch. Returns `λ = 1 - box / picture` after clipping.
    fn apply(&self, images: &mut [f32], shape: ImageShape, draws: &mut Draws) -> f64 {
        if !draws.chance(self.prob) {
            return 1.0;
        }
        let lambda = draws.beta(self.alpha);
        let (rows, columns) = (span(shape.height, lambda, draws), span(shape.width, lambda, draws));
        let area = rows.len() * columns.len();
        for_each_pair(images, shape, |a, b| {
            for (a, b) in a.chunks_exact_mut(shape.plane()).zip(b.chunks_exact_mut(shape.plane())) {
                for y in rows.clone() {
                    let part = y * shape.width + columns.start..y * shape.width + columns.end;
                    a[part.clone()].swap_with_slice(&mut b[part]);
                }
            }
        });
        1.0 - area as f64 / shape.plane() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::random::Purpose;

    #[test]
    fn the_weight_is_the_share_of_own_pixels() {
        let shape = ImageShape::new(2, 7, 5);
        for index in 0..100 {
            let mut images: Vec<f32> = (0..4).flat_map(|i| vec![i as f32; shape.len()]).collect();
            let mut draws = Draws::new(Purpose::Batch, 0, 0, index);
            let lambda = Cutmix::default().apply(&mut images, shape, &mut draws);
            for (i, picture) in images.chunks(shape.len()).enumerate() {
                let own = picture.iter().filter(|&&v| v == i as f32).count();
                let partner = picture.iter().filter(|&&v| v == (3 - i) as f32).count();
                assert_eq!(own + partner, shape.len());
                assert_eq!(own, (lambda * shape.plane() as f64).round() as usize * shape.channels);
            }
        }
    }
}
