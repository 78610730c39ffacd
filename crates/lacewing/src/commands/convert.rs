//! `lacewing convert`: a trained model with structures in the place of its layers.

use super::{CommandResult, print};
use crate::cli::ConvertArgs;
use indicatif::{ProgressBar, ProgressStyle};
use lacewing::recipes;
use lacewing_nn::Rules;
use lacewing_train::convert::{
    Calibration, ConvertError, Converted, METRICS, Metric, Plan, Source, SourceOptions, Step, convert_with,
    write, write_dense,
};
use lacewing_train::recipe::{Recipe, RecipeError, parse_value};
use lacewing_train::report::{Align, Table, grouped};
use lacewing_train::run::{calibration_loader, open_data};
use serde_json::json;
use std::error::Error;

pub(super) fn run(args: ConvertArgs) -> CommandResult {
    let model = args.model.as_deref().map(|text| parse_value("--model", text)).transpose()?;
    let options = SourceOptions { model, allow_missing: args.allow_missing, seed: args.seed };
    let plan = if args.dense { None } else { Some(plan(&args)?) };
    let source = Source::read(&args.input, &options)?;
    let Some(plan) = plan else {
        let tensors = write_dense(&args.out, &source)?;
        return print(&format!("{tensors} dense tensors in {}\n", args.out.display()));
    };
    let recipe = match (&args.recipe, &source.card) {
        (Some(name), _) => Some(recipes::read(Some(name), &[])?),
        (None, Some(card)) => Some(card.recipe.clone()),
        (None, None) => None,
    };
    let calibration = calibrate(&args, &source, recipe.clone())?;
    let bar = ProgressBar::new(0);
    bar.set_style(
        ProgressStyle::with_template("{pos}/{len} projected  {msg}  {elapsed}").expect("a valid template"),
    );
    let converted = convert_with(&source, &plan, calibration.as_ref(), &|step| match step {
        Step::Projected { done, total } => {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        }
        Step::Judged { error } => bar.set_message(format!("last choice: logits off by {error:.4}")),
    });
    bar.finish_and_clear();
    let converted = converted?;
    write(&args.out, &source, &converted, recipe)?;
    if args.json {
        let layers = &converted.rows;
        let logit_error = converted.logit_error;
        return print(&format!("{}\n", json!({ "layers": layers, "logit_error": logit_error })));
    }
    print(&format!("{}written to {}\n", as_table(&converted), args.out.display()))
}

/// What was asked for, checked before anything is read.
fn plan(args: &ConvertArgs) -> Result<Plan, Box<dyn Error>> {
    let to = args.to.iter().map(|text| parse_value("--to", text)).collect::<Result<Vec<_>, _>>()?;
    let rules = match &args.rules {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| RecipeError::Read { path: path.clone(), source })?;
            Some(Rules::from_json(&parse_value(&path.display().to_string(), &text)?)?)
        }
    };
    let budget = args.budget.as_deref().map(budget).transpose()?;
    if rules.is_none() && budget.is_none() && to.len() != 1 {
        return Err(ConvertError::OneStructure { got: to.len() }.into());
    }
    let (layers, uniform) = (args.layers.clone(), args.uniform);
    Ok(Plan { to, rules, layers, budget, uniform, seed: args.seed })
}

/// `params=0.25`.
fn budget(text: &str) -> Result<(Metric, f64), RecipeError> {
    let bad =
        |expected| RecipeError::OutOfRange { path: "--budget".to_owned(), got: text.to_owned(), expected };
    let (name, fraction) = text.split_once('=').ok_or_else(|| bad("METRIC=FRACTION, such as params=0.25"))?;
    let metric = METRICS.iter().find(|(known, _)| *known == name).map(|&(_, metric)| metric);
    let known = METRICS.iter().map(|(name, _)| *name);
    let metric = metric.ok_or_else(|| RecipeError::unknown_name("--budget", name, known))?;
    let fraction: f64 = fraction.parse().map_err(|_| bad("a number after the equals sign"))?;
    if fraction > 0.0 && fraction <= 1.0 { Ok((metric, fraction)) } else { Err(bad("above 0 and at most 1")) }
}

fn calibrate(
    args: &ConvertArgs,
    source: &Source,
    recipe: Option<Recipe>,
) -> Result<Option<Calibration>, Box<dyn Error>> {
    let Some(path) = &args.calibrate else { return Ok(None) };
    let mut recipe = recipe.unwrap_or_default();
    recipe.device = "cpu".to_owned();
    // An embedded data set lies nowhere: its name stands for it.
    recipe.data.path = (path.as_os_str() != recipe.data.name.as_str()).then(|| path.clone());
    recipe.data.eval_batch_size = recipe.data.eval_batch_size.min(64);
    let data = open_data(&recipe)?;
    data.require_classes(source.built.model.n_classes())?;
    let loader = calibration_loader(&recipe, &data)?;
    Ok(Some(Calibration::collect(source, &loader, args.samples)?))
}

fn as_table(converted: &Converted) -> String {
    let mut table =
        Table::new(&["layer", "shape", "from", "to", "parameters", "of dense", "error", "output error"]);
    for column in 1..=3 {
        table = table.align(column, Align::Left);
    }
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    for row in &converted.rows {
        table.push(vec![
            row.layer.clone(),
            format!("{} -> {}", row.n_in, row.n_out),
            row.from.clone(),
            super::info::settings(&row.to),
            grouped(row.parameters as u64),
            percent(row.parameters as f64 / row.dense_parameters as f64),
            format!("{:.4}", row.error),
            row.output_error.map_or_else(|| "-".to_owned(), |error| format!("{error:.4}")),
        ]);
    }
    let sum = |of: fn(&lacewing_train::convert::Row) -> usize| converted.rows.iter().map(of).sum::<usize>();
    let (kept, dense) = (sum(|row| row.parameters), sum(|row| row.dense_parameters));
    let mut text = table.to_string();
    let share = kept as f64 / dense.max(1) as f64;
    text += &format!(
        "{} layers: {} of {} weights, {}\n",
        converted.rows.len(),
        grouped(kept as u64),
        grouped(dense as u64),
        percent(share)
    );
    if let Some(error) = converted.logit_error {
        text += &format!("relative error of the logits on the calibration pictures: {error:.4}\n");
    }
    text
}
