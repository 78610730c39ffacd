//! Whole models: one with structures beside its dense twin, in turns, at every batch size; what it computes is checked
//! against the same model with its structures' definitions as dense weights.

mod passes;
mod reference;
mod report;

use super::check::gamma;
use super::csv::CsvFile;
use super::error::BenchError;
use super::machine::Limits;
use super::measure::Direction;
use super::peers::{ModelCase, PeerTimes, Peers, Skipped};
use super::place::Place;
use super::{SEED, draw};
use crate::cli::BenchArgs;
use crate::commands::info::find_model;
use crate::commands::print;
use indicatif::{ProgressBar, ProgressStyle};
use lacewing_core::Rng;
use lacewing_engine::ops::cast;
use lacewing_engine::{Cx, EngineError, StepRng, Tensor};
use lacewing_models::{BuiltModel, ModelConfig, ModelError};
use lacewing_nn::ModelBuilder;
use lacewing_train::recipe::{RecipeError, parse_value};
use passes::{Inputs, LEARNING_RATE, Runner, measured};
use reference::{defined, distance, perturb, shared, wake};
use report::Measured;
use serde_json::{Map, Value, json};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

/// Values of a batch of pictures: 1 GiB in f32.
const MOST: usize = 1 << 28;

/// How often what a layer reads and writes is rounded where it is stored: its weight, its input, its output, and what the
/// norm before or the sum after it makes of them.
const STORED: f64 = 4.0;

/// Its name in reports of models, where a training step is a whole one.
fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Forward => direction.name(),
        Direction::Training => "training step",
    }
}

/// Measures the model called `name` as `args` ask for: inference, then with `--backward` a training step as well.
pub(super) fn run(name: &str, args: &BenchArgs, place: &Place) -> Result<ExitCode, Box<dyn Error>> {
    let config = config(name, args)?;
    let summary = config.summary()?;
    if summary.layers.iter().all(|layer| layer.structure == "dense") {
        return Err(BenchError::AllDense { model: config.name().to_owned() }.into());
    }
    let directions = [Direction::Forward, Direction::Training];
    let directions = &directions[..if args.backward { 2 } else { 1 }];
    let cases: Vec<(Direction, usize)> = directions
        .iter()
        .flat_map(|&direction| args.batch.iter().map(move |&batch| (direction, batch)))
        .collect();
    let mut csv = args.csv.as_deref().map(CsvFile::create).transpose()?;
    let bar = ProgressBar::new(cases.len() as u64);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} {msg}  {elapsed}").expect("a valid template"));
    let mut others = match &args.peers {
        Some(venv) => Some(Others::measure(venv.as_deref(), &config, place, &cases, &bar)?),
        None => None,
    };
    bar.set_message("checking");
    let bench = ModelBench::new(&config, place, &cases)?;
    let (mut limits, mut rows, mut mistakes) = (Limits::measure(place)?, Vec::new(), Vec::new());
    for (at, &(direction, batch)) in cases.iter().enumerate() {
        bar.set_message(format!("{}, batch {batch}", direction_name(direction)));
        let peers = others.as_mut().map(|others| std::mem::take(&mut others.times[at]));
        match bench.measured(at, peers)? {
            Err(mistake) => mistakes.push(mistake),
            Ok(measured) => {
                if let Some(csv) = &mut csv {
                    csv.add(&limits, &measured.rows(&limits, place))?;
                }
                rows.push(measured);
            }
        }
        bar.inc(1);
    }
    limits = limits.or_better(Limits::measure(place)?);
    bar.finish_and_clear();
    let rows: Vec<Map<String, Value>> = rows.iter().flat_map(|row| row.rows(&limits, place)).collect();
    let skipped = others.map(|others| others.skipped);
    let text = match args.json {
        true => {
            let mut report = json!({ "machine": limits.to_json(), "rows": rows });
            if let Some(skipped) = &skipped {
                report["skipped"] = Skipped::to_json(skipped);
            }
            format!("{report:#}\n")
        }
        false => report::text(&limits, &rows, skipped.as_deref()),
    };
    print(&text)?;
    if let Some(csv) = csv {
        csv.finish(&limits, rows.iter())?;
    }
    super::outcome(mistakes)
}

/// What other libraries took for every case.
struct Others {
    times: Vec<Vec<PeerTimes>>,
    skipped: Vec<Skipped>,
}

impl Others {
    /// They are through before our models are built: on a GPU two programs' memory may not fit, and what one of them keeps
    /// for later is lost to the other.
    fn measure(
        venv: Option<&Path>,
        config: &ModelConfig,
        place: &Place,
        cases: &[(Direction, usize)],
        bar: &ProgressBar,
    ) -> Result<Self, Box<dyn Error>> {
        let dense = config.clone().dense_twin().build(ModelBuilder::counting()?)?;
        let (mut peers, mut times) = (Peers::models(venv, place)?, Vec::new());
        for &(direction, batch) in cases {
            let direction = direction_name(direction);
            bar.set_message(format!("other libraries: {direction}, batch {batch}"));
            times.push(peers.model(&ModelCase {
                model: config.name(),
                parameters: dense.summary.parameters,
                n_classes: dense.model.n_classes(),
                image: dense.model.image_shape(),
                batch,
                direction,
                lr: LEARNING_RATE,
            })?);
        }
        Ok(Self { times, skipped: std::mem::take(&mut peers.skipped) })
    }
}

/// The model with its structures.
fn config(name: &str, args: &BenchArgs) -> Result<ModelConfig, Box<dyn Error>> {
    let config = match name.trim_start().starts_with('{') {
        true => ModelConfig::from_json(&parse_value("--model", name)?)?,
        false => find_model(name, &[])?,
    };
    // What is executed has no schedule.
    let config = config.without_schedules(&[])?;
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

/// A case and what the definition makes of it.
struct Case {
    direction: Direction,
    batch: usize,
    expected: Found,
    /// How far off rounding may take logits and gradients, over the largest.
    bounds: [f64; 2],
}

/// A model beside its dense twin, both with random weights.
struct ModelBench<'a> {
    config: &'a ModelConfig,
    place: &'a Place,
    /// The parameters whose gradients are compared.
    shared: Vec<String>,
    cases: Vec<Case>,
}

impl<'a> ModelBench<'a> {
    fn new(
        config: &'a ModelConfig,
        place: &'a Place,
        cases: &[(Direction, usize)],
    ) -> Result<Self, Box<dyn Error>> {
        let device = &place.device;
        let own = built(config, place)?;
        let (reference, depth) = defined(config, &own, device)?;
        let shared = shared(&own, &reference);
        drop(own);
        let found = |direction, batch| {
            let inputs = Inputs::draw(reference.model.as_ref(), direction, device, batch)?;
            found(&reference, direction, &inputs.images, &shared)
        };
        let mut expected = Vec::new();
        for &(direction, batch) in cases {
            expected.push(found(direction, batch)?);
        }
        // The computed tolerance: twice what it does to this model when every weight of a layer is off by as much as
        // rounding can take a product of any layer.
        perturb(&reference, gamma(depth) + STORED * place.roundoff())?;
        let mut checked = Vec::new();
        for (&(direction, batch), expected) in cases.iter().zip(expected) {
            let off = found(direction, batch)?;
            let bounds = [
                2.0 * distance(&off.logits, &expected.logits),
                2.0 * distance(&off.gradients, &expected.gradients),
            ];
            checked.push(Case { direction, batch, expected, bounds });
        }
        Ok(Self { config, place, shared, cases: checked })
    }

    /// A case, checked and then timed, beside what other libraries took. It has models of its own, so that no other case's
    /// steps change what is checked, and nothing that is kept for another takes its memory.
    fn measured(
        &self,
        at: usize,
        peers: Option<Vec<PeerTimes>>,
    ) -> Result<Result<Measured, BenchError>, Box<dyn Error>> {
        let &Case { direction, batch, .. } = &self.cases[at];
        let device = &self.place.device;
        let own = built(self.config, self.place)?;
        let inputs = Inputs::draw(own.model.as_ref(), direction, device, batch)?;
        if let Some(mistake) = self.wrong(at, &own, &inputs)? {
            return Ok(Err(mistake));
        }
        let dense = built(&self.config.clone().dense_twin(), self.place)?;
        let summaries = [own.summary.clone(), dense.summary.clone()];
        let (own, dense) = (Runner::new(own, direction)?, Runner::new(dense, direction)?);
        let (times, peaks) = measured(device, &inputs, own, dense)?;
        let (model, [own, dense]) = (self.config.name(), summaries);
        Ok(Ok(Measured { model, direction, batch, times, peaks, own, dense, peers }))
    }

    /// What is wrong with the results of `own` for a case, if anything is.
    fn wrong(
        &self,
        at: usize,
        own: &BuiltModel,
        inputs: &Inputs,
    ) -> Result<Option<BenchError>, Box<dyn Error>> {
        let &Case { direction, batch, ref expected, bounds } = &self.cases[at];
        let got = found(own, direction, &inputs.images, &self.shared)?;
        if direction == Direction::Training {
            own.params.zero_gradients()?;
        }
        let pairs =
            [("logits", &got.logits, &expected.logits), ("gradients", &got.gradients, &expected.gradients)];
        for ((what, got, expected), bound) in pairs.into_iter().zip(bounds) {
            let by = distance(got, expected);
            // Not "greater than the bound": a NaN is wrong as well.
            if by <= bound {
                continue;
            }
            let (model, direction) = (self.config.name().to_owned(), direction_name(direction));
            return Ok(Some(BenchError::WrongModel { model, batch, direction, what, by, bound }));
        }
        Ok(None)
    }
}

/// A model with random weights, the same whenever it is built, none of its layers zero.
fn built(config: &ModelConfig, place: &Place) -> Result<BuiltModel, Box<dyn Error>> {
    let builder = ModelBuilder::new(place.device.clone(), place.dtype, SEED).map_err(ModelError::from)?;
    let built = config.build(builder)?;
    wake(&built)?;
    Ok(built)
}

/// A pass from zero gradients: logits and, of a backward pass from drawn gradients of the logits, the gradients of the
/// parameters called `shared`.
fn found(
    built: &BuiltModel,
    direction: Direction,
    images: &Tensor,
    shared: &[String],
) -> Result<Found, EngineError> {
    let params = &built.params;
    if direction == Direction::Forward {
        let logits = built.model.forward(&Cx::evaluation(params.clone()), images)?;
        return Ok(Found { logits: logits.value().to_f32()?, gradients: Vec::new() });
    }
    params.zero_gradients()?;
    let cx = Cx::training(params.clone(), StepRng::new(0, 0));
    let logits = built.model.forward(&cx, images)?;
    let value = logits.value();
    let seed = draw(value.len(), &mut Rng::new(SEED).fork("seed"));
    let seed = Tensor::from_f32(&params.device(), &seed, value.shape())?;
    cx.backward(&logits, cast(&seed, value.dtype())?)?;
    let mut gradients = Vec::new();
    for id in shared.iter().filter_map(|name| params.find(name)) {
        gradients.extend(params.gradient(id)?.to_f32()?);
    }
    Ok(Found { logits: value.to_f32()?, gradients })
}

#[cfg(test)]
mod tests {
    use super::reference::weight_of;
    use super::*;
    use lacewing_engine::{DType, Device};

    const CPU: Place = Place { device: Device::Cpu, dtype: DType::F32 };

    /// What is wrong with `own` for a case.
    fn wrong(bench: &ModelBench<'_>, at: usize, own: &BuiltModel) -> Option<String> {
        let Case { direction, batch, .. } = bench.cases[at];
        let inputs = Inputs::draw(own.model.as_ref(), direction, &Device::Cpu, batch).unwrap();
        bench.wrong(at, own, &inputs).unwrap().map(|wrong| wrong.to_string())
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
                let config = ModelConfig::from_json(&model).unwrap();
                let bench = ModelBench::new(&config, &CPU, &[(direction, 1), (direction, 3)]).unwrap();
                let own = built(&config, &CPU).unwrap();
                for at in 0..2 {
                    assert_eq!(wrong(&bench, at, &own), None, "{structure} {}", direction.name());
                    let training = direction == Direction::Training;
                    let Case { expected, bounds, .. } = &bench.cases[at];
                    assert!(bounds[0] > 0.0 && bounds[0] < 0.01, "{bounds:?}");
                    assert_eq!((bounds[1] > 0.0, expected.gradients.is_empty()), (training, !training));
                }
                // One row of one weight: as a kernel that leaves out a block.
                let params = &own.params;
                let layer = own.summary.layers.iter().find(|layer| layer.structure != "dense").unwrap();
                let info = params.infos().iter().find(|info| weight_of(&info.name, layer)).unwrap();
                let id = params.find(&info.name).unwrap();
                let mut values = params.master(id).to_f32().unwrap();
                values[..16].fill(0.0);
                params.set(id, &values).unwrap();
                let wrong = wrong(&bench, 0, &own).expect("another model");
                assert!(wrong.contains("logits"), "{wrong}");
            }
        }
    }

    #[test]
    fn a_head_that_starts_at_zero_hides_nothing() {
        let model = json!({
            "name": "mixer_s4_32", "dim": 64, "depth": 1,
            "channel_mlp": {"structure": "block_sparse", "block": 16, "density": 0.25},
        });
        let config = ModelConfig::from_json(&model).unwrap();
        let bench = ModelBench::new(&config, &CPU, &[(Direction::Forward, 1)]).unwrap();
        assert_eq!(wrong(&bench, 0, &built(&config, &CPU).unwrap()), None);
        let Case { expected, bounds, .. } = &bench.cases[0];
        assert!(expected.logits.iter().any(|&logit| logit != 0.0) && bounds[0] > 0.0, "{bounds:?}");
    }
}
