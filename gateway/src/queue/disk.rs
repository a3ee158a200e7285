//! What the queue asks of a filesystem: twelve calls on one directory of files.
//!
//! Owns the descriptors. It never retries and never decides what a failure means. The simulation in `sim` loses, tears
//! and reorders what was not synced.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

#[cfg(test)]
pub(crate) mod sim;

/// One directory of segment files.
pub(crate) trait Disk: fmt::Debug + Send + Sync + 'static {
    /// An open file; reads and writes go by offset, so that it can be shared.
    type File: fmt::Debug + Send + Sync + 'static;

    /// The names in the directory.
    fn list(&self) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Makes a file of this length, its blocks reserved. The name is durable after `sync_dir`.
    fn create(&self, name: &str, length: u64) -> io::Result<Self::File>;
    /// Shortens a file, or lengthens it with blocks reserved.
    fn resize(&self, file: &Self::File, length: u64) -> io::Result<()>;
    /// The file's length.
    fn length(&self, file: &Self::File) -> io::Result<u64>;
    /// Fills `buf`, or as much of it as the file has.
    fn read_at(&self, file: &Self::File, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all the parts, one after the other.
    fn write_at(&self, file: &Self::File, offset: u64, parts: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Makes the file's bytes and length durable.
    fn sync(&self, file: &Self::File) -> io::Result<()>;
    /// Renames; durable after `sync_dir`.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes; durable after `sync_dir`.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The filesystem's space.
    fn free(&self) -> io::Result<Free>;
    /// Makes creations, renames and removals durable.
    fn sync_dir(&self) -> io::Result<()>;
}

/// Space of a filesystem, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Free {
    /// For us.
    pub(crate) available: u64,
    /// In all.
    pub(crate) total: u64,
}

/// Whether a call failed because there was no space.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A directory of the real filesystem.
#[derive(Debug)]
pub(crate) struct RealDisk {
    path: PathBuf,
    directory: File,
}

impl RealDisk {
    /// Opens the directory, which must exist.
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let directory = File::open(&path)?;
        Ok(Self { path, directory })
    }
}

/// Linux takes at most so many parts in one call (`UIO_MAXIOV`).
const PARTS_MAX: usize = 1024;

impl Disk for RealDisk {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path.join(name))
    }

    fn create(&self, name: &str, length: u64) -> io::Result<File> {
        let path = self.path.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o640).open(&path)?;
        reserve(&file, length).inspect_err(|_| drop(std::fs::remove_file(&path))).map(|()| file)
    }

    fn resize(&self, file: &File, length: u64) -> io::Result<()> {
        let before = file.metadata()?.len();
        if before > length {
            return file.set_len(length);
        }
        // What it got of a disk that is full is not kept.
        reserve(file, length).inspect_err(|_| drop(file.set_len(before)))
    }

    fn length(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&self, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        read_at(file, offset, buf)
    }

    fn write_at(&self, file: &File, mut offset: u64, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !parts.is_empty() {
            let count = parts.len().min(PARTS_MAX);
            match rustix::io::pwritev(file, &parts[..count], offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    offset += written as u64;
                    IoSlice::advance_slices(&mut parts, written);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(file)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn free(&self) -> io::Result<Free> {
        let found = rustix::fs::fstatvfs(&self.directory)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Free { available: bytes(found.f_bavail), total: bytes(found.f_blocks) })
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.directory)?)
    }
}

/// Fills `buf` from `offset` on, or as much of it as the file has.
pub(super) fn read_at(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buf.len() {
        match file.read_at(&mut buf[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reserves blocks, so that a later write cannot run out of space. A filesystem that cannot reserve gets a sparse file:
/// there a full disk shows as a failed write, which poisons the log.
fn reserve(file: &File, length: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(Errno::OPNOTSUPP) => file.set_len(length),
        other => Ok(other?),
    }
}
