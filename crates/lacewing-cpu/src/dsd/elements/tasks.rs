//! How a product is cut: rows into bands that are packed, bands into chunks of outputs, and who packs what.

use super::Size;
use super::block_tile::BlockTile;
use super::pack::Pack;
use super::places::Places;
use super::tile::Tile;
use crate::finish::Target;
use crate::parallel::{share, share_by_threads};
use crate::scratch::scratch;
use crate::simd::Level;
use rayon::prelude::*;

/// Tasks at least, where there is enough to cut.
const TASKS: usize = 16;
/// Chunks of one at most.
const TASK_CHUNKS: usize = 8;
/// Inputs that one task packs.
const STRIP: usize = 128;
/// Elements packed at most, over all threads, where each packs all of a band for itself: writing what another core has read
/// and reading what it has written take longer, until there is too much of it.
const OWN: usize = 400 * 1024;

/// Registers that rows fill, as many as a tile may have.
pub(super) fn registers(rows: usize, lanes: usize, most: usize) -> usize {
    rows.div_ceil(lanes).next_power_of_two().min(most)
}

/// What the tasks of a product share.
pub(super) struct Tasks<'a> {
    level: Level,
    lanes: usize,
    /// Registers of rows that a tile has at most.
    most: usize,
    size: Size,
    places: &'a Places,
    values: &'a [f32],
    /// Whether single values lie in the order of the places.
    in_order: bool,
    accumulate: bool,
}

/// Rows that are packed together.
struct Band<'a> {
    x: &'a [f32],
    n_in: usize,
    rows: usize,
    /// Rows that the packed tile has room for.
    width: usize,
}

impl<'a> Band<'a> {
    fn len(&self) -> usize {
        self.n_in * self.width
    }

    /// The work of packing it.
    fn strips(&self, to: &'a mut [f32]) -> impl Iterator<Item = Pack<'a>> {
        let Self { x, n_in: stride, rows, width } = *self;
        let strips = to.chunks_mut(STRIP * width).enumerate();
        strips.map(move |(at, to)| Pack { to, from: &x[at * STRIP..], stride, rows, width })
    }
}

impl<'a> Tasks<'a> {
    pub(super) fn new(
        level: Level,
        size: Size,
        places: &'a Places,
        values: &'a [f32],
        accumulate: bool,
    ) -> Self {
        let lanes = level.lanes();
        Self { level, lanes, most: size.registers(lanes), size, places, values, in_order: false, accumulate }
    }

    /// Single values that lie in the order of the places.
    pub(super) fn ordered(self) -> Self {
        Self { in_order: true, ..self }
    }

    pub(super) fn run(&self, (x, n_in): (&[f32], usize), y: Target<'_>) {
        let height = self.most * self.lanes;
        let bands = x.chunks(height * n_in).zip(y.bands(height)).map(|(x, y)| {
            let width = registers(y.rows(), self.lanes, self.most) * self.lanes;
            (Band { x, n_in, rows: y.rows(), width }, y)
        });
        let bands: Vec<_> = bands.collect();
        if bands.len() >= TASKS {
            self.by_bands(bands);
        } else {
            self.by_outputs(bands);
        }
    }

    /// A task for each band.
    fn by_bands(&self, bands: Vec<(Band<'_>, Target<'_>)>) {
        bands.into_par_iter().for_each(|(band, y)| {
            scratch(band.len(), |packed| {
                self.pack(&band, packed);
                self.chunks(packed, band.width, 0, y);
            });
        });
    }

    /// Few bands, whose outputs tasks share. They are packed by all threads together, a single small one by each for itself.
    fn by_outputs(&self, bands: Vec<(Band<'_>, Target<'_>)>) {
        let all = self.places.chunks();
        let chunks = all.div_ceil(TASKS.div_ceil(bands.len())).min(TASK_CHUNKS);
        let (bands, targets): (Vec<_>, Vec<_>) = bands.into_iter().unzip();
        let tasks = targets.into_iter().enumerate().flat_map(|(band, y)| {
            let strips = (0..all).step_by(chunks).zip(y.strips(chunks * self.outputs()));
            strips.map(move |(first, y)| (band, first, y))
        });
        let tasks: Vec<_> = tasks.collect();
        let threads = rayon::current_num_threads();
        if let [band] = &bands[..]
            && band.len() * threads <= OWN
        {
            return share_by_threads(tasks, |tasks| {
                let mut tasks = tasks.peekable();
                if tasks.peek().is_some() {
                    scratch(band.len(), |packed| {
                        self.pack(band, packed);
                        tasks.for_each(|(_, first, y)| self.chunks(packed, band.width, first, y));
                    });
                }
            });
        }
        scratch(bands.iter().map(Band::len).sum(), |mut memory| {
            let part = |band: &Band<'_>| memory.split_off_mut(..band.len()).expect("memory for all");
            let mut packed: Vec<&mut [f32]> = bands.iter().map(part).collect();
            let strips = bands.iter().zip(&mut packed).flat_map(|(band, to)| band.strips(to));
            share(strips.collect(), |strip| self.level.run(strip));
            share(tasks, |(at, first, y)| self.chunks(packed[at], bands[at].width, first, y));
        });
    }

    /// Packs a band by this thread alone.
    fn pack(&self, &Band { x: from, n_in: stride, rows, width }: &Band<'_>, to: &mut [f32]) {
        self.level.run(Pack { to, from, stride, rows, width });
    }

    /// Outputs of a chunk.
    fn outputs(&self) -> usize {
        self.places.chunk * self.size.outputs
    }

    /// The chunks from `first` on that `y` has the outputs of, for one tile.
    fn chunks(&self, x: &[f32], width: usize, first: usize, y: Target<'_>) {
        let &Self { level, lanes, size, places, values, in_order, accumulate, .. } = self;
        scratch(self.outputs() * width, |sums| {
            for (chunk, mut target) in (first..).zip(y.strips(self.outputs())) {
                let y = target.sums();
                if size.single() {
                    level.run(Tile { places, values, in_order, x, width, chunk, y, accumulate, sums });
                } else {
                    let tile = BlockTile { places, values, size, x, width, chunk, y, accumulate, sums };
                    tile.run(level, lanes);
                }
                target.finish(level);
            }
        });
    }
}
