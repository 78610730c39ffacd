//! What came out for models: a row each, and a table for each direction.

use super::direction_name;
use crate::commands::bench::csv::cell;
use crate::commands::bench::machine::Limits;
use crate::commands::bench::measure::{Direction, Times};
use crate::commands::bench::peers::{PeerTimes, Skipped};
use crate::commands::bench::place::Place;
use lacewing_nn::Summary;
use lacewing_train::report::{Align, Table, grouped};
use serde_json::{Map, Value, json};

/// Our name beside those of other libraries.
const OURS: &str = "lacewing";

/// Bytes of tensors that a program with one of the models holds at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peaks {
    pub(super) own: usize,
    pub(super) dense: usize,
}

/// A model beside its dense twin, at one batch size in one direction.
pub(super) struct Measured {
    pub(super) model: &'static str,
    pub(super) direction: Direction,
    pub(super) batch: usize,
    pub(super) times: Times,
    pub(super) peaks: Peaks,
    pub(super) own: Summary,
    pub(super) dense: Summary,
    /// What other libraries took, where they were asked.
    pub(super) peers: Option<Vec<PeerTimes>>,
}

/// What one of the libraries did.
struct Run<'a> {
    peer: String,
    dense: bool,
    ms: f64,
    ms_spread: f64,
    peak_bytes: Option<u64>,
    summary: &'a Summary,
    /// How many layers each kernel runs, where it is known.
    kernels: Map<String, Value>,
}

impl Measured {
    /// Ours, then those that it is compared with where other libraries were asked.
    pub(super) fn rows(&self, limits: &Limits, place: &Place) -> Vec<Map<String, Value>> {
        let &Self { ref own, ref dense, times, peaks, .. } = self;
        let mut runs = vec![Run {
            peer: OURS.to_owned(),
            dense: false,
            ms: times.ms,
            ms_spread: times.ms_spread,
            peak_bytes: Some(peaks.own as u64),
            summary: own,
            kernels: kernels(own),
        }];
        let twin = Run {
            peer: OURS.to_owned(),
            dense: true,
            ms: times.dense_ms,
            ms_spread: times.dense_ms_spread,
            peak_bytes: Some(peaks.dense as u64),
            summary: dense,
            kernels: kernels(dense),
        };
        let Some(peers) = &self.peers else {
            return vec![self.row(limits, place, &runs[0], &twin)];
        };
        runs.push(twin);
        runs.extend(peers.iter().map(|found| Run {
            peer: format!("{} {}", found.peer, found.kernel),
            dense: true,
            ms: found.ms,
            ms_spread: found.ms_spread,
            peak_bytes: found.peak_bytes,
            summary: dense,
            kernels: Map::new(),
        }));
        let best = runs[1..].iter().reduce(|best, run| if run.ms < best.ms { run } else { best });
        let best = best.expect("our dense twin is among them");
        let row = |run| {
            let mut row = self.row(limits, place, run, best);
            row.insert("peer".to_owned(), run.peer.as_str().into());
            row.insert("dense".to_owned(), run.dense.into());
            row.insert("dense_by".to_owned(), best.peer.as_str().into());
            row
        };
        runs.iter().map(row).collect()
    }

    /// The columns of `run`. `best` is the fastest dense model of all, to which its time is compared; `dense_by` names it.
    /// Whatever else is said of a dense model is of our twin.
    fn row(&self, limits: &Limits, place: &Place, run: &Run<'_>, best: &Run<'_>) -> Map<String, Value> {
        let passes = if self.direction == Direction::Training { 3.0 } else { 1.0 };
        let gflops = 2.0 * passes * self.batch as f64 * run.summary.macs() as f64 / run.ms / 1e6;
        let fields = json!({
            "model": self.model,
            "batch": self.batch,
            "dtype": place.dtype_name(),
            "device": place.device.to_string(),
            "direction": direction_name(self.direction),
            "ms": run.ms,
            "ms_spread": run.ms_spread,
            "dense_ms": best.ms,
            "speedup": best.ms / run.ms,
            "images_per_s": 1e3 * self.batch as f64 / run.ms,
            "gflops": gflops,
            "percent_of_peak": 100.0 * gflops * 1e9 / limits.flops_per_s,
            "parameters": run.summary.parameters,
            "dense_parameters": self.dense.parameters,
            "macs": run.summary.macs(),
            "dense_macs": self.dense.macs(),
            "peak_bytes": run.peak_bytes,
            "dense_peak_bytes": self.peaks.dense,
            "kernels": run.kernels,
        });
        let Value::Object(fields) = fields else { unreachable!("a map above") };
        fields
    }
}

/// How many layers each kernel runs.
fn kernels(summary: &Summary) -> Map<String, Value> {
    let mut kernels: Map<String, Value> = Map::new();
    for layer in &summary.layers {
        let count = kernels.get(&layer.kernel).and_then(Value::as_u64).unwrap_or(0);
        kernels.insert(layer.kernel.clone(), (count + 1).into());
    }
    kernels
}

/// The machine, a table for each direction, and which of the other libraries, if they were asked, were left out.
pub(super) fn text(limits: &Limits, rows: &[Map<String, Value>], skipped: Option<&[Skipped]>) -> String {
    let mut text = format!("{limits}\n");
    for rows in rows.chunk_by(|a, b| a["direction"] == b["direction"]) {
        text += &format!("{}\n\n{}\n", cell(&rows[0]["direction"]), table(rows, skipped.is_some()));
    }
    for Skipped { peer, reason } in skipped.unwrap_or_default() {
        text += &format!("not measured: {peer}: {reason}\n");
    }
    text
}

fn table(rows: &[Map<String, Value>], peers: bool) -> Table {
    let mut header = vec![
        "model",
        "batch",
        "ms",
        "spread",
        "dense ms",
        "speedup",
        "img/s",
        "GFLOP/s",
        "parameters",
        "of dense",
        "memory",
        "dense memory",
        "kernels",
    ];
    if peers {
        header.extend(["by", "dense by"]);
    }
    let mut table = (12..header.len()).fold(Table::new(&header), |table, at| table.align(at, Align::Left));
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let kernels = row["kernels"].as_object().into_iter().flatten();
        let kernels: Vec<String> = kernels.map(|(name, count)| format!("{name} {count}")).collect();
        let mut cells = vec![
            cell(&row["model"]),
            cell(&row["batch"]),
            format!("{:.3}", number("ms")),
            format!("{:.3}", number("ms_spread")),
            format!("{:.3}", number("dense_ms")),
            format!("{:.2}x", number("speedup")),
            format!("{:.1}", number("images_per_s")),
            format!("{:.1}", number("gflops")),
            grouped(row["parameters"].as_u64().unwrap_or_default()),
            format!("{:.2}x", number("parameters") / number("dense_parameters")),
            memory(&row["peak_bytes"]),
            memory(&row["dense_peak_bytes"]),
            kernels.join(", "),
        ];
        if peers {
            let twin = row["dense"] == true && row["peer"] == OURS;
            cells.extend([cell(&row["peer"]) + if twin { ", dense" } else { "" }, cell(&row["dense_by"])]);
        }
        table.push(cells);
    }
    table
}

/// Bytes for people; a dash where nobody counted them.
fn memory(bytes: &Value) -> String {
    const MIB: f64 = 1_048_576.0;
    match bytes.as_f64() {
        None => "-".to_owned(),
        Some(bytes) if bytes < 1024.0 * MIB => format!("{:.1} MiB", bytes / MIB),
        Some(bytes) => format!("{:.2} GiB", bytes / MIB / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use super::memory;
    use serde_json::json;

    #[test]
    fn memory_is_in_powers_of_1024() {
        let texts = [json!(null), json!(1_572_864), json!(1_u64 << 30), json!(25_u64 << 29)];
        assert_eq!(texts.map(|bytes| memory(&bytes)), ["-", "1.5 MiB", "1.00 GiB", "12.50 GiB"]);
    }
}
