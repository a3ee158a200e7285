//! supervisor
use std::process::ExitCode;

use super::cli::{Command, WorkerArgs};

/// Runs the command under supervision.
pub fn run(command: Command) -> ExitCode {
    let _ = command;
    todo!()
}

/// The worker's side.
pub fn worker(args: WorkerArgs) -> ExitCode {
    let _ = args;
    todo!()
}
