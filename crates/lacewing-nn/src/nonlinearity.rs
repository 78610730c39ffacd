//! A linear layer and what follows it: a function of each value, or a competition between them.

use crate::{KWinners, KWinnersConfig, Linear, LinearOptions, Result, Scope, Units};
use lacewing_engine::ops::Activation;
use lacewing_engine::{Cx, EngineError, Var};

/// What stands between two linear layers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Nonlinearity {
    /// A function of each value.
    Function(Activation),
    /// Only the strongest values.
    KWinners(KWinnersConfig),
}

impl From<Activation> for Nonlinearity {
    fn from(activation: Activation) -> Self {
        Self::Function(activation)
    }
}

/// `f(linear(x))`. A function runs in the linear layer's epilogue.
#[derive(Debug)]
pub struct Activated {
    linear: Linear,
    winners: Option<KWinners>,
}

impl Activated {
    /// Adds to `scope` the linear layer `names[0] [n_out, n_in]`, and for a competition its state under `names[1]`.
    ///
    /// # Errors
    ///
    /// As [`Scope::linear`] and [`KWinners::new`].
    pub fn new(
        scope: &mut Scope<'_>,
        names: [&str; 2],
        (n_in, n_out): (usize, usize),
        nonlinearity: Nonlinearity,
        options: LinearOptions,
    ) -> Result<Self> {
        let (activation, config) = match nonlinearity {
            Nonlinearity::Function(activation) => (activation, None),
            Nonlinearity::KWinners(config) => (Activation::Identity, Some(config)),
        };
        let linear = scope.linear(names[0], n_in, n_out, LinearOptions { activation, ..options })?;
        let winners =
            config.map(|config| KWinners::new(&mut scope.scope(names[1]), Units::Row(n_out), config));
        Ok(Self { linear, winners: winners.transpose()? })
    }

    /// `x [.., n_in]` → `[.., n_out]`.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let y = self.linear.forward(cx, x)?;
        match &self.winners {
            Some(winners) => winners.forward(cx, &y),
            None => Ok(y),
        }
    }
}
