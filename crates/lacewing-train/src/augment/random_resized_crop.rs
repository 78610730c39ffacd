//! Random resized crop: a random part of the picture, of random area and aspect, resampled to a square.

use super::pipeline::{Canvas, SampleStep, Step};
use super::random::Draws;
use super::resize::{RandomFilter, Region, resize};
use super::resize_center_crop::ResizeCenterCrop;
use super::{AugmentError, MAX_SIDE, Settings, require};
use serde::{Deserialize, Serialize};

/// Settings of `random_resized_crop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// Side of the output in pixels, 1 to 4096.
    pub size: u32,
    /// Least and greatest share of the picture's area, `0 < low <= high <= 1`.
    #[serde(default = "default_scale")]
    pub scale: [f64; 2],
    /// Least and greatest aspect, width over height, `0 < low <= high`.
    #[serde(default = "default_ratio")]
    pub ratio: [f64; 2],
    /// The interpolation.
    #[serde(default)]
    pub filter: RandomFilter,
}

fn default_scale() -> [f64; 2] {
    [0.08, 1.0]
}

fn default_ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

/// Draws of area and aspect before the largest centered part of a legal aspect is taken.
const ATTEMPTS: usize = 10;

impl Settings for RandomResizedCrop {
    const NAME: &'static str = "random_resized_crop";
    const ABOUT: &'static str = "crop a random area and aspect, resample to a square";

    fn check(&self) -> Result<(), AugmentError> {
        let [low, high] = self.scale;
        let [narrow, wide] = self.ratio;
        require(Self::NAME, "size", f64::from(self.size), "1 to 4096", (1..=MAX_SIDE).contains(&self.size))?;
        require(Self::NAME, "scale[0]", low, "above 0 and at most scale[1]", low > 0.0 && low <= high)?;
        require(Self::NAME, "scale[1]", high, "at most 1", high <= 1.0)?;
        require(
            Self::NAME,
            "ratio[0]",
            narrow,
            "above 0 and at most ratio[1]",
            narrow > 0.0 && narrow <= wide,
        )?;
        require(Self::NAME, "ratio[1]", wide, "at most 100", wide <= 100.0)
    }

    fn step(self) -> Step {
        Step::Train(Box::new(self))
    }
}

impl RandomResizedCrop {
    /// The part that is cut: area `A ~ U(scale)·height·width`, `ln aspect ~ U(ln ratio)`, `width = √(A·aspect)`,
    /// `height = √(A/aspect)`, rounded, at a uniform place. A part that does not fit is drawn again, at most ten times.
    fn region(&self, height: usize, width: usize, draws: &mut Draws) -> Region {
        let (h, w) = (height as f64, width as f64);
        let [narrow, wide] = self.ratio;
        for _ in 0..ATTEMPTS {
            let area = h * w * draws.uniform(self.scale[0], self.scale[1]);
            let aspect = draws.uniform(narrow.ln(), wide.ln()).exp();
            let (rows, columns) = ((area / aspect).sqrt().round(), (area * aspect).sqrt().round());
            if (1.0..=h).contains(&rows) && (1.0..=w).contains(&columns) {
                let top = draws.below((h - rows) as u32 + 1);
                let left = draws.below((w - columns) as u32 + 1);
                return Region { top: top.into(), left: left.into(), height: rows, width: columns };
            }
        }
        let aspect = (w / h).clamp(narrow, wide);
        let (rows, columns) = ((w / aspect).min(h).round().max(1.0), (h * aspect).min(w).round().max(1.0));
        Region {
            top: ((h - rows) / 2.0).floor(),
            left: ((w - columns) / 2.0).floor(),
            height: rows,
            width: columns,
        }
    }
}

impl SampleStep for RandomResizedCrop {
    fn apply(&self, canvas: &mut Canvas, draws: &mut Draws) {
        let shape = canvas.picture.shape;
        let region = self.region(shape.height, shape.width, draws);
        let filter = self.filter.draw(draws);
        canvas.replace_with_resizer(|resizer, from, to| {
            resize(resizer, from, region, self.size as usize, filter, to);
        });
    }

    fn side(&self) -> Option<usize> {
        Some(self.size as usize)
    }

    fn eval_twin(&self) -> Option<Box<dyn SampleStep>> {
        Some(Box::new(ResizeCenterCrop { filter: self.filter.fixed(), ..ResizeCenterCrop::new(self.size) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::random::Purpose;

    #[test]
    fn regions_fit_and_obey_scale_and_ratio() {
        let step = RandomResizedCrop {
            size: 8,
            scale: default_scale(),
            ratio: default_ratio(),
            filter: RandomFilter::Bilinear,
        };
        let (h, w) = (120, 90);
        for index in 0..2000 {
            let r = step.region(h, w, &mut Draws::new(Purpose::Sample, 3, 0, index));
            assert!(r.top >= 0.0 && r.left >= 0.0 && r.top + r.height <= 120.0 && r.left + r.width <= 90.0);
            // Rounding moves a side by at most half a pixel.
            let area_low = 0.08 * (h * w) as f64;
            assert!((r.height + 0.5) * (r.width + 0.5) >= area_low, "{r:?}");
            assert!(
                (r.width - 0.5) / (r.height + 0.5) <= 4.0 / 3.0 && (r.width + 0.5) / (r.height - 0.5) >= 0.75
            );
        }
    }

    #[test]
    fn a_picture_no_aspect_fits_is_cut_at_its_center() {
        let step = RandomResizedCrop {
            size: 8,
            scale: [1.0, 1.0],
            ratio: [1.0, 1.0],
            filter: RandomFilter::Bilinear,
        };
        let region = step.region(10, 100, &mut Draws::new(Purpose::Sample, 0, 0, 0));
        assert_eq!(region, Region { top: 0.0, left: 45.0, height: 10.0, width: 10.0 });
        let tall = step.region(100, 10, &mut Draws::new(Purpose::Sample, 0, 0, 0));
        assert_eq!(tall, Region { top: 45.0, left: 0.0, height: 10.0, width: 10.0 });
    }
}
