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

    /// Opens again what can be opened.
    pub(super) fn refill(&self) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() < KEPT_BACK {
            match eventfd(0, EventfdFlags::CLOEXEC) {
                Ok(fd) => kept.push(fd),
                Err(_) => return,
            }
        }
        self.full.store(true, Ordering::Release);
    }
}
