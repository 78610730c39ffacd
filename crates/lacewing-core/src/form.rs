//! How a structure is executed: the few shapes of computation that kernels are written for.

use std::ops::Range;

use crate::{Pattern, Structure};

/// The computation behind a structure. Kernels match on this, never on names.
#[derive(Clone, Copy, Debug)]
pub enum Form<'a> {
    /// `y = W x`, parameter 0 is `W [n_out, n_in]`.
    Dense,
    /// Values at chosen places of W, parameter 0.
    Pattern(&'a Pattern),
    /// A product of block-diagonal factors and stride permutations.
    Chain(&'a Chain),
    /// Two structures on the same input, added.
    Sum(&'a Sum),
}

/// Zero-pad `x` on the right to `n_in_ext`, run the links in order, keep the first `n_out` of `n_out_ext` outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Length of one row of input.
    pub n_in: usize,
    /// Length after padding; what the first link reads.
    pub n_in_ext: usize,
    /// Length the last link writes.
    pub n_out_ext: usize,
    /// Length of one row of output.
    pub n_out: usize,
    /// The steps, first to last.
    pub links: Vec<Link>,
}

/// One step of a [`Chain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// `y[k, j] = Σ_i W[k, j, i] x[k, i]`, W of shape `[blocks, q, p]`, x read as `[blocks, p]`.
    Blocks {
        /// Index of the parameter that holds W.
        param: usize,
        /// Number of blocks.
        blocks: usize,
        /// Outputs of a block.
        q: usize,
        /// Inputs of a block.
        p: usize,
    },
    /// Reads x as `[rows, cols]` and writes it as `[cols, rows]`: `y[c·rows + r] = x[r·cols + c]`.
    Transpose {
        /// Rows before.
        rows: usize,
        /// Columns before.
        cols: usize,
    },
}

/// `y = (1 − g) a(x) + g b(x)`, or `a(x) + b(x)` for [`Gate::Plain`].
#[derive(Debug)]
pub struct Sum {
    /// The first branch.
    pub a: Box<dyn Structure>,
    /// The second branch.
    pub b: Box<dyn Structure>,
    /// Which of the sum's parameters are `a`'s.
    pub a_params: Range<usize>,
    /// Which of the sum's parameters are `b`'s.
    pub b_params: Range<usize>,
    /// How the two are weighted.
    pub gate: Gate,
}

/// How a [`Sum`] weighs its branches.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// One scalar a row of input: `g = sigmoid(w·x + c)`.
    Learned {
        /// Index of the parameter `w [n_in]`.
        weight: usize,
        /// Index of the parameter `c [1]`.
        bias: usize,
    },
    /// A constant `g`.
    Fixed(f64),
    /// No weights: `a + b`.
    Plain,
}
