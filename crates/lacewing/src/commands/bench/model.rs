//! Whole models: one with structures beside its dense twin, in turns, at every batch size; what it computes is checked
//! against the same model with its structures' definitions as dense weights.

use super::check::gamma;
use super::error::BenchError;
use super::machine::Limits;
use super::measure::{Direction, Times, compare};
use super::output::Output;
use super::{SEED, draw};
use crate::cli::BenchArgs;
use crate::commands::info::find_model;
use crate::commands::print;
use indicatif::{ProgressBar, ProgressStyle};
use lacewing_core::{IndexBuffer, Rng, Structure, rounding};
use lacewing_engine::{Cx, DType, Device, StepRng, Tensor};
use lacewing_models::{BuiltModel, ModelConfig, ModelError};
use lacewing_nn::{LayerInfo, ModelBuilder};
use lacewing_train::recipe::{RecipeError, parse_value};
use lacewing_train::report::{Align, Table, grouped};
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::error::Error;
use std::process::ExitCode;

/// Values of a batch of pictures: 1 GiB in f32.
const MOST: usize = 1 << 28;

/// Measures the model called `name` as `args` ask for.
pub(super) fn run(
    name: &str,
    args: &BenchArgs,
    device: &Device,
    direction: Direction,
) -> Result<ExitCode, Box<dyn Error>> {
    let config = config(name, args)?;
    let summary = config.summary()?;
    if summary.layers.iter().all(|layer| layer.structure == "dense") {
        return Err(BenchError::AllDense { model: config.name().to_owned() }.into());
    }
    let csv = args.csv.as_deref().map(|path| Output::create("--csv", path)).transpose()?;
    let bar = ProgressBar::new(args.batch.len() as u64);
    bar.set_style(
        ProgressStyle::with_template("{pos}/{len} batch sizes {msg}  {elapsed}").expect("a valid template"),
    );
    bar.set_message("checking");
    let bench = ModelBench::new(&config, device, direction, &args.batch)?;
    bar.set_message("");
    let (limits, mut rows, mut mistakes) = (Limits::measure(), Vec::new(), Vec::new());
    for at in 0..bench.batches.len() {
        match bench.wrong(at)? {
            Some(mistake) => mistakes.push(mistake),
            None => rows.push((args.batch[at], bench.times(at)?)),
        }
        bar.inc(1);
    }
    let limits = limits.or_better(Limits::measure());
    bar.finish_and_clear();
    let rows: Vec<Map<String, Value>> =
        rows.into_iter().map(|(batch, times)| bench.row(&limits, batch, times)).collect();
    let text = match args.json {
        true => format!("{:#}\n", json!({ "machine": limits.to_json(), "rows": rows })),
        false => format!("{limits}\n{}\n\n{}", direction.name(), table(&rows)),
    };
    print(&text)?;
    if let Some(csv) = csv {
        csv.write(&super::report::csv(&limits, rows.iter()))?;
    }
    super::outcome(mistakes)
}

/// The model with its structures.
fn config(name: &str, args: &BenchArgs) -> Result<ModelConfig, Box<dyn Error>> {
    let config = match name.trim_start().starts_with('{') {
        true => ModelConfig::from_json(&parse_value("--model", name)?)?,
        false => find_model(name, &[])?,
    };
    let [channels, height, width] = picture(&config)?;
    for &batch in &args.batch {
        if batch == 0 || batch.checked_mul(channels * height * width).is_none_or(|values| values > MOST) {
            let (path, got) = ("--batch".to_owned(), batch.to_string());
            let expected = "at least 1, and 2^28 values of pictures in all at most";
            return Err(RecipeError::OutOfRange { path, got, expected }.into());
        }
    }
    let rules = match (&args.rules, &args.to) {
        (None, None) => return Ok(config),
        (Some(path), _) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| RecipeError::Read { path: path.clone(), source })?;
            parse_value(&path.display().to_string(), &text)?
        }
        (None, Some(to)) => {
            let to = parse_value("--to", to)?;
            let mut rule = match to {
                Value::Object(map) => map,
                name => Map::from_iter([("structure".to_owned(), name)]),
            };
            args.layers
                .iter()
                .map(|pattern| {
                    rule.insert("match".to_owned(), pattern.as_str().into());
                    Value::from(rule.clone())
                })
                .collect()
        }
    };
    Ok(config.with("rules", &rules)?)
}

/// Channels, height and width of the model's pictures.
fn picture(config: &ModelConfig) -> Result<[usize; 3], ModelError> {
    Ok(config.build(ModelBuilder::counting()?)?.model.image_shape())
}

/// What a pass found, as far as every model with these layers finds the same.
struct Found {
    logits: Vec<f32>,
    /// Of the parameters that no structure changes; empty without a backward pass.
    gradients: Vec<f32>,
}

/// A batch of pictures and what the definition makes of it.
struct Batch {
    images: Tensor,
    seed: Tensor,
    expected: Found,
    /// How far off rounding may take logits and gradients, over the largest.
    bounds: [f64; 2],
}

/// A model and its dense twin with random weights, and their inputs.
struct ModelBench<'a> {
    name: &'static str,
    device: &'a Device,
    direction: Direction,
    own: BuiltModel,
    dense: BuiltModel,
    /// The parameters whose gradients are compared.
    shared: Vec<String>,
    batches: Vec<Batch>,
}

impl<'a> ModelBench<'a> {
    fn new(
        config: &ModelConfig,
        device: &'a Device,
        direction: Direction,
        sizes: &[usize],
    ) -> Result<Self, Box<dyn Error>> {
        let builder = || ModelBuilder::new(device.clone(), DType::F32, SEED).map_err(ModelError::from);
        let own = config.build(builder()?)?;
        wake(&own)?;
        let (reference, depth) = defined(config, &own, device)?;
        let (shared, mut batches) = (shared(&own, &reference), Vec::new());
        for &size in sizes {
            let mut rng = Rng::new(SEED).fork("bench");
            let [channels, height, width] = own.model.image_shape();
            let classes = own.model.n_classes();
            let images = draw(size * channels * height * width, &mut rng);
            let images = Tensor::from_f32(device, &images, &[size, channels, height, width])?;
            let seed = Tensor::from_f32(device, &draw(size * classes, &mut rng), &[size, classes])?;
            let expected = found(&reference, direction, &images, &seed, &shared)?;
            batches.push(Batch { images, seed, expected, bounds: [0.0; 2] });
        }
        // The computed tolerance: twice what it does to this model when every weight of a layer is off by as much as
        // rounding can take a product of any layer.
        perturb(&reference, gamma(depth))?;
        for batch in &mut batches {
            let off = found(&reference, direction, &batch.images, &batch.seed, &shared)?;
            batch.bounds = [
                2.0 * distance(&off.logits, &batch.expected.logits),
                2.0 * distance(&off.gradients, &batch.expected.gradients),
            ];
        }
        drop(reference);
        let dense = config.clone().dense_twin().build(builder()?)?;
        Ok(Self { name: config.name(), device, direction, own, dense, shared, batches })
    }

    /// What is wrong with the results for a batch, if anything is.
    fn wrong(&self, at: usize) -> Result<Option<BenchError>, Box<dyn Error>> {
        let Batch { images, seed, expected, bounds } = &self.batches[at];
        let got = found(&self.own, self.direction, images, seed, &self.shared)?;
        let pairs =
            [("logits", &got.logits, &expected.logits), ("gradients", &got.gradients, &expected.gradients)];
        for ((what, got, expected), &bound) in pairs.into_iter().zip(bounds) {
            let by = distance(got, expected);
            // Not "greater than the bound": a NaN is wrong as well.
            if by <= bound {
                continue;
            }
            let (model, batch) = (self.name.to_owned(), images.shape()[0]);
            return Ok(Some(BenchError::WrongModel { model, batch, what, by, bound }));
        }
        Ok(None)
    }

    fn times(&self, at: usize) -> Result<Times, Box<dyn Error>> {
        let Batch { images, seed, .. } = &self.batches[at];
        let run = |built| pass(built, self.direction, images, seed).map(drop);
        Ok(compare(self.device, [&|| run(&self.dense), &|| run(&self.own)])?)
    }

    fn row(&self, limits: &Limits, batch: usize, times: Times) -> Map<String, Value> {
        let (own, dense) = (&self.own.summary, &self.dense.summary);
        let passes = if self.direction == Direction::Training { 3.0 } else { 1.0 };
        let gflops = 2.0 * passes * batch as f64 * own.macs() as f64 / times.ms / 1e6;
        let mut kernels: Map<String, Value> = Map::new();
        for layer in &own.layers {
            let count = kernels.get(&layer.kernel).and_then(Value::as_u64).unwrap_or(0);
            kernels.insert(layer.kernel.clone(), (count + 1).into());
        }
        let fields = json!({
            "model": self.name,
            "batch": batch,
            "dtype": "f32",
            "device": self.device.to_string(),
            "direction": self.direction.name(),
            "ms": times.ms,
            "ms_spread": times.ms_spread,
            "dense_ms": times.dense_ms,
            "speedup": times.dense_ms / times.ms,
            "images_per_s": 1e3 * batch as f64 / times.ms,
            "gflops": gflops,
            "percent_of_peak": 100.0 * gflops * 1e9 / limits.flops_per_s,
            "parameters": own.parameters,
            "dense_parameters": dense.parameters,
            "macs": own.macs(),
            "dense_macs": dense.macs(),
            "kernels": kernels,
        });
        let Value::Object(fields) = fields else { unreachable!("a map above") };
        fields
    }
}

/// Logits, after a backward pass where one is asked for.
fn pass(
    built: &BuiltModel,
    direction: Direction,
    images: &Tensor,
    seed: &Tensor,
) -> Result<Tensor, lacewing_engine::EngineError> {
    let params = built.params.clone();
    match direction {
        Direction::Forward => Ok(built.model.forward(&Cx::evaluation(params), images)?.value().clone()),
        Direction::Training => {
            let cx = Cx::training(params, StepRng::new(0, 0));
            let logits = built.model.forward(&cx, images)?;
            cx.backward(&logits, seed.clone())?;
            Ok(logits.value().clone())
        }
    }
}

/// A pass from zero gradients: logits and the gradients of the parameters called `shared`.
fn found(
    built: &BuiltModel,
    direction: Direction,
    images: &Tensor,
    seed: &Tensor,
    shared: &[String],
) -> Result<Found, Box<dyn Error>> {
    let training = direction == Direction::Training;
    if training {
        built.params.zero_gradients()?;
    }
    let logits = pass(built, direction, images, seed)?.to_f32()?;
    let mut gradients = Vec::new();
    for id in shared.iter().filter(|_| training).filter_map(|name| built.params.find(name)) {
        gradients.extend(built.params.gradient(id)?.to_f32()?);
    }
    Ok(Found { logits, gradients })
}

/// The parameters that two models have alike: all but the weights of layers with another structure.
fn shared(a: &BuiltModel, b: &BuiltModel) -> Vec<String> {
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
fn weight_of(name: &str, layer: &LayerInfo) -> bool {
    name.strip_prefix(layer.name.as_str())
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|rest| rest != "bias")
}

/// The same model with dense weights by the structures' definitions, and the greatest depth of a layer's products. A layer
/// that no one matrix defines keeps its structure.
fn defined(
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
fn wake(built: &BuiltModel) -> Result<(), lacewing_engine::EngineError> {
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
fn perturb(built: &BuiltModel, share: f64) -> Result<(), lacewing_engine::EngineError> {
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
fn distance(got: &[f32], expected: &[f32]) -> f64 {
    let worst = |values: &mut dyn Iterator<Item = f64>| {
        values
            .map(f64::abs)
            .fold(0.0, |worst, value| if value > worst || value.is_nan() { value } else { worst })
    };
    let pairs = got.iter().zip(expected);
    let difference = worst(&mut pairs.map(|(&got, &expected)| f64::from(got) - f64::from(expected)));
    if difference == 0.0 { 0.0 } else { difference / worst(&mut expected.iter().copied().map(f64::from)) }
}

fn table(rows: &[Map<String, Value>]) -> String {
    let header = [
        "model",
        "batch",
        "ms",
        "spread",
        "dense ms",
        "speedup",
        "img/s",
        "GFLOP/s",
        "parameters",
        "of dense",
        "kernels",
    ];
    let mut table = Table::new(&header).align(10, Align::Left);
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let kernels = row["kernels"].as_object().into_iter().flatten();
        let kernels: Vec<String> = kernels.map(|(name, count)| format!("{name} {count}")).collect();
        table.push(vec![
            row["model"].as_str().unwrap_or_default().to_owned(),
            row["batch"].to_string(),
            format!("{:.3}", number("ms")),
            format!("{:.3}", number("ms_spread")),
            format!("{:.3}", number("dense_ms")),
            format!("{:.2}x", number("speedup")),
            format!("{:.1}", number("images_per_s")),
            format!("{:.1}", number("gflops")),
            grouped(row["parameters"].as_u64().unwrap_or_default()),
            format!("{:.2}x", number("parameters") / number("dense_parameters")),
            kernels.join(", "),
        ]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench(model: Value, direction: Direction) -> ModelBench<'static> {
        let config = ModelConfig::from_json(&model).unwrap();
        ModelBench::new(&config, &Device::Cpu, direction, &[1, 3]).unwrap()
    }

    #[test]
    fn models_are_those_of_the_definitions_and_wrong_weights_are_found() {
        let structures = [
            json!({"structure": "block_sparse", "block": 16, "density": 0.25}),
            json!({"structure": "monarch", "blocks": 4}),
            // Its gate keeps it from being one matrix.
            json!({"structure": "pixelfly", "butterfly_size": 4, "n_factors": 1, "block": 32, "rank": 4}),
            json!("butterfly"),
        ];
        for structure in structures {
            for direction in [Direction::Forward, Direction::Training] {
                let model = json!({"name": "vit_digits", "depth": 2, "mlp": structure});
                let bench = bench(model, direction);
                for at in 0..2 {
                    let wrong = bench.wrong(at).unwrap().map(|wrong| wrong.to_string());
                    assert_eq!(wrong, None, "{structure} {}", direction.name());
                    let training = direction == Direction::Training;
                    let Batch { expected, bounds, .. } = &bench.batches[at];
                    assert!(bounds[0] > 0.0 && bounds[0] < 0.01, "{bounds:?}");
                    assert_eq!((bounds[1] > 0.0, expected.gradients.is_empty()), (training, !training));
                }
                // One row of one weight: as a kernel that leaves out a block.
                let params = &bench.own.params;
                let layer = bench.own.summary.layers.iter().find(|layer| layer.structure != "dense").unwrap();
                let info = params.infos().iter().find(|info| weight_of(&info.name, layer)).unwrap();
                let id = params.find(&info.name).unwrap();
                let mut values = params.master(id).to_f32().unwrap();
                values[..16].fill(0.0);
                params.set(id, &values).unwrap();
                let wrong = bench.wrong(0).unwrap().expect("another model");
                assert!(wrong.to_string().contains("logits"), "{wrong}");
            }
        }
    }

    #[test]
    fn a_head_that_starts_at_zero_hides_nothing() {
        let model = json!({
            "name": "mixer_s4_32", "dim": 64, "depth": 1,
            "channel_mlp": {"structure": "block_sparse", "block": 16, "density": 0.25},
        });
        let bench = bench(model, Direction::Forward);
        assert!(bench.wrong(0).unwrap().is_none());
        let Batch { expected, bounds, .. } = &bench.batches[0];
        assert!(expected.logits.iter().any(|&logit| logit != 0.0) && bounds[0] > 0.0, "{bounds:?}");
    }

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
