//! AVX2 with FMA: eight lanes.

use super::{Isa, Vectorize};
use std::arch::x86_64::*;

/// Proof that this CPU has AVX2 and FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    pub(super) fn enter<T: Vectorize>(self, op: T) -> T::Output {
        #[target_feature(enable = "avx2,fma")]
        fn inner<T: Vectorize>(isa: Avx2, op: T) -> T::Output {
            op.run(isa)
        }
        // SAFETY: `self` exists only if `detect` saw both features.
        unsafe { inner(self, op) }
    }
}

macro_rules! lanewise {
    ($($name:ident($($a:ident),+) = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, $($a: __m256),+) -> __m256 {
            // SAFETY: `self` proves AVX and FMA.
            unsafe { $intrinsic($($a),+) }
        }
    )+};
}

impl Isa for Avx2 {
    type V = __m256;
    type M = __m256;
    const LANES: usize = 8;

    lanewise! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        mul_add(a, b, c) = _mm256_fmadd_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
        sqrt(a) = _mm256_sqrt_ps;
    }

    #[inline(always)]
    fn splat(self, a: f32) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_set1_ps(a) }
    }

    #[inline(always)]
    fn load(self, from: &[f32]) -> __m256 {
        let from = from[..Self::LANES].as_ptr();
        // SAFETY: the slice above is 32 readable bytes; no alignment is asked for.
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    fn store(self, to: &mut [f32], v: __m256) {
        let to = to[..Self::LANES].as_mut_ptr();
        // SAFETY: the slice above is 32 writable bytes; no alignment is asked for.
        unsafe { _mm256_storeu_ps(to, v) }
    }

    #[inline(always)]
    fn prefetch(self, from: &[f32], ahead: usize) {
        let line = from.as_ptr().wrapping_add(ahead);
        // SAFETY: a prefetch accesses nothing that a program could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    fn interleave(self, a: __m256, b: __m256) -> (__m256, __m256) {
        // SAFETY: `self` proves AVX.
        let low = unsafe { _mm256_unpacklo_ps(a, b) };
        // SAFETY: `self` proves AVX.
        let high = unsafe { _mm256_unpackhi_ps(a, b) };
        // SAFETY: `self` proves AVX.
        let first = unsafe { _mm256_permute2f128_ps::<0x20>(low, high) };
        // SAFETY: `self` proves AVX.
        let second = unsafe { _mm256_permute2f128_ps::<0x31>(low, high) };
        (first, second)
    }

    #[inline(always)]
    fn neg(self, a: __m256) -> __m256 {
        let sign = self.splat(-0.0);
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_xor_ps(sign, a) }
    }

    #[inline(always)]
    fn abs(self, a: __m256) -> __m256 {
        let sign = self.splat(-0.0);
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_andnot_ps(sign, a) }
    }

    #[inline(always)]
    fn round(self, a: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }

    #[inline(always)]
    fn scale_by_pow2(self, a: __m256, n: __m256) -> __m256 {
        // Two factors, each a normal number, cover the subnormal results.
        // SAFETY: `self` proves AVX.
        let n = unsafe { _mm256_cvtps_epi32(n) };
        // SAFETY: `self` proves AVX2.
        let low = unsafe { _mm256_srai_epi32::<1>(n) };
        // SAFETY: `self` proves AVX2.
        let high = unsafe { _mm256_sub_epi32(n, low) };
        let a = self.mul(a, self.pow2(low));
        self.mul(a, self.pow2(high))
    }

    #[inline(always)]
    fn lt(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
    }

    #[inline(always)]
    fn select(self, m: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_blendv_ps(b, a, m) }
    }
}

impl Avx2 {
    /// 2ⁿ for `n` in `-126..=127`, by writing the exponent.
    #[inline(always)]
    fn pow2(self, n: __m256i) -> __m256 {
        // SAFETY: `self` proves AVX.
        let bias = unsafe { _mm256_set1_epi32(127) };
        // SAFETY: `self` proves AVX2.
        let biased = unsafe { _mm256_add_epi32(n, bias) };
        // SAFETY: `self` proves AVX2.
        let bits = unsafe { _mm256_slli_epi32::<23>(biased) };
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_castsi256_ps(bits) }
    }
}
