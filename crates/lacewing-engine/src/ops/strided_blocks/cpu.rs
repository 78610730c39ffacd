//! Small strided blocks on the CPU, vectorized over neighboring blocks.
//!
//! Weights are laid out as `q · p` planes of one value a block, so that a register holds one entry of as many blocks as
//! it has lanes. Rows of a short stride are split into planes `[p, blocks]` as well.

use super::Sizes;
use lacewing_cpu::map::sweep;
use lacewing_cpu::parallel::{add_partials, partial_rows, rows_per_task};
use lacewing_cpu::scratch::scratch;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use rayon::prelude::*;

/// Strides from here on are swept as they lie: two registers or more at a time.
const LONG_STRIDE: usize = 32;

/// `y = W x`, or `Wᵀ x` with w stored as `[blocks, p, q]` where `transposed`.
///
/// Shapes: `x [rows, blocks · p]`, `y [rows, blocks · q]`.
pub(super) fn apply(x: &[f32], w: &[f32], transposed: bool, y: &mut [f32], sizes: Sizes) {
    let Sizes { q, p, .. } = sizes;
    let blocks = sizes.blocks();
    if y.is_empty() {
        return;
    }
    assert_eq!((x.len() / p, w.len()), (y.len() / q, blocks * q * p), "lengths of strided blocks");
    let step = rows_per_task(y.len() / (blocks * q), blocks * p.max(q));
    scratch(w.len(), |planes| {
        for (block, w) in w.chunks_exact(q * p).enumerate() {
            for (at, &w) in w.iter().enumerate() {
                let plane = if transposed { at % q * p + at / q } else { at };
                planes[plane * blocks + block] = w;
            }
        }
        let planes = &*planes;
        y.par_chunks_mut(step * blocks * q).zip(x.par_chunks(step * blocks * p)).for_each(|(y, x)| {
            scratch(blocks * (p + q), |row| dispatch(Apply { x, planes, y, row, sizes }));
        });
    });
}

/// `dw[g s, j, i] += Σ_r dy[r, g, j, s] x[r, g, i, s]`.
///
/// Shapes: `dy [rows, blocks · q]`, `x [rows, blocks · p]`, `dw [blocks, q, p]`.
pub(super) fn weight_gradient(dy: &[f32], x: &[f32], dw: &mut [f32], sizes: Sizes) {
    let Sizes { q, p, .. } = sizes;
    let blocks = sizes.blocks();
    if x.is_empty() {
        return;
    }
    assert_eq!((x.len() / p, dw.len()), (dy.len() / q, blocks * q * p), "lengths of strided blocks");
    let rows = x.len() / (blocks * p);
    let step = partial_rows(rows, blocks * q * p);
    let size = blocks * q * p;
    scratch((1 + rows.div_ceil(step)) * size, |memory| {
        let (sums, partials) = memory.split_at_mut(size);
        let inputs = dy.par_chunks(step * blocks * q).zip(x.par_chunks(step * blocks * p));
        partials.par_chunks_mut(size).zip(inputs).for_each(|(planes, (dy, x))| {
            planes.fill(0.0);
            scratch(blocks * (p + q), |row| dispatch(Gradient { dy, x, planes, row, sizes }));
        });
        sums.fill(0.0);
        add_partials(sums, partials);
        for (block, dw) in dw.chunks_exact_mut(q * p).enumerate() {
            dw.iter_mut().enumerate().for_each(|(at, dw)| *dw += sums[at * blocks + block]);
        }
    });
}

struct Apply<'a> {
    x: &'a [f32],
    planes: &'a [f32],
    y: &'a mut [f32],
    row: &'a mut [f32],
    sizes: Sizes,
}

impl Vectorize for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Sizes { groups, stride, q, p } = self.sizes;
        let blocks = self.sizes.blocks();
        let rows = self.x.chunks_exact(blocks * p).zip(self.y.chunks_exact_mut(blocks * q));
        if stride >= LONG_STRIDE {
            rows.for_each(|(x, y)| product(isa, x, self.planes, y, groups, stride, q, p));
            return;
        }
        let (x_planes, y_planes) = self.row.split_at_mut(blocks * p);
        for (x, y) in rows {
            split(x, x_planes, stride, p);
            product(isa, x_planes, self.planes, y_planes, 1, blocks, q, p);
            join(y_planes, y, stride, q);
        }
    }
}

/// One row, a stride at a time: two products of the sum in each sweep over it.
#[inline(always)]
fn product<I: Isa>(
    isa: I,
    x: &[f32],
    planes: &[f32],
    y: &mut [f32],
    groups: usize,
    stride: usize,
    q: usize,
    p: usize,
) {
    for (g, y) in y.chunks_exact_mut(q * stride).enumerate() {
        for (j, y) in y.chunks_exact_mut(stride).enumerate() {
            let w = |i: usize| &planes[((j * p + i) * groups + g) * stride..][..stride];
            let x = |i: usize| &x[(g * p + i) * stride..][..stride];
            let mut i = 0;
            while i < p {
                let (first, pair) = (i == 0, i + 1 < p);
                match (first, pair) {
                    (true, true) => sweep(isa, [w(0), x(0), w(1), x(1)], [&mut *y], |[a, b, c, d], _| {
                        [isa.mul_add(c, d, isa.mul(a, b))]
                    }),
                    (true, false) => sweep(isa, [w(0), x(0)], [&mut *y], |[a, b], _| [isa.mul(a, b)]),
                    (false, true) => {
                        sweep(isa, [w(i), x(i), w(i + 1), x(i + 1)], [&mut *y], |[a, b, c, d], [y]| {
                            [isa.mul_add(c, d, isa.mul_add(a, b, y))]
                        });
                    }
                    (false, false) => {
                        sweep(isa, [w(i), x(i)], [&mut *y], |[a, b], [y]| [isa.mul_add(a, b, y)]);
                    }
                }
                i += 2;
            }
        }
    }
}

struct Gradient<'a> {
    dy: &'a [f32],
    x: &'a [f32],
    planes: &'a mut [f32],
    row: &'a mut [f32],
    sizes: Sizes,
}

impl Vectorize for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let Sizes { mut groups, mut stride, q, p } = self.sizes;
        let blocks = self.sizes.blocks();
        let split_rows = stride < LONG_STRIDE;
        if split_rows {
            (groups, stride) = (1, blocks);
        }
        let (x_planes, dy_planes) = self.row.split_at_mut(blocks * p);
        for (mut x, mut dy) in self.x.chunks_exact(blocks * p).zip(self.dy.chunks_exact(blocks * q)) {
            if split_rows {
                split(x, x_planes, self.sizes.stride, p);
                split(dy, dy_planes, self.sizes.stride, q);
                (x, dy) = (&*x_planes, &*dy_planes);
            }
            for g in 0..groups {
                for (j, i) in (0..q).flat_map(|j| (0..p).map(move |i| (j, i))) {
                    let dw = &mut self.planes[((j * p + i) * groups + g) * stride..][..stride];
                    let dy = &dy[(g * q + j) * stride..][..stride];
                    let x = &x[(g * p + i) * stride..][..stride];
                    sweep(isa, [dy, x], [dw], |[a, b], [sum]| [isa.mul_add(a, b, sum)]);
                }
            }
        }
    }
}

/// `[groups, p, stride]` to `[p, groups, stride]`.
#[inline(always)]
fn split(row: &[f32], planes: &mut [f32], stride: usize, p: usize) {
    let size = row.len() / p;
    for (i, plane) in planes.chunks_exact_mut(size).enumerate() {
        copy_runs(row[i * stride..].chunks(p * stride), plane.chunks_exact_mut(stride), stride);
    }
}

/// `[q, groups, stride]` to `[groups, q, stride]`.
#[inline(always)]
fn join(planes: &[f32], row: &mut [f32], stride: usize, q: usize) {
    let size = row.len() / q;
    for (j, plane) in planes.chunks_exact(size).enumerate() {
        copy_runs(plane.chunks_exact(stride), row[j * stride..].chunks_mut(q * stride), stride);
    }
}

/// Copies the first `stride` elements of each chunk; the usual strides without a loop or a call for each.
#[inline(always)]
fn copy_runs<'a>(
    from: impl Iterator<Item = &'a [f32]>,
    to: impl Iterator<Item = &'a mut [f32]>,
    stride: usize,
) {
    let pairs = from.zip(to);
    match stride {
        1 => pairs.for_each(|(from, to)| to[0] = from[0]),
        2 => pairs.for_each(|(from, to)| to[..2].copy_from_slice(&from[..2])),
        4 => pairs.for_each(|(from, to)| to[..4].copy_from_slice(&from[..4])),
        8 => pairs.for_each(|(from, to)| to[..8].copy_from_slice(&from[..8])),
        16 => pairs.for_each(|(from, to)| to[..16].copy_from_slice(&from[..16])),
        _ => pairs.for_each(|(from, to)| to[..stride].copy_from_slice(&from[..stride])),
    }
}
