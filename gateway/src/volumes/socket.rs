//! The connection to the driver: packets and descriptors in and out.
//!
//! Owns the socket and what is still to be sent. It decides nothing. It ends when dropped; descriptors that were not sent
//! are duplicates of sockets that are held elsewhere too, so closing them waits for nobody.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use pillion_proto::custody::{MESSAGE_BYTES_MAX, ToDriver};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// After ETOOMANYREFS.
const TOO_MANY_PAUSE: Duration = Duration::from_millis(20);

/// One descriptor comes with a message; room for another shows that too many did.
const FDS_MAX: usize = 2;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    socket: AsyncFd<OwnedFd>,
    outbox: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
}

/// What happened on a connection.
#[derive(Debug)]
pub(super) enum Exchange {
    Sent(io::Result<()>),
    Received(io::Result<Option<Packet>>),
}

/// One message, as it came.
#[derive(Debug)]
pub(super) struct Packet {
    pub(super) bytes: Vec<u8>,
    pub(super) fd: Option<OwnedFd>,
}

impl Connection {
    /// Connects without waiting. Must be called on a runtime.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let socket = sys::readable_and_writable(socket).map_err(|(_closed, error)| error)?;
        Ok(Self { socket, outbox: VecDeque::new() })
    }

    /// Puts a message behind those that wait. They number at most a few for each volume.
    pub(super) fn put(&mut self, message: &ToDriver, fd: Option<OwnedFd>) {
        self.outbox.push_back((message.encode(), fd));
    }

    /// The next packet (`None` at the end), or one message sent: neither waits for the other, since the driver may not be
    /// reading while it tells a long list. Cancelling loses nothing.
    pub(super) async fn next(&mut self) -> Exchange {
        let Self { socket, outbox } = self;
        let sent = tokio::select! {
            biased;
            packet = socket.async_io(Interest::READABLE, |socket| receive(socket.as_fd())) => {
                return Exchange::Received(packet);
            }
            sent = send_first(socket, outbox.front()), if !outbox.is_empty() => sent,
        };
        match sent {
            // The kernel counts descriptors on their way for each user; those of others are taken in a moment.
            Err(error) if error.raw_os_error() == Some(Errno::TOOMANYREFS.raw_os_error()) => {
                tokio::time::sleep(TOO_MANY_PAUSE).await;
                Exchange::Sent(Ok(()))
            }
            outcome => {
                outbox.pop_front();
                Exchange::Sent(outcome)
            }
        }
    }
}

async fn send_first(socket: &AsyncFd<OwnedFd>, first: Option<&(Vec<u8>, Option<OwnedFd>)>) -> io::Result<()> {
    let Some((bytes, fd)) = first else { return Ok(()) };
    socket.async_io(Interest::WRITABLE, |socket| send(socket.as_fd(), bytes, fd.as_ref())).await
}

fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<&OwnedFd>) -> io::Result<()> {
    let fds = fd.map(|fd| [fd.as_fd()]);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if let Some(fds) = &fds {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "the space is for one descriptor");
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, flags).map(drop)?)
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Packet>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            fds.extend(passed);
        }
    }
    if fds.len() > 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "more than one descriptor came with a message"));
    }
    // A message whose descriptor the kernel left out is handled as one without.
    let fd = fds.pop().filter(|_| !received.flags.contains(ReturnFlags::CTRUNC));
    bytes.truncate(received.bytes);
    Ok((received.bytes > 0).then_some(Packet { bytes, fd }))
}
