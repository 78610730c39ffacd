//! Resize and center crop: the deterministic way to one size, for evaluation.

use super::pipeline::{Canvas, SampleStep, Step};
use super::random::Draws;
use super::resize::{Filter, Region, resize};
use super::{AugmentError, MAX_SIDE, Settings, require};
use serde::{Deserialize, Serialize};

/// Settings of `resize_center_crop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResizeCenterCrop {
    /// Side of the output in pixels, 1 to 4096.
    pub size: u32,
    /// Share of the shorter side that is kept, above 0, at most 1.
    #[serde(default = "default_crop_ratio")]
    pub crop_ratio: f64,
    /// The interpolation.
    #[serde(default)]
    pub filter: Filter,
}

fn default_crop_ratio() -> f64 {
    0.875
}

impl ResizeCenterCrop {
    /// To `size` pixels with the default share and filter.
    pub fn new(size: u32) -> Self {
        Self { size, crop_ratio: default_crop_ratio(), filter: Filter::default() }
    }
}

impl Settings for ResizeCenterCrop {
    const NAME: &'static str = "resize_center_crop";
    const ABOUT: &'static str = "evaluation: resample the central square";

    fn check(&self) -> Result<(), AugmentError> {
        require(Self::NAME, "size", f64::from(self.size), "1 to 4096", (1..=MAX_SIDE).contains(&self.size))?;
        let ratio = self.crop_ratio;
        require(Self::NAME, "crop_ratio", ratio, "above 0, at most 1", ratio > 0.0 && ratio <= 1.0)
    }

    fn step(self) -> Step {
        Step::Eval(Box::new(self))
    }
}

impl SampleStep for ResizeCenterCrop {
    /// Cuts the central square of side `crop_ratio · min(height, width)` and resamples it to `size`: a resize of the shorter
    /// side to `size / crop_ratio` and a center crop, in one resampling.
    fn apply(&self, canvas: &mut Canvas, _: &mut Draws) {
        let (height, width) = (canvas.picture.shape.height as f64, canvas.picture.shape.width as f64);
        let side = (height.min(width) * self.crop_ratio).max(1.0);
        let region =
            Region { top: (height - side) / 2.0, left: (width - side) / 2.0, height: side, width: side };
        canvas.replace_with_resizer(|resizer, from, to| {
            resize(resizer, from, region, self.size as usize, self.filter, to);
        });
    }

    fn side(&self) -> Option<usize> {
        Some(self.size as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::picture::ImageShape;
    use crate::augment::random::Purpose;

    #[test]
    fn the_center_is_kept() {
        let mut canvas = Canvas::new();
        let pixels: Vec<u8> = (0..48).map(|i| if (2..6).contains(&(i % 8)) { 200 } else { 0 }).collect();
        canvas.picture.copy_from(ImageShape::new(1, 6, 8), &pixels);
        let step = ResizeCenterCrop { size: 4, crop_ratio: 4.0 / 6.0, filter: Filter::Bilinear };
        step.apply(&mut canvas, &mut Draws::new(Purpose::Sample, 0, 0, 0));
        assert_eq!(canvas.picture.shape, ImageShape::new(1, 4, 4));
        assert!(canvas.picture.pixels.iter().all(|&v| v == 200), "{:?}", canvas.picture.pixels);
    }
}
