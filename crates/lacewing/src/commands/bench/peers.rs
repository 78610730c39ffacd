//! Other libraries beside ours: a Python program of an environment that the user names, asked case by case.
//!
//! It answers each case before we go on, so that its times and ours are of the same minutes of the machine. Dense
//! products are asked for once for all structures of a shape and number of rows, which are timed directly after.

use super::SEED;
use super::error::BenchError;
use super::measure::{Direction, protocol};
use lacewing_core::{Form, Structure};
use lacewing_cpu::peak;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The program, with what goes in and comes out in its header.
const PROGRAM: &str = include_str!("../../../../../benches/peers/linear.py");

/// How an environment with everything is made.
pub(super) const RECIPE: &str = "python3 -m venv .venv && \
    .venv/bin/pip install numpy torch scipy onnx onnxruntime openvino, then lacewing bench --peers .venv";

/// What another library took.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PeerTimes {
    /// The library and its version.
    pub(super) peer: String,
    /// Whether it multiplied by a dense weight, or by that of the case.
    pub(super) dense: bool,
    /// What of the library.
    pub(super) kernel: String,
    pub(super) ms: f64,
    pub(super) ms_spread: f64,
}

/// A library, or one way to call it, that was not measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Skipped {
    pub(super) peer: String,
    pub(super) reason: String,
}

/// The program, running.
pub(super) struct Peers {
    python: PathBuf,
    child: Child,
    /// `None` once it has been told that there is nothing more.
    cases: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// What was skipped so far, each once.
    pub(super) skipped: Vec<Skipped>,
}

impl Peers {
    /// Starts the Python of the environment in `venv`, or the `python3` of the path.
    pub(super) fn start(venv: Option<&Path>, direction: Direction) -> Result<Self, BenchError> {
        let python = interpreter(venv);
        let mut command = Command::new(&python);
        let command = command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let failed = |source| BenchError::NoPython { python: python.clone(), source };
        let mut child = command.spawn().map_err(failed)?;
        let (cases, answers) = (child.stdin.take(), child.stdout.take().expect("a pipe was asked for"));
        let answers = BufReader::new(answers);
        let mut peers = Self { python: python.clone(), child, cases, answers, skipped: Vec::new() };
        let mut settings = protocol();
        settings["threads"] = peak::threads().into();
        settings["direction"] = direction.name().into();
        peers.send(&settings)?;
        let first = peers.answer()?;
        if let Some(module) = first["missing"].as_str() {
            let (module, reason) =
                (module.to_owned(), first["reason"].as_str().unwrap_or_default().to_owned());
            return Err(BenchError::MissingModule { python, module, reason });
        }
        peers.rows(true)?;
        Ok(peers)
    }

    /// Times every library's dense products of a shape `(n_in, n_out)` at `rows` rows.
    pub(super) fn dense(
        &mut self,
        (n_in, n_out): (usize, usize),
        rows: usize,
    ) -> Result<Vec<PeerTimes>, BenchError> {
        self.send(&json!({
            "structure": "dense",
            "density": 1.0,
            "n_in": n_in,
            "n_out": n_out,
            "rows": rows,
            "dense": true,
            "mask": null,
            "block": null,
            "seed": SEED,
        }))?;
        self.rows(true)
    }

    /// Times every library's products by the stored places of `structure`, which the report calls `label`, at `rows` rows.
    pub(super) fn sparse(
        &mut self,
        label: &str,
        structure: &dyn Structure,
        rows: usize,
    ) -> Result<Vec<PeerTimes>, BenchError> {
        let (mask, block) = places(structure);
        self.send(&json!({
            "structure": label,
            "density": structure.density(),
            "n_in": structure.n_in(),
            "n_out": structure.n_out(),
            "rows": rows,
            "dense": false,
            "mask": mask,
            "block": block,
            "seed": SEED,
        }))?;
        self.rows(false)
    }

    fn send(&mut self, line: &Value) -> Result<(), BenchError> {
        let cases = self.cases.as_mut().expect("open until the end");
        let sent = writeln!(cases, "{line}").and_then(|()| cases.flush());
        // A broken pipe: what it says, or how it ended, tells more.
        sent.or_else(|_| self.answer().map(drop))
    }

    /// All rows up to the end of a case that asked for dense products, or for others.
    fn rows(&mut self, dense: bool) -> Result<Vec<PeerTimes>, BenchError> {
        let mut rows = Vec::new();
        loop {
            let answer = self.answer()?;
            if answer["done"] == true {
                return Ok(rows);
            }
            let text = |key: &str| answer[key].as_str().map(str::to_owned);
            if let (Some(peer), Some(reason)) = (text("peer"), text("skipped")) {
                let skipped = Skipped { peer, reason };
                if !self.skipped.contains(&skipped) {
                    self.skipped.push(skipped);
                }
                continue;
            }
            let row = || {
                Some(PeerTimes {
                    peer: text("peer")?,
                    dense,
                    kernel: text("kernel")?,
                    ms: answer["ms"].as_f64().filter(|ms| *ms > 0.0)?,
                    ms_spread: answer["ms_spread"].as_f64()?,
                })
            };
            rows.push(row().ok_or_else(|| self.nonsense(answer.to_string()))?);
        }
    }

    fn answer(&mut self) -> Result<Value, BenchError> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        if !matches!(read, Ok(1..)) {
            let status =
                self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string());
            return Err(BenchError::PeersEnded { python: self.python.clone(), status });
        }
        serde_json::from_str(&line).map_err(|_| self.nonsense(line.trim_end().to_owned()))
    }

    fn nonsense(&self, line: String) -> BenchError {
        BenchError::PeersAnswer { python: self.python.clone(), line }
    }
}

impl Drop for Peers {
    /// Ends the program: it reads that there are no more cases. After an error it may be in the middle of one.
    fn drop(&mut self) {
        drop(self.cases.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `VENV/bin/python`, or `venv` itself where that is a file.
fn interpreter(venv: Option<&Path>) -> PathBuf {
    let Some(venv) = venv else { return PathBuf::from("python3") };
    match venv.is_file() {
        true => venv.to_owned(),
        false if cfg!(windows) => venv.join("Scripts").join("python.exe"),
        false => venv.join("bin").join("python"),
    }
}

/// The stored places of a pattern, packed bits `[n_out, n_in]` in hexadecimal, and its block where there is no padding.
fn places(structure: &dyn Structure) -> (Option<String>, Option<[usize; 2]>) {
    let Form::Pattern(pattern) = structure.form() else { return (None, None) };
    let bytes = pattern
        .mask()
        .chunks(8)
        .map(|bits| {
            let byte =
                bits.iter().enumerate().fold(0u8, |byte, (at, &bit)| byte | (u8::from(bit) << (7 - at)));
            format!("{byte:02x}")
        })
        .collect();
    let whole = (pattern.n_in, pattern.n_out) == (pattern.n_in_ext, pattern.n_out_ext);
    (Some(bytes), whole.then_some([pattern.block.0, pattern.block.1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bits_from_the_left() {
        let config = json!({"structure": "block_sparse", "block": [1, 4], "density": 1.0});
        let whole = lacewing_core::build(&config, 12, 1, 0, None).unwrap();
        assert_eq!(places(whole.as_ref()), (Some("fff0".to_owned()), Some([1, 4])));
        let dense = lacewing_core::build(&"dense".into(), 12, 1, 0, None).unwrap();
        assert_eq!(places(dense.as_ref()), (None, None));
    }
}
