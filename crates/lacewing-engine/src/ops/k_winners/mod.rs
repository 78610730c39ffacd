//! K-winners (Ahmad & Scheinkman 2019): of a group of units only the k with the largest boosted values pass theirs on.
//!
//! A unit's duty cycle is the share of samples for which it won with a positive value; a boost raises units that seldom
//! win, so that all take part. Duty cycles are values of the model that are not trained: a training pass reads them as
//! they are throughout and brings them up to date once, when its backward pass is over.

mod cpu;
pub(crate) mod cuda;

use crate::tape::value_error;
use crate::{Cx, DType, EngineError, Result, Tensor, Var};

/// Who competes, and for how many places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Competition {
    /// Trailing dimensions of x whose elements compete with each other: 1 for the units of a layer or, with channels
    /// last, the channels of each pixel; 3 for whole feature maps.
    pub dims: usize,
    /// Winners of each group.
    pub k: usize,
    /// Whether a winner that is not above 0 is put to 0 too.
    pub relu: bool,
}

/// How often channels have won: state that lasts from pass to pass, and how a training pass changes it.
#[derive(Debug, Clone, Copy)]
pub struct DutyCycles<'a> {
    /// `[channels]` f32, in `[0, 1]`; zeros at first.
    pub duty: &'a Tensor,
    /// `[2]` f32: the samples seen, up to the period, and the boost strength of the last training pass, which is that of
    /// evaluation.
    pub clock: &'a Tensor,
    /// Boost strength β of a training pass.
    pub boost: f32,
    /// Weight of a batch.
    pub rate: DutyRate,
}

/// The weight `a` that a batch of `n` samples has in `duty ← duty + a (share − duty)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DutyRate {
    /// The same for every batch, in `(0, 1]`: α of the paper.
    Constant(f32),
    /// `n / min(period, seen)`, at most 1, with `seen` the samples up to this batch's last: an average over all of
    /// them at first, over about `period` samples later. From 1 to 2²⁴.
    Period(u32),
}

/// The largest count that f32 holds with all smaller ones.
const MAX_PERIOD: u32 = 1 << 24;

/// `y[i] = x[i]` for the `k` units of each group with the largest `x[i] · exp(−β duty[channel of i])`, else 0.
///
/// This is the order of the boosts `exp(β (k/n − duty))` too, which have one more factor in common. Of equal values the
/// lower index wins, on every device; NaN beats all. The gradient goes to winners only, and no gradient to the boosts.
///
/// Shapes: `x [.., channels]` → the same; a group is the last `dims` dimensions, row-major, so that the channel of a unit
/// is its index modulo the number of channels. A sample is an element of the first dimension, if that is not in the group.
///
/// A training pass adds `duty ← duty + a (share − duty)` to what [`Cx::backward`] does at its end, `share` being a channel's
/// positive winners over all groups and places in them. Samples that a period counts are those of all
/// [processes](Cx::among); the mean of their duty cycles is that of the whole batch.
///
/// # Errors
///
/// [`EngineError::Value`] for k outside `1..=n`, a boost that is negative or not finite, a rate out of its range;
/// [`EngineError::Shape`], [`EngineError::DType`] and [`EngineError::Device`] for x and the state.
pub fn k_winners(cx: &Cx, x: &Var, competition: Competition, state: DutyCycles<'_>) -> Result<Var> {
    let groups = check(x.value(), competition, state)?;
    let boosts = boosts(cx, state)?;
    let kept = cx.records(&[x]).then(|| x.value().beside(DType::U32, &[groups.count, groups.words()]));
    let winners = kept.transpose()?;
    let y = select(x.value(), &boosts, groups, winners.as_ref())?;
    if cx.updates() && !y.is_empty() {
        let share = Share { wins: count(&y, groups.channels)?, places: y.len() / groups.channels };
        let (duty, clock) = (state.duty.clone(), state.clock.clone());
        let DutyCycles { boost, rate, .. } = state;
        let samples = groups.samples * cx.processes();
        cx.afterwards(move || update(&duty, &clock, boost, rate, &share, samples));
    }
    let x_var = x.handle();
    Ok(cx.record(y, &[x], move |gradients, dy| {
        let winners = winners.as_ref().expect("made when the op is recorded");
        gradients.add(&x_var, pass_on(&dy, winners, groups)?)
    }))
}

const OP: &str = "k_winners";

/// A tensor as groups of units.
#[derive(Debug, Clone, Copy)]
struct Groups {
    count: usize,
    units: usize,
    channels: usize,
    samples: usize,
    k: usize,
    relu: bool,
}

impl Groups {
    /// Words of one bit a unit: what the backward pass keeps of a group.
    fn words(self) -> usize {
        self.units.div_ceil(32)
    }
}

/// What a batch says of each channel.
struct Share {
    /// Positive winners, `[channels]` u32.
    wins: Tensor,
    /// How many there could be.
    places: usize,
}

fn check(x: &Tensor, competition: Competition, state: DutyCycles<'_>) -> Result<Groups> {
    let Competition { dims, k, relu } = competition;
    super::matmul::expect_float(OP, "x", x)?;
    let shape = x.shape();
    let channels = state.duty.len();
    if dims == 0 || dims > shape.len() || shape.last() != Some(&channels) || channels == 0 {
        let expected = format!("{dims} dimensions or more, the last {channels}");
        return Err(EngineError::Shape { op: OP, operand: "x", expected, got: shape.to_vec() });
    }
    for (operand, tensor, expected) in [("duty", state.duty, channels), ("clock", state.clock, 2)] {
        tensor.expect_shape(OP, operand, &[expected])?;
        tensor.expect_dtype(OP, operand, DType::F32)?;
        tensor.expect_device(OP, operand, x)?;
    }
    let outer = shape.len() - dims;
    let units: usize = shape[outer..].iter().product();
    if units == 0 || !(1..=units).contains(&k) {
        return Err(value_error(OP, "k", format!("1 to {units}, the units of a group"), k));
    }
    if !(state.boost.is_finite() && state.boost >= 0.0) {
        return Err(value_error(OP, "boost", "a finite number, 0 or more", state.boost));
    }
    match state.rate {
        DutyRate::Constant(alpha) if !(alpha > 0.0 && alpha <= 1.0) => {
            return Err(value_error(OP, "rate", "above 0, at most 1", alpha));
        }
        DutyRate::Period(period) if !(1..=MAX_PERIOD).contains(&period) => {
            return Err(value_error(OP, "period", format!("1 to {MAX_PERIOD}"), period));
        }
        _ => {}
    }
    let samples = if outer == 0 { 1 } else { shape[0] };
    Ok(Groups { count: shape[..outer].iter().product(), units, channels, samples, k, relu })
}

/// `exp(−β duty)`, `[channels]`.
fn boosts(cx: &Cx, state: DutyCycles<'_>) -> Result<Tensor> {
    let DutyCycles { duty, clock, .. } = state;
    let boost = cx.is_training().then_some(state.boost);
    let boosts = duty.like(duty.shape())?;
    match duty.gpu() {
        None => {
            let boost = boost.unwrap_or_else(|| clock.read()[1]);
            cpu::boosts(&duty.read(), boost, &mut boosts.write());
        }
        Some(gpu) => cuda::boosts(gpu, duty, clock, boost, &boosts)?,
    }
    Ok(boosts)
}

fn select(x: &Tensor, boosts: &Tensor, groups: Groups, winners: Option<&Tensor>) -> Result<Tensor> {
    let y = x.like(x.shape())?;
    match y.gpu() {
        _ if y.is_empty() => {}
        None => {
            let mut winners = winners.map(Tensor::write_u32);
            cpu::select(&x.read(), &boosts.read(), groups, &mut y.write(), winners.as_deref_mut());
        }
        Some(gpu) => cuda::select(gpu, x, boosts, groups, &y, winners)?,
    }
    Ok(y)
}

fn count(y: &Tensor, channels: usize) -> Result<Tensor> {
    let wins = y.beside(DType::U32, &[channels])?;
    match y.gpu() {
        None => cpu::count(&y.read(), &mut wins.write_u32()),
        Some(gpu) => cuda::count(gpu, y, &wins)?,
    }
    Ok(wins)
}

fn update(
    duty: &Tensor,
    clock: &Tensor,
    boost: f32,
    rate: DutyRate,
    share: &Share,
    samples: usize,
) -> Result<()> {
    match duty.gpu() {
        None => {
            let seen = clock.read()[0];
            let (seen, weight) = cpu::weight(rate, seen, samples);
            cpu::update(&share.wins.read_u32(), share.places, weight, &mut duty.write());
            clock.write().copy_from_slice(&[seen, boost]);
        }
        Some(gpu) => {
            cuda::update(gpu, duty, clock, boost, rate, share, samples)?;
            duty.wrote();
        }
    }
    Ok(())
}

fn pass_on(dy: &Tensor, winners: &Tensor, groups: Groups) -> Result<Tensor> {
    let dx = dy.like(dy.shape())?;
    match dx.gpu() {
        _ if dx.is_empty() => {}
        None => cpu::pass_on(&dy.read(), &winners.read_u32(), groups, &mut dx.write()),
        Some(gpu) => cuda::pass_on(gpu, dy, winners, groups, &dx)?,
    }
    Ok(dx)
}
