//! Weights under a mask of blocks: scores that follow from gradients, and values that the mask lets through.

mod cpu;
pub(crate) mod cuda;

use crate::{DType, EngineError, Result, Tensor};

const OP: &str = "block_mask";

/// `scores[b] −= Σ gradient · weight` over each block: what training moves away from zero rises.
///
/// Shapes: `gradient`, `weight [n_out, n_in]`, `scores [⌈n_out / rows⌉, ⌈n_in / cols⌉]` for blocks of `(rows, cols)`; all f32.
///
/// # Errors
///
/// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] naming the operand that does not fit.
pub fn score_blocks(
    gradient: &Tensor,
    weight: &Tensor,
    block: (usize, usize),
    scores: &Tensor,
) -> Result<()> {
    check(weight, block, [("gradient", gradient)], ("scores", scores))?;
    weight.expect_dtype(OP, "weight", DType::F32)?;
    gradient.expect_dtype(OP, "gradient", DType::F32)?;
    match weight.gpu() {
        None => {
            let products: Vec<f32> =
                gradient.read().iter().zip(&*weight.read()).map(|(g, w)| g * w).collect();
            cpu::subtract_sums(&products, &mut scores.write(), weight.cols(), block);
        }
        Some(gpu) => {
            cuda::score(gpu, gradient, weight, block, scores)?;
            scores.wrote();
        }
    }
    Ok(())
}

/// `out = values · mask[b]`, b the block of each value.
///
/// Shapes: `values [n_out, n_in]` f32, `out` the same in f32 or bf16 (it may be `values`), `mask` as the scores of
/// [`score_blocks`].
///
/// # Errors
///
/// As [`score_blocks`].
pub fn mask_blocks(values: &Tensor, mask: &Tensor, block: (usize, usize), out: &Tensor) -> Result<()> {
    check(values, block, [("out", out)], ("mask", mask))?;
    values.expect_dtype(OP, "values", DType::F32)?;
    super::matmul::expect_float(OP, "out", out)?;
    match values.gpu() {
        None => {
            // Taken out before `out`, which may be the same memory, is written.
            let (values, mask) = (values.read().to_vec(), mask.read().to_vec());
            cpu::scale(&values, &mask, &mut out.write(), out.cols(), block);
        }
        Some(gpu) => {
            cuda::scale(gpu, values, mask, block, out)?;
            out.wrote();
        }
    }
    Ok(())
}

fn check(
    weight: &Tensor,
    (rows, cols): (usize, usize),
    [(operand, other)]: [(&'static str, &Tensor); 1],
    (name, blocks): (&'static str, &Tensor),
) -> Result<()> {
    let &[n_out, n_in] = weight.shape() else {
        let (expected, got) = ("[n_out, n_in]".into(), weight.shape().to_vec());
        return Err(EngineError::Shape { op: OP, operand: "weight", expected, got });
    };
    other.expect_shape(OP, operand, weight.shape())?;
    other.expect_device(OP, operand, weight)?;
    blocks.expect_shape(OP, name, &[n_out.div_ceil(rows), n_in.div_ceil(cols)])?;
    blocks.expect_dtype(OP, name, DType::F32)?;
    blocks.expect_device(OP, name, weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn blocks_are_scored_and_let_through() {
        for (device, (n_out, n_in, rows, cols)) in Device::all_for_tests().into_iter().flat_map(|d| {
            [(6, 8, 2, 4), (7, 9, 3, 4), (5, 3, 1, 1), (64, 70, 32, 32)].map(|shape| (d.clone(), shape))
        }) {
            // Eighths of small integers: sums are exact in any order.
            let value = |i: usize, salt: usize| ((i * 37 + salt) % 19) as f32 / 8.0 - 1.0;
            let g: Vec<f32> = (0..n_out * n_in).map(|i| value(i, 3)).collect();
            let w: Vec<f32> = (0..n_out * n_in).map(|i| value(i, 11)).collect();
            let grid = [n_out.div_ceil(rows), n_in.div_ceil(cols)];
            let block_of = |i: usize| i / n_in / rows * grid[1] + i % n_in / cols;
            let mut wanted = vec![0.5f32; grid[0] * grid[1]];
            (0..n_out * n_in).for_each(|i| wanted[block_of(i)] -= g[i] * w[i]);
            let tensor = |values: &[f32], shape: &[usize]| Tensor::from_f32(&device, values, shape).unwrap();
            let scores = tensor(&vec![0.5; wanted.len()], &grid);
            let (g, w) = (tensor(&g, &[n_out, n_in]), tensor(&w, &[n_out, n_in]));
            score_blocks(&g, &w, (rows, cols), &scores).unwrap();
            assert_eq!(scores.to_f32().unwrap(), wanted, "[{n_out}, {n_in}] in {rows}x{cols}");

            let mask: Vec<f32> = (0..wanted.len()).map(|b| (b % 3 != 1) as u8 as f32).collect();
            let kept = w.to_f32().unwrap();
            let kept: Vec<f32> = kept.iter().enumerate().map(|(i, w)| w * mask[block_of(i)]).collect();
            mask_blocks(&w, &tensor(&mask, &grid), (rows, cols), &w).unwrap();
            assert_eq!(w.to_f32().unwrap(), kept);
        }
        let w = Tensor::zeros(&Device::Cpu, DType::F32, &[4, 4]).unwrap();
        let error = score_blocks(&w, &w, (2, 2), &w).unwrap_err().to_string();
        assert!(error.contains("scores") && error.contains("[2, 2]"), "{error}");
    }
}
