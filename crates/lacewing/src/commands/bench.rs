//! `lacewing bench`: structures against a dense layer of the same shape, timed in turns, every product checked.

mod cases;
mod check;
mod error;
mod machine;
mod measure;
mod report;

use super::{CommandResult, print};
use crate::cli::BenchArgs;
use cases::{Plan, ShapeCases};
use check::Oracle;
use error::BenchError;
use indicatif::{ProgressBar, ProgressStyle};
use lacewing_core::Rng;
use lacewing_engine::{Device, Tensor};
use machine::{Limits, Work};
use measure::{Direction, Layer, compare};
use report::{Measured, Report};
use std::error::Error;

/// Where patterns, values and inputs come from.
const SEED: u64 = 0;

pub(super) fn run(args: BenchArgs) -> CommandResult {
    let device = open(&args.device)?;
    let plan = Plan::new(&args)?;
    let mut csv = args.csv.as_deref().map(report::CsvFile::create).transpose()?;
    plan.left_out.iter().for_each(|line| eprintln!("{line}"));
    let direction = if args.backward { Direction::Training } else { Direction::Forward };
    let bar = ProgressBar::new(plan.n_rows() as u64);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} {msg}  {elapsed}").expect("a valid template"));
    let bench = Bench { device: &device, direction, n_rows: &plan.rows };
    let (mut limits, mut measured, mut mistakes) = (Limits::measure(), Vec::new(), Vec::new());
    for shape in plan.shapes {
        bar.set_message(format!("{}x{}", shape.size.0, shape.size.1));
        bench.shape(shape, &mut |row| {
            bar.inc(1);
            match row {
                Ok(row) => measured.push(row),
                Err(mistake) => mistakes.push(mistake),
            }
        })?;
        // What else runs on the machine comes and goes: a limit is what it did at its best.
        limits = limits.or_better(Limits::measure());
    }
    bar.finish_and_clear();
    let report = Report::new(limits, &device, direction, &measured);
    if let Some(csv) = &mut csv {
        csv.write(&report)?;
    }
    print(&if args.json { format!("{:#}\n", report.to_json()) } else { report.to_string() })?;
    let Some(last) = mistakes.pop() else { return Ok(std::process::ExitCode::SUCCESS) };
    mistakes.iter().for_each(|mistake| eprintln!("error: {mistake}"));
    Err(last.into())
}

/// The device called `name`, if it is one that can be measured.
fn open(name: &str) -> Result<Device, Box<dyn Error>> {
    if name == "cuda" || name.starts_with("cuda:") {
        return Err(BenchError::Device { name: name.to_owned() }.into());
    }
    Ok(Device::open(name)?)
}

/// What all shapes have in common.
struct Bench<'a> {
    device: &'a Device,
    direction: Direction,
    n_rows: &'a [usize],
}

/// Takes each row as it comes, or why there is none.
type Sink<'a> = dyn FnMut(Result<Measured, BenchError>) + 'a;

impl Bench<'_> {
    /// Every structure of a shape at every number of rows.
    fn shape(&self, shape: ShapeCases, sink: &mut Sink<'_>) -> Result<(), Box<dyn Error>> {
        let dense = Layer::new(self.device, shape.dense)?;
        let (n_in, n_out) = shape.size;
        for case in shape.cases {
            let layer = Layer::new(self.device, case.structure)?;
            let oracle = Oracle::new(&layer)?;
            for &rows in self.n_rows {
                let mut rng = Rng::new(SEED).fork("bench");
                let mut draw =
                    |len: usize| -> Vec<f32> { (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect() };
                let (x, dy) = (draw(rows * n_in), draw(rows * n_out));
                let input = Tensor::from_f32(self.device, &x, &[rows, n_in])?;
                let seed = Tensor::from_f32(self.device, &dy, &[rows, n_out])?;
                let y = layer.pass(self.direction, &input, &seed)?.to_f32()?;
                if let Err(mistake) = oracle.check(&layer, &x, &y, &mut rng) {
                    let structure = case.label.clone();
                    sink(Err(BenchError::Wrong { structure, n_in, n_out, rows, mistake }));
                    continue;
                }
                let times = compare(self.device, [&dense, &layer], self.direction, &input, &seed)?;
                let work = Work::of(layer.structure(), rows, self.direction);
                let (label, kernel) = (case.label.clone(), layer.kernel());
                let (config, density) = (layer.structure().config(), layer.structure().density());
                sink(Ok(Measured { label, config, density, n_in, n_out, rows, kernel, times, work }));
            }
        }
        Ok(())
    }
}
