//! Bias and activation on the CPU, one pass each.

use super::Activation;
use lacewing_cpu::map::{Map, map, sweep};
use lacewing_cpu::math;
use lacewing_cpu::parallel::{add_partials, partial_rows, rows_per_task};
use lacewing_cpu::scratch::scratch;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// A function and its derivative, one register at a time.
trait Curve: Copy + Send + Sync {
    fn value<I: Isa>(isa: I, x: I::V) -> I::V;
    fn slope<I: Isa>(isa: I, x: I::V) -> I::V;
}

macro_rules! curves {
    ($($name:ident: $isa:ident, $x:ident => $value:expr, $slope:expr;)+) => {$(
        #[derive(Clone, Copy)]
        struct $name;

        impl Curve for $name {
            #[inline(always)]
            fn value<I: Isa>($isa: I, $x: I::V) -> I::V {
                $value
            }
            #[inline(always)]
            fn slope<I: Isa>($isa: I, $x: I::V) -> I::V {
                $slope
            }
        }
    )+};
}

curves! {
    Identity: isa, x => { let _ = isa; x }, { let _ = x; isa.splat(1.0) };
    Relu: isa, x => isa.max(isa.splat(0.0), x), {
        let zero = isa.splat(0.0);
        isa.select(isa.lt(zero, x), isa.splat(1.0), zero)
    };
    Gelu: isa, x => math::gelu(isa, x), math::gelu_derivative(isa, x);
    GeluTanh: isa, x => math::gelu_tanh(isa, x), math::gelu_tanh_derivative(isa, x);
}

/// Calls `$f::<C>` with the curve of an activation.
macro_rules! with_curve {
    ($act:expr, $f:ident($($arg:expr),*)) => {
        match $act {
            Activation::Identity => $f::<Identity>($($arg),*),
            Activation::Relu => $f::<Relu>($($arg),*),
            Activation::Gelu => $f::<Gelu>($($arg),*),
            Activation::GeluTanh => $f::<GeluTanh>($($arg),*),
        }
    };
}

/// `pre += bias`, then `y = f(pre)`; without `y` only the sum.
///
/// Shapes: `pre`, `y [rows, cols]`, `bias [cols]`.
pub(super) fn bias_act_forward(
    pre: &mut [f32],
    bias: Option<&[f32]>,
    y: Option<&mut [f32]>,
    cols: usize,
    act: Activation,
) {
    assert!(bias.is_none_or(|bias| bias.len() == cols));
    assert!(y.as_ref().is_none_or(|y| y.len() == pre.len()));
    if cols == 0 {
        return;
    }
    with_curve!(act, forward_rows(pre, bias, y, cols));
}

fn forward_rows<C: Curve>(pre: &mut [f32], bias: Option<&[f32]>, y: Option<&mut [f32]>, cols: usize) {
    let step = rows_per_task(pre.len() / cols, cols) * cols;
    match (bias, y) {
        (None, None) => {}
        (None, Some(y)) => map(Value::<C>(std::marker::PhantomData), [pre], y),
        (Some(bias), None) => {
            pre.par_chunks_mut(step).for_each(|pre| dispatch(AddBias { pre, bias }));
        }
        (Some(bias), Some(y)) => {
            pre.par_chunks_mut(step).zip(y.par_chunks_mut(step)).for_each(|(pre, y)| {
                dispatch(BiasAct::<C> { pre, bias, y, curve: std::marker::PhantomData });
            });
        }
    }
}

#[derive(Clone, Copy)]
struct Value<C>(std::marker::PhantomData<C>);

impl<C: Curve> Map<1> for Value<C> {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, [x]: [I::V; 1]) -> I::V {
        C::value(isa, x)
    }
}

struct AddBias<'a> {
    pre: &'a mut [f32],
    bias: &'a [f32],
}

impl Vectorize for AddBias<'_> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for pre in self.pre.chunks_exact_mut(self.bias.len()) {
            sweep(isa, [self.bias], [pre], |[bias], [pre]| [isa.add(pre, bias)]);
        }
    }
}

struct BiasAct<'a, C> {
    pre: &'a mut [f32],
    bias: &'a [f32],
    y: &'a mut [f32],
    curve: std::marker::PhantomData<C>,
}

impl<C: Curve> Vectorize for BiasAct<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.bias.len();
        for (pre, y) in self.pre.chunks_exact_mut(cols).zip(self.y.chunks_exact_mut(cols)) {
            sweep(isa, [self.bias], [pre, y], |[bias], [pre, _]| {
                let pre = isa.add(pre, bias);
                [pre, C::value(isa, pre)]
            });
        }
    }
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
    with_curve!(act, backward_rows(dy, pre, dpre, dbias, cols));
}

fn backward_rows<C: Curve>(
    dy: &[f32],
    pre: &[f32],
    dpre: &mut [f32],
    dbias: Option<&mut [f32]>,
    cols: usize,
) {
    let Some(dbias) = dbias else {
        return map(Slope::<C>(std::marker::PhantomData), [dy, pre], dpre);
    };
    let rows = dpre.len() / cols;
    let step = partial_rows(rows, cols);
    scratch(rows.div_ceil(step) * cols, |partials| {
        let inputs = dy.par_chunks(step * cols).zip(pre.par_chunks(step * cols));
        let outputs = dpre.par_chunks_mut(step * cols).zip(partials.par_chunks_mut(cols));
        inputs.zip(outputs).for_each(|((dy, pre), (dpre, sums))| {
            dispatch(Backward::<C> { dy, pre, dpre, sums, curve: std::marker::PhantomData });
        });
        add_partials(dbias, partials);
    });
}

#[derive(Clone, Copy)]
struct Slope<C>(std::marker::PhantomData<C>);

impl<C: Curve> Map<2> for Slope<C> {
    #[inline(always)]
    fn at<I: Isa>(self, isa: I, [dy, x]: [I::V; 2]) -> I::V {
        isa.mul(dy, C::slope(isa, x))
    }
}

struct Backward<'a, C> {
    dy: &'a [f32],
    pre: &'a [f32],
    dpre: &'a mut [f32],
    sums: &'a mut [f32],
    curve: std::marker::PhantomData<C>,
}

impl<C: Curve> Vectorize for Backward<'_, C> {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let cols = self.sums.len();
        self.sums.fill(0.0);
        let rows = self.dy.chunks_exact(cols).zip(self.pre.chunks_exact(cols));
        for ((dy, pre), dpre) in rows.zip(self.dpre.chunks_exact_mut(cols)) {
            sweep(isa, [dy, pre], [dpre, &mut *self.sums], |[dy, pre], [_, sum]| {
                let dpre = isa.mul(dy, C::slope(isa, pre));
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

    /// Error of a curve's value and slope at |x| < 8 (as `lacewing_cpu::math` states), absolutely.
    const CURVE_ERROR: f64 = 10.0 / (1u32 << 20) as f64;

    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        2.0 / std::f64::consts::PI.sqrt() * sum
    }

    fn exact(act: Activation, x: f64) -> (f64, f64) {
        let pi = std::f64::consts::PI;
        match act {
            Activation::Identity => (x, 1.0),
            Activation::Relu => (x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }),
            Activation::Gelu => {
                let cdf = 0.5 * (1.0 + erf(x / 2f64.sqrt()));
                (x * cdf, cdf + x * (-x * x / 2.0).exp() / (2.0 * pi).sqrt())
            }
            Activation::GeluTanh => {
                let u = (2.0 / pi).sqrt() * (x + 0.044715 * x.powi(3));
                let du = (2.0 / pi).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
                (0.5 * x * (1.0 + u.tanh()), 0.5 * (1.0 + u.tanh()) + 0.5 * x * du / u.cosh().powi(2))
            }
        }
    }

    fn inputs(seed: u64, len: usize) -> Vec<f32> {
        uniform(seed, len).iter().map(|x| x * 4.0).collect()
    }

    #[test]
    fn forward_and_backward_meet_the_definition_at_every_level() {
        for ((rows, cols), act) in SIZES.into_iter().flat_map(|s| KINDS.into_iter().map(move |a| (s, a))) {
            let (x, dy) = (inputs(1, rows * cols), inputs(2, rows * cols));
            let (bias, start) = (uniform(3, cols), uniform(4, cols));
            for level in Level::available() {
                for bias in [None, Some(&bias[..])] {
                    let (mut pre, mut y) = (x.clone(), vec![f32::NAN; x.len()]);
                    with_level(level, || bias_act_forward(&mut pre, bias, Some(&mut y), cols, act));
                    for (i, pre) in pre.iter().enumerate() {
                        assert_eq!(*pre, bias.map_or(x[i], |bias| x[i] + bias[i % cols]), "pre at {level:?}");
                    }
                    let wanted: Vec<f64> = pre.iter().map(|x| exact(act, f64::from(*x)).0).collect();
                    assert_within(&y, &wanted, &vec![CURVE_ERROR; y.len()], "y");
                    let mut sum = x.clone();
                    with_level(level, || bias_act_forward(&mut sum, bias, None, cols, act));
                    assert_eq!(sum, pre, "the sum alone");
                }
                let (mut dpre, mut dbias) = (vec![f32::NAN; x.len()], start.clone());
                with_level(level, || act_backward_bias(&dy, &x, &mut dpre, Some(&mut dbias), cols, act));
                let wanted: Vec<f64> =
                    x.iter().zip(&dy).map(|(x, dy)| f64::from(*dy) * exact(act, f64::from(*x)).1).collect();
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

    #[test]
    fn nan_passes_through() {
        for act in KINDS {
            let (mut pre, mut y) = ([f32::NAN; 3], [0.0; 3]);
            bias_act_forward(&mut pre, None, Some(&mut y), 3, act);
            assert!(y.iter().all(|y| y.is_nan()), "{act:?}");
        }
    }
}
