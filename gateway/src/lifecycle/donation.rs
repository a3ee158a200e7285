//! Whether a descriptor that a pod has passed is what it may be (docs/threats.md rows 1, 2 and 10).
//!
//! Asks the kernel about the descriptor and nothing else: never reads, maps or waits for it, and believes nothing that
//! the message said. Owns nothing; what is refused goes back to the caller, who lets the reaper close it.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use pillion_proto::control::NackCode;
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketType, ipproto};

use super::custody::Listener;
use crate::config::Ports;
use crate::sys;

/// A refused request: what the shim is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: NackCode,
    /// What is wrong and what to do.
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn new(code: NackCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into() }
    }
}

/// Checks a donated descriptor and makes it non-blocking. `namespace` is that of the control connection it came over.
pub(super) fn vet(fd: impl AsFd, ports: Ports, namespace: u64) -> Result<Listener, Refusal> {
    let fd = fd.as_fd();
    is_tcp_listener(fd).map_err(|what| {
        Refusal::new(NackCode::NotAListener, format!("{what}; donate a listening TCP socket, or relay"))
    })?;
    let address = rustix::net::getsockname(fd)
        .ok()
        .and_then(|address| SocketAddr::try_from(address).ok())
        .ok_or_else(|| Refusal::new(NackCode::NotLoopback, "the socket has no internet address"))?;
    if !address.ip().is_loopback() {
        let reason =
            format!("the socket is bound to {address}, which others than the pod can reach; bind 127.0.0.1 or ::1");
        return Err(Refusal::new(NackCode::NotLoopback, reason));
    }
    if address.port() != ports.grpc && address.port() != ports.http {
        let reason = format!("port {} was not offered, only {} and {}", address.port(), ports.grpc, ports.http);
        return Err(Refusal::new(NackCode::PortNotOffered, reason));
    }
    let unknowable = |error: std::io::Error| {
        Refusal::new(NackCode::WrongNamespace, format!("cannot tell its network namespace: {error}"))
    };
    if sys::netns_cookie(fd).map_err(unknowable)? != namespace {
        let reason = "the socket belongs to another network namespace than the process that donates it";
        return Err(Refusal::new(NackCode::WrongNamespace, reason));
    }
    let cookie = sockopt::socket_cookie(fd).map_err(|error| unknowable(error.into()))?;
    // The flag lives in the open file description, which the pod shares and may change back: the watchdog is for that.
    rustix::io::ioctl_fionbio(fd, true)
        .map_err(|error| Refusal::new(NackCode::NotAListener, format!("it cannot be made non-blocking: {error}")))?;
    Ok(Listener { cookie, address })
}

/// The four questions, each of which fails on whatever is no socket at all.
fn is_tcp_listener(fd: impl AsFd) -> Result<(), String> {
    let fd = fd.as_fd();
    let domain = sockopt::socket_domain(fd).map_err(|error| format!("the descriptor is no socket ({error})"))?;
    if domain != AddressFamily::INET && domain != AddressFamily::INET6 {
        return Err("the socket is not of the internet".to_owned());
    }
    if sockopt::socket_type(fd) != Ok(SocketType::STREAM) {
        return Err("the socket is no stream".to_owned());
    }
    // MPTCP is a stream of the internet too, but its close and accept follow other rules.
    if sockopt::socket_protocol(fd) != Ok(Some(ipproto::TCP)) {
        return Err("the socket does not speak plain TCP".to_owned());
    }
    if sockopt::socket_acceptconn(fd) != Ok(true) {
        return Err("the socket does not listen".to_owned());
    }
    Ok(())
}
