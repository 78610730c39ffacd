//! AVX-512 (F, VL, BW, DQ): sixteen lanes, partial loads and stores by mask.

use super::{Isa, MAX_LANES, PICKED, Vectorize, WINDOW};
use std::arch::x86_64::*;

/// Proof that this CPU has AVX-512 F, VL, BW and DQ, and AVX2, FMA and POPCNT.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("popcnt"))
        .then_some(Self(()))
    }

    pub(super) fn enter<T: Vectorize>(self, op: T) -> T::Output {
        #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,popcnt")]
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

impl Avx512 {
    /// The first sixteen.
    #[inline(always)]
    fn load_bytes(self, from: &[u8]) -> __m128i {
        let from = from[..MAX_LANES].as_ptr();
        // SAFETY: the slice above is 16 readable bytes; no alignment is asked for.
        unsafe { _mm_loadu_si128(from.cast()) }
    }
}

/// Moves within quarters of a register, for [`Isa::load_transposed`].
impl Avx512 {
    lanewise! {
        unpack_low(a, b) = _mm512_unpacklo_ps;
        unpack_high(a, b) = _mm512_unpackhi_ps;
    }

    /// Of each quarter two lanes of `a` and two of `b`.
    #[inline(always)]
    fn halves<const PICK: i32>(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_shuffle_ps::<PICK>(a, b) }
    }

    /// Elements `4at..4at + 4` in each quarter.
    #[inline(always)]
    fn quarters(self, from: &[f32; MAX_LANES], at: usize) -> __m512 {
        let from = from[4 * at..][..4].as_ptr();
        // SAFETY: the slice above is 16 readable bytes; no alignment is asked for.
        let from = unsafe { _mm_loadu_ps(from) };
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_broadcast_f32x4(from) }
    }

    /// Elements `4at..4at + 4` in the quarter of the lanes `MASK`, the others as in `v`.
    #[inline(always)]
    fn place<const MASK: u16>(self, v: __m512, from: &[f32; MAX_LANES], at: usize) -> __m512 {
        let from = self.quarters(from, at);
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_mask_mov_ps(v, MASK, from) }
    }
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
    type Table<'a> = [__m512; 2];
    const LANES: usize = 16;

    #[inline(always)]
    fn table(self, from: &[f32; WINDOW]) -> [__m512; 2] {
        [self.load(from), self.load(&from[16..])]
    }

    #[inline(always)]
    fn pick(self, table: [__m512; 2], at: &[u8]) -> __m512 {
        let (picked, at) = (self.picked(at), self.load_bytes(at));
        // SAFETY: `self` proves AVX-512 F.
        let at = unsafe { _mm512_cvtepu8_epi32(at) };
        // SAFETY: as above; it takes the lowest five bits of an index.
        unsafe { _mm512_maskz_permutex2var_ps(picked, table[0], at, table[1]) }
    }

    #[inline(always)]
    fn picked(self, at: &[u8]) -> u16 {
        const { assert!(PICKED == 1 << 7) };
        // SAFETY: `self` proves AVX-512 VL and BW; the mask is of the highest bits.
        unsafe { _mm_movepi8_mask(self.load_bytes(at)) }
    }

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

    /// Quarters of rows are put side by side as they are loaded, which leaves half of a transposition's moves between
    /// registers: half of the time, most of it at the stores that follow.
    #[inline(always)]
    fn load_transposed<'a>(self, row: impl Fn(usize) -> &'a [f32]) -> [__m512; MAX_LANES] {
        let mut rows = [&[0.0; MAX_LANES]; MAX_LANES];
        for (i, to) in rows.iter_mut().enumerate() {
            *to = row(i).first_chunk().expect("a register's elements");
        }
        let mut tile = [self.splat(0.0); MAX_LANES];
        for at in 0..4 {
            // Lanes 4q..4q + 4 of `own[k]`: elements 4at..4at + 4 of row 4q + k.
            let mut own = [self.splat(0.0); 4];
            for (k, own) in own.iter_mut().enumerate() {
                *own = self.quarters(rows[k], at);
                *own = self.place::<0x00f0>(*own, rows[4 + k], at);
                *own = self.place::<0x0f00>(*own, rows[8 + k], at);
                *own = self.place::<0xf000>(*own, rows[12 + k], at);
            }
            let [a, b, c, d] = own;
            let (ab, ab_high) = (self.unpack_low(a, b), self.unpack_high(a, b));
            let (cd, cd_high) = (self.unpack_low(c, d), self.unpack_high(c, d));
            tile[4 * at] = self.halves::<0x44>(ab, cd);
            tile[4 * at + 1] = self.halves::<0xee>(ab, cd);
            tile[4 * at + 2] = self.halves::<0x44>(ab_high, cd_high);
            tile[4 * at + 3] = self.halves::<0xee>(ab_high, cd_high);
        }
        tile
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
    fn mul_add_at(self, mask: u16, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_mask3_fmadd_ps(a, b, c, mask) }
    }

    #[inline(always)]
    fn prefetch(self, from: &[f32], ahead: usize) {
        let line = from.as_ptr().wrapping_add(ahead);
        // SAFETY: a prefetch accesses nothing that a program could see, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) }
    }

    #[inline(always)]
    fn gather(self, table: &[f32], indices: &[u16]) -> __m512 {
        let asked = first(indices.len());
        // SAFETY: the mask keeps the load inside the slice.
        let indices = unsafe { _mm256_maskz_loadu_epi16(asked, indices.as_ptr().cast()) };
        // SAFETY: `self` proves AVX-512 F.
        let indices = unsafe { _mm512_cvtepu16_epi32(indices) };
        // An index has sixteen bits, so that a longer table need not be told apart.
        let end = table.len().min(1 << 16) as i32;
        // SAFETY: `self` proves AVX-512 F.
        let end = unsafe { _mm512_set1_epi32(end) };
        // SAFETY: as above.
        let inside = unsafe { _mm512_mask_cmplt_epu32_mask(asked, indices, end) };
        let zero = self.splat(0.0);
        // SAFETY: the mask leaves the indices of elements of the table, and its address is scaled by their size.
        unsafe { _mm512_mask_i32gather_ps::<4>(zero, inside, indices, table.as_ptr()) }
    }

    #[inline(always)]
    fn expand(self, from: &[f32], mask: u16) -> __m512 {
        assert!(mask.count_ones() as usize <= from.len());
        // SAFETY: it reads as many elements as the mask has bits, which are in the slice.
        unsafe { _mm512_maskz_expandloadu_ps(mask, from.as_ptr()) }
    }

    #[inline(always)]
    fn pick_of_four<const N: usize>(self, from: &[f32], picks: u32) -> __m512 {
        const { assert!(N == 1 || N == 2) };
        let from = &from[..64 / N];
        // SAFETY: `self` proves AVX-512 F.
        let picks = unsafe { _mm512_set1_epi32(picks as i32) };
        // SAFETY: as above.
        let shifts = unsafe { _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) };
        // SAFETY: as above.
        let shifted = unsafe { _mm512_srlv_epi32(picks, shifts) };
        // SAFETY: as above.
        let three = unsafe { _mm512_set1_epi32(3) };
        // The first of each four, in the two registers that are picked from at once.
        let fours = if N == 2 {
            // SAFETY: as above.
            unsafe { _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28) }
        } else {
            // SAFETY: as above.
            unsafe { _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28) }
        };
        // SAFETY: as above; the function is `fours | (shifted & three)`.
        let lanes = unsafe { _mm512_ternarylogic_epi32::<0b1111_1000>(fours, shifted, three) };
        // SAFETY: as above; the indices are lanes of the two.
        let low = unsafe { _mm512_permutex2var_ps(self.load(from), lanes, self.load(&from[16..])) };
        if N == 2 {
            return low;
        }
        // SAFETY: as above.
        let high = unsafe { _mm512_permutex2var_ps(self.load(&from[32..]), lanes, self.load(&from[48..])) };
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_mask_blend_ps(0xff00, low, high) }
    }

    #[inline(always)]
    fn repeat<const N: usize>(self, from: &[f32]) -> __m512 {
        const { assert!(N == 4 || N == 8) };
        let from = from[..N].as_ptr();
        if N == 4 {
            // SAFETY: the slice above is 16 readable bytes.
            let quad = unsafe { _mm_loadu_ps(from) };
            // SAFETY: `self` proves AVX-512 F.
            return unsafe { _mm512_broadcast_f32x4(quad) };
        }
        // SAFETY: the slice above is 32 readable bytes.
        let eight = unsafe { _mm256_loadu_ps(from) };
        // SAFETY: `self` proves AVX-512 DQ.
        unsafe { _mm512_broadcast_f32x8(eight) }
    }

    #[inline(always)]
    fn splat_quads(self, from: &[f32]) -> __m512 {
        let from = from[..4].as_ptr();
        // SAFETY: the slice above is 16 readable bytes.
        let quad = unsafe { _mm_loadu_ps(from) };
        // SAFETY: `self` proves AVX-512 F.
        let lanes = unsafe { _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3) };
        // SAFETY: as above.
        let quad = unsafe { _mm512_castps128_ps512(quad) };
        // SAFETY: as above; the lanes that are read are those of the quad.
        unsafe { _mm512_permutexvar_ps(lanes, quad) }
    }

    #[inline(always)]
    fn gather_quads(self, table: &[[f32; 4]], indices: &[u16]) -> __m512 {
        let indices = &indices[..4];
        let quad = |i: usize| {
            let quad: &[f32; 4] = &table[usize::from(indices[i])];
            // SAFETY: the array is 16 readable bytes.
            unsafe { _mm_loadu_ps(quad.as_ptr()) }
        };
        let (a, b, c, d) = (quad(0), quad(1), quad(2), quad(3));
        // SAFETY: `self` proves AVX.
        let low = unsafe { _mm256_set_m128(b, a) };
        // SAFETY: as above.
        let high = unsafe { _mm256_set_m128(d, c) };
        // SAFETY: `self` proves AVX-512 F.
        let low = unsafe { _mm512_castps256_ps512(low) };
        // SAFETY: `self` proves AVX-512 DQ.
        unsafe { _mm512_insertf32x8::<1>(low, high) }
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
