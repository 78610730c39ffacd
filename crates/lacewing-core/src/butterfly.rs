//! Products of butterfly factors, side by side in stacks: what butterflies of numbers and of matrices share.
//!
//! Cost of a row: `2 · n · b² · log₂ n` multiply-adds a block of log₂ n factors, for every `n·b` outputs, with
//! b × b matrices.

use std::fmt::Debug;

use serde_json::Value;

use crate::config::Key;
use crate::registry::MAX_SIZE;
use crate::structure::check_params;
use crate::{Chain, Counts, Form, Gather, Init, Link, ParamSpec, Rng, Structure, StructureError};

/// The greatest number of blocks, of log₂ n factors each.
pub(crate) const MAX_BLOCKS: usize = 64;

/// The greatest width of several stacks: the input is copied once for each by an explicit map of that length.
const MAX_STACKED: usize = 1 << 22;

pub(crate) const BLOCKS: Key =
    Key::new("blocks", "butterflies one after the other, 1 to 64; the direction flips after each", "1");
pub(crate) const INCREASING: Key =
    Key::new("increasing", "whether the strides of the first block grow: 1, 2, 4, …", "true");

/// What defines a [`ButterflyProduct`] besides the sizes of its layer.
pub trait ButterflyFactors: Copy + Debug + Send + Sync {
    /// The name in the table.
    const NAME: &'static str;

    /// Number, order and size of the factors.
    fn shape(&self) -> ButterflyShape;

    /// Draws the first values of one `[2·b, 2·b]` block of a factor, row-major.
    fn draw(&self, twiddle: &mut [f32], rng: &mut Rng);

    /// As [`Structure::config`] gives it.
    fn to_config(&self) -> Value;
}

/// Number, order and size of the factors of a [`ButterflyProduct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ButterflyShape {
    /// Side b of the square matrices that a factor is made of, 1 where they are numbers.
    pub side: usize,
    /// Butterflies one after the other. The direction flips after each.
    pub blocks: usize,
    /// Whether the strides of the first block grow.
    pub increasing: bool,
}

/// Butterflies of `log₂ n` factors one after the other, and independent stacks of such products side by side.
///
/// A stack reads the whole input, padded with zeros to n vectors of b numbers, n a power of two from 2. The outputs
/// of the `⌈n_out / (n·b)⌉` stacks follow one another and are cut to `n_out`. The factors and their parameters are
/// those of [`Butterfly`](crate::chains::Butterfly), where b is 1, and of
/// [`BlockButterfly`](crate::chains::BlockButterfly).
#[derive(Clone, Debug, PartialEq)]
pub struct ButterflyProduct<F> {
    factors: F,
    chain: Chain,
    n: usize,
    stacks: usize,
}

/// Checks the number of blocks and the sizes of a layer.
pub(crate) fn check_sizes(
    structure: &'static str,
    blocks: usize,
    n_out: usize,
    n_in: usize,
) -> Result<(), StructureError> {
    for (size_name, got) in [("n_in", n_in), ("n_out", n_out)] {
        if !(1..=MAX_SIZE).contains(&got) {
            return Err(StructureError::Size { structure, size_name, got, max: MAX_SIZE });
        }
    }
    if !(1..=MAX_BLOCKS).contains(&blocks) {
        let (got, high) = (blocks as f64, MAX_BLOCKS as f64);
        return Err(StructureError::OutOfRange { structure, key: "blocks", got, low: 1.0, high });
    }
    Ok(())
}

/// Copies `width` inputs once for each of several stacks; nothing for one.
fn replicate(structure: &'static str, width: usize, stacks: usize) -> Result<Vec<Link>, StructureError> {
    if stacks == 1 {
        return Ok(Vec::new());
    }
    let got = width.saturating_mul(stacks);
    if got > MAX_STACKED {
        let size_name = "n_out, padded to whole stacks,";
        return Err(StructureError::Size { structure, size_name, got, max: MAX_STACKED });
    }
    Ok(vec![Link::Gather(Gather::new(width, got, 1, |o, _| Some((o % width, false))))])
}

impl ButterflyShape {
    /// Strides of all factors on n vectors, in the order they are applied.
    fn strides(self, n: usize) -> impl Iterator<Item = usize> {
        let levels = n.trailing_zeros();
        (0..self.blocks).flat_map(move |block| {
            let grows = self.increasing == (block % 2 == 0);
            (0..levels).map(move |factor| 1 << if grows { factor } else { levels - 1 - factor })
        })
    }
}

impl<F: ButterflyFactors> ButterflyProduct<F> {
    /// The product for a layer `[n_out, n_in]` whose sizes were checked.
    pub(crate) fn stacked(factors: F, n_out: usize, n_in: usize) -> Result<Self, StructureError> {
        let ButterflyShape { side, .. } = factors.shape();
        let n = n_in.div_ceil(side).next_power_of_two().max(2);
        let width = n * side;
        let stacks = n_out.div_ceil(width);
        let mut links = replicate(F::NAME, width, stacks)?;
        for (param, stride) in factors.shape().strides(n).enumerate() {
            let groups = stacks * (n / (2 * stride));
            if side == 1 {
                links.push(Link::strided(param, groups, stride, 2, 2));
                continue;
            }
            // The stride of a link is between numbers, here it is between vectors: bring each pair together first.
            let pairs = stride * side;
            links.push(Link::Transpose { batch: groups, rows: 2, cols: pairs });
            links.push(Link::blocks(param, groups * stride, 2 * side, 2 * side));
            links.push(Link::Transpose { batch: groups, rows: pairs, cols: 2 });
        }
        let chain = Chain { n_in, n_in_ext: width, n_out_ext: stacks * width, n_out, links }.checked();
        Ok(Self { factors, chain, n, stacks })
    }

    /// What defines it besides the sizes of its layer.
    pub fn settings(&self) -> F {
        self.factors
    }

    /// Numbers, or vectors of b numbers, that one stack reads and writes: a power of two.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Independent products side by side.
    pub fn stacks(&self) -> usize {
        self.stacks
    }
}

impl<F: ButterflyFactors> Structure for ButterflyProduct<F> {
    fn name(&self) -> &'static str {
        F::NAME
    }

    fn n_in(&self) -> usize {
        self.chain.n_in
    }

    fn n_out(&self) -> usize {
        self.chain.n_out
    }

    /// Twiddles are not decayed: the norm of the map is a product of theirs, and decay would shrink it once for each
    /// factor.
    fn params(&self) -> Vec<ParamSpec> {
        let ButterflyShape { side, blocks, .. } = self.factors.shape();
        let levels = self.n.trailing_zeros() as usize;
        let name = |at: usize| format!("twiddle.{}.{}", at / levels, at % levels);
        let shape = vec![self.stacks, self.n / 2, 2 * side, 2 * side];
        let spec = |at| ParamSpec { name: name(at), shape: shape.clone(), decay: false };
        (0..blocks * levels).map(spec).collect()
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// By the factors' own rule, whatever a model asks for: a product is not a draw of its dense matrix.
    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        let matrix = (2 * self.factors.shape().side).pow(2);
        let mut values: Vec<Vec<f32>> = Vec::new();
        for spec in self.params() {
            let mut factor = vec![0.0; spec.count()];
            factor.chunks_exact_mut(matrix).for_each(|twiddle| self.factors.draw(twiddle, rng));
            values.push(factor);
        }
        if let (Init::Zeros, Some(last)) = (init, values.last_mut()) {
            last.fill(0.0);
        }
        values
    }

    fn takes_model_init(&self) -> bool {
        false
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// The product of all factors, row by row: a factor of stride s makes vector `o` out of the two that differ from
    /// it in nothing but the bit s, by the block whose number is `o` without that bit; number `α` of vector `o` is
    /// row `2·α + bit(o)` of the block.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let (n, n_in, n_out) = (self.n, self.n_in(), self.n_out());
        let shape @ ButterflyShape { side, .. } = self.factors.shape();
        let (width, matrix) = (n * side, 4 * side * side);
        let mut dense = Vec::with_capacity(n_out * n_in);
        for stack in 0..self.stacks {
            let mut product = vec![0.0; width * n_in];
            (0..n_in).for_each(|i| product[i * n_in + i] = 1.0);
            for (values, bit) in params.iter().zip(shape.strides(n)) {
                let before = std::mem::replace(&mut product, vec![0.0; width * n_in]);
                for (at, row) in product.chunks_exact_mut(n_in).enumerate() {
                    let (o, alpha) = (at / side, at % side);
                    let number = (o & !(2 * bit - 1)) / 2 + (o & (bit - 1));
                    let t = &values[(stack * n / 2 + number) * matrix..][..matrix];
                    let t = &t[(2 * alpha + usize::from(o & bit != 0)) * 2 * side..][..2 * side];
                    for (column, t) in t.iter().enumerate() {
                        let from = if column % 2 == 0 { o & !bit } else { o | bit } * side + column / 2;
                        for (y, x) in row.iter_mut().zip(&before[from * n_in..]) {
                            *y += t * x;
                        }
                    }
                }
            }
            let rows = width.min(n_out - stack * width);
            dense.extend_from_slice(&product[..rows * n_in]);
        }
        Some(dense)
    }

    fn counts(&self) -> Counts {
        let ButterflyShape { side, blocks, .. } = self.factors.shape();
        let factor = 2 * self.n * side * side;
        let parameters = self.stacks * blocks * self.n.trailing_zeros() as usize * factor;
        Counts { parameters, bytes: 4 * parameters, macs: parameters }
    }

    fn config(&self) -> Value {
        self.factors.to_config()
    }
}
