//! The connection to the gateway: packets and descriptors on `ctl`.
//!
//! Owns the socket and what could not be sent yet. It never decides what a message means (`run` does) and never blocks.
//! It ends with the connection; a new one starts from nothing.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use pillion_proto::control::{MESSAGE_BYTES_MAX, ToGateway, ToShim};
use rustix::fs::{CWD, Mode, OFlags, inotify};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::say::decimal;

/// A connection to the gateway, from connect() to end of file.
#[derive(Debug)]
pub(crate) struct Ctl {
    pub(crate) socket: OwnedFd,
    /// Whether WELCOME has come: until then it may be waiting in the accept queue, and nobody may be there.
    pub(crate) welcomed: bool,
    /// What the kernel had no room for. Nothing is read meanwhile, which bounds it by what one message asks for.
    outbox: VecDeque<Packet>,
}

#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    /// Index of the listener that goes along.
    slot: Option<usize>,
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

/// What became of the packets that were waiting.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    All,
    /// The gateway does not read; go on when the socket is writable.
    Full,
    /// The connection is over.
    Closed,
    /// The kernel does not let this listener through. Its packet is gone; go on with the rest.
    Refused(usize, Errno),
}

impl Ctl {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, welcomed: false, outbox: VecDeque::new() }
    }

    pub(crate) fn queue(&mut self, message: &ToGateway, slot: Option<usize>) {
        self.outbox.push_back(Packet { bytes: message.encode(), slot });
    }

    pub(crate) fn is_backed_up(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Sends what waits. `listener` finds a descriptor; a packet whose listener is gone is left out.
    pub(crate) fn flush<'a>(&mut self, listener: impl Fn(usize) -> Option<BorrowedFd<'a>>) -> Sent {
        while let Some(packet) = self.outbox.front() {
            let result = match packet.slot {
                None => send(&self.socket, &packet.bytes, None),
                Some(slot) => listener(slot).map_or(Ok(()), |fd| send(&self.socket, &packet.bytes, Some(fd))),
            };
            match result.map_err(|error| (packet.slot, error, obstacle(error))) {
                Ok(()) => {}
                Err((_, _, Obstacle::Full)) => return Sent::Full,
                Err((None, ..) | (_, _, Obstacle::Closed)) => return Sent::Closed,
                Err((Some(slot), error, _)) => {
                    self.outbox.pop_front();
                    return Sent::Refused(slot, error);
                }
            }
            self.outbox.pop_front();
        }
        Sent::All
    }

    /// Reads one packet. Descriptors beyond the first, and those of messages that carry none, are closed.
    pub(crate) fn receive(&self) -> Incoming {
        let mut packet = [0; MESSAGE_BYTES_MAX];
        // The kernel rounds up: room for one descriptor would let two through, so there is room for some, and a loop.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received =
            match rustix::net::recvmsg(&self.socket, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
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

/// Why a packet did not go out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The socket's buffer.
    Full,
    /// The connection.
    Closed,
    /// Something that passes: all shims of one user share the kernel's count of descriptors in flight.
    ForNow,
    /// Something that stays: a sandbox or a security module forbids to pass descriptors.
    ForGood,
}

pub(crate) fn obstacle(error: Errno) -> Obstacle {
    match error {
        Errno::AGAIN | Errno::INTR => Obstacle::Full,
        Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::CONNREFUSED => Obstacle::Closed,
        Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM | Errno::MFILE | Errno::NFILE => Obstacle::ForNow,
        _ => Obstacle::ForGood,
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).map(drop)
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
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Becomes readable when a name appears in the directory, or when it goes away.
pub(crate) fn watch(dir: &OwnedFd) -> Result<OwnedFd, Errno> {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let events = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE_SELF;
    inotify::add_watch(&watch, proc_path(dir.as_fd()), events)?;
    Ok(watch)
}

fn proc_path(fd: BorrowedFd<'_>) -> String {
    ["/proc/self/fd/", &decimal(u64::from(fd.as_raw_fd().unsigned_abs()))].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the errors that passing a descriptor meets on a node: another pod of the same user floods the kernel's
    /// count, a sandbox forbids it, the gateway is slow, the gateway is gone.
    /// Guarantees: the first two make the shim relay, and only the first is tried again; the others are not mistaken for
    /// them.
    #[test]
    fn obstacles_are_told_apart() {
        assert_eq!(obstacle(Errno::TOOMANYREFS), Obstacle::ForNow);
        assert_eq!(obstacle(Errno::PERM), Obstacle::ForGood);
        assert_eq!(obstacle(Errno::ACCESS), Obstacle::ForGood);
        assert_eq!(obstacle(Errno::INVAL), Obstacle::ForGood);
        assert_eq!(obstacle(Errno::AGAIN), Obstacle::Full);
        assert_eq!(obstacle(Errno::PIPE), Obstacle::Closed);
        assert_eq!(obstacle(Errno::CONNRESET), Obstacle::Closed);
    }

    /// Scenario: a gateway that does not read while the shim has more to say than the kernel takes, then goes away.
    /// Guarantees: nothing blocks, what did not fit waits in order, and the end is noticed.
    #[test]
    fn a_gateway_that_does_not_read_blocks_nobody() {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut ctl = Ctl::new(ours);
        let mut queued = 0;
        while !ctl.is_backed_up() {
            ctl.queue(&ToGateway::Bye { id: queued }, None);
            queued += 1;
            ctl.flush(|_| None);
        }
        assert_eq!(ctl.flush(|_| None), Sent::Full);

        let mut packet = [0; 64];
        let (read, _) = rustix::net::recv(&theirs, &mut packet[..], RecvFlags::empty()).unwrap();
        assert_eq!(ToGateway::decode(&packet[..read]), Ok(Some(ToGateway::Bye { id: 0 })));
        drop(theirs);
        assert_eq!(ctl.flush(|_| None), Sent::Closed);
        assert!(matches!(ctl.receive(), Incoming::Closed));
    }
}
