//! Plain Rust: four lanes that the compiler may put into registers.

use super::Isa;

/// Needs no proof.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

const N: usize = 4;

impl Scalar {
    #[inline(always)]
    fn zip(a: [f32; N], b: [f32; N], f: impl Fn(f32, f32) -> f32) -> [f32; N] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

impl Isa for Scalar {
    type V = [f32; N];
    type M = [bool; N];
    const LANES: usize = N;

    table_in_memory!();

    #[inline(always)]
    fn splat(self, a: f32) -> [f32; N] {
        [a; N]
    }
    #[inline(always)]
    fn load(self, from: &[f32]) -> [f32; N] {
        let from = &from[..N];
        std::array::from_fn(|i| from[i])
    }
    #[inline(always)]
    fn store(self, to: &mut [f32], v: [f32; N]) {
        to[..N].copy_from_slice(&v);
    }
    #[inline(always)]
    fn add(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, a: [f32; N], b: [f32; N], c: [f32; N]) -> [f32; N] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn max(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, a: [f32; N], b: [f32; N]) -> [f32; N] {
        Self::zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn neg(self, a: [f32; N]) -> [f32; N] {
        a.map(|a| -a)
    }
    #[inline(always)]
    fn abs(self, a: [f32; N]) -> [f32; N] {
        a.map(f32::abs)
    }
    #[inline(always)]
    fn sqrt(self, a: [f32; N]) -> [f32; N] {
        a.map(f32::sqrt)
    }
    #[inline(always)]
    fn round(self, a: [f32; N]) -> [f32; N] {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn scale_by_pow2(self, a: [f32; N], n: [f32; N]) -> [f32; N] {
        // Two factors, each a normal number, cover the subnormal results.
        let pow2 = |n: i32| f32::from_bits(((n + 127) << 23) as u32);
        Self::zip(a, n, |a, n| {
            let n = n as i32;
            a * pow2(n >> 1) * pow2(n - (n >> 1))
        })
    }
    #[inline(always)]
    fn lt(self, a: [f32; N], b: [f32; N]) -> [bool; N] {
        std::array::from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    fn select(self, m: [bool; N], a: [f32; N], b: [f32; N]) -> [f32; N] {
        std::array::from_fn(|i| if m[i] { a[i] } else { b[i] })
    }
}
