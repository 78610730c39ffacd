//! Kernels: a compiled module on the device, an entry of it, and its launch.

use super::driver::{Context, check};
use super::lock;
use super::memory::Region;
use super::tensor_map::TensorMap;
use crate::CudaError;
use cudarc::driver::sys;
use std::ffi::{CString, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Shared memory a block gets without asking, in bytes.
const FREE_SHARED_BYTES: u32 = 48 << 10;

/// Arguments a kernel may have.
const ARGS_MAX: usize = 48;

/// Machine code on the device; unloaded with the context.
#[derive(Debug)]
pub(super) struct Module {
    raw: sys::CUmodule,
    context: Arc<Context>,
}

// SAFETY: the driver allows every thread to use a module.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin.
    pub(super) fn new(context: &Arc<Context>, cubin: &[u8]) -> Result<Self, CudaError> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        // SAFETY: reads the image, whose header states its length; `compile` and the cache hand out whole images.
        let status = unsafe { sys::cuModuleLoadData(&raw mut raw, cubin.as_ptr().cast::<c_void>()) };
        check("cuModuleLoadData", status)?;
        Ok(Self { raw, context: Arc::clone(context) })
    }

    /// The kernel named `entry`; `None` if there is none.
    pub(super) fn function(&self, entry: &'static str) -> Result<Option<Function>, CudaError> {
        self.context.bind()?;
        let name = CString::new(entry).expect("a kernel's name holds no zero byte");
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle; the module lives as long as the context, which the function holds.
        let status = unsafe { sys::cuModuleGetFunction(&raw mut raw, self.raw, name.as_ptr()) };
        if status == sys::CUresult::CUDA_ERROR_NOT_FOUND {
            return Ok(None);
        }
        check("cuModuleGetFunction", status)?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        let mut fixed_bytes = 0;
        // SAFETY: writes one number; the function is loaded.
        let status = unsafe { sys::cuFuncGetAttribute(&raw mut fixed_bytes, attribute, raw) };
        check("cuFuncGetAttribute", status)?;
        // What the kernel declares with a size counts toward what it gets without asking.
        let shared_bytes = AtomicU32::new(FREE_SHARED_BYTES.saturating_sub(fixed_bytes.cast_unsigned()));
        let context = Arc::clone(&self.context);
        let inner = Inner { raw, context, shared_bytes, clusters: Mutex::default() };
        Ok(Some(Function(Arc::new(inner))))
    }
}

#[derive(Debug)]
struct Inner {
    raw: sys::CUfunction,
    context: Arc<Context>,
    /// Dynamic shared memory the function may ask for now.
    shared_bytes: AtomicU32,
    /// What was asked of [`Function::clusters`], and the answers.
    clusters: Mutex<Vec<([u32; 3], usize)>>,
}

impl Inner {
    fn set(&self, attribute: sys::CUfunction_attribute, value: u32) -> Result<(), CudaError> {
        // SAFETY: the function is loaded.
        let status = unsafe { sys::cuFuncSetAttribute(self.raw, attribute, value.cast_signed()) };
        check("cuFuncSetAttribute", status)
    }

    fn allow_shared(&self, bytes: u32) -> Result<(), CudaError> {
        if bytes > self.shared_bytes.load(Ordering::Relaxed) {
            self.set(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)?;
            self.shared_bytes.fetch_max(bytes, Ordering::Relaxed);
        }
        Ok(())
    }
}

// SAFETY: the driver allows every thread to launch a function.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// A kernel that can be launched. Clones are the same kernel.
#[derive(Debug, Clone)]
pub struct Function(Arc<Inner>);

/// One argument of a kernel, of the size its parameter has in the source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// A device address.
    Ptr(u64),
    /// `unsigned`.
    U32(u32),
    /// `int`.
    I32(i32),
    /// `unsigned long long`, `size_t`.
    U64(u64),
    /// `long long`.
    I64(i64),
    /// `float`.
    F32(f32),
    /// `const __grid_constant__` of 128 bytes.
    Map(TensorMap),
}

impl Arg {
    /// The argument's bytes, first in the word: the driver reads as many as the parameter has. A map is read where it is.
    fn word(&self) -> u64 {
        match *self {
            Arg::Map(_) => 0,
            Arg::Ptr(value) | Arg::U64(value) => value,
            Arg::I64(value) => value.cast_unsigned(),
            Arg::U32(value) => u64::from(value),
            Arg::I32(value) => u64::from(value.cast_unsigned()),
            Arg::F32(value) => u64::from(value.to_bits()),
        }
    }
}

impl From<&Region> for Arg {
    fn from(region: &Region) -> Self {
        Arg::Ptr(region.ptr())
    }
}

impl From<Option<&Region>> for Arg {
    /// A null pointer for `None`.
    fn from(region: Option<&Region>) -> Self {
        Arg::Ptr(region.map_or(0, Region::ptr))
    }
}

impl From<TensorMap> for Arg {
    fn from(map: TensorMap) -> Self {
        Arg::Map(map)
    }
}

impl From<u32> for Arg {
    fn from(value: u32) -> Self {
        Arg::U32(value)
    }
}

impl From<i32> for Arg {
    fn from(value: i32) -> Self {
        Arg::I32(value)
    }
}

impl From<u64> for Arg {
    fn from(value: u64) -> Self {
        Arg::U64(value)
    }
}

impl From<i64> for Arg {
    fn from(value: i64) -> Self {
        Arg::I64(value)
    }
}

impl From<f32> for Arg {
    fn from(value: f32) -> Self {
        Arg::F32(value)
    }
}

impl Function {
    /// Clusters of `size` blocks, each of `threads` threads and `shared_bytes` of dynamic shared memory, that the device
    /// runs at once: none where it has no room for one. `size` is what the kernel was compiled for; the device then takes
    /// clusters of more than the eight blocks that every Hopper GPU has room for.
    ///
    /// # Errors
    ///
    /// What the driver answers.
    pub fn clusters(&self, size: u32, threads: u32, shared_bytes: u32) -> Result<usize, CudaError> {
        let inner = &*self.0;
        let mut known = lock(&inner.clusters);
        let question = [size, threads, shared_bytes];
        if let Some(&(_, answer)) = known.iter().find(|(asked, _)| *asked == question) {
            return Ok(answer);
        }
        inner.context.bind()?;
        inner.allow_shared(shared_bytes)?;
        inner.set(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
        let config = sys::CUlaunchConfig {
            gridDimX: size,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: inner.context.stream,
            attrs: ptr::null_mut(),
            numAttrs: 0,
        };
        let mut clusters = 0;
        // SAFETY: writes one number and reads the config, which has no attributes: the cluster's size is in the kernel.
        let status =
            unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut clusters, inner.raw, &raw const config) };
        check("cuOccupancyMaxActiveClusters", status)?;
        let clusters = usize::try_from(clusters).unwrap_or(0);
        known.push((question, clusters));
        Ok(clusters)
    }

    /// Queues the kernel: `grid` blocks of `block` threads, x first, each with `shared_bytes` of dynamic shared memory.
    /// A grid without blocks does nothing.
    ///
    /// # Errors
    ///
    /// What the driver answers, e.g. to more shared memory or threads than a block may have. An error inside the
    /// kernel shows at a later call that waits.
    ///
    /// # Panics
    ///
    /// If there are more than 48 arguments.
    ///
    /// # Safety
    ///
    /// `args` are the kernel's parameters, in its order and of its types; every access the kernel then makes lies
    /// inside the regions passed, and these are alive at this call (queued work keeps using them rightly).
    pub unsafe fn launch(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        let inner = &*self.0;
        if grid.contains(&0) {
            return Ok(());
        }
        inner.context.bind()?;
        inner.allow_shared(shared_bytes)?;
        assert!(args.len() <= ARGS_MAX, "a kernel of {} arguments", args.len());
        let mut words = [0_u64; ARGS_MAX];
        for (word, arg) in words.iter_mut().zip(args) {
            *word = arg.word();
        }
        let mut pointers = words.each_mut().map(|word| ptr::from_mut(word).cast::<c_void>());
        for (pointer, arg) in pointers.iter_mut().zip(args) {
            if let Arg::Map(map) = arg {
                *pointer = ptr::from_ref(map).cast::<c_void>().cast_mut();
            }
        }
        let ([gx, gy, gz], [bx, by, bz]) = (grid, block);
        let (stream, params) = (inner.context.stream, pointers.as_mut_ptr());
        // SAFETY: the pointers name the arguments' words and maps, which live over the call, and the driver only reads
        // them; the rest is the caller's promise.
        let status = unsafe {
            sys::cuLaunchKernel(
                inner.raw,
                gx,
                gy,
                gz,
                bx,
                by,
                bz,
                shared_bytes,
                stream,
                params,
                ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", status)
    }
}

#[cfg(test)]
mod tests {
    use super::Arg;

    #[test]
    fn an_argument_is_first_in_its_word() {
        for (arg, bytes) in [
            (Arg::from(-2_i32), (-2_i32).to_le_bytes().to_vec()),
            (Arg::from(1.5_f32), 1.5_f32.to_le_bytes().to_vec()),
            (Arg::from(7_u32), 7_u32.to_le_bytes().to_vec()),
            (Arg::from(-3_i64), (-3_i64).to_le_bytes().to_vec()),
            (Arg::Ptr(0x7f00_1234_5600), 0x7f00_1234_5600_u64.to_le_bytes().to_vec()),
        ] {
            assert_eq!(&arg.word().to_ne_bytes()[..bytes.len()], &bytes[..], "{arg:?}");
        }
    }
}
