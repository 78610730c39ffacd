//! Tensors: shape, element type, and storage on a device. Always contiguous, row-major.

use crate::{Device, EngineError, Result, memory};
use lacewing_cuda::Region;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// bfloat16: f32's exponent, 8 bits of precision. On GPUs only.
    Bf16,
    /// Unsigned 32-bit integer: labels and indices.
    U32,
}

impl DType {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        if self == Self::Bf16 { 2 } else { 4 }
    }
}

/// Host storage. `u32` is kept as the bits of `f32` so that one pool serves both.
struct HostBuffer {
    values: RwLock<Vec<f32>>,
    /// The number of the latest write, of those to all buffers: no two contents ever have the same.
    written: AtomicU64,
}

impl HostBuffer {
    fn new(values: Vec<f32>) -> Self {
        Self { values: RwLock::new(values), written: AtomicU64::new(next_write()) }
    }

    fn try_write(&self) -> Option<RwLockWriteGuard<'_, Vec<f32>>> {
        let guard = self.values.try_write().ok()?;
        // Nobody reads while the guard lives, so this counts for what will be written.
        self.written.store(next_write(), Ordering::Release);
        Some(guard)
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        let values = self.values.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        memory::give_back(std::mem::take(values));
    }
}

fn next_write() -> u64 {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    WRITES.fetch_add(1, Ordering::Relaxed)
}

/// Which content a tensor has: where two are equal, so are the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    written: u64,
    offset: usize,
}

#[derive(Clone)]
enum Storage {
    Cpu(Arc<HostBuffer>),
    /// With the number of the latest write, as a [`HostBuffer`] has it, where [`Tensor::numbered`] asked for it.
    Cuda(Arc<lacewing_cuda::Device>, Region, Option<Arc<AtomicU64>>),
}

/// A contiguous, row-major array on a device. Cloning shares the storage.
///
/// Writing goes through [`Tensor::write`] on the host and through kernels on a GPU; both are for ops that own what
/// they write: outputs they have just allocated and gradient sinks.
#[derive(Clone)]
pub struct Tensor {
    shape: Vec<usize>,
    dtype: DType,
    storage: Storage,
    /// First element within the storage.
    offset: usize,
}

impl Tensor {
    /// A tensor whose contents are undefined: for outputs that an op writes whole.
    ///
    /// # Errors
    ///
    /// [`EngineError::Cuda`] when the device is out of memory; [`EngineError::DType`] for bf16 on the host.
    pub fn empty(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let len: usize = shape.iter().product();
        let storage = match device {
            Device::Cpu if dtype == DType::Bf16 => {
                return Err(EngineError::DType {
                    op: "tensor",
                    operand: "dtype on cpu",
                    expected: DType::F32,
                    got: dtype,
                });
            }
            Device::Cpu => Storage::Cpu(Arc::new(HostBuffer::new(memory::take(len)))),
            Device::Cuda(gpu) => {
                let bytes = len * dtype.bytes();
                Storage::Cuda(gpu.clone(), gpu.region(bytes)?, None)
            }
        };
        Ok(Self { shape: shape.to_vec(), dtype, storage, offset: 0 })
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    ///
    /// As [`Tensor::empty`].
    pub fn zeros(device: &Device, dtype: DType, shape: &[usize]) -> Result<Self> {
        let tensor = Self::empty(device, dtype, shape)?;
        tensor.fill_zero()?;
        Ok(tensor)
    }

    /// An f32 tensor with the given values, row-major.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when `values` does not fill `shape`, and as [`Tensor::empty`].
    pub fn from_f32(device: &Device, values: &[f32], shape: &[usize]) -> Result<Self> {
        Self::from_bits(device, DType::F32, bytemuck::cast_slice(values), shape)
    }

    /// A u32 tensor with the given values, row-major.
    ///
    /// # Errors
    ///
    /// As [`Tensor::from_f32`].
    pub fn from_u32(device: &Device, values: &[u32], shape: &[usize]) -> Result<Self> {
        Self::from_bits(device, DType::U32, bytemuck::cast_slice(values), shape)
    }

    fn from_bits(device: &Device, dtype: DType, bytes: &[u8], shape: &[usize]) -> Result<Self> {
        let len: usize = shape.iter().product();
        if bytes.len() != len * 4 {
            let expected = format!("a shape of {} elements", bytes.len() / 4);
            return Err(EngineError::Shape { op: "tensor", operand: "shape", expected, got: shape.to_vec() });
        }
        let tensor = Self::empty(device, dtype, shape)?;
        match &tensor.storage {
            Storage::Cpu(buffer) => {
                let mut to = buffer.try_write().expect("not shared yet");
                bytemuck::cast_slice_mut(&mut to[..len]).copy_from_slice(bytes);
            }
            Storage::Cuda(gpu, region, _) => gpu.upload(region, bytes)?,
        }
        Ok(tensor)
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last dimension; 1 for a scalar.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len().saturating_sub(1)].iter().product()
    }

    /// Where it lives.
    pub fn device(&self) -> Device {
        match &self.storage {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(gpu, ..) => Device::Cuda(gpu.clone()),
        }
    }

    /// The same elements under another shape. Free.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when the number of elements differs.
    pub fn reshape(&self, shape: &[usize]) -> Result<Self> {
        if shape.iter().product::<usize>() != self.len() {
            let expected = format!("{} elements, as {:?} has", self.len(), self.shape);
            return Err(EngineError::Shape {
                op: "reshape",
                operand: "shape",
                expected,
                got: shape.to_vec(),
            });
        }
        Ok(Self { shape: shape.to_vec(), ..self.clone() })
    }

    /// `len` elements from element `start`, as a vector that shares the storage.
    ///
    /// # Panics
    ///
    /// When the range leaves the tensor.
    pub(crate) fn slice_flat(&self, start: usize, shape: &[usize]) -> Self {
        let len: usize = shape.iter().product();
        assert!(start + len <= self.len(), "slice {start}..{} of {} elements", start + len, self.len());
        Self { shape: shape.to_vec(), offset: self.offset + start, ..self.clone() }
    }

    /// Whether no other tensor shares the storage, so that it may be written in place.
    pub(crate) fn is_unique(&self) -> bool {
        match &self.storage {
            Storage::Cpu(buffer) => Arc::strong_count(buffer) == 1,
            Storage::Cuda(_, region, _) => region.is_unique(),
        }
    }

    /// Writes zeros everywhere.
    pub(crate) fn fill_zero(&self) -> Result<()> {
        match &self.storage {
            Storage::Cpu(_) => self.write().fill(0.0),
            Storage::Cuda(gpu, ..) => gpu.zero(&self.region())?,
        }
        self.wrote();
        Ok(())
    }

    /// Copies `from` over this tensor; both have as many elements of one type, on one device.
    pub(crate) fn copy_from(&self, from: &Self) -> Result<()> {
        match &self.storage {
            Storage::Cpu(_) => self.write().copy_from_slice(&from.read()),
            Storage::Cuda(gpu, ..) => gpu.copy(&self.region(), &from.region())?,
        }
        self.wrote();
        Ok(())
    }

    /// Overwrites the tensor with the elements of `from`.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`], [`EngineError::DType`] or [`EngineError::Device`] when they differ in it.
    pub fn set_from(&self, from: &Self) -> Result<()> {
        from.expect_shape("set", "from", &self.shape)?;
        from.expect_dtype("set", "from", self.dtype)?;
        from.expect_device("set", "from", self)?;
        self.copy_from(from)
    }

    /// The same elements in storage of their own.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        let copy = self.like(&self.shape)?;
        copy.copy_from(self)?;
        Ok(copy)
    }

    /// Overwrites the tensor with host values.
    ///
    /// # Errors
    ///
    /// [`EngineError::Shape`] when the lengths differ, [`EngineError::DType`] unless f32.
    pub fn set_f32(&self, values: &[f32]) -> Result<()> {
        self.expect_dtype("set", "tensor", DType::F32)?;
        if values.len() != self.len() {
            let expected = format!("{} elements", values.len());
            return Err(EngineError::Shape {
                op: "set",
                operand: "tensor",
                expected,
                got: self.shape.clone(),
            });
        }
        match &self.storage {
            Storage::Cpu(_) => self.write().copy_from_slice(values),
            Storage::Cuda(gpu, ..) => gpu.upload(&self.region(), bytemuck::cast_slice(values))?,
        }
        self.wrote();
        Ok(())
    }

    /// The elements as f32 on the host; waits for the device.
    ///
    /// # Errors
    ///
    /// [`EngineError::DType`] for integers; what the device reports.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match (&self.storage, self.dtype) {
            (_, DType::U32) => Err(EngineError::DType {
                op: "to_f32",
                operand: "tensor",
                expected: DType::F32,
                got: self.dtype,
            }),
            (Storage::Cpu(_), _) => Ok(self.read().to_vec()),
            (Storage::Cuda(gpu, ..), DType::F32) => {
                let mut host = vec![0f32; self.len()];
                gpu.download(&self.region(), bytemuck::cast_slice_mut(&mut host))?;
                Ok(host)
            }
            (Storage::Cuda(gpu, ..), DType::Bf16) => {
                let mut host = vec![half::bf16::ZERO; self.len()];
                gpu.download(&self.region(), bytemuck::cast_slice_mut(&mut host))?;
                Ok(host.iter().map(|v| v.to_f32()).collect())
            }
        }
    }

    /// The elements as u32 on the host; waits for the device.
    ///
    /// # Errors
    ///
    /// [`EngineError::DType`] for floats; what the device reports.
    pub fn to_u32(&self) -> Result<Vec<u32>> {
        self.expect_dtype("to_u32", "tensor", DType::U32)?;
        match &self.storage {
            Storage::Cpu(_) => Ok(self.read_u32().to_vec()),
            Storage::Cuda(gpu, ..) => {
                let mut host = vec![0u32; self.len()];
                gpu.download(&self.region(), bytemuck::cast_slice_mut(&mut host))?;
                Ok(host)
            }
        }
    }

    /// Reads a host tensor of f32.
    ///
    /// # Panics
    ///
    /// When it is on a GPU, not f32, or being written.
    pub fn read(&self) -> F32Read<'_> {
        assert_eq!(self.dtype, DType::F32, "host reads of floats are of f32");
        F32Read {
            guard: self.host().values.try_read().expect("not being written"),
            at: self.offset,
            len: self.len(),
        }
    }

    /// Writes a host tensor of f32.
    ///
    /// # Panics
    ///
    /// When it is on a GPU, not f32, or read or written by someone else.
    pub fn write(&self) -> F32Write<'_> {
        assert_eq!(self.dtype, DType::F32, "host writes of floats are of f32");
        F32Write { guard: self.host().try_write().expect("not shared"), at: self.offset, len: self.len() }
    }

    /// Writes two host tensors of f32 at once, also where they are disjoint parts of one flat array, as the
    /// gradients of two parameters are.
    ///
    /// # Panics
    ///
    /// As [`Tensor::write`], and when the two overlap.
    pub(crate) fn write_two(
        a: Option<&Self>,
        b: Option<&Self>,
        f: impl FnOnce(Option<&mut [f32]>, Option<&mut [f32]>),
    ) {
        match (a, b) {
            (Some(a), Some(b)) if std::ptr::eq(a.host(), b.host()) => {
                let mut whole = a.host().try_write().expect("not shared");
                let range = |t: &Self| t.offset..t.offset + t.len();
                let [a, b] =
                    whole.get_disjoint_mut([range(a), range(b)]).expect("two parameters do not overlap");
                f(Some(a), Some(b));
            }
            _ => f(a.map(Self::write).as_deref_mut(), b.map(Self::write).as_deref_mut()),
        }
    }

    /// Reads a host tensor of u32.
    pub(crate) fn read_u32(&self) -> U32Read<'_> {
        assert_eq!(self.dtype, DType::U32, "a tensor of integers");
        U32Read(F32Read {
            guard: self.host().values.try_read().expect("not being written"),
            at: self.offset,
            len: self.len(),
        })
    }

    /// Writes a host tensor of u32.
    pub(crate) fn write_u32(&self) -> U32Write<'_> {
        assert_eq!(self.dtype, DType::U32, "a tensor of integers");
        U32Write(F32Write {
            guard: self.host().try_write().expect("not shared"),
            at: self.offset,
            len: self.len(),
        })
    }

    /// Which content it has; `None` on a GPU unless its writes are [numbered](Self::numbered). To be asked for while it
    /// is being read, so that it fits what is read.
    pub(crate) fn version(&self) -> Option<Version> {
        let written = match &self.storage {
            Storage::Cpu(buffer) => &buffer.written,
            Storage::Cuda(_, _, written) => written.as_deref()?,
        };
        Some(Version { written: written.load(Ordering::Acquire), offset: self.offset })
    }

    /// The same tensor, its writes numbered on a GPU too: whoever lets a kernel write to it, or to what shares its
    /// storage from now on, says so by `Tensor::wrote`.
    pub fn numbered(self) -> Self {
        let storage = match self.storage {
            Storage::Cuda(gpu, region, _) => {
                Storage::Cuda(gpu, region, Some(Arc::new(AtomicU64::new(next_write()))))
            }
            cpu @ Storage::Cpu(_) => cpu,
        };
        Self { storage, ..self }
    }

    /// Says that a kernel was queued that writes to it. On the host [`Tensor::write`] does.
    pub(crate) fn wrote(&self) {
        if let Storage::Cuda(_, _, Some(written)) = &self.storage {
            written.store(next_write(), Ordering::Release);
        }
    }

    fn host(&self) -> &HostBuffer {
        match &self.storage {
            Storage::Cpu(buffer) => buffer,
            Storage::Cuda(..) => panic!("a tensor on a GPU was read as host memory"),
        }
    }

    /// The device memory of a GPU tensor.
    ///
    /// # Panics
    ///
    /// When it is on the host.
    pub(crate) fn region(&self) -> Region {
        match &self.storage {
            Storage::Cuda(_, region, _) => {
                region.slice(self.offset * self.dtype.bytes(), self.len() * self.dtype.bytes())
            }
            Storage::Cpu(_) => panic!("a host tensor was used as device memory"),
        }
    }

    /// The GPU it lives on, if any: what an op dispatches on.
    pub(crate) fn gpu(&self) -> Option<&Arc<lacewing_cuda::Device>> {
        match &self.storage {
            Storage::Cpu(_) => None,
            Storage::Cuda(gpu, ..) => Some(gpu),
        }
    }

    /// Checks the element type.
    pub(crate) fn expect_dtype(
        &self,
        op: &'static str,
        operand: &'static str,
        expected: DType,
    ) -> Result<()> {
        if self.dtype == expected {
            return Ok(());
        }
        Err(EngineError::DType { op, operand, expected, got: self.dtype })
    }

    /// Checks the shape.
    pub(crate) fn expect_shape(
        &self,
        op: &'static str,
        operand: &'static str,
        expected: &[usize],
    ) -> Result<()> {
        if self.shape == expected {
            return Ok(());
        }
        Err(EngineError::Shape { op, operand, expected: format!("{expected:?}"), got: self.shape.clone() })
    }

    /// Checks that this operand lives where `like` does.
    pub(crate) fn expect_device(&self, op: &'static str, operand: &'static str, like: &Self) -> Result<()> {
        self.expect_on(op, operand, &like.device())
    }

    /// Checks that this operand lives on `expected`.
    pub(crate) fn expect_on(&self, op: &'static str, operand: &'static str, expected: &Device) -> Result<()> {
        let got = self.device();
        if expected.same(&got) {
            return Ok(());
        }
        Err(EngineError::Device { op, operand, expected: expected.to_string(), got: got.to_string() })
    }

    /// A tensor like this one with another shape, contents undefined.
    pub(crate) fn like(&self, shape: &[usize]) -> Result<Self> {
        Self::empty(&self.device(), self.dtype, shape)
    }

    /// A tensor on this one's device, contents undefined.
    pub(crate) fn beside(&self, dtype: DType, shape: &[usize]) -> Result<Self> {
        Self::empty(&self.device(), dtype, shape)
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?} {:?} on {})", self.dtype, self.shape, self.device())
    }
}

/// A host tensor's elements, borrowed.
pub struct F32Read<'a> {
    guard: RwLockReadGuard<'a, Vec<f32>>,
    at: usize,
    len: usize,
}

impl Deref for F32Read<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.guard[self.at..self.at + self.len]
    }
}

/// A host tensor's elements, borrowed for writing.
pub struct F32Write<'a> {
    guard: RwLockWriteGuard<'a, Vec<f32>>,
    at: usize,
    len: usize,
}

impl Deref for F32Write<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.guard[self.at..self.at + self.len]
    }
}

impl DerefMut for F32Write<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.guard[self.at..self.at + self.len]
    }
}

/// A host tensor's integers, borrowed.
pub(crate) struct U32Read<'a>(F32Read<'a>);

impl Deref for U32Read<'_> {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        bytemuck::cast_slice(&self.0)
    }
}

/// A host tensor's integers, borrowed for writing.
pub(crate) struct U32Write<'a>(F32Write<'a>);

impl Deref for U32Write<'_> {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        bytemuck::cast_slice(&self.0)
    }
}

impl DerefMut for U32Write<'_> {
    fn deref_mut(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}
