//! The normal equations of one factor of a chain, on its support and never as a matrix.
//!
//! For blocks of `q × p` values the equations are `(Lᵀ L · F · R M Rᵀ) = Lᵀ W M Rᵀ` at the places of F. Strided
//! factors of one product share none of them between blocks as long as M = 1, which makes them as many small
//! systems; otherwise conjugate gradients do. One product costs the cheapest of three ways, at most
//! `n_in (z + q n_out)` for a factor of z values.

use lacewing_linalg::{solve_symmetric, transposed};

use crate::Gather;

/// Steps of conjugate gradients for one factor at most, and the residual at which they end, relative to the first.
const STEPS: usize = 16;
const RESIDUAL: f64 = 1e-3;
/// Everything before a factor, or everything behind it.
///
/// Before: `data = R [n, n_in]` and `gram = R M Rᵀ [n, n]`. Behind: `data = Lᵀ W M [n, n_in]` and
/// `gram = Lᵀ L [n, n]`.
pub(super) struct Side {
    pub(super) n: usize,
    pub(super) data: Vec<f64>,
    pub(super) gram: Vec<f64>,
}

/// The sum of products, in eight partial sums.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let (a_chunks, b_chunks) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0; 8];
    for (a, b) in a_chunks.zip(b_chunks) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f64>() + rest
}

/// Where the values of [`crate::Link::Blocks`] lie in its matrix.
#[derive(Clone, Copy)]
pub(super) struct Grid {
    pub(super) groups: usize,
    pub(super) stride: usize,
    pub(super) q: usize,
    pub(super) p: usize,
}

impl Grid {
    /// Row and column of a value.
    pub(super) fn place(self, at: usize) -> (usize, usize) {
        let (block, j, i) = (at / (self.q * self.p), at / self.p % self.q, at % self.p);
        let (g, s) = (block / self.stride, block % self.stride);
        ((g * self.q + j) * self.stride + s, (g * self.p + i) * self.stride + s)
    }

    /// The row of values that make an output, or the column of those that read an input.
    fn line(self, index: usize, rows: bool) -> Line {
        let Grid { stride, q, p, .. } = self;
        let (own, other) = if rows { (q, p) } else { (p, q) };
        let (g, place, s) = (index / (own * stride), index / stride % own, index % stride);
        let block = (g * stride + s) * q * p;
        let (start, step) = if rows { (block + place * p, 1) } else { (block + place, p) };
        Line { start, step, first: g * other * stride + s, jump: stride, len: other }
    }
}

/// Values `start + t · step` of a link, at rows or columns `first + t · jump`.
#[derive(Clone, Copy)]
struct Line {
    start: usize,
    step: usize,
    first: usize,
    jump: usize,
    len: usize,
}

/// The non-zeros of a Gram matrix, row by row.
struct Near {
    /// Where each row starts, and the end of the last.
    starts: Vec<usize>,
    /// Column and value.
    all: Vec<(usize, f64)>,
}

impl Near {
    /// `None` for a matrix of which more than a quarter is not zero.
    fn of(side: &Side) -> Option<Near> {
        let limit = side.n * side.n / 4;
        if side.gram.iter().filter(|&&v| v != 0.0).count() > limit {
            return None;
        }
        let mut near = Near { starts: vec![0], all: Vec::new() };
        for row in side.gram.chunks_exact(side.n) {
            near.all.extend(row.iter().copied().enumerate().filter(|near| near.1 != 0.0));
            near.starts.push(near.all.len());
        }
        Some(near)
    }

    fn row(&self, index: usize) -> &[(usize, f64)] {
        &self.all[self.starts[index]..self.starts[index + 1]]
    }
}

/// The normal equations of one factor: `K v = (Lᵀ L · F(v) · R M Rᵀ)` on the support of F.
pub(super) struct Normal<'a> {
    pub(super) grid: Grid,
    gather: Option<&'a Gather>,
    /// `Lᵀ L`, by outputs of the factor.
    left: &'a Side,
    /// `R M Rᵀ`, by its inputs.
    right: &'a Side,
    left_near: Option<Near>,
    right_near: Option<Near>,
}

impl<'a> Normal<'a> {
    pub(super) fn new(grid: Grid, gather: Option<&'a Gather>, left: &'a Side, right: &'a Side) -> Self {
        Normal { grid, gather, left, right, left_near: Near::of(left), right_near: Near::of(right) }
    }

    /// Values of the link, for those of the parameter.
    fn unfolded(&self, param: &[f64]) -> Vec<f64> {
        self.gather.map_or_else(|| param.to_vec(), |gather| gather.apply(param))
    }

    /// Its transpose.
    pub(super) fn folded(&self, values: Vec<f64>) -> Vec<f64> {
        match self.gather {
            None => values,
            Some(gather) => gather.apply_transposed(&values),
        }
    }

    /// `K v`, the cheapest way.
    pub(super) fn apply(&self, v: &[f64]) -> Vec<f64> {
        let v = self.unfolded(v);
        let Grid { q, p, .. } = self.grid;
        let by_inputs = self.right.n * (v.len() + q * self.left.n);
        // Single values here and there take about four times as long as rows of them.
        let lines = |near: &Option<Near>, width: usize| match near {
            Some(near) if 4 * near.all.len() * width * width < by_inputs => near.all.len() * width * width,
            _ => usize::MAX,
        };
        let (by_rows, by_cols) = (lines(&self.left_near, p), lines(&self.right_near, q));
        let product = match (&self.left_near, &self.right_near) {
            (Some(near), _) if by_rows <= by_cols && by_rows < usize::MAX => {
                apply_sparse(&v, self.grid, true, near, self.right)
            }
            (_, Some(near)) if by_cols < usize::MAX => apply_sparse(&v, self.grid, false, near, self.left),
            _ => self.apply_by_inputs(&v),
        };
        self.folded(product)
    }

    /// `K v` by `Lᵀ L · (F · column)` for each column of `R M Rᵀ`.
    fn apply_by_inputs(&self, v: &[f64]) -> Vec<f64> {
        let Grid { stride, q, p, .. } = self.grid;
        // Values [g, j, i, s], so that those of neighbouring blocks are neighbours.
        let mut values = vec![0.0; v.len()];
        for (at, value) in v.iter().enumerate() {
            let (block, rest) = (at / (q * p), at % (q * p));
            values[(block / stride * q * p + rest) * stride + block % stride] = *value;
        }
        let mut product = vec![0.0; v.len()];
        let mut z = vec![0.0; self.left.n];
        for (c, near) in self.right.gram.chunks_exact(self.right.n).enumerate() {
            z.fill(0.0);
            for (line, values) in values.chunks_exact(p * stride).enumerate() {
                let (z, near) =
                    (&mut z[line * stride..][..stride], &near[line / q * p * stride..][..p * stride]);
                if stride == 1 {
                    z[0] = values.iter().zip(near).map(|(v, x)| v * x).sum();
                    continue;
                }
                for (values, near) in values.chunks_exact(stride).zip(near.chunks_exact(stride)) {
                    z.iter_mut().zip(values.iter().zip(near)).for_each(|(z, (v, x))| *z += v * x);
                }
            }
            let col = self.grid.line(c, false);
            for t in 0..col.len {
                let row = col.first + t * col.jump;
                product[col.start + t * col.step] = match &self.left_near {
                    Some(near) => near.row(row).iter().map(|&(i, value)| value * z[i]).sum(),
                    None => dot(&self.left.gram[row * self.left.n..][..self.left.n], &z),
                };
            }
        }
        product
    }

    /// Whether no two blocks share an equation, as far as can be seen without much work.
    pub(super) fn uncoupled(&self) -> bool {
        let Grid { groups, stride, q, p } = self.grid;
        if self.gather.is_some() {
            return false;
        }
        let blocks = groups * stride;
        let block = |index: usize, own: usize| index / (own * stride) * stride + index % stride;
        // Pairs of blocks that are coupled on one side.
        let pairs = |side: &Side, near: &Option<Near>, own: usize| -> Option<Vec<usize>> {
            let near = near.as_ref()?;
            let of = |index: usize| near.row(index).iter().map(move |&(other, _)| (index, other));
            let pairs = (0..side.n).flat_map(of).map(|(a, b)| (block(a, own), block(b, own)));
            Some(pairs.filter(|(a, b)| a != b).map(|(a, b)| a * blocks + b).collect())
        };
        if blocks == 1 {
            return true;
        }
        match (pairs(self.left, &self.left_near, q), pairs(self.right, &self.right_near, p)) {
            (Some(one), Some(two)) => {
                let mut coupled = vec![false; blocks * blocks];
                one.iter().for_each(|&pair| coupled[pair] = true);
                !two.iter().any(|&pair| coupled[pair])
            }
            (Some(one), None) | (None, Some(one)) => one.is_empty(),
            (None, None) => false,
        }
    }

    /// The solution of uncoupled equations: `(Lᵀ L)⁻¹ residual (R M Rᵀ)⁻¹` for each block, with `proximity` times the mean
    /// of its diagonal added to either matrix's.
    pub(super) fn solve_blocks(&self, residual: &[f64], proximity: f64) -> Vec<f64> {
        let Grid { q, p, .. } = self.grid;
        let mut change = Vec::with_capacity(residual.len());
        for (block, residual) in residual.chunks_exact((q * p).max(1)).enumerate() {
            let (row, col) = self.grid.place(block * q * p);
            let own = |side: &Side, first: usize, n: usize| -> Vec<f64> {
                let index = |i: usize| first + i * self.grid.stride;
                let mut gram: Vec<f64> =
                    (0..n * n).map(|at| side.gram[index(at / n) * side.n + index(at % n)]).collect();
                let mean = gram.iter().step_by(n + 1).sum::<f64>() / n as f64;
                gram.iter_mut().step_by(n + 1).for_each(|value| *value += proximity * mean);
                gram
            };
            let half = solve_symmetric(&own(self.right, col, p), residual, p);
            let half = transposed(&half, q, p);
            let whole = solve_symmetric(&own(self.left, row, q), &half, q);
            change.extend(transposed(&whole, p, q));
        }
        change
    }

    /// An approximate solution of `K x = residual` that starts at 0, preconditioned by the diagonal.
    pub(super) fn conjugate_gradients(&self, residual: &[f64]) -> Vec<f64> {
        let diagonal = (0..self.grid.groups * self.grid.stride * self.grid.q * self.grid.p).map(|at| {
            let (row, col) = self.grid.place(at);
            self.left.gram[row * (self.left.n + 1)] * self.right.gram[col * (self.right.n + 1)]
        });
        // Of tied values only the sum, without the terms between them: all a preconditioner needs is to be
        // positive.
        let diagonal = match self.gather {
            None => diagonal.collect(),
            Some(gather) => {
                let mut sums = vec![0.0; gather.n_in()];
                for (at, value) in diagonal.enumerate() {
                    gather.terms_of(at).for_each(|(i, _)| sums[i] += value);
                }
                sums
            }
        };
        let scaled = |r: &[f64]| -> Vec<f64> {
            r.iter().zip(&diagonal).map(|(r, d)| if *d > 0.0 { r / d } else { 0.0 }).collect()
        };
        let mut x = vec![0.0; residual.len()];
        let mut r = residual.to_vec();
        let mut z = scaled(&r);
        let mut direction = z.clone();
        let mut size = dot(&r, &z);
        let enough = RESIDUAL * RESIDUAL * size;
        for _ in 0..STEPS {
            let product = self.apply(&direction);
            let length = size / dot(&direction, &product);
            if !(size > enough && length.is_finite() && length > 0.0) {
                break;
            }
            x.iter_mut().zip(&direction).for_each(|(x, d)| *x += length * d);
            r.iter_mut().zip(&product).for_each(|(r, p)| *r -= length * p);
            z = scaled(&r);
            let next = dot(&r, &z);
            direction.iter_mut().zip(&z).for_each(|(d, z)| *d = z + next / size * *d);
            size = next;
        }
        x
    }
}

impl Line {
    /// `Σ_t v[t] x[t]` over the line.
    fn sum(&self, v: &[f64], x: &[f64]) -> f64 {
        (0..self.len).map(|t| v[self.start + t * self.step] * x[self.first + t * self.jump]).sum()
    }
}

/// `K v` line by line: the values of one line meet those of the lines near it, which the `far` Gram matrix weighs.
fn apply_sparse(v: &[f64], grid: Grid, rows: bool, near: &Near, far: &Side) -> Vec<f64> {
    let mut product = vec![0.0; v.len()];
    let lines: Vec<Line> = (0..near.starts.len() - 1).map(|index| grid.line(index, rows)).collect();
    for (index, line) in lines.iter().enumerate() {
        for &(other, weight) in near.row(index) {
            for t in 0..line.len {
                let row = &far.gram[(line.first + t * line.jump) * far.n..][..far.n];
                product[line.start + t * line.step] += weight * lines[other].sum(v, row);
            }
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use lacewing_linalg::matmul;

    use super::*;
    use crate::Rng;

    /// A symmetric matrix with the given share of non-zeros, positive semidefinite.
    fn side(n: usize, rows: usize, share: f64, seed: u64) -> Side {
        let mut rng = Rng::new(seed);
        let mut value = || if rng.unit() < share { rng.normal() } else { 0.0 };
        let half: Vec<f64> = (0..n * rows).map(|_| value()).collect();
        let gram = matmul(&half, &transposed(&half, n, rows), (n, rows, n));
        Side { n, data: vec![], gram }
    }

    #[test]
    fn all_ways_to_multiply_agree_with_the_definition() {
        for (groups, stride, q, p) in [(2, 3, 2, 4), (1, 5, 3, 1), (4, 1, 2, 2), (1, 1, 3, 5)] {
            let grid = Grid { groups, stride, q, p };
            let (n_left, n_right, len) = (groups * stride * q, groups * stride * p, groups * stride * q * p);
            for (dense_left, dense_right) in [(false, false), (true, false), (false, true), (true, true)] {
                let share = |dense| if dense { 1.0 } else { 0.08 };
                let left = side(n_left, n_left, share(dense_left), 1);
                let right = side(n_right, n_right, share(dense_right), 2);
                let normal = Normal::new(grid, None, &left, &right);
                let mut rng = Rng::new(3);
                let v: Vec<f64> = (0..len).map(|_| rng.normal()).collect();
                let expected = |at: usize| -> f64 {
                    let (row, col) = grid.place(at);
                    let term = |other: usize| {
                        let (r, c) = grid.place(other);
                        left.gram[row * n_left + r] * v[other] * right.gram[c * n_right + col]
                    };
                    (0..len).map(term).sum()
                };
                let expected: Vec<f64> = (0..len).map(expected).collect();
                let mut ways = vec![normal.apply(&v), normal.apply_by_inputs(&v)];
                if let Some(near) = &normal.left_near {
                    ways.push(apply_sparse(&v, grid, true, near, &right));
                }
                if let Some(near) = &normal.right_near {
                    ways.push(apply_sparse(&v, grid, false, near, &left));
                }
                let size = expected.iter().fold(1f64, |most, v| most.max(v.abs()));
                for got in ways {
                    let far = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    assert!(far < 1e-12 * size, "{groups} {stride} {q} {p}: {far:e}");
                }
            }
        }
    }

    #[test]
    fn uncoupled_blocks_are_solved_exactly() {
        // Diagonal on one side: nothing is coupled. One block: solved whole.
        for (groups, stride, q, p) in [(2, 2, 3, 2), (1, 1, 4, 3)] {
            let grid = Grid { groups, stride, q, p };
            let left = side(groups * stride * q, groups * stride * q, 1.0, 4);
            let n = groups * stride * p;
            let mut right = side(n, n, 1.0, 5);
            if groups * stride > 1 {
                (0..n * n).filter(|at| at / n != at % n).for_each(|at| right.gram[at] = 0.0);
            }
            let normal = Normal::new(grid, None, &left, &right);
            assert!(normal.uncoupled());
            let mut rng = Rng::new(6);
            let v: Vec<f64> = (0..groups * stride * q * p).map(|_| rng.normal()).collect();
            let found = normal.solve_blocks(&normal.apply(&v), 0.0);
            let far = found.iter().zip(&v).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(far < 1e-6, "{far:e}");
        }
        let (left, right) = (side(8, 8, 1.0, 7), side(8, 8, 1.0, 8));
        let grid = Grid { groups: 2, stride: 2, q: 2, p: 2 };
        assert!(!Normal::new(grid, None, &left, &right).uncoupled());
    }
}
