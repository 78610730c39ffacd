//! Launches `k_winners/kernel.cu`.
#![allow(unsafe_code, reason = "kernel launches")]

use super::{DutyRate, Groups, Share};
use crate::ops::launch::{
    CHUNK, Entry, blocks, blocks_yz, entry, expect, expect_some, of, ptr, ptr_or_null, size, source,
};
use crate::{DType, Tensor};
use lacewing_cuda::{Arg, CudaError, Device, Source};

pub(crate) static SOURCE: Source = source!("k_winners");

const SELECT: Entry = entry!("k_winners_select");
const PASS_ON: Entry = entry!("k_winners_pass_on");
const COUNT: Entry = entry!("k_winners_count");

/// Up to this many units one warp is enough for a group.
const WARP_UNITS: usize = 256;

/// Rows that a block counts before another is worth its atomic additions.
const COUNT_ROWS: usize = 256;

/// `boosts[c] = exp(−β duty[c])`, β being `boost`, or without one the clock's.
///
/// Shapes: `duty`, `boosts [channels]`, `clock [2]`, all f32.
pub(super) fn boosts(
    gpu: &Device,
    duty: &Tensor,
    clock: &Tensor,
    boost: Option<f32>,
    boosts: &Tensor,
) -> Result<(), CudaError> {
    let channels = duty.len();
    expect(&[
        ("duty", duty, DType::F32, channels),
        ("clock", clock, DType::F32, 2),
        ("boosts", boosts, DType::F32, channels),
    ]);
    let kernel = gpu.function(&SOURCE, "k_winners_boosts")?;
    let of_clock = ptr_or_null(boost.is_none().then_some(clock));
    let args = [ptr(duty), of_clock, boost.unwrap_or(0.0).into(), ptr(boosts), size(channels).into()];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it stays below `channels`.
    unsafe { kernel.launch([blocks(channels, 256), 1, 1], [256, 1, 1], 0, &args) }
}

/// Winners keep their values, the others are 0; `winners` gets a bit a unit.
///
/// Shapes: `x`, `y [count, units]`, `boosts [channels]` f32, `winners [count, words]` u32.
pub(super) fn select(
    gpu: &Device,
    x: &Tensor,
    boosts: &Tensor,
    groups: Groups,
    y: &Tensor,
    winners: Option<&Tensor>,
) -> Result<(), CudaError> {
    let Groups { count, units, channels, k, relu, .. } = groups;
    let dtype = x.dtype();
    expect(&[
        ("x", x, dtype, count * units),
        ("boosts", boosts, DType::F32, channels),
        ("y", y, dtype, count * units),
    ]);
    expect_some("winners", winners, DType::U32, count * groups.words());
    let kernel = gpu.function(&SOURCE, of(SELECT, dtype))?;
    let args = [
        ptr(x),
        ptr(boosts),
        ptr(y),
        ptr_or_null(winners),
        size(units).into(),
        size(channels).into(),
        size(k).into(),
        u32::from(relu).into(),
    ];
    let block = if units <= WARP_UNITS { 32 } else { 256 };
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; there is a block a group,
    // a whole number of warps and at most 256 threads.
    unsafe { kernel.launch([size(count), 1, 1], [block, 1, 1], 0, &args) }
}

/// `dx = dy` where a unit won, else 0.
///
/// Shapes: `dy`, `dx [count, units]`, `winners [count, words]` u32.
pub(super) fn pass_on(
    gpu: &Device,
    dy: &Tensor,
    winners: &Tensor,
    groups: Groups,
    dx: &Tensor,
) -> Result<(), CudaError> {
    let (dtype, n) = (dy.dtype(), groups.count * groups.units);
    expect(&[
        ("dy", dy, dtype, n),
        ("dx", dx, dtype, n),
        ("winners", winners, DType::U32, groups.count * groups.words()),
    ]);
    let kernel = gpu.function(&SOURCE, of(PASS_ON, dtype))?;
    let args = [ptr(dy), ptr(winners), ptr(dx), Arg::U64(n as u64), size(groups.units).into()];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it stays below `n`.
    unsafe { kernel.launch([blocks(n, 256 * CHUNK), 1, 1], [256, 1, 1], 0, &args) }
}

/// `wins[c]`: how many of channel c's values are above 0.
///
/// Shapes: `y [.., channels]`, `wins [channels]` u32.
pub(super) fn count(gpu: &Device, y: &Tensor, wins: &Tensor) -> Result<(), CudaError> {
    let (channels, rows) = (wins.len(), y.len() / wins.len());
    expect(&[("y", y, y.dtype(), rows * channels), ("wins", wins, DType::U32, channels)]);
    gpu.zero(&wins.region())?;
    let kernel = gpu.function(&SOURCE, of(COUNT, y.dtype()))?;
    let args = [ptr(y), ptr(wins), Arg::U64(rows as u64), size(channels).into()];
    let grid = [blocks(channels, 32), blocks_yz(rows, COUNT_ROWS), 1];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it stays within rows and
    // channels, and its additions to `wins` are atomic.
    unsafe { kernel.launch(grid, [32, 8, 1], 0, &args) }
}

/// `duty ← duty + a (wins / places − duty)`, and the clock.
///
/// Shapes: `duty [channels]` f32, `clock [2]` f32, `wins [channels]` u32.
pub(super) fn update(
    gpu: &Device,
    duty: &Tensor,
    clock: &Tensor,
    boost: f32,
    rate: DutyRate,
    share: &Share,
    samples: usize,
) -> Result<(), CudaError> {
    let channels = duty.len();
    expect(&[
        ("duty", duty, DType::F32, channels),
        ("clock", clock, DType::F32, 2),
        ("wins", &share.wins, DType::U32, channels),
    ]);
    let (alpha, period) = match rate {
        DutyRate::Constant(alpha) => (alpha, 0),
        DutyRate::Period(period) => (0.0, period),
    };
    let kernel = gpu.function(&SOURCE, "k_winners_update")?;
    let args = [
        ptr(&share.wins),
        ptr(duty),
        ptr(clock),
        size(channels).into(),
        Arg::U64(share.places as u64),
        Arg::U64(samples as u64),
        alpha.into(),
        period.into(),
        boost.into(),
    ];
    // SAFETY: the arguments are the kernel's in its order, their lengths were checked above; it is one block, and no
    // other kernel of the stream runs beside it.
    unsafe { kernel.launch([1, 1, 1], [256, 1, 1], 0, &args) }
}
