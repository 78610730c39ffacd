//! Block-sparse: equal blocks of W on a grid, chosen at random, by norm or by the user.
//!
//! Cost of a row: nnz · rows · cols multiply-adds; a column index a block and a start a block row are stored.

use serde_json::{Value, json};

use crate::config::{Key, Options, PAD};
use crate::mask::{Mask, choices, keep_largest, places_kept, weight_to_rank};
use crate::registry::MAX_SIZE;
use crate::structure::check_params;
use crate::{
    Built, Counts, Form, IndexBuffer, Init, ParamSpec, Pattern, PatternKind, Problem, Rng, Structure,
    StructureError, StructureKind,
};

const NAME: &str = "block_sparse";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "equal blocks of weights on a grid",
    keys: &[
        Key::new("block", "size of a block: one number, or [rows, cols]", "32"),
        Key::new("density", "share of blocks kept, above 0 to 1", "0.25"),
        Key::new("mask", "random | magnitude | list of [block row, block col]", "\"random\""),
        PAD,
    ],
    build,
    samples,
};

/// `y = W x` with W stored in blocks; parameter `weight [nnz, rows, cols]`, blocks in row-major order of the grid.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockSparse {
    pattern: Pattern,
    mask: &'static str,
    density: Option<f64>,
    pad: bool,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    Ok(Box::new(BlockSparse::read(options, problem)?))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let user = json!({"structure": NAME, "block": 2, "mask": [[1, 2], [0, 1], [1, 0]]});
    let random = json!({"structure": NAME, "block": [2, 3], "density": 0.5});
    let padded = json!({"structure": NAME, "block": [4, 2], "density": 0.4, "pad": true});
    let few = json!({"structure": NAME, "block": 2, "density": 0.2, "mask": "magnitude"});
    [(&user, 6, 4), (&random, 9, 8), (&padded, 7, 5), (&few, 4, 6)]
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

impl BlockSparse {
    fn read(options: &Options, problem: &Problem<'_>) -> Result<Self, StructureError> {
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
        let mut pattern = Pattern {
            n_out,
            n_in,
            n_out_ext,
            n_in_ext,
            block,
            positions: Vec::new(),
            kind: PatternKind::Block,
        };
        let mask = Mask::read(options, problem, pattern.grid())?;
        let listed = matches!(mask, Mask::User(_));
        if listed && options.given("density") {
            return Err(StructureError::Conflict { structure: NAME, key: "density", other: "mask" });
        }
        let density = options.number("density", 0.0, 1.0)?;
        let name = mask.name();
        pattern.positions = match Pattern::saved_positions(NAME, problem, pattern.grid())? {
            Some(positions) => positions,
            None => choose(mask, density, problem, &pattern)?,
        };
        let density = (!listed).then_some(density);
        Ok(Self { pattern, mask: name, density, pad: options.flag("pad")? })
    }

    /// Where the blocks sit.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

fn choose(
    mask: Mask,
    density: f64,
    problem: &Problem<'_>,
    pattern: &Pattern,
) -> Result<Vec<(u32, u32)>, StructureError> {
    let (n_rows, n_cols) = pattern.grid();
    let mut rng = choices(problem);
    Ok(match mask {
        Mask::User(places) => places,
        Mask::Random => {
            let kept = places_kept(NAME, density, n_rows * n_cols)?;
            balanced_blocks(n_rows, n_cols, kept, &mut rng)
        }
        Mask::Magnitude => {
            let kept = places_kept(NAME, density, n_rows * n_cols)?;
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

/// `W` of blocks: the definition that block patterns share.
pub(super) fn blocks_to_dense(pattern: &Pattern, values: &[f64]) -> Vec<f64> {
    let (rows, cols) = pattern.block;
    let mut dense = vec![0.0; pattern.n_out * pattern.n_in];
    for (t, &(block_row, block_col)) in pattern.positions.iter().enumerate() {
        for i in 0..rows {
            for j in 0..cols {
                let (row, col) = (block_row as usize * rows + i, block_col as usize * cols + j);
                if row < pattern.n_out && col < pattern.n_in {
                    dense[row * pattern.n_in + col] = values[t * rows * cols + i * cols + j];
                }
            }
        }
    }
    dense
}

/// Counts that block patterns share: values, one column a block, one start a block row.
pub(super) fn block_counts(pattern: &Pattern) -> Counts {
    let parameters = pattern.values_len();
    Counts { parameters, bytes: 4 * (parameters + pattern.nnz() + pattern.grid().0 + 1), macs: parameters }
}

impl Structure for BlockSparse {
    fn name(&self) -> &'static str {
        NAME
    }

    fn n_in(&self) -> usize {
        self.pattern.n_in
    }

    fn n_out(&self) -> usize {
        self.pattern.n_out
    }

    fn params(&self) -> Vec<ParamSpec> {
        let (rows, cols) = self.pattern.block;
        vec![ParamSpec::new("weight", &[self.pattern.nnz(), rows, cols])]
    }

    fn form(&self) -> Form<'_> {
        Form::Pattern(&self.pattern)
    }

    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        vec![self.pattern.init(init, rng)]
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.pattern.n_in_ext as f64).sqrt()
    }

    /// `W[r_t · rows + i, c_t · cols + j] = weight[t, i, j]`, 0 elsewhere.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        Some(blocks_to_dense(&self.pattern, params[0]))
    }

    fn counts(&self) -> Counts {
        block_counts(&self.pattern)
    }

    fn config(&self) -> Value {
        let (rows, cols) = self.pattern.block;
        let mut config = json!({"structure": NAME, "block": [rows, cols]});
        if let Some(density) = self.density {
            config["density"] = json!(density);
        }
        config["mask"] = json!(self.mask);
        config["pad"] = json!(self.pad);
        config
    }

    fn buffers(&self) -> Vec<IndexBuffer> {
        self.pattern.buffers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
