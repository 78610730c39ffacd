//! One file a command.

mod bench;
mod convert;
mod eval;
mod info;
mod list;
mod train;

use crate::cli::{Cli, Command};
use lacewing_train::recipe::{Mapped, Override, RecipeError};
use lacewing_train::report::{Align, Table};
use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

/// What ends the program: any crate's error.
pub(crate) type CommandResult = Result<ExitCode, Box<dyn Error>>;

/// Runs the command that was asked for.
pub(crate) fn run(cli: Cli) -> CommandResult {
    match cli.command {
        Command::Train(args) => train::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Info(args) => info::run(args),
        Command::List(args) => list::run(args),
    }
}

/// Prints to standard output. A reader that has seen enough, such as `head`, is no error.
fn print(text: &str) -> CommandResult {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Reads `key.path=value` arguments.
fn overrides(texts: &[String]) -> Result<Vec<Override>, RecipeError> {
    texts.iter().map(|text| text.parse()).collect()
}

/// What each key of a file of timm's became.
fn mapping(rows: &[Mapped]) -> String {
    let mut table = Table::new(&["timm", "value", "recipe"]).align(1, Align::Left).align(2, Align::Left);
    for row in rows {
        let key = if row.given { row.key.clone() } else { format!("{} (default)", row.key) };
        // A setting a row: some keys become many.
        let mut first = Some((key, row.value.clone()));
        for setting in &row.becomes {
            let (key, value) = first.take().unwrap_or_default();
            table.push(vec![key, value, setting.clone()]);
        }
    }
    table.to_string()
}
