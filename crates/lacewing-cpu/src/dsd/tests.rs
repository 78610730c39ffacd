//! Every kernel at every level against f64, and what is refused.

use super::*;
use crate::activation::Activation;
use crate::activation::tests::{ALL, exact};
use crate::simd::{Level, MatMut, with_level};
use lacewing_testkit::{assert_within, gamma, uniform};

/// Sums of products in f64 and, beside each, of their sizes.
struct Oracle(Vec<(f64, f64)>);

impl Oracle {
    fn starting_at(start: &[f32]) -> Self {
        Self(start.iter().map(|&s| (f64::from(s), f64::from(s.abs()))).collect())
    }

    fn add(&mut self, at: usize, a: f32, b: f32) {
        let term = f64::from(a) * f64::from(b);
        self.0[at].0 += term;
        self.0[at].1 += term.abs();
    }

    /// Within `γ_terms · Σ |a b|`, whatever the order of the sum.
    fn check(&self, got: &[f32], terms: usize, what: &str) {
        let factor = gamma(terms + 2);
        for (at, (&got, &(sum, size))) in got.iter().zip(&self.0).enumerate() {
            let error = (f64::from(got) - sum).abs();
            assert!(error <= factor * size, "{what} at {at}: {got} for {sum}");
        }
    }
}

/// The product as it is.
fn plain<'a>(y: &'a mut [f32], blocks: &Blocks) -> Target<'a> {
    Target::row_major(y, y.len() / blocks.n_out, blocks.n_out)
}

/// A product with a bias and an activation, as exact as it has to be.
struct Finished {
    act: Activation,
    /// What is in y before, if the product is added to it.
    start: Option<Vec<f32>>,
    /// Whether the sums are kept.
    kept: bool,
    bias: Vec<f32>,
    sums: (Vec<f64>, Vec<f64>),
    y: (Vec<f64>, Vec<f64>),
}

impl Finished {
    /// All activations of `sums`, or of `more`, which starts at `start`: in turns with the number of rows.
    fn all(blocks: &Blocks, sums: &Oracle, more: &Oracle, start: &[f32]) -> Vec<Self> {
        let bias = uniform(7, blocks.n_out);
        let of = |(at, act): (usize, Activation)| {
            let turn = start.len() / blocks.n_out + at;
            let (added, kept) = (turn.is_multiple_of(2), (turn / 2).is_multiple_of(2));
            let factor = gamma(blocks.n_in + 3);
            let sums: (Vec<f64>, Vec<f64>) = (if added { more } else { sums })
                .0
                .iter()
                .enumerate()
                .map(|(i, &(sum, size))| {
                    let bias = f64::from(bias[i % blocks.n_out]);
                    (sum + bias, factor * (size + bias.abs()))
                })
                .unzip();
            let y = sums.0.iter().zip(&sums.1).map(|(&x, &error)| exact(act, x, error)).unzip();
            Self { act, start: added.then(|| start.to_vec()), kept, bias: bias.clone(), sums, y }
        };
        ALL.into_iter().enumerate().map(of).collect()
    }

    /// Checks a product that is given where it goes and whether it is added.
    fn check(&self, blocks: &Blocks, what: &str, product: impl Fn(Target<'_>, bool)) {
        let what = format!("{:?} of {what}", self.act);
        let poison = vec![f32::NAN; self.y.0.len()];
        let (mut sums, mut y) = (self.start.clone().unwrap_or_else(|| poison.clone()), poison);
        let (rows, n_out) = (y.len() / blocks.n_out, blocks.n_out);
        let activated = self.kept.then(|| MatMut::row_major(&mut y, rows, n_out));
        let target = plain(&mut sums, blocks).ending(Some(&self.bias), self.act, activated);
        product(target, self.start.is_some());
        let (want, bound) = if self.kept { &self.sums } else { &self.y };
        assert_within(&sums, want, bound, &what);
        if self.kept {
            assert_within(&y, &self.y.0, &self.y.1, &what);
        }
    }
}

/// Every third block, the last block row left empty where there are more than one.
fn some_positions(rows: usize, cols: usize) -> Vec<(u32, u32)> {
    let places = (0..rows.max(2) - 1).flat_map(|r| (0..cols).map(move |c| (r as u32, c as u32)));
    places.filter(|(r, c)| (r + 2 * c) % 3 == 0).collect()
}

#[test]
fn every_kernel_meets_the_oracle_at_every_level() {
    let blocks =
        [(1, 1), (2, 3), (4, 8), (8, 4), (16, 16), (17, 15), (32, 32), (33, 31), (64, 64), (40, 100)];
    for (at, (br, bc)) in blocks.into_iter().enumerate() {
        let (grid_rows, grid_cols) = [(3, 4), (1, 1), (4, 2)][at % 3];
        let positions = some_positions(grid_rows, grid_cols);
        let blocks = Blocks::new((br, bc), (grid_rows * br, grid_cols * bc), positions).unwrap();
        meets_the_oracle(&blocks, &[0, 1, 5, 13, 100]);
    }
}

#[test]
fn every_height_of_a_tile_and_cut_of_the_work_meets_the_oracle() {
    for (br, bc) in [(32, 32), (16, 16), (16, 40), (72, 16), (8, 8)] {
        // The last block row is empty.
        let blocks = Blocks::new((br, bc), (4 * br, 3 * bc), some_positions(4, 3)).unwrap();
        meets_the_oracle(&blocks, &[2, 8, 12, 16, 17, 25, 28, 49, 101, 770]);
    }
    // So many outputs to each input that copies of few rows are worth it, in several tasks.
    let tall = Blocks::new((16, 16), (60 * 16, 3 * 16), some_positions(60, 3)).unwrap();
    meets_the_oracle(&tall, &[2, 20, 33, 70]);
    let none = Blocks::new((16, 16), (32, 32), Vec::new()).unwrap();
    meets_the_oracle(&none, &[1, 20]);
    let none = Blocks::new((8, 8), (16, 0), Vec::new()).unwrap();
    meets_the_oracle(&none, &[2, 7]);
}

#[test]
fn small_blocks_meet_the_oracle() {
    // The last block row is empty.
    let sizes =
        [(1, 4), (4, 1), (1, 8), (8, 1), (2, 2), (3, 2), (2, 3), (4, 4), (5, 6), (7, 8), (8, 5), (8, 8)];
    for (br, bc) in sizes {
        let blocks = Blocks::new((br, bc), (7 * br, 5 * bc), some_positions(7, 5)).unwrap();
        meets_the_oracle(&blocks, &[0, 1, 2, 3, 4, 5, 16, 17, 31, 48, 65, 130]);
    }
    // More bands than tasks, and more rows than a run of the weight gradient.
    for (br, bc) in [(4, 4), (2, 3), (8, 8)] {
        let blocks = Blocks::new((br, bc), (3 * br, 2 * bc), some_positions(3, 2)).unwrap();
        meets_the_oracle(&blocks, &[530, 1040]);
    }
    // Several chunks of outputs, short runs of inputs and long ones.
    for (size, (n_out, n_in), keep) in
        [((4, 4), (280, 600), 2), ((4, 4), (600, 280), 40), ((8, 8), (264, 520), 3), ((2, 3), (260, 600), 2)]
    {
        let places =
            (0..(n_out / size.0) as u32).flat_map(|o| (0..(n_in / size.1) as u32).map(move |i| (o, i)));
        let positions = places.filter(|(o, i)| (o * 31 + i * 17) % keep == 0).collect();
        let blocks = Blocks::new(size, (n_out, n_in), positions).unwrap();
        meets_the_oracle(&blocks, &[1, 7, 33]);
    }
    let wide = (0..3).map(|i| (i % 2, i * 1100)).collect::<std::collections::BTreeSet<_>>();
    let wide = Blocks::new((4, 4), (8, 10_000), wide.into_iter().collect()).unwrap();
    meets_the_oracle(&wide, &[1, 6]);
    meets_the_oracle(&Blocks::new((4, 4), (16, 0), Vec::new()).unwrap(), &[2, 7]);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (size, rows) in [(32, 50), (16, 800), (1, 130), (4, 3), (4, 130), (4, 1030), (8, 130)] {
        let blocks = Blocks::new((size, size), (160, 160), some_positions(160 / size, 160 / size)).unwrap();
        let values = uniform(1, blocks.nnz_values());
        let (x, dy) = (uniform(2, rows * 160), uniform(3, rows * 160));
        let products = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let (mut y, mut dx, mut dw) =
                (vec![0.0; rows * 160], vec![0.0; rows * 160], vec![0.0; values.len()]);
            let kernel = select(&blocks);
            pool.install(|| {
                kernel.forward(&blocks, &values, &x, plain(&mut y, &blocks), false).unwrap();
                kernel.input_gradient(&blocks, &values, &dy, &mut dx, false).unwrap();
                kernel.weight_gradient(&blocks, &dy, &x, &mut dw).unwrap();
            });
            [y, dx, dw].map(|all| all.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        };
        // Held, or another test would change the level between two products.
        with_level(Level::available()[0], || {
            let one = products(1);
            assert!((2..4).all(|threads| products(threads) == one), "blocks of {size}");
        });
    }
}

#[test]
fn tiles_cover_the_rows_and_few_of_theirs_are_empty() {
    for (height, step) in [(6, 2), (8, 4), (12, 4), (24, 8)] {
        for rows in 0..200 {
            let mut end = 0;
            for (row, tall) in tiles::of(rows, height, step) {
                assert!(row == end && row < rows && tall <= height && tall % step == 0);
                end += tall;
            }
            assert!((rows..rows + step).contains(&end), "{rows} rows by {height}: {end}");
        }
    }
}

#[test]
fn parts_cover_the_groups() {
    for (rows, cols, parts) in [(1, 1, 16), (7, 5, 3), (40, 3, 16), (5, 1, 5)] {
        let blocks = Blocks::new((1, 1), (rows, cols), some_positions(rows, cols)).unwrap();
        let mut end = 0;
        for part in blocks.by_row.parts(parts) {
            assert!(part.start == end && !part.is_empty());
            end = part.end;
        }
        assert_eq!(end, rows);
    }
}

#[test]
fn single_values_meet_the_oracle_in_runs_and_without() {
    // Of these all kinds are cut into chunks of outputs, into short runs of inputs where there are many values, and into
    // long ones.
    for (n_out, n_in, keep) in
        [(7, 2000, 1), (300, 500, 2), (45, 600, 97), (600, 33, 5), (3, 1100, 41), (1, 130, 1), (5, 0, 1)]
    {
        let places = (0..n_out as u32).flat_map(|o| (0..n_in as u32).map(move |i| (o, i)));
        let positions = places.filter(|(o, i)| (o * 31 + i * 17) % keep == 0).collect();
        let blocks = Blocks::new((1, 1), (n_out, n_in), positions).unwrap();
        meets_the_oracle(&blocks, &[1, 3, 14, 40, 81, 150]);
    }
    let many = (0..140).map(|o| (o, o * 7 % 130)).collect();
    meets_the_oracle(&Blocks::new((1, 1), (140, 130), many).unwrap(), &[1030]);
}

/// `(of, run)` values of each run of inputs, in places that vary.
fn regular(n_out: usize, n_in: usize, (of, run): (usize, usize)) -> Blocks {
    let mut positions = Vec::new();
    for o in 0..n_out {
        for first in (0..n_in).step_by(run) {
            let mut places: Vec<usize> =
                (0..of).map(|k| (o * 5 + first / run * 3 + k * (1 + o % 2)) % run).collect();
            places.sort_unstable();
            places.dedup();
            positions.extend(places.iter().map(|place| (o as u32, (first + place) as u32)));
        }
    }
    Blocks::new((1, 1), (n_out, n_in), positions).unwrap()
}

/// Values at every place where the hash of its numbers says so, one in `keep`; every seventh output has none.
fn scattered(n_out: usize, n_in: usize, keep: usize) -> Blocks {
    let places = (0..n_out).flat_map(|o| (0..n_in).map(move |i| (o, i)));
    let kept = places.filter(|&(o, i)| o % 7 != 6 && (((o * n_in + i) * 40_503) >> 7).is_multiple_of(keep));
    let positions = kept.map(|(o, i)| (o as u32, i as u32)).collect();
    Blocks::new((1, 1), (n_out, n_in), positions).unwrap()
}

#[test]
fn few_rows_of_single_values_meet_the_oracle_whatever_their_columns() {
    use one_row::Columns;
    let columns = |blocks: &Blocks, of: fn(&Columns) -> bool| {
        meets_the_oracle(blocks, &[1, 2, 3, 4]);
        assert!(of(blocks.by_row.columns.get().expect("columns")));
    };
    let picks: fn(&Columns) -> bool = |columns| matches!(columns, Columns::Picks { .. });
    let bits: fn(&Columns) -> bool = |columns| matches!(columns, Columns::Bits(_));
    for (n_out, n_in) in [(1, 4), (19, 36), (35, 132), (7, 300)] {
        columns(&regular(n_out, n_in, (2, 4)), picks);
        columns(&regular(n_out, n_in, (1, 4)), picks);
        columns(&regular(n_out, n_in, (1, 2)), picks);
    }
    columns(&regular(18, 136, (4, 8)), bits);
    for (n_out, n_in) in [(1, 1), (5, 31), (20, 95), (33, 161), (3, 64)] {
        columns(&scattered(n_out, n_in, 1), bits);
        columns(&scattered(n_out, n_in, 2), bits);
    }
    for (n_out, n_in, keep) in [(50, 130, 9), (40, 600, 60), (17, 1000, 7), (100, 48, 40)] {
        columns(&scattered(n_out, n_in, keep), |columns| matches!(columns, Columns::Narrow(_)));
    }
    let wide = scattered(5, 70_000, 1500);
    columns(&wide, |columns| matches!(columns, Columns::Wide));
    // The end of the narrow ones.
    columns(&scattered(5, 65_536, 1500), |columns| matches!(columns, Columns::Narrow(_)));
}

/// Of so many values those of eight outputs are read side by side; of the last ones here there are fewer.
#[test]
fn a_row_of_values_from_memory_meets_the_oracle() {
    let blocks = regular(2053, 4096, (2, 4));
    assert!(blocks.nnz_values() >= one_row::LARGE);
    let (values, x) = (uniform(1, blocks.nnz_values()), uniform(2, blocks.n_in));
    let mut oracle = Oracle::starting_at(&vec![0.0; blocks.n_out]);
    blocks.for_each(|slot, o, i| oracle.add(o, values[slot], x[i]));
    for level in Level::available() {
        with_level(level, || {
            let mut y = vec![f32::NAN; blocks.n_out];
            select(&blocks).forward(&blocks, &values, &x, plain(&mut y, &blocks), false).unwrap();
            oracle.check(&y, blocks.n_in, &format!("{level:?}"));
        });
    }
}

#[test]
fn values_picked_by_windows_meet_the_oracle() {
    // Ends of a group, of a window, of a run, and rows shorter than a window.
    for (n_out, n_in) in [(1, 28), (16, 32), (17, 36), (40, 100), (33, 1100), (5, 2060)] {
        for blocks in [regular(n_out, n_in, (1, 4)), scattered(n_out, n_in, 3), scattered(n_out, n_in, 60)] {
            meets_the_oracle(&blocks, &[1, 2, 3, 5, 8, 9, 20]);
        }
    }
    // Several bands.
    meets_the_oracle(&regular(48, 64, (2, 8)), &[270]);
    // So many values that they are packed without gaps.
    for (blocks, without) in [(scattered(1501, 2060, 3), true), (scattered(40, 100, 3), false)] {
        let packed = select(&blocks).pack(&blocks, 0, &uniform(1, blocks.nnz_values()), None).unwrap();
        assert_eq!(packed.values.get().len() == blocks.nnz_values(), without);
    }
    meets_the_oracle(&scattered(1501, 2060, 3), &[1, 6]);
    let n_m = regular(64, 256, (1, 8));
    let picked = |blocks: &Blocks, rows, kept| select(blocks).packing(blocks, rows, kept) == Some(0);
    with_level(Level::available()[0], || {
        let fast = Level::current() == Level::Avx512;
        assert_eq!([1, 8, 16, 17].map(|rows| picked(&n_m, rows, true)), [fast, fast, fast, false]);
        assert!(!picked(&n_m, 8, false), "for one product");
        let one_each = (0..64).step_by(4).map(|o| (o, o * 37 % 256)).collect();
        assert!(!picked(&Blocks::new((1, 1), (64, 256), one_each).unwrap(), 8, true), "mostly zeros");
    });
}

#[test]
fn an_input_without_values_is_not_multiplied() {
    for blocks in [regular(20, 68, (2, 4)), scattered(20, 68, 2), scattered(20, 68, 12)] {
        let (values, kernel) = (uniform(1, blocks.nnz_values()), select(&blocks));
        for (rows, level) in (1..9).flat_map(|rows| Level::available().into_iter().map(move |l| (rows, l))) {
            // The first inputs of windows among them.
            for input in [0, 36, 40] {
                let mut x = uniform(2, rows * 68);
                x[input] = f32::INFINITY;
                let (mut y, mut y_packed) = (vec![0.0; rows * 20], vec![0.0; rows * 20]);
                with_level(level, || {
                    kernel.forward(&blocks, &values, &x, plain(&mut y, &blocks), false).unwrap();
                    let packed = kernel.pack(&blocks, 0, &values, None).unwrap();
                    let y = plain(&mut y_packed, &blocks);
                    kernel.forward_packed(&blocks, &packed, &x, y, false).unwrap();
                });
                for (at, (y, y_packed)) in y.iter().zip(&y_packed).enumerate() {
                    let meets = at < 20 && blocks.positions.contains(&(at as u32, input as u32));
                    let what = format!("{at} of {rows} rows at {level:?}");
                    assert_eq!((!y.is_finite(), !y_packed.is_finite()), (meets, meets), "{what}");
                }
            }
        }
    }
}

#[test]
fn shared_products_of_few_rows_have_the_same_bits() {
    let block = Blocks::new((32, 32), (640, 768), some_positions(20, 24)).unwrap();
    for blocks in [regular(500, 768, (2, 4)), scattered(500, 770, 2), scattered(500, 770, 9), block] {
        for rows in [1, 3] {
            let values = uniform(1, blocks.nnz_values());
            let (x, dy) = (uniform(2, rows * blocks.n_in), uniform(3, rows * blocks.n_out));
            let products = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
                let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
                pool.install(|| {
                    select(&blocks).forward(&blocks, &values, &x, plain(&mut y, &blocks), false).unwrap();
                    select(&blocks).input_gradient(&blocks, &values, &dy, &mut dx, false).unwrap();
                });
                [y, dx].map(|all| all.into_iter().map(f32::to_bits).collect::<Vec<_>>())
            };
            with_level(Level::available()[0], || {
                let one = products(1);
                assert!((2..4).all(|threads| products(threads) == one), "{rows} rows");
            });
        }
    }
}

/// Every kernel that accepts, at every level.
fn meets_the_oracle(blocks: &Blocks, all_rows: &[usize]) {
    let (n_in, n_out) = (blocks.n_in, blocks.n_out);
    let values = uniform(1, blocks.nnz_values());
    for &rows in all_rows {
        let (x, dy) = (uniform(2, rows * n_in), uniform(3, rows * n_out));
        let (y0, dx0) = (uniform(4, rows * n_out), uniform(5, rows * n_in));
        let dw0 = uniform(6, values.len());
        let zeros = |like: &[f32]| Oracle::starting_at(&vec![0.0; like.len()]);
        let (mut y_sum, mut dx_sum) = (zeros(&y0), zeros(&dx0));
        let (mut y_more, mut dx_more) = (Oracle::starting_at(&y0), Oracle::starting_at(&dx0));
        let mut dw_sum = Oracle::starting_at(&dw0);
        blocks.for_each(|slot, o, i| {
            for r in 0..rows {
                let (x, dy) = (x[r * n_in + i], dy[r * n_out + o]);
                y_sum.add(r * n_out + o, values[slot], x);
                y_more.add(r * n_out + o, values[slot], x);
                dx_sum.add(r * n_in + i, values[slot], dy);
                dx_more.add(r * n_in + i, values[slot], dy);
                dw_sum.add(slot, dy, x);
            }
        });
        let finished = Finished::all(blocks, &y_sum, &y_more, &y0);
        let accepting = KERNELS.iter().filter(|kernel| (kernel.accepts)(blocks));
        for (kernel, level) in accepting.flat_map(|k| Level::available().into_iter().map(move |l| (k, l))) {
            let what = format!(
                "{} at {level:?}, blocks {}x{} of {n_out}x{n_in}, {rows} rows",
                kernel.name, blocks.br, blocks.bc
            );
            with_level(level, || {
                let mut y = vec![f32::NAN; y0.len()];
                kernel.forward(blocks, &values, &x, plain(&mut y, blocks), false).unwrap();
                y_sum.check(&y, n_in, &what);
                y.copy_from_slice(&y0);
                kernel.forward(blocks, &values, &x, plain(&mut y, blocks), true).unwrap();
                y_more.check(&y, n_in, &what);
                for finished in &finished {
                    finished.check(blocks, &what, |y, accumulate| {
                        kernel.forward(blocks, &values, &x, y, accumulate).unwrap();
                    });
                }
                for packing in 0..kernel.packings() {
                    let what = format!("{what}, packing {packing}");
                    let packed = kernel.pack(blocks, packing, &values, None).unwrap();
                    let packed = kernel.pack(blocks, packing, &values, Some(packed)).unwrap();
                    y.fill(f32::NAN);
                    kernel.forward_packed(blocks, &packed, &x, plain(&mut y, blocks), false).unwrap();
                    y_sum.check(&y, n_in, &what);
                    y.copy_from_slice(&y0);
                    kernel.forward_packed(blocks, &packed, &x, plain(&mut y, blocks), true).unwrap();
                    y_more.check(&y, n_in, &what);
                    for finished in &finished {
                        finished.check(blocks, &what, |y, accumulate| {
                            kernel.forward_packed(blocks, &packed, &x, y, accumulate).unwrap();
                        });
                    }
                }
                let mut dx = vec![f32::NAN; dx0.len()];
                kernel.input_gradient(blocks, &values, &dy, &mut dx, false).unwrap();
                dx_sum.check(&dx, n_out, &what);
                dx.copy_from_slice(&dx0);
                kernel.input_gradient(blocks, &values, &dy, &mut dx, true).unwrap();
                dx_more.check(&dx, n_out, &what);
                let mut dw = dw0.clone();
                kernel.weight_gradient(blocks, &dy, &x, &mut dw).unwrap();
                dw_sum.check(&dw, rows, &what);
            });
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let error =
        |size, shape, positions: &[(u32, u32)]| Blocks::new(size, shape, positions.to_vec()).unwrap_err();
    assert_eq!(error((4, 0), (8, 8), &[]), DsdError::Indivisible { br: 4, bc: 0, n_out: 8, n_in: 8 });
    assert_eq!(error((4, 3), (8, 8), &[]), DsdError::Indivisible { br: 4, bc: 3, n_out: 8, n_in: 8 });
    let outside = DsdError::Outside { block: 1, row: 1, col: 2, rows: 2, cols: 2 };
    assert_eq!(error((4, 4), (8, 8), &[(0, 0), (1, 2)]), outside);
    assert_eq!(error((4, 4), (8, 8), &[(1, 0), (0, 1)]), DsdError::Order { block: 1 });
    assert_eq!(error((4, 4), (8, 8), &[(1, 0), (1, 0)]), DsdError::Order { block: 1 });
    let blocks = Blocks::new((4, 4), (8, 8), vec![(0, 1)]).unwrap();
    let short = select(&blocks).forward(&blocks, &[0.0; 15], &[], plain(&mut [], &blocks), false);
    assert_eq!(short, Err(DsdError::Len { operand: "values", expected: 16, got: 15 }));
    let short =
        select(&blocks).forward(&blocks, &[0.0; 16], &[0.0; 16], plain(&mut [0.0; 8], &blocks), false);
    assert_eq!(short, Err(DsdError::Len { operand: "y", expected: 16, got: 8 }));
    let mut y = [0.0; 16];
    let narrow =
        select(&blocks).forward(&blocks, &[0.0; 16], &[0.0; 16], Target::row_major(&mut y, 4, 4), false);
    assert_eq!(narrow, Err(DsdError::Len { operand: "a row of y", expected: 8, got: 4 }));
    let others = regular(16, 32, (1, 4));
    let packed = select(&others).pack(&others, 2, &uniform(1, others.nnz_values()), None).unwrap();
    let strange = select(&blocks).forward_packed(&blocks, &packed, &[0.0; 16], plain(&mut y, &blocks), false);
    let got = others.nnz_values();
    assert_eq!(strange, Err(DsdError::Len { operand: "packed values", expected: 16, got }));
}
