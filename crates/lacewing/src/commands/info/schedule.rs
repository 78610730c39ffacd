//! `lacewing info RECIPE --schedule`: what the schedules of a recipe do over time, as a table and as a picture.

use crate::commands::CommandResult;
use crate::commands::print;
use lacewing_core::{Form, Growth, Horizon, MaskPhase, PatternKind, Schedule, StructureError};
use lacewing_models::ModelError;
use lacewing_nn::{Evolving, ModelBuilder};
use lacewing_train::recipe::Recipe;
use lacewing_train::report::{Align, Table, grouped};
use lacewing_train::run::{contenders, horizon};
use std::error::Error;
use std::fmt::Write;
use std::path::Path;

/// Draws the schedules of `recipe`, for a run of its data or of `steps_per_epoch`.
pub(super) fn run(recipe: &Recipe, steps_per_epoch: Option<u64>, svg: Option<&Path>) -> CommandResult {
    let horizon = match steps_per_epoch {
        Some(steps) => Horizon { total_steps: recipe.train.epochs * steps, steps_per_epoch: steps },
        None => horizon(recipe)?,
    };
    let mut lines = Vec::new();
    for contender in contenders(recipe)? {
        let counted = contender.config.build(ModelBuilder::counting().map_err(ModelError::from)?)?;
        lines.extend(lines_of(&contender.label, &counted.evolving, horizon)?);
    }
    if let Some(path) = svg {
        std::fs::write(path, picture(&recipe.name, &lines, horizon))
            .map_err(|source| format!("cannot write {}: {source}", path.display()))?;
    }
    if lines.is_empty() {
        return print(&format!("no layer of {} has a schedule\n", recipe.name));
    }
    print(&table(&lines, horizon))
}

/// Layers of a model that change alike.
struct Line {
    model: String,
    layers: Vec<String>,
    schedule: Schedule,
    points: Vec<Point>,
}

/// From a step on.
struct Point {
    step: u64,
    what: String,
    /// No number where it comes of training.
    density: f64,
    /// What dropped weights still count, which share of the stored ones move, or the threshold.
    fraction: f64,
}

/// Points that a picture of a run has at least.
const SAMPLES: u64 = 200;

fn lines_of(model: &str, layers: &[Evolving], horizon: Horizon) -> Result<Vec<Line>, Box<dyn Error>> {
    let mut lines: Vec<(String, Line)> = Vec::new();
    for layer in layers {
        let structure = layer.structure();
        let shape = (structure.config(), layer.schedule.config());
        // Moves keep the density, which may differ by rounding from layer to layer; masks go by n and m.
        let key = match layer.schedule {
            Schedule::Masks(_) => {
                format!("{:?} {} {} {}", shape.1, shape.0["n"], shape.0["m"], shape.0["density"])
            }
            _ => format!("{shape:?}"),
        };
        if let Some((_, line)) = lines.iter_mut().find(|(known, _)| *known == key) {
            line.layers.push(layer.name.clone());
            continue;
        }
        let points = points(layer, horizon)?;
        let model = model.to_owned();
        let line = Line { model, layers: vec![layer.name.clone()], schedule: layer.schedule.clone(), points };
        lines.push((key, line));
    }
    Ok(lines.into_iter().map(|(_, line)| line).collect())
}

fn points(layer: &Evolving, horizon: Horizon) -> Result<Vec<Point>, StructureError> {
    let structure = layer.structure();
    let mut points: Vec<Point> = Vec::new();
    match (&layer.schedule, structure.form()) {
        (Schedule::Masks(masks), Form::Pattern(pattern)) => {
            let (n, m) = pattern.mask_group();
            let grouped = matches!(pattern.kind, PatternKind::Nm { .. });
            let plan = masks.plan(horizon, n, m)?;
            // Every stage's first step, the last step's after, and enough between for what fades.
            let even = (0..=SAMPLES).map(|i| i * horizon.total_steps / SAMPLES);
            let stages = plan.stages().iter().map(|&(from, ..)| from);
            let mut steps: Vec<u64> =
                even.chain(stages).filter(|&step| step <= horizon.total_steps).collect();
            steps.sort_unstable();
            steps.dedup();
            for step in steps {
                let phase = plan.at(step);
                let (what, fraction) = match phase {
                    MaskPhase::Dense => ("dense".to_owned(), 1.0),
                    MaskPhase::Masked { n, m, rest } if grouped => (format!("{n}:{m}"), rest),
                    MaskPhase::Masked { rest, .. } => (format!("largest {:.4}", phase.density()), rest),
                };
                points.push(Point { step, what, density: phase.density(), fraction });
            }
        }
        (Schedule::Learns(learns), Form::Pattern(pattern)) => {
            let plan = learns.plan(horizon)?;
            let target = pattern.nnz() as f64 / (pattern.grid().0 * pattern.grid().1) as f64;
            for i in 0..=SAMPLES {
                let step = i * horizon.total_steps / SAMPLES;
                // Under a threshold nobody knows the density beforehand.
                let (density, fraction) = match plan.threshold(step) {
                    Some(threshold) => (f64::NAN, threshold),
                    None => (plan.density(step, target), plan.density(step, target)),
                };
                points.push(Point { step, what: "scored".to_owned(), density, fraction });
            }
        }
        (Schedule::Moves(moves), _) => {
            let plan = moves.plan(horizon)?;
            let density = structure.density();
            let by = match moves.growth {
                Growth::Gradient => "by gradients",
                Growth::Momentum(_) => "by momentum",
                Growth::Random => "at random",
            };
            for step in (0..horizon.total_steps).filter(|&step| plan.is_due(step)) {
                points.push(Point { step, what: by.to_owned(), density, fraction: plan.fraction(step) });
            }
        }
        _ => {}
    }
    Ok(points)
}

/// Rows of a schedule of moves, and of what fades within a stage.
const ROWS: usize = 6;

fn table(lines: &[Line], horizon: Horizon) -> String {
    let mut out = format!(
        "{} optimizer steps, {} an epoch\n",
        grouped(horizon.total_steps),
        grouped(horizon.steps_per_epoch)
    );
    for line in lines {
        let (masks, column) = match line.schedule {
            Schedule::Masks(_) => (true, "dropped count"),
            Schedule::Moves(_) => (false, "share that moves"),
            Schedule::Learns(_) if line.schedule.decides_density() => (true, "threshold"),
            Schedule::Learns(_) => (true, "share that counts"),
        };
        let others = match line.layers.len() - 1 {
            0 => String::new(),
            n => format!(" and {n} more"),
        };
        let _ = writeln!(out, "\n{}: {} of {}{others}", line.model, line.schedule.name(), line.layers[0]);
        let mut table =
            Table::new(&["step", "epoch", if masks { "n:m" } else { "places" }, "density", column])
                .align(2, Align::Left);
        for point in shown(&line.points) {
            table.push(vec![
                grouped(point.step),
                format!("{:.1}", point.step as f64 / horizon.steps_per_epoch as f64),
                point.what.clone(),
                if point.density.is_nan() { "open".to_owned() } else { format!("{:.4}", point.density) },
                format!("{:.4}", point.fraction),
            ]);
        }
        out += &table.to_string();
        if !masks {
            let _ = writeln!(out, "{} updates in all", line.points.len());
        }
    }
    out
}

/// The points at which the pattern changes, and some of what is between.
fn shown(points: &[Point]) -> Vec<&Point> {
    let mut shown = Vec::new();
    for stage in points.chunk_by(|a, b| a.what == b.what) {
        // One row says it all where nothing fades.
        let even = stage.iter().all(|point| point.fraction == stage[0].fraction);
        let rows = if even { 1 } else { ROWS.min(stage.len()) };
        shown.extend((0..rows).map(|i| &stage[i * (stage.len() - 1) / (rows - 1).max(1)]));
    }
    shown
}

/// Size of the picture, and the corners of the plot in it.
const SIZE: (f64, f64) = (860.0, 460.0);
const LEFT_TOP: (f64, f64) = (70.0, 60.0);
const RIGHT_BOTTOM: (f64, f64) = (820.0, 340.0);

/// Okabe and Ito's colours.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// Over the steps, the density of each group of layers as a solid line and what dropped weights count, the share that moves,
/// or the threshold, as a dotted one.
fn picture(name: &str, lines: &[Line], horizon: Horizon) -> String {
    let x = |step: u64| {
        LEFT_TOP.0 + step as f64 / horizon.total_steps.max(1) as f64 * (RIGHT_BOTTOM.0 - LEFT_TOP.0)
    };
    // A threshold need not lie between 0 and 1.
    let y = |share: f64| RIGHT_BOTTOM.1 - share.clamp(0.0, 1.0) * (RIGHT_BOTTOM.1 - LEFT_TOP.1);
    let escaped = name.replace('&', "&amp;").replace('<', "&lt;");
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" role=\"img\" \
         font-family=\"sans-serif\" font-size=\"13\">\n<title>{escaped}</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"{2}\" y=\"28\" font-size=\"18\">{escaped}</text>\n\
         <text x=\"{2}\" y=\"46\" fill=\"#555555\">solid: density; dotted: what dropped weights count, or the share that \
         moves; over {3} steps</text>\n",
        SIZE.0,
        SIZE.1,
        LEFT_TOP.0,
        grouped(horizon.total_steps)
    );
    for i in 0..=4 {
        let share = f64::from(i) / 4.0;
        let _ = writeln!(
            out,
            "<line x1=\"{}\" y1=\"{1:.1}\" x2=\"{2}\" y2=\"{1:.1}\" stroke=\"#dddddd\"/>\
             <text x=\"{3}\" y=\"{4:.1}\" text-anchor=\"end\">{share}</text>",
            LEFT_TOP.0,
            y(share),
            RIGHT_BOTTOM.0,
            LEFT_TOP.0 - 8.0,
            y(share) + 4.0
        );
    }
    for (at, line) in lines.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let end = line.points.last().map(|point| (horizon.total_steps, point.density, point.fraction));
        let all = line.points.iter().map(|point| (point.step, point.density, point.fraction)).chain(end);
        let all: Vec<(u64, f64, f64)> = all.collect();
        // Densities jump, what fades goes straight from point to point.
        let mut density = String::new();
        for (i, &(step, share, _)) in all.iter().filter(|(_, share, _)| !share.is_nan()).enumerate() {
            let step = format!("{:.1}", x(step));
            let command = if i == 0 {
                format!("M{step} {:.1}", y(share))
            } else {
                format!(" H{step} V{:.1}", y(share))
            };
            density += &command;
        }
        let fading: Vec<String> =
            all.iter().map(|&(step, _, share)| format!("{:.1},{:.1}", x(step), y(share))).collect();
        let label = format!("{}: {}, {} layers", line.model, line.schedule.name(), line.layers.len())
            .replace('<', "&lt;");
        let _ = writeln!(
            out,
            "<path d=\"{density}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n\
             <polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-dasharray=\"2 3\"/>\n\
             <text x=\"{}\" y=\"{}\" fill=\"{colour}\">{label}</text>",
            fading.join(" "),
            LEFT_TOP.0 + 260.0 * (at % 3) as f64,
            RIGHT_BOTTOM.1 + 36.0 + 18.0 * (at / 3) as f64
        );
    }
    out + "</svg>\n"
}
