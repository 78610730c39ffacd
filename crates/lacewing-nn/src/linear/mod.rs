//! A linear layer of any structure, and the table of kernels that run one.
//!
//! The kernel is chosen when the layer is built: the first row of [`KERNELS`] that accepts the [`Problem`] and pays, or the
//! row asked for by name. The choice depends on the problem alone; a device's kind is data in it like a size.

mod block_sparse;
mod chain;
mod composed;
mod dense;
mod fused_chain;
mod fused_monarch;
mod merged;
mod scatter_dense;
mod sum;
mod two_four;

use crate::evolving::{Across, Effective, Evolving, Kind, Learned, Watch, places};
use crate::module::Scope;
use crate::{NnError, Result};
use lacewing_core::{Dense, Form, Growth, Init, Schedule, Structure};
use lacewing_engine::ops::{self, Activation, DenseGradient};
use lacewing_engine::{Cx, DType, Device, EngineError, ParamId, Var};
use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Every kernel of a linear layer, best first. `scatter_dense` takes any pattern, so every structure has a row.
pub static KERNELS: &[Kernel] = &[
    dense::KERNEL,
    fused_chain::KERNEL,
    fused_monarch::KERNEL,
    composed::KERNEL,
    merged::KERNEL,
    chain::KERNEL,
    sum::KERNEL,
    block_sparse::KERNEL,
    two_four::KERNEL,
    scatter_dense::KERNEL,
];

/// One way to run a structure.
#[derive(Debug)]
pub struct Kernel {
    /// Its name in configs and logs.
    pub name: &'static str,
    /// One line on what it does and what it costs.
    pub about: &'static str,
    /// Whether it takes the problem; a pure function.
    pub accepts: fn(&Problem<'_>) -> bool,
    /// Whether it is expected to be the fastest of those that accept; a pure function of measured break-evens.
    pub pays: fn(&Problem<'_>) -> bool,
    /// Moves indices to the device.
    prepare: fn(&Problem<'_>, &Device) -> Prepared,
}

/// What a kernel is chosen by.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The structure: its form, sizes and blocks.
    pub structure: &'a dyn Structure,
    /// Element type of activations.
    pub dtype: DType,
    /// Kind of device.
    pub device: DeviceKind,
    /// A kernel asked for by name: taken where it accepts, in a sum by the branches that it accepts.
    pub forced: Option<&'a str>,
}

/// Kind of device, as data of a [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceKind {
    /// The host.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Problem<'_> {
    /// The kernel that runs this problem: the one asked for if it accepts, else the first that accepts and pays.
    ///
    /// # Panics
    ///
    /// When no row accepts: the table is not complete.
    pub fn kernel(&self) -> &'static Kernel {
        let asked = KERNELS.iter().find(|kernel| Some(kernel.name) == self.forced && (kernel.accepts)(self));
        let first = || KERNELS.iter().find(|kernel| (kernel.accepts)(self) && (kernel.pays)(self));
        asked.or_else(first).expect("a kernel for every form")
    }

    /// Whether the kernel asked for, if any, has a part in this problem.
    fn heeds(&self) -> bool {
        let Some(forced) = self.forced else { return true };
        let inside = match self.structure.form() {
            Form::Sum(sum) => [&sum.a, &sum.b].iter().any(|part| self.of(part.as_ref()).heeds()),
            _ => false,
        };
        self.kernel().name == forced || inside
    }

    /// The same problem for another structure.
    fn of<'b>(&'b self, structure: &'b dyn Structure) -> Problem<'b> {
        Problem { structure, ..*self }
    }

    fn prepare(&self, device: &Device) -> Prepared {
        (self.kernel().prepare)(self, device)
    }
}

type Prepared = Result<Box<dyn Product>, EngineError>;

/// A structure ready to run on its device.
trait Product: Debug + Send + Sync {
    /// The kernels in it, for logs.
    fn kernel(&self) -> String;

    /// `y = f(W x + b)`; `weights` are the structure's parameters in its order.
    fn run(
        &self,
        cx: &Cx,
        x: &Var,
        weights: &[Var],
        bias: Option<&Var>,
        act: Activation,
    ) -> Result<Var, EngineError>;

    /// What makes the weight `[n_out, n_in]` of the parameters, if it can be made: for a sum to add up.
    fn fill(&self) -> Option<Fill<'_>> {
        None
    }

    /// Whether [`Product::run`] multiplies by that weight outside training, so that adding to it costs nothing.
    fn fills(&self) -> bool {
        false
    }
}

/// [`Product::fill`].
type Fill<'a> = Box<dyn Fn(&Cx, &[Var]) -> Result<Var, EngineError> + 'a>;

/// How a layer starts and ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearOptions {
    /// Whether `b [n_out]` is added.
    pub bias: bool,
    /// First values of the weights.
    pub init: Init,
    /// First values of the bias.
    pub bias_init: BiasInit,
    /// Applied to `W x + b`.
    pub activation: Activation,
    /// Height, width and channels of the windows of an unfolded convolution, whose values are its inputs in that order.
    pub window: Option<[usize; 3]>,
}

impl Default for LinearOptions {
    /// Bias, the structure's own first values, no activation.
    fn default() -> Self {
        Self {
            bias: true,
            init: Init::Default,
            bias_init: BiasInit::Default,
            activation: Activation::Identity,
            window: None,
        }
    }
}

/// First values of a bias. A structure that keeps its own weights ([`Structure::takes_model_init`]) keeps its own bias
/// as well, unless the map is asked to be zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum BiasInit {
    /// The structure's own: U(±[`Structure::bias_bound`]).
    Default,
    /// All zero.
    Zeros,
    /// Normal with deviation `std`.
    Normal {
        /// Deviation.
        std: f64,
    },
}

/// `y = f(x Wᵀ + b)` with W of any structure.
#[derive(Debug)]
pub struct Linear {
    running: Arc<Running>,
    n_in: usize,
    weights: Vec<ParamId>,
    bias: Option<ParamId>,
    activation: Activation,
    changes: Option<Kind>,
}

/// What a layer multiplies by now, and what it takes to replace it.
#[derive(Debug)]
pub(crate) struct Running {
    now: RwLock<Now>,
    dtype: DType,
    device: Device,
    forced: Option<String>,
}

#[derive(Clone, Debug)]
struct Now {
    structure: Arc<dyn Structure>,
    product: Arc<dyn Product>,
}

impl Running {
    pub(crate) fn structure(&self) -> Arc<dyn Structure> {
        self.now().structure
    }

    /// The kernel asked for by name.
    pub(crate) fn forced(&self) -> Option<&str> {
        self.forced.as_deref()
    }

    /// Goes on with another structure, whose parameters have the same shapes.
    pub(crate) fn replace(&self, structure: Box<dyn Structure>) -> Result<(), EngineError> {
        let device = kind_of(&self.device);
        let forced = self.forced.as_deref();
        let problem = Problem { structure: structure.as_ref(), dtype: self.dtype, device, forced };
        let product = problem.prepare(&self.device)?.into();
        *self.now.write().unwrap_or_else(PoisonError::into_inner) =
            Now { structure: structure.into(), product };
        Ok(())
    }

    fn now(&self) -> Now {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn kind_of(device: &Device) -> DeviceKind {
    if matches!(device, Device::Cpu) { DeviceKind::Cpu } else { DeviceKind::Cuda }
}

impl Linear {
    /// Adds the parameters of `structure` and a bias to `scope`. Under a schedule of masks, or of moves between layers, all
    /// weights are stored and multiplied, and `structure` says what they are to be packed into.
    pub(crate) fn build(
        scope: &mut Scope<'_>,
        structure: Box<dyn Structure>,
        forced: Option<&str>,
        schedule: Option<&Schedule>,
        options: LinearOptions,
    ) -> Result<Self> {
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        let changes = match schedule {
            None => None,
            Some(Schedule::Masks(_)) => Some(Kind::Masked(Arc::new(Effective::new()))),
            Some(Schedule::Moves(moves)) if moves.stores_all() => {
                let Form::Pattern(pattern) = structure.form() else {
                    unreachable!("schedules are checked before")
                };
                let (rows, cols) = pattern.grid();
                let mask = scope.constant("mask", &[rows, cols], || places(pattern))?;
                let average = || scope.constant("momentum", &[n_out, n_in], || vec![0.0; n_out * n_in]);
                let momentum = matches!(moves.growth, Growth::Momentum(_)).then(average).transpose()?;
                let values = rows * cols + momentum.map_or(0, |_| n_out * n_in);
                Some(Kind::Across(Arc::new(Across { mask, momentum, values })))
            }
            Some(Schedule::Moves(_)) => {
                let gradient = DenseGradient::new(n_out, n_in);
                Some(Kind::Moving(Arc::new(Watch { gradient, is_on: AtomicBool::new(false) })))
            }
            Some(Schedule::Learns(learns)) => {
                let Form::Pattern(pattern) = structure.form() else {
                    unreachable!("schedules are checked before")
                };
                Some(Kind::Learned(Arc::new(Learned::build(scope, learns, pattern, options.bias)?)))
            }
        };
        let dense = Dense { n_in, n_out };
        let stores_all = schedule.is_some_and(Schedule::stores_all);
        let run: &dyn Structure = if stores_all { &dense } else { structure.as_ref() };
        let device = kind_of(scope.device());
        let problem = Problem { structure: structure.as_ref(), dtype: scope.compute(), device, forced };
        if let Some(kernel) = forced
            && !problem.heeds()
        {
            return Err(refusal(scope.path(), kernel, structure.as_ref()));
        }
        // The kernel asked for is that of the structure, which masks come to only when they are packed.
        let forced_now = if stores_all { None } else { forced };
        let product = Problem { structure: run, forced: forced_now, ..problem }.prepare(scope.device())?;
        // Between layers the weights that are not kept are zeros, and the others start as they would without them.
        let own = if matches!(changes, Some(Kind::Across(_))) { structure.as_ref() } else { run };
        let weights = scope.parameters(&run.params(), |rng| {
            let values = own.init(options.init, rng);
            match (&changes, own.form()) {
                (Some(Kind::Across(_)), Form::Pattern(pattern)) => vec![pattern.scatter(&values[0])],
                _ => values,
            }
        })?;
        let bias = if options.bias {
            let reached = own.takes_model_init() || options.init == Init::Zeros;
            let rule = if reached { options.bias_init } else { BiasInit::Default };
            let bound = own.bias_bound();
            let id = scope.parameter("bias", &[n_out], false, |mut rng| match rule {
                BiasInit::Default => (0..n_out).map(|_| rng.uniform(-bound, bound) as f32).collect(),
                BiasInit::Zeros => vec![0.0; n_out],
                BiasInit::Normal { std } => (0..n_out).map(|_| (rng.normal() * std) as f32).collect(),
            })?;
            Some(id)
        } else {
            None
        };
        let now = Now { structure: structure.into(), product: product.into() };
        let running = Arc::new(Running {
            now: RwLock::new(now),
            dtype: scope.compute(),
            device: scope.device().clone(),
            forced: forced.map(str::to_owned),
        });
        if let (Some(schedule), Some(kind)) = (schedule, &changes) {
            scope.add_evolving(Evolving {
                name: scope.path().to_owned(),
                schedule: schedule.clone(),
                weight: weights[0],
                bias,
                running: running.clone(),
                kind: kind.clone(),
            });
        }
        Ok(Self { running, n_in, weights, bias, activation: options.activation, changes })
    }

    /// `y = f(x Wᵀ + b)`.
    ///
    /// Shapes: `x [..., n_in]` → `[..., n_out]`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when `x` has another last dimension; what the device reports.
    pub fn forward(&self, cx: &Cx, x: &Var) -> Result<Var, EngineError> {
        let effective = match &self.changes {
            Some(Kind::Learned(learned)) => learned.effective_bias(),
            _ => None,
        };
        let of = |id| effective.map_or_else(|| cx.param(id), |value| cx.param_as(id, value));
        self.run(cx, x, self.bias.map(of).as_ref())
    }

    /// `y = f(x Wᵀ + b)` with the bias `b [n_out]` of somebody else, for a layer that has none.
    ///
    /// # Errors
    ///
    /// As [`Linear::forward`], and [`EngineError::Shape`] for a bias of another length.
    pub fn forward_biased(&self, cx: &Cx, x: &Var, bias: &Var) -> Result<Var, EngineError> {
        debug_assert!(self.bias.is_none(), "one bias");
        self.run(cx, x, Some(bias))
    }

    fn run(&self, cx: &Cx, x: &Var, bias: Option<&Var>) -> Result<Var, EngineError> {
        let n_in = self.n_in;
        // Checked here because padding to a structure's size would hide it.
        if x.shape().last() != Some(&n_in) {
            let expected = format!("[..., {n_in}]");
            return Err(EngineError::Shape { op: "linear", operand: "x", expected, got: x.shape().to_vec() });
        }
        if let Some(&first) = self.weights.first() {
            cx.observe(first, x.value())?;
        }
        let effective = match &self.changes {
            Some(Kind::Masked(effective)) => effective.get(),
            Some(Kind::Learned(learned)) => learned.effective.get(),
            _ => None,
        };
        let of = |&id: &ParamId| effective.map_or_else(|| cx.param(id), |value| cx.param_as(id, value));
        let weights: Vec<Var> = self.weights.iter().map(of).collect();
        let product = self.running.now().product;
        match &self.changes {
            Some(Kind::Moving(watch)) if cx.is_training() && watch.is_on.load(Ordering::Relaxed) => {
                let y = product.run(cx, x, &weights, None, Activation::Identity)?;
                let y = watch.gradient.watch(cx, x, &y)?;
                ops::bias_activation(cx, y, bias, self.activation)
            }
            _ => product.run(cx, x, &weights, bias, self.activation),
        }
    }

    /// The structure of W as it is now; under a schedule of masks the one that it is to be packed into.
    pub fn structure(&self) -> Arc<dyn Structure> {
        self.running.structure()
    }

    /// The parameters of the structure, in its order; under a schedule of masks the dense weight.
    pub fn weights(&self) -> &[ParamId] {
        &self.weights
    }

    /// The bias, if there is one.
    pub fn bias(&self) -> Option<ParamId> {
        self.bias
    }

    /// How many values its schedule has added to the model, which a packed file is without.
    pub(crate) fn schedule_values(&self) -> usize {
        match &self.changes {
            Some(Kind::Learned(learned)) => learned.values,
            Some(Kind::Across(across)) => across.values,
            _ => 0,
        }
    }

    /// The kernels that run it.
    pub fn kernel(&self) -> String {
        self.running.now().product.kernel()
    }
}

fn refusal(layer: &str, kernel: &str, structure: &dyn Structure) -> NnError {
    let (layer, kernel) = (layer.to_owned(), kernel.to_owned());
    if KERNELS.iter().all(|known| known.name != kernel) {
        return NnError::UnknownKernel {
            layer,
            kernel,
            known: KERNELS.iter().map(|known| known.name).collect(),
        };
    }
    let (n_in, n_out) = (structure.n_in(), structure.n_out());
    NnError::Refused { layer, kernel, structure: structure.name(), n_in, n_out }
}

/// `x` with its last dimension cut or padded with zeros to `cols`.
fn fit(cx: &Cx, x: Var, cols: usize) -> Result<Var, EngineError> {
    // By value, so that who only keeps the result may write in place.
    if x.shape().last() == Some(&cols) { Ok(x) } else { ops::resize_cols(cx, &x, cols) }
}

#[cfg(test)]
mod tests {
    use super::KERNELS;
    use std::collections::BTreeSet;

    #[test]
    fn every_kernel_file_has_its_row() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/linear");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|name| name != "mod")
            .collect();
        let rows: BTreeSet<String> = KERNELS.iter().map(|kernel| kernel.name.to_owned()).collect();
        assert_eq!(files, rows);
    }
}
