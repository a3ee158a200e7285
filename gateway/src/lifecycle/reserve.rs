//! The process's descriptors: how many it may have, and a few kept back for the day when they run out.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Enough for the queue to open its next segments, and for every credential file to be read again.
const KEPT_BACK: usize = 64;

/// Raises RLIMIT_NOFILE to what the process may have, and returns it. To be called once, before any thread is started.
pub fn raise_descriptor_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::warn!(%error, current = limit.current, "cannot raise the limit of open files: fewer connections fit this node");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Descriptors that are open for nothing. When an accept finds the table full they are closed, so that everything but
/// accepting can go on, and nothing is accepted until they could be opened again.
#[derive(Debug)]
pub(super) struct Reserve {
    kept: Mutex<Vec<OwnedFd>>,
    full: AtomicBool,
}

impl Reserve {
    pub(super) fn new() -> Self {
        let reserve = Self { kept: Mutex::new(Vec::with_capacity(KEPT_BACK)), full: AtomicBool::new(false) };
        reserve.refill();
        if !reserve.is_full() {
            let limit = getrlimit(Resource::Nofile).current;
            tracing::error!(
                limit,
                "too few files may be opened to accept any connection: raise the limit of open files"
            );
        }
        reserve
    }

    /// Whether accepting leaves enough for the rest of the process.
    pub(super) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// The table was full.
    pub(super) fn release(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        self.full.store(false, Ordering::Release);
        kept.clear();
    }

    /// Opens them again, if as many are left for everything else: never the last ones, and not even for a moment.
    pub(super) fn refill(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if free_descriptors() < 2 * KEPT_BACK as u64 {
            return;
        }
        while kept.len() < KEPT_BACK {
            match eventfd(0, EventfdFlags::CLOEXEC) {
                Ok(fd) => kept.push(fd),
                // Somebody else took them meanwhile.
                Err(_) => return kept.clear(),
            }
        }
        self.full.store(true, Ordering::Release);
    }
}

/// How many the process may still open.
fn free_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    limit.saturating_sub(open_descriptors().unwrap_or(u64::MAX))
}

/// How many descriptors are open in this process: st_size of /proc/self/fd since Linux 6.2
/// (Documentation/filesystems/proc.rst), counted before.
pub fn open_descriptors() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    let known =
        rustix::fs::stat(DIRECTORY).ok().and_then(|stat| u64::try_from(stat.st_size).ok()).filter(|size| *size > 0);
    // The directory that is read is open itself.
    known.or_else(|| Some((std::fs::read_dir(DIRECTORY).ok()?.count() as u64).saturating_sub(1)))
}
