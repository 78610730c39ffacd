//! The tape: what ran, as closures that turn an output's gradient into its inputs'.

use crate::ops::elementwise;
use crate::{DType, EngineError, ParamId, Params, Result, StepRng, Tensor};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

type Backward = Box<dyn FnOnce(&mut Gradients, Tensor) -> Result<()>>;

/// What waits for the end of a training pass.
type Update = Box<dyn FnOnce() -> Result<()>>;

/// What the tape knows of one differentiable tensor.
struct Node {
    /// Absent for leaves.
    backward: Option<Backward>,
    /// Where a parameter's gradient accumulates, f32.
    sink: Option<Tensor>,
}

/// A tensor that may be on a tape. Cloning shares the tensor.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    node: Option<usize>,
}

impl Var {
    /// The tensor.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        self.value.shape()
    }

    /// Whether a gradient can reach it.
    pub fn is_tracked(&self) -> bool {
        self.node.is_some()
    }

    /// The variable without its value: what a backward closure keeps that only passes a gradient on, so that the
    /// activation is freed.
    pub fn handle(&self) -> Handle {
        Handle { shape: self.shape().to_vec(), node: self.node }
    }
}

/// A [`Var`]'s shape and place on the tape.
#[derive(Clone, Debug)]
pub struct Handle {
    shape: Vec<usize>,
    node: Option<usize>,
}

/// What a gradient can be of.
pub trait Tracked {
    /// The place on the tape, if it has one.
    #[doc(hidden)]
    fn node(&self) -> Option<usize>;

    /// Its shape.
    fn shape(&self) -> &[usize];
}

impl Tracked for Var {
    fn node(&self) -> Option<usize> {
        self.node
    }

    fn shape(&self) -> &[usize] {
        self.value.shape()
    }
}

impl Tracked for Handle {
    fn node(&self) -> Option<usize> {
        self.node
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// What a forward pass runs in: the parameters, the tape if gradients are wanted, the step's random numbers.
#[derive(Clone)]
pub struct Cx {
    params: Arc<Params>,
    tape: Option<Rc<RefCell<Vec<Node>>>>,
    rng: Rc<StepRng>,
    training: bool,
    epoch: u64,
    processes: usize,
    /// What [`Cx::afterwards`] was given; `None` where nothing of a pass outlasts it.
    updates: Option<Rc<RefCell<Vec<Update>>>>,
    observer: Option<Observer>,
}

/// Is shown the input of every layer that calls [`Cx::observe`], with the layer's first parameter.
type Observer = Rc<dyn Fn(ParamId, &Tensor) -> Result<()>>;

impl Cx {
    /// A training pass: gradients are recorded, dropout is on.
    pub fn training(params: Arc<Params>, rng: StepRng) -> Self {
        let (tape, updates) = (Some(Rc::default()), Some(Rc::default()));
        Self {
            params,
            tape,
            rng: Rc::new(rng),
            training: true,
            epoch: 0,
            processes: 1,
            updates,
            observer: None,
        }
    }

    /// An evaluation pass: nothing is recorded, dropout is off.
    pub fn evaluation(params: Arc<Params>) -> Self {
        let rng = Rc::new(StepRng::new(0, 0));
        Self {
            params,
            tape: None,
            rng,
            training: false,
            epoch: 0,
            processes: 1,
            updates: None,
            observer: None,
        }
    }

    /// The same pass as one of training's epoch `epoch`, from 0: for what changes from epoch to epoch.
    pub fn at_epoch(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }

    /// The same pass as one of `processes` that each see as many samples of a batch: for what counts samples.
    pub fn among(self, processes: usize) -> Self {
        Self { processes, ..self }
    }

    /// How many processes share the batch; 1 unless told.
    pub fn processes(&self) -> usize {
        self.processes
    }

    /// The epoch of training; 0 unless told.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The same pass, showing each linear layer's input to `see`: for calibration.
    pub fn observed(self, see: impl Fn(ParamId, &Tensor) -> Result<()> + 'static) -> Self {
        Self { observer: Some(Rc::new(see)), ..self }
    }

    /// Shows the input of the layer whose first parameter is `id` to the observer, if there is one.
    ///
    /// # Errors
    ///
    /// The observer's.
    pub fn observe(&self, id: ParamId, x: &Tensor) -> Result<()> {
        self.observer.as_ref().map_or(Ok(()), |see| see(id, x))
    }

    /// The parameters.
    pub fn params(&self) -> &Arc<Params> {
        &self.params
    }

    /// The step's random numbers.
    pub fn rng(&self) -> &StepRng {
        &self.rng
    }

    /// Whether this is a training pass.
    pub fn is_training(&self) -> bool {
        self.training
    }

    /// Whether [`Cx::afterwards`] keeps what it is given.
    pub fn updates(&self) -> bool {
        self.updates.is_some()
    }

    /// Runs `update` at the end of [`Cx::backward`]: how a layer changes values that it keeps from one training pass to
    /// the next, such as a batch norm's running statistics. Until then they are as they were, so that a block that is
    /// [run again](Cx::recompute) sees what it saw, and that second run updates nothing. Nor does a pass for evaluation,
    /// or one whose backward pass never comes.
    pub fn afterwards(&self, update: impl FnOnce() -> Result<()> + 'static) {
        if let Some(updates) = &self.updates {
            updates.borrow_mut().push(Box::new(update));
        }
    }

    /// Element type of activations.
    pub fn compute_dtype(&self) -> DType {
        self.params.compute_dtype()
    }

    /// A tensor no gradient is wanted of.
    pub fn constant(&self, value: Tensor) -> Var {
        Var { value, node: None }
    }

    /// A tensor whose gradient is wanted: see [`Gradients::take`].
    pub fn leaf(&self, value: Tensor) -> Var {
        let node = self.push(Node { backward: None, sink: None });
        Var { value, node }
    }

    /// A parameter in the compute type; untracked where it is a constant.
    pub fn param(&self, id: ParamId) -> Var {
        self.param_leaf(id, self.params.compute(id))
    }

    /// A parameter that counts as `value`, of its shape: the gradient of what was made of it is taken for its own
    /// (straight-through).
    pub fn param_as(&self, id: ParamId, value: &Tensor) -> Var {
        self.param_leaf(id, value.clone())
    }

    /// A parameter in f32: for norms, whose arithmetic is f32 throughout.
    pub fn param_f32(&self, id: ParamId) -> Var {
        self.param_leaf(id, self.params.master(id))
    }

    fn param_leaf(&self, id: ParamId, value: Tensor) -> Var {
        let node = self.tape.as_ref().filter(|_| self.params.info(id).trained).and_then(|_| {
            let sink = Some(self.params.gradient(id).ok()?);
            self.push(Node { backward: None, sink })
        });
        Var { value, node }
    }

    fn push(&self, node: Node) -> Option<usize> {
        let mut nodes = self.tape.as_ref()?.borrow_mut();
        nodes.push(node);
        Some(nodes.len() - 1)
    }

    /// Whether an op over `inputs` has to be recorded, so that it can keep what its backward needs.
    pub fn records(&self, inputs: &[&Var]) -> bool {
        self.tape.is_some() && inputs.iter().any(|var| var.is_tracked())
    }

    /// Puts an op's output on the tape when any input is on it.
    ///
    /// `backward` gets the output's gradient, in the output's type, and adds to the inputs' through [`Gradients`].
    pub fn record(
        &self,
        value: Tensor,
        inputs: &[&Var],
        backward: impl FnOnce(&mut Gradients, Tensor) -> Result<()> + 'static,
    ) -> Var {
        let dtype = value.dtype();
        self.record_any(value, inputs, move |gradients, dy| {
            backward(gradients, elementwise::cast(&dy, dtype)?)
        })
    }

    /// As [`Cx::record`] for ops that take a gradient in f32 as well: that of a weight that was computed comes so.
    pub(crate) fn record_any(
        &self,
        value: Tensor,
        inputs: &[&Var],
        backward: impl FnOnce(&mut Gradients, Tensor) -> Result<()> + 'static,
    ) -> Var {
        if !self.records(inputs) {
            return self.constant(value);
        }
        let node = self.push(Node { backward: Some(Box::new(backward)), sink: None });
        Var { value, node }
    }

    /// The same elements under another shape. Free.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when the number of elements differs.
    pub fn reshape(&self, x: &Var, shape: &[usize]) -> Result<Var> {
        if x.shape() == shape {
            return Ok(x.clone());
        }
        let handle = x.handle();
        Ok(self.record_any(x.value().reshape(shape)?, &[x], move |gradients, dy| {
            gradients.add(&handle, dy.reshape(handle.shape())?)
        }))
    }

    /// Runs the tape backwards from `root`, whose gradient is `seed`; consumes what was recorded.
    ///
    /// Gradients of parameters are added to [`Params::gradient`]; those of leaves are in the result. What was given to
    /// [`Cx::afterwards`] runs at the end, in order.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when `seed` is not shaped as `root`; what an op's backward or an update reports.
    pub fn backward(&self, root: &Var, seed: Tensor) -> Result<Gradients> {
        seed.expect_shape("backward", "seed", root.shape())?;
        let nodes = self.tape.as_ref().map(|tape| tape.take()).unwrap_or_default();
        let (mut backwards, mut gradients) =
            (Vec::with_capacity(nodes.len()), Gradients { slots: Vec::new() });
        for node in nodes {
            backwards.push(node.backward);
            gradients.slots.push(Slot { sink: node.sink, sum: None });
        }
        gradients.add(root, seed)?;
        // Popping frees each op's saved tensors as soon as they have been used.
        while let Some(backward) = backwards.pop() {
            let Some(backward) = backward else { continue };
            if let Some(dy) = gradients.slots[backwards.len()].sum.take() {
                backward(&mut gradients, dy)?;
            }
        }
        let updates = self.updates.as_ref().map(|updates| updates.take()).unwrap_or_default();
        updates.into_iter().try_for_each(|update| update())?;
        Ok(gradients)
    }

    /// Runs `f` without recording its insides and runs it again in the backward pass: activations of one block at
    /// a time instead of all, for one more forward pass.
    ///
    /// # Errors
    ///
    /// What `f` reports.
    pub fn recompute(
        &self,
        inputs: &[&Var],
        f: impl Fn(&Cx, &[Var]) -> Result<Var> + 'static,
    ) -> Result<Var> {
        let from = self.rng.position();
        let vars: Vec<Var> = inputs.iter().map(|&var| var.clone()).collect();
        let plain: Vec<Var> = vars.iter().map(|var| self.constant(var.value.clone())).collect();
        let value = f(&Cx { tape: None, ..self.clone() }, &plain)?.value;
        if self.tape.is_none() {
            return Ok(self.constant(value));
        }
        // Recorded even when no input is tracked: the block's own parameters want gradients.
        // Without the tape: a closure on it that held it would keep both alive.
        let cx = Cx { tape: None, updates: None, ..self.clone() };
        let backward = move |gradients: &mut Gradients, dy: Tensor| {
            let again = Cx { tape: Some(Rc::default()), rng: Rc::new(cx.rng.at(from)), ..cx };
            let leaves: Vec<Var> = vars.iter().map(|var| again.leaf(var.value.clone())).collect();
            let root = f(&again, &leaves)?;
            let mut inner = again.backward(&root, dy)?;
            for (var, leaf) in vars.iter().zip(&leaves) {
                if let (true, Some(dx)) = (var.is_tracked(), inner.take(leaf)) {
                    gradients.add(var, dx)?;
                }
            }
            Ok(())
        };
        let node = self.push(Node { backward: Some(Box::new(backward)), sink: None });
        Ok(Var { value, node })
    }
}

/// Gradients on their way through the tape.
pub struct Gradients {
    slots: Vec<Slot>,
}

struct Slot {
    sink: Option<Tensor>,
    sum: Option<Tensor>,
}

impl Gradients {
    /// Whether `var` wants a gradient: an op skips the work where not.
    pub fn wants(&self, var: &impl Tracked) -> bool {
        var.node().is_some()
    }

    /// Adds `gradient` to that of `var`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when they differ in shape; what the device reports.
    pub fn add(&mut self, var: &impl Tracked, gradient: Tensor) -> Result<()> {
        let Some(node) = var.node() else { return Ok(()) };
        gradient.expect_shape("gradient", "gradient", var.shape())?;
        let slot = &mut self.slots[node];
        if let Some(sink) = &slot.sink {
            return elementwise::add_assign(sink, &gradient);
        }
        slot.sum = Some(match slot.sum.take() {
            None => gradient,
            // In place only when nobody else looks at the tensor, as a branch that passed it on would.
            Some(sum) if sum.is_unique() && sum.dtype() == gradient.dtype() => {
                elementwise::add_assign(&sum, &gradient)?;
                sum
            }
            Some(sum) => elementwise::sum(&sum, &gradient)?,
        });
        Ok(())
    }

    /// Where an op may accumulate the f32 gradient of `var` itself: the tensor, and whether it holds a sum already
    /// (add to it) or is undefined (overwrite it). `None` when no gradient is wanted.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn sink(&mut self, var: &Var) -> Result<Option<(Tensor, bool)>> {
        let Some(node) = var.node else { return Ok(None) };
        let slot = &mut self.slots[node];
        if let Some(sink) = &slot.sink {
            return Ok(Some((sink.clone(), true)));
        }
        if let Some(sum) = slot.sum.take() {
            // Written in place below, so it must be nobody else's: an op may have passed it on to several inputs.
            let sum = match sum.dtype() {
                DType::F32 if sum.is_unique() => sum,
                DType::F32 => sum.duplicate()?,
                _ => elementwise::cast(&sum, DType::F32)?,
            };
            slot.sum = Some(sum.clone());
            return Ok(Some((sum, true)));
        }
        let fresh = var.value.beside(DType::F32, var.shape())?;
        slot.sum = Some(fresh.clone());
        Ok(Some((fresh, false)))
    }

    /// As [`Gradients::sink`], but always a sum to add to: fresh memory is zeroed first.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn sink_to_add(&mut self, var: &Var) -> Result<Option<Tensor>> {
        let Some((tensor, holds_sum)) = self.sink(var)? else { return Ok(None) };
        if !holds_sum {
            tensor.fill_zero()?;
        }
        Ok(Some(tensor))
    }

    /// The gradient of a leaf, if any reached it.
    pub fn take(&mut self, var: &impl Tracked) -> Option<Tensor> {
        self.slots.get_mut(var.node()?)?.sum.take()
    }
}

/// The error for a value out of an op's range.
pub(crate) fn value_error(
    op: &'static str,
    what: &'static str,
    expected: impl Into<String>,
    got: impl ToString,
) -> EngineError {
    EngineError::Value { op, what, expected: expected.into(), got: got.to_string() }
}
