//! MT19937 seeded with one integer, as the CPU generators of numpy and PyTorch are.
//!
//! Only for numbers that other programs drew and that must come out the same here; the rest uses [`crate::Rng`].

const WORDS: usize = 624;
const OFFSET: usize = 397;

/// The 32-bit generator of Matsumoto and Nishimura.
#[derive(Clone, Debug)]
pub(crate) struct Mersenne {
    state: [u32; WORDS],
    at: usize,
}

impl Mersenne {
    /// The stream of `seed`.
    pub(crate) fn new(seed: u32) -> Self {
        let mut state = [seed; WORDS];
        for i in 1..WORDS {
            let before = state[i - 1];
            state[i] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        Self { state, at: WORDS }
    }

    /// The next 32 bits.
    pub(crate) fn word(&mut self) -> u32 {
        if self.at == WORDS {
            for i in 0..WORDS {
                let bits = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % WORDS] & 0x7FFF_FFFF);
                let twist = if bits & 1 == 1 { 0x9908_B0DF } else { 0 };
                self.state[i] = self.state[(i + OFFSET) % WORDS] ^ (bits >> 1) ^ twist;
            }
            self.at = 0;
        }
        let mut word = self.state[self.at];
        self.at += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9D2C_5680;
        word ^= (word << 15) & 0xEFC6_0000;
        word ^ (word >> 18)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_published_generator() {
        // The C++ standard names the 10 000th word of the default seed.
        let mut words = Mersenne::new(5489);
        assert_eq!(words.word(), 3_499_211_612);
        assert_eq!((0..9_999).map(|_| words.word()).last(), Some(4_123_659_995));
    }

    #[test]
    fn remainders_are_those_of_torch() {
        for (seed, expected) in [(0, [4, 9, 3, 0, 3]), (42, [2, 7, 6, 4, 6])] {
            let mut words = Mersenne::new(seed);
            assert_eq!([(); 5].map(|()| words.word() % 10), expected);
        }
    }
}
