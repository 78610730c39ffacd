//! Every operation of every level against plain f32.

use super::*;

struct Check(Level);

impl Vectorize for Check {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        let level = self.0;
        let a: Vec<f32> = (0..I::LANES).map(|i| (i as f32 - 3.3) * 1.7).collect();
        let b: Vec<f32> = (0..I::LANES).map(|i| 2.5 - i as f32 * 0.9).collect();
        let (va, vb) = (isa.load(&a), isa.load(&b));
        let lanes = |v: I::V| {
            let mut out = vec![0.0; I::LANES];
            isa.store(&mut out, v);
            out
        };
        let zip = |f: &dyn Fn(f32, f32) -> f32| a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect::<Vec<_>>();
        assert_eq!(lanes(isa.add(va, vb)), zip(&|a, b| a + b), "add at {level:?}");
        assert_eq!(lanes(isa.sub(va, vb)), zip(&|a, b| a - b), "sub at {level:?}");
        assert_eq!(lanes(isa.mul(va, vb)), zip(&|a, b| a * b), "mul at {level:?}");
        assert_eq!(lanes(isa.div(va, vb)), zip(&|a, b| a / b), "div at {level:?}");
        assert_eq!(lanes(isa.max(va, vb)), zip(&f32::max), "max at {level:?}");
        assert_eq!(lanes(isa.min(va, vb)), zip(&f32::min), "min at {level:?}");
        assert_eq!(lanes(isa.neg(va)), zip(&|a, _| -a), "neg at {level:?}");
        assert_eq!(lanes(isa.abs(va)), zip(&|a, _| a.abs()), "abs at {level:?}");
        assert_eq!(lanes(isa.sqrt(isa.abs(va))), zip(&|a, _| a.abs().sqrt()), "sqrt at {level:?}");
        assert_eq!(lanes(isa.round(va)), zip(&|a, _| a.round_ties_even()), "round at {level:?}");
        let chosen = isa.select(isa.lt(va, vb), isa.splat(1.0), isa.splat(-1.0));
        assert_eq!(lanes(chosen), zip(&|a, b| if a < b { 1.0 } else { -1.0 }), "select at {level:?}");
        // Small integers: exact in any order and with any rounding.
        let n: Vec<f32> = (0..I::LANES).map(|i| i as f32).collect();
        let vn = isa.load(&n);
        let sum = (I::LANES * (I::LANES - 1) / 2) as f32;
        assert_eq!(isa.reduce_add(vn), sum, "reduce_add at {level:?}");
        assert_eq!(isa.reduce_max(isa.neg(isa.add(vn, isa.splat(2.0)))), -2.0, "reduce_max at {level:?}");
        // Register `i` holds `i` and one in every other lane.
        let mut each: [I::V; MAX_LANES] = std::array::from_fn(|i| {
            let lanes: Vec<f32> = (0..I::LANES).map(|lane| if lane == 0 { i as f32 } else { 1.0 }).collect();
            isa.load(&lanes)
        });
        let sums = (0..I::LANES).map(|i| (i + I::LANES - 1) as f32).collect::<Vec<_>>();
        assert_eq!(lanes(isa.sum_each(&mut each)), sums, "sum_each at {level:?}");
        let from: Vec<f32> = (0..20 * 23).map(|i| i as f32).collect();
        let mut to = vec![1.0; 20 * 25];
        let mut square = MatRef::row_major(&from, 20, 23).load_transposed(isa, 3, 5);
        for (j, &column) in square[..I::LANES].iter().enumerate() {
            let expected: Vec<f32> = (0..I::LANES).map(|i| from[(3 + i) * 23 + 5 + j]).collect();
            assert_eq!(lanes(column), expected, "load_transposed at {level:?}");
        }
        isa.transpose(&mut square);
        let mut view = MatMut::row_major(&mut to, 20, 25);
        view.store_square(isa, (2, 4), &square, false);
        view.store_square(isa, (2, 4), &square, true);
        for (r, row) in to.chunks(25).enumerate() {
            for (c, &got) in row.iter().enumerate() {
                let inside = (2..2 + I::LANES).contains(&r) && (4..4 + I::LANES).contains(&c);
                let expected = if inside { 2.0 * from[(r + 1) * 23 + c + 1] } else { 1.0 };
                assert_eq!(got, expected, "squares at {level:?}");
            }
        }
        let fused = lanes(isa.mul_add(vn, vn, isa.splat(-1.0)));
        assert_eq!(fused, n.iter().map(|n| n * n - 1.0).collect::<Vec<_>>(), "mul_add at {level:?}");
        let (low, high) = isa.interleave(va, vb);
        let mixed: Vec<f32> = a.iter().zip(&b).flat_map(|(a, b)| [*a, *b]).collect();
        assert_eq!([lanes(low), lanes(high)].concat(), mixed, "interleave at {level:?}");
        let mut tile = [isa.splat(0.0); MAX_LANES];
        for (i, row) in tile.iter_mut().enumerate() {
            *row = isa.add(isa.mul(vn, isa.splat(100.0)), isa.splat(i as f32));
        }
        isa.transpose(&mut tile);
        for (j, row) in tile[..I::LANES].iter().enumerate() {
            let column: Vec<f32> = (0..I::LANES).map(|i| (100 * j + i) as f32).collect();
            assert_eq!(lanes(*row), column, "transpose at {level:?}");
        }
        for power in [-149.0, -130.0, -126.0, -1.0, 0.0, 5.0, 127.0] {
            let scaled = lanes(isa.scale_by_pow2(isa.splat(1.0), isa.splat(power)));
            assert_eq!(scaled, vec![2f64.powf(f64::from(power)) as f32; I::LANES], "2^{power} at {level:?}");
        }
        for len in 0..=I::LANES {
            let mut out = vec![9.0; len + 1];
            isa.store_partial(&mut out[..len], isa.load_partial(&n[..len]));
            assert_eq!(out[..len], n[..len], "partial at {level:?}");
            assert_eq!(out[len], 9.0, "a store beyond the end at {level:?}");
            let padded = lanes(isa.load_partial(&a[..len]));
            assert!(padded[len..].iter().all(|x| *x == 0.0), "padding at {level:?}");
        }
        self.finding(isa);
    }
}

impl Check {
    /// What finds elements by indices and masks.
    fn finding<I: Isa>(&self, isa: I) {
        let level = self.0;
        let lanes = |v: I::V| {
            let mut out = vec![0.0; I::LANES];
            isa.store(&mut out, v);
            out
        };
        // One beyond the table, one far beyond, and fewer indices than lanes.
        let table: Vec<f32> = (0..65_540).map(|i| 1.0 + i as f32).collect();
        let indices: Vec<u16> =
            (0..I::LANES).map(|i| [65_535, 49, 50, 0, 12][i % 5] - i as u16 / 5).collect();
        for (len, count) in [(65_540, I::LANES), (50, I::LANES), (50, I::LANES - 1), (1, 3), (0, 2), (3, 0)] {
            let (table, indices) = (&table[..len], &indices[..count]);
            let mut expected: Vec<f32> =
                indices.iter().map(|&i| table.get(usize::from(i)).copied().unwrap_or(0.0)).collect();
            expected.resize(I::LANES, 0.0);
            assert_eq!(lanes(isa.gather(table, indices)), expected, "gather at {level:?}");
        }
        let masks = (0..=u16::MAX).step_by(if I::LANES == 16 { 97 } else { 1 }).chain([u16::MAX]);
        for mask in masks.map(|mask| mask & (u16::MAX >> (16 - I::LANES))) {
            let from = &table[..mask.count_ones() as usize];
            let set = |i: usize| mask >> i & 1 == 1;
            let before = |i: usize| (0..i).filter(|i| set(*i)).count();
            let expected: Vec<f32> =
                (0..I::LANES).map(|i| if set(i) { from[before(i)] } else { 0.0 }).collect();
            assert_eq!(lanes(isa.expand(from, mask)), expected, "expand by {mask:#x} at {level:?}");
            let (a, c) = (isa.load(&table), isa.load(&table[9..]));
            let b: Vec<f32> = (0..I::LANES).map(|i| if set(i) { 2.0 } else { f32::NAN }).collect();
            let sums = lanes(isa.mul_add_at(mask, a, isa.load(&b), c));
            let expected = |i| table[9 + i] + if set(i) { 2.0 * table[i] } else { 0.0 };
            assert_eq!(sums, (0..I::LANES).map(expected).collect::<Vec<_>>(), "mul_add_at at {level:?}");
        }
        let quads: Vec<[f32; 4]> = table.chunks_exact(4).take(9).map(|q| [q[0], q[1], q[2], q[3]]).collect();
        let found = lanes(isa.gather_quads(&quads, &[8, 0, 3, 8][..I::LANES / 4]));
        let expected = [8, 0, 3, 8].iter().flat_map(|&i| quads[i]).take(I::LANES).collect::<Vec<_>>();
        assert_eq!(found, expected, "gather_quads at {level:?}");
        let fours = lanes(isa.repeat::<4>(&table[5..9]));
        assert_eq!(fours, (0..I::LANES).map(|i| table[5 + i % 4]).collect::<Vec<_>>(), "repeat at {level:?}");
        if I::LANES >= 8 {
            let eights = lanes(isa.repeat::<8>(&table[3..11]));
            let expected = (0..I::LANES).map(|i| table[3 + i % 8]).collect::<Vec<_>>();
            assert_eq!(eights, expected, "repeat at {level:?}");
        }
        let splat = lanes(isa.splat_quads(&table[..I::LANES / 4]));
        assert_eq!(
            splat,
            (0..I::LANES).map(|i| table[i / 4]).collect::<Vec<_>>(),
            "splat_quads at {level:?}"
        );
        let window = isa.table(table[..WINDOW].first_chunk().expect("a window"));
        for shift in [0, 3, 8] {
            let picks = |i: usize| !(i + shift).is_multiple_of(3);
            let at: [u8; MAX_LANES] = std::array::from_fn(|i| {
                if picks(i) { PICKED + (i * 7 % WINDOW) as u8 } else { (i * 7 % WINDOW) as u8 }
            });
            let picked = lanes(isa.pick(window, &at));
            for i in 0..I::LANES {
                assert_eq!(isa.picked(&at) >> i & 1 == 1, picks(i), "picked at {level:?}");
                assert_eq!(
                    picked[i],
                    if picks(i) { table[i * 7 % WINDOW] } else { 0.0 },
                    "pick at {level:?}"
                );
            }
        }
        for picks in [0, u32::MAX, 0x1b2d_8e4f, 0x9c63_27d8] {
            let pick = |i: usize| (picks >> (2 * i) & 3) as usize;
            let one = lanes(isa.pick_of_four::<1>(&table[..4 * I::LANES], picks));
            let two = lanes(isa.pick_of_four::<2>(&table[..2 * I::LANES], picks));
            for i in 0..I::LANES {
                assert_eq!(one[i], table[4 * i + pick(i)], "pick_of_four at {level:?}");
                assert_eq!(two[i], table[i / 2 * 4 + pick(i)], "pick_of_four at {level:?}");
            }
        }
    }
}

/// Asks for more than there is.
struct Beyond(u8);

impl Vectorize for Beyond {
    type Output = ();
    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        match self.0 {
            0 => _ = isa.expand(&[1.0, 2.0], 0b1011),
            1 => _ = isa.gather_quads(&[[0.0; 4]; 3], &[3; 4]),
            2 => _ = isa.gather_quads(&[[0.0; 4]; 3], &[]),
            3 => _ = isa.splat_quads(&[]),
            4 => _ = isa.pick_of_four::<1>(&[0.0; 15], 0),
            5 => _ = isa.repeat::<4>(&[0.0; 3]),
            6 => _ = isa.picked(&[PICKED; 3]),
            7 => _ = isa.pick(isa.table(&[0.0; WINDOW]), &[PICKED; 3]),
            _ => _ = isa.pick_of_four::<2>(&[0.0; 7], 0),
        }
    }
}

#[test]
fn what_is_beyond_a_slice_is_refused() {
    for level in Level::available() {
        for what in 0..9 {
            let refused = std::panic::catch_unwind(|| level.run(Beyond(what))).is_err();
            assert!(refused, "{what} at {level:?}");
        }
    }
}

#[test]
fn every_operation_at_every_level() {
    for level in Level::available() {
        level.run(Check(level));
    }
}

#[test]
fn a_forced_level_is_used_and_given_back() {
    let best = Level::available()[0];
    with_level(Level::Scalar, || assert_eq!(Level::current(), Level::Scalar));
    with_level(best, || assert_eq!(Level::current(), best));
}

#[test]
fn tiles_cover_a_view_once() {
    let mut data = vec![0.0; 6 * 10];
    for (i, mut tile) in MatMut::new(&mut data, 6, 8, 10, 1).tiles(2, 4).into_iter().enumerate() {
        for r in 0..2 {
            tile.row_mut(r).iter_mut().for_each(|x| *x += 1.0 + i as f32);
        }
    }
    for (at, x) in data.iter().enumerate() {
        let (r, c) = (at / 10, at % 10);
        assert_eq!(*x, if c < 8 { (r / 2 * 2 + c / 4 + 1) as f32 } else { 0.0 }, "({r}, {c})");
    }
}

#[test]
#[should_panic(expected = "repeat an element")]
fn a_view_that_repeats_an_element_is_refused() {
    MatMut::new(&mut [0.0; 16], 4, 4, 3, 1);
}

#[test]
#[should_panic(expected = "a view of 16 elements in a slice of 15")]
fn a_view_beyond_its_slice_is_refused() {
    MatRef::row_major(&[0.0; 15], 4, 4);
}
