//! One GPU: its memory, its kernels and its stream. The only place of this crate that calls the driver.

mod driver;
mod function;
mod graph;
mod library;
pub(crate) mod lt;
mod memory;
mod nccl;
pub(crate) mod nvrtc;
mod staging;
mod tensor_map;

pub use driver::Properties;
pub(crate) use driver::{Context, Event};
pub use function::{Arg, Function};
pub use graph::Graph;
pub use memory::{ALIGNMENT_BYTES, Buffer, Region};
pub use nccl::{Communicator, ID_BYTES, Reduction};
pub use tensor_map::TensorMap;

use crate::matmul::Plans;
use crate::source::Constant;
use crate::{CudaError, Source};
use function::Module;
use memory::Memory;
use staging::Staging;
use std::collections::{HashMap, hash_map};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Key of a source: its address, since sources are statics.
type SourceId = usize;

/// A kernel, with the constants that its source was compiled with: there are few.
type Compiled = (Vec<Constant>, Function);

#[derive(Debug, Default)]
struct Kernels {
    modules: HashMap<(SourceId, Vec<Constant>), Module>,
    functions: HashMap<(SourceId, &'static str), Vec<Compiled>>,
}

/// A GPU, ready for work. All calls queue on one stream and return before the work has run, unless they say so.
#[derive(Debug)]
pub struct Device {
    properties: Properties,
    kernels: Mutex<Kernels>,
    staging: Mutex<Option<Staging>>,
    allow_tf32: AtomicBool,
    pub(crate) plans: Mutex<Plans>,
    // Dropped last, in this order: everything above uses them.
    pub(crate) lt: lt::Lt,
    memory: Arc<Memory>,
    pub(crate) context: Arc<Context>,
}

/// A lock whose holders leave the data whole at every step, so that a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// Opens the GPU of this number: loads the driver, NVRTC and cuBLASLt and makes the stream.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoDriver`], [`CudaError::NoSuchDevice`], [`CudaError::NoLibrary`], or what the driver answers.
    pub fn new(ordinal: usize) -> Result<Arc<Device>, CudaError> {
        let (context, properties) = Context::new(ordinal)?;
        nvrtc::version()?;
        let memory = Arc::new(Memory::new(&context));
        let lt = lt::Lt::new(&context, memory.alloc(lt::WORKSPACE_BYTES)?)?;
        Ok(Arc::new(Device {
            properties,
            kernels: Mutex::default(),
            staging: Mutex::default(),
            allow_tf32: AtomicBool::new(false),
            plans: Mutex::default(),
            lt,
            memory,
            context,
        }))
    }

    /// Number of the device.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.context.ordinal
    }

    /// What the device is.
    #[must_use]
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// Whether f32 products may round their inputs to ten bits of mantissa (TF32). Off at first.
    #[must_use]
    pub fn allow_tf32(&self) -> bool {
        self.allow_tf32.load(Ordering::Relaxed)
    }

    /// Allows or forbids TF32 in f32 products from here on.
    pub fn set_allow_tf32(&self, allow: bool) {
        self.allow_tf32.store(allow, Ordering::Relaxed);
    }

    /// Memory of at least `bytes`, its contents undefined, its address a multiple of [`ALIGNMENT_BYTES`].
    ///
    /// # Errors
    ///
    /// [`CudaError::OutOfMemory`], after the pool's free blocks were given back in vain.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer, CudaError> {
        self.memory.alloc(bytes)
    }

    /// A region of `bytes`, its contents undefined: [`Device::alloc`] for those who hold regions.
    ///
    /// # Errors
    ///
    /// As [`Device::alloc`].
    pub fn region(&self, bytes: usize) -> Result<Region, CudaError> {
        self.alloc(bytes).map(Region::from)
    }

    /// Queues a copy of `bytes` into all of `to`; the host's bytes may change as soon as this returns.
    ///
    /// # Errors
    ///
    /// [`CudaError::OperandBytes`] if the lengths differ, [`CudaError::Capturing`], or what the driver answers.
    pub fn upload(&self, to: &Region, bytes: &[u8]) -> Result<(), CudaError> {
        self.same_len("upload", "bytes", to.len_bytes(), bytes.len())?;
        self.is_here("upload", "to", to)?;
        self.not_capturing("upload")?;
        if bytes.is_empty() {
            return Ok(());
        }
        let mut staging = lock(&self.staging);
        if staging.is_none() {
            *staging = Some(Staging::new(&self.context)?);
        }
        staging.as_mut().map_or(Ok(()), |staging| staging.send(to.ptr(), bytes))
    }

    /// Copies all of `from` into `bytes` and waits for it, hence for everything queued before.
    ///
    /// # Errors
    ///
    /// [`CudaError::OperandBytes`] if the lengths differ, [`CudaError::Capturing`], or what the driver answers, which
    /// may be an error of a kernel queued earlier.
    pub fn download(&self, from: &Region, bytes: &mut [u8]) -> Result<(), CudaError> {
        self.same_len("download", "bytes", from.len_bytes(), bytes.len())?;
        self.is_here("download", "from", from)?;
        self.not_capturing("download")?;
        if bytes.is_empty() { Ok(()) } else { self.context.copy_out(bytes, from.ptr()) }
    }

    /// Queues zeros into all bytes of `region`.
    ///
    /// # Errors
    ///
    /// What the driver answers.
    pub fn zero(&self, region: &Region) -> Result<(), CudaError> {
        self.is_here("zero", "region", region)?;
        if region.len_bytes() == 0 { Ok(()) } else { self.context.zero(region.ptr(), region.len_bytes()) }
    }

    /// Queues a copy of all of `from` into `to`.
    ///
    /// # Errors
    ///
    /// [`CudaError::OperandBytes`] if the lengths differ, or what the driver answers.
    pub fn copy(&self, to: &Region, from: &Region) -> Result<(), CudaError> {
        self.same_len("copy", "from", to.len_bytes(), from.len_bytes())?;
        self.is_here("copy", "to", to)?;
        self.is_here("copy", "from", from)?;
        if to.len_bytes() == 0 { Ok(()) } else { self.context.copy(to.ptr(), from.ptr(), to.len_bytes()) }
    }

    /// Waits until everything queued has run.
    ///
    /// # Errors
    ///
    /// [`CudaError::Capturing`], or what the driver answers, which may be an error of a kernel queued earlier.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        self.not_capturing("synchronize")?;
        self.context.synchronize()
    }

    /// Milliseconds the device takes for what `work` queues; waits for it.
    ///
    /// # Errors
    ///
    /// [`CudaError::Capturing`], what the driver answers, or what `work` returns.
    pub fn milliseconds<E: From<CudaError>>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<f32, E> {
        self.not_capturing("milliseconds")?;
        let (start, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
        start.record()?;
        work()?;
        end.record()?;
        end.wait()?;
        Ok(end.milliseconds_since(&start)?)
    }

    /// The kernel `entry` of `source`: compiled, or read from the cache, when first asked for.
    ///
    /// # Errors
    ///
    /// [`CudaError::Compile`] with the compiler's messages, [`CudaError::NoEntry`], or what the driver answers.
    pub fn function(&self, source: &'static Source, entry: &'static str) -> Result<Function, CudaError> {
        self.function_with(source, &[], entry)
    }

    /// The kernel `entry` of `source`, compiled with these constants: [`Device::function`] for a source whose sizes the
    /// compiler has to know.
    ///
    /// # Errors
    ///
    /// As [`Device::function`].
    pub fn function_with(
        &self,
        source: &'static Source,
        constants: &[Constant],
        entry: &'static str,
    ) -> Result<Function, CudaError> {
        let id = std::ptr::from_ref(source) as SourceId;
        let kernels = &mut *lock(&self.kernels);
        let loaded = kernels.functions.entry((id, entry)).or_default();
        if let Some((_, function)) = loaded.iter().find(|(with, _)| with == constants) {
            return Ok(function.clone());
        }
        let module = match kernels.modules.entry((id, constants.to_vec())) {
            hash_map::Entry::Occupied(loaded) => loaded.into_mut(),
            hash_map::Entry::Vacant(place) => place.insert(self.load(source, constants)?),
        };
        let function =
            module.function(entry)?.ok_or(CudaError::NoEntry { source_name: source.name, entry })?;
        loaded.push((constants.to_vec(), function.clone()));
        Ok(function)
    }

    fn load(&self, source: &'static Source, constants: &[Constant]) -> Result<Module, CudaError> {
        let arch = self.properties.arch();
        if let Some(cubin) = source.cached(constants, &arch)? {
            // An entry of the cache that does not load is compiled anew.
            if let Ok(module) = Module::new(&self.context, &cubin) {
                return Ok(module);
            }
        }
        Module::new(&self.context, &source.compile_to_cache(constants, &arch)?)
    }

    /// Bytes of live buffers.
    #[must_use]
    pub fn memory_in_use(&self) -> usize {
        self.memory.counts().0
    }

    /// The most bytes of live buffers since the start or the last [`Device::reset_peak`].
    #[must_use]
    pub fn peak(&self) -> usize {
        self.memory.counts().1
    }

    /// Bytes taken from the driver: live buffers and free blocks.
    #[must_use]
    pub fn memory_reserved(&self) -> usize {
        self.memory.counts().2
    }

    /// Starts [`Device::peak`] anew from the memory in use now.
    pub fn reset_peak(&self) {
        self.memory.reset_peak();
    }

    /// Starts a graph: work queued from here to [`Device::end_capture`] is recorded and does not run. Do the same work once
    /// beforehand: libraries load kernels at their first call, which cuBLASLt may fail to do in a capture.
    ///
    /// # Errors
    ///
    /// [`CudaError::Capturing`] if a graph is being captured already, or what the driver answers.
    pub fn begin_capture(&self) -> Result<(), CudaError> {
        self.not_capturing("begin_capture")?;
        graph::begin(&self.context)?;
        self.memory.begin_pool();
        Ok(())
    }

    /// Ends the graph. It has not run yet: [`Graph::launch`] runs it.
    ///
    /// # Errors
    ///
    /// [`CudaError::NotCapturing`], or what the driver answers, e.g. when a call inside broke the capture.
    pub fn end_capture(&self) -> Result<Graph, CudaError> {
        let not = CudaError::NotCapturing { ordinal: self.ordinal() };
        let pool = self.memory.end_pool().ok_or(not)?;
        graph::end(&self.context, &self.memory, pool)
    }

    /// Whether a graph is being captured.
    #[must_use]
    pub fn is_capturing(&self) -> bool {
        self.memory.is_capturing()
    }

    fn not_capturing(&self, call: &'static str) -> Result<(), CudaError> {
        if self.is_capturing() { Err(CudaError::Capturing { call }) } else { Ok(()) }
    }

    fn same_len(
        &self,
        call: &'static str,
        operand: &'static str,
        expected: usize,
        got: usize,
    ) -> Result<(), CudaError> {
        if expected == got { Ok(()) } else { Err(CudaError::OperandBytes { call, operand, expected, got }) }
    }

    /// Checks that an operand is on this device.
    pub(crate) fn is_here(
        &self,
        call: &'static str,
        operand: &'static str,
        region: &Region,
    ) -> Result<(), CudaError> {
        let (expected, got) = (self.ordinal(), region.buffer().ordinal());
        if expected == got { Ok(()) } else { Err(CudaError::WrongDevice { call, operand, expected, got }) }
    }

    /// Checks that an operand is on this device and holds at least `expected` bytes.
    pub(crate) fn holds(
        &self,
        call: &'static str,
        operand: &'static str,
        region: &Region,
        expected: usize,
    ) -> Result<(), CudaError> {
        self.is_here(call, operand, region)?;
        let got = region.len_bytes();
        if got >= expected { Ok(()) } else { Err(CudaError::OperandBytes { call, operand, expected, got }) }
    }
}
