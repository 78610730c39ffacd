//! Where a product goes and what is done with it when it is whole: a bias is added and an activation applied to each tile
//! while it is in cache, where a pass of their own would read and write all of it again.

use crate::activation::{Activation, Curve};
use crate::map::sweep;
use crate::parallel::{elements_per_task, rows_per_task};
use crate::simd::{Isa, Level, MatMut, Vectorize};
use rayon::prelude::*;

/// A product's matrix, or a tile of it, with the bias and the activation that end it: `f(sums + bias)` in place, or in a
/// matrix of its own where the sums are kept for a backward pass.
///
/// Who multiplies writes [`Target::sums`] and calls [`Target::finish`] once for each element, after its last product.
#[derive(Debug)]
pub struct Target<'a> {
    sums: MatMut<'a>,
    /// Of the columns.
    bias: Option<&'a [f32]>,
    act: Activation,
    activated: Option<MatMut<'a>>,
}

impl<'a> Target<'a> {
    /// The product as it is.
    pub fn new(sums: MatMut<'a>) -> Self {
        Self { sums, bias: None, act: Activation::Identity, activated: None }
    }

    /// The same, of contiguous rows.
    pub fn row_major(sums: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::new(MatMut::row_major(sums, rows, cols))
    }

    /// With `bias` added, then `act` applied: in place, or with `activated` there, and the biased sums stay. Panics unless
    /// there is a bias for each column and the matrices agree in shape.
    pub fn ending(self, bias: Option<&'a [f32]>, act: Activation, activated: Option<MatMut<'a>>) -> Self {
        let shape = (self.rows(), self.cols());
        assert!(bias.is_none_or(|bias| bias.len() == shape.1), "a bias of {shape:?}");
        assert!(activated.as_ref().is_none_or(|y| (y.rows(), y.cols()) == shape), "activations of {shape:?}");
        Self { bias, act, activated, ..self }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.sums.rows()
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.sums.cols()
    }

    /// Where the product goes.
    pub fn sums(&mut self) -> MatMut<'_> {
        self.sums.reborrow()
    }

    /// Rows before `at`, and the others.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        let Self { bias, act, .. } = self;
        let (above, below) = self.sums.split_rows(at);
        let (y_above, y_below) = self.activated.map(|y| y.split_rows(at)).unzip();
        let tile = |sums, activated| Self { sums, bias, act, activated };
        (tile(above, y_above), tile(below, y_below))
    }

    /// Columns before `at`, and the others.
    pub fn split_cols(self, at: usize) -> (Self, Self) {
        let act = self.act;
        let (left, right) = self.sums.split_cols(at);
        let (y_left, y_right) = self.activated.map(|y| y.split_cols(at)).unzip();
        let (bias_left, bias_right) = self.bias.map(|bias| bias.split_at(at)).unzip();
        let tile = |sums, bias, activated| Self { sums, bias, act, activated };
        (tile(left, bias_left, y_left), tile(right, bias_right, y_right))
    }

    /// Bands of `height` rows, the last of as many as there are.
    pub fn bands(self, height: usize) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let all = rest.take().filter(|all| all.rows() > 0)?;
            let rows = height.min(all.rows());
            let (band, below) = all.split_rows(rows);
            rest = Some(below);
            Some(band)
        })
    }

    /// Strips of `width` columns, the last of as many as there are.
    pub fn strips(self, width: usize) -> impl Iterator<Item = Self> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let all = rest.take().filter(|all| all.cols() > 0)?;
            let cols = width.min(all.cols());
            let (strip, right) = all.split_cols(cols);
            rest = Some(right);
            Some(strip)
        })
    }

    /// `f(sums + bias)` of every element, which must be whole.
    pub fn finish(self, level: Level) {
        if self.bias.is_some() || self.act != Activation::Identity || self.activated.is_some() {
            level.run(self);
        }
    }

    /// [`Target::finish`] by all threads, for a product that is not cut by outputs.
    pub fn finish_in_parallel(self, level: Level) {
        let (rows, cols) = (self.rows(), self.cols());
        // One row may be long enough for several tasks.
        let bands = self.bands(rows_per_task(rows, cols));
        let tiles: Vec<Self> = bands.flat_map(|band| band.strips(elements_per_task(cols))).collect();
        tiles.into_par_iter().for_each(|tile| tile.finish(level));
    }
}

impl Vectorize for Target<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        // Asked for each register: a closure for each activation would have several call sites and not be compiled in place.
        let act = self.act;
        for r in 0..self.rows() {
            let sums = self.sums.row_mut(r);
            match (self.bias, &mut self.activated) {
                (None, None) => sweep(isa, [], [sums], |[], [sum]| [act.value(isa, sum)]),
                (None, Some(y)) => sweep(isa, [sums], [y.row_mut(r)], |[sum], _| [act.value(isa, sum)]),
                (Some(bias), None) => {
                    sweep(isa, [bias], [sums], |[bias], [sum]| [act.value(isa, isa.add(sum, bias))]);
                }
                (Some(bias), Some(y)) => sweep(isa, [bias], [sums, y.row_mut(r)], |[bias], [sum, _]| {
                    let sum = isa.add(sum, bias);
                    [sum, act.value(isa, sum)]
                }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::tests::{ALL, exact};
    use crate::parallel::TASK;
    use lacewing_testkit::{assert_within, uniform};

    fn inputs(seed: u64, len: usize) -> Vec<f32> {
        uniform(seed, len).iter().map(|x| x * 4.0).collect()
    }

    #[test]
    fn every_shape_and_way_to_cut_it_meets_the_definition_at_every_level() {
        let sizes =
            [(0, 3), (3, 0), (1, 1), (2, 15), (3, 16), (5, 17), (1, 33), (9, 64), (700, 61), (2, 2 * TASK)];
        for ((rows, cols), act) in sizes.into_iter().flat_map(|size| ALL.map(|act| (size, act))) {
            let (x, bias) = (inputs(1, rows * cols), uniform(2, cols));
            for (level, bias) in
                Level::available().into_iter().flat_map(|l| [(l, None), (l, Some(&bias[..]))])
            {
                let what = format!("{act:?} of {rows}x{cols} at {level:?}");
                let pre: Vec<f32> =
                    (0..x.len()).map(|i| bias.map_or(x[i], |bias| x[i] + bias[i % cols])).collect();
                let (want, bound): (Vec<f64>, Vec<f64>) =
                    pre.iter().map(|&x| exact(act, f64::from(x), 0.0)).unzip();
                let (mut sums, mut y) = (x.clone(), vec![f32::NAN; x.len()]);
                let activated = Some(MatMut::row_major(&mut y, rows, cols));
                let all = Target::row_major(&mut sums, rows, cols).ending(bias, act, activated);
                // Each element once, whatever the tiles.
                for band in all.bands(rows.div_ceil(3).max(1)) {
                    band.strips(cols.div_ceil(2).max(1)).for_each(|tile| tile.finish(level));
                }
                assert_eq!(sums, pre, "sums, {what}");
                assert_within(&y, &want, &bound, &what);
                let mut in_place = x.clone();
                Target::row_major(&mut in_place, rows, cols)
                    .ending(bias, act, None)
                    .finish_in_parallel(level);
                assert_eq!(in_place, y, "in place, {what}");
            }
        }
    }

    #[test]
    fn nan_passes_through() {
        for (act, level) in
            ALL.into_iter().flat_map(|act| Level::available().into_iter().map(move |l| (act, l)))
        {
            let mut y = [f32::NAN; 3];
            Target::row_major(&mut y, 1, 3).ending(None, act, None).finish(level);
            assert!(y.iter().all(|y| y.is_nan()), "{act:?} at {level:?}");
        }
    }

    #[test]
    #[should_panic(expected = "a bias of (2, 3)")]
    fn a_bias_that_does_not_fit_is_refused() {
        let _ = Target::row_major(&mut [0.0; 6], 2, 3).ending(Some(&[0.0; 2]), Activation::Identity, None);
    }
}
