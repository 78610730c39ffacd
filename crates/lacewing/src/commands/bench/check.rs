//! Whether a layer computes what its structure is: outputs against the definition in f64, gradients against those of its
//! form, within what rounding explains.

use super::gradient::{Terms, gradients};
use super::measure::{Gradients, Layer};
use super::place::{Place, stored};
use lacewing_core::{Rng, rounding};
use lacewing_engine::EngineError;

/// Rows of a product that are checked.
const ROWS: usize = 3;

/// Rows at most whose gradients are checked.
const GRADIENT_ROWS: usize = 64;

/// A value that rounding does not explain.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) kernel: String,
    /// Which value.
    pub(super) what: String,
    pub(super) got: f32,
    pub(super) expected: f64,
    pub(super) bound: f64,
}

/// A structure's definition with a layer's values.
pub(super) struct Oracle {
    params: Vec<Vec<f64>>,
    /// `W [n_out, n_in]`, where one matrix does it.
    dense: Option<Vec<f64>>,
    /// Roundings on the way from an input to an output or back.
    depth: usize,
    /// Relative errors of what is stored on that way, and of what comes out, where it is not in f32.
    stored: f64,
    result: f64,
}

impl Oracle {
    pub(super) fn new(place: &Place, layer: &Layer) -> Result<Self, EngineError> {
        let (structure, params) = (layer.structure(), layer.values()?);
        let dense = structure.to_dense(&slices(&params));
        // Factors that are multiplied out first add the roundings of a dense product, merged ones those of longer sums.
        let kernel = layer.kernel();
        let composed = if kernel.contains("composed") { structure.n_in() + structure.n_out() } else { 0 };
        let longer = if kernel.contains("merged") { 4 } else { 1 };
        let depth = longer * rounding::depth(&*structure) + composed + 4;
        let times = stored(&*structure) + usize::from(composed > 0);
        let result = place.roundoff();
        Ok(Self { dense, depth, stored: (1.0 + result).powi(times as i32) - 1.0, result, params })
    }

    /// Compares a few rows of `y [rows, n_out]` with the definition's for `x [rows, n_in]`: each output to
    /// `γ_depth · Σ|w||x|`.
    pub(super) fn check(&self, layer: &Layer, x: &[f32], y: &[f32], rng: &mut Rng) -> Result<(), Mistake> {
        let structure = layer.structure();
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        let rows = x.len() / n_in;
        for row in rng.sample(rows as u64, ROWS.min(rows)) {
            let row = row as usize;
            let x = wide(&x[row * n_in..][..n_in]);
            let expected = match &self.dense {
                Some(dense) => product(dense, &x),
                None => structure.apply(&slices(&self.params), &x),
            };
            let sums = rounding::magnitude(&*structure, &slices(&self.params), &x);
            let what = |at| format!("output {at} of row {row}");
            self.compare(layer, what, &y[row * n_out..][..n_out], &expected, &sums, self.depth)?;
        }
        Ok(())
    }

    /// Compares every gradient for `x [rows, n_in]` and `dy [rows, n_out]` with that of the structure's form: each to
    /// `γ · Σ` of the absolute products behind it.
    pub(super) fn check_gradients(
        &self,
        layer: &Layer,
        x: &[f32],
        dy: &[f32],
        got: &Gradients,
    ) -> Result<(), Mistake> {
        let structure = layer.structure();
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        // Rows without a gradient add nothing: see `thinned`.
        let kept = dy.chunks(n_out).enumerate().filter(|(_, dy)| dy.iter().any(|&dy| dy != 0.0));
        let (rows, dy): (Vec<usize>, Vec<&[f32]>) = kept.unzip();
        let (x, dy) = (
            rows.iter().flat_map(|&row| wide(&x[row * n_in..][..n_in])).collect::<Vec<_>>(),
            wide(&dy.concat()),
        );
        let params = slices(&self.params);
        let expected = gradients(&*structure, &params, &x, &dy, Terms::Signed);
        let absolute: Vec<Vec<f64>> = self.params.iter().map(|values| absolute(values)).collect();
        let sums = gradients(
            &*structure,
            &slices(&absolute),
            &self::absolute(&x),
            &self::absolute(&dy),
            Terms::Absolute,
        );
        let found = rows.iter().flat_map(|&row| &got.x[row * n_in..][..n_in]).copied().collect::<Vec<_>>();
        let place = |at: usize| format!("gradient of input {} of row {}", at % n_in, rows[at / n_in]);
        self.compare(layer, place, &found, &expected.x, &sums.x, self.depth)?;
        let specs = structure.params();
        for (which, spec) in specs.iter().enumerate() {
            let place = |at| format!("gradient of `{}`[{at}]", spec.name);
            let depth = self.depth + got.x.len() / n_in;
            let (got, expected) = (&got.params[which], &expected.params[which]);
            self.compare(layer, place, got, expected, &sums.params[which], depth)?;
        }
        Ok(())
    }

    /// Whether each value is within `γ_depth · sum` of what it should be, and what storing it took.
    fn compare(
        &self,
        layer: &Layer,
        what: impl Fn(usize) -> String,
        got: &[f32],
        expected: &[f64],
        sums: &[f64],
        depth: usize,
    ) -> Result<(), Mistake> {
        for (at, ((&got, &expected), &sum)) in got.iter().zip(expected).zip(sums).enumerate() {
            let computed = bound(depth, sum) + self.stored * sum;
            let bound = computed + self.result * (expected.abs() + computed);
            // Not "greater than the bound": a NaN is a mistake as well.
            if (f64::from(got) - expected).abs() <= bound {
                continue;
            }
            return Err(Mistake { kernel: layer.kernel(), what: what(at), got, expected, bound });
        }
        Ok(())
    }
}

/// `dy [rows, n_out]` with zeros in all but every so manieth row, so that checking takes about as long as timing. The last
/// row stays: what a kernel drops is at the end of something.
pub(super) fn thinned(dy: &[f32], n_out: usize) -> Vec<f32> {
    let rows = dy.len() / n_out;
    let step = rows.div_ceil(GRADIENT_ROWS);
    let keep = |row: usize| (rows - 1 - row).is_multiple_of(step);
    let rows = dy.chunks(n_out).enumerate();
    rows.flat_map(|(row, dy)| dy.iter().map(move |&dy| if keep(row) { dy } else { 0.0 })).collect()
}

/// `γ_k · sum` with γ_k = k u / (1 − k u), u the unit roundoff of f32, and as many of the least normal numbers for what
/// underflows.
fn bound(k: usize, sum: f64) -> f64 {
    let k = k as f64;
    gamma(k as usize) * sum + k * f64::from(f32::MIN_POSITIVE)
}

/// `γ_k` of f32.
pub(super) fn gamma(k: usize) -> f64 {
    let ku = k as f64 * f64::from(f32::EPSILON) / 2.0;
    ku / (1.0 - ku)
}

fn slices(params: &[Vec<f64>]) -> Vec<&[f64]> {
    params.iter().map(Vec::as_slice).collect()
}

fn absolute(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| value.abs()).collect()
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

fn product(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::measure::Direction;
    use super::*;
    use lacewing_engine::{DType, Device, Tensor};

    const CPU: Place = Place { device: Device::Cpu, dtype: DType::F32 };

    /// Calls `check` for a layer of every structure, with its oracle.
    fn for_each_layer(check: impl Fn(&str, &Layer, &Oracle)) {
        for kind in lacewing_core::structures() {
            let structure = lacewing_core::build(&kind.name.into(), 256, 512, 1, None).unwrap();
            let layer = Layer::new(&CPU, structure, None).unwrap();
            let oracle = Oracle::new(&CPU, &layer).unwrap();
            check(kind.name, &layer, &oracle);
        }
    }

    fn draw(len: usize, rng: &mut Rng) -> Vec<f32> {
        (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect()
    }

    #[test]
    fn every_structure_passes_and_a_wrong_output_does_not() {
        for_each_layer(|name, layer, oracle| {
            let mut rng = Rng::new(2);
            let x = draw(2 * 256, &mut rng);
            let input = Tensor::from_f32(&Device::Cpu, &x, &[2, 256]).unwrap();
            let seed = Tensor::zeros(&Device::Cpu, input.dtype(), &[2, 512]).unwrap();
            let mut y = layer.pass(Direction::Forward, &input, &seed).unwrap().to_f32().unwrap();
            assert!(y.iter().any(|&y| y != 0.0), "{name}: nothing to check");
            oracle.check(layer, &x, &y, &mut rng).unwrap_or_else(|mistake| panic!("{name}: {mistake:?}"));
            for wrong in [y[512 + 7] + 0.1, f32::NAN] {
                y[512 + 7] = wrong;
                let mistake = oracle.check(layer, &x, &y, &mut rng).unwrap_err();
                assert_eq!(mistake.what, "output 7 of row 1", "{name}");
            }
        });
    }

    #[test]
    fn outputs_in_bf16_may_be_rounded_once_and_no_more_where_nothing_is_stored_between() {
        let bf16 = Place { device: Device::Cpu, dtype: DType::Bf16 };
        let structure = lacewing_core::build(&"dense".into(), 64, 8, 1, None).unwrap();
        let layer = Layer::new(&CPU, structure, None).unwrap();
        let oracle = Oracle::new(&bf16, &layer).unwrap();
        let mut rng = Rng::new(2);
        let x = draw(64, &mut rng);
        let input = Tensor::from_f32(&Device::Cpu, &x, &[1, 64]).unwrap();
        let seed = Tensor::zeros(&Device::Cpu, input.dtype(), &[1, 8]).unwrap();
        let y = layer.pass(Direction::Forward, &input, &seed).unwrap().to_f32().unwrap();
        let off = |by: f32| y.iter().map(|y| y * (1.0 + by)).collect::<Vec<_>>();
        assert!(oracle.check(&layer, &x, &off(2f32.powi(-8)), &mut rng).is_ok());
        assert!(oracle.check(&layer, &x, &off(1.1 * 2f32.powi(-8)), &mut rng).is_err());
    }

    #[test]
    fn every_structure_has_its_gradients_and_a_wrong_one_is_found() {
        // More rows than are checked.
        let rows = GRADIENT_ROWS + 2;
        for_each_layer(|name, layer, oracle| {
            let mut rng = Rng::new(2);
            let (x, dy) = (draw(rows * 256, &mut rng), thinned(&draw(rows * 512, &mut rng), 512));
            let input = Tensor::from_f32(&Device::Cpu, &x, &[rows, 256]).unwrap();
            let seed = Tensor::from_f32(&Device::Cpu, &dy, &[rows, 512]).unwrap();
            let mut got = layer.gradients(&input, &seed).unwrap();
            let failed = |mistake: Mistake| panic!("{name}: {mistake:?}");
            oracle.check_gradients(layer, &x, &dy, &got).unwrap_or_else(failed);
            let last = (rows - 1) * 256 + 9;
            let right = std::mem::replace(&mut got.x[last], f32::NAN);
            let mistake = oracle.check_gradients(layer, &x, &dy, &got).unwrap_err();
            assert_eq!(mistake.what, format!("gradient of input 9 of row {}", rows - 1), "{name}");
            got.x[last] = right;
            for which in 0..got.params.len() {
                let right = got.params[which][0];
                // So far off because the bound of a gate is wide.
                got.params[which][0] += 100.0 * (1.0 + right.abs());
                let Err(mistake) = oracle.check_gradients(layer, &x, &dy, &got) else {
                    panic!("{name}: parameter {which} {right}")
                };
                let param = &layer.structure().params()[which].name;
                assert_eq!(mistake.what, format!("gradient of `{param}`[0]"), "{name}");
                got.params[which][0] = right;
            }
        });
    }

    #[test]
    fn thinning_keeps_the_last_row() {
        let rows = 2 * GRADIENT_ROWS + 1;
        let kept: Vec<usize> = thinned(&vec![1.0; rows * 2], 2)
            .chunks(2)
            .enumerate()
            .filter(|(_, dy)| dy == &[1.0, 1.0])
            .map(|(row, _)| row)
            .collect();
        assert!(
            kept.len() <= GRADIENT_ROWS && kept.len() > GRADIENT_ROWS / 2 && kept.last() == Some(&(rows - 1))
        );
        assert_eq!(thinned(&[1.0; 6], 2), [1.0; 6]);
    }
}
