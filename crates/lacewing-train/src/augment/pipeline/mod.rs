//! The pipeline: which steps run for training and for evaluation, and how a batch is finished.
//!
//! A sample is copied into a [`Canvas`], changed as bytes by the sample steps, written once as normalized f32, and changed
//! as such by the normalized steps. When the batch is complete, at most one mixing step works on it and the labels become
//! soft targets.

use super::normalize::Normalize;
use super::picture::{ImageShape, Picture};
use super::random::Draws;
use super::resize_center_crop::ResizeCenterCrop;
use super::{AugmentConfig, AugmentError};
use fast_image_resize::Resizer;
use rayon::prelude::*;
use std::fmt::Debug;

/// Where in the pipeline a step works.
pub enum Step {
    /// On each picture, in training.
    Train(Box<dyn SampleStep>),
    /// On each picture, in evaluation.
    Eval(Box<dyn SampleStep>),
    /// On each normalized picture, in training.
    Normalized(Box<dyn NormalizedStep>),
    /// On the finished batch, in training.
    Batch(Box<dyn BatchStep>),
    /// The statistics that take the place of the data set's own.
    Normalize(Normalize),
}

/// A step that changes one picture of bytes.
pub trait SampleStep: Debug + Send + Sync {
    /// Changes `canvas.picture`, with draws of this sample's own stream.
    fn apply(&self, canvas: &mut Canvas, draws: &mut Draws);

    /// Tells it the mean of each channel, on the scale 0 to 1, before the first picture.
    fn set_mean(&mut self, mean: &[f64]) {
        let _ = mean;
    }

    /// The side in pixels of the square it produces; `None` when the size stays.
    fn side(&self) -> Option<usize> {
        None
    }

    /// What evaluation does in its place, when the recipe does not say.
    fn eval_twin(&self) -> Option<Box<dyn SampleStep>> {
        None
    }
}

/// A step that changes one normalized picture.
pub trait NormalizedStep: Debug + Send + Sync {
    /// Changes `image`, `[channels, height, width]`, with draws of this sample's own stream.
    fn apply(&self, image: &mut [f32], shape: ImageShape, draws: &mut Draws);
}

/// A step that mixes the pictures of a batch in pairs `(i, B-1-i)`.
pub trait BatchStep: Debug + Send + Sync {
    /// How often it is chosen, relative to the other mixing steps.
    fn share(&self) -> f64;

    /// Mixes `images`, `[B, channels, height, width]`; returns λ, the weight of a picture's own target.
    fn apply(&self, images: &mut [f32], shape: ImageShape, draws: &mut Draws) -> f64;
}

/// Calls `mix` with every pair of pictures `(i, B-1-i)`; the middle one of an odd batch stays as it is.
pub(crate) fn for_each_pair(
    images: &mut [f32],
    shape: ImageShape,
    mix: impl Fn(&mut [f32], &mut [f32]) + Sync,
) {
    let (size, pairs) = (shape.len(), images.len() / shape.len() / 2);
    let (front, back) = images.split_at_mut(images.len() - pairs * size);
    front[..pairs * size]
        .par_chunks_exact_mut(size)
        .zip(back.par_chunks_exact_mut(size).rev())
        .with_min_len(PAIRS_A_TASK)
        .for_each(|(a, b)| mix(a, b));
}

/// Pairs that are worth a task of their own.
const PAIRS_A_TASK: usize = 8;

/// A picture being worked on, with a spare buffer and the resampler's.
pub struct Canvas {
    /// The picture.
    pub picture: Picture,
    spare: Picture,
    resizer: Resizer,
}

impl Canvas {
    /// An empty canvas.
    pub fn new() -> Self {
        Self { picture: Picture::empty(), spare: Picture::empty(), resizer: Resizer::new() }
    }

    /// Replaces the picture by what `paint(old, new)` writes.
    pub(crate) fn replace(&mut self, paint: impl FnOnce(&Picture, &mut Picture)) {
        paint(&self.picture, &mut self.spare);
        std::mem::swap(&mut self.picture, &mut self.spare);
    }

    /// As [`Canvas::replace`], with the resampler.
    pub(crate) fn replace_with_resizer(&mut self, paint: impl FnOnce(&mut Resizer, &Picture, &mut Picture)) {
        paint(&mut self.resizer, &self.picture, &mut self.spare);
        std::mem::swap(&mut self.picture, &mut self.spare);
    }
}

impl Default for Canvas {
    fn default() -> Self {
        Self::new()
    }
}

/// The pictures a pipeline starts from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Source<'a> {
    /// Their shape; when `varying`, the shape they are to be brought to.
    pub shape: ImageShape,
    /// Whether height and width differ from picture to picture.
    pub varying: bool,
    /// The statistics of the data set.
    pub normalize: &'a Normalize,
}

/// The steps from a picture to its place in a batch.
#[derive(Debug)]
pub struct Pipeline {
    steps: Vec<Box<dyn SampleStep>>,
    normalized: Vec<Box<dyn NormalizedStep>>,
    mixers: Vec<Box<dyn BatchStep>>,
    normalize: Normalize,
    shape: ImageShape,
    label_smoothing: f64,
}

impl Pipeline {
    /// The training pipeline. When no step of training makes pictures one size and they need it, or the recipe names a
    /// `resize_center_crop`, training starts as evaluation does.
    ///
    /// # Errors
    /// Statistics for another channel count; a smoothing outside `[0, 1)`.
    pub fn train(
        config: &AugmentConfig,
        source: Source<'_>,
        label_smoothing: f64,
    ) -> Result<Self, AugmentError> {
        if !(0.0..1.0).contains(&label_smoothing) {
            return Err(AugmentError::LabelSmoothing { got: label_smoothing });
        }
        let mut steps: Vec<Box<dyn SampleStep>> = Vec::new();
        let (mut normalized, mut mixers) = (Vec::new(), Vec::new());
        for step in config.steps() {
            match step {
                Step::Train(step) => steps.push(step),
                Step::Normalized(step) => normalized.push(step),
                Step::Batch(step) => mixers.push(step),
                Step::Eval(_) | Step::Normalize(_) => {}
            }
        }
        if steps.iter().all(|step| step.side().is_none()) {
            steps.splice(0..0, eval_steps(config, source));
        }
        let eval = Self::eval(config, source)?;
        steps.iter_mut().for_each(|step| step.set_mean(&eval.normalize.mean));
        Self { steps, normalized, mixers, label_smoothing, ..eval }.sized(source)
    }

    /// The evaluation pipeline: the recipe's evaluation steps, else those that training's steps imply, else for pictures of
    /// varying size a `resize_center_crop` to the source's shape. Nothing random.
    ///
    /// # Errors
    /// Statistics for another channel count.
    pub fn eval(config: &AugmentConfig, source: Source<'_>) -> Result<Self, AugmentError> {
        let mut normalize = source.normalize.clone();
        for step in config.steps() {
            if let Step::Normalize(given) = step {
                normalize = given;
            }
        }
        Self {
            steps: eval_steps(config, source),
            normalized: Vec::new(),
            mixers: Vec::new(),
            normalize,
            shape: source.shape,
            label_smoothing: 0.0,
        }
        .sized(source)
    }

    /// Sets the output shape and checks the channels.
    fn sized(mut self, source: Source<'_>) -> Result<Self, AugmentError> {
        let expected = source.shape.channels;
        if self.normalize.mean.len() != expected {
            let got = self.normalize.mean.len();
            return Err(AugmentError::Channels { what: "normalize.mean", expected, got });
        }
        self.shape = match self.steps.iter().rev().find_map(|step| step.side()) {
            Some(side) => ImageShape::new(expected, side, side),
            None => source.shape,
        };
        Ok(self)
    }

    /// The shape of every picture that leaves the pipeline.
    pub fn shape(&self) -> ImageShape {
        self.shape
    }

    /// Whether targets are distributions rather than labels.
    pub fn has_soft_targets(&self) -> bool {
        !self.mixers.is_empty() || self.label_smoothing > 0.0
    }

    /// Takes `canvas.picture` through the sample steps and writes it to `target`, `[channels, height, width]` normalized,
    /// where the normalized steps change it.
    pub fn sample(&self, canvas: &mut Canvas, draws: &mut Draws, target: &mut [f32]) {
        for step in &self.steps {
            step.apply(canvas, draws);
        }
        debug_assert_eq!(canvas.picture.shape, self.shape);
        self.normalize.write(&canvas.picture.pixels, self.shape.plane(), target);
        for step in &self.normalized {
            step.apply(target, self.shape, draws);
        }
    }

    /// Mixes a finished batch and writes its soft targets, `[B, n_classes]`, when there are any:
    /// `t_i = λ·s(y_i) + (1-λ)·s(y_{B-1-i})` with `s(y) = (1-ε)·onehot(y) + ε/n_classes`.
    pub fn batch(
        &self,
        images: &mut [f32],
        labels: &[u32],
        n_classes: usize,
        draws: &mut Draws,
        targets: &mut Vec<f32>,
    ) {
        let lambda = match self.choose(draws) {
            Some(mixer) => mixer.apply(images, self.shape, draws),
            None => 1.0,
        };
        targets.clear();
        targets.resize(labels.len() * n_classes, (self.label_smoothing / n_classes as f64) as f32);
        let (own, partner) = (
            (lambda * (1.0 - self.label_smoothing)) as f32,
            ((1.0 - lambda) * (1.0 - self.label_smoothing)) as f32,
        );
        let partners = labels.iter().rev();
        for ((row, &label), &other) in targets.chunks_exact_mut(n_classes).zip(labels).zip(partners) {
            row[label as usize] += own;
            row[other as usize] += partner;
        }
    }

    /// One mixing step, drawn by the shares.
    fn choose(&self, draws: &mut Draws) -> Option<&dyn BatchStep> {
        let total: f64 = self.mixers.iter().map(|mixer| mixer.share()).sum();
        let mut place = draws.uniform(0.0, total);
        let chosen = self.mixers.iter().find(|mixer| {
            place -= mixer.share();
            place < 0.0
        });
        // Rounding may leave `place` at zero: that is the last one's edge.
        chosen.or(self.mixers.last()).map(AsRef::as_ref)
    }
}

/// See [`Pipeline::eval`].
fn eval_steps(config: &AugmentConfig, source: Source<'_>) -> Vec<Box<dyn SampleStep>> {
    let (mut named, mut implied) = (Vec::new(), Vec::new());
    for step in config.steps() {
        match step {
            Step::Eval(step) => named.push(step),
            Step::Train(step) => implied.extend(step.eval_twin()),
            Step::Batch(_) | Step::Normalize(_) | Step::Normalized(_) => {}
        }
    }
    if named.is_empty() {
        named = implied;
    }
    if named.is_empty() && source.varying {
        named.push(Box::new(ResizeCenterCrop::new(source.shape.height as u32)));
    }
    named
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::random::Purpose;
    use serde_json::json;

    fn config(value: serde_json::Value) -> AugmentConfig {
        serde_json::from_value(value).expect("valid settings")
    }

    fn shapes(value: serde_json::Value, varying: bool) -> (ImageShape, ImageShape) {
        let normalize = Normalize::new(&[0.5; 3], &[0.25; 3]);
        let source = Source { shape: ImageShape::new(3, 32, 32), varying, normalize: &normalize };
        let config = config(value);
        let train = Pipeline::train(&config, source, 0.0).expect("valid").shape();
        (train, Pipeline::eval(&config, source).expect("valid").shape())
    }

    #[test]
    fn training_and_evaluation_agree_on_the_size() {
        let square = |side| (ImageShape::new(3, side, side), ImageShape::new(3, side, side));
        for varying in [false, true] {
            assert_eq!(shapes(json!({}), varying), square(32));
            assert_eq!(shapes(json!({"random_crop": true}), varying), square(32));
            assert_eq!(shapes(json!({"random_resized_crop": {"size": 20}}), varying), square(20));
            assert_eq!(
                shapes(json!({"resize_center_crop": {"size": 64}, "random_crop": {}}), varying),
                square(64)
            );
        }
    }

    #[test]
    fn channel_counts_must_match() {
        let normalize = Normalize::new(&[0.5; 3], &[0.25; 3]);
        let source = Source { shape: ImageShape::new(3, 8, 8), varying: false, normalize: &normalize };
        let gray = config(json!({"normalize": {"mean": [0.5], "std": [0.5]}}));
        let error = Pipeline::eval(&gray, source).expect_err("one entry for three channels");
        assert!(matches!(error, AugmentError::Channels { expected: 3, got: 1, .. }));
        let error = Pipeline::train(&AugmentConfig::default(), source, 1.0).expect_err("smoothing of 1");
        assert!(matches!(error, AugmentError::LabelSmoothing { .. }));
    }

    #[test]
    fn soft_targets_are_distributions_of_the_two_labels() {
        let normalize = Normalize::new(&[0.0], &[1.0]);
        let source = Source { shape: ImageShape::new(1, 4, 4), varying: false, normalize: &normalize };
        let both = config(json!({"mixup": {}, "cutmix": {}}));
        let pipeline = Pipeline::train(&both, source, 0.1).expect("valid");
        let (labels, n_classes) = ([0, 1, 2, 2, 4], 5);
        let mut targets = Vec::new();
        for index in 0..50 {
            // Each picture holds its own index, so the mean of mixed pixels is the mixed index.
            let mut images: Vec<f32> = (0..5).flat_map(|i| vec![i as f32; 16]).collect();
            let mut draws = Draws::new(Purpose::Batch, 5, 0, index);
            pipeline.batch(&mut images, &labels, n_classes, &mut draws, &mut targets);
            for (i, row) in targets.chunks(n_classes).enumerate() {
                // n_classes additions of numbers that sum to one.
                let rounding = 8.0 * n_classes as f32 * f32::EPSILON;
                assert!((row.iter().sum::<f32>() - 1.0).abs() <= rounding);
                if i != 2 {
                    let mean = images[i * 16..(i + 1) * 16].iter().sum::<f32>() / 16.0;
                    let lambda = (row[labels[i] as usize] - 0.02) / 0.9;
                    let expected = lambda * i as f32 + (1.0 - lambda) * (4 - i) as f32;
                    assert!((mean - expected).abs() <= 16.0 * 4.0 * 8.0 * f32::EPSILON, "{mean} {expected}");
                }
            }
        }
    }

    #[test]
    fn mixers_are_chosen_by_their_shares() {
        let normalize = Normalize::new(&[0.0], &[1.0]);
        let source = Source { shape: ImageShape::new(1, 4, 4), varying: false, normalize: &normalize };
        let shares = config(json!({"mixup": {"share": 1.0}, "cutmix": {"share": 3.0}}));
        let pipeline = Pipeline::train(&shares, source, 0.0).expect("valid");
        let n = 4000;
        let cutmix = (0..n)
            .filter(|&i| {
                pipeline.choose(&mut Draws::new(Purpose::Batch, 0, 0, i)).is_some_and(|m| m.share() == 3.0)
            })
            .count();
        let deviation = (n as f64 * 0.75 * 0.25).sqrt();
        assert!((cutmix as f64 - 0.75 * n as f64).abs() < 5.0 * deviation);
    }
}
