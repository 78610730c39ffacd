//! One JPEG or PNG file to planes of bytes.

use crate::augment::picture::{ImageShape, Picture};
use crate::data::dataset::error::DataError;
use image::error::{DecodingError, ImageFormatHint};
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};
use std::io::Cursor;
use std::path::Path;

/// The greatest side of a picture that is decoded, in pixels.
const MAX_SIDE: u32 = 20_000;

/// The most memory one decoder may take, in bytes.
const MAX_BYTES: u64 = 1 << 30;

/// The longest picture file that is read, in bytes.
pub(crate) const MAX_FILE: u64 = 256 << 20;

/// Whether the file name ends like a picture's.
pub(crate) fn is_picture(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
    matches!(extension.as_deref(), Some("jpg" | "jpeg" | "png"))
}

/// Decodes `bytes` as red, green and blue planes; gray is spread over them, transparency dropped, 16 bits cut to 8. When
/// `expected` is given the size is compared before pixels are decoded.
///
/// # Errors
/// [`DataError::BadImage`], [`DataError::BadShape`], each with `name()`.
pub(crate) fn decode(
    bytes: &[u8],
    expected: Option<ImageShape>,
    name: impl Fn() -> String,
    target: &mut Picture,
) -> Result<(), DataError> {
    let bad = |source| DataError::BadImage { name: name(), source };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(|source| bad(ImageError::IoError(source)))?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    reader.limits(limits);
    if reader.format() == Some(ImageFormat::Jpeg) && !has_end_marker(bytes) {
        let hint = ImageFormatHint::Exact(ImageFormat::Jpeg);
        return Err(bad(ImageError::Decoding(DecodingError::new(hint, "truncated: no end-of-image marker"))));
    }
    let decoder = reader.into_decoder().map_err(bad)?;
    let (width, height) = decoder.dimensions();
    let shape = ImageShape::new(3, height as usize, width as usize);
    if let Some(expected) = expected.filter(|&expected| expected != shape) {
        return Err(DataError::BadShape { name: name(), expected, got: shape });
    }
    let color = decoder.color_type();
    target.shape = shape;
    target.pixels.resize(shape.len(), 0);
    let interleaved = if color == ColorType::Rgb8 {
        let mut buffer = vec![0; shape.len()];
        decoder.read_image(&mut buffer).map_err(bad)?;
        buffer
    } else {
        DynamicImage::from_decoder(decoder).map_err(bad)?.into_rgb8().into_raw()
    };
    let (red, rest) = target.pixels.split_at_mut(shape.plane());
    let (green, blue) = rest.split_at_mut(shape.plane());
    for (((pixel, r), g), b) in interleaved.as_chunks::<3>().0.iter().zip(red).zip(green).zip(blue) {
        [*r, *g, *b] = *pixel;
    }
    Ok(())
}

/// Whether a JPEG file is whole as far as its last marker tells: the decoder paints what is missing gray. Compressed data
/// never contains the marker, and a whole file ends with it or nearly so.
fn has_end_marker(bytes: &[u8]) -> bool {
    bytes.windows(2).rev().any(|pair| pair == [0xff, 0xd9])
}

/// Reads and decodes a file.
///
/// # Errors
/// A file that is gone, unreadable, too large or does not decode, by name.
pub(crate) fn decode_file(path: &Path, target: &mut Picture) -> Result<(), DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let length = std::fs::metadata(path).map_err(io)?.len();
    if length > MAX_FILE {
        return Err(DataError::TooLarge {
            path: path.to_owned(),
            what: "the file".to_owned(),
            limit: MAX_FILE,
        });
    }
    let bytes = std::fs::read(path).map_err(io)?;
    decode(&bytes, None, || path.display().to_string(), target)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Luma, Rgb, Rgba};

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).expect("memory holds it");
        bytes.into_inner()
    }

    fn png(image: &DynamicImage) -> Vec<u8> {
        encode(image, ImageFormat::Png)
    }

    #[test]
    fn rgb_gray_and_transparent_become_three_planes() {
        let rgb = DynamicImage::from(image::ImageBuffer::from_fn(3, 2, |x, y| Rgb([x as u8, y as u8, 9])));
        let mut picture = Picture::empty();
        decode(&png(&rgb), None, String::new, &mut picture).expect("a valid file");
        assert_eq!(picture.shape, ImageShape::new(3, 2, 3));
        assert_eq!(picture.pixels, [0, 1, 2, 0, 1, 2, 0, 0, 0, 1, 1, 1, 9, 9, 9, 9, 9, 9]);
        let gray = DynamicImage::from(image::ImageBuffer::from_pixel(2, 2, Luma([40_u8])));
        decode(&png(&gray), None, String::new, &mut picture).expect("a valid file");
        assert_eq!(picture.pixels, [40; 12]);
        let clear = DynamicImage::from(image::ImageBuffer::from_pixel(1, 1, Rgba([1_u8, 2, 3, 0])));
        decode(&png(&clear), None, String::new, &mut picture).expect("a valid file");
        assert_eq!(picture.pixels, [1, 2, 3]);
    }

    #[test]
    fn bad_pictures_are_named() {
        let image = DynamicImage::from(image::ImageBuffer::from_pixel(8, 8, Rgb([1_u8, 2, 3])));
        let (good, jpeg) = (png(&image), encode(&image, ImageFormat::Jpeg));
        let mut picture = Picture::empty();
        let mut error = |bytes: &[u8], expected| {
            let result = decode(bytes, expected, || "some/file.png".to_owned(), &mut picture);
            let error = result.expect_err("a bad picture");
            assert!(error.is_bad_image() && error.to_string().contains("some/file.png"), "{error}");
            error.to_string()
        };
        error(&good[..good.len() / 2], None);
        error(&jpeg[..jpeg.len() - 3], None);
        error(&jpeg[..jpeg.len() / 2], None);
        error(b"not a picture", None);
        error(b"", None);
        decode(&jpeg, None, String::new, &mut Picture::empty()).expect("a whole file");
        let shape = error(&good, Some(ImageShape::new(3, 32, 32)));
        assert!(shape.contains("3x8x8") && shape.contains("3x32x32"), "{shape}");
    }
}
