//! `lacewing train --ranks N`: starts the processes of a run on this machine, and ends with them.

use super::INTERRUPTED;
use lacewing_train::ranks::RanksError;
use std::env;
use std::error::Error;
use std::io::{self, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, ChildStdin, Command, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Set for a process whose standard input ends when it shall stop.
const STOPS_WITH_INPUT: &str = "LACEWING_STOPS_WITH_INPUT";

/// Time between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(50);

/// How many processes this one is to start instead of training itself; none where it was started as one of so many.
///
/// # Errors
///
/// [`RanksError::Environment`] when it was started as one of another number.
pub(super) fn wanted(ranks: Option<u16>) -> Result<Option<usize>, RanksError> {
    let Some(ranks) = ranks.map(usize::from) else { return Ok(None) };
    match env::var("WORLD_SIZE") {
        Err(env::VarError::NotPresent) => Ok(Some(ranks).filter(|&ranks| ranks > 1)),
        Ok(size) if size == ranks.to_string() => Ok(None),
        other => {
            let got = format!("`{}`", other.unwrap_or_default());
            Err(RanksError::Environment {
                name: "WORLD_SIZE",
                expected: format!("not set, or {ranks} as --ranks says"),
                got,
            })
        }
    }
}

/// Runs this very command as `size` processes. Ctrl-C stops all after their step, a second one at once.
pub(super) fn launch(size: usize) -> Result<ExitCode, Box<dyn Error>> {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let mut processes = Processes(Vec::new());
    let mut input = None;
    for rank in 0..size {
        let mut command = Command::new(env::current_exe()?);
        command.args(env::args_os().skip(1));
        for (name, value) in [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", size)] {
            command.env(name, value.to_string());
        }
        command.env("MASTER_ADDR", Ipv4Addr::LOCALHOST.to_string()).env("MASTER_PORT", port.to_string());
        if env::var_os("RAYON_NUM_THREADS").is_none() {
            command.env("RAYON_NUM_THREADS", (cores / size).max(1).to_string());
        }
        // Rank 0 decides when all stop.
        if rank == 0 {
            command.env(STOPS_WITH_INPUT, "1").stdin(Stdio::piped());
        } else {
            command.stdin(Stdio::null());
        }
        // Ctrl-C in a terminal reaches this process alone, which passes it on in its way.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        input = input.or_else(|| child.stdin.take());
        processes.0.push(child);
    }
    let signals = watch_signals(input)?;
    while let Some(running) = processes.look()? {
        match running {
            Look::Failed(status) => return Ok(code_of(status)),
            Look::Running if signals.load(Ordering::Relaxed) > 1 => return Ok(ExitCode::from(INTERRUPTED)),
            Look::Running => thread::sleep(PAUSE),
        }
    }
    processes.0[0].wait().map(code_of).map_err(Into::into)
}

/// Counts signals; the first ends the input of rank 0.
fn watch_signals(input: Option<ChildStdin>) -> Result<Arc<AtomicUsize>, ctrlc::Error> {
    let (signals, input) = (Arc::new(AtomicUsize::new(0)), Mutex::new(input));
    let count = signals.clone();
    ctrlc::set_handler(move || {
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            eprintln!("stopping after this step; once more to stop now");
            drop(input.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    })?;
    Ok(signals)
}

/// In a process that [`launch`] started: calls `stop` when its input ends, also because the one that started it is gone.
pub(super) fn stop_with_input(stop: impl FnOnce() + Send + 'static) {
    if env::var_os(STOPS_WITH_INPUT).is_none() {
        return;
    }
    thread::spawn(move || {
        let mut byte = [0];
        while matches!(io::stdin().read(&mut byte), Ok(1)) {}
        stop();
    });
}

/// The processes; none outlives this.
struct Processes(Vec<Child>);

enum Look {
    Running,
    Failed(ExitStatus),
}

impl Processes {
    /// `None` when all have ended well, or by request.
    fn look(&mut self) -> io::Result<Option<Look>> {
        let mut running = false;
        for child in &mut self.0 {
            match child.try_wait()? {
                None => running = true,
                Some(status) if status.success() || status.code() == Some(INTERRUPTED.into()) => {}
                Some(status) => return Ok(Some(Look::Failed(status))),
            }
        }
        Ok(running.then_some(Look::Running))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Those that have ended need no more.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a process ended with; 1 when a signal ended it.
fn code_of(status: ExitStatus) -> ExitCode {
    ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}
