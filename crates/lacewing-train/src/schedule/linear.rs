//! A straight line from the peak to the floor.

use super::Shape;

pub(super) const SHAPE: Shape =
    Shape { name: "linear", about: "a straight line from lr to min_lr", weight: |progress| 1.0 - progress };
