//! The driver's calls, each with its status checked, and owners of what they create.

use crate::CudaError;
use cudarc::driver::sys;
use std::cell::Cell;
use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Turns a status into an error that names the call.
pub(super) fn check(call: &'static str, status: sys::CUresult) -> Result<(), CudaError> {
    if status == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let text_of = |ask: unsafe fn(sys::CUresult, *mut *const std::ffi::c_char) -> sys::CUresult| {
        let mut text = ptr::null();
        // SAFETY: both functions passed below write a pointer to a static string, or leave it null.
        unsafe { ask(status, &raw mut text) };
        if text.is_null() {
            return String::from("unknown");
        }
        // SAFETY: the driver's strings end in a zero byte and live as long as the driver.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    };
    Err(CudaError::Driver {
        call,
        code: status as u32,
        name: text_of(sys::cuGetErrorName),
        text: text_of(sys::cuGetErrorString),
    })
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Properties {
    /// Name by the maker, e.g. `NVIDIA H200`.
    pub name: String,
    /// Streaming multiprocessors.
    pub sm_count: usize,
    /// Compute capability, major and minor.
    pub capability: (u32, u32),
    /// Memory of the device in bytes.
    pub total_bytes: usize,
    /// Shared memory that one block may ask for, in bytes.
    pub shared_bytes: usize,
    /// Second-level cache in bytes.
    pub l2_bytes: usize,
}

impl Properties {
    /// Whether it is a Hopper GPU, which has what the `sm_90a` kernels use.
    #[must_use]
    pub fn is_hopper(&self) -> bool {
        self.capability == (9, 0)
    }

    /// Target of the compiler: `sm_90a` on capability 9.0. From 9.0 on the suffix admits the instructions of exactly
    /// this chip, which is right for code compiled where it runs.
    #[must_use]
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        format!("sm_{major}{minor}{}", if major >= 9 { "a" } else { "" })
    }
}

/// A device's primary context and its one stream.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) ordinal: usize,
    device: sys::CUdevice,
    raw: sys::CUcontext,
    /// Tells this context from every other there was: the driver may hand out the address of a released one again.
    id: u64,
    pub(super) stream: sys::CUstream,
}

// SAFETY: the driver allows every thread to use a context and a stream; `bind` makes it current first.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

thread_local! {
    /// `Context::id` that this thread made current last: saves a call to the driver a launch.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

impl Context {
    /// Loads the driver, retains the device's primary context, makes the stream.
    pub(super) fn new(ordinal: usize) -> Result<(Arc<Self>, Properties), CudaError> {
        if !super::library::driver_present() {
            let detail = String::from("no libcuda.so.1 on the library path");
            return Err(CudaError::NoDriver { ordinal, detail });
        }
        // SAFETY: the driver's first call, with the only flags there are.
        let status = unsafe { sys::cuInit(0) };
        let mut count = 0;
        if status != sys::CUresult::CUDA_ERROR_NO_DEVICE {
            let described = |error: CudaError| CudaError::NoDriver { ordinal, detail: error.to_string() };
            check("cuInit", status).map_err(described)?;
            // SAFETY: writes one number.
            check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&raw mut count) })?;
        }
        if ordinal >= count as usize {
            return Err(CudaError::NoSuchDevice { ordinal, count: count as usize });
        }
        let mut device = 0;
        // SAFETY: writes one handle; the ordinal is below the count.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&raw mut device, ordinal as c_int) })?;
        let properties = properties(device)?;
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle; released in `drop`.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut raw, device) })?;
        static LAST_ID: AtomicU64 = AtomicU64::new(0);
        let id = LAST_ID.fetch_add(1, Ordering::Relaxed) + 1;
        let mut context = Self { ordinal, device, raw, id, stream: ptr::null_mut() };
        context.bind()?;
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes one handle; the context is current; destroyed in `drop`.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&raw mut context.stream, flags) })?;
        Ok((Arc::new(context), properties))
    }

    /// Makes the context current on this thread.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        if CURRENT.get() != self.id {
            // SAFETY: the context is retained as long as `self` lives.
            check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.raw) })?;
            CURRENT.set(self.id);
        }
        Ok(())
    }

    /// Waits until everything queued has run.
    pub(super) fn synchronize(&self) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Fresh device memory; `None` when the device has none left.
    pub(super) fn allocate(&self, bytes: usize) -> Result<Option<u64>, CudaError> {
        self.bind()?;
        let mut at = 0;
        // SAFETY: writes one address; the caller owns the memory and gives it to `release`.
        let status = unsafe { sys::cuMemAlloc_v2(&raw mut at, bytes) };
        if status == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Ok(None);
        }
        check("cuMemAlloc", status).map(|()| Some(at))
    }

    /// Gives memory of `allocate` back to the driver, after everything queued has run.
    pub(super) fn release(&self, at: u64) {
        if self.bind().is_ok() {
            // SAFETY: `at` is of `allocate` and given up by its owner. A status here repeats an earlier error.
            unsafe { sys::cuMemFree_v2(at) };
        }
    }

    /// Bytes free and bytes in all, by the driver.
    pub(super) fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&raw mut free, &raw mut total) })?;
        Ok((free, total))
    }

    /// Queues a copy to the device. The bytes at `from` must not change before it has run.
    pub(super) fn copy_in(&self, to: u64, from: *const u8, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller checked both ranges and keeps `from` as it is until the copy has run.
        let status = unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast::<c_void>(), bytes, self.stream) };
        check("cuMemcpyHtoDAsync", status)
    }

    /// Copies from the device and waits for it.
    pub(super) fn copy_out(&self, to: &mut [u8], from: u64) -> Result<(), CudaError> {
        self.bind()?;
        let at = to.as_mut_ptr().cast::<c_void>();
        // SAFETY: the caller checked that `from` holds as many bytes; `to` is borrowed until the wait below is over.
        let status = unsafe { sys::cuMemcpyDtoHAsync_v2(at, from, to.len(), self.stream) };
        check("cuMemcpyDtoHAsync", status)?;
        self.synchronize()
    }

    /// Queues a copy within the device.
    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller checked both ranges; memory is reused only by work queued later.
        let status = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) };
        check("cuMemcpyDtoDAsync", status)
    }

    /// Queues zeros.
    pub(super) fn zero(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        self.bind()?;
        // SAFETY: the caller checked the range.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, 0, bytes, self.stream) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Statuses are of no use here: an error that matters was reported by the call that caused it.
        if self.bind().is_ok() && !self.stream.is_null() {
            // SAFETY: made in `new`, and nothing else holds it.
            unsafe { sys::cuStreamDestroy_v2(self.stream) };
        }
        CURRENT.set(0);
        // SAFETY: retained in `new`.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

fn properties(device: sys::CUdevice) -> Result<Properties, CudaError> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |attribute: Attribute| -> Result<usize, CudaError> {
        let mut value = 0;
        // SAFETY: writes one number.
        let status = unsafe { sys::cuDeviceGetAttribute(&raw mut value, attribute, device) };
        check("cuDeviceGetAttribute", status).map(|()| value as usize)
    };
    let mut name = [0_u8; 256];
    // SAFETY: writes at most the bytes of `name`, a zero at the end.
    let status = unsafe { sys::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as c_int, device) };
    check("cuDeviceGetName", status)?;
    let mut total_bytes = 0;
    // SAFETY: writes one number.
    check("cuDeviceTotalMem", unsafe { sys::cuDeviceTotalMem_v2(&raw mut total_bytes, device) })?;
    Ok(Properties {
        name: CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned(),
        sm_count: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? as u32,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)? as u32,
        ),
        total_bytes,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
    })
}

/// A mark on the stream.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    raw: sys::CUevent,
}

// SAFETY: the driver allows every thread to use an event.
unsafe impl Send for Event {}

impl Event {
    pub(crate) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.bind()?;
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle; destroyed in `drop`.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&raw mut raw, 0) })?;
        Ok(Self { context: Arc::clone(context), raw })
    }

    /// Queues the mark.
    pub(crate) fn record(&self) -> Result<(), CudaError> {
        self.context.bind()?;
        // SAFETY: event and stream live as long as `self`.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.raw, self.context.stream) })
    }

    /// Waits until the stream has passed the mark; at once if it was never recorded.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        self.context.bind()?;
        // SAFETY: the event lives as long as `self`.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw) })
    }

    /// Milliseconds between two marks that the stream has passed.
    pub(crate) fn milliseconds_since(&self, start: &Event) -> Result<f32, CudaError> {
        let mut milliseconds = 0.0;
        // SAFETY: writes one number; both events live.
        let status = unsafe { sys::cuEventElapsedTime_v2(&raw mut milliseconds, start.raw, self.raw) };
        check("cuEventElapsedTime", status).map(|()| milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new`, and nothing else holds it.
            unsafe { sys::cuEventDestroy_v2(self.raw) };
        }
    }
}
