//! validate
use std::process::ExitCode;

use super::cli::ValidateArgs;

/// Runs it.
pub fn run(args: &ValidateArgs) -> ExitCode {
    let _ = args;
    todo!()
}
