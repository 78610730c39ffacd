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

/// Writes an entry in the place of the one there may be; does nothing where the cache cannot be written.
pub(crate) fn write(relative: &Path, contents: &[u8]) {
    if let Some((temporary, path)) = folder().and_then(|folder| prepare(&folder, relative, contents))
        && fs::rename(&temporary, &path).is_err()
    {
        // Nothing depends on the removal: a later write uses another name.
        let _ = fs::remove_file(&temporary);
    }
}

/// Writes an entry unless there is one, of which two processes that come at once see the same; false where there is one.
pub(crate) fn write_first(relative: &Path, contents: &[u8]) -> bool {
    folder().is_none_or(|folder| write_first_in(&folder, relative, contents))
}

fn write_first_in(folder: &Path, relative: &Path, contents: &[u8]) -> bool {
    let Some((temporary, path)) = prepare(folder, relative, contents) else { return true };
    // A link, unlike a rename, replaces nothing.
    let is_first = fs::hard_link(&temporary, &path).is_ok();
    if !is_first && !path.exists() {
        // A file system without links.
        let _ = fs::rename(&temporary, &path);
        return true;
    }
    // Nothing depends on the removal.
    let _ = fs::remove_file(&temporary);
    is_first
}

/// Writes `contents` beside the place of an entry; both paths.
fn prepare(folder: &Path, relative: &Path, contents: &[u8]) -> Option<(PathBuf, PathBuf)> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    let path = folder.join(relative);
    fs::create_dir_all(path.parent()?).ok()?;
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_extension(format!("{}-{serial}.tmp", std::process::id()));
    if fs::write(&temporary, contents).is_err() {
        let _ = fs::remove_file(&temporary);
        return None;
    }
    Some((temporary, path))
}

#[cfg(test)]
mod tests {
    use super::{hash, write_first_in};
    use std::fs;
    use std::path::Path;

    #[test]
    fn the_first_entry_stands() {
        let folder = std::env::temp_dir().join(format!("lacewing-cache-{}", std::process::id()));
        let at = Path::new("matmul").join("entry.txt");
        let writers: Vec<bool> = std::thread::scope(|scope| {
            let write = |i: u8| {
                scope.spawn({
                    let (folder, at) = (&folder, &at);
                    move || write_first_in(folder, at, &[i; 999])
                })
            };
            let threads: Vec<_> = (0..8).map(write).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let entry = fs::read(folder.join(&at)).unwrap();
        assert_eq!(writers.iter().filter(|first| **first).count(), 1);
        assert_eq!(entry, vec![writers.iter().position(|first| *first).unwrap() as u8; 999]);
        assert_eq!(fs::read_dir(folder.join("matmul")).unwrap().count(), 1, "nothing temporary is left");
        fs::remove_dir_all(&folder).unwrap();
    }

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
