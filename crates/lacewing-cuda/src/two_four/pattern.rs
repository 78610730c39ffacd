//! Where the values of a weight are, as the sparse tensor cores are told.

use crate::{CudaError, Device, Region};

const CALL: &str = "2:4 pattern";
/// As in the source: inputs of a step, steps that a thread reads at once, threads of a warpgroup and outputs that it multiplies.
const STEP: usize = 64;
const FOUR: usize = 4;
const THREADS: usize = 128;
const GROUP: usize = 64;
/// Outputs of a pair of thread blocks.
pub(super) const PANELS: usize = 256;
/// A place without a value, as in the source.
const NONE: u32 = u32::MAX;

/// A weight `[n_out, n_in]` with at most two values in every aligned four of a row, on the device: 2:4, 1:2, and all that is
/// thinner, as 1:4 and 2:8.
///
/// The tensor cores want exactly two of each four. Where a four has fewer, zeros stand beside its values: then values are
/// packed anew ([`super::pack`]) whenever they change.
#[derive(Debug, Clone)]
pub struct TwoFourPattern {
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    pub(super) n_values: usize,
    pub(super) metadata: Region,
    /// Where fours have fewer than two: the place of each packed value, or [`NONE`].
    pub(super) slots: Option<Region>,
}

impl TwoFourPattern {
    /// The pattern of the values at `positions` (output, input), in their order.
    ///
    /// # Errors
    ///
    /// [`CudaError::Dimension`] unless both sides are multiples of 64, every position is inside, above the one before it
    /// and one of at most two in its four inputs; what the upload answers.
    pub fn new(device: &Device, shape: (usize, usize), positions: &[(u32, u32)]) -> Result<Self, CudaError> {
        let Layout { metadata, slots } = Layout::new(shape, positions)?;
        let upload = |words: &[u32]| {
            let region = device.region(size_of_val(words))?;
            device.upload(&region, bytemuck::cast_slice(words))?;
            Ok::<_, CudaError>(region)
        };
        Ok(Self {
            n_out: shape.0,
            n_in: shape.1,
            n_values: positions.len(),
            metadata: upload(&metadata)?,
            slots: slots.map(|slots| upload(&slots)).transpose()?,
        })
    }

    /// Whether the values as they are stored are those that the tensor cores want.
    #[must_use]
    pub fn is_packed(&self) -> bool {
        self.slots.is_none()
    }

    /// How many numbers the packed values are.
    #[must_use]
    pub fn n_packed(&self) -> usize {
        self.n_out * self.n_in / 2
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Layout {
    /// `[n_out / 64 to whole pairs of panels, n_in / 64 / 4 rounded up, 128 threads, 4 steps]`. Of a step a thread tells of the
    /// sixteen inputs that its place in four threads says, for two outputs that are eight apart: sixteen bits each, two for
    /// a value.
    metadata: Vec<u32>,
    slots: Option<Vec<u32>>,
}

impl Layout {
    fn new((n_out, n_in): (usize, usize), positions: &[(u32, u32)]) -> Result<Self, CudaError> {
        let wrong = |dimension, expected: String, got| {
            Err(CudaError::Dimension { call: CALL, dimension, expected, got })
        };
        for (dimension, got, unit) in [("outputs", n_out, GROUP), ("inputs", n_in, STEP)] {
            if got == 0 || !got.is_multiple_of(unit) {
                return wrong(dimension, format!("a multiple of {unit}"), got);
            }
        }
        if u32::try_from(n_out * n_in).is_err() {
            return wrong("weights", "at most 2^32 - 1".to_owned(), n_out * n_in);
        }
        let n_steps = n_in / STEP;
        let n_fours = n_steps.div_ceil(FOUR);
        let mut metadata = vec![0; n_out.div_ceil(PANELS) * (PANELS / GROUP) * n_fours * THREADS * FOUR];
        let mut slots = Vec::with_capacity(n_out * n_in / 2);
        let mut rest = positions;
        for out in 0..n_out {
            let of_group = out % GROUP;
            let (warp, half, line) = (of_group / 16, of_group / 8 % 2, of_group % 8);
            for four in 0..n_in / 4 {
                let first = positions.len() - rest.len();
                let start = (out as u32, four as u32 * 4);
                let end = (start.0, start.1 + 4);
                let n = rest.iter().take_while(|&&at| start <= at && at < end).count();
                let (here, others) = rest.split_at(n);
                rest = others;
                if !here.is_sorted_by(|a, b| a < b) {
                    return wrong("position", "each above the one before".to_owned(), first);
                }
                let slot = first as u32;
                // Both places differ whatever stands there, the first the lower.
                let (places, values) = match *here {
                    [] => ([0, 1], [NONE, NONE]),
                    [(_, col)] if col % 4 == 3 => ([0, 3], [NONE, slot]),
                    [(_, col)] => ([col % 4, 3], [slot, NONE]),
                    [(_, a), (_, b)] => ([a % 4, b % 4], [slot, slot + 1]),
                    _ => return wrong("values of four inputs", "at most 2".to_owned(), n),
                };
                slots.extend(values);
                let (step, thread) = (four / 16, warp * 32 + line * 4 + four / 4 % 4);
                let word = ((out / GROUP * n_fours + step / FOUR) * THREADS + thread) * FOUR + step % FOUR;
                metadata[word] |= (places[0] | places[1] << 2) << (half * 16 + four % 4 * 4);
            }
        }
        if !rest.is_empty() {
            let expected = format!("inside [{n_out}, {n_in}], each above the one before");
            return wrong("position", expected, positions.len() - rest.len());
        }
        let slots = slots.contains(&NONE).then_some(slots);
        Ok(Self { metadata, slots })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the metadata and slots say, read as the instruction's description has it: output, input and value.
    fn read(layout: &Layout, (n_out, n_in): (usize, usize)) -> Vec<(u32, u32, Option<u32>)> {
        let n_fours = (n_in / 64).div_ceil(4);
        let mut places = Vec::new();
        for out in 0..n_out {
            for k in (0..n_in / 2).step_by(2) {
                // Thirty-two inputs of one instruction, sixteen stored; eight of them a thread.
                let (instruction, of_thread) = (k / 16, k % 16 / 8);
                let thread = out % 64 / 16 * 32 + out % 8 * 4 + instruction % 2 * 2 + of_thread;
                let at = ((out / 64 * n_fours + instruction / 8) * 128 + thread) * 4 + instruction / 2 % 4;
                let bits = layout.metadata[at] >> (out / 8 % 2 * 16) >> (k % 8 * 2);
                for i in 0..2 {
                    let slot = layout
                        .slots
                        .as_ref()
                        .map_or((out * n_in / 2 + k + i) as u32, |slots| slots[out * n_in / 2 + k + i]);
                    let input = k as u32 / 2 * 4 + (bits >> (2 * i) & 3);
                    places.push((out as u32, input, (slot != NONE).then_some(slot)));
                }
            }
        }
        places
    }

    fn positions((n_out, n_in): (usize, usize), keep: impl Fn(usize, usize) -> bool) -> Vec<(u32, u32)> {
        let all = (0..n_out).flat_map(|out| (0..n_in).map(move |input| (out, input)));
        all.filter(|&(out, input)| keep(out, input)).map(|(out, input)| (out as u32, input as u32)).collect()
    }

    #[test]
    fn every_value_is_told_of_where_it_is_and_zeros_stand_beside() {
        for shape in [(64, 64), (192, 448), (320, 128)] {
            // Pairs of every kind; one of four at every place; none, one or two.
            let pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];
            let two = positions(shape, |out, input| {
                let (a, b) = pairs[(out * 5 + input / 4 * 7) % 6];
                input % 4 == a || input % 4 == b
            });
            let one = positions(shape, |out, input| input % 4 == (out * 3 + input / 4) % 4);
            let some = positions(shape, |out, input| (out + input / 4) % 3 > input % 4);
            for (positions, packed) in [(two, true), (one, false), (some, false)] {
                let layout = Layout::new(shape, &positions).unwrap();
                assert_eq!(layout.slots.is_none(), packed);
                let places = read(&layout, shape);
                let kept: Vec<_> =
                    places.iter().filter_map(|&(out, input, slot)| Some((slot?, (out, input)))).collect();
                let expected: Vec<_> = (0..).zip(positions.iter().copied()).collect();
                assert_eq!(kept, expected);
                assert!(places.chunks(2).all(|pair| pair[0].1 < pair[1].1), "ascending in each four");
            }
        }
    }

    #[test]
    fn what_the_tensor_cores_do_not_take_is_refused_by_name() {
        let refused = |shape, positions: &[(u32, u32)]| match Layout::new(shape, positions) {
            Err(CudaError::Dimension { dimension, got, .. }) => (dimension, got),
            other => panic!("{other:?}"),
        };
        assert_eq!(refused((65, 64), &[]), ("outputs", 65));
        assert_eq!(refused((64, 96), &[]), ("inputs", 96));
        assert_eq!(refused((64, 64), &[(0, 4), (0, 5), (0, 7)]), ("values of four inputs", 3));
        assert_eq!(refused((64, 64), &[(1, 5), (1, 4)]), ("position", 0));
        assert_eq!(refused((64, 64), &[(1, 5), (0, 5)]), ("position", 1));
        assert_eq!(refused((64, 64), &[(0, 5), (0, 5)]), ("position", 0));
        assert_eq!(refused((64, 64), &[(3, 64)]), ("position", 0));
        assert_eq!(refused((64, 64), &[(64, 0)]), ("position", 0));
    }
}
