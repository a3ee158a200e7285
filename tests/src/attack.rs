//! What a hostile process of the same user does to the others on the node.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair,
};

/// More than a process with a limit of 64 may see in flight, and far fewer than the limit of any other program of this user.
const ATTACK: usize = 96;

/// Descriptors that wait in a socket for nobody, counted for this user until it is dropped.
pub fn leave_descriptors_in_flight() -> [OwnedFd; 2] {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket pair");
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(ATTACK))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let passed = [ours.as_fd(); ATTACK];
    assert!(control.push(SendAncillaryMessage::ScmRights(&passed)), "the buffer has room for all of them");
    let sent = sendmsg(&ours, &[IoSlice::new(b"unread")], &mut control, SendFlags::empty());
    sent.expect("this process may have so many in flight");
    [ours, theirs]
}
