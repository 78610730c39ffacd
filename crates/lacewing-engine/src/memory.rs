//! Host memory for activations: freed buffers are kept and handed out again, because a training step asks for the
//! same sizes every time and fresh pages cost more than the arithmetic on them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Freed buffers by length; lengths are size classes, so a class's buffers are interchangeable.
static FREE: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// Bytes of host tensors alive.
pub fn cpu_bytes_in_use() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

/// Most bytes of host tensors alive at once since [`reset_cpu_peak`].
pub fn cpu_peak_bytes() -> usize {
    PEAK.load(Ordering::Relaxed)
}

/// Starts a new peak measurement.
pub fn reset_cpu_peak() {
    PEAK.store(cpu_bytes_in_use(), Ordering::Relaxed);
}

/// A buffer of at least `len` elements whose contents are whatever its last user left.
pub(crate) fn take(len: usize) -> Vec<f32> {
    let class = size_class(len);
    let in_use = IN_USE.fetch_add(class * 4, Ordering::Relaxed) + class * 4;
    PEAK.fetch_max(in_use, Ordering::Relaxed);
    let reused = FREE.lock().expect("no panic while held").get_mut(&class).and_then(Vec::pop);
    reused.unwrap_or_else(|| vec![0.0; class])
}

/// Takes a buffer back.
pub(crate) fn give_back(buffer: Vec<f32>) {
    IN_USE.fetch_sub(buffer.len() * 4, Ordering::Relaxed);
    if !buffer.is_empty() {
        FREE.lock().expect("no panic while held").entry(buffer.len()).or_default().push(buffer);
    }
}

/// `len` rounded up to one of eight steps a power of two: at most an eighth is wasted, and nearby sizes share.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(16);
    len.next_multiple_of(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_holds_its_length_and_wastes_little() {
        for len in (0..5000).chain([1 << 20, (1 << 20) + 1, 12_345_678]) {
            let class = size_class(len);
            assert!(class >= len && class <= len + (len / 8).max(16), "{len} -> {class}");
            assert_eq!(size_class(class), class, "a class is its own class");
        }
    }
}
