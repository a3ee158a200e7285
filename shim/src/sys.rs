//! What rustix does not offer: signals as a descriptor, and the cookie of a socket's network namespace.
//!
//! The only module with `unsafe`. It keeps no state.
#![expect(unsafe_code, reason = "signalfd and SO_NETNS_COOKIE have no safe wrapper in rustix")]

use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

/// As large as the C libraries' `sigset_t`: 1,024 bits.
#[repr(C, align(8))]
struct SignalSet([u8; 128]);

const SIG_BLOCK: c_int = 0;
const SIGINT: c_int = 2;
const SIGTERM: c_int = 15;
/// The same numbers as O_NONBLOCK and O_CLOEXEC on the architectures that Pillion is built for.
const SFD_NONBLOCK_CLOEXEC: c_int = 0o2_004_000;
const SOL_SOCKET: c_int = 1;
const SO_NETNS_COOKIE: c_int = 71;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
compile_error!("check the numbers of signals and socket options for this architecture in shim/src/sys.rs");

unsafe extern "C" {
    fn sigemptyset(set: *mut SignalSet) -> c_int;
    fn sigaddset(set: *mut SignalSet, signal: c_int) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, old: *mut SignalSet) -> c_int;
    fn signalfd(fd: c_int, mask: *const SignalSet, flags: c_int) -> c_int;
    fn getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut u32) -> c_int;
}

/// Blocks SIGTERM and SIGINT for this thread; they become readable on the descriptor instead.
pub(crate) fn signals() -> Result<OwnedFd, Errno> {
    let mut set = SignalSet([0; 128]);
    // SAFETY: `set` is as large and aligned as a sigset_t, outlives the calls, and the null is "no old mask wanted".
    let fd = unsafe {
        sigemptyset(&raw mut set);
        sigaddset(&raw mut set, SIGTERM);
        sigaddset(&raw mut set, SIGINT);
        pthread_sigmask(SIG_BLOCK, &raw const set, std::ptr::null_mut());
        signalfd(-1, &raw const set, SFD_NONBLOCK_CLOEXEC)
    };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: signalfd has just made it and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which network namespace a socket belongs to; unique until the next boot. Needs Linux 5.14.
pub(crate) fn netns_cookie(socket: BorrowedFd<'_>) -> Result<u64, Errno> {
    let mut cookie = 0_u64;
    let mut length = 8_u32;
    // SAFETY: `cookie` holds the eight bytes that `length` announces, and both outlive the call.
    let result = unsafe {
        getsockopt(socket.as_raw_fd(), SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast::<c_void>(), &raw mut length)
    };
    if result == 0 { Ok(cookie) } else { Err(last_error()) }
}

fn last_error() -> Errno {
    std::io::Error::last_os_error().raw_os_error().map_or(Errno::INVAL, Errno::from_raw_os_error)
}
