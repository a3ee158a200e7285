//! `pillion queue`: what is queued and what was refused, on a gateway that runs and on a data directory at rest.
//!
//! - `verify` checks a directory and changes nothing.

mod verify;

use std::process::ExitCode;

use super::cli::queue::{QueueArgs, QueueVerb};
use super::exit::Exit;
use crate::queue::OpenError;

/// Runs it.
pub fn run(args: &QueueArgs) -> ExitCode {
    let outcome = match &args.verb {
        QueueVerb::Verify(args) => verify::run(args),
    };
    outcome
        .unwrap_or_else(|failed| {
            eprintln!("error: {}", failed.message);
            failed.exit
        })
        .into()
}

/// Why a tool ends: what to tell the person, and the status.
#[derive(Debug)]
struct Failed {
    exit: Exit,
    message: String,
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        Self { exit: Exit::of_queue(&error), message: error.to_string() }
    }
}
