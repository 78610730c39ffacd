//! Weights scaled by whether they are among the largest of all: masks over a whole layer, chosen anew from the weights each time.

mod cpu;
pub(crate) mod cuda;

use crate::ops::MaskFactors;
use crate::{DType, Result, Tensor};

/// The digits of a key, 31 bits of magnitude above 32 of index: the lowest bit of each and how many it has, the highest first.
const DIGITS: [(u32, u32); 6] = [(52, 11), (42, 10), (32, 10), (22, 10), (11, 11), (0, 11)];

/// `out = values · f`, or `out += values · f`, with f a factor for the `kept` largest magnitudes of `by` and one for the others;
/// among equals the lowest index is dropped first.
///
/// Shapes: all the same; `by` and `values` f32, `out` f32 or bf16. `out` may be `values`, not `by`. Cost: up to six passes over
/// `by`, of which a GPU's threshold takes three unless weights tie there; the host waits for none of them.
///
/// # Errors
///
/// [`EngineError::Shape`](crate::EngineError::Shape), [`EngineError::DType`](crate::EngineError::DType) or
/// [`EngineError::Device`](crate::EngineError::Device) naming the operand that does not fit;
/// [`EngineError::Value`](crate::EngineError::Value) unless 1 ≤ kept ≤ the number of weights.
pub fn magnitude_scale(
    by: &Tensor,
    values: &Tensor,
    kept: usize,
    factors: MaskFactors,
    out: &Tensor,
    accumulate: bool,
) -> Result<()> {
    const OP: &str = "magnitude_scale";
    for (operand, tensor) in [("values", values), ("out", out)] {
        tensor.expect_shape(OP, operand, by.shape())?;
        tensor.expect_device(OP, operand, by)?;
    }
    by.expect_dtype(OP, "by", DType::F32)?;
    values.expect_dtype(OP, "values", DType::F32)?;
    super::matmul::expect_float(OP, "out", out)?;
    if !(1..=by.len()).contains(&kept) {
        return Err(crate::tape::value_error(OP, "kept", format!("1 to {} weights", by.len()), kept));
    }
    match by.gpu() {
        None => cpu::magnitude_scale(by, values, kept, factors, out, accumulate),
        Some(gpu) => {
            let state = Tensor::empty(&by.device(), DType::U32, &[cuda::STATE])?;
            cuda::magnitude_scale(gpu, by, values, kept, factors, out, accumulate, &state)?;
            out.wrote();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    fn scaled(
        device: &Device,
        by: &[f32],
        values: &[f32],
        kept: usize,
        [high, low]: [f32; 2],
        accumulate: bool,
    ) -> Vec<f32> {
        let tensor = |v: &[f32]| Tensor::from_f32(device, v, &[1, v.len()]).unwrap();
        let out = tensor(values);
        let factors = MaskFactors { kept: high, dropped: low };
        magnitude_scale(&tensor(by), &tensor(values), kept, factors, &out, accumulate).unwrap();
        out.to_f32().unwrap()
    }

    #[test]
    fn the_largest_of_all_are_kept() {
        // Of the 32 the 8 largest; of the three 3s that tie for the last place the highest index.
        let w = [
            [1., -3., 2., 0.5, -0.1, 0.2, 0.3, -0.4],
            [5., 5., 5., 5., -1., 1., 0., 0.],
            [0., 0., 0., 0., 2., -2., 1., 4.],
            [1., 2., 3., 4., 4., 3., 2., 1.],
        ];
        for device in Device::all_for_tests() {
            let mask = scaled(&device, w.as_flattened(), &[1.0; 32], 8, [1.0, 0.0], false);
            let rows: Vec<String> =
                mask.chunks(8).map(|row| row.iter().map(|v| v.to_string()).collect()).collect();
            assert_eq!(rows, ["00000000", "11110000", "00000001", "00011100"]);
        }
    }

    #[test]
    fn exactly_as_many_as_asked_whatever_ties() {
        let mut state = 7u64;
        let mut draw = |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % n
        };
        // Few magnitudes, zeros of both signs among them; many; some next to each other, some as far as floats go.
        for (len, levels) in [(1, 3), (7, 3), (300, 2), (5000, 9), (70_001, 3), (70_001, 1 << 30)] {
            let extremes = [0.0, -0.0, f32::MIN_POSITIVE / 4.0, f32::MAX, 1.0, 1.0 + f32::EPSILON];
            let by: Vec<f32> = (0..len)
                .map(|_| match draw(8) {
                    0 => extremes[draw(6) as usize],
                    _ => (draw(levels) as f32 - levels as f32 / 2.0) * 0.5,
                })
                .collect();
            let values: Vec<f32> = (0..len).map(|_| draw(9) as f32 - 4.0).collect();
            let mut order: Vec<usize> = (0..len).collect();
            order.sort_by(|&a, &b| by[b].abs().partial_cmp(&by[a].abs()).unwrap().then(b.cmp(&a)));
            for kept in [1, len.div_ceil(10), len / 2, len - 1, len] {
                let kept = kept.clamp(1, len);
                let mut want = values.iter().map(|v| v * -0.25).collect::<Vec<f32>>();
                order[..kept].iter().for_each(|&i| want[i] = values[i] * 0.75);
                let sums: Vec<f32> = values.iter().zip(&want).map(|(a, b)| a + b).collect();
                for device in Device::all_for_tests() {
                    assert!(
                        scaled(&device, &by, &values, kept, [0.75, -0.25], false) == want,
                        "{kept} of {len}"
                    );
                    assert!(
                        scaled(&device, &by, &values, kept, [0.75, -0.25], true) == sums,
                        "{kept} of {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_misfit_is_named() {
        let w = Tensor::zeros(&Device::Cpu, DType::F32, &[2, 4]).unwrap();
        let narrow = Tensor::zeros(&Device::Cpu, DType::F32, &[2, 3]).unwrap();
        let factors = MaskFactors { kept: 1.0, dropped: 0.0 };
        let error = magnitude_scale(&w, &narrow, 2, factors, &w, false).unwrap_err().to_string();
        assert!(error.contains("values"), "{error}");
        for kept in [0, 9] {
            let error = magnitude_scale(&w, &w, kept, factors, &w, false).unwrap_err().to_string();
            assert!(error.contains("1 to 8 weights") && error.contains(&kept.to_string()), "{error}");
        }
    }
}
