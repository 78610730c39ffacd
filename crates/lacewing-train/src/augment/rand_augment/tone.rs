//! Ops that send every value of a channel to another: a table of 256 bytes, as PIL's `ImageOps` make it.

use super::super::picture::Picture;

type Table = [u8; 256];

/// The least value of each channel becomes 0, the greatest 255, the others follow in a line; a channel of one value stays.
pub(super) fn auto_contrast(picture: &mut Picture) {
    by_channel(picture, |histogram| {
        let low = histogram.iter().position(|&n| n > 0)?;
        let high = histogram.iter().rposition(|&n| n > 0)?;
        if high == low {
            return None;
        }
        let scale = 255.0 / (high - low) as f64;
        let offset = -(low as f64) * scale;
        // `as` truncates, then saturates.
        Some(std::array::from_fn(|i| (i as f64 * scale + offset) as u8))
    });
}

/// The values of each channel are spread so that about equally many pixels have each.
pub(super) fn equalize(picture: &mut Picture) {
    by_channel(picture, |histogram| {
        let last = *histogram.iter().rfind(|&&n| n > 0)?;
        let step = (histogram.iter().sum::<usize>() - last) / 255;
        if step == 0 {
            return None;
        }
        let mut below = step / 2;
        Some(std::array::from_fn(|i| {
            let value = (below / step).min(255) as u8;
            below += histogram[i];
            value
        }))
    });
}

/// `255 - x`.
pub(super) fn invert(picture: &mut Picture) {
    apply(picture, |x| 255 - x);
}

/// Keeps the `bits` most significant bits: 8 or more change nothing, 0 or fewer leave black.
pub(super) fn posterize(picture: &mut Picture, bits: f64) {
    let dropped = (8.0 - bits).clamp(0.0, 8.0) as u32;
    let mask = (0xff_u32 << dropped) as u8;
    apply(picture, |x| x & mask);
}

/// Values from `threshold` on are inverted.
pub(super) fn solarize(picture: &mut Picture, threshold: u16) {
    apply(picture, |x| if u16::from(x) < threshold { x } else { 255 - x });
}

/// Values below 128 grow by `add`.
pub(super) fn solarize_add(picture: &mut Picture, add: u8) {
    apply(picture, |x| if x < 128 { x.saturating_add(add) } else { x });
}

fn apply(picture: &mut Picture, f: impl Fn(u8) -> u8) {
    picture.pixels.iter_mut().for_each(|x| *x = f(*x));
}

/// Looks each channel up in the table that its histogram gives, if it gives one.
fn by_channel(picture: &mut Picture, table: impl Fn(&[usize; 256]) -> Option<Table>) {
    let plane = picture.shape.plane();
    for channel in picture.pixels.chunks_exact_mut(plane) {
        let mut histogram = [0; 256];
        channel.iter().for_each(|&x| histogram[usize::from(x)] += 1);
        if let Some(table) = table(&histogram) {
            channel.iter_mut().for_each(|x| *x = table[usize::from(*x)]);
        }
    }
}
