//! `lacewing bench`: structures against a dense layer of the same shape, or whole models against their dense twins, timed in
//! turns, every result checked.

mod cases;
mod check;
mod error;
mod gradient;
mod machine;
mod measure;
mod model;
mod output;
mod peers;
mod plot;
mod report;

use super::{CommandResult, print};
use crate::cli::BenchArgs;
use cases::{Plan, ShapeCases};
use check::{Mistake, Oracle, thinned};
use error::BenchError;
use indicatif::{ProgressBar, ProgressStyle};
use lacewing_core::Rng;
use lacewing_engine::{Device, Tensor};
use machine::{Limits, Work};
use measure::{Direction, Layer, compare};
use output::Output;
use peers::Peers;
use report::{Measured, Report};
use std::error::Error;
use std::process::ExitCode;

/// Where patterns, values and inputs come from.
const SEED: u64 = 0;

pub(super) fn run(args: BenchArgs) -> CommandResult {
    let device = open(&args.device)?;
    let direction = if args.backward { Direction::Training } else { Direction::Forward };
    match &args.model {
        Some(name) => model::run(name, &args, &device, direction),
        None => layers(&args, &device, direction),
    }
}

/// Measures single layers.
fn layers(args: &BenchArgs, device: &Device, direction: Direction) -> CommandResult {
    let plan = Plan::new(args)?;
    let csv = args.csv.as_deref().map(|path| Output::create("--csv", path)).transpose()?;
    let mut plots = Vec::new();
    if let Some(folder) = &args.svg {
        for shape in &plan.shapes {
            let name = format!("{}x{}.svg", shape.size.0, shape.size.1);
            plots.push((shape.size, Output::create_in("--svg", folder, &name)?));
        }
    }
    let peers = args.peers.as_ref().map(|venv| Peers::start(venv.as_deref(), direction)).transpose()?;
    plan.left_out.iter().for_each(|line| eprintln!("{line}"));
    let bar = ProgressBar::new(plan.n_rows() as u64);
    bar.set_style(ProgressStyle::with_template("{pos}/{len} {msg}  {elapsed}").expect("a valid template"));
    let mut bench = Bench { device, direction, n_rows: &plan.rows, peers };
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
    let skipped = bench.peers.map(|peers| peers.skipped.clone());
    let report = Report::new(limits, device, direction, &measured, skipped);
    print(&if args.json { format!("{:#}\n", report.to_json()) } else { report.to_string() })?;
    if let Some(csv) = csv {
        csv.write(&report.to_csv())?;
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

/// The device called `name`, if it is one that can be measured.
fn open(name: &str) -> Result<Device, Box<dyn Error>> {
    if name == "cuda" || name.starts_with("cuda:") {
        return Err(BenchError::Device { name: name.to_owned() }.into());
    }
    Ok(Device::open(name)?)
}

/// Values of inputs and of outputs' gradients.
fn draw(len: usize, rng: &mut Rng) -> Vec<f32> {
    (0..len).map(|_| rng.uniform(-1.0, 1.0) as f32).collect()
}

/// What all shapes have in common.
struct Bench<'a> {
    device: &'a Device,
    direction: Direction,
    n_rows: &'a [usize],
    peers: Option<Peers>,
}

/// Takes each row as it comes, or why there is none.
type Sink<'a> = dyn FnMut(Result<Measured, BenchError>) + 'a;

impl Bench<'_> {
    /// Every structure of a shape at every number of rows.
    fn shape(&mut self, shape: ShapeCases, sink: &mut Sink<'_>) -> Result<(), Box<dyn Error>> {
        let dense = Layer::new(self.device, shape.dense)?;
        let (n_in, n_out) = shape.size;
        for case in shape.cases {
            let layer = Layer::new(self.device, case.structure)?;
            let oracle = Oracle::new(&layer)?;
            for &rows in self.n_rows {
                let mut rng = Rng::new(SEED).fork("bench");
                let (x, dy) = (draw(rows * n_in, &mut rng), draw(rows * n_out, &mut rng));
                let input = Tensor::from_f32(self.device, &x, &[rows, n_in])?;
                let seed = Tensor::from_f32(self.device, &dy, &[rows, n_out])?;
                if let Some(mistake) = self.mistake(&layer, &oracle, &x, &dy, &mut rng)? {
                    let structure = case.label.clone();
                    sink(Err(BenchError::Wrong { structure, n_in, n_out, rows, mistake }));
                    continue;
                }
                let pass = |layer: &Layer| layer.pass(self.direction, &input, &seed).map(drop);
                let times = compare(self.device, [&|| pass(&dense), &|| pass(&layer)])?;
                let structure = layer.structure();
                let [work, dense_work] =
                    [structure, dense.structure()].map(|s| Work::of(s, rows, self.direction));
                let peers = self.peers.as_mut().map(|peers| peers.measure(&case.label, structure, rows));
                sink(Ok(Measured {
                    label: case.label.clone(),
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
                    peers: peers.transpose()?,
                }));
            }
        }
        Ok(())
    }

    /// What is wrong with the outputs of `layer`, or with its gradients where they are measured.
    fn mistake(
        &self,
        layer: &Layer,
        oracle: &Oracle,
        x: &[f32],
        dy: &[f32],
        rng: &mut Rng,
    ) -> Result<Option<Mistake>, Box<dyn Error>> {
        let (n_in, n_out) = (layer.structure().n_in(), layer.structure().n_out());
        let rows = x.len() / n_in;
        let input = Tensor::from_f32(self.device, x, &[rows, n_in])?;
        let dy = thinned(dy, n_out);
        let seed = Tensor::from_f32(self.device, &dy, &[rows, n_out])?;
        let y = layer.pass(self.direction, &input, &seed)?.to_f32()?;
        let mut found = oracle.check(layer, x, &y, rng);
        if self.direction == Direction::Training && found.is_ok() {
            found = oracle.check_gradients(layer, x, &dy, &layer.gradients(&input, &seed)?);
        }
        Ok(found.err())
    }
}
