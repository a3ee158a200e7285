//! Reading with the kernel's word for when it arrived.
//!
//! With SO_TIMESTAMPNS a read tells when the last segment that it took from was received, by CLOCK_REALTIME: what is read late has
//! not come late. Segments that wait to be read may be joined, and have the later one's stamp then; so a stamp is that of an answer
//! only where nothing came after it.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use rustix::io::Errno;

use super::tcp_socket;

/// Where stamps are put, used again.
#[derive(Debug)]
pub(super) struct Stamps {
    control: Vec<u8>,
    /// The kernel stamps while some socket asks for it, and begins a moment later: where each request has a connection of its own,
    /// a third of the answers had none. This one asks as long as there are stamps to be read.
    _asks: Option<OwnedFd>,
}

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Read {
    /// Bytes; 0 at the end of the connection.
    pub(super) count: usize,
    /// Nanoseconds since 1970; `None`: the kernel does not tell.
    pub(super) stamp: Option<u64>,
}

impl Stamps {
    /// Where no socket can be made, the connections ask for themselves.
    pub(super) fn new() -> Self {
        let asks = tcp_socket().ok().filter(Self::ask);
        Self { control: cmsg_space!(TimeSpec), _asks: asks }
    }

    /// Asks for stamps on what a socket receives; false: there are none.
    pub(super) fn ask(socket: &impl AsFd) -> bool {
        setsockopt(socket, sockopt::ReceiveTimestampns, &true).is_ok()
    }

    /// Reads what is there; never waits.
    pub(super) fn read(&mut self, socket: &OwnedFd, buffer: &mut [u8]) -> Result<Read, Errno> {
        let mut buffers = [IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut self.control), MsgFlags::MSG_DONTWAIT)
            .map_err(|error| Errno::from_raw_os_error(error as i32))?;
        let stamp = message.cmsgs().ok().and_then(|mut told| {
            told.find_map(|told| match told {
                ControlMessageOwned::ScmTimestampns(at) => nanoseconds(at),
                _ => None,
            })
        });
        Ok(Read { count: message.bytes, stamp })
    }
}

fn nanoseconds(at: TimeSpec) -> Option<u64> {
    let seconds = u64::try_from(at.tv_sec()).ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(u64::try_from(at.tv_nsec()).ok()?)
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    /// Scenario: there is no connection.
    /// Guarantees: the kernel is asked for stamps all the same, as long as somebody may read some.
    #[test]
    fn the_kernel_is_asked_while_there_is_no_connection() {
        let stamps = Stamps::new();
        let asks = stamps._asks.as_ref().expect("a socket can be made");
        assert!(getsockopt(asks, sockopt::ReceiveTimestampns).unwrap());
    }
}
