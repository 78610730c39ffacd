//! Launches `persistent.cu`: Hopper's warpgroup products on a chip filled once, bf16, sides of blocks multiples of 32.

use super::pattern::{OnDevice, Tiled};
use super::{Kernel, Problem, Product, warpgroup, weight_gradient};
use crate::source::hopper;
use crate::{CudaError, Device, Finish, Region, Source, TensorMap, Type};

pub(super) static SOURCE: Source = hopper!("persistent", "persistent.cu");

pub(super) const KERNEL: Kernel = Kernel {
    name: "persistent",
    about: "bf16 on Hopper's tensor cores and copy engine, blocks of multiples of 32, f32 sums, for many rows",
    finishes: true,
    accepts,
    run,
};

/// As in the source.
const THREADS: u32 = 384;
const OUT_BYTES: usize = 32 << 10;
const SLICE: usize = 64;
/// Rooms start at multiples of it; what a thread block gets does not.
const ROOM_START: usize = 1024;
/// Items that fill enough of the chip.
const LEAST_ITEMS: usize = 32;
/// Multiply-adds for each number of a row of the input and the output from which on there is time to read ahead: below, an
/// H200's memory is what takes longest, and what is read ahead of need comes before what is needed.
const PREFETCH_WORK: usize = 190;

/// Rows of an item, how many rooms there are, and entries, by lines of 64 and 32.
struct Tiles {
    rows: usize,
    rooms: [usize; 2],
    forward: [&'static str; 2],
    input_gradient: [&'static str; 2],
}

const HIGH: Tiles = Tiles {
    rows: 256,
    rooms: [4, 8],
    forward: ["forward_256_64", "forward_256_32"],
    input_gradient: ["input_gradient_256_64", "input_gradient_256_32"],
};
const LOW: Tiles = Tiles {
    rows: 128,
    rooms: [6, 12],
    forward: ["forward_128_64", "forward_128_32"],
    input_gradient: ["input_gradient_128_64", "input_gradient_128_32"],
};

fn accepts(device: &Device, problem: &Problem<'_>, aligned: bool) -> bool {
    let n_items = |panels: &OnDevice| problem.rows.div_ceil(LOW.rows) * panels.n_panels;
    device.properties().is_hopper()
        && problem.of == Type::Bf16
        && aligned
        && problem.pattern.n_blocks() > 0
        && problem.pattern.tiled.as_ref().is_some_and(|Tiled { panels: [forward, transposed], .. }| {
            let fewest = n_items(forward).min(n_items(transposed));
            fewest >= LEAST_ITEMS && n_items(forward).max(n_items(transposed)) < 1 << 28
        })
        && u32::try_from(problem.rows.max(problem.pattern.n_out).max(problem.pattern.n_in)).is_ok()
}

fn run(device: &Device, problem: &Problem<'_>, product: &Product<'_>) -> Result<(), CudaError> {
    let pattern = problem.pattern;
    let Tiled { panels: [forward, transposed], chunks } = pattern.tiled.as_ref().expect("`accepts` saw them");
    match *product {
        Product::Forward { x, values, y, finish } => {
            let (from, to) = ((x, pattern.n_in), (y, pattern.n_out));
            multiply(device, problem, forward, from, values, to, finish, |tiles| &tiles.forward)
        }
        Product::InputGradient { d_y, values, d_x } => {
            let (from, to) = ((d_y, pattern.n_out), (d_x, pattern.n_in));
            let finish = Finish::default();
            multiply(device, problem, transposed, from, values, to, finish, |tiles| &tiles.input_gradient)
        }
        Product::WeightGradient { d_y, x, d_values } => {
            // Its large tiles read less where blocks are large, and its thread blocks, two on a multiprocessor, wait less
            // for memory where there is little to do.
            let other = warpgroup::gradient_time(problem)
                .filter(|_| (warpgroup::KERNEL.accepts)(device, problem, true));
            if other.is_some_and(|other| other < weight_gradient::time(device, problem, chunks)) {
                return (warpgroup::KERNEL.run)(device, problem, product);
            }
            weight_gradient::run(device, problem, chunks, (d_y, x), d_values)
        }
    }
}

fn multiply(
    device: &Device,
    problem: &Problem<'_>,
    panels: &OnDevice,
    (from, n_sum): (&Region, usize),
    values: &Region,
    (to, n_line): (&Region, usize),
    finish: Finish<'_>,
    entries: impl Fn(&Tiles) -> &[&'static str; 2],
) -> Result<(), CudaError> {
    let pattern = problem.pattern;
    let sm_count = device.properties().sm_count;
    let n_items = |tiles: &Tiles| problem.rows.div_ceil(tiles.rows) * panels.n_panels;
    // Low tiles read weights twice as often, a quarter slower, but may fill the chip better.
    let time = |tiles: &Tiles, slower: usize| n_items(tiles).div_ceil(sm_count) * tiles.rows * slower;
    let tiles = if time(&HIGH, 4) <= time(&LOW, 5) { HIGH } else { LOW };
    let n_items = n_items(&tiles);
    let line = panels.line;
    let by_line = usize::from(line == 32);
    let function = device.function(&SOURCE, entries(&tiles)[by_line])?;
    let (block_rows, block_cols) = pattern.block();
    let maps = [
        TensorMap::new(from, (problem.rows, n_sum), line, (tiles.rows, 1))?,
        TensorMap::new(values, (pattern.n_blocks() * block_rows, block_cols), line, (line, 1))?,
        TensorMap::new(to, (problem.rows, n_line), line, (SLICE, 1))?,
    ];
    let thread_blocks = sm_count.min(n_items);
    // Row tiles that are being worked on, and one more.
    let ahead = (thread_blocks / panels.n_panels + 1) * panels.n_panels;
    let ahead = if pattern.n_values() >= PREFETCH_WORK * (n_sum + n_line) { ahead } else { 0 };
    let room = (tiles.rows + super::panels::PANEL) * line * Type::Bf16.size_bytes();
    let shared = tiles.rooms[by_line] * room + OUT_BYTES + ROOM_START;
    let regions = [&panels.steps, &panels.lines, &pattern.counters].map(Into::into);
    let counts = [panels.n_panels, n_items, panels.panel_steps].map(|n| (n as u32).into());
    let sizes = [problem.rows, n_sum, ahead].map(|n| (n as u32).into());
    let finish = [finish.bias.into(), (finish.activation as u32).into()];
    let args = [&maps.map(Into::into)[..], &regions, &counts, &[from.into()], &sizes, &finish].concat();
    // SAFETY: the kernel's parameters in its order; `check` saw the operands' sizes, the maps end where they do, the pattern
    // is inside the weight, and the counters are zero before and after.
    unsafe { function.launch([thread_blocks as u32, 1, 1], [THREADS, 1, 1], shared as u32, &args) }
}
