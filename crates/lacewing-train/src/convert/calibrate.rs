//! Calibration: the second moments of what goes into each layer, and the logits that a converted model should keep.
//!
//! Of every four batches three are fitted to and the fourth judges, so that a choice is not praised for what it was
//! fitted to. Where there are fewer, all do both.

use super::{ConvertError, Source};
use crate::data::{Loader, Position};
use lacewing_core::project::Moment;
use lacewing_engine::{Cx, EngineError, Tensor};
use lacewing_models::BuiltModel;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// What a model does on some pictures.
#[derive(Debug)]
pub struct Calibration {
    moments: BTreeMap<String, Vec<f64>>,
    batches: Vec<(Tensor, Vec<f32>)>,
}

impl Calibration {
    /// Runs `source` on the first `samples` pictures of `loader`.
    ///
    /// # Errors
    ///
    /// [`ConvertError::Pictures`] for pictures of another shape, [`ConvertError::NotFiniteLogits`], and what the data or the device reports.
    pub fn collect(source: &Source, loader: &Loader, samples: usize) -> Result<Self, ConvertError> {
        let built = &source.built;
        let shape = loader.image_shape();
        let got = [shape.channels, shape.height, shape.width];
        let expected = built.model.image_shape();
        if got != expected {
            return Err(ConvertError::Pictures { expected, got });
        }
        let names: HashMap<_, _> = built
            .params
            .ids()
            .zip(built.params.infos())
            .filter_map(|(id, info)| Some((id, layer_of(built, &info.name)?)))
            .collect();
        let moments: Rc<RefCell<BTreeMap<String, Moment>>> = Rc::default();
        let mut batches = Vec::new();
        let (mut stream, mut seen) = (loader.stream(Position::default()), 0);
        let split = samples.min(loader.samples()) > 3 * loader.batch_size();
        while let Some(batch) = stream.next().filter(|_| seen < samples) {
            let batch = batch?;
            let count = batch.len().min(samples - seen);
            let dims = [count, got[0], got[1], got[2]];
            let pixels = &batch.images[..dims.iter().product()];
            let images = Tensor::from_f32(&built.params.device(), pixels, &dims)?;
            let judges = batches.len() % 4 == 3;
            let (seen_by, names) = (moments.clone(), names.clone());
            let observe = move |id, x: &Tensor| -> Result<(), EngineError> {
                if let Some(name) = names.get(&id).filter(|_| !(split && judges)) {
                    let n_in = x.shape().last().copied().unwrap_or(1);
                    let mut moments = seen_by.borrow_mut();
                    moments.entry(name.clone()).or_insert_with(|| Moment::new(n_in)).add(&x.to_f32()?);
                }
                Ok(())
            };
            let cx = Cx::evaluation(built.params.clone()).observed(observe);
            let logits = built.model.forward(&cx, &images)?.value().to_f32()?;
            if !logits.iter().all(|logit| logit.is_finite()) {
                let model = "the model to be converted".to_owned();
                return Err(ConvertError::NotFiniteLogits { model });
            }
            batches.push((images, logits));
            seen += count;
        }
        if split {
            batches = batches.into_iter().skip(3).step_by(4).collect();
        }
        let moments = moments.borrow().iter().map(|(name, moment)| (name.clone(), ridged(moment))).collect();
        Ok(Self { moments, batches })
    }

    /// `E[x xᵀ] [n_in, n_in]` of a layer's inputs.
    pub fn moment(&self, layer: &str) -> Option<&[f64]> {
        self.moments.get(layer).map(Vec::as_slice)
    }

    /// `‖z − ẑ‖ / ‖z‖` between the logits of the source and those of `built`, over the pictures that judge.
    ///
    /// Each picture's logits are taken without their mean, which changes no probability.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn logit_error(&self, built: &BuiltModel) -> Result<f64, ConvertError> {
        let classes = built.model.n_classes();
        let (mut off, mut all) = (0.0, 0.0);
        for (images, logits) in &self.batches {
            let cx = Cx::evaluation(built.params.clone());
            let got = built.model.forward(&cx, images)?.value().to_f32()?;
            for (got, want) in got.chunks(classes).zip(logits.chunks(classes)) {
                off += deviation(got.iter().zip(want).map(|(got, want)| f64::from(got - want)));
                all += deviation(want.iter().map(|&want| f64::from(want)));
            }
        }
        Ok(if off == 0.0 { 0.0 } else { (off / all).sqrt() })
    }
}

/// The sum of squared distances from the mean.
fn deviation(values: impl ExactSizeIterator<Item = f64> + Clone) -> f64 {
    let mean = values.clone().sum::<f64>() / values.len() as f64;
    values.map(|value| (value - mean).powi(2)).sum()
}

/// The mean second moment with a little of the identity: what few pictures do not show must not come out wild.
fn ridged(moment: &Moment) -> Vec<f64> {
    let mut mean = moment.mean();
    let n = (mean.len() as f64).sqrt() as usize;
    let trace: f64 = mean.iter().step_by(n + 1).sum();
    mean.iter_mut().step_by(n + 1).for_each(|value| *value += RIDGE * trace / n as f64);
    mean
}

/// Share of the mean variance that is added to every input's.
const RIDGE: f64 = 1e-3;

/// The layer that a parameter is the first of.
fn layer_of(built: &BuiltModel, param: &str) -> Option<String> {
    let layer =
        built.summary.layers.iter().find(|layer| {
            param.strip_prefix(layer.name.as_str()).is_some_and(|rest| rest.starts_with('.'))
        })?;
    Some(layer.name.clone())
}
