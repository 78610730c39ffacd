//! Descent on all factors of a chain at once: L-BFGS (Liu and Nocedal, 1989).
//!
//! Alternating least squares gets near in a few sweeps and then creeps, since each factor moves only as far as the
//! others let it. Here `f = ‖(W − Ŵ) R‖²`, where `R Rᵀ = M`, falls along the gradient of all values together.
//!
//! Cost of a step for z stored values in all: about `6 n_in z`, which is a small part of a sweep.

use std::collections::VecDeque;

use lacewing_linalg::{factor_of, matmul};

use super::Target;
use super::normal_equations::{Grid, dot};
use crate::{Chain, Link, Weights};

/// Steps at most.
const STEPS: usize = 400;
/// Earlier steps that tell the curvature.
const MEMORY: usize = 10;
/// So many steps that lower the error by less than [`LEAST_GAIN`] of it are the last.
const WINDOW: usize = 10;
const LEAST_GAIN: f64 = 1e-3;
/// Columns of R that go through the chain together: their rows are contiguous and stay in cache.
const WIDTH: usize = 64;

/// One link as a sparse matrix: output and input of each value, in the order of its values.
pub(super) struct Map {
    pub(super) places: Vec<(u32, u32)>,
    n: usize,
}

impl Map {
    /// Where the entries of a link's matrix are, and their values where they are constant.
    pub(super) fn of(link: &Link) -> (Map, Vec<f64>) {
        let n = link.sizes().1;
        let place = |(row, col): (usize, usize)| (row as u32, col as u32);
        match *link {
            Link::Blocks { groups, stride, q, p, .. } => {
                let grid = Grid { groups, stride, q, p };
                let places = (0..groups * stride * q * p).map(|at| place(grid.place(at))).collect();
                (Map { places, n }, Vec::new())
            }
            Link::Transpose { batch, rows, cols } => {
                let size = rows * cols;
                let from = |at: usize| at / size * size + at % rows * cols + at % size / rows;
                let places: Vec<_> = (0..batch * size).map(|at| place((at, from(at)))).collect();
                let values = vec![1.0; places.len()];
                (Map { places, n }, values)
            }
            Link::Gather(ref gather) => {
                let terms = |o| gather.terms_of(o).map(move |(i, sign)| (place((o, i)), sign));
                let (places, values) = (0..gather.n_out()).flat_map(terms).unzip();
                (Map { places, n }, values)
            }
        }
    }

    /// `y [n, width]` of `x`.
    fn forward(&self, values: &[f64], x: &[f64], width: usize) -> Vec<f64> {
        let mut y = vec![0.0; self.n * width];
        for (&(to, from), value) in self.places.iter().zip(values) {
            let (y, x) = (&mut y[to as usize * width..][..width], &x[from as usize * width..][..width]);
            y.iter_mut().zip(x).for_each(|(y, x)| *y += value * x);
        }
        y
    }

    /// The gradient of `x` for that of `y`; that of the values is added to `gradient`, where there is one.
    fn backward(
        &self,
        values: &[f64],
        x: &[f64],
        dy: &[f64],
        width: usize,
        gradient: &mut [f64],
    ) -> Vec<f64> {
        let mut dx = vec![0.0; x.len()];
        for (at, (&(to, from), value)) in self.places.iter().zip(values).enumerate() {
            let dy = &dy[to as usize * width..][..width];
            let range = from as usize * width..(from as usize + 1) * width;
            if let Some(gradient) = gradient.get_mut(at) {
                *gradient += dot(dy, &x[range.clone()]);
            }
            dx[range].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += value * dy);
        }
        dx
    }
}

/// The error of a chain as a function of its parameters.
pub(super) struct Objective<'a> {
    chain: &'a Chain,
    /// Each link's places, and its values where they are constant.
    maps: Vec<(Map, Vec<f64>)>,
    /// `R [n_in, n_in]`.
    root: Vec<f64>,
    /// `W R [n_out, n_in]`.
    wanted: Vec<f64>,
}

impl<'a> Objective<'a> {
    pub(super) fn new(chain: &'a Chain, target: &Target<'_>) -> Self {
        let n_in = chain.n_in;
        let root = match target.moment {
            Some(moment) => factor_of(moment, n_in),
            None => (0..n_in * n_in).map(|at| f64::from(u8::from(at % (n_in + 1) == 0))).collect(),
        };
        let wanted = matmul(target.weight, &root, (chain.n_out, n_in, n_in));
        Self { chain, maps: chain.links.iter().map(Map::of).collect(), root, wanted }
    }

    /// `‖(W − Ŵ) R‖²` and, if asked for, its gradient by every parameter.
    fn value(&self, params: &[Vec<f64>], mut gradient: Option<&mut [Vec<f64>]>) -> f64 {
        let Chain { n_in, n_in_ext, n_out, n_out_ext, ref links } = *self.chain;
        let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
        let values: Vec<Vec<f64>> = (links.iter().zip(&self.maps))
            .map(|(link, (_, constant))| match link {
                Link::Blocks { weights, .. } => weights.values(&slices).into_owned(),
                _ => constant.clone(),
            })
            .collect();
        let asked = |link: &Link| {
            matches!(link, Link::Blocks { weights: Weights::Param(_) | Weights::Tied { .. }, .. })
        };
        let mut by_value: Vec<Vec<f64>> = (links.iter().zip(&values))
            .map(|(link, values)| vec![0.0; if asked(link) { values.len() } else { 0 }])
            .collect();
        let mut total = 0.0;
        for first in (0..n_in).step_by(WIDTH) {
            let width = WIDTH.min(n_in - first);
            let columns = |of: &[f64], rows: usize, into: &mut Vec<f64>| {
                (0..rows).for_each(|row| into.extend(&of[row * n_in + first..][..width]));
            };
            let mut x = Vec::with_capacity(n_in_ext * width);
            columns(&self.root, n_in, &mut x);
            x.resize(n_in_ext * width, 0.0);
            let mut passed = vec![x];
            for ((map, _), values) in self.maps.iter().zip(&values) {
                let next = map.forward(values, &passed[passed.len() - 1], width);
                passed.push(next);
            }
            let mut d = passed.pop().unwrap_or_default();
            d.truncate(n_out * width);
            let mut wanted = Vec::with_capacity(n_out * width);
            columns(&self.wanted, n_out, &mut wanted);
            d.iter_mut().zip(&wanted).for_each(|(d, wanted)| *d -= wanted);
            total += dot(&d, &d);
            if gradient.is_none() {
                continue;
            }
            d.iter_mut().for_each(|d| *d *= 2.0);
            // Outputs beyond n_out are free.
            d.resize(n_out_ext * width, 0.0);
            for (k, x) in passed.iter().enumerate().rev() {
                d = self.maps[k].0.backward(&values[k], x, &d, width, &mut by_value[k]);
            }
        }
        if let Some(gradient) = gradient.as_mut() {
            gradient.iter_mut().for_each(|gradient| gradient.fill(0.0));
            for (link, by_value) in links.iter().zip(&by_value) {
                let Link::Blocks { weights, .. } = link else { continue };
                let (param, share) = match weights {
                    Weights::Param(param) => (*param, by_value.clone()),
                    Weights::Tied { param, gather } => (*param, gather.apply_transposed(by_value)),
                    Weights::Constant(_) => continue,
                };
                gradient[param].iter_mut().zip(&share).for_each(|(sum, share)| *sum += share);
            }
        }
        total
    }

    /// Parameters with a lower error, or the same ones. Stops where the error is below `floor`.
    pub(super) fn descend(&self, start: Vec<Vec<f64>>, floor: f64) -> Vec<Vec<f64>> {
        let mut params = start;
        let mut gradient: Vec<Vec<f64>> = params.iter().map(|values| vec![0.0; values.len()]).collect();
        let mut value = self.value(&params, Some(&mut gradient));
        let mut steps: VecDeque<Step> = VecDeque::new();
        let mut last = value;
        for count in 1..=STEPS {
            if !(value.is_finite() && value > floor) {
                break;
            }
            let mut direction = toward(&steps, &gradient);
            let mut slope = product(&direction, &gradient);
            if slope >= 0.0 {
                steps.clear();
                direction = toward(&steps, &gradient);
                slope = product(&direction, &gradient);
            }
            // Without a curvature to go by, the step that would lower f by a tenth were it linear.
            let mut length = if steps.is_empty() { -0.1 * value / slope } else { 1.0 };
            let found = (0..20).find_map(|_| {
                let moved = sum(&params, length, &direction);
                let mut by = gradient.clone();
                let now = self.value(&moved, Some(&mut by));
                // Armijo's condition.
                let enough = now <= value + 1e-4 * length * slope;
                length *= 0.5;
                enough.then_some((moved, by, now))
            });
            let Some((moved, by, now)) = found else {
                if steps.is_empty() {
                    break;
                }
                steps.clear();
                continue;
            };
            let step = Step::new(sum(&moved, -1.0, &params), sum(&by, -1.0, &gradient));
            if step.rho > 0.0 && step.rho.is_finite() {
                steps.push_back(step);
                if steps.len() > MEMORY {
                    steps.pop_front();
                }
            }
            (params, gradient, value) = (moved, by, now);
            if count % WINDOW == 0 {
                // f is the square of the error.
                if value.sqrt() > (1.0 - LEAST_GAIN) * last.sqrt() {
                    break;
                }
                last = value;
            }
        }
        params
    }
}

/// A step, how it changed the gradient, and the inverse of their product.
struct Step {
    s: Vec<Vec<f64>>,
    y: Vec<Vec<f64>>,
    rho: f64,
}

impl Step {
    fn new(s: Vec<Vec<f64>>, y: Vec<Vec<f64>>) -> Self {
        let rho = 1.0 / product(&s, &y);
        Self { s, y, rho }
    }
}

/// `a + t b`.
fn sum(a: &[Vec<f64>], t: f64, b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + t * b).collect()).collect()
}

fn product(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    a.iter().zip(b).map(|(a, b)| dot(a, b)).sum()
}

/// `−H gradient`, H being what the steps say of the inverse of the second derivative.
fn toward(steps: &VecDeque<Step>, gradient: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut q: Vec<Vec<f64>> = gradient.to_vec();
    let alphas: Vec<f64> = (steps.iter().rev())
        .map(|step| {
            let alpha = step.rho * product(&step.s, &q);
            q = sum(&q, -alpha, &step.y);
            alpha
        })
        .collect();
    let scale = steps.back().map_or(1.0, |step| 1.0 / (step.rho * product(&step.y, &step.y)));
    q.iter_mut().flatten().for_each(|value| *value *= -scale);
    // q is −H₀ of what is left, so the signs of the second loop turn as well.
    for (step, alpha) in steps.iter().zip(alphas.iter().rev()) {
        let beta = -step.rho * product(&step.y, &q);
        q = sum(&q, beta - alpha, &step.s);
    }
    q
}

#[cfg(test)]
mod tests {
    use super::super::alternating::tests::{chains, random};
    use super::*;

    #[test]
    fn the_gradient_is_that_of_central_differences() {
        for (chain, sizes) in chains() {
            let (weight, moment, params) = random(&chain, &sizes, 4);
            for target in [
                Target::new(chain.n_out, chain.n_in, &weight),
                Target::new(chain.n_out, chain.n_in, &weight).with_moment(&moment),
            ] {
                let objective = Objective::new(&chain, &target);
                let mut gradient: Vec<Vec<f64>> = params.iter().map(|p| vec![0.0; p.len()]).collect();
                let value = objective.value(&params, Some(&mut gradient));
                for (param, gradient) in gradient.iter().enumerate() {
                    for (at, &slope) in gradient.iter().enumerate() {
                        // The objective is a parabola along each value: exact for any step.
                        let moved = |by: f64| {
                            let mut moved = params.clone();
                            moved[param][at] += by;
                            objective.value(&moved, None)
                        };
                        let (up, down) = (moved(1.0), moved(-1.0));
                        assert!(
                            ((up - down) / 2.0 - slope).abs() <= 1e-9 * (up + down + value),
                            "{param} {at}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_descent_never_ends_higher_and_finds_a_map_that_is_there_nearby() {
        for (chain, sizes) in chains() {
            let (_, moment, truth) = random(&chain, &sizes, 6);
            let slices: Vec<&[f64]> = truth.iter().map(Vec::as_slice).collect();
            let mut weight = vec![0.0; chain.n_out * chain.n_in];
            for i in 0..chain.n_in {
                let mut x: Vec<f64> = (0..chain.n_in_ext).map(|at| f64::from(u8::from(at == i))).collect();
                chain.links.iter().for_each(|link| x = link.apply(&slices, &x));
                (0..chain.n_out).for_each(|o| weight[o * chain.n_in + i] = x[o]);
            }
            let target = Target::new(chain.n_out, chain.n_in, &weight).with_moment(&moment);
            let objective = Objective::new(&chain, &target);
            let start: Vec<Vec<f64>> = truth
                .iter()
                .map(|p| p.iter().enumerate().map(|(i, v)| v + 0.02 * (i as f64).sin()).collect())
                .collect();
            let before = objective.value(&start, None);
            let after = objective.value(&objective.descend(start, 0.0), None);
            assert!(after <= 1e-4 * before, "{before} then {after}");
        }
    }
}
