//! What this machine can do at most: multiply-adds on registers, and reads of memory, by all threads at once.
//!
//! Every kernel's time is bounded from below by these two. Other work on the machine only slows a run down, so the best
//! of several runs counts.

use crate::reduce;
use crate::simd::{Isa, Vectorize, dispatch};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Runs of which the best counts, at least.
const RUNS: usize = 8;

/// Time after which no further run starts.
const BUDGET: Duration = Duration::from_millis(120);

/// Multiply-adds of one run on a thread: about two milliseconds, short enough to find the machine free for once.
const STEPS: usize = 8_000_000;

/// Bytes of one run, in as many passes as that takes.
const READ: usize = 32 << 20;

/// Operations in flight. A multiply-add takes four or five cycles and up to four start in each; twelve fit beside their
/// operands in sixteen registers, more need thirty-two.
const FEW: usize = 12;
const MANY: usize = 24;

/// Threads that kernels run on.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Floating-point operations a second in f32, a multiply-add counted as two.
pub fn flops_per_s() -> f64 {
    best(|| flops::<FEW>(STEPS)).max(best(|| flops::<MANY>(STEPS)))
}

/// Bytes read a second where every thread sums its own part of a buffer of `bytes` again and again: the rate of memory
/// for a buffer that no cache holds, else that of the cache.
pub fn bytes_per_s(bytes: usize) -> f64 {
    let part = (bytes / size_of::<f32>() / threads()).max(1);
    let values = vec![1.0f32; part * threads()];
    let size = size_of_val(&values[..]);
    let passes = READ.div_ceil(size);
    best(|| {
        let start = Instant::now();
        rayon::broadcast(|thread| {
            let own = &values[thread.index() * part..][..part];
            (0..passes).for_each(|_| {
                black_box(dispatch(Sum(black_box(own))));
            });
        });
        (passes * size) as f64 / seconds(start)
    })
}

/// The highest rate of several runs.
fn best(run: impl Fn() -> f64) -> f64 {
    let (start, mut best, mut runs) = (Instant::now(), 0.0, 0);
    while runs < RUNS || start.elapsed() < BUDGET {
        (best, runs) = (run().max(best), runs + 1);
    }
    best
}

/// One run of `steps` on every thread, `N` operations in flight on each.
fn flops<const N: usize>(steps: usize) -> f64 {
    let start = Instant::now();
    let lanes = rayon::broadcast(|_| dispatch(MulAdds::<N> { steps: steps / N }));
    let done: usize = lanes.iter().map(|lanes| 2 * lanes * N * (steps / N)).sum();
    done as f64 / seconds(start)
}

/// Time since `start`, above zero.
fn seconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64().max(1e-9)
}

/// `N` chains of multiply-adds that do not wait for each other; the number of lanes.
struct MulAdds<const N: usize> {
    steps: usize,
}

impl<const N: usize> Vectorize for MulAdds<N> {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> usize {
        // x → 0.5 x + 1 goes to 2: no overflow and no subnormal number, which some CPUs are slow with.
        let (half, one) = (isa.splat(black_box(0.5)), isa.splat(black_box(1.0)));
        let mut running: [I::V; N] = std::array::from_fn(|at| isa.splat(at as f32));
        for _ in 0..self.steps {
            for x in &mut running {
                *x = isa.mul_add(*x, half, one);
            }
        }
        let sum = running.into_iter().fold(isa.splat(0.0), |sum, x| isa.add(sum, x));
        black_box(isa.reduce_add(sum));
        I::LANES
    }
}

/// The sum of a slice.
struct Sum<'a>(&'a [f32]);

impl Vectorize for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) -> f32 {
        // As many loads a cycle as a cache can serve take more sums side by side than kernels have.
        let mut running = [isa.splat(0.0); 8];
        let pieces = self.0.chunks_exact(8 * I::LANES);
        let rest = reduce::sum(isa, pieces.remainder());
        for piece in pieces {
            for (at, sum) in running.iter_mut().enumerate() {
                *sum = isa.add(*sum, isa.load(&piece[at * I::LANES..]));
            }
        }
        rest + isa.reduce_add(running.into_iter().fold(isa.splat(0.0), |sum, x| isa.add(sum, x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_are_rates() {
        for rate in [flops::<FEW>(10_000), flops::<MANY>(10_000), bytes_per_s(1 << 16)] {
            assert!(rate.is_finite() && rate > 0.0, "{rate}");
        }
    }

    #[test]
    fn what_is_timed_is_the_sum() {
        let values: Vec<f32> = (0..1003).map(|i| i as f32).collect();
        for level in crate::simd::Level::available() {
            for len in [0, 1, 64, 1003] {
                assert_eq!(
                    level.run(Sum(&values[..len])),
                    (0..len).map(|i| i as f32).sum::<f32>(),
                    "{level:?} {len}"
                );
            }
        }
    }
}
