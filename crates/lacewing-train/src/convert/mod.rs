//! Conversion: the layers of a trained model projected onto structures, by rule or within a budget.
//!
//! `source` reads a model of ours or another tool's checkpoint, `calibrate` measures what goes into each layer,
//! `candidates` projects layers onto structures and says how near they come, `budget` chooses among them, and
//! [`write()`] makes the files that `train --init`, `eval` and `info` take.

mod budget;
mod calibrate;
mod candidates;
mod error;
mod source;
mod write;

pub use calibrate::Calibration;
pub use candidates::{Candidate, METRICS, Metric};
pub use error::ConvertError;
pub use source::{Source, SourceOptions};
pub use write::{write, write_dense};

use crate::recipe::RecipeError;
use budget::choose;
use candidates::{Layer, Pool, project_onto};
use lacewing_core::{IndexBuffer, structures};
use lacewing_engine::{DType, Device};
use lacewing_models::{BuiltModel, ModelConfig};
use lacewing_nn::{ModelBuilder, Rules};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What is to be converted into what.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Configs of structures: with a budget the families to choose from (all when empty), else one for every layer.
    pub to: Vec<Value>,
    /// Rules by layer name; a layer that none matches stays as it is.
    pub rules: Option<Rules>,
    /// Patterns of the layers that `to` and `budget` are for.
    pub layers: Vec<String>,
    /// What the converted layers may cost together, relative to what they cost dense.
    pub budget: Option<(Metric, f64)>,
    /// Spend the same share of the budget on every layer, in the one family that `to` names.
    pub uniform: bool,
    /// Seed of random patterns and hashes.
    pub seed: u64,
}

/// A model whose layers are being replaced.
#[derive(Debug)]
pub struct Converted {
    /// The config with a rule for every layer that is not dense.
    pub config: ModelConfig,
    /// The model on the host, in f32, with its values.
    pub built: BuiltModel,
    /// One row a layer that was converted.
    pub rows: Vec<Row>,
    /// Relative error of the logits on the calibration pictures, where there were some.
    pub logit_error: Option<f64>,
}

/// What became of a layer.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Row {
    /// Its dotted name.
    pub layer: String,
    /// Its structure before.
    pub from: String,
    /// Its structure's config now.
    pub to: Value,
    /// Length of one row of input.
    pub n_in: usize,
    /// Length of one row of output.
    pub n_out: usize,
    /// Stored values now, bias aside.
    pub parameters: usize,
    /// Stored values of the dense layer, bias aside.
    pub dense_parameters: usize,
    /// `‖W − Ŵ‖ / ‖W‖`.
    pub error: f64,
    /// The relative error of the layer's outputs on the calibration pictures.
    pub output_error: Option<f64>,
}

/// What a conversion within a budget has done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Candidates projected, of how many in this pass.
    Projected {
        /// So many.
        done: usize,
        /// Of so many.
        total: usize,
    },
    /// A choice for all layers was tried.
    Judged {
        /// Relative error of its logits.
        error: f64,
    },
}

/// Who hears of [`Step`]s, from several threads.
pub type Progress<'a> = &'a (dyn Fn(Step) + Sync);

/// Converts the layers of `source` that `plan` selects.
///
/// # Errors
///
/// [`ConvertError`]: rules and patterns that match nothing, structures that do not fit a layer, a budget that nothing
/// meets, weights that are not finite.
pub fn convert(
    source: &Source,
    plan: &Plan,
    calibration: Option<&Calibration>,
) -> Result<Converted, ConvertError> {
    convert_with(source, plan, calibration, &|_| ())
}

/// As [`convert`], saying how far it is.
///
/// # Errors
///
/// As [`convert`].
pub fn convert_with(
    source: &Source,
    plan: &Plan,
    calibration: Option<&Calibration>,
    progress: Progress<'_>,
) -> Result<Converted, ConvertError> {
    let layers = select(source, plan)?;
    let mut chosen = match plan.budget {
        None => by_rule(source, plan, &layers, calibration)?,
        Some((metric, fraction)) if plan.uniform => uniform(plan, &layers, metric, fraction, calibration)?,
        Some(spend) => {
            let kinds = families(plan)?;
            let mut pool = Pool::new(&layers, &kinds, spend, plan.seed, calibration, progress)?;
            choose(&mut pool, spend.1, source, calibration, progress)?
        }
    };
    tie(source, &layers, &mut chosen);
    if let Some(at) = chosen.iter().position(|candidate| !candidate.is_finite()) {
        let (layer, structure) = (layers[at].name.clone(), chosen[at].structure.name());
        return Err(ConvertError::Diverged { layer, structure });
    }
    let replaced: Vec<_> = layers.iter().zip(&chosen).collect();
    let (config, built) = assemble(source, &replaced)?;
    let rows = layers.iter().zip(&chosen).map(|(layer, candidate)| Row {
        layer: layer.name.clone(),
        from: layer.from.clone(),
        to: candidate.structure.config(),
        n_in: layer.n_in,
        n_out: layer.n_out,
        parameters: candidate.structure.counts().parameters,
        dense_parameters: layer.n_in * layer.n_out,
        error: candidate.error,
        output_error: candidate.output_error,
    });
    let logit_error = calibration.map(|calibration| calibration.logit_error(&built)).transpose()?;
    if logit_error.is_some_and(f64::is_nan) {
        let structures: BTreeSet<&str> = chosen.iter().map(|one| one.structure.name()).collect();
        let structures: Vec<&str> = structures.into_iter().collect();
        let model = format!("the model converted into {}", structures.join(", "));
        return Err(ConvertError::NotFiniteLogits { model });
    }
    Ok(Converted { rows: rows.collect(), config, built, logit_error })
}

/// Gives layers that share their weight the cheapest of what was chosen for them, whatever reaches each: they go on sharing
/// it, and a budget that was kept stays kept.
fn tie(source: &Source, layers: &[Layer], chosen: &mut [Candidate]) {
    let first_of = |name: &str| {
        let name = source.tied_to(name).unwrap_or(name);
        layers.iter().position(|layer| layer.name == name)
    };
    let firsts: Vec<Option<usize>> = layers.iter().map(|layer| first_of(&layer.name)).collect();
    for first in (0..layers.len()).filter(|&at| firsts[at] == Some(at)) {
        let twins: Vec<usize> = (first..layers.len()).filter(|&at| firsts[at] == Some(first)).collect();
        let cheapest = twins.iter().copied().min_by_key(|&at| chosen[at].cost).expect("itself at least");
        for at in twins.into_iter().filter(|&at| at != cheapest) {
            chosen[at] = chosen[cheapest].clone();
        }
    }
}

/// The layers that are to be converted, in the model's order.
fn select(source: &Source, plan: &Plan) -> Result<Vec<Layer>, ConvertError> {
    let names = source.layer_names();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut selected = Rules::default();
    if let Some(rules) = &plan.rules {
        rules.check(&names).map_err(lacewing_models::ModelError::from)?;
        let touched = names.iter().filter(|name| rules.matches(name));
        return touched.map(|name| source.layer(name)).collect();
    }
    for pattern in &plan.layers {
        selected.push(pattern, &json!("dense")).map_err(lacewing_models::ModelError::from)?;
    }
    selected.check(&names).map_err(lacewing_models::ModelError::from)?;
    names.iter().filter(|name| selected.matches(name)).map(|name| source.layer(name)).collect()
}

/// The one structure that a rule, or `--to`, says for each layer.
fn by_rule(
    source: &Source,
    plan: &Plan,
    layers: &[Layer],
    calibration: Option<&Calibration>,
) -> Result<Vec<Candidate>, ConvertError> {
    let config_of = |layer: &Layer| match (&plan.rules, plan.to.as_slice()) {
        (Some(rules), _) => Ok(rules.choose(&layer.name).structure),
        (None, [config]) => Ok(config.clone()),
        (None, several) => Err(ConvertError::OneStructure { got: several.len() }),
    };
    let configs = layers.iter().map(config_of).collect::<Result<Vec<_>, _>>()?;
    for (layer, config) in layers.iter().zip(&configs) {
        let twin = source.tied_to(&layer.name).and_then(|twin| layers.iter().position(|l| l.name == twin));
        if let Some(other) = twin.filter(|&at| configs[at] != *config) {
            let (a, b) = (layers[other].name.clone(), layer.name.clone());
            return Err(ConvertError::Tied { a, b });
        }
    }
    let project = |(layer, config): (&Layer, &Value)| {
        let moment = calibration.and_then(|calibration| calibration.moment(&layer.name));
        // Layers that share their weight share their pattern.
        let name = source.tied_to(&layer.name).unwrap_or(&layer.name);
        project_onto(layer, &magnitude_mask(config), candidates::seed_of(plan.seed, name), moment)
    };
    in_order(layers.par_iter().zip(&configs).map(project))
}

/// All results, or the error of the first layer that has one, whichever thread was first.
fn in_order<T: Send>(
    results: impl IndexedParallelIterator<Item = Result<T, ConvertError>>,
) -> Result<Vec<T>, ConvertError> {
    results.collect::<Vec<_>>().into_iter().collect()
}

/// The largest size of the one family that fits the same share of every layer.
fn uniform(
    plan: &Plan,
    layers: &[Layer],
    metric: Metric,
    fraction: f64,
    calibration: Option<&Calibration>,
) -> Result<Vec<Candidate>, ConvertError> {
    let (&[kind], Metric::Params) = (families(plan)?.as_slice(), metric) else {
        return Err(ConvertError::Uniform { families: plan.to.len(), metric: metric.name() });
    };
    let project = |layer: &Layer| {
        let config = layer.sized(kind, fraction).ok_or_else(|| {
            let (layer, n_in, n_out) = (layer.name.clone(), layer.n_in, layer.n_out);
            ConvertError::TooLarge { layer, n_in, n_out, structure: kind.name, fraction }
        })?;
        let moment = calibration.and_then(|calibration| calibration.moment(&layer.name));
        project_onto(layer, &config, candidates::seed_of(plan.seed, &layer.name), moment)
    };
    in_order(layers.par_iter().map(project))
}

/// `config` with its mask by magnitude, where the structure has a choice and the config makes none: a trained weight is
/// there to be ranked.
fn magnitude_mask(config: &Value) -> Value {
    let name = config.as_str().or_else(|| config.get("structure")?.as_str());
    let kind = structures().find(|kind| Some(kind.name) == name);
    let has_mask = kind.is_some_and(|kind| kind.keys.iter().any(|key| key.name == "mask"));
    if !has_mask || config.get("mask").is_some() {
        return config.clone();
    }
    let mut config = if config.is_string() { json!({ "structure": config }) } else { config.clone() };
    config["mask"] = json!("magnitude");
    config
}

/// The families that a budget may be spent on.
fn families(plan: &Plan) -> Result<Vec<&'static lacewing_core::StructureKind>, ConvertError> {
    if plan.to.is_empty() {
        return Ok(structures().filter(|kind| kind.name != "dense").collect());
    }
    let find = |config: &Value| {
        let name = config.as_str().ok_or_else(|| ConvertError::FamilyOnly { got: config.to_string() })?;
        let found = structures().find(|kind| kind.name == name);
        found.ok_or_else(|| {
            let names = structures().map(|kind| kind.name);
            RecipeError::unknown_name("--to", name, names.collect::<Vec<_>>().into_iter()).into()
        })
    };
    plan.to.iter().map(find).collect()
}

/// The model with candidates in the place of some layers; everything else as it was.
fn assemble(
    source: &Source,
    replaced: &[(&Layer, &Candidate)],
) -> Result<(ModelConfig, BuiltModel), ConvertError> {
    let (mut rules, mut buffers) = (Vec::new(), Vec::new());
    for info in &source.built.summary.layers {
        let config =
            match replaced.iter().find(|(layer, _)| layer.name == info.name) {
                Some((_, Candidate { structure, .. })) => {
                    buffers.extend(structure.buffers().into_iter().map(|buffer| IndexBuffer {
                        name: format!("{}.{}", info.name, buffer.name),
                        ..buffer
                    }));
                    structure.config()
                }
                None => {
                    buffers.extend(source.buffers_of(&info.name));
                    info.config.clone()
                }
            };
        if config["structure"] != "dense" {
            let mut rule = json!({ "match": info.name });
            for (key, value) in config.as_object().into_iter().flatten() {
                rule[key] = value.clone();
            }
            rules.push(rule);
        }
    }
    let config = source.config.clone().dense_twin().with("rules", &Value::Array(rules))?;
    let builder = ModelBuilder::restoring(Device::Cpu, DType::F32, buffers);
    let built = config.build(builder.map_err(lacewing_models::ModelError::from)?)?;
    let params = &built.params;
    for (id, info) in params.ids().zip(params.infos()) {
        let projected = replaced.iter().find_map(|(layer, candidate)| {
            let own = info.name.strip_prefix(&layer.name)?.strip_prefix('.')?;
            let at = candidate.structure.params().iter().position(|spec| spec.name == own)?;
            Some(candidate.params[at].iter().map(|&value| value as f32).collect::<Vec<f32>>())
        });
        let values = match projected {
            Some(values) => values,
            None => source.values(&info.name)?,
        };
        params.set(id, &values)?;
    }
    params.refresh_copy()?;
    Ok((config, built))
}
