//! `lacewing bench`: structures against a dense layer of the same shape, or whole models against their dense twins, timed in
//! turns, every result checked.

mod cases;
mod check;
mod choice;
mod csv;
mod error;
mod gradient;
mod machine;
mod measure;
mod model;
mod output;
mod peers;
mod place;
mod plot;
mod report;

use super::{CommandResult, print};
use crate::cli::BenchArgs;
use cases::{Case, Plan, ShapeCases};
use check::{Mistake, Oracle, thinned};
use choice::Choice;
use csv::CsvFile;
use error::BenchError;
use indicatif::{ProgressBar, ProgressStyle};
use lacewing_core::Rng;
use lacewing_engine::Tensor;
use machine::{Limits, Work};
use measure::{Direction, Layer, compare};
use output::Output;
use peers::Peers;
use place::Place;
use report::{Measured, Report};
use std::error::Error;
use std::process::ExitCode;

/// Where patterns, values and inputs come from.
const SEED: u64 = 0;

pub(super) fn run(args: BenchArgs) -> CommandResult {
    let place = Place::new(&args)?;
    match &args.model {
        Some(name) => model::run(name, &args, &place),
        None => {
            let direction = if args.backward { Direction::Training } else { Direction::Forward };
            layers(&args, &place, direction)
        }
    }
}

/// Measures single layers.
fn layers(args: &BenchArgs, place: &Place, direction: Direction) -> CommandResult {
    let plan = Plan::new(args)?;
    let mut csv = args.csv.as_deref().map(CsvFile::create).transpose()?;
    let mut plots = Vec::new();
    if let Some(folder) = &args.svg {
        for shape in &plan.shapes {
            let name = format!("{}x{}.svg", shape.size.0, shape.size.1);
            plots.push((shape.size, Output::create_in("--svg", folder, &name)?));
        }
    }
    let peers = args.peers.as_ref().map(|venv| Peers::layers(venv.as_deref(), direction)).transpose()?;
    plan.left_out.iter().for_each(|line| eprintln!("{line}"));
    let bar = ProgressBar::new(plan.n_rows() as u64);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} {msg}  {elapsed}").expect("a valid template"));
    let mut bench =
        Bench { place, direction, n_rows: &plan.rows, autotune: args.autotune, peers, bar: bar.clone() };
    let (mut limits, mut measured, mut mistakes) = (Limits::measure(place)?, Vec::new(), Vec::new());
    for shape in plan.shapes {
        let before = measured.len();
        bench.shape(shape, &mut |row| {
            bar.inc(1);
            match row {
                Ok(row) => {
                    if let Some(csv) = &mut csv {
                        csv.add(&limits, &row.fields(&limits, place, direction))?;
                    }
                    measured.push(row);
                }
                Err(mistake) => mistakes.push(mistake),
            }
            Ok(())
        })?;
        // They came by numbers of rows, and are read by structures.
        measured[before..].sort_by_key(|row| row.case);
        // What else runs on the machine comes and goes: a limit is what it did at its best.
        limits = limits.or_better(Limits::measure(place)?);
    }
    bar.finish_and_clear();
    let skipped = bench.peers.map(|peers| peers.skipped.clone());
    let report = Report::new(limits, place, direction, &measured, skipped);
    print(&if args.json { format!("{:#}\n", report.to_json()) } else { report.to_string() })?;
    report.choices().iter().filter_map(Choice::warning).for_each(|line| eprintln!("warning: {line}"));
    if let Some(csv) = csv {
        report.write_csv(csv)?;
    }
    for (size, plot) in plots {
        plot.write(&report.to_svg(size))?;
    }
    outcome(mistakes)
}

/// The last of the mistakes as the command's error, the others told before it.
fn outcome(mut mistakes: Vec<BenchError>) -> CommandResult {
    let Some(last) = mistakes.pop() else { return Ok(ExitCode::SUCCESS) };
    mistakes.iter().for_each(|mistake| eprintln!("error: {mistake}"));
    Err(last.into())
}

/// Values of inputs and of outputs' gradients.
fn draw(len: usize, rng: &mut Rng) -> Vec<f32> {
    (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect()
}

/// What all shapes have in common.
struct Bench<'a> {
    place: &'a Place,
    direction: Direction,
    n_rows: &'a [usize],
    /// Whether every kernel is timed.
    autotune: bool,
    peers: Option<Peers>,
    bar: ProgressBar,
}

/// A structure that may be timed, by one of its kernels.
struct Checked {
    label: String,
    layer: Layer,
    /// Whether that is the chosen one, where all are timed.
    chosen: Option<bool>,
    /// For each number of rows whether its results are right.
    right: Vec<bool>,
}

/// Inputs of one number of rows.
struct Inputs {
    x: Vec<f32>,
    dy: Vec<f32>,
    /// `x` and `dy` where the layers are.
    input: Tensor,
    seed: Tensor,
    /// Where they were drawn from, for which of them are checked.
    rng: Rng,
}

/// Takes each row as it comes, or why there is none.
type Sink<'a> = dyn FnMut(Result<Measured, BenchError>) -> Result<(), BenchError> + 'a;

impl Bench<'_> {
    /// Every structure of a shape at every number of rows. All are checked first; then those of one number of rows are
    /// timed one after another, directly after the other libraries' dense products that they are compared with.
    fn shape(&mut self, shape: ShapeCases, sink: &mut Sink<'_>) -> Result<(), Box<dyn Error>> {
        let dense = Layer::new(self.place, shape.dense, None)?;
        let (n_in, n_out) = shape.size;
        let mut cases = Vec::new();
        for case in shape.cases {
            self.bar.set_message(format!("{n_in}x{n_out}, checking {}", case.label));
            let Case { label, structure } = case;
            let layer = Layer::new(self.place, structure, None)?;
            let others = if self.autotune { choice::others(self.place, &layer)? } else { Vec::new() };
            self.bar.inc_length((others.len() * self.n_rows.len()) as u64);
            let chosen = self.autotune.then_some(true);
            cases.push(self.checked(label.clone(), layer, chosen, sink)?);
            for other in others {
                cases.push(self.checked(label.clone(), other, Some(false), sink)?);
            }
        }
        for (at, &rows) in self.n_rows.iter().enumerate() {
            self.bar.set_message(format!("{n_in}x{n_out}, rows: {rows}"));
            let Inputs { input, seed, .. } = self.inputs(shape.size, rows)?;
            let mut dense_peers = None;
            for (place, Checked { label, layer, chosen, .. }) in
                cases.iter().enumerate().filter(|(_, case)| case.right[at])
            {
                if let (Some(peers), None) = (&mut self.peers, &dense_peers) {
                    dense_peers = Some(peers.dense(shape.size, rows)?);
                }
                let pass = |layer: &Layer| layer.pass(self.direction, &input, &seed).map(drop);
                let times = compare(&self.place.device, [&|| pass(&dense), &|| pass(layer)])?;
                let (structure, dense_structure) = (layer.structure(), dense.structure());
                let [work, dense_work] = [&*structure, &*dense_structure]
                    .map(|s| Work::of(s, rows, self.direction, self.place.dtype));
                let mut peers = dense_peers.clone();
                if let (Some(all), Some(libraries)) = (&mut peers, &mut self.peers) {
                    all.extend(libraries.sparse(label, &*structure, rows)?);
                }
                sink(Ok(Measured {
                    case: place,
                    label: label.clone(),
                    config: structure.config(),
                    density: structure.density(),
                    n_in,
                    n_out,
                    rows,
                    kernel: layer.kernel(),
                    dense_kernel: dense.kernel(),
                    times,
                    work,
                    dense_work,
                    peers,
                    chosen: *chosen,
                }))?;
            }
        }
        Ok(())
    }

    /// A layer checked at every number of rows: the definition's weight, which takes long to make and is large, is needed for
    /// nothing else.
    fn checked(
        &self,
        label: String,
        layer: Layer,
        chosen: Option<bool>,
        sink: &mut Sink<'_>,
    ) -> Result<Checked, Box<dyn Error>> {
        let (oracle, mut right) = (Oracle::new(self.place, &layer)?, Vec::new());
        let (n_in, n_out) = (layer.structure().n_in(), layer.structure().n_out());
        for &rows in self.n_rows {
            let mistake = self.mistake(&layer, &oracle, self.inputs((n_in, n_out), rows)?)?;
            right.push(mistake.is_none());
            if let Some(mistake) = mistake {
                let structure = label.clone();
                sink(Err(BenchError::Wrong { structure, n_in, n_out, rows, mistake }))?;
            }
        }
        Ok(Checked { label, layer, chosen, right })
    }

    /// The same whenever they are drawn.
    fn inputs(&self, (n_in, n_out): (usize, usize), rows: usize) -> Result<Inputs, Box<dyn Error>> {
        let mut rng = Rng::new(SEED).fork("bench");
        let (x, dy) = (draw(rows * n_in, &mut rng), draw(rows * n_out, &mut rng));
        let input = self.place.tensor(&x, &[rows, n_in])?;
        let seed = self.place.tensor(&dy, &[rows, n_out])?;
        Ok(Inputs { x: input.to_f32()?, dy: seed.to_f32()?, input, seed, rng })
    }

    /// What is wrong with the outputs of `layer`, or with its gradients where they are measured.
    fn mistake(
        &self,
        layer: &Layer,
        oracle: &Oracle,
        Inputs { x, dy, input, seed, mut rng }: Inputs,
    ) -> Result<Option<Mistake>, Box<dyn Error>> {
        let dy = thinned(&dy, layer.structure().n_out());
        let seed = self.place.tensor(&dy, seed.shape())?;
        let y = layer.pass(self.direction, &input, &seed)?.to_f32()?;
        let mut found = oracle.check(layer, &x, &y, &mut rng);
        if self.direction == Direction::Training && found.is_ok() {
            found = oracle.check_gradients(layer, &x, &dy, &layer.gradients(&input, &seed)?);
        }
        Ok(found.err())
    }
}
