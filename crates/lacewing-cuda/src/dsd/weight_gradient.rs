//! Launches `weight_gradient.cu`: Hopper's warpgroup products along the rows, bf16, sides of blocks multiples of 32.

use super::pattern::ChunksOnDevice;
use super::{Problem, grid};
use crate::source::hopper;
use crate::{CudaError, Device, Region, Source, TensorMap, Type};

pub(super) static SOURCE: Source = hopper!("weight_gradient", "weight_gradient.cu");

/// As in the source.
const THREADS: u32 = 288;
const ADD_THREADS: usize = 256;
const ROWS: usize = 32;
const ROOMS: usize = 5;
/// Bytes of a room: 64 outputs and 256 inputs of two chunks.
const ROOM: usize = 2 * (64 + 256) * ROWS * 2;
/// Rooms start at multiples of it; what a thread block gets does not.
const ROOM_START: usize = 1024;
/// What an H200 takes, in picoseconds: starting, each launch, a row of a tile that is fetched, a row at least, leaving the sums
/// of an item, and a value of a part that is written and read again.
const LAUNCH: u64 = 5_000_000;
const FETCHED: u64 = 2_150;
const ROW: u64 = 13_000;
const LEFT: u64 = 3_000_000;
const ADDED: u64 = 2;
/// A byte of the operands, which come by tiles, at half of what memory gives.
const READ: f64 = 0.45;

/// What its time depends on.
#[derive(Debug, Clone, Copy)]
struct Size {
    rows: usize,
    n_items: usize,
    /// Tiles that all items fetch at each step.
    n_tiles: usize,
    n_values: usize,
    /// Bytes of both operands.
    bytes: usize,
    sm_count: usize,
}

/// Rows cut into parts, so that items fill the chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cut {
    parts: usize,
    part_rows: usize,
}

impl Size {
    fn of(device: &Device, problem: &Problem<'_>, chunks: &ChunksOnDevice) -> Self {
        let pattern = problem.pattern;
        Self {
            rows: problem.rows,
            n_items: chunks.n_items,
            n_tiles: chunks.n_tiles,
            n_values: pattern.n_values(),
            bytes: problem.rows * (pattern.n_out + pattern.n_in) * Type::Bf16.size_bytes(),
            sm_count: device.properties().sm_count,
        }
    }

    /// Picoseconds from the first row to the last, and in all.
    fn times(&self, cut: Cut) -> (u64, u64) {
        let turns = (self.n_items * cut.parts).div_ceil(self.sm_count) as u64;
        let row = (FETCHED * (self.n_tiles / self.n_items.max(1)) as u64).max(ROW);
        let walked = turns * row * cut.part_rows as u64;
        let added = if cut.parts > 1 { LAUNCH + ADDED * (cut.parts * self.n_values) as u64 } else { 0 };
        (walked, LAUNCH + walked + turns * LEFT + added)
    }

    /// Picoseconds that it takes, about.
    fn time(&self) -> u64 {
        let (walked, all) = self.times(self.best());
        all - walked + walked.max((READ * self.bytes as f64) as u64)
    }

    /// The cut of which multiprocessors are through with their work soonest.
    fn best(&self) -> Cut {
        let cut = |parts: usize| {
            let part_rows = self.rows.div_ceil(parts).next_multiple_of(ROWS);
            Cut { parts: self.rows.div_ceil(part_rows), part_rows }
        };
        (1..=self.rows.div_ceil(ROWS).clamp(1, 2 * self.sm_count))
            .map(cut)
            .min_by_key(|&cut| (self.times(cut).1, cut.parts))
            .expect("one part at least")
    }
}

/// Picoseconds that it takes on an H200, about.
pub(super) fn time(device: &Device, problem: &Problem<'_>, chunks: &ChunksOnDevice) -> u64 {
    Size::of(device, problem, chunks).time()
}

/// Queues `d_values += (d_y' x)` at the blocks; the operands were checked.
pub(super) fn run(
    device: &Device,
    problem: &Problem<'_>,
    chunks: &ChunksOnDevice,
    (d_y, x): (&Region, &Region),
    d_values: &Region,
) -> Result<(), CudaError> {
    let pattern = problem.pattern;
    let (rows, n_values) = (problem.rows, pattern.n_values());
    let Cut { parts, part_rows } = Size::of(device, problem, chunks).best();
    let bytes = Type::F32.size_bytes();
    let partial = (parts > 1).then(|| device.region(parts * n_values * bytes)).transpose()?;
    let name = if chunks.line == 64 { "weight_gradient_64" } else { "weight_gradient_32" };
    let function = device.function(&SOURCE, name)?;
    let maps = [(d_y, pattern.n_out), (x, pattern.n_in)]
        .map(|(region, cols)| TensorMap::new(region, (rows, cols), chunks.line, (ROWS, 1)));
    let [d_y_map, x_map] = maps;
    let operands = [d_y_map?.into(), x_map?.into(), partial.as_ref().unwrap_or(d_values).into()];
    let index = [&chunks.copies, &chunks.widths, &chunks.tiles].map(Into::into);
    let sizes = [chunks.n_items, parts, part_rows, rows, pattern.block().1].map(|n| (n as u32).into());
    let args = [&operands[..], &index, &sizes, &[(n_values as u64).into()]].concat();
    let thread_blocks = device.properties().sm_count.min(chunks.n_items * parts) as u32;
    let shared = ROOMS * ROOM + ROOM_START;
    // SAFETY: the kernel's parameters in its order; `check` saw the operands' sizes, the maps end where they do, the pattern
    // is inside the weight, each tile is in one item, and `partial` holds the values as often as there are parts.
    unsafe { function.launch([thread_blocks, 1, 1], [THREADS, 1, 1], shared as u32, &args) }?;
    let Some(partial) = partial else { return Ok(()) };
    add_parts(device, &partial, parts, d_values, n_values)
}

/// Queues `d_values +=` the sums of every part in `partial [parts, n_values]`, in their order. `n_values` is a multiple of four.
pub(super) fn add_parts(
    device: &Device,
    partial: &Region,
    parts: usize,
    d_values: &Region,
    n_values: usize,
) -> Result<(), CudaError> {
    let args = [partial.into(), d_values.into(), (n_values as u64).into(), (parts as u32).into()];
    let function = device.function(&SOURCE, "add_parts")?;
    // SAFETY: both regions hold the values, `partial` as often as there are parts; its writers, one for each tile of a
    // part, were queued before.
    unsafe {
        function.launch(grid(n_values.div_ceil(4 * ADD_THREADS))?, [ADD_THREADS as u32, 1, 1], 0, &args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(rows: usize, n_items: usize, n_values: usize) -> Size {
        Size { rows, n_items, n_tiles: 8 * n_items, n_values, bytes: rows * 16_384, sm_count: 132 }
    }

    #[test]
    fn parts_cover_the_rows_and_none_is_empty() {
        for rows in [1, 31, 128, 1025, 8192, 50_000] {
            for n_items in [1, 11, 65, 264, 4096] {
                let Cut { parts, part_rows } = size(rows, n_items, n_items * 7 * 4096).best();
                assert!(parts * part_rows >= rows && (parts - 1) * part_rows < rows, "{rows} {n_items}");
                assert_eq!(part_rows % ROWS, 0);
            }
        }
    }

    #[test]
    fn few_items_are_cut_and_many_are_not() {
        assert_eq!(size(8192, 65, 1_679_360).best(), Cut { parts: 2, part_rows: 4096 });
        assert_eq!(size(8192, 20_000, 100_000_000).best().parts, 1);
    }

    /// As measured with a cold L2 cache, in microseconds: 4096 squared, 8192 rows, 10 % of blocks of 64, 50 % of 128.
    #[test]
    fn the_estimate_is_near_what_was_measured() {
        for (n_items, n_tiles, n_values, measured) in
            [(65, 540, 1_679_360, 92.0), (256, 1536, 8_388_608, 216.0)]
        {
            let size = Size { n_tiles, ..size(8192, n_items, n_values) };
            let estimate = size.time() as f64 / 1e6;
            assert!((estimate / measured - 1.0_f64).abs() < 0.15, "{estimate} us for {measured}");
        }
    }
}
