//! Rows packed feature-major: the rows of a tile side by side for each input.

use crate::simd::{Isa, MatRef, Vectorize};

/// Elements of a row ahead that are asked for: of so many rows at a time the memory does not see that each is read on.
const AHEAD: usize = 128;

/// `to[c · width + r] = from[r · stride + c]` for the `rows` that there are; zeros in the others. `to` says how many
/// columns.
pub(super) struct Pack<'a> {
    pub(super) to: &'a mut [f32],
    pub(super) from: &'a [f32],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) width: usize,
}

impl Vectorize for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { to, from, stride, rows, width } = self;
        if rows < width {
            to.fill(0.0);
        }
        let cols = to.len() / width;
        let view = MatRef::new(from, rows, cols, stride, 1);
        let (whole, high) = (cols / I::LANES * I::LANES, rows / I::LANES * I::LANES);
        for r in (0..high).step_by(I::LANES) {
            for c in (0..whole).step_by(I::LANES) {
                for at in 0..I::LANES {
                    isa.prefetch(from, (r + at) * stride + c + AHEAD);
                }
                let square = view.load_transposed(isa, r, c);
                for (at, &column) in square[..I::LANES].iter().enumerate() {
                    isa.store(&mut to[(c + at) * width + r..], column);
                }
            }
        }
        for r in 0..rows {
            let first = if r < high { whole } else { 0 };
            let from = &from[r * stride + first..][..cols - first];
            for (to, value) in to[first * width..].chunks_exact_mut(width).zip(from) {
                to[r] = *value;
            }
        }
    }
}
