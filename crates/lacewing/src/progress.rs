//! What a run looks like: bars on a terminal, lines in a pipe, JSON for machines.

use indicatif::{ProgressBar, ProgressStyle};
use lacewing_train::report::grouped;
use lacewing_train::run::Event;
use std::io::{self, IsTerminal, Write};

/// Shows the events of a run.
pub(crate) enum Progress {
    /// A bar a model, on standard error.
    Bars { bar: Option<ProgressBar>, top1: Option<f64> },
    /// A line an event, on standard output.
    Lines { steps: u64 },
    /// A JSON object an event, on standard output.
    Json,
}

impl Progress {
    /// Bars when both outputs are terminals, else lines; or JSON.
    pub(crate) fn new(json: bool) -> Self {
        match json {
            true => Self::Json,
            false if io::stdout().is_terminal() && io::stderr().is_terminal() => {
                Self::Bars { bar: None, top1: None }
            }
            false => Self::Lines { steps: 0 },
        }
    }

    /// Shows an event.
    pub(crate) fn show(&mut self, event: &Event) {
        match self {
            Self::Json => line(&serde_json::to_string(event).expect("events are plain data")),
            Self::Lines { steps } => {
                if let Event::Start { steps: all, .. } = event {
                    *steps = *all;
                }
                line(&text(event, *steps));
            }
            Self::Bars { bar, top1 } => show_on_bar(bar, top1, event),
        }
    }

    /// Leaves the terminal in order.
    pub(crate) fn finish(&mut self) {
        if let Self::Bars { bar: Some(bar), .. } = self {
            bar.abandon();
        }
    }
}

fn show_on_bar(bar: &mut Option<ProgressBar>, top1: &mut Option<f64>, event: &Event) {
    if let Event::Start { model, steps, from_step, .. } = event {
        let style = "{prefix:>12} {bar:24} {pos}/{len} steps  {msg}  {elapsed} (eta {eta})";
        let style = ProgressStyle::with_template(style).expect("a valid template");
        let fresh =
            ProgressBar::new(*steps).with_style(style).with_prefix(model.clone()).with_position(*from_step);
        // Steps of an earlier session took no time of this one.
        fresh.reset_eta();
        (*bar, *top1) = (Some(fresh), None);
    }
    let Some(bar) = bar else {
        eprintln!("{}", text(event, 0));
        return;
    };
    match event {
        Event::Step { step, loss, images_per_s, .. } => {
            bar.set_position(*step);
            let accuracy = top1.map(|top1| format!("  accuracy {:.2} %", 100.0 * top1)).unwrap_or_default();
            bar.set_message(format!(
                "loss {loss:.4}{accuracy}  {} img/s",
                grouped(images_per_s.round() as u64)
            ));
        }
        Event::Eval { top1: found, .. } => *top1 = Some(*found),
        Event::Result { .. } => bar.finish(),
        Event::Warning { .. } => bar.println(text(event, 0)),
        Event::Start { .. } => bar.println(text(event, 0)),
        Event::Checkpoint { .. } | Event::Agree { .. } => {}
    }
}

/// An event as a line for people.
fn text(event: &Event, steps: u64) -> String {
    match event {
        Event::Start { model, parameters, macs, device, from_step, steps, .. } => {
            let resumed = if *from_step > 0 { format!(", from step {from_step}") } else { String::new() };
            let (parameters, macs) = (grouped(*parameters as u64), grouped(*macs));
            format!(
                "{model}: {parameters} parameters, {macs} MACs a picture, {steps} steps on {device}{resumed}"
            )
        }
        Event::Step { model, step, epoch, lr, loss, images_per_s } => {
            let speed = grouped(images_per_s.round() as u64);
            format!(
                "{model}: step {step}/{steps}  epoch {epoch:.2}  loss {loss:.4}  lr {lr:.2e}  {speed} img/s"
            )
        }
        Event::Eval { model, step, epoch, top1, top5, .. } => {
            let (top1, top5) = (100.0 * top1, 100.0 * top5);
            format!("{model}: step {step}/{steps}  epoch {epoch:.2}  accuracy {top1:.2} %  top-5 {top5:.2} %")
        }
        Event::Agree { model, step, ranks, digest } => {
            format!("{model}: the {ranks} processes agree after step {step} ({digest})")
        }
        Event::Checkpoint { model, step, path } => {
            format!("{model}: checkpoint of step {step} in {}", path.display())
        }
        Event::Warning { text } => format!("warning: {text}"),
        Event::Result { row } => format!("{}: done, accuracy {:.2} %", row.name, 100.0 * row.accuracy),
    }
}

/// A line on standard output; when nobody reads it any more, the run goes on all the same.
fn line(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}
