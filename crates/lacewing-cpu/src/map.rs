//! Elementwise maps of slices: a function of one register, written once, swept over memory in parallel.

use crate::parallel::elements_per_task;
use crate::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// `y = f(x₀, …)`, element by element.
pub trait Map<const N: usize>: Copy + Send + Sync {
    /// One register of `y`. Must be `#[inline(always)]`. Lanes beyond the end of the slices hold zeros.
    fn at<I: Isa>(self, isa: I, x: [I::V; N]) -> I::V;
}

/// `y = f(y, x₀, …)`, element by element.
pub trait Update<const N: usize>: Copy + Send + Sync {
    /// One register of the new `y`. Must be `#[inline(always)]`. Lanes beyond the end of the slices hold zeros.
    fn at<I: Isa>(self, isa: I, y: I::V, x: [I::V; N]) -> I::V;
}

/// `y[i] = f(x₀[i], …)`. Panics if a length differs from that of `y`.
pub fn map<const N: usize>(f: impl Map<N>, x: [&[f32]; N], y: &mut [f32]) {
    let step = checked_step(x, y);
    y.par_chunks_mut(step).enumerate().for_each(|(task, y)| {
        dispatch(Fresh { f, x: x.map(|x| &x[task * step..][..y.len()]), y });
    });
}

/// `y[i] = f(y[i], x₀[i], …)`. Panics if a length differs from that of `y`.
pub fn update<const N: usize>(f: impl Update<N>, y: &mut [f32], x: [&[f32]; N]) {
    let step = checked_step(x, y);
    y.par_chunks_mut(step).enumerate().for_each(|(task, y)| {
        dispatch(InPlace { f, x: x.map(|x| &x[task * step..][..y.len()]), y });
    });
}

fn checked_step<const N: usize>(x: [&[f32]; N], y: &[f32]) -> usize {
    for (i, x) in x.iter().enumerate() {
        assert_eq!(x.len(), y.len(), "operand {i} of an elementwise map");
    }
    elements_per_task(y.len())
}

/// `(y₀, …) = f((x₀, …), (y₀, …))`, register by register, for the rows of a kernel that is vectorized already. Slices
/// are of one length; in the last, partial register the lanes beyond it hold zeros. An old `y` that `f` does not use is
/// not loaded.
#[inline(always)]
pub fn sweep<I: Isa, const N: usize, const M: usize>(
    isa: I,
    x: [&[f32]; N],
    y: [&mut [f32]; M],
    mut f: impl FnMut([I::V; N], [I::V; M]) -> [I::V; M],
) {
    let len = y.first().map_or_else(|| x.first().map_or(0, |x| x.len()), |y| y.len());
    let x = x.map(|x| &x[..len]);
    let y = y.map(|y| &mut y[..len]);
    let mut at = 0;
    while at < len {
        // `f` has one call site, so that it is always compiled in place.
        let whole = len - at >= I::LANES;
        let end = if whole { at + I::LANES } else { len };
        let (new_x, old_y): ([I::V; N], [I::V; M]) = if whole {
            (
                std::array::from_fn(|i| isa.load(&x[i][at..end])),
                std::array::from_fn(|i| isa.load(&y[i][at..end])),
            )
        } else {
            (
                std::array::from_fn(|i| isa.load_partial(&x[i][at..end])),
                std::array::from_fn(|i| isa.load_partial(&y[i][at..end])),
            )
        };
        let new_y = f(new_x, old_y);
        for i in 0..M {
            if whole {
                isa.store(&mut y[i][at..end], new_y[i]);
            } else {
                isa.store_partial(&mut y[i][at..end], new_y[i]);
            }
        }
        at = end;
    }
}

struct Fresh<'a, F, const N: usize> {
    f: F,
    x: [&'a [f32]; N],
    y: &'a mut [f32],
}

impl<F: Map<N>, const N: usize> Vectorize for Fresh<'_, F, N> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let f = self.f;
        sweep(isa, self.x, [self.y], |x, _| [f.at(isa, x)]);
    }
}

struct InPlace<'a, F, const N: usize> {
    f: F,
    x: [&'a [f32]; N],
    y: &'a mut [f32],
}

impl<F: Update<N>, const N: usize> Vectorize for InPlace<'_, F, N> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let f = self.f;
        sweep(isa, self.x, [self.y], |x, [y]| [f.at(isa, y, x)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parallel::TASK;
    use crate::simd::{Level, with_level};

    #[derive(Clone, Copy)]
    struct Difference;

    impl Map<2> for Difference {
        #[inline(always)]
        fn at<I: Isa>(self, isa: I, [a, b]: [I::V; 2]) -> I::V {
            isa.sub(a, b)
        }
    }

    impl Update<1> for Difference {
        #[inline(always)]
        fn at<I: Isa>(self, isa: I, y: I::V, [x]: [I::V; 1]) -> I::V {
            isa.sub(y, x)
        }
    }

    #[test]
    fn every_length_at_every_level() {
        for level in Level::available() {
            for len in [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 2 * TASK + 5] {
                let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
                let b: Vec<f32> = (0..len).map(|i| (i % 7) as f32 * 2.0).collect();
                let wanted: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
                let mut y = vec![f32::NAN; len];
                with_level(level, || map(Difference, [&a, &b], &mut y));
                assert_eq!(y, wanted, "map of {len} at {level:?}");
                let mut y = a.clone();
                with_level(level, || update(Difference, &mut y, [&b]));
                assert_eq!(y, wanted, "update of {len} at {level:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "operand 1 of an elementwise map")]
    fn a_length_that_differs_is_refused() {
        map(Difference, [&[0.0; 3], &[0.0; 2]], &mut [0.0; 3]);
    }
}
