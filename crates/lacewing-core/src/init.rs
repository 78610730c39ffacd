//! First values of weights.

use crate::Rng;

/// The rule by which weights start. Fan-in and fan-out are those of the dense map the structure stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The structure's own: U(±1/√fan_in) scaled to the inputs that exist.
    Default,
    /// Normal with deviation `std`, cut at ±2 absolute.
    TruncNormal {
        /// Deviation before scaling.
        std: f64,
    },
    /// U(±√(6 / (fan_in + fan_out))).
    XavierUniform,
    /// All zero; in a product, only the last factor.
    Zeros,
}

impl Init {
    /// `len` values of a dense `[fan_out, fan_in]` map.
    pub(crate) fn draw(self, fan_out: usize, fan_in: usize, len: usize, rng: &mut Rng) -> Vec<f32> {
        match self {
            Init::Default => uniform(1.0 / (fan_in as f64).sqrt(), len, rng),
            Init::XavierUniform => uniform((6.0 / (fan_in + fan_out) as f64).sqrt(), len, rng),
            Init::Zeros => vec![0.0; len],
            Init::TruncNormal { std } => {
                assert!((0.0..=100.0).contains(&std), "deviation {std} of a normal cut at ±2");
                let mut values = Vec::with_capacity(len + 1);
                while values.len() < len {
                    let (a, b) = rng.normal_pair();
                    values
                        .extend([a * std, b * std].into_iter().filter(|v| v.abs() <= 2.0).map(|v| v as f32));
                }
                values.truncate(len);
                values
            }
        }
    }

    /// Deviation of one value of a dense `[fan_out, fan_in]` map.
    pub(crate) fn deviation(self, fan_out: usize, fan_in: usize) -> f64 {
        match self {
            Init::Default => (1.0 / (3.0 * fan_in as f64)).sqrt(),
            Init::XavierUniform => (2.0 / (fan_in + fan_out) as f64).sqrt(),
            Init::Zeros => 0.0,
            Init::TruncNormal { std } => std,
        }
    }
}

/// `len` values of U(−bound, bound).
pub(crate) fn uniform(bound: f64, len: usize, rng: &mut Rng) -> Vec<f32> {
    (0..len).map(|_| rng.uniform(-bound, bound) as f32).collect()
}
