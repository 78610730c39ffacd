//! Single values of sixteen outputs at a time: what each multiplies is picked from registers that hold a window of a
//! row's inputs, so that rows need not be packed nor outputs turned.
//!
//! Steps go through the values that the outputs of a group have in a window, one for each output. N:M patterns have
//! equally many everywhere; otherwise nothing is picked for outputs that have fewer, and large weights are packed without
//! the gaps.

use super::super::Blocks;
use crate::finish::Target;
use crate::parallel::share;
use crate::scratch::scratch;
use crate::simd::{Isa, Level, MAX_LANES, MatMut, MatRef, PICKED, Vectorize, WINDOW, load, store};
use std::ops::Range;

/// Outputs of a group.
const GROUP: usize = MAX_LANES;
/// Windows of a run: eight rows of them are two thirds of the first cache.
const RUN: usize = 32;
/// Groups of one task at most: their values in a run, a quarter of them stored, are a third of the second cache.
const TASK_GROUPS: usize = 16;
/// Rows up to which this is the fastest way for any pattern.
const MOST_ROWS: usize = 16;
/// Values up to which it is for more than eight rows: every eight read them once more.
const FEW_VALUES: usize = 768 * 1024;
/// Rows of one task at most.
const BAND: usize = 128;
/// Tasks at least, where there is enough to cut.
const TASKS: usize = 16;
/// Values ahead that are asked for.
const AHEAD: usize = 512;
/// Values that one task packs.
const VALUES: usize = 32 * 1024;
/// Values with their gaps from which on they are packed without and spread: they come from memory, which is then what
/// takes the time. From a cache values with gaps come faster than they are spread.
const FROM_MEMORY: usize = 1 << 20;
/// Values with their gaps for each four values, at least, for that.
const GAPS: usize = 5;
/// Values with their gaps that are likely to be in a core's cache or in the one that cores share.
const CACHED: usize = 1 << 19;
/// Where there is no value.
const NONE: u32 = u32::MAX;

/// The order of a weight's values.
#[derive(Debug, Clone)]
pub(super) struct Picks {
    runs: usize,
    /// Whether the values of a step lie one after the other and are spread to the outputs that have one.
    spread: bool,
    starts: Vec<Start>,
    windows: Vec<Window>,
    /// Of each step, which input of the window each output's value multiplies, for [`Isa::pick`].
    inputs: Vec<[u8; GROUP]>,
    /// The number of each value in the order in which they are packed: one for each output of a step, or [`NONE`],
    /// unless they are spread.
    slots: Vec<u32>,
}

/// Where a group's run starts.
#[derive(Debug, Clone, Copy)]
struct Start {
    window: u32,
    step: u32,
    /// Of those that are packed.
    value: u32,
}

/// Where the values of a group in one window are.
#[derive(Debug, Clone, Copy)]
struct Window {
    /// Its first input.
    first: u32,
    steps: u32,
}

impl Picks {
    fn new(blocks: &Blocks) -> Self {
        let (n_out, n_in, order) = (blocks.n_out, blocks.n_in, &blocks.by_row);
        let (runs, mut steps) = (n_in.div_ceil(RUN * WINDOW).max(1), 0);
        let with_gaps = steps_of(blocks) * GROUP;
        let spread = with_gaps >= FROM_MEMORY && 4 * with_gaps >= GAPS * blocks.positions.len();
        let (starts, windows, inputs, slots) = <_>::default();
        let mut all = Self { runs, spread, starts, windows, inputs, slots };
        let mut next = order.starts[..n_out].to_vec();
        for group in (0..n_out).step_by(GROUP) {
            let outputs = group..n_out.min(group + GROUP);
            for run in 0..runs {
                all.start(steps);
                let mut windows = Vec::with_capacity(RUN);
                for before in (run * RUN * WINDOW..n_in.min((run + 1) * RUN * WINDOW)).step_by(WINDOW) {
                    let ranges = outputs.clone().map(|o| {
                        let rest = &order.inputs[next[o]..order.starts[o + 1]];
                        let len = rest.partition_point(|&input| (input as usize) < before + WINDOW);
                        let start = next[o];
                        next[o] += len;
                        start..start + len
                    });
                    let ranges: Vec<Range<usize>> = ranges.collect();
                    let steps = ranges.iter().map(Range::len).max().unwrap_or(0);
                    // The last window of a row ends with it.
                    let first = before.min(n_in.saturating_sub(WINDOW));
                    windows.push((Window { first: first as u32, steps: steps as u32 }, ranges));
                }
                windows.retain(|(window, _)| window.steps > 0);
                // The end of a loop whose number of steps hardly ever changes is foreseen.
                windows.sort_by_key(|(window, _)| window.steps);
                for (window, ranges) in windows {
                    all.windows.push(window);
                    steps += window.steps;
                    for step in 0..window.steps as usize {
                        let (mut inputs, mut slots) = ([0; GROUP], [NONE; GROUP]);
                        for ((input, slot), range) in inputs.iter_mut().zip(&mut slots).zip(&ranges) {
                            if step < range.len() {
                                let at = range.start + step;
                                (*input, *slot) =
                                    (PICKED + (order.inputs[at] - window.first) as u8, at as u32);
                            }
                        }
                        all.inputs.push(inputs);
                        all.slots.extend(slots.iter().filter(|&&slot| slot != NONE || !spread));
                    }
                }
            }
        }
        all.start(steps);
        all
    }

    /// What comes now starts a run.
    fn start(&mut self, step: u32) {
        let value = self.slots.len() as u32;
        self.starts.push(Start { window: self.windows.len() as u32, step, value });
    }
}

/// The order of `blocks`, which are single values.
fn order(blocks: &Blocks) -> &Picks {
    blocks.elements.picks.get_or_init(|| Picks::new(blocks))
}

/// The steps of all windows, counted: cheaper than the order, which patterns that do not pay never need.
fn steps_of(blocks: &Blocks) -> usize {
    let count = || {
        let (order, mut steps) = (&blocks.by_row, 0);
        let windows = blocks.n_in.div_ceil(WINDOW);
        let (mut most, mut counts) = (vec![0_u8; windows], vec![0_u8; windows]);
        for (o, range) in order.starts.windows(2).enumerate() {
            counts.fill(0);
            order.inputs[range[0]..range[1]].iter().for_each(|&input| counts[input as usize / WINDOW] += 1);
            most.iter_mut().zip(&counts).for_each(|(most, &count)| *most = count.max(*most));
            if (o + 1).is_multiple_of(GROUP) || o + 2 == order.starts.len() {
                steps += most.iter().map(|&count| usize::from(count)).sum::<usize>();
                most.fill(0);
            }
        }
        steps
    };
    *blocks.elements.steps.get_or_init(count)
}

/// Whether products of `rows` rows are faster with packed values. They are where few outputs have no value in a step: the
/// more rows, the fewer, since the cost of other ways falls until a value meets whole registers of rows. Packing takes
/// longer than a product, so only where values are `kept`.
pub(super) fn pays(blocks: &Blocks, rows: usize, kept: bool) -> bool {
    let nnz = blocks.positions.len();
    if !kept || rows > MOST_ROWS || Level::current() != Level::Avx512 {
        return false;
    }
    let with_gaps = steps_of(blocks) * GROUP;
    let padded = with_gaps as f64 / nnz.max(1) as f64;
    match rows {
        // Of more values than every third, two bits each say as much as a byte here.
        1 if 3 * nnz > blocks.n_in * blocks.n_out => false,
        // From a cache a step costs less than a gathered input, or a tile that so few rows do not fill.
        1..=8 if with_gaps <= CACHED => padded <= 9.0,
        1 => padded <= 2.3,
        2..=8 => padded <= 3.2,
        // Two rounds of eight rows, where a tile takes one: worth it while a window has enough steps.
        13.. if 12 * nnz < blocks.n_in * blocks.n_out => false,
        _ => padded <= 1.1 && nnz <= FEW_VALUES,
    }
}

/// Elements that packed values take.
pub(super) fn len(blocks: &Blocks) -> usize {
    order(blocks).slots.len()
}

/// Packs `values`.
pub(super) fn pack(blocks: &Blocks, values: &[f32], to: &mut [f32]) {
    let slots = &order(blocks).slots;
    share(to.chunks_mut(VALUES).zip(slots.chunks(VALUES)).collect(), |(to, slots)| {
        for (to, &slot) in to.iter_mut().zip(slots) {
            *to = values.get(slot as usize).copied().unwrap_or(0.0);
        }
    });
}

/// `y (+)= x Wᵀ` with values that [`pack`] has packed.
pub(super) fn forward(blocks: &Blocks, packed: &[f32], x: &[f32], y: Target<'_>, accumulate: bool) {
    let (rows, n_in) = (y.rows(), blocks.n_in);
    if n_in >= WINDOW {
        return product(order(blocks), packed, MatRef::row_major(x, rows, n_in), y, accumulate);
    }
    scratch(rows * WINDOW, |wide| {
        wide.fill(0.0);
        for (to, from) in wide.chunks_exact_mut(WINDOW).zip(x.chunks_exact(n_in.max(1))) {
            to[..n_in].copy_from_slice(from);
        }
        product(order(blocks), packed, MatRef::row_major(wide, rows, WINDOW), y, accumulate);
    });
}

fn product(picks: &Picks, packed: &[f32], x: MatRef<'_>, y: Target<'_>, accumulate: bool) {
    let (rows, level) = (y.rows(), Level::current());
    let bands = rows.div_ceil(BAND).max(1);
    let groups = y.cols().div_ceil(GROUP).div_ceil(TASKS.div_ceil(bands)).clamp(1, TASK_GROUPS);
    let mut tasks = Vec::new();
    for (row, band) in (0..).step_by(BAND).zip(y.bands(BAND)) {
        let x = x.rows_at(row, band.rows());
        tasks.extend((0..).step_by(groups).zip(band.strips(groups * GROUP)).map(|(at, y)| (at, x, y)));
    }
    share(tasks, |(first, x, mut y)| {
        level.run(Product { picks, packed, x, first, y: y.sums(), accumulate });
        y.finish(level);
    });
}

/// The outputs of some groups for some rows.
struct Product<'a> {
    picks: &'a Picks,
    packed: &'a [f32],
    x: MatRef<'a>,
    /// The first group.
    first: usize,
    y: MatMut<'a>,
    accumulate: bool,
}

impl Vectorize for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        let rows = self.y.rows();
        for run in 0..self.picks.runs {
            let mut row = 0;
            while row < rows {
                row += match rows - row {
                    5.. => self.tile::<I, 8>(isa, run, row),
                    3.. => self.tile::<I, 4>(isa, run, row),
                    2 => self.tile::<I, 2>(isa, run, row),
                    _ => self.tile::<I, 1>(isa, run, row),
                };
            }
        }
    }
}

impl Product<'_> {
    /// One run for `R` rows, or as many as there are. Returns `R`.
    #[inline(always)]
    fn tile<I: Isa, const R: usize>(&mut self, isa: I, run: usize, row: usize) -> usize {
        for (group, col) in (0..self.y.cols()).step_by(GROUP).enumerate() {
            match (col + GROUP <= self.y.cols(), self.picks.spread) {
                (true, false) => self.group::<I, R, false, false>(isa, run, row, group),
                (true, true) => self.group::<I, R, false, true>(isa, run, row, group),
                (false, false) => self.group::<I, R, true, false>(isa, run, row, group),
                (false, true) => self.group::<I, R, true, true>(isa, run, row, group),
            }
        }
        R
    }

    /// One group; with `TAIL` it has fewer outputs, with `SPREAD` values are spread.
    #[inline(always)]
    fn group<I: Isa, const R: usize, const TAIL: bool, const SPREAD: bool>(
        &mut self,
        isa: I,
        run: usize,
        row: usize,
        group: usize,
    ) {
        let (rows, col) = (R.min(self.y.rows() - row), group * GROUP);
        let parts = MAX_LANES / I::LANES;
        let mut sums = [[isa.splat(0.0); 4]; R];
        if self.accumulate || run > 0 {
            for r in 0..R {
                if r < rows {
                    let y = &self.y.row_mut(row + r)[col..];
                    for p in 0..parts {
                        let at = if TAIL { y.len().min(p * I::LANES) } else { p * I::LANES };
                        sums[r][p] = load::<I, TAIL>(isa, &y[at..]);
                    }
                }
            }
        }
        let picks = self.picks;
        let at = (self.first + group) * picks.runs + run;
        let (start, end) = (picks.starts[at], picks.starts[at + 1]);
        let windows = &picks.windows[start.window as usize..end.window as usize];
        let mut values = &self.packed[start.value as usize..end.value as usize];
        let mut steps = picks.inputs[start.step as usize..end.step as usize].iter();
        for window in windows {
            let x = self.x.strips::<R, WINDOW>(row, window.first as usize);
            let tables: [I::Table<'_>; R] = std::array::from_fn(|r| isa.table(x[r]));
            for inputs in steps.by_ref().take(window.steps as usize) {
                isa.prefetch(values, AHEAD);
                for p in 0..parts {
                    let inputs = &inputs[p * I::LANES..];
                    let w = next::<I, SPREAD>(isa, &mut values, inputs);
                    for r in 0..R {
                        sums[r][p] = isa.mul_add(w, isa.pick(tables[r], inputs), sums[r][p]);
                    }
                }
            }
        }
        for r in 0..R {
            if r < rows {
                let y = &mut self.y.row_mut(row + r)[col..];
                for p in 0..parts {
                    let at = if TAIL { y.len().min(p * I::LANES) } else { p * I::LANES };
                    store::<I, TAIL>(isa, &mut y[at..], sums[r][p]);
                }
            }
        }
    }
}

/// Takes the values of as many outputs as there are lanes, each in its lane: those that pick an input if they are `SPREAD`.
#[inline(always)]
fn next<I: Isa, const SPREAD: bool>(isa: I, values: &mut &[f32], inputs: &[u8]) -> I::V {
    if SPREAD {
        let mask = isa.picked(inputs);
        let w = isa.expand(values, mask);
        *values = &values[mask.count_ones() as usize..];
        w
    } else {
        let w = isa.load(values);
        *values = &values[I::LANES..];
        w
    }
}
