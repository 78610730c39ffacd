//! Timing: two layers, or two models, in turns, so that what else the machine does falls on both.

use super::place::Place;
use lacewing_core::Structure;
use lacewing_engine::{Cx, Device, EngineError, StepRng, Tensor};
use lacewing_nn::{Built, Linear, LinearOptions, ModelBuilder, NnError};
use serde_json::Value;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Passes before the clock counts.
const WARM_UP: usize = 3;

/// Samples of each at least.
const MIN_SAMPLES: usize = 7;

/// Time after which no further pair of samples is taken.
const BUDGET: Duration = Duration::from_millis(300);

/// The least time of a sample, in seconds: shorter passes are repeated inside it.
const MIN_SAMPLE: f64 = 1e-3;

/// Passes up to this long are made once more before each sample, untimed: caches then hold what the pass left there, as
/// where a program times nothing else, and not what the other one did.
const CACHED: Duration = Duration::from_millis(50);

/// Time after which passes that take seconds have been warmed up, and after which [`FEW_SAMPLES`] are enough.
const PATIENCE: Duration = Duration::from_secs(10);

/// Samples of each at least, where a pass takes seconds.
const FEW_SAMPLES: usize = 3;

/// How samples are taken, for programs that time other libraries in the same way.
pub(super) fn protocol() -> [(&'static str, Value); 6] {
    [
        ("warm_up", WARM_UP.into()),
        ("min_samples", MIN_SAMPLES.into()),
        ("budget_s", BUDGET.as_secs_f64().into()),
        ("min_sample_s", MIN_SAMPLE.into()),
        ("patience_s", PATIENCE.as_secs_f64().into()),
        ("few_samples", FEW_SAMPLES.into()),
    ]
}

/// What a pass computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// `y`.
    Forward,
    /// `y`, and the gradients of `x` and of the parameters.
    Training,
}

impl Direction {
    /// Its name in reports.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Training => "forward+backward",
        }
    }
}

/// What a backward pass found.
pub(super) struct Gradients {
    /// Of the input, `[rows, n_in]`.
    pub(super) x: Vec<f32>,
    /// Of each parameter of the structure.
    pub(super) params: Vec<Vec<f32>>,
}

/// A linear layer without a bias.
pub(super) struct Layer {
    linear: Linear,
    built: Built,
}

impl Layer {
    /// Run by the kernel of this name, or by the one that is chosen.
    pub(super) fn new(
        place: &Place,
        structure: Box<dyn Structure>,
        kernel: Option<&str>,
    ) -> Result<Self, NnError> {
        let mut builder = ModelBuilder::new(place.device.clone(), place.dtype, super::SEED)?;
        let options = LinearOptions { bias: false, ..LinearOptions::default() };
        let linear = builder.root().linear_of("layer", structure, kernel, options)?;
        Ok(Self { linear, built: builder.finish()? })
    }

    pub(super) fn structure(&self) -> Arc<dyn Structure> {
        self.linear.structure()
    }

    /// The kernels that run it.
    pub(super) fn kernel(&self) -> String {
        self.linear.kernel()
    }

    /// The structure's parameters as products read them.
    pub(super) fn values(&self) -> Result<Vec<Vec<f64>>, EngineError> {
        let params = &self.built.params;
        let read = |&id| Ok(params.compute(id).to_f32()?.into_iter().map(f64::from).collect());
        self.linear.weights().iter().map(read).collect()
    }

    /// The gradients of `x [rows, n_in]` and of the structure's parameters, where the output's is `dy [rows, n_out]`.
    pub(super) fn gradients(&self, x: &Tensor, dy: &Tensor) -> Result<Gradients, EngineError> {
        let params = &self.built.params;
        params.zero_gradients()?;
        let cx = Cx::training(params.clone(), StepRng::new(0, 0));
        let input = cx.leaf(x.clone());
        let y = self.linear.forward(&cx, &input)?;
        // No path leads from an output to the inputs where nothing is stored.
        let x = cx.backward(&y, dy.clone())?.take(&input).map_or(Ok(vec![0.0; x.len()]), |dx| dx.to_f32())?;
        let params = self.linear.weights().iter().map(|&id| params.gradient(id)?.to_f32());
        Ok(Gradients { x, params: params.collect::<Result<_, _>>()? })
    }

    /// One pass over `x [rows, n_in]`, its output's gradient being `dy [rows, n_out]`. Returns the output.
    pub(super) fn pass(&self, direction: Direction, x: &Tensor, dy: &Tensor) -> Result<Tensor, EngineError> {
        let params = self.built.params.clone();
        match direction {
            Direction::Forward => {
                let cx = Cx::evaluation(params);
                Ok(self.linear.forward(&cx, &cx.constant(x.clone()))?.value().clone())
            }
            Direction::Training => {
                let cx = Cx::training(params, StepRng::new(0, 0));
                let x = cx.leaf(x.clone());
                let y = self.linear.forward(&cx, &x)?;
                cx.backward(&y, dy.clone())?.take(&x);
                Ok(y.value().clone())
            }
        }
    }
}

/// Milliseconds of a pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Times {
    /// Median of the structure.
    pub(super) ms: f64,
    /// The middle half of its samples lies within so much.
    pub(super) ms_spread: f64,
    /// Median of the dense layer.
    pub(super) dense_ms: f64,
    /// As `ms_spread`.
    pub(super) dense_ms_spread: f64,
}

/// Times the passes of something dense and of another thing in turns.
pub(super) fn compare(
    device: &Device,
    passes: [&dyn Fn() -> Result<(), EngineError>; 2],
) -> Result<Times, EngineError> {
    let sample = |pass: &dyn Fn() -> Result<(), EngineError>, times: usize| -> Result<f64, EngineError> {
        let start = Instant::now();
        for _ in 0..times {
            pass()?;
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64())
    };
    let (mut repeats, mut cached) = ([1, 1], [0, 0]);
    for ((pass, repeats), cached) in passes.into_iter().zip(&mut repeats).zip(&mut cached) {
        let start = Instant::now();
        for _ in 0..WARM_UP {
            sample(pass, 1)?;
            if start.elapsed() > PATIENCE / 10 {
                break;
            }
        }
        loop {
            let seconds = sample(pass, *repeats)?;
            if seconds >= MIN_SAMPLE {
                *cached = usize::from(seconds / *repeats as f64 <= CACHED.as_secs_f64());
                break;
            }
            // A fifth more than seems enough; at most tenfold, since a first sample may be of anything.
            let needed = *repeats as f64 * (1.2 * MIN_SAMPLE / seconds.max(1e-9)).clamp(1.0, 10.0);
            *repeats = needed.ceil() as usize + 1;
        }
    }
    let (start, mut samples) = (Instant::now(), [Vec::new(), Vec::new()]);
    let enough = |n: usize| n >= if start.elapsed() < PATIENCE { MIN_SAMPLES } else { FEW_SAMPLES };
    while !enough(samples[0].len()) || start.elapsed() < BUDGET {
        for (at, (pass, samples)) in passes.into_iter().zip(&mut samples).enumerate() {
            let repeats = repeats[at];
            sample(pass, cached[at])?;
            samples.push(1e3 * sample(pass, repeats)? / repeats as f64);
        }
    }
    let [dense, own] = samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples
    });
    let spread = |sorted: &[f64]| quantile(sorted, 0.75) - quantile(sorted, 0.25);
    Ok(Times {
        ms: quantile(&own, 0.5),
        ms_spread: spread(&own),
        dense_ms: quantile(&dense, 0.5),
        dense_ms_spread: spread(&dense),
    })
}

/// The value that a share of `sorted`, which is not empty, lies below; linear between neighbours.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_are_linear_between_neighbours() {
        assert_eq!(quantile(&[3.0], 0.75), 3.0);
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(
            [0.0, 0.25, 0.5, 0.75, 1.0].map(|share| quantile(&sorted, share)),
            [1.0, 1.75, 3.0, 5.0, 8.0]
        );
    }
}
