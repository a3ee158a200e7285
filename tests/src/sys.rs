//! The one place of these programs with `unsafe`: a seccomp filter whose matches another process answers.
//!
//! seccomp_unotify(2). It keeps no state and decides nothing; `sync_gate` does.

#![expect(unsafe_code, reason = "seccomp has no safe wrapper in rustix; every block has its reason")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A system call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// Names it in the answer.
    pub(crate) id: u64,
    /// The thread that made it.
    pub(crate) thread: u32,
    /// Its first argument.
    pub(crate) argument: u64,
}

/// From now on, each fdatasync of this process and of those that it starts or becomes waits until it is answered through the
/// descriptor. Cannot be undone.
pub(crate) fn watch_fdatasync() -> io::Result<OwnedFd> {
    let code = |code: u32| u16::try_from(code).expect("codes have 16 bits");
    let load_number = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
    let if_equal = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let ret = code(libc::BPF_RET | libc::BPF_K);
    rustix::thread::set_no_new_privs(true)?;
    let number = u32::try_from(libc::SYS_fdatasync).expect("a small number");
    // seccomp_data begins with the call's number.
    let mut program = [
        libc::sock_filter { code: load_number, jt: 0, jf: 0, k: 0 },
        libc::sock_filter { code: if_equal, jt: 0, jf: 1, k: number },
        libc::sock_filter { code: ret, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF },
        libc::sock_filter { code: ret, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
    ];
    let length = u16::try_from(program.len()).expect("four");
    let filter = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    // SAFETY: the kernel reads `filter` and the program behind it, which live until the call returns.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const filter,
        )
    };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The next call that waits; blocks until there is one. ENOENT if its thread died meanwhile.
pub(crate) fn next_call(watch: impl AsFd) -> io::Result<Call> {
    // SAFETY: plain old data, for which all zeros are a value; the kernel insists on zeros.
    let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open while it is borrowed, and the kernel writes one seccomp_notif, which lives meanwhile.
    let outcome = unsafe { libc::ioctl(watch.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Call { id: call.id, thread: call.pid, argument: call.data.args[0] })
}

/// Lets a call go on to the kernel, or ends it with this error. ENOENT if its thread is gone.
pub(crate) fn answer(watch: impl AsFd, id: u64, error: Option<i32>) -> io::Result<()> {
    let flags = match error {
        None => u32::try_from(libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE).expect("one bit"),
        Some(_) => 0,
    };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: -error.unwrap_or(0), flags };
    // SAFETY: the descriptor is open while it is borrowed, and the kernel reads one seccomp_notif_resp, which lives meanwhile.
    let outcome = unsafe { libc::ioctl(watch.as_fd().as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
