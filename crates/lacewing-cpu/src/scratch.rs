//! Working memory of a thread, kept between calls, so that hot paths do not allocate.

use std::cell::RefCell;

thread_local! {
    static FREE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `len` elements of unspecified content. Calls may nest: each level has memory of its own.
pub fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken out, not borrowed: while `f` waits for other threads, this one may run a task that asks as well.
    let mut memory = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if memory.len() < len {
        memory.resize(len, 0.0);
    }
    let result = f(&mut memory[..len]);
    FREE.with_borrow_mut(|free| free.push(memory));
    result
}

#[cfg(test)]
mod tests {
    use super::scratch;

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
