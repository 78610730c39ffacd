//! Small world: single weights whose chance to exist falls with the distance between their input and output.
//!
//! Cost of a row: nnz multiply-adds; nnz values and column indices and n_out + 1 row starts are stored.
//!
//! The distance depends on `col − row` alone, so weights are counted and drawn by diagonals of W: a layer is built in
//! O(nnz log nnz) and some fifty times n_in + n_out steps, and nothing of n_in · n_out is ever held.
//!
//! Source: the layer of that name in SparseLinear, whose search for λ does not end where a sum falls below its target.

use serde_json::json;

use crate::config::{Key, Options};
use crate::mask::{choices, places_kept};
use crate::masked::{FanIn, Masked};
use crate::{Built, Pattern, PatternKind, Problem, Rng, Structure, StructureError, StructureKind};

const NAME: &str = "small_world";

/// The row of the table. `convert` cannot size it: a mask by distance ranks no magnitudes.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "single weights, fewer the farther their input is from their output",
    keys: &[
        Key::new("density", "share of weights kept, above 0 to 1", "0.1"),
        Key::new("sparsity", "1 - density, instead of it", ""),
        Key::new("exact", "exactly that many weights; if not, each is drawn by itself", "true"),
        Key::new(
            "tolerance",
            "weights by which an inexact draw may miss on average; else rounding alone",
            "",
        ),
        Key::new("distance", "centred | write_up: how far an input is from an output", "\"centred\""),
    ],
    build,
    samples,
    sized: |_, _, _| None,
};

/// The published search for λ: where it starts, and between which bounds.
const START: f64 = 1.0;
const LEAST: f64 = 1e-5;
const MOST: f64 = 5.0;

/// How far input i is from output j, both counted from the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distance {
    /// `|i − j + (n_out − n_in) / 2|`: with the middles of both sides aligned.
    Centred,
    /// `||i − j| − |n_out − n_in| / 2|`: as SparseLinear's write-up has it and its code has not.
    WriteUp,
}

/// The diagonals of W, and the chance of a weight on each.
#[derive(Clone, Copy, Debug)]
struct Diagonals {
    n_out: usize,
    n_in: usize,
    distance: Distance,
}

/// `y = W x` with W stored at single elements; parameter `weight [nnz]` in row-major order.
///
/// The weight of input i and output j exists with chance `P = (d + 1)^−λ`, d the [`Distance`]. λ is such that `Σ P` is
/// the number of weights asked for, `kept = density · n_in · n_out` to the nearest, up to the rounding of that sum or up
/// to `tolerance`.
///
/// With `exact` there are `kept` weights, each still with its chance P: a diagonal gets one of the two whole numbers
/// next to its share of the sum, by one random offset for all, and draws as many of its places, all alike. Any run of
/// neighboring diagonals is within one weight of what it expects. Without `exact` each weight is drawn by itself, as
/// published, and [`Structure::density`] is that of the draw.
///
/// # Errors
///
/// [`StructureError::OutOfRange`] for a density that λ = 5 exceeds, which is hardly more than the weights of
/// distance 0; [`StructureError::EmptyPattern`] where none is kept or drawn; [`StructureError::Conflict`] for
/// `density` with `sparsity`, and for a `tolerance` of an exact number.
fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let (n_out, n_in) = problem.shape();
    let conflict = |key, other| Err(StructureError::Conflict { structure: NAME, key, other });
    if options.given("density") && options.given("sparsity") {
        return conflict("density", "sparsity");
    }
    let density = if options.given("sparsity") {
        1.0 - options.number("sparsity", 0.0, 1.0)?
    } else {
        options.number("density", 0.0, 1.0)?
    };
    let choices = [("centred", Distance::Centred), ("write_up", Distance::WriteUp)];
    let distance = options.choice("distance", &choices, "`centred` or `write_up`")?;
    let exact = options.flag("exact")?;
    let mut config = json!({"structure": NAME, "density": density, "exact": exact});
    config["distance"] = options.required("distance")?;
    let tolerance = if options.given("tolerance") {
        if exact {
            return conflict("tolerance", "exact");
        }
        let tolerance = options.number("tolerance", 0.0, n_out as f64 * n_in as f64)?;
        config["tolerance"] = json!(tolerance);
        Some(tolerance)
    } else {
        None
    };
    let positions = match Pattern::saved_positions(NAME, problem, (n_out, n_in))? {
        Some(positions) => positions,
        None => {
            let kept = places_kept(NAME, density, n_out * n_in)?;
            let diagonals = Diagonals { n_out, n_in, distance };
            diagonals.choose(kept, exact, tolerance, options, problem)?
        }
    };
    let (block, kind) = ((1, 1), PatternKind::Unstructured);
    let pattern = Pattern { n_out, n_in, n_out_ext: n_out, n_in_ext: n_in, block, positions, kind };
    Ok(Box::new(Masked { name: NAME, pattern, fan_in: FanIn::Row, free: true, config }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let exact = json!({"structure": NAME, "density": 0.4});
    let drawn = json!({"structure": NAME, "sparsity": 0.5, "exact": false, "tolerance": 1});
    let write_up = json!({"structure": NAME, "density": 0.5, "distance": "write_up"});
    let full = json!({"structure": NAME, "density": 1});
    [(&exact, 7, 9), (&drawn, 12, 5), (&write_up, 4, 9), (&full, 1, 1)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 1, None).expect("valid sample"))
        .into()
}

impl Diagonals {
    /// `col − row` of every diagonal, ascending.
    fn all(self) -> impl Iterator<Item = i64> {
        1 - self.n_out as i64..self.n_in as i64
    }

    /// The first row with a place on a diagonal.
    fn first_row(self, diagonal: i64) -> i64 {
        (-diagonal).max(0)
    }

    /// Places on a diagonal.
    fn len(self, diagonal: i64) -> usize {
        let end = (self.n_out as i64).min(self.n_in as i64 - diagonal);
        (end - self.first_row(diagonal)) as usize
    }

    /// The place `at` of a diagonal.
    fn place(self, diagonal: i64, at: u64) -> (u32, u32) {
        let row = self.first_row(diagonal) + at as i64;
        (row as u32, (row + diagonal) as u32)
    }

    fn distance(self, diagonal: i64) -> f64 {
        let excess = self.n_out as i64 - self.n_in as i64;
        // Twice the distance is a whole number.
        let twice = match self.distance {
            Distance::Centred => 2 * diagonal + excess,
            Distance::WriteUp => 2 * diagonal.abs() - excess.abs(),
        };
        twice.abs() as f64 / 2.0
    }

    fn chance(self, diagonal: i64, lambda: f64) -> f64 {
        (self.distance(diagonal) + 1.0).powf(-lambda)
    }

    /// `Σ P` over all places.
    fn expected(self, lambda: f64) -> f64 {
        self.all().map(|diagonal| self.len(diagonal) as f64 * self.chance(diagonal, lambda)).sum()
    }

    /// What rounding may do to a [`Diagonals::expected`] of `target`: γ of a sum of so many terms, relative to it.
    fn rounding(self, target: f64) -> f64 {
        let error = (self.n_out + self.n_in - 1) as f64 * f64::EPSILON / 2.0;
        target * error / (1.0 - error)
    }

    /// λ by bisection, such that `|Σ P − target| ≤ tolerance`, or as near as f64 comes: each λ tried and its `Σ P`, the
    /// answer last.
    ///
    /// The bounds are the published ones, but where almost all weights are kept λ may go down to 0.
    fn search(self, target: f64, tolerance: f64) -> Vec<(f64, f64)> {
        let reaches = target - self.expected(LEAST) <= tolerance;
        let (mut low, mut high) = (if reaches { LEAST } else { 0.0 }, MOST);
        let (mut lambda, mut tried) = (START, Vec::new());
        loop {
            let expected = self.expected(lambda);
            tried.push((lambda, expected));
            *if expected > target { &mut low } else { &mut high } = lambda;
            let middle = (low + high) / 2.0;
            if (expected - target).abs() <= tolerance || middle == low || middle == high {
                return tried;
            }
            lambda = middle;
        }
    }

    /// The λ that [`Diagonals::search`] ends with.
    fn solve(self, target: f64, tolerance: f64) -> f64 {
        self.search(target, tolerance).pop().expect("one is tried").0
    }

    /// The places of a fresh layer, sorted row-major.
    fn choose(
        self,
        kept: usize,
        exact: bool,
        tolerance: Option<f64>,
        options: &Options,
        problem: &Problem<'_>,
    ) -> Result<Vec<(u32, u32)>, StructureError> {
        let (places, target) = (self.n_out * self.n_in, kept as f64);
        let mut rng = choices(problem);
        let lambda = if kept == places {
            0.0
        } else {
            let tolerance = tolerance.unwrap_or_else(|| self.rounding(target));
            let least = (self.expected(MOST) - tolerance).ceil();
            if target < least {
                return Err(self.too_few(least, options)?);
            }
            self.solve(target, tolerance)
        };
        let mut positions =
            if exact { self.draw_exactly(kept, lambda, &mut rng) } else { self.draw(lambda, &mut rng) };
        if positions.is_empty() {
            let density = target / places as f64;
            return Err(StructureError::EmptyPattern { structure: NAME, places, density });
        }
        positions.sort_unstable();
        Ok(positions)
    }

    /// The error for fewer weights than `least`, in the words of the key that asked for them.
    fn too_few(self, least: f64, options: &Options) -> Result<StructureError, StructureError> {
        let low = least / (self.n_out as f64 * self.n_in as f64);
        Ok(if options.given("sparsity") {
            options.range("sparsity", options.number("sparsity", 0.0, 1.0)?, 0.0, 1.0 - low)
        } else {
            options.range("density", options.number("density", 0.0, 1.0)?, low, 1.0)
        })
    }

    /// `kept` places, each with its chance.
    fn draw_exactly(self, kept: usize, lambda: f64, rng: &mut Rng) -> Vec<(u32, u32)> {
        let offset = rng.unit();
        let mut positions = Vec::with_capacity(kept);
        let (mut sum, mut places_left) = (0.0, self.n_out * self.n_in);
        for diagonal in self.all() {
            let (len, taken) = (self.len(diagonal), positions.len());
            sum += len as f64 * self.chance(diagonal, lambda);
            places_left -= len;
            // The sum is rounded: what it says may be one more than there is, or leave more than is left.
            let (fewest, most) = (taken.max(kept.saturating_sub(places_left)), kept.min(taken + len));
            let until = ((sum + offset) as usize).clamp(fewest, most);
            let chosen = rng.sample(len as u64, until - taken);
            positions.extend(chosen.into_iter().map(|at| self.place(diagonal, at)));
        }
        positions
    }

    /// Each place by itself with its chance: the gaps between those drawn are geometric.
    fn draw(self, lambda: f64, rng: &mut Rng) -> Vec<(u32, u32)> {
        let mut positions = Vec::new();
        for diagonal in self.all() {
            let len = self.len(diagonal) as u64;
            // The logarithm of the chance of none; minus infinity, and so no gap, where each place is certain.
            let none = (-self.chance(diagonal, lambda)).ln_1p();
            let mut gap = || ((1.0 - rng.unit()).ln() / none) as u64;
            let mut at = gap();
            while at < len {
                positions.push(self.place(diagonal, at));
                at = at.saturating_add(gap()).saturating_add(1);
            }
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Form, Schedule};

    fn diagonals(n_in: usize, n_out: usize, distance: Distance) -> Diagonals {
        Diagonals { n_out, n_in, distance }
    }

    fn positions(config: &serde_json::Value, n_in: usize, n_out: usize, seed: u64) -> Vec<(u32, u32)> {
        let built = crate::build(config, n_in, n_out, seed, None).unwrap();
        let Form::Pattern(pattern) = built.form() else { panic!("not a pattern") };
        pattern.positions.clone()
    }

    #[test]
    fn published_lambdas_their_steps_and_their_sums() {
        for (n_in, n_out, target, lambda, n_steps, sum) in [
            (784, 2000, 156_800.0, "0.40538619522094727", 17, "156800.5448"),
            (2000, 10, 2000.0, "0.4062559375", 6, "2003.6305"),
            (100, 100, 1000.0, "0.851563984375", 8, "1005.1163"),
            (64, 128, 1638.0, "0.5312546875", 6, "1644.1486"),
        ] {
            let tried = diagonals(n_in, n_out, Distance::Centred).search(target, 10.0);
            let (found, expected) = tried[tried.len() - 1];
            let printed = (found.to_string(), tried.len(), format!("{expected:.4}"));
            assert_eq!(printed, (lambda.to_owned(), n_steps, sum.to_owned()), "{n_in} {n_out}");
        }
    }

    #[test]
    fn published_distances() {
        let table = |n_in: usize, n_out: usize, distance| -> Vec<Vec<f64>> {
            let all = diagonals(n_in, n_out, distance);
            let row = |i: i64| (0..n_out as i64).map(|j| all.distance(i - j) + 1.0).collect();
            (0..n_in as i64).map(row).collect()
        };
        let centred: [[f64; 4]; 6] = [
            [2., 3., 4., 5.],
            [1., 2., 3., 4.],
            [2., 1., 2., 3.],
            [3., 2., 1., 2.],
            [4., 3., 2., 1.],
            [5., 4., 3., 2.],
        ];
        assert_eq!(table(6, 4, Distance::Centred), centred);
        // ||i − j| − 1| + 1: two diagonals are near.
        let write_up: [[f64; 4]; 6] = [
            [2., 1., 2., 3.],
            [1., 2., 1., 2.],
            [2., 1., 2., 1.],
            [3., 2., 1., 2.],
            [4., 3., 2., 1.],
            [5., 4., 3., 2.],
        ];
        assert_eq!(table(6, 4, Distance::WriteUp), write_up);
        assert_eq!(table(2, 3, Distance::Centred), [[1.5, 1.5, 2.5], [2.5, 1.5, 1.5]]);
        // Inputs are labeled from 609, outputs from 1; then inputs from 1, outputs from 996.
        let wide = diagonals(784, 2000, Distance::Centred);
        assert_eq!(wide.distance(0), 608.0);
        assert_eq!(format!("{:.6}", wide.chance(0, 0.405_386_195_220_947_27)), "0.074328");
        assert_eq!(diagonals(2000, 10, Distance::Centred).distance(0), 995.0);
    }

    #[test]
    fn sums_by_diagonals_are_those_over_all_places() {
        for distance in [Distance::Centred, Distance::WriteUp] {
            for (n_in, n_out) in [(1, 1), (1, 6), (6, 1), (9, 14), (14, 9), (8, 8)] {
                let all = diagonals(n_in, n_out, distance);
                let half = (n_out as f64 - n_in as f64) / 2.0;
                let mut sum = 0.0;
                for i in 0..n_in {
                    for j in 0..n_out {
                        let apart = i as f64 - j as f64;
                        let d = match distance {
                            Distance::Centred => (apart + half).abs(),
                            Distance::WriteUp => (apart.abs() - half.abs()).abs(),
                        };
                        sum += (d + 1.0).powf(-0.7);
                    }
                }
                let bound = (n_in * n_out) as f64 * f64::EPSILON * sum;
                assert!((all.expected(0.7) - sum).abs() <= bound, "{n_in} {n_out}");
                assert_eq!(all.all().map(|diagonal| all.len(diagonal)).sum::<usize>(), n_in * n_out);
            }
        }
    }

    #[test]
    fn by_default_the_sum_misses_its_target_by_rounding_alone() {
        for (n_in, n_out) in [(2, 3), (5, 5), (30, 7), (7, 30), (300, 200)] {
            let all = diagonals(n_in, n_out, Distance::Centred);
            let least = all.expected(MOST).ceil() as usize;
            for kept in [least, least + 1, n_in * n_out - 1] {
                let target = kept as f64;
                let tried = all.search(target, all.rounding(target));
                let (lambda, expected) = tried[tried.len() - 1];
                // Or by a last bit of λ, where that is more.
                let next = all.expected(f64::from_bits(lambda.to_bits() + 1)) - all.expected(lambda);
                let missed = (expected - target).abs();
                let bound = all.rounding(target).max(next.abs() + all.rounding(target));
                assert!(missed <= bound, "{n_in} {n_out} {kept}: {lambda} {missed}");
                assert!((0.0..=MOST).contains(&lambda) && tried.len() < 1000);
            }
        }
    }

    #[test]
    fn weights_are_as_frequent_at_each_distance_as_their_chance() {
        const SEEDS: u64 = 200;
        for exact in [true, false] {
            for name in ["centred", "write_up"] {
                for (n_in, n_out) in [(40, 23), (23, 40), (32, 32)] {
                    let config = json!({"structure": NAME, "density": 0.2, "exact": exact, "distance": name});
                    let distance = if name == "centred" { Distance::Centred } else { Distance::WriteUp };
                    let all = diagonals(n_in, n_out, distance);
                    let target = (0.2 * (n_in * n_out) as f64).round();
                    let lambda = all.solve(target, all.rounding(target));
                    let twice = |diagonal: i64| (2.0 * all.distance(diagonal)) as usize;
                    let mut seen = vec![0u64; 2 * (n_in + n_out)];
                    let mut places = seen.clone();
                    for diagonal in all.all() {
                        places[twice(diagonal)] += all.len(diagonal) as u64 * SEEDS;
                    }
                    for seed in 0..SEEDS {
                        let drawn = positions(&config, n_in, n_out, seed);
                        assert!(!exact || drawn.len() as f64 == target);
                        for (row, col) in drawn {
                            seen[twice(i64::from(col) - i64::from(row))] += 1;
                        }
                    }
                    for (at, (&seen, &places)) in seen.iter().zip(&places).enumerate() {
                        let (chance, places) = ((at as f64 / 2.0 + 1.0).powf(-lambda), places as f64);
                        let deviation = (places * chance * (1.0 - chance)).sqrt();
                        let missed = (seen as f64 - places * chance).abs();
                        assert!(
                            missed <= 4.0 * deviation,
                            "{config} {n_in} {n_out} distance {at}/2: {missed}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn along_a_diagonal_all_places_are_alike() {
        const SEEDS: u32 = 2000;
        let (n_in, n_out) = (9, 6);
        let all = diagonals(n_in, n_out, Distance::Centred);
        let lambda = all.solve(16.0, all.rounding(16.0));
        for exact in [true, false] {
            let config = json!({"structure": NAME, "density": 0.3, "exact": exact});
            let mut seen = vec![0u32; n_in * n_out];
            for seed in 0..SEEDS {
                for (row, col) in positions(&config, n_in, n_out, u64::from(seed)) {
                    seen[row as usize * n_in + col as usize] += 1;
                }
            }
            for (at, &seen) in seen.iter().enumerate() {
                let chance = all.chance((at % n_in) as i64 - (at / n_in) as i64, lambda);
                let deviation = (f64::from(SEEDS) * chance * (1.0 - chance)).sqrt();
                let missed = (f64::from(seen) - f64::from(SEEDS) * chance).abs();
                assert!(missed <= 4.0 * deviation, "place {at}, exact {exact}: {missed}");
            }
        }
    }

    #[test]
    fn runs_of_diagonals_of_an_exact_draw_are_within_one_of_their_share() {
        let (n_in, n_out, kept) = (50, 31, 300);
        let all = diagonals(n_in, n_out, Distance::Centred);
        let lambda = all.solve(f64::from(kept), all.rounding(f64::from(kept)));
        let drawn = all.draw_exactly(kept as usize, lambda, &mut Rng::new(8));
        let (mut seen, mut sum) = (0.0, 0.0);
        let mut apart = Vec::new();
        for diagonal in all.all() {
            seen += drawn.iter().filter(|&&(r, c)| i64::from(c) - i64::from(r) == diagonal).count() as f64;
            sum += all.len(diagonal) as f64 * all.chance(diagonal, lambda);
            apart.push(seen - sum);
        }
        let (low, high) = apart.iter().fold((0.0f64, 0.0f64), |(low, high), &x| (low.min(x), high.max(x)));
        assert!(high - low < 1.0 + all.rounding(f64::from(kept)), "{low} {high}");
    }

    #[test]
    fn every_number_of_weights_that_can_be_is_met() {
        for (n_in, n_out) in [(1, 1), (1, 2), (2, 1), (3, 3), (5, 2), (2, 5), (4, 7)] {
            let places = n_in * n_out;
            for kept in 1..=places {
                for name in ["centred", "write_up"] {
                    let density = kept as f64 / places as f64;
                    let config = json!({"structure": NAME, "density": density, "distance": name});
                    for seed in 0..20 {
                        match crate::build(&config, n_in, n_out, seed, None) {
                            Ok(built) => {
                                assert_eq!(built.counts().parameters, kept);
                                assert_eq!(built.density(), density);
                            }
                            Err(StructureError::OutOfRange { key: "density", low, .. }) => {
                                assert!(density < low && kept < places, "{n_in} {n_out} {kept}: {low}");
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn the_density_is_that_of_the_draw() {
        let config = json!({"structure": NAME, "sparsity": 0.8, "exact": false, "tolerance": 10});
        let built = crate::build(&config, 64, 128, 0, None).unwrap();
        let n_drawn = built.counts().parameters;
        assert_ne!(n_drawn, 1638);
        assert_eq!(built.density(), n_drawn as f64 / 8192.0);
        assert_eq!(built.config()["tolerance"], json!(10.0));
        let restored = crate::restore(&built.config(), 64, 128, &built.buffers()).unwrap();
        assert_eq!(format!("{restored:?}"), format!("{built:?}"));
    }

    #[test]
    fn schedules_may_move_the_weights() {
        let built = crate::build(&json!(NAME), 64, 64, 0, None).unwrap();
        for name in ["rigl", "set"] {
            Schedule::from_json(&json!(name)).unwrap().check(&*built).unwrap();
        }
        let moved: Vec<(u32, u32)> = (0..5).map(|at| (at, 63 - at)).collect();
        let moved = built.with_positions(moved).unwrap();
        let restored = crate::restore(&moved.config(), 64, 64, &moved.buffers()).unwrap();
        assert_eq!(restored.buffers(), moved.buffers());
    }

    #[test]
    fn a_layer_of_twenty_thousand_squared_is_built_from_the_weights_it_keeps() {
        let built =
            crate::build(&json!({"structure": NAME, "sparsity": 0.99}), 20_000, 20_000, 0, None).unwrap();
        assert_eq!(built.counts().parameters, 4_000_000);
    }

    #[test]
    fn long_layers_are_exact_either_way() {
        for (n_in, n_out) in [(200_000, 50), (50, 200_000)] {
            let built =
                crate::build(&json!({"structure": NAME, "density": 0.01}), n_in, n_out, 0, None).unwrap();
            assert_eq!(built.counts().parameters, 100_000);
        }
    }

    #[test]
    fn what_cannot_be_names_key_and_range() {
        for (config, expected) in [
            (
                json!({"structure": NAME, "density": 0.125}),
                "`small_world.density` must be between 0.140625 and 1, got 0.125",
            ),
            (
                json!({"structure": NAME, "sparsity": 0.875}),
                "`small_world.sparsity` must be between 0 and 0.859375, got 0.875",
            ),
            (
                json!({"structure": NAME, "density": 0.001}),
                "`small_world` would keep none of its 64 places at density 0.001",
            ),
            (
                json!({"structure": NAME, "density": 0.5, "sparsity": 0.5}),
                "`small_world.density` cannot be combined with `sparsity`",
            ),
            (
                json!({"structure": NAME, "tolerance": 10}),
                "`small_world.tolerance` cannot be combined with `exact`",
            ),
            (
                json!({"structure": NAME, "exact": false, "tolerance": -1}),
                "`small_world.tolerance` must be between 0 and 64, got -1",
            ),
            (json!({"structure": NAME, "exact": 1}), "`small_world.exact` must be true or false, got 1"),
            (
                json!({"structure": NAME, "distance": "far"}),
                "`small_world.distance` must be `centred` or `write_up`, got \"far\"",
            ),
        ] {
            let error = crate::build(&config, 8, 8, 0, None).unwrap_err();
            assert_eq!(error.to_string(), expected, "{config}");
        }
        // No place has distance 0, so a draw may come out empty.
        let config = json!({"structure": NAME, "density": 0.5, "exact": false});
        let empty =
            (0..50).find_map(|seed| crate::build(&config, 1, 2, seed, None).err()).expect("one in four");
        assert_eq!(empty, StructureError::EmptyPattern { structure: NAME, places: 2, density: 0.5 });
    }
}
