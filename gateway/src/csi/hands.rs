//! The sockets in the driver's hand, and how they get there.
//!
//! Owns their descriptors: one duplicate of each listening socket of each pod, so that a gateway may die. It opens a volume's
//! directory anew each time, following no link, and keeps no descriptor of it. It decides nothing.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pillion_proto::custody::{self, Kind};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt;
use rustix::net::{AddressFamily, SocketAddrUnix};

use super::foreign::{Debt, Foreign};
use super::target::{Target, Uid};
use crate::sockets::{self, Holder};

#[derive(Debug)]
pub(super) struct Hands {
    pods: PathBuf,
    /// Pods can connect to them, so their queues hold what pods pass.
    sockets: HashMap<(Uid, Kind), Foreign>,
    debt: Arc<Debt>,
}

/// What came of securing a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Secured {
    /// It was bound anew, and is in hand.
    Bound,
    /// Somebody holds it: this process, or the gateway.
    Held,
}

/// Why a returned descriptor is none of ours.
#[derive(Debug, thiserror::Error)]
#[error("it is not a listening socket of a pod: {0}")]
pub(super) struct NotOurs(&'static str);

impl Hands {
    pub(super) fn new(kubelet_dir: &Path) -> Self {
        Self { pods: kubelet_dir.join("pods"), sockets: HashMap::new(), debt: Arc::default() }
    }

    /// Opens the kubelet's folder of all pods.
    pub(super) fn pods(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(&self.pods, flags, Mode::empty())?)
    }

    /// Binds the socket anew if nobody holds it.
    pub(super) fn secure(&mut self, target: &Target, kind: Kind) -> io::Result<Secured> {
        let dir = target.open_mount(self.pods()?)?;
        if sockets::holder(&dir, kind.as_str())? == Holder::Somebody {
            return Ok(Secured::Held);
        }
        let bound_name = custody::bound_name(kind, target.uid.as_str());
        let (socket, _) = sockets::bind_for_pod(&dir, kind, &bound_name)?;
        self.adopt(&target.uid, kind, socket);
        Ok(Secured::Bound)
    }

    pub(super) fn adopt(&mut self, uid: &Uid, kind: Kind, socket: OwnedFd) {
        self.sockets.insert((uid.clone(), kind), Foreign::new(socket, &self.debt));
    }

    pub(super) fn socket(&self, uid: &Uid, kind: Kind) -> Option<BorrowedFd<'_>> {
        self.sockets.get(&(uid.clone(), kind)).map(|socket| socket.as_fd())
    }

    /// Whether it is a duplicate of the one in hand, so that its close is not the last.
    pub(super) fn has(&self, uid: &Uid, kind: Kind, socket: impl AsFd) -> bool {
        let cookie = |socket: BorrowedFd<'_>| sockopt::socket_cookie(socket).ok();
        self.socket(uid, kind).is_some_and(|ours| cookie(ours).is_some() && cookie(ours) == cookie(socket.as_fd()))
    }

    /// Closes both of a pod's.
    pub(super) fn release(&mut self, uid: &Uid) {
        for kind in Kind::ALL {
            self.sockets.remove(&(uid.clone(), kind));
        }
    }
}

/// Whose socket it is and which, as the kernel tells it. Nothing that the gateway says about it counts.
pub(super) fn identify(socket: BorrowedFd<'_>) -> Result<(Uid, Kind), NotOurs> {
    let failed = |reason: &'static str| move |_: rustix::io::Errno| NotOurs(reason);
    if sockopt::socket_domain(socket).map_err(failed("no socket"))? != AddressFamily::UNIX {
        return Err(NotOurs("not a Unix socket"));
    }
    if !sockopt::socket_acceptconn(socket).map_err(failed("no listener"))? {
        return Err(NotOurs("it does not listen"));
    }
    let address = rustix::net::getsockname(socket).map_err(failed("no name"))?;
    let address = SocketAddrUnix::try_from(address).map_err(failed("no name"))?;
    let (kind, uid) =
        address.path_bytes().and_then(custody::parse_bound_name).ok_or(NotOurs("bound by another name"))?;
    let is_type = sockopt::socket_type(socket).is_ok_and(|found| found == sockets::type_of(kind));
    let uid = Uid::parse(uid).filter(|_| is_type);
    Ok((uid.ok_or(NotOurs("of the wrong type"))?, kind))
}

#[cfg(test)]
mod tests;
