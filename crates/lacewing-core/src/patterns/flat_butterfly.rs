//! Flat block butterfly: the union of the supports of a few butterfly factors, on tiles.
//!
//! Cost of a row: as block-sparse with about (n_factors + 1) / butterfly_size of all tiles.

use serde_json::json;

use crate::config::{Key, Options, PAD};
use crate::masked::{FanIn, Masked};
use crate::registry::first_within;
use crate::{Built, Pattern, PatternKind, Problem, Structure, StructureError, StructureKind};

const NAME: &str = "flat_butterfly";
pub(crate) const MAX_BUTTERFLY: usize = 1 << 12;
pub(crate) const MAX_BLOCK: usize = 1 << 12;

pub(crate) const DIVISOR: &str = "the least common multiple of block and butterfly_size";
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
    sized: |n_in, n_out, density| {
        let block = [16, 8, 4].into_iter().find(|b| n_in % b == 0 && n_out % b == 0)?;
        let sizes = (1..=6).flat_map(|log| (1..=log).rev().map(move |factors| (1usize << log, factors)));
        let mut sizes: Vec<(usize, usize)> =
            sizes.filter(|&(size, _)| n_in % size == 0 && n_out % size == 0).collect();
        // From the densest: (factors + 1) / size.
        sizes.sort_by(|a, b| ((b.1 + 1) * a.0).cmp(&((a.1 + 1) * b.0)));
        first_within((n_in, n_out), density, sizes.into_iter().map(|(size, factors)| {
            json!({"structure": NAME, "butterfly_size": size, "n_factors": factors, "block": block, "pad": true})
        }))
    },
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

    /// How many tiles of `[n_out_ext, n_in_ext]` are kept: what all [`Butterfly::tile_row`]s have together.
    ///
    /// Rows of tiles that see the same rows of the base mask are counted once, so that the cost goes by
    /// `butterfly_size` and not by the layer.
    pub fn n_tiles(&self, n_out_ext: usize, n_in_ext: usize) -> usize {
        let Butterfly { butterfly_size, n_factors, block, .. } = *self;
        let (height, width) = (n_out_ext / butterfly_size, n_in_ext / butterfly_size);
        let (n_rows, n_cols) = (n_out_ext / block, n_in_ext / block);
        let n_global = self.global_size.div_ceil(block);
        let n_groups = butterfly_size >> n_factors;
        let mut count = n_global * n_cols;
        let mut row = n_global;
        while row < n_rows {
            let (low, high) = (row * block / height, (row * block + block - 1) / height);
            // The first row whose top leaves the base row `low`, or whose bottom leaves `high`.
            let next_low = ((low + 1) * height).div_ceil(block);
            let next_high = ((high + 1) * height + 1 - block).div_ceil(block);
            let next = next_low.min(next_high).min(n_rows);
            let mut tiles: Vec<(usize, usize)> = Vec::new();
            for base_row in low..=high {
                for old in (0..n_factors).map(|t| base_row ^ (1 << t)).chain([base_row]) {
                    let group = butterfly_size / n_groups;
                    let col = if self.shuffle { old % group * n_groups + old / group } else { old };
                    tiles.push((col * width / block, (col * width + width - 1) / block + 1));
                }
            }
            tiles.sort_unstable();
            let (mut kept, mut end) = (n_global, n_global);
            for (from, to) in tiles {
                kept += to.saturating_sub(from.max(end));
                end = end.max(to);
            }
            count += (next - row) * kept;
            row = next;
        }
        count
    }

    /// What both sizes of a layer must be multiples of: the least common multiple of block and butterfly_size.
    pub(crate) fn divisor(block: usize, butterfly_size: usize) -> usize {
        // The greatest common divisor with a power of two is one too.
        block * (butterfly_size >> block.trailing_zeros().min(butterfly_size.trailing_zeros()))
    }
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    Ok(Box::new(flat_butterfly(options, problem)?))
}

/// `y = W x` with W stored in the tiles of a [`Butterfly`]; parameter `weight [nnz, block, block]`.
///
/// Reads the keys of a flat butterfly; `options` may have more.
pub(crate) fn flat_butterfly(options: &Options, problem: &Problem<'_>) -> Result<Masked, StructureError> {
    let structure = options.structure();
    let butterfly_size = options.size("butterfly_size", 2, MAX_BUTTERFLY)?;
    if !butterfly_size.is_power_of_two() {
        let key = "butterfly_size";
        return Err(StructureError::NotAPowerOfTwo { structure, key, got: butterfly_size });
    }
    let n_factors = options.size("n_factors", 1, butterfly_size.trailing_zeros() as usize)?;
    let block = options.size("block", 1, MAX_BLOCK)?;
    let divisor = Butterfly::divisor(block, butterfly_size);
    let (n_out_ext, n_in_ext) = options.padded(problem.shape(), (divisor, divisor), DIVISOR)?;
    let global_size = options.size("global_size", 0, n_out_ext.min(n_in_ext))?;
    let shuffle = options.flag("shuffle")?;
    let butterfly = Butterfly { butterfly_size, n_factors, block, global_size, shuffle };
    let row = |row| {
        let tiles = butterfly.tile_row(row / block, n_out_ext, n_in_ext).into_iter();
        tiles.map(|col| col as usize * block..(col as usize + 1) * block).collect()
    };
    let pattern = Pattern::of_rows(structure, problem, (n_out_ext, n_in_ext), (block, block), row)?;
    let pattern = Pattern { kind: PatternKind::Block, ..pattern };
    let config = json!({
        "structure": NAME,
        "butterfly_size": butterfly_size,
        "n_factors": n_factors,
        "block": block,
        "global_size": global_size,
        "shuffle": shuffle,
        "pad": options.flag("pad")?,
    });
    Ok(Masked { name: NAME, pattern, fan_in: FanIn::Row, free: false, config })
}

fn samples() -> Vec<Box<dyn Structure>> {
    let plain = json!({"structure": NAME, "butterfly_size": 4, "n_factors": 1, "block": 2});
    let wide = json!({"structure": NAME, "butterfly_size": 4, "block": 2, "global_size": 1, "pad": true});
    let mixed = json!({"structure": NAME, "butterfly_size": 8, "n_factors": 1, "block": 1, "shuffle": true});
    [(&plain, 8, 16), (&wide, 7, 10), (&mixed, 8, 24)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 0, None).expect("valid sample"))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Form;

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
    fn densities_match_the_reference() {
        // Beyond the nominal (f + 1)/s where rectangles are no multiples of the tile.
        for (n_out, n_in, size, n_factors, kept, tiles) in [
            (3072, 768, 8, 2, 864, 96 * 24),
            (3072, 768, 16, 2, 480, 96 * 24),
            (2304, 768, 16, 3, 520, 72 * 24),
            (384, 196, 8, 2, 46, 12 * 7),
            (256, 256, 16, 2, 16, 8 * 8),
        ] {
            let config =
                json!({"structure": NAME, "butterfly_size": size, "n_factors": n_factors, "pad": true});
            let built = crate::build(&config, n_in, n_out, 0, None).unwrap();
            let Form::Pattern(pattern) = built.form() else { panic!("not a pattern") };
            assert_eq!((pattern.nnz(), pattern.grid().0 * pattern.grid().1), (kept, tiles), "{config}");
        }
        let share = |kept: f64, tiles: f64| (kept / tiles * 1e4).round() / 1e4;
        assert_eq!(share(480.0, 2304.0), 0.2083);
        assert_eq!(share(520.0, 1728.0), 0.3009);
        assert_eq!(share(46.0, 84.0), 0.5476);
    }

    #[test]
    fn few_factors_mix_only_inside_groups_of_two_to_their_number_unless_shuffled() {
        for (size, n_factors) in [(8, 2), (16, 2), (32, 3), (16, 4)] {
            let inside = |shuffle| {
                let rows = base(size, n_factors, shuffle);
                let group = |at: usize| at >> n_factors;
                let ones = rows
                    .iter()
                    .enumerate()
                    .flat_map(|(r, row)| row.match_indices('1').map(move |(c, _)| (r, c)));
                ones.into_iter().all(|(r, c)| group(r) == group(c))
            };
            assert!(inside(false), "({size}, {n_factors})");
            assert_eq!(inside(true), size == 1 << n_factors, "({size}, {n_factors})");
        }
    }

    #[test]
    fn counted_tiles_are_those_listed() {
        for (butterfly_size, n_factors, block) in [
            (2, 1, 1),
            (4, 1, 3),
            (4, 2, 2),
            (8, 2, 1),
            (8, 3, 4),
            (16, 2, 6),
            (16, 4, 32),
            (32, 1, 8),
            (32, 5, 12),
        ] {
            let divisor = Butterfly::divisor(block, butterfly_size);
            for (rows, cols) in [(1, 1), (2, 1), (1, 3), (3, 5)] {
                for (global_size, shuffle) in [(0, false), (1, true), (block + 1, false), (0, true)] {
                    let butterfly = Butterfly { butterfly_size, n_factors, block, global_size, shuffle };
                    let (n_out, n_in) = (rows * divisor, cols * divisor);
                    if global_size > n_out.min(n_in) {
                        continue;
                    }
                    let listed: usize =
                        (0..n_out / block).map(|row| butterfly.tile_row(row, n_out, n_in).len()).sum();
                    assert_eq!(butterfly.n_tiles(n_out, n_in), listed, "{butterfly:?} on {n_out} by {n_in}");
                }
            }
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
