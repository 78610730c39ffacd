//! Whole models: one with structures beside its dense twin, in turns, at every batch size; what it computes is checked
//! against the same model with its structures' definitions as dense weights.

mod reference;

use super::check::gamma;
use super::csv::CsvFile;
use super::error::BenchError;
use super::machine::Limits;
use super::measure::{Direction, Times, compare};
use super::place::Place;
use super::{SEED, draw};
use crate::cli::BenchArgs;
use crate::commands::info::find_model;
use crate::commands::print;
use indicatif::{ProgressBar, ProgressStyle};
use lacewing_core::Rng;
use lacewing_engine::ops::cast;
use lacewing_engine::{Cx, StepRng, Tensor};
use lacewing_models::{BuiltModel, ModelConfig, ModelError};
use lacewing_nn::ModelBuilder;
use lacewing_train::recipe::{RecipeError, parse_value};
use lacewing_train::report::{Align, Table, grouped};
use reference::{defined, distance, perturb, shared, wake};
use serde_json::{Map, Value, json};
use std::error::Error;
use std::process::ExitCode;

/// Values of a batch of pictures: 1 GiB in f32.
const MOST: usize = 1 << 28;

/// How often what a layer reads and writes is rounded where it is stored: its weight, its input, its output, and what the
/// norm before or the sum after it makes of them.
const STORED: f64 = 4.0;

/// Measures the model called `name` as `args` ask for.
pub(super) fn run(
    name: &str,
    args: &BenchArgs,
    place: &Place,
    direction: Direction,
) -> Result<ExitCode, Box<dyn Error>> {
    let config = config(name, args)?;
    let summary = config.summary()?;
    if summary.layers.iter().all(|layer| layer.structure == "dense") {
        return Err(BenchError::AllDense { model: config.name().to_owned() }.into());
    }
    let mut csv = args.csv.as_deref().map(CsvFile::create).transpose()?;
    let bar = ProgressBar::new(args.batch.len() as u64);
    bar.set_style(
        ProgressStyle::with_template("{pos}/{len} batch sizes {msg}  {elapsed}").expect("a valid template"),
    );
    bar.set_message("checking");
    let bench = ModelBench::new(&config, place, direction, &args.batch)?;
    bar.set_message("");
    let (limits, mut rows, mut mistakes) = (Limits::measure(place)?, Vec::new(), Vec::new());
    for at in 0..bench.batches.len() {
        match bench.wrong(at)? {
            Some(mistake) => mistakes.push(mistake),
            None => {
                let (batch, times) = (args.batch[at], bench.times(at)?);
                if let Some(csv) = &mut csv {
                    csv.add(&limits, &[bench.row(&limits, batch, times)])?;
                }
                rows.push((batch, times));
            }
        }
        bar.inc(1);
    }
    let limits = limits.or_better(Limits::measure(place)?);
    bar.finish_and_clear();
    let rows: Vec<Map<String, Value>> =
        rows.into_iter().map(|(batch, times)| bench.row(&limits, batch, times)).collect();
    let text = match args.json {
        true => format!("{:#}\n", json!({ "machine": limits.to_json(), "rows": rows })),
        false => format!("{limits}\n{}\n\n{}", direction.name(), table(&rows)),
    };
    print(&text)?;
    if let Some(csv) = csv {
        csv.finish(&limits, rows.iter())?;
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
    place: &'a Place,
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
        place: &'a Place,
        direction: Direction,
        sizes: &[usize],
    ) -> Result<Self, Box<dyn Error>> {
        let device = &place.device;
        let builder = || ModelBuilder::new(device.clone(), place.dtype, SEED).map_err(ModelError::from);
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
        perturb(&reference, gamma(depth) + STORED * place.roundoff())?;
        for batch in &mut batches {
            let off = found(&reference, direction, &batch.images, &batch.seed, &shared)?;
            batch.bounds = [
                2.0 * distance(&off.logits, &batch.expected.logits),
                2.0 * distance(&off.gradients, &batch.expected.gradients),
            ];
        }
        drop(reference);
        let dense = config.clone().dense_twin().build(builder()?)?;
        Ok(Self { name: config.name(), place, direction, own, dense, shared, batches })
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
        Ok(compare(&self.place.device, [&|| run(&self.dense), &|| run(&self.own)])?)
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
            "dtype": self.place.dtype_name(),
            "device": self.place.device.to_string(),
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
            cx.backward(&logits, cast(seed, logits.value().dtype())?)?;
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
    use super::reference::weight_of;
    use super::*;
    use lacewing_engine::{DType, Device};

    const CPU: Place = Place { device: Device::Cpu, dtype: DType::F32 };

    fn bench(model: Value, direction: Direction) -> ModelBench<'static> {
        let config = ModelConfig::from_json(&model).unwrap();
        ModelBench::new(&config, &CPU, direction, &[1, 3]).unwrap()
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
}
