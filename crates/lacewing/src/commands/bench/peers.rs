//! Other libraries beside ours: a Python program of an environment that the user names, asked case by case.

mod layers;
mod models;

use super::error::BenchError;
use super::measure::protocol;
use lacewing_cpu::peak;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

pub(super) use models::ModelCase;

/// A Python program that measures other libraries.
struct Program {
    text: &'static str,
    /// How an environment with everything that it needs is made.
    recipe: &'static str,
}

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
    /// Bytes that it held at once, where it says.
    pub(super) peak_bytes: Option<u64>,
}

/// A library, or one way to call it, that was not measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Skipped {
    pub(super) peer: String,
    pub(super) reason: String,
}

impl Skipped {
    pub(super) fn to_json(all: &[Self]) -> Value {
        all.iter().map(|one| json!({ "peer": one.peer, "reason": one.reason })).collect()
    }
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
    /// Starts `program` with its own `settings`, by the Python of the environment in `venv` or the `python3` of the path.
    fn start(program: &Program, venv: Option<&Path>, mut settings: Value) -> Result<Self, BenchError> {
        let (python, recipe) = (interpreter(venv), program.recipe);
        let mut command = Command::new(&python);
        let command = command.args(["-c", program.text]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let failed = |source| BenchError::NoPython { python: python.clone(), source, recipe };
        let mut child = command.spawn().map_err(failed)?;
        let (cases, answers) = (child.stdin.take(), child.stdout.take().expect("a pipe was asked for"));
        let answers = BufReader::new(answers);
        let mut peers = Self { python: python.clone(), child, cases, answers, skipped: Vec::new() };
        for (key, value) in protocol() {
            settings[key] = value;
        }
        settings["threads"] = peak::threads().into();
        peers.send(&settings)?;
        let first = peers.answer()?;
        if let Some(module) = first["missing"].as_str() {
            let (module, reason) =
                (module.to_owned(), first["reason"].as_str().unwrap_or_default().to_owned());
            return Err(BenchError::MissingModule { python, module, reason, recipe });
        }
        peers.rows(true)?;
        Ok(peers)
    }

    /// What the libraries took for `case`, which asks for dense products or for others.
    fn ask(&mut self, case: &Value, dense: bool) -> Result<Vec<PeerTimes>, BenchError> {
        self.send(case)?;
        self.rows(dense)
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
                    peak_bytes: answer["peak_bytes"].as_u64(),
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
