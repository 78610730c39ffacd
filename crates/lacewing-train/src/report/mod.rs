//! What a run comes to: one row a model, as a table for people and JSON for machines.

mod table;

pub use table::{Align, Table};

use serde::{Deserialize, Serialize};

/// What one model is worth and costs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name in the run.
    pub name: String,
    /// Share of the test pictures classified right, 0 to 1.
    pub accuracy: f64,
    /// Trained values.
    pub parameters: usize,
    /// Bytes of a packed file, indices included.
    pub bytes: usize,
    /// Multiply-adds for one picture.
    pub macs: u64,
    /// Pictures trained a second, median over the run's log lines; 0 when the run took no step.
    pub train_images_per_s: f64,
    /// Median time of a forward pass, in milliseconds.
    pub latency_ms: Latency,
}

/// Milliseconds of a forward pass by batch size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// One picture.
    #[serde(rename = "1")]
    pub batch_1: f64,
    /// 32 pictures.
    #[serde(rename = "32")]
    pub batch_32: f64,
}

/// The final table. Where there are two models or more, every one but the last is compared with the last: parameters,
/// bytes, MACs and latency as shares of the last one's, speed as a multiple.
pub fn final_table(rows: &[Row]) -> String {
    let header =
        ["model", "accuracy", "parameters", "bytes", "MACs", "train img/s", "latency b=1", "latency b=32"];
    let mut table = Table::new(&header);
    for row in rows {
        table.push(vec![
            row.name.clone(),
            format!("{:.2} %", 100.0 * row.accuracy),
            grouped(row.parameters as u64),
            grouped(row.bytes as u64),
            grouped(row.macs),
            grouped(row.train_images_per_s.round() as u64),
            format!("{:.3} ms", row.latency_ms.batch_1),
            format!("{:.3} ms", row.latency_ms.batch_32),
        ]);
    }
    if let Some((base, others)) = rows.split_last() {
        for row in others {
            let times = |own: f64, base: f64| format!("{:.2}x", own / base);
            table.push(vec![
                format!("{} / {}", row.name, base.name),
                format!("{:+.2} points", 100.0 * (row.accuracy - base.accuracy)),
                times(row.parameters as f64, base.parameters as f64),
                times(row.bytes as f64, base.bytes as f64),
                times(row.macs as f64, base.macs as f64),
                times(row.train_images_per_s, base.train_images_per_s),
                times(row.latency_ms.batch_1, base.latency_ms.batch_1),
                times(row.latency_ms.batch_32, base.latency_ms.batch_32),
            ]);
        }
    }
    table.to_string()
}

/// A number with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, parameters: usize, accuracy: f64) -> Row {
        Row {
            name: name.to_owned(),
            accuracy,
            parameters,
            bytes: 4 * parameters,
            macs: 1000,
            train_images_per_s: 1234.4,
            latency_ms: Latency { batch_1: 0.5, batch_32: 4.0 },
        }
    }

    #[test]
    fn numbers_are_grouped() {
        let grouped: Vec<String> = [0, 999, 1000, 59_880_472].map(grouped).to_vec();
        assert_eq!(grouped, ["0", "999", "1,000", "59,880,472"]);
    }

    #[test]
    fn the_table_compares_with_the_last_row() {
        let text = final_table(&[row("monarch", 500, 0.97), row("dense", 2000, 0.98)]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert!(lines[0].starts_with("model") && lines[0].ends_with("latency b=32"), "{text}");
        assert!(lines[4].contains("monarch / dense") && lines[4].contains("-1.00 points"), "{text}");
        assert!(lines[4].contains("0.25x") && lines[4].contains("1.00x"), "{text}");
        assert_eq!(final_table(&[row("alone", 1, 0.5)]).lines().count(), 3);
    }

    #[test]
    fn a_row_in_json_has_the_documented_keys() {
        let json = serde_json::to_value(row("dense", 10, 0.5)).expect("plain data");
        let keys: Vec<&str> = json.as_object().expect("a map").keys().map(String::as_str).collect();
        let documented =
            ["name", "accuracy", "parameters", "bytes", "macs", "train_images_per_s", "latency_ms"];
        assert_eq!(keys, documented);
        assert_eq!(json["latency_ms"], serde_json::json!({"1": 0.5, "32": 4.0}));
    }
}
