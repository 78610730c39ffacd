//! Cutting images into patches: the strided convolution of a vision transformer, as a reshape before a linear map.

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, DType, EngineError, Result, Tensor, Var};

/// Images as rows of patches.
///
/// Shapes: `images [batch, channels, height, width]` f32 → `[batch, (height/patch)·(width/patch), channels·patch²]` in
/// the compute type; patches row by row, inside one the order is (channel, y, x), as a convolution's weight has it.
///
/// # Errors
///
/// [`EngineError::Shape`] unless the patch divides height and width.
pub fn patchify(cx: &Cx, images: &Tensor, patch: usize) -> Result<Var> {
    images.expect_dtype("patchify", "images", DType::F32)?;
    let fits = |&[_, _, height, width]: &[usize; 4]| patch > 0 && height % patch == 0 && width % patch == 0;
    let shape = <&[usize; 4]>::try_from(images.shape()).ok().filter(|shape| fits(shape));
    let Some(&[batch, channels, height, width]) = shape else {
        let expected = format!("[batch, channels, height, width], both sizes multiples of {patch}");
        return Err(EngineError::Shape {
            op: "patchify",
            operand: "images",
            expected,
            got: images.shape().to_vec(),
        });
    };
    let n_patches = (height / patch) * (width / patch);
    let y = images.beside(cx.compute_dtype(), &[batch, n_patches, channels * patch * patch])?;
    match y.gpu() {
        None => cpu::patchify(&images.read(), &mut y.write(), batch, channels, height, width, patch),
        Some(gpu) => cuda::patchify(gpu, images, &y, batch, channels, height, width, patch)?,
    }
    Ok(cx.constant(y))
}
