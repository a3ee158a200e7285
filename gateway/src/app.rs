//! The command line, the supervisor, and the composition root.
//!
//! - [`cli`] turns arguments into a [`cli::Command`], and teaches.
//! - [`supervisor`] keeps one worker (and, standalone, one shim) alive; it holds no data.
//! - [`standalone`] makes a configuration out of flags, looks after the ports and the shim of a single machine.
//! - [`validate`] prints all errors of a configuration.
//! - [`send`] is the one line to try it with.
//! - [`node`] builds the worker out of everything else.

pub mod cli;
pub mod exit;
pub mod node;
pub mod send;
pub mod standalone;
pub mod supervisor;
pub mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = match cli::parse(args) {
        Ok(command) => command,
        Err(stop) => return stop.print(),
    };
    match command {
        cli::Command::Shim(args) => pillion_shim::main(args.into_iter()),
        cli::Command::Validate(args) => validate::run(&args),
        cli::Command::Send(args) => send::run(&args),
        cli::Command::Worker(args) => supervisor::worker(args),
        supervised @ (cli::Command::Run(_) | cli::Command::Standalone(_)) => supervisor::run(supervised),
    }
}
