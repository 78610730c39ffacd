//! Products of every stride order and size against f64.

use super::*;
use crate::activation::Activation;
use crate::simd::{Level, with_level};
use lacewing_testkit::{gamma, uniform};

/// Every element of `out` is within the rounding error of `start + a b`.
fn check(out: &[f32], start: &[f32], (m, k, n): (usize, usize, usize), a: MatRef<'_>, b: MatRef<'_>) {
    for r in 0..m {
        for c in 0..n {
            let start = start.get(r * n + c).copied().unwrap_or(0.0);
            let (mut sum, mut size) = (f64::from(start), f64::from(start.abs()));
            for i in 0..k {
                let term = f64::from(a.row(r)[i]) * f64::from(b.t().row(c)[i]);
                sum += term;
                size += term.abs();
            }
            let error = (f64::from(out[r * n + c]) - sum).abs();
            assert!(error <= gamma(k + 1) * size, "({r}, {c}) of {m}x{k}x{n}: {} for {sum}", out[r * n + c]);
        }
    }
}

#[test]
fn products_of_all_layouts_meet_the_oracle() {
    let sizes = [
        (1, 1, 1),
        (1, 7, 5),
        (17, 15, 33),
        (5, 0, 3),
        (0, 4, 4),
        (16, 64, 16),
        (197, 64, 70),
        (33, 257, 1),
        (1, 100, 131),
        (3, 77, 70),
        (13, 200, 65),
    ];
    for (m, k, n) in sizes {
        // `a` row-major and `b` by columns, so that the check may read both as rows; then the transposed storages.
        let (a, b) = (uniform(1, m * k), uniform(2, k * n));
        let (rows, cols) = (MatRef::row_major(&a, m, k), MatRef::row_major(&b, n, k).t());
        let turn = |x: &[f32], r: usize, c: usize| -> Vec<f32> {
            (0..c).flat_map(|j| (0..r).map(move |i| i * c + j)).map(|at| x[at]).collect()
        };
        let (at, bt) = (turn(&a, m, k), turn(&b, n, k));
        for a in [rows, MatRef::row_major(&at, k, m).t()] {
            for b in [cols, MatRef::row_major(&bt, k, n)] {
                for parallelism in [Parallelism::One, Parallelism::Pool] {
                    let mut out = vec![f32::NAN; m * n];
                    gemm(MatMut::row_major(&mut out, m, n), false, a, b, parallelism);
                    check(&out, &[], (m, k, n), rows, cols);
                    let start = uniform(3, m * n);
                    out.copy_from_slice(&start);
                    gemm(MatMut::row_major(&mut out, m, n), true, a, b, parallelism);
                    check(&out, &start, (m, k, n), rows, cols);
                }
            }
        }
    }
}

#[test]
fn a_batch_over_column_blocks_meets_the_oracle() {
    // Block-diagonal: out[:, i] = x[:, i] wᵢᵀ. Rows of more than one task, and few rows of sums long enough for dot products.
    for (rows, blocks, n_out, n_in) in [(1100, 3, 5, 4), (1, 3, 9, 70), (5, 4, 33, 130)] {
        let (x, w) = (uniform(4, rows * blocks * n_in), uniform(5, blocks * n_out * n_in));
        let mut out = vec![f32::NAN; rows * blocks * n_out];
        let x = MatRef::row_major(&x, rows, blocks * n_in);
        let w = MatRef::row_major(&w, blocks * n_out, n_in);
        let tiles = MatMut::row_major(&mut out, rows, blocks * n_out).tiles(rows, n_out);
        batched(tiles, false, |i| x.cols_at(i * n_in, n_in), |i| w.rows_at(i * n_out, n_out).t());
        for i in 0..blocks {
            let tile: Vec<f32> =
                out.chunks(blocks * n_out).flat_map(|y| &y[i * n_out..][..n_out]).copied().collect();
            let w = w.rows_at(i * n_out, n_out).t();
            check(&tile, &[], (rows, n_in, n_out), x.cols_at(i * n_in, n_in), w);
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for (m, k, n, by_columns) in
        [(300, 384, 200, false), (7, 130, 333, true), (190, 1540, 100, true), (900, 256, 96, true)]
    {
        let (a, b) = (uniform(6, m * k), uniform(7, k * n));
        let product = |threads: usize| {
            let mut out = vec![0.0; 2 * m * n];
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            let a = MatRef::row_major(&a, m, k);
            let b = if by_columns { MatRef::row_major(&b, n, k).t() } else { MatRef::row_major(&b, k, n) };
            let (plain, by_panels) = out.split_at_mut(m * n);
            pool.install(|| {
                gemm(MatMut::row_major(plain, m, n), false, a, b, Parallelism::Pool);
                let (by_panels, b) = (Target::row_major(by_panels, m, n), Packed::new(b, m, None));
                gemm_packed(by_panels, false, a, &b);
            });
            out
        };
        for level in Level::available() {
            with_level(level, || {
                let one = product(1);
                for threads in 2..5 {
                    let same = one.iter().zip(product(threads)).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{m}x{k}x{n} by {threads} threads at {level:?}");
                }
            });
        }
    }
}

#[test]
fn dot_products_meet_the_oracle_at_every_level() {
    // Tiles of every height and width, runs and bands that are not full, rows that start anywhere.
    let sizes = [
        (1, 64, 1),
        (2, 65, 5),
        (3, 79, 6),
        (4, 80, 7),
        (5, 127, 13),
        (7, 511, 8),
        (8, 513, 9),
        (11, 1030, 10),
        (31, 64, 97),
        (40, 600, 11),
        (199, 1541, 14),
        // One row by few columns side by side, by many, and from memory.
        (1, 1024, 37),
        (1, 1030, 21),
        (1, 2048, 2050),
    ];
    for level in Level::available() {
        with_level(level, || {
            for (m, k, n) in sizes {
                let (a, b, start) = (uniform(8, m * k + 1), uniform(9, n * (k + 3)), uniform(10, m * n));
                let a = MatRef::row_major(&a[1..], m, k);
                let b = MatRef::new(&b, n, k, k + 3, 1).t();
                for parallelism in [Parallelism::One, Parallelism::Pool] {
                    let mut out = vec![f32::NAN; m * n];
                    let view = MatMut::row_major(&mut out, m, n);
                    assert!(dots::accepts(&view, a, b), "{m}x{k}x{n}");
                    gemm(view, false, a, b, parallelism);
                    check(&out, &[], (m, k, n), a, b);
                    out.copy_from_slice(&start);
                    gemm(MatMut::row_major(&mut out, m, n), true, a, b, parallelism);
                    check(&out, &start, (m, k, n), a, b);
                }
            }
        });
    }
}

#[test]
fn packed_products_meet_the_oracle_at_every_level() {
    // Tiles of every height, panels and pieces that are not full, several runs, tasks that cut rows and columns.
    let sizes = [
        (1, 1, 1),
        (2, 16, 48),
        (3, 0, 5),
        (0, 4, 4),
        (4, 3, 0),
        (7, 79, 50),
        (13, 193, 97),
        (29, 400, 31),
        (150, 515, 130),
        (300, 128, 145),
        // Blocks.
        (1, 32, 32),
        (37, 96, 160),
        (37, 96, 160),
        (850, 64, 32),
    ];
    for level in Level::available() {
        with_level(level, || {
            let mut memory = None;
            for (m, k, n) in sizes {
                let (a, b, start) = (uniform(8, m * k + 1), uniform(9, n * (k + 3)), uniform(10, m * n));
                let a = MatRef::row_major(&a[1..], m, k);
                let by_columns = MatRef::new(&b, n, k, k + 3, 1).t();
                let turned: Vec<f32> = (0..k)
                    .flat_map(|i| (0..n).map(move |c| (i, c)))
                    .map(|(i, c)| by_columns.t().row(c)[i])
                    .collect();
                for b in [by_columns, MatRef::row_major(&turned, k, n)] {
                    let packed = Packed::new(b, m, memory.take());
                    let mut out = vec![f32::NAN; m * n];
                    gemm_packed(Target::row_major(&mut out, m, n), false, a, &packed);
                    check(&out, &[], (m, k, n), a, by_columns);
                    out.copy_from_slice(&start);
                    gemm_packed(Target::row_major(&mut out, m, n), true, a, &packed);
                    check(&out, &start, (m, k, n), a, by_columns);
                    let (mut ended, bias) = (vec![f32::NAN; m * n], uniform(11, n));
                    let to = Target::row_major(&mut ended, m, n).ending(Some(&bias), Activation::Relu, None);
                    gemm_packed(to, false, a, &packed);
                    gemm_packed(Target::row_major(&mut out, m, n), false, a, &packed);
                    let sums = out.iter().enumerate().map(|(at, sum)| (sum + bias[at % n]).max(0.0));
                    assert!(ended.into_iter().eq(sums), "{m}x{k}x{n} with bias and ReLU at {level:?}");
                    memory = Some(packed);
                }
            }
        });
    }
}

#[test]
fn a_row_has_the_same_bits_among_others_as_alone() {
    for (m, k, n) in [(45, 1100, 29), (45, 1120, 32)] {
        let (a, b) = (uniform(11, m * k), uniform(12, k * n));
        let b = MatRef::row_major(&b, n, k).t();
        let product = |first: usize, rows: usize, packed: Option<&Packed>| {
            let mut out = vec![f32::NAN; rows * n];
            let a = MatRef::row_major(&a, m, k).rows_at(first, rows);
            let view = MatMut::row_major(&mut out, rows, n);
            match packed {
                Some(packed) => gemm_packed(Target::new(view), false, a, packed),
                None => gemm(view, false, a, b, Parallelism::One),
            }
            out
        };
        for level in Level::available() {
            with_level(level, || {
                let packed = Packed::new(b, m, None);
                for packed in [None, Some(&packed)] {
                    let all = product(0, m, packed);
                    for row in 0..m {
                        let alone = product(row, 1, packed);
                        let same = alone.iter().zip(&all[row * n..]).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "row {row} at {level:?}, packed {}", packed.is_some());
                    }
                }
            });
        }
    }
}
