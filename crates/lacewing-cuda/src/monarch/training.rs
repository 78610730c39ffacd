//! Training passes of maps whose weights stay in the registers of a cluster: forward, and the gradients of x and both factors.
//!
//! Each kernel keeps what arrived in its thread blocks as it arrived, in the order that the next takes it: u of the forward pass,
//! dy permuted and du of the backward pass. Memory is passed over once for each of x, y, dy, dx, and twice for what is kept.

use super::resident::{CLUSTER_BLOCKS, CLUSTER_DY_PAD, CLUSTER_SIZES, CLUSTER_TILE, Resident, constants};
use super::{CALL, Operands, Plan, ROOM_START, holds};
use crate::source::hopper;
use crate::{Constant, CudaError, Device, Function, Region, Source, TensorMap};
use lacewing_core::chains::MonarchFactors;

static INPUT: Source = hopper!("monarch_input_gradient", "cluster.cuh", "input_gradient.cu");
static WEIGHTS: Source = hopper!("monarch_weight_gradients", "cluster.cuh", "weight_gradients.cu");

/// Rooms of the kernels, and threads of the second; those of the first are four warpgroups.
const INPUT_ROOMS: [(&str, usize); 4] = [("IN_ROOMS", 3), ("OUT_ROOMS", 1), ("U_ROOMS", 2), ("Y_ROOMS", 2)];
const WEIGHTS_ROOMS: [(&str, usize); 1] = [("ROOMS", 6)];
const INPUT_THREADS: usize = 512;
const WEIGHTS_THREADS: usize = 288;
/// Thread blocks of the second for each pair of blocks of a factor, and bytes of what two of them leave for two others.
const QUARTERS: usize = 4;
const PART_BYTES: usize = 128 << 10;
/// Columns of a line of x, dy and dx.
const LINE: usize = 64;

/// What a thread block has of a row tile in pieces [block][row][8 numbers], with `pad` bytes after each [row][8].
const fn tile_bytes(pad: usize) -> usize {
    CLUSTER_BLOCKS * 2 * (CLUSTER_TILE * 16 + pad)
}

/// The training passes of a [`Plan`].
#[derive(Debug, Clone, Copy)]
pub struct Training<'a> {
    pub(super) plan: &'a Plan,
    pub(super) resident: &'a Resident,
}

/// What the backward pass reads and writes: bf16 but for the weights' gradients, row-major, at multiples of 16 bytes.
#[derive(Debug, Clone, Copy)]
pub struct Gradients<'a> {
    /// `[rows, l s]`.
    pub d_y: &'a Region,
    /// `[rows, k p]`.
    pub x: &'a Region,
    /// `[k, q, p]`.
    pub first: &'a Region,
    /// `[l, s, r]`.
    pub second: &'a Region,
    /// What [`Training::forward`] kept.
    pub kept: &'a Region,
    /// `[rows, k p]`, overwritten.
    pub d_x: &'a Region,
    /// f32, as the factors; whether it is added to. None where it is not wanted.
    pub d_first: Option<(&'a Region, bool)>,
    /// Likewise.
    pub d_second: Option<(&'a Region, bool)>,
}

impl Training<'_> {
    /// Whether the device has room for the kernels' clusters; compiles them.
    ///
    /// # Errors
    ///
    /// What the compiler or the driver answers.
    pub fn runs_on(&self, device: &Device) -> Result<bool, CudaError> {
        let room = super::supported(device) && self.resident.load(device)?.is_some() && input(device)?.1 > 0;
        Ok(room && weights(device).map(|_| true)?)
    }

    /// Bytes that [`Training::forward`] keeps: of u, for whole row tiles.
    #[must_use]
    pub fn kept_bytes(&self, rows: usize) -> usize {
        rows.div_ceil(CLUSTER_TILE) * CLUSTER_BLOCKS * tile_bytes(0)
    }

    /// Queues the map of `rows` rows as [`Plan::run`] does, and keeps what [`Training::backward`] needs.
    ///
    /// # Errors
    ///
    /// As [`Plan::run`]; [`CudaError::NoKernel`] on a device that it does not [run on](Training::runs_on).
    pub fn forward(
        &self,
        device: &Device,
        rows: usize,
        operands: &Operands<'_>,
        kept: &Region,
    ) -> Result<(), CudaError> {
        self.plan.check(device, rows, operands)?;
        holds(device, "kept", kept, self.kept_bytes(rows), 16)?;
        let kernel = self.resident.load(device)?.ok_or_else(|| self.no_room(device))?;
        if rows == 0 {
            return Ok(());
        }
        // SAFETY: sizes and addresses were seen just now; this kernel takes biases at any address.
        unsafe { self.resident.run(kernel, rows, operands, Some(kept)) }
    }

    /// Queues the gradients of `rows` rows: those of the weights have the same bits every time.
    ///
    /// # Errors
    ///
    /// As [`Training::forward`].
    pub fn backward(&self, device: &Device, rows: usize, gradients: &Gradients<'_>) -> Result<(), CudaError> {
        let MonarchFactors { k, q, p, l, s, r } = self.plan.factors();
        let Gradients { d_y, x, first, second, kept, d_x, d_first, d_second } = *gradients;
        let results = [d_first, d_second].map(|result| result.map(|(region, _)| region));
        let sizes = [
            ("d_y", Some(d_y), rows * l * s * 2),
            ("x", Some(x), rows * k * p * 2),
            ("first", Some(first), k * q * p * 2),
            ("second", Some(second), l * s * r * 2),
            ("kept", Some(kept), self.kept_bytes(rows)),
            ("d_x", Some(d_x), rows * k * p * 2),
            ("d_first", results[0], k * q * p * 4),
            ("d_second", results[1], l * s * r * 4),
        ];
        for (name, region, bytes) in sizes {
            let Some(region) = region else { continue };
            holds(device, name, region, bytes, 16)?;
        }
        let (function, clusters) = input(device)?;
        if clusters == 0 {
            return Err(self.no_room(device));
        }
        if rows == 0 {
            let mut fresh = [d_first, d_second].into_iter().flatten().filter(|&(_, adds)| !adds);
            return fresh.try_for_each(|(result, _)| device.zero(result));
        }
        let n_tiles = rows.div_ceil(CLUSTER_TILE);
        let n_items = 2 * CLUSTER_BLOCKS;
        // Of dy, of du: what the weights' gradients are made of.
        let wanted = results.iter().any(Option::is_some);
        let arrived =
            |pad| wanted.then(|| device.region(n_tiles * CLUSTER_BLOCKS * tile_bytes(pad))).transpose();
        let (kept_dy, kept_du) = (arrived(CLUSTER_DY_PAD)?, arrived(0)?);
        let counters = device.region(2 * n_items * size_of::<u32>())?;
        // What a thread block has of a row tile.
        let (boxes, columns) = ((CLUSTER_TILE, k * p / CLUSTER_BLOCKS / LINE), k * p);
        let dy_map = TensorMap::by_rows(d_y, (rows, columns), LINE, boxes)?;
        let dx_map = TensorMap::new(d_x, (rows, columns), LINE, boxes)?;
        let args = [
            dy_map.into(),
            dx_map.into(),
            first.into(),
            second.into(),
            (rows as u32).into(),
            kept_dy.as_ref().into(),
            kept_du.as_ref().into(),
            (&counters).into(),
        ];
        let grid = clusters.min(n_tiles) * CLUSTER_BLOCKS;
        // SAFETY: the kernel's parameters in its order; sizes and addresses were seen above, the maps end where dy and dx do, what
        // is kept has room for whole row tiles.
        unsafe {
            function.launch(
                [grid as u32, 1, 1],
                [INPUT_THREADS as u32, 1, 1],
                input_bytes() as u32,
                &args,
            )?;
        }
        let (Some(kept_dy), Some(kept_du)) = (&kept_dy, &kept_du) else { return Ok(()) };
        let parts = device.region(2 * n_items * PART_BYTES)?;
        let adds = [d_first, d_second].map(|result| u32::from(result.is_some_and(|(_, adds)| adds)));
        let args = [
            TensorMap::new(x, (rows, columns), LINE, boxes)?.into(),
            kept.into(),
            kept_dy.into(),
            kept_du.into(),
            results[0].into(),
            results[1].into(),
            adds[0].into(),
            adds[1].into(),
            (&parts).into(),
            (&counters).into(),
            (rows as u32).into(),
        ];
        let grid = (n_items * QUARTERS) as u32;
        // SAFETY: likewise; the kernel before made the counters zero, and `parts` has room for what half of the thread blocks
        // leave.
        unsafe {
            weights(device)?.launch(
                [grid, 1, 1],
                [WEIGHTS_THREADS as u32, 1, 1],
                weights_bytes() as u32,
                &args,
            )
        }
    }

    /// The kernels of the backward pass and what they are compiled with.
    #[must_use]
    pub fn sources(&self) -> [(&'static Source, Vec<Constant>); 2] {
        [(&INPUT, input_constants()), (&WEIGHTS, weights_constants())]
    }

    fn no_room(&self, device: &Device) -> CudaError {
        CudaError::NoKernel {
            product: CALL,
            problem: format!("training of {:?} on {}", self.plan.factors(), device.properties().name),
            kernels: format!("{}, which needs clusters of {CLUSTER_BLOCKS}", INPUT.name),
        }
    }
}

fn input_constants() -> Vec<Constant> {
    constants(&CLUSTER_SIZES, &INPUT_ROOMS)
}

fn weights_constants() -> Vec<Constant> {
    constants(&CLUSTER_SIZES, &WEIGHTS_ROOMS)
}

fn input_bytes() -> usize {
    let [(_, ins), (_, outs), (_, us), (_, ys)] = INPUT_ROOMS;
    (ins + outs + 2 * us) * tile_bytes(0) + 2 * ys * tile_bytes(CLUSTER_DY_PAD) + ROOM_START
}

fn weights_bytes() -> usize {
    WEIGHTS_ROOMS[0].1 * 2 * tile_bytes(CLUSTER_DY_PAD).next_multiple_of(ROOM_START) + ROOM_START
}

/// The kernel for x, and how many of its clusters run at once.
fn input(device: &Device) -> Result<(Function, usize), CudaError> {
    let function = device.function_with(&INPUT, &input_constants(), INPUT.name)?;
    let clusters = function.clusters(CLUSTER_BLOCKS as u32, INPUT_THREADS as u32, input_bytes() as u32)?;
    Ok((function, clusters))
}

/// The kernel for the factors.
fn weights(device: &Device) -> Result<Function, CudaError> {
    device.function_with(&WEIGHTS, &weights_constants(), WEIGHTS.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monarch::{BARRIER_BYTES, SHARED_BYTES};

    #[test]
    fn rooms_and_barriers_fit_a_thread_block() {
        for bytes in [input_bytes(), weights_bytes()] {
            assert!(bytes + BARRIER_BYTES <= SHARED_BYTES, "{bytes}");
        }
    }
}
