//! A decoded picture: bytes in planes, one plane a channel.

use std::fmt;

/// Channels, height and width of a picture, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageShape {
    /// Color planes: 1 (gray) or 3 (red, green, blue).
    pub channels: usize,
    /// Rows of a plane.
    pub height: usize,
    /// Columns of a plane.
    pub width: usize,
}

impl ImageShape {
    /// The shape `[channels, height, width]`.
    pub const fn new(channels: usize, height: usize, width: usize) -> Self {
        Self { channels, height, width }
    }

    /// Pixels of one plane, `height · width`.
    pub const fn plane(self) -> usize {
        self.height * self.width
    }

    /// Values of one picture, `channels · height · width`; its bytes as u8.
    pub const fn len(self) -> usize {
        self.channels * self.plane()
    }

    /// Whether a side or the channel count is zero.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for ImageShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.channels, self.height, self.width)
    }
}

/// One picture, `[channels, height, width]` bytes, row-major within a plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Channels, height, width.
    pub shape: ImageShape,
    /// The `shape.len()` bytes.
    pub pixels: Vec<u8>,
}

impl Picture {
    /// A picture without pixels, to be filled.
    pub const fn empty() -> Self {
        Self { shape: ImageShape::new(0, 0, 0), pixels: Vec::new() }
    }

    /// Becomes a copy of `pixels`, keeping its own buffer.
    pub fn copy_from(&mut self, shape: ImageShape, pixels: &[u8]) {
        debug_assert_eq!(shape.len(), pixels.len());
        self.shape = shape;
        self.pixels.clear();
        self.pixels.extend_from_slice(pixels);
    }
}
