//! The command line, the supervisor, and the composition root.

use std::ffi::OsString;
use std::process::ExitCode;

/// Runs the command.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _ = args;
    ExitCode::SUCCESS
}
