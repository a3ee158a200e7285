//! The `pillion-loadtest` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    pillion_loadtest::cli::main()
}
