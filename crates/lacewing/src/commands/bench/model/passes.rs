//! The passes of a model that are timed, and the memory that it takes.

use super::report::Peaks;
use crate::commands::bench::measure::{Direction, Times, compare};
use crate::commands::bench::{SEED, draw};
use lacewing_core::Rng;
use lacewing_engine::ops::{Target, softmax_cross_entropy};
use lacewing_engine::optim::{AdamW, AdamWConfig, Optimizer};
use lacewing_engine::{Cx, Device, EngineError, StepRng, Tensor};
use lacewing_models::{BuiltModel, Model};
use std::cell::RefCell;

/// Learning rate of the timed steps: so low that no number of them takes the weights to where there are no numbers.
pub(super) const LEARNING_RATE: f32 = 1e-5;

/// A batch as a program has it.
pub(super) struct Inputs {
    /// `[batch, channels, height, width]`.
    pub(super) images: Tensor,
    /// `[batch]`, for training.
    labels: Option<Tensor>,
    /// Bytes of both on the device.
    bytes: usize,
}

impl Inputs {
    /// The same whenever they are drawn.
    pub(super) fn draw(
        model: &dyn Model,
        direction: Direction,
        device: &Device,
        batch: usize,
    ) -> Result<Self, EngineError> {
        let mut rng = Rng::new(SEED).fork("bench");
        let [channels, height, width] = model.image_shape();
        let images = draw(batch * channels * height * width, &mut rng);
        let mut labels =
            || (0..batch).map(|_| rng.below(model.n_classes() as u64) as u32).collect::<Vec<_>>();
        let labels = (direction == Direction::Training).then(&mut labels);
        let before = held(device);
        let images = Tensor::from_f32(device, &images, &[batch, channels, height, width])?;
        let labels = labels.map(|labels| Tensor::from_u32(device, &labels, &[batch])).transpose()?;
        Ok(Self { images, labels, bytes: held(device) - before })
    }
}

/// A model ready to infer or, with its optimizer, to train.
pub(super) struct Runner {
    pub(super) built: BuiltModel,
    optimizer: Option<RefCell<AdamW>>,
}

impl Runner {
    pub(super) fn new(built: BuiltModel, direction: Direction) -> Result<Self, EngineError> {
        let optimizer = || Ok::<_, EngineError>(AdamW::new(&built.params, AdamWConfig::default())?.into());
        let optimizer = (direction == Direction::Training).then(optimizer).transpose()?;
        Ok(Self { built, optimizer })
    }

    /// Infers the logits, or trains: forward pass, mean softmax cross-entropy, backward pass, a step of AdamW, which leaves
    /// gradients of zero.
    fn pass(&self, inputs: &Inputs) -> Result<(), EngineError> {
        let BuiltModel { model, params, .. } = &self.built;
        let (Some(optimizer), Some(labels)) = (&self.optimizer, &inputs.labels) else {
            return model.forward(&Cx::evaluation(params.clone()), &inputs.images).map(drop);
        };
        let mut optimizer = optimizer.borrow_mut();
        let cx = Cx::training(params.clone(), StepRng::new(SEED, optimizer.steps()));
        let logits = model.forward(&cx, &inputs.images)?;
        let target = Target::Classes { labels, smoothing: 0.0 };
        let (_, dlogits) = softmax_cross_entropy(logits.value(), target, 1.0 / labels.len() as f32)?;
        cx.backward(&logits, dlogits)?;
        optimizer.step(params, LEARNING_RATE, None)
    }

    /// Bytes that a pass holds at once beyond those held before and after it: activations, and their gradients.
    fn growth(&self, device: &Device, inputs: &Inputs) -> Result<usize, EngineError> {
        let before = held(device);
        self.pass(inputs)?;
        Ok(device.peak_bytes() - before)
    }
}

/// Times the passes of a model and of its dense twin in turns, and counts the memory of each.
///
/// The peak of a model is that of a program which has this model alone: what it holds between passes, its batch, and what
/// a pass holds at once beyond that. All are bytes of tensors. What a model holds is what is freed with it: parameters
/// with their bf16 copies, weights that kernels keep as they read them, in training gradients and moments. Not counted
/// are the workspaces that all models of a device share and, on a CPU, packed copies of weights, which are no tensors.
pub(super) fn measured(
    device: &Device,
    inputs: &Inputs,
    own: Runner,
    dense: Runner,
) -> Result<(Times, Peaks), EngineError> {
    let times = compare(device, [&|| dense.pass(inputs), &|| own.pass(inputs)])?;
    // After the timed passes nothing is made any more that stays.
    let growths = [own.growth(device, inputs)?, dense.growth(device, inputs)?];
    let both = held(device);
    drop(dense);
    let one = held(device);
    drop(own);
    let [own, dense] = [one - held(device), both - one];
    Ok((times, Peaks { own: inputs.bytes + own + growths[0], dense: inputs.bytes + dense + growths[1] }))
}

/// Bytes of tensors on the device: a new peak starts from there.
fn held(device: &Device) -> usize {
    device.reset_peak();
    device.peak_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lacewing_engine::DType;
    use lacewing_models::ModelConfig;
    use lacewing_nn::ModelBuilder;
    use serde_json::json;

    fn loss(built: &BuiltModel, inputs: &Inputs) -> f32 {
        let logits = built.model.forward(&Cx::evaluation(built.params.clone()), &inputs.images).unwrap();
        let target = Target::Classes { labels: inputs.labels.as_ref().unwrap(), smoothing: 0.0 };
        let (loss, _) = softmax_cross_entropy(logits.value(), target, 1.0).unwrap();
        loss.to_f32().unwrap().iter().sum()
    }

    #[test]
    fn training_steps_train() {
        let config = ModelConfig::from_json(&json!({"name": "vit_digits", "depth": 1})).unwrap();
        let built = config.build(ModelBuilder::new(Device::Cpu, DType::F32, SEED).unwrap()).unwrap();
        let inputs = Inputs::draw(built.model.as_ref(), Direction::Training, &Device::Cpu, 4).unwrap();
        let before = loss(&built, &inputs);
        let runner = Runner::new(built, Direction::Training).unwrap();
        for _ in 0..10 {
            runner.pass(&inputs).unwrap();
        }
        let (after, params) = (loss(&runner.built, &inputs), &runner.built.params);
        assert!(after < before, "{before} -> {after}");
        assert!(params.flat_gradient().unwrap().to_f32().unwrap().iter().all(|&gradient| gradient == 0.0));
    }
}
