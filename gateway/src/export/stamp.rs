//! Whether a file is still the one that was read.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What changes when a file is replaced or rewritten: device, inode, size, and both times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp([i64; 4], [u64; 3]);

impl Stamp {
    /// Of the file that the path leads to now (Kubernetes swaps a symbolic link); `None` if there is none.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let meta = std::fs::metadata(path).ok()?;
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        Some(Self(times, [meta.dev(), meta.ino(), meta.size()]))
    }
}
