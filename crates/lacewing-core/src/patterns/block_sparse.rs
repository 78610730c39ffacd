//! Block-sparse: equal blocks of W on a grid, chosen at random, by norm, along the diagonal or by the user.
//!
//! Cost of a row: nnz · rows · cols multiply-adds; a column index a block and a start a block row are stored.

use std::ops::Range;

use serde_json::json;

use crate::config::{Key, Options, PAD};
use crate::mask::{Mask, choices, keep_largest, places_kept, weight_to_rank};
use crate::masked::{FanIn, Masked};
use crate::pattern::merged;
use crate::registry::{MAX_SIZE, first_within};
use crate::{Built, Pattern, PatternKind, Problem, Rng, Structure, StructureError, StructureKind};

const NAME: &str = "block_sparse";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "equal blocks of weights on a grid",
    keys: &[
        Key::new("block", "size of a block: one number, or [rows, cols]", "32"),
        Key::new("density", "share of blocks kept, above 0 to 1", "0.25"),
        Key::new("blocks", "number of blocks kept, instead of density", ""),
        Key::new("mask", "random | magnitude | diagonal | list of [block row, block col]", "\"random\""),
        Key::new(
            "parts",
            "of a diagonal mask: parts of outputs and inputs that are connected one to one",
            "4",
        ),
        Key::new("global_size", "first outputs and inputs whose blocks are kept beside the others", "0"),
        PAD,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let block = [16, 8, 4].into_iter().find(|b| n_in % b == 0 && n_out % b == 0)?;
        let config =
            json!({"structure": NAME, "block": block, "density": density.min(1.0), "mask": "magnitude"});
        let steps = [1.0, 0.99, 0.95, 0.9].map(|share| {
            let mut config = config.clone();
            config["density"] = json!(density.min(1.0) * share);
            config
        });
        first_within((n_in, n_out), density, steps)
    },
};

/// How many blocks are kept, as the config says it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Share {
    Density(f64),
    Blocks(usize),
    Listed,
    /// Those that a weight of a block-diagonal matrix of so many parts lies in.
    Parts(usize),
}

/// `y = W x` with W stored in blocks; parameter `weight [nnz, rows, cols]`, blocks in row-major order of the grid.
fn build(options: &Options, problem: &Problem<'_>) -> Built {
    let value = options.required("block")?;
    let block = match value.as_array().map(Vec::as_slice) {
        Some([rows, cols]) => {
            (options.size_of("block", rows, 1, MAX_SIZE)?, options.size_of("block", cols, 1, MAX_SIZE)?)
        }
        Some(_) => return Err(options.wrong("block", "a whole number or [rows, cols]", &value)),
        None => {
            let size = options.size("block", 1, MAX_SIZE)?;
            (size, size)
        }
    };
    let (n_out, n_in) = problem.shape();
    let (n_out_ext, n_in_ext) = options.padded((n_out, n_in), block, "the block")?;
    let (positions, kind) = (Vec::new(), PatternKind::Block);
    let mut pattern = Pattern { n_out, n_in, n_out_ext, n_in_ext, block, positions, kind };
    let global_size = options.size("global_size", 0, n_in.min(n_out))?;
    let pad = options.flag("pad")?;
    let (mask, share) = if options.required("mask")? == json!("diagonal") {
        let share = Share::parts(options, problem)?;
        let row = |row| diagonal_row(row, share, global_size, &pattern);
        pattern.positions = Pattern::of_rows(NAME, problem, (n_out_ext, n_in_ext), block, row)?.positions;
        ("diagonal", share)
    } else {
        let (n_rows, n_cols) = pattern.grid();
        let mask = Mask::read(options, problem, (n_rows, n_cols)).map_err(|error| match error {
            StructureError::WrongType { structure, key, got, .. } => {
                let expected = "`random`, `magnitude`, `diagonal` or a list of [row, col]";
                StructureError::WrongType { structure, key, expected, got }
            }
            error => error,
        })?;
        let share = Share::read(options, &mask, n_rows * n_cols)?;
        if matches!(share, Share::Blocks(_)) && global_size > 0 {
            // A number of blocks says how many there are in all.
            return Err(StructureError::Conflict { structure: NAME, key: "blocks", other: "global_size" });
        }
        let name = mask.name();
        pattern.positions = places(mask, share, global_size, problem, &pattern)?;
        (name, share)
    };
    let mut config = json!({"structure": NAME, "block": [block.0, block.1]});
    match share {
        Share::Density(density) => config["density"] = json!(density),
        Share::Blocks(blocks) => config["blocks"] = json!(blocks),
        Share::Parts(parts) => config["parts"] = json!(parts),
        Share::Listed => {}
    }
    config["mask"] = json!(mask);
    config["global_size"] = json!(global_size);
    config["pad"] = json!(pad);
    Ok(Box::new(Masked { name: NAME, pattern, fan_in: FanIn::Row, free: true, config }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let user = json!({"structure": NAME, "block": 2, "mask": [[1, 2], [0, 1], [1, 0]]});
    let random = json!({"structure": NAME, "block": [2, 3], "density": 0.5});
    let padded = json!({"structure": NAME, "block": [4, 2], "density": 0.4, "pad": true});
    let few = json!({"structure": NAME, "block": 2, "density": 0.2, "mask": "magnitude"});
    let diagonal = json!({
        "structure": NAME, "block": [2, 3], "mask": "diagonal", "parts": 3, "global_size": 1, "pad": true,
    });
    let counted = json!({"structure": NAME, "block": [1, 3], "blocks": 4});
    [(&user, 6, 4), (&random, 9, 8), (&padded, 7, 5), (&few, 4, 6), (&counted, 9, 5), (&diagonal, 12, 15)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 3, None).expect("valid sample"))
        .into()
}

/// `count` blocks of a grid such that block rows, and block columns, hold the same number up to one.
///
/// So no output and no input is without weights when there are blocks enough. Which rows get one more, and which
/// columns of those used least a row takes, is random. Sorted row-major.
///
/// # Panics
///
/// When `count` exceeds the grid.
pub fn balanced_blocks(n_rows: usize, n_cols: usize, count: usize, rng: &mut Rng) -> Vec<(u32, u32)> {
    assert!(count <= n_rows * n_cols, "{count} blocks in a {n_rows} by {n_cols} grid");
    let mut uses = vec![0u32; n_cols];
    let mut blocks = Vec::with_capacity(count);
    for (at, row) in rng.permutation(n_rows).into_iter().enumerate() {
        let share = count / n_rows + usize::from(at < count % n_rows);
        let mut cols = rng.permutation(n_cols);
        cols.sort_by_key(|&col| uses[col]);
        for &col in &cols[..share] {
            uses[col] += 1;
            blocks.push((row as u32, col as u32));
        }
    }
    blocks.sort_unstable();
    blocks
}

/// The saved blocks, of which there must be as many as `share` and `global_size` say, or else those chosen.
fn places(
    mask: Mask,
    share: Share,
    global_size: usize,
    problem: &Problem<'_>,
    pattern: &Pattern,
) -> Result<Vec<(u32, u32)>, StructureError> {
    let ((n_rows, n_cols), (rows, cols)) = (pattern.grid(), pattern.block);
    let (global_rows, global_cols) = (global_size.div_ceil(rows), global_size.div_ceil(cols));
    let is_global = |&(row, col): &(u32, u32)| (row as usize) < global_rows || (col as usize) < global_cols;
    let Some(saved) = Pattern::saved_positions(NAME, problem, (n_rows, n_cols))? else {
        let mut places = choose(mask, share, problem, pattern)?;
        if global_size > 0 {
            places.retain(|place| !is_global(place));
            let all = (0..n_rows as u32).flat_map(|row| (0..n_cols as u32).map(move |col| (row, col)));
            places.extend(all.filter(is_global));
            places.sort_unstable();
        }
        return Ok(places);
    };
    let n_global = global_rows * n_cols + global_cols * (n_rows - global_rows);
    let got = saved.iter().filter(|place| is_global(place)).count();
    for (what, expected, got) in [
        ("the number of saved blocks", share.exact().unwrap_or(saved.len()), saved.len()),
        ("the number of saved blocks in global_size", n_global, if global_size > 0 { got } else { 0 }),
    ] {
        if expected != got {
            return Err(StructureError::FactorShape { structure: NAME, what, expected, got });
        }
    }
    Ok(saved)
}

/// Columns of the blocks kept in the row of blocks that starts at `row`.
fn diagonal_row(row: usize, share: Share, global_size: usize, pattern: &Pattern) -> Vec<Range<usize>> {
    let Share::Parts(parts) = share else { unreachable!("a diagonal is made of parts") };
    if row < global_size {
        return std::iter::once(0..pattern.n_in_ext).collect();
    }
    let (rows, cols) = pattern.block;
    let (height, width) = (pattern.n_out / parts, pattern.n_in / parts);
    let last = (row + rows).min(pattern.n_out) - 1;
    let kept = [0..global_size, row / height * width..(last / height + 1) * width];
    merged(kept.map(|kept| kept.start / cols * cols..kept.end.next_multiple_of(cols)).into())
}

impl Share {
    /// Parts of a diagonal, which must divide both sizes of the layer.
    fn parts(options: &Options, problem: &Problem<'_>) -> Result<Self, StructureError> {
        for key in ["density", "blocks"] {
            if options.given(key) {
                return Err(StructureError::Conflict { structure: NAME, key, other: "mask" });
            }
        }
        let (n_out, n_in) = problem.shape();
        let parts = options.size("parts", 1, n_in.min(n_out))?;
        for (size_name, size) in [("n_out", n_out), ("n_in", n_in)] {
            if !size.is_multiple_of(parts) {
                let (structure, divisor_name, divisor, padded) = (NAME, "parts", parts, size);
                return Err(StructureError::Indivisible {
                    structure,
                    size_name,
                    size,
                    divisor_name,
                    divisor,
                    padded,
                });
            }
        }
        Ok(Share::Parts(parts))
    }

    /// How many blocks there must be, where the config says a number.
    fn exact(self) -> Option<usize> {
        if let Share::Blocks(blocks) = self { Some(blocks) } else { None }
    }

    fn read(options: &Options, mask: &Mask, places: usize) -> Result<Self, StructureError> {
        let listed = matches!(mask, Mask::User(_));
        if options.given("parts") {
            return Err(StructureError::Conflict { structure: NAME, key: "parts", other: "mask" });
        }
        for (key, other, excluded) in [
            ("density", "mask", listed),
            ("blocks", "mask", listed),
            ("blocks", "density", options.given("density")),
        ] {
            if options.given(key) && excluded {
                return Err(StructureError::Conflict { structure: NAME, key, other });
            }
        }
        if listed {
            return Ok(Share::Listed);
        }
        if options.given("blocks") {
            return Ok(Share::Blocks(options.size("blocks", 1, places)?));
        }
        Ok(Share::Density(options.number("density", 0.0, 1.0)?))
    }

    fn kept(self, places: usize) -> Result<usize, StructureError> {
        match self {
            Share::Density(density) => places_kept(NAME, density, places),
            Share::Blocks(blocks) => Ok(blocks),
            Share::Listed | Share::Parts(_) => unreachable!("a list is not drawn"),
        }
    }
}

fn choose(
    mask: Mask,
    share: Share,
    problem: &Problem<'_>,
    pattern: &Pattern,
) -> Result<Vec<(u32, u32)>, StructureError> {
    let (n_rows, n_cols) = pattern.grid();
    let mut rng = choices(problem);
    Ok(match mask {
        Mask::User(places) => places,
        Mask::Random => {
            let kept = share.kept(n_rows * n_cols)?;
            balanced_blocks(n_rows, n_cols, kept, &mut rng)
        }
        Mask::Magnitude => {
            let kept = share.kept(n_rows * n_cols)?;
            let weight = weight_to_rank(problem, &mut rng);
            let mut squares = vec![0.0; n_rows * n_cols];
            for (at, &w) in weight.iter().enumerate() {
                let (row, col) = (at / problem.n_in / pattern.block.0, at % problem.n_in / pattern.block.1);
                squares[row * n_cols + col] += f64::from(w) * f64::from(w);
            }
            let at = |flat: usize| ((flat / n_cols) as u32, (flat % n_cols) as u32);
            keep_largest(&squares, kept).into_iter().map(at).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::{Form, Init};

    fn pattern_of(built: &dyn Structure) -> &Pattern {
        let Form::Pattern(pattern) = built.form() else { panic!("not a pattern") };
        pattern
    }

    #[test]
    fn blocks_are_indexed_row_major_and_by_column() {
        let config = json!({"structure": NAME, "mask": [[0, 0], [1, 0], [2, 0], [0, 1]]});
        let built = crate::build(&config, 64, 128, 0, None).unwrap();
        let pattern = pattern_of(&*built);
        assert_eq!(pattern.positions, [(0, 0), (0, 1), (1, 0), (2, 0)]);
        assert_eq!(pattern.cols(), [0, 1, 0, 0]);
        assert_eq!(pattern.row_starts(), [0, 2, 3, 4, 4]);
        let by_column = pattern.by_column();
        assert_eq!(by_column.starts, [0, 3, 4]);
        assert_eq!(by_column.rows, [0, 1, 2, 0]);
        assert_eq!(by_column.slots, [0, 2, 3, 1]);
    }

    #[test]
    fn a_block_is_stored_as_it_stands_in_the_matrix() {
        let dense: Vec<f32> = (0..32u8).map(f32::from).collect();
        let config = json!({"structure": NAME, "block": [2, 4], "mask": [[0, 1], [1, 0]]});
        let built = crate::build(&config, 8, 4, 0, None).unwrap();
        let pattern = pattern_of(&*built);
        let values = pattern.gather(&dense);
        assert_eq!(values, [4., 5., 6., 7., 12., 13., 14., 15., 16., 17., 18., 19., 24., 25., 26., 27.]);
        let rows = pattern.scatter(&values);
        assert_eq!(rows[..8], [0., 0., 0., 0., 4., 5., 6., 7.]);
        assert_eq!(rows[16..24], [16., 17., 18., 19., 0., 0., 0., 0.]);
    }

    #[test]
    fn product_matches_the_reference() {
        let config = json!({"structure": NAME, "block": 2, "mask": [[0, 1], [1, 0], [1, 2]]});
        let built = crate::build(&config, 6, 4, 0, None).unwrap();
        let weight = [1., 2., 3., 4., -1., 0., 2., 1., 0.5, 0., 0., -2.];
        for (x, y) in [
            ([1., 2., 3., 4., 5., 6.], [11.1, 25.2, 1.8, -7.6]),
            ([0., 1., 0., -1., 2., 1.], [-1.9, -3.8, 1.3, -0.6]),
        ] {
            let bias = [0.1, 0.2, 0.3, 0.4];
            let got = built.apply(&[&weight], &x);
            let got: Vec<f64> = got.iter().zip(bias).map(|(y, b)| y + b).collect();
            let (y, bound) = (y.to_vec(), y.map(|y: f64| 4.0 * f64::EPSILON * y.abs()));
            lacewing_testkit::assert_near(&got, &y, &bound, "y");
        }
    }

    #[test]
    fn random_blocks_leave_no_row_or_column_without_one() {
        let mut rng = Rng::new(4);
        for (n_rows, n_cols, count) in [(24, 96, 96), (5, 3, 7), (3, 5, 7), (4, 4, 3), (1, 9, 4)] {
            let blocks = balanced_blocks(n_rows, n_cols, count, &mut rng);
            assert_eq!(blocks.len(), count);
            for (n, ids) in [
                (n_rows, blocks.iter().map(|b| b.0).collect::<Vec<_>>()),
                (n_cols, blocks.iter().map(|b| b.1).collect()),
            ] {
                let uses = |id| ids.iter().filter(|&&other| other == id).count();
                let counts: Vec<usize> = (0..n as u32).map(uses).collect();
                let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
                assert!(most - least <= 1, "{n_rows}x{n_cols}, {count}: {counts:?}");
            }
        }
    }

    #[test]
    fn magnitude_keeps_the_blocks_of_greatest_norm() {
        let dense = [1., 1., 0., 3., 1., 1., 0., 0., 2., 2., 0., 0., 2., 2., 0., 0.];
        let config = json!({"structure": NAME, "block": 2, "density": 0.5, "mask": "magnitude"});
        let built = crate::build(&config, 4, 4, 0, Some(&dense)).unwrap();
        assert_eq!(pattern_of(&*built).positions, [(0, 1), (1, 0)]);
    }

    #[test]
    fn values_start_within_one_over_root_of_their_inputs_and_empty_rows_do_no_harm() {
        let config = json!({"structure": NAME, "block": 4, "mask": [[0, 0], [2, 0], [2, 1], [2, 3]]});
        let built = crate::build(&config, 16, 12, 0, None).unwrap();
        let values = &built.init(Init::Default, &mut Rng::new(1))[0];
        for (values, n_inputs) in [(&values[..16], 4.0f64), (&values[16..], 12.0)] {
            let most = values.iter().fold(0f64, |most, v| most.max(f64::from(v.abs())));
            let bound = 1.0 / n_inputs.sqrt();
            assert!(most <= bound && most > 0.5 * bound, "{most} of {bound}");
        }
    }

    #[test]
    fn blocks_of_any_shape_rank_by_frobenius_norm_and_the_lowest_of_equals_goes_first() {
        // Three by two blocks of 1 by 3. Squared norms: 3 3 / 1 9 / 3 3.
        let dense = [1., 1., 1., 1., -1., 1., 0., 1., 0., 0., 0., -3., -1., 1., 1., 1., 1., 1.];
        let kept = |count: Value| {
            let mut config = json!({"structure": NAME, "block": [1, 3], "mask": "magnitude"});
            config["blocks"] = count;
            let built = crate::build(&config, 6, 3, 0, Some(&dense)).unwrap();
            config["pad"] = json!(false);
            config["global_size"] = json!(0);
            assert_eq!(built.config(), config);
            pattern_of(&*built).positions.clone()
        };
        assert_eq!(kept(json!(1)), [(1, 1)]);
        assert_eq!(kept(json!(2)), [(1, 1), (2, 1)]);
        assert_eq!(kept(json!(3)), [(1, 1), (2, 0), (2, 1)]);
        assert_eq!(kept(json!(5)), [(0, 0), (0, 1), (1, 1), (2, 0), (2, 1)]);
    }

    #[test]
    fn a_clipped_block_ranks_by_what_it_has() {
        let config =
            json!({"structure": NAME, "block": [2, 2], "blocks": 1, "mask": "magnitude", "pad": true});
        let built = crate::build(&config, 3, 3, 0, Some(&[1., 1., 0., 1., 1., 0., 0., 0., -3.])).unwrap();
        assert_eq!(pattern_of(&*built).positions, [(1, 1)]);
    }

    #[test]
    fn a_count_excludes_a_density_and_a_list_and_must_fit_the_grid() {
        for (config, key) in [
            (json!({"structure": NAME, "block": 2, "blocks": 2, "density": 0.5}), "blocks"),
            (json!({"structure": NAME, "block": 2, "blocks": 1, "mask": [[0, 0]]}), "blocks"),
            (json!({"structure": NAME, "block": 2, "density": 0.5, "mask": [[0, 0]]}), "density"),
        ] {
            let error = crate::build(&config, 4, 4, 0, None).unwrap_err();
            assert!(matches!(error, StructureError::Conflict { key: got, .. } if got == key), "{error}");
        }
        for blocks in [0, 5] {
            let config = json!({"structure": NAME, "block": 2, "blocks": blocks});
            let error = crate::build(&config, 4, 4, 0, None).unwrap_err().to_string();
            assert_eq!(error, format!("`block_sparse.blocks` must be between 1 and 4, got {blocks}"));
        }
        let built =
            crate::build(&json!({"structure": NAME, "block": 2, "blocks": 2}), 4, 4, 0, None).unwrap();
        assert_eq!(pattern_of(&*built).nnz(), 2);
        let mut config = built.config();
        config["blocks"] = json!(3);
        let error = crate::restore(&config, 4, 4, &built.buffers()).unwrap_err();
        assert!(matches!(error, StructureError::FactorShape { expected: 3, got: 2, .. }), "{error}");
    }

    fn grid_rows(config: &Value, n_in: usize, n_out: usize) -> Vec<String> {
        let built = crate::build(config, n_in, n_out, 0, None).unwrap();
        let pattern = pattern_of(&*built);
        let (n_rows, n_cols) = pattern.grid();
        let mut rows = vec![vec![b'0'; n_cols]; n_rows];
        pattern.positions.iter().for_each(|&(row, col)| rows[row as usize][col as usize] = b'1');
        rows.into_iter().map(|row| String::from_utf8(row).unwrap()).collect()
    }

    #[test]
    fn a_diagonal_mask_keeps_every_block_that_a_part_touches() {
        let config = |block: Value, parts: usize, global_size: usize| {
            json!({
                "structure": NAME, "block": block, "mask": "diagonal", "parts": parts, "global_size": global_size,
                "pad": true,
            })
        };
        // Parts of 2 by 4 in blocks of 2: whole ones. With one global row and column, the first of blocks too.
        assert_eq!(grid_rows(&config(json!(2), 3, 0), 12, 6), ["110000", "001100", "000011"]);
        assert_eq!(grid_rows(&config(json!(2), 3, 1), 12, 6), ["111111", "101100", "100011"]);
        // Parts of 3 by 3 in blocks of 2: the block row in the middle meets both parts.
        assert_eq!(grid_rows(&config(json!(2), 2, 0), 6, 6), ["110", "111", "011"]);
        assert_eq!(grid_rows(&config(json!([2, 5]), 3, 0), 9, 6), ["10", "11", "01"]);
        assert_eq!(grid_rows(&config(json!([1, 4]), 3, 2), 12, 3), ["111", "111", "101"]);
        let error = crate::build(&config(json!(2), 4, 0), 12, 6, 0, None).unwrap_err().to_string();
        assert_eq!(
            error,
            "`block_sparse`: n_out = 6 is not a multiple of 4 (parts); choose sizes that divide"
        );
        let mut saved = crate::build(&config(json!(2), 3, 0), 12, 6, 0, None).unwrap().buffers();
        saved[0].data[1] += 1;
        let error = crate::restore(&config(json!(2), 3, 0), 12, 6, &saved).unwrap_err();
        assert!(matches!(error, StructureError::PatternDiffers { at: 1, .. }), "{error}");
    }

    #[test]
    fn global_blocks_are_kept_beside_the_others() {
        let config =
            json!({"structure": NAME, "block": [2, 3], "mask": [[1, 1], [2, 2], [0, 0]], "global_size": 3});
        // Three rows lie in two rows of blocks, three columns in one.
        assert_eq!(grid_rows(&config, 9, 8), ["111", "111", "101", "100"]);
        let built = crate::build(&config, 9, 8, 0, None).unwrap();
        crate::restore(&built.config(), 9, 8, &built.buffers()).unwrap();
        // The last block, at (3, 0), moves away from the global column.
        let mut saved = built.buffers();
        saved[0].data[8] += 1;
        let error = crate::restore(&built.config(), 9, 8, &saved).unwrap_err();
        assert!(matches!(error, StructureError::FactorShape { expected: 8, got: 7, .. }), "{error}");
        let error = crate::build(
            &json!({"structure": NAME, "block": 2, "blocks": 2, "global_size": 1}),
            8,
            8,
            0,
            None,
        );
        assert!(matches!(error, Err(StructureError::Conflict { key: "blocks", other: "global_size", .. })));
    }
}
