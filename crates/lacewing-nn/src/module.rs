//! Building a model: names, parameters, rules, and the account of what each layer costs.
//!
//! A [`ModelBuilder`] owns what is being collected; a [`Scope`] is a place in the tree of names (`blocks.3.mlp`) through
//! which layers add their parameters. A parameter's first values depend on the seed and on its layer's name only, so a
//! layer that is added or removed leaves the others as they were.

use crate::conv2d::with_channels;
use crate::linear::{Linear, LinearOptions};
use crate::{Choice, Evolving, NnError, Result, Rules};
use lacewing_core::{Form, IndexBuffer, ParamSpec, Rng, Schedule, Structure};
use lacewing_engine::{DType, Device, ParamId, Params, ParamsBuilder};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What one linear layer is and costs.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerInfo {
    /// Dotted name.
    pub name: String,
    /// Name of its structure.
    pub structure: &'static str,
    /// The structure's config with every default filled in.
    pub config: Value,
    /// The kernels that run it, as `block_sparse` or `sum(block_sparse, chain)`.
    pub kernel: String,
    /// Length of one row of input.
    pub n_in: usize,
    /// Length of one row of output.
    pub n_out: usize,
    /// Height, width and channels of the windows of an unfolded convolution, whose values are its inputs in that order.
    pub window: Option<[usize; 3]>,
    /// Trained values, bias included.
    pub parameters: usize,
    /// Values of the bias: `n_out` or 0.
    pub bias: usize,
    /// Bytes of values (f32) and indices in a packed file, bias included.
    pub bytes: usize,
    /// Multiply-adds for one row of input.
    pub macs_per_row: usize,
    /// Rows that one sample gives, such as tokens.
    pub rows_per_sample: usize,
    /// Weights stored over `n_in · n_out`.
    pub density: f64,
}

impl LayerInfo {
    /// Multiply-adds for one sample.
    pub fn macs(&self) -> u64 {
        self.macs_per_row as u64 * self.rows_per_sample as u64
    }
}

/// What a model costs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Every linear layer, in the order of building.
    pub layers: Vec<LayerInfo>,
    /// Trained values of all layers, norms and embeddings included.
    pub parameters: usize,
    /// Bytes of a packed file: values as f32, and indices.
    pub bytes: usize,
    /// Multiply-adds for one sample of products without parameters: attention's `q kᵀ` and `a v`.
    pub other_macs: u64,
}

impl Summary {
    /// Multiply-adds for one sample: all linear layers and attention's two products. Norms, activations, pooling and
    /// additions are not counted.
    pub fn macs(&self) -> u64 {
        self.layers.iter().map(LayerInfo::macs).sum::<u64>() + self.other_macs
    }
}

/// What [`ModelBuilder::finish`] gives.
#[derive(Debug)]
pub struct Built {
    /// The parameters on their device.
    pub params: Arc<Params>,
    /// What the model costs.
    pub summary: Summary,
    /// Index buffers under their dotted names; with the config they define every structure. For checkpoints.
    pub buffers: Vec<IndexBuffer>,
    /// The layers whose structure changes in training. What a layer that stores all its weights multiplies by is made by
    /// [`Evolving::mask`] and [`Evolving::let_through`]: with the final mask at first, and then whenever whoever trains calls
    /// them, which is to be after each step.
    pub evolving: Vec<Evolving>,
}

/// Where first values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Values {
    /// Drawn from the seed.
    Drawn,
    /// Zeros: a checkpoint will overwrite them.
    Zeros,
    /// No values at all: only shapes are wanted.
    None,
}

/// Collects a model's parameters and layers.
#[derive(Debug)]
pub struct ModelBuilder {
    params: ParamsBuilder,
    compute: DType,
    values: Values,
    rng: Rng,
    rules: Rules,
    /// Index buffers of a checkpoint that no layer has taken yet.
    saved: BTreeMap<String, IndexBuffer>,
    buffers: Vec<IndexBuffer>,
    evolving: Vec<Evolving>,
    summary: Summary,
}

impl ModelBuilder {
    /// A fresh model on `device` that computes in `compute`, first values drawn from `seed`. Without rules all is dense.
    ///
    /// # Errors
    ///
    /// [`NnError::Engine`] when the device does not compute in that type.
    pub fn new(device: Device, compute: DType, seed: u64) -> Result<Self> {
        Self::with_values(device, compute, seed, Values::Drawn)
    }

    /// A model from a checkpoint: structures come from the rules and `buffers` (as [`Built::buffers`] gave them), all
    /// parameters are zeros until [`Params::set`].
    ///
    /// # Errors
    ///
    /// As [`ModelBuilder::new`].
    pub fn restoring(device: Device, compute: DType, buffers: Vec<IndexBuffer>) -> Result<Self> {
        let mut builder = Self::with_values(device, compute, 0, Values::Zeros)?;
        builder.saved = buffers.into_iter().map(|buffer| (buffer.name.clone(), buffer)).collect();
        Ok(builder)
    }

    /// A model that is only counted: no values are made, so that even a large one takes no time. It cannot run.
    ///
    /// # Errors
    ///
    /// As [`ModelBuilder::new`].
    pub fn counting() -> Result<Self> {
        Self::with_values(Device::Cpu, DType::F32, 0, Values::None)
    }

    fn with_values(device: Device, compute: DType, seed: u64, values: Values) -> Result<Self> {
        Ok(Self {
            params: ParamsBuilder::new(device, compute)?,
            compute,
            values,
            rng: Rng::new(seed),
            rules: Rules::default(),
            saved: BTreeMap::new(),
            buffers: Vec::new(),
            evolving: Vec::new(),
            summary: Summary::default(),
        })
    }

    /// Chooses structures by `rules`.
    pub fn with_rules(mut self, rules: Rules) -> Self {
        self.rules = rules;
        self
    }

    /// The tree of names from its root.
    pub fn root(&mut self) -> Scope<'_> {
        Scope { builder: self, path: String::new(), rows: 1 }
    }

    /// The part of the tree under `name`.
    pub fn scope(&mut self, name: &str) -> Scope<'_> {
        Scope { builder: self, path: name.to_owned(), rows: 1 }
    }

    /// What has been built so far.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Checks that every rule and every saved buffer found its layer, and moves the parameters to the device.
    ///
    /// # Errors
    ///
    /// [`NnError::Unmatched`], [`NnError::UnknownBuffer`], and what the device reports.
    pub fn finish(self) -> Result<Built> {
        let names: Vec<&str> = self.summary.layers.iter().map(|layer| layer.name.as_str()).collect();
        self.rules.check(&names)?;
        if let Some(name) = self.saved.into_keys().next() {
            return Err(NnError::UnknownBuffer { name });
        }
        let params = self.params.build()?;
        for layer in self.evolving.iter().filter(|_| self.values != Values::None) {
            layer.let_through(&params, params.flat_master())?;
            if let Some(phase) = layer.final_phase() {
                layer.mask(&params, phase, params.flat_master())?;
            }
        }
        let (summary, buffers, evolving) = (self.summary, self.buffers, self.evolving);
        Ok(Built { params, summary, buffers, evolving })
    }

    fn add(
        &mut self,
        name: &str,
        shape: &[usize],
        decay: bool,
        draw: impl FnOnce(Rng) -> Vec<f32>,
    ) -> Result<ParamId> {
        let count: usize = shape.iter().product();
        self.summary.parameters += count;
        self.summary.bytes += 4 * count;
        Ok(match self.values {
            Values::Drawn => self.params.add(name, shape, decay, draw(self.rng.fork(name)))?,
            Values::Zeros => self.params.add(name, shape, decay, vec![0.0; count])?,
            // An id without elements: layers hold ids, and a counted model is never run.
            Values::None => self.params.add(name, &[0], decay, Vec::new())?,
        })
    }
}

/// A place in the tree of names.
#[derive(Debug)]
pub struct Scope<'a> {
    builder: &'a mut ModelBuilder,
    path: String,
    rows: usize,
}

impl Scope<'_> {
    /// The part of the tree under `name`.
    pub fn scope(&mut self, name: &str) -> Scope<'_> {
        let path = self.name(name);
        Scope { builder: self.builder, path, rows: self.rows }
    }

    /// The same place for layers that see `rows` rows a sample, such as tokens: for the account of multiply-adds.
    pub fn with_rows(&mut self, rows: usize) -> Scope<'_> {
        Scope { builder: self.builder, path: self.path.clone(), rows }
    }

    /// The dotted name of `name` here.
    pub fn name(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// The dotted name of this place.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Rows that a sample gives here.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds a parameter whose first values `draw` makes from the stream of its own name.
    ///
    /// # Errors
    ///
    /// [`NnError::Engine`] when `draw` gives another number of values than `shape` has.
    pub fn parameter(
        &mut self,
        name: &str,
        shape: &[usize],
        decay: bool,
        draw: impl FnOnce(Rng) -> Vec<f32>,
    ) -> Result<ParamId> {
        let name = self.name(name);
        self.builder.add(&name, shape, decay, draw)
    }

    /// Adds values that belong to the model and to its checkpoints but are not trained: a table that `values` makes. It is
    /// counted in the bytes, not among the parameters.
    ///
    /// # Errors
    ///
    /// [`NnError::Engine`] when `values` gives another number of values than `shape` has.
    pub fn constant(
        &mut self,
        name: &str,
        shape: &[usize],
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<ParamId> {
        self.untrained(ParamsBuilder::add_constant, name, shape, values)
    }

    /// As [`Scope::constant`] for values that training passes change by what they see, such as a batch norm's running
    /// statistics: processes that train together average them.
    ///
    /// # Errors
    ///
    /// As [`Scope::constant`].
    pub fn statistic(
        &mut self,
        name: &str,
        shape: &[usize],
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<ParamId> {
        self.untrained(ParamsBuilder::add_statistic, name, shape, values)
    }

    fn untrained(
        &mut self,
        add: fn(&mut ParamsBuilder, &str, &[usize], Vec<f32>) -> lacewing_engine::Result<ParamId>,
        name: &str,
        shape: &[usize],
        values: impl FnOnce() -> Vec<f32>,
    ) -> Result<ParamId> {
        let name = self.name(name);
        self.builder.summary.bytes += 4 * shape.iter().product::<usize>();
        Ok(match self.builder.values {
            Values::Drawn | Values::Zeros => add(&mut self.builder.params, &name, shape, values())?,
            Values::None => add(&mut self.builder.params, &name, &[0], Vec::new())?,
        })
    }

    /// Counts `macs` multiply-adds a sample of a product without parameters.
    pub fn add_macs(&mut self, macs: u64) {
        self.builder.summary.other_macs += macs;
    }

    /// A linear layer `[n_out, n_in]` whose structure the rules choose by its dotted name.
    ///
    /// # Errors
    ///
    /// [`NnError::Structure`] when the structure does not fit the sizes or a checkpoint's buffers do not fit it;
    /// [`NnError::UnknownKernel`] or [`NnError::Refused`] for a forced kernel; what the device reports.
    pub fn linear(
        &mut self,
        name: &str,
        n_in: usize,
        n_out: usize,
        options: LinearOptions,
    ) -> Result<Linear> {
        let layer = self.name(name);
        let mut choice = self.builder.rules.choose(&layer);
        choice.structure = with_channels(&choice.structure, options.window);
        let masked = choice.schedule.as_ref().is_some_and(Schedule::stores_all);
        let structure = if self.builder.values == Values::Zeros && !masked {
            let buffers = self.take_saved(&layer);
            lacewing_core::restore(&choice.structure, n_in, n_out, &buffers)
        } else {
            // A stream of its own: how a structure is drawn does not move its values.
            let seed = self.builder.rng.fork(&layer).fork("structure").key();
            lacewing_core::build(&choice.structure, n_in, n_out, seed, None)
        };
        let refused = |source| NnError::Structure { layer, n_in, n_out, source: Box::new(source) };
        let checked = structure.and_then(|structure| {
            let schedule = choice.schedule.as_ref();
            schedule.map_or(Ok(()), |schedule| schedule.check(structure.as_ref()))?;
            let open = schedule.is_some_and(Schedule::decides_density);
            Ok(if open { with_all_places(structure) } else { structure })
        });
        self.scheduled(name, checked.map_err(refused)?, choice, options)
    }

    /// A linear layer of a given structure, run by the kernel called `kernel` or else the first that takes it.
    ///
    /// # Errors
    ///
    /// As [`Scope::linear`].
    pub fn linear_of(
        &mut self,
        name: &str,
        structure: Box<dyn Structure>,
        kernel: Option<&str>,
        options: LinearOptions,
    ) -> Result<Linear> {
        let kernel = kernel.map(str::to_owned);
        self.scheduled(name, structure, Choice { kernel, ..Choice::dense() }, options)
    }

    /// A linear layer of `structure`, the kernel and the schedule being those of `choice`.
    fn scheduled(
        &mut self,
        name: &str,
        structure: Box<dyn Structure>,
        choice: Choice,
        options: LinearOptions,
    ) -> Result<Linear> {
        let layer = self.name(name);
        let (kernel, schedule) = (choice.kernel.as_deref(), choice.schedule.as_ref());
        let linear = Linear::build(&mut self.scope(name), structure, kernel, schedule, options)?;
        let structure = linear.structure();
        let counts = structure.counts();
        if schedule.is_some_and(Schedule::stores_all) {
            // All weights were counted as they were added, and what a mask is made of; the file has the packed ones.
            let stored = structure.n_in() * structure.n_out();
            let more = linear.schedule_values();
            self.builder.summary.bytes -= 4 * (stored.saturating_sub(counts.parameters) + more);
        } else {
            for mut buffer in structure.buffers() {
                buffer.name = format!("{layer}.{}", buffer.name);
                self.builder.buffers.push(buffer);
            }
        }
        let bias = if linear.bias().is_some() { structure.n_out() } else { 0 };
        // The values were counted as they were added; the rest of a packed file are indices.
        self.builder.summary.bytes += counts.bytes.saturating_sub(4 * counts.parameters);
        self.builder.summary.layers.push(LayerInfo {
            name: layer,
            structure: structure.name(),
            config: structure.config(),
            kernel: linear.kernel(),
            n_in: structure.n_in(),
            n_out: structure.n_out(),
            window: options.window,
            parameters: counts.parameters + bias,
            bias,
            bytes: counts.bytes + 4 * bias,
            macs_per_row: counts.macs,
            rows_per_sample: self.rows,
            density: structure.density(),
        });
        Ok(linear)
    }

    /// The values of several parameters, drawn together from the stream of this place.
    pub(crate) fn parameters(
        &mut self,
        specs: &[ParamSpec],
        draw: impl FnOnce(&mut Rng) -> Vec<Vec<f32>>,
    ) -> Result<Vec<ParamId>> {
        let drawn = self.builder.values == Values::Drawn;
        let mut values =
            if drawn { draw(&mut self.builder.rng.fork(&self.path)) } else { Vec::new() }.into_iter();
        let mut ids = Vec::with_capacity(specs.len());
        for spec in specs {
            let own = values.next().unwrap_or_default();
            ids.push(self.parameter(&spec.name, &spec.shape, spec.decay, |_| own)?);
        }
        Ok(ids)
    }

    pub(crate) fn add_evolving(&mut self, layer: Evolving) {
        self.builder.evolving.push(layer);
    }

    pub(crate) fn device(&self) -> &Device {
        self.builder.params.device()
    }

    pub(crate) fn compute(&self) -> DType {
        self.builder.compute
    }

    /// The saved buffers of `layer`, under their names inside it.
    fn take_saved(&mut self, layer: &str) -> Vec<IndexBuffer> {
        let prefix = format!("{layer}.");
        let names = self.builder.saved.range(prefix.clone()..).map(|(name, _)| name);
        let names: Vec<String> = names.take_while(|name| name.starts_with(&prefix)).cloned().collect();
        let take = |name: String| {
            let buffer = self.builder.saved.remove(&name).expect("listed above");
            IndexBuffer { name: name[prefix.len()..].to_owned(), ..buffer }
        };
        names.into_iter().map(take).collect()
    }
}

/// `structure` with every place of its grid: what a layer has whose density comes of training.
fn with_all_places(structure: Box<dyn Structure>) -> Box<dyn Structure> {
    let Form::Pattern(pattern) = structure.form() else { unreachable!("schedules are checked before") };
    let (rows, cols) = pattern.grid();
    let all = (0..rows as u32).flat_map(|row| (0..cols as u32).map(move |col| (row, col))).collect();
    structure.with_positions(all).expect("schedules are checked before")
}
