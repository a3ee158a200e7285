//! What a hostile process of the same user does to the others on the node.

use std::io::{IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};

/// More than a process with a limit of 64 may see in flight, and far fewer than the limit of any other program of this user.
const ATTACK: usize = 96;

/// Descriptors that wait in a socket for nobody, counted for this user until it is dropped.
pub fn leave_descriptors_in_flight() -> [OwnedFd; 2] {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket pair");
    pass(&ours, &[ours.as_fd(); ATTACK]);
    [ours, theirs]
}

/// Two ends of a connection.
pub fn pair() -> (OwnedFd, OwnedFd) {
    let ends = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    ends.expect("a socket pair")
}

/// Leaves a TCP socket in a connection whose other end does not read it. Its last close takes an hour: it lingers, with bytes
/// that nobody takes. It ends at once when what this returns is dropped.
pub fn hide_in(connection: OwnedFd) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut sender = TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
    let (receiver, _) = listener.accept().expect("it has connected");
    sender.set_nonblocking(true).expect("a socket");
    // Until both buffers are full.
    while sender.write(&[0; 65_536]).is_ok() {}
    rustix::net::sockopt::set_socket_linger(&sender, Some(Duration::from_secs(3_600))).expect("a socket");
    pass(&connection, &[sender.as_fd()]);
    receiver
}

fn pass(socket: &OwnedFd, passed: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ATTACK))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(passed)), "the buffer has room for all of them");
    let sent = sendmsg(socket, &[IoSlice::new(b"unread")], &mut control, SendFlags::empty());
    sent.expect("this process may have so many in flight");
}
