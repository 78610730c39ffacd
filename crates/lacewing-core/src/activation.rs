//! What a layer applies to its product.

/// What a layer applies to its product. The numbers are those by which kernels know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u32)]
pub enum Activation {
    /// `f(x) = x`.
    #[default]
    Identity = 0,
    /// `f(x) = max(x, 0)`.
    Relu = 1,
    /// `f(x) = x Φ(x)`, Φ the normal distribution function, through erf.
    Gelu = 2,
    /// GELU by `½x(1 + tanh(√(2/π)(x + 0.044715x³)))`.
    GeluTanh = 3,
}
