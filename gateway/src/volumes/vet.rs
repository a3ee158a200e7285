//! Whether a descriptor is what the driver's message says, by asking the kernel; and whether a name can be a pod's.
//!
//! The driver is trusted to be the driver. What is checked is that the two ends mean the same socket: one mistaken for
//! another would give a pod's telemetry another pod's name.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pillion_proto::custody::{self, Kind, Volume};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, sockopt};

use super::core::Info;
use crate::base::TenantName;
use crate::config::Ports;

/// The socket's SO_COOKIE, if it is the pod's listening socket of that kind. Made non-blocking.
pub(super) fn socket(fd: &OwnedFd, kind: Kind, uid: &str) -> Result<u64, String> {
    let wrong = |what: &str| format!("what came as {} of pod {uid} {what}", kind.as_str());
    let unknown = |error: rustix::io::Errno| wrong(&format!("cannot be asked what it is ({error})"));
    if sockopt::socket_domain(fd).map_err(|error| wrong(&format!("is no socket ({error})")))? != AddressFamily::UNIX {
        return Err(wrong("is no Unix socket"));
    }
    let (expected, type_name) = match kind {
        Kind::Ctl => (SocketType::SEQPACKET, "SOCK_SEQPACKET"),
        Kind::Otlp => (SocketType::STREAM, "SOCK_STREAM"),
    };
    if sockopt::socket_type(fd).map_err(unknown)? != expected {
        return Err(wrong(&format!("is not of type {type_name}")));
    }
    if !sockopt::socket_acceptconn(fd).map_err(unknown)? {
        return Err(wrong("does not listen"));
    }
    let address = rustix::net::getsockname(fd).map_err(unknown)?;
    let address = SocketAddrUnix::try_from(address).map_err(unknown)?;
    let path = address.path_bytes().unwrap_or_default();
    if custody::parse_bound_name(path) != Some((kind, uid)) {
        return Err(wrong(&format!("was bound as {:?}", String::from_utf8_lossy(path))));
    }
    let cookie = sockopt::socket_cookie(fd).map_err(unknown)?;
    rustix::io::ioctl_fionbio(fd, true).map_err(unknown)?;
    Ok(cookie)
}

/// What a VOLUME says, parsed.
pub(super) fn volume(volume: Volume) -> Result<Info, String> {
    let Volume { uid, namespace, pod, service_account, ports } = volume;
    if !custody::is_uid(&uid) {
        return Err("the uid is none".to_owned());
    }
    let name = TenantName::parse(&format!("{namespace}/{pod}")).map_err(|error| error.to_string())?;
    let ports = match ports[..] {
        [] => Ports::default(),
        [grpc, http] if grpc != 0 && http != 0 && grpc != http => Ports { grpc, http },
        _ => return Err(format!("{ports:?} are not two ports, one for gRPC and one for HTTP")),
    };
    Ok(Info { uid: Arc::from(uid), name, service_account, ports })
}
