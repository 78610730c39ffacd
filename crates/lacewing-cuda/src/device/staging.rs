//! Copies from the host through page-locked memory, so that an upload returns before the device has it.
//!
//! A ring of slots. Small uploads share a slot; the host waits only when the ring has come round to a slot that the
//! device has not read yet, so it may run a ring's length ahead. Cost: one extra copy on the host.

use super::driver::{Context, Event, check};
use crate::CudaError;
use cudarc::driver::sys;
use std::ptr::{self, NonNull};
use std::sync::Arc;

/// Bytes of a slot: large enough that a copy outlasts its launch, small enough to fit in a processor's cache.
const SLOT_BYTES: usize = 4 << 20;

/// Slots of the ring, made when first needed: 64 MiB that the host may be ahead.
const SLOTS: usize = 16;

/// Uploads in a slot start at multiples of this, so that the device copies whole words.
const GRAIN_BYTES: usize = 256;

#[derive(Debug)]
struct Slot {
    /// `SLOT_BYTES` of page-locked memory.
    at: NonNull<u8>,
    /// Bytes from the start that the device may still have to read.
    used_bytes: usize,
    /// Passed when the device has read all of them.
    read: Event,
    context: Arc<Context>,
}

// SAFETY: the memory is this slot's alone, and page-locked memory is not bound to a thread.
unsafe impl Send for Slot {}

impl Slot {
    fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let read = Event::new(context)?;
        let mut at = ptr::null_mut();
        // SAFETY: writes one address; freed in `drop`.
        check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&raw mut at, SLOT_BYTES, 0) })?;
        let at = NonNull::new(at.cast::<u8>()).expect("the driver reports success with an address");
        Ok(Self { at, used_bytes: 0, read, context: Arc::clone(context) })
    }

    /// Waits until the device has read the slot; it is empty then.
    fn empty(&mut self) -> Result<(), CudaError> {
        self.read.wait()?;
        self.used_bytes = 0;
        Ok(())
    }

    fn has_room(&self, bytes: usize) -> bool {
        SLOT_BYTES - self.used_bytes >= bytes
    }

    /// Queues a copy of `bytes`, for which there is room.
    fn send(&mut self, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        assert!(
            self.has_room(bytes.len()),
            "{} bytes into a slot with {} used",
            bytes.len(),
            self.used_bytes
        );
        // SAFETY: inside the slot, by the check above.
        let at = unsafe { self.at.add(self.used_bytes) };
        // SAFETY: there is room, the device reads nothing at or past `used_bytes`, and host slices never overlap it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), at.as_ptr(), bytes.len()) };
        self.context.copy_in(to, at.as_ptr(), bytes.len())?;
        self.used_bytes = (self.used_bytes + bytes.len()).next_multiple_of(GRAIN_BYTES).min(SLOT_BYTES);
        self.read.record()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Should the wait fail, the context is broken and the device reads nothing any more.
        let _ = self.read.wait();
        // SAFETY: made in `new`; the device has read it.
        unsafe { sys::cuMemFreeHost(self.at.as_ptr().cast()) };
    }
}

/// The ring, and the slot that is being filled.
#[derive(Debug)]
pub(super) struct Staging {
    context: Arc<Context>,
    slots: Vec<Slot>,
    turn: usize,
}

impl Staging {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        context.bind()?;
        Ok(Self { context: Arc::clone(context), slots: vec![Slot::new(context)?], turn: 0 })
    }

    /// Queues a copy of `bytes` to the device; they may change as soon as this returns.
    pub(super) fn send(&mut self, to: u64, bytes: &[u8]) -> Result<(), CudaError> {
        self.context.bind()?;
        for (i, part) in bytes.chunks(SLOT_BYTES).enumerate() {
            if !self.slots[self.turn].has_room(part.len()) {
                self.turn = (self.turn + 1) % SLOTS;
                if self.turn == self.slots.len() {
                    self.slots.push(Slot::new(&self.context)?);
                }
                self.slots[self.turn].empty()?;
            }
            self.slots[self.turn].send(to + (i * SLOT_BYTES) as u64, part)?;
        }
        Ok(())
    }
}
