//! NEON: four lanes.

use super::{Isa, Vectorize};
use std::arch::aarch64::*;

/// Proof that this CPU has NEON.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    pub(super) fn enter<T: Vectorize>(self, op: T) -> T::Output {
        #[target_feature(enable = "neon")]
        fn inner<T: Vectorize>(isa: Neon, op: T) -> T::Output {
            op.run(isa)
        }
        // SAFETY: `self` exists only if `detect` saw NEON.
        unsafe { inner(self, op) }
    }

    /// 2ⁿ for `n` in `-126..=127`, by writing the exponent.
    #[inline(always)]
    fn pow2(self, n: int32x4_t) -> float32x4_t {
        // SAFETY: `self` proves NEON.
        let bias = unsafe { vdupq_n_s32(127) };
        // SAFETY: `self` proves NEON.
        let biased = unsafe { vaddq_s32(n, bias) };
        // SAFETY: `self` proves NEON.
        let bits = unsafe { vshlq_n_s32::<23>(biased) };
        // SAFETY: `self` proves NEON.
        unsafe { vreinterpretq_f32_s32(bits) }
    }
}

macro_rules! lanewise {
    ($($name:ident($($a:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($a: float32x4_t),+) -> float32x4_t {
            // SAFETY: `self` proves NEON.
            unsafe { $intrinsic($($a),+) }
        }
    )+};
}

impl Isa for Neon {
    type V = float32x4_t;
    type M = uint32x4_t;
    const LANES: usize = 4;

    table_in_memory!();

    lanewise! {
        add(a, b) = vaddq_f32;
        sub(a, b) = vsubq_f32;
        mul(a, b) = vmulq_f32;
        div(a, b) = vdivq_f32;
        max(a, b) = vmaxq_f32;
        min(a, b) = vminq_f32;
        neg(a) = vnegq_f32;
        abs(a) = vabsq_f32;
        sqrt(a) = vsqrtq_f32;
        round(a) = vrndnq_f32;
    }

    #[inline(always)]
    fn mul_add(self, a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    fn splat(self, a: f32) -> float32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vdupq_n_f32(a) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> float32x4_t {
        let from = from[..Self::LANES].as_ptr();
        // SAFETY: the slice above is 16 readable bytes.
        unsafe { vld1q_f32(from) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], v: float32x4_t) {
        let to = to[..Self::LANES].as_mut_ptr();
        // SAFETY: the slice above is 16 writable bytes.
        unsafe { vst1q_f32(to, v) }
    }

    #[inline(always)]
    fn scale_by_pow2(self, a: float32x4_t, n: float32x4_t) -> float32x4_t {
        // Two factors, each a normal number, cover the subnormal results.
        // SAFETY: `self` proves NEON.
        let n = unsafe { vcvtq_s32_f32(n) };
        // SAFETY: `self` proves NEON.
        let low = unsafe { vshrq_n_s32::<1>(n) };
        // SAFETY: `self` proves NEON.
        let high = unsafe { vsubq_s32(n, low) };
        let a = self.mul(a, self.pow2(low));
        self.mul(a, self.pow2(high))
    }

    #[inline(always)]
    fn lt(self, a: float32x4_t, b: float32x4_t) -> uint32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vcltq_f32(a, b) }
    }

    #[inline(always)]
    fn select(self, m: uint32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
        // SAFETY: `self` proves NEON.
        unsafe { vbslq_f32(m, a, b) }
    }

    #[inline(always)]
    fn reduce_add(self, v: float32x4_t) -> f32 {
        // SAFETY: `self` proves NEON.
        unsafe { vaddvq_f32(v) }
    }

    #[inline(always)]
    fn reduce_max(self, v: float32x4_t) -> f32 {
        // SAFETY: `self` proves NEON.
        unsafe { vmaxvq_f32(v) }
    }
}
