//! Weight gradients of a factor over one tile: `dw[block, j, i] += Σ_row dy[j] x[i]`.

use super::plan::Factor;
use crate::simd::{Isa, MAX_LANES, Vectorize};

/// Adds the gradients of all blocks, for `R` registers of rows.
pub(super) struct Gradient<'a, const R: usize> {
    pub(super) factor: &'a Factor,
    /// The tile before the factor,
    pub(super) x: &'a [f32],
    /// and that of the gradients after it.
    pub(super) dy: &'a [f32],
    pub(super) dw: &'a mut [f32],
    /// Working memory, `2 · MAX_LANES` a row.
    pub(super) turned: &'a mut [f32],
}

impl<const R: usize> Vectorize for Gradient<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Self { factor, x, dy, dw, turned } = self;
        if factor.p < I::LANES {
            return small::<I, R>(isa, factor, x, dy, dw);
        }
        for (block, dw) in dw.chunks_exact_mut(factor.q * factor.p).enumerate() {
            let reads = &factor.reads[block * factor.p..][..factor.p];
            let back = &factor.back[block * factor.q..][..factor.q];
            for (first, reads) in (0..factor.p).step_by(2 * I::LANES).zip(reads.chunks(2 * I::LANES)) {
                let dw = &mut dw[first..];
                if reads.len() > I::LANES {
                    turn::<I, R, 2>(isa, reads, x, turned);
                    columns::<I, R, 2>(isa, back, dy, turned, dw, factor.p, reads.len());
                } else {
                    turn::<I, R, 1>(isa, reads, x, turned);
                    columns::<I, R, 1>(isa, back, dy, turned, dw, factor.p, reads.len());
                }
            }
        }
    }
}

/// Up to `V` registers of inputs `[R · LANES, V · LANES]`, row by row.
#[inline(always)]
fn turn<I: Isa, const R: usize, const V: usize>(isa: I, reads: &[u32], x: &[f32], turned: &mut [f32]) {
    let size = R * I::LANES;
    for (v, reads) in reads.chunks(I::LANES).enumerate() {
        for r in 0..R {
            let mut square = [isa.splat(0.0); MAX_LANES];
            for (to, &read) in square.iter_mut().zip(reads) {
                *to = isa.load(&x[read as usize * size + r * I::LANES..]);
            }
            isa.transpose(&mut square);
            for (row, &inputs) in square[..I::LANES].iter().enumerate() {
                isa.store(&mut turned[((r * I::LANES + row) * V + v) * I::LANES..], inputs);
            }
        }
    }
}

/// `width` columns of a block's gradient, rows of which lie `stride` apart.
#[inline(always)]
fn columns<I: Isa, const R: usize, const V: usize>(
    isa: I,
    back: &[u32],
    dy: &[f32],
    turned: &[f32],
    dw: &mut [f32],
    stride: usize,
    width: usize,
) {
    let mut at = 0;
    while at < back.len() {
        let (left, dw) = (&back[at..], &mut dw[at * stride..]);
        at += match left.len() {
            8.. if I::LANES == 16 => some::<I, R, V, 8>(isa, left, dy, turned, dw, stride, width),
            4.. => some::<I, R, V, 4>(isa, left, dy, turned, dw, stride, width),
            _ => some::<I, R, V, 1>(isa, left, dy, turned, dw, stride, width),
        };
    }
}

/// The same for the first `J` outputs of `back`; returns `J`.
#[inline(always)]
fn some<I: Isa, const R: usize, const V: usize, const J: usize>(
    isa: I,
    back: &[u32],
    dy: &[f32],
    turned: &[f32],
    dw: &mut [f32],
    stride: usize,
    width: usize,
) -> usize {
    let size = R * I::LANES;
    let mut sums = [[isa.splat(0.0); V]; J];
    let mut rows: [&[f32]; J] = [&[]; J];
    for (row, &feature) in rows.iter_mut().zip(back) {
        *row = &dy[feature as usize * size..][..size];
    }
    // Constant bounds, or the sums would not stay in registers.
    for (row, x) in turned[..size * V * I::LANES].chunks_exact(V * I::LANES).enumerate() {
        let mut inputs = [isa.splat(0.0); V];
        for v in 0..V {
            inputs[v] = isa.load(&x[v * I::LANES..]);
        }
        for j in 0..J {
            let dy = isa.splat(rows[j][row]);
            for v in 0..V {
                sums[j][v] = isa.mul_add(dy, inputs[v], sums[j][v]);
            }
        }
    }
    for j in 0..J {
        let dw = &mut dw[j * stride..][..width];
        for v in 0..V {
            let end = width.min((v + 1) * I::LANES);
            add_to(isa, &mut dw[v * I::LANES..end], sums[j][v]);
        }
    }
    J
}

/// `dw += sum`, for a register or less.
#[inline(always)]
fn add_to<I: Isa>(isa: I, dw: &mut [f32], sum: I::V) {
    if dw.len() == I::LANES {
        isa.store(dw, isa.add(isa.load(dw), sum));
    } else {
        isa.store_partial(dw, isa.add(isa.load_partial(dw), sum));
    }
}

/// Blocks of few inputs: as many weights as there are lanes are summed row by row, then turned and added.
#[inline(always)]
fn small<I: Isa, const R: usize>(isa: I, factor: &Factor, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let (size, q, p) = (R * I::LANES, factor.q, factor.p);
    let (mut output, mut i) = (0, 0);
    for dw in dw.chunks_mut(I::LANES) {
        let mut sums = [isa.splat(0.0); MAX_LANES];
        for sum in &mut sums[..dw.len()] {
            let dy = &dy[factor.back[output] as usize * size..][..size];
            let x = &x[factor.reads[output / q * p + i] as usize * size..][..size];
            for (dy, x) in dy.chunks_exact(I::LANES).zip(x.chunks_exact(I::LANES)) {
                *sum = isa.mul_add(isa.load(dy), isa.load(x), *sum);
            }
            i += 1;
            if i == p {
                (output, i) = (output + 1, 0);
            }
        }
        add_to(isa, dw, isa.sum_each(&mut sums));
    }
}
