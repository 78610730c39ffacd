//! Fast transforms as trainable butterflies: Fourier, cosine, sine and Hadamard, and circular convolution.
//!
//! Cost of a row of n points: `2n·log2 n` multiply-adds for Hadamard, `8n·log2 n` for a complex transform (and at
//! most 4n for its diagonals), twice that for a convolution.

use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

use lacewing_linalg::c64;
use serde_json::{Value, json};

use crate::config::{Key, Options};
use crate::fourier::{butterfly, complex, even_then_odd, factor, interleaved, reversed};
use crate::registry::{MAX_SIZE, first_within};
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Gather, Init, Link, ParamSpec, Problem, Rng, Structure, StructureError,
    StructureKind, Weights,
};

const NAME: &str = "transform";

/// The most points of a complex transform: its links hold 8 codes a point and factor.
const MAX_POINTS: usize = 1 << 16;

const KINDS: [(&str, TransformKind); 9] = [
    ("fft", TransformKind::Fft),
    ("ifft", TransformKind::Ifft),
    ("dct2", TransformKind::Dct2),
    ("dct3", TransformKind::Dct3),
    ("dct4", TransformKind::Dct4),
    ("dst2", TransformKind::Dst2),
    ("dst4", TransformKind::Dst4),
    ("hadamard", TransformKind::Hadamard),
    ("convolution", TransformKind::Convolution),
];

const NAMES: &str = "`fft`, `ifft`, `dct2`, `dct3`, `dct4`, `dst2`, `dst4`, `hadamard` or `convolution`";

/// The row of the table.
pub(super) static KIND: StructureKind = StructureKind {
    name: NAME,
    about: "a fast transform as a trainable butterfly that starts out exact",
    keys: &[
        Key::new("kind", NAMES, "\"dct2\""),
        Key::new("normalized", "scaled to keep lengths, every factor alike", "true"),
        Key::new("kernel", "with convolution: its first values, the others are zero", "[1]"),
        Key::new("pad", "zero-pad the input to a size that fits and drop outputs beyond n_out", "true"),
    ],
    build,
    samples,
    sized: |n_in, n_out, density| {
        let kinds = ["dct2", "hadamard"].map(|kind| json!({"structure": NAME, "kind": kind}));
        first_within((n_in, n_out), density, kinds)
    },
};

/// Which transform `x [n] → y [n]` a [`Transform`] starts as.
///
/// The formulas are those without `normalized`, which makes every matrix orthogonal (unitary for Fourier): times
/// 1/√n for `Fft` and `Hadamard`, √n for `Ifft`, 1/√(2n) for the others, and then the first row of `Dct2` and the
/// last of `Dst2` by 1/√2, the first column of `Dct3` by √2. A convolution is the same map either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransformKind {
    /// `y_k = Σ_j x_j exp(−2πi jk/n)`, on complex points: (re, im) pairs, one after the other.
    Fft,
    /// `y_k = 1/n Σ_j x_j exp(2πi jk/n)`, on complex points.
    Ifft,
    /// `y_k = 2 Σ_j x_j cos(πk(2j+1)/2n)`.
    Dct2,
    /// `y_k = x_0 + 2 Σ_{j≥1} x_j cos(πj(2k+1)/2n)`.
    Dct3,
    /// `y_k = 2 Σ_j x_j cos(π(2k+1)(2j+1)/4n)`.
    Dct4,
    /// `y_k = 2 Σ_j x_j sin(π(k+1)(2j+1)/2n)`.
    Dst2,
    /// `y_k = 2 Σ_j x_j sin(π(2k+1)(2j+1)/4n)`.
    Dst4,
    /// `y_k = Σ_j (−1)^{bits that k and j share} x_j`.
    Hadamard,
    /// `y_k = Σ_j kernel_{(k−j) mod n} x_j`, for any n.
    Convolution,
}

/// A product of butterfly factors whose values start as a [`TransformKind`] and are then trained.
///
/// Let m be the larger of `n_in` and `n_out`. A transform has n points, the least power of two that holds m (2n
/// numbers for complex points), at least 2. A convolution is one of m points: on n = m of them when m is a power
/// of two, else embedded in one of `n = 2^{1 + ⌈log2 m⌉}` points with the kernel at both ends. The input is padded
/// with zeros and the first `n_out` outputs are kept; without `pad` both sizes must be what the transform has.
///
/// Parameters, with L = log2 n factors numbered by their stride `2^i`:
/// * `hadamardI [n/2, 2, 2]`: entry `[g·2^i + σ]` maps the points `(2g + j)·2^i + σ`, j = 0, 1, to themselves.
/// * `fftI` or `ifftI [n/2, 2, 2, 2]`: the same with complex entries as (re, im).
/// * `pre [n, 2]`: what multiplies the points before the first factor, in its (bit-reversed) order.
/// * `post [n, 2]`: what multiplies the points after the last one, before the real part is taken.
/// * `spectrum [n, 2]`: the kernel's transform, in bit-reversed order, between `fftI` at falling and `ifftI` at
///   rising strides. No bit reversal is carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Transform {
    kind: TransformKind,
    normalized: bool,
    pad: bool,
    kernel: Vec<f64>,
    /// Points of the butterfly.
    n: usize,
    /// One for each parameter.
    steps: Vec<Step>,
    chain: Chain,
}

/// What points are multiplied by, one parameter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// A number for each real point.
    Pre,
    /// A number for each point, of whose product the real part is taken.
    Post,
    /// A number for each point.
    Spectrum,
    /// A real 2×2 for each pair of points.
    Hadamard { stride: usize },
    /// A complex 2×2 for each pair of points. The strides of a transform rise or fall.
    Fourier { stride: usize, inverse: bool, rising: bool },
}

fn build(options: &Options, problem: &Problem<'_>) -> Built {
    problem.saved(NAME, [])?;
    let (n_out, n_in) = problem.shape();
    let kind = options.choice("kind", &KINDS, NAMES)?;
    let (normalized, pad) = (options.flag("normalized")?, options.flag("pad")?);
    let mut kernel = Vec::new();
    if kind == TransformKind::Convolution {
        let value = options.required("kernel")?;
        let wrong = |value: &Value| options.wrong("kernel", "a list of numbers", value);
        for value in value.as_array().ok_or_else(|| wrong(&value))? {
            let number = value.as_f64().ok_or_else(|| wrong(value))?;
            if number.abs() > 1e9 {
                return Err(options.range("kernel", number, -1e9, 1e9));
            }
            kernel.push(number);
        }
    } else if options.given("kernel") {
        let other = "a kind other than convolution";
        return Err(StructureError::Conflict { structure: NAME, key: "kernel", other });
    }
    let transform = Transform::new(kind, n_out, n_in, normalized, kernel)?;
    if kind != TransformKind::Convolution {
        let size = transform.chain.n_in_ext;
        options.padded((n_out, n_in), (size, size), "the size of the transform")?;
    } else if n_in != n_out && !pad {
        let what = "n_out, which is n_in without `pad`,";
        return Err(StructureError::FactorShape { structure: NAME, what, expected: n_in, got: n_out });
    }
    Ok(Box::new(Transform { pad, ..transform }))
}

fn samples() -> Vec<Box<dyn Structure>> {
    let of = |config: Value, n_in, n_out| crate::build(&config, n_in, n_out, 0, None).expect("valid sample");
    let kind = |kind: &str| json!({"structure": NAME, "kind": kind});
    let kernel =
        json!({"structure": NAME, "kind": "convolution", "kernel": [0.5, -1, 2], "normalized": false});
    let ragged = [("fft", 5, 7), ("dct3", 1, 1), ("dst2", 13, 16), ("hadamard", 3, 2)];
    let even = KINDS.iter().map(|(name, _)| of(kind(name), 8, 8));
    let ragged = ragged.into_iter().map(|(name, n_in, n_out)| of(kind(name), n_in, n_out));
    even.chain(ragged).chain([of(kernel.clone(), 1, 3), of(kernel, 7, 5)]).collect()
}

impl TransformKind {
    fn is_complex(self) -> bool {
        matches!(self, TransformKind::Fft | TransformKind::Ifft)
    }

    /// What it multiplies n points by, in order.
    fn steps(self, n: usize) -> Vec<Step> {
        let strides = || (0..n.trailing_zeros()).map(|i| 1usize << i);
        let rising = |inverse| strides().map(move |stride| Step::Fourier { stride, inverse, rising: true });
        match self {
            TransformKind::Hadamard => strides().map(|stride| Step::Hadamard { stride }).collect(),
            TransformKind::Fft => rising(false).collect(),
            TransformKind::Ifft => rising(true).collect(),
            TransformKind::Dct2 => rising(false).chain([Step::Post]).collect(),
            TransformKind::Dct3 => std::iter::once(Step::Pre).chain(rising(true)).collect(),
            TransformKind::Dct4 | TransformKind::Dst2 | TransformKind::Dst4 => {
                std::iter::once(Step::Pre).chain(rising(false)).chain([Step::Post]).collect()
            }
            TransformKind::Convolution => {
                let falling = |stride| Step::Fourier { stride, inverse: false, rising: false };
                strides().rev().map(falling).chain([Step::Spectrum]).chain(rising(true)).collect()
            }
        }
    }
}

impl Step {
    /// Its parameter for n points. None decays: what shrinks is no longer the transform.
    fn spec(self, n: usize) -> ParamSpec {
        let factor = |name, stride: usize| format!("{name}{}", stride.trailing_zeros());
        let spec = match self {
            Step::Pre => ParamSpec::new("pre", &[n, 2]),
            Step::Post => ParamSpec::new("post", &[n, 2]),
            Step::Spectrum => ParamSpec::new("spectrum", &[n, 2]),
            Step::Hadamard { stride } => ParamSpec::new(&factor("hadamard", stride), &[n / 2, 2, 2]),
            Step::Fourier { stride, inverse, .. } => {
                ParamSpec::new(&factor(if inverse { "ifft" } else { "fft" }, stride), &[n / 2, 2, 2, 2])
            }
        };
        ParamSpec { decay: false, ..spec }
    }

    /// Its link, with `param` the index of its parameter.
    ///
    /// Complex points pass between factors in groups of which each holds all its real and then all its imaginary
    /// parts. A rising factor merges two groups of `stride` points, a falling one splits a group, so the four
    /// numbers of a 2×2 are `stride` apart and nothing is transposed: real and imaginary parts alternate before
    /// the first rising factor and are apart after the last, and the other way around when falling.
    fn link(self, param: usize, n: usize) -> Link {
        let blocks = |gather, groups, stride, q, p| {
            let weights = Weights::Tied { param, gather };
            Link::Blocks { weights, groups, stride, q, p }
        };
        // (a + bi)(re + i im) = (a·re − b·im) + i (b·re + a·im): part 0 is real, 1 imaginary.
        match self {
            Step::Pre => Link::blocks(param, n, 2, 1),
            Step::Post => blocks(Gather::new(2 * n, 2 * n, 1, |at, _| Some((at, at % 2 == 1))), 1, n, 1, 2),
            Step::Spectrum => {
                let gather = Gather::new(2 * n, 4 * n, 1, |at, _| {
                    let (k, to, from) = (at / 4, at / 2 % 2, at % 2);
                    Some((2 * k + (to ^ from), to < from))
                });
                blocks(gather, n, 1, 2, 2)
            }
            Step::Hadamard { stride } => Link::strided(param, n / (2 * stride), stride, 2, 2),
            Step::Fourier { stride, rising, .. } => {
                let gather = Gather::new(4 * n, 8 * n, 1, |at, _| {
                    let (block, q, p) = (at / 16, at / 4 % 4, at % 4);
                    let (i, to) = if rising { (q % 2, q / 2) } else { (q / 2, q % 2) };
                    let (j, from) = if rising { (p / 2, p % 2) } else { (p % 2, p / 2) };
                    Some((block * 8 + i * 4 + j * 2 + (to ^ from), to < from))
                });
                blocks(gather, n / (2 * stride), stride, 4, 4)
            }
        }
    }
}

impl Transform {
    /// The transform of a layer `[n_out, n_in]`, padded as it needs to be. `kernel` holds the first of the larger
    /// size's values of a convolution, and nothing for another kind.
    ///
    /// # Errors
    ///
    /// [`StructureError::Size`] for a layer that is empty or larger than 2¹⁶ points (Hadamard: 2²⁴; a convolution
    /// whose larger size is no power of two: 2¹⁵); [`StructureError::FactorShape`] for a kernel that is empty, too
    /// long or of another kind.
    pub fn new(
        kind: TransformKind,
        n_out: usize,
        n_in: usize,
        normalized: bool,
        kernel: Vec<f64>,
    ) -> Result<Self, StructureError> {
        let most = n_in.max(n_out);
        let (max, least_kernel, most_kernel) = match kind {
            TransformKind::Convolution if most.is_power_of_two() => (MAX_POINTS, 1, most),
            TransformKind::Convolution => (MAX_POINTS / 2, 1, most.max(1)),
            TransformKind::Fft | TransformKind::Ifft => (2 * MAX_POINTS, 0, 0),
            TransformKind::Hadamard => (MAX_SIZE, 0, 0),
            _ => (MAX_POINTS, 0, 0),
        };
        for (size_name, got) in [("n_in", n_in), ("n_out", n_out)] {
            if !(1..=max).contains(&got) {
                return Err(StructureError::Size { structure: NAME, size_name, got, max });
            }
        }
        let (got, expected) = (kernel.len(), kernel.len().clamp(least_kernel, most_kernel));
        if got != expected {
            let what = "the number of kernel values";
            return Err(StructureError::FactorShape { structure: NAME, what, expected, got });
        }
        let n = match kind {
            TransformKind::Convolution if most.is_power_of_two() && most > 1 => most,
            TransformKind::Convolution => 2 * most.next_power_of_two(),
            TransformKind::Fft | TransformKind::Ifft => most.max(4).next_power_of_two() / 2,
            _ => most.max(2).next_power_of_two(),
        };
        let steps = kind.steps(n);
        let mut links: Vec<Link> =
            steps.iter().enumerate().map(|(param, step)| step.link(param, n)).collect();
        let select = |from: &dyn Fn(usize) -> usize| {
            Link::Gather(Gather::new(n, n, 1, |b, _| Some((from(reversed(b, n)), false))))
        };
        match kind {
            TransformKind::Hadamard | TransformKind::Convolution => {}
            TransformKind::Fft | TransformKind::Ifft => {
                let pair = |at: usize| 2 * reversed(at / 2, n) + at % 2;
                links.insert(0, Link::Gather(Gather::new(2 * n, 2 * n, 1, |at, _| Some((pair(at), false)))));
                links.push(Link::Transpose { batch: 1, rows: 2, cols: n });
            }
            TransformKind::Dct2 => {
                let real = |at: usize| even_then_odd(reversed(at / 2, n), n);
                let embed = Gather::new(n, 2 * n, 1, |at, _| (at % 2 == 0).then(|| (real(at), false)));
                links.insert(0, Link::Gather(embed));
            }
            TransformKind::Dct3 => {
                links.insert(0, select(&|m| m));
                let mut from = vec![0; n];
                (0..n).for_each(|m| from[even_then_odd(m, n)] = m);
                links.push(Link::Gather(Gather::select(2 * n, &from)));
            }
            TransformKind::Dct4 | TransformKind::Dst2 | TransformKind::Dst4 => {
                links.insert(0, select(&|m| even_then_odd(m, n)));
            }
        }
        // A convolution reads its zero imaginary parts from the padding and drops those of its output.
        let double = kind.is_complex() || kind == TransformKind::Convolution;
        let size = if double { 2 * n } else { n };
        let chain = Chain { n_in, n_in_ext: size, n_out_ext: size, n_out, links }.checked();
        Ok(Self { kind, normalized, pad: true, kernel, n, steps, chain })
    }

    /// Which transform it starts as.
    pub fn kind(&self) -> TransformKind {
        self.kind
    }

    /// The values of every parameter, in the order of [`Structure::params`], at which the map is the transform.
    pub fn exact(&self) -> Vec<Vec<f64>> {
        let n = self.n;
        let value = |step: &Step| match *step {
            Step::Pre => interleaved((0..n).map(|b| self.pre(reversed(b, n)))),
            Step::Post => interleaved((0..n).map(|k| self.post(k))),
            Step::Spectrum => interleaved(self.spectrum()),
            Step::Hadamard { .. } => {
                let scale = if self.normalized { FRAC_1_SQRT_2 } else { 1.0 };
                [scale, scale, scale, -scale].repeat(n / 2)
            }
            Step::Fourier { stride, inverse, rising } => {
                let scale = match inverse {
                    _ if self.normalized => FRAC_1_SQRT_2,
                    // The cosine transform has no 1/n.
                    true if self.kind != TransformKind::Dct3 => 0.5,
                    _ => 1.0,
                };
                factor(n, stride, inverse, rising, scale)
            }
        };
        self.steps.iter().map(value).collect()
    }

    /// What multiplies point `m` before the Fourier transform.
    fn pre(&self, m: usize) -> c64 {
        let angle = PI * (4 * m + 1) as f64 / self.n as f64;
        let sign = if 2 * m < self.n { 1.0 } else { -1.0 };
        match self.kind {
            TransformKind::Dct3 => self.post_of(m, 0).conj(),
            TransformKind::Dct4 => c64::from_polar(sign, -angle / 4.0),
            TransformKind::Dst2 => c64::from_polar(sign, -angle / 2.0),
            _ => c64::from_polar(1.0, -angle / 4.0),
        }
    }

    /// What multiplies point `k` after it.
    fn post(&self, k: usize) -> c64 {
        match self.kind {
            TransformKind::Dct2 if self.normalized => self.post_of(k, 0),
            TransformKind::Dst2 if self.normalized => c64::new(0.0, 1.0) * self.post_of(k, self.n - 1),
            TransformKind::Dct2 | TransformKind::Dct4 => self.post_of(k, self.n),
            _ => c64::new(0.0, 1.0) * self.post_of(k, self.n),
        }
    }

    /// `2 exp(−πik/2n)`, or with √2 when normalized; 1 in place of that factor at `shorter`.
    fn post_of(&self, k: usize, shorter: usize) -> c64 {
        let length = if self.normalized { SQRT_2 } else { 2.0 };
        let length = if k == shorter { 1.0 } else { length };
        c64::from_polar(length, -PI * k as f64 / (2 * self.n) as f64)
    }

    /// The kernel's Fourier transform in bit-reversed order.
    fn spectrum(&self) -> Vec<c64> {
        let (n, period) = (self.n, self.chain.n_in.max(self.chain.n_out));
        let mut points = vec![c64::new(0.0, 0.0); n];
        for (at, &value) in self.kernel.iter().enumerate() {
            // Both are the same place when nothing is embedded.
            points[at] = c64::new(value, 0.0);
            points[n - period + at] = c64::new(value, 0.0);
        }
        for i in (0..n.trailing_zeros()).rev() {
            butterfly(&mut points, &factor(n, 1 << i, false, false, 1.0), 1 << i);
        }
        points
    }
}

impl Structure for Transform {
    fn name(&self) -> &'static str {
        NAME
    }

    fn n_in(&self) -> usize {
        self.chain.n_in
    }

    fn n_out(&self) -> usize {
        self.chain.n_out
    }

    fn params(&self) -> Vec<ParamSpec> {
        self.steps.iter().map(|step| step.spec(self.n)).collect()
    }

    fn form(&self) -> Form<'_> {
        Form::Chain(&self.chain)
    }

    /// [`Transform::exact`], whatever a model asks for. Nothing is drawn.
    fn init(&self, init: Init, _: &mut Rng) -> Vec<Vec<f32>> {
        let rounded = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
        let mut values: Vec<Vec<f32>> = self.exact().into_iter().map(rounded).collect();
        if let (Init::Zeros, Some(last)) = (init, values.last_mut()) {
            last.fill(0.0);
        }
        values
    }

    fn takes_model_init(&self) -> bool {
        false
    }

    fn bias_bound(&self) -> f64 {
        1.0 / (self.n_in() as f64).sqrt()
    }

    /// Column by column what [`Structure::apply`] gives.
    fn to_dense(&self, params: &[&[f64]]) -> Option<Vec<f64>> {
        let (n_out, n_in) = (self.n_out(), self.n_in());
        let mut dense = vec![0.0; n_out * n_in];
        for col in 0..n_in {
            let mut x = vec![0.0; n_in];
            x[col] = 1.0;
            self.apply(params, &x).into_iter().enumerate().for_each(|(row, y)| dense[row * n_in + col] = y);
        }
        Some(dense)
    }

    /// The transform's steps on complex points.
    fn apply(&self, params: &[&[f64]], x: &[f64]) -> Vec<f64> {
        check_params(&self.params(), params);
        assert_eq!(x.len(), self.n_in(), "length of x");
        let (n, kind) = (self.n, self.kind);
        let x_at = |i: usize| x.get(i).copied().unwrap_or(0.0);
        let mut points: Vec<c64> = match kind {
            TransformKind::Fft | TransformKind::Ifft => {
                (0..n).map(|b| reversed(b, n)).map(|i| c64::new(x_at(2 * i), x_at(2 * i + 1))).collect()
            }
            TransformKind::Hadamard | TransformKind::Convolution => {
                (0..n).map(|i| c64::new(x_at(i), 0.0)).collect()
            }
            TransformKind::Dct3 => (0..n).map(|b| c64::new(x_at(reversed(b, n)), 0.0)).collect(),
            _ => (0..n).map(|b| c64::new(x_at(even_then_odd(reversed(b, n), n)), 0.0)).collect(),
        };
        for (step, values) in self.steps.iter().zip(params) {
            match *step {
                Step::Pre | Step::Post | Step::Spectrum => {
                    points.iter_mut().enumerate().for_each(|(i, point)| *point *= complex(values, i));
                }
                Step::Hadamard { stride } => {
                    butterfly(&mut points, &interleaved(values.iter().map(|&value| value.into())), stride);
                }
                Step::Fourier { stride, .. } => butterfly(&mut points, values, stride),
            }
        }
        let mut y: Vec<f64> = match kind {
            TransformKind::Fft | TransformKind::Ifft => interleaved(points),
            TransformKind::Dct3 => {
                let place = |k: usize| if k.is_multiple_of(2) { k / 2 } else { n - 1 - k / 2 };
                (0..n).map(|k| points[place(k)].re).collect()
            }
            _ => points.into_iter().map(|point| point.re).collect(),
        };
        y.truncate(self.n_out());
        y
    }

    fn counts(&self) -> Counts {
        let parameters = self.params().iter().map(ParamSpec::count).sum();
        Counts { parameters, bytes: 4 * parameters, macs: self.chain.macs() }
    }

    fn config(&self) -> Value {
        let (normalized, pad) = (self.normalized, self.pad);
        let kind = KINDS.iter().find(|(_, kind)| *kind == self.kind).map(|(name, _)| name);
        match self.kind {
            TransformKind::Convolution => {
                let kernel = &self.kernel;
                json!({"structure": NAME, "kind": kind, "normalized": normalized, "kernel": kernel, "pad": pad})
            }
            _ => json!({"structure": NAME, "kind": kind, "normalized": normalized, "pad": pad}),
        }
    }
}

#[cfg(test)]
mod tests {
    use lacewing_testkit::{UNIT_F64, assert_near, gamma_of, uniform_f64};

    use super::*;

    fn of(kind: &str, normalized: bool, n_in: usize, n_out: usize) -> Box<dyn Structure> {
        let config = json!({"structure": NAME, "kind": kind, "normalized": normalized});
        crate::build(&config, n_in, n_out, 0, None).unwrap()
    }

    fn run(transform: &Transform, x: &[f64]) -> Vec<f64> {
        let values = transform.exact();
        let values: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
        let mut y = x.to_vec();
        y.resize(transform.chain.n_in_ext, 0.0);
        let mut y = transform.chain.links.iter().fold(y, |y, link| link.apply(&values, &y));
        y.truncate(transform.n_out());
        // The definition at these values agrees far within what the direct formula is compared with.
        let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let bound = rounding(transform, norm);
        assert_near(&transform.apply(&values, x), &y, &vec![bound; y.len()], "definition");
        y
    }

    /// What one output may be off after log2 n factors, each orthogonal up to its scale: at most 16 roundings a
    /// factor and diagonal, on numbers of at most the length of the result, itself at most the norm of the map
    /// times that of x.
    fn rounding(transform: &Transform, x: f64) -> f64 {
        let n = transform.n as f64;
        let norm = match transform.kind {
            TransformKind::Convolution => {
                2.0 * n.sqrt() * transform.kernel.iter().map(|k| k * k).sum::<f64>().sqrt()
            }
            _ if transform.normalized => 1.0,
            TransformKind::Fft | TransformKind::Hadamard => n.sqrt(),
            TransformKind::Ifft => 1.0 / n.sqrt(),
            _ => 2.0 * n.sqrt(),
        };
        gamma_of(16 * (transform.steps.len() + 3), UNIT_F64) * norm * x
    }

    /// A sum in pairs, so that the error is log2 n roundings.
    fn pairwise(terms: &[f64]) -> f64 {
        match terms.len() {
            0 => 0.0,
            1 => terms[0],
            len => pairwise(&terms[..len / 2]) + pairwise(&terms[len / 2..]),
        }
    }

    /// Cosines of the multiples of 2π / 8n.
    struct Turns(Vec<f64>);

    impl Turns {
        fn new(n: usize) -> Self {
            Self((0..8 * n).map(|i| (2.0 * PI * i as f64 / (8 * n) as f64).cos()).collect())
        }

        /// cos(2π · turns / of), the fraction reduced exactly.
        fn cos(&self, turns: usize, of: usize) -> f64 {
            self.0[turns * (self.0.len() / of) % self.0.len()]
        }

        fn sin(&self, turns: usize, of: usize) -> f64 {
            let quarter = self.0.len() / 4;
            self.0[(turns * (self.0.len() / of) + 3 * quarter) % self.0.len()]
        }
    }

    /// `W[k, j]` of the real kinds, without scaling to equal lengths.
    fn entry(kind: TransformKind, turns: &Turns, n: usize, k: usize, j: usize) -> f64 {
        match kind {
            TransformKind::Dct2 => 2.0 * turns.cos(k * (2 * j + 1), 4 * n),
            TransformKind::Dct3 if j == 0 => 1.0,
            TransformKind::Dct3 => 2.0 * turns.cos(j * (2 * k + 1), 4 * n),
            TransformKind::Dct4 => 2.0 * turns.cos((2 * k + 1) * (2 * j + 1), 8 * n),
            TransformKind::Dst2 => 2.0 * turns.sin((k + 1) * (2 * j + 1), 4 * n),
            TransformKind::Dst4 => 2.0 * turns.sin((2 * k + 1) * (2 * j + 1), 8 * n),
            _ => {
                if (k & j).count_ones().is_multiple_of(2) {
                    1.0
                } else {
                    -1.0
                }
            }
        }
    }

    /// The direct sums, and for each the sum of its terms' magnitudes.
    fn direct(kind: TransformKind, normalized: bool, x: &[f64]) -> (Vec<f64>, f64) {
        let complex = kind.is_complex();
        let n = if complex { x.len() / 2 } else { x.len() };
        let (root, turns) = ((n as f64).sqrt(), Turns::new(n));
        let scale = |k: usize| match kind {
            TransformKind::Fft | TransformKind::Hadamard => {
                if normalized {
                    1.0 / root
                } else {
                    1.0
                }
            }
            TransformKind::Ifft => {
                if normalized {
                    1.0 / root
                } else {
                    1.0 / n as f64
                }
            }
            _ if !normalized => 1.0,
            TransformKind::Dct2 if k == 0 => 0.5 / root,
            TransformKind::Dst2 if k == n - 1 => 0.5 / root,
            _ => FRAC_1_SQRT_2 / root,
        };
        let mut y = Vec::new();
        for k in 0..n {
            if complex {
                let turn = |j: usize| {
                    (
                        turns.cos(j * k, n),
                        if kind == TransformKind::Fft { -turns.sin(j * k, n) } else { turns.sin(j * k, n) },
                    )
                };
                let terms = |part: usize| -> Vec<f64> {
                    let term = |j: usize| match (turn(j), part) {
                        ((c, s), 0) => [c * x[2 * j], -s * x[2 * j + 1]],
                        ((c, s), _) => [s * x[2 * j], c * x[2 * j + 1]],
                    };
                    (0..n).flat_map(term).collect()
                };
                y.extend([0, 1].map(|part| scale(k) * pairwise(&terms(part))));
                continue;
            }
            let first = |j: usize| {
                if normalized && kind == TransformKind::Dct3 && j == 0 { SQRT_2 } else { 1.0 }
            };
            let terms: Vec<f64> = (0..n).map(|j| first(j) * entry(kind, &turns, n, k, j) * x[j]).collect();
            y.push(scale(k) * pairwise(&terms));
        }
        let most = (0..n).map(scale).fold(0.0, f64::max) * 2.0;
        (y, most * x.iter().map(|x| x.abs()).sum::<f64>())
    }

    #[test]
    fn initial_values_are_the_transforms() {
        for log in 1..=10 {
            let n = 1 << log;
            for (name, kind) in KINDS.into_iter().filter(|(_, kind)| *kind != TransformKind::Convolution) {
                for normalized in [true, false] {
                    let size = if kind.is_complex() { 2 * n } else { n };
                    let transform = Transform::new(kind, size, size, normalized, Vec::new()).unwrap();
                    let x = uniform_f64(n as u64, size);
                    let (expected, magnitude) = direct(kind, normalized, &x);
                    let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                    // log2 n roundings of the sum, and a few of each term.
                    let bound = rounding(&transform, norm) + gamma_of(log + 8, UNIT_F64) * magnitude;
                    assert!(bound < 1e-10, "{name} {n}: {bound:e}");
                    let what = format!("{name} of {n}");
                    assert_near(&run(&transform, &x), &expected, &vec![bound; size], &what);
                }
            }
        }
    }

    #[test]
    fn a_convolution_is_circular_at_any_size() {
        for n in (1usize..20).chain([31, 64, 100, 127, 512]) {
            let kernel = uniform_f64(n as u64, n.div_ceil(2).max(n.min(5)));
            let x = uniform_f64(n as u64 + 1, n);
            for normalized in [true, false] {
                let kind = TransformKind::Convolution;
                let transform = Transform::new(kind, n, n, normalized, kernel.clone()).unwrap();
                let terms = |k: usize| -> Vec<f64> {
                    (0..n).filter_map(|j| Some(kernel.get((n + k - j) % n)? * x[j])).collect()
                };
                let expected: Vec<f64> = (0..n).map(|k| pairwise(&terms(k))).collect();
                let norm = x.iter().map(|x| x * x).sum::<f64>().sqrt();
                let bound = rounding(&transform, norm)
                    + gamma_of(16, UNIT_F64) * x.iter().map(|x| x.abs()).sum::<f64>();
                assert_near(&run(&transform, &x), &expected, &vec![bound; n], &format!("convolution of {n}"));
            }
        }
        let default = of("convolution", true, 6, 6);
        let Form::Chain(chain) = default.form() else { panic!() };
        assert!(chain.links.iter().all(|link| matches!(link, Link::Blocks { .. })), "nothing is permuted");
        assert_eq!(chain.n_in_ext, 2 * 16);
    }

    #[test]
    fn small_matrices_are_the_textbooks() {
        let dense = |kind: &str, n_in, n_out| {
            let built = of(kind, false, n_in, n_out);
            let values: Vec<Vec<f64>> = built
                .init(Init::TruncNormal { std: 1.0 }, &mut Rng::new(0))
                .into_iter()
                .map(|values| values.into_iter().map(f64::from).collect())
                .collect();
            let values: Vec<&[f64]> = values.iter().map(Vec::as_slice).collect();
            // Exact values here are whole; the twiddles' are rounded to f32.
            built
                .to_dense(&values)
                .unwrap()
                .into_iter()
                .map(|w| (w * 1e6).round() / 1e6)
                .collect::<Vec<f64>>()
        };
        #[rustfmt::skip]
        assert_eq!(dense("hadamard", 4, 4), [
            1., 1., 1., 1.,   1., -1., 1., -1.,   1., 1., -1., -1.,   1., -1., -1., 1.,
        ]);
        // [1, 1], [1, −1] on pairs.
        #[rustfmt::skip]
        assert_eq!(dense("fft", 4, 4), [
            1., 0., 1., 0.,   0., 1., 0., 1.,   1., 0., -1., 0.,   0., 1., 0., -1.,
        ]);
        // Three inputs of four, two outputs.
        assert_eq!(dense("hadamard", 3, 2), [1., 1., 1., 1., -1., 1.]);
        let order: Vec<usize> = (0..8).map(|m| even_then_odd(m, 8)).collect();
        assert_eq!(order, [0, 2, 4, 6, 7, 5, 3, 1]);
        let order: Vec<usize> = (0..8).map(|m| reversed(m, 8)).collect();
        assert_eq!(order, [0, 4, 2, 6, 1, 5, 3, 7]);
    }

    #[test]
    fn costs_are_those_of_the_factors() {
        let counts = |kind| of(kind, true, 1024, 1024).counts();
        assert_eq!((counts("hadamard").parameters, counts("hadamard").macs), (2 * 1024 * 10, 2 * 1024 * 10));
        // 512 complex points.
        assert_eq!((counts("fft").parameters, counts("fft").macs), (4 * 512 * 9, 8 * 512 * 9));
        assert_eq!(counts("dct2").parameters, 4 * 1024 * 10 + 2 * 1024);
        assert_eq!(counts("dct4").macs, 8 * 1024 * 10 + 4 * 1024);
        assert_eq!(counts("convolution").parameters, 2 * 4 * 1024 * 10 + 2 * 1024);
    }

    #[test]
    fn sizes_that_do_not_fit_are_errors_without_pad() {
        let error = |config: Value, n_in, n_out| crate::build(&config, n_in, n_out, 0, None).unwrap_err();
        for (kind, n_in, n_out, size) in [("dct2", 12, 16, 16), ("hadamard", 8, 16, 16), ("fft", 2, 2, 4)] {
            let error = error(json!({"structure": NAME, "kind": kind, "pad": false}), n_in, n_out);
            assert!(matches!(error, StructureError::Indivisible { padded, .. } if padded == size), "{error}");
        }
        let convolution = json!({"structure": NAME, "kind": "convolution", "pad": false});
        let expected = StructureError::FactorShape {
            structure: NAME,
            what: "n_out, which is n_in without `pad`,",
            expected: 5,
            got: 6,
        };
        assert_eq!(error(convolution.clone(), 5, 6), expected);
        assert!(crate::build(&convolution, 5, 5, 0, None).is_ok());
        let kernel =
            |kernel: Value| error(json!({"structure": NAME, "kind": "convolution", "kernel": kernel}), 2, 2);
        for wrong in [json!(1), json!(["1"])] {
            assert!(matches!(kernel(wrong.clone()), StructureError::WrongType { .. }), "{wrong}");
        }
        assert!(matches!(kernel(json!([1e10])), StructureError::OutOfRange { key: "kernel", .. }));
        for (wrong, expected, got) in [(json!([]), 1, 0), (json!([1, 2, 3]), 2, 3)] {
            let what = "the number of kernel values";
            let shape = StructureError::FactorShape { structure: NAME, what, expected, got };
            assert_eq!(kernel(wrong), shape);
        }
        let conflict = error(json!({"structure": NAME, "kernel": [1]}), 4, 4);
        assert!(matches!(conflict, StructureError::Conflict { key: "kernel", .. }), "{conflict}");
    }
}
