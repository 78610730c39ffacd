//! Windows of images as rows on the CPU.

use super::Sizes;
use lacewing_cpu::parallel::rows_per_task;
use rayon::prelude::*;

/// Each window as a row; zeros outside the image.
///
/// Shapes: `x [batch, height, width, channels]`, `y [batch · down · across, kh · kw · channels]`.
pub(super) fn unfold(x: &[f32], y: &mut [f32], sizes: Sizes) {
    let Sizes { height, width, channels, places: (down, across), window, .. } = sizes;
    let (len, (_, kw)) = (sizes.values(), window.kernel);
    if y.is_empty() {
        return;
    }
    let step = rows_per_task(y.len() / len, len);
    y.par_chunks_mut(step * len).enumerate().for_each(|(task, y)| {
        for (at, y) in y.chunks_exact_mut(len).enumerate() {
            let place = task * step + at;
            let (b, i, j) = (place / (down * across), place / across % down, place % across);
            for (tap, y) in y.chunks_exact_mut(channels).enumerate() {
                // Above or left of the image the difference wraps around and is too large as well.
                let row = (i * window.stride + tap / kw).wrapping_sub(window.padding);
                let col = (j * window.stride + tap % kw).wrapping_sub(window.padding);
                if row < height && col < width {
                    y.copy_from_slice(&x[((b * height + row) * width + col) * channels..][..channels]);
                } else {
                    y.fill(0.0);
                }
            }
        }
    });
}

/// The transpose of [`unfold`]: each pixel adds up the places where it was read, in their order.
pub(super) fn fold(dy: &[f32], dx: &mut [f32], sizes: Sizes) {
    let Sizes { height, width, channels, places: (down, across), window, .. } = sizes;
    let (len, (kh, kw)) = (sizes.values(), window.kernel);
    if dx.is_empty() {
        return;
    }
    let step = rows_per_task(dx.len() / channels, kh * kw * channels);
    dx.par_chunks_mut(step * channels).enumerate().for_each(|(task, dx)| {
        for (at, dx) in dx.chunks_exact_mut(channels).enumerate() {
            let pixel = task * step + at;
            let (b, row, col) = (pixel / (height * width), pixel / width % height, pixel % width);
            dx.fill(0.0);
            for tap in 0..kh * kw {
                let readers = (window.reader(row, tap / kw, down), window.reader(col, tap % kw, across));
                let (Some(i), Some(j)) = readers else { continue };
                let from = ((b * down + i) * across + j) * len + tap * channels;
                dx.iter_mut().zip(&dy[from..]).for_each(|(dx, dy)| *dx += dy);
            }
        }
    });
}
