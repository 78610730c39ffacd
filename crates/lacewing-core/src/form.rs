//! How a structure is executed: the few shapes of computation that kernels are written for.

use std::borrow::Cow;
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
#[derive(Clone, Debug, PartialEq)]
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
#[derive(Clone, Debug, PartialEq)]
pub enum Link {
    /// `y[g, j, s] = Σ_i W[g, s, j, i] x[g, i, s]`: blocks of `q × p` whose inputs and outputs lie `stride` apart.
    ///
    /// x is read as `[groups, p, stride]`, y written as `[groups, q, stride]`, W is `[groups · stride, q, p]`. With
    /// stride 1 that is a block-diagonal matrix; with one group the second factor of Monarch; with 2 × 2 blocks a
    /// butterfly factor; in general a factor of a deformable butterfly.
    Blocks {
        /// Where W comes from.
        weights: Weights,
        /// Groups of `p · stride` consecutive inputs.
        groups: usize,
        /// Distance between the inputs of a block.
        stride: usize,
        /// Outputs of a block.
        q: usize,
        /// Inputs of a block.
        p: usize,
    },
    /// Reads x as `[batch, rows, cols]` and writes it as `[batch, cols, rows]`.
    Transpose {
        /// How many matrices lie one after the other.
        batch: usize,
        /// Rows before.
        rows: usize,
        /// Columns before.
        cols: usize,
    },
    /// `y[o] = Σ_t ± x[index(o, t)]`: a fixed map such as a permutation, a fold or an embedding.
    Gather(Gather),
}

/// Where the weights of a [`Link::Blocks`] come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Weights {
    /// The parameter with this index, in storage order.
    Param(usize),
    /// Few values at many places: `W.flat[i] = ± param.flat[index(i)]`, or 0.
    Tied {
        /// Index of the parameter.
        param: usize,
        /// One term for each weight.
        gather: Gather,
    },
    /// Values that are not trained.
    Constant(Vec<f64>),
}

/// A fixed map `y[o] = Σ_t ± x[index(o, t)]` with the same number of terms for each output; a term may be absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gather {
    n_in: usize,
    terms: usize,
    codes: Vec<u32>,
}

impl Gather {
    /// The code of an absent term.
    pub const NONE: u32 = u32::MAX;

    /// The bit of a code that stands for a minus sign; the others are the index.
    pub const MINUS: u32 = 1 << 31;

    /// A map of `n_in` values whose output `o` adds the terms `term(o, 0)`, …, `term(o, terms − 1)`: each an index and
    /// whether it counts negative.
    ///
    /// # Panics
    ///
    /// When an index is not below `n_in`, `n_in` not below 2³¹ − 1, or `terms` 0.
    pub fn new(
        n_in: usize,
        n_out: usize,
        terms: usize,
        term: impl Fn(usize, usize) -> Option<(usize, bool)>,
    ) -> Self {
        assert!(terms > 0 && n_in < Self::MINUS as usize - 1, "{terms} terms of {n_in} values");
        let code = |at: usize| match term(at / terms, at % terms) {
            None => Self::NONE,
            Some((index, minus)) => {
                assert!(index < n_in, "index {index} of {n_in}");
                index as u32 | if minus { Self::MINUS } else { 0 }
            }
        };
        Self { n_in, terms, codes: (0..n_out * terms).map(code).collect() }
    }

    /// `y[o] = x[from[o]]`.
    ///
    /// # Panics
    ///
    /// As [`Gather::new`].
    pub fn select(n_in: usize, from: &[usize]) -> Self {
        Self::new(n_in, from.len(), 1, |o, _| Some((from[o], false)))
    }

    /// Length of the input.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Length of the output.
    pub fn n_out(&self) -> usize {
        self.codes.len() / self.terms
    }

    /// Terms of each output, absent ones included.
    pub fn terms(&self) -> usize {
        self.terms
    }

    /// `[n_out, terms]`: the index, [`Gather::MINUS`] set for a minus sign, or [`Gather::NONE`].
    pub fn codes(&self) -> &[u32] {
        &self.codes
    }

    /// The terms of output `o`: index and sign, absent ones left out.
    pub fn terms_of(&self, o: usize) -> impl Iterator<Item = (usize, f64)> {
        let codes = self.codes[o * self.terms..][..self.terms].iter().filter(|&&code| code != Self::NONE);
        codes.map(|&code| ((code & !Self::MINUS) as usize, if code & Self::MINUS == 0 { 1.0 } else { -1.0 }))
    }

    /// The same map without minus signs.
    pub fn absolute(&self) -> Self {
        let plus = |&code: &u32| if code == Self::NONE { code } else { code & !Self::MINUS };
        Self { codes: self.codes.iter().map(plus).collect(), ..*self }
    }

    /// The map of one row.
    ///
    /// # Panics
    ///
    /// When `x` has another length than `n_in`.
    pub fn apply(&self, x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.n_in, "length of x");
        (0..self.n_out()).map(|o| self.terms_of(o).map(|(i, sign)| sign * x[i]).sum()).collect()
    }

    /// The map's transpose applied to one row: what a gradient goes back through.
    ///
    /// # Panics
    ///
    /// When `y` has another length than [`Gather::n_out`].
    pub fn apply_transposed(&self, y: &[f64]) -> Vec<f64> {
        assert_eq!(y.len(), self.n_out(), "length of y");
        let mut x = vec![0.0; self.n_in];
        for (o, &y) in y.iter().enumerate() {
            self.terms_of(o).for_each(|(i, sign)| x[i] += sign * y);
        }
        x
    }
}

impl Weights {
    /// The values of W, given the structure's parameters.
    pub fn values<'a>(&'a self, params: &[&'a [f64]]) -> Cow<'a, [f64]> {
        match self {
            Weights::Param(param) => Cow::Borrowed(params[*param]),
            Weights::Tied { param, gather } => Cow::Owned(gather.apply(params[*param])),
            Weights::Constant(values) => Cow::Borrowed(values),
        }
    }
}

impl Link {
    /// A factor of consecutive blocks `[blocks, q, p]`.
    pub fn blocks(param: usize, blocks: usize, q: usize, p: usize) -> Self {
        Link::strided(param, blocks, 1, q, p)
    }

    /// A factor whose blocks' inputs lie `stride` apart: parameter `[groups · stride, q, p]`.
    pub fn strided(param: usize, groups: usize, stride: usize, q: usize, p: usize) -> Self {
        Link::Blocks { weights: Weights::Param(param), groups, stride, q, p }
    }

    /// What it reads and writes a row.
    pub fn sizes(&self) -> (usize, usize) {
        match *self {
            Link::Blocks { groups, stride, q, p, .. } => (groups * stride * p, groups * stride * q),
            Link::Transpose { batch, rows, cols } => (batch * rows * cols, batch * rows * cols),
            Link::Gather(ref gather) => (gather.n_in(), gather.n_out()),
        }
    }

    /// Multiply-adds a row. Permutations and folds multiply nothing.
    pub fn macs(&self) -> usize {
        match *self {
            Link::Blocks { groups, stride, q, p, .. } => groups * stride * q * p,
            Link::Transpose { .. } | Link::Gather(_) => 0,
        }
    }

    /// The link applied to one row, given the structure's parameters.
    ///
    /// # Panics
    ///
    /// When `x` has another length than the link reads.
    pub fn apply(&self, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
        assert_eq!(x.len(), self.sizes().0, "length of x for {self:?}");
        match *self {
            Link::Blocks { ref weights, groups, stride, q, p } => {
                let w = weights.values(params);
                assert_eq!(w.len(), groups * stride * q * p, "values of {self:?}");
                let mut y = vec![0.0; groups * stride * q];
                for (block, w) in w.chunks_exact(q * p).enumerate() {
                    let (g, s) = (block / stride, block % stride);
                    for (j, row) in w.chunks_exact(p).enumerate() {
                        let terms = row.iter().enumerate().map(|(i, w)| w * x[(g * p + i) * stride + s]);
                        y[(g * q + j) * stride + s] = terms.sum();
                    }
                }
                y
            }
            Link::Transpose { batch, rows, cols } => {
                let size = rows * cols;
                let from = |at: usize| at / size * size + at % rows * cols + at % size / rows;
                (0..batch * size).map(|at| x[from(at)]).collect()
            }
            Link::Gather(ref gather) => gather.apply(x),
        }
    }

    /// The link's transpose applied to one row: what a gradient goes back through.
    ///
    /// # Panics
    ///
    /// When `y` has another length than the link writes.
    pub fn apply_transposed(&self, params: &[&[f64]], y: &[f64]) -> Vec<f64> {
        let (reads, writes) = self.sizes();
        assert_eq!(y.len(), writes, "length of y for {self:?}");
        match *self {
            Link::Blocks { ref weights, stride, q, p, .. } => {
                let w = weights.values(params);
                let mut x = vec![0.0; reads];
                for (block, w) in w.chunks_exact(q * p).enumerate() {
                    let (g, s) = (block / stride, block % stride);
                    for (j, row) in w.chunks_exact(p).enumerate() {
                        let y = y[(g * q + j) * stride + s];
                        for (i, w) in row.iter().enumerate() {
                            x[(g * p + i) * stride + s] += w * y;
                        }
                    }
                }
                x
            }
            Link::Transpose { batch, rows, cols } => {
                Link::Transpose { batch, rows: cols, cols: rows }.apply(params, y)
            }
            Link::Gather(ref gather) => gather.apply_transposed(y),
        }
    }
}

impl Chain {
    /// Multiply-adds a row.
    pub fn macs(&self) -> usize {
        self.links.iter().map(Link::macs).sum()
    }

    /// The chain applied to one row, given the structure's parameters.
    ///
    /// Shapes: `x [n_in]`, result `[n_out]`.
    ///
    /// # Panics
    ///
    /// When `params` has other lengths than the links read, or `x` is longer than `n_in_ext`.
    pub fn apply(&self, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
        assert!(x.len() <= self.n_in_ext, "{} values of at most {}", x.len(), self.n_in_ext);
        let mut y = x.to_vec();
        y.resize(self.n_in_ext, 0.0);
        for link in &self.links {
            y = link.apply(params, &y);
        }
        y.truncate(self.n_out);
        y
    }

    /// Checks that each link reads what the one before writes.
    ///
    /// # Panics
    ///
    /// When one does not: the structure that made the chain is wrong.
    pub(crate) fn checked(self) -> Self {
        let mut size = self.n_in_ext;
        for link in &self.links {
            let (reads, writes) = link.sizes();
            assert_eq!(reads, size, "what {link:?} reads");
            size = writes;
        }
        assert_eq!(size, self.n_out_ext, "what the last link writes");
        assert!(self.n_in <= self.n_in_ext && self.n_out <= self.n_out_ext, "sizes of {self:?}");
        self
    }
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
