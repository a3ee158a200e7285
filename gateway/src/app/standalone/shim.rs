//! The shim's process: started, adopted, stopped.
//!
//! ```text
//! SOCKET_DIR/shim.lock    flock'ed for as long as a shim lives; "grpc PORT http PORT pid PID" for people and for adoption
//! ```
//!
//! The shim outlives a standalone gateway that is killed, so that the ports stay bound and what is being sent waits; the next
//! start finds the lock taken and adopts it. The shim gets the locked file as its standard input: the lock belongs to that
//! open file, and no other descriptor reaches a new process without a race or `unsafe`.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::processes;
use crate::app::supervisor::{SELF, timespec};
use crate::config::Ports;

/// Without a gateway it ends by itself after so many seconds.
const ALONE_SECONDS: &str = "60";
/// A shim of other ports has so long for its goodbye.
const STOP_GRACE: Duration = Duration::from_secs(3);
/// The log begins anew above this size.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// What a shim is to be.
#[derive(Debug)]
pub(super) struct Shim {
    dir: PathBuf,
    ports: Ports,
    log: PathBuf,
}

/// A shim that is, whoever started it.
#[derive(Debug)]
pub(super) struct Running {
    /// Also for one that is nobody's child any more; and a pid may be another process's by the time it is used.
    pidfd: OwnedFd,
}

impl Shim {
    pub(super) fn new(dir: &Path, ports: Ports, log: PathBuf) -> Self {
        Self { dir: dir.to_owned(), ports, log }
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// The shim that is alive, if it has these ports. One with other ports is stopped.
    pub(super) fn adopt(&self) -> io::Result<Option<Running>> {
        let (file, is_free) = self.open_lock()?;
        if is_free {
            return Ok(None);
        }
        let Some(running) = Running::find(&file)? else { return Ok(None) };
        if recorded_ports(&file)? == Some(self.ports) {
            return Ok(Some(running));
        }
        running.stop();
        if !running.ends_within(STOP_GRACE) {
            running.kill();
            running.ends_within(STOP_GRACE);
        }
        Ok(None)
    }

    /// Starts one, unless one of these ports is alive.
    pub(super) fn start(&self) -> io::Result<Running> {
        if let Some(running) = self.adopt()? {
            return Ok(running);
        }
        let (mut file, is_free) = self.open_lock()?;
        if !is_free {
            let lock = self.dir.join("shim.lock");
            let message = format!("{} is held by a process that this user cannot see: end it first", lock.display());
            return Err(io::Error::other(message));
        }
        let Ports { grpc, http } = self.ports;
        file.set_len(0)?;
        // The ports first: should this process be killed before it writes the pid, the next one can adopt nevertheless.
        write!(file, "grpc {grpc} http {http}")?;
        let log = self.open_log()?;
        let mut command = Command::new(SELF);
        command.arg0("pillion").args(["shim", "run", "--dir"]).arg(&self.dir);
        command.args(["--grpc", &grpc.to_string(), "--http", &http.to_string(), "--exit-after-alone", ALONE_SECONDS]);
        // A group of its own: a Ctrl-C in the terminal is for the supervisor, who stops the shim when it is time.
        command.process_group(0).stdin(file.try_clone()?).stdout(log.try_clone()?).stderr(log);
        let pid = command.spawn()?.id();
        write!(file, " pid {pid}")?;
        Running::open(pid)
    }

    /// The lock file, and whether this process has just locked it.
    fn open_lock(&self) -> io::Result<(File, bool)> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(self.dir.join("shim.lock"))?;
        match file.try_lock() {
            Ok(()) => Ok((file, true)),
            Err(TryLockError::WouldBlock) => Ok((file, false)),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn open_log(&self) -> io::Result<File> {
        let file = File::options().append(true).create(true).open(&self.log)?;
        if file.metadata()?.len() > LOG_BYTES_MAX {
            file.set_len(0)?;
        }
        Ok(file)
    }
}

fn recorded_ports(file: &File) -> io::Result<Option<Ports>> {
    let mut text = String::new();
    file.take(256).read_to_string(&mut text)?;
    let mut words = text.split_ascii_whitespace();
    let mut value = |name: &str| words.next().filter(|word| *word == name).and_then(|_| words.next()?.parse().ok());
    Ok(value("grpc").zip(value("http")).map(|(grpc, http)| Ports { grpc, http }))
}

impl Running {
    /// Whoever has the lock file open.
    fn find(lock: &File) -> io::Result<Option<Self>> {
        let wanted = lock.metadata()?;
        let is_it = |path: &Path| {
            // Only through a link is the file itself looked at, and only its standard input can be the lock.
            path.ends_with("0")
                && std::fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
        };
        processes::with_descriptor(is_it).map(|process| Self::open(process.pid)).transpose()
    }

    fn open(pid: u32) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::other("no pid"))?;
        Ok(Self { pidfd: pidfd_open(pid, PidfdFlags::empty())? })
    }

    /// It says goodbye and ends.
    pub(super) fn stop(&self) {
        // It may have ended: that is what was wanted.
        let _ = pidfd_send_signal(&self.pidfd, Signal::TERM);
    }

    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    fn ends_within(&self, time: Duration) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        matches!(rustix::event::poll(&mut fds, Some(&timespec(time))), Ok(1..))
    }
}

impl AsFd for Running {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
