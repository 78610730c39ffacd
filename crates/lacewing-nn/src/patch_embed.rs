//! Images to tokens: a linear map of each patch.

use crate::{Linear, LinearOptions, Result, Scope};
use lacewing_engine::{Cx, EngineError, Tensor, Var, ops};

/// A convolution whose stride is its kernel's size, as a product of patches.
///
/// `proj.weight [dim, channels · patch²]` is the convolution's `[dim, channels, patch, patch]` flattened.
#[derive(Debug)]
pub struct PatchEmbed {
    proj: Linear,
    patch: usize,
}

impl PatchEmbed {
    /// Adds `NAME.proj` to `scope`, counted for `tokens` patches an image.
    ///
    /// # Errors
    ///
    /// As [`Scope::linear`].
    pub fn new(
        scope: &mut Scope<'_>,
        name: &str,
        (channels, patch, dim): (usize, usize, usize),
        tokens: usize,
        options: LinearOptions,
    ) -> Result<Self> {
        let proj =
            scope.scope(name).with_rows(tokens).linear("proj", channels * patch * patch, dim, options)?;
        Ok(Self { proj, patch })
    }

    /// `images [batch, channels, height, width]`, f32 → `[batch, (height / patch) · (width / patch), dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports, as for a size that `patch` does not divide.
    pub fn forward(&self, cx: &Cx, images: &Tensor) -> Result<Var, EngineError> {
        self.proj.forward(cx, &ops::patchify(cx, images, self.patch)?)
    }
}
