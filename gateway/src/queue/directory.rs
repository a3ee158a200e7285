//! The data directory: who has it, and which format it is.
//!
//! Owns `lock` and `format`. The lock is flock's, so it ends with the process, however that ends.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::OpenError;
use super::format::VERSION;

/// The lock, held for as long as this exists, and what the format file says.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
    /// Which log the format file says it is; `None` if there is none or it is damaged.
    pub(crate) log_id: Option<u64>,
}

impl Directory {
    /// Makes the directories, takes the lock, reads the format.
    pub(crate) fn lock(path: &Path) -> Result<Self, OpenError> {
        for directory in [path.to_owned(), path.join("log")] {
            let made = DirBuilder::new().recursive(true).mode(0o750).create(&directory);
            made.map_err(|source| failure("creating", &directory, source))?;
        }
        let lock_path = path.join("lock");
        let failed = |source| failure("locking", &lock_path, source);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).to_owned();
        let mut lock = options.open(&lock_path).map_err(failed)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(locked(path, &mut lock)),
            Err(error) => return Err(failed(error.into())),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
        let log_id = read_format(path)?;
        Ok(Self { path: path.to_owned(), _lock: lock, log_id })
    }

    /// Writes the format file unless it says so already.
    pub(crate) fn note_format(&self, log_id: u64) -> Result<(), OpenError> {
        if self.log_id == Some(log_id) {
            return Ok(());
        }
        let (new, path) = (self.path.join("format.new"), self.path.join("format"));
        let write = || {
            let mut file = File::create(&new)?;
            write!(file, "pillion-queue {VERSION}\nlog {log_id:016x}\n")?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| failure("writing", &path, source))
    }
}

fn locked(path: &Path, lock: &mut File) -> OpenError {
    let mut holder = String::new();
    let read = lock.rewind().and_then(|()| lock.take(20).read_to_string(&mut holder));
    let holder = holder.trim();
    let known = read.is_ok() && !holder.is_empty() && holder.bytes().all(|byte| byte.is_ascii_digit());
    let holder = if known { holder } else { "unknown" }.to_owned();
    OpenError::Locked { dir: path.to_owned(), holder }
}

/// Which log it is. Only an intact first line with a newer number stops a start; damage does not.
fn read_format(path: &Path) -> Result<Option<u64>, OpenError> {
    let file = path.join("format");
    let mut text = String::new();
    match File::open(&file).and_then(|opened| opened.take(256).read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => return Ok(None),
        Err(source) => return Err(failure("reading", &file, source)),
    }
    let mut lines = text.lines();
    let version = lines.next().and_then(|line| line.strip_prefix("pillion-queue ")?.parse::<u32>().ok());
    match version {
        Some(found) if found > VERSION => Err(OpenError::NewerFormat { dir: path.to_owned(), found, known: VERSION }),
        Some(VERSION) => Ok(lines.next().and_then(|line| u64::from_str_radix(line.strip_prefix("log ")?, 16).ok())),
        _ => Ok(None),
    }
}

/// An `OpenError::Io`.
pub(crate) fn failure(action: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { action, path: path.to_owned(), source }
}
