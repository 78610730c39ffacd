//! Fast transforms as trainable butterflies: Fourier, cosine, sine and Hadamard, and circular convolution.
//!
//! Cost of a row of n points: `2n·log2 n` multiply-adds for Hadamard, `8n·log2 n` for a complex transform (and at
//! most 4n for its diagonals), twice that for a convolution.

mod step;

use lacewing_linalg::c64;
use serde_json::{Value, json};

use self::step::Step;
use crate::config::{Key, Options};
use crate::fourier::{butterfly, complex, even_then_odd, interleaved, reversed};
use crate::registry::{MAX_SIZE, first_within};
use crate::structure::check_params;
use crate::{
    Built, Chain, Counts, Form, Gather, Init, Link, ParamSpec, Problem, Rng, Structure, StructureError,
    StructureKind,
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
        let steps = Step::all(kind, n);
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
        self.steps.iter().map(|step| step.exact(self)).collect()
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
mod tests;
