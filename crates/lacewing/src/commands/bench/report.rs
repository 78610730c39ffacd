//! What came out: a row each, and the density from which on a structure is faster than dense.

use super::error::BenchError;
use super::machine::{Limits, Work};
use super::measure::{Direction, Times};
use crate::commands::info::settings;
use lacewing_engine::Device;
use lacewing_train::report::{Align, Table};
use serde_json::{Map, Value, json};
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// One structure at one shape and number of rows, timed beside a dense layer.
pub(super) struct Measured {
    /// Its name or, where a config was given, the config in a line.
    pub(super) label: String,
    /// The config with every default.
    pub(super) config: Value,
    /// Share of the dense weights that is stored.
    pub(super) density: f64,
    pub(super) n_in: usize,
    pub(super) n_out: usize,
    pub(super) rows: usize,
    pub(super) kernel: String,
    pub(super) times: Times,
    pub(super) work: Work,
}

/// A row of the report.
struct Row {
    /// The columns of a file, in order.
    fields: Map<String, Value>,
    /// The config in a line.
    settings: String,
}

impl Row {
    fn new(limits: &Limits, device: &Device, direction: Direction, measured: &Measured) -> Self {
        let &Measured { density, n_in, n_out, rows, ref times, work, .. } = measured;
        let gflops = work.flops / times.ms / 1e6;
        let fields = json!({
            "structure": measured.label,
            "density": density,
            "n_in": n_in,
            "n_out": n_out,
            "rows": rows,
            "dtype": "f32",
            "device": device.to_string(),
            "direction": direction.name(),
            "ms": times.ms,
            "ms_spread": times.ms_spread,
            "dense_ms": times.dense_ms,
            "speedup": times.dense_ms / times.ms,
            "gflops": gflops,
            "percent_of_peak": 100.0 * gflops * 1e9 / limits.flops_per_s,
            "limit_speedup": times.dense_ms / (1e3 * limits.seconds(work)),
            "kernel": measured.kernel,
        });
        let Value::Object(fields) = fields else { unreachable!("a map above") };
        Self { fields, settings: settings(&rounded(&measured.config)) }
    }

    fn number(&self, key: &str) -> f64 {
        self.fields[key].as_f64().unwrap_or(f64::NAN)
    }

    fn text(&self, key: &str) -> String {
        self.fields[key].as_str().map_or_else(|| self.fields[key].to_string(), str::to_owned)
    }

    fn shape(&self) -> String {
        format!("{}x{}", self.fields["n_in"], self.fields["n_out"])
    }

    /// What rows of different density have in common.
    fn group(&self) -> [&Value; 4] {
        ["structure", "n_in", "n_out", "rows"].map(|key| &self.fields[key])
    }
}

/// A config whose fractions have four decimals: for people.
fn rounded(config: &Value) -> Value {
    let mut config = config.clone();
    for value in config.as_object_mut().into_iter().flat_map(Map::values_mut).filter(|value| value.is_f64()) {
        *value = json!((1e4 * value.as_f64().unwrap_or(0.0)).round() / 1e4);
    }
    config
}

/// Where a structure starts to pay.
#[derive(Clone, Copy, Debug, PartialEq)]
enum BreakEven {
    /// As fast as dense at this density, faster at the measured ones below.
    At(f64),
    /// Faster already at the largest density measured.
    Above(f64),
    /// Faster nowhere.
    None,
}

impl BreakEven {
    /// Of `(density, speedup)` in any order: between the largest density that is faster and its neighbour above, linear in
    /// the logarithm of the density.
    fn of(mut points: Vec<(f64, f64)>) -> Self {
        points.sort_by(|a, b| b.0.total_cmp(&a.0));
        let Some(first) = points.iter().position(|&(_, speedup)| speedup > 1.0) else { return Self::None };
        let (below, gain) = points[first];
        if first == 0 {
            return Self::Above(below);
        }
        let (above, loss) = points[first - 1];
        let share = (gain - 1.0) / (gain - loss);
        Self::At((below.ln() + share * (above.ln() - below.ln())).exp())
    }
}

impl fmt::Display for BreakEven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(density) => write!(f, "{density:.3}"),
            Self::Above(density) => write!(f, "{density:.3} or more"),
            Self::None => f.write_str("none"),
        }
    }
}

/// All that was measured.
pub(super) struct Report {
    limits: Limits,
    direction: Direction,
    rows: Vec<Row>,
}

impl Report {
    pub(super) fn new(limits: Limits, device: &Device, direction: Direction, measured: &[Measured]) -> Self {
        let rows = measured.iter().map(|one| Row::new(&limits, device, direction, one)).collect();
        Self { limits, direction, rows }
    }

    pub(super) fn to_json(&self) -> Value {
        let rows: Vec<&Map<String, Value>> = self.rows.iter().map(|row| &row.fields).collect();
        let break_even = self.break_even().into_iter().map(|(row, found)| {
            let [structure, n_in, n_out, rows] = row.group();
            // A density beyond the measured ones is not known, only that the largest measured one pays.
            let (density, at_least) = match found {
                BreakEven::At(density) => (Some(density), false),
                BreakEven::Above(density) => (Some(density), true),
                BreakEven::None => (None, false),
            };
            json!({
                "structure": structure, "n_in": n_in, "n_out": n_out, "rows": rows,
                "density": density, "at_least": at_least,
            })
        });
        let break_even: Vec<Value> = break_even.collect();
        json!({ "machine": self.limits.to_json(), "rows": rows, "break_even": break_even })
    }

    /// For each structure, shape and number of rows, with a row of it.
    fn break_even(&self) -> Vec<(&Row, BreakEven)> {
        let mut groups: Vec<(&Row, Vec<(f64, f64)>)> = Vec::new();
        for row in &self.rows {
            let point = (row.number("density"), row.number("speedup"));
            match groups.iter_mut().find(|(first, _)| first.group() == row.group()) {
                Some((_, points)) => points.push(point),
                None => groups.push((row, vec![point])),
            }
        }
        groups.into_iter().map(|(row, points)| (row, BreakEven::of(points))).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.limits)?;
        writeln!(
            f,
            "{}; bound: the speedup at the peak, or at the rate of reads that the layer's size allows\n",
            self.direction.name()
        )?;
        let header = [
            "structure",
            "density",
            "shape",
            "rows",
            "ms",
            "spread",
            "dense ms",
            "speedup",
            "bound",
            "GFLOP/s",
            "of peak",
            "kernel",
        ];
        let mut table = Table::new(&header).align(11, Align::Left);
        for row in &self.rows {
            table.push(vec![
                row.settings.clone(),
                format!("{:.4}", row.number("density")),
                row.shape(),
                row.text("rows"),
                format!("{:.4}", row.number("ms")),
                format!("{:.4}", row.number("ms_spread")),
                format!("{:.4}", row.number("dense_ms")),
                format!("{:.2}x", row.number("speedup")),
                format!("{:.2}x", row.number("limit_speedup")),
                format!("{:.1}", row.number("gflops")),
                format!("{:.1} %", row.number("percent_of_peak")),
                row.text("kernel"),
            ]);
        }
        writeln!(f, "{table}")?;
        let mut table = Table::new(&["structure", "shape", "rows", "faster than dense from density"]);
        for (row, found) in self.break_even() {
            table.push(vec![row.text("structure"), row.shape(), row.text("rows"), found.to_string()]);
        }
        write!(f, "{table}")
    }
}

/// A file of comma-separated values, which exists before anything is measured so that a wrong path costs no time.
pub(super) struct CsvFile {
    path: PathBuf,
    file: File,
}

impl CsvFile {
    /// An empty file at `path`, in the place of what was there.
    pub(super) fn create(path: &Path) -> Result<Self, BenchError> {
        match File::create(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file }),
            Err(source) => Err(BenchError::Csv { path: path.to_owned(), source }),
        }
    }

    /// Writes a line on the machine, a header, and a line for each row.
    pub(super) fn write(&mut self, report: &Report) -> Result<(), BenchError> {
        let mut text = format!("# {}; lacewing bench {}\n", report.limits, env!("CARGO_PKG_VERSION"));
        let header = report.rows.first().map(|row| line(row.fields.keys().cloned()));
        text += &header.unwrap_or_default();
        for row in &report.rows {
            text += &line(row.fields.keys().map(|key| row.text(key)));
        }
        let written = self.file.write_all(text.as_bytes());
        written.map_err(|source| BenchError::Csv { path: self.path.clone(), source })
    }
}

/// A line of a file; a cell with a comma or a quote stands in quotes.
fn line(cells: impl Iterator<Item = String>) -> String {
    let quoted = |cell: String| {
        if cell.contains([',', '"']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell }
    };
    cells.map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn break_even_lies_between_the_densities_around_it() {
        // As far above 1 as below: the middle in the logarithm.
        let BreakEven::At(density) = BreakEven::of(vec![(0.1, 1.5), (0.4, 0.5), (0.05, 3.0)]) else {
            panic!("it crosses 1");
        };
        assert!((density - 0.2).abs() < 1e-12, "{density}");
        assert_eq!(BreakEven::of(vec![(0.5, 1.1), (0.25, 0.9)]), BreakEven::Above(0.5));
        assert_eq!(BreakEven::of(vec![(0.5, 0.7), (0.25, 1.0)]), BreakEven::None);
        assert_eq!(BreakEven::of(Vec::new()), BreakEven::None);
    }

    #[test]
    fn cells_with_commas_are_quoted() {
        let cells = ["a", "sum(b, c)", "d \"e\""].map(str::to_owned);
        assert_eq!(line(cells.into_iter()), "a,\"sum(b, c)\",\"d \"\"e\"\"\"\n");
    }
}
