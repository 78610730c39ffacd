//! Attention on the CPU: a task is one head of one sample. Its scores stand in a thread's own memory, a run of query
//! rows at a time, so memory grows with `tokens` and threads, not with `batch · heads · tokens²`.

use super::{Rows, Sizes};
use crate::Tensor;
use lacewing_cpu::gemm::{MatMut, MatRef, Parallelism, gemm};
use lacewing_cpu::map::sweep;
use lacewing_cpu::scratch::scratch;
use lacewing_cpu::simd::{Isa, Vectorize, dispatch};
use lacewing_cpu::{math, reduce};
use rayon::prelude::*;

/// The most query rows whose scores stand at once.
const RUN: usize = 256;

/// `out = softmax(scale · q kᵀ) v` for every head; `lse` is the natural log of each row's sum of exponentials.
///
/// Shapes: `out [batch, tokens, heads · dim]`, `lse [batch, heads, tokens]`.
pub(super) fn forward(sizes: Sizes, qkv: [Rows<'_>; 3], out: &Tensor, lse: &Tensor) {
    let guards = qkv.map(|rows| rows.tensor.read());
    let [q, k, v] = [0, 1, 2].map(|i| Heads::new(&guards[i], &qkv[i], sizes));
    let out = &mut out.write();
    let outs = MatMut::row_major(out, sizes.batch * sizes.tokens, sizes.heads * sizes.dim);
    let outs = outs.tiles(sizes.tokens, sizes.dim);
    let lse = &mut lse.write();
    outs.into_par_iter().zip(lse.par_chunks_mut(sizes.tokens)).enumerate().for_each(|(head, (out, lse))| {
        forward_head(sizes.scale, q.at(head), k.at(head), v.at(head), out, lse);
    });
}

/// The gradients of q, k and v. With `P = softmax(scale · q kᵀ)`, made again from `lse`: `dv = Pᵀ dout`,
/// `dS = P ∘ (dout vᵀ − δ)` with `δ[i] = dout[i] · out[i]`, `dq = scale · dS k`, `dk = scale · dSᵀ q`.
///
/// Shapes: `out`, `dout [batch, tokens, heads · dim]`, `lse [batch, heads, tokens]`.
pub(super) fn backward(
    sizes: Sizes,
    qkv: [Rows<'_>; 3],
    out: &Tensor,
    lse: &Tensor,
    dout: &Tensor,
    grads: [Rows<'_>; 3],
) {
    let guards = qkv.map(|rows| rows.tensor.read());
    let inputs = [0, 1, 2].map(|i| Heads::new(&guards[i], &qkv[i], sizes));
    let width = sizes.heads * sizes.dim;
    let [out, dout, lse] = [out, dout, lse].map(Tensor::read);
    let like_out = Rows { offset: 0, stride: width, ..grads[0] };
    let (out, dout) = (Heads::new(&out, &like_out, sizes), Heads::new(&dout, &like_out, sizes));
    let rows = sizes.batch * sizes.tokens;
    if std::ptr::eq(grads[0].tensor, grads[1].tensor) {
        // One tensor holds all three side by side.
        let stride = grads[0].stride;
        assert_eq!(grads.map(|rows| (rows.offset, rows.stride)), [0, 1, 2].map(|i| (i * width, stride)));
        let data = &mut grads[0].tensor.write();
        let (dq, rest) = MatMut::new(data, rows, 3 * width, stride, 1).split_cols(width);
        let (dk, dv) = rest.split_cols(width);
        backward_heads(sizes, inputs, out, dout, &lse, [dq, dk, dv]);
    } else {
        let mut guards = grads.map(|rows| rows.tensor.write());
        let [dq, dk, dv] = &mut guards;
        let view = |i: usize, data| MatMut::new(data, rows, width, grads[i].stride, 1);
        let views = [
            view(0, &mut dq[grads[0].offset..]),
            view(1, &mut dk[grads[1].offset..]),
            view(2, &mut dv[grads[2].offset..]),
        ];
        backward_heads(sizes, inputs, out, dout, &lse, views);
    }
}

fn backward_heads(
    sizes: Sizes,
    [q, k, v]: [Heads<'_>; 3],
    out: Heads<'_>,
    dout: Heads<'_>,
    lse: &[f32],
    grads: [MatMut<'_>; 3],
) {
    let [dq, dk, dv] = grads.map(|grad| grad.tiles(sizes.tokens, sizes.dim));
    let grads = dq.into_par_iter().zip(dk).zip(dv).enumerate();
    grads.for_each(|(head, ((dq, dk), dv))| {
        let saved = Saved { out: out.at(head), lse: &lse[head * sizes.tokens..][..sizes.tokens] };
        backward_head(sizes.scale, [q, k, v].map(|x| x.at(head)), saved, dout.at(head), [dq, dk, dv]);
    });
}

/// One of q, k, v, out as heads: head `h` of sample `b` is number `b · heads + h`.
#[derive(Clone, Copy)]
struct Heads<'a> {
    all: MatRef<'a>,
    sizes: Sizes,
}

impl<'a> Heads<'a> {
    fn new(data: &'a [f32], rows: &Rows<'_>, sizes: Sizes) -> Self {
        let data = &data[rows.offset.min(data.len())..];
        Self {
            all: MatRef::new(data, sizes.batch * sizes.tokens, sizes.heads * sizes.dim, rows.stride, 1),
            sizes,
        }
    }

    /// `[tokens, dim]` of one head.
    fn at(self, head: usize) -> MatRef<'a> {
        let Sizes { tokens, heads, dim, .. } = self.sizes;
        self.all.rows_at(head / heads * tokens, tokens).cols_at(head % heads * dim, dim)
    }
}

fn forward_head(
    scale: f32,
    q: MatRef<'_>,
    k: MatRef<'_>,
    v: MatRef<'_>,
    mut out: MatMut<'_>,
    lse: &mut [f32],
) {
    let tokens = k.rows();
    scratch(RUN.min(tokens) * tokens, |scores| {
        for (run, lse) in lse.chunks_mut(RUN).enumerate() {
            let (start, rows) = (run * RUN, lse.len());
            let scores = &mut scores[..rows * tokens];
            let here = MatMut::row_major(scores, rows, tokens);
            gemm(here, false, q.rows_at(start, rows), k.t(), Parallelism::One);
            dispatch(Exponentials { scores, scale, lse });
            let mut out = out.reborrow().split_rows(start).1.split_rows(rows).0;
            gemm(out.reborrow(), false, MatRef::row_major(scores, rows, tokens), v, Parallelism::One);
            dispatch(Normalize { scores, scale, lse, out });
        }
    });
}

/// `scores = exp(scale · (scores − greatest of the row))`; `lse` gets the greatest.
struct Exponentials<'a> {
    scores: &'a mut [f32],
    scale: f32,
    lse: &'a mut [f32],
}

impl Vectorize for Exponentials<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let scale = isa.splat(self.scale);
        let tokens = self.scores.len() / self.lse.len();
        for (scores, top) in self.scores.chunks_exact_mut(tokens).zip(self.lse) {
            *top = reduce::max(isa, scores);
            let top = isa.splat(*top);
            sweep(isa, [], [scores], |[], [s]| [math::exp(isa, isa.mul(isa.sub(s, top), scale))]);
        }
    }
}

/// Divides each row of `out` by its sum of `scores`; `lse`, the greatest until now, becomes the log of the sum.
struct Normalize<'a> {
    scores: &'a [f32],
    scale: f32,
    lse: &'a mut [f32],
    out: MatMut<'a>,
}

impl Vectorize for Normalize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let tokens = self.scores.len() / self.lse.len();
        for (r, (scores, lse)) in self.scores.chunks_exact(tokens).zip(self.lse).enumerate() {
            let sum = reduce::sum(isa, scores);
            *lse = self.scale * *lse + sum.ln();
            let share = isa.splat(1.0 / sum);
            sweep(isa, [], [self.out.row_mut(r)], |[], [y]| [isa.mul(y, share)]);
        }
    }
}

/// What the forward pass left for one head.
#[derive(Clone, Copy)]
struct Saved<'a> {
    out: MatRef<'a>,
    lse: &'a [f32],
}

fn backward_head(
    scale: f32,
    [q, k, v]: [MatRef<'_>; 3],
    saved: Saved<'_>,
    dout: MatRef<'_>,
    [mut dq, mut dk, mut dv]: [MatMut<'_>; 3],
) {
    let tokens = k.rows();
    scratch(2 * RUN.min(tokens) * tokens, |scores| {
        let (p, ds) = scores.split_at_mut(RUN.min(tokens) * tokens);
        for start in (0..tokens).step_by(RUN) {
            let rows = RUN.min(tokens - start);
            let (p, ds) = (&mut p[..rows * tokens], &mut ds[..rows * tokens]);
            let (q, dout) = (q.rows_at(start, rows), dout.rows_at(start, rows));
            let dq = dq.reborrow().split_rows(start).1.split_rows(rows).0;
            gemm(MatMut::row_major(p, rows, tokens), false, q, k.t(), Parallelism::One);
            gemm(MatMut::row_major(ds, rows, tokens), false, dout, v.t(), Parallelism::One);
            let (out, lse) = (saved.out.rows_at(start, rows), &saved.lse[start..start + rows]);
            dispatch(ScoreGradient { p, ds, scale, lse, out, dout });
            let (p, ds) = (MatRef::row_major(p, rows, tokens), MatRef::row_major(ds, rows, tokens));
            gemm(dq, false, ds, k, Parallelism::One);
            gemm(dk.reborrow(), start > 0, ds.t(), q, Parallelism::One);
            gemm(dv.reborrow(), start > 0, p.t(), dout, Parallelism::One);
        }
    });
}

/// Scores in `p` become probabilities; `ds`, which holds `dout vᵀ`, becomes the gradient of `q kᵀ`.
struct ScoreGradient<'a> {
    p: &'a mut [f32],
    ds: &'a mut [f32],
    scale: f32,
    lse: &'a [f32],
    out: MatRef<'a>,
    dout: MatRef<'a>,
}

impl Vectorize for ScoreGradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let tokens = self.p.len() / self.lse.len();
        let scale = isa.splat(self.scale);
        let rows = self.p.chunks_exact_mut(tokens).zip(self.ds.chunks_exact_mut(tokens)).zip(self.lse);
        for (r, ((p, ds), lse)) in rows.enumerate() {
            let lse = isa.splat(-*lse);
            let delta = isa.splat(reduce::dot(isa, self.dout.row(r), self.out.row(r)));
            sweep(isa, [], [p, ds], |[], [s, dp]| {
                let p = math::exp(isa, isa.mul_add(s, scale, lse));
                [p, isa.mul(isa.mul(p, isa.sub(dp, delta)), scale)]
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_cpu::simd::{Level, with_level};
    use lacewing_testkit::{assert_within, gamma, uniform};

    /// Probabilities and output of one head in f64: q, k, v `[tokens, dim]`.
    fn exact(scale: f64, [q, k, v]: [&[f64]; 3], dim: usize) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let tokens = q.len() / dim;
        let (mut p, mut out, mut lse) = (Vec::new(), vec![0.0; q.len()], Vec::new());
        for i in 0..tokens {
            let dot = |j: usize| (0..dim).map(|d| q[i * dim + d] * k[j * dim + d]).sum::<f64>() * scale;
            let scores: Vec<f64> = (0..tokens).map(dot).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let log = top + scores.iter().map(|s| (s - top).exp()).sum::<f64>().ln();
            lse.push(log);
            for (j, s) in scores.iter().enumerate() {
                let share = (s - log).exp();
                p.push(share);
                for d in 0..dim {
                    out[i * dim + d] += share * v[j * dim + d];
                }
            }
        }
        (p, out, lse)
    }

    #[test]
    fn a_head_and_its_gradient_meet_the_definition_at_every_level() {
        for level in Level::available() {
            // The scale is 1 / √width: of a head's own or of another width.
            for (tokens, dim, width) in [
                (1, 1, 1),
                (2, 3, 3),
                (5, 16, 16),
                (17, 15, 15),
                (17, 64, 147),
                (65, 64, 64),
                (RUN, 8, 5),
                (RUN + 9, 32, 32),
            ] {
                // Heads inside wider rows, as a packed projection has them.
                let stride = dim + 5;
                let inputs = [1, 2, 3, 4].map(|seed| -> Vec<f32> {
                    uniform(seed, tokens * stride).iter().map(|x| x * 2.0).collect()
                });
                let views = inputs.each_ref().map(|x| MatRef::new(x, tokens, dim, stride, 1));
                let scale = 1.0 / (width as f32).sqrt();
                let (mut out, mut lse) = (vec![f32::NAN; tokens * dim], vec![f32::NAN; tokens]);
                let mut grads = [0, 1, 2].map(|_| vec![f32::NAN; tokens * dim]);
                with_level(level, || {
                    let [q, k, v, dout] = views;
                    forward_head(scale, q, k, v, MatMut::row_major(&mut out, tokens, dim), &mut lse);
                    let saved = Saved { out: MatRef::row_major(&out, tokens, dim), lse: &lse };
                    let grads = grads.each_mut().map(|g| MatMut::row_major(g, tokens, dim));
                    backward_head(scale, [q, k, v], saved, dout, grads);
                });
                let wide = views.map(|x| -> Vec<f64> {
                    (0..tokens).flat_map(|r| x.row(r).iter().map(|x| f64::from(*x))).collect()
                });
                let [q, k, v, dout] = wide.each_ref().map(|x| &x[..]);
                let scale = f64::from(scale);
                let (p, wanted, logs) = exact(scale, [q, k, v], dim);
                // Inputs are below 2, which bounds a score; it is off by γ of its terms, a probability by e to that.
                let most = 4.0 * dim as f64 * scale;
                let score_error = gamma(dim + 4) * most + gamma(4 * dim);
                let error = 4.0 * (score_error + gamma(tokens + 8));
                assert_within(&lse, &logs, &vec![error * (1.0 + most); tokens], "lse");
                assert_within(&out, &wanted, &vec![2.0 * error; out.len()], "out");

                let mut exact_grads = [0, 1, 2].map(|_| vec![0.0; tokens * dim]);
                let mut sizes = [0, 1, 2].map(|_| vec![0.0; tokens * dim]);
                for (i, j) in (0..tokens).flat_map(|i| (0..tokens).map(move |j| (i, j))) {
                    let at = |x: &[f64], row: usize, d: usize| x[row * dim + d];
                    let dp: f64 = (0..dim).map(|d| at(dout, i, d) * at(v, j, d)).sum();
                    let delta: f64 = (0..dim).map(|d| at(dout, i, d) * at(&wanted, i, d)).sum();
                    let p = p[i * tokens + j];
                    let ds = p * (dp - delta) * scale;
                    // Both dot products have terms below 4.
                    let size = p * 8.0 * dim as f64 * scale;
                    for d in 0..dim {
                        let mut add = |which: usize, row: usize, term: f64, size: f64| {
                            exact_grads[which][row * dim + d] += term;
                            sizes[which][row * dim + d] += size;
                        };
                        add(0, i, ds * at(k, j, d), size * 2.0);
                        add(1, j, ds * at(q, i, d), size * 2.0);
                        add(2, j, p * at(dout, i, d), p * 2.0);
                    }
                }
                for (which, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                    let bound: Vec<f64> = sizes[which].iter().map(|size| 3.0 * error * size).collect();
                    let what = format!("{name}, {tokens} tokens of {dim} at {level:?}");
                    assert_within(&grads[which], &exact_grads[which], &bound, &what);
                }
            }
        }
    }
}
