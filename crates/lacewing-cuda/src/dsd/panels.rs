//! A weight's blocks as tiles, and what [`super::persistent`] goes by: lines of the output in panels, and the steps of each.

use std::collections::BTreeMap;

/// Columns of the output of a panel.
pub(super) const PANEL: usize = 128;

/// Steps of a panel are a multiple of it: a warp reads so many at once.
const STEPS: usize = 32;
/// Where there is none.
pub(super) const NONE: u32 = u32::MAX;
/// Lines beyond which the search for those that belong together would take long.
const MOST_LINES: usize = 1024;
/// As the kernel packs where a tile is: its line in 8 bits, its row of tiles in 24.
const LINE_BITS: u32 = 8;

/// A block-sparse weight, or its transpose, as [`Tiles`] in panels: a line is so many columns of the output, or of the sum.
/// Panels are of as many lines of the output as make [`PANEL`] columns, those together that need the same
/// lines of the sum, since a panel reads these once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Panels {
    /// As of the tiles.
    pub(super) line: usize,
    pub(super) n_panels: usize,
    /// Steps that there is room for in each panel.
    pub(super) panel_steps: usize,
    /// `[n_panels, panel_steps, 1 + PANEL / line]`: a line of the sum, and for each line of the panel where its tile is.
    pub(super) steps: Vec<u32>,
    /// `[n_panels, PANEL / line]`: lines of the output.
    pub(super) lines: Vec<u32>,
}

/// A block-sparse weight, or its transpose, as tiles of `line` squared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tiles {
    /// 64 where both sides of a block are multiples of it, else 32.
    pub(super) line: usize,
    /// For each line of the output, where its tiles are, by lines of the sum.
    pub(super) of_line: Vec<BTreeMap<u32, u32>>,
}

impl Tiles {
    /// Those of the blocks at `positions` (block row, block column) in a weight of `n_out` outputs and `n_in` inputs, or of
    /// the transpose; none where blocks cannot be cut into tiles or tiles are more than the kernels count.
    pub(super) fn new(
        (n_out, n_in): (usize, usize),
        (block_rows, block_cols): (usize, usize),
        positions: &[(u32, u32)],
        transposed: bool,
    ) -> Option<Self> {
        let line =
            [64, 32].into_iter().find(|n| block_rows.is_multiple_of(*n) && block_cols.is_multiple_of(*n))?;
        let (down, across) = (block_rows / line, block_cols / line);
        if across > 1 << LINE_BITS || (positions.len() * down) >> (u32::BITS - LINE_BITS) > 0 {
            return None;
        }
        let mut of_line = vec![BTreeMap::new(); if transposed { n_in } else { n_out } / line];
        for (slot, &(row, col)) in positions.iter().enumerate() {
            for i in 0..down {
                for j in 0..across {
                    let at = (row as usize * down + i, col as usize * across + j);
                    let (of, sum) = if transposed { (at.1, at.0) } else { at };
                    of_line[of].insert(sum as u32, ((slot * down + i) << LINE_BITS | j) as u32);
                }
            }
        }
        Some(Self { line, of_line })
    }

    /// Every line of the output by itself.
    pub(super) fn groups(&self) -> Vec<Group> {
        let sums = |tiles: &BTreeMap<u32, u32>| tiles.keys().copied().collect();
        self.of_line.iter().enumerate().map(|(of, tiles)| (vec![of], sums(tiles))).collect()
    }
}

impl Panels {
    /// Those of a weight's, or its transpose's, tiles.
    pub(super) fn new(tiles: &Tiles) -> Self {
        let line = tiles.line;
        let per_panel = PANEL / line;
        let mut groups = tiles.groups();
        for _ in 0..per_panel.ilog2() {
            groups = pairs(groups);
        }
        let panel_steps =
            groups.iter().map(|(_, sums)| sums.len()).max().unwrap_or(0).next_multiple_of(STEPS).max(STEPS);
        let mut steps = Vec::with_capacity(groups.len() * panel_steps * (1 + per_panel));
        let mut lines = Vec::with_capacity(groups.len() * per_panel);
        for (of, sums) in &groups {
            let of = (0..per_panel).map(|at| of.get(at).copied()).collect::<Vec<_>>();
            lines.extend(of.iter().map(|of| of.map_or(NONE, |of| of as u32)));
            for sum in sums {
                let tile = |of: &Option<usize>| {
                    of.and_then(|of| tiles.of_line[of].get(sum).copied()).unwrap_or(NONE)
                };
                steps.push(*sum);
                steps.extend(of.iter().map(tile));
            }
            steps.resize(lines.len() / per_panel * panel_steps * (1 + per_panel), NONE);
        }
        Self { line, n_panels: groups.len(), panel_steps, steps, lines }
    }
}

/// A group of lines of the output, and the lines of the sum that any of them needs, ascending.
pub(super) type Group = (Vec<usize>, Vec<u32>);

/// Two groups each in one, those first that share most; of an odd number the last stays alone.
pub(super) fn pairs(groups: Vec<Group>) -> Vec<Group> {
    let n = groups.len();
    let mut shared: Vec<(usize, usize, usize)> = Vec::new();
    if n <= MOST_LINES {
        let words =
            groups.iter().flat_map(|(_, sums)| sums.last()).max().map_or(0, |most| *most as usize / 64 + 1);
        let mut bits = vec![0_u64; n * words];
        for (at, (_, sums)) in groups.iter().enumerate() {
            for &sum in sums {
                bits[at * words + sum as usize / 64] |= 1 << (sum % 64);
            }
        }
        let row = |at: usize| &bits[at * words..(at + 1) * words];
        for a in 0..n {
            for b in a + 1..n {
                let both = row(a).iter().zip(row(b)).map(|(a, b)| (a & b).count_ones() as usize).sum();
                shared.push((both, a, b));
            }
        }
        // Equal ones in their order, so that neighbours stay together.
        shared.sort_by_key(|&(both, a, b)| (usize::MAX - both, a, b));
    } else {
        shared.extend((0..n / 2).map(|pair| (0, 2 * pair, 2 * pair + 1)));
    }
    let mut groups: Vec<Option<Group>> = groups.into_iter().map(Some).collect();
    let mut together = Vec::with_capacity(n.div_ceil(2));
    for (_, a, b) in shared {
        if groups[a].is_none() || groups[b].is_none() {
            continue;
        }
        let ((mut lines, mut sums), (more_lines, more_sums)) =
            (groups[a].take().expect("seen above"), groups[b].take().expect("seen above"));
        lines.extend(more_lines);
        sums.extend(more_sums);
        sums.sort_unstable();
        sums.dedup();
        together.push((lines, sums));
    }
    together.extend(groups.into_iter().flatten());
    together
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkers(rows: u32, cols: u32) -> Vec<(u32, u32)> {
        (0..rows)
            .flat_map(|row| (0..cols).map(move |col| (row, col)))
            .filter(|(row, col)| row != &1 && (row * 7 + col * 5) % 3 == 0)
            .collect()
    }

    /// Every tile of every block is in one step of the panel of its line, and nothing else is.
    #[test]
    fn steps_are_the_blocks_whatever_their_shape() {
        for (shape, block) in [
            ((96, 160), (32, 32)),
            ((192, 320), (64, 64)),
            ((384, 512), (128, 128)),
            ((192, 256), (64, 128)),
            ((256, 192), (32, 64)),
            ((288, 384), (96, 64)),
        ] {
            let positions = checkers((shape.0 / block.0) as u32, (shape.1 / block.1) as u32);
            for transposed in [false, true] {
                let panels = Panels::new(&Tiles::new(shape, block, &positions, transposed).expect("tiles"));
                let (line, per_panel) = (panels.line, PANEL / panels.line);
                let (down, across) = (block.0 / line, block.1 / line);
                let mut seen = Vec::new();
                for panel in 0..panels.n_panels {
                    let lines = &panels.lines[panel * per_panel..(panel + 1) * per_panel];
                    let size = panels.panel_steps * (1 + per_panel);
                    let mut last = None;
                    for step in panels.steps[panel * size..(panel + 1) * size].chunks(1 + per_panel) {
                        if step[0] == NONE {
                            assert!(step.iter().all(|word| *word == NONE));
                            last = Some(NONE);
                            continue;
                        }
                        assert!(last < Some(step[0]), "ascending, then none");
                        last = Some(step[0]);
                        assert!(step[1..].iter().any(|tile| *tile != NONE), "a step without a tile");
                        for (of, tile) in lines.iter().zip(&step[1..]).filter(|(_, tile)| **tile != NONE) {
                            let (row, col) = (*tile as usize >> LINE_BITS, *tile as usize & 255);
                            let (block_row, block_col) = positions[row / down];
                            let at =
                                (block_row as usize * down + row % down, block_col as usize * across + col);
                            let (out, sum) = if transposed { (at.1, at.0) } else { at };
                            assert_eq!((*of as usize, step[0] as usize), (out, sum), "{shape:?} {block:?}");
                            seen.push(*tile);
                        }
                    }
                }
                seen.sort_unstable();
                let all: Vec<u32> = (0..positions.len() * down)
                    .flat_map(|row| (0..across).map(move |col| (row << LINE_BITS | col) as u32))
                    .collect();
                assert_eq!(seen, all, "{shape:?} {block:?} transposed {transposed}");
                let mut lines: Vec<u32> = panels.lines.iter().copied().filter(|of| *of != NONE).collect();
                lines.sort_unstable();
                let n = if transposed { shape.1 } else { shape.0 } / line;
                assert_eq!(lines, (0..n as u32).collect::<Vec<_>>(), "every line of the output once");
            }
        }
    }

    #[test]
    fn lines_that_need_the_same_are_together() {
        // Block rows 0 and 2, 1 and 3 have the same columns.
        let positions: Vec<(u32, u32)> =
            (0..4).flat_map(|row| (0..4).map(move |col| (row, 2 * col + row % 2))).collect();
        let panels = Panels::new(&Tiles::new((256, 512), (64, 64), &positions, false).expect("tiles"));
        assert_eq!(panels.lines, [0, 2, 1, 3]);
    }

    #[test]
    fn blocks_that_cannot_be_cut_have_no_tiles() {
        for block in [(16, 16), (48, 32), (32, 40)] {
            assert_eq!(Tiles::new((48 * 32, 40 * 32), block, &[(0, 0)], false), None, "{block:?}");
        }
    }
}
