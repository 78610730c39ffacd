//! A Monarch map in one launch: two block-diagonal factors and the permutations after each.
//!
//! `u[κ·q + j] = Σ_i first[κ, j, i] x[κ·p + i]`, rounded to bf16, then `y[σ·l + λ] = f(b[σ·l + λ] + Σ_ρ second[λ, σ, ρ] u[ρ·l +
//! λ])`. Cost of a row: `k·q·p + l·s·r` multiply-adds; x and y pass through memory once, u through the L2 cache or, by the
//! kernels whose weights stay in registers, shared memory. The same problem gives the same bits: every sum has one order, whoever makes it.

mod resident;
mod training;

use crate::source::hopper;
use crate::{Constant, CudaError, Device, Finish, Region, Source, TensorMap, Type};
use lacewing_core::chains::MonarchFactors;

pub use resident::Resident;
pub use training::{Gradients, Training};

/// The source of the kernel for all sizes, which [`Plan::constants`] go with.
pub static SOURCE: Source = hopper!("monarch_fused", "fused.cu");

const CALL: &str = "Monarch map";

/// As in the source: rows of a row tile, threads, and how results lie in shared memory.
const HIGH: usize = 256;
const THREADS: u32 = 384;
const FIRST_OUT_BYTES: usize = HIGH * 16 + 32;
const SECOND_OUT_PAD: usize = 16;
/// Rooms start at multiples of it; what a thread block gets does not.
const ROOM_START: usize = 1024;
/// Shared memory of a thread block on Hopper, and of it what barriers take at most.
const SHARED_BYTES: usize = 227 << 10;
const BARRIER_BYTES: usize = 512;
/// Rooms of one step of the first factor, the least that make progress, and the most that help.
const LEAST_ROOMS: usize = 3;
const MOST_ROOMS: usize = 16;
/// Results of a second item: rows times outputs times lambdas.
const SECOND_RESULTS: usize = 64 * 1024;

/// How the kernel cuts a map into tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    factors: MonarchFactors,
    constants: Vec<Constant>,
    /// Columns of a line of a tile of x and the first factor, and of the second.
    lines: (usize, usize),
    /// Columns of a step of the first factor, and outputs and lines of one of the second.
    columns: usize,
    width: usize,
    depth: usize,
    /// Items of a row tile.
    items: (usize, usize),
    shared_bytes: usize,
    resident: Option<Resident>,
}

/// The operands: bf16, row-major, each but the bias at a multiple of 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Operands<'a> {
    /// `[rows, k p]`.
    pub x: &'a Region,
    /// `[k, q, p]`.
    pub first: &'a Region,
    /// `[l, s, r]`.
    pub second: &'a Region,
    /// `[rows, l s]`, overwritten.
    pub y: &'a Region,
    /// `f` and `b [l s]`.
    pub finish: Finish<'a>,
}

/// Whether the device has what the kernel is written for.
#[must_use]
pub fn supported(device: &Device) -> bool {
    device.properties().is_hopper()
}

impl Plan {
    /// The plan for these factors; none where the kernel does not take them. It takes `l` of 8, 16 or 32, blocks whose
    /// sides are multiples of 32, and `u` cut into whole items.
    #[must_use]
    pub fn new(factors: MonarchFactors) -> Option<Self> {
        let MonarchFactors { k, q, p, l, s, r } = factors;
        let sides = [p, q, r, s].iter().all(|&side| side > 0 && side.is_multiple_of(32));
        let counts = [k, q, p, l, s, r].iter().all(|&n| n <= 1 << 20);
        if !sides || !counts || k == 0 || ![8, 16, 32].contains(&l) || k * q != l * r {
            return None;
        }
        let largest = |n: usize, sizes: &[usize]| sizes.iter().copied().find(|&size| n.is_multiple_of(size));
        // As many columns of u at once as come out in fours of a lambda.
        let groups = [128, 96, 64, 32].map(|columns| (columns, if columns == q { 128 / q } else { 1 }));
        let (columns, group_blocks) = groups.into_iter().find(|&(columns, blocks)| {
            let group = blocks * columns;
            q.is_multiple_of(columns) && group.is_multiple_of(4 * l) && (k * q).is_multiple_of(2 * group)
        })?;
        let group = group_blocks * columns;
        let lambdas = if l == 8 { 8 } else { 16 };
        // Widths of which there is one, or in whose halves eight columns are: tall tiles of few columns read much.
        let width = if l == 8 { largest(s, &[96, 128, 64, 32])? } else { largest(s, &[64, 32])? };
        let low = [256, 128, 64].into_iter().find(|low| low * width * lambdas <= SECOND_RESULTS)?;
        let depth = largest(r, &[128, 96, 64, 32])?;
        let line = |n: usize| if n.is_multiple_of(64) { 64 } else { 32 };
        let lines = (line(p), line(depth));
        let bytes = Type::Bf16.size_bytes();
        let first_room = (HIGH / 2).max(columns) * lines.0 * bytes;
        let second_room = low.max(width) * depth * bytes;
        let room = first_room.max(second_room).next_multiple_of(ROOM_START);
        let first_out = 2 * group / 8 * FIRST_OUT_BYTES;
        let second_out = low * (width * lambdas * bytes + SECOND_OUT_PAD);
        let out = first_out.max(second_out);
        let rooms = ((SHARED_BYTES - ROOM_START - BARRIER_BYTES).checked_sub(out)? / room).min(MOST_ROOMS);
        if rooms < LEAST_ROOMS {
            return None;
        }
        let constants = [
            ("K", k),
            ("Q", q),
            ("P", p),
            ("L", l),
            ("S", s),
            ("R", r),
            ("N1", columns),
            ("GROUP_BLOCKS", group_blocks),
            ("FIRST_LINE", lines.0),
            ("HALVES", low / 64),
            ("WIDTH", width),
            ("DEPTH", depth),
            ("SECOND_LINE", lines.1),
            ("ROOMS", rooms),
        ];
        Some(Self {
            factors,
            constants: constants.map(|(name, value)| (name, value as u32)).to_vec(),
            lines,
            columns,
            width,
            depth,
            items: (k * q / (2 * group), HIGH / low * (s / width) * (l / lambdas)),
            shared_bytes: rooms * room + out + ROOM_START,
            resident: Resident::new(factors),
        })
    }

    /// The sizes it is for.
    #[must_use]
    pub fn factors(&self) -> MonarchFactors {
        self.factors
    }

    /// The kernel that a device with room for it takes instead: what lies between the factors then never leaves the
    /// multiprocessors.
    #[must_use]
    pub fn resident(&self) -> Option<&Resident> {
        self.resident.as_ref()
    }

    /// What [`SOURCE`] is compiled with.
    #[must_use]
    pub fn constants(&self) -> &[Constant] {
        &self.constants
    }

    /// Queues the map of `rows` rows.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoKernel`] on a device that is not [`supported`], [`CudaError::OperandBytes`], [`CudaError::WrongDevice`]
    /// or [`CudaError::Dimension`] before anything is queued, or what the driver answers.
    pub fn run(&self, device: &Device, rows: usize, operands: &Operands<'_>) -> Result<(), CudaError> {
        self.check(device, rows, operands)?;
        let MonarchFactors { k, q, p, l, s, r } = self.factors;
        let Operands { x, first, second, y, finish } = *operands;
        let bytes = Type::Bf16.size_bytes();
        if rows == 0 {
            return Ok(());
        }
        let n_tiles = rows.div_ceil(HIGH);
        let n_items = n_tiles * (self.items.0 + self.items.1);
        if u32::try_from(n_items).is_err() || u32::try_from(n_tiles * HIGH).is_err() {
            let expected = "as many as 32 bits count, and their items".to_owned();
            return Err(CudaError::Dimension { call: CALL, dimension: "rows", expected, got: rows });
        }
        // They read biases 16 bytes at a time.
        let aligned = finish.bias.is_none_or(|bias| bias.ptr().is_multiple_of(16));
        if let Some(resident) = self.resident.as_ref().filter(|_| aligned)
            && let Some(kernel) = resident.load(device)?
        {
            // SAFETY: sizes and addresses were seen above, the bias's just now.
            return unsafe { resident.run(kernel, rows, operands, None) };
        }
        let thread_blocks = device.properties().sm_count.min(n_items);
        let Schedule { lag, ring } = Schedule::new(thread_blocks, self.items, n_tiles);
        let maps = [
            TensorMap::new(x, (rows, k * p), self.lines.0, (HIGH / 2, 1))?,
            TensorMap::new(first, (k * q, p), self.lines.0, (self.columns, 1))?,
            TensorMap::new(second, (l * s, r), self.lines.1, (self.width, self.depth / self.lines.1))?,
        ];
        let mid = device.region(ring * HIGH * k * q * bytes)?;
        let counters = device.region((1 + 2 * n_tiles) * size_of::<u32>())?;
        let function = device.function_with(&SOURCE, &self.constants, "monarch")?;
        device.zero(&counters)?;
        let regions = [finish.bias.into(), y.into(), (&mid).into(), (&counters).into()];
        let sizes = [rows, lag, ring, finish.activation as usize].map(|n| (n as u32).into());
        let args = [&maps.map(Into::into)[..], &regions[..], &sizes[..]].concat();
        // SAFETY: the kernel's parameters in its order; the operands' sizes and addresses were seen above, the maps end where
        // they do, `mid` holds `ring` row tiles and `counters` one number and two a row tile, all zero; the kernel guards
        // the last row tile.
        unsafe {
            function.launch([thread_blocks as u32, 1, 1], [THREADS, 1, 1], self.shared_bytes as u32, &args)
        }
    }
}

impl Plan {
    /// The training passes, of sizes that have kernels for them.
    #[must_use]
    pub fn training(&self) -> Option<Training<'_>> {
        self.resident
            .as_ref()
            .filter(|resident| resident.keeps)
            .map(|resident| Training { plan: self, resident })
    }

    fn check(&self, device: &Device, rows: usize, operands: &Operands<'_>) -> Result<(), CudaError> {
        let MonarchFactors { k, q, p, l, s, r } = self.factors;
        if !supported(device) {
            return Err(CudaError::NoKernel {
                product: CALL,
                problem: format!("{:?} on capability {:?}", self.factors, device.properties().capability),
                kernels: SOURCE.name.to_owned(),
            });
        }
        let Operands { x, first, second, y, finish } = *operands;
        let sizes = [
            ("x", Some(x), rows * k * p),
            ("first", Some(first), k * q * p),
            ("second", Some(second), l * s * r),
            ("bias", finish.bias, l * s),
            ("y", Some(y), rows * l * s),
        ];
        for (name, region, len) in sizes {
            let Some(region) = region else { continue };
            holds(device, name, region, len * Type::Bf16.size_bytes(), if name == "bias" { 1 } else { 16 })?;
        }
        Ok(())
    }
}

/// Checks that an operand is on the device, so large, and at a multiple of so many bytes.
fn holds(
    device: &Device,
    name: &'static str,
    region: &Region,
    bytes: usize,
    step: usize,
) -> Result<(), CudaError> {
    device.holds(CALL, name, region, bytes)?;
    match (region.ptr() % step as u64) as usize {
        0 => Ok(()),
        got => {
            let (dimension, expected) = ("address modulo 16", format!("0 for {name}"));
            Err(CudaError::Dimension { call: CALL, dimension, expected, got })
        }
    }
}

/// How far the second factor is behind, in row tiles, and of how many there is room.
#[derive(Debug, PartialEq, Eq)]
struct Schedule {
    lag: usize,
    ring: usize,
}

impl Schedule {
    /// So far that what a thread block draws next was finished by all others: each holds one item and fetches another.
    fn new(thread_blocks: usize, items: (usize, usize), n_tiles: usize) -> Self {
        let lag = 2 * thread_blocks.div_ceil(items.0 + items.1);
        Self { lag: lag.min(n_tiles), ring: (2 * lag).min(n_tiles) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn equal(n_in: usize, n_out: usize, blocks: usize) -> MonarchFactors {
        let (p, s) = (n_in / blocks, n_out / blocks);
        MonarchFactors { k: blocks, q: p.min(s), p, l: blocks, s, r: p.min(s) }
    }

    #[test]
    fn plans_fit_shared_memory_and_cut_everything_whole() {
        let mut taken = 0;
        for blocks in [8, 16, 32] {
            for n_in in (1..=48).map(|n| n * 128) {
                for n_out in (1..=48).map(|n| n * 128) {
                    let factors = equal(n_in, n_out, blocks);
                    if n_in % blocks + n_out % blocks > 0 {
                        continue;
                    }
                    let Some(plan) = Plan::new(factors) else { continue };
                    taken += 1;
                    let constant = |name| {
                        let (_, value) = plan.constants.iter().find(|(known, _)| *known == name).unwrap();
                        *value as usize
                    };
                    let MonarchFactors { k, q, l, s, r, .. } = factors;
                    let group = constant("GROUP_BLOCKS") * constant("N1");
                    assert_eq!(plan.items.0 * 2 * group, k * q, "{factors:?}");
                    let (low, lambdas) = (constant("HALVES") * 64, if l == 8 { 8 } else { 16 });
                    assert_eq!(plan.items.1 * low * constant("WIDTH") * lambdas, HIGH * s * l, "{factors:?}");
                    assert_eq!((q % constant("N1"), r % constant("DEPTH")), (0, 0), "{factors:?}");
                    assert!(plan.shared_bytes + BARRIER_BYTES <= SHARED_BYTES, "{factors:?}");
                }
            }
        }
        assert!(taken > 500, "{taken} of the sizes have plans");
    }

    #[test]
    fn maps_that_the_kernel_cannot_cut_have_no_plan() {
        assert!(Plan::new(equal(4096, 4096, 32)).is_some());
        for (n_in, n_out, blocks) in [(4096, 4096, 4), (4096, 4096, 64), (192, 768, 8), (1000, 1000, 8)] {
            assert_eq!(Plan::new(equal(n_in, n_out, blocks)), None, "{n_in} {n_out} {blocks}");
        }
        let MonarchFactors { k, .. } = equal(4096, 4096, 32);
        assert_eq!(Plan::new(MonarchFactors { k: k + 1, ..equal(4096, 4096, 32) }), None);
    }

    /// An item waits for items drawn before it only, or thread blocks would wait for each other for ever.
    #[test]
    fn the_ring_is_longer_than_the_lag_or_holds_everything() {
        for thread_blocks in [1, 2, 78, 132] {
            for items in [(1, 1), (4, 12), (16, 16), (64, 2)] {
                for n_tiles in 1..300 {
                    let Schedule { lag, ring } = Schedule::new(thread_blocks, items, n_tiles);
                    assert!(
                        lag >= 1 && lag <= n_tiles && (ring > lag || ring == n_tiles),
                        "{lag} {ring} {n_tiles}"
                    );
                }
            }
        }
    }
}
