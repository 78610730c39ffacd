//! Finds the libraries of CUDA before anything calls them, so that a missing one is an error and not a panic.
//!
//! Order: what `LACEWING_NVRTC` (a file) or `LACEWING_CUDA_PATH` (folders) name, the loader's own search
//! (`LD_LIBRARY_PATH`, the system's folders), `CUDA_HOME` and `CUDA_PATH`, the usual install folder, the `nvidia`
//! packages of the active Python environment. A library found by path is loaded and kept; the bindings then find it
//! by its soname.

use crate::CudaError;
use libloading::Library;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// CUDA's major version that the bindings were made for, then the one before it.
const VERSIONS: [&str; 2] = ["13", "12"];

/// Loads NVRTC; cheap after the first call.
pub(super) fn nvrtc() -> Result<(), CudaError> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        if let Some(file) = std::env::var_os("LACEWING_NVRTC").map(PathBuf::from) {
            return if keep_nvrtc(&file) { Ok(()) } else { Err(format!(", nor at {}", file.display())) };
        }
        search("nvrtc", nvrtc_present, keep_nvrtc)
    });
    missing("NVRTC", "nvrtc", found)
}

/// Loads cuBLASLt; cheap after the first call.
pub(super) fn cublaslt() -> Result<(), CudaError> {
    static FOUND: OnceLock<Result<(), String>> = OnceLock::new();
    missing("cuBLASLt", "cublasLt", FOUND.get_or_init(|| search("cublasLt", cublaslt_present, keep)))
}

/// The file of NCCL 2, whatever CUDA it was made for.
pub(super) const NCCL_FILE: &str = "libnccl.so.2";

/// Loads NCCL; the error says where it was looked for beside the library path.
pub(super) fn nccl() -> Result<Library, String> {
    // SAFETY: a library of CUDA, whose initialisers ask nothing of the process that loads it.
    let load = |at: &Path| unsafe { Library::new(at) }.ok();
    let (named, usual) = (named_folders(), usual_folders());
    let inside = |folders: &[PathBuf]| {
        folders.iter().map(|folder| folder.join(NCCL_FILE)).filter(|at| at.is_file()).find_map(|at| load(&at))
    };
    let found = inside(&named).or_else(|| load(Path::new(NCCL_FILE))).or_else(|| inside(&usual));
    found.ok_or_else(|| searched(&named, &usual))
}

fn missing(library: &'static str, stem: &str, found: &Result<(), String>) -> Result<(), CudaError> {
    found.clone().map_err(|searched| CudaError::NoLibrary {
        library,
        file: format!("lib{stem}.so.{}", VERSIONS[0]),
        searched,
    })
}

fn search(stem: &str, present: fn() -> bool, keep: fn(&Path) -> bool) -> Result<(), String> {
    let from_path = |folders: &[PathBuf]| {
        let names = VERSIONS.map(|version| format!("lib{stem}.so.{version}"));
        folders.iter().flat_map(|folder| names.iter().map(move |name| folder.join(name))).any(|at| keep(&at))
    };
    let (named, usual) = (named_folders(), usual_folders());
    if from_path(&named) || present() || from_path(&usual) {
        return Ok(());
    }
    Err(searched(&named, &usual))
}

/// Where a library was looked for, as the end of a sentence.
fn searched(named: &[PathBuf], usual: &[PathBuf]) -> String {
    let all: Vec<String> = named.iter().chain(usual).map(|at| at.display().to_string()).collect();
    if all.is_empty() { String::new() } else { format!(", nor in {}", all.join(", ")) }
}

/// Folders the user named for us.
fn named_folders() -> Vec<PathBuf> {
    let named = std::env::var_os("LACEWING_CUDA_PATH").unwrap_or_default();
    std::env::split_paths(&named).flat_map(with_library_folders).filter(|at| at.is_dir()).collect()
}

/// Folders where installers and Python packages put CUDA.
fn usual_folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let roots = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    let mut folders: Vec<PathBuf> =
        roots.chain([PathBuf::from("/usr/local/cuda")]).flat_map(with_library_folders).collect();
    for environment in ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable) {
        for python in children(&environment.join("lib"), |name| name.starts_with("python3")) {
            for package in children(&python.join("site-packages").join("nvidia"), |_| true) {
                folders.push(package.join("lib"));
            }
        }
    }
    folders.retain(|at| at.is_dir());
    folders
}

fn with_library_folders(root: PathBuf) -> Vec<PathBuf> {
    if root.as_os_str().is_empty() {
        return Vec::new();
    }
    vec![root.join("lib64"), root.join("lib"), root]
}

/// Subfolders in the order of their names, so that a search always ends at the same place.
fn children(folder: &Path, takes: fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = |at: &PathBuf| at.file_name().and_then(OsStr::to_str).is_some_and(takes);
    let mut found: Vec<PathBuf> = entries.filter(named).collect();
    found.sort();
    found
}

/// Loads NVRTC at `file`, and beside it the data that it opens by soname when it compiles.
fn keep_nvrtc(file: &Path) -> bool {
    if !keep(file) {
        return false;
    }
    if let Some(folder) = file.parent() {
        for beside in children(folder, |name| name.starts_with("libnvrtc-builtins.so")) {
            keep(&beside);
        }
    }
    true
}

/// Loads the library at `file` for the rest of the process; false where there is none or it does not load.
fn keep(file: &Path) -> bool {
    if !file.is_file() {
        return false;
    }
    // SAFETY: a library of CUDA, whose initialisers ask nothing of the process that loads it.
    let library = unsafe { Library::new(file) };
    library.map(std::mem::forget).is_ok()
}

fn nvrtc_present() -> bool {
    // SAFETY: loads and closes the library; its initialisers ask nothing of the process.
    unsafe { cudarc::nvrtc::sys::is_culib_present() }
}

fn cublaslt_present() -> bool {
    // SAFETY: loads and closes the library; its initialisers ask nothing of the process.
    unsafe { cudarc::cublaslt::sys::is_culib_present() }
}

/// Whether the driver's library can be loaded.
pub(super) fn driver_present() -> bool {
    // SAFETY: loads and closes the library; its initialisers ask nothing of the process.
    unsafe { cudarc::driver::sys::is_culib_present() }
}
