//! Elementary functions of a register, generic over the instruction set.
//!
//! The errors stated are the greatest seen on dense sweeps against f64 (the tests hold them); a unit in the last
//! place (ulp) is that of the exact result. NaN gives NaN. Levels without a fused multiply-add may round once more.

use crate::simd::Isa;

/// Horner's rule: `c[0] + c[1] x + c[2] x² + …`.
#[inline(always)]
fn polynomial<I: Isa, const N: usize>(isa: I, x: I::V, c: [f32; N]) -> I::V {
    let mut sum = isa.splat(c[N - 1]);
    for &c in c[..N - 1].iter().rev() {
        sum = isa.mul_add(sum, x, isa.splat(c));
    }
    sum
}

/// `eˣ` within 2 ulp; 0 below -104, +∞ above 88.73, subnormal results kept.
#[inline(always)]
pub fn exp<I: Isa>(isa: I, x: I::V) -> I::V {
    // x = n ln 2 + r with |r| ≤ ln 2 / 2, ln 2 in two parts so that r keeps its digits.
    let x = isa.max(isa.splat(-105.0), isa.min(isa.splat(89.5), x));
    let n = isa.round(isa.mul(x, isa.splat(std::f32::consts::LOG2_E)));
    let r = isa.mul_add(n, isa.splat(-0.693_359_4), x);
    let r = isa.mul_add(n, isa.splat(2.121_944_4e-4), r);
    let tail = [0.499_999_93, 0.166_665_2, 0.041_668_39, 0.008_368_717, 0.001_381_459_6];
    let p = isa.mul_add(isa.mul(r, r), polynomial(isa, r, tail), r);
    isa.scale_by_pow2(isa.add(p, isa.splat(1.0)), n)
}

/// The standard normal density without its constant, `exp(-x² / 2)`, and `Φ(-|x|) = P(X ≤ -|x|)`, the lower tail of
/// the normal distribution, which shares the exponential.
#[inline(always)]
fn normal_tail<I: Isa>(isa: I, x: I::V) -> (I::V, I::V) {
    let t = isa.min(isa.splat(14.5), isa.abs(x));
    let density = exp(isa, isa.mul(isa.mul(t, t), isa.splat(-0.5)));
    // Φ(-t) exp(t² / 2), a slowly falling function, as a quotient of polynomials.
    let above = [0.5, 0.438_296_7, 0.183_236_1, 0.040_633_456, 0.004_116_314_3];
    let below = [1.0, 1.674_478_4, 1.202_507_9, 0.469_473_1, 0.101_859_41, 0.010_317_95];
    let ratio = isa.div(polynomial(isa, t, above), polynomial(isa, t, below));
    (density, isa.mul(density, ratio))
}

/// `Φ(x)`, the standard normal distribution, and `exp(-x² / 2)`.
#[inline(always)]
fn normal<I: Isa>(isa: I, x: I::V) -> (I::V, I::V) {
    let (density, tail) = normal_tail(isa, x);
    let upper = isa.sub(isa.splat(1.0), tail);
    (isa.select(isa.lt(x, isa.splat(0.0)), tail, upper), density)
}

/// The error function within 3 ulp.
#[inline(always)]
pub fn erf<I: Isa>(isa: I, x: I::V) -> I::V {
    let near = [
        std::f32::consts::FRAC_2_SQRT_PI,
        -0.376_125_23,
        0.112_821_41,
        -0.026_778_909,
        0.005_011_962_4,
        -6.090_358e-4,
    ];
    let near = isa.mul(x, polynomial(isa, isa.mul(x, x), near));
    let (_, tail) = normal_tail(isa, isa.mul(x, isa.splat(std::f32::consts::SQRT_2)));
    let far = isa.mul_add(tail, isa.splat(-2.0), isa.splat(1.0));
    let far = isa.select(isa.lt(x, isa.splat(0.0)), isa.neg(far), far);
    isa.select(isa.lt(isa.abs(x), isa.splat(0.9)), near, far)
}

/// `tanh x` within 3 ulp.
#[inline(always)]
pub fn tanh<I: Isa>(isa: I, x: I::V) -> I::V {
    let square = isa.mul(x, x);
    let near = [-0.333_332_8, 0.133_314_53, -0.053_740_667, 0.020_642_343, -0.005_708_781_7];
    let near = isa.mul_add(isa.mul(x, square), polynomial(isa, square, near), x);
    let one = isa.splat(1.0);
    let e = exp(isa, isa.mul(isa.abs(x), isa.splat(2.0)));
    let far = isa.sub(one, isa.div(isa.splat(2.0), isa.add(e, one)));
    let far = isa.select(isa.lt(x, isa.splat(0.0)), isa.neg(far), far);
    isa.select(isa.lt(isa.abs(x), isa.splat(0.62)), near, far)
}

/// `1 / (1 + e⁻ˣ)` within 4 ulp while the result is normal.
#[inline(always)]
pub fn sigmoid<I: Isa>(isa: I, x: I::V) -> I::V {
    let e = exp(isa, isa.neg(isa.abs(x)));
    let top = isa.select(isa.lt(x, isa.splat(0.0)), e, isa.splat(1.0));
    isa.div(top, isa.add(isa.splat(1.0), e))
}

/// `ln(1 + e^{-|x|})`, what `ln(1 + eˣ)` exceeds `max(x, 0)` by, within 5 ulp while the result is normal.
#[inline(always)]
pub fn softplus_excess<I: Isa>(isa: I, x: I::V) -> I::V {
    // ln(1 + e) = 2 artanh(s) with s = e / (2 + e) ≤ 1/3; the series' next term is below 2⁻²⁹ of the whole.
    let e = exp(isa, isa.neg(isa.abs(x)));
    let s = isa.div(e, isa.add(e, isa.splat(2.0)));
    let (double, square) = (isa.add(s, s), isa.mul(s, s));
    let tail = [1.0 / 3.0, 1.0 / 5.0, 1.0 / 7.0, 1.0 / 9.0, 1.0 / 11.0, 1.0 / 13.0, 1.0 / 15.0];
    isa.mul_add(isa.mul(double, square), polynomial(isa, square, tail), double)
}

/// `x Φ(x)`, the exact GELU, within `4 + x²` ulp on `|x| < 12`.
#[inline(always)]
pub fn gelu<I: Isa>(isa: I, x: I::V) -> I::V {
    let (cdf, _) = normal(isa, x);
    isa.mul(x, cdf)
}

/// `d/dx x Φ(x) = Φ(x) + x exp(-x² / 2) / √(2π)`, within `2⁻²²` absolutely.
#[inline(always)]
pub fn gelu_derivative<I: Isa>(isa: I, x: I::V) -> I::V {
    let (cdf, density) = normal(isa, x);
    // Where the density has vanished so must the product, though x be infinite.
    let x = isa.max(isa.splat(-14.5), isa.min(isa.splat(14.5), x));
    isa.mul_add(isa.mul(x, isa.splat(0.398_942_3)), density, cdf)
}

/// `√(2/π)`.
const TANH_SCALE: f32 = 0.797_884_6;
const TANH_CUBE: f32 = 0.044_715;

/// `½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))`, within `(1 + |x|) 2⁻²²` absolutely.
#[inline(always)]
pub fn gelu_tanh<I: Isa>(isa: I, x: I::V) -> I::V {
    // ½ (1 + tanh u) = sigmoid(2u), which keeps its digits where the result is small.
    isa.mul(x, sigmoid(isa, twice_inner(isa, x)))
}

/// `2 √(2/π) (x + 0.044715 x³)`.
#[inline(always)]
fn twice_inner<I: Isa>(isa: I, x: I::V) -> I::V {
    let cubic = isa.mul_add(isa.mul(x, x), isa.splat(TANH_CUBE), isa.splat(1.0));
    isa.mul(isa.mul(x, isa.splat(2.0 * TANH_SCALE)), cubic)
}

/// The derivative of [`gelu_tanh`], within `2⁻²⁰` absolutely.
#[inline(always)]
pub fn gelu_tanh_derivative<I: Isa>(isa: I, x: I::V) -> I::V {
    // Beyond 12 the sigmoid is 0 or 1 to the last digit: the clamp keeps ∞ · 0 away.
    let x = isa.max(isa.splat(-12.0), isa.min(isa.splat(12.0), x));
    // With e = exp(-|2u|): sigmoid = 1 / (1 + e) or e / (1 + e), its derivative e / (1 + e)².
    let inner = twice_inner(isa, x);
    let one = isa.splat(1.0);
    let e = exp(isa, isa.neg(isa.abs(inner)));
    let part = isa.div(one, isa.add(one, e));
    let other = isa.mul(e, part);
    let s = isa.select(isa.lt(inner, isa.splat(0.0)), other, part);
    let slope = isa.mul_add(isa.mul(x, x), isa.splat(3.0 * TANH_CUBE), one);
    let slope = isa.mul(isa.mul(x, isa.splat(2.0 * TANH_SCALE)), slope);
    isa.mul_add(isa.mul(slope, part), other, s)
}

#[cfg(test)]
pub(crate) mod tests;
