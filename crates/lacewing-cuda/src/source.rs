//! Kernels as text: a `.cu` file inside the binary, compiled for the chip at hand and cached as machine code.

use crate::device::nvrtc;
use crate::{CudaError, cache};
use std::fmt::Write as _;
use std::path::PathBuf;

/// Text put before every source: `lw::bf16` and its conversions, `lw::warp_sum`, `lw::mma_bf16` and the like. It makes
/// CUDA's own headers unnecessary; NVRTC has none by itself.
pub const PRELUDE: &str = include_str!("device/prelude.cuh");

/// C++17, and functions run on the device unless they say otherwise. No fast-math option: kernels ask for fast
/// instructions by name where their error bound allows.
const OPTIONS: &[&str] = &["--std=c++17", "--device-as-default-execution-space"];

/// A name of a source and the number that stands for it, a `#define` before the text.
pub type Constant = (&'static str, u32);

/// A `.cu` file. Declare one as a `static`, since a device knows it by its address:
///
/// ```
/// use lacewing_cuda::Source;
/// static GELU: Source =
///     Source { name: "gelu", code: "extern \"C\" __global__ void gelu(float* x) { x[threadIdx.x] = 0.0f; }" };
/// ```
///
/// Kernels are `extern "C" __global__`. [`PRELUDE`] stands before the text; line numbers in messages are the file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Name in messages and in the cache's file names.
    pub name: &'static str,
    /// The text, usually `include_str!("kernel.cu")`.
    pub code: &'static str,
}

/// A [`Source`] of the caller's folder for Hopper, its files in their order, after what all such kernels share.
macro_rules! hopper {
    ($name:literal, $($file:literal),+) => {
        $crate::Source {
            name: $name,
            code: concat!(
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/device/hopper.cuh")),
                $("\n#line 1 \"", $file, "\"\n", include_str!($file)),+
            ),
        }
    };
}
pub(crate) use hopper;

impl Source {
    fn text(&self, constants: &[Constant]) -> String {
        let mut text = PRELUDE.to_owned();
        for (name, value) in constants {
            writeln!(text, "#define {name} {value}").expect("text grows");
        }
        write!(text, "#line 1 \"{}\"\n{}", self.name, self.code).expect("text grows");
        text
    }

    /// Place in the cache: by text, constants, target, options and compiler.
    fn entry(&self, constants: &[Constant], arch: &str) -> Result<PathBuf, CudaError> {
        let (major, minor) = nvrtc::version()?;
        let version = format!("{major}.{minor}");
        let text = self.text(constants);
        let key =
            cache::hash(&[text.as_bytes(), arch.as_bytes(), OPTIONS.concat().as_bytes(), version.as_bytes()]);
        let stem: String =
            self.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        Ok(PathBuf::from("cubin").join(format!("{stem}-{arch}-{key:032x}.cubin")))
    }

    /// Machine code from the cache.
    pub(crate) fn cached(&self, constants: &[Constant], arch: &str) -> Result<Option<Vec<u8>>, CudaError> {
        Ok(cache::read(&self.entry(constants, arch)?))
    }

    /// Machine code from the compiler, put into the cache.
    pub(crate) fn compile_to_cache(&self, constants: &[Constant], arch: &str) -> Result<Vec<u8>, CudaError> {
        let cubin = compile_with(self, constants, arch)?;
        cache::write(&self.entry(constants, arch)?, &cubin);
        Ok(cubin)
    }
}

/// Machine code of `source` for `arch`, e.g. `sm_90a`. Needs NVRTC, and no GPU. Reads and writes no cache.
///
/// # Errors
///
/// [`CudaError::NoLibrary`] without NVRTC, [`CudaError::Compile`] with its messages.
pub fn compile(source: &Source, arch: &str) -> Result<Vec<u8>, CudaError> {
    compile_with(source, &[], arch)
}

/// [`compile`], with these constants.
///
/// # Errors
///
/// As [`compile`].
pub fn compile_with(source: &Source, constants: &[Constant], arch: &str) -> Result<Vec<u8>, CudaError> {
    nvrtc::compile(source.name, &source.text(constants), arch, OPTIONS)
}

/// A crate's test that all its kernels compile, for Hopper and for Ampere, on a machine that may have no GPU.
///
/// Without NVRTC it says so and passes, unless `LACEWING_REQUIRE_NVRTC=1`, as in CI.
///
/// # Panics
///
/// If a source does not compile (with the compiler's messages), or NVRTC is required and missing.
pub fn compile_all_test(sources: &[&Source]) {
    compile_all_with_test(&sources.iter().map(|&source| (source, Vec::new())).collect::<Vec<_>>());
}

/// [`compile_all_test`], for sources with constants.
///
/// # Panics
///
/// As [`compile_all_test`].
pub fn compile_all_with_test(sources: &[(&Source, Vec<Constant>)]) {
    if let Err(error) = nvrtc::version() {
        let required = std::env::var_os("LACEWING_REQUIRE_NVRTC").is_some_and(|value| value == "1");
        assert!(!required, "LACEWING_REQUIRE_NVRTC=1: {error}");
        eprintln!("skipped: {} kernel sources were not compiled: {error}", sources.len());
        return;
    }
    for (source, constants) in sources {
        for arch in ["sm_90a", "sm_80"] {
            if let Err(error) = compile_with(source, constants, arch) {
                panic!("{constants:?}: {error}");
            }
        }
    }
}
