//! Resampling of a part of a picture to a new size, antialiased, plane by plane.

use super::picture::{ImageShape, Picture};
use super::random::Draws;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use serde::{Deserialize, Serialize};

/// The interpolation kernel; stretched by the reduction factor when a picture shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// Triangle, 2 samples wide.
    #[default]
    Bilinear,
    /// Cubic with `a = -1/2`, 4 samples wide.
    Bicubic,
}

/// The interpolation of a step of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RandomFilter {
    /// Always [`Filter::Bilinear`].
    #[default]
    Bilinear,
    /// Always [`Filter::Bicubic`].
    Bicubic,
    /// Either, each time drawn anew.
    Random,
}

impl RandomFilter {
    /// The filter to use now; a fixed one takes no draw.
    pub fn draw(self, draws: &mut Draws) -> Filter {
        match self {
            Self::Bilinear => Filter::Bilinear,
            Self::Bicubic => Filter::Bicubic,
            Self::Random if draws.chance(0.5) => Filter::Bilinear,
            Self::Random => Filter::Bicubic,
        }
    }

    /// The filter of evaluation, where nothing is drawn: bicubic for a random one.
    pub fn fixed(self) -> Filter {
        if self == Self::Bilinear { Filter::Bilinear } else { Filter::Bicubic }
    }
}

/// A part of a picture, in pixels; edges may fall between pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// First row.
    pub top: f64,
    /// First column.
    pub left: f64,
    /// Rows.
    pub height: f64,
    /// Columns.
    pub width: f64,
}

/// Resamples `region` of `source` to `side`×`side` pixels in `target`.
///
/// # Panics
/// When the region leaves the picture or a size is zero: steps compute regions that do not.
pub(crate) fn resize(
    resizer: &mut Resizer,
    source: &Picture,
    region: Region,
    side: usize,
    filter: Filter,
    target: &mut Picture,
) {
    let kernel = match filter {
        Filter::Bilinear => FilterType::Bilinear,
        Filter::Bicubic => FilterType::CatmullRom,
    };
    let options = ResizeOptions::new()
        .resize_alg(ResizeAlg::Convolution(kernel))
        .crop(region.left, region.top, region.width, region.height)
        .use_alpha(false);
    let shape = ImageShape::new(source.shape.channels, side, side);
    target.shape = shape;
    target.pixels.resize(shape.len(), 0);
    let (height, width) = (source.shape.height as u32, source.shape.width as u32);
    let planes = source.pixels.chunks_exact(source.shape.plane());
    for (from, to) in planes.zip(target.pixels.chunks_exact_mut(shape.plane())) {
        let from =
            ImageRef::new(width, height, from, PixelType::U8).expect("a plane has height x width bytes");
        let mut to = Image::from_slice_u8(side as u32, side as u32, to, PixelType::U8)
            .expect("a plane has side x side bytes");
        resizer.resize(&from, &mut to, &options).expect("the region lies inside the picture");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_constant_stays_and_a_ramp_keeps_its_order() {
        let shape = ImageShape::new(2, 6, 9);
        let mut pixels = vec![77; 54];
        pixels.extend((0..54).map(|i| (i % 9 * 20) as u8));
        let source = Picture { shape, pixels };
        let whole = Region { top: 0.0, left: 0.0, height: 6.0, width: 9.0 };
        for filter in [Filter::Bilinear, Filter::Bicubic] {
            let mut target = Picture::empty();
            resize(&mut Resizer::new(), &source, whole, 4, filter, &mut target);
            assert_eq!(target.shape, ImageShape::new(2, 4, 4));
            assert!(target.pixels[..16].iter().all(|&v| v == 77));
            assert!(target.pixels[16..20].is_sorted() && target.pixels[16] < target.pixels[19]);
        }
    }

    #[test]
    fn a_region_of_the_target_size_is_copied() {
        let source = Picture { shape: ImageShape::new(1, 5, 5), pixels: (0..25).map(|i| i * 10).collect() };
        let region = Region { top: 1.0, left: 2.0, height: 3.0, width: 3.0 };
        let mut target = Picture::empty();
        resize(&mut Resizer::new(), &source, region, 3, Filter::Bilinear, &mut target);
        assert_eq!(target.pixels, [70, 80, 90, 120, 130, 140, 170, 180, 190]);
    }
}
