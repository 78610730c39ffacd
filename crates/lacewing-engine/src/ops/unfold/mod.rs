//! Windows of an image as rows (im2col): a convolution becomes a linear map of any structure.

mod cpu;
pub(crate) mod cuda;

use crate::{Cx, EngineError, Result, Tensor, Var};

/// The windows of a convolution; no dilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height and width.
    pub kernel: (usize, usize),
    /// Distance from one window to the next, down and across.
    pub stride: usize,
    /// Rows and columns of zeros on each side of the image.
    pub padding: usize,
}

impl Window {
    /// How many windows an image of this height and width has, down and across; `None` when it has none.
    pub fn places(&self, (height, width): (usize, usize)) -> Option<(usize, usize)> {
        let along = |len: usize, kernel: usize| {
            let room = (len + 2 * self.padding).checked_sub(kernel)?;
            (kernel > 0 && len > 0).then(|| room.checked_div(self.stride).map(|steps| steps + 1))?
        };
        Some((along(height, self.kernel.0)?, along(width, self.kernel.1)?))
    }

    /// The window along one side that reads `at` with its `tap`, if there is one among `places`.
    pub(super) fn reader(&self, at: usize, tap: usize, places: usize) -> Option<usize> {
        let start = (at + self.padding).checked_sub(tap)?;
        (start.is_multiple_of(self.stride) && start / self.stride < places).then_some(start / self.stride)
    }
}

/// An image and its windows, as the kernels take them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) channels: usize,
    pub(super) places: (usize, usize),
    pub(super) window: Window,
}

impl Sizes {
    /// Those of `x [batch, height, width, channels]`, with room for a window.
    pub(super) fn of(op: &'static str, x: &Var, window: Window) -> Result<Self> {
        let shape = <&[usize; 4]>::try_from(x.shape()).ok();
        let places = shape.and_then(|&[_, height, width, _]| Some((shape?, window.places((height, width))?)));
        let Some((&[batch, height, width, channels], places)) = places else {
            let expected = format!("[batch, height, width, channels] with room for {window:?}");
            return Err(EngineError::Shape { op, operand: "x", expected, got: x.shape().to_vec() });
        };
        super::matmul::expect_float(op, "x", x.value())?;
        Ok(Self { batch, height, width, channels, places, window })
    }

    /// Values of a window.
    fn values(&self) -> usize {
        self.window.kernel.0 * self.window.kernel.1 * self.channels
    }
}

/// Windows as rows: `y[b, (i, j), (ky, kx, c)] = x[b, i · stride + ky − padding, j · stride + kx − padding, c]`, zero
/// outside the image.
///
/// Shapes: `x [batch, height, width, channels]`, channels last → `[batch, down · across, kh · kw · channels]`,
/// channels fastest within a window (a weight of PyTorch's, `[out, in, kh, kw]`, has them slowest), in the type of x
/// (images are cast to the compute type before). Cost: a pass that writes each value up to `kh · kw` times; none for 1×1 windows of stride 1. The gradient adds up what each pixel was read for.
///
/// # Errors
///
/// [`EngineError::Shape`] unless x has four dimensions and room for a window.
pub fn unfold(cx: &Cx, x: &Var, window: Window) -> Result<Var> {
    let sizes = Sizes::of("unfold", x, window)?;
    let shape = [sizes.batch, sizes.places.0 * sizes.places.1, sizes.values()];
    if window == (Window { kernel: (1, 1), stride: 1, padding: 0 }) {
        return cx.reshape(x, &shape);
    }
    let y = x.value().like(&shape)?;
    match y.gpu() {
        None => cpu::unfold(&x.value().read(), &mut y.write(), sizes),
        Some(gpu) => cuda::unfold(gpu, x.value(), &y, sizes)?,
    }
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| gradients.add(&x_var, folded(&dy, sizes)?)))
}

fn folded(dy: &Tensor, sizes: Sizes) -> Result<Tensor> {
    let dx = dy.like(&[sizes.batch, sizes.height, sizes.width, sizes.channels])?;
    match dx.gpu() {
        None => cpu::fold(&dy.read(), &mut dx.write(), sizes),
        Some(gpu) => cuda::fold(gpu, dy, &dx, sizes)?,
    }
    Ok(dx)
}
