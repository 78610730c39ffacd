//! A factor of a chain applied to a tile: each output is a sum of weights times features.

use crate::simd::{Isa, MAX_LANES, Vectorize};

/// A factor's blocks, or with `n` and `inner` exchanged the transposes that gradients go back through.
#[derive(Clone, Copy)]
pub(super) struct Blocks<'a> {
    /// `[blocks, n, inner]`, or `[blocks, inner, n]` where the product is by transposes.
    pub(super) w: &'a [f32],
    /// Outputs of a block.
    pub(super) n: usize,
    /// Inputs of a block.
    pub(super) inner: usize,
    /// The same, [`GROUP`] outputs beside each other, for reading in one stream; or nothing. What is left of `n` is not
    /// in it.
    pub(super) packed: &'a [f32],
}

/// Outputs whose packed weights lie beside each other: as many as are summed at once, so that each is read once.
const GROUP: usize = 8;

/// Of `n` outputs those that are packed: whole groups and whole registers.
fn packed_outputs(lanes: usize, n: usize) -> usize {
    n / lanes.max(GROUP) * lanes.max(GROUP)
}

/// Weights that packing writes for blocks of `n` outputs and `inner` inputs: none where no register would be full.
pub(super) fn packed_len(lanes: usize, blocks: usize, n: usize, inner: usize) -> usize {
    // Two and four are multiplied without a loop, small sums are mostly their ends.
    if inner < 8 { 0 } else { blocks * packed_outputs(lanes, n) * inner }
}

/// Packs some blocks: `[groups, inner, GROUP]` each.
pub(super) struct Pack<'a> {
    pub(super) w: &'a [f32],
    pub(super) n: usize,
    pub(super) inner: usize,
    pub(super) turned: bool,
    pub(super) packed: &'a mut [f32],
}

impl Vectorize for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { w, n, inner, turned, packed } = self;
        let full = packed_outputs(I::LANES, n);
        for (packed, w) in packed.chunks_exact_mut(full * inner).zip(w.chunks_exact(n * inner)) {
            if turned {
                for (group, packed) in packed.chunks_exact_mut(GROUP * inner).enumerate() {
                    for (to, from) in packed.chunks_exact_mut(GROUP).zip(w.chunks_exact(n)) {
                        to.copy_from_slice(&from[group * GROUP..][..GROUP]);
                    }
                }
                continue;
            }
            for first in (0..full).step_by(I::LANES) {
                for k in (0..inner).step_by(I::LANES) {
                    let width = I::LANES.min(inner - k);
                    let mut square = [isa.splat(0.0); MAX_LANES];
                    for (j, v) in square[..I::LANES].iter_mut().enumerate() {
                        let from = &w[(first + j) * inner + k..][..width];
                        *v = if width == I::LANES { isa.load(from) } else { isa.load_partial(from) };
                    }
                    isa.transpose(&mut square);
                    for (k, &v) in (k..k + width).zip(&square) {
                        let mut lanes = [0.0; MAX_LANES];
                        isa.store(&mut lanes, v);
                        // A part of a group, or several.
                        for (part, from) in lanes[..I::LANES].chunks(GROUP).enumerate() {
                            let output = first + part * GROUP;
                            let to = (output / GROUP * inner + k) * GROUP + output % GROUP;
                            packed[to..][..from.len()].copy_from_slice(from);
                        }
                    }
                }
            }
        }
    }
}

/// Weights ahead that are asked for: packed ones lie one after the other, and large ones come from memory. Asking for every
/// line twice costs less than looking whether it is new.
const AHEAD: usize = 512;

/// Outputs of a factor from `first` on, as many as `out` holds, for `R` registers of rows.
///
/// A type for each case, so that each is a function of its own: in a larger one sums would not stay in registers.
pub(super) struct Outputs<'a, const R: usize, const TURNED: bool> {
    pub(super) blocks: Blocks<'a>,
    pub(super) from: &'a [f32],
    /// The features that are the inputs of the blocks.
    pub(super) reads: &'a [u32],
    pub(super) first: usize,
    pub(super) out: &'a mut [f32],
}

impl<const R: usize, const TURNED: bool> Vectorize for Outputs<'_, R, TURNED> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { blocks: Blocks { w, n, inner, packed }, from, reads, first, out } = self;
        let size = R * I::LANES;
        match (n, inner) {
            (2, 2) if first % 2 == 0 => {
                return squares::<I, R, TURNED, 2>(isa, &w[2 * first..], from, &reads[first..], out);
            }
            (4, 4) if first % 4 == 0 => {
                return squares::<I, R, TURNED, 4>(isa, &w[4 * first..], from, &reads[first..], out);
            }
            _ => {}
        }
        let full = if packed.is_empty() { 0 } else { packed_outputs(I::LANES, n) };
        let (mut out, mut next) = (out, first);
        while !out.is_empty() {
            let (block, start) = (next / n, next % n);
            let take = (n - start).min(out.len() / size);
            let (now, rest) = out.split_at_mut(take * size);
            let reads = &reads[block * inner..][..inner];
            // Packed weights are for whole groups.
            let whole = (start + take).min(full).saturating_sub(start) / GROUP * GROUP;
            let whole = if start.is_multiple_of(GROUP) { whole } else { 0 };
            let (groups, left) = now.split_at_mut(whole * size);
            for (group, out) in groups.chunks_exact_mut(GROUP * size).enumerate() {
                let w = &packed[(block * full + start + group * GROUP) * inner..][..GROUP * inner];
                some_outputs::<I, R, true>(isa, &Terms { w, n: GROUP, inner, reads, from }, 0, out);
            }
            let w = &w[block * n * inner..][..n * inner];
            some_outputs::<I, R, TURNED>(isa, &Terms { w, n, inner, reads, from }, start + whole, left);
            (out, next) = (rest, next + take);
        }
    }
}

/// Blocks of `S × S`, few enough that no loop is left within one.
#[inline(always)]
fn squares<I: Isa, const R: usize, const TURNED: bool, const S: usize>(
    isa: I,
    w: &[f32],
    from: &[f32],
    reads: &[u32],
    out: &mut [f32],
) {
    let size = R * I::LANES;
    let blocks = w.chunks_exact(S * S).zip(reads.chunks_exact(S));
    for (out, (w, reads)) in out.chunks_exact_mut(S * size).zip(blocks) {
        let mut x = [[isa.splat(0.0); R]; S];
        for i in 0..S {
            let from = &from[reads[i] as usize * size..][..size];
            for r in 0..R {
                x[i][r] = isa.load(&from[r * I::LANES..]);
            }
        }
        for j in 0..S {
            let mut sum = [isa.splat(0.0); R];
            for i in 0..S {
                let w = isa.splat(if TURNED { w[i * S + j] } else { w[j * S + i] });
                for r in 0..R {
                    sum[r] = if i == 0 { isa.mul(w, x[i][r]) } else { isa.mul_add(w, x[i][r], sum[r]) };
                }
            }
            for r in 0..R {
                isa.store(&mut out[j * size + r * I::LANES..], sum[r]);
            }
        }
    }
}

/// The terms of the sums of one block.
#[derive(Clone, Copy)]
struct Terms<'a> {
    /// The block, `n · inner` weights.
    w: &'a [f32],
    n: usize,
    inner: usize,
    /// The features to add.
    reads: &'a [u32],
    from: &'a [f32],
}

/// The outputs of a block from `start` on.
#[inline(always)]
fn some_outputs<I: Isa, const R: usize, const TURNED: bool>(
    isa: I,
    terms: &Terms<'_>,
    start: usize,
    out: &mut [f32],
) {
    let size = R * I::LANES;
    let (mut at, take) = (0, out.len() / size);
    while at < take {
        let (left, out) = (take - at, &mut out[at * size..]);
        // More sums than these do not stay in registers.
        at += match left {
            12.. if I::LANES == 16 && R == 1 => sums::<I, R, TURNED, 12>(isa, terms, start + at, out),
            8.. if I::LANES == 16 || R == 1 => sums::<I, R, TURNED, 8>(isa, terms, start + at, out),
            4.. => sums::<I, R, TURNED, 4>(isa, terms, start + at, out),
            2.. => sums::<I, R, TURNED, 2>(isa, terms, start + at, out),
            _ => sums::<I, R, TURNED, 1>(isa, terms, start + at, out),
        };
    }
}

/// The outputs `at..at + J` of a block; returns `J`.
#[inline(always)]
fn sums<I: Isa, const R: usize, const TURNED: bool, const J: usize>(
    isa: I,
    terms: &Terms<'_>,
    at: usize,
    out: &mut [f32],
) -> usize {
    let size = R * I::LANES;
    let &Terms { w, n, inner, reads, from } = terms;
    let mut sums = [[isa.splat(0.0); R]; J];
    let features = |read: u32| {
        let from = &from[read as usize * size..][..size];
        let mut x = [isa.splat(0.0); R];
        for (r, x) in x.iter_mut().enumerate() {
            *x = isa.load(&from[r * I::LANES..]);
        }
        x
    };
    // Arrays and constant bounds, or the sums would not stay in registers.
    if TURNED {
        for (w, &read) in w.chunks_exact(n).zip(reads) {
            isa.prefetch(w, AHEAD);
            let w: &[f32; J] = w[at..].first_chunk().expect("outputs of the block");
            let x = features(read);
            for j in 0..J {
                let w = isa.splat(w[j]);
                for r in 0..R {
                    sums[j][r] = isa.mul_add(w, x[r], sums[j][r]);
                }
            }
        }
    } else {
        let mut rows: [&[f32]; J] = [&[]; J];
        for (j, row) in rows.iter_mut().enumerate() {
            *row = &w[(at + j) * inner..][..reads.len()];
        }
        for (i, &read) in reads.iter().enumerate() {
            let x = features(read);
            for j in 0..J {
                let w = isa.splat(rows[j][i]);
                for r in 0..R {
                    sums[j][r] = isa.mul_add(w, x[r], sums[j][r]);
                }
            }
        }
    }
    for j in 0..J {
        for r in 0..R {
            isa.store(&mut out[j * size + r * I::LANES..], sums[j][r]);
        }
    }
    J
}
