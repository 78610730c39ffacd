//! `lacewing train`.

mod launch;

use super::{CommandResult, mapping, overrides, print};
use crate::cli::TrainArgs;
use crate::progress::Progress;
use lacewing::recipes;
use lacewing_train::ranks::Ranks;
use lacewing_train::recipe::{Override, Recipe, RecipeError, load, load_timm};
use lacewing_train::report::final_table;
use lacewing_train::run::{Outcome, Start, config_file, train_with};
use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// What a shell reports for a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

pub(super) fn run(args: TrainArgs) -> CommandResult {
    let (recipe, start) = read(&args)?;
    if let Some(size) = launch::wanted(args.ranks)? {
        return launch::launch(size);
    }
    let stop = stop_on_signal()?;
    let flag = stop.clone();
    launch::stop_with_input(move || flag.store(true, Ordering::Relaxed));
    let ranks = Ranks::from_environment()?;
    let mut progress = Progress::new(args.json);
    let result = train_with(&ranks, recipe, start, &stop, &mut |event| progress.show(event));
    progress.finish();
    let finished = result?;
    if !ranks.is_first() {
        return Ok(ExitCode::SUCCESS);
    }
    if let Outcome::Interrupted { step } = finished.outcome {
        let out = finished.out.display();
        let ranks = if ranks.size() > 1 { format!("--ranks {} ", ranks.size()) } else { String::new() };
        eprintln!("interrupted at step {step}; continue with: lacewing train {ranks}--resume {out}");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if !args.json {
        print(&format!("\n{}\nresults in {}\n", final_table(&finished.rows), finished.out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The recipe, from its name, from a file of timm's or from the run to be continued.
fn read(args: &TrainArgs) -> Result<(Recipe, Start), Box<dyn Error>> {
    let named = args.recipe_and_settings.first().filter(|text| !text.contains('='));
    let settings = &args.recipe_and_settings[usize::from(named.is_some())..];
    let mut changes = overrides(settings)?;
    let path_text = |path: &Path| path.display().to_string();
    changes.extend(args.data.as_deref().map(|path| Override::new("data.path", path_text(path))));
    changes.extend(args.device.as_deref().map(|device| Override::new("device", device)));
    changes.extend(args.seed.map(|seed| Override::new("seed", seed)));
    changes.extend(args.init.as_deref().map(|path| Override::new("init", path_text(path))));
    let Some(folder) = &args.resume else {
        changes.extend(args.out.as_deref().map(|path| Override::new("out", path_text(path))));
        if let Some(file) = &args.from_timm {
            if let Some(name) = named {
                return Err(RecipeError::Override { text: name.clone() }.into());
            }
            let read = load_timm(file, &changes)?;
            // Standard output is the run's own.
            eprintln!("{}", mapping(&read.mapped));
            return Ok((read.recipe, Start::New));
        }
        return Ok((recipes::read(named.map(String::as_str), &changes)?, Start::New));
    };
    if let Some(name) = named {
        return Err(RecipeError::Override { text: name.clone() }.into());
    }
    // A run cut short by max_steps goes on to its end, unless told again where to stop.
    if changes.iter().all(|change| change.path() != "train.max_steps") {
        changes.push(Override::new("train.max_steps", serde_json::Value::Null));
    }
    changes.push(Override::new("out", path_text(folder)));
    Ok((load(&config_file(folder), &changes)?, Start::Resume))
}

/// A flag that Ctrl-C (or a request to terminate) sets; the second one ends the program at once.
fn stop_on_signal() -> Result<Arc<AtomicBool>, ctrlc::Error> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(INTERRUPTED));
        }
        eprintln!("stopping after this step; once more to stop now");
    })?;
    Ok(stop)
}
