//! The process in the pod: it holds 127.0.0.1 and ::1 on the OTLP ports and donates them to the node's gateway.
//!
//! - [`args`]: the command line.
//! - [`run`]: the one loop; everything that happens in a shim is an event of it.
//! - [`session`]: the conversation with the gateway.
//! - [`ports`]: the listening sockets of the pod and who accepts on them.
//! - [`ctl`]: the connection to the gateway; packets and descriptors on it.
//! - [`relay`]: copying bytes to `otlp` where descriptors cannot be passed.
//! - [`wait`]: the subcommand of that name.
//!
//! Leaves: [`backoff`], [`say`], and [`sys`], the only place with `unsafe`.
//!
//! It runs once a pod, so every page counts: one thread, no runtime, and next to no formatting, which alone would cost
//! more than all the rest. It never looks inside a request, never exits for anything that it can wait out, and never
//! uses the processor while there is nothing to do. It ends on SIGTERM, or where `--exit-after-alone` says so.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "The shim passes sockets between processes with Linux's SCM_RIGHTS, epoll and network-namespace cookies. \
     On macOS or Windows, run it in a Linux virtual machine or container (for example `lima`, WSL 2 or Docker)."
);

mod args;
mod backoff;
mod ctl;
mod ports;
mod relay;
mod run;
mod say;
mod session;
mod sys;
mod wait;

use std::ffi::OsString;
use std::process::ExitCode;

use args::Command;

/// The command line of the shim; `args` begins with the program's name. Returns when the pod ends.
///
/// Call it before any thread is started: it blocks SIGTERM and SIGINT for the calling thread and reads them itself.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    match args::parse(args.skip(1)) {
        Ok(Command::Run(options)) => run::run(options),
        Ok(Command::Wait(options)) => wait::wait(&options),
        Ok(Command::Help) => say::print(args::HELP),
        Ok(Command::Version) => say::print(concat!("pillion-shim ", env!("CARGO_PKG_VERSION"), "\n")),
        Err(reason) => {
            say::say(&[&reason, "; `--help` shows what there is"]);
            ExitCode::from(2)
        }
    }
}
