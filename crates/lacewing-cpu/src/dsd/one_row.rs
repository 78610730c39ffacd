//! Single values times up to four rows: every output is a sum over its values, read once as they lie.
//!
//! Too few rows to lie side by side in registers as [`super::elements`] wants them, so registers hold values. Where
//! one or two of four inputs have a value, a register of values meets the inputs picked for it from registers;
//! where there are many values otherwise, a register of inputs meets its values, spread to their lanes; where there
//! are few, a register of values meets inputs gathered from memory. A value costs four bytes and its column: two bits,
//! a bit for each input there is, or two bytes.

use super::order::Order;
use crate::finish::Target;
use crate::parallel::share;
use crate::scratch::scratch;
use crate::simd::{Isa, Level, MAX_LANES, MatMut, Vectorize};
use std::ops::Range;

/// Rows up to which the products are made here.
pub(super) const MOST_ROWS: usize = 4;
/// Values of one task at least: a few microseconds.
const TASK_VALUES: usize = 16 * 1024;
/// Values that an output costs as much as, besides its own.
const OUTPUT_VALUES: usize = 8;
/// The most tasks.
const TASKS: usize = 16;
/// Inputs of one word of [`Columns::Bits`].
const WORD: usize = 32;
/// Values of one word of [`Columns::Picks`].
const PICKS: usize = 16;
/// Inputs for each value up to which words of bits are faster than gathered inputs.
const INPUTS_PER_VALUE: usize = 4;
/// Values ahead that are asked for.
const AHEAD: usize = 512;
/// The same where several outputs are read side by side, whose values end the sooner.
const AHEAD_IN_EACH: usize = 64;
/// Values that come from memory: of eight outputs side by side the machine asks for them sooner than a program does.
pub(super) const LARGE: usize = 4 << 20;
const LARGE_STREAMS: usize = 8;

/// The inputs of an [`Order`]'s values, small.
#[derive(Debug, Clone)]
pub(super) enum Columns {
    /// Of one or two values in each four inputs, which of the four: two bits for each value, in whole words for
    /// each output.
    Picks {
        /// Values of four inputs.
        of_four: usize,
        /// Those of sixteen values a word.
        picks: Vec<u32>,
    },
    /// For each output its inputs, a bit each, in whole words.
    Bits(Vec<u32>),
    /// The input of each value.
    Narrow(Vec<u16>),
    /// As in the order: they are too many for sixteen bits.
    Wide,
}

impl Columns {
    fn new(order: &Order, n_in: usize) -> Self {
        let n_out = order.starts.len() - 1;
        for of_four in [1, 2] {
            if is_regular(order, n_in, of_four) {
                let picks = order.inputs.chunks(n_in / 4 * of_four).flat_map(|inputs| {
                    inputs
                        .chunks(PICKS)
                        .map(|inputs| inputs.iter().rev().fold(0, |word, input| (word << 2) | (input % 4)))
                });
                return Self::Picks { of_four, picks: picks.collect() };
            }
        }
        if order.inputs.len() * INPUTS_PER_VALUE >= n_in * n_out {
            let words = n_in.div_ceil(WORD);
            let mut bits = vec![0; n_out * words];
            for o in 0..n_out {
                for &i in &order.inputs[order.starts[o]..order.starts[o + 1]] {
                    let i = i as usize;
                    bits[o * words + i / WORD] |= 1 << (i % WORD);
                }
            }
            return Self::Bits(bits);
        }
        match order.inputs.iter().map(|&i| u16::try_from(i)).collect() {
            Ok(narrow) => Self::Narrow(narrow),
            Err(_) => Self::Wide,
        }
    }
}

/// Whether every output has `of_four` values in each four inputs.
fn is_regular(order: &Order, n_in: usize, of_four: usize) -> bool {
    let each = n_in / 4 * of_four;
    let regular = |inputs: &[u32]| inputs.iter().enumerate().all(|(k, &i)| i as usize / 4 == k / of_four);
    n_in > 0
        && n_in.is_multiple_of(4)
        && order.starts.iter().enumerate().all(|(o, &start)| start == o * each)
        && order.inputs.chunks(each).all(regular)
}

/// `y (+)= x Wᵀ` for the values of `order`, which lie in its order, and at most [`MOST_ROWS`] rows.
pub(super) fn product(
    order: &Order,
    values: &[f32],
    (x, n_in): (&[f32], usize),
    y: Target<'_>,
    accumulate: bool,
) {
    let columns = order.columns.get_or_init(|| Columns::new(order, n_in));
    let (rows, n_out) = (y.rows(), y.cols());
    let mut tasks = Vec::new();
    let mut right = y;
    let cost = (values.len() + n_out * OUTPUT_VALUES) * rows;
    for outputs in order.parts((cost / TASK_VALUES).clamp(1, TASKS)) {
        let (left, rest) = right.split_cols(outputs.len());
        tasks.push((outputs, left));
        right = rest;
    }
    let level = Level::current();
    let run = |x: &[f32], quads: &[[f32; 4]]| {
        share(tasks, |(outputs, mut target)| {
            let y = target.sums();
            level.run(Sums { order, columns, values, x, n_in, quads, outputs, y, accumulate });
            target.finish(level);
        });
    };
    if rows == 1 || matches!(columns, Columns::Bits(_) | Columns::Picks { .. }) {
        return run(x, &[]);
    }
    // The rows of each input side by side, four of them always.
    scratch(4 * n_in, |memory| {
        let (quads, _) = memory.as_chunks_mut::<4>();
        for (i, quad) in quads.iter_mut().enumerate() {
            *quad = std::array::from_fn(|r| if r < rows { x[r * n_in + i] } else { 0.0 });
        }
        run(x, quads);
    });
}

/// Some outputs.
struct Sums<'a> {
    order: &'a Order,
    columns: &'a Columns,
    values: &'a [f32],
    x: &'a [f32],
    n_in: usize,
    /// The rows of each input, if there are several and their inputs are gathered.
    quads: &'a [[f32; 4]],
    outputs: Range<usize>,
    y: MatMut<'a>,
    accumulate: bool,
}

impl Vectorize for Sums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(mut self, isa: I) {
        match (self.columns, self.y.rows()) {
            (Columns::Picks { of_four: 1, picks }, 1) => self.picked::<I, 1, 1, 1>(isa, picks),
            (Columns::Picks { of_four: 1, picks }, 2) => self.picked::<I, 2, 1, 2>(isa, picks),
            (Columns::Picks { of_four: 1, picks }, 3) => self.picked::<I, 3, 1, 1>(isa, picks),
            (Columns::Picks { of_four: 1, picks }, _) => self.picked::<I, 4, 1, 2>(isa, picks),
            (Columns::Picks { picks, .. }, 1) if self.values.len() >= LARGE => {
                self.picked::<I, 1, 2, LARGE_STREAMS>(isa, picks);
            }
            (Columns::Picks { picks, .. }, 1) => self.picked::<I, 1, 2, 4>(isa, picks),
            (Columns::Picks { picks, .. }, 2) => self.picked::<I, 2, 2, 2>(isa, picks),
            (Columns::Picks { picks, .. }, 3) => self.picked::<I, 3, 2, 1>(isa, picks),
            (Columns::Picks { picks, .. }, _) => self.picked::<I, 4, 2, 2>(isa, picks),
            (Columns::Bits(bits), 1) => self.spread::<I, 1>(isa, bits),
            (Columns::Bits(bits), 2) => self.spread::<I, 2>(isa, bits),
            (Columns::Bits(bits), 3) => self.spread::<I, 3>(isa, bits),
            (Columns::Bits(bits), _) => self.spread::<I, 4>(isa, bits),
            (Columns::Narrow(inputs), 1) => self.gathered(isa, inputs),
            (Columns::Narrow(inputs), _) => self.gathered_quads(isa, inputs),
            (Columns::Wide, 1) => self.gathered(isa, &self.order.inputs),
            (Columns::Wide, _) => self.gathered_quads(isa, &self.order.inputs),
        }
    }
}

/// A column of some width.
trait Input: Copy {
    /// [`Isa::gather`].
    fn gather<I: Isa>(isa: I, table: &[f32], inputs: &[Self]) -> I::V;
    /// [`Isa::gather_quads`].
    fn gather_quads<I: Isa>(isa: I, table: &[[f32; 4]], inputs: &[Self]) -> I::V;
    /// Its number.
    fn index(self) -> usize;
}

impl Input for u16 {
    #[inline(always)]
    fn gather<I: Isa>(isa: I, table: &[f32], inputs: &[Self]) -> I::V {
        isa.gather(table, inputs)
    }
    #[inline(always)]
    fn gather_quads<I: Isa>(isa: I, table: &[[f32; 4]], inputs: &[Self]) -> I::V {
        isa.gather_quads(table, inputs)
    }
    #[inline(always)]
    fn index(self) -> usize {
        usize::from(self)
    }
}

impl Input for u32 {
    #[inline(always)]
    fn gather<I: Isa>(isa: I, table: &[f32], inputs: &[Self]) -> I::V {
        let mut lanes = [0.0; MAX_LANES];
        for (lane, input) in lanes.iter_mut().zip(inputs) {
            *lane = table[input.index()];
        }
        isa.load(&lanes)
    }
    #[inline(always)]
    fn gather_quads<I: Isa>(isa: I, table: &[[f32; 4]], inputs: &[Self]) -> I::V {
        let mut lanes = [0.0; MAX_LANES];
        for (lanes, input) in lanes.chunks_exact_mut(4).zip(inputs) {
            lanes.copy_from_slice(&table[input.index()]);
        }
        isa.load(&lanes)
    }
    #[inline(always)]
    fn index(self) -> usize {
        self as usize
    }
}

impl Sums<'_> {
    /// `R` rows, `N` values of each four inputs, `O` outputs at once.
    #[inline(always)]
    fn picked<I: Isa, const R: usize, const N: usize, const O: usize>(&mut self, isa: I, picks: &[u32]) {
        let (n_in, n_out) = (self.n_in, self.y.cols());
        let x: [&[f32]; R] = std::array::from_fn(|r| &self.x[r * n_in..][..n_in]);
        let each = n_in / 4 * N;
        let (words, whole, span) = (each.div_ceil(PICKS), each / PICKS, PICKS / N * 4);
        // What is left of the inputs, as if there were enough for a word.
        let mut rest = [[0.0; 4 * PICKS]; R];
        for r in 0..R {
            let x = &x[r][whole * span..];
            rest[r][..x.len()].copy_from_slice(x);
        }
        for o in (0..n_out).step_by(I::LANES / R) {
            let outputs = (I::LANES / R).min(n_out - o);
            let mut square = [isa.splat(0.0); MAX_LANES];
            let mut k = 0;
            while k < outputs {
                // Of several outputs the inputs are read once. The last ones may be the same again.
                let at: [usize; O] =
                    std::array::from_fn(|n| self.outputs.start + o + outputs.min(k + n + 1) - 1);
                let values = at.map(|output| &self.values[output * each..][..each]);
                let picks = at.map(|output| &picks[output * words..][..words]);
                let mut sums = [[isa.splat(0.0); R]; O];
                for word in 0..whole {
                    let x: [&[f32]; R] = std::array::from_fn(|r| &x[r][word * span..][..span]);
                    for n in 0..O {
                        let values = &values[n][word * PICKS..][..PICKS];
                        if O < LARGE_STREAMS {
                            isa.prefetch(values, AHEAD_IN_EACH);
                        }
                        pick::<I, R, N>(isa, &mut sums[n], values, &x, picks[n][word]);
                    }
                }
                for n in 0..O {
                    if whole < words {
                        let (mut left, from) = ([0.0; PICKS], &values[n][whole * PICKS..]);
                        left[..from.len()].copy_from_slice(from);
                        let x: [&[f32]; R] = std::array::from_fn(|r| &rest[r][..span]);
                        pick::<I, R, N>(isa, &mut sums[n], &left, &x, picks[n][whole]);
                    }
                    if k + n < outputs {
                        square[(k + n) * R..][..R].copy_from_slice(&sums[n]);
                    }
                }
                k += O;
            }
            self.put::<I, R>(isa, square, o, outputs);
        }
    }

    /// Adds up the lanes of the sums of `outputs` from `o` on, `R` rows each.
    #[inline(always)]
    fn put<I: Isa, const R: usize>(
        &mut self,
        isa: I,
        mut square: [I::V; MAX_LANES],
        o: usize,
        outputs: usize,
    ) {
        let mut lanes = [0.0; MAX_LANES];
        isa.store(&mut lanes, isa.sum_each(&mut square));
        for r in 0..R {
            let y = &mut self.y.row_mut(r)[o..o + outputs];
            for (y, &sum) in y.iter_mut().zip(lanes[r..].iter().step_by(R)) {
                *y = if self.accumulate { *y + sum } else { sum };
            }
        }
    }

    /// `R` rows, values spread to the lanes of their inputs.
    #[inline(always)]
    fn spread<I: Isa, const R: usize>(&mut self, isa: I, bits: &[u32]) {
        let (n_in, n_out) = (self.n_in, self.y.cols());
        let x: [&[f32]; R] = std::array::from_fn(|r| &self.x[r * n_in..][..n_in]);
        let (words, whole) = (n_in.div_ceil(WORD), n_in / WORD);
        // As many outputs as fill a square with their sums.
        let batch = I::LANES / R;
        for o in (0..n_out).step_by(batch) {
            let outputs = batch.min(n_out - o);
            let mut square = [isa.splat(0.0); MAX_LANES];
            for (k, square) in square.chunks_exact_mut(R).take(outputs).enumerate() {
                let output = self.outputs.start + o + k;
                let mut values = &self.values[self.order.starts[output]..];
                let bits = &bits[output * words..][..words];
                let (mut even, mut odd) = ([isa.splat(0.0); R], [isa.splat(0.0); R]);
                for (word, &bits) in bits[..whole].iter().enumerate() {
                    isa.prefetch(values, AHEAD);
                    let x: [&[f32]; R] = std::array::from_fn(|r| &x[r][word * WORD..][..WORD]);
                    for at in (0..WORD).step_by(2 * I::LANES) {
                        let (w, mask) = next(isa, &mut values, bits >> at);
                        for r in 0..R {
                            even[r] = isa.mul_add_at(mask, w, isa.load(&x[r][at..]), even[r]);
                        }
                        let at = at + I::LANES;
                        let (w, mask) = next(isa, &mut values, bits >> at);
                        for r in 0..R {
                            odd[r] = isa.mul_add_at(mask, w, isa.load(&x[r][at..]), odd[r]);
                        }
                    }
                }
                for at in (whole * WORD..n_in).step_by(I::LANES) {
                    let (w, mask) = next(isa, &mut values, bits[whole] >> (at - whole * WORD));
                    for r in 0..R {
                        let x = isa.load_partial(&x[r][at..n_in.min(at + I::LANES)]);
                        even[r] = isa.mul_add_at(mask, w, x, even[r]);
                    }
                }
                for r in 0..R {
                    square[r] = isa.add(even[r], odd[r]);
                }
            }
            self.put::<I, R>(isa, square, o, outputs);
        }
    }

    /// One row, inputs gathered.
    #[inline(always)]
    fn gathered<I: Isa, T: Input>(&mut self, isa: I, inputs: &[T]) {
        let n_out = self.y.cols();
        for o in (0..n_out).step_by(I::LANES) {
            let outputs = I::LANES.min(n_out - o);
            let mut square = [isa.splat(0.0); MAX_LANES];
            for (k, sum) in square[..outputs].iter_mut().enumerate() {
                let output = self.outputs.start + o + k;
                let range = self.order.starts[output]..self.order.starts[output + 1];
                let (values, inputs) = (&self.values[range.clone()], &inputs[range]);
                let (v, i) = (values.chunks_exact(I::LANES), inputs.chunks_exact(I::LANES));
                let (v_rest, i_rest) = (v.remainder(), i.remainder());
                for (v, i) in v.zip(i) {
                    isa.prefetch(v, AHEAD);
                    *sum = isa.mul_add(isa.load(v), T::gather(isa, self.x, i), *sum);
                }
                if !v_rest.is_empty() {
                    let x = T::gather(isa, self.x, i_rest);
                    *sum = isa.mul_add(isa.load_partial(v_rest), x, *sum);
                }
            }
            let sum = isa.sum_each(&mut square);
            let y = &mut self.y.row_mut(0)[o..o + outputs];
            let sum = if self.accumulate { isa.add(isa.load_partial(y), sum) } else { sum };
            isa.store_partial(y, sum);
        }
    }

    /// Two to four rows, inputs gathered: the rows of an input are a fourth of sixteen lanes.
    #[inline(always)]
    fn gathered_quads<I: Isa, T: Input>(&mut self, isa: I, inputs: &[T]) {
        let (rows, n_out, step) = (self.y.rows(), self.y.cols(), I::LANES / 4);
        for o in (0..n_out).step_by(I::LANES) {
            let outputs = I::LANES.min(n_out - o);
            let mut square = [isa.splat(0.0); MAX_LANES];
            for (k, sum) in square[..outputs].iter_mut().enumerate() {
                let output = self.outputs.start + o + k;
                let range = self.order.starts[output]..self.order.starts[output + 1];
                let (values, inputs) = (&self.values[range.clone()], &inputs[range]);
                let (v, i) = (values.chunks_exact(2 * step), inputs.chunks_exact(2 * step));
                let rest = v.remainder().iter().zip(i.remainder());
                let mut odd = isa.splat(0.0);
                for (v, i) in v.zip(i) {
                    isa.prefetch(v, AHEAD);
                    let (even_x, odd_x) =
                        (T::gather_quads(isa, self.quads, i), T::gather_quads(isa, self.quads, &i[step..]));
                    *sum = isa.mul_add(isa.splat_quads(v), even_x, *sum);
                    odd = isa.mul_add(isa.splat_quads(&v[step..]), odd_x, odd);
                }
                for (&v, &i) in rest {
                    let quad = isa.load_partial(&self.quads[i.index()]);
                    *sum = isa.mul_add(isa.splat(v), quad, *sum);
                }
                *sum = isa.add(*sum, odd);
            }
            // Turned, register `4q + r` has the sums of row `r` in quad `q`.
            isa.transpose(&mut square);
            for r in 0..rows {
                let quads = square[r..I::LANES].iter().step_by(4);
                let sum = quads.fold(isa.splat(0.0), |sum, &other| isa.add(sum, other));
                let y = &mut self.y.row_mut(r)[o..o + outputs];
                let sum = if self.accumulate { isa.add(isa.load_partial(y), sum) } else { sum };
                isa.store_partial(y, sum);
            }
        }
    }
}

/// Adds the products of a word's values with the inputs that it picks.
#[inline(always)]
fn pick<I: Isa, const R: usize, const N: usize>(
    isa: I,
    sums: &mut [I::V; R],
    values: &[f32],
    x: &[&[f32]; R],
    picks: u32,
) {
    for at in (0..PICKS).step_by(I::LANES) {
        let w = isa.load(&values[at..]);
        for r in 0..R {
            let x = isa.pick_of_four::<N>(&x[r][at * 4 / N..], picks >> (2 * at));
            sums[r] = isa.mul_add(w, x, sums[r]);
        }
    }
}

/// Takes the values of the lanes whose bits are set, each in its lane, and says which lanes these are.
#[inline(always)]
fn next<I: Isa>(isa: I, values: &mut &[f32], bits: u32) -> (I::V, u16) {
    let mask = bits as u16 & (u16::MAX >> (16 - I::LANES));
    let spread = isa.expand(values, mask);
    *values = &values[mask.count_ones() as usize..];
    (spread, mask)
}
