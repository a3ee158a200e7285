//! Signals as something to read, for a process without a runtime.
//!
//! Owns the descriptor. The signals stay blocked in the thread that took them, for the process's life; a child inherits that,
//! and calls [`unblock_all`] before anything else.

#![expect(
    unsafe_code,
    reason = "signal masks and signalfd are not in rustix's stable interface; every block has its reason"
)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Signal;

/// `sizeof(struct signalfd_siginfo)`; its first field, `ssi_signo`, is the number as a `u32`.
const INFO_BYTES: usize = 128;

/// Signals that are read instead of interrupting.
#[derive(Debug)]
pub(crate) struct Signals {
    fd: OwnedFd,
}

impl Signals {
    /// Blocks these signals in the calling thread and in those that it starts later. To be called before there is another one.
    pub(crate) fn take(signals: &[Signal]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the pointer is to a live variable, which sigemptyset initialises; it cannot fail for a valid pointer.
        let mut set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            set.assume_init()
        };
        for signal in signals {
            // SAFETY: the set is initialised, and a `Signal` has a valid number.
            unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) };
        }
        // SAFETY: the set is initialised; the old mask is not asked for.
        let outcome = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if outcome != 0 {
            return Err(io::Error::from_raw_os_error(outcome));
        }
        // SAFETY: the set is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The number of the next pending signal. Never blocks. The kernel merges equal ones.
    pub(crate) fn next(&self) -> io::Result<Option<i32>> {
        let mut info = [0u8; INFO_BYTES];
        match rustix::io::read(&self.fd, &mut info) {
            Ok(INFO_BYTES) => {
                let [a, b, c, d, ..] = info;
                Ok(i32::try_from(u32::from_ne_bytes([a, b, c, d])).ok())
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Undoes in a child what its parent took: the mask outlives exec.
pub(crate) fn unblock_all() -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the live variable, which is then only read; the old mask is not asked for.
    let outcome = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut())
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(outcome)) }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a signal is sent to a thread that has taken it.
    /// Guarantees: it is read once, with its number, and interrupts nothing.
    #[test]
    fn a_signal_that_was_taken_is_read_once() {
        // WINCH, which is ignored by default: the other test threads do not block it.
        let signals = Signals::take(&[Signal::WINCH]).expect("signalfd is in every kernel");
        assert_eq!(signals.next().expect("readable"), None);
        // SAFETY: pthread_self names the calling thread, which is alive.
        let outcome = unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGWINCH) };
        assert_eq!(outcome, 0);
        assert_eq!(signals.next().expect("readable"), Some(libc::SIGWINCH));
        assert_eq!(signals.next().expect("readable"), None);
        unblock_all().expect("a valid mask");
        // SAFETY: as above. Nobody takes it any more: it is ignored, as by default.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGWINCH) };
        assert_eq!(signals.next().expect("readable"), None);
    }
}
