//! Maps of 32 blocks whose weights stay in registers: of a thread block where they are 32 x 32, of a cluster of sixteen where
//! they are 128 x 128. What lies between the factors then needs shared memory alone, and x and y pass through memory once.

use super::Operands;
use crate::source::hopper;
use crate::{Constant, CudaError, Device, Function, Source, TensorMap};
use lacewing_core::chains::MonarchFactors;

/// A kernel and the one map it is for.
#[derive(Debug)]
pub struct Resident {
    /// Its source.
    pub source: Source,
    /// What that is compiled with.
    pub constants: &'static [Constant],
    entry: &'static str,
    /// Blocks of either factor, and rows and columns of a block.
    blocks: usize,
    side: usize,
    /// Thread blocks that hold the weights together, and their threads.
    cluster: usize,
    threads: usize,
    /// Rows of a row tile, and how many of them a thread block has room for: of x, u and y.
    tile: usize,
    rooms: usize,
}

/// A table of [`Resident`] rows. The numbers of a row are those of its constants.
pub static RESIDENT: [Resident; 2] = [
    Resident {
        source: hopper!("monarch_single", "single.cu"),
        constants: &[
            ("BLOCKS", 32),
            ("SIDE", 32),
            ("TILE", 16),
            ("X_ROOMS", 3),
            ("U_ROOMS", 2),
            ("Y_ROOMS", 2),
        ],
        entry: "monarch_single",
        blocks: 32,
        side: 32,
        cluster: 1,
        threads: 384,
        tile: 16,
        rooms: 3 + 2 + 2,
    },
    Resident {
        source: hopper!("monarch_cluster", "cluster.cu"),
        constants: &[
            ("BLOCKS", 32),
            ("SIDE", 128),
            ("CLUSTER", 16),
            ("TILE", 32),
            ("X_ROOMS", 2),
            ("U_ROOMS", 3),
            ("Y_ROOMS", 3),
        ],
        entry: "monarch_cluster",
        blocks: 32,
        side: 128,
        cluster: 16,
        threads: 512,
        tile: 32,
        // Of u and y as they leave and as they arrive.
        rooms: 2 + 2 * 3 + 2 * 3,
    },
];

/// Columns of a line of a tile.
const LINE: usize = 64;
/// Rooms start at multiples of it; what a thread block gets does not.
const ROOM_START: usize = 1024;

impl Resident {
    /// The row for these sizes.
    pub(super) fn of(factors: MonarchFactors) -> Option<&'static Self> {
        RESIDENT.iter().find(|row| {
            let (blocks, side) = (row.blocks, row.side);
            factors == MonarchFactors { k: blocks, q: side, p: side, l: blocks, s: side, r: side }
        })
    }

    /// Columns of x and y that a thread block has.
    fn own_columns(&self) -> usize {
        self.blocks * self.side / self.cluster
    }

    fn shared_bytes(&self) -> usize {
        self.rooms * self.tile * self.own_columns() * 2 + ROOM_START
    }

    /// The kernel, and how many of its clusters run at once: none on a device that has no room for one.
    pub(super) fn load(&'static self, device: &Device) -> Result<Option<(Function, usize)>, CudaError> {
        let function = device.function_with(&self.source, self.constants, self.entry)?;
        let clusters = match self.cluster {
            1 => device.properties().sm_count,
            size => function.clusters(size as u32, self.threads as u32, self.shared_bytes() as u32)?,
        };
        Ok((clusters > 0).then_some((function, clusters)))
    }

    /// Queues the map of `rows` rows, at least one.
    ///
    /// # Safety
    ///
    /// The operands are on the device, as large as a map of these sizes of so many rows has them, and at multiples of 16 bytes, the bias too.
    pub(super) unsafe fn run(
        &self,
        (function, clusters): (Function, usize),
        rows: usize,
        operands: &Operands<'_>,
    ) -> Result<(), CudaError> {
        let Operands { x, first, second, y, finish } = *operands;
        let shape = (rows, self.blocks * self.side);
        let map = |region| TensorMap::new(region, shape, LINE, (self.tile, self.own_columns() / LINE));
        let maps = [map(x)?, map(y)?].map(Into::into);
        let regions = [first.into(), second.into(), finish.bias.into(), y.into()];
        let sizes = [rows as u32, finish.activation as u32].map(Into::into);
        let args = [&maps[..], &regions[..], &sizes[..]].concat();
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
    use super::RESIDENT;

    #[test]
    fn rows_say_what_their_sources_are_compiled_with_and_fit_shared_memory() {
        for row in &RESIDENT {
            let constant =
                |name| row.constants.iter().find(|(known, _)| *known == name).map(|&(_, n)| n as usize);
            let of = |name| constant(name).expect("a constant of both sources");
            assert_eq!(
                (of("BLOCKS"), of("SIDE"), of("TILE")),
                (row.blocks, row.side, row.tile),
                "{}",
                row.entry
            );
            assert_eq!(constant("CLUSTER").unwrap_or(1), row.cluster, "{}", row.entry);
            let ways = if row.cluster > 1 { 2 } else { 1 };
            assert_eq!(of("X_ROOMS") + ways * (of("U_ROOMS") + of("Y_ROOMS")), row.rooms, "{}", row.entry);
            assert!(row.shared_bytes() <= (227 << 10) - 512, "{}: {}", row.entry, row.shared_bytes());
        }
    }
}
