//! Packing: a model under masks as the one that is executed, with the kept weights alone.

use super::evolution::Evolution;
use crate::error::TrainError;
use lacewing_core::{Choice, Form, IndexBuffer, MaskPhase, PatternKind, Structure, build, choose_places};
use lacewing_engine::{Params, Tensor};
use lacewing_models::{BuiltModel, ModelConfig, ModelError};
use lacewing_nn::{Evolving, ModelBuilder, NnError};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A model without schedules, equal to the one it was made of.
#[derive(Debug)]
pub(super) struct Packed {
    /// Its config.
    pub(super) config: ModelConfig,
    /// It, on the device of the other.
    pub(super) built: BuiltModel,
}

/// The model of `config` with the parameters as they are after `step` steps, masks being chosen by `by`; none for a model
/// without masks, which is executed as it is trained.
///
/// A layer in its last phase has its structure; in an earlier stage that stage's, and dense, with the effective weights,
/// as long as dropped ones still count.
///
/// # Errors
///
/// What the device reports.
pub(super) fn pack(
    config: &ModelConfig,
    evolution: &Evolution,
    params: &Params,
    step: u64,
    by: &Tensor,
    buffers: &[IndexBuffer],
) -> Result<Option<Packed>, TrainError> {
    let (mut structures, mut values) = (Vec::new(), HashMap::new());
    let mut buffers = buffers.to_vec();
    let masked = evolution.phases(step).map(|(layer, phase)| (layer, packed_layer(layer, phase, params, by)));
    let learned = evolution.learned().chain(evolution.across());
    let learned = learned.map(|layer| (layer, learned_layer(layer, params, by)));
    for (layer, packed) in masked.chain(learned) {
        let (structure, weights) = packed?;
        let named =
            |buffer: IndexBuffer| IndexBuffer { name: format!("{}.{}", layer.name, buffer.name), ..buffer };
        buffers.extend(structure.buffers().into_iter().map(named));
        let mut config = structure.config();
        if let (true, Form::Pattern(pattern)) = (layer.schedule.decides_density(), structure.form())
            && config.get("density").is_some()
        {
            config["density"] = json!(pattern.nnz() as f64 / (pattern.grid().0 * pattern.grid().1) as f64);
        }
        if let (Some(kernel), Form::Pattern(_)) = (layer.kernel(), structure.form()) {
            config["kernel"] = json!(kernel);
        }
        structures.push((layer.name.clone(), config));
        if let Some(biases) = layer.learned_bias(params, by)? {
            values.insert(format!("{}.bias", layer.name), biases);
        }
        values.insert(format!("{}.weight", layer.name), weights);
    }
    if structures.is_empty() {
        return Ok(None);
    }
    let config = config.without_schedules(&structures)?;
    let builder = ModelBuilder::restoring(params.device(), params.compute_dtype(), buffers);
    let built = config.build(builder.map_err(ModelError::from)?)?;
    // What a learned mask is made of stays behind.
    for (id, info) in built.params.ids().zip(built.params.infos()) {
        match (values.get(&info.name), params.find(&info.name)) {
            (Some(values), _) => built.params.set(id, values)?,
            (None, Some(from)) => built.params.master(id).set_from(&params.master(from))?,
            (None, None) => unreachable!("both models have the same layers"),
        }
    }
    built.params.refresh_copy()?;
    Ok(Some(Packed { config, built }))
}

/// The structure of a layer under a learned mask, or whose places move between layers, as that is now, and its values.
fn learned_layer(
    layer: &Evolving,
    params: &Params,
    by: &Tensor,
) -> Result<(Box<dyn Structure>, Vec<f32>), TrainError> {
    let target = layer.structure();
    let Form::Pattern(pattern) = target.form() else { unreachable!("checked when the layer was built") };
    let counts = match layer.kept_places(params, by)? {
        Some(kept) => kept,
        None => layer.learned_mask(params, by)?.expect("a learned mask"),
    };
    let across = pattern.grid().1;
    let places = counts.iter().enumerate().filter(|(_, counts)| **counts);
    let positions = places.map(|(at, _)| ((at / across) as u32, (at % across) as u32)).collect();
    let structure = target.with_positions(positions).expect("checked when the layer was built");
    let Form::Pattern(pattern) = structure.form() else { unreachable!("the same structure") };
    let kept = pattern.gather(&params.master(layer.weight).to_f32()?);
    Ok((structure, kept))
}

/// A layer's structure in `phase`, and its values.
fn packed_layer(
    layer: &Evolving,
    phase: MaskPhase,
    params: &Params,
    by: &Tensor,
) -> Result<(Box<dyn Structure>, Vec<f32>), TrainError> {
    let target = layer.structure();
    let (n_in, n_out) = (target.n_in(), target.n_out());
    let mut weights = params.master(layer.weight).to_f32()?;
    let ranked = params.view(by, layer.weight).to_f32()?;
    let built = |config: &Value| {
        let refused = |source| {
            let (layer, source) = (layer.name.clone(), Box::new(source));
            ModelError::from(NnError::Structure { layer, n_in, n_out, source })
        };
        build(config, n_in, n_out, 0, Some(&ranked)).map_err(refused)
    };
    let MaskPhase::Masked { n, m, rest } = phase else { return Ok((built(&json!("dense"))?, weights)) };
    let Form::Pattern(pattern) = target.form() else { unreachable!("checked when the layer was built") };
    let structure = if let PatternKind::Nm { .. } = pattern.kind {
        let mut config = target.config();
        (config["n"], config["m"]) = (json!(n), json!(m));
        // An earlier stage has larger groups, which a line need not hold a whole number of.
        config["pad"] = json!(config["pad"] == true || Some(&json!(m)) != target.config().get("m"));
        built(&config)?
    } else {
        let magnitudes: Vec<f64> = ranked.iter().map(|w| f64::from(w.abs())).collect();
        let counts = choose_places(&magnitudes, Choice::Share(n as f64 / m as f64));
        let places = counts.iter().enumerate().filter(|(_, counts)| **counts);
        let positions = places.map(|(at, _)| ((at / n_in) as u32, (at % n_in) as u32)).collect();
        target.with_positions(positions).expect("checked when the layer was built")
    };
    let Form::Pattern(pattern) = structure.form() else { unreachable!("masks are of patterns") };
    if rest == 0.0 {
        let kept = pattern.gather(&weights);
        return Ok((structure, kept));
    }
    let mask = pattern.mask();
    let fading = weights.iter_mut().zip(mask).filter(|(_, kept)| !kept);
    fading.for_each(|(weight, _)| *weight *= rest as f32);
    Ok((built(&json!("dense"))?, weights))
}
