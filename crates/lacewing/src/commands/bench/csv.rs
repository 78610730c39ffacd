//! Rows as comma-separated values, in a file that grows with the run.
//!
//! A run that is interrupted keeps its finished cases, each with all its lines. One that comes to its end replaces the file
//! by the whole: grouped, and over the best limits that it saw of the machine.

use super::error::BenchError;
use super::machine::Limits;
use super::output::Output;
use serde_json::{Map, Value};
use std::path::Path;

/// What the first line says until the run has come to its end.
const UNFINISHED: &str = "; unfinished";

/// The file that `--csv` asks for.
pub(super) struct CsvFile {
    output: Output,
    /// Whether it has its first lines.
    begun: bool,
}

impl CsvFile {
    /// A file at `path`, where what is there stays until the first rows come.
    pub(super) fn create(path: &Path) -> Result<Self, BenchError> {
        Ok(Self { output: Output::create("--csv", path)?, begun: false })
    }

    /// Writes the rows of a finished case.
    pub(super) fn add(&mut self, limits: &Limits, rows: &[Map<String, Value>]) -> Result<(), BenchError> {
        let lines = match self.begun {
            true => rows.iter().map(row).collect(),
            false => text(limits, UNFINISHED, rows.iter()),
        };
        self.begun = true;
        self.output.add(&lines)
    }

    /// Writes all rows in the place of those so far.
    pub(super) fn finish<'a>(
        self,
        limits: &Limits,
        rows: impl Iterator<Item = &'a Map<String, Value>>,
    ) -> Result<(), BenchError> {
        self.output.write(&text(limits, "", rows))
    }
}

/// A line on the machine, which ends with `state`, and a line for each row; the first row has every column.
fn text<'a>(limits: &Limits, state: &str, rows: impl Iterator<Item = &'a Map<String, Value>>) -> String {
    let mut text = format!("# {limits}; lacewing bench {}{state}\n", env!("CARGO_PKG_VERSION"));
    for (at, fields) in rows.enumerate() {
        if at == 0 {
            text += &line(fields.keys().cloned());
        }
        text += &row(fields);
    }
    text
}

fn row(fields: &Map<String, Value>) -> String {
    line(fields.values().map(cell))
}

/// A value without the quotes of a text; nothing where it is not known.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
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
    fn cells_with_commas_are_quoted() {
        let cells = ["a", "sum(b, c)", "d \"e\""].map(str::to_owned);
        assert_eq!(line(cells.into_iter()), "a,\"sum(b, c)\",\"d \"\"e\"\"\"\n");
    }
}
