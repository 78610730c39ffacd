//! Random erasing: rectangles of a picture are replaced by the mean color or by noise, after normalization.

use super::picture::ImageShape;
use super::pipeline::{NormalizedStep, Step};
use super::random::Draws;
use super::{AugmentError, Settings, require};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Settings of `random_erasing`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandomErasing {
    /// Chance that a picture is changed, 0 to 1.
    pub prob: f64,
    /// Least and greatest share of the picture's area that all rectangles together take, `0 < low <= high <= 1`.
    pub area: [f64; 2],
    /// Least and greatest aspect of a rectangle, height over width, `0 < low <= high`.
    pub aspect: [f64; 2],
    /// What takes the place of the pixels.
    pub mode: Mode,
    /// Greatest number of rectangles, at least 1; theirs is drawn from 1 to this.
    pub count: u32,
}

/// What takes the place of erased pixels, in units of normalized pictures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Zero, which is the mean color.
    #[default]
    Const,
    /// One color a rectangle, each channel standard normal.
    Rand,
    /// Every pixel and channel standard normal.
    Pixel,
}

impl Default for RandomErasing {
    fn default() -> Self {
        Self { prob: 0.5, area: [0.02, 1.0 / 3.0], aspect: [0.3, 1.0 / 0.3], mode: Mode::Const, count: 1 }
    }
}

/// Draws of area and aspect before a rectangle is given up.
const ATTEMPTS: usize = 10;

impl Settings for RandomErasing {
    const NAME: &'static str = "random_erasing";
    const ABOUT: &'static str = "replace rectangles by the mean color or by noise";

    fn check(&self) -> Result<(), AugmentError> {
        let ([least, most], [flat, tall]) = (self.area, self.aspect);
        require(Self::NAME, "prob", self.prob, "0 to 1", (0.0..=1.0).contains(&self.prob))?;
        require(Self::NAME, "area[0]", least, "above 0 and at most area[1]", least > 0.0 && least <= most)?;
        require(Self::NAME, "area[1]", most, "at most 1", most <= 1.0)?;
        require(Self::NAME, "aspect[0]", flat, "above 0 and at most aspect[1]", flat > 0.0 && flat <= tall)?;
        require(Self::NAME, "aspect[1]", tall, "finite", tall.is_finite())?;
        require(
            Self::NAME,
            "count",
            self.count.into(),
            "at least 1, at most 1024",
            (1..=1024).contains(&self.count),
        )
    }

    fn step(self) -> Step {
        Step::Normalized(Box::new(self))
    }
}

impl RandomErasing {
    /// One of `count` rectangles, rows and columns: area `A ~ U(area)·height·width / count`, `ln aspect ~ U(ln aspect)`,
    /// `rows = √(A·aspect)`, `columns = √(A/aspect)`, rounded with ties to even, at a uniform place. One that does not fit
    /// with a pixel to spare each way is drawn again, at most ten times.
    fn rectangle(
        &self,
        shape: ImageShape,
        count: u32,
        draws: &mut Draws,
    ) -> Option<(Range<usize>, Range<usize>)> {
        let ([least, most], [flat, tall]) = (self.area, self.aspect);
        (0..ATTEMPTS).find_map(|_| {
            let area = draws.uniform(least, most) * shape.plane() as f64 / f64::from(count);
            let aspect = draws.uniform(flat.ln(), tall.ln()).exp();
            let rows = (area * aspect).sqrt().round_ties_even() as usize;
            let columns = (area / aspect).sqrt().round_ties_even() as usize;
            (rows < shape.height && columns < shape.width).then(|| {
                let top = draws.below((shape.height - rows) as u32 + 1) as usize;
                let left = draws.below((shape.width - columns) as u32 + 1) as usize;
                (top..top + rows, left..left + columns)
            })
        })
    }
}

impl NormalizedStep for RandomErasing {
    fn apply(&self, image: &mut [f32], shape: ImageShape, draws: &mut Draws) {
        if !draws.chance(self.prob) {
            return;
        }
        let count = 1 + draws.below(self.count);
        for _ in 0..count {
            let Some((rows, columns)) = self.rectangle(shape, count, draws) else { continue };
            for plane in image.chunks_exact_mut(shape.plane()) {
                let color = if self.mode == Mode::Rand { draws.normal() as f32 } else { 0.0 };
                for row in plane.chunks_exact_mut(shape.width).take(rows.end).skip(rows.start) {
                    let part = &mut row[columns.clone()];
                    if self.mode == Mode::Pixel {
                        part.fill_with(|| draws.normal() as f32);
                    } else {
                        part.fill(color);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::random::Purpose;
    use std::collections::BTreeSet;

    const SHAPE: ImageShape = ImageShape::new(3, 40, 56);
    /// No standard normal number, and no zero.
    const OLD: f32 = 1e3;

    /// The picture after `step`, and which pixels of the first plane are new.
    fn erase(step: &RandomErasing, index: u64) -> (Vec<f32>, Vec<usize>) {
        let mut image = vec![OLD; SHAPE.len()];
        step.apply(&mut image, SHAPE, &mut Draws::new(Purpose::Sample, 5, 0, index));
        let new = |plane: &[f32]| (0..SHAPE.plane()).filter(|&i| plane[i] != OLD).collect::<Vec<_>>();
        let planes: Vec<Vec<usize>> = image.chunks(SHAPE.plane()).map(new).collect();
        assert!(planes.iter().all(|plane| *plane == planes[0]), "the same pixels in every channel");
        let [first, ..] = <[_; 3]>::try_from(planes).expect("three planes");
        (image, first)
    }

    #[test]
    fn rectangles_obey_area_and_aspect() {
        let step = RandomErasing { prob: 1.0, ..RandomErasing::default() };
        let mut areas = Vec::new();
        for index in 0..1000 {
            let (image, new) = erase(&step, index);
            let rows: BTreeSet<usize> = new.iter().map(|i| i / SHAPE.width).collect();
            let columns: BTreeSet<usize> = new.iter().map(|i| i % SHAPE.width).collect();
            assert_eq!(new.len(), rows.len() * columns.len(), "a rectangle");
            assert!(new.iter().all(|&i| image[i] == 0.0));
            // Rounding moves a side by at most half a pixel.
            let (h, w) = (rows.len() as f64, columns.len() as f64);
            assert!((h - 0.5) / (w + 0.5) <= 1.0 / 0.3 && (h + 0.5) / (w - 0.5) >= 0.3, "{h} x {w}");
            let plane = SHAPE.plane() as f64;
            assert!(
                (h - 0.5) * (w - 0.5) <= plane / 3.0 && (h + 0.5) * (w + 0.5) >= 0.02 * plane,
                "{h} x {w}"
            );
            areas.push(h * w / plane);
        }
        // The mean of U(0.02, 1/3), whose deviation is its width over √12; draws that do not fit are few and large.
        let mean = areas.iter().sum::<f64>() / areas.len() as f64;
        let (middle, width) = ((0.02 + 1.0 / 3.0) / 2.0, 1.0 / 3.0 - 0.02);
        assert!((mean - middle).abs() < width / 10.0, "{mean}");
    }

    #[test]
    fn the_chance_is_that_of_the_settings() {
        let step = RandomErasing { prob: 0.25, ..RandomErasing::default() };
        let n = 2000;
        let changed = (0..n).filter(|&index| !erase(&step, index).1.is_empty()).count();
        let deviation = (n as f64 * 0.25 * 0.75).sqrt();
        assert!((changed as f64 - 0.25 * n as f64).abs() < 5.0 * deviation, "{changed} of {n}");
    }

    #[test]
    fn noise_is_standard_normal_by_rectangle_or_by_pixel() {
        for mode in [Mode::Rand, Mode::Pixel] {
            let step = RandomErasing { prob: 1.0, mode, ..RandomErasing::default() };
            let mut values = Vec::new();
            for index in 0..1000 {
                let (image, new) = erase(&step, index);
                for plane in image.chunks(SHAPE.plane()) {
                    let here: Vec<f64> = new.iter().map(|&i| f64::from(plane[i])).collect();
                    if mode == Mode::Rand {
                        assert!(here.iter().all(|v| *v == here[0]), "one color");
                        values.extend(here.first());
                    } else {
                        values.extend(here);
                    }
                }
            }
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values.iter().map(|v| v * v).sum::<f64>() / n;
            // The square of a standard normal number has a variance of 2.
            assert!(
                mean.abs() < 5.0 / n.sqrt() && (variance - 1.0).abs() < 5.0 * (2.0 / n).sqrt(),
                "{mode:?}"
            );
        }
    }

    #[test]
    fn several_rectangles_share_the_area() {
        let step = RandomErasing { prob: 1.0, area: [0.3, 0.3], count: 4, ..RandomErasing::default() };
        let sizes: Vec<usize> = (0..500).map(|index| erase(&step, index).1.len()).collect();
        // Four rectangles of up to 60 by 60 each; rounding adds half a pixel to each side.
        let most = 0.3 * SHAPE.plane() as f64 + 4.0 * (SHAPE.height + SHAPE.width) as f64 / 2.0;
        assert!(sizes.iter().all(|&size| size as f64 <= most));
        assert!(sizes.iter().collect::<BTreeSet<_>>().len() > 50, "places and numbers differ");
    }
}
