//! Working memory of a thread, kept between calls, so that hot paths do not allocate.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Elements that a cache line holds. Scratch starts at a line, so that no load of a register crosses two.
const LINE: usize = 16;

/// Memory that starts at a cache line, for what is packed to be kept.
#[derive(Debug, Default)]
pub struct Aligned {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// Memory for `len` elements, of unspecified content.
    pub fn resize(&mut self, len: usize) -> &mut [f32] {
        self.memory.resize(len + LINE, 0.0);
        self.start = self.memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        self.len = len;
        &mut self.memory[self.start..][..len]
    }

    /// What was written there.
    pub fn get(&self) -> &[f32] {
        &self.memory[self.start..][..self.len]
    }
}

/// Calls `f` with `len` elements of unspecified content, which start at a cache line. Calls may nest: each level has memory of its own.
pub fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out, not borrowed: while `f` waits for other threads, this one may run a task that asks as well.
    let mut memory = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if memory.len() < len + LINE {
        memory.resize(len + LINE, 0.0);
    }
    let start = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
    let result = f(&mut memory[start..start + len]);
    FREE.with_borrow_mut(|free| free.push(memory));
    result
}

#[cfg(test)]
mod tests {
    use super::scratch;

    #[test]
    fn it_starts_at_a_cache_line() {
        for len in [1, 100, 5000] {
            scratch(len, |memory| assert_eq!((memory.as_ptr() as usize % 64, memory.len()), (0, len)));
        }
    }

    #[test]
    fn nested_calls_get_memory_of_their_own() {
        scratch(4, |outer| {
            outer.fill(1.0);
            scratch(8, |inner| inner.fill(2.0));
            assert_eq!(outer, [1.0; 4]);
        });
        scratch(0, |none| assert!(none.is_empty()));
    }
}
