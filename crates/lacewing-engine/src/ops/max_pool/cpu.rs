//! Max pooling on the CPU: a place of y, then a pixel of dx, is a run of channels.

use crate::ops::unfold::Sizes;
use lacewing_cpu::parallel::rows_per_task;
use rayon::prelude::*;

/// The largest value of each window and, where asked for, the tap it came from.
///
/// Shapes: `x [batch, height, width, channels]`, `y`, `taps [batch, down, across, channels]`.
pub(super) fn forward(x: &[f32], y: &mut [f32], taps: Option<&mut [u32]>, sizes: Sizes) {
    let Sizes { channels, .. } = sizes;
    if y.is_empty() {
        return;
    }
    let step = rows_per_task(y.len() / channels, channels) * channels;
    let y = y.par_chunks_mut(step).enumerate();
    match taps {
        Some(taps) => y.zip(taps.par_chunks_mut(step)).for_each(|((task, y), taps)| {
            for (at, (y, taps)) in
                y.chunks_exact_mut(channels).zip(taps.chunks_exact_mut(channels)).enumerate()
            {
                largest(x, task * step / channels + at, sizes, y, taps);
            }
        }),
        None => y.for_each(|(task, y)| {
            let mut taps = vec![0; channels];
            for (at, y) in y.chunks_exact_mut(channels).enumerate() {
                largest(x, task * step / channels + at, sizes, y, &mut taps);
            }
        }),
    }
}

/// The window at `place`, counted over all samples.
fn largest(x: &[f32], place: usize, sizes: Sizes, y: &mut [f32], taps: &mut [u32]) {
    let Sizes { height, width, channels, places: (down, across), window, .. } = sizes;
    let (b, i, j) = (place / (down * across), place / across % down, place % across);
    let (kh, kw) = window.kernel;
    let mut first = true;
    for tap in 0..kh * kw {
        // Above or left of the image the difference wraps around and is too large as well.
        let row = (i * window.stride + tap / kw).wrapping_sub(window.padding);
        let col = (j * window.stride + tap % kw).wrapping_sub(window.padding);
        if row >= height || col >= width {
            continue;
        }
        let x = &x[((b * height + row) * width + col) * channels..][..channels];
        for ((y, own), &x) in y.iter_mut().zip(taps.iter_mut()).zip(x) {
            if first || x > *y || x.is_nan() {
                (*y, *own) = (x, tap as u32);
            }
        }
        first = false;
    }
}

/// Each pixel adds up the gradients of the windows that took its value, in the order of their taps.
pub(super) fn backward(dy: &[f32], taps: &[u32], dx: &mut [f32], sizes: Sizes) {
    let Sizes { height, width, channels, places: (down, across), window, .. } = sizes;
    let (kh, kw) = window.kernel;
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
                let from = ((b * down + i) * across + j) * channels;
                let windows = dy[from..].iter().zip(&taps[from..]);
                for (dx, (dy, &taken)) in dx.iter_mut().zip(windows) {
                    *dx += if taken == tap as u32 { *dy } else { 0.0 };
                }
            }
        }
    });
}
