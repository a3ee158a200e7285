//! A listening socket for the gateway alone: bound here, handed over, and closed here.
//!
//! What is left is what a gateway would have that binds its port itself: no other process holds the socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use pillion_proto::control::{Capabilities, Hello, MESSAGE_BYTES_MAX, ToGateway, ToShim, VERSION};
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::net::{RecvAncillaryBuffer, SendAncillaryBuffer, SendAncillaryMessage};

/// Of the only donation.
const ID: u32 = 1;

/// Binds `address` and hands the listener to the gateway behind `ctl`. The session is what the gateway keeps it for: it gives the
/// listener up some seconds after the session has ended.
pub(super) fn hand_over(ctl: &Path, address: SocketAddr) -> Result<OwnedFd> {
    let listener = TcpListener::bind(address)?;
    let session = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    net::connect(&session, &SocketAddrUnix::new(ctl)?)?;
    let (shim_version, capabilities) = (env!("CARGO_PKG_VERSION").to_owned(), Capabilities::DONATE);
    send(&session, &ToGateway::Hello(Hello { version: VERSION, shim_version, instance: 1, capabilities }), None)?;
    while receive(&session)? != ToShim::Returned {}
    send(&session, &ToGateway::Donate { id: ID, address }, Some(listener.as_fd()))?;
    send(&session, &ToGateway::Ready, None)?;
    match receive(&session)? {
        ToShim::Ack { id: ID } => Ok(session),
        other => bail!("the gateway answered a listener with {other:?}"),
    }
}

fn send(session: &OwnedFd, message: &ToGateway, fd: Option<BorrowedFd<'_>>) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd]);
    if let Some(fds) = &fds {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    net::sendmsg(session, &[IoSlice::new(&message.encode())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive(session: &OwnedFd) -> Result<ToShim> {
    let mut packet = [0; MESSAGE_BYTES_MAX];
    let mut control = RecvAncillaryBuffer::default();
    let received = net::recvmsg(session, &mut [IoSliceMut::new(&mut packet)], &mut control, RecvFlags::empty())?;
    ensure!(received.bytes > 0, "the gateway has ended the session");
    match ToShim::decode(&packet[..received.bytes])? {
        Some(message) => Ok(message),
        None => bail!("the gateway sent what this version does not know"),
    }
}
