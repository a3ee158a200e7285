//! Listening Unix sockets with a name in a directory: how `ctl` and `otlp` of a pod are made, whoever makes them.
//!
//! A socket is bound under a temporary name, listens, and only then gets its own: nobody ever finds a name that refuses,
//! and a stale socket is replaced in one step. All names are resolved below a directory descriptor, because paths may be
//! longer than the 107 bytes of sun_path, and because what stands in the directory may be a link.
//!
//! Owns nothing: what it makes belongs to the caller. It never follows the last part of a name and never changes a mode or
//! an owner by name.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use pillion_proto::custody::Kind;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::sys;

/// Shims that wait in the queue of `ctl`: one, and what its restarts have left.
const CTL_BACKLOG: i32 = 64;

/// As deep as the shim's own listeners: in relay mode their connections wait here.
const OTLP_BACKLOG: i32 = 4096;

/// A socket to make.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec<'a> {
    /// What it is called in the end.
    pub(crate) name: &'a str,
    /// What it is bound as. getsockname(2) keeps telling this.
    pub(crate) temporary: &'a str,
    pub(crate) kind: SocketType,
    pub(crate) backlog: i32,
    pub(crate) mode: u32,
    /// The group that it is given; the process must be a member.
    pub(crate) group: Option<u32>,
}

/// A file, whatever it is called: tells whether a name still leads to what was bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode {
    device: u64,
    number: u64,
}

/// Whether a name leads to a socket that somebody holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder {
    /// Nobody: the name is absent, or its socket is dead, or it is something else than a socket.
    Nobody,
    /// Some process has it open, or it is on its way to one.
    Somebody,
}

/// Binds one of a pod's two sockets: any user of the pod may connect.
pub(crate) fn bind_for_pod(dir: impl AsFd, kind: Kind, temporary: &str) -> io::Result<(OwnedFd, Inode)> {
    let name = kind.as_str();
    let backlog = if kind == Kind::Ctl { CTL_BACKLOG } else { OTLP_BACKLOG };
    let spec = Spec { name, temporary, kind: type_of(kind), backlog, mode: 0o666, group: None };
    let (socket, inode) = bind(dir, &spec)?;
    if kind == Kind::Otlp {
        refuse_descriptors(&socket);
    }
    Ok((socket, inode))
}

/// The type that a pod's socket has.
pub(crate) fn type_of(kind: Kind) -> SocketType {
    match kind {
        Kind::Ctl => SocketType::SEQPACKET,
        Kind::Otlp => SocketType::STREAM,
    }
}

/// Opens a directory without following a link in its place; makes it (mode 0755) and its parents if they are absent.
pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    open_directory_at(rustix::fs::CWD, path)
}

/// The same below `parent`, which is there.
pub(crate) fn open_directory_at(parent: impl AsFd, name: impl rustix::path::Arg + Copy) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o755);
    let made = match rustix::fs::mkdirat(&parent, name, mode) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
    if made {
        // The umask may have taken away what shims of other users need.
        rustix::fs::fchmod(&dir, mode)?;
    }
    Ok(dir)
}

/// Makes a listening socket and gives it its name, in the place of whatever had it.
pub(crate) fn bind(dir: impl AsFd, spec: &Spec<'_>) -> io::Result<(OwnedFd, Inode)> {
    let dir = dir.as_fd();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, spec.kind, flags, None)?;
    match rustix::fs::unlinkat(dir, spec.temporary, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    // The name is made with the mode of the socket, less the umask.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(spec.mode))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(below(dir, spec.temporary))?)?;
    adjust(dir, spec)?;
    rustix::net::listen(&socket, spec.backlog)?;
    let inode = inode_of(dir, spec.temporary)?;
    rustix::fs::renameat(dir, spec.temporary, dir, spec.name)?;
    Ok((socket, inode))
}

/// Tells whether somebody holds the socket of that name, without a trace in its backlog: connecting with another type is
/// refused as such (EPROTOTYPE) when a socket lives behind the name, and before the queue is looked at (`unix_find_bsd` in
/// the kernel's `net/unix/af_unix.c`).
pub(crate) fn holder(dir: impl AsFd, name: &str) -> io::Result<Holder> {
    let dir = dir.as_fd();
    match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Socket => {}
        Ok(_) | Err(Errno::NOENT) => return Ok(Holder::Nobody),
        Err(error) => return Err(error.into()),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    // None of ours is a datagram socket.
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    match rustix::net::connect(&probe, &SocketAddrUnix::new(below(dir, name))?) {
        Ok(()) | Err(Errno::PROTOTYPE) => Ok(Holder::Somebody),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(Holder::Nobody),
        Err(error) => Err(error.into()),
    }
}

/// Removes a name, unless a successor has put its own socket there.
pub(crate) fn remove_own(dir: impl AsFd, name: &str, own: Inode) {
    if inode_of(&dir, name).is_ok_and(|present| present == own) {
        let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
    }
}

/// A descriptor that a pod passes along with its bytes would be closed by the data worker that reads them, for as long as
/// the pod likes.
pub(crate) fn refuse_descriptors(otlp: &OwnedFd) {
    if let Err(error) = sys::refuse_descriptors(otlp) {
        tracing::debug!(%error, "this kernel (older than 6.16) cannot refuse descriptors on `otlp`");
    }
}

/// What the umask has taken away, and the group. Changing the umask would race with other threads, and chmod by name could be
/// led astray by a link. So the name is opened without following it, checked, and changed through the descriptor.
fn adjust(dir: BorrowedFd<'_>, spec: &Spec<'_>) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(dir, spec.temporary, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&node)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(io::Error::other("something else stands where the socket was bound"));
    }
    if let Some(group) = spec.group.filter(|group| *group != stat.st_gid) {
        rustix::fs::chownat(&node, "", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    }
    if stat.st_mode & 0o7777 != spec.mode {
        rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), Mode::from_raw_mode(spec.mode))?;
    }
    Ok(())
}

fn below(dir: BorrowedFd<'_>, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

fn inode_of(dir: impl AsFd, name: &str) -> io::Result<Inode> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Inode { device: stat.st_dev, number: stat.st_ino })
}

#[cfg(test)]
mod tests;
