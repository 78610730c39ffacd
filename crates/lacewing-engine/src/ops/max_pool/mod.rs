//! The largest value of each window of an image, channel by channel.

mod cpu;
pub(crate) mod cuda;

use super::Window;
use super::unfold::Sizes;
use crate::{Cx, DType, Result, Tensor, Var};

/// `y[b, i, j, c] = max_{ky, kx} x[b, i · stride + ky − padding, j · stride + kx − padding, c]` over the places inside the
/// image. Of equal values the first in the order (ky, kx) counts, and alone takes the gradient; a NaN is larger than any
/// number.
///
/// Shapes: `x [batch, height, width, channels]`, channels last → `[batch, down, across, channels]`. Cost: a pass that reads
/// each value up to `kh · kw` times, and four bytes for each of y until the backward pass.
///
/// # Errors
///
/// [`crate::EngineError::Shape`] unless x has four dimensions and room for a window; [`crate::EngineError::Value`] for a padding that
/// leaves a window nothing of the image.
pub fn max_pool(cx: &Cx, x: &Var, window: Window) -> Result<Var> {
    let sizes = Sizes::of("max_pool", x, window)?;
    let (kh, kw) = window.kernel;
    if window.padding >= kh.min(kw) {
        let expected = format!("less than the window {kh}×{kw}");
        return Err(crate::tape::value_error("max_pool", "padding", expected, window.padding));
    }
    let shape = [sizes.batch, sizes.places.0, sizes.places.1, sizes.channels];
    let y = x.value().like(&shape)?;
    let taps = cx.records(&[x]).then(|| x.value().beside(DType::U32, &shape)).transpose()?;
    match y.gpu() {
        None => {
            let mut taps = taps.as_ref().map(Tensor::write_u32);
            cpu::forward(&x.value().read(), &mut y.write(), taps.as_deref_mut(), sizes);
        }
        Some(gpu) => cuda::forward(gpu, x.value(), &y, taps.as_ref(), sizes)?,
    }
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| {
        let taps = taps.expect("the op is recorded");
        let dx = dy.like(&[sizes.batch, sizes.height, sizes.width, sizes.channels])?;
        match dx.gpu() {
            None => cpu::backward(&dy.read(), &taps.read_u32(), &mut dx.write(), sizes),
            Some(gpu) => cuda::backward(gpu, &dy, &taps, &dx, sizes)?,
        }
        gradients.add(&x_var, dx)
    }))
}
