//! Queued work captured once and replayed with one call.

use super::driver::{Context, check};
use super::memory::{Memory, PoolId};
use crate::CudaError;
use cudarc::driver::sys;
use std::ptr;
use std::sync::Arc;

/// A captured sequence of work. Every launch runs it again on the same addresses.
///
/// Memory that was allocated while capturing belongs to the graph: what survives the capture (its outputs) is
/// overwritten by every launch, and is handed to nobody else while the graph lives. Buffers that were allocated
/// before the capture and dropped inside it are kept for the graph; the caller keeps alive every other buffer that
/// the captured work uses.
#[derive(Debug)]
pub struct Graph {
    raw: sys::CUgraphExec,
    context: Arc<Context>,
    memory: Arc<Memory>,
    pool: PoolId,
}

// SAFETY: the driver allows every thread to launch a graph, one at a time; all launches go to one stream.
unsafe impl Send for Graph {}

/// Starts a capture on the stream.
pub(super) fn begin(context: &Context) -> Result<(), CudaError> {
    context.bind()?;
    // Relaxed, since a capture may allocate and load kernels on the way; both are outside the graph.
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    // SAFETY: the stream lives as long as the context.
    check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(context.stream, mode) })
}

/// Ends the capture and makes a graph of it that owns `pool`.
pub(super) fn end(context: &Arc<Context>, memory: &Arc<Memory>, pool: PoolId) -> Result<Graph, CudaError> {
    // The pool is given back if anything below fails.
    let mut graph =
        Graph { raw: ptr::null_mut(), context: Arc::clone(context), memory: Arc::clone(memory), pool };
    context.bind()?;
    let mut captured = ptr::null_mut();
    // SAFETY: writes one handle; destroyed below.
    check("cuStreamEndCapture", unsafe { sys::cuStreamEndCapture(context.stream, &raw mut captured) })?;
    // SAFETY: writes one handle; destroyed in `drop`.
    let status = unsafe { sys::cuGraphInstantiateWithFlags(&raw mut graph.raw, captured, 0) };
    // SAFETY: of `cuStreamEndCapture`; the instance is a copy.
    unsafe { sys::cuGraphDestroy(captured) };
    check("cuGraphInstantiate", status).map(|()| graph)
}

impl Graph {
    /// Queues the captured work once more.
    ///
    /// # Errors
    ///
    /// What the driver answers.
    pub fn launch(&self) -> Result<(), CudaError> {
        self.context.bind()?;
        // SAFETY: graph and stream live as long as `self`; the graph's memory is kept for it.
        check("cuGraphLaunch", unsafe { sys::cuGraphLaunch(self.raw, self.context.stream) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() && !self.raw.is_null() {
            // SAFETY: of `end`, and nothing else holds it; the driver lets launches in flight finish.
            unsafe { sys::cuGraphExecDestroy(self.raw) };
        }
        // Whoever gets the blocks queues after the last launch.
        self.memory.drop_pool(self.pool);
    }
}
