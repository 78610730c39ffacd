//! What is measured: every structure at every shape and density, built and checked before any clock starts.

use super::SEED;
use super::error::BenchError;
use crate::cli::BenchArgs;
use crate::commands::info::settings;
use lacewing_core::{Structure, StructureKind, structures};
use lacewing_train::recipe::{RecipeError, parse_value};
use serde_json::Value;
use std::error::Error;

/// What is measured without `--structures`.
const DEFAULT: [&str; 7] =
    ["unstructured", "block_sparse", "nm", "monarch", "block_diagonal", "low_rank", "butterfly"];

/// Values of a dense weight, of inputs or of outputs: 2 GiB in f32.
const MOST: usize = 1 << 29;

/// All that is measured.
pub(super) struct Plan {
    pub(super) shapes: Vec<ShapeCases>,
    pub(super) rows: Vec<usize>,
    /// A line for each structure that has no size within a density.
    pub(super) left_out: Vec<String>,
}

/// What is measured at one shape.
pub(super) struct ShapeCases {
    /// `(n_in, n_out)`.
    pub(super) size: (usize, usize),
    pub(super) dense: Box<dyn Structure>,
    pub(super) cases: Vec<Case>,
}

/// A structure at its shape.
pub(super) struct Case {
    /// Its name or, where a config was given, the config in a line.
    pub(super) label: String,
    pub(super) structure: Box<dyn Structure>,
}

/// One value of `--structures`.
enum Choice {
    /// At every density, the largest size within.
    Sized(&'static StructureKind),
    /// As it is.
    Config(Value),
}

impl Plan {
    /// What `args` ask for.
    pub(super) fn new(args: &BenchArgs) -> Result<Self, Box<dyn Error>> {
        let names: Vec<String> = match args.structures.as_slice() {
            [] => DEFAULT.map(str::to_owned).to_vec(),
            given => given.to_vec(),
        };
        let choices = names.iter().map(|text| choice(text)).collect::<Result<Vec<_>, _>>()?;
        let sizes = args.shapes.iter().map(|text| size(text)).collect::<Result<Vec<_>, _>>()?;
        for &density in &args.density {
            if !(density > 0.0 && density <= 1.0) {
                return Err(out_of_range("--density", density, "above 0 and at most 1").into());
            }
        }
        for &rows in &args.rows {
            let longest = sizes.iter().map(|&(n_in, n_out)| n_in.max(n_out)).max().unwrap_or(1);
            if rows == 0 || rows.checked_mul(longest).is_none_or(|values| values > MOST) {
                return Err(out_of_range("--rows", rows, "at least 1, and 2^29 values in all at most").into());
            }
        }
        let (mut shapes, mut left_out) = (Vec::new(), Vec::new());
        for size in sizes {
            let dense = built(&"dense".into(), size)?;
            let mut cases = Vec::new();
            for choice in &choices {
                let found = choice.cases(size, &args.density, &mut left_out)?;
                if let (true, false, Choice::Sized(kind)) =
                    (found.is_empty(), args.structures.is_empty(), choice)
                {
                    let most = args.density.iter().copied().fold(0.0, f64::max);
                    let ((n_in, n_out), structure) = (size, kind.name.to_owned());
                    return Err(BenchError::NoSize { structure, n_in, n_out, most }.into());
                }
                cases.extend(found);
            }
            shapes.push(ShapeCases { size, dense, cases });
        }
        Ok(Self { shapes, rows: args.rows.clone(), left_out })
    }

    /// How many rows the report will have.
    pub(super) fn n_rows(&self) -> usize {
        self.rows.len() * self.shapes.iter().map(|shape| shape.cases.len()).sum::<usize>()
    }
}

impl Choice {
    /// The structures at `size`, each once where several densities come to the same.
    fn cases(
        &self,
        size: (usize, usize),
        densities: &[f64],
        left_out: &mut Vec<String>,
    ) -> Result<Vec<Case>, BenchError> {
        let kind = match self {
            Self::Config(config) => {
                let structure = built(config, size)?;
                return Ok(vec![Case { label: settings(config), structure }]);
            }
            Self::Sized(kind) => kind,
        };
        let (mut cases, mut known): (Vec<Case>, Vec<Value>) = (Vec::new(), Vec::new());
        for &density in densities {
            let Some(structure) = largest(kind, size, density) else {
                let (name, (n_in, n_out)) = (kind.name, size);
                left_out.push(format!("{name} at {n_in}x{n_out} has no size within density {density}"));
                continue;
            };
            if !known.contains(&structure.config()) {
                known.push(structure.config());
                cases.push(Case { label: kind.name.to_owned(), structure });
            }
        }
        Ok(cases)
    }
}

/// The largest of `kind` that stores at most `density` of a dense layer.
fn largest(kind: &StructureKind, size: (usize, usize), density: f64) -> Option<Box<dyn Structure>> {
    let all = size.0 as f64 * size.1 as f64;
    // A number of values that is rounded to the nearest may be one too many.
    [density, density - 1.0 / all].into_iter().filter(|&density| density > 0.0).find_map(|within| {
        let structure = built(&(kind.sized)(size.0, size.1, within)?, size).ok()?;
        (structure.counts().parameters as f64 <= density * all).then_some(structure)
    })
}

/// A structure by name or config.
fn choice(text: &str) -> Result<Choice, RecipeError> {
    let config = parse_value("--structures", text)?;
    let Some(name) = config.as_str().or_else(|| config.get("structure")?.as_str()) else {
        return Err(out_of_range("--structures", text, "a name, or a map with `structure`"));
    };
    let Some(kind) = structures().find(|kind| kind.name == name) else {
        let known: Vec<&str> = structures().map(|kind| kind.name).collect();
        return Err(RecipeError::unknown_name("--structures", name, known.into_iter()));
    };
    Ok(if config.is_string() { Choice::Sized(kind) } else { Choice::Config(config) })
}

/// `768x3072`.
fn size(text: &str) -> Result<(usize, usize), RecipeError> {
    let parts =
        text.split_once('x').and_then(|(n_in, n_out)| Some((n_in.parse().ok()?, n_out.parse().ok()?)));
    let (n_in, n_out): (usize, usize) =
        parts.ok_or_else(|| out_of_range("--shapes", text, "INxOUT, such as 768x3072"))?;
    match n_in.checked_mul(n_out) {
        Some(1..=MOST) => Ok((n_in, n_out)),
        _ => Err(out_of_range("--shapes", text, "two sizes of at least 1 and 2^29 weights at most")),
    }
}

fn built(config: &Value, (n_in, n_out): (usize, usize)) -> Result<Box<dyn Structure>, BenchError> {
    lacewing_core::build(config, n_in, n_out, SEED, None).map_err(|source| BenchError::Structure {
        structure: settings(config),
        n_in,
        n_out,
        source: Box::new(source),
    })
}

fn out_of_range(path: &str, got: impl ToString, expected: &'static str) -> RecipeError {
    RecipeError::OutOfRange { path: path.to_owned(), got: got.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_structure_stores_more_than_was_asked_for() {
        for kind in structures() {
            for (size, density) in [((64, 96), 1.0), ((64, 96), 0.3), ((15, 9), 0.3), ((1, 1), 0.5)] {
                if let Some(structure) = largest(kind, size, density) {
                    let stored = structure.counts().parameters as f64;
                    assert!(stored <= density * (size.0 * size.1) as f64, "{} {size:?}: {stored}", kind.name);
                }
            }
        }
        let kind = structures().find(|kind| kind.name == "unstructured").unwrap();
        assert_eq!(largest(kind, (3, 5), 0.3).unwrap().counts().parameters, 4, "not 5, the nearest to 4.5");
        assert!(largest(kind, (1, 1), 0.5).is_none());
    }
}
