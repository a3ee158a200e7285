//! One connection of a gateway on the custody socket: packets in, packets out.
//!
//! Owns the socket, and the messages that wait. It decides nothing. Sending never waits: what the kernel does not take stays
//! in the queue until it does, or until the gateway is given up. It ends when dropped.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pillion_proto::custody::{MESSAGE_BYTES_MAX, ToGateway};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;

use super::core::Tell;
use super::foreign::{Debt, Foreign, Watched};
use super::records::VOLUMES_MAX;
use crate::sys;

/// SCM_MAX_FD: the kernel puts no more into one packet.
const FDS_MAX: usize = 253;

/// A gateway that takes nothing for this long is given up; it connects again when it lives.
pub(super) const STALL_MAX: Duration = Duration::from_secs(10);

/// Messages that wait: the whole list, and some changes.
const OUTBOX_MAX: usize = 4 * VOLUMES_MAX;

/// Messages sent at once, before anything else gets its turn.
const SLICE: usize = 64;

/// After the kernel has refused a descriptor: at first, and at most.
const REFUSED_DELAY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(5)];

/// The connection, shared with the task that reads from it.
pub(super) type Socket = Arc<Watched>;

/// One packet, as it came.
#[derive(Debug)]
pub(super) struct Packet {
    bytes: Vec<u8>,
    /// The only descriptor of the packet: several count as none.
    pub(super) fd: Option<Foreign>,
}

impl Packet {
    /// At most one byte more than a message may have.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Registers a connection with the runtime. It must be non-blocking.
pub(super) fn register(connection: Foreign) -> io::Result<Socket> {
    let debt = connection.debt();
    match sys::readable_and_writable(connection.trust()) {
        Ok(watched) => Ok(Arc::new(Watched::new(watched, &debt))),
        Err((connection, error)) => {
            drop(Foreign::new(connection, &debt));
            Err(error)
        }
    }
}

/// The next packet; `None` at the end. Cancelling loses nothing.
pub(super) async fn receive(socket: &Socket) -> Option<Packet> {
    socket.debt().bearable().await;
    let outcome = socket.async_io(Interest::READABLE, |fd| receive_now(fd.as_fd(), socket.debt())).await;
    outcome.ok().filter(|packet| !packet.bytes.is_empty())
}

/// Waits until it takes more; for ever when there is nothing to wait for.
pub(super) async fn writable(socket: Option<&Socket>) {
    let Some(socket) = socket else { return std::future::pending().await };
    // An error shows when something is sent.
    let _ = socket.writable().await;
}

/// Sends without waiting.
pub(super) fn send(socket: &Socket, message: &ToGateway, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = message.encode();
    let fds = fd.map(|fd| [fd]);
    socket.try_io(Interest::WRITABLE, |socket| {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fds) = &fds {
            assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the space is for one descriptor");
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags).map(drop).map_err(io::Error::from)
    })
}

fn receive_now(socket: BorrowedFd<'_>, debt: &Arc<Debt>) -> io::Result<Packet> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut fds: Vec<Foreign> = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed.map(|fd| Foreign::new(fd, debt)));
        }
    }
    bytes.truncate(received.bytes);
    let fd = if fds.len() == 1 { fds.pop() } else { None };
    Ok(Packet { bytes, fd })
}

/// What waits for the gateway, and why.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: VecDeque<Tell>,
    pause: Option<Pause>,
}

#[derive(Debug, Clone, Copy)]
enum Pause {
    /// The gateway's buffer is full.
    Full { since: Instant },
    /// Too many descriptors are on their way (docs/threats.md row 18).
    Refused { until: Instant, delay: Duration },
}

/// What came of sending.
#[derive(Debug)]
pub(super) enum Flushed {
    /// Nothing waits.
    Empty,
    /// Something does.
    Waiting,
    /// The kernel takes no descriptor for now; told once a pause.
    Refused { waiting: usize, delay: Duration },
    /// The connection is of no use any more.
    Broken(String),
}

impl Outbox {
    /// False: too much waits; the gateway is to be given up.
    pub(super) fn push(&mut self, tell: Tell) -> bool {
        self.waiting.push_back(tell);
        self.waiting.len() <= OUTBOX_MAX
    }

    /// Sends what can be sent now, each by `send`, in order.
    pub(super) fn flush(&mut self, now: Instant, mut send: impl FnMut(&Tell) -> io::Result<()>) -> Flushed {
        if let Some(Pause::Refused { until, .. }) = self.pause
            && now < until
        {
            return Flushed::Waiting;
        }
        for _ in 0..SLICE {
            let Some(tell) = self.waiting.front() else {
                self.pause = None;
                return Flushed::Empty;
            };
            match send(tell) {
                Ok(()) => {
                    self.waiting.pop_front();
                    self.pause = None;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.full(now),
                Err(error) if is_passing(&error) => return self.refused(now),
                Err(error) => return Flushed::Broken(error.to_string()),
            }
        }
        Flushed::Waiting
    }

    /// Whether to flush when the socket takes more.
    pub(super) fn wants_writable(&self) -> bool {
        !self.waiting.is_empty() && !matches!(self.pause, Some(Pause::Refused { .. }))
    }

    /// When to flush whatever the socket says.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match self.pause? {
            Pause::Full { since } => Some(since + STALL_MAX),
            Pause::Refused { until, .. } => Some(until),
        }
    }

    fn full(&mut self, now: Instant) -> Flushed {
        let since = match self.pause {
            Some(Pause::Full { since }) => since,
            _ => now,
        };
        if now >= since + STALL_MAX {
            return Flushed::Broken(format!("it has read nothing for {} s", STALL_MAX.as_secs()));
        }
        self.pause = Some(Pause::Full { since });
        Flushed::Waiting
    }

    fn refused(&mut self, now: Instant) -> Flushed {
        let delay = match self.pause {
            Some(Pause::Refused { delay, .. }) => (2 * delay).min(REFUSED_DELAY[1]),
            _ => REFUSED_DELAY[0],
        };
        self.pause = Some(Pause::Refused { until: now + delay, delay });
        Flushed::Refused { waiting: self.waiting.len(), delay }
    }
}

/// Want of kernel memory, or a limit on descriptors under way that others may have used up.
fn is_passing(error: &io::Error) -> bool {
    let passing = [Errno::TOOMANYREFS, Errno::NOBUFS, Errno::NOMEM];
    error.raw_os_error().is_some_and(|code| passing.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests;
