//! What a layer applies to its product, and its slope.

use crate::math;
use crate::simd::Isa;
pub use lacewing_core::Activation;

/// An [`Activation`] on vectors.
pub trait Curve: Copy {
    /// `f(x)`.
    fn value<I: Isa>(self, isa: I, x: I::V) -> I::V;

    /// `f'(x)`.
    fn slope<I: Isa>(self, isa: I, x: I::V) -> I::V;
}

impl Curve for Activation {
    #[inline(always)]
    fn value<I: Isa>(self, isa: I, x: I::V) -> I::V {
        match self {
            Self::Identity => x,
            Self::Relu => isa.max(isa.splat(0.0), x),
            Self::Gelu => math::gelu(isa, x),
            Self::GeluTanh => math::gelu_tanh(isa, x),
        }
    }

    #[inline(always)]
    fn slope<I: Isa>(self, isa: I, x: I::V) -> I::V {
        let (zero, one) = (isa.splat(0.0), isa.splat(1.0));
        match self {
            Self::Identity => one,
            Self::Relu => isa.select(isa.lt(zero, x), one, zero),
            Self::Gelu => math::gelu_derivative(isa, x),
            Self::GeluTanh => math::gelu_tanh_derivative(isa, x),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::Activation;
    use lacewing_testkit::{gelu_tanh, normal_cdf};

    pub(crate) const ALL: [Activation; 4] =
        [Activation::Identity, Activation::Relu, Activation::Gelu, Activation::GeluTanh];

    /// `f(x)`, and how far from it a value may be that was made of `x ± error`.
    pub(crate) fn exact(act: Activation, x: f64, error: f64) -> (f64, f64) {
        let (unit, tiny) = (2f64.powi(-23), f64::from(f32::MIN_POSITIVE));
        // Errors of the curves as `math` states them; no slope is above 1.13.
        match act {
            Activation::Identity => (x, error),
            Activation::Relu => (x.max(0.0), error),
            Activation::Gelu => {
                let ulps = 4.0 + (x * x).min(144.0);
                (x * normal_cdf(x), 1.13 * error + ulps * unit * (x.abs() + error) + tiny)
            }
            Activation::GeluTanh => (gelu_tanh(x), 1.13 * error + 2.0 * unit * (1.0 + x.abs() + error)),
        }
    }
}
