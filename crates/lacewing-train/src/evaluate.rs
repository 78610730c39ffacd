//! Measuring a model: accuracy on a split, and the time of a forward pass.

use crate::checkpoint::SavedModel;
use crate::data::{Loader, Position};
use crate::error::TrainError;
use crate::ranks::Ranks;
use crate::recipe::ComputeType;
use crate::report::Latency;
use lacewing_engine::{Cx, Device, Params, Tensor, ops};
use lacewing_models::{BuiltModel, Model, ModelConfig, ModelError};
use lacewing_nn::ModelBuilder;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The model that `saved` are the weights of.
///
/// # Errors
///
/// A config that does not fit this program or the file's arrays, by name; what the device reports.
pub fn rebuild(saved: &SavedModel, device: &Device, dtype: ComputeType) -> Result<BuiltModel, TrainError> {
    let builder = ModelBuilder::restoring(device.clone(), dtype.engine(), saved.buffers()?);
    let config = ModelConfig::from_json(&saved.card.model)?;
    let built = config.build(builder.map_err(ModelError::from)?)?;
    saved.restore(&built.params)?;
    Ok(built)
}

/// How well a model classifies a split.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accuracy {
    /// Share of pictures whose class got the highest score; a tie with a class of lower index counts as missed.
    pub top1: f64,
    /// Share of pictures whose class was among the five highest.
    pub top5: f64,
    /// Pictures a second, loading included.
    pub images_per_s: f64,
}

/// Classifies everything `loader` gives, with the parameters as they are.
///
/// # Errors
///
/// A picture that cannot be read, and what the device reports.
pub fn accuracy(model: &dyn Model, params: &Arc<Params>, loader: &Loader) -> Result<Accuracy, TrainError> {
    shared_accuracy(model, params, loader, &Ranks::alone())
}

/// As [`accuracy`] where each process's loader gives its share: all get the result of the whole.
///
/// # Errors
///
/// As [`accuracy`], and what another process reports.
pub fn shared_accuracy(
    model: &dyn Model,
    params: &Arc<Params>,
    loader: &Loader,
    processes: &Ranks,
) -> Result<Accuracy, TrainError> {
    let (device, shape) = (params.device(), loader.image_shape());
    let start = Instant::now();
    let mut ranks = Vec::new();
    let mut batches = loader.stream(Position::default());
    while let Some(batch) = batches.next() {
        let batch = batch?;
        if batch.is_empty() {
            continue;
        }
        let dims = [batch.len(), shape.channels, shape.height, shape.width];
        let images = Tensor::from_f32(&device, &batch.images, &dims)?;
        let labels = Tensor::from_u32(&device, &batch.labels, &[batch.len()])?;
        batches.recycle(batch);
        let logits = model.forward(&Cx::evaluation(params.clone()), &images)?;
        ranks.push(ops::ranks(logits.value(), &labels)?);
    }
    // Fetched at the end: the device is never waited for in between.
    let mut counts = [0.0; 3];
    for batch in ranks {
        for rank in batch.to_u32()? {
            counts[0] += 1.0;
            counts[1] += f64::from(u8::from(rank == 0));
            counts[2] += f64::from(u8::from(rank < 5));
        }
    }
    let [n, first, in_five] = processes.sum_values(counts)?;
    let share = |count: f64| count / f64::max(n, 1.0);
    Ok(Accuracy { top1: share(first), top5: share(in_five), images_per_s: n / start.elapsed().as_secs_f64() })
}

/// Forward passes before the clock starts.
const WARM_UP: usize = 3;

/// Passes that are timed at least, however long they take.
const MIN_REPEATS: usize = 5;

/// Time after which no further pass is started.
const BUDGET: Duration = Duration::from_millis(250);

/// Median milliseconds of a forward pass at batch 1 and 32, pictures of `image` (channels, height, width) on the device.
///
/// # Errors
///
/// What the device reports.
pub fn latency(model: &dyn Model, params: &Arc<Params>, image: [usize; 3]) -> Result<Latency, TrainError> {
    Ok(Latency {
        batch_1: median_ms(model, params, image, 1)?,
        batch_32: median_ms(model, params, image, 32)?,
    })
}

fn median_ms(
    model: &dyn Model,
    params: &Arc<Params>,
    [channels, height, width]: [usize; 3],
    batch: usize,
) -> Result<f64, TrainError> {
    let device = params.device();
    // Not constant, so that no kernel meets only zeros.
    let values: Vec<f32> =
        (0..batch * channels * height * width).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect();
    let images = Tensor::from_f32(&device, &values, &[batch, channels, height, width])?;
    let pass = || -> Result<f64, TrainError> {
        let start = Instant::now();
        model.forward(&Cx::evaluation(params.clone()), &images)?;
        Device::synchronize(&device)?;
        Ok(1e3 * start.elapsed().as_secs_f64())
    };
    for _ in 0..WARM_UP {
        pass()?;
    }
    let (start, mut times) = (Instant::now(), Vec::new());
    while times.len() < MIN_REPEATS || start.elapsed() < BUDGET {
        times.push(pass()?);
    }
    Ok(median(&mut times).expect("some passes were timed"))
}

/// The middle value, the mean of the two middle ones of an even number; `None` of nothing.
pub(crate) fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn medians() {
        assert_eq!(median(&mut []), None);
        assert_eq!(median(&mut [3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
