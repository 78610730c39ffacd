//! The compiler of CUDA as a library: source text to machine code, on any machine.

use crate::CudaError;
use cudarc::nvrtc::sys;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr;

fn check(call: &'static str, status: sys::nvrtcResult) -> Result<(), CudaError> {
    if status == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(CudaError::Nvrtc { call, status: format!("{status:?}") })
}

/// Major and minor version of the library.
pub(crate) fn version() -> Result<(u32, u32), CudaError> {
    super::library::nvrtc()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    check("nvrtcVersion", unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) })?;
    Ok((major.cast_unsigned(), minor.cast_unsigned()))
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: of `nvrtcCreateProgram`, destroyed once.
        unsafe { sys::nvrtcDestroyProgram(&raw mut self.0) };
    }
}

/// Compiles `text`, called `name` in messages, to a cubin for `arch` (e.g. `sm_90a`).
pub(crate) fn compile(
    name: &'static str,
    text: &str,
    arch: &str,
    options: &[&str],
) -> Result<Vec<u8>, CudaError> {
    super::library::nvrtc()?;
    let c_text = |text: &str| CString::new(text).expect("kernel sources hold no zero byte");
    let (code, file) = (c_text(text), c_text(name));
    let mut raw = ptr::null_mut();
    // SAFETY: both texts end in a zero byte and outlive the program; there are no headers.
    let status = unsafe {
        sys::nvrtcCreateProgram(&raw mut raw, code.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null())
    };
    check("nvrtcCreateProgram", status)?;
    let program = Program(raw);
    let options: Vec<CString> = options
        .iter()
        .map(|&option| c_text(option))
        .chain([c_text(&format!("--gpu-architecture={arch}"))])
        .collect();
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: as many texts as stated, each ending in a zero byte.
    let status = unsafe { sys::nvrtcCompileProgram(program.0, pointers.len() as c_int, pointers.as_ptr()) };
    if status == sys::nvrtcResult::NVRTC_ERROR_COMPILATION {
        return Err(CudaError::Compile { source_name: name, arch: arch.to_owned(), log: log(&program) });
    }
    check("nvrtcCompileProgram", status)?;
    let mut len = 0;
    // SAFETY: writes one number.
    check("nvrtcGetCUBINSize", unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut len) })?;
    let mut cubin = vec![0_u8; len];
    // SAFETY: writes as many bytes as it said.
    check("nvrtcGetCUBIN", unsafe { sys::nvrtcGetCUBIN(program.0, cubin.as_mut_ptr().cast()) })?;
    Ok(cubin)
}

fn log(program: &Program) -> String {
    let mut len = 0;
    // SAFETY: writes one number.
    let status = unsafe { sys::nvrtcGetProgramLogSize(program.0, &raw mut len) };
    if status != sys::nvrtcResult::NVRTC_SUCCESS {
        return format!("(no log: {status:?})");
    }
    let mut text = vec![0_u8; len + 1];
    // SAFETY: writes as many bytes as it said, the zero at the end among them.
    unsafe { sys::nvrtcGetProgramLog(program.0, text.as_mut_ptr().cast()) };
    CStr::from_bytes_until_nul(&text).unwrap_or_default().to_string_lossy().into_owned()
}
