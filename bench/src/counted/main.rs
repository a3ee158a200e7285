//! The gateway with an allocator that counts: the same entry as the released `pillion`, for the bench of costs.
//!
//! `pillion-counted SOCKET ARGUMENT...` runs `pillion ARGUMENT...`. Who connects to SOCKET, a Unix socket that it makes, is told in one line
//! how often memory has been asked for since the start, and how many bytes.

mod sys;

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::process::ExitCode;

use anyhow::{Context, Result};

#[global_allocator]
static ALLOCATOR: sys::Counting = sys::Counting;

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let path = arguments.next().context("usage: pillion-counted SOCKET ARGUMENT...")?;
    let listener = UnixListener::bind(path)?;
    std::thread::Builder::new().name("counts".to_owned()).spawn(move || {
        for asking in listener.incoming() {
            let (allocations, bytes) = sys::counted();
            // Who asked and is gone wants to know nothing.
            let _gone = asking.and_then(|mut asking| writeln!(asking, "{allocations} {bytes}"));
        }
    })?;
    Ok(pillion_gateway::app::main([OsString::from("pillion")].into_iter().chain(arguments)))
}
