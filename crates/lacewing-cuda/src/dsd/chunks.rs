//! What [`super::weight_gradient`] goes by: tiles of the weight in chunks, and chunks in pairs.

use super::panels::{NONE, Tiles, pairs};
use std::cmp::Reverse;

/// Outputs and inputs of a chunk at most, and inputs that its products come in.
const DOWN: usize = 64;
const ACROSS: usize = 256;
const WIDTH: usize = 64;
/// Tiles that are fetched at once.
const LANES: usize = 32;

/// A block-sparse weight as chunks: lines of [`DOWN`] outputs with up to [`ACROSS`] inputs at which any of them has a tile.
/// An item is two chunks, those of the same inputs first and else of the same size, large items first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chunks {
    /// As of the tiles.
    pub(super) line: usize,
    pub(super) n_items: usize,
    /// `[n_items, 32]`: lines of outputs of both chunks, then those of inputs. Inputs that both have are there once.
    pub(super) copies: Vec<u32>,
    /// `[n_items, 2]`: inputs over [`WIDTH`], rounded up.
    pub(super) widths: Vec<u32>,
    /// `[n_items, 2, DOWN / line, ACROSS / line]`: where tiles are.
    pub(super) tiles: Vec<u32>,
}

/// Lines of outputs, and those of inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    of: Vec<usize>,
    sums: Vec<u32>,
}

impl Chunks {
    /// Those of `tiles`, not transposed.
    pub(super) fn new(tiles: &Tiles) -> Self {
        let (line, down, across) = (tiles.line, DOWN / tiles.line, ACROSS / tiles.line);
        let mut groups = tiles.groups();
        for _ in 0..down.ilog2() {
            groups = pairs(groups);
        }
        let mut chunks = Vec::new();
        for (of, sums) in groups {
            let n = sums.len().div_ceil(across).max(1);
            // Of one size, as far as they can be.
            for part in 0..n {
                let sums = sums[part * sums.len() / n..(part + 1) * sums.len() / n].to_vec();
                if !sums.is_empty() {
                    chunks.push(Chunk { of: of.clone(), sums });
                }
            }
        }
        chunks.sort_by(|a, b| (Reverse(a.sums.len()), &a.sums).cmp(&(Reverse(b.sums.len()), &b.sums)));
        let (mut items, mut single): (Vec<(Chunk, Option<Chunk>)>, Vec<Chunk>) = (Vec::new(), Vec::new());
        for chunk in chunks {
            match single.pop() {
                Some(last) if last.sums == chunk.sums => items.push((last, Some(chunk))),
                last => {
                    single.extend(last);
                    single.push(chunk);
                }
            }
        }
        let mut single = single.into_iter();
        while let Some(first) = single.next() {
            items.push((first, single.next()));
        }
        items.sort_by_key(|(first, _)| Reverse(first.sums.len()));
        let mut all = Self { line, n_items: items.len(), copies: vec![], widths: vec![], tiles: vec![] };
        for (first, second) in &items {
            let mut copies = [NONE; LANES];
            for (at, chunk) in [Some(first), second.as_ref()].into_iter().enumerate() {
                let (of, sums) = chunk.map_or((&[][..], &[][..]), |chunk| (&chunk.of[..], &chunk.sums[..]));
                for (to, &of) in copies[at * down..].iter_mut().zip(of) {
                    *to = of as u32;
                }
                if at == 0 || sums != first.sums {
                    copies[2 * down + at * across..][..sums.len()].copy_from_slice(sums);
                }
                all.widths.push((sums.len() * line).div_ceil(WIDTH) as u32);
                for i in 0..down {
                    let tile = |sum: &u32| of.get(i).and_then(|&of| tiles.of_line[of].get(sum).copied());
                    let row = sums.iter().map(|sum| tile(sum).unwrap_or(NONE));
                    all.tiles.extend(row.chain(std::iter::repeat(NONE)).take(across));
                }
            }
            all.copies.extend(copies);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tiles that the items of `chunks` name, each with its lines; every one must be fetched.
    fn named(chunks: &Chunks) -> Vec<(u32, u32, u32)> {
        let (down, across) = (DOWN / chunks.line, ACROSS / chunks.line);
        let mut named = Vec::new();
        for item in 0..chunks.n_items {
            let copies = &chunks.copies[item * LANES..][..LANES];
            for at in 0..2 {
                let own = &copies[2 * down + at * across..][..across];
                let inputs = if own[0] == NONE { &copies[2 * down..][..across] } else { own };
                let width = chunks.widths[item * 2 + at] as usize * WIDTH / chunks.line;
                for i in 0..down {
                    for j in 0..across {
                        let tile = chunks.tiles[((item * 2 + at) * down + i) * across + j];
                        if tile != NONE {
                            assert!(j < width, "beyond the products of item {item}");
                            named.push((tile, copies[at * down + i], inputs[j]));
                        }
                    }
                }
            }
        }
        named.sort_unstable();
        named
    }

    #[test]
    fn every_tile_is_in_one_chunk_with_its_lines() {
        for (shape, block) in [
            ((96, 160), (32, 32)),
            ((192, 320), (64, 64)),
            ((384, 1152), (128, 128)),
            ((192, 256), (64, 128)),
            ((256, 192), (32, 64)),
            ((288, 384), (96, 64)),
            ((64, 2048), (32, 32)),
        ] {
            let (down, across) = (shape.0 / block.0, shape.1 / block.1);
            let positions: Vec<(u32, u32)> = (0..down as u32)
                .flat_map(|row| (0..across as u32).map(move |col| (row, col)))
                .filter(|(row, col)| row != &1 && (row * 7 + col * 5) % 3 != 0)
                .collect();
            let tiles = Tiles::new(shape, block, &positions, false).expect("tiles");
            let mut expected: Vec<(u32, u32, u32)> = tiles
                .of_line
                .iter()
                .enumerate()
                .flat_map(|(of, tiles)| tiles.iter().map(move |(&sum, &tile)| (tile, of as u32, sum)))
                .collect();
            expected.sort_unstable();
            assert_eq!(named(&Chunks::new(&tiles)), expected, "{shape:?} {block:?}");
        }
    }

    #[test]
    fn the_lines_of_a_block_share_what_they_read() {
        let positions: Vec<(u32, u32)> = (0..4).map(|at| (at, (at * 3) % 4)).collect();
        let tiles = Tiles::new((512, 512), (128, 128), &positions, false).expect("tiles");
        let chunks = Chunks::new(&tiles);
        assert_eq!((chunks.n_items, &chunks.widths[..]), (4, &[2; 8][..]));
        for copies in chunks.copies.chunks(LANES) {
            assert_eq!(copies.iter().filter(|line| **line != NONE).count(), 4, "two of d_y, two of x");
        }
    }
}
