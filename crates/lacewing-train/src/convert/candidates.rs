//! Candidates: structures of several sizes for a layer, each with its projection and what it costs.

use super::{Calibration, ConvertError, Progress, Step, in_order};
use crate::evaluate::median;
use lacewing_core::{Rng, Structure, StructureKind, Target, project, structures};
use lacewing_engine::{Cx, DType, Device, Tensor};
use lacewing_models::ModelError;
use lacewing_nn::{LinearOptions, ModelBuilder, with_channels};
use rayon::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// A layer to be converted.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) name: String,
    pub(super) from: String,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    pub(super) rows_per_sample: usize,
    /// Of an unfolded convolution.
    pub(super) window: Option<[usize; 3]>,
    /// `[n_out, n_in]`.
    pub(super) weight: Vec<f64>,
}

impl Layer {
    /// The config of the largest member of a family that stores at most `density` of this layer's values.
    pub(super) fn sized(&self, kind: &StructureKind, density: f64) -> Option<Value> {
        let config = with_channels(&(kind.sized)(self.n_in, self.n_out, density)?, self.window);
        // Groups along its channels may be too long for a convolution that a matrix of its size has room for.
        let fits = || lacewing_core::build(&config, self.n_in, self.n_out, 0, None).is_ok();
        (self.window.is_none() || fits()).then_some(config)
    }
}

/// A structure that could take a layer's place.
#[derive(Debug)]
pub struct Candidate {
    /// The structure.
    pub structure: Box<dyn Structure>,
    /// Its parameters nearest to the layer.
    pub params: Vec<Vec<f64>>,
    /// `‖W − Ŵ‖ / ‖W‖`.
    pub error: f64,
    /// The relative error of the outputs, where calibrated.
    pub output_error: Option<f64>,
    /// What it costs in the metric of the budget; 0 without one.
    pub cost: u64,
}

impl Clone for Candidate {
    fn clone(&self) -> Self {
        let (config, buffers) = (self.structure.config(), self.structure.buffers());
        let (n_in, n_out) = (self.structure.n_in(), self.structure.n_out());
        let structure = lacewing_core::restore(&config, n_in, n_out, &buffers).expect("it was built once");
        Self { structure, params: self.params.clone(), ..*self }
    }
}

impl Candidate {
    /// Whether every value is a number that f32 holds.
    pub(super) fn is_finite(&self) -> bool {
        self.params.iter().flatten().all(|&value| (value as f32).is_finite())
    }

    /// The error that counts: of the outputs where it is known, else of the weights.
    pub fn loss(&self) -> f64 {
        self.output_error.unwrap_or(self.error)
    }
}

/// What a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Stored values.
    Params,
    /// Bytes of values (f32) and indices.
    Bytes,
    /// Multiply-adds a row.
    Macs,
    /// Time of a forward pass of the layer alone, on the host.
    Latency,
}

/// Every metric by name.
pub const METRICS: &[(&str, Metric)] = &[
    ("params", Metric::Params),
    ("bytes", Metric::Bytes),
    ("macs", Metric::Macs),
    ("latency", Metric::Latency),
];

impl Metric {
    /// Its name.
    pub fn name(self) -> &'static str {
        METRICS.iter().find(|(_, metric)| *metric == self).expect("every metric has a row").0
    }
}

/// Pictures in the batch whose time a latency budget counts.
const LATENCY_BATCH: usize = 16;

/// Densities that a budget may choose from, each √2 below the one before.
const DENSITIES: [f64; 11] = [1.0, 0.7, 0.5, 0.355, 0.25, 0.177, 0.125, 0.088, 0.0625, 0.044, 0.03125];

/// The seed of a layer's random choices.
pub(super) fn seed_of(seed: u64, layer: &str) -> u64 {
    Rng::new(seed).fork(layer).fork("structure").key()
}

/// The nearest member of the structure that `config` names to `layer`.
pub(super) fn project_onto(
    layer: &Layer,
    config: &Value,
    seed: u64,
    moment: Option<&[f64]>,
) -> Result<Candidate, ConvertError> {
    let &Layer { n_in, n_out, .. } = layer;
    let ranked = to_rank(layer, moment);
    let config = with_channels(config, layer.window);
    let structure = lacewing_core::build(&config, n_in, n_out, seed, Some(&ranked));
    let structure = structure.map_err(|source| ConvertError::Structure {
        layer: layer.name.clone(),
        n_in,
        n_out,
        source: Box::new(source),
    })?;
    let mut target = Target::new(n_out, n_in, &layer.weight);
    if let Some(moment) = moment {
        target = target.with_moment(moment);
    }
    let found = project(structure.as_ref(), &target);
    let (params, error, output_error) = (found.params, found.error, found.output_error);
    Ok(Candidate { structure, params, error, output_error, cost: 0 })
}

/// What magnitudes are taken of: the weight, its columns scaled by the root mean square of their inputs where known, so
/// that what is kept is what moves the outputs.
fn to_rank(layer: &Layer, moment: Option<&[f64]>) -> Vec<f32> {
    let scale = |col: usize| moment.map_or(1.0, |moment| moment[col * layer.n_in + col].max(0.0).sqrt());
    let scales: Vec<f64> = (0..layer.n_in).map(scale).collect();
    layer.weight.iter().enumerate().map(|(at, w)| (w * scales[at % layer.n_in]) as f32).collect()
}

/// The candidates of every layer, the cheapest first.
pub(super) struct Pool<'a> {
    pub(super) layers: &'a [Layer],
    pub(super) metric: Metric,
    /// What each layer costs dense.
    pub(super) dense: Vec<u64>,
    /// A list a layer.
    pub(super) choices: Vec<Vec<Candidate>>,
    seed: u64,
    calibration: Option<&'a Calibration>,
    progress: Progress<'a>,
    /// Nanoseconds of what was timed.
    times: BTreeMap<String, u64>,
}

impl<'a> Pool<'a> {
    /// For every layer the sizes of every family, and between several families the dense layer too.
    ///
    /// All sizes are projected for the first layer of each shape. The other layers try those that came near there, with a
    /// squared loss of at most [`HOPELESS`] times the least that as much of the budget bought, and of every family the
    /// size that an even share of the budget (`fraction` of dense) buys.
    pub(super) fn new(
        layers: &'a [Layer],
        kinds: &[&'static StructureKind],
        (metric, fraction): (Metric, f64),
        seed: u64,
        calibration: Option<&'a Calibration>,
        progress: Progress<'a>,
    ) -> Result<Self, ConvertError> {
        let (mut times, choices) = (BTreeMap::new(), layers.iter().map(|_| Vec::new()).collect());
        let dense = layers.iter().map(|layer| {
            let candidate = project_onto(layer, &"dense".into(), 0, None)?;
            cost(&candidate, layer, metric, &mut times)
        });
        let dense = dense.collect::<Result<_, ConvertError>>()?;
        let mut pool = Self { layers, metric, dense, choices, seed, calibration, progress, times };
        let first_of = |layer: &Layer| {
            let same = |other: &Layer| (other.n_in, other.n_out) == (layer.n_in, layer.n_out);
            layers.iter().position(same).expect("itself at least")
        };
        let firsts: Vec<usize> = (0..layers.len()).filter(|&at| first_of(&layers[at]) == at).collect();
        let tasks = firsts
            .iter()
            .flat_map(|&at| sizes(&layers[at], kinds).into_iter().map(move |config| (at, config)));
        let scored = pool.add(tasks.collect())?;
        let near: Vec<&Scored> = scored
            .iter()
            .filter(|one| {
                let rivals = scored.iter().filter(|other| other.at == one.at);
                let least = rivals.clone().filter(|other| other.cost <= one.cost);
                let least = least.map(|other| other.loss).fold(f64::INFINITY, f64::min);
                let share = fraction * pool.dense[one.at] as f64;
                let mut larger =
                    rivals.filter(|other| other.family() == one.family() && other.cost > one.cost);
                let even = one.cost as f64 <= share && larger.all(|other| other.cost as f64 > share);
                even || one.loss <= HOPELESS * least
            })
            .collect();
        let rest = (0..layers.len()).filter(|at| !firsts.contains(at)).flat_map(|at| {
            let first = first_of(&layers[at]);
            near.iter().filter(move |one| one.at == first).map(move |one| (at, one.config.clone()))
        });
        pool.add(rest.collect())?;
        Ok(pool)
    }

    /// Adds to each layer the sizes next to its chosen one: the same family at `step` times the density and at its
    /// inverse.
    pub(super) fn refine(&mut self, chosen: &[Candidate], step: f64) -> Result<(), ConvertError> {
        let mut tasks = Vec::new();
        for (at, (layer, chosen)) in self.layers.iter().zip(chosen).enumerate() {
            let kind = structures().find(|kind| kind.name == chosen.structure.name());
            let kind = kind.expect("every structure has a row");
            for density in [chosen.structure.density() / step, (chosen.structure.density() * step).min(1.0)] {
                let Some(config) = layer.sized(kind, density) else { continue };
                if !tasks.contains(&(at, config.clone())) {
                    tasks.push((at, config));
                }
            }
        }
        self.add(tasks).map(drop)
    }

    /// Projects the layers of `tasks` onto the configs beside them, and keeps what is finite and new.
    fn add(&mut self, tasks: Vec<(usize, Value)>) -> Result<Vec<Scored>, ConvertError> {
        let (done, total) = (AtomicUsize::new(0), tasks.len());
        let project = |(at, config): (usize, Value)| {
            let layer = &self.layers[at];
            let moment = self.calibration.and_then(|calibration| calibration.moment(&layer.name));
            let found = project_onto(layer, &config, seed_of(self.seed, &layer.name), moment)?;
            (self.progress)(Step::Projected { done: done.fetch_add(1, Ordering::Relaxed) + 1, total });
            Ok((at, config, found))
        };
        let found = in_order(tasks.into_par_iter().map(project))?;
        let mut scored = Vec::with_capacity(found.len());
        for (at, config, mut candidate) in found {
            let list = &mut self.choices[at];
            let resolved = candidate.structure.config();
            if !candidate.is_finite() || list.iter().any(|known| known.structure.config() == resolved) {
                continue;
            }
            candidate.cost = cost(&candidate, &self.layers[at], self.metric, &mut self.times)?;
            scored.push(Scored { at, config, cost: candidate.cost, loss: candidate.loss().powi(2) });
            list.push(candidate);
        }
        for list in &mut self.choices {
            list.sort_by_key(|candidate| candidate.cost);
        }
        Ok(scored)
    }
}

/// How much worse than the best of its cost a size may be on one layer and still be tried on others like it.
const HOPELESS: f64 = 2.0;

/// A candidate of the first layer of a shape.
struct Scored {
    at: usize,
    config: Value,
    cost: u64,
    loss: f64,
}

impl Scored {
    fn family(&self) -> Option<&str> {
        self.config.as_str().or_else(|| self.config.get("structure")?.as_str())
    }
}

/// The configs that a budget may choose from for `layer`.
fn sizes(layer: &Layer, kinds: &[&'static StructureKind]) -> Vec<Value> {
    let mut configs: Vec<Value> = if kinds.len() > 1 { vec!["dense".into()] } else { Vec::new() };
    for kind in kinds {
        for density in DENSITIES {
            let config = layer.sized(kind, density);
            configs.extend(config.filter(|config| !configs.contains(config)));
        }
    }
    configs
}

fn cost(
    candidate: &Candidate,
    layer: &Layer,
    metric: Metric,
    times: &mut BTreeMap<String, u64>,
) -> Result<u64, ConvertError> {
    let counts = candidate.structure.counts();
    Ok(match metric {
        Metric::Params => counts.parameters as u64,
        Metric::Bytes => counts.bytes as u64,
        Metric::Macs => (counts.macs * layer.rows_per_sample) as u64,
        Metric::Latency => {
            let key = format!("{} {} {}", candidate.structure.config(), layer.n_in, layer.n_out);
            match times.get(&key) {
                Some(&time) => time,
                None => {
                    let time = nanoseconds(candidate, layer.rows_per_sample * LATENCY_BATCH)?;
                    times.insert(key, time);
                    time
                }
            }
        }
    })
}

/// The median time of a forward pass of `rows` rows.
fn nanoseconds(candidate: &Candidate, rows: usize) -> Result<u64, ConvertError> {
    let mut builder = ModelBuilder::new(Device::Cpu, DType::F32, 0).map_err(ModelError::from)?;
    let structure = candidate.clone().structure;
    let n_in = structure.n_in();
    let linear = builder.root().linear_of("layer", structure, None, LinearOptions::default());
    let linear = linear.map_err(ModelError::from)?;
    let built = builder.finish().map_err(ModelError::from)?;
    let x: Vec<f32> = (0..rows * n_in).map(|at| (at % 17) as f32 / 8.0 - 1.0).collect();
    let x = Tensor::from_f32(&Device::Cpu, &x, &[rows, n_in])?;
    let mut times = Vec::new();
    for repeat in 0..8 {
        let cx = Cx::evaluation(built.params.clone());
        let start = Instant::now();
        linear.forward(&cx, &cx.constant(x.clone()))?;
        // The first passes warm caches and pools.
        if repeat >= 3 {
            times.push(start.elapsed().as_nanos() as f64);
        }
    }
    Ok(median(&mut times).unwrap_or(0.0) as u64)
}
