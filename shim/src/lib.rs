//! The process in the pod.

use std::ffi::OsString;
use std::process::ExitCode;

/// The command line of the shim; `args` begins with the program's name. Returns when the pod ends.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    let _ = args;
    todo!()
}
