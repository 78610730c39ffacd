//! The files of a converted model, and the dense checkpoint for other tools.

use super::{ConvertError, Converted, Source};
use crate::checkpoint::file::{self, Entry, replace_file, replace_text};
use crate::checkpoint::{MODEL_FILE, ModelCard, ModelInput, save_model};
use crate::recipe::Recipe;
use lacewing_nn::fold_weight;
use serde_json::{Value, json};
use std::path::Path;

/// Writes `model.safetensors`, `config.json` (the model, and a row for each converted layer) and `rules.yaml` (the
/// choice, to be edited and given back with `--rules`) into the folder `out`.
///
/// # Errors
///
/// [`ConvertError::Taken`] for a folder with a model in it, [`ConvertError::Write`].
pub fn write(
    out: &Path,
    source: &Source,
    converted: &Converted,
    recipe: Option<Recipe>,
) -> Result<(), ConvertError> {
    let card = card(source, converted, recipe);
    let rules: Vec<Value> = converted
        .rows
        .iter()
        .map(|row| {
            let mut rule = json!({ "match": row.layer });
            for (key, value) in row.to.as_object().into_iter().flatten() {
                rule[key] = value.clone();
            }
            rule
        })
        .collect();
    let rules = serde_saphyr::to_string(&rules)
        .map_err(|source| crate::recipe::RecipeError::Write { reason: source.to_string() })?;
    let config = json!({
        "model": converted.config.to_json(),
        "layers": converted.rows,
        "logit_error": converted.logit_error,
    });
    claim(out)?;
    save_model(&out.join(MODEL_FILE), &card, &converted.built.params, &converted.built.buffers)?;
    for (name, text) in [("config.json", format!("{config:#}\n")), ("rules.yaml", rules)] {
        replace_text(&out.join(name), &text)?;
    }
    Ok(())
}

/// Makes the folder, unless a model is in it.
fn claim(out: &Path) -> Result<(), ConvertError> {
    if out.join(MODEL_FILE).exists() {
        return Err(ConvertError::Taken { path: out.to_owned() });
    }
    std::fs::create_dir_all(out).map_err(|source| ConvertError::Write { path: out.to_owned(), source })
}

fn card(source: &Source, converted: &Converted, recipe: Option<Recipe>) -> ModelCard {
    let built = &converted.built;
    let structures = built.summary.layers.iter().map(|layer| (layer.name.clone(), layer.config.clone()));
    let structures = structures.collect();
    let model = converted.config.to_json();
    match &source.card {
        Some(card) => {
            let mut card = card.clone();
            (card.model, card.structures) = (model, structures);
            card.recipe = recipe.unwrap_or(card.recipe);
            card
        }
        None => {
            let input = ModelInput { image: built.model.image_shape(), n_classes: built.model.n_classes() };
            let label = converted.config.name();
            ModelCard::new(label, model, input, structures, recipe.unwrap_or_default())
        }
    }
}

/// Writes every parameter of `source` as a dense checkpoint: structured weights multiplied out, zeros included, in the
/// names and shapes of timm.
///
/// # Errors
///
/// [`ConvertError::Gated`] for a layer that is not one matrix, [`ConvertError::Taken`], [`ConvertError::Write`].
pub fn write_dense(out: &Path, source: &Source) -> Result<usize, ConvertError> {
    let built = &source.built;
    let mut entries = Vec::new();
    let owner = |name: &str| {
        built.summary.layers.iter().find(|layer| {
            let rest = name.strip_prefix(layer.name.as_str()).and_then(|rest| rest.strip_prefix('.'));
            rest.is_some_and(|rest| rest != "bias")
        })
    };
    let mut done = None;
    for info in built.params.infos() {
        let (name, shape, values) = match owner(&info.name) {
            Some(layer) if layer.structure != "dense" => {
                if done == Some(&layer.name) {
                    continue;
                }
                done = Some(&layer.name);
                let dense = source.layer(&layer.name)?;
                let values: Vec<f32> = dense.weight.iter().map(|&w| w as f32).collect();
                (format!("{}.weight", layer.name), vec![layer.n_out, layer.n_in], values)
            }
            _ => (info.name.clone(), info.shape.clone(), source.values(&info.name)?),
        };
        let layer =
            built.summary.layers.iter().find(|layer| name.strip_suffix(".weight") == Some(&layer.name));
        entries.push(match layer.and_then(|layer| Some((layer.n_out, layer.window?))) {
            Some((n_out, [kh, kw, channels])) => {
                let theirs = [n_out, channels, kh, kw];
                Entry::f32(name, &theirs, &fold_weight(&values, theirs))
            }
            None => Entry::f32(name.clone(), &foreign_shape(source, &name, &shape), &values),
        });
    }
    claim(out)?;
    let config = json!({ "model": source.config.clone().dense_twin().to_json() });
    replace_file(&out.join(MODEL_FILE), |fresh| file::write(fresh, &entries, "dense"))?;
    replace_text(&out.join("config.json"), &format!("{config:#}\n"))?;
    Ok(entries.len())
}

/// The shape that timm gives the tensor that we keep as `ours`.
fn foreign_shape(source: &Source, name: &str, ours: &[usize]) -> Vec<usize> {
    let [channels, ..] = source.built.model.image_shape();
    let patch = source.config.get("patch_size").and_then(Value::as_u64).unwrap_or(1) as usize;
    match (name, ours) {
        (_, &[heads]) if name.ends_with(".attn.logit_scale") => vec![heads, 1, 1],
        ("cls_token", &[dim]) => vec![1, 1, dim],
        ("pos_embed", &[tokens, dim]) => vec![1, tokens, dim],
        ("patch_embed.proj.weight" | "stem.proj.weight", &[dim, _]) => vec![dim, channels, patch, patch],
        _ => ours.to_vec(),
    }
}
