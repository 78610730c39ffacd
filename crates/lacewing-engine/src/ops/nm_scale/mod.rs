//! Weights scaled by whether N:M keeps them: what masks do to weights and gradients, chosen anew from the weights each time.

mod cpu;
pub(crate) mod cuda;

use crate::{DType, EngineError, Result, Tensor};
use lacewing_core::Axis;

/// Which weights are kept: the `n` largest magnitudes of every `m` consecutive ones along `axis`; among equals the lowest
/// index is dropped first. A last group that is shorter ends in zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NmGroups {
    /// Kept in a group.
    pub n: usize,
    /// Weights of a group.
    pub m: usize,
    /// Along which groups run.
    pub axis: Axis,
}

/// What [`nm_scale`] and [`magnitude_scale`](super::magnitude_scale()) multiply by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaskFactors {
    /// Where the weight is kept.
    pub kept: f32,
    /// Where it is dropped.
    pub dropped: f32,
}

/// `out = values · f`, or `out += values · f`, with f a factor for kept and one for dropped places of `by`.
///
/// Shapes: all `[n_out, n_in]`; `by` and `values` f32, `out` f32 or bf16. `out` may be `values`, not `by`. Cost: `m`
/// comparisons a weight on a GPU, a selection for each group on a CPU.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit;
/// [`EngineError::Value`] unless 1 ≤ n ≤ m.
pub fn nm_scale(
    by: &Tensor,
    values: &Tensor,
    groups: NmGroups,
    factors: MaskFactors,
    out: &Tensor,
    accumulate: bool,
) -> Result<()> {
    const OP: &str = "nm_scale";
    if by.shape().len() != 2 {
        let expected = "[n_out, n_in]".into();
        return Err(EngineError::Shape { op: OP, operand: "by", expected, got: by.shape().to_vec() });
    }
    for (operand, tensor) in [("values", values), ("out", out)] {
        tensor.expect_shape(OP, operand, by.shape())?;
        tensor.expect_device(OP, operand, by)?;
    }
    by.expect_dtype(OP, "by", DType::F32)?;
    values.expect_dtype(OP, "values", DType::F32)?;
    super::matmul::expect_float(OP, "out", out)?;
    let NmGroups { n, m, .. } = groups;
    if !(1..=m).contains(&n) {
        return Err(crate::tape::value_error(OP, "n", format!("1 to m = {m}"), n));
    }
    match by.gpu() {
        None => cpu::nm_scale(by, values, groups, factors, out, accumulate),
        Some(gpu) => {
            cuda::nm_scale(gpu, by, values, groups, factors, out, accumulate)?;
            out.wrote();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    /// The rule by counting, and what it makes of `values`.
    fn expected(by: &[f32], values: &[f32], n_in: usize, groups: NmGroups, factors: MaskFactors) -> Vec<f32> {
        let (n_out, NmGroups { n, m, axis }) = (by.len() / n_in, groups);
        let at = |row: usize, col: usize| {
            if row < n_out && col < n_in { by[row * n_in + col].abs() } else { 0.0 }
        };
        let mut out = Vec::new();
        for row in 0..n_out {
            for col in 0..n_in {
                let along = if axis == Axis::Row { col } else { row };
                let first = along / m * m;
                let other = |j: usize| if axis == Axis::Row { at(row, j) } else { at(j, col) };
                let before = |&j: &usize| other(j) > at(row, col) || (other(j) == at(row, col) && j > along);
                let kept = (first..first + m).filter(before).count() < n;
                out.push(values[row * n_in + col] * if kept { factors.kept } else { factors.dropped });
            }
        }
        out
    }

    #[test]
    fn the_largest_of_each_group_are_kept() {
        let w = [
            [1., -3., 2., 0.5, -0.1, 0.2, 0.3, -0.4],
            [5., 5., 5., 5., -1., 1., 0., 0.],
            [0., 0., 0., 0., 2., -2., 1., 4.],
            [1., 2., 3., 4., 4., 3., 2., 1.],
        ];
        let mask = |n, m, axis, device: &Device| -> Vec<String> {
            let w = Tensor::from_f32(device, w.as_flattened(), &[4, 8]).unwrap();
            let ones = Tensor::from_f32(device, &[1.0; 32], &[4, 8]).unwrap();
            let out = Tensor::zeros(device, DType::F32, &[4, 8]).unwrap();
            let factors = MaskFactors { kept: 1.0, dropped: 0.0 };
            nm_scale(&w, &ones, NmGroups { n, m, axis }, factors, &out, false).unwrap();
            let out = out.to_f32().unwrap();
            out.chunks(8).map(|row| row.iter().map(|v| v.to_string()).collect()).collect()
        };
        for device in Device::all_for_tests() {
            let row = ["01100011", "00111100", "00110101", "00111100"];
            assert_eq!(mask(2, 4, Axis::Row, &device), row);
            assert_eq!(mask(1, 4, Axis::Row, &device), ["01000001", "00010100", "00010001", "00011000"]);
            assert_eq!(mask(2, 4, Axis::Col, &device), ["01000000", "11110000", "00001111", "10111111"]);
        }
    }

    #[test]
    fn any_shape_group_and_factor_follows_the_rule() {
        let mut state = 7u32;
        // Few different magnitudes, so that there are ties, zeros of both signs among them.
        let mut draw = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 16) as i32 % 9 - 4) as f32 * 0.5
        };
        for (n_out, n_in, n, m) in
            [(3, 8, 2, 4), (5, 12, 1, 8), (7, 35, 3, 5), (40, 64, 8, 64), (9, 300, 7, 128), (1, 1, 1, 1)]
        {
            let by: Vec<f32> = (0..n_out * n_in).map(|_| draw()).collect();
            let values: Vec<f32> = (0..n_out * n_in).map(|_| draw()).collect();
            for (axis, device) in [Axis::Row, Axis::Col]
                .into_iter()
                .flat_map(|a| Device::all_for_tests().into_iter().map(move |d| (a, d)))
            {
                let groups = NmGroups { n, m, axis };
                let factors = MaskFactors { kept: 0.75, dropped: -0.25 };
                let want = expected(&by, &values, n_in, groups, factors);
                let tensor = |v: &[f32]| Tensor::from_f32(&device, v, &[n_out, n_in]).unwrap();
                let (by, out) = (tensor(&by), tensor(&values));
                // In place, and then added to.
                nm_scale(&by, &out, groups, factors, &out, false).unwrap();
                assert_eq!(out.to_f32().unwrap(), want, "{groups:?} of [{n_out}, {n_in}]");
                nm_scale(&by, &tensor(&values), groups, factors, &out, true).unwrap();
                let twice: Vec<f32> = want.iter().map(|v| 2.0 * v).collect();
                assert_eq!(out.to_f32().unwrap(), twice, "{groups:?} of [{n_out}, {n_in}]");
            }
        }
    }

    #[test]
    fn a_misfit_is_named() {
        let w = Tensor::zeros(&Device::Cpu, DType::F32, &[2, 4]).unwrap();
        let narrow = Tensor::zeros(&Device::Cpu, DType::F32, &[2, 3]).unwrap();
        let groups = NmGroups { n: 2, m: 4, axis: Axis::Row };
        let factors = MaskFactors { kept: 1.0, dropped: 0.0 };
        let error = nm_scale(&w, &narrow, groups, factors, &w, false).unwrap_err().to_string();
        assert!(error.contains("values"), "{error}");
        let error =
            nm_scale(&w, &w, NmGroups { n: 0, ..groups }, factors, &w, false).unwrap_err().to_string();
        assert!(error.contains("1 to m = 4"), "{error}");
    }
}
