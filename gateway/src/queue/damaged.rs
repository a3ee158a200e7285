//! What was found damaged: counted once each, and its bytes kept aside before their segment is recycled.
//!
//! Owns the folder `damaged/` of the data directory and its limit: the oldest go first. It is evidence for people, and nothing
//! reads it back: a file that cannot be written is told in the log, and no record waits for it.
//!
//! ```text
//! damaged/<number 8 hex>-<segment>-<offset 8 hex>     the bytes from that offset of the segment on, as they were found
//! ```
//! What cannot be read cannot be kept. Nothing is kept, only counted, until [`Damaged::keep_in`].

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::disk::{Disk, RealDisk};
use super::format::SegmentKey;

/// Of all files in the folder.
const FOLDER_BYTES_MAX: u64 = 16 << 20;
const FILES_MAX: usize = 1024;
/// Of one file: what is longer is cut.
const PIECE_BYTES_MAX: usize = 5 << 20;
/// Places that are known as damaged, so that reading them again does not count them again.
const KNOWN_MAX: usize = 4096;

/// The counter, and the folder.
#[derive(Debug, Default)]
pub(crate) struct Damaged {
    count: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    known: BTreeSet<(SegmentKey, u64)>,
    folder: Option<Folder>,
}

#[derive(Debug)]
struct Folder {
    path: PathBuf,
    /// Oldest first, with their lengths.
    files: VecDeque<(String, u64)>,
    next: u32,
}

impl Damaged {
    /// Damaged records found since the start.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// More of them, of which nothing is to be kept.
    pub(crate) fn add(&self, more: u64) {
        self.count.fetch_add(more, Ordering::Relaxed);
    }

    /// Keeps from now on what is found, in this folder. It is made when there is something for it.
    pub(crate) fn keep_in(&self, path: PathBuf) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).folder = Some(Folder::at(path));
    }

    /// A damaged record of a segment, and what can be read of it.
    pub(crate) fn note(&self, (key, offset): (SegmentKey, u64), bytes: &[u8]) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.known.contains(&(key, offset)) {
            return;
        }
        if kept.known.len() < KNOWN_MAX {
            kept.known.insert((key, offset));
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let Some(folder) = kept.folder.as_mut().filter(|_| !bytes.is_empty()) else { return };
        if let Err(error) = folder.keep((key, offset), &bytes[..bytes.len().min(PIECE_BYTES_MAX)]) {
            tracing::warn!(segment = key.name(), offset, %error, "a damaged record could not be kept aside");
        }
    }
}

impl Folder {
    fn at(path: PathBuf) -> Self {
        let mut files: Vec<(String, u64)> = Vec::new();
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let length = entry.metadata().map_or(0, |data| data.len());
            files.extend(entry.file_name().into_string().ok().map(|name| (name, length)));
        }
        files.sort();
        let number = files.last().and_then(|(name, _)| u32::from_str_radix(name.split('-').next()?, 16).ok());
        Self { path, next: number.map_or(0, |number| number.wrapping_add(1)), files: files.into() }
    }

    fn keep(&mut self, (key, offset): (SegmentKey, u64), bytes: &[u8]) -> io::Result<()> {
        let place = format!("{}-{offset:08x}", key.name().trim_end_matches(".seg"));
        // Found at an earlier start already.
        if self.files.iter().any(|(name, _)| name.ends_with(&place)) {
            return Ok(());
        }
        super::directory::make_folder(&self.path)?;
        let disk = RealDisk::open(self.path.clone())?;
        let length = bytes.len() as u64;
        while self.files.len() >= FILES_MAX || self.bytes() + length > FOLDER_BYTES_MAX {
            let Some((oldest, _)) = self.files.pop_front() else { break };
            disk.remove(&oldest)?;
        }
        let name = format!("{:08x}-{place}", self.next);
        self.next = self.next.wrapping_add(1);
        let file = disk.create(&name, length)?;
        disk.write_at(&file, 0, &mut [IoSlice::new(bytes)])?;
        disk.sync(&file)?;
        self.files.push_back((name, length));
        disk.sync_dir()
    }

    fn bytes(&self) -> u64 {
        self.files.iter().map(|(_, length)| length).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u64) -> SegmentKey {
        SegmentKey { id, generation: 1, salt: 7 }
    }

    fn kept(path: &std::path::Path) -> Vec<(String, u64)> {
        Folder::at(path.to_owned()).files.into()
    }

    /// Scenario: damaged records of 3 MiB are found one after the other, some of them again, also after a new start.
    /// Guarantees: each is counted and kept once; never more than 16 MiB; the oldest go first.
    #[test]
    fn what_is_kept_is_bounded_and_the_newest() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("damaged");
        let found = |damaged: &Damaged, id: u8| damaged.note((key(id.into()), 64), &vec![id; 3 << 20]);
        let damaged = Damaged::default();
        found(&damaged, 0);
        damaged.keep_in(path.clone());
        assert!(!path.exists(), "there is nothing for it yet");
        for id in 1..=7 {
            found(&damaged, id);
            found(&damaged, id);
            assert!(kept(&path).iter().map(|(_, length)| length).sum::<u64>() <= FOLDER_BYTES_MAX);
        }
        assert_eq!(damaged.count(), 8);
        let again = Damaged::default();
        again.keep_in(path.clone());
        found(&again, 7);
        found(&again, 8);
        let names: Vec<_> = kept(&path).into_iter().map(|(name, _)| name).collect();
        let segments: Vec<_> =
            (4..=8u64).map(|id| format!("{:08x}-{id:016x}-00000001-00000007-00000040", id - 1)).collect();
        assert_eq!(names, segments);
        assert_eq!(std::fs::read(path.join(&names[4])).expect("it is there"), vec![8; 3 << 20]);
    }

    /// Scenario: the folder cannot be made.
    /// Guarantees: what is damaged is counted all the same.
    #[test]
    fn what_cannot_be_kept_is_counted() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("damaged"), "x").expect("written");
        let damaged = Damaged::default();
        damaged.keep_in(dir.path().join("damaged"));
        damaged.note((key(1), 64), b"bytes");
        damaged.note((key(1), 128), b"");
        assert_eq!(damaged.count(), 2);
    }
}
