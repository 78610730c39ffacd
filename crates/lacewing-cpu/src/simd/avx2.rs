//! AVX2 with FMA: eight lanes.

use super::{Isa, Vectorize};
use std::arch::x86_64::*;

/// Proof that this CPU has AVX2, FMA and POPCNT.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("popcnt"))
        .then_some(Self(()))
    }

    pub(super) fn enter<T: Vectorize>(self, op: T) -> T::Output {
        #[target_feature(enable = "avx2,fma,popcnt")]
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

    table_in_memory!();

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
    fn mul_add_at(self, mask: u16, a: __m256, b: __m256, c: __m256) -> __m256 {
        self.select(self.lanes_of(mask as u8), self.mul_add(a, b, c), c)
    }

    #[inline(always)]
    fn prefetch(self, from: &[f32], ahead: usize) {
        let line = from.as_ptr().wrapping_add(ahead);
        // SAFETY: a prefetch accesses nothing that a program could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    fn gather(self, table: &[f32], indices: &[u16]) -> __m256 {
        let mut whole = [0; 8];
        let from = match indices.first_chunk() {
            Some(from) => from,
            None => {
                whole[..indices.len()].copy_from_slice(indices);
                &whole
            }
        };
        // SAFETY: the array is 16 readable bytes.
        let at = unsafe { _mm_loadu_si128(from.as_ptr().cast()) };
        // SAFETY: `self` proves AVX2.
        let at = unsafe { _mm256_cvtepu16_epi32(at) };
        // An index has sixteen bits, so that a longer table need not be told apart.
        let end = self.splat_integer(table.len().min(1 << 16) as i32);
        // SAFETY: `self` proves AVX2.
        let inside = unsafe { _mm256_cmpgt_epi32(end, at) };
        // SAFETY: as above.
        let lanes = unsafe { _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7) };
        // SAFETY: as above.
        let asked = unsafe { _mm256_cmpgt_epi32(self.splat_integer(indices.len().min(8) as i32), lanes) };
        // SAFETY: as above.
        let inside = unsafe { _mm256_and_si256(inside, asked) };
        // SAFETY: `self` proves AVX.
        let inside = unsafe { _mm256_castsi256_ps(inside) };
        let zero = self.splat(0.0);
        // SAFETY: the mask leaves the indices of elements of the table, and its address is scaled by their size.
        unsafe { _mm256_mask_i32gather_ps::<4>(zero, table.as_ptr(), at, inside) }
    }

    #[inline(always)]
    fn expand(self, from: &[f32], mask: u16) -> __m256 {
        let mask = mask as u8;
        assert!(mask.count_ones() as usize <= from.len());
        let packed = if from.len() < 8 { self.load_partial(from) } else { self.load(from) };
        let sources = &SOURCES[usize::from(mask)];
        // SAFETY: the array is 8 readable bytes.
        let sources = unsafe { _mm_loadl_epi64(sources.as_ptr().cast()) };
        // SAFETY: `self` proves AVX2.
        let sources = unsafe { _mm256_cvtepu8_epi32(sources) };
        // SAFETY: as above; the sources are lanes.
        let spread = unsafe { _mm256_permutevar8x32_ps(packed, sources) };
        let set = self.lanes_of(mask);
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_and_ps(spread, set) }
    }

    #[inline(always)]
    fn pick_of_four<const N: usize>(self, from: &[f32], picks: u32) -> __m256 {
        const { assert!(N == 1 || N == 2) };
        let from = &from[..32 / N];
        // SAFETY: `self` proves AVX.
        let shifts = unsafe { _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14) };
        // SAFETY: `self` proves AVX2.
        let shifted = unsafe { _mm256_srlv_epi32(self.splat_integer(picks as i32), shifts) };
        // SAFETY: as above.
        let picks = unsafe { _mm256_and_si256(shifted, self.splat_integer(3)) };
        // The first of each four in its register.
        let fours = if N == 2 {
            // SAFETY: as above.
            unsafe { _mm256_setr_epi32(0, 0, 4, 4, 0, 0, 4, 4) }
        } else {
            // SAFETY: as above.
            unsafe { _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4) }
        };
        // SAFETY: as above.
        let lanes = unsafe { _mm256_or_si256(fours, picks) };
        let picked = |register: usize| {
            let from = self.load(&from[8 * register..]);
            // SAFETY: `self` proves AVX2; the indices are lanes.
            unsafe { _mm256_permutevar8x32_ps(from, lanes) }
        };
        if N == 2 {
            // SAFETY: `self` proves AVX.
            return unsafe { _mm256_blend_ps::<0b1111_0000>(picked(0), picked(1)) };
        }
        // SAFETY: as above.
        let low = unsafe { _mm256_blend_ps::<0b0000_1100>(picked(0), picked(1)) };
        // SAFETY: as above.
        let high = unsafe { _mm256_blend_ps::<0b1100_0000>(picked(2), picked(3)) };
        // SAFETY: as above.
        unsafe { _mm256_blend_ps::<0b1111_0000>(low, high) }
    }

    #[inline(always)]
    fn repeat<const N: usize>(self, from: &[f32]) -> __m256 {
        const { assert!(N == 4 || N == 8) };
        if N == 8 {
            return self.load(from);
        }
        let from = from[..N].as_ptr();
        // SAFETY: the slice above is 16 readable bytes.
        let quad = unsafe { _mm_loadu_ps(from) };
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_set_m128(quad, quad) }
    }

    #[inline(always)]
    fn splat_quads(self, from: &[f32]) -> __m256 {
        let from = &from[..2];
        // SAFETY: `self` proves AVX.
        let low = unsafe { _mm_set1_ps(from[0]) };
        // SAFETY: as above.
        let high = unsafe { _mm_set1_ps(from[1]) };
        // SAFETY: as above.
        unsafe { _mm256_set_m128(high, low) }
    }

    #[inline(always)]
    fn gather_quads(self, table: &[[f32; 4]], indices: &[u16]) -> __m256 {
        let indices = &indices[..2];
        let quad = |i: usize| {
            let quad: &[f32; 4] = &table[usize::from(indices[i])];
            // SAFETY: the array is 16 readable bytes.
            unsafe { _mm_loadu_ps(quad.as_ptr()) }
        };
        let (low, high) = (quad(0), quad(1));
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_set_m128(high, low) }
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

/// For every mask of eight lanes: the number of bits below each lane.
static SOURCES: [[u8; 8]; 256] = {
    let mut sources = [[0; 8]; 256];
    let mut at = 0;
    while at < 256 * 8 {
        let (mask, lane) = (at / 8, at % 8);
        sources[mask][lane] = (mask & ((1 << lane) - 1)).count_ones() as u8;
        at += 1;
    }
    sources
};

impl Avx2 {
    /// `a` in every lane.
    #[inline(always)]
    fn splat_integer(self, a: i32) -> __m256i {
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_set1_epi32(a) }
    }

    /// All bits of the lanes whose bit the mask has.
    #[inline(always)]
    fn lanes_of(self, mask: u8) -> __m256 {
        // SAFETY: `self` proves AVX.
        let bits = unsafe { _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128) };
        // SAFETY: `self` proves AVX2.
        let set = unsafe { _mm256_and_si256(self.splat_integer(i32::from(mask)), bits) };
        // SAFETY: as above.
        let set = unsafe { _mm256_cmpeq_epi32(set, bits) };
        // SAFETY: `self` proves AVX.
        unsafe { _mm256_castsi256_ps(set) }
    }

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
