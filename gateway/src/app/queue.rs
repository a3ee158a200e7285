//! `pillion queue`: what is queued and what was refused, on a gateway that runs and on a data directory at rest.
//!
//! - `place` finds the queue: through a gateway's admin socket (`client`), or by opening the directory.
//! - `choose` is which dead letters are meant.
//! - `ls`, `inspect`, `export` show; `change` replays and purges. `table` is how rows are printed.
//! - `verify` checks a directory and changes nothing.

mod change;
mod choose;
mod client;
mod export;
mod inspect;
mod ls;
mod place;
mod table;
mod verify;

use std::process::ExitCode;

use super::cli::queue::{QueueArgs, QueueVerb};
use super::exit::Exit;
use crate::queue::OpenError;

/// Runs it.
pub fn run(args: &QueueArgs) -> ExitCode {
    let outcome = match &args.verb {
        QueueVerb::Ls(args) => ls::run(args),
        QueueVerb::Inspect(args) => inspect::run(args),
        QueueVerb::Export(args) => export::run(args),
        QueueVerb::Replay(args) => change::replay(args),
        QueueVerb::Purge(args) => change::purge(args),
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

impl Failed {
    fn new(message: impl Into<String>) -> Self {
        Self { exit: Exit::Failure, message: message.into() }
    }
}

impl From<OpenError> for Failed {
    fn from(error: OpenError) -> Self {
        Self { exit: Exit::of_queue(&error), message: error.to_string() }
    }
}
