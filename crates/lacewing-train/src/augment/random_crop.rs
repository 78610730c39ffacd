//! Random crop: the picture is moved by up to `padding` pixels each way; what moves in is black.

use super::pipeline::{Canvas, SampleStep, Step};
use super::random::Draws;
use super::{AugmentError, Settings, require};
use serde::{Deserialize, Serialize};

/// Settings of `random_crop`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandomCrop {
    /// Zero pixels added on each side before a crop of the old size is taken; 1 to 1024.
    pub padding: u32,
}

impl Default for RandomCrop {
    fn default() -> Self {
        Self { padding: 4 }
    }
}

impl Settings for RandomCrop {
    const NAME: &'static str = "random_crop";
    const ABOUT: &'static str = "pad with zeros, then crop to the old size at a random place";

    fn check(&self) -> Result<(), AugmentError> {
        require(
            Self::NAME,
            "padding",
            f64::from(self.padding),
            "1 to 1024",
            (1..=1024).contains(&self.padding),
        )
    }

    fn step(self) -> Step {
        Step::Train(Box::new(self))
    }
}

impl SampleStep for RandomCrop {
    fn apply(&self, canvas: &mut Canvas, draws: &mut Draws) {
        let offsets = 2 * self.padding + 1;
        let down = i64::from(draws.below(offsets)) - i64::from(self.padding);
        let right = i64::from(draws.below(offsets)) - i64::from(self.padding);
        canvas.replace(|from, to| {
            let (height, width) = (from.shape.height, from.shape.width);
            to.shape = from.shape;
            to.pixels.clear();
            to.pixels.resize(from.shape.len(), 0);
            // Target column x shows source column x + right, where there is one.
            let first = (-right).clamp(0, width as i64) as usize;
            let end = (width as i64 - right).clamp(0, width as i64) as usize;
            if first >= end {
                return;
            }
            let source = (first as i64 + right) as usize;
            let planes = from.pixels.chunks_exact(from.shape.plane());
            for (from, to) in planes.zip(to.pixels.chunks_exact_mut(height * width)) {
                for (y, row) in to.chunks_exact_mut(width).enumerate() {
                    let shown = y as i64 + down;
                    if (0..height as i64).contains(&shown) {
                        let start = shown as usize * width + source;
                        row[first..end].copy_from_slice(&from[start..start + (end - first)]);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::picture::{ImageShape, Picture};
    use crate::augment::random::Purpose;

    #[test]
    fn every_shift_is_a_window_of_the_padded_picture() {
        let (h, w, p) = (3_usize, 4_usize, 2_usize);
        let picture = Picture { shape: ImageShape::new(2, h, w), pixels: (1..=24).collect() };
        let padded = |c: usize, y: usize, x: usize| {
            let inside = (p..p + h).contains(&y) && (p..p + w).contains(&x);
            if inside { picture.pixels[c * h * w + (y - p) * w + (x - p)] } else { 0 }
        };
        let windows: Vec<Vec<u8>> = (0..25)
            .map(|k| (k / 5, k % 5))
            .map(|(top, left)| {
                let at = |i: usize| padded(i / (h * w), top + i / w % h, left + i % w);
                (0..24).map(at).collect()
            })
            .collect();
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..600 {
            let mut canvas = Canvas::new();
            canvas.picture.clone_from(&picture);
            RandomCrop { padding: p as u32 }
                .apply(&mut canvas, &mut Draws::new(Purpose::Sample, 0, 0, index));
            let found = windows.iter().position(|window| *window == canvas.picture.pixels);
            seen.insert(found.expect("a crop is a window of the padded picture"));
        }
        assert_eq!(seen.len(), 25);
    }

    #[test]
    fn padding_beyond_the_picture_leaves_black() {
        let picture = Picture { shape: ImageShape::new(1, 2, 2), pixels: vec![9; 4] };
        for index in 0..50 {
            let mut canvas = Canvas::new();
            canvas.picture.clone_from(&picture);
            RandomCrop { padding: 7 }.apply(&mut canvas, &mut Draws::new(Purpose::Sample, 0, 0, index));
            assert_eq!(canvas.picture.pixels.len(), 4);
        }
    }
}
