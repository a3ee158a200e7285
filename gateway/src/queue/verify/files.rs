//! The files of a log, opened for reading only: every call that would change one is refused.

use std::fs::File;
use std::io::{self, IoSlice};
use std::path::PathBuf;

use super::super::disk::{Disk, Free, read_at};
use super::super::format::SegmentKey;

/// A directory of segment files.
#[derive(Debug)]
pub(super) struct ReadOnly(PathBuf);

impl ReadOnly {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Names that are no segment's.
    pub(super) fn strangers(&self) -> io::Result<Vec<String>> {
        let mut names = self.list()?;
        names.retain(|name| SegmentKey::parse(name).is_none());
        names.sort();
        Ok(names)
    }

    pub(super) fn length_of(&self, name: &str) -> io::Result<u64> {
        Ok(std::fs::metadata(self.0.join(name))?.len())
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for ReadOnly {
    type File = File;

    fn list(&self) -> io::Result<Vec<String>> {
        let entries = std::fs::read_dir(&self.0)?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn open(&self, name: &str) -> io::Result<File> {
        File::open(self.0.join(name))
    }

    fn create(&self, _: &str, _: u64) -> io::Result<File> {
        refused()
    }

    fn resize(&self, _: &File, _: u64) -> io::Result<()> {
        refused()
    }

    fn length(&self, file: &File) -> io::Result<u64> {
        Ok(file.metadata()?.len())
    }

    fn read_at(&self, file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        read_at(file, offset, buf)
    }

    fn write_at(&self, _: &File, _: u64, _: &mut [IoSlice<'_>]) -> io::Result<()> {
        refused()
    }

    fn sync(&self, _: &File) -> io::Result<()> {
        refused()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        refused()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        refused()
    }

    fn free(&self) -> io::Result<Free> {
        refused()
    }

    fn sync_dir(&self) -> io::Result<()> {
        refused()
    }
}
