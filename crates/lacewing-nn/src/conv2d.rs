//! Convolutions: windows as rows, then a linear map of any structure.
//!
//! Activations are channels last, `[batch, height, width, channels]`, in and out: what one layer writes the next
//! reads without a transposition, a 1×1 convolution of stride 1 is its linear map alone, and a pixel's channels are
//! one run of memory. [`channels_last`] and [`channels_first`] turn images and results around.
//!
//! Cost: `out height · out width` rows a sample of the map, and a pass that writes `kh · kw` times the image.

use crate::{Linear, LinearOptions, Result, Scope};
use lacewing_engine::ops::{self, Window};
use lacewing_engine::{Cx, EngineError, Var};
use serde_json::{Value, json};

/// Sizes and options of a [`Conv2d`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv2dOptions {
    /// Height and width of the images that its cost is counted for; it runs on any.
    pub size: (usize, usize),
    /// Channels read.
    pub channels: usize,
    /// Channels written.
    pub n_out: usize,
    /// Height and width of a window.
    pub kernel: (usize, usize),
    /// Distance from one window to the next, down and across.
    pub stride: usize,
    /// Rows and columns of zeros on each side.
    pub padding: usize,
    /// The map of a window; its own `window` is the one above.
    pub linear: LinearOptions,
}

/// `y[b, i, j] = f(W · window(x, b, i, j) + b)`, a window's values ordered (row, column, channel), channels fastest.
#[derive(Debug)]
pub struct Conv2d {
    linear: Linear,
    window: Window,
}

impl Conv2d {
    /// Adds the linear map `NAME [n_out, kh · kw · channels]` to `scope`; the rules choose its structure by that name, and a
    /// structure that asks for `channels`, as N:M groups along them do, is told.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when an image of the size stated has no window; else as [`Scope::linear`].
    pub fn new(scope: &mut Scope<'_>, name: &str, options: Conv2dOptions) -> Result<Self> {
        let Conv2dOptions { size, channels, n_out, kernel, stride, padding, linear } = options;
        let window = Window { kernel, stride, padding };
        let (down, across) = places(window, size)?;
        let n_in = kernel.0 * kernel.1 * channels;
        let linear = LinearOptions { window: Some([kernel.0, kernel.1, channels]), ..linear };
        let linear = scope.with_rows(down * across).linear(name, n_in, n_out, linear)?;
        Ok(Self { linear, window })
    }

    /// Height and width of the result for an image of `size`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when it has no window.
    pub fn out_size(&self, size: (usize, usize)) -> Result<(usize, usize), EngineError> {
        places(self.window, size)
    }

    /// The convolution.
    ///
    /// Shapes: `x [batch, height, width, channels]` → `[batch, out height, out width, n_out]`, channels last.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when x has other dimensions or channels, or no window; what the device reports.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let rows = ops::unfold(cx, x, self.window)?;
        let (down, across) = self.out_size((x.shape()[1], x.shape()[2]))?;
        let y = self.linear.forward(cx, &rows)?;
        cx.reshape(&y, &[x.shape()[0], down, across, self.linear.structure().n_out()])
    }

    /// The map of a window.
    pub fn linear(&self) -> &Linear {
        &self.linear
    }
}

fn places(window: Window, size: (usize, usize)) -> Result<(usize, usize), EngineError> {
    let expected = || format!("[height, width] with room for {window:?}");
    let got = || vec![size.0, size.1];
    let error = || EngineError::Shape { op: "conv2d", operand: "image", expected: expected(), got: got() };
    window.places(size).ok_or_else(error)
}

/// `[batch, channels, height, width]` → `[batch, height, width, channels]`.
///
/// # Errors
///
/// [`EngineError::Shape`] unless x has four dimensions.
pub fn channels_last(cx: &Cx, x: &Var) -> Result<Var, EngineError> {
    let [batch, channels, height, width] = four(x)?;
    let y = ops::transpose(cx, &cx.reshape(x, &[batch, channels, height * width])?)?;
    cx.reshape(&y, &[batch, height, width, channels])
}

/// `[batch, height, width, channels]` → `[batch, channels, height, width]`.
///
/// # Errors
///
/// [`EngineError::Shape`] unless x has four dimensions.
pub fn channels_first(cx: &Cx, x: &Var) -> Result<Var, EngineError> {
    let [batch, height, width, channels] = four(x)?;
    let y = ops::transpose(cx, &cx.reshape(x, &[batch, height * width, channels])?)?;
    cx.reshape(&y, &[batch, channels, height, width])
}

fn four(x: &Var) -> Result<[usize; 4], EngineError> {
    let (expected, got) = ("four dimensions".into(), x.shape().to_vec());
    x.shape().try_into().map_err(|_| EngineError::Shape { op: "channels", operand: "x", expected, got })
}

/// The structure's `config` for the windows `[height, width, channels]` of an unfolded convolution: with those channels,
/// where the structure has such a key and the config leaves it open.
///
/// ```
/// use serde_json::json;
///
/// let config = lacewing_nn::with_channels(&json!({"structure": "nm", "m": 8}), Some([3, 3, 64]));
/// assert_eq!(config, json!({"structure": "nm", "m": 8, "channels": 64}));
/// assert_eq!(lacewing_nn::with_channels(&json!("low_rank"), Some([3, 3, 64])), "low_rank");
/// ```
pub fn with_channels(config: &Value, window: Option<[usize; 3]>) -> Value {
    let name = config.as_str().or_else(|| config.get("structure")?.as_str());
    let kind = lacewing_core::structures().find(|kind| Some(kind.name) == name);
    let asks = kind.is_some_and(|kind| kind.keys.iter().any(|key| key.name == "channels"));
    let mut config = config.clone();
    if let (Some([_, _, channels]), true) =
        (window, asks && config.get("channels").is_none_or(Value::is_null))
    {
        if config.is_string() {
            config = json!({ "structure": config });
        }
        config["channels"] = json!(channels);
    }
    config
}

/// A convolution's weight `[out, in, kh, kw]`, as PyTorch has it, in the order of a window here: `[out, kh, kw, in]`.
///
/// # Panics
///
/// When `weight` does not fill the shape.
pub fn unfold_weight(weight: &[f32], [out, channels, kh, kw]: [usize; 4]) -> Vec<f32> {
    assert_eq!(weight.len(), out * channels * kh * kw, "values of a weight [{out}, {channels}, {kh}, {kw}]");
    turned(weight, channels, kh * kw)
}

/// The inverse of [`unfold_weight`]; the shape is that of the result.
///
/// # Panics
///
/// When `weight` does not fill the shape.
pub fn fold_weight(weight: &[f32], [out, channels, kh, kw]: [usize; 4]) -> Vec<f32> {
    assert_eq!(weight.len(), out * channels * kh * kw, "values of a weight [{out}, {channels}, {kh}, {kw}]");
    turned(weight, kh * kw, channels)
}

/// Each `[rows, cols]` transposed.
fn turned(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let at = |i: usize| (i / (rows * cols) * rows + i % rows) * cols + i / rows % cols;
    (0..values.len()).map(|i| values[at(i)]).collect()
}
