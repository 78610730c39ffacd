//! Alternating least squares over the factors of a chain.
//!
//! With all factors but `F` fixed the map is `L F R`, linear in F, and
//! `tr((W − L F R) M (W − L F R)ᵀ)` is least where `Lᵀ L F R M Rᵀ = Lᵀ W M Rᵀ` on the support of F (M = 1 without
//! calibration). One sweep solves for every factor, first to last and back (the ALS initialization of Lin et al.,
//! *Deformable Butterfly*, 2021, by normal equations instead of a design matrix). The start is the hierarchical
//! factorization where it applies, else a seeded draw. Sweeps soon creep; [`super::descent`] takes over.
//!
//! Cost of a sweep for `n × n`, ℓ factors and z stored values in all: about `10 n z`, and a few times that with M.

use lacewing_linalg::matmul;

use super::balance::balance;
use super::descent::{Map, Objective};
use super::normal_equations::{Grid, Normal, Side, dot};
use super::{Target, hierarchical};
use crate::{Chain, Link, ParamSpec, Rng, Weights};

/// Sweeps at most.
const SWEEPS: usize = 20;
/// A sweep that lowers the error by less than this share of it is the last: the descent goes on from there.
const LEAST_GAIN: f64 = 0.05;
/// Directions of a factor that meet less than this share of the mean square hardly move in one sweep, lest they get large
/// values that cancel elsewhere.
const PROXIMITY: f64 = 1e-2;
/// Noise of a start, as a share of each factor's root mean square.
const NOISE: f64 = 0.03;
/// A start with a smaller share of the target's energy is the solution already.
const EXACT: f64 = 1e-12;
/// Values that the products kept between two walks may have, 512 MiB; beyond, they are computed again when needed.
const KEPT: usize = 1 << 26;

/// The parameters that bring `chain` near to `target`. NaN or infinity in the target gives NaN parameters.
pub(crate) fn project(chain: &Chain, specs: &[ParamSpec], target: &Target<'_>) -> Vec<Vec<f64>> {
    let moment = target.moment.unwrap_or_default();
    if !target.weight.iter().chain(moment).all(|v| v.is_finite()) {
        return specs.iter().map(|spec| vec![f64::NAN; spec.count()]).collect();
    }
    let problem = Problem::new(chain, target);
    let mut params = match hierarchical::start(chain, target.weight) {
        Some(found) if target.weight.iter().any(|&w| w != 0.0) => sized(found, specs),
        _ => problem.draw(specs),
    };
    balance(chain, &mut params);
    let mut best = (problem.objective(&params), params.clone());
    // Below that the error is rounding.
    let floor = 1e-26 * problem.energy;
    let start = best.clone();
    if best.0 > EXACT * problem.energy {
        stir(&mut params);
        best = (problem.objective(&params), params.clone());
    }
    let mut kept = Vec::new();
    problem.walk(false, &mut kept, &mut params, false);
    for _ in 0..SWEEPS {
        if best.0.is_nan() || best.0 <= floor {
            break;
        }
        problem.walk(true, &mut kept, &mut params, true);
        problem.walk(false, &mut kept, &mut params, true);
        let now = problem.objective(&params);
        let before = best.0;
        if now < before {
            best = (now, params.clone());
        }
        // The objective is the square of the error.
        if now.is_nan() || now.sqrt() > (1.0 - LEAST_GAIN) * before.sqrt() {
            break;
        }
    }
    balance(chain, &mut best.1);
    let mut params = Objective::new(chain, target).descend(best.1, floor);
    if problem.objective(&params) > start.0 {
        params = start.1;
    }
    balance(chain, &mut params);
    params
}

/// Adds noise to every factor. A start leaves channels at 0 on both sides, where outputs are cut off: neither side has a
/// gradient there, so they would stay so.
fn stir(params: &mut [Vec<f64>]) {
    let rng = Rng::new(0).fork("noise of a start");
    for (at, values) in params.iter_mut().enumerate() {
        let mut rng = rng.fork(&at.to_string());
        let std = NOISE * (dot(values, values) / values.len().max(1) as f64).sqrt();
        values.iter_mut().for_each(|value| *value += std * rng.normal());
    }
}

/// One array a spec: those that the chain does not use are zero.
fn sized(mut params: Vec<Vec<f64>>, specs: &[ParamSpec]) -> Vec<Vec<f64>> {
    params.resize(specs.len(), Vec::new());
    for (values, spec) in params.iter_mut().zip(specs) {
        values.resize(spec.count(), 0.0);
    }
    params
}

/// Places of a link's matrix that are not zero: output, input, value.
type Entries = Vec<(usize, usize, f64)>;

/// The matrix of a link.
fn entries(link: &Link, params: &[&[f64]]) -> Entries {
    let (map, constants) = Map::of(link);
    let values = match link {
        Link::Blocks { weights, .. } => weights.values(params),
        Link::Transpose { .. } | Link::Gather(_) => constants.into(),
    };
    let all =
        map.places.iter().zip(values.iter()).map(|(&(row, col), &value)| (row as usize, col as usize, value));
    all.filter(|entry| entry.2 != 0.0).collect()
}

impl Side {
    /// The side beyond one more link: of its matrix when going forward, of its transpose when going back.
    fn step(&self, link: &Link, params: &[&[f64]], forward: bool, n_in: usize) -> Side {
        let mut all = entries(link, params);
        let (reads, writes) = link.sizes();
        let n = if forward { writes } else { reads };
        if !forward {
            all.iter_mut().for_each(|entry| *entry = (entry.1, entry.0, entry.2));
        }
        let data = rows_times(&all, &self.data, n, n_in);
        // F G Fᵀ: the rows of F G, each once more times F.
        let half = rows_times(&all, &self.gram, n, self.n);
        let mut gram = vec![0.0; n * n];
        for (row, half) in gram.chunks_exact_mut(n).zip(half.chunks_exact(self.n)) {
            for &(to, from, value) in &all {
                row[to] += value * half[from];
            }
        }
        Side { n, data, gram }
    }
}

/// `F x [n, width]` for a sparse F and `x` of rows of that width.
fn rows_times(f: &Entries, x: &[f64], n: usize, width: usize) -> Vec<f64> {
    let mut y = vec![0.0; n * width];
    for &(to, from, value) in f {
        let (y, x) = (&mut y[to * width..][..width], &x[from * width..][..width]);
        y.iter_mut().zip(x).for_each(|(y, x)| *y += value * x);
    }
    y
}

/// The constants of one projection.
struct Problem<'a> {
    chain: &'a Chain,
    target: &'a Target<'a>,
    /// `W M`.
    weighted: Vec<f64>,
    /// `tr(W M Wᵀ)`.
    energy: f64,
    /// Whether a link is solved for: its parameter is in no other link.
    solved: Vec<bool>,
    /// Whether sides are kept between walks.
    keeps: bool,
}

impl<'a> Problem<'a> {
    fn new(chain: &'a Chain, target: &'a Target<'a>) -> Self {
        let weighted = times_moment(target, target.weight);
        let energy = dot(&weighted, target.weight);
        let used = |link: &Link| match link {
            Link::Blocks { weights: Weights::Param(param) | Weights::Tied { param, .. }, .. } => Some(*param),
            _ => None,
        };
        let all: Vec<usize> = chain.links.iter().filter_map(used).collect();
        let once = |param| all.iter().filter(|&&other| other == param).count() == 1;
        let solved = chain.links.iter().map(|link| used(link).is_some_and(once)).collect();
        let sizes = chain.links.iter().map(|link| link.sizes().1.max(link.sizes().0));
        let keeps = sizes.map(|n| n * (n + chain.n_in)).sum::<usize>() <= KEPT;
        Problem { chain, target, weighted, energy, solved, keeps }
    }

    /// A draw of all parameters, scaled to the target's norm; of a zero target, the last one solved for is zero.
    fn draw(&self, specs: &[ParamSpec]) -> Vec<Vec<f64>> {
        let rng = Rng::new(0).fork("alternating least squares");
        let mut params = sized(Vec::new(), specs);
        let mut scaled = Vec::new();
        for (k, link) in self.chain.links.iter().enumerate() {
            if let Link::Blocks { weights: Weights::Param(param) | Weights::Tied { param, .. }, p, .. } = link
            {
                let mut rng = rng.fork(&specs[*param].name);
                let std = 1.0 / (*p as f64).sqrt();
                params[*param].iter_mut().for_each(|value| *value = std * rng.normal());
                if self.solved[k] {
                    scaled.push(*param);
                }
            }
        }
        let norm = |values: &[f64]| dot(values, values).sqrt();
        let ratio = norm(self.target.weight) / norm(&self.dense(&params));
        if ratio == 0.0 {
            scaled.last().iter().for_each(|&&param| params[param].fill(0.0));
        } else if ratio.is_finite() && !scaled.is_empty() {
            let scale = ratio.powf(1.0 / scaled.len() as f64);
            scaled.iter().for_each(|&param| params[param].iter_mut().for_each(|value| *value *= scale));
        }
        params
    }

    /// `Ŵ [n_out, n_in]`.
    fn dense(&self, params: &[Vec<f64>]) -> Vec<f64> {
        let Chain { n_in, n_in_ext, n_out, ref links, .. } = *self.chain;
        let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
        let mut product = padded_identity(n_in_ext, n_in);
        for link in links {
            product = rows_times(&entries(link, &slices), &product, link.sizes().1, n_in);
        }
        product.truncate(n_out * n_in);
        product
    }

    /// `tr((W − Ŵ) M (W − Ŵ)ᵀ)`.
    fn objective(&self, params: &[Vec<f64>]) -> f64 {
        let mut difference = self.dense(params);
        difference.iter_mut().zip(self.target.weight).for_each(|(v, w)| *v -= w);
        dot(&times_moment(self.target, &difference), &difference).max(0.0)
    }

    /// What is before the first link, or behind the last.
    fn end(&self, first: bool) -> Side {
        let Chain { n_in, n_in_ext, n_out_ext, n_out, .. } = *self.chain;
        if !first {
            let mut data = self.weighted.clone();
            data.resize(n_out_ext * n_in, 0.0);
            // Outputs beyond n_out are free: they weigh nothing.
            let mut gram = vec![0.0; n_out_ext * n_out_ext];
            (0..n_out).for_each(|i| gram[i * n_out_ext + i] = 1.0);
            return Side { n: n_out_ext, data, gram };
        }
        let data = padded_identity(n_in_ext, n_in);
        let mut gram = vec![0.0; n_in_ext * n_in_ext];
        for (i, row) in gram.chunks_exact_mut(n_in_ext).take(n_in).enumerate() {
            match self.target.moment {
                None => row[i] = 1.0,
                Some(moment) => row[..n_in].copy_from_slice(&moment[i * n_in..][..n_in]),
            }
        }
        Side { n: n_in_ext, data, gram }
    }

    /// One walk over the links, forward or back, that solves for each if `solve`.
    ///
    /// `kept` has the sides on the far ends of the links, the nearest one last, and gets those of this walk,
    /// which are what the walk back needs.
    fn walk(&self, forward: bool, kept: &mut Vec<Side>, params: &mut [Vec<f64>], solve: bool) {
        let links = &self.chain.links;
        let mut passed = Vec::new();
        let mut side = self.end(forward);
        for step in 0..links.len() {
            let k = if forward { step } else { links.len() - 1 - step };
            let far = kept.pop();
            if solve && self.solved[k] {
                let far = far.unwrap_or_else(|| self.far_side(!forward, k, params));
                let (before, behind) = if forward { (&side, &far) } else { (&far, &side) };
                self.solve(k, before, behind, params);
            }
            let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
            let next = side.step(&links[k], &slices, forward, self.chain.n_in);
            if self.keeps {
                passed.push(side);
            }
            side = next;
        }
        *kept = passed;
    }

    /// The side of link `k`, computed from the chain's end.
    fn far_side(&self, before: bool, k: usize, params: &[Vec<f64>]) -> Side {
        let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
        let links = &self.chain.links;
        let step = |side: Side, link: &Link| side.step(link, &slices, before, self.chain.n_in);
        if before {
            links[..k].iter().fold(self.end(true), step)
        } else {
            links[k + 1..].iter().rev().fold(self.end(false), step)
        }
    }

    /// Moves the parameter of link `k` to where the error is least, as far as the steps go; never uphill.
    fn solve(&self, k: usize, before: &Side, behind: &Side, params: &mut [Vec<f64>]) {
        let Link::Blocks { ref weights, groups, stride, q, p } = self.chain.links[k] else { return };
        let (param, gather) = match weights {
            Weights::Param(param) => (*param, None),
            Weights::Tied { param, gather } => (*param, Some(gather)),
            Weights::Constant(_) => return,
        };
        let normal = Normal::new(Grid { groups, stride, q, p }, gather, behind, before);
        let n_in = self.chain.n_in;
        let wanted = |at: usize| {
            let (row, col) = normal.grid.place(at);
            dot(&behind.data[row * n_in..][..n_in], &before.data[col * n_in..][..n_in])
        };
        let wanted = normal.folded((0..groups * stride * q * p).map(wanted).collect());
        // Solving for the change leaves directions that the map does not depend on as they are.
        let mut residual = wanted;
        residual.iter_mut().zip(normal.apply(&params[param])).for_each(|(r, a)| *r -= a);
        let change = match normal.uncoupled() {
            true => normal.solve_blocks(&residual, PROXIMITY),
            false => normal.conjugate_gradients(&residual),
        };
        let (slope, curvature) = (dot(&change, &residual), dot(&change, &normal.apply(&change)));
        let length = slope / curvature;
        if slope > 0.0 && curvature > 0.0 && length.is_finite() {
            params[param].iter_mut().zip(&change).for_each(|(value, change)| *value += length * change);
        }
    }
}

/// `w M [n_out, n_in]`.
fn times_moment(target: &Target<'_>, w: &[f64]) -> Vec<f64> {
    match target.moment {
        None => w.to_vec(),
        Some(moment) => matmul(w, moment, (target.n_out, target.n_in, target.n_in)),
    }
}

/// `[rows, cols]` of the identity, more rows than columns being zero.
fn padded_identity(rows: usize, cols: usize) -> Vec<f64> {
    let mut identity = vec![0.0; rows * cols];
    (0..rows.min(cols)).for_each(|i| identity[i * cols + i] = 1.0);
    identity
}

#[cfg(test)]
pub(super) mod tests {
    use lacewing_linalg::transposed;

    use super::*;
    use crate::Gather;

    fn normals(len: usize, seed: u64) -> Vec<f64> {
        let mut rng = Rng::new(seed);
        (0..len).map(|_| rng.normal()).collect()
    }

    /// Chains of every kind of link, with the lengths of their parameters.
    pub(in super::super) fn chains() -> Vec<(Chain, Vec<usize>)> {
        let butterfly = |n_in, n_out| {
            let links: Vec<Link> = (0..3).map(|k| Link::strided(k, 4 >> k, 1 << k, 2, 2)).collect();
            (Chain { n_in, n_in_ext: 8, n_out_ext: 8, n_out, links }, vec![16; 3])
        };
        let gather = Gather::new(5, 24, 2, |o, t| (o % 3 != t).then_some(((o + t) % 5, o % 2 == t)));
        let tied = Weights::Tied { param: 1, gather };
        let links = vec![
            Link::Gather(Gather::new(7, 6, 2, |o, t| Some((o + t, t == 1)))),
            Link::strided(0, 1, 2, 4, 3),
            Link::Blocks { weights: tied, groups: 2, stride: 1, q: 3, p: 4 },
            Link::Transpose { batch: 1, rows: 2, cols: 3 },
            Link::Blocks { weights: Weights::Constant(normals(24, 9)), groups: 1, stride: 3, q: 4, p: 2 },
            Link::strided(2, 2, 2, 2, 3),
        ];
        let mixed = Chain { n_in: 6, n_in_ext: 7, n_out_ext: 8, n_out: 7, links };
        vec![butterfly(8, 8), butterfly(5, 7), butterfly(8, 3), (mixed, vec![24, 5, 24])]
    }

    /// A random problem: target, moment, parameters.
    pub(in super::super) fn random(
        chain: &Chain,
        sizes: &[usize],
        seed: u64,
    ) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
        let n = chain.n_in;
        let half = normals(n * n, seed);
        let moment = matmul(&half, &transposed(&half, n, n), (n, n, n));
        let params = sizes.iter().zip(seed + 1..).map(|(&len, seed)| normals(len, seed)).collect();
        (normals(chain.n_out * n, seed + 9), moment, params)
    }

    #[test]
    fn no_step_raises_the_error_and_the_products_of_both_sides_agree() {
        for (chain, sizes) in chains() {
            for (weighted, keeps) in [(false, true), (true, true), (true, false)] {
                let (weight, moment, mut params) = random(&chain, &sizes, 3);
                let target = Target::new(chain.n_out, chain.n_in, &weight);
                let target = if weighted { target.with_moment(&moment) } else { target };
                let mut problem = Problem::new(&chain, &target);
                problem.keeps = keeps;
                let mut last = problem.objective(&params);
                for _ in 0..3 {
                    for k in 0..chain.links.len() {
                        let (before, behind) =
                            (problem.far_side(true, k, &params), problem.far_side(false, k, &params));
                        if problem.solved[k] {
                            problem.solve(k, &before, &behind, &mut params);
                        }
                        let now = problem.objective(&params);
                        assert!(now <= last * (1.0 + 1e-12), "link {k}: {last} then {now}");
                        last = now;
                    }
                }
                let mut kept = Vec::new();
                problem.walk(false, &mut kept, &mut params, false);
                for _ in 0..3 {
                    problem.walk(true, &mut kept, &mut params, true);
                    problem.walk(false, &mut kept, &mut params, true);
                    assert_eq!(kept.len(), if keeps { chain.links.len() } else { 0 });
                    let now = problem.objective(&params);
                    assert!(now <= last * (1.0 + 1e-12), "walks: {last} then {now}");
                    last = now;
                }
            }
        }
    }

    #[test]
    fn the_residual_is_minus_half_the_gradient_and_the_solution_has_none() {
        for (chain, sizes) in chains() {
            let (weight, moment, params) = random(&chain, &sizes, 5);
            let target = Target::new(chain.n_out, chain.n_in, &weight).with_moment(&moment);
            let problem = Problem::new(&chain, &target);
            for k in (0..chain.links.len()).filter(|&k| problem.solved[k]) {
                let (before, behind) =
                    (problem.far_side(true, k, &params), problem.far_side(false, k, &params));
                let mut solved = params.clone();
                // What a factor hardly meets comes slowly.
                (0..1000).for_each(|_| problem.solve(k, &before, &behind, &mut solved));
                let Link::Blocks { weights: Weights::Param(param) | Weights::Tied { param, .. }, .. } =
                    chain.links[k]
                else {
                    unreachable!()
                };
                // The objective is a parabola along each value: central differences are exact.
                let least = problem.objective(&solved);
                for i in 0..sizes[param] {
                    let moved = |by: f64| {
                        let mut moved = solved.clone();
                        moved[param][i] += by;
                        problem.objective(&moved)
                    };
                    let (up, down) = (moved(1.0), moved(-1.0));
                    let (slope, curvature) = ((up - down) / 2.0, up + down - 2.0 * least);
                    assert!(slope.abs() <= 1e-3 * (curvature + least), "link {k}, value {i}: slope {slope}");
                }
            }
        }
    }

    #[test]
    fn a_draw_has_the_targets_norm() {
        for (chain, sizes) in chains() {
            let weight = normals(chain.n_out * chain.n_in, 1);
            let target = Target::new(chain.n_out, chain.n_in, &weight);
            let problem = Problem::new(&chain, &target);
            let specs: Vec<ParamSpec> =
                sizes.iter().enumerate().map(|(i, &n)| ParamSpec::new(&i.to_string(), &[n])).collect();
            let dense = problem.dense(&problem.draw(&specs));
            assert!((dot(&dense, &dense) / dot(&weight, &weight) - 1.0).abs() < 1e-9);
        }
    }
}
