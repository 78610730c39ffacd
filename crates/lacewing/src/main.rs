//! The `lacewing` command.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod progress;

use clap::Parser;
use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    lacewing_cpu::parallel::enter_pool();
    match commands::run(cli::Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", chain(&*error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, those left out whose text a message above has told already.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let own = error.to_string();
        if !text.contains(&own) {
            text += &format!("\n  because: {own}");
        }
        cause = error.source();
    }
    text
}
