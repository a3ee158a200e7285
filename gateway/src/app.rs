//! The command line, the supervisor, and the composition root.
//!
//! - [`cli`] turns arguments into a [`cli::Command`], and teaches.
//! - [`supervisor`] keeps one worker (and, standalone, one shim) alive; it holds no data.
//! - [`standalone`] makes a configuration out of flags, looks after the ports and the shim of a single machine.
//! - [`csi`] starts the CSI driver, a process of its own.
//! - [`validate`] prints all errors of a configuration.
//! - [`inject`] puts shims into manifests.
//! - [`queue`] shows what is queued and refused, and checks a data directory.
//! - [`send`] is the one line to try it with.
//! - [`node`] builds the worker out of everything else.

pub mod cli;
pub mod csi;
pub mod exit;
pub mod inject;
pub mod node;
mod output;
pub mod queue;
pub mod send;
pub mod standalone;
pub mod supervisor;
pub mod validate;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::sys::signal;

/// Runs the command; `args` begins with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    match cli::parse(args.iter().cloned()) {
        Err(stop) => stop.print(),
        Ok(cli::Command::Shim(shim)) => {
            // A standalone supervisor has blocked them for itself. The shim takes those that it wants; the rest must end it.
            let _ = signal::unblock_all();
            pillion_shim::main(shim.into_iter())
        }
        Ok(cli::Command::Csi(csi)) => csi::run(csi),
        Ok(cli::Command::Validate(validate)) => validate::run(&validate),
        Ok(cli::Command::Send(send)) => send::run(&send),
        Ok(cli::Command::Inject(inject)) => inject::run(&inject),
        Ok(cli::Command::Queue(queue)) => queue::run(&queue),
        Ok(cli::Command::Worker(worker)) => supervisor::worker(worker),
        Ok(command @ (cli::Command::Run(_) | cli::Command::Standalone(_))) => supervisor::run(&command, args),
    }
}
