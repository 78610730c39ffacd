//! Bias and activation on the CPU, one pass each.

use super::Activation;
use crate::Tensor;
use lacewing_cpu::activation::Curve;
use lacewing_cpu::finish::Target;
use lacewing_cpu::map::{Map, map, sweep};
use lacewing_cpu::parallel::{add_partials, partial_rows};
use lacewing_cpu::scratch::scratch;
use lacewing_cpu::simd::{Isa, Level, MatMut, Vectorize, dispatch};
use rayon::prelude::*;

/// Calls `product` with where it goes: `pre`, to be ended by `bias` and `act`, in `y` if there is one.
///
/// Shapes: `pre`, `y [..., cols]`, `bias [cols]`.
pub(super) fn with_target(
    pre: &Tensor,
    bias: Option<&Tensor>,
    y: Option<&Tensor>,
    act: Activation,
    product: impl FnOnce(Target<'_>),
) {
    let (rows, cols) = (pre.rows(), pre.cols());
    let (mut sums, bias, mut y) = (pre.write(), bias.map(Tensor::read), y.map(Tensor::write));
    let y = y.as_deref_mut().map(|y| MatMut::row_major(y, rows, cols));
    product(Target::row_major(&mut sums, rows, cols).ending(bias.as_deref(), act, y));
}

/// `pre += bias`, then `y = f(pre)`; without `y` all of it in place.
pub(super) fn finish(pre: &Tensor, bias: Option<&Tensor>, y: Option<&Tensor>, act: Activation) {
    with_target(pre, bias, y, act, |all| all.finish_in_parallel(Level::current()));
}

/// `dbias += Σ_rows d`. Shapes: `d [rows, cols]`, `dbias [cols]`.
pub(super) fn bias_grad(d: &[f32], dbias: &mut [f32], cols: usize) {
    assert_eq!(dbias.len(), cols);
    if d.is_empty() {
        return;
    }
    let rows = d.len() / cols;
    let step = partial_rows(rows, cols);
    scratch(rows.div_ceil(step) * cols, |partials| {
        partials.par_chunks_mut(cols).zip(d.par_chunks(step * cols)).for_each(|(sums, d)| {
            dispatch(AddRows { d, sums });
        });
        add_partials(dbias, partials);
    });
}

struct AddRows<'a> {
    d: &'a [f32],
    sums: &'a mut [f32],
}

impl Vectorize for AddRows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        self.sums.fill(0.0);
        for d in self.d.chunks_exact(self.sums.len()) {
            sweep(isa, [d], [&mut *self.sums], |[d], [sum]| [isa.add(sum, d)]);
        }
    }
}

/// `dpre = dy · f'(pre)`, and `dbias += Σ_rows dpre` in the same pass.
///
/// Shapes: `dy`, `pre`, `dpre [rows, cols]`, `dbias [cols]`.
pub(super) fn act_backward_bias(
    dy: &[f32],
    pre: &[f32],
    dpre: &mut [f32],
    dbias: Option<&mut [f32]>,
    cols: usize,
    act: Activation,
) {
    assert_eq!((dy.len(), pre.len()), (dpre.len(), dpre.len()));
    assert!(dbias.as_ref().is_none_or(|dbias| dbias.len() == cols));
    if dpre.is_empty() {
        return;
    }
    let Some(dbias) = dbias else {
        return map(Slope(act), [dy, pre], dpre);
    };
    let rows = dpre.len() / cols;
    let step = partial_rows(rows, cols);
    scratch(rows.div_ceil(step) * cols, |partials| {
        let inputs = dy.par_chunks(step * cols).zip(pre.par_chunks(step * cols));
        let outputs = dpre.par_chunks_mut(step * cols).zip(partials.par_chunks_mut(cols));
        inputs.zip(outputs).for_each(|((dy, pre), (dpre, sums))| {
            dispatch(Backward { dy, pre, dpre, sums, act });
        });
        add_partials(dbias, partials);
    });
}

#[derive(Clone, Copy)]
struct Slope(Activation);

impl Map<2> for Slope {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, [dy, x]: [I::V; 2]) -> I::V {
        isa.mul(dy, self.0.slope(isa, x))
    }
}

struct Backward<'a> {
    dy: &'a [f32],
    pre: &'a [f32],
    dpre: &'a mut [f32],
    sums: &'a mut [f32],
    act: Activation,
}

impl Vectorize for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.sums.len();
        self.sums.fill(0.0);
        let rows = self.dy.chunks_exact(cols).zip(self.pre.chunks_exact(cols));
        for ((dy, pre), dpre) in rows.zip(self.dpre.chunks_exact_mut(cols)) {
            sweep(isa, [dy, pre], [dpre, &mut *self.sums], |[dy, pre], [_, sum]| {
                let dpre = isa.mul(dy, self.act.slope(isa, pre));
                [dpre, isa.add(sum, dpre)]
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma, uniform, widen};

    const SIZES: [(usize, usize); 8] =
        [(0, 3), (1, 1), (2, 15), (3, 16), (5, 17), (1, 33), (9, 64), (700, 61)];
    const KINDS: [Activation; 4] =
        [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh];

    /// Error of a slope at |x| < 8 (as `lacewing_cpu::math` states), absolutely.
    const CURVE_ERROR: f64 = 10.0 / (1u32 << 20) as f64;

    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    }

    fn slope(act: Activation, x: f64) -> f64 {
        let pi = std::f64::consts::PI;
        match act {
            Activation::Identity => 1.0,
            Activation::Relu => f64::from(x > 0.0),
            Activation::Gelu => {
                let cdf = 0.5 * (1.0 + erf(x / 2f64.sqrt()));
                cdf + x * (-x * x / 2.0).exp() / (2.0 * pi).sqrt()
            }
            Activation::GeluTanh => {
                let u = (2.0 / pi).sqrt() * (x + 0.044715 * x.powi(3));
                let du = (2.0 / pi).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
                0.5 * (1.0 + u.tanh()) + 0.5 * x * du / u.cosh().powi(2)
            }
        }
    }

    fn inputs(seed: u64, len: usize) -> Vec<f32> {
        uniform(seed, len).iter().map(|x| x * 4.0).collect()
    }

    #[test]
    fn gradients_meet_the_definition_at_every_level() {
        for ((rows, cols), act) in SIZES.into_iter().flat_map(|s| KINDS.into_iter().map(move |a| (s, a))) {
            let (x, dy) = (inputs(1, rows * cols), inputs(2, rows * cols));
            let start = uniform(4, cols);
            for level in Level::available() {
                let (mut dpre, mut dbias) = (vec![f32::NAN; x.len()], start.clone());
                with_level(level, || act_backward_bias(&dy, &x, &mut dpre, Some(&mut dbias), cols, act));
                let wanted: Vec<f64> =
                    x.iter().zip(&dy).map(|(x, dy)| f64::from(*dy) * slope(act, f64::from(*x))).collect();
                assert_within(&dpre, &wanted, &vec![5.0 * CURVE_ERROR; dpre.len()], "dpre");
                check_sums(&dbias, &start, &dpre, rows);
                let mut alone = vec![f32::NAN; x.len()];
                with_level(level, || act_backward_bias(&dy, &x, &mut alone, None, cols, act));
                assert_eq!(alone, dpre, "without a bias");
                let mut dbias = start.clone();
                with_level(level, || bias_grad(&dy, &mut dbias, cols));
                check_sums(&dbias, &start, &dy, rows);
            }
        }
    }

    fn check_sums(got: &[f32], start: &[f32], d: &[f32], rows: usize) {
        let mut sums = widen(start);
        let mut sizes: Vec<f64> = sums.iter().map(|s| s.abs()).collect();
        for (i, d) in d.iter().enumerate() {
            sums[i % start.len()] += f64::from(*d);
            sizes[i % start.len()] += f64::from(d.abs());
        }
        let bound: Vec<f64> = sizes.iter().map(|size| gamma(rows + 1) * size).collect();
        assert_within(got, &sums, &bound, "dbias");
    }
}
