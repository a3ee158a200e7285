//! The connection to the gateway: packets and descriptors on `ctl`.
//!
//! Owns the socket. It never decides what a message means ([`crate::session`] does) and never blocks. It ends with the
//! connection; a new one starts from nothing.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use pillion_proto::control::{MESSAGE_BYTES_MAX, ToGateway, ToShim};
use rustix::fs::{CWD, Mode, OFlags, inotify};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, ReturnFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, SendAncillaryBuffer, SendAncillaryMessage};

/// A connection to the gateway, from connect() to end of file.
#[derive(Debug)]
pub(crate) struct Ctl {
    pub(crate) socket: OwnedFd,
    /// Whether WELCOME has come: until then it may be waiting in the accept queue, and nobody may be there.
    pub(crate) welcomed: bool,
}

/// What one read brought.
#[derive(Debug)]
pub(crate) enum Incoming {
    Message(ToShim, Option<OwnedFd>),
    /// Of a later version. Its descriptor has been closed.
    Unknown,
    /// Nothing yet.
    Empty,
    /// The gateway has closed, or is gone.
    Closed,
    /// Not a message, so that nothing after it can be trusted.
    Garbage,
}

/// Why a packet did not go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The connection is over, or the gateway has left some thousand messages unread, which comes to the same.
    Session,
    /// The descriptor, but that passes: all shims of one user share the kernel's count of descriptors in flight.
    ForNow,
    /// The descriptor, and that stays: a sandbox or a security module forbids it.
    ForGood,
}

pub(crate) fn obstacle(error: Errno) -> Obstacle {
    match error {
        Errno::AGAIN | Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED => Obstacle::Session,
        Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM | Errno::MFILE | Errno::NFILE => Obstacle::ForNow,
        _ => Obstacle::ForGood,
    }
}

impl Ctl {
    /// Sends one packet, and the descriptor that it carries.
    pub(crate) fn send(&self, message: &ToGateway, fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let bytes = message.encode();
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        net::sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, flags).map(drop)
    }

    /// Reads one packet. Descriptors beyond the first are closed.
    pub(crate) fn receive(&self) -> Incoming {
        let mut packet = [0; MESSAGE_BYTES_MAX];
        // The kernel rounds up: room for one descriptor would let two through, so there is room for some, and a loop.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Incoming::Empty,
            Err(_) => return Incoming::Closed,
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::TRUNC) {
            return Incoming::Garbage;
        }
        match packet.get(..received.bytes).unwrap_or_default() {
            [] => Incoming::Closed,
            bytes => match ToShim::decode(bytes) {
                Ok(Some(message)) => Incoming::Message(message, fds.into_iter().next()),
                Ok(None) => Incoming::Unknown,
                Err(_) => Incoming::Garbage,
            },
        }
    }
}

/// The directory of the sockets, opened anew for each connection: it may have been replaced.
pub(crate) fn open_dir(dir: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Connects to a socket in a directory. By way of /proc, because an address holds 107 bytes and kubelet's paths are
/// longer. Never blocks: AGAIN says that the queue is full.
pub(crate) fn connect(dir: &OwnedFd, name: &str, kind: SocketType) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new([&proc_path(dir.as_fd()), "/", name].concat())?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    net::connect(&socket, &address)?;
    Ok(socket)
}

/// Becomes readable when a name appears in the directory, or when it goes away.
pub(crate) fn watch(dir: &Path) -> Result<OwnedFd, Errno> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let events = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE_SELF;
    inotify::add_watch(&watch, dir, events)?;
    Ok(watch)
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    ["/proc/self/fd/", &fd.as_raw_fd().to_string()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the errors that passing a descriptor meets on a node: another pod of the same user floods the kernel's
    /// count, a sandbox forbids it, the gateway does not read, the gateway is gone.
    /// Guarantees: the first two make the shim relay, and only the first is tried again; the others end the session and
    /// are not mistaken for them.
    #[test]
    fn obstacles_are_told_apart() {
        assert_eq!(obstacle(Errno::TOOMANYREFS), Obstacle::ForNow);
        for error in [Errno::PERM, Errno::ACCESS, Errno::INVAL, Errno::OPNOTSUPP] {
            assert_eq!(obstacle(error), Obstacle::ForGood);
        }
        for error in [Errno::AGAIN, Errno::PIPE, Errno::CONNRESET] {
            assert_eq!(obstacle(error), Obstacle::Session);
        }
    }

    /// Scenario: a gateway that does not read while the shim has more to say than the kernel takes, then goes away.
    /// Guarantees: nothing blocks; both are the end of the session.
    #[test]
    fn a_gateway_that_does_not_read_blocks_nobody() {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let ctl = Ctl { socket: ours, welcomed: true };
        let full = (0..100_000).find_map(|id| ctl.send(&ToGateway::Bye { id }, None).err());
        assert_eq!(full.map(obstacle), Some(Obstacle::Session));
        drop(theirs);
        assert_eq!(ctl.send(&ToGateway::Pong, None).map_err(obstacle), Err(Obstacle::Session));
        assert!(matches!(ctl.receive(), Incoming::Closed));
    }
}
