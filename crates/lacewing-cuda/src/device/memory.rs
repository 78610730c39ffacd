//! Device memory: a pool of blocks in size classes, and the buffers and regions that hold them.
//!
//! All work of a device is queued on one stream, so a block that its owner gives up on the host can be handed on at
//! once: whoever gets it queues later. While a graph is captured, blocks come from a pool of the graph's own and stay
//! there as long as the graph, since every replay writes to the same addresses.

use super::driver::Context;
use crate::CudaError;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Every block starts at a multiple of this.
pub const ALIGNMENT_BYTES: usize = 256;

/// Blocks start at multiples of 256 bytes because sizes are multiples of this and the driver aligns to it.
const SMALLEST_BYTES: usize = 512;

/// Which pool a block belongs to: 0 is the device's, others are graphs'.
pub(super) type PoolId = u64;
const MAIN: PoolId = 0;

/// Size of the block that serves `bytes`: eight sizes an octave, so at most an eighth is unused.
pub(super) fn block_bytes(bytes: usize) -> usize {
    let bytes = bytes.max(SMALLEST_BYTES);
    let octave = 1_usize << bytes.ilog2();
    bytes.next_multiple_of((octave / 8).max(SMALLEST_BYTES))
}

/// Free blocks by size.
type Free = BTreeMap<usize, Vec<u64>>;

/// Takes a block of `bytes`, or one at most a quarter larger.
fn take(free: &mut Free, bytes: usize) -> Option<(u64, usize)> {
    let found = free.range(bytes..=bytes + bytes / 4).find(|(_, blocks)| !blocks.is_empty());
    let found_bytes = *found?.0;
    let block = free.get_mut(&found_bytes)?.pop()?;
    Some((block, found_bytes))
}

#[derive(Debug, Default)]
struct State {
    pools: HashMap<PoolId, Free>,
    /// Blocks of the device's pool that were given up while a graph was captured: its nodes may still name them.
    held: HashMap<PoolId, Vec<(u64, usize)>>,
    capturing: Option<PoolId>,
    last_pool: PoolId,
    in_use_bytes: usize,
    peak_bytes: usize,
    reserved_bytes: usize,
}

/// The pools of one device.
#[derive(Debug)]
pub(super) struct Memory {
    context: Arc<Context>,
    state: Mutex<State>,
}

impl Memory {
    pub(super) fn new(context: &Arc<Context>) -> Self {
        Self { context: Arc::clone(context), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change below leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Buffer, CudaError> {
        let wanted = block_bytes(bytes);
        let mut state = self.state();
        let pool = state.capturing.unwrap_or(MAIN);
        let found = take(state.pools.entry(pool).or_default(), wanted);
        let (at, size) = match found {
            Some(block) => block,
            None => (self.fresh(&mut state, bytes, wanted)?, wanted),
        };
        state.in_use_bytes += size;
        state.peak_bytes = state.peak_bytes.max(state.in_use_bytes);
        drop(state);
        Ok(Buffer { memory: Arc::clone(self), at, bytes, block_bytes: size, pool })
    }

    /// A block from the driver; when there is none, gives the device's free blocks back and asks again.
    fn fresh(&self, state: &mut State, asked_bytes: usize, wanted: usize) -> Result<u64, CudaError> {
        let mut at = self.context.allocate(wanted)?;
        if at.is_none() {
            for (bytes, blocks) in std::mem::take(state.pools.entry(MAIN).or_default()) {
                state.reserved_bytes -= bytes * blocks.len();
                blocks.into_iter().for_each(|block| self.context.release(block));
            }
            at = self.context.allocate(wanted)?;
        }
        let Some(at) = at else {
            let (free_bytes, total_bytes) = self.context.memory()?;
            return Err(CudaError::OutOfMemory {
                ordinal: self.context.ordinal,
                asked_bytes,
                in_use_bytes: state.in_use_bytes,
                free_bytes,
                total_bytes,
            });
        };
        state.reserved_bytes += wanted;
        Ok(at)
    }

    fn give_up(&self, buffer: &Buffer) {
        let mut state = self.state();
        state.in_use_bytes -= buffer.block_bytes;
        let block = (buffer.at, buffer.block_bytes);
        // A pool that has ended has left its blocks to the device's.
        let pool = if state.pools.contains_key(&buffer.pool) { buffer.pool } else { MAIN };
        match state.capturing {
            Some(graph) if pool == MAIN => state.held.entry(graph).or_default().push(block),
            _ => state.pools.entry(pool).or_default().entry(block.1).or_default().push(block.0),
        }
    }

    pub(super) fn is_capturing(&self) -> bool {
        self.state().capturing.is_some()
    }

    /// Starts a graph's pool; blocks come from it until `end_pool`.
    pub(super) fn begin_pool(&self) -> PoolId {
        let mut state = self.state();
        state.last_pool += 1;
        let pool = state.last_pool;
        state.pools.insert(pool, Free::new());
        state.capturing = Some(pool);
        pool
    }

    /// Ends the capture; the pool lives on. `None` if nothing is captured.
    pub(super) fn end_pool(&self) -> Option<PoolId> {
        self.state().capturing.take()
    }

    /// Ends the pool of a graph that is gone: its blocks are the device's now.
    pub(super) fn drop_pool(&self, pool: PoolId) {
        let mut state = self.state();
        let free = state.pools.remove(&pool).unwrap_or_default();
        let held = state.held.remove(&pool).unwrap_or_default();
        let main = state.pools.entry(MAIN).or_default();
        for (bytes, blocks) in free {
            main.entry(bytes).or_default().extend(blocks);
        }
        for (at, bytes) in held {
            main.entry(bytes).or_default().push(at);
        }
    }

    /// Bytes of live buffers, the most there were, and bytes taken from the driver.
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let state = self.state();
        (state.in_use_bytes, state.peak_bytes, state.reserved_bytes)
    }

    pub(super) fn reset_peak(&self) {
        let mut state = self.state();
        state.peak_bytes = state.in_use_bytes;
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let pools = std::mem::take(&mut state.pools);
        let held = std::mem::take(&mut state.held);
        let free = pools.into_values().flat_map(BTreeMap::into_values).flatten();
        free.chain(held.into_values().flatten().map(|(at, _)| at)).for_each(|at| self.context.release(at));
    }
}

/// Device memory of one owner. Dropped, it returns to its pool; queued work that uses it still runs first.
#[derive(Debug)]
pub struct Buffer {
    memory: Arc<Memory>,
    at: u64,
    bytes: usize,
    block_bytes: usize,
    pool: PoolId,
}

impl Buffer {
    /// Address on the device, a multiple of [`ALIGNMENT_BYTES`].
    #[must_use]
    pub fn ptr(&self) -> u64 {
        self.at
    }

    /// Bytes asked for.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes
    }

    /// Device the memory is on.
    #[must_use]
    pub fn ordinal(&self) -> usize {
        self.memory.context.ordinal
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.memory.give_up(self);
    }
}

/// A range of bytes of a buffer: what a tensor holds. Clones share the buffer.
#[derive(Debug, Clone)]
pub struct Region {
    buffer: Arc<Buffer>,
    offset_bytes: usize,
    len_bytes: usize,
}

impl From<Buffer> for Region {
    /// The whole buffer.
    fn from(buffer: Buffer) -> Self {
        Self { len_bytes: buffer.bytes, offset_bytes: 0, buffer: Arc::new(buffer) }
    }
}

impl Region {
    /// The part that starts `offset_bytes` into this region and is `len_bytes` long.
    ///
    /// # Panics
    ///
    /// If the part does not lie inside the region: the caller's shapes are wrong.
    #[must_use]
    pub fn slice(&self, offset_bytes: usize, len_bytes: usize) -> Self {
        let end = offset_bytes.checked_add(len_bytes);
        assert!(
            end.is_some_and(|end| end <= self.len_bytes),
            "{len_bytes} bytes at {offset_bytes} of a region of {} bytes",
            self.len_bytes
        );
        Self { buffer: Arc::clone(&self.buffer), offset_bytes: self.offset_bytes + offset_bytes, len_bytes }
    }

    /// Address on the device.
    #[must_use]
    pub fn ptr(&self) -> u64 {
        self.buffer.at + self.offset_bytes as u64
    }

    /// Length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Start inside the buffer, in bytes.
    #[must_use]
    pub fn offset_bytes(&self) -> usize {
        self.offset_bytes
    }

    /// The buffer it is a part of.
    #[must_use]
    pub fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// Whether nobody else holds the buffer, so that it may be written in place.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_at_most_an_eighth_or_one_grain_larger_than_asked() {
        for bytes in (0..20_000).chain([1 << 20, (1 << 20) + 1, 154_140_672, (3 << 30) + 5]) {
            let block = block_bytes(bytes);
            assert!(block >= bytes && block.is_multiple_of(ALIGNMENT_BYTES), "{bytes} in {block}");
            assert!(block - bytes <= (bytes / 8).max(SMALLEST_BYTES), "{bytes} in {block}");
            assert_eq!(block_bytes(block), block);
        }
    }

    #[test]
    fn a_free_block_serves_requests_down_to_four_fifths_of_it() {
        let mut free = Free::from([(1024, vec![7]), (1280, vec![8, 9]), (4096, vec![5])]);
        assert_eq!(take(&mut free, 1024), Some((7, 1024)));
        assert_eq!(take(&mut free, 1024), Some((9, 1280)));
        assert_eq!(take(&mut free, 1280), Some((8, 1280)));
        assert_eq!(take(&mut free, 1024), None);
        assert_eq!(take(&mut free, 4096), Some((5, 4096)));
    }
}
