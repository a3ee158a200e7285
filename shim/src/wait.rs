//! `pillion-shim wait`: returns when both ports are bound.
//!
//! For `postStart: exec`, where an application must not start before. It asks the ports themselves, by connecting: it
//! cannot tell whether it is the shim or somebody else who listens there, and `run` says so when it is somebody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use rustix::event::Timespec;

use crate::args::Options;
use crate::say::say;

const PATIENCE: Duration = Duration::from_secs(30);
const ONE_TRY: Duration = Duration::from_secs(1);
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };

pub(crate) fn wait(options: &Options) -> ExitCode {
    let deadline = Instant::now() + PATIENCE;
    for port in [options.grpc, options.http] {
        while !is_bound(port) {
            if Instant::now() >= deadline {
                say(&[
                    "port ",
                    &port.to_string(),
                    " is not bound after 30 s: is `pillion-shim run --dir ",
                    &options.dir.to_string_lossy(),
                    "` running in this pod, and what does it say?",
                ]);
                return ExitCode::FAILURE;
            }
            // Of no descriptors: a pause between two tries.
            let _ = rustix::event::poll(&mut [], Some(&PAUSE));
        }
    }
    ExitCode::SUCCESS
}

/// Whether anybody listens on loopback. A pod has 127.0.0.1, ::1, or both.
fn is_bound(port: u16) -> bool {
    [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)]
        .into_iter()
        .any(|ip| TcpStream::connect_timeout(&SocketAddr::new(ip, port), ONE_TRY).is_ok())
}
