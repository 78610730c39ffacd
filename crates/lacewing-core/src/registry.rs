//! The table of all structures, and how one is built from a config or restored from a checkpoint.

use serde_json::{Map, Value};

use crate::config::nearest;
use crate::{IndexBuffer, Key, Options, Structure, StructureError, chains, dense, patterns, sketch, sums};

/// One row of a table of structures.
#[derive(Debug)]
pub struct StructureKind {
    /// The name in configs.
    pub name: &'static str,
    /// One line on what it is.
    pub about: &'static str,
    /// The keys of its config, without `structure`.
    pub keys: &'static [Key],
    /// Builds or restores one.
    pub build: fn(&Options, &Problem<'_>) -> Built,
    /// Small instances, ragged ones among them, that every conformance test runs on.
    pub samples: fn() -> Vec<Box<dyn Structure>>,
    /// The config of the largest instance that stores at most `density · n_in · n_out` values, given `n_in`, `n_out` and
    /// `density`; none when even the smallest stores more, or no dense matrix has a say in it. Masks are by magnitude.
    pub sized: fn(usize, usize, f64) -> Option<Value>,
}

/// A structure, or why there is none.
pub type Built = Result<Box<dyn Structure>, StructureError>;

/// The layer a structure is built for.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Length of one row of input.
    pub n_in: usize,
    /// Length of one row of output.
    pub n_out: usize,
    /// Where choices that the config leaves open come from.
    pub origin: Origin<'a>,
}

/// Where choices that a config leaves open come from.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    /// A fresh layer: random choices from `seed`, magnitudes from `dense [n_out, n_in]` or, without it, from a draw.
    New {
        /// Seed of this layer's choices.
        seed: u64,
        /// A dense weight to rank by magnitude.
        dense: Option<&'a [f32]>,
    },
    /// A checkpoint: the index buffers say it all.
    Saved(&'a [IndexBuffer]),
}

/// The first of `configs`, from the largest to the smallest, that stores at most `density · n_in · n_out` values. For
/// [`StructureKind::sized`].
pub(crate) fn first_within(
    (n_in, n_out): (usize, usize),
    density: f64,
    configs: impl IntoIterator<Item = Value>,
) -> Option<Value> {
    let most = density * n_in as f64 * n_out as f64;
    let fits = |config: &Value| {
        build(config, n_in, n_out, 0, None).is_ok_and(|built| built.counts().parameters as f64 <= most)
    };
    configs.into_iter().find(fits)
}

/// The greatest layer size supported: indices fit u32, and a hostile file cannot ask for more memory than it has.
pub(crate) const MAX_SIZE: usize = 1 << 24;

/// Every structure, in the order they are listed to users.
pub fn structures() -> impl Iterator<Item = &'static StructureKind> {
    let families = [patterns::TABLE, chains::TABLE, sums::TABLE, sketch::TABLE];
    std::iter::once(&dense::KIND).chain(families.into_iter().flatten().copied())
}

/// Builds the structure that `config` names for a layer `[n_out, n_in]`.
///
/// `config` is a name (`"monarch"`) or a map (`{"structure": "monarch", "blocks": 8}`). `seed` decides random choices;
/// `dense [n_out, n_in]` is what masks by magnitude rank.
///
/// # Errors
///
/// Unknown names and keys, values of a wrong type or outside their range, sizes that do not divide without `pad`,
/// patterns without a place: [`StructureError`].
pub fn build(config: &Value, n_in: usize, n_out: usize, seed: u64, dense: Option<&[f32]>) -> Built {
    from(config, &Problem { n_in, n_out, origin: Origin::New { seed, dense } })
}

/// The structure whose [`Structure::config`] and [`Structure::buffers`] these are.
///
/// The arguments may come from a hostile file: nothing is allocated beyond what the buffers themselves hold.
///
/// # Errors
///
/// As [`build`], and for buffers that are missing, unknown, of another shape or out of range.
pub fn restore(config: &Value, n_in: usize, n_out: usize, buffers: &[IndexBuffer]) -> Built {
    from(config, &Problem { n_in, n_out, origin: Origin::Saved(buffers) })
}

fn from(config: &Value, problem: &Problem<'_>) -> Built {
    let empty = Map::new();
    let (name, map) = match config {
        Value::String(name) => (name.as_str(), &empty),
        Value::Object(map) => match map.get("structure") {
            Some(Value::String(name)) => (name.as_str(), map),
            _ => return Err(StructureError::NotAConfig { got: config.to_string() }),
        },
        _ => return Err(StructureError::NotAConfig { got: config.to_string() }),
    };
    let kind = structures().find(|kind| kind.name == name).ok_or_else(|| {
        let nearest = nearest(name, structures().map(|kind| kind.name));
        StructureError::UnknownStructure { name: name.to_owned(), nearest }
    })?;
    let (structure, max) = (kind.name, MAX_SIZE);
    for (size_name, got) in [("n_in", problem.n_in), ("n_out", problem.n_out)] {
        if !(1..=max).contains(&got) {
            return Err(StructureError::Size { structure, size_name, got, max });
        }
    }
    if let Origin::New { dense: Some(dense), .. } = problem.origin {
        let (n_out, n_in) = (problem.n_out, problem.n_in);
        if dense.len() != n_out * n_in {
            let (expected, got) = (n_out * n_in, dense.len());
            return Err(StructureError::DenseLength { structure, n_out, n_in, expected, got });
        }
        if let Some(at) = dense.iter().position(|value| value.is_nan()) {
            return Err(StructureError::DenseNan { structure, row: at / n_in, col: at % n_in });
        }
    }
    (kind.build)(&Options::new(kind.name, kind.keys, map)?, problem)
}

impl<'a> Problem<'a> {
    /// `(n_out, n_in)`.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.n_out, self.n_in)
    }

    /// The saved buffers called `names`, in that order, or `None` for a fresh layer.
    pub(crate) fn saved<const N: usize>(
        &self,
        structure: &'static str,
        names: [&str; N],
    ) -> Result<Option<[&'a IndexBuffer; N]>, StructureError> {
        let Origin::Saved(buffers) = self.origin else { return Ok(None) };
        for (at, IndexBuffer { name, .. }) in buffers.iter().enumerate() {
            let repeated = buffers[..at].iter().any(|other| other.name == *name);
            if repeated || !names.contains(&name.as_str()) {
                return Err(StructureError::UnknownBuffer { structure, buffer: name.clone() });
            }
        }
        let mut found = Vec::with_capacity(N);
        for name in names {
            let buffer = buffers.iter().find(|buffer| buffer.name == name);
            found.push(
                buffer.ok_or_else(|| StructureError::MissingBuffer { structure, buffer: name.to_owned() })?,
            );
        }
        Ok(found.try_into().ok())
    }
}

impl IndexBuffer {
    /// Checks the shape of a buffer that a file gave.
    pub(crate) fn expect_shape(
        &self,
        structure: &'static str,
        expected: &[usize],
    ) -> Result<(), StructureError> {
        let count = expected.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        if self.shape == expected && Some(self.data.len()) == count {
            return Ok(());
        }
        Err(StructureError::BufferShape {
            structure,
            buffer: self.name.clone(),
            expected: expected.to_vec(),
            got: self.shape.clone(),
            len: self.data.len(),
        })
    }

    /// The error for the value at `at`, which must be in `low..=high`.
    pub(crate) fn bad_value(
        &self,
        structure: &'static str,
        at: usize,
        low: u64,
        high: u64,
    ) -> StructureError {
        let (buffer, got) = (self.name.clone(), self.data[at]);
        StructureError::BufferValue { structure, buffer, at, got, low, high }
    }
}
