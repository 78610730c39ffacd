//! What each factor of a chain reads, permutations folded in.

use super::products::Blocks;
use lacewing_core::{Chain, Gather, Link};

/// A chain whose permutations, paddings and cuts have become indices of features.
///
/// A tile of a chain holds the outputs of one factor, block by block, and after them a feature of zeros for what is
/// padded.
#[derive(Debug, Clone)]
pub struct Plan {
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    pub(super) factors: Vec<Factor>,
    /// Where the last factor has each output.
    pub(super) outputs: Vec<u32>,
    /// Where the first factor's input gradients have those of each input, `[readers, n_in]`.
    pub(super) inputs: Vec<u32>,
}

/// One factor: `blocks` blocks of `q × p`.
#[derive(Debug, Clone)]
pub(super) struct Factor {
    pub(super) blocks: usize,
    pub(super) q: usize,
    pub(super) p: usize,
    /// Feature that each input of each block is, in the tile before: `[blocks, p]`.
    pub(super) reads: Vec<u32>,
    /// Feature that each output's gradient is, in the tile after: `[blocks, q]`.
    pub(super) back: Vec<u32>,
}

impl Factor {
    pub(super) fn weights(&self) -> usize {
        self.blocks * self.q * self.p
    }

    /// Its blocks, or with `turned` their transposes, and what is packed of them.
    pub(super) fn blocks<'a>(&self, turned: bool, w: &'a [f32], packed: &'a [f32]) -> Blocks<'a> {
        let (n, inner) = if turned { (self.p, self.q) } else { (self.q, self.p) };
        Blocks { w, n, inner, packed }
    }
}

impl Plan {
    /// The plan of a chain; none where it adds features without weights, changes their signs, uses one twice that is not
    /// an input, or has nothing to multiply.
    pub fn new(chain: &Chain) -> Option<Self> {
        let empty = |link: &Link| matches!(link.sizes(), (0, _) | (_, 0));
        if chain.n_in == 0 || chain.n_out == 0 || chain.links.iter().any(empty) {
            return None;
        }
        // Where each feature of the chain is in the tile; `width` of them, after which the zeros are.
        let mut width = chain.n_in;
        let mut places: Vec<u32> = (0..chain.n_in_ext).map(|at| at.min(width) as u32).collect();
        let mut factors: Vec<Factor> = Vec::new();
        let mut back = Vec::new();
        for link in &chain.links {
            match *link {
                Link::Blocks { groups, stride, q, p, .. } => {
                    let blocks = groups * stride;
                    let logical = |side: usize, at: usize| {
                        let (block, i) = (at / side, at % side);
                        (block / stride * side + i) * stride + block % stride
                    };
                    let reads: Vec<u32> = (0..blocks * p).map(|at| places[logical(p, at)]).collect();
                    back.push(inverse(&reads, width));
                    places = vec![0; blocks * q];
                    (0..blocks * q).for_each(|at| places[logical(q, at)] = at as u32);
                    width = blocks * q;
                    factors.push(Factor { blocks, q, p, reads, back: Vec::new() });
                }
                Link::Transpose { rows, cols, .. } => {
                    let size = rows * cols;
                    let from = |at: usize| at / size * size + at % rows * cols + at % size / rows;
                    places = (0..places.len()).map(|at| places[from(at)]).collect();
                }
                Link::Gather(ref gather) => places = selected(gather, &places, width)?,
            }
        }
        let outputs = places[..chain.n_out].to_vec();
        back.push(inverse(&outputs, width));
        let mut back = back.into_iter();
        let inputs = back.next().filter(|_| !factors.is_empty())?;
        for (factor, back) in factors.iter_mut().zip(back) {
            if back.len() > factor.blocks * factor.q {
                return None;
            }
            factor.back = back;
        }
        Some(Self { n_in: chain.n_in, n_out: chain.n_out, factors, outputs, inputs })
    }

    /// Length of one row of input.
    pub fn n_in(&self) -> usize {
        self.n_in
    }

    /// Length of one row of output.
    pub fn n_out(&self) -> usize {
        self.n_out
    }

    /// `[blocks, q, p]` of each factor.
    pub fn shapes(&self) -> impl Iterator<Item = [usize; 3]> + '_ {
        self.factors.iter().map(|factor| [factor.blocks, factor.q, factor.p])
    }

    /// Multiply-adds a row.
    pub fn macs(&self) -> usize {
        self.factors.iter().map(Factor::weights).sum()
    }

    /// Features of every tile, zeros aside: what goes in, and what each factor writes or its gradient reads.
    pub(super) fn widths(&self) -> impl Iterator<Item = usize> + '_ {
        let sides = self.factors.iter().map(|factor| factor.blocks * factor.q.max(factor.p));
        std::iter::once(self.n_in).chain(sides)
    }
}

/// A gather of single features with their signs; none for any other.
fn selected(gather: &Gather, places: &[u32], zeros: usize) -> Option<Vec<u32>> {
    let place = |o: usize| {
        let mut terms = gather.terms_of(o);
        match (terms.next(), terms.next()) {
            (None, _) => Some(zeros as u32),
            (Some((at, 1.0)), None) => Some(places[at]),
            _ => None,
        }
    };
    (0..gather.n_out()).map(place).collect()
}

/// For each of `width` features the places in `reads` that read it, or that of the zeros: `[most readers, width]`.
fn inverse(reads: &[u32], width: usize) -> Vec<u32> {
    let nobody = reads.len() as u32;
    let mut readers = vec![nobody; width];
    let mut count = vec![0; width];
    for (at, &read) in reads.iter().enumerate().filter(|(_, read)| (**read as usize) < width) {
        let read = read as usize;
        if (count[read] + 1) * width > readers.len() {
            readers.resize((count[read] + 1) * width, nobody);
        }
        readers[count[read] * width + read] = at as u32;
        count[read] += 1;
    }
    readers
}
