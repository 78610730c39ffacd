//! What came out: a row each, and the density from which on a structure is faster than dense.

use super::choice::{Choice, Choices};
use super::csv::{CsvFile, cell};
use super::error::BenchError;
use super::machine::{Limits, Work};
use super::measure::{Direction, Times};
use super::peers::{PeerTimes, Skipped};
use super::place::Place;
use super::plot::{self, Point, Series};
use crate::commands::info::settings;
use lacewing_train::report::{Align, Table};
use serde_json::{Map, Value, json};
use std::fmt;

/// Our name beside those of other libraries.
const OURS: &str = "lacewing";

/// One structure at one shape and number of rows, timed beside a dense layer.
pub(super) struct Measured {
    /// Its place among the structures of its shape.
    pub(super) case: usize,
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
    /// That of the dense layer.
    pub(super) dense_kernel: String,
    pub(super) times: Times,
    pub(super) work: Work,
    pub(super) dense_work: Work,
    /// What other libraries took, where they were asked.
    pub(super) peers: Option<Vec<PeerTimes>>,
    /// Whether its kernel is the chosen one, where all were timed.
    pub(super) chosen: Option<bool>,
}

impl Measured {
    /// The columns of its rows in a file.
    pub(super) fn fields(
        &self,
        limits: &Limits,
        place: &Place,
        direction: Direction,
    ) -> Vec<Map<String, Value>> {
        Row::of(limits, place, direction, self).into_iter().map(|row| row.fields).collect()
    }
}

/// What one of the libraries did in a row.
struct Run<'a> {
    peer: &'a str,
    structure: &'a str,
    density: f64,
    kernel: &'a str,
    ms: f64,
    ms_spread: f64,
    work: Work,
    /// Its config in a line.
    settings: String,
}

/// A row of the report.
pub(super) struct Row {
    /// The columns of a file, in order.
    fields: Map<String, Value>,
    /// The config in a line.
    pub(super) settings: String,
    /// Whether it is what was asked for, not what it is compared with.
    own: bool,
    /// Operations that a dense layer takes for the same, and bytes moved, each a second: in GFLOP/s and as a share of the
    /// reads that the layer's size allows.
    dense_gflops: f64,
    share_of_reads: f64,
}

impl Row {
    /// Ours, then those that it is compared with where other libraries were asked.
    fn of(limits: &Limits, place: &Place, direction: Direction, measured: &Measured) -> Vec<Self> {
        let &Measured { ref label, density, ref kernel, ref times, work, dense_work, .. } = measured;
        let peers = measured.peers.as_deref().unwrap_or_default();
        let others = peers.iter().filter(|peer| peer.dense);
        let others = others.map(|peer| (peer.ms, format!("{} {}", peer.peer, peer.kernel)));
        let ours = (times.dense_ms, OURS.to_owned());
        let best = others.fold(ours, |best, other| if other.0 < best.0 { other } else { best });
        let own = Run {
            peer: OURS,
            structure: label,
            density,
            kernel,
            ms: times.ms,
            ms_spread: times.ms_spread,
            work,
            settings: settings(&rounded(&measured.config)),
        };
        // Beside those of others our own dense layer has its row, since another's may be the one compared with.
        let dense = measured.peers.is_some().then(|| Run {
            peer: OURS,
            structure: "dense",
            density: 1.0,
            kernel: &measured.dense_kernel,
            ms: times.dense_ms,
            ms_spread: times.dense_ms_spread,
            work: dense_work,
            settings: "dense".to_owned(),
        });
        let others = peers.iter().map(|peer| {
            let (structure, density, work) =
                if peer.dense { ("dense", 1.0, dense_work) } else { (label.as_str(), density, work) };
            let &PeerTimes { ref peer, ref kernel, ms, ms_spread, .. } = peer;
            Run { peer, structure, density, kernel, ms, ms_spread, work, settings: structure.to_owned() }
        });
        let row = |run| Self::new(limits, place, direction, measured, &best, run);
        let own = Self { own: measured.chosen != Some(false), ..row(own) };
        std::iter::once(own).chain(dense.into_iter().chain(others).map(row)).collect()
    }

    fn new(
        limits: &Limits,
        place: &Place,
        direction: Direction,
        measured: &Measured,
        (dense_ms, dense_by): &(f64, String),
        run: Run<'_>,
    ) -> Self {
        let gflops = run.work.flops / run.ms / 1e6;
        let fields = json!({
            "structure": run.structure,
            "density": run.density,
            "n_in": measured.n_in,
            "n_out": measured.n_out,
            "rows": measured.rows,
            "dtype": place.dtype_name(),
            "device": place.device.to_string(),
            "direction": direction.name(),
            "ms": run.ms,
            "ms_spread": run.ms_spread,
            "dense_ms": dense_ms,
            "speedup": dense_ms / run.ms,
            "gflops": gflops,
            "percent_of_peak": 100.0 * gflops * 1e9 / limits.flops_per_s,
            "limit_speedup": dense_ms / (1e3 * limits.seconds(run.work)),
            "kernel": run.kernel,
        });
        let Value::Object(mut fields) = fields else { unreachable!("a map above") };
        if measured.peers.is_some() {
            fields.insert("peer".to_owned(), run.peer.into());
            fields.insert("dense_by".to_owned(), dense_by.as_str().into());
        }
        if let Some(chosen) = measured.chosen {
            fields.insert("chosen".to_owned(), chosen.into());
        }
        Self {
            fields,
            settings: run.settings,
            own: false,
            dense_gflops: measured.dense_work.flops / run.ms / 1e6,
            share_of_reads: limits.share_of_reads(run.work, run.ms / 1e3),
        }
    }

    pub(super) fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Whether its kernel is the chosen one, where all were timed.
    pub(super) fn chosen(&self) -> Option<bool> {
        self.fields.get("chosen").and_then(Value::as_bool)
    }

    /// What rows of different kernels have in common.
    pub(super) fn case(&self) -> (&str, [&Value; 4], &Value) {
        (&self.settings, self.group(), &self.fields["density"])
    }

    pub(super) fn number(&self, key: &str) -> f64 {
        self.fields[key].as_f64().unwrap_or(f64::NAN)
    }

    pub(super) fn text(&self, key: &str) -> String {
        cell(&self.fields[key])
    }

    pub(super) fn shape(&self) -> String {
        format!("{}x{}", self.fields["n_in"], self.fields["n_out"])
    }

    /// What rows of different density have in common.
    fn group(&self) -> [&Value; 4] {
        ["structure", "n_in", "n_out", "rows"].map(|key| &self.fields[key])
    }
}

#[cfg(test)]
impl Row {
    /// A row with these columns.
    pub(super) fn with(settings: &str, fields: Value) -> Self {
        let Value::Object(fields) = fields else { panic!("columns") };
        Self { fields, settings: settings.to_owned(), own: true, dense_gflops: 0.0, share_of_reads: 0.0 }
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
    /// What was left out of other libraries, where they were asked.
    skipped: Option<Vec<Skipped>>,
}

impl Report {
    pub(super) fn new(
        limits: Limits,
        place: &Place,
        direction: Direction,
        measured: &[Measured],
        skipped: Option<Vec<Skipped>>,
    ) -> Self {
        let rows = measured.iter().flat_map(|one| Row::of(&limits, place, direction, one)).collect();
        Self { limits, direction, rows, skipped }
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
        let mut report = json!({ "machine": self.limits.to_json(), "rows": rows, "break_even": break_even });
        if self.autotunes() {
            report["choices"] = self.choices().iter().map(Choice::to_json).collect();
        }
        if let Some(skipped) = &self.skipped {
            report["skipped"] = Skipped::to_json(skipped);
        }
        report
    }

    /// Writes all rows as a file.
    pub(super) fn write_csv(&self, file: CsvFile) -> Result<(), BenchError> {
        file.finish(&self.limits, self.rows.iter().map(|row| &row.fields))
    }

    /// A plot of the shape `n_in` x `n_out`.
    pub(super) fn to_svg(&self, (n_in, n_out): (usize, usize)) -> String {
        let mut series: Vec<Series> = Vec::new();
        for row in self.own().filter(|row| row.fields["n_in"] == n_in && row.fields["n_out"] == n_out) {
            let (structure, rows) = (row.text("structure"), row.text("rows"));
            let point = Point {
                density: row.number("density"),
                speedup: row.number("speedup"),
                limit: row.number("limit_speedup"),
                note: format!(
                    "{:.2}x at density {:.4}, {:.4} ms by {}",
                    row.number("speedup"),
                    row.number("density"),
                    row.number("ms"),
                    row.text("kernel")
                ),
            };
            match series.iter_mut().find(|one| one.structure == structure && one.rows == rows) {
                Some(one) => one.points.push(point),
                None => series.push(Series { structure, rows, points: vec![point] }),
            }
        }
        let by = if self.skipped.is_some() { ", over the best dense of all libraries" } else { "" };
        let title = format!("{n_in} -> {n_out}, {}{by}", self.direction.name());
        plot::svg(&title, &self.limits.to_string(), &series)
    }

    /// The kernels that were chosen, if others were timed.
    pub(super) fn choices(&self) -> Vec<Choice<'_>> {
        Choice::all(&self.rows)
    }

    fn autotunes(&self) -> bool {
        self.rows.iter().any(|row| row.chosen().is_some())
    }

    fn own(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.own)
    }

    /// For each structure, shape and number of rows, with a row of it.
    fn break_even(&self) -> Vec<(&Row, BreakEven)> {
        let mut groups: Vec<(&Row, Vec<(f64, f64)>)> = Vec::new();
        for row in self.own() {
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
        let mut header = vec![
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
            "of reads",
            "as dense",
            "kernel",
        ];
        if self.skipped.is_some() {
            header.extend(["by", "dense by"]);
        }
        let mut table =
            (13..header.len()).fold(Table::new(&header), |table, at| table.align(at, Align::Left));
        for row in &self.rows {
            let mut cells = vec![
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
                format!("{:.1} %", 100.0 * row.share_of_reads),
                format!("{:.1}", row.dense_gflops),
                row.text("kernel"),
            ];
            if self.skipped.is_some() {
                cells.extend([row.text("peer"), row.text("dense_by")]);
            }
            table.push(cells);
        }
        writeln!(f, "{table}")?;
        for Skipped { peer, reason } in self.skipped.iter().flatten() {
            writeln!(f, "not measured: {peer}: {reason}")?;
        }
        let mut table = Table::new(&["structure", "shape", "rows", "faster than dense from density"]);
        for (row, found) in self.break_even() {
            table.push(vec![row.text("structure"), row.shape(), row.text("rows"), found.to_string()]);
        }
        write!(f, "{table}")?;
        if self.autotunes() {
            write!(f, "\n{}", Choices(self.choices()))?;
        }
        Ok(())
    }
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
}
