//! Factor sizes of deformable butterflies, found from the size of a layer.
//!
//! A chain whose `r` multiply to `n_out` and whose `s` multiply to `n_in` joins every input with every output
//! along one path. Its first k factors have `n_in · Π r / Π s` outputs, and factor i costs `in · r` multiply-adds
//! a row, so many small factors cost little and one factor `r = n_out`, `s = n_in` is the dense matrix.

use crate::chains::DebutFactor;
use crate::{StructureError, registry::MAX_SIZE};

const NAME: &str = "debut";

/// The two ways in which the rule of the reference begins a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Widths that never grow: first (8, 9), from nine values a channel to eight.
    Monotonic,
    /// Widths that grow first: (8, 6), then (4, 6), from nine values a channel to twelve and then eight.
    Bulging,
}

/// The reference's rule for a 3×3 kernel, `[n_out, 9 · channels]`, with half, as many or twice as many outputs as
/// channels, both powers of two.
///
/// The pairs (r, s) are those of `begin`, then (2, 2) times `speed − 5` (`speed − 3` when the outputs double; one
/// less for [`Begin::Bulging`]; at least none), then (2, 4) down to twice the outputs, then what is left. So a
/// higher `speed` shrinks the width later and has a smaller last factor. The reference orders the inputs of a patch
/// by place in the kernel first, so that channels are next to each other.
///
/// The reference gives its second bulging factor r = 2 and widths that are no whole numbers, which breaks its own
/// constraints. Here r is 4, so that the width after the bulge is the 8 values a channel it aims at.
///
/// # Errors
///
/// [`StructureError::FactorShape`] for other sizes, or too few outputs for so many factors;
/// [`StructureError::OutOfRange`] for a `speed` beyond 64.
pub fn conv3x3(
    n_out: usize,
    n_in: usize,
    begin: Begin,
    speed: usize,
) -> Result<Vec<DebutFactor>, StructureError> {
    let wrong = |what, expected, got| StructureError::FactorShape { structure: NAME, what, expected, got };
    if speed > 64 {
        let (key, got) = ("speed", speed as f64);
        return Err(StructureError::OutOfRange { structure: NAME, key, got, low: 0.0, high: 64.0 });
    }
    let (rows, cols) = padded_conv3x3(n_out, n_in);
    if cols != n_in {
        return Err(wrong("n_in of a 3×3 kernel, nine times a power of two,", cols, n_in));
    }
    if rows != n_out {
        return Err(wrong("n_out of a 3×3 kernel, a power of two,", rows, n_out));
    }
    let channels = n_in / 9;
    // How often the width 8 · channels halves until it is twice the outputs.
    let (halvings, doubles) = if n_out == channels {
        (2, 0)
    } else if 2 * n_out == channels {
        (3, 0)
    } else if n_out == 2 * channels {
        (1, 2)
    } else {
        return Err(wrong("n_out of a 3×3 kernel, half to twice its channels,", channels, n_out));
    };
    let mut digits: Vec<(usize, usize)> = match begin {
        Begin::Monotonic => vec![(8, 9)],
        Begin::Bulging => vec![(8, 6), (4, 6)],
    };
    digits.extend(std::iter::repeat_n((2, 2), (speed + doubles).saturating_sub(4 + digits.len())));
    digits.extend(std::iter::repeat_n((2, 4), halvings));
    let stride = digits.iter().fold(1usize, |t, &(r, _)| t.saturating_mul(r));
    if stride > n_out {
        return Err(wrong("n_out, at least the stride of the last factor,", stride, n_out));
    }
    digits.push((n_out / stride, 2 * n_out / stride));
    Ok(DebutFactor::chain(n_in, &digits))
}

/// The sizes that [`conv3x3`] can start from: rows and channels padded to powers of two, nine columns a channel.
///
/// # Panics
///
/// When a size is above 2⁶².
pub fn padded_conv3x3(n_out: usize, n_in: usize) -> (usize, usize) {
    (n_out.next_power_of_two(), 9 * n_in.div_ceil(9).next_power_of_two())
}

/// A chain of `factors` factors for any `[n_out, n_in]`.
///
/// Both sizes are split into `factors` numbers as even as their prime factors allow, r and s are paired by size,
/// and the pairs ordered so that the width stays as small as it can without falling below the smaller of `n_in`
/// and `n_out`, which would limit the rank. A large prime factor of a size stays in one piece: pad to [`padded`]
/// sizes.
///
/// # Errors
///
/// [`StructureError::OutOfRange`] when `factors` is 0 or more than the prime factors of either size;
/// [`StructureError::Size`] when a width between factors would be above 2²⁵.
pub fn general(n_out: usize, n_in: usize, factors: usize) -> Result<Vec<DebutFactor>, StructureError> {
    let (rows, cols) = (primes(n_out), primes(n_in));
    let most = rows.len().max(cols.len()).max(1);
    if !(1..=most).contains(&factors) {
        let (key, got, high) = ("factors", factors as f64, most as f64);
        return Err(StructureError::OutOfRange { structure: NAME, key, got, low: 1.0, high });
    }
    let mut left: Vec<(usize, usize)> =
        split(&rows, factors).into_iter().zip(split(&cols, factors)).collect();
    let (mut width, narrowest) = (n_in, n_in.min(n_out));
    let mut digits = Vec::with_capacity(factors);
    while !left.is_empty() {
        // The width is a product of r used and s to come, so each s left divides it. One pair at least stays wide
        // enough: were all too narrow they would all shrink, and their product, n_out over the width, be too
        // small.
        let widths = left.iter().map(|&(r, s)| width / s * r).enumerate();
        let next = widths.filter(|&(_, wide)| wide >= narrowest).min_by_key(|&(_, wide)| wide);
        let (at, wide) = next.expect("a pair that stays wide enough");
        width = wide;
        digits.push(left.remove(at));
    }
    let chain = DebutFactor::chain(n_in, &digits);
    if let Some(factor) = chain.iter().find(|factor| factor.n_out > 2 * MAX_SIZE) {
        let (size_name, got) = ("the width between two factors", factor.n_out);
        return Err(StructureError::Size { structure: NAME, size_name, got, max: 2 * MAX_SIZE });
    }
    Ok(chain)
}

/// The chain of [`general`] with the fewest parameters, and of those the one with the fewest factors.
///
/// # Panics
///
/// When a size is 0 or above 2²⁵.
pub fn fewest_parameters(n_out: usize, n_in: usize) -> Vec<DebutFactor> {
    assert!(
        (1..=2 * MAX_SIZE).contains(&n_in.min(n_out)) && n_in.max(n_out) <= 2 * MAX_SIZE,
        "{n_out} {n_in}"
    );
    let most = primes(n_out).len().max(primes(n_in).len()).max(1);
    let chains = (1..=most).filter_map(|factors| general(n_out, n_in, factors).ok());
    let fewest = chains.min_by_key(|chain| chain.iter().map(DebutFactor::parameters).sum::<usize>());
    fewest.expect("one factor has no width between factors")
}

/// The least size from `n` on with small prime factors: `m · 2^a` with m of 1, 3, 5, 7, 9 and 15, at most a fifth
/// more.
///
/// # Panics
///
/// When `n` is above 2⁶⁰.
pub fn padded(n: usize) -> usize {
    let candidates = [1, 3, 5, 7, 9, 15].map(|odd| odd * n.div_ceil(odd).next_power_of_two());
    candidates.into_iter().min().unwrap_or(n)
}

/// The prime factors of `n`, ascending; none for 1.
fn primes(mut n: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let mut prime = 2;
    while prime * prime <= n {
        while n.is_multiple_of(prime) {
            found.push(prime);
            n /= prime;
        }
        prime += 1;
    }
    if n > 1 {
        found.push(n);
    }
    found
}

/// `parts` products of all `primes`, descending, as even as dealing the largest first to the smallest product
/// makes them.
fn split(primes: &[usize], parts: usize) -> Vec<usize> {
    let mut products = vec![1; parts];
    for &prime in primes.iter().rev() {
        if let Some(least) = products.iter_mut().min_by_key(|product| **product) {
            *least *= prime;
        }
    }
    products.sort_unstable_by(|a, b| b.cmp(a));
    products
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::chains::Debut;

    fn strides(chain: &[DebutFactor]) -> Vec<[usize; 3]> {
        chain.iter().map(|f| [f.r, f.s, f.t]).collect()
    }

    fn parameters(chain: &[DebutFactor]) -> usize {
        chain.iter().map(DebutFactor::parameters).sum()
    }

    #[test]
    fn the_3x3_rule_gives_the_published_chains() {
        let fast = conv3x3(256, 2304, Begin::Monotonic, 4).unwrap();
        assert_eq!(strides(&fast), [[8, 9, 1], [2, 4, 8], [2, 4, 16], [8, 16, 32]]);
        let slow = conv3x3(256, 2304, Begin::Monotonic, 8).unwrap();
        let expected = [[8, 9, 1], [2, 2, 8], [2, 2, 16], [2, 2, 32], [2, 4, 64], [2, 4, 128], [1, 2, 256]];
        assert_eq!(strides(&slow), expected);
        // Layers 9 to 13 of VGG as they ship.
        assert_eq!(parameters(&conv3x3(512, 4608, Begin::Monotonic, 8).unwrap()), 75_776);
        let bulging = conv3x3(256, 2304, Begin::Bulging, 7).unwrap();
        let widths: Vec<usize> = bulging.iter().map(|f| f.n_out).collect();
        assert_eq!(widths, [3072, 2048, 2048, 1024, 512, 256]);
        assert_eq!(padded_conv3x3(127, 2231), (128, 2304));
    }

    #[test]
    fn every_3x3_chain_fits_and_joins_all() {
        let mut built = 0;
        for (log, ratio, begin, speed) in (1..10).flat_map(|log| {
            [1, 2, 4].into_iter().flat_map(move |ratio| {
                let begins = [Begin::Monotonic, Begin::Bulging];
                begins.into_iter().flat_map(move |begin| (0..12).map(move |speed| (log, ratio, begin, speed)))
            })
        }) {
            let (channels, n_out) = (1usize << log, (1usize << log) * ratio / 2);
            match conv3x3(n_out, 9 * channels, begin, speed) {
                Ok(chain) => {
                    let debut = Debut::new(chain, n_out, 9 * channels).unwrap();
                    assert!(debut.is_bipolar() && debut.factors().last().unwrap().n_out == n_out);
                    built += 1;
                }
                Err(error) => {
                    assert!(matches!(error, StructureError::FactorShape { .. }), "{error}");
                    assert!(n_out < 512 || speed > 7, "{error}");
                }
            }
        }
        assert!(built > 150, "{built}");
        for (n_out, n_in, speed) in
            [(256, 2300, 5), (200, 2304, 5), (64, 2304, 5), (256, 2304, 65), (8, 72, 5)]
        {
            assert!(conv3x3(n_out, n_in, Begin::Monotonic, speed).is_err(), "{n_out} {n_in} {speed}");
        }
    }

    #[test]
    fn the_number_of_factors_chooses_the_budget() {
        let by_factors: Vec<usize> =
            (1..=9).map(|factors| parameters(&general(512, 512, factors).unwrap())).collect();
        assert_eq!(by_factors[0], 512 * 512);
        assert_eq!((by_factors[2], by_factors[8]), (3 * 8 * 512, 9 * 2 * 512));
        assert!(by_factors.is_sorted_by(|a, b| a >= b), "{by_factors:?}");
        for factors in [0, 10] {
            let error = general(512, 512, factors).unwrap_err();
            assert!(matches!(error, StructureError::OutOfRange { high: 9.0, .. }), "{error}");
        }
        // 4 times 2 and 9 times 2 cost the same; fewer factors are better.
        assert_eq!(strides(&fewest_parameters(4, 4)), [[4, 4, 1]]);
        assert_eq!(strides(&general(2, 2, 1).unwrap()), strides(&fewest_parameters(2, 2)));
    }

    #[test]
    fn padded_sizes_have_small_factors() {
        for n in (1..5000).chain([1 << 24, (1 << 24) - 1, 16_777_213]) {
            let size = padded(n);
            assert!(size >= n && 5 * size <= 6 * n.max(5), "{n} {size}");
            assert!(primes(size).iter().all(|&prime| prime <= 7), "{n} {size}");
            assert_eq!(padded(size), size);
        }
        assert_eq!(primes(16_777_213), [16_777_213]);
        assert_eq!(primes(360), [2, 2, 2, 3, 3, 5]);
        assert!(primes(1).is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        #[test]
        fn a_chain_of_any_shape_fits_joins_all_and_has_no_waist(n_out in 1usize..6000, n_in in 1usize..6000) {
            let most = primes(n_out).len().max(primes(n_in).len()).max(1);
            let fewest = parameters(&fewest_parameters(n_out, n_in));
            for factors in 1..=most {
                let chain = general(n_out, n_in, factors).unwrap();
                prop_assert_eq!(chain.len(), factors);
                prop_assert!(chain.iter().all(|f| f.n_out >= n_in.min(n_out)), "{:?}", chain);
                prop_assert!(fewest <= parameters(&chain));
                let debut = Debut::new(chain, n_out, n_in).unwrap();
                prop_assert_eq!((debut.factors()[0].n_in, debut.factors()[factors - 1].n_out), (n_in, n_out));
                prop_assert!(debut.is_bipolar());
            }
        }

        #[test]
        fn the_greatest_sizes_are_chains_or_errors(n_out in 1usize..=1 << 24, n_in in 1usize..=1 << 24) {
            let (n_out, n_in) = ((1 << 24) - n_out % 4096, n_in);
            prop_assert!(Debut::new(fewest_parameters(n_out, n_in), n_out, n_in).is_ok());
            prop_assert!(Debut::new(fewest_parameters(padded(n_out), padded(n_in)), n_out, n_in).is_ok());
        }
    }
}
