//! The data directory: who has it, and which format it is.
//!
//! Owns `lock` and `format`. The lock is flock's, so it ends with the process, however that ends. In an orderly end it is
//! given up by name: a duplicate of its descriptor that is still on its way to the CSI driver must not keep it. Nobody gets
//! it who might have to share the directory with other users: see `access`.

mod access;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::OpenError;
use super::format::VERSION;

/// The lock of a data directory, held for as long as this exists.
#[derive(Debug)]
pub struct DirectoryLock {
    path: PathBuf,
    file: File,
}

/// The lock, and what the format file says.
#[derive(Debug)]
pub(crate) struct Directory {
    lock: DirectoryLock,
    /// Which log the format file says it is; `None` if there is none or it is damaged.
    pub(crate) log_id: Option<u64>,
}

impl DirectoryLock {
    /// Makes the directory if it is absent, and takes its lock; [`OpenError::Locked`] if another process has it.
    pub fn take(path: &Path) -> Result<Self, OpenError> {
        make(path)?;
        access::check(path)?;
        let mut file = open_lock(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self::taken(path, file)),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(locked(path, &mut file)),
            Err(error) => Err(failure("locking", &path.join("lock"), error.into())),
        }
    }

    /// The same for a directory that somebody else makes: it must be there. Where another process has the lock, `occupied`
    /// is called once, and the kernel wakes this thread when the lock is free. Blocking, for as long as that takes.
    pub fn wait(path: &Path, occupied: impl FnOnce()) -> Result<Self, OpenError> {
        let failed = |error: rustix::io::Errno| failure("locking", &path.join("lock"), error.into());
        access::check(path)?;
        let file = open_lock(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Self::taken(path, file)),
            Err(rustix::io::Errno::WOULDBLOCK) => occupied(),
            Err(error) => return Err(failed(error)),
        }
        loop {
            match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Self::taken(path, file)),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// The lock of a directory in which nothing is to be changed, not even the lock's own file; `None` where that is absent:
    /// then nobody has it.
    pub(crate) fn look(path: &Path) -> Result<Option<Self>, OpenError> {
        let mut file = match File::open(path.join("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failure("opening", &path.join("lock"), source)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { path: path.to_owned(), file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(locked(path, &mut file)),
            Err(error) => Err(failure("locking", &path.join("lock"), error.into())),
        }
    }

    /// A duplicate of the locked descriptor: whoever gets it can ask the kernel whether its owner holds the lock.
    pub fn proof(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Says whose it is now, for people. In place, so that a disk that is full to the last block has room for it; if not, a start
    /// does not fail for that.
    fn taken(path: &Path, file: File) -> Self {
        let holder = format!("{}\n", std::process::id());
        let noted = file.write_all_at(holder.as_bytes(), 0).and_then(|()| file.set_len(holder.len() as u64));
        if noted.is_err() {
            // Nobody is better than somebody else.
            let _ = file.set_len(0);
        }
        Self { path: path.to_owned(), file }
    }
}

impl Drop for DirectoryLock {
    fn drop(&mut self) {
        // Should it fail, closing does the same, unless there is a duplicate.
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

impl Directory {
    /// Makes what is missing below the directory, and reads the format.
    pub(crate) fn open(lock: DirectoryLock) -> Result<Self, OpenError> {
        make(&lock.path.join("log"))?;
        let log_id = read_format(&lock.path)?;
        Ok(Self { lock, log_id })
    }

    /// Writes the format file unless it says so already. On a full disk that waits for another start: the segments say it too.
    pub(crate) fn note_format(&self, log_id: u64) {
        if self.log_id == Some(log_id) {
            return;
        }
        let dir = &self.lock.path;
        let (new, path) = (dir.join("format.new"), dir.join("format"));
        let write = || {
            let mut file = File::create(&new)?;
            file.write_all(format_text(VERSION, log_id).as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(dir)?.sync_all()
        };
        if let Err(error) = write() {
            tracing::warn!(path = %path.display(), %error, "the data directory's format cannot be noted");
        }
    }
}

fn make(directory: &Path) -> Result<(), OpenError> {
    make_folder(directory).map_err(|source| failure("creating", directory, source))
}

/// Makes a folder of the data directory, unless it is there.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o750).create(path)
}

fn open_lock(path: &Path) -> Result<File, OpenError> {
    let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).to_owned();
    let path = path.join("lock");
    options.open(&path).map_err(|source| failure("opening", &path, source))
}

fn locked(path: &Path, lock: &mut File) -> OpenError {
    let mut holder = String::new();
    let read = lock.rewind().and_then(|()| lock.take(20).read_to_string(&mut holder));
    let holder = holder.trim();
    let known = read.is_ok() && !holder.is_empty() && holder.bytes().all(|byte| byte.is_ascii_digit());
    let holder = if known { holder } else { "unknown" }.to_owned();
    OpenError::Locked { dir: path.to_owned(), holder }
}

/// What the format file says. Its first line and its last are the same in every version.
pub(crate) fn format_text(version: u32, log_id: u64) -> String {
    let text = format!("pillion-queue {version}\nlog {log_id:016x}\n");
    format!("{text}crc {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

/// Which log it is. Only an intact file with a newer number stops a start; damage does not, not even of the number.
pub(crate) fn read_format(path: &Path) -> Result<Option<u64>, OpenError> {
    let file = path.join("format");
    let mut text = String::new();
    match File::open(&file).and_then(|opened| opened.take(256).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => return Ok(None),
        Err(source) => return Err(failure("reading", &file, source)),
    }
    let intact =
        text.rsplit_once("crc ").filter(|(text, crc)| *crc == format!("{:08x}\n", crc32c::crc32c(text.as_bytes())));
    let mut lines = intact.map_or("", |(text, _)| text).lines();
    let version = lines.next().and_then(|line| line.strip_prefix("pillion-queue ")?.parse::<u32>().ok());
    match version {
        Some(found) if found > VERSION => Err(OpenError::NewerFormat { dir: path.to_owned(), found, known: VERSION }),
        Some(VERSION) => Ok(lines.next().and_then(|line| u64::from_str_radix(line.strip_prefix("log ")?, 16).ok())),
        _ => Ok(None),
    }
}

/// Whether other users could read or change what is in the directory, in words. Nothing is changed.
pub(crate) fn exposed(path: &Path) -> Result<Option<String>, OpenError> {
    access::exposed(path)
}

/// An `OpenError::Io`.
pub(crate) fn failure(action: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { action, path: path.to_owned(), source }
}
