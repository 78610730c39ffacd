//! How work is cut for threads: by shape alone, never by timing or by the number of threads, so that a result is
//! the same bits on any machine of one [`Level`](crate::simd::Level).

use rayon::prelude::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Elements that one task handles: 64 KiB of f32, far above what it costs to hand a task to a thread.
pub const TASK: usize = 16 * 1024;

/// The most partial sums that [`partial_rows`] asks for.
pub const MAX_PARTIALS: usize = 32;

/// Rows of one task over `rows × cols` elements, at least 1: all of them below `2 ·` [`TASK`] elements, where
/// threads would not pay.
pub fn rows_per_task(rows: usize, cols: usize) -> usize {
    if rows * cols < 2 * TASK { rows.max(1) } else { (TASK / cols.max(1)).max(1) }
}

/// Elements of one task over `len` independent elements, at least 1.
pub fn elements_per_task(len: usize) -> usize {
    if len < 2 * TASK { len.max(1) } else { TASK }
}

/// Rows of one partial sum over the rows of `rows × cols`: a task's, or more where that would make above
/// [`MAX_PARTIALS`] of them.
pub fn partial_rows(rows: usize, cols: usize) -> usize {
    rows_per_task(rows, cols).max(rows.div_ceil(MAX_PARTIALS))
}

/// Adds partial sums `[P, sums.len()]` to `sums`, in the order they lie.
pub fn add_partials(sums: &mut [f32], partials: &[f32]) {
    let width = sums.len();
    if width == 0 {
        return;
    }
    let step = elements_per_task(width);
    sums.par_chunks_mut(step).enumerate().for_each(|(task, sums)| {
        for partial in partials.chunks_exact(width) {
            for (sum, x) in sums.iter_mut().zip(&partial[task * step..]) {
                *sum += x;
            }
        }
    });
}

/// Makes the calling thread one of the threads of the global pool, for the rest of the process: what it starts in
/// parallel then needs one thread to wake, where a thread outside hands all of it over and sleeps until it is done. That
/// took 60 to 90 µs a product on two cores, as long as a sparse product of 16 rows takes.
///
/// For a program's main thread, before anything else runs in parallel; a pool that is there already stays as it is. A
/// single core keeps its thread apart: whatever waited for that thread elsewhere would wait forever.
pub fn enter_pool() {
    let threads = std::env::var("RAYON_NUM_THREADS").ok().and_then(|threads| threads.parse().ok());
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.filter(|&threads| threads > 0).unwrap_or_else(cores);
    if threads > 1 {
        // Fails where there is one already.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global();
    }
}

/// Runs `f` on a thread of the current pool. What it does in parallel then starts at once, where each parallel
/// call from a thread outside would hand its work over and wait for a thread to wake.
pub fn within_pool<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// How often the thread that shares work looks whether the others are done before it sleeps: some 20 µs, which
/// putting it to sleep and waking it may take as well.
const LOOKS: usize = 500;

/// Runs `f` on every task by the threads of the current pool, of which the calling thread stands for one: it starts at
/// once while another wakes, and whoever is free takes the next task. For work of some ten microseconds, to which a
/// parallel call from a thread outside the pool would add two wake-ups; a single task wakes nobody.
///
/// Each thread has a stretch of the tasks that it begins with, the same in every call, and goes on with what others have
/// left: what a task reads of a weight is still in its core's cache when the next product comes.
pub fn share<T: Send>(tasks: Vec<T>, f: impl Fn(T) + Sync) {
    share_by_threads(tasks, |tasks| tasks.for_each(&f));
}

/// [`share`] for threads that prepare something of their own: `f` runs once on each thread, with the tasks that it takes
/// one after the other. There may be none left for it.
pub fn share_by_threads<T: Send>(tasks: Vec<T>, f: impl Fn(&mut dyn Iterator<Item = T>) + Sync) {
    let threads = rayon::current_num_threads().min(tasks.len());
    let helpers = threads.saturating_sub(1);
    if helpers == 0 {
        return f(&mut tasks.into_iter());
    }
    let (each, longer) = (tasks.len() / threads, tasks.len() % threads);
    let mut tasks = tasks.into_iter();
    let stretch = |thread| {
        Mutex::new(tasks.by_ref().take(each + usize::from(thread < longer)).collect::<Vec<_>>().into_iter())
    };
    let stretches: Vec<_> = (0..threads).map(stretch).collect();
    let busy = AtomicUsize::new(helpers);
    let work = || {
        let own = rayon::current_thread_index().unwrap_or(0);
        let next = |at: usize| stretches[at % threads].lock().unwrap_or_else(PoisonError::into_inner).next();
        f(&mut (own..own + threads).flat_map(|at| std::iter::from_fn(move || next(at))));
    };
    rayon::in_place_scope(|scope| {
        for _ in 0..helpers {
            scope.spawn(|_| {
                work();
                busy.fetch_sub(1, Ordering::Relaxed);
            });
        }
        work();
        // A thread of the pool had better look for other work, which the end of the scope does.
        let looks = if rayon::current_thread_index().is_none() { LOOKS } else { 0 };
        for _ in 0..looks {
            if busy.load(Ordering::Relaxed) == 0 {
                break;
            }
            std::hint::spin_loop();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_cover_the_rows_and_are_bounded() {
        for (rows, cols) in [(0, 5), (1, 1), (7, 0), (100_000, 3), (3152, 1536), (2, 1_000_000)] {
            let task = rows_per_task(rows, cols);
            assert!(
                task >= 1 && (task == 1 || rows * cols < 2 * TASK || task * cols <= TASK),
                "{rows} {cols}"
            );
            assert!(rows.div_ceil(partial_rows(rows, cols)) <= MAX_PARTIALS, "{rows} {cols}");
        }
    }

    #[test]
    fn shared_tasks_run_once_each() {
        for threads in 1..4 {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            for tasks in [0, 1, 2, 50] {
                let mut done = vec![0; tasks];
                pool.install(|| share(done.iter_mut().collect(), |task: &mut i32| *task += 1));
                share(done.iter_mut().collect(), |task| *task += 1);
                assert_eq!(done, vec![2; tasks]);
            }
        }
    }

    #[test]
    fn partials_are_added_to_what_is_there() {
        let mut sums = [1.0, 2.0];
        add_partials(&mut sums, &[10.0, 20.0, 100.0, 200.0]);
        assert_eq!(sums, [111.0, 222.0]);
        add_partials(&mut [], &[]);
    }
}
