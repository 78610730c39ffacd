//! N:M: exactly n of every m consecutive weights, along inputs (row) or outputs (col).
//!
//! Cost of a row: n/m of dense; an index takes `ceil(log2 m)` bits a value. Groups never straddle rows, nor, told
//! the `channels` of an unfolded convolution, positions of its kernel.

use serde_json::{Value, json};

use crate::config::{Key, Options, PAD};
use crate::mask::{choices, keep_largest, weight_to_rank};
use crate::registry::first_within;
use crate::structure::check_params;
use crate::{
    Axis, Built, Counts, Form, IndexBuffer, Init, ParamSpec, Pattern, PatternKind, Problem, Rng, Structure,
    StructureError, StructureKind,
};

const NAME: &str = "nm";
const MAX_GROUP: usize = 1 << 16;

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "n of every m consecutive weights",
    keys: &[
        Key::new("n", "kept in a group, 1 to m", "2"),
        Key::new("m", "weights of a group", "4"),
        Key::new("axis", "row: groups run along inputs | col: along outputs", "\"row\""),
        Key::new("channels", "of an unfolded convolution [n_out, kh·kw·channels]: its input channels", ""),
        PAD,
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        // The finest group that gives at most this density with a whole number of values.
        let groups = [4, 8, 16, 32].map(|m| ((density * m as f64 + 1e-9).floor().min(m as f64) as usize, m));
        let (n, m) = groups.into_iter().find(|&(n, _)| n > 0)?;
        first_within((n_in, n_out), density, [json!({"structure": NAME, "n": n, "m": m, "pad": true})])
    },
};

/// `y = W x` with n of every m consecutive weights; parameter `weight [nnz]` in row-major order.
///
/// The mask keeps the n largest magnitudes of each group of the dense weight (or of a draw); among equals the lowest
/// index is pruned first. With padding the last group ends in zeros, which go first.
///
/// A convolution is its weight unfolded to `[n_out, kh·kw·channels]`, channels fastest; groups along inputs then run
/// along channels, which m must divide: padding at the end of a row could not keep kernel positions apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Nm {
    pattern: Pattern,
    n: usize,
    m: usize,
    axis: Axis,
    channels: Option<usize>,
    pad: bool,
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    Ok(Box::new(Nm::read(options, problem)?))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let row = json!({"structure": NAME});
    let col = json!({"structure": NAME, "n": 1, "m": 3, "axis": "col"});
    let padded = json!({"structure": NAME, "n": 2, "m": 4, "pad": true});
    let padded_col = json!({"structure": NAME, "n": 3, "m": 5, "axis": "col", "pad": true});
    let conv = json!({"structure": NAME, "channels": 4});
    [(&row, 8, 3), (&col, 4, 6), (&padded, 9, 2), (&padded_col, 3, 7), (&conv, 12, 2)]
        .map(|(config, n_in, n_out)| crate::build(config, n_in, n_out, 2, None).expect("valid sample"))
        .into()
}

/// Which `n` of `group` stay: the largest magnitudes, ascending; among equals the lowest index is pruned first.
///
/// ```
/// assert_eq!(lacewing_core::patterns::keep_in_group(&[5.0, 5.0, -5.0, 1.0], 2), [1, 2]);
/// ```
///
/// # Panics
///
/// When `n` exceeds the group.
pub fn keep_in_group(group: &[f32], n: usize) -> Vec<usize> {
    let scores: Vec<f64> = group.iter().map(|w| f64::from(w.abs())).collect();
    keep_largest(&scores, n)
}

impl Nm {
    fn read(options: &Options, problem: &Problem<'_>) -> Result<Self, StructureError> {
        let m = options.size("m", 1, MAX_GROUP)?;
        let n = options.size("n", 1, m)?;
        let axes = [("row", Axis::Row), ("col", Axis::Col)];
        let axis = options.choice("axis", &axes, "`row` or `col`")?;
        let (n_out, n_in) = problem.shape();
        let channels = options.given("channels").then(|| options.size("channels", 1, n_in)).transpose()?;
        if let Some(channels) = channels {
            let indivisible = |size_name, size: usize, divisor_name, divisor| StructureError::Indivisible {
                structure: NAME,
                size_name,
                size,
                divisor_name,
                divisor,
                padded: size,
            };
            if !n_in.is_multiple_of(channels) {
                return Err(indivisible("n_in", n_in, "channels", channels));
            }
            if axis == Axis::Row && channels != n_in && !channels.is_multiple_of(m) {
                return Err(indivisible("channels", channels, "the group size m", m));
            }
        }
        let divisors = if axis == Axis::Row { (1, m) } else { (m, 1) };
        let (n_out_ext, n_in_ext) = options.padded((n_out, n_in), divisors, "the group size m")?;
        let mut nm = Self {
            pattern: Pattern {
                n_out,
                n_in,
                n_out_ext,
                n_in_ext,
                block: (1, 1),
                positions: Vec::new(),
                kind: PatternKind::Nm { n, m, axis },
            },
            n,
            m,
            axis,
            channels,
            pad: options.flag("pad")?,
        };
        let offsets = match problem.saved(NAME, ["offsets"])? {
            Some([saved]) => nm.checked(saved)?,
            None => nm.rank(problem),
        };
        nm.place(&offsets);
        Ok(nm)
    }

    /// Lines that groups run along, and groups on each.
    fn groups(&self) -> (usize, usize) {
        match self.axis {
            Axis::Row => (self.pattern.n_out, self.pattern.n_in_ext / self.m),
            Axis::Col => (self.pattern.n_in, self.pattern.n_out_ext / self.m),
        }
    }

    /// Offsets kept in each group, `[lines, groups, n]`, by magnitude.
    fn rank(&self, problem: &Problem<'_>) -> Vec<u32> {
        let (n_out, n_in) = problem.shape();
        let weight = weight_to_rank(problem, &mut choices(problem));
        let (n_lines, n_groups) = self.groups();
        let mut offsets = Vec::with_capacity(n_lines * n_groups * self.n);
        let mut group = vec![0.0; self.m];
        for line in 0..n_lines {
            for start in (0..n_groups).map(|group| group * self.m) {
                for (offset, value) in group.iter_mut().enumerate() {
                    let (row, col) = match self.axis {
                        Axis::Row => (line, start + offset),
                        Axis::Col => (start + offset, line),
                    };
                    *value = if row < n_out && col < n_in { weight[row * n_in + col] } else { 0.0 };
                }
                offsets.extend(keep_in_group(&group, self.n).into_iter().map(|offset| offset as u32));
            }
        }
        offsets
    }

    /// Saved offsets: ascending and below m in every group.
    fn checked(&self, saved: &IndexBuffer) -> Result<Vec<u32>, StructureError> {
        let (n_lines, n_groups) = self.groups();
        saved.expect_shape(NAME, &[n_lines, n_groups, self.n])?;
        for (at, &offset) in saved.data.iter().enumerate() {
            let first = at % self.n == 0;
            let low = if first { 0 } else { u64::from(saved.data[at - 1]) + 1 };
            if u64::from(offset) < low || offset as usize >= self.m {
                return Err(saved.bad_value(NAME, at, low, self.m as u64 - 1));
            }
        }
        Ok(saved.data.clone())
    }

    /// Offsets `[lines, groups, n]` as positions.
    fn place(&mut self, offsets: &[u32]) {
        let n_groups = self.groups().1;
        let positions = offsets.iter().enumerate().map(|(at, &offset)| {
            let (line, group) = (at / self.n / n_groups, at / self.n % n_groups);
            let along = (group * self.m) as u32 + offset;
            match self.axis {
                Axis::Row => (line as u32, along),
                Axis::Col => (along, line as u32),
            }
        });
        self.pattern.positions = positions.collect();
        self.pattern.positions.sort_unstable();
    }

    /// Where the values sit.
    pub fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

impl Structure for Nm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn n_in(&self) -> usize {
        self.pattern.n_in
    }

    fn n_out(&self) -> usize {
        self.pattern.n_out
    }

    fn params(&self) -> Vec<ParamSpec> {
        vec![ParamSpec::new("weight", &[self.pattern.nnz()])]
    }

    fn form(&self) -> Form<'_> {
        Form::Pattern(&self.pattern)
    }

    fn init(&self, init: Init, rng: &mut Rng) -> Vec<Vec<f32>> {
        vec![self.pattern.init(init, rng)]
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// `W[positions[t]] = weight[t]`, 0 elsewhere; places in the padding do nothing.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        check_params(&self.params(), params);
        let mut dense = vec![0.0; self.n_out() * self.n_in()];
        for (&(row, col), &value) in self.pattern.positions.iter().zip(params[0]) {
            if (row as usize) < self.n_out() && (col as usize) < self.n_in() {
                dense[row as usize * self.n_in() + col as usize] = value;
            }
        }
        Some(dense)
    }

    fn counts(&self) -> Counts {
        let nnz = self.pattern.nnz();
        let bits = nnz * self.m.next_power_of_two().trailing_zeros() as usize;
        Counts { parameters: nnz, bytes: 4 * nnz + bits.div_ceil(8), macs: nnz }
    }

    fn config(&self) -> Value {
        let axis = if self.axis == Axis::Row { "row" } else { "col" };
        let mut config = json!({"structure": NAME, "n": self.n, "m": self.m, "axis": axis});
        if let Some(channels) = self.channels {
            config["channels"] = json!(channels);
        }
        config["pad"] = json!(self.pad);
        config
    }

    fn buffers(&self) -> Vec<IndexBuffer> {
        let (n_lines, n_groups) = self.groups();
        let mut places = self.pattern.positions.clone();
        if self.axis == Axis::Col {
            places.iter_mut().for_each(|place| *place = (place.1, place.0));
            places.sort_unstable();
        }
        let data = places.iter().map(|&(_, along)| along % self.m as u32).collect();
        vec![IndexBuffer { name: "offsets".to_owned(), data, shape: vec![n_lines, n_groups, self.n] }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const W: [[f32; 8]; 4] = [
        [1., -3., 2., 0.5, -0.1, 0.2, 0.3, -0.4],
        [5., 5., 5., 5., -1., 1., 0., 0.],
        [0., 0., 0., 0., 2., -2., 1., 4.],
        [1., 2., 3., 4., 4., 3., 2., 1.],
    ];

    fn rows(config: &Value, n_in: usize, n_out: usize, dense: &[f32]) -> Vec<String> {
        let built = crate::build(config, n_in, n_out, 0, Some(dense)).unwrap();
        let Form::Pattern(pattern) = built.form() else { panic!("not a pattern") };
        let digit = |&kept: &bool| if kept { '1' } else { '0' };
        pattern.mask().chunks(n_in).map(|row| row.iter().map(digit).collect()).collect()
    }

    #[test]
    fn masks_match_the_reference() {
        let dense = W.as_flattened();
        let row = |n| rows(&json!({"structure": NAME, "n": n}), 8, 4, dense);
        assert_eq!(row(2), ["01100011", "00111100", "00110101", "00111100"]);
        assert_eq!(row(1), ["01000001", "00010100", "00010001", "00011000"]);
        let col = rows(&json!({"structure": NAME, "axis": "col"}), 8, 4, dense);
        assert_eq!(col, ["01000000", "11110000", "00001111", "10111111"]);
    }

    #[test]
    fn groups_that_would_straddle_rows_are_an_error_or_padded() {
        let dense: Vec<f32> = (0..24u8).map(f32::from).collect();
        let config = json!({"structure": NAME, "n": 1});
        let error = crate::build(&config, 6, 4, 0, Some(&dense)).unwrap_err();
        assert!(
            matches!(
                error,
                StructureError::Indivisible { size_name: "n_in", size: 6, divisor: 4, padded: 8, .. }
            ),
            "{error}"
        );
        let config = json!({"structure": NAME, "n": 1, "pad": true});
        assert_eq!(rows(&config, 6, 4, &dense), ["000101"; 4]);
    }

    #[test]
    fn two_of_four_stores_two_bits_a_value() {
        let built = crate::build(&json!(NAME), 64, 16, 0, None).unwrap();
        assert_eq!(built.counts(), Counts { parameters: 512, bytes: 4 * 512 + 512 / 4, macs: 512 });
    }

    #[test]
    fn a_convolution_is_the_row_rule_on_its_weight_with_channels_last() {
        let (n_out, channels, kh, kw) = (3, 8, 3, 2);
        // As frameworks store it: [n_out, channels, kh, kw].
        let stored = lacewing_testkit::uniform(5, n_out * channels * kh * kw);
        let mut unfolded = Vec::new();
        for (o, y, x, c) in (0..n_out * kh * kw * channels).map(|at| {
            let (c, x, y) = (at % channels, at / channels % kw, at / channels / kw % kh);
            (at / channels / kw / kh, y, x, c)
        }) {
            unfolded.push(stored[((o * channels + c) * kh + y) * kw + x]);
        }
        let config = json!({"structure": NAME, "channels": channels});
        let conv = rows(&config, kh * kw * channels, n_out, &unfolded).concat();
        // The row rule on a matrix with a row for every output and kernel position.
        let plain = rows(&json!(NAME), channels, n_out * kh * kw, &unfolded).concat();
        assert_eq!(conv, plain);
        let built = crate::build(&config, kh * kw * channels, n_out, 0, Some(&unfolded)).unwrap();
        assert_eq!(built.config()["channels"], channels);
    }

    #[test]
    fn groups_that_would_mix_kernel_positions_are_an_error() {
        for pad in [false, true] {
            let config = json!({"structure": NAME, "channels": 3, "pad": pad});
            // 4 divides 7·4·3 inputs, and still the groups of a stem with three channels would mix positions.
            let error = crate::build(&config, 84, 16, 0, None).unwrap_err();
            assert_eq!(
                error.to_string(),
                "`nm`: channels = 3 is not a multiple of 4 (the group size m); choose sizes that divide"
            );
        }
        let error = crate::build(&json!({"structure": NAME, "channels": 5}), 12, 4, 0, None).unwrap_err();
        assert!(
            matches!(error, StructureError::Indivisible { size_name: "n_in", divisor: 5, .. }),
            "{error}"
        );
        // Groups along outputs do not run along channels, and a 1 by 1 kernel has one position.
        crate::build(&json!({"structure": NAME, "channels": 3, "axis": "col"}), 27, 16, 0, None).unwrap();
        crate::build(&json!({"structure": NAME, "channels": 6, "pad": true}), 6, 16, 0, None).unwrap();
    }
}
