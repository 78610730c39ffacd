//! Dense products by cuBLASLt: `D = alpha op(A) op(B) + beta D`, all row-major.
//!
//! cuBLASLt is column-major. A row-major matrix is the transpose of the column-major one with the same leading
//! dimension, so `D' = op(B)' op(A)'` is asked for: operands swapped, no transposition added.
//!
//! **Which algorithm.** When a problem is first met, the library's favorites (up to 16) are timed on the operands at
//! hand, into a scratch output, and the fastest is kept: in memory, and in the cache folder for the next run, so that
//! a resumed run sums in the same order. While a graph is captured nothing can be timed: the cache's or else the
//! library's first choice is taken. Only algorithms that give the same bits every time are allowed: k is either not
//! split, or its parts are added in f32 in a fixed order.
//!
//! Cost: 2 m n k flops a product. Sums are f32 in all cases; f32 inputs are multiplied as they are unless
//! [`Device::set_allow_tf32`] says otherwise.

use crate::device::lt::{Algorithm, Described, Fused, Lt, Matrix, Operands, Product};
use crate::device::{ALIGNMENT_BYTES, Device, Event, Region};
use crate::{CudaError, Type, cache};
use std::collections::{HashMap, hash_map};
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::PathBuf;
use std::sync::PoisonError;

/// What is done to the product on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Epilogue {
    /// Nothing.
    #[default]
    None,
    /// `D[i, j] += bias[j]`, `bias [n]` of `d_type`.
    Bias,
    /// The same, then GELU by tanh.
    BiasGeluTanh,
    /// Also writes `bias[i] = sum_k op(A)[i, k]`, `bias [m]` of `d_type`: the gradient of a bias beside that of its
    /// weight. It is overwritten, even where `D` is accumulated. cuBLASLt has it for 16-bit inputs, not for f32
    /// ones: expect [`CudaError::NoAlgorithm`].
    SumA,
    /// Also writes `bias[j] = sum_k op(B)[k, j]`, `bias [n]`; else as `SumA`.
    SumB,
}

impl Epilogue {
    fn name(self) -> &'static str {
        match self {
            Epilogue::None => "none",
            Epilogue::Bias => "bias",
            Epilogue::BiasGeluTanh => "bias and GELU by tanh",
            Epilogue::SumA => "sum of A",
            Epilogue::SumB => "sum of B",
        }
    }
}

/// A product, without its operands.
///
/// Shapes, row-major: `A` is stored `[m, k]`, with `trans_a` `[k, m]`; `B` `[k, n]`, with `trans_b` `[n, k]`;
/// `D` `[m, n]`. Row `i` of a stored matrix starts at element `i * ld`, matrix `b` of a batch at `b * stride`. A stride
/// of 0 uses one matrix for the whole batch (not for `D`).
#[derive(Debug, Clone, Copy)]
pub struct Matmul {
    /// Rows of `D`.
    pub m: usize,
    /// Columns of `D`.
    pub n: usize,
    /// Terms of a sum.
    pub k: usize,
    /// Products; 1 for one.
    pub batch: usize,
    /// `A` is stored `[k, m]`.
    pub trans_a: bool,
    /// `B` is stored `[n, k]`, as a linear layer's weight is.
    pub trans_b: bool,
    /// Elements from a stored row of `A` to the next.
    pub lda: usize,
    /// Elements from a stored row of `B` to the next.
    pub ldb: usize,
    /// Elements from a row of `D` to the next.
    pub ldd: usize,
    /// Elements from an `A` of the batch to the next.
    pub stride_a: usize,
    /// Elements from a `B` of the batch to the next.
    pub stride_b: usize,
    /// Elements from a `D` of the batch to the next.
    pub stride_d: usize,
    /// Type of `A`.
    pub a_type: Type,
    /// Type of `B`; cuBLASLt wants that of `A`.
    pub b_type: Type,
    /// Type of `D`: that of `A`, or f32.
    pub d_type: Type,
    /// Adds to `D` (beta = 1) and does not overwrite it.
    pub accumulate: bool,
    /// Factor of the product.
    pub alpha: f32,
    /// What is done on the way.
    pub epilogue: Epilogue,
}

impl Matmul {
    /// `D = op(A) op(B)`, all of one type, nothing between rows or between matrices of a batch.
    #[must_use]
    pub fn new(m: usize, n: usize, k: usize, batch: usize, trans_a: bool, trans_b: bool, of: Type) -> Self {
        Self {
            m,
            n,
            k,
            batch,
            trans_a,
            trans_b,
            lda: if trans_a { m } else { k },
            ldb: if trans_b { k } else { n },
            ldd: n,
            stride_a: m * k,
            stride_b: k * n,
            stride_d: m * n,
            a_type: of,
            b_type: of,
            d_type: of,
            accumulate: false,
            alpha: 1.0,
            epilogue: Epilogue::None,
        }
    }

    /// Rows and columns of `A` as stored.
    fn stored_a(&self) -> (usize, usize) {
        if self.trans_a { (self.k, self.m) } else { (self.m, self.k) }
    }

    /// Rows and columns of `B` as stored.
    fn stored_b(&self) -> (usize, usize) {
        if self.trans_b { (self.n, self.k) } else { (self.k, self.n) }
    }

    fn identity(&self) -> impl Hash + Eq + use<> {
        (
            (self.m, self.n, self.k, self.batch, self.trans_a, self.trans_b),
            (self.lda, self.ldb, self.ldd, self.stride_a, self.stride_b, self.stride_d),
            (self.a_type, self.b_type, self.d_type, self.accumulate, self.alpha.to_bits(), self.epilogue),
        )
    }

    /// Elements of the bias operand, `None` if there is none.
    fn bias_len(&self) -> Option<usize> {
        match self.epilogue {
            Epilogue::None => None,
            Epilogue::Bias | Epilogue::BiasGeluTanh | Epilogue::SumB => Some(self.n),
            Epilogue::SumA => Some(self.m),
        }
    }

    /// Bytes `D` spans.
    fn d_bytes(&self) -> usize {
        span(self.m, self.n, self.ldd, self.stride_d, self.batch) * self.d_type.size_bytes()
    }

    fn check(
        &self,
        device: &Device,
        a: &Region,
        b: &Region,
        d: &Region,
        bias: Option<&Region>,
    ) -> Result<(), CudaError> {
        let (a_rows, a_cols) = self.stored_a();
        let (b_rows, b_cols) = self.stored_b();
        let below = |dimension, least: usize, got| {
            let expected = format!("at least {least}");
            if got >= least {
                Ok(())
            } else {
                Err(CudaError::Dimension { call: CALL, dimension, expected, got })
            }
        };
        below("k", 1, self.k)?;
        below("lda", a_cols, self.lda)?;
        below("ldb", b_cols, self.ldb)?;
        below("ldd", self.n, self.ldd)?;
        if self.batch > 1 {
            // One after the other, or side by side in wider rows: either way no element is written twice.
            let side_by_side =
                self.stride_d >= self.n && self.ldd >= (self.batch - 1) * self.stride_d + self.n;
            if !side_by_side {
                below("stride_d", span(self.m, self.n, self.ldd, 0, 1), self.stride_d)?;
            }
        }
        let a_bytes = span(a_rows, a_cols, self.lda, self.stride_a, self.batch) * self.a_type.size_bytes();
        let b_bytes = span(b_rows, b_cols, self.ldb, self.stride_b, self.batch) * self.b_type.size_bytes();
        device.holds(CALL, "a", a, a_bytes)?;
        device.holds(CALL, "b", b, b_bytes)?;
        device.holds(CALL, "d", d, self.d_bytes())?;
        match (self.bias_len(), bias) {
            (Some(len), Some(bias)) => device.holds(CALL, "bias", bias, len * self.d_type.size_bytes()),
            (None, None) => Ok(()),
            (expected, got) => Err(CudaError::Bias {
                epilogue: self.epilogue.name(),
                expected: usize::from(expected.is_some()),
                got: usize::from(got.is_some()),
            }),
        }
    }
}

impl PartialEq for Matmul {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Matmul {}

impl Hash for Matmul {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

const CALL: &str = "matmul";

/// Candidates that are timed.
const CANDIDATES: usize = 16;

/// Runs of a candidate before it is timed, and timed runs.
const WARM_RUNS: usize = 3;
const TIMED_RUNS: usize = 5;

/// Elements from the first to the last of a batch of matrices.
fn span(rows: usize, cols: usize, ld: usize, stride: usize, batch: usize) -> usize {
    if rows == 0 || cols == 0 || batch == 0 { 0 } else { (batch - 1) * stride + (rows - 1) * ld + cols }
}

/// Power of two that an address is a multiple of, in few classes so that few problems are timed twice: vector loads
/// need 16 bytes, and nothing needs more than the 256 that the library assumes by itself.
fn alignment(at: u64) -> u32 {
    match at.trailing_zeros() {
        8.. => 256,
        4..8 => 16,
        zeros => 1 << zeros,
    }
}

/// What an algorithm is chosen by: the problem but for its factor, how it is computed, alignment of A, B, D, bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    problem: Matmul,
    tf32: bool,
    alignments: [u32; 4],
}

impl Key {
    fn product(&self) -> Product {
        let p = &self.problem;
        let matrix = |of, (rows, cols): (usize, usize), ld, stride, alignment_bytes| Matrix {
            of,
            // Row-major [rows, cols] is column-major [cols, rows].
            rows: cols,
            cols: rows,
            ld,
            stride,
            alignment_bytes,
        };
        let [a_aligned, b_aligned, d_aligned, _] = self.alignments;
        Product {
            first: matrix(p.b_type, p.stored_b(), p.ldb, p.stride_b, b_aligned),
            second: matrix(p.a_type, p.stored_a(), p.lda, p.stride_a, a_aligned),
            out: matrix(p.d_type, (p.m, p.n), p.ldd, p.stride_d, d_aligned),
            transpose_first: p.trans_b,
            transpose_second: p.trans_a,
            batch: p.batch,
            tf32: self.tf32,
            fused: match p.epilogue {
                Epilogue::None => Fused::Nothing,
                Epilogue::Bias => Fused::Bias,
                Epilogue::BiasGeluTanh => Fused::BiasGeluTanh,
                Epilogue::SumA => Fused::SumSecond,
                Epilogue::SumB => Fused::SumFirst,
            },
        }
    }
}

#[derive(Debug)]
struct Plan {
    described: Described,
    algorithm: Algorithm,
}

/// The problems a device has met, and how each is computed.
#[derive(Debug, Default)]
pub(crate) struct Plans(HashMap<Key, Plan>);

/// Queues `D[m, n] = alpha op(A)[m, k] op(B)[k, n] (+ D)`, then the epilogue, for every matrix of the batch. A product
/// with no element does nothing.
///
/// Types: `A` and `B` f32, bf16 or f16 alike; `D` the same, or f32 for 16-bit inputs. Inputs must not overlap `D`.
/// The first call with a problem takes some milliseconds and waits for the device, unless the cache knows it.
///
/// # Errors
///
/// [`CudaError::Dimension`], [`CudaError::OperandBytes`], [`CudaError::Bias`] before anything is queued;
/// [`CudaError::NoAlgorithm`] if cuBLASLt cannot do it (mixed input types, an epilogue it lacks for these types); what
/// the library or the driver answers.
pub fn run(
    device: &Device,
    problem: &Matmul,
    a: &Region,
    b: &Region,
    d: &Region,
    bias: Option<&Region>,
) -> Result<(), CudaError> {
    if problem.m == 0 || problem.n == 0 || problem.batch == 0 {
        return Ok(());
    }
    problem.check(device, a, b, d, bias)?;
    let bias_at = bias.map_or(0, Region::ptr);
    let operands = Operands { first: b.ptr(), second: a.ptr(), out: d.ptr(), bias: bias_at };
    let key = Key {
        problem: Matmul { alpha: 1.0, ..*problem },
        tf32: device.allow_tf32() && problem.a_type == Type::F32,
        alignments: [a.ptr(), b.ptr(), d.ptr(), bias_at].map(alignment),
    };
    let mut plans = device.plans.lock().unwrap_or_else(PoisonError::into_inner);
    let plan = match plans.0.entry(key) {
        hash_map::Entry::Occupied(entry) => entry.into_mut(),
        hash_map::Entry::Vacant(entry) => entry.insert(choose(device, &key, operands)?),
    };
    // SAFETY: `check` compared every operand with the problem, the key holds their alignment, and the algorithm is
    // of this description.
    unsafe { plan.described.run(&device.lt, plan.algorithm, problem.alpha, problem.accumulate, operands) }
}

/// The algorithm for a problem: the cache's, else the fastest, else (while capturing) the library's favorite.
fn choose(device: &Device, key: &Key, operands: Operands) -> Result<Plan, CudaError> {
    let mut described = Described::new(key.product())?;
    let entry = Entry::new(device, key);
    if let Some(algorithm) = entry.read()
        && described.takes(&device.lt, operands.bias, algorithm)
    {
        return Ok(Plan { described, algorithm });
    }
    let candidates = described.candidates(&device.lt, operands.bias, CANDIDATES)?;
    let no_algorithm = || CudaError::NoAlgorithm { problem: Box::new(key.problem) };
    let favorite = *candidates.first().ok_or_else(no_algorithm)?;
    if device.is_capturing() {
        return Ok(Plan { described, algorithm: favorite });
    }
    let algorithm = match fastest(device, key, &mut described, &candidates, operands) {
        Ok(Some(algorithm)) => algorithm,
        Ok(None) => return Err(no_algorithm()),
        // No room for a scratch output: do without timing, and let the next run try again.
        Err(CudaError::OutOfMemory { .. }) => return Ok(Plan { described, algorithm: favorite }),
        Err(error) => return Err(error),
    };
    // Another process, or another device of this one, may have timed the same problem meanwhile: whose entry stands first is
    // everybody's, now and in later runs.
    if !entry.write_first(algorithm) {
        match entry.read() {
            Some(first) if described.takes(&device.lt, operands.bias, first) => {
                return Ok(Plan { described, algorithm: first });
            }
            _ => entry.write(algorithm),
        }
    }
    Ok(Plan { described, algorithm })
}

/// Times every candidate into a scratch output; `None` if none runs. Equal times go to the library's order.
fn fastest(
    device: &Device,
    key: &Key,
    described: &mut Described,
    candidates: &[Algorithm],
    operands: Operands,
) -> Result<Option<Algorithm>, CudaError> {
    let problem = &key.problem;
    // The scratch output sits at the alignment of the real one; so does the bias if the epilogue writes it.
    let like = |at: u64| (at % ALIGNMENT_BYTES as u64) as usize;
    let out = device.region(problem.d_bytes() + ALIGNMENT_BYTES)?;
    device.zero(&out)?;
    let bias_bytes = problem.bias_len().unwrap_or(0) * problem.d_type.size_bytes();
    let bias = device.region(bias_bytes + ALIGNMENT_BYTES)?;
    device.zero(&bias)?;
    let scratch = Operands {
        out: out.ptr() + like(operands.out) as u64,
        bias: if operands.bias == 0 { 0 } else { bias.ptr() + like(operands.bias) as u64 },
        ..operands
    };
    let (start, end) = (Event::new(&device.context)?, Event::new(&device.context)?);
    let mut best: Option<(f32, Algorithm)> = None;
    for &algorithm in candidates {
        let Ok(milliseconds) =
            time(&device.lt, described, algorithm, problem.accumulate, scratch, &start, &end)
        else {
            continue;
        };
        if best.is_none_or(|(least, _)| milliseconds < least) {
            best = Some((milliseconds, algorithm));
        }
    }
    Ok(best.map(|(_, algorithm)| algorithm))
}

/// Milliseconds of one run, the mean of a few in a row.
fn time(
    lt: &Lt,
    described: &mut Described,
    algorithm: Algorithm,
    accumulate: bool,
    operands: Operands,
    start: &Event,
    end: &Event,
) -> Result<f32, CudaError> {
    for run in 0..WARM_RUNS + TIMED_RUNS {
        if run == WARM_RUNS {
            start.record()?;
        }
        // SAFETY: as in `run`; the outputs are scratch of the same size and alignment.
        unsafe { described.run(lt, algorithm, 1.0, accumulate, operands) }?;
    }
    end.record()?;
    end.wait()?;
    Ok(end.milliseconds_since(start)? / TIMED_RUNS as f32)
}

/// Place of a problem's algorithm in the cache: one small text file, its first line the problem, so that a wrong
/// entry is never taken.
struct Entry {
    path: PathBuf,
    problem: String,
}

impl Entry {
    fn new(device: &Device, key: &Key) -> Self {
        let chip: String = device
            .properties()
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
            .collect();
        let problem = format!("{key:?}");
        let folder = PathBuf::from("matmul").join(format!("{chip}-cublaslt{}", device.lt.version));
        let path = folder.join(format!("{:032x}.txt", cache::hash(&[problem.as_bytes()])));
        Self { path, problem }
    }

    fn read(&self) -> Option<Algorithm> {
        parse(&self.problem, &String::from_utf8(cache::read(&self.path)?).ok()?)
    }

    /// Whether there was no entry yet.
    fn write_first(&self, algorithm: Algorithm) -> bool {
        cache::write_first(&self.path, text(&self.problem, algorithm).as_bytes())
    }

    fn write(&self, algorithm: Algorithm) {
        cache::write(&self.path, text(&self.problem, algorithm).as_bytes());
    }
}

fn text(problem: &str, algorithm: Algorithm) -> String {
    let mut text = format!("{problem}\n");
    for word in algorithm.0 {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{word:016x}");
    }
    text
}

fn parse(problem: &str, text: &str) -> Option<Algorithm> {
    let mut lines = text.lines();
    if lines.next()? != problem {
        return None;
    }
    let words: Vec<u64> = lines.map(|line| u64::from_str_radix(line, 16)).collect::<Result<_, _>>().ok()?;
    words.try_into().ok().map(Algorithm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_algorithm_is_read_back_only_for_its_own_problem_and_whole() {
        let algorithm = Algorithm([1, u64::MAX, 3, 0, 5, 6, 7, 8]);
        let written = text("a problem", algorithm);
        assert_eq!(parse("a problem", &written), Some(algorithm));
        assert_eq!(parse("another", &written), None);
        assert_eq!(parse("a problem", &written[..written.len() - 18]), None);
    }

    #[test]
    fn row_major_operands_are_swapped_and_keep_their_leading_dimensions() {
        let problem = Matmul { ldd: 9, ..Matmul::new(5, 7, 3, 2, true, true, Type::Bf16) };
        let product = Key { problem, tf32: false, alignments: [16, 32, 64, 256] }.product();
        // D' [7, 5] = op(B)' [7, 3] op(A)' [3, 5]; B is stored [7, 3], hence column-major [3, 7], to be transposed.
        assert_eq!((product.first.rows, product.first.cols, product.first.ld), (3, 7, 3));
        assert_eq!((product.second.rows, product.second.cols, product.second.ld), (5, 3, 5));
        assert_eq!((product.out.rows, product.out.cols, product.out.ld), (7, 5, 9));
        assert!(product.transpose_first && product.transpose_second);
        assert_eq!(
            [product.second, product.first, product.out].map(|matrix| matrix.alignment_bytes),
            [16, 32, 64]
        );
    }

    #[test]
    fn problems_that_differ_in_any_number_are_told_apart() {
        let base = Matmul::new(4, 4, 4, 1, false, false, Type::F32);
        assert_eq!(base, base);
        assert_ne!(base, Matmul { ldd: 5, ..base });
        assert_ne!(base, Matmul { alpha: 2.0, ..base });
        assert_ne!(base, Matmul { epilogue: Epilogue::Bias, ..base });
    }

    #[test]
    fn the_span_of_a_batch_ends_at_its_last_element() {
        assert_eq!(span(3, 4, 6, 20, 2), 20 + 2 * 6 + 4);
        assert_eq!(span(0, 4, 6, 20, 2), 0);
    }
}
