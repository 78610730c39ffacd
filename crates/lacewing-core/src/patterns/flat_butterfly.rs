//! Flat block butterfly: the union of the supports of a few butterfly factors, on tiles.
//!
//! Cost of a row: as block-sparse with about (n_factors + 1) / butterfly_size of all tiles.

use serde_json::{Value, json};

use super::block_sparse::{block_counts, blocks_to_dense};
use crate::config::{Key, Options, PAD};
use crate::structure::check_params;
use crate::{
    Built, Counts, Form, IndexBuffer, Init, ParamSpec, Pattern, PatternKind, Problem, Rng, Structure,
    StructureError, StructureKind,
};

const NAME: &str = "flat_butterfly";
const MAX_BUTTERFLY: usize = 1 << 12;
const MAX_BLOCK: usize = 1 << 12;

pub(crate) const BUTTERFLY_SIZE: Key =
    Key::new("butterfly_size", "side of the butterfly, a power of two from 2", "8");
pub(crate) const N_FACTORS: Key =
    Key::new("n_factors", "factors whose supports are joined, 1 to log2(butterfly_size)", "2");
pub(crate) const BLOCK: Key = Key::new("block", "side of a tile", "32");
pub(crate) const GLOBAL_SIZE: Key =
    Key::new("global_size", "first outputs and inputs that are connected to everything", "0");
pub(crate) const SHUFFLE: Key =
    Key::new("shuffle", "permute the columns of the mask so that distant inputs mix", "false");

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "tiles on the joined supports of butterfly factors",
    keys: &[BUTTERFLY_SIZE, N_FACTORS, BLOCK, GLOBAL_SIZE, SHUFFLE, PAD],
    build,
    samples,
};

/// What defines a flat butterfly mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Butterfly {
    /// Side s of the base mask, a power of two, at least 2.
    pub butterfly_size: usize,
    /// Factors f joined, with strides 1, 2, …, 2^(f−1); at most log2 s.
    pub n_factors: usize,
    /// Side of a tile.
    pub block: usize,
    /// First rows and columns of elements that are full.
    pub global_size: usize,
    /// Whether the columns of the base mask are permuted.
    pub shuffle: bool,
}

impl Butterfly {
    /// Whether the base mask `[s, s]` keeps (row, col): `col = row` or `col = row xor 2^t` for a `t < n_factors`.
    ///
    /// With `shuffle`, new column `c·G + g` is old column `g·(s/G) + c`, with `G = s / 2^n_factors`.
    pub fn base(&self, row: usize, col: usize) -> bool {
        let n_groups = self.butterfly_size >> self.n_factors;
        let col = if self.shuffle {
            (col % n_groups) * (self.butterfly_size / n_groups) + col / n_groups
        } else {
            col
        };
        let difference = row ^ col;
        difference == 0 || (difference.is_power_of_two() && difference < 1 << self.n_factors)
    }

    /// Columns of the tiles kept in a row of tiles of `[n_out_ext, n_in_ext]`, ascending.
    ///
    /// Each entry of the base mask covers `n_out_ext / s` by `n_in_ext / s` elements; a tile stays if any of its
    /// elements is covered. Both sizes must be multiples of the butterfly and of the tile.
    pub fn tile_row(&self, tile_row: usize, n_out_ext: usize, n_in_ext: usize) -> Vec<u32> {
        let side = |tile: usize, extent: usize| {
            let rectangle = extent / self.butterfly_size;
            tile * self.block / rectangle..=(tile * self.block + self.block - 1) / rectangle
        };
        let is_global = |tile: usize| tile * self.block < self.global_size;
        let rows = side(tile_row, n_out_ext);
        let kept = |&tile_col: &usize| {
            is_global(tile_row)
                || is_global(tile_col)
                || rows.clone().any(|row| side(tile_col, n_in_ext).any(|col| self.base(row, col)))
        };
        (0..n_in_ext / self.block).filter(kept).map(|tile_col| tile_col as u32).collect()
    }
}

/// `y = W x` with W stored in the tiles of a [`Butterfly`]; parameter `weight [nnz, block, block]`.
#[derive(Clone, Debug, PartialEq)]
pub struct FlatButterfly {
    butterfly: Butterfly,
    pattern: Pattern,
    pad: bool,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    Ok(Box::new(FlatButterfly::read(options, problem)?))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let plain = json!({"structure": NAME, "butterfly_size": 4, "n_factors": 1, "block": 2});
    let wide = json!({"structure": NAME, "butterfly_size": 4, "block": 2, "global_size": 1, "pad": true});
    let mixed = json!({"structure": NAME, "butterfly_size": 8, "n_factors": 1, "block": 1, "shuffle": true});
    [(&plain, 8, 16), (&wide, 7, 10), (&mixed, 8, 24)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

impl FlatButterfly {
    /// Reads the keys of a flat butterfly; `options` may have more.
    pub(crate) fn read(options: &Options, problem: &Problem<'_>) -> Result<Self, StructureError> {
        let structure = options.structure();
        let butterfly_size = options.size("butterfly_size", 2, MAX_BUTTERFLY)?;
        if !butterfly_size.is_power_of_two() {
            let key = "butterfly_size";
            return Err(StructureError::NotAPowerOfTwo { structure, key, got: butterfly_size });
        }
        let n_factors = options.size("n_factors", 1, butterfly_size.trailing_zeros() as usize)?;
        let block = options.size("block", 1, MAX_BLOCK)?;
        // The least common multiple: the greatest common divisor with a power of two is one too.
        let shared = block.trailing_zeros().min(butterfly_size.trailing_zeros());
        let divisor = block * (butterfly_size >> shared);
        let (n_out, n_in) = problem.shape();
        let name = "the least common multiple of block and butterfly_size";
        let (n_out_ext, n_in_ext) = options.padded((n_out, n_in), (divisor, divisor), name)?;
        let global_size = options.size("global_size", 0, n_out_ext.min(n_in_ext))?;
        let shuffle = options.flag("shuffle")?;
        let butterfly = Butterfly { butterfly_size, n_factors, block, global_size, shuffle };
        let mut pattern = Pattern {
            n_out,
            n_in,
            n_out_ext,
            n_in_ext,
            block: (block, block),
            positions: Vec::new(),
            kind: PatternKind::Block,
        };
        let saved = Pattern::saved_positions(structure, problem, pattern.grid())?;
        // Row by row, so that a file cannot make us build more than it holds.
        for tile_row in 0..pattern.grid().0 {
            for col in butterfly.tile_row(tile_row, n_out_ext, n_in_ext) {
                let at = pattern.nnz();
                let place = (tile_row as u32, col);
                if let Some(saved) = saved.as_ref().filter(|saved| saved.get(at) != Some(&place)) {
                    let got = saved.get(at).copied();
                    return Err(StructureError::PatternDiffers { structure, at, expected: Some(place), got });
                }
                pattern.positions.push(place);
            }
        }
        if let Some(&got) = saved.as_ref().and_then(|saved| saved.get(pattern.nnz())) {
            let (at, got) = (pattern.nnz(), Some(got));
            return Err(StructureError::PatternDiffers { structure, at, expected: None, got });
        }
        Ok(Self { butterfly, pattern, pad: options.flag("pad")? })
    }

    /// What defines the mask.
    pub fn butterfly(&self) -> &Butterfly {
        &self.butterfly
    }

    /// Where the tiles sit.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

impl Structure for FlatButterfly {
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
        let block = self.butterfly.block;
        vec![ParamSpec::new("weight", &[self.pattern.nnz(), block, block])]
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

    /// `W[r_t · b + i, c_t · b + j] = weight[t, i, j]`, 0 elsewhere.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        Some(blocks_to_dense(&self.pattern, params[0]))
    }

    fn counts(&self) -> Counts {
        block_counts(&self.pattern)
    }

    fn config(&self) -> Value {
        let Butterfly { butterfly_size, n_factors, block, global_size, shuffle } = self.butterfly;
        json!({
            "structure": NAME,
            "butterfly_size": butterfly_size,
            "n_factors": n_factors,
            "block": block,
            "global_size": global_size,
            "shuffle": shuffle,
            "pad": self.pad,
        })
    }

    fn buffers(&self) -> Vec<IndexBuffer> {
        self.pattern.buffers()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base(butterfly_size: usize, n_factors: usize, shuffle: bool) -> Vec<String> {
        let butterfly = Butterfly { butterfly_size, n_factors, block: 1, global_size: 0, shuffle };
        let digit = |kept| if kept { '1' } else { '0' };
        let row = |row| (0..butterfly_size).map(|col| digit(butterfly.base(row, col))).collect();
        (0..butterfly_size).map(row).collect()
    }

    #[test]
    fn the_base_mask_of_8_and_2_matches_the_reference() {
        let expected =
            ["11100000", "11010000", "10110000", "01110000", "00001110", "00001101", "00001011", "00000111"];
        assert_eq!(base(8, 2, false), expected);
    }

    #[test]
    fn shuffle_takes_new_column_c_g_from_old_column_g_c() {
        // Two groups of four: new columns 0, 1, 2, … are old columns 0, 4, 1, 5, 2, 6, 3, 7.
        assert_eq!(base(8, 2, true)[0], "10101000");
        assert_eq!(base(8, 2, true)[4], "01010100");
    }

    #[test]
    fn base_density_is_factors_plus_one_over_size() {
        for (size, n_factors) in [(8, 2), (8, 3), (16, 2), (16, 3), (16, 4), (32, 3), (2, 1)] {
            let ones = base(size, n_factors, true).concat().matches('1').count();
            assert_eq!(ones, size * (n_factors + 1), "({size}, {n_factors})");
        }
    }

    #[test]
    fn tile_counts_match_the_reference() {
        for (n_out, n_in, size, n_factors, block, tiles) in [
            (3072, 768, 8, 2, 32, 864),
            (768, 3072, 8, 2, 32, 864),
            (3072, 768, 16, 2, 32, 480),
            (2304, 768, 16, 3, 32, 520),
            (384, 196, 8, 2, 32, 46),
            (256, 256, 16, 2, 32, 16),
            (768, 768, 16, 2, 1, 768 * 768 * 3 / 16),
        ] {
            let config = json!({
                "structure": NAME, "butterfly_size": size, "n_factors": n_factors, "block": block, "pad": true,
            });
            let built = crate::build(&config, n_in, n_out, 0, None).unwrap();
            assert_eq!(built.counts().parameters, tiles * block * block, "{n_out}x{n_in} {config}");
        }
    }

    #[test]
    fn global_rows_and_columns_are_full() {
        let butterfly =
            Butterfly { butterfly_size: 8, n_factors: 1, block: 4, global_size: 5, shuffle: false };
        for tile_row in 0..8 {
            let cols = butterfly.tile_row(tile_row, 32, 32);
            assert_eq!(cols.len(), if tile_row < 2 { 8 } else { 4 }, "{cols:?}");
            assert_eq!(cols[..2], [0, 1]);
        }
    }

    #[test]
    fn sizes_must_divide_by_block_and_butterfly() {
        let config = json!({"structure": NAME, "butterfly_size": 8, "block": 12});
        let error = crate::build(&config, 48, 36, 0, None).unwrap_err();
        assert!(
            matches!(error, StructureError::Indivisible { size_name: "n_out", divisor: 24, padded: 48, .. }),
            "{error}"
        );
    }
}
