//! Hierarchical factorization of a dense matrix into a butterfly, a deformable butterfly or any other chain of
//! strided factors whose strides grow, or shrink, by the size of the blocks.
//!
//! After Le, Zheng, Riccietti and Gribonval, *Fast learning of fast transforms, with guarantees* (2022) and
//! *Spurious valleys, NP-hardness, and tractability of sparse matrix factorization with fixed support* (2023):
//! the product of two such factors is again one, and for given supports the best two factors come from
//! independent small problems, each a truncated singular value decomposition. A chain is split in the middle and
//! both halves again.
//!
//! Cost for `n × n` and ℓ factors of small blocks: about `n² √n` for the first split, less below.

use lacewing_linalg::{Scalar, c64, svd};

use crate::{Chain, Link, Weights};

/// A factor whose input is indexed `(γ, σ, τ, lane)` and whose output `(γ, ρ, τ, lane)`: γ of `groups`, τ of
/// `stride`, σ of `p`, ρ of `q`. Its values are `[groups · stride, q · lanes, p · lanes]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Factor {
    groups: usize,
    stride: usize,
    q: usize,
    p: usize,
}

impl Factor {
    /// The product of a chain of increasing strides.
    fn product(factors: &[Factor]) -> Factor {
        Factor {
            groups: factors[factors.len() - 1].groups,
            stride: factors[0].stride,
            q: factors.iter().map(|factor| factor.q).product(),
            p: factors.iter().map(|factor| factor.p).product(),
        }
    }

    fn transposed(self) -> Factor {
        Factor { q: self.p, p: self.q, ..self }
    }

    fn blocks(self) -> usize {
        self.groups * self.stride
    }
}

/// `(left [rows, rank], right [rank, cols])`, whose product is the nearest of that rank to `a [rows, cols]`; both
/// have the root of each singular value.
fn truncated<T: Scalar>(a: &[T], rows: usize, cols: usize, rank: usize) -> (Vec<T>, Vec<T>) {
    let svd = svd(a, rows, cols, rank);
    let (mut left, mut right) = (vec![T::default(); rows * rank], vec![T::default(); rank * cols]);
    for (t, root) in svd.sigma.iter().map(|sigma| sigma.sqrt()).enumerate() {
        (0..rows).for_each(|i| left[i * rank + t] = svd.left[t][i].scaled(root));
        (0..cols).for_each(|j| right[t * cols + j] = svd.right[t][j].conj().scaled(root));
    }
    (left, right)
}

/// The values of every factor, for the values of their product; strides increase.
///
/// With the first half's product `T₁ (g₁, t₁, q₁, p₁)` and the second's `T₂ (g₂, t₂ = q₁ t₁, q₂, p₂)`, the whole
/// has `W[(γ₂, τ₁), (ρ₂, ρ₁), (σ₂, σ₁)] = T₂[(γ₂, ρ₁, τ₁), ρ₂, σ₂] · T₁[(γ₂, σ₂, τ₁), ρ₁, σ₁]`. For given (γ₂,
/// ρ₁, τ₁, σ₂) that is a matrix over ρ₂ and σ₁ of rank one, or of rank `lanes` when each index stands for so
/// many wires; no value of T₁ or T₂ is in two of them.
fn factorize<T: Scalar>(values: Vec<T>, factors: &[Factor], lanes: usize) -> Vec<Vec<T>> {
    if factors.len() == 1 {
        return vec![values];
    }
    let (first, second) = factors.split_at(factors.len() / 2);
    let (one, two) = (Factor::product(first), Factor::product(second));
    let (q, p) = (one.q * two.q * lanes, one.p * two.p * lanes);
    let (rows, cols) = (two.q * lanes, one.p * lanes);
    let size = |factor: Factor| factor.blocks() * factor.q * lanes * factor.p * lanes;
    let (mut ones, mut twos) = (vec![T::default(); size(one)], vec![T::default(); size(two)]);
    let mut slice = vec![T::default(); rows * cols];
    for cell in 0..two.groups * one.stride * one.q * two.p {
        let (rest, sigma) = (cell / two.p, cell % two.p);
        let (rest, rho) = (rest / one.q, rest % one.q);
        let (gamma, tau) = (rest / one.stride, rest % one.stride);
        // Where row (ρ₂, lane) of the slice lies in the product.
        let row_of = |i: usize| {
            let row = (i / lanes * one.q + rho) * lanes + i % lanes;
            (rest * q + row) * p + sigma * cols
        };
        for (i, row) in slice.chunks_exact_mut(cols).enumerate() {
            row.copy_from_slice(&values[row_of(i)..][..cols]);
        }
        let (left, right) = truncated(&slice, rows, cols, lanes);
        let block = gamma * two.stride + rho * one.stride + tau;
        for (i, row) in left.chunks_exact(lanes).enumerate() {
            let at = (block * rows + i) * two.p * lanes + sigma * lanes;
            twos[at..][..lanes].copy_from_slice(row);
        }
        let block = (gamma * two.p + sigma) * one.stride + tau;
        let at = (block * one.q + rho) * lanes * cols;
        ones[at..][..lanes * cols].copy_from_slice(&right);
    }
    let mut all = factorize(ones, first, lanes);
    all.extend(factorize(twos, second, lanes));
    all
}

/// [`factorize`] for either direction.
fn factorize_either<T: Scalar>(
    values: Vec<T>,
    factors: &[Factor],
    increasing: bool,
    lanes: usize,
) -> Vec<Vec<T>> {
    if increasing {
        return factorize(values, factors, lanes);
    }
    // Wᵀ is the product of the transposed factors in the other order, whose strides increase.
    let flipped: Vec<Factor> = factors.iter().rev().map(|factor| factor.transposed()).collect();
    let whole = Factor::product(&flipped);
    let mut all = factorize(flip(&values, whole.p * lanes, whole.q * lanes), &flipped, lanes);
    all.reverse();
    all.iter().zip(factors).map(|(values, factor)| flip(values, factor.p * lanes, factor.q * lanes)).collect()
}

/// The transposes of matrices `[rows, cols]` that lie one after the other.
fn flip<T: Scalar>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    let one = |matrix: &[T], at: usize| matrix[at % rows * cols + at / rows];
    values
        .chunks_exact((rows * cols).max(1))
        .flat_map(|m| (0..rows * cols).map(move |at| one(m, at)))
        .collect()
}

/// What a wire carries: one of the values at the start, times a sign, or nothing.
type Wire = Option<(usize, f64)>;

/// What the wires carry behind `links`, blocks taken for identities; `None` when some wire adds several values
/// or a block is not square.
fn through(mut wires: Vec<Wire>, links: &[Link]) -> Option<Vec<Wire>> {
    for link in links {
        wires = match *link {
            Link::Blocks { q, p, .. } if q == p => wires,
            Link::Blocks { .. } => return None,
            Link::Transpose { batch, rows, cols } => {
                let size = rows * cols;
                let from = |at: usize| at / size * size + at % rows * cols + at % size / rows;
                (0..batch * size).map(|at| wires[from(at)]).collect()
            }
            Link::Gather(ref gather) => {
                let one = |o: usize| {
                    let mut terms =
                        gather.terms_of(o).filter_map(|(i, sign)| wires[i].map(|(w, s)| (w, s * sign)));
                    let first = terms.next();
                    if terms.next().is_some() { None } else { Some(first) }
                };
                (0..gather.n_out()).map(one).collect::<Option<_>>()?
            }
        };
    }
    Some(wires)
}

/// Consecutive blocks of a chain that are a product of strided factors, in one direction.
#[derive(Clone, Debug)]
struct Run {
    /// Which links, by position in the chain.
    links: Vec<usize>,
    factors: Vec<Factor>,
    lanes: usize,
    increasing: bool,
}

/// The blocks' factor, each index standing for `lanes` wires.
fn factor_of(link: &Link, lanes: usize) -> Option<Factor> {
    let Link::Blocks { weights: Weights::Param(_), groups, stride, q, p } = *link else { return None };
    (q % lanes == 0 && p % lanes == 0).then_some(Factor { groups, stride, q: q / lanes, p: p / lanes })
}

/// Whether `links`, which lie between the factors `one` and `two`, connect equal indices `(γ, σ, τ, lane)`.
///
/// The blocks themselves see the wires with lanes outside of the stride: `(γ, σ, lane, τ)`.
fn connected(links: &[Link], one: Factor, two: Factor, lanes: usize) -> bool {
    let n = one.blocks() * one.q * lanes;
    let expected = |at: usize| {
        let swap = |at: usize, outer: usize, inner: usize| {
            let (rest, o, i) = (at / (outer * inner), at / inner % outer, at % inner);
            (rest * inner + i) * outer + o
        };
        swap(swap(at, lanes, two.stride), one.stride, lanes)
    };
    if links.is_empty() && lanes == 1 {
        return true;
    }
    let Some(wires) = through((0..n).map(|at| Some((at, 1.0))).collect(), links) else { return false };
    wires.iter().enumerate().all(|(at, &wire)| wire == Some((expected(at), 1.0)))
}

/// The run of blocks, `at` a chain's block positions, that starts with the first of them and goes on as long as
/// it can.
fn run_from(chain: &Chain, at: &[usize], lanes: usize, increasing: bool) -> Option<Run> {
    let mut run = Run { links: vec![at[0]], factors: vec![], lanes, increasing };
    run.factors.push(factor_of(&chain.links[at[0]], lanes)?);
    for pair in at.windows(2) {
        let one = run.factors[run.factors.len() - 1];
        let Some(two) = factor_of(&chain.links[pair[1]], lanes) else { break };
        let follows = if increasing {
            two.stride == one.stride * one.q && one.groups == two.groups * two.p
        } else {
            one.stride == two.stride * two.p && two.groups == one.groups * one.q
        };
        if !follows || !connected(&chain.links[pair[0] + 1..pair[1]], one, two, lanes) {
            break;
        }
        run.links.push(pair[1]);
        run.factors.push(two);
    }
    Some(run)
}

/// The longest run of a chain; the first of several.
fn longest_run(chain: &Chain) -> Option<Run> {
    let is_blocks = |&k: &usize| matches!(chain.links[k], Link::Blocks { .. });
    let at: Vec<usize> = (0..chain.links.len()).filter(is_blocks).collect();
    let mut best: Option<Run> = None;
    for start in 0..at.len() {
        let Link::Blocks { q, p, .. } = chain.links[at[start]] else { continue };
        let common = gcd(q, p);
        for lanes in (1..=common).filter(|lanes| common.is_multiple_of(*lanes)) {
            for increasing in [true, false] {
                let Some(run) = run_from(chain, &at[start..], lanes, increasing) else { continue };
                if best.as_ref().is_none_or(|best| run.links.len() > best.links.len()) {
                    best = Some(run);
                }
            }
        }
        if best.as_ref().is_some_and(|best| best.links.len() >= at.len() - start - 1) {
            break;
        }
    }
    best
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The chain's parameters when every trained block has one of its own; how many there are.
fn own_parameters(chain: &Chain) -> Option<usize> {
    let mut used = Vec::new();
    for link in &chain.links {
        match link {
            Link::Blocks { weights: Weights::Param(param), .. } => used.push(*param),
            Link::Blocks { .. } => return None,
            Link::Transpose { .. } | Link::Gather(_) => {}
        }
    }
    used.sort_unstable();
    used.windows(2).all(|pair| pair[0] != pair[1]).then(|| used.last().map_or(0, |last| last + 1))
}

/// Which value of a weight each wire of a run stands for: `(inputs, outputs)`, both by wire.
fn ends(chain: &Chain, run: &Run) -> Option<(Vec<Wire>, Vec<Wire>)> {
    let (&first, &last) = (run.links.first()?, run.links.last()?);
    let inputs = (0..chain.n_in_ext).map(|i| (i < chain.n_in).then_some((i, 1.0))).collect();
    let inputs = through(inputs, &chain.links[..first])?;
    let written = chain.links[last].sizes().1;
    let carried = through((0..written).map(|i| Some((i, 1.0))).collect(), &chain.links[last + 1..])?;
    let mut outputs: Vec<Wire> = vec![None; written];
    for (o, wire) in carried.into_iter().take(chain.n_out).enumerate() {
        let Some((wire, sign)) = wire else { continue };
        if outputs[wire].replace((o, sign)).is_some() {
            return None;
        }
    }
    Some((inputs, outputs))
}

/// Whether two wires carry the same value.
fn repeats(wires: &[Wire]) -> bool {
    let mut indices: Vec<usize> = wires.iter().flatten().map(|&(index, _)| index).collect();
    indices.sort_unstable();
    indices.windows(2).any(|pair| pair[0] == pair[1])
}

/// The target's values on the support of a run's product, with what is not in the target zero; `None` when one
/// output reads an input twice.
fn restricted(chain: &Chain, run: &Run, weight: &[f64]) -> Option<Vec<f64>> {
    let (inputs, outputs) = ends(chain, run)?;
    // Of a decreasing run, the transposed chain is restricted.
    let (reads, writes, factors) = if run.increasing {
        (inputs, outputs, run.factors.clone())
    } else {
        (outputs, inputs, run.factors.iter().rev().map(|factor| factor.transposed()).collect())
    };
    let value = |write: Wire, read: Wire| match (write, read) {
        (Some((row, a)), Some((col, b))) if run.increasing => a * b * weight[row * chain.n_in + col],
        (Some((col, a)), Some((row, b))) => a * b * weight[row * chain.n_in + col],
        _ => 0.0,
    };
    let (whole, lanes) = (Factor::product(&factors), run.lanes);
    let (rows, cols, last) = (whole.q * lanes, whole.p * lanes, factors[factors.len() - 1]);
    // Index (γ, ρ, τ, lane) of the product is wire (γ, ρ_last, lane, τ_last) of the last factor.
    let write = |gamma: usize, tau: usize, row: usize| {
        let (rho, lane) = (row / lanes, row % lanes);
        let inner = whole.q / last.q;
        let tau = rho % inner * whole.stride + tau;
        writes[((gamma * last.q + rho / inner) * lanes + lane) * last.stride + tau]
    };
    let mut values = Vec::with_capacity(whole.blocks() * rows * cols);
    for block in 0..whole.blocks() {
        let (gamma, tau) = (block / whole.stride, block % whole.stride);
        let read = |col: usize| reads[(gamma * cols + col) * whole.stride + tau];
        let read: Vec<Wire> = (0..cols).map(read).collect();
        let write: Vec<Wire> = (0..rows).map(|row| write(gamma, tau, row)).collect();
        if repeats(&read) || repeats(&write) {
            return None;
        }
        for &write in &write {
            values.extend(read.iter().map(|&read| value(write, read)));
        }
    }
    if run.increasing { Some(values) } else { Some(flip(&values, rows, cols)) }
}

/// The parameters by hierarchical factorization of the longest run, the other blocks being identities.
pub(super) fn start(chain: &Chain, weight: &[f64]) -> Option<Vec<Vec<f64>>> {
    let mut params = vec![Vec::new(); own_parameters(chain)?];
    let run = longest_run(chain)?;
    let values = restricted(chain, &run, weight)?;
    for link in &chain.links {
        if let Link::Blocks { weights: Weights::Param(param), groups, stride, q, p } = *link {
            let identity = |at: usize| f64::from(u8::from(at / p % q == at % p));
            params[param] = (0..groups * stride * q * p).map(identity).collect();
        }
    }
    let all = factorize_either(values, &run.factors, run.increasing, run.lanes);
    for (&link, values) in run.links.iter().zip(all) {
        if let Link::Blocks { weights: Weights::Param(param), .. } = chain.links[link] {
            params[param] = values;
        }
    }
    Some(params)
}

/// The parameters of a chain near `weight [n_out, n_in]` by hierarchical factorization, exact when the chain can
/// be.
///
/// It applies when all blocks are one product of strided factors, `t_{k+1} = q_k t_k` (or
/// `t_k = p_{k+1} t_{k+1}`), each with a parameter of its own: butterflies, deformable butterflies, and block
/// butterflies (transposes that bring lanes of a block together count). Before and behind there may be
/// transposes and gathers that copy, permute or change signs, such as the copies of the input for a butterfly of
/// several stacks. `None` otherwise.
///
/// Values of a parameter that no weight depends on (padding) are zero. A NaN in `weight` spreads.
///
/// # Panics
///
/// When `weight` has another length than `n_out · n_in`.
pub fn hierarchical(chain: &Chain, weight: &[f64]) -> Option<Vec<Vec<f64>>> {
    assert_eq!(weight.len(), chain.n_out * chain.n_in, "length of the weight");
    let blocks = chain.links.iter().filter(|link| matches!(link, Link::Blocks { .. })).count();
    if longest_run(chain)?.links.len() != blocks {
        return None;
    }
    start(chain, weight)
}

/// The complex butterfly near `re + i·im [n, n]` by hierarchical factorization: log₂ n factors in the order they
/// are applied, each real part and imaginary part `[n / 2, 2, 2]` laid out as in [`Link::Blocks`] with 2 × 2
/// blocks.
///
/// Factor k has stride 2ᵏ when `increasing`, else `n / 2ᵏ⁺¹`. Exact for butterflies, so for the DFT matrix with
/// its columns in bit-reversed order (increasing) or its rows (decreasing).
///
/// # Panics
///
/// When `n` is not a power of two above 1, or a length is not `n²`.
pub fn butterfly_complex(re: &[f64], im: &[f64], n: usize, increasing: bool) -> Vec<(Vec<f64>, Vec<f64>)> {
    assert!(n > 1 && n.is_power_of_two(), "a butterfly of size {n}");
    assert!(re.len() == n * n && im.len() == n * n, "lengths {} and {}, not {n}²", re.len(), im.len());
    let stride = |k: u32| if increasing { 1 << k } else { n >> (k + 1) };
    let factor = |k| Factor { groups: n / 2 / stride(k), stride: stride(k), q: 2, p: 2 };
    let factors: Vec<Factor> = (0..n.ilog2()).map(factor).collect();
    // The product's one block is the whole matrix.
    let values = re.iter().zip(im).map(|(&re, &im)| c64::new(re, im)).collect();
    let all = factorize_either::<c64>(values, &factors, increasing, 1);
    all.iter().map(|values| values.iter().map(|value| (value.re, value.im)).unzip()).collect()
}
