//! Maps whose weights stay in registers: of a thread block where they are small, of a cluster of eight or sixteen where they are
//! larger. What lies between the factors then needs shared memory alone, and x and y pass through memory once.

use super::{Operands, ROOM_START, SHARED_BYTES};
use crate::source::hopper;
use crate::{Constant, CudaError, Device, Function, Region, Source, TensorMap};
use lacewing_core::chains::MonarchFactors;

/// A map as one of the kernels takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resident {
    source: &'static Source,
    constants: Vec<Constant>,
    factors: MonarchFactors,
    /// Thread blocks that hold the weights together, and their threads.
    cluster: usize,
    threads: usize,
    /// Rows of a row tile, and columns of a line of it.
    tile: usize,
    line: usize,
    /// Columns of a line of y, and rows of a box, where results leave through a tensor map.
    stores: Option<(usize, usize)>,
    /// Bytes of all rooms.
    rooms: usize,
    /// Whether it can keep u, for [`Training`](super::Training).
    pub(super) keeps: bool,
}

/// The kernels, named as the entries of their sources: each has the map as it takes it, if it does.
const KERNELS: [fn(MonarchFactors) -> Option<Resident>; 3] = [single, cluster, eight];

static SINGLE: Source = hopper!("monarch_single", "single.cu");
static CLUSTER: Source = hopper!("monarch_cluster", "cluster.cuh", "cluster.cu");
static EIGHT: Source = hopper!("monarch_eight", "eight.cu");

/// Bytes of a number.
const NUMBER: usize = 2;
/// Registers of warps that only copy, and of a multiprocessor.
const COPIES_REGISTERS: usize = 48;
const REGISTERS: usize = 64 << 10;
/// Threads of a warpgroup.
const GROUP: usize = 128;
/// Shared memory that is left when a kernel of this folder has its barriers.
const ROOMS_BYTES: usize = SHARED_BYTES - ROOM_START - 1024;

/// As many blocks of so many rows and columns in either factor.
fn square(blocks: usize, side: usize) -> MonarchFactors {
    MonarchFactors { k: blocks, q: side, p: side, l: blocks, s: side, r: side }
}

fn single(factors: MonarchFactors) -> Option<Resident> {
    const TILE: usize = 16;
    const ROOMS: [(&str, usize); 3] = [("X_ROOMS", 3), ("U_ROOMS", 2), ("Y_ROOMS", 2)];
    (factors == square(32, 32)).then(|| Resident {
        source: &SINGLE,
        constants: constants(&[("BLOCKS", 32), ("SIDE", 32), ("TILE", TILE)], &ROOMS),
        factors,
        cluster: 1,
        threads: 3 * GROUP,
        tile: TILE,
        line: 64,
        stores: Some((64, TILE)),
        rooms: ROOMS.iter().map(|(_, count)| count * TILE * 1024 * NUMBER).sum(),
        keeps: false,
    })
}

/// The sizes that `cluster.cuh` is for.
pub(super) const CLUSTER_SIZES: [(&str, usize); 5] = [
    ("BLOCKS", 32),
    ("SIDE", 128),
    ("CLUSTER", CLUSTER_BLOCKS),
    ("TILE", CLUSTER_TILE),
    ("DY_PAD", CLUSTER_DY_PAD),
];
pub(super) const CLUSTER_BLOCKS: usize = 16;
pub(super) const CLUSTER_TILE: usize = 32;
/// Bytes between pieces of dy.
pub(super) const CLUSTER_DY_PAD: usize = 16;

fn cluster(factors: MonarchFactors) -> Option<Resident> {
    const OWN: usize = 4096 / CLUSTER_BLOCKS;
    const ROOMS: [(&str, usize); 3] = [("X_ROOMS", 2), ("U_ROOMS", 3), ("Y_ROOMS", 3)];
    (factors == square(32, 128)).then(|| Resident {
        source: &CLUSTER,
        constants: constants(&CLUSTER_SIZES, &ROOMS),
        factors,
        cluster: CLUSTER_BLOCKS,
        threads: 4 * GROUP,
        tile: CLUSTER_TILE,
        line: 64,
        stores: None,
        // Of u and y as they leave and as they arrive.
        rooms: (ROOMS[0].1 + 2 * ROOMS[1].1 + 2 * ROOMS[2].1) * CLUSTER_TILE * OWN * NUMBER,
        keeps: true,
    })
}

/// Eight blocks in either factor, sides that are multiples of 32, as far as registers and shared memory go.
fn eight(factors: MonarchFactors) -> Option<Resident> {
    const BLOCKS: usize = 8;
    let MonarchFactors { k, q, p, l, s, r } = factors;
    let sides = [p, q, s].iter().all(|&side| side > 0 && side.is_multiple_of(32) && side <= 1 << 16);
    if (k, l) != (BLOCKS, BLOCKS) || q != r || !sides {
        return None;
    }
    // Tall tiles wait less, and need more registers beside weights and sums.
    [(64, 48), (32, 32)].into_iter().find_map(|(tile, other)| eight_with(factors, tile, other))
}

fn eight_with(factors: MonarchFactors, tile: usize, other: usize) -> Option<Resident> {
    const CLUSTER: usize = 8;
    let MonarchFactors { q, p, s, .. } = factors;
    // What a thread block sends to each, in sixteens of numbers.
    let [u, y] = [q, s].map(|side| (side / CLUSTER).div_ceil(16));
    // Registers of so many warpgroups that make `sixteens` for each, of sums of so many steps of 16.
    let registers = |groups: usize, sixteens: usize, steps: usize| {
        let of_warp = CLUSTER * sixteens / (4 * groups);
        let count = of_warp * (steps * 4 + tile / 2) + other;
        (count <= 232).then_some(count.next_multiple_of(8))
    };
    let (groups, needed) = [(1, 1), (1, 2), (2, 1), (2, 2)].into_iter().find_map(|groups| {
        let needed = (registers(groups.0, u, p / 16)?, registers(groups.1, y, CLUSTER * u)?);
        let all = groups.0 + groups.1 + 1;
        let given = REGISTERS / (all * GROUP) / 8 * 8 * all;
        (groups.0 * needed.0 + groups.1 * needed.1 + COPIES_REGISTERS <= given).then_some((groups, needed))
    })?;
    // Bytes of a room: of x, of u and y as they leave and as they arrive, and of y in rows. What is left is for x.
    let columns = [p, 2 * CLUSTER * u * 16, 2 * CLUSTER * y * 16, s];
    let [x, u, y, out] = columns.map(|columns| tile * columns * NUMBER);
    let counts = [(3, 3, 2), (3, 2, 2), (2, 2, 2), (2, 2, 1)];
    let (x_rooms, (u_rooms, y_rooms, out_rooms)) = counts.into_iter().find_map(|counts| {
        let left = ROOMS_BYTES.checked_sub(counts.0 * u + counts.1 * y + counts.2 * out)?;
        (left / x >= 2).then_some(((left / x).min(6), counts))
    })?;
    let line = |columns: usize| if columns.is_multiple_of(64) { 64 } else { 32 };
    let sizes = [("P", p), ("Q", q), ("S", s), ("TILE", tile), ("X_LINE", line(p)), ("Y_LINE", line(s))];
    let groups_of = [("FIRST_GROUPS", groups.0), ("SECOND_GROUPS", groups.1)];
    let registers = [
        ("FIRST_REGISTERS", needed.0),
        ("SECOND_REGISTERS", needed.1),
        ("COPIES_REGISTERS", COPIES_REGISTERS),
    ];
    let rooms = [("X_ROOMS", x_rooms), ("U_ROOMS", u_rooms), ("Y_ROOMS", y_rooms), ("OUT_ROOMS", out_rooms)];
    Some(Resident {
        source: &EIGHT,
        constants: constants(&[&sizes[..], &groups_of, &registers].concat(), &rooms),
        factors,
        cluster: CLUSTER,
        threads: (groups.0 + groups.1 + 1) * GROUP,
        tile,
        line: line(p),
        // Two warps store, half of the rows each.
        stores: Some((line(s), tile / 2)),
        rooms: x_rooms * x + u_rooms * u + y_rooms * y + out_rooms * out,
        keeps: false,
    })
}

pub(super) fn constants(sizes: &[(&'static str, usize)], rooms: &[(&'static str, usize)]) -> Vec<Constant> {
    sizes.iter().chain(rooms).map(|&(name, count)| (name, count as u32)).collect()
}

impl Resident {
    /// By the first kernel that takes it.
    pub(super) fn new(factors: MonarchFactors) -> Option<Self> {
        KERNELS.iter().find_map(|kernel| kernel(factors))
    }

    /// The kernel's source and what it is compiled with.
    #[must_use]
    pub fn source(&self) -> (&'static Source, &[Constant]) {
        (self.source, &self.constants)
    }

    fn shared_bytes(&self) -> usize {
        self.rooms + ROOM_START
    }

    /// The kernel, and how many of its clusters run at once: none on a device that has no room for one.
    pub(super) fn load(&self, device: &Device) -> Result<Option<(Function, usize)>, CudaError> {
        let function = device.function_with(self.source, &self.constants, self.source.name)?;
        let clusters = match self.cluster {
            1 => device.properties().sm_count,
            size => function.clusters(size as u32, self.threads as u32, self.shared_bytes() as u32)?,
        };
        Ok((clusters > 0).then_some((function, clusters)))
    }

    /// Queues the map of `rows` rows, at least one; u goes to `kept`, if there is one and the kernel keeps it.
    ///
    /// # Safety
    ///
    /// The operands are on the device, as large as a map of these sizes of so many rows has them, and at multiples of 16 bytes, the
    /// bias too unless the kernel keeps u. `kept` holds u for whole tiles.
    pub(super) unsafe fn run(
        &self,
        (function, clusters): (Function, usize),
        rows: usize,
        operands: &Operands<'_>,
        kept: Option<&Region>,
    ) -> Result<(), CudaError> {
        let Operands { x, first, second, y, finish } = *operands;
        let MonarchFactors { k, p, l, s, .. } = self.factors;
        // A thread block has as many columns of either.
        let map = |region, columns: usize, line: usize, box_rows| {
            TensorMap::new(region, (rows, columns), line, (box_rows, columns / self.cluster / line))
        };
        let x_map = map(x, k * p, self.line, self.tile)?;
        let y_arg = match self.stores {
            Some((line, box_rows)) => map(y, l * s, line, box_rows)?.into(),
            None => y.into(),
        };
        let operands = [x_map.into(), y_arg, first.into(), second.into(), finish.bias.into()];
        let sizes = [rows as u32, finish.activation as u32].map(Into::into);
        let kept = self.keeps.then(|| kept.into());
        let args = [&operands[..], &sizes, kept.as_slice()].concat();
        let grid = clusters.min(rows.div_ceil(self.tile)) * self.cluster;
        // SAFETY: the kernel's parameters in its order; the operands are the caller's promise, the maps end where x and y do,
        // and the kernel guards what it stores by itself.
        unsafe {
            function.launch(
                [grid as u32, 1, 1],
                [self.threads as u32, 1, 1],
                self.shared_bytes() as u32,
                &args,
            )
        }
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
    fn layers_of_vits_are_taken_and_what_they_are_cut_into_fits() {
        let layers =
            [(768, 768), (768, 2304), (768, 3072), (3072, 768), (256, 256), (512, 2048), (1024, 1024)];
        let eights = layers.map(|(n_in, n_out)| equal(n_in, n_out, 8));
        for factors in [square(32, 32), square(32, 128)].into_iter().chain(eights) {
            let resident = Resident::new(factors).unwrap_or_else(|| panic!("{factors:?}"));
            assert!(resident.rooms <= ROOMS_BYTES, "{factors:?}: {}", resident.rooms);
            assert!(resident.threads <= 5 * GROUP, "{factors:?}");
            let names: Vec<_> = resident.constants.iter().map(|(name, _)| name).collect();
            assert!((1..names.len()).all(|at| !names[..at].contains(&names[at])), "{names:?}");
        }
        let sizes = [equal(768, 3072, 16), equal(4096, 4096, 8), equal(768, 3072, 4), square(32, 64)];
        for factors in sizes {
            assert_eq!(Resident::new(factors), None, "{factors:?}");
        }
    }
}
