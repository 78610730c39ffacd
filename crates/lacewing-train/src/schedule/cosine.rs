//! Half a cosine wave from the peak to the floor.

use super::Shape;

pub(super) const SHAPE: Shape = Shape {
    name: "cosine",
    about: "half a cosine wave from lr to min_lr",
    weight: |progress| 0.5 + 0.5 * (std::f64::consts::PI * progress).cos(),
};
