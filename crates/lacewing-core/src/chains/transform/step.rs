//! The steps of a transform: butterfly factors, and diagonals before, after or between them. What each has for a
//! parameter, how it is executed, and the values at which the map is the transform.

use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

use lacewing_linalg::c64;

use super::{Transform, TransformKind};
use crate::fourier::{butterfly, factor, interleaved, reversed};
use crate::{Gather, Link, ParamSpec, Weights};

/// What points are multiplied by, one parameter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A number for each real point.
    Pre,
    /// A number for each point, of whose product the real part is taken.
    Post,
    /// A number for each point.
    Spectrum,
    /// A real 2×2 for each pair of points.
    Hadamard { stride: usize },
    /// A complex 2×2 for each pair of points. The strides of a transform rise or fall.
    Fourier { stride: usize, inverse: bool, rising: bool },
}

impl Step {
    /// What a transform multiplies n points by, in order.
    pub(super) fn all(kind: TransformKind, n: usize) -> Vec<Step> {
        let strides = || (0..n.trailing_zeros()).map(|i| 1usize << i);
        let rising = |inverse| strides().map(move |stride| Step::Fourier { stride, inverse, rising: true });
        match kind {
            TransformKind::Hadamard => strides().map(|stride| Step::Hadamard { stride }).collect(),
            TransformKind::Fft => rising(false).collect(),
            TransformKind::Ifft => rising(true).collect(),
            TransformKind::Dct2 => rising(false).chain([Step::Post]).collect(),
            TransformKind::Dct3 => std::iter::once(Step::Pre).chain(rising(true)).collect(),
            TransformKind::Dct4 | TransformKind::Dst2 | TransformKind::Dst4 => {
                std::iter::once(Step::Pre).chain(rising(false)).chain([Step::Post]).collect()
            }
            TransformKind::Convolution => {
                let falling = |stride| Step::Fourier { stride, inverse: false, rising: false };
                strides().rev().map(falling).chain([Step::Spectrum]).chain(rising(true)).collect()
            }
        }
    }

    /// Its parameter for n points. None decays: what shrinks is no longer the transform.
    pub(super) fn spec(self, n: usize) -> ParamSpec {
        let factor = |name, stride: usize| format!("{name}{}", stride.trailing_zeros());
        let spec = match self {
            Step::Pre => ParamSpec::new("pre", &[n, 2]),
            Step::Post => ParamSpec::new("post", &[n, 2]),
            Step::Spectrum => ParamSpec::new("spectrum", &[n, 2]),
            Step::Hadamard { stride } => ParamSpec::new(&factor("hadamard", stride), &[n / 2, 2, 2]),
            Step::Fourier { stride, inverse, .. } => {
                ParamSpec::new(&factor(if inverse { "ifft" } else { "fft" }, stride), &[n / 2, 2, 2, 2])
            }
        };
        ParamSpec { decay: false, ..spec }
    }

    /// Its link, with `param` the index of its parameter.
    ///
    /// Complex points pass between factors in groups of which each holds all its real and then all its imaginary
    /// parts. A rising factor merges two groups of `stride` points, a falling one splits a group, so the four
    /// numbers of a 2×2 are `stride` apart and nothing is transposed: real and imaginary parts alternate before
    /// the first rising factor and are apart after the last, and the other way around when falling.
    pub(super) fn link(self, param: usize, n: usize) -> Link {
        let blocks = |gather, groups, stride, q, p| {
            let weights = Weights::Tied { param, gather };
            Link::Blocks { weights, groups, stride, q, p }
        };
        // (a + bi)(re + i im) = (a·re − b·im) + i (b·re + a·im): part 0 is real, 1 imaginary.
        match self {
            Step::Pre => Link::blocks(param, n, 2, 1),
            Step::Post => blocks(Gather::new(2 * n, 2 * n, 1, |at, _| Some((at, at % 2 == 1))), 1, n, 1, 2),
            Step::Spectrum => {
                let gather = Gather::new(2 * n, 4 * n, 1, |at, _| {
                    let (k, to, from) = (at / 4, at / 2 % 2, at % 2);
                    Some((2 * k + (to ^ from), to < from))
                });
                blocks(gather, n, 1, 2, 2)
            }
            Step::Hadamard { stride } => Link::strided(param, n / (2 * stride), stride, 2, 2),
            Step::Fourier { stride, rising, .. } => {
                let gather = Gather::new(4 * n, 8 * n, 1, |at, _| {
                    let (block, q, p) = (at / 16, at / 4 % 4, at % 4);
                    let (i, to) = if rising { (q % 2, q / 2) } else { (q / 2, q % 2) };
                    let (j, from) = if rising { (p / 2, p % 2) } else { (p % 2, p / 2) };
                    Some((block * 8 + i * 4 + j * 2 + (to ^ from), to < from))
                });
                blocks(gather, n / (2 * stride), stride, 4, 4)
            }
        }
    }

    /// The values of its parameter at which the map is the transform.
    pub(super) fn exact(self, transform: &Transform) -> Vec<f64> {
        let Transform { kind, normalized, n, .. } = *transform;
        match self {
            Step::Pre => interleaved((0..n).map(|b| transform.pre(reversed(b, n)))),
            Step::Post => interleaved((0..n).map(|k| transform.post(k))),
            Step::Spectrum => interleaved(transform.spectrum()),
            Step::Hadamard { .. } => {
                let scale = if normalized { FRAC_1_SQRT_2 } else { 1.0 };
                [scale, scale, scale, -scale].repeat(n / 2)
            }
            Step::Fourier { stride, inverse, rising } => {
                let scale = match inverse {
                    _ if normalized => FRAC_1_SQRT_2,
                    // The cosine transform has no 1/n.
                    true if kind != TransformKind::Dct3 => 0.5,
                    _ => 1.0,
                };
                factor(n, stride, inverse, rising, scale)
            }
        }
    }
}

impl Transform {
    /// What multiplies point `m` before the Fourier transform.
    fn pre(&self, m: usize) -> c64 {
        let angle = PI * (4 * m + 1) as f64 / self.n as f64;
        let sign = if 2 * m < self.n { 1.0 } else { -1.0 };
        match self.kind {
            TransformKind::Dct3 => self.post_of(m, 0).conj(),
            TransformKind::Dct4 => c64::from_polar(sign, -angle / 4.0),
            TransformKind::Dst2 => c64::from_polar(sign, -angle / 2.0),
            _ => c64::from_polar(1.0, -angle / 4.0),
        }
    }

    /// What multiplies point `k` after it.
    fn post(&self, k: usize) -> c64 {
        match self.kind {
            TransformKind::Dct2 if self.normalized => self.post_of(k, 0),
            TransformKind::Dst2 if self.normalized => c64::new(0.0, 1.0) * self.post_of(k, self.n - 1),
            TransformKind::Dct2 | TransformKind::Dct4 => self.post_of(k, self.n),
            _ => c64::new(0.0, 1.0) * self.post_of(k, self.n),
        }
    }

    /// `2 exp(−πik/2n)`, or with √2 when normalized; 1 in place of that factor at `shorter`.
    fn post_of(&self, k: usize, shorter: usize) -> c64 {
        let length = if self.normalized { SQRT_2 } else { 2.0 };
        let length = if k == shorter { 1.0 } else { length };
        c64::from_polar(length, -PI * k as f64 / (2 * self.n) as f64)
    }

    /// The kernel's Fourier transform in bit-reversed order.
    fn spectrum(&self) -> Vec<c64> {
        let (n, period) = (self.n, self.chain.n_in.max(self.chain.n_out));
        let mut points = vec![c64::new(0.0, 0.0); n];
        for (at, &value) in self.kernel.iter().enumerate() {
            // Both are the same place when nothing is embedded.
            points[at] = c64::new(value, 0.0);
            points[n - period + at] = c64::new(value, 0.0);
        }
        for i in (0..n.trailing_zeros()).rev() {
            butterfly(&mut points, &factor(n, 1 << i, false, false, 1.0), 1 << i);
        }
        points
    }
}
