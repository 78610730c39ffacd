//! Masks drawn on a canvas, against masks drawn by hand and against a drawing of every rectangle, weight by weight.

use lacewing_core::{
    Form, IndexBuffer, Init, Pattern, PatternKind, Rng, Structure, StructureError, build, restore,
};
use lacewing_testkit::uniform;
use proptest::prelude::*;
use serde_json::{Value, json};

fn pattern(structure: &dyn Structure) -> &Pattern {
    let Form::Pattern(pattern) = structure.form() else { panic!("no pattern in {structure:?}") };
    pattern
}

fn rows(config: &Value, n_in: usize, n_out: usize, dense: Option<&[f32]>) -> Vec<String> {
    let built = build(config, n_in, n_out, 0, dense).unwrap();
    strings(&pattern(&*built).mask(), n_in)
}

fn strings(mask: &[bool], n_in: usize) -> Vec<String> {
    let digit = |&kept: &bool| if kept { '1' } else { '0' };
    mask.chunks(n_in).map(|row| row.iter().map(digit).collect()).collect()
}

/// What a mask of stripes is made of.
#[derive(Clone, Debug)]
struct Drawing {
    ninja: bool,
    window: usize,
    stripes: usize,
    step: usize,
    n_global: usize,
    block: (usize, usize),
    repeat: usize,
}

impl Drawing {
    fn config(&self) -> Value {
        let mut config = json!({
            "structure": if self.ninja { "ninja_turtle" } else { "stripe_butterfly" },
            "window": self.window, "stripes": self.stripes, "step": self.step, "global_size": self.n_global,
            "block": [self.block.0, self.block.1],
        });
        if self.ninja {
            config["repeat"] = json!(self.repeat);
        }
        config
    }

    /// The mask `[n_out, n_in]`, rectangle by rectangle on a canvas that is then transposed where `n_in ≤ n_out`.
    fn mask(&self, n_in: usize, n_out: usize) -> Vec<bool> {
        let part = n_out / self.repeat;
        let (min, max) = (n_in.min(part), n_in.max(part));
        let mut canvas = vec![vec![false; max]; min];
        let mut fill = |top: usize, bottom: usize, left: usize, right: usize| {
            for row in &mut canvas[top.min(min)..bottom.min(min)] {
                row[left.min(max)..right.min(max)].fill(true);
            }
        };
        let stride = (min as f64).sqrt() as usize;
        let mut d = max as f64 / min as f64;
        if !self.ninja || d.ceil() - d < 0.1 {
            d = d.ceil();
        } else if d - d.floor() < 0.1 {
            d = d.floor();
        }
        let height = if self.ninja { self.window * self.step } else { self.window };
        for k in 0..self.stripes {
            let p = stride * if self.ninja { (1 << k) - 1 } else { k };
            for i in (0..min).step_by(self.window) {
                let width = self.step as f64 * d * self.window as f64;
                let (start, shifted) = (i as f64 * d, (i + p) as f64 * d);
                fill(p + i, p + i + height, start as usize, (start + width) as usize);
                fill(i, i + height, shifted as usize, (shifted + width) as usize);
            }
        }
        let (down, across) = self.block;
        let drawn = canvas.clone();
        for (r, row) in canvas.iter_mut().enumerate() {
            for (c, kept) in row.iter_mut().enumerate() {
                let (top, left) = (r / down * down, c / across * across);
                let part = &drawn[top..(top + down).min(min)];
                *kept = part.iter().any(|row| row[left..(left + across).min(max)].contains(&true));
                *kept |= r < self.n_global || c < self.n_global;
            }
        }
        let at = |row: usize, col: usize| if n_in <= part { canvas[col][row] } else { canvas[row][col] };
        (0..n_out * n_in).map(|flat| at(flat / n_in % part, flat % n_in)).collect()
    }
}

#[test]
fn stripe_butterflies_drawn_by_hand() {
    // Canvas 4 by 8, d = 2, stride 2: 11001100 / 00110011 / 11001100 / 00110011, upright for 4 inputs.
    let config = json!({"structure": "stripe_butterfly", "window": 1, "stripes": 2});
    let upright = ["1010", "1010", "0101", "0101", "1010", "1010", "0101", "0101"];
    assert_eq!(rows(&config, 4, 8, None), upright);
    assert_eq!(rows(&config, 8, 4, None), ["11001100", "00110011", "11001100", "00110011"]);
    // Canvas 3 by 5, d = 2 and stride 1: the last window is cut at column 5.
    assert_eq!(rows(&config, 5, 3, None), ["11110", "11111", "00111"]);
    let config = json!({"structure": "stripe_butterfly", "window": 1, "stripes": 2, "global_size": 1});
    assert_eq!(rows(&config, 5, 3, None), ["11111", "11111", "10111"]);
    // One stripe is the diagonal; step 2 doubles the width of a window and not its height.
    let config = json!({"structure": "stripe_butterfly", "window": 1, "stripes": 1, "step": 2});
    assert_eq!(rows(&config, 4, 4, None), ["1000", "1100", "0110", "0011"]);
    let config = json!({"structure": "stripe_butterfly", "window": 1, "stripes": 1, "block": [2, 1]});
    assert_eq!(rows(&config, 4, 4, None), ["1100", "1100", "0011", "0011"]);
    let config = json!({"structure": "stripe_butterfly", "window": 1, "stripes": 1, "block": 2});
    assert_eq!(rows(&config, 5, 3, None), ["11110", "11110", "00001"]);
}

#[test]
fn ninja_turtles_drawn_by_hand() {
    // Canvas 4 by 10, d = 2.5 as it is, stride 2, stripes at 0 and 2.
    let config = json!({"structure": "ninja_turtle", "window": 1, "stripes": 2, "global_size": 0});
    let canvas = ["1100011000", "0011100111", "1100011000", "0011100111"];
    assert_eq!(rows(&config, 10, 4, None), canvas);
    // The third stripe is at 2·3 = 6, outside.
    let config = json!({"structure": "ninja_turtle", "window": 1, "stripes": 3, "global_size": 0});
    assert_eq!(rows(&config, 10, 4, None), canvas);
    // One global row and column by default, drawn before the canvas is turned.
    let config = json!({"structure": "ninja_turtle", "window": 1, "stripes": 2});
    assert_eq!(rows(&config, 10, 4, None), ["1111111111", "1011100111", "1100011000", "1011100111"]);
    let upright = ["1111", "1010", "1101", "1101", "1101", "1010", "1010", "1101", "1101", "1101"];
    assert_eq!(rows(&config, 4, 10, None), upright);
    // Three parts for queries, keys and values.
    let config = json!({"structure": "ninja_turtle", "window": 1, "stripes": 2, "repeat": 3});
    assert_eq!(rows(&config, 4, 30, None), [upright, upright, upright].concat());
    // Step 2 makes a window twice as high too.
    let config = json!({"structure": "ninja_turtle", "window": 1, "stripes": 1, "step": 2, "global_size": 0});
    assert_eq!(rows(&config, 4, 4, None), ["1100", "1110", "0111", "0011"]);
}

#[test]
fn a_ratio_is_rounded_where_a_whole_number_is_nearer_than_a_tenth() {
    // 3.9 lies a bit more than 0.1 below 4 in binary; 2.95 is rounded up, 1.05 down.
    for (min, max, second) in [(10, 39, 3), (20, 59, 3), (20, 21, 1), (4, 7, 1)] {
        let config = json!({"structure": "ninja_turtle", "window": 1, "stripes": 1, "global_size": 0});
        let first = &rows(&config, max, min, None)[1];
        assert_eq!(first.find('1'), Some(second), "{min} by {max}");
    }
    let error = build(&json!({"structure": "ninja_turtle", "repeat": 3}), 4, 8, 0, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`ninja_turtle`: n_out = 8 is not a multiple of 3 (repeat); choose sizes that divide"
    );
}

#[test]
fn filled_blocks_that_divide_the_layer_are_stored_as_blocks() {
    for (config, n_in, n_out, block) in [
        // On the canvas 2 by 3; the first layer is upright.
        (json!({"structure": "stripe_butterfly", "window": 2, "stripes": 2, "block": [2, 3]}), 6, 12, (3, 2)),
        (json!({"structure": "stripe_butterfly", "window": 2, "stripes": 2, "block": [2, 3]}), 12, 6, (2, 3)),
        (json!({"structure": "stripe_butterfly", "window": 2, "block": [2, 3]}), 12, 7, (1, 1)),
        (
            json!({"structure": "ninja_turtle", "window": 4, "block": 4, "global_size": 4, "repeat": 3}),
            8,
            48,
            (4, 4),
        ),
        // One global row is no whole block.
        (json!({"structure": "ninja_turtle", "window": 4, "block": 4}), 8, 16, (1, 1)),
        // The 12 outputs divide, the 6 of a part do not.
        (
            json!({"structure": "ninja_turtle", "window": 4, "block": 4, "global_size": 0, "repeat": 2}),
            8,
            12,
            (1, 1),
        ),
        (json!({"structure": "random_tiles", "window": 2}), 12, 6, (2, 4)),
        (json!({"structure": "random_tiles", "window": 2}), 6, 12, (4, 2)),
        (json!({"structure": "random_tiles", "window": 2}), 6, 13, (1, 1)),
        (json!({"structure": "top_k_tiles", "window": 3}), 6, 18, (9, 3)),
        (json!({"structure": "top_k_tiles", "window": 4}), 6, 18, (1, 1)),
    ] {
        let built = build(&config, n_in, n_out, 0, None).unwrap();
        let pattern = pattern(&*built);
        assert_eq!(pattern.block, block, "{config} {n_in} {n_out}");
        let kind = if block == (1, 1) { PatternKind::Unstructured } else { PatternKind::Block };
        assert_eq!(pattern.kind, kind);
        assert_eq!(built.params()[0].shape.len(), if block == (1, 1) { 1 } else { 3 });
    }
}

#[test]
fn top_tiles_are_those_of_greatest_mean_magnitude() {
    // 2 by 5, d = 3: tiles of 1 by 3 and, cut, 1 by 2, with means 1, 2 / 2, 0.5.
    let dense = [1., -1., 1., 2., -2., 3., 3., 0., 0.5, 0.5];
    let config = |density: f64| json!({"structure": "top_k_tiles", "window": 1, "density": density});
    assert_eq!(rows(&config(0.25), 5, 2, Some(&dense)), ["00000", "11100"]);
    // The sum of the cut tile is less than that of its neighbour, 4 against 6, its mean the same.
    assert_eq!(rows(&config(0.5), 5, 2, Some(&dense)), ["00011", "11100"]);
    assert_eq!(rows(&config(0.6), 5, 2, Some(&dense)), ["11111", "11100"]);
    // The transposed weight has the transposed mask; here the first of the equals is pruned in the order of W.
    let turned: Vec<f32> = (0..10).map(|at| dense[at % 2 * 5 + at / 2]).collect();
    assert_eq!(rows(&config(0.5), 2, 5, Some(&turned)), ["01", "01", "01", "10", "10"]);
    assert_eq!(rows(&config(0.25), 2, 5, Some(&turned)), ["00", "00", "00", "10", "10"]);
    let equal = [1.0; 16];
    assert_eq!(rows(&config(0.25), 4, 4, Some(&equal)), ["0000", "0000", "0000", "1111"]);
}

#[test]
fn random_tiles_are_whole_and_as_many_as_asked_for() {
    for (n_in, n_out, window, density, kept) in [
        (12, 6, 2, 0.4, 4),   // 9 tiles, 3.6
        (5, 11, 2, 0.3, 2),   // 3 by 2, 1.8
        (30, 30, 3, 0.07, 7), // 100 tiles; 0.07 · 100 is a little more than 7 in binary
        (7, 7, 1, 1.0, 49),
        (1, 1, 6, 0.01, 1),
    ] {
        let config = json!({"structure": "random_tiles", "window": window, "density": density});
        let built = build(&config, n_in, n_out, 5, None).unwrap();
        let mask = pattern(&*built).mask();
        let d = n_in.max(n_out).div_ceil(n_in.min(n_out));
        let (rows, cols) = if n_in <= n_out { (window * d, window) } else { (window, window * d) };
        let (mut full, mut empty) = (0, 0);
        for top in (0..n_out).step_by(rows) {
            for left in (0..n_in).step_by(cols) {
                let tile = (top..(top + rows).min(n_out))
                    .flat_map(|row| (left..(left + cols).min(n_in)).map(move |col| row * n_in + col));
                let (ones, zeros): (Vec<usize>, Vec<usize>) = tile.partition(|&at| mask[at]);
                assert!(ones.is_empty() || zeros.is_empty(), "{config}: a tile in part");
                full += usize::from(zeros.is_empty());
                empty += usize::from(ones.is_empty());
            }
        }
        assert_eq!(full, kept, "{config}");
        assert!(empty > 0 || density == 1.0 || n_in == 1);
    }
    let config = json!({"structure": "random_tiles", "window": 1, "density": 0.1});
    let buffers = |seed| build(&config, 20, 20, seed, None).unwrap().buffers();
    assert_eq!(buffers(1), buffers(1));
    assert_ne!(buffers(1), buffers(2));
    let error = build(&json!({"structure": "random_tiles", "density": 0}), 12, 12, 0, None).unwrap_err();
    assert_eq!(error, StructureError::EmptyPattern { structure: "random_tiles", places: 4, density: 0.0 });
}

/// The buffers of these places, `[n_out, n_in]`.
fn saved(mask: &[bool], n_in: usize) -> Vec<IndexBuffer> {
    let (mut cols, mut starts) = (Vec::new(), vec![0]);
    for row in mask.chunks(n_in) {
        cols.extend((0..n_in as u32).filter(|&col| row[col as usize]));
        starts.push(cols.len() as u32);
    }
    let buffer =
        |name: &str, data: Vec<u32>| IndexBuffer { name: name.into(), shape: vec![data.len()], data };
    vec![buffer("cols", cols), buffer("row_starts", starts)]
}

#[test]
fn a_saved_mask_must_be_one_that_the_config_defines() {
    for config in [
        json!({"structure": "stripe_butterfly", "window": 2, "stripes": 2}),
        json!({"structure": "ninja_turtle", "window": 2, "stripes": 2}),
        json!({"structure": "random_tiles", "window": 2, "density": 0.5}),
        json!({"structure": "top_k_tiles", "window": 2, "density": 0.5}),
    ] {
        let (n_in, n_out) = (11, 7);
        let built = build(&config, n_in, n_out, 0, None).unwrap();
        let mask = pattern(&*built).mask();
        let config = built.config();
        assert_eq!(restore(&config, n_in, n_out, &saved(&mask, n_in)).unwrap().buffers(), built.buffers());
        // Every mask that differs in one weight.
        for at in 0..mask.len() {
            let mut mask = mask.clone();
            mask[at] = !mask[at];
            let error = restore(&config, n_in, n_out, &saved(&mask, n_in)).unwrap_err();
            assert!(matches!(error, StructureError::PatternDiffers { .. }), "{config} {at}: {error}");
        }
    }
    // Whole tiles, but too few or too many: of 4 by 4 stored as blocks, and of 4 by 3 stored weight by weight.
    for (kind, n_in, n_out, count) in [("random_tiles", 16, 8, 16.0), ("top_k_tiles", 15, 7, 12.0)] {
        let built = |density: f64| {
            build(&json!({"structure": kind, "window": 2, "density": density}), n_in, n_out, 0, None).unwrap()
        };
        let config = built(0.5).config();
        let n_tiles = |density: f64| (density * count).ceil() as usize;
        for density in [0.4, 0.6] {
            let error = restore(&config, n_in, n_out, &built(density).buffers()).unwrap_err();
            let (expected, got) = (n_tiles(0.5), n_tiles(density));
            let what = "the number of saved tiles";
            assert_eq!(error, StructureError::FactorShape { structure: kind, what, expected, got });
        }
    }
}

#[test]
fn weights_start_as_a_dense_draw_over_the_root_of_the_density() {
    for config in [
        json!({"structure": "stripe_butterfly"}),
        json!({"structure": "ninja_turtle", "block": 8, "global_size": 8}),
        json!("random_tiles"),
        json!({"structure": "top_k_tiles", "window": 4}),
    ] {
        let (n_in, n_out) = (64, 128);
        let built = build(&config, n_in, n_out, 0, None).unwrap();
        let density = built.density();
        for (init, bound) in
            [(Init::Default, 1.0 / 8.0), (Init::XavierUniform, (6.0 / (n_in + n_out) as f64).sqrt())]
        {
            let values = &built.init(init, &mut Rng::new(1))[0];
            let most = values.iter().fold(0f64, |most, v| most.max(f64::from(v.abs())));
            let bound = bound / density.sqrt();
            assert!(
                most <= bound * (1.0 + f64::from(f32::EPSILON)) && most > 0.98 * bound,
                "{most} of {bound}"
            );
        }
        assert_eq!(built.bias_bound(), 1.0 / 8.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn stripes_are_those_drawn_one_by_one(
        ninja: bool, window in 1usize..5, stripes in 1usize..5, step in 1usize..4, n_global in 0usize..4,
        block in (1usize..5, 1usize..5), repeat in 1usize..4, n_in in 1usize..24, part in 1usize..24,
    ) {
        let n_global = n_global.min(n_in).min(part);
        let repeat = if ninja { repeat } else { 1 };
        let drawing = Drawing { ninja, window, stripes, step, n_global, block, repeat };
        let n_out = part * repeat;
        let built = build(&drawing.config(), n_in, n_out, 0, None).unwrap();
        let pattern = pattern(&*built);
        prop_assert_eq!(strings(&pattern.mask(), n_in), strings(&drawing.mask(n_in, n_out), n_in));
        prop_assert!(pattern.positions.windows(2).all(|pair| pair[0] < pair[1]));
        let again = restore(&built.config(), n_in, n_out, &built.buffers()).unwrap();
        prop_assert_eq!(again.buffers(), built.buffers());
    }

    #[test]
    fn top_tiles_have_no_less_than_those_left_out(
        window in 1usize..5, density in 0.01..=1.0f64, n_in in 1usize..24, n_out in 1usize..24, seed: u64,
    ) {
        let dense = uniform(seed, n_in * n_out);
        let config = json!({"structure": "top_k_tiles", "window": window, "density": density});
        let built = build(&config, n_in, n_out, 0, Some(&dense)).unwrap();
        let mask = pattern(&*built).mask();
        let d = n_in.max(n_out).div_ceil(n_in.min(n_out));
        let (rows, cols) = if n_in <= n_out { (window * d, window) } else { (window, window * d) };
        let (mut least, mut most, mut count, mut kept) = (f64::INFINITY, 0f64, 0, 0);
        for top in (0..n_out).step_by(rows) {
            for left in (0..n_in).step_by(cols) {
                let tile: Vec<usize> = (top..(top + rows).min(n_out))
                    .flat_map(|row| (left..(left + cols).min(n_in)).map(move |col| row * n_in + col)).collect();
                let mean = tile.iter().map(|&at| f64::from(dense[at].abs())).sum::<f64>() / tile.len() as f64;
                prop_assert!(tile.iter().all(|&at| mask[at] == mask[tile[0]]));
                count += 1;
                kept += usize::from(mask[tile[0]]);
                if mask[tile[0]] { least = least.min(mean) } else { most = most.max(mean) }
            }
        }
        prop_assert!(least >= most, "{} kept, {} left out", least, most);
        prop_assert_eq!(kept, ((density * f64::from(count)).ceil() as usize).max(1));
    }
}
