//! Products with a weight of at most two values in every four inputs, on Hopper's sparse tensor cores.
//!
//! `y = f(x W' + b)`, bf16 with f32 sums. Cost: `rows n_in n_out` multiply-adds, half of a dense product's, of which the tensor
//! cores do twice as many in the same time; the weight is read at 9/16 of its dense size. The same problem gives the same
//! bits: no atomics, one order of sums.
//!
//! For the input's gradient the fours would have to run along outputs: that and the weight's are dense products, of what
//! [`fill`] makes and for [`gather_add`].

mod pattern;

pub use pattern::TwoFourPattern;

use crate::source::hopper;
use crate::{Arg, CudaError, Device, Finish, Region, Source, TensorMap, Type};
use pattern::PANELS;

/// The source of the kernels.
pub static SOURCE: Source = hopper!("two_four", "product.cu");

const CALL: &str = "2:4 product";

/// As in the source.
const CLUSTER: usize = 2;
const THREADS: u32 = 384;
const STEP: usize = 64;
const PANEL: usize = PANELS / CLUSTER;
const LOW: usize = 64;
const SLICE: usize = 32;
const OUT_BYTES: usize = 24 << 10;
/// Rooms start at multiples of it; what a thread block gets does not.
const ROOM_START: usize = 1024;
/// Threads of a block of the other kernels, and inputs that one of them takes at once.
const THREADS_OVER: u32 = 256;
const SIXTEEN: usize = 16;

/// Rows of an item, rooms, and the kernel's name.
#[derive(Debug, Clone, Copy)]
struct Tile {
    rows: usize,
    rooms: usize,
    entry: &'static str,
}

const HIGH_TILE: Tile = Tile { rows: 256, rooms: 5, entry: "two_four_256" };
const LOW_TILE: Tile = Tile { rows: 128, rooms: 8, entry: "two_four_128" };

/// The operands: bf16, row-major, each but the bias at a multiple of 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// `[rows, n_in]`.
    pub x: &'a Region,
    /// `[n_out, n_in / 2]`: the values as they are stored if the pattern is packed, else what [`pack`] made of them.
    pub packed: &'a Region,
    /// `[rows, n_out]`, overwritten.
    pub y: &'a Region,
    /// `f` and `b [n_out]`.
    pub finish: Finish<'a>,
}

/// Whether the device has what the kernel is written for.
#[must_use]
pub fn supported(device: &Device) -> bool {
    device.properties().is_hopper()
}

/// Queues the making of what [`Operands::packed`] is of the stored `values`, for a pattern that is not packed.
///
/// # Errors
///
/// [`CudaError::OperandBytes`] or [`CudaError::WrongDevice`] before anything is queued, or what the driver answers.
pub fn pack(
    device: &Device,
    pattern: &TwoFourPattern,
    values: &Region,
    packed: &Region,
) -> Result<(), CudaError> {
    let (n, bytes) = (pattern.n_packed(), Type::Bf16.size_bytes());
    device.holds(CALL, "values", values, pattern.n_values * bytes)?;
    device.holds(CALL, "packed", packed, n * bytes)?;
    let Some(slots) = &pattern.slots else { return device.copy(packed, values) };
    device.is_here(CALL, "pattern", slots)?;
    let args = [values.into(), slots.into(), packed.into(), (n as u32).into()];
    // SAFETY: the kernel's parameters in its order; the sizes were seen above, slots are places of values or none.
    unsafe { launch_over(device, "pack_values", n, &args) }
}

/// Queues the making of the dense `weight [n_out, n_in]` of packed values, all at multiples of 16 bytes.
///
/// # Errors
///
/// As [`pack`], and [`CudaError::Dimension`] for an address.
pub fn fill(
    device: &Device,
    pattern: &TwoFourPattern,
    packed: &Region,
    weight: &Region,
) -> Result<(), CudaError> {
    let (&TwoFourPattern { n_out, n_in, .. }, bytes) = (pattern, Type::Bf16.size_bytes());
    holds_aligned(device, "values", packed, pattern.n_packed() * bytes)?;
    holds_aligned(device, "weight", weight, n_out * n_in * bytes)?;
    device.is_here(CALL, "pattern", &pattern.metadata)?;
    let sizes = [n_out, n_in].map(|n| (n as u32).into());
    let args = [&[packed.into(), (&pattern.metadata).into(), weight.into()][..], &sizes].concat();
    // SAFETY: the kernel's parameters in its order; the sizes and addresses were seen above, the metadata is that of the weight.
    unsafe { launch_over(device, "fill_weight", n_out * n_in / SIXTEEN, &args) }
}

/// Queues `d_values += ` their places in the dense gradient `d_weight [n_out, n_in]`, both f32, the dense one at a multiple of
/// 16 bytes. `d_values` are in the order of the positions.
///
/// # Errors
///
/// As [`fill`].
pub fn gather_add(
    device: &Device,
    pattern: &TwoFourPattern,
    d_weight: &Region,
    d_values: &Region,
) -> Result<(), CudaError> {
    let (&TwoFourPattern { n_out, n_in, .. }, bytes) = (pattern, Type::F32.size_bytes());
    holds_aligned(device, "d_weight", d_weight, n_out * n_in * bytes)?;
    device.holds(CALL, "d_values", d_values, pattern.n_values * bytes)?;
    device.is_here(CALL, "pattern", &pattern.metadata)?;
    let regions =
        [d_weight.into(), (&pattern.metadata).into(), pattern.slots.as_ref().into(), d_values.into()];
    let sizes = [n_out, n_in].map(|n| (n as u32).into());
    let args = [&regions[..], &sizes].concat();
    // SAFETY: as for `fill`; slots are places of values or none, each there once.
    unsafe { launch_over(device, "gather_values", n_out * n_in / SIXTEEN, &args) }
}

/// Queues a kernel whose threads take as many of `n` as they must.
///
/// # Safety
///
/// As [`crate::Function::launch`].
unsafe fn launch_over(device: &Device, entry: &'static str, n: usize, args: &[Arg]) -> Result<(), CudaError> {
    let grid = n.div_ceil(THREADS_OVER as usize).min(32 * device.properties().sm_count) as u32;
    // SAFETY: the caller's.
    unsafe { device.function(&SOURCE, entry)?.launch([grid, 1, 1], [THREADS_OVER, 1, 1], 0, args) }
}

/// An operand that holds `bytes` at a multiple of 16.
fn holds_aligned(
    device: &Device,
    name: &'static str,
    region: &Region,
    bytes: usize,
) -> Result<(), CudaError> {
    device.holds(CALL, name, region, bytes)?;
    match (region.ptr() % 16) as usize {
        0 => Ok(()),
        got => {
            let expected = format!("0 for {name}");
            Err(CudaError::Dimension { call: CALL, dimension: "address modulo 16", expected, got })
        }
    }
}

/// Queues the product of `rows` rows.
///
/// # Errors
///
/// [`CudaError::NoKernel`] on a device that is not [`supported`], [`CudaError::OperandBytes`], [`CudaError::WrongDevice`] or
/// [`CudaError::Dimension`] before anything is queued, or what the driver answers.
pub fn multiply(
    device: &Device,
    pattern: &TwoFourPattern,
    rows: usize,
    operands: &Operands<'_>,
) -> Result<(), CudaError> {
    let &TwoFourPattern { n_out, n_in, .. } = pattern;
    if !supported(device) {
        return Err(CudaError::NoKernel {
            product: "2:4",
            problem: format!("[{n_out}, {n_in}] on capability {:?}", device.properties().capability),
            kernels: SOURCE.name.to_owned(),
        });
    }
    let Operands { x, packed, y, finish } = *operands;
    let bytes = Type::Bf16.size_bytes();
    for (name, region, len) in
        [("x", x, rows * n_in), ("values", packed, pattern.n_packed()), ("y", y, rows * n_out)]
    {
        holds_aligned(device, name, region, len * bytes)?;
    }
    if let Some(bias) = finish.bias {
        device.holds(CALL, "bias", bias, n_out * bytes)?;
    }
    device.is_here(CALL, "pattern", &pattern.metadata)?;
    if rows == 0 {
        return Ok(());
    }
    let n_out_tiles = n_out.div_ceil(PANELS);
    if rows.div_ceil(LOW) * n_out_tiles >= 1 << 30 {
        let expected = "so few that 32 bits count their items".to_owned();
        return Err(CudaError::Dimension { call: CALL, dimension: "rows", expected, got: rows });
    }
    let most = (device.properties().sm_count / CLUSTER).max(1);
    let of = |tile: Tile| Items::new(rows, n_out_tiles, most, tile.rows);
    // Low tiles read the weight twice as often, a quarter slower, but may fill the chip better.
    let tile = if of(HIGH_TILE).time * 4 <= of(LOW_TILE).time * 5 { HIGH_TILE } else { LOW_TILE };
    let Items { n_high, n_items, .. } = of(tile);
    let maps = [
        TensorMap::new(x, (rows, n_in), STEP, (tile.rows / CLUSTER, 1))?,
        TensorMap::new(x, (rows, n_in), STEP, (LOW / CLUSTER, 1))?,
        TensorMap::new(packed, (n_out, n_in / 2), STEP / 2, (PANEL, 1))?,
        TensorMap::new(y, (rows, n_out), STEP, (SLICE, 1))?,
    ];
    let function = device.function(&SOURCE, tile.entry)?;
    let counts = [rows.div_ceil(tile.rows), n_out_tiles, n_high, n_items, n_in / STEP];
    let args = [
        &maps.map(Into::into)[..],
        &[(&pattern.metadata).into()],
        &counts.map(|n| (n as u32).into()),
        &[finish.bias.into(), (n_out as u32).into(), (finish.activation as u32).into()],
    ]
    .concat();
    let room = (tile.rows + PANEL / 2) * STEP * Type::Bf16.size_bytes();
    let shared = tile.rooms * room + OUT_BYTES + ROOM_START;
    let grid = (n_items.min(most) * CLUSTER) as u32;
    // SAFETY: the kernel's parameters in its order; the operands' sizes and addresses were seen above, the maps end where they
    // do, and the metadata is that of whole pairs of panels.
    unsafe { function.launch([grid, 1, 1], [THREADS, 1, 1], shared as u32, &args) }
}

/// How a product is cut: whole tiles first, then lower ones.
#[derive(Debug, PartialEq, Eq)]
struct Items {
    n_high: usize,
    n_items: usize,
    /// In rows that a pair of thread blocks multiplies.
    time: usize,
}

impl Items {
    /// What is left after the last full round of `most` pairs is cut into tiles of [`LOW`] rows, if each is given one at most.
    fn new(rows: usize, n_out_tiles: usize, most: usize, high: usize) -> Self {
        let n_tiles = rows.div_ceil(high) * n_out_tiles;
        let (rounds, left) = (n_tiles / most, n_tiles % most);
        let parts = high / LOW;
        if left > 0 && left * parts <= most {
            let n_high = n_tiles - left;
            return Self { n_high, n_items: n_high + left * parts, time: rounds * high + LOW };
        }
        Self { n_high: n_tiles, n_items: n_tiles, time: n_tiles.div_ceil(most) * high }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_over_is_cut_low_if_nobody_gets_two() {
        let items = |rows, n_out_tiles, high| {
            let Items { n_high, n_items, time } = Items::new(rows, n_out_tiles, 66, high);
            (n_high, n_items, time)
        };
        assert_eq!(items(8192, 16, 256), (512, 512, 8 * 256));
        assert_eq!(items(8192, 64, 256), (31 * 66, 31 * 66 + 8, 31 * 256 + 64));
        assert_eq!(items(1000, 4, 256), (0, 64, 64));
        assert_eq!(items(1000, 5, 256), (20, 20, 256));
        assert_eq!(items(16, 16, 128), (0, 32, 64));
    }
}
