//! Parameters, each stored once: one flat f32 array of masters, its bf16 copy for compute, one of gradients.
//!
//! Flat arrays make the optimizer, clipping, EMA and zeroing one pass each. Decayed parameters come first, so weight
//! decay is a prefix. Every parameter starts at a multiple of [`ALIGN`] elements; the gaps stay zero.

use crate::{DType, Device, EngineError, Result, Tensor};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Elements: 256 bytes in f32, 128 in bf16, so that every parameter can be loaded in whole vectors.
const ALIGN: usize = 64;

/// A parameter's place in [`Params`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ParamId(usize);

/// What is known of a parameter besides its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParamInfo {
    /// Dotted path, as in a checkpoint.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Whether a gradient is wanted; a constant has none, and an optimizer leaves it as it is.
    pub trained: bool,
    /// Whether the batches that were seen make it, as those of a batch norm's running statistics: what several processes
    /// have to agree on.
    pub from_batches: bool,
    /// First element in the flat arrays.
    pub offset: usize,
}

impl ParamInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What happens to a parameter in training.
struct Role {
    decay: bool,
    trained: bool,
    from_batches: bool,
}

/// Collects parameters and their first values while a model is being built.
#[derive(Debug)]
pub struct ParamsBuilder {
    device: Device,
    compute: DType,
    entries: Vec<(ParamInfo, Vec<f32>)>,
}

impl ParamsBuilder {
    /// For a model on `device` that computes in `compute`.
    ///
    /// # Errors
    ///
    /// [`EngineError::DType`] for bf16 on the host or an integer type.
    pub fn new(device: Device, compute: DType) -> Result<Self> {
        let fits = compute == DType::F32 || (compute == DType::Bf16 && matches!(device, Device::Cuda(_)));
        if !fits {
            return Err(EngineError::DType {
                op: "params",
                operand: "compute type",
                expected: DType::F32,
                got: compute,
            });
        }
        Ok(Self { device, compute, entries: Vec::new() })
    }

    /// Where the model will live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Adds a parameter.
    ///
    /// # Errors
    ///
    /// [`EngineError::ParamLen`] when `values` does not fill `shape`.
    pub fn add(&mut self, name: &str, shape: &[usize], decay: bool, values: Vec<f32>) -> Result<ParamId> {
        self.push(name, shape, Role { decay, trained: true, from_batches: false }, values)
    }

    /// Adds values that belong to the model, and to its checkpoints, but are not trained.
    ///
    /// # Errors
    ///
    /// As [`ParamsBuilder::add`].
    pub fn add_constant(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Result<ParamId> {
        self.push(name, shape, Role { decay: false, trained: false, from_batches: false }, values)
    }

    /// Adds values that belong to the model, and to its checkpoints, and that training passes change by what they see: a
    /// running statistic.
    ///
    /// # Errors
    ///
    /// As [`ParamsBuilder::add`].
    pub fn add_statistic(&mut self, name: &str, shape: &[usize], values: Vec<f32>) -> Result<ParamId> {
        self.push(name, shape, Role { decay: false, trained: false, from_batches: true }, values)
    }

    fn push(&mut self, name: &str, shape: &[usize], role: Role, values: Vec<f32>) -> Result<ParamId> {
        let Role { decay, trained, from_batches } = role;
        let (name, shape) = (name.to_owned(), shape.to_vec());
        let info = ParamInfo { name, shape, decay, trained, from_batches, offset: 0 };
        if values.len() != info.len() {
            return Err(EngineError::ParamLen { expected: info.len(), name: info.name, got: values.len() });
        }
        debug_assert!(
            self.entries.iter().all(|(other, _)| other.name != info.name),
            "parameter `{}` added twice",
            info.name
        );
        self.entries.push((info, values));
        Ok(ParamId(self.entries.len() - 1))
    }

    /// Lays the parameters out and moves their values to the device.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn build(mut self) -> Result<Arc<Params>> {
        let mut total = 0;
        let mut n_decayed = 0;
        for decay in [true, false] {
            for (info, _) in self.entries.iter_mut().filter(|(info, _)| info.decay == decay) {
                info.offset = total;
                total += info.len().next_multiple_of(ALIGN);
            }
            if decay {
                n_decayed = total;
            }
        }
        let mut flat = vec![0f32; total];
        for (info, values) in &self.entries {
            flat[info.offset..][..values.len()].copy_from_slice(values);
        }
        let master = Tensor::from_f32(&self.device, &flat, &[total])?.numbered();
        let empty = || Tensor::empty(&self.device, DType::Bf16, &[total]);
        let copy = (self.compute == DType::Bf16).then(empty).transpose()?.map(Tensor::numbered);
        let infos: Vec<ParamInfo> = self.entries.into_iter().map(|(info, _)| info).collect();
        let by_name = infos.iter().enumerate().map(|(i, info)| (info.name.clone(), ParamId(i))).collect();
        let params = Params { infos, by_name, n_decayed, master, copy, gradient: OnceLock::new() };
        params.refresh_copy()?;
        Ok(Arc::new(params))
    }
}

/// A model's parameters on their device.
#[derive(Debug)]
pub struct Params {
    infos: Vec<ParamInfo>,
    by_name: HashMap<String, ParamId>,
    n_decayed: usize,
    master: Tensor,
    copy: Option<Tensor>,
    /// Made when first asked for, so that inference holds none.
    gradient: OnceLock<Tensor>,
}

impl Params {
    /// Every parameter, in the order the model was built.
    pub fn infos(&self) -> &[ParamInfo] {
        &self.infos
    }

    /// Ids in the order of [`Params::infos`].
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.infos.len()).map(ParamId)
    }

    /// The parameter called `name`.
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.by_name.get(name).copied()
    }

    /// What is known of a parameter.
    pub fn info(&self, id: ParamId) -> &ParamInfo {
        &self.infos[id.0]
    }

    /// Number of trained values, gaps and constants excluded.
    pub fn n_values(&self) -> usize {
        self.infos.iter().filter(|info| info.trained).map(ParamInfo::len).sum()
    }

    /// Elements of the flat arrays that weight decay applies to: a prefix.
    pub fn n_decayed(&self) -> usize {
        self.n_decayed
    }

    /// Where the parameters live.
    pub fn device(&self) -> Device {
        self.master.device()
    }

    /// Element type of activations.
    pub fn compute_dtype(&self) -> DType {
        if self.copy.is_some() { DType::Bf16 } else { DType::F32 }
    }

    /// All masters, flat, gaps included.
    pub fn flat_master(&self) -> &Tensor {
        &self.master
    }

    /// The bf16 copy of all masters, where the model computes in bf16.
    pub fn flat_copy(&self) -> Option<&Tensor> {
        self.copy.as_ref()
    }

    /// All gradients, flat; zeros at first.
    ///
    /// # Errors
    ///
    /// What the device reports when they are made.
    pub fn flat_gradient(&self) -> Result<&Tensor> {
        if self.gradient.get().is_none() {
            let zeros = Tensor::zeros(&self.device(), DType::F32, self.master.shape())?;
            // Losing a race would only drop another array of zeros.
            let _ = self.gradient.set(zeros);
        }
        Ok(self.gradient.get().expect("set above"))
    }

    /// A parameter's f32 values.
    pub fn master(&self, id: ParamId) -> Tensor {
        self.view(&self.master, id)
    }

    /// A parameter in the compute type.
    pub fn compute(&self, id: ParamId) -> Tensor {
        self.view(self.copy.as_ref().unwrap_or(&self.master), id)
    }

    /// A parameter's f32 gradient.
    ///
    /// # Errors
    ///
    /// As [`Params::flat_gradient`].
    pub fn gradient(&self, id: ParamId) -> Result<Tensor> {
        Ok(self.view(self.flat_gradient()?, id))
    }

    /// A parameter's place in a flat array shaped as the masters, such as a moment.
    pub fn view(&self, flat: &Tensor, id: ParamId) -> Tensor {
        let info = &self.infos[id.0];
        flat.slice_flat(info.offset, &info.shape)
    }

    /// Overwrites a parameter; call [`Params::refresh_copy`] when all are written.
    ///
    /// # Errors
    ///
    /// [`EngineError::ParamLen`] when the length differs.
    pub fn set(&self, id: ParamId, values: &[f32]) -> Result<()> {
        let info = &self.infos[id.0];
        if values.len() != info.len() {
            return Err(EngineError::ParamLen {
                name: info.name.clone(),
                expected: info.len(),
                got: values.len(),
            });
        }
        self.master(id).set_f32(values)
    }

    /// Rounds the masters to the bf16 copy, where there is one.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn refresh_copy(&self) -> Result<()> {
        match &self.copy {
            Some(copy) => crate::ops::elementwise::cast_into(&self.master, copy),
            None => Ok(()),
        }
    }

    /// Forgets all gradients.
    ///
    /// # Errors
    ///
    /// What the device reports.
    pub fn zero_gradients(&self) -> Result<()> {
        self.flat_gradient()?.fill_zero()
    }
}
