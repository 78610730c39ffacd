//! Vector instructions behind proof-carrying tokens.
//!
//! A kernel is written once, generic over [`Isa`], as a [`Vectorize`]; [`dispatch`] compiles it for every
//! level and enters the best one of this CPU. An `Isa` value can be had only where its instructions exist, so
//! its methods are safe. This module is the crate's whole `unsafe` surface: one file an instruction set, plus
//! `view` (disjoint strided views of one buffer) and `dense` (the one call of the `gemm` crate).

/// [`Isa::table`] and [`Isa::pick`] one by one, where no instruction picks from as many.
macro_rules! table_in_memory {
    () => {
        type Table<'a> = &'a [f32; crate::simd::WINDOW];

        #[inline(always)]
        fn table(self, from: &[f32; crate::simd::WINDOW]) -> Self::Table<'_> {
            from
        }

        #[inline(always)]
        fn pick(self, table: Self::Table<'_>, at: &[u8]) -> Self::V {
            let mut lanes = [0.0; crate::simd::MAX_LANES];
            for (lane, &at) in lanes.iter_mut().zip(&at[..Self::LANES]) {
                let picked = at >= crate::simd::PICKED;
                *lane = if picked { table[usize::from(at) % crate::simd::WINDOW] } else { 0.0 };
            }
            self.load(&lanes)
        }
    };
}
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod dense;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod view;

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

pub(crate) use dense::product;
pub use view::{MatMut, MatRef};

/// The most f32 that one register holds at any level.
pub const MAX_LANES: usize = 16;

/// Elements of an [`Isa::Table`].
pub const WINDOW: usize = 32;

/// What [`Isa::pick`] takes for its first element.
pub const PICKED: u8 = 128;

/// A vector instruction set, as a token: holding one proves that the CPU has it.
///
/// The methods are what the kernels need and nothing more. They are `#[inline(always)]`, or each would be a
/// function call.
pub trait Isa: Copy + Send + Sync + 'static {
    /// One register of f32.
    type V: Copy;
    /// One truth value a lane.
    type M: Copy;
    /// A window of inputs to pick from.
    type Table<'a>: Copy;
    /// f32 a register.
    const LANES: usize;

    /// `from`, for [`Isa::pick`].
    fn table(self, from: &[f32; WINDOW]) -> Self::Table<'_>;
    /// Element `i % WINDOW` of the table where `at` has [`PICKED`]` + i`, for its first `LANES`; zero where it has less.
    /// Panics if there are fewer.
    fn pick(self, table: Self::Table<'_>, at: &[u8]) -> Self::V;
    /// Whether [`Isa::pick`] picks an element for a lane, a bit each. Panics if `at` has fewer than `LANES`.
    #[inline(always)]
    fn picked(self, at: &[u8]) -> u16 {
        let at = at[..Self::LANES].iter().rev();
        at.fold(0, |bits, &at| bits << 1 | u16::from(at >= PICKED))
    }

    /// `a` in every lane.
    fn splat(self, a: f32) -> Self::V;
    /// Loads the first `LANES` elements. Panics if there are fewer.
    fn load(self, from: &[f32]) -> Self::V;
    /// Stores to the first `LANES` elements. Panics if there are fewer.
    fn store(self, to: &mut [f32], v: Self::V);
    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`, rounded once or twice as the CPU does it.
    fn mul_add(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The greater; NaN where `b` is NaN.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; NaN where `b` is NaN.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// `-a`.
    fn neg(self, a: Self::V) -> Self::V;
    /// `|a|`.
    fn abs(self, a: Self::V) -> Self::V;
    /// The square root, correctly rounded.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// The nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// `a · 2ⁿ` for integral `n` in `-252..=252`, with gradual underflow.
    fn scale_by_pow2(self, a: Self::V, n: Self::V) -> Self::V;
    /// `a < b`; false where either is NaN.
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// `a` where `m` holds, else `b`.
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V;

    /// [`Isa::mul_add`] in the lanes whose bit `mask` has, `c` in the others, whatever `a` and `b` are there.
    #[inline(always)]
    fn mul_add_at(self, mask: u16, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let (mut sum, mut lanes) = ([0.0; MAX_LANES], [0.0; MAX_LANES]);
        self.store(&mut sum, self.mul_add(a, b, c));
        self.store(&mut lanes, c);
        for (i, (lane, sum)) in lanes[..Self::LANES].iter_mut().zip(sum).enumerate() {
            if mask >> i & 1 == 1 {
                *lane = sum;
            }
        }
        self.load(&lanes)
    }

    /// Asks for the cache line of the element `ahead` of the first of `from`, which need not exist.
    #[inline(always)]
    fn prefetch(self, from: &[f32], ahead: usize) {
        let _ = (from, ahead);
    }

    /// Loads `from`, shorter than a register or just as long, into the first lanes; zero in the others.
    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> Self::V {
        let mut lanes = [0.0; MAX_LANES];
        lanes[..from.len()].copy_from_slice(from);
        self.load(&lanes)
    }

    /// Stores the first lanes to `to`, shorter than a register or just as long.
    #[inline(always)]
    fn store_partial(self, to: &mut [f32], v: Self::V) {
        let mut lanes = [0.0; MAX_LANES];
        self.store(&mut lanes, v);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// `table[indices[i]]` in lane `i`, for as many indices as lanes or fewer. Zero in the lanes that have none, and
    /// where the table ends before an index.
    #[inline(always)]
    fn gather(self, table: &[f32], indices: &[u16]) -> Self::V {
        let mut lanes = [0.0; MAX_LANES];
        for (lane, &i) in lanes[..Self::LANES].iter_mut().zip(indices) {
            *lane = table.get(usize::from(i)).copied().unwrap_or(0.0);
        }
        self.load(&lanes)
    }

    /// The first elements of `from`, one after the other, in the lanes whose bits `mask` has; zero in the others. Bits
    /// beyond the lanes do not count. Panics if there are too few elements.
    #[inline(always)]
    fn expand(self, from: &[f32], mask: u16) -> Self::V {
        let (mut lanes, mut next) = ([0.0; MAX_LANES], 0);
        for (i, lane) in lanes[..Self::LANES].iter_mut().enumerate() {
            if mask >> i & 1 == 1 {
                *lane = from[next];
                next += 1;
            }
        }
        self.load(&lanes)
    }

    /// `from[4 (i / N) + (picks >> 2i & 3)]` in lane `i`: of each four elements one, or two with `N = 2`, by two bits
    /// each. Panics if there are not `4 · LANES / N` elements.
    #[inline(always)]
    fn pick_of_four<const N: usize>(self, from: &[f32], picks: u32) -> Self::V {
        const { assert!(N == 1 || N == 2) };
        let from = &from[..4 * Self::LANES / N];
        let mut lanes = [0.0; MAX_LANES];
        for (i, lane) in lanes[..Self::LANES].iter_mut().enumerate() {
            *lane = from[i / N * 4 + (picks >> (2 * i) & 3) as usize];
        }
        self.load(&lanes)
    }

    /// The first `N` elements over and over, for four, or eight where there are as many lanes. Panics if there are fewer.
    #[inline(always)]
    fn repeat<const N: usize>(self, from: &[f32]) -> Self::V {
        let from = &from[..N];
        let mut lanes = [0.0; MAX_LANES];
        for lanes in lanes.chunks_exact_mut(N) {
            lanes.copy_from_slice(from);
        }
        self.load(&lanes)
    }

    /// Each of the first `LANES / 4` elements, four times. Panics if there are fewer.
    #[inline(always)]
    fn splat_quads(self, from: &[f32]) -> Self::V {
        let from = &from[..Self::LANES / 4];
        let mut lanes = [0.0; MAX_LANES];
        for (quad, &a) in lanes.chunks_exact_mut(4).zip(from) {
            quad.fill(a);
        }
        self.load(&lanes)
    }

    /// `table[indices[q]]` in lanes `4q..4q + 4`, for the first `LANES / 4` indices. Panics if there are fewer, or where
    /// the table ends before one.
    #[inline(always)]
    fn gather_quads(self, table: &[[f32; 4]], indices: &[u16]) -> Self::V {
        let indices = &indices[..Self::LANES / 4];
        let mut lanes = [0.0; MAX_LANES];
        for (quad, &i) in lanes.chunks_exact_mut(4).zip(indices) {
            quad.copy_from_slice(&table[usize::from(i)]);
        }
        self.load(&lanes)
    }

    /// `a₀ b₀ a₁ b₁ …` in two registers.
    #[inline(always)]
    fn interleave(self, a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        let (mut x, mut y, mut lanes) = ([0.0; MAX_LANES], [0.0; MAX_LANES], [0.0; 2 * MAX_LANES]);
        self.store(&mut x, a);
        self.store(&mut y, b);
        for i in 0..Self::LANES {
            (lanes[2 * i], lanes[2 * i + 1]) = (x[i], y[i]);
        }
        (self.load(&lanes), self.load(&lanes[Self::LANES..]))
    }

    /// Lane `j` of register `i` to lane `i` of register `j`, for the first `LANES` registers.
    #[inline(always)]
    fn transpose(self, tile: &mut [Self::V; MAX_LANES]) {
        let half = Self::LANES / 2;
        let mut round = 1;
        while round < Self::LANES {
            let from = *tile;
            for i in 0..half {
                (tile[2 * i], tile[2 * i + 1]) = self.interleave(from[i], from[i + half]);
            }
            round *= 2;
        }
    }

    /// [`Isa::transpose`] of what lies in memory: element `j` of `row(i)` in lane `i` of register `j`, for the first
    /// `LANES` rows. Panics if one has fewer elements.
    #[inline(always)]
    fn load_transposed<'a>(self, row: impl Fn(usize) -> &'a [f32]) -> [Self::V; MAX_LANES] {
        let mut tile = [self.splat(0.0); MAX_LANES];
        for (i, tile) in tile[..Self::LANES].iter_mut().enumerate() {
            *tile = self.load(row(i));
        }
        self.transpose(&mut tile);
        tile
    }

    /// The sum of the lanes of each of the first `LANES` registers, in the lanes of one; `all` is overwritten.
    #[inline(always)]
    fn sum_each(self, all: &mut [Self::V; MAX_LANES]) -> Self::V {
        // Lane `i` of `add(interleave(a, b))` is of `a` where `i` is even, else of `b`: joining a register with the one
        // half of them further on, again and again, leaves each sum in its own lane.
        let mut half = Self::LANES / 2;
        while half > 0 {
            for i in 0..half {
                let (low, high) = self.interleave(all[i], all[i + half]);
                all[i] = self.add(low, high);
            }
            half /= 2;
        }
        all[0]
    }

    /// The sum of the lanes, added in halves.
    #[inline(always)]
    fn reduce_add(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; MAX_LANES];
        self.store(&mut lanes, v);
        let mut half = Self::LANES / 2;
        while half > 0 {
            for i in 0..half {
                lanes[i] += lanes[i + half];
            }
            half /= 2;
        }
        lanes[0]
    }

    /// The greatest lane; unspecified with a NaN among them.
    #[inline(always)]
    fn reduce_max(self, v: Self::V) -> f32 {
        let mut lanes = [0.0; MAX_LANES];
        self.store(&mut lanes, v);
        lanes[..Self::LANES].iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Loads a register, or with `TAIL` what there is of one.
#[inline(always)]
pub(crate) fn load<I: Isa, const TAIL: bool>(isa: I, from: &[f32]) -> I::V {
    if TAIL { isa.load_partial(&from[..I::LANES.min(from.len())]) } else { isa.load(from) }
}

/// Stores a register, or with `TAIL` what there is room for.
#[inline(always)]
pub(crate) fn store<I: Isa, const TAIL: bool>(isa: I, to: &mut [f32], v: I::V) {
    if TAIL {
        let len = I::LANES.min(to.len());
        isa.store_partial(&mut to[..len], v);
    } else {
        isa.store(to, v);
    }
}

/// A computation that can be compiled for any [`Isa`].
pub trait Vectorize {
    /// What it returns.
    type Output;
    /// Must be `#[inline(always)]`, so that it is compiled inside the level's own function.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

/// Which instruction set to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Plain Rust, four lanes for the compiler to vectorize.
    Scalar,
    /// NEON: four lanes.
    Neon,
    /// AVX2 and FMA: eight lanes.
    Avx2,
    /// AVX-512 F, VL, BW and DQ: sixteen lanes.
    Avx512,
}

impl Level {
    const ALL: [Self; 4] = [Self::Avx512, Self::Avx2, Self::Neon, Self::Scalar];

    /// The levels of this CPU, best first; never empty.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|level| level.detected()).collect()
    }

    /// The level that [`dispatch`] uses now: the best one of this CPU, found once, unless [`with_level`] runs.
    pub fn current() -> Self {
        match CURRENT.load(Ordering::Relaxed) {
            UNKNOWN => {
                let best = Self::ALL.into_iter().find(|level| level.detected()).unwrap_or(Self::Scalar);
                CURRENT.store(best as u8, Ordering::Relaxed);
                best
            }
            code => Self::ALL.into_iter().find(|level| *level as u8 == code).unwrap_or(Self::Scalar),
        }
    }

    /// f32 a register, of the instructions that [`Level::run`] takes.
    pub fn lanes(self) -> usize {
        self.run(Lanes)
    }

    fn detected(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => avx512::Avx512::detect().is_some(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::Neon::detect().is_some(),
            _ => false,
        }
    }

    /// Runs `op` at this level, or in plain Rust where the CPU lacks it.
    #[inline]
    pub fn run<T: Vectorize>(self, op: T) -> T::Output {
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx512
            && let Some(isa) = avx512::Avx512::detect()
        {
            return isa.enter(op);
        }
        #[cfg(target_arch = "x86_64")]
        if self == Self::Avx2
            && let Some(isa) = avx2::Avx2::detect()
        {
            return isa.enter(op);
        }
        #[cfg(target_arch = "aarch64")]
        if self == Self::Neon
            && let Some(isa) = neon::Neon::detect()
        {
            return isa.enter(op);
        }
        op.run(scalar::Scalar)
    }
}

struct Lanes;

impl Vectorize for Lanes {
    type Output = usize;

    #[inline(always)]
    fn run<I: Isa>(self, _: I) -> usize {
        I::LANES
    }
}

const UNKNOWN: u8 = u8::MAX;
static CURRENT: AtomicU8 = AtomicU8::new(UNKNOWN);

/// Runs `op` at the best level of this CPU (or the one [`with_level`] forces).
#[inline]
pub fn dispatch<T: Vectorize>(op: T) -> T::Output {
    Level::current().run(op)
}

/// Runs `f` with every [`dispatch`] of the process at `level`: for tests and benches. One caller at a time.
pub fn with_level<R>(level: Level, f: impl FnOnce() -> R) -> R {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            CURRENT.store(UNKNOWN, Ordering::Relaxed);
        }
    }
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let _restore = Restore;
    CURRENT.store(level as u8, Ordering::Relaxed);
    f()
}

#[cfg(test)]
mod tests;
