//! send
use std::process::ExitCode;

use super::cli::SendArgs;

/// Runs it.
pub fn run(args: &SendArgs) -> ExitCode {
    let _ = args;
    todo!()
}
