//! AVX-512 (F, VL, BW, DQ): sixteen lanes, partial loads and stores by mask.

use super::{Isa, Vectorize};
use std::arch::x86_64::*;

/// Proof that this CPU has AVX-512 F, VL, BW and DQ, and AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma"))
        .then_some(Self(()))
    }

    pub(super) fn enter<T: Vectorize>(self, op: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")]
        fn inner<T: Vectorize>(isa: Avx512, op: T) -> T::Output {
            op.run(isa)
        }
        // SAFETY: `self` exists only if `detect` saw the features.
        unsafe { inner(self, op) }
    }
}

macro_rules! lanewise {
    ($($name:ident($($a:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($a: __m512),+) -> __m512 {
            // SAFETY: `self` proves AVX-512 F and DQ.
            unsafe { $intrinsic($($a),+) }
        }
    )+};
}

/// The first `len` lanes.
#[inline(always)]
fn first(len: usize) -> __mmask16 {
    assert!(len <= Avx512::LANES);
    ((1_u32 << len) - 1) as __mmask16
}

impl Isa for Avx512 {
    type V = __m512;
    type M = __mmask16;
    const LANES: usize = 16;

    lanewise! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        mul_add(a, b, c) = _mm512_fmadd_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
        abs(a) = _mm512_abs_ps;
        sqrt(a) = _mm512_sqrt_ps;
        scale_by_pow2(a, n) = _mm512_scalef_ps;
    }

    #[inline(always)]
    fn splat(self, a: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_ps(a) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m512 {
        let from = from[..Self::LANES].as_ptr();
        // SAFETY: the slice above is 64 readable bytes; no alignment is asked for.
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], v: __m512) {
        let to = to[..Self::LANES].as_mut_ptr();
        // SAFETY: the slice above is 64 writable bytes; no alignment is asked for.
        unsafe { _mm512_storeu_ps(to, v) }
    }

    #[inline(always)]
    fn load_partial(self, from: &[f32]) -> __m512 {
        let mask = first(from.len());
        // SAFETY: the mask keeps the load inside the slice.
        unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr()) }
    }

    #[inline(always)]
    fn store_partial(self, to: &mut [f32], v: __m512) {
        let mask = first(to.len());
        // SAFETY: the mask keeps the store inside the slice.
        unsafe { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask, v) }
    }

    #[inline(always)]
    fn prefetch(self, from: &[f32], ahead: usize) {
        let line = from.as_ptr().wrapping_add(ahead);
        // SAFETY: a prefetch accesses nothing that a program could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    fn interleave(self, a: __m512, b: __m512) -> (__m512, __m512) {
        // SAFETY: `self` proves AVX-512 F.
        let low = unsafe { _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23) };
        // SAFETY: as above.
        let high = unsafe { _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31) };
        // SAFETY: as above; the indices are lanes of the two.
        let first = unsafe { _mm512_permutex2var_ps(a, low, b) };
        // SAFETY: as above.
        let second = unsafe { _mm512_permutex2var_ps(a, high, b) };
        (first, second)
    }

    #[inline(always)]
    fn neg(self, a: __m512) -> __m512 {
        let sign = self.splat(-0.0);
        // SAFETY: `self` proves AVX-512 DQ.
        unsafe { _mm512_xor_ps(sign, a) }
    }

    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn lt(self, a: __m512, b: __m512) -> __mmask16 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
    }

    #[inline(always)]
    fn select(self, m: __mmask16, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_mask_blend_ps(m, b, a) }
    }

    #[inline(always)]
    fn reduce_add(self, v: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_reduce_add_ps(v) }
    }

    #[inline(always)]
    fn reduce_max(self, v: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_reduce_max_ps(v) }
    }
}
