//! The residual stream: `x ← x + s · branch(norm(x))`, or `s · norm(branch(x))` where norms come last.
//!
//! An addition is held back until the next norm, so that the two are one pass over the activations.

use crate::LayerNorm;
use lacewing_engine::{Cx, EngineError, Tensor, Var, ops};
use std::fmt::Debug;
use std::sync::Arc;

/// A stream and the branch that is still to be added to it.
#[derive(Debug)]
pub struct ResidualStream {
    x: Var,
    pending: Option<(Var, Option<Tensor>)>,
}

impl ResidualStream {
    /// The stream that starts with `x [batch, tokens, dim]`.
    pub fn new(x: Var) -> Self {
        Self { x, pending: None }
    }

    /// Samples in the stream.
    pub fn batch(&self) -> usize {
        self.x.shape()[0]
    }

    /// Adds what is pending and gives the norm of the sum.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn norm(&mut self, cx: &Cx, norm: &LayerNorm) -> Result<Var, EngineError> {
        let Some((branch, scale)) = self.pending.take() else { return norm.forward(cx, &self.x) };
        let (sum, y) = norm.add(cx, &self.x, &branch, scale.as_ref())?;
        self.x = sum;
        Ok(y)
    }

    /// The sum of what was added, for a branch that reads it without a norm.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn value(&mut self, cx: &Cx) -> Result<Var, EngineError> {
        self.settle(cx)?;
        Ok(self.x.clone())
    }

    /// Adds `scale · branch`; `scale [batch]` is one number a sample, `None` for 1.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn add(&mut self, cx: &Cx, branch: Var, scale: Option<Tensor>) -> Result<(), EngineError> {
        self.settle(cx)?;
        self.pending = Some((branch, scale));
        Ok(())
    }

    /// Keeps one token of each sample: the stream is `[batch, dim]` afterwards.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn select_token(&mut self, cx: &Cx, token: usize) -> Result<(), EngineError> {
        self.x = ops::select_token(cx, &self.x, token)?;
        if let Some((branch, _)) = &mut self.pending {
            *branch = ops::select_token(cx, branch, token)?;
        }
        Ok(())
    }

    /// The stream with everything added.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    pub fn finish(mut self, cx: &Cx) -> Result<Var, EngineError> {
        self.settle(cx)?;
        Ok(self.x)
    }

    fn settle(&mut self, cx: &Cx) -> Result<(), EngineError> {
        if let Some((branch, scale)) = self.pending.take() {
            self.x = ops::residual(cx, &self.x, &branch, scale.as_ref())?;
        }
        Ok(())
    }
}

/// A block of a model with a residual stream.
pub trait ResidualBlock: Debug + Send + Sync {
    /// Reads the stream and adds its branches.
    ///
    /// # Errors
    ///
    /// What the engine reports.
    fn forward(&self, cx: &Cx, stream: &mut ResidualStream) -> Result<(), EngineError>;
}

/// Runs `blocks` in order on `x`. With `recompute` only each block's input is kept for the backward pass, which runs
/// the block once more: memory of one block instead of all, for a third more arithmetic.
///
/// # Errors
///
/// What the engine reports.
pub fn run_blocks(
    cx: &Cx,
    x: Var,
    blocks: &[Arc<dyn ResidualBlock>],
    recompute: bool,
) -> Result<ResidualStream, EngineError> {
    let mut stream = ResidualStream::new(x);
    for block in blocks {
        if !recompute {
            block.forward(cx, &mut stream)?;
            continue;
        }
        let x = stream.finish(cx)?;
        let own = block.clone();
        let x = cx.recompute(&[&x], move |cx, inputs| {
            let mut stream = ResidualStream::new(inputs[0].clone());
            own.forward(cx, &mut stream)?;
            stream.finish(cx)
        })?;
        stream = ResidualStream::new(x);
    }
    Ok(stream)
}
