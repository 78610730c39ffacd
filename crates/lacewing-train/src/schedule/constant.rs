//! The peak throughout.

use super::Shape;

pub(super) const SHAPE: Shape =
    Shape { name: "constant", about: "lr throughout, after warm-up", weight: |_| 1.0 };
