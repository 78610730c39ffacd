//! Sums over the GPUs of several processes, by NCCL.
//!
//! Five functions of a C interface that has been the same since NCCL 2.0, loaded from `libnccl.so.2` when they are first asked
//! for. The bindings of `cudarc` look for other file names and do not find the library of NVIDIA's Python package.

use super::{Device, Region};
use crate::CudaError;
use libloading::Library;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock};

/// Bytes of what the first process gives the others so that they find each other.
pub const ID_BYTES: usize = 128;

/// `ncclFloat32` of `ncclDataType_t`.
const FLOAT32: c_int = 7;

/// What becomes of the values at one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum.
    Sum,
    /// Their mean.
    Mean,
}

impl Reduction {
    /// `ncclRedOp_t`.
    fn op(self) -> c_int {
        match self {
            Self::Sum => 0,
            Self::Mean => 4,
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([c_char; ID_BYTES]);

type Comm = *mut c_void;

/// The functions, as long as the process lives.
struct Functions {
    get_unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    comm_init_rank: unsafe extern "C" fn(*mut Comm, c_int, UniqueId, c_int) -> c_int,
    all_reduce:
        unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, *mut c_void) -> c_int,
    comm_destroy: unsafe extern "C" fn(Comm) -> c_int,
    get_error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Functions {
    fn get() -> Result<&'static Self, CudaError> {
        static FOUND: OnceLock<Result<Functions, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| {
            let library = super::library::nccl()?;
            Self::of(library).map_err(|error| format!(", or not one of version 2: {error}"))
        });
        found.as_ref().map_err(|searched| CudaError::NoLibrary {
            library: "NCCL",
            file: super::library::NCCL_FILE.to_owned(),
            searched: searched.clone(),
        })
    }

    fn of(library: Library) -> Result<Self, libloading::Error> {
        let functions = Self {
            // SAFETY: the type that `nccl.h` of version 2 gives it; the library is never unloaded.
            get_unique_id: unsafe { *library.get(b"ncclGetUniqueId\0")? },
            // SAFETY: the type that `nccl.h` of version 2 gives it; the library is never unloaded.
            comm_init_rank: unsafe { *library.get(b"ncclCommInitRank\0")? },
            // SAFETY: the type that `nccl.h` of version 2 gives it; the library is never unloaded.
            all_reduce: unsafe { *library.get(b"ncclAllReduce\0")? },
            // SAFETY: the type that `nccl.h` of version 2 gives it; the library is never unloaded.
            comm_destroy: unsafe { *library.get(b"ncclCommDestroy\0")? },
            // SAFETY: the type that `nccl.h` of version 2 gives it; the library is never unloaded.
            get_error_string: unsafe { *library.get(b"ncclGetErrorString\0")? },
        };
        std::mem::forget(library);
        Ok(functions)
    }

    fn check(&self, call: &'static str, status: c_int) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: gives a static string for every number.
        let text = unsafe { (self.get_error_string)(status) };
        // SAFETY: as said, a string that ends in a zero byte and lives as long as the library.
        let text = unsafe { CStr::from_ptr(text) };
        Err(CudaError::Nccl { call, status: text.to_string_lossy().into_owned() })
    }
}

/// One process's part in a group of processes, each with a GPU of its own.
pub struct Communicator {
    functions: &'static Functions,
    /// NCCL wants one call at a time for a communicator.
    comm: Mutex<Comm>,
    device: Arc<Device>,
    size: usize,
}

// SAFETY: NCCL lets any thread use a communicator, one at a time: the lock sees to that.
unsafe impl Send for Communicator {}
// SAFETY: as above.
unsafe impl Sync for Communicator {}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Communicator of {} GPUs on cuda:{}", self.size, self.device.ordinal())
    }
}

impl Communicator {
    /// What the first process of a new group makes and gives the others.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoLibrary`] without NCCL, [`CudaError::Nccl`] when it refuses.
    pub fn id() -> Result<[u8; ID_BYTES], CudaError> {
        let functions = Functions::get()?;
        let mut id = UniqueId([0; ID_BYTES]);
        // SAFETY: writes one id.
        functions.check("ncclGetUniqueId", unsafe { (functions.get_unique_id)(&raw mut id) })?;
        Ok(id.0.map(|byte| byte as u8))
    }

    /// Joins the group of `id` as its member `rank` of `size`; waits for the others.
    ///
    /// # Errors
    ///
    /// As [`Communicator::id`].
    pub fn join(
        device: &Arc<Device>,
        rank: usize,
        size: usize,
        id: &[u8; ID_BYTES],
    ) -> Result<Self, CudaError> {
        let functions = Functions::get()?;
        device.context.bind()?;
        let (id, mut comm) = (UniqueId(id.map(|byte| byte as c_char)), ptr::null_mut());
        // SAFETY: writes one communicator for the context that is current; destroyed in `drop`.
        let status = unsafe { (functions.comm_init_rank)(&raw mut comm, size as c_int, id, rank as c_int) };
        functions.check("ncclCommInitRank", status)?;
        Ok(Self { functions, comm: Mutex::new(comm), device: Arc::clone(device), size })
    }

    /// Queues that each f32 of `values` becomes the sum or mean of those at its place in all processes, the same to the bit
    /// in each. All call it in the same order, with as many values.
    ///
    /// # Errors
    ///
    /// [`CudaError::Nccl`] when NCCL refuses.
    pub fn all_reduce(&self, values: &Region, reduction: Reduction) -> Result<(), CudaError> {
        self.device.is_here("all_reduce", "values", values)?;
        self.device.context.bind()?;
        let (at, count) = (values.ptr(), values.len_bytes() / 4);
        let stream = self.device.context.stream.cast();
        let comm = super::lock(&self.comm);
        // SAFETY: in place over `count` f32 that `values` holds on this device, in the order of its one stream: memory is
        // given to other work only later on that stream.
        let status = unsafe {
            (self.functions.all_reduce)(
                at as *const c_void,
                at as *mut c_void,
                count,
                FLOAT32,
                reduction.op(),
                *comm,
                stream,
            )
        };
        self.functions.check("ncclAllReduce", status)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let comm = self.comm.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.device.context.bind().is_ok() {
            // SAFETY: made in `join`, and nothing else holds it.
            unsafe { (self.functions.comm_destroy)(*comm) };
        }
    }
}
