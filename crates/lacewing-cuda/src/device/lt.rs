//! cuBLASLt: descriptors with owners, candidates, and the call itself. Matrices here are column-major, as there.

use super::driver::Context;
use super::memory::Buffer;
use crate::{CudaError, Type};
use cudarc::cublaslt::sys;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

/// What cuBLASLt may use beside the operands: NVIDIA's advice for Hopper.
pub(crate) const WORKSPACE_BYTES: usize = 32 << 20;

fn check(call: &'static str, status: sys::cublasStatus_t) -> Result<(), CudaError> {
    if status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Lt { call, status: format!("{status:?}") })
}

fn data_type(of: Type) -> sys::cudaDataType {
    match of {
        Type::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Type::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        Type::F16 => sys::cudaDataType_t::CUDA_R_16F,
    }
}

/// The library on one device, with its workspace.
#[derive(Debug)]
pub(crate) struct Lt {
    handle: sys::cublasLtHandle_t,
    workspace: Buffer,
    context: Arc<Context>,
    /// Version number of the library.
    pub(crate) version: usize,
}

// SAFETY: a handle may be used by every thread; all its work goes to one stream.
unsafe impl Send for Lt {}
// SAFETY: as above.
unsafe impl Sync for Lt {}

impl Lt {
    pub(super) fn new(context: &Arc<Context>, workspace: Buffer) -> Result<Self, CudaError> {
        super::library::cublaslt()?;
        context.bind()?;
        let mut handle = ptr::null_mut();
        // SAFETY: writes one handle; destroyed in `drop`.
        check("cublasLtCreate", unsafe { sys::cublasLtCreate(&raw mut handle) })?;
        // SAFETY: only asks.
        let version = unsafe { sys::cublasLtGetVersion() };
        Ok(Self { handle, workspace, context: Arc::clone(context), version })
    }
}

impl Drop for Lt {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `new`, and nothing else holds it.
            unsafe { sys::cublasLtDestroy(self.handle) };
        }
    }
}

/// A column-major matrix, or a batch of them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix {
    pub(crate) of: Type,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Elements from a column to the next.
    pub(crate) ld: usize,
    /// Elements from a matrix of the batch to the next.
    pub(crate) stride: usize,
    /// Bytes that its address is a multiple of.
    pub(crate) alignment_bytes: u32,
}

/// What the library does to the product before it stores it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Fused {
    Nothing,
    /// Adds a vector to every column.
    Bias,
    /// The same, then GELU by tanh.
    BiasGeluTanh,
    /// Also writes the sums of op(first) along k, one a row.
    SumFirst,
    /// Also writes the sums of op(second) along k, one a column.
    SumSecond,
}

/// out = alpha op(first) op(second) + beta out, column-major.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Product {
    pub(crate) first: Matrix,
    pub(crate) second: Matrix,
    pub(crate) out: Matrix,
    pub(crate) transpose_first: bool,
    pub(crate) transpose_second: bool,
    pub(crate) batch: usize,
    pub(crate) tf32: bool,
    pub(crate) fused: Fused,
}

/// Addresses of one call.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) first: u64,
    pub(crate) second: u64,
    pub(crate) out: u64,
    /// Read or written by what is fused; 0 if nothing is.
    pub(crate) bias: u64,
}

/// A way to compute one product, meaningful to this version of the library on this chip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Algorithm(pub(crate) [u64; 8]);

#[derive(Debug)]
struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new(tf32: bool) -> Result<Self, CudaError> {
        use sys::cublasComputeType_t as Compute;
        let compute = if tf32 { Compute::CUBLAS_COMPUTE_32F_FAST_TF32 } else { Compute::CUBLAS_COMPUTE_32F };
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle; destroyed in `drop`.
        let status = unsafe { sys::cublasLtMatmulDescCreate(&raw mut raw, compute, data_type(Type::F32)) };
        check("cublasLtMatmulDescCreate", status).map(|()| Self(raw))
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulDescAttributes_t,
        value: T,
    ) -> Result<(), CudaError> {
        let at = (&raw const value).cast::<c_void>();
        // SAFETY: reads the bytes of `value`; the callers below give each attribute its type.
        let status = unsafe { sys::cublasLtMatmulDescSetAttribute(self.0, attribute, at, size_of::<T>()) };
        check("cublasLtMatmulDescSetAttribute", status)
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        unsafe { sys::cublasLtMatmulDescDestroy(self.0) };
    }
}

#[derive(Debug)]
struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    fn new(matrix: &Matrix, batch: usize) -> Result<Self, CudaError> {
        use sys::cublasLtMatrixLayoutAttribute_t as Attribute;
        let mut raw = ptr::null_mut();
        let (rows, cols, ld) = (matrix.rows as u64, matrix.cols as u64, matrix.ld as i64);
        // SAFETY: writes one handle; destroyed in `drop`.
        let status =
            unsafe { sys::cublasLtMatrixLayoutCreate(&raw mut raw, data_type(matrix.of), rows, cols, ld) };
        check("cublasLtMatrixLayoutCreate", status)?;
        let layout = Self(raw);
        layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, batch as i32)?;
        layout.set(Attribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, matrix.stride as i64)?;
        Ok(layout)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatrixLayoutAttribute_t,
        value: T,
    ) -> Result<(), CudaError> {
        let at = (&raw const value).cast::<c_void>();
        // SAFETY: reads the bytes of `value`; the callers above give each attribute its type.
        let status = unsafe { sys::cublasLtMatrixLayoutSetAttribute(self.0, attribute, at, size_of::<T>()) };
        check("cublasLtMatrixLayoutSetAttribute", status)
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        unsafe { sys::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

#[derive(Debug)]
struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new(product: &Product) -> Result<Self, CudaError> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let mut raw = ptr::null_mut();
        // SAFETY: writes one handle; destroyed in `drop`.
        check("cublasLtMatmulPreferenceCreate", unsafe {
            sys::cublasLtMatmulPreferenceCreate(&raw mut raw)
        })?;
        let preference = Self(raw);
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES as u64)?;
        // Parts of k are added either not at all or in f32 in the workspace, in a fixed order: in-place reduction
        // depends on who comes first, and reduction in the output's type rounds every part.
        let reductions = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reductions)?;
        for (attribute, matrix) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &product.first),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &product.second),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &product.out),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &product.out),
        ] {
            preference.set(attribute, matrix.alignment_bytes)?;
        }
        Ok(preference)
    }

    fn set<T: Copy>(
        &self,
        attribute: sys::cublasLtMatmulPreferenceAttributes_t,
        value: T,
    ) -> Result<(), CudaError> {
        let at = (&raw const value).cast::<c_void>();
        // SAFETY: reads the bytes of `value`; the callers above give each attribute its type.
        let status =
            unsafe { sys::cublasLtMatmulPreferenceSetAttribute(self.0, attribute, at, size_of::<T>()) };
        check("cublasLtMatmulPreferenceSetAttribute", status)
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made in `new`, destroyed once.
        unsafe { sys::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}

/// A product, described to the library once.
#[derive(Debug)]
pub(crate) struct Described {
    product: Product,
    description: Description,
    first: Layout,
    second: Layout,
    out: Layout,
}

// SAFETY: descriptors are plain memory of the library; `&mut self` guards the one that changes.
unsafe impl Send for Described {}

impl Described {
    pub(crate) fn new(product: Product) -> Result<Self, CudaError> {
        use sys::cublasLtEpilogue_t as Epilogue;
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let description = Description::new(product.tf32)?;
        // CUBLAS_OP_N and CUBLAS_OP_T, which the bindings do not name.
        let operation = |transpose: bool| i32::from(transpose);
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(product.transpose_first))?;
        description.set(Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(product.transpose_second))?;
        let epilogue = match product.fused {
            Fused::Nothing => None,
            Fused::Bias => Some(Epilogue::CUBLASLT_EPILOGUE_BIAS),
            Fused::BiasGeluTanh => Some(Epilogue::CUBLASLT_EPILOGUE_GELU_BIAS),
            Fused::SumFirst => Some(Epilogue::CUBLASLT_EPILOGUE_BGRADA),
            Fused::SumSecond => Some(Epilogue::CUBLASLT_EPILOGUE_BGRADB),
        };
        if let Some(epilogue) = epilogue {
            description.set(Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            description.set(Attribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, data_type(product.out.of))?;
        }
        let layout = |matrix: &Matrix| Layout::new(matrix, product.batch);
        let (first, second, out) = (layout(&product.first)?, layout(&product.second)?, layout(&product.out)?);
        Ok(Self { product, description, first, second, out })
    }

    fn set_bias(&mut self, bias: u64) -> Result<(), CudaError> {
        if matches!(self.product.fused, Fused::Nothing) {
            return Ok(());
        }
        self.description.set(sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)
    }

    /// The library's candidates, its favorite first, at most `most`; empty if it has none.
    pub(crate) fn candidates(
        &mut self,
        lt: &Lt,
        bias: u64,
        most: usize,
    ) -> Result<Vec<Algorithm>, CudaError> {
        lt.context.bind()?;
        self.set_bias(bias)?;
        let preference = Preference::new(&self.product)?;
        let mut results = vec![MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); most];
        let mut found = 0;
        let (c, d) = (self.out.0, self.out.0);
        let (description, a, b) = (self.description.0, self.first.0, self.second.0);
        let at = results.as_mut_ptr().cast::<sys::cublasLtMatmulHeuristicResult_t>();
        // SAFETY: writes at most `most` results and their number; all descriptors live.
        let status = unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                lt.handle,
                description,
                a,
                b,
                c,
                d,
                preference.0,
                most as i32,
                at,
                &raw mut found,
            )
        };
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
        let written = results.into_iter().take(found as usize);
        let written = written.map(|result| {
            // SAFETY: the library wrote the first `found` results.
            unsafe { result.assume_init() }
        });
        let usable = |result: &sys::cublasLtMatmulHeuristicResult_t| {
            result.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS
                && result.workspaceSize <= WORKSPACE_BYTES
        };
        Ok(written.filter(usable).map(|result| Algorithm(result.algo.data)).collect())
    }

    /// Whether an algorithm of an earlier run serves this product here.
    pub(crate) fn takes(&mut self, lt: &Lt, bias: u64, algorithm: Algorithm) -> bool {
        if lt.context.bind().is_err() || self.set_bias(bias).is_err() {
            return false;
        }
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm.0 };
        let mut result = MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::zeroed();
        let (c, d) = (self.out.0, self.out.0);
        let (description, a, b) = (self.description.0, self.first.0, self.second.0);
        let at = result.as_mut_ptr();
        // SAFETY: reads the algorithm, writes one result; all descriptors live.
        let status = unsafe {
            sys::cublasLtMatmulAlgoCheck(lt.handle, description, a, b, c, d, &raw const algorithm, at)
        };
        // SAFETY: zero is a value of every field, and the library overwrites it on success.
        let result = unsafe { result.assume_init() };
        status == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= WORKSPACE_BYTES
    }

    /// Queues the product.
    ///
    /// # Safety
    ///
    /// The operands hold what the description says, at the alignment it says; the algorithm is of `candidates` or
    /// passed `takes`.
    pub(crate) unsafe fn run(
        &mut self,
        lt: &Lt,
        algorithm: Algorithm,
        alpha: f32,
        accumulate: bool,
        operands: Operands,
    ) -> Result<(), CudaError> {
        lt.context.bind()?;
        self.set_bias(operands.bias)?;
        let beta: f32 = if accumulate { 1.0 } else { 0.0 };
        let algorithm = sys::cublasLtMatmulAlgo_t { data: algorithm.0 };
        // Device addresses are integers to us and pointers to the library.
        let address = |at: u64| ptr::with_exposed_provenance_mut::<c_void>(at as usize);
        let out = address(operands.out);
        // SAFETY: the caller's promise for the operands; scalars are read before the call returns; the workspace is
        // as large as every algorithm may need, and one stream orders its users.
        let status = unsafe {
            sys::cublasLtMatmul(
                lt.handle,
                self.description.0,
                (&raw const alpha).cast(),
                address(operands.first),
                self.first.0,
                address(operands.second),
                self.second.0,
                (&raw const beta).cast(),
                out,
                self.out.0,
                out,
                self.out.0,
                &raw const algorithm,
                address(lt.workspace.ptr()),
                WORKSPACE_BYTES,
                lt.context.stream.cast(),
            )
        };
        check("cublasLtMatmul", status)
    }
}
