//! The `pillion` command for tests: the same entry as the released binary, built where the tests can find it.

use std::process::ExitCode;

fn main() -> ExitCode {
    pillion_gateway::app::main(std::env::args_os())
}
