//! The two-layer perceptron of a transformer block: `fc2(f(fc1(x)))`.

use crate::{Activated, Dropout, Linear, LinearOptions, Nonlinearity, Result, Scope};
use lacewing_engine::ops::Activation;
use lacewing_engine::{Cx, EngineError, Var};

/// Sizes and options of an [`Mlp`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpOptions {
    /// Width of input and output.
    pub dim: usize,
    /// Width between the layers.
    pub hidden: usize,
    /// Between the layers.
    pub activation: Nonlinearity,
    /// Probability of zero after each layer.
    pub dropout: f64,
    /// First values and biases; its activation is not looked at.
    pub linear: LinearOptions,
}

/// `fc2(dropout(f(fc1(x))))`, then dropout. A function of each value runs in fc1's epilogue.
#[derive(Debug)]
pub struct Mlp {
    fc1: Activated,
    fc2: Linear,
    dropout: Dropout,
}

impl Mlp {
    /// Adds `fc1 [hidden, dim]` and `fc2 [dim, hidden]` to `scope`.
    ///
    /// # Errors
    ///
    /// As [`Activated::new`].
    pub fn new(scope: &mut Scope<'_>, options: MlpOptions) -> Result<Self> {
        let MlpOptions { dim, hidden, activation, dropout, linear } = options;
        let fc1 = Activated::new(scope, ["fc1", "k_winners"], (dim, hidden), activation, linear)?;
        let fc2 =
            scope.linear("fc2", hidden, dim, LinearOptions { activation: Activation::Identity, ..linear })?;
        Ok(Self { fc1, fc2, dropout: Dropout::new(dropout) })
    }

    /// `x [..., dim]` → `[..., dim]`.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let hidden = self.dropout.forward(cx, &self.fc1.forward(cx, x)?)?;
        self.dropout.forward(cx, &self.fc2.forward(cx, &hidden)?)
    }
}
