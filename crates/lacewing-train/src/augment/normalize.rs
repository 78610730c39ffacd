//! Normalization: bytes to f32 of zero mean and unit deviation, channel by channel.

use super::pipeline::Step;
use super::{AugmentError, Settings, require};
use serde::{Deserialize, Serialize};

/// Settings of `normalize`, and the statistics a data set carries: `y = (x/255 - mean) / std`, one entry a channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Normalize {
    /// Mean of each channel, on the scale 0 to 1.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, on the scale 0 to 1, above 0.
    pub std: Vec<f64>,
}

impl Normalize {
    /// The statistics from slices.
    pub fn new(mean: &[f64], std: &[f64]) -> Self {
        Self { mean: mean.to_vec(), std: std.to_vec() }
    }

    /// Writes one picture as normalized f32: `target[i] = pixels[i]·scale[c] + bias[c]` with `scale = 1/(255·std)`,
    /// `bias = -mean/std`.
    ///
    /// # Panics
    /// When the plane size does not divide the picture or the channels do not match: the pipeline checked both.
    pub fn write(&self, pixels: &[u8], plane: usize, target: &mut [f32]) {
        assert_eq!(pixels.len(), self.mean.len() * plane);
        let planes = pixels.chunks_exact(plane).zip(target.chunks_exact_mut(plane));
        for ((from, to), (mean, std)) in planes.zip(self.mean.iter().zip(&self.std)) {
            let (scale, bias) = ((255.0 * std).recip() as f32, (-mean / std) as f32);
            for (y, &x) in to.iter_mut().zip(from) {
                *y = f32::from(x) * scale + bias;
            }
        }
    }
}

impl Settings for Normalize {
    const NAME: &'static str = "normalize";
    const ABOUT: &'static str = "mean and deviation of each channel, in place of the data set's own";

    fn check(&self) -> Result<(), AugmentError> {
        let (means, stds) = (self.mean.len(), self.std.len());
        if means != stds {
            return Err(AugmentError::Channels { what: "normalize.std", expected: means, got: stds });
        }
        for &std in &self.std {
            require(Self::NAME, "std", std, "finite and above 0", std > 0.0 && std.is_finite())?;
        }
        for &mean in &self.mean {
            require(Self::NAME, "mean", mean, "finite", mean.is_finite())?;
        }
        Ok(())
    }

    fn step(self) -> Step {
        Step::Normalize(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_follow_the_formula() {
        let step = Normalize::new(&[0.25, 0.5], &[0.5, 0.125]);
        let pixels = [0, 255, 51, 102];
        let mut out = [0.0; 4];
        step.write(&pixels, 2, &mut out);
        for (i, &y) in out.iter().enumerate() {
            let (mean, std) = (step.mean[i / 2], step.std[i / 2]);
            let x = f64::from(pixels[i]) / 255.0;
            // Three roundings of f32 on terms no larger than (x + mean) / std.
            let tolerance = 4.0 * f64::from(f32::EPSILON) * (x + mean) / std;
            assert!((f64::from(y) - (x - mean) / std).abs() <= tolerance);
        }
    }
}
