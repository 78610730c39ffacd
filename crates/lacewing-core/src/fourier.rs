//! Butterfly factors on complex points, in f64.
//!
//! Cost of a factor on n points: 2n complex multiply-adds.

use std::f64::consts::PI;

use lacewing_linalg::c64;

/// `i` with its bits reversed, as an index below the power of two `n`.
pub(crate) fn reversed(i: usize, n: usize) -> usize {
    if n == 1 { 0 } else { i.reverse_bits() >> (usize::BITS - n.trailing_zeros()) }
}

/// The input that a cosine or sine transform reads at place `m`: the even ones ascending, then the odd ones
/// descending.
pub(crate) fn even_then_odd(m: usize, n: usize) -> usize {
    if 2 * m < n { 2 * m } else { 2 * (n - m) - 1 }
}

/// A factor `[n/2, 2, 2, 2]` of the Fourier transform, with `e = exp(∓πi σ/stride)` (plus for the inverse):
/// `scale · [[1, e], [1, −e]]` when `rising`, else its transpose.
pub(crate) fn factor(n: usize, stride: usize, inverse: bool, rising: bool, scale: f64) -> Vec<f64> {
    let turn = if inverse { PI } else { -PI };
    let mut values = Vec::with_capacity(4 * n);
    for sigma in (0..n / 2).map(|block| block % stride) {
        let one = c64::new(scale, 0.0);
        let e = c64::from_polar(scale, turn * sigma as f64 / stride as f64);
        let entries = if rising { [one, e, one, -e] } else { [one, one, e, -e] };
        values.extend(entries.iter().flat_map(|entry| [entry.re, entry.im]));
    }
    values
}

/// Complex numbers as (re, im).
pub(crate) fn interleaved(points: impl IntoIterator<Item = c64>) -> Vec<f64> {
    points.into_iter().flat_map(|point| [point.re, point.im]).collect()
}

/// The number at place `i` of (re, im) pairs.
pub(crate) fn complex(values: &[f64], i: usize) -> c64 {
    c64::new(values[2 * i], values[2 * i + 1])
}

/// One factor on complex points, index by index.
pub(crate) fn butterfly(points: &mut [c64], twiddle: &[f64], stride: usize) {
    for block in 0..points.len() / 2 {
        let first = block / stride * 2 * stride + block % stride;
        let (a, b) = (points[first], points[first + stride]);
        let entry = |at| complex(twiddle, 4 * block + at);
        points[first] = entry(0) * a + entry(1) * b;
        points[first + stride] = entry(2) * a + entry(3) * b;
    }
}
