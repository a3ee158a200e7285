//! A tenant's two sockets, given or made here; and their names in its directory: `ctl` and `otlp`.
//!
//! A socket is bound under a temporary name, listens, and only then gets its own: nobody ever finds a name that refuses,
//! and a stale socket is replaced in one step. All names are resolved below a directory descriptor, because paths may be
//! longer than the 107 bytes of sun_path, and because what stands in the directory may be a link.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::LifecycleError;
use crate::sys;

/// Shims that wait in the queue of `ctl`: one, and what its restarts have left.
const CTL_BACKLOG: i32 = 64;

/// As deep as the shim's own listeners: in relay mode their connections wait here.
const OTLP_BACKLOG: i32 = 4096;

/// A tenant's sockets, both listening.
#[derive(Debug)]
pub(super) struct Sockets {
    pub(super) ctl: OwnedFd,
    pub(super) otlp: OwnedFd,
    /// What is to be removed with the site; `None` for sockets that were made by somebody else.
    pub(super) names: Option<Names>,
}

/// What stands in the directory.
#[derive(Debug)]
pub(super) struct Names {
    dir: OwnedFd,
    bound: [(&'static str, Inode); 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Sockets {
    /// Makes the directory if it is absent, and both sockets.
    pub(super) fn bind(path: &Path) -> Result<Self, LifecycleError> {
        let dir = open_directory(path).map_err(|source| LifecycleError {
            action: "opening the directory",
            path: path.to_owned(),
            source,
        })?;
        let named =
            |name: &'static str| move |source| LifecycleError { action: "binding", path: path.join(name), source };
        let (ctl, ctl_inode) = bind(&dir, "ctl", SocketType::SEQPACKET, CTL_BACKLOG).map_err(named("ctl"))?;
        let (otlp, otlp_inode) = bind(&dir, "otlp", SocketType::STREAM, OTLP_BACKLOG).map_err(named("otlp"))?;
        refuse_descriptors(&otlp, path);
        Ok(Self { ctl, otlp, names: Some(Names { dir, bound: [("ctl", ctl_inode), ("otlp", otlp_inode)] }) })
    }

    /// Sockets that listen already and do not block.
    pub(super) fn given(ctl: OwnedFd, otlp: OwnedFd) -> Self {
        refuse_descriptors(&otlp, Path::new("given"));
        Self { ctl, otlp, names: None }
    }
}

impl Names {
    /// Removes the names, unless a successor has put its own sockets there.
    pub(super) fn remove(&self) {
        for (name, inode) in &self.bound {
            if inode_of(&self.dir, name).is_ok_and(|present| present == *inode) {
                let _ = rustix::fs::unlinkat(&self.dir, *name, AtFlags::empty());
            }
        }
    }
}

/// A descriptor that a pod passes along with its bytes would be closed by the data worker that reads them, for as long as
/// the pod likes.
fn refuse_descriptors(otlp: &OwnedFd, path: &Path) {
    if let Err(error) = sys::refuse_descriptors(otlp) {
        tracing::debug!(%error, path = %path.display(), "this kernel (older than 6.16) cannot refuse descriptors on `otlp`");
    }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let mode = Mode::from_raw_mode(0o755);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    let made = match rustix::fs::mkdir(path, mode) {
        Ok(()) => true,
        Err(rustix::io::Errno::EXIST) => false,
        Err(error) => return Err(error.into()),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = rustix::fs::open(path, flags, Mode::empty())?;
    if made {
        // The umask may have taken away what shims of other users need.
        rustix::fs::fchmod(&dir, mode)?;
    }
    Ok(dir)
}

fn bind(dir: &OwnedFd, name: &'static str, kind: SocketType, backlog: i32) -> io::Result<(OwnedFd, Inode)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    let temporary = format!(".{name}");
    match rustix::fs::unlinkat(dir, temporary.as_str(), AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    rustix::net::bind(&socket, &SocketAddrUnix::new(below(dir, &temporary))?)?;
    open_to_everyone(dir, &temporary)?;
    rustix::net::listen(&socket, backlog)?;
    let inode = inode_of(dir, &temporary)?;
    rustix::fs::renameat(dir, temporary.as_str(), dir, name)?;
    Ok((socket, inode))
}

/// Any user of the pod may connect. The umask of the process has masked the mode at bind, and changing it would race with
/// other threads; chmod by name could be led astray by a link. So the name is opened without following it, checked, and
/// changed through the descriptor.
fn open_to_everyone(dir: &OwnedFd, name: &str) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(dir, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&node)?.st_mode) != FileType::Socket {
        return Err(io::Error::other("something else stands where the socket was bound"));
    }
    rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), Mode::from_raw_mode(0o666))?;
    Ok(())
}

fn below(dir: &OwnedFd, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()))
}

fn inode_of(dir: &OwnedFd, name: &str) -> io::Result<Inode> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(Inode { device: stat.st_dev, number: stat.st_ino })
}
