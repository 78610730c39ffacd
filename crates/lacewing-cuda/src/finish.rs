//! How a layer ends.

use crate::Region;
use lacewing_core::Activation;

/// What a layer does to its product before it is stored: `f(product + bias)`.
///
/// GELU of either form is off by `2^-11.7 |x|` at most, an eighth of what rounding GELU(|x|) to bf16 may cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Finish<'a> {
    /// `[n_out]`, of the product's type, if any.
    pub bias: Option<&'a Region>,
    /// `f`.
    pub activation: Activation,
}
