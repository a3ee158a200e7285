//! One connection on `ctl`: packets in, packets out.
//!
//! Owns the socket and what the kernel knows about the process at its other end. It decides nothing. Every descriptor that
//! arrives is taken out of the packet and handed on as [`Foreign`]: what the kernel would have to discard would be closed
//! by this thread, for as long as the pod likes. It ends when dropped, by the reaper.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use pillion_proto::control::{Capabilities, MESSAGE_BYTES_MAX, ToShim};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::reaper::{Debt, Foreign, Reaper};
use crate::sys;

/// SCM_MAX_FD: the kernel puts no more into one packet.
const FDS_MAX: usize = 253;

/// Connections taken from the queue of `ctl` at once.
const DRAIN_MAX: usize = 64;

/// Where the descriptors of one site are closed.
#[derive(Debug, Clone)]
pub(super) struct Disposal {
    pub(super) reaper: Arc<Reaper>,
    pub(super) debt: Arc<Debt>,
}

impl Disposal {
    pub(super) fn of(reaper: &Arc<Reaper>) -> Self {
        Self { reaper: Arc::clone(reaper), debt: Arc::default() }
    }

    pub(super) fn foreign(&self, fd: OwnedFd) -> Foreign {
        Foreign::new(fd, &self.reaper, &self.debt)
    }
}

/// A foreign descriptor that the runtime waits on.
#[derive(Debug)]
pub(super) struct Watched {
    fd: Option<AsyncFd<OwnedFd>>,
    disposal: Disposal,
}

impl Watched {
    /// Must be called on a runtime. The descriptor must be non-blocking.
    pub(super) fn new(fd: OwnedFd, disposal: &Disposal) -> io::Result<Self> {
        let registered = sys::readable(fd).map_err(|(fd, error)| {
            drop(disposal.foreign(fd));
            error
        })?;
        Ok(Self { fd: Some(registered), disposal: disposal.clone() })
    }

    fn get(&self) -> &AsyncFd<OwnedFd> {
        self.fd.as_ref().expect("taken only by drop")
    }
}

impl AsFd for Watched {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.get().as_fd()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(registered) = self.fd.take() {
            drop(self.disposal.foreign(registered.into_inner()));
        }
    }
}

/// A connection with a shim, or with whoever else found the path.
#[derive(Debug)]
pub(super) struct Session {
    socket: Watched,
    /// SO_NETNS_COOKIE of the process that connected.
    pub(super) namespace: u64,
    /// What its HELLO named; `None` before.
    pub(super) capabilities: Option<Capabilities>,
}

/// One message, as it came.
#[derive(Debug)]
pub(super) struct Packet {
    bytes: [u8; MESSAGE_BYTES_MAX + 1],
    length: usize,
    pub(super) fds: Vec<Foreign>,
    /// Descriptors were sent and did not all arrive (MSG_CTRUNC).
    pub(super) fds_cut: bool,
}

impl Packet {
    /// At most one byte more than a message may have.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What was found in the queue of `ctl`.
#[derive(Debug)]
pub(super) struct Arrivals {
    pub(super) newest: OwnedFd,
    /// How many older ones were closed.
    pub(super) superseded: u64,
}

/// Waits for connections and takes all, keeping the newest.
pub(super) async fn newest_arrival(ctl: &Watched, disposal: &Disposal) -> io::Result<Arrivals> {
    ctl.get()
        .async_io(Interest::READABLE, |ctl| {
            let mut arrivals: Option<Arrivals> = None;
            for _ in 0..DRAIN_MAX {
                match rustix::net::accept_with(ctl, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                    Ok(fd) => {
                        let superseded = arrivals.map_or(0, |before| {
                            drop(disposal.foreign(before.newest));
                            before.superseded + 1
                        });
                        arrivals = Some(Arrivals { newest: fd, superseded });
                    }
                    Err(Errno::AGAIN) => break,
                    Err(error) if arrivals.is_none() => return Err(error.into()),
                    Err(_) => break,
                }
            }
            arrivals.ok_or_else(|| io::ErrorKind::WouldBlock.into())
        })
        .await
}

impl Session {
    pub(super) fn new(socket: OwnedFd, disposal: &Disposal) -> io::Result<Self> {
        let socket = Watched::new(socket, disposal)?;
        let namespace = sys::netns_cookie(&socket)?;
        // Of no use as an identity: the path says whose connection it is.
        tracing::debug!(user = ?sys::peer_uid(&socket), namespace, "a process connected to ctl");
        Ok(Self { socket, namespace, capabilities: None })
    }

    /// The next packet; `None` at the end. Cancelling loses nothing.
    pub(super) async fn receive(&self, disposal: &Disposal) -> Option<Box<Packet>> {
        let outcome = self.socket.get().async_io(Interest::READABLE, |socket| receive(socket.as_fd(), disposal)).await;
        outcome.ok().filter(|packet| packet.length > 0)
    }

    /// Sends without waiting. An error ends the session: the shim does not read, or is gone.
    pub(super) fn send(&self, message: &ToShim, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let bytes = message.encode();
        let fds = fd.map(|fd| [fd]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = &fds {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the space is for one descriptor");
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, flags).map(drop)
    }
}

fn receive(socket: BorrowedFd<'_>, disposal: &Disposal) -> io::Result<Box<Packet>> {
    let mut packet = Box::new(Packet { bytes: [0; MESSAGE_BYTES_MAX + 1], length: 0, fds: Vec::new(), fds_cut: false });
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut packet.bytes)], &mut control, flags)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            packet.fds.extend(fds.map(|fd| disposal.foreign(fd)));
        }
    }
    packet.length = received.bytes;
    packet.fds_cut = received.flags.contains(ReturnFlags::CTRUNC);
    Ok(packet)
}
