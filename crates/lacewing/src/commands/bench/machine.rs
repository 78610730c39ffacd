//! The machine: what it is, what it can do at most, and how long a structure's work would take it then.

use super::measure::Direction;
use super::place::Place;
use super::{SEED, draw};
use lacewing_core::{Rng, Structure};
use lacewing_cpu::peak;
use lacewing_cpu::simd::Level;
use lacewing_engine::ops::{matmul, scale};
use lacewing_engine::{Cx, DType, Device, EngineError, ParamsBuilder, Tensor};
use serde_json::{Value, json};
use std::fmt;
use std::time::Instant;

/// Bytes that are read again and again to measure reads: from what a core's cache holds to what none does.
const BUFFERS: [usize; 6] = [256 << 10, 1 << 20, 4 << 20, 16 << 20, 64 << 20, 256 << 20];

/// The same on a GPU: from what its cache holds to what it does not.
const GPU_BUFFERS: [usize; 2] = [16 << 20, 1 << 30];

/// Rows and columns of the product that measures a GPU's operations, and how often each measurement is repeated.
const GPU_PRODUCT: usize = 8192;
const GPU_REPEATS: usize = 8;

/// What computes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Machine {
    /// Model of the CPU, as the system calls it, instruction set and threads of the kernels.
    Cpu { name: String, level: Level, threads: usize },
    /// Model of the GPU, and the type of its products.
    Gpu { name: String, dtype: &'static str },
}

/// The machine and its measured limits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Limits {
    pub(super) machine: Machine,
    /// Operations a second.
    pub(super) flops_per_s: f64,
    /// Bytes read a second from buffers of so many bytes, the smallest first; the last is memory's.
    pub(super) reads: Vec<(usize, f64)>,
}

impl Limits {
    /// Measures them: about a second.
    pub(super) fn measure(place: &Place) -> Result<Self, EngineError> {
        let Device::Cuda(gpu) = &place.device else {
            let machine = Machine::Cpu { name: cpu(), level: Level::current(), threads: peak::threads() };
            let reads = BUFFERS.map(|bytes| (bytes, peak::bytes_per_s(bytes))).to_vec();
            return Ok(Self { machine, flops_per_s: peak::flops_per_s(), reads });
        };
        let machine = Machine::Gpu { name: gpu.properties().name.clone(), dtype: place.dtype_name() };
        let cx = Cx::evaluation(ParamsBuilder::new(place.device.clone(), place.dtype)?.build()?);
        // Not zeros, by which a chip multiplies with less power, and faster.
        let values = draw(GPU_PRODUCT * GPU_PRODUCT, &mut Rng::new(SEED).fork("limits"));
        let square = cx.constant(place.tensor(&values, &[1, GPU_PRODUCT, GPU_PRODUCT])?);
        let seconds = fastest(&place.device, &|| matmul(&cx, &square, &square).map(drop))?;
        let flops_per_s = 2.0 * (GPU_PRODUCT as f64).powi(3) / seconds;
        let mut reads = Vec::new();
        for bytes in GPU_BUFFERS {
            // Half of it is read, half written.
            let len = bytes / 2 / place.dtype.bytes();
            let half = cx.constant(Tensor::zeros(&place.device, place.dtype, &[1, len])?);
            let seconds = fastest(&place.device, &|| scale(&cx, &half, 2.0).map(drop))?;
            reads.push((bytes, bytes as f64 / seconds));
        }
        Ok(Self { machine, flops_per_s, reads })
    }

    /// The better of two measurements of one machine, limit by limit.
    pub(super) fn or_better(mut self, other: Self) -> Self {
        self.flops_per_s = self.flops_per_s.max(other.flops_per_s);
        for ((_, rate), (_, other)) in self.reads.iter_mut().zip(other.reads) {
            *rate = rate.max(other);
        }
        self
    }

    /// The least seconds that `work` takes: the longer of computing it and of moving its bytes.
    pub(super) fn seconds(&self, work: Work) -> f64 {
        (work.flops / self.flops_per_s).max(work.bytes / self.bytes_per_s(work.held))
    }

    /// Bytes that `work` moves in so many seconds, over those that could be read.
    pub(super) fn share_of_reads(&self, work: Work, seconds: f64) -> f64 {
        work.bytes / seconds / self.bytes_per_s(work.held)
    }

    /// Bytes read a second by passes that touch `held` bytes: weights that stay in a cache come from there. The rate of
    /// the nearest smaller buffer, so that the time is a bound.
    fn bytes_per_s(&self, held: f64) -> f64 {
        let larger = self.reads.iter().filter(|&&(bytes, _)| bytes as f64 > held).count();
        let from = self.reads.len().saturating_sub(larger + 1);
        self.reads[from..].iter().map(|&(_, rate)| rate).fold(0.0, f64::max)
    }

    /// Bytes read a second from memory.
    fn memory(&self) -> f64 {
        self.reads.last().map_or(0.0, |&(_, rate)| rate)
    }

    pub(super) fn to_json(&self) -> Value {
        let reads =
            self.reads.iter().map(|(bytes, rate)| json!({ "buffer_bytes": bytes, "gb_per_s": rate / 1e9 }));
        let mut machine = match &self.machine {
            Machine::Cpu { name, level, threads } => {
                json!({ "cpu": name, "level": format!("{level:?}").to_lowercase(), "threads": threads })
            }
            Machine::Gpu { name, dtype } => json!({ "gpu": name, "dtype": dtype }),
        };
        machine["gflops_peak"] = (self.flops_per_s / 1e9).into();
        machine["read_gb_per_s"] = (self.memory() / 1e9).into();
        machine["reads"] = reads.collect::<Vec<_>>().into();
        machine
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = match &self.machine {
            Machine::Cpu { name, level, threads } => {
                write!(f, "{name}, {threads} threads, {}", format!("{level:?}").to_lowercase())?;
                "f32"
            }
            Machine::Gpu { name, dtype } => {
                f.write_str(name)?;
                dtype
            }
        };
        let (gflops, memory) = (self.flops_per_s / 1e9, self.memory() / 1e9);
        write!(f, "; at most {gflops:.1} GFLOP/s in {dtype}, reads {memory:.1} GB/s from memory")
    }
}

/// Seconds of a pass at its fastest.
fn fastest(device: &Device, pass: &dyn Fn() -> Result<(), EngineError>) -> Result<f64, EngineError> {
    let mut least = f64::INFINITY;
    for _ in 0..3 {
        pass()?;
        device.synchronize()?;
        let start = Instant::now();
        for _ in 0..GPU_REPEATS {
            pass()?;
        }
        device.synchronize()?;
        least = least.min(start.elapsed().as_secs_f64() / GPU_REPEATS as f64);
    }
    Ok(least)
}

/// The CPU's name on Linux; elsewhere its architecture.
fn cpu() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    name.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

/// What a pass must compute and move.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Work {
    /// Two for each multiply-add of the structure.
    pub(super) flops: f64,
    /// Bytes moved: each array once for each product that it is in, values with indices, inputs, outputs.
    pub(super) bytes: f64,
    /// Bytes of the arrays of one product.
    pub(super) held: f64,
}

impl Work {
    /// A pass over `rows` rows. Training is three products: the output, the gradient of the input, and that of the
    /// values, which is added in f32 to what is there.
    pub(super) fn of(structure: &dyn Structure, rows: usize, direction: Direction, dtype: DType) -> Self {
        let (counts, bytes) = (structure.counts(), dtype.bytes() as f64);
        let activations = bytes * rows as f64 * (structure.n_in() + structure.n_out()) as f64;
        // Counted are values in f32.
        let stored = counts.bytes as f64 - (4.0 - bytes) * counts.parameters as f64;
        let flops = 2.0 * rows as f64 * counts.macs as f64;
        let held = stored + activations;
        match direction {
            Direction::Forward => Self { flops, bytes: held, held },
            Direction::Training => {
                let gradients = 8.0 * counts.parameters as f64;
                let bytes = 2.0 * stored + gradients + 3.0 * activations;
                Self { flops: 3.0 * flops, bytes, held }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_bounded_by_the_slower_of_computing_and_moving() {
        let dense = lacewing_core::build(&"dense".into(), 10, 20, 0, None).unwrap();
        let forward = Work::of(dense.as_ref(), 3, Direction::Forward, DType::F32);
        assert_eq!(forward, Work { flops: 1200.0, bytes: 1160.0, held: 1160.0 });
        let training = Work::of(dense.as_ref(), 3, Direction::Training, DType::F32);
        assert_eq!(training, Work { flops: 3600.0, bytes: 4280.0, held: 1160.0 });
        let half = Work::of(dense.as_ref(), 3, Direction::Forward, DType::Bf16);
        assert_eq!(half, Work { flops: 1200.0, bytes: 580.0, held: 580.0 });
        let limits = |flops_per_s, reads: &[(usize, f64)]| Limits {
            machine: Machine::Cpu { name: String::new(), level: Level::Scalar, threads: 1 },
            flops_per_s,
            reads: reads.to_vec(),
        };
        assert_eq!(limits(100.0, &[(2000, 1160.0)]).seconds(forward), 12.0);
        assert_eq!(limits(1200.0, &[(2000, 116.0)]).seconds(forward), 10.0);
        // The buffer just below counts, unless a larger one was faster.
        let reads = |middle| [(10, 4640.0), (1000, middle), (2000, 116.0)];
        assert_eq!(limits(1200.0, &reads(580.0)).seconds(forward), 2.0);
        assert_eq!(limits(1200.0, &reads(58.0)).seconds(forward), 10.0);
        let better = limits(1.0, &[(10, 5.0), (20, 2.0)]).or_better(limits(2.0, &[(10, 4.0), (20, 3.0)]));
        assert_eq!(better, limits(2.0, &[(10, 5.0), (20, 3.0)]));
    }
}
