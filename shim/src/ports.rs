//! The listening sockets of the pod, and who accepts on them.
//!
//! Owns binding, adoption and their retries. It never accepts and never passes a descriptor: it only knows who does. A
//! socket is closed when the shim ends, or when somebody has shut it down and a fresh one must take its place.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};

use crate::say::{complain, why};
use crate::sys;

/// Connections that wait in the kernel while the gateway restarts; the kernel's own ceiling is net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// One address that the pod's applications connect to.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) address: SocketAddr,
    /// `address` for messages.
    pub(crate) shown: String,
    pub(crate) socket: Option<OwnedFd>,
    /// Whether the shim accepts here, to relay. Otherwise it is the gateway, or nobody until it is back.
    pub(crate) relayed: bool,
    /// The DONATE that has not been answered.
    pub(crate) offer: Option<u32>,
    /// Whether the loop watches it for connections.
    pub(crate) watched: bool,
    /// The machine has no IPv6.
    absent: bool,
    /// What is wrong with it, so that it is said once.
    pub(crate) complained: Option<Errno>,
}

/// All addresses of the pod.
#[derive(Debug)]
pub(crate) struct Ports {
    pub(crate) slots: Vec<Slot>,
}

impl Ports {
    pub(crate) fn new(ports: [u16; 2]) -> Self {
        let mut slots = Vec::with_capacity(4);
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            for port in ports {
                let name = if ip.is_ipv4() { "127.0.0.1:" } else { "[::1]:" };
                slots.push(Slot {
                    address: SocketAddr::new(ip, port),
                    shown: [name, &port.to_string()].concat(),
                    socket: None,
                    relayed: false,
                    offer: None,
                    watched: false,
                    absent: false,
                    complained: None,
                });
            }
        }
        Self { slots }
    }

    /// Tries to bind what is not held. Returns what is held now and was not before.
    pub(crate) fn bind_missing(&mut self) -> Vec<usize> {
        let mut bound = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.is_missing()) {
            match listen_on(slot.address) {
                Ok(socket) => {
                    slot.hold(socket);
                    bound.push(index);
                }
                Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if slot.address.is_ipv6() => slot.absent = true,
                Err(error) => slot.complain(error),
            }
        }
        bound
    }

    /// Whether an address still has to be bound or returned.
    pub(crate) fn is_missing(&self) -> bool {
        self.slots.iter().any(Slot::is_missing)
    }

    /// Gives up sockets on which nobody can accept any more because somebody has shut them down.
    pub(crate) fn take_dead(&mut self) -> Vec<OwnedFd> {
        let dead = self.slots.iter_mut().filter_map(|slot| {
            let socket = slot.socket.take_if(|socket| sockopt::socket_acceptconn(socket) == Ok(false))?;
            slot.watched = false;
            Some(socket)
        });
        dead.collect()
    }

    /// Takes a socket that the gateway has kept for a predecessor of this shim, after asking the socket what it is.
    /// None: its address is held already, by this very socket as a rule.
    pub(crate) fn adopt(&mut self, socket: OwnedFd) -> Result<Option<usize>, &'static str> {
        let address = listening_address(&socket).ok_or("it is not a listening TCP socket")?;
        if is_foreign(&socket) {
            return Err("it belongs to another network namespace");
        }
        let mut slots = self.slots.iter_mut().enumerate();
        let (index, slot) = slots.find(|(_, slot)| slot.address == address).ok_or("nobody wants its address")?;
        if slot.socket.is_some() {
            return Ok(None);
        }
        // The flag is shared with whoever else holds the socket, and relaying must never block in accept().
        rustix::io::ioctl_fionbio(&socket, true).map_err(|_| "it cannot be made non-blocking")?;
        slot.hold(socket);
        Ok(Some(index))
    }
}

impl Slot {
    fn is_missing(&self) -> bool {
        self.socket.is_none() && !self.absent
    }

    fn hold(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
        self.complained = None;
    }

    fn complain(&mut self, error: Errno) {
        let advice = match error {
            Errno::ADDRINUSE => {
                "trying until the gateway returns it or its holder ends; if that is another program, stop it or choose \
                 another port with --grpc or --http"
            }
            Errno::ACCESS => "choose a port from 1024 on with --grpc or --http",
            _ => "trying again",
        };
        let parts = ["cannot listen on ", &self.shown, ": ", &why(error), "; ", advice];
        complain(&mut self.complained, error, &parts);
    }
}

/// SO_REUSEADDR: connections in TIME_WAIT, or a socket that was shut down but is still held elsewhere, do not block us;
/// a socket that listens does.
fn listen_on(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The address of a listening TCP socket; nothing for any other descriptor.
fn listening_address(socket: &OwnedFd) -> Option<SocketAddr> {
    let is_tcp = sockopt::socket_protocol(socket) == Ok(Some(ipproto::TCP));
    let listens = is_tcp && sockopt::socket_acceptconn(socket) == Ok(true);
    let address = rustix::net::getsockname(socket).ok().filter(|_| listens)?;
    SocketAddr::try_from(address).ok()
}

/// Whether a socket belongs to another network namespace than this process. A sandbox that was made anew keeps the path
/// of `ctl`, so a gateway may still hold the sockets of the old one. Kernels before 5.14 cannot tell: there it is not.
fn is_foreign(socket: &OwnedFd) -> bool {
    let flags = SocketFlags::CLOEXEC;
    let Ok(own) = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else { return true };
    match (sys::netns_cookie(own.as_fd()), sys::netns_cookie(socket.as_fd())) {
        (Ok(ours), Ok(theirs)) => ours != theirs,
        (Err(_), _) => false,
        (Ok(_), Err(_)) => true,
    }
}
