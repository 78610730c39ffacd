//! The model to be converted: ours, or another tool's checkpoint under our names.

use super::ConvertError;
use super::candidates::Layer;
use crate::checkpoint::{ModelCard, SavedModel};
use crate::evaluate::rebuild;
use crate::recipe::ComputeType;
use lacewing_core::IndexBuffer;
use lacewing_engine::{DType, Device};
use lacewing_models::weights::{LAYOUTS, Layout, Piece, is_no_weight, same_values};
use lacewing_models::{BuiltModel, ModelConfig, ModelError};
use lacewing_nn::{ModelBuilder, unfold_weight};
use lacewing_weights::{TensorEntry, WeightFile};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// How a checkpoint of another tool is read.
#[derive(Clone, Debug, Default)]
pub struct SourceOptions {
    /// Which model it is the weights of; for checkpoints of this program, none.
    pub model: Option<Value>,
    /// Leave out tensors without a place, and draw parameters without a tensor.
    pub allow_missing: bool,
    /// Seed of what is drawn.
    pub seed: u64,
}

/// A model with its values, on the host.
#[derive(Debug)]
pub struct Source {
    /// What it is.
    pub config: ModelConfig,
    /// The model in f32.
    pub built: BuiltModel,
    /// What the file said of itself, when this program wrote it.
    pub card: Option<ModelCard>,
    /// The layout of names, when it did not.
    pub layout: Option<&'static Layout>,
    /// Layers by the first layer with the same weight.
    tied: BTreeMap<String, String>,
}

impl Source {
    /// Reads a run's folder, a converted model's, a `model.safetensors`, or a checkpoint of another tool.
    ///
    /// # Errors
    ///
    /// [`ConvertError`] naming the file, the tensor, what was expected and what came.
    pub fn read(path: &Path, options: &SourceOptions) -> Result<Self, ConvertError> {
        let source = match SavedModel::read_if_ours(path)? {
            Some(_) if options.model.is_some() => {
                return Err(ConvertError::KnownModel { path: path.to_owned() });
            }
            Some(saved) => Self::ours(saved)?,
            None => Self::theirs(path, options)?,
        };
        for (id, info) in source.built.params.ids().zip(source.built.params.infos()) {
            let values = source.built.params.master(id).to_f32()?;
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                let (path, name, value) = (path.to_owned(), info.name.clone(), values[at]);
                return Err(ConvertError::NotFinite { path, name, at, value });
            }
        }
        Ok(source)
    }

    fn ours(saved: SavedModel) -> Result<Self, ConvertError> {
        let built = rebuild(&saved, &Device::Cpu, ComputeType::F32)?;
        let config = ModelConfig::from_json(&saved.card.model)?;
        Ok(Self { config, built, card: Some(saved.card), layout: None, tied: BTreeMap::new() })
    }

    fn theirs(path: &Path, options: &SourceOptions) -> Result<Self, ConvertError> {
        let file = WeightFile::read(path)?;
        let Some(model) = &options.model else {
            return Err(ConvertError::NoModel { path: path.to_owned() });
        };
        let config = ModelConfig::from_json(model)?.dense_twin();
        let builder = ModelBuilder::new(Device::Cpu, DType::F32, options.seed).map_err(ModelError::from)?;
        let built = config.build(builder)?;
        let names: Vec<String> = built.params.infos().iter().map(|info| info.name.clone()).collect();
        let known = |layout: &Layout| {
            let pieces = names.iter().map(|name| (layout.pieces)(name));
            pieces.filter(|pieces| pieces.iter().all(|piece| file.get(&piece.name).is_some())).count()
        };
        // Of equals the first.
        let layout = LAYOUTS.iter().rev().copied().max_by_key(|layout| known(layout)).expect("some layouts");

        // Weights of convolutions, which other tools store with the channels slowest in a window.
        let layers = built.summary.layers.iter();
        let convolved: BTreeMap<String, [usize; 3]> =
            layers.filter_map(|layer| Some((format!("{}.weight", layer.name), layer.window?))).collect();
        let (mut used, mut missing) = (BTreeSet::new(), Vec::new());
        for (id, info) in built.params.ids().zip(built.params.infos()) {
            let pieces = (layout.pieces)(&info.name);
            let found: Option<Vec<&TensorEntry>> = pieces.iter().map(|piece| file.get(&piece.name)).collect();
            let Some(found) = found else {
                missing.push(info.name.clone());
                continue;
            };
            let mut values = Vec::with_capacity(info.len());
            for (piece, tensor) in pieces.iter().zip(found) {
                let window = convolved.get(info.name.as_str()).copied();
                values.extend(take(path, piece, tensor, &info.shape, pieces.len(), window)?);
                used.insert(piece.name.clone());
            }
            built.params.set(id, &values)?;
        }
        built.params.refresh_copy()?;
        let unknown: Vec<String> = file
            .tensors()
            .iter()
            .map(|tensor| tensor.name.clone())
            .filter(|name| !used.contains(name) && !is_no_weight(name))
            .collect();
        let (path, model) = (path.to_owned(), config.name().to_owned());
        if !unknown.is_empty() && !options.allow_missing {
            return Err(ConvertError::UnknownKeys { path, model, names: unknown });
        }
        if !missing.is_empty() && (!options.allow_missing || missing.len() == names.len()) {
            return Err(ConvertError::MissingKeys { path, model, names: missing });
        }
        let tied = tied_layers(&file, layout, &built);
        Ok(Self { config, built, card: None, layout: Some(layout), tied })
    }

    /// Names of all linear layers, in the model's order.
    pub fn layer_names(&self) -> Vec<String> {
        self.built.summary.layers.iter().map(|layer| layer.name.clone()).collect()
    }

    /// The first layer with the same weight as the layer called `name`, if that is another.
    pub fn tied_to(&self, name: &str) -> Option<&str> {
        self.tied.get(name).map(String::as_str)
    }

    /// A parameter's values.
    pub(super) fn values(&self, name: &str) -> Result<Vec<f32>, ConvertError> {
        let params = &self.built.params;
        let id = params.find(name).unwrap_or_else(|| panic!("no parameter {name}"));
        Ok(params.master(id).to_f32()?)
    }

    /// The index buffers of a layer, under their dotted names.
    pub(super) fn buffers_of(&self, layer: &str) -> Vec<IndexBuffer> {
        let own =
            |buffer: &&IndexBuffer| buffer.name.strip_prefix(layer).is_some_and(|rest| rest.starts_with('.'));
        self.built.buffers.iter().filter(own).cloned().collect()
    }

    /// A layer with its dense weight.
    pub(super) fn layer(&self, name: &str) -> Result<Layer, ConvertError> {
        let info = self.built.summary.layers.iter().find(|info| info.name == name);
        let info = info.unwrap_or_else(|| panic!("no layer {name}"));
        let (n_in, n_out) = (info.n_in, info.n_out);
        let prefix = name.len() + 1;
        let buffers: Vec<IndexBuffer> = self
            .buffers_of(name)
            .into_iter()
            .map(|buffer| IndexBuffer { name: buffer.name[prefix..].to_owned(), ..buffer })
            .collect();
        let structure = lacewing_core::restore(&info.config, n_in, n_out, &buffers).map_err(|source| {
            ConvertError::Structure { layer: name.to_owned(), n_in, n_out, source: Box::new(source) }
        })?;
        let mut params = Vec::new();
        for spec in structure.params() {
            let values = self.values(&format!("{name}.{}", spec.name))?;
            params.push(values.into_iter().map(f64::from).collect::<Vec<f64>>());
        }
        let slices: Vec<&[f64]> = params.iter().map(Vec::as_slice).collect();
        let weight = structure.to_dense(&slices).ok_or_else(|| ConvertError::Gated {
            layer: name.to_owned(),
            structure: info.structure.to_owned(),
            to: "another structure",
        })?;
        Ok(Layer {
            name: name.to_owned(),
            from: info.structure.to_owned(),
            n_in,
            n_out,
            rows_per_sample: info.rows_per_sample,
            window: info.window,
            weight,
        })
    }
}

/// The values of a piece, which must fill an equal share of a parameter of shape `ours`; those of a convolution,
/// `[out, channels, kh, kw]`, in our order.
fn take(
    path: &Path,
    piece: &Piece,
    tensor: &TensorEntry,
    ours: &[usize],
    pieces: usize,
    window: Option<[usize; 3]>,
) -> Result<Vec<f32>, ConvertError> {
    let (at, parts) = piece.part;
    // What the whole tensor must be: our rows over the number of pieces, times the number of parts it is cut in.
    let mut expected = ours.to_vec();
    if let Some(rows) = expected.first_mut() {
        *rows = *rows / pieces * parts;
    }
    if !same_values(&expected, &tensor.shape) {
        let (path, name, got) = (path.to_owned(), tensor.name.clone(), tensor.shape.clone());
        return Err(ConvertError::Shape { path, name, expected, got });
    }
    let mut values = tensor.to_f32()?;
    // A matrix is one that this program wrote.
    if let (Some([kh, kw, channels]), [out, _, _, _]) = (window, tensor.shape.as_slice()) {
        let expected = [*out, channels, kh, kw];
        if tensor.shape != expected {
            let (path, name, got) = (path.to_owned(), tensor.name.clone(), tensor.shape.clone());
            return Err(ConvertError::Shape { path, name, expected: expected.into(), got });
        }
        values = unfold_weight(&values, expected);
    }
    let share = values.len() / parts;
    Ok(values[at * share..][..share].to_vec())
}

/// Layers whose weights are one tensor in the file, by the first of them.
fn tied_layers(file: &WeightFile, layout: &Layout, built: &BuiltModel) -> BTreeMap<String, String> {
    let weight = |layer: &str| match (layout.pieces)(&format!("{layer}.weight")).as_slice() {
        [Piece { name, part: (0, 1) }] => file.get(name),
        _ => None,
    };
    let layers: Vec<&str> = built.summary.layers.iter().map(|layer| layer.name.as_str()).collect();
    let mut tied = BTreeMap::new();
    for (at, layer) in layers.iter().enumerate() {
        let Some(own) = weight(layer) else { continue };
        let first = layers[..at].iter().find(|other| weight(other).is_some_and(|w| w.same_values_as(own)));
        if let Some(first) = first {
            tied.insert((*layer).to_owned(), (*first).to_owned());
        }
    }
    tied
}
