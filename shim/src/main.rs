//! The `pillion-shim` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    pillion_shim::main(std::env::args_os())
}
