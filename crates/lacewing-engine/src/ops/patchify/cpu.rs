//! Cutting images into patches on the CPU.

use lacewing_cpu::parallel::rows_per_task;
use rayon::prelude::*;

/// `y[b, (py, px), (c, i, j)] = images[b, c, py · patch + i, px · patch + j]`.
///
/// Shapes: `images [batch, channels, height, width]`, `y [batch, (height/patch)·(width/patch), channels·patch²]`;
/// `patch` divides both sizes.
pub(super) fn patchify(
    images: &[f32],
    y: &mut [f32],
    batch: usize,
    channels: usize,
    height: usize,
    width: usize,
    patch: usize,
) {
    assert_eq!((images.len(), y.len()), (batch * channels * height * width, images.len()));
    if y.is_empty() {
        return;
    }
    let (across, values) = (width / patch, channels * patch * patch);
    let patches = (height / patch) * across;
    let step = rows_per_task(batch * patches, values);
    y.par_chunks_mut(step * values).enumerate().for_each(|(task, y)| {
        for (at, y) in y.chunks_exact_mut(values).enumerate() {
            let (b, place) = ((task * step + at) / patches, (task * step + at) % patches);
            let (top, left) = (place / across * patch, place % across * patch);
            for (line, y) in y.chunks_exact_mut(patch).enumerate() {
                let (c, i) = (line / patch, line % patch);
                let from = ((b * channels + c) * height + top + i) * width + left;
                y.copy_from_slice(&images[from..][..patch]);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pixel_finds_its_place() {
        for (batch, channels, height, width, patch) in
            [(0, 3, 4, 4, 2), (1, 1, 1, 1, 1), (2, 3, 4, 6, 2), (3, 2, 6, 3, 3), (9, 3, 32, 64, 8)]
        {
            let images: Vec<f32> = (0..batch * channels * height * width).map(|i| i as f32).collect();
            let mut y = vec![f32::NAN; images.len()];
            patchify(&images, &mut y, batch, channels, height, width, patch);
            let across = width / patch;
            let mut at = 0;
            for b in 0..batch {
                for place in 0..(height / patch) * across {
                    for c in 0..channels {
                        for (i, j) in (0..patch).flat_map(|i| (0..patch).map(move |j| (i, j))) {
                            let (row, col) = (place / across * patch + i, place % across * patch + j);
                            assert_eq!(y[at], images[((b * channels + c) * height + row) * width + col]);
                            at += 1;
                        }
                    }
                }
            }
        }
    }
}
