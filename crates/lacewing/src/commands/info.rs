//! `lacewing info`: what every layer of a model is and costs.

mod schedule;

use super::{CommandResult, mapping, overrides, print};
use crate::cli::InfoArgs;
use lacewing::recipes;
use lacewing_models::ModelConfig;
use lacewing_nn::{LayerInfo, Summary};
use lacewing_train::checkpoint::SavedModel;
use lacewing_train::recipe::{Override, load_timm, parse};
use lacewing_train::report::{Align, Table, grouped};
use lacewing_train::run::contenders;
use serde_json::json;
use std::error::Error;
use std::path::Path;

pub(super) fn run(args: InfoArgs) -> CommandResult {
    let svg = args.svg.as_deref();
    if let Some(file) = &args.from_timm {
        // What would be the model's name is a setting then.
        let settings: Vec<String> = args.target.into_iter().chain(args.settings).collect();
        let read = load_timm(file, &overrides(&settings)?)?;
        if args.schedule {
            return schedule::run(&read.recipe, args.steps_per_epoch, svg);
        }
        let config = contenders(&read.recipe)?.swap_remove(0).config;
        if !args.json {
            print(&format!("{}\n", mapping(&read.mapped)))?;
        }
        return show(&config, args.json);
    }
    let target = args.target.unwrap_or_default();
    if args.schedule {
        let recipe = recipes::read(Some(&target), &overrides(&args.settings)?)?;
        return schedule::run(&recipe, args.steps_per_epoch, svg);
    }
    show(&find_model(&target, &args.settings)?, args.json)
}

fn show(config: &ModelConfig, json: bool) -> CommandResult {
    let summary = config.summary()?;
    if json {
        return print(&format!("{:#}\n", as_json(config, &summary)));
    }
    print(&as_table(config, &summary))
}

/// The config of the model that `target` names (a model, a run's folder, a model.safetensors file, or a recipe), with
/// `settings` changed.
pub(super) fn find_model(target: &str, settings: &[String]) -> Result<ModelConfig, Box<dyn Error>> {
    let changes = overrides(settings)?;
    let path = Path::new(target);
    if recipes::find(target).is_some()
        || (recipes::is_file(target) && path.extension() != Some("safetensors".as_ref()))
    {
        let recipe = recipes::read(Some(target), &changes)?;
        return Ok(contenders(&recipe)?.swap_remove(0).config);
    }
    if path.exists() {
        let saved = SavedModel::read(path)?;
        let text = json!({ "model": saved.card.model }).to_string();
        return from_model(&text, target, changes);
    }
    from_model(&json!({ "model": { "name": target } }).to_string(), target, changes)
}

/// A model with settings that may leave out the leading `model.`; JSON is YAML too.
fn from_model(text: &str, origin: &str, changes: Vec<Override>) -> Result<ModelConfig, Box<dyn Error>> {
    let changes: Vec<Override> = changes.into_iter().map(|change| change.under("model")).collect();
    let recipe = parse(origin, text, &changes)?;
    Ok(ModelConfig::from_json(&recipe.model.into())?)
}

fn shape(layer: &LayerInfo) -> String {
    format!("{} -> {}", layer.n_in, layer.n_out)
}

fn as_table(config: &ModelConfig, summary: &Summary) -> String {
    let mut table = Table::new(&["layer", "structure", "shape", "parameters", "density", "MACs"]);
    table = table.align(1, Align::Left).align(2, Align::Left);
    for layer in &summary.layers {
        table.push(vec![
            layer.name.clone(),
            structure(layer),
            shape(layer),
            grouped(layer.parameters as u64),
            format!("{:.4}", layer.density),
            grouped(layer.macs()),
        ]);
    }
    let linear: usize = summary.layers.iter().map(|layer| layer.parameters).sum();
    let blank = String::new;
    let mut total = |name: &str, parameters: usize, density: String, macs: u64| {
        let parameters = grouped(parameters as u64);
        table.push(vec![name.to_owned(), blank(), blank(), parameters, density, grouped(macs)]);
    };
    total(
        "norms, tokens, positions; attention's products",
        summary.parameters - linear,
        blank(),
        summary.other_macs,
    );
    let (kept, all) = weights(summary);
    total("total", summary.parameters, format!("{:.4}", kept / all), summary.macs());
    let bytes = grouped(summary.bytes as u64);
    format!("{}\n{table}{bytes} bytes as f32 with indices; MACs are for one picture\n", config.name())
}

/// Weights stored by all linear layers, and those of the same layers dense.
fn weights(summary: &Summary) -> (f64, f64) {
    let all = |layer: &LayerInfo| layer.n_in as f64 * layer.n_out as f64;
    let kept = summary.layers.iter().map(|layer| layer.density * all(layer)).sum();
    (kept, summary.layers.iter().map(all).sum())
}

/// The structure with its settings: `monarch blocks=4`.
fn structure(layer: &LayerInfo) -> String {
    settings(&layer.config)
}

/// A structure's config in a line: `monarch blocks=4`.
pub(super) fn settings(config: &serde_json::Value) -> String {
    let settings = config.as_object().into_iter().flatten();
    let settings =
        settings.filter(|(key, value)| *key != "structure" && !value.is_null() && **value != json!(false));
    let settings: Vec<String> = settings.map(|(key, value)| format!(" {key}={}", plain(value))).collect();
    let name = config.get("structure").unwrap_or(config);
    format!("{}{}", name.as_str().unwrap_or_default(), settings.concat())
}

/// A value without quotes, cut where a list of places gets long.
fn plain(value: &serde_json::Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if text.chars().count() <= 24 { text } else { text.chars().take(21).chain("...".chars()).collect() }
}

fn as_json(config: &ModelConfig, summary: &Summary) -> serde_json::Value {
    let layers = summary.layers.iter().map(|layer| {
        json!({
            "name": layer.name,
            "structure": layer.config,
            "kernel": layer.kernel,
            "n_in": layer.n_in,
            "n_out": layer.n_out,
            "parameters": layer.parameters,
            "bytes": layer.bytes,
            "density": layer.density,
            "macs": layer.macs(),
        })
    });
    json!({
        "model": config.to_json(),
        "layers": layers.collect::<Vec<_>>(),
        "parameters": summary.parameters,
        "bytes": summary.bytes,
        "macs": summary.macs(),
    })
}
