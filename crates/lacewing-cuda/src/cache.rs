//! Where compiled kernels and chosen algorithms are kept between runs.
//!
//! `LACEWING_CACHE`, else `XDG_CACHE_HOME/lacewing`, else `~/.cache/lacewing`. The cache is a convenience: a folder
//! that cannot be read or written costs time, never a run. Entries are written to a temporary sibling and renamed,
//! so that a reader sees a whole entry or none.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Folder of the cache, or `None` where the environment names no place for it.
#[must_use]
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("LACEWING_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|at| at.join("lacewing")))
        .or_else(|| set("HOME").map(|at| at.join(".cache").join("lacewing")))
}

/// 128-bit FNV-1a of `parts`, each closed by its length so that no two lists share a text.
#[must_use]
pub(crate) fn hash(parts: &[&[u8]]) -> u128 {
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut state: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for part in parts {
        for &byte in part.iter().chain(&(part.len() as u64).to_le_bytes()) {
            state = (state ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    state
}

/// Contents of the entry at `relative`, if there is one.
#[must_use]
pub(crate) fn read(relative: &Path) -> Option<Vec<u8>> {
    fs::read(folder()?.join(relative)).ok()
}

/// Writes an entry; does nothing where the cache cannot be written.
pub(crate) fn write(relative: &Path, contents: &[u8]) {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let Some(path) = folder().map(|at| at.join(relative)) else { return };
    let Some(parent) = path.parent() else { return };
    if fs::create_dir_all(parent).is_err() {
        return;
    }
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{serial}.tmp", std::process::id()));
    if fs::write(&temporary, contents).and_then(|()| fs::rename(&temporary, &path)).is_err() {
        // Nothing depends on the removal: a later write uses another name.
        let _ = fs::remove_file(&temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::hash;

    #[test]
    fn the_hash_is_fnv_1a_and_tells_lists_of_parts_apart() {
        // FNV-1a 128 of the eight bytes of the length 0 only, computed by hand from its definition.
        let prime: u128 = (1 << 88) + (1 << 8) + 0x3b;
        let basis: u128 = 144066263297769815596495629667062367629;
        let expected = (0..8).fold(basis, |state, _| state.wrapping_mul(prime));
        assert_eq!(hash(&[b""]), expected);
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
    }
}
