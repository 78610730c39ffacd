//! PIL's `ImageEnhance`: a picture and a worse version of it, blended or led beyond by a factor.
//!
//! `y = d + factor·(x - d)` in f32, truncated and cut to a byte: the worse version `d` at 0, the picture at 1.

use super::super::picture::Picture;

/// The worse version has no color.
pub(super) fn color(picture: &mut Picture, factor: f32) {
    let plane = picture.shape.plane();
    if picture.shape.channels != 3 {
        // A gray picture is its own gray version.
        return;
    }
    let (red, rest) = picture.pixels.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let gray = luma(*r, *g, *b);
        for x in [r, g, b] {
            *x = blend(gray, *x, factor);
        }
    }
}

/// The worse version is the mean gray throughout.
pub(super) fn contrast(picture: &mut Picture, factor: f32) {
    let plane = picture.shape.plane();
    let (first, rest) = picture.pixels.split_at(plane);
    let sum: u64 = if picture.shape.channels == 3 {
        let (green, blue) = rest.split_at(plane);
        first.iter().zip(green).zip(blue).map(|((&r, &g), &b)| u64::from(luma(r, g, b))).sum()
    } else {
        first.iter().map(|&x| u64::from(x)).sum()
    };
    let mean = (sum as f64 / plane as f64 + 0.5) as u8;
    picture.pixels.iter_mut().for_each(|x| *x = blend(mean, *x, factor));
}

/// The worse version is black.
pub(super) fn brightness(picture: &mut Picture, factor: f32) {
    picture.pixels.iter_mut().for_each(|x| *x = blend(0, *x, factor));
}

/// The worse version is smoothed by `[1 1 1; 1 5 1; 1 1 1] / 13`, its border as it was.
pub(super) fn sharpness(from: &Picture, factor: f32, to: &mut Picture) {
    let (shape, width) = (from.shape, from.shape.width);
    to.shape = shape;
    to.pixels.clone_from(&from.pixels);
    if shape.height < 3 || width < 3 {
        return;
    }
    let (around, center) = (1.0 / 13.0, 5.0 / 13.0);
    // Three products and two sums, in PIL's order.
    let line = |row: &[u8], x: usize, middle: f32| {
        f32::from(row[x - 1]) * around + f32::from(row[x]) * middle + f32::from(row[x + 1]) * around
    };
    let planes = from.pixels.chunks_exact(shape.plane());
    for (from, to) in planes.zip(to.pixels.chunks_exact_mut(shape.plane())) {
        let row = |y: usize| &from[y * width..][..width];
        for y in 1..shape.height - 1 {
            let (above, own, below) = (row(y - 1), row(y), row(y + 1));
            for x in 1..width - 1 {
                let smooth = 0.5 + line(below, x, around) + line(own, x, center) + line(above, x, around);
                to[y * width + x] = blend(smooth as u8, own[x], factor);
            }
        }
    }
}

/// The gray of a color, ITU-R 601-2 in 16-bit fixed point.
fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((19_595 * u32::from(r) + 38_470 * u32::from(g) + 7_471 * u32::from(b) + 0x8000) >> 16) as u8
}

fn blend(worse: u8, x: u8, factor: f32) -> u8 {
    let worse = f32::from(worse);
    // `as` truncates, then saturates.
    (worse + factor * (f32::from(x) - worse)) as u8
}
