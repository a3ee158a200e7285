//! The load test's command, built beside the gateway that its test needs.

use std::process::ExitCode;

fn main() -> ExitCode {
    pillion_loadtest::cli::main()
}
