//! How well kernels are chosen: `--autotune` times every kernel that takes a structure, not the chosen one alone.

use super::measure::Layer;
use super::place::Place;
use super::report::Row;
use lacewing_nn::NnError;
use lacewing_nn::linear::KERNELS;
use lacewing_train::report::{Align, Table};
use serde_json::{Value, json};
use std::error::Error;
use std::fmt;

/// A choice that costs less than this share is a good one: another run may find it the other way round.
const NOTHING: f64 = 0.05;

/// Layers of the other kernels that take what `layer` is, each once where several names come to the same.
pub(super) fn others(place: &Place, layer: &Layer) -> Result<Vec<Layer>, Box<dyn Error>> {
    let structure = layer.structure();
    let (mut others, mut known) = (Vec::new(), vec![layer.kernel()]);
    for kernel in KERNELS {
        let (n_in, n_out) = (structure.n_in(), structure.n_out());
        let same = lacewing_core::restore(&structure.config(), n_in, n_out, &structure.buffers())?;
        let other = match Layer::new(place, same, Some(kernel.name)) {
            Err(NnError::Refused { .. }) => continue,
            other => other?,
        };
        if !known.contains(&other.kernel()) {
            known.push(other.kernel());
            others.push(other);
        }
    }
    Ok(others)
}

/// The kernel that was chosen for a case, and what was faster.
pub(super) struct Choice<'a> {
    chosen: &'a Row,
    /// The fastest of all, which may be the chosen one.
    fastest: &'a Row,
}

impl<'a> Choice<'a> {
    /// One for each row of a chosen kernel, if others were timed.
    pub(super) fn all(rows: &'a [Row]) -> Vec<Self> {
        let chosen = rows.iter().filter(|row| row.chosen() == Some(true));
        let of = |chosen: &'a Row| {
            let same = rows.iter().filter(|row| row.chosen().is_some() && row.case() == chosen.case());
            let faster =
                |best: &'a Row, row: &'a Row| if row.number("ms") < best.number("ms") { row } else { best };
            Self { chosen, fastest: same.fold(chosen, faster) }
        };
        chosen.map(of).collect()
    }

    /// How much longer than the fastest it takes: 1 where it is the fastest.
    fn over_fastest(&self) -> f64 {
        self.chosen.number("ms") / self.fastest.number("ms")
    }

    pub(super) fn to_json(&self) -> Value {
        let column = |key: &str| self.chosen.fields()[key].clone();
        json!({
            "structure": column("structure"), "n_in": column("n_in"), "n_out": column("n_out"),
            "rows": column("rows"), "density": column("density"), "kernel": column("kernel"), "ms": column("ms"),
            "fastest": self.fastest.text("kernel"), "fastest_ms": self.fastest.number("ms"),
            "over_fastest": self.over_fastest(), "speedup": column("speedup"),
        })
    }

    /// What is slow about it, beyond what its samples strayed.
    pub(super) fn warning(&self) -> Option<String> {
        let (ms, spread) = (self.chosen.number("ms"), self.chosen.number("ms_spread"));
        let slower = |than: f64| ms - spread > (1.0 + NOTHING) * than;
        let mut told = Vec::new();
        if slower(self.fastest.number("ms") + self.fastest.number("ms_spread")) {
            told.push(format!(
                "{:.2} times the time of {}",
                self.over_fastest(),
                self.fastest.text("kernel")
            ));
        }
        if slower(self.chosen.number("dense_ms")) {
            told.push(format!("{:.2} times that of a dense layer", 1.0 / self.chosen.number("speedup")));
        }
        let Row { settings, .. } = self.chosen;
        let (shape, rows, kernel) =
            (self.chosen.shape(), self.chosen.text("rows"), self.chosen.text("kernel"));
        (!told.is_empty())
            .then(|| format!("{settings} at {shape}, {rows} rows: {kernel} takes {}", told.join(", ")))
    }
}

/// A table of choices.
pub(super) struct Choices<'a>(pub(super) Vec<Choice<'a>>);

impl fmt::Display for Choices<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header = [
            "structure",
            "shape",
            "rows",
            "ms",
            "fastest ms",
            "over fastest",
            "speedup",
            "chosen",
            "fastest",
        ];
        let mut table = Table::new(&header).align(7, Align::Left).align(8, Align::Left);
        for choice in &self.0 {
            let Choice { chosen, fastest } = choice;
            table.push(vec![
                chosen.settings.clone(),
                chosen.shape(),
                chosen.text("rows"),
                format!("{:.4}", chosen.number("ms")),
                format!("{:.4}", fastest.number("ms")),
                format!("{:.2}", choice.over_fastest()),
                format!("{:.2}x", chosen.number("speedup")),
                chosen.text("kernel"),
                fastest.text("kernel"),
            ]);
        }
        table.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kernel: &str, chosen: bool, ms: f64, dense_ms: f64) -> Row {
        Row::with(
            "monarch blocks=4",
            json!({
                "structure": "monarch", "density": 0.5, "n_in": 8, "n_out": 8, "rows": 2, "ms": ms, "ms_spread": 0.1,
                "dense_ms": dense_ms, "speedup": dense_ms / ms, "kernel": kernel, "chosen": chosen,
            }),
        )
    }

    #[test]
    fn a_slow_choice_is_told_and_a_close_one_is_not() {
        let of = |rows: &[Row]| Choice::all(rows).iter().map(Choice::warning).collect::<Vec<_>>();
        let close = [row("chain", true, 2.1, 3.0), row("composed", false, 2.0, 3.0)];
        assert_eq!(of(&close), [None], "within the spread");
        let slow = [row("chain", true, 4.0, 3.0), row("composed", false, 2.0, 3.0)];
        let told = "monarch blocks=4 at 8x8, 2 rows: chain takes 2.00 times the time of composed, 1.33 times that of a \
                    dense layer";
        assert_eq!(of(&slow), [Some(told.to_owned())]);
        let best = [row("chain", true, 2.0, 3.0), row("composed", false, 4.0, 3.0)];
        assert_eq!(of(&best), [None]);
        assert_eq!(Choice::all(&best)[0].to_json()["fastest"], "chain");
    }
}
