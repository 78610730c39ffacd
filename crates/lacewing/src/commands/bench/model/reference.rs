//! What a model's results are held to: the same model with its structures' definitions as dense weights, how far rounding
//! may take it, and how far apart results are.

use crate::commands::bench::SEED;
use lacewing_core::{IndexBuffer, Rng, Structure, rounding};
use lacewing_engine::{DType, Device};
use lacewing_models::{BuiltModel, ModelConfig, ModelError};
use lacewing_nn::{LayerInfo, ModelBuilder};
use std::collections::HashMap;
use std::error::Error;

/// The parameters that two models have alike: all but the weights of layers with another structure.
pub(super) fn shared(a: &BuiltModel, b: &BuiltModel) -> Vec<String> {
    let same = |name: &&str| {
        let shape = |built: &BuiltModel| Some(built.params.info(built.params.find(name)?).shape.clone());
        let structure = |built: &BuiltModel| {
            let layer = built.summary.layers.iter().find(|layer| weight_of(name, layer));
            layer.map(|layer| layer.config.clone())
        };
        shape(a) == shape(b) && structure(a) == structure(b)
    };
    a.params.infos().iter().map(|info| info.name.as_str()).filter(same).map(str::to_owned).collect()
}

/// Whether the parameter called `name` is one of the layer's structure.
pub(super) fn weight_of(name: &str, layer: &LayerInfo) -> bool {
    name.strip_prefix(layer.name.as_str())
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|rest| rest != "bias")
}

/// The same model with dense weights by the structures' definitions, and the greatest depth of a layer's products. A layer
/// that no one matrix defines keeps its structure.
pub(super) fn defined(
    config: &ModelConfig,
    own: &BuiltModel,
    device: &Device,
) -> Result<(BuiltModel, usize), Box<dyn Error>> {
    let (mut weights, mut rules, mut kept, mut depth) = (HashMap::new(), Vec::new(), Vec::new(), 1);
    for layer in &own.summary.layers {
        let prefix = format!("{}.", layer.name);
        let buffers = own.buffers.iter().filter(|buffer| buffer.name.starts_with(&prefix));
        let bare = |buffer: &IndexBuffer| IndexBuffer {
            name: buffer.name[prefix.len()..].to_owned(),
            ..buffer.clone()
        };
        let bare: Vec<IndexBuffer> = buffers.clone().map(bare).collect();
        let structure = lacewing_core::restore(&layer.config, layer.n_in, layer.n_out, &bare)?;
        depth = depth.max(rounding::depth(structure.as_ref()));
        match dense_weight(own, &prefix, structure.as_ref())? {
            Some(weight) => drop(weights.insert(format!("{prefix}weight"), weight)),
            None => {
                let mut rule = layer.config.clone();
                rule["match"] = format!("/^{}$/", layer.name.replace('.', "\\.")).into();
                rules.push(rule);
                kept.extend(buffers.cloned());
            }
        }
    }
    let config = config.clone().dense_twin().with("rules", &rules.into())?;
    let builder = ModelBuilder::restoring(device.clone(), DType::F32, kept).map_err(ModelError::from)?;
    let reference = config.build(builder)?;
    for id in reference.params.ids() {
        let name = &reference.params.info(id).name;
        let values = match weights.remove(name) {
            Some(values) => values,
            None => own.params.master(own.params.find(name).expect("the same model")).to_f32()?,
        };
        reference.params.set(id, &values)?;
    }
    reference.params.refresh_copy()?;
    Ok((reference, depth))
}

/// The definition's matrix, where there is one.
fn dense_weight(
    own: &BuiltModel,
    prefix: &str,
    structure: &dyn Structure,
) -> Result<Option<Vec<f32>>, lacewing_engine::EngineError> {
    let mut params = Vec::new();
    for spec in structure.params() {
        let id =
            own.params.find(&format!("{prefix}{}", spec.name)).expect("a layer's parameters are the model's");
        params.push(own.params.master(id).to_f32()?.into_iter().map(f64::from).collect::<Vec<f64>>());
    }
    let weight = structure.to_dense(&params.iter().map(Vec::as_slice).collect::<Vec<_>>());
    Ok(weight.map(|weight| weight.into_iter().map(|w| w as f32).collect()))
}

/// Draws the weights that start at zero: behind a head of zeros every model would be right.
pub(super) fn wake(built: &BuiltModel) -> Result<(), lacewing_engine::EngineError> {
    let mut rng = Rng::new(SEED).fork("wake");
    for layer in &built.summary.layers {
        for id in built.params.ids().filter(|&id| weight_of(&built.params.info(id).name, layer)) {
            let values = built.params.master(id).to_f32()?;
            if values.iter().all(|&value| value == 0.0) {
                let bound = 1.0 / (layer.n_in as f64).sqrt();
                let drawn: Vec<f32> = values.iter().map(|_| rng.uniform(-bound, bound) as f32).collect();
                built.params.set(id, &drawn)?;
            }
        }
    }
    built.params.refresh_copy()
}

/// Makes every weight of a layer larger or smaller by a share of it.
pub(super) fn perturb(built: &BuiltModel, share: f64) -> Result<(), lacewing_engine::EngineError> {
    let mut rng = Rng::new(SEED).fork("perturbation");
    for id in built.params.ids() {
        let name = &built.params.info(id).name;
        if !built.summary.layers.iter().any(|layer| weight_of(name, layer)) {
            continue;
        }
        let mut values = built.params.master(id).to_f32()?;
        for value in &mut values {
            let by = if rng.uniform(-1.0, 1.0) < 0.0 { -share } else { share };
            *value = (f64::from(*value) * (1.0 + by)) as f32;
        }
        built.params.set(id, &values)?;
    }
    built.params.refresh_copy()
}

/// The largest difference over the largest of `expected`; of nothing to compare none.
pub(super) fn distance(got: &[f32], expected: &[f32]) -> f64 {
    let worst = |values: &mut dyn Iterator<Item = f64>| {
        values
            .map(f64::abs)
            .fold(0.0, |worst, value| if value > worst || value.is_nan() { value } else { worst })
    };
    let pairs = got.iter().zip(expected);
    let difference = worst(&mut pairs.map(|(&got, &expected)| f64::from(got) - f64::from(expected)));
    if difference == 0.0 { 0.0 } else { difference / worst(&mut expected.iter().copied().map(f64::from)) }
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn distances() {
        assert_eq!(distance(&[1.0, 2.5], &[1.0, -5.0]), 1.5);
        assert_eq!((distance(&[], &[]), distance(&[0.0], &[0.0])), (0.0, 0.0));
        assert!(
            distance(&[f32::NAN, 1.0], &[1.0, 2.0]).is_nan()
                && distance(&[f32::INFINITY], &[1.0]).is_infinite()
        );
    }
}
