//! System calls that need `unsafe`, each wrapped once. Everything else goes through rustix.
//!
//! Owns no descriptor and no state: plain functions over borrowed descriptors. Numbers that libc does not name yet stand
//! here with the header that they come from.

#![expect(unsafe_code, reason = "socket options that rustix does not wrap; every block has its reason")]

pub(crate) mod signal;

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// From asm-generic/socket.h, Linux 5.14: the socket's network namespace, as a number that is never used again.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// From asm-generic/socket.h, Linux 6.16: whether peers of a Unix socket may pass descriptors to it.
const SO_PASSRIGHTS: libc::c_int = 83;

/// The network namespace that a socket belongs to. For an accepted Unix connection: the one of the process that connected.
pub(crate) fn netns_cookie(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = MaybeUninit::<u64>::uninit();
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: the descriptor is open while it is borrowed; both pointers are to live variables, and `length` says how many
    // bytes the kernel may write to the first.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            cookie.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    if length as usize != size_of::<u64>() {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    // SAFETY: the kernel has reported success and eight bytes written, and every pattern of bits is a u64.
    Ok(unsafe { cookie.assume_init() })
}

/// The user of the process that connected to a Unix socket.
///
/// Not by rustix: its credentials hold a process id that is never zero, but a peer in another pid namespace has none here,
/// and the zero is then taken for an error made of the user's id.
pub(crate) fn peer_uid(socket: impl AsFd) -> io::Result<u32> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let size = libc::socklen_t::try_from(size_of::<libc::ucred>()).expect("12 fits");
    let mut length = size;
    // SAFETY: the descriptor is open while it is borrowed; both pointers are to live variables, and `length` says how many
    // bytes the kernel may write to the first, for which every pattern of bits is a value.
    let outcome = unsafe {
        let (fd, option) = (socket.as_fd().as_raw_fd(), libc::SO_PEERCRED);
        libc::getsockopt(fd, libc::SOL_SOCKET, option, (&raw mut peer).cast(), &raw mut length)
    };
    match outcome {
        0 if length == size => Ok(peer.uid),
        0 => Err(io::Error::from(io::ErrorKind::InvalidData)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many bytes must have arrived before a socket counts as readable. Inherited from the listener, which a pod sets.
pub(crate) fn set_receive_low_water(socket: impl AsFd, bytes: u16) -> io::Result<()> {
    set_int(socket, libc::SO_RCVLOWAT, libc::c_int::from(bytes))
}

/// Makes the kernel refuse descriptors that peers of this Unix socket, or of connections accepted from it, try to pass.
/// ENOPROTOOPT before Linux 6.16.
pub(crate) fn refuse_descriptors(socket: impl AsFd) -> io::Result<()> {
    set_int(socket, SO_PASSRIGHTS, 0)
}

/// Registers a descriptor with the runtime, to wait until it is readable. On failure it is given back.
pub(crate) fn readable(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    registered(fd, Interest::READABLE)
}

/// The same, to wait until it can be written to as well.
pub(crate) fn readable_and_writable(fd: OwnedFd) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    registered(fd, Interest::READABLE | Interest::WRITABLE)
}

fn registered(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: an OwnedFd is open and refers to one file for as long as it lives, and always returns the same number.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts())
}

/// Makes 127.0.0.1 reachable in a network namespace that a test has just made.
#[cfg(test)]
pub(crate) fn bring_loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: ifreq is plain old data, for which all zeros are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).expect("two low bits");
    // SAFETY: the descriptor is open, and SIOCSIFFLAGS reads an ifreq, which lives until the call returns.
    let outcome = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn set_int(socket: impl AsFd, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 fits");
    // SAFETY: the descriptor is open while it is borrowed, and the pointer is to a live integer of the length given.
    let outcome = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), length)
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the two ends of a connection of one process; something that is no socket.
    /// Guarantees: the peer's user is told, and an error is an error. A peer without a pid is met by the suite on a cluster.
    #[test]
    fn the_peers_user_is_told() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(peer_uid(&one).unwrap(), rustix::process::geteuid().as_raw());
        assert!(peer_uid(std::fs::File::open("/dev/null").unwrap()).is_err());
    }
}
