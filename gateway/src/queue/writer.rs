//! The writer's thread, its inbox, and the directory around the log.
//!
//! Owns the lock of the data directory, the thread that loops over [`Log::step`] and the one that saves metadata. The
//! writer takes all that waits at once: what arrives during one fdatasync shares the next, so a busy node syncs rarely
//! and an idle one answers after a single sync. It ends when the inbox is closed, after committing what waits.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::AppendError;
use super::clock::Clock;
use super::disk::Disk;
use super::group::Request;
use super::log::Log;
use super::meta::MetaInbox;
use super::stats::Stats;

/// Buffered appends and cursors that nobody waits for are made durable when the writer has been idle for so long.
const IDLE_SYNC: Duration = Duration::from_secs(1);

/// A group that the disk keeps for so long says that it does not answer. Less than the ten seconds that SDKs wait for us.
const STALL_MS: u64 = 8_000;

/// Requests that wait for the writer, bounded by their bytes.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Since when the writer is at work on what it took last; 0 while it waits.
    at_work_unix_ms: AtomicU64,
    bytes_max: usize,
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: Vec<Request>,
    bytes: usize,
    closed: bool,
    /// There is something to look at beside requests.
    nudged: bool,
    /// Only then is a wake worth its system call.
    writer_sleeps: bool,
}

/// What the writer is to do next.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Commit,
    Look,
    SyncIdle,
    End,
}

impl Inbox {
    /// At least one request always fits.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { at_work_unix_ms: AtomicU64::new(0), bytes_max, waiting: Mutex::default(), arrived: Condvar::new() }
    }

    /// Leaves a request, or gives it back.
    pub(crate) fn put(&self, request: Request) -> Result<(), (Box<Request>, AppendError)> {
        let size = request.size();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.closed {
            return Err((Box::new(request), AppendError::Closed));
        }
        if waiting.bytes > 0 && waiting.bytes + size > self.bytes_max {
            return Err((Box::new(request), AppendError::Busy));
        }
        waiting.bytes += size;
        waiting.requests.push(request);
        let wake = std::mem::take(&mut waiting.writer_sleeps);
        drop(waiting);
        if wake {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Has the writer come round, even without a request.
    pub(crate) fn nudge(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).nudged = true;
        self.arrived.notify_one();
    }

    /// Refuses what comes; what waits is still committed.
    pub(crate) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.arrived.notify_one();
    }

    /// Whether the disk does not answer: the writer has been at work on one group for too long.
    pub(crate) fn is_stalled(&self, clock: &Clock) -> bool {
        let since = self.at_work_unix_ms.load(Ordering::Relaxed);
        since > 0 && clock.now_unix_ms().saturating_sub(since) >= STALL_MS
    }

    /// Takes all that waits into `requests`, which is empty.
    fn take(&self, requests: &mut Vec<Request>, is_dirty: bool) -> Next {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if !waiting.requests.is_empty() {
                std::mem::swap(&mut waiting.requests, requests);
                waiting.bytes = 0;
                waiting.nudged = false;
                return Next::Commit;
            }
            if waiting.closed {
                return Next::End;
            }
            if std::mem::take(&mut waiting.nudged) {
                return Next::Look;
            }
            waiting.writer_sleeps = true;
            if is_dirty {
                let (woken, timeout) =
                    self.arrived.wait_timeout(waiting, IDLE_SYNC).unwrap_or_else(PoisonError::into_inner);
                waiting = woken;
                if timeout.timed_out() && waiting.requests.is_empty() && !waiting.closed && !waiting.nudged {
                    waiting.writer_sleeps = false;
                    return Next::SyncIdle;
                }
            } else {
                waiting = self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            }
            waiting.writer_sleeps = false;
        }
    }
}

/// Poisons the log when the writer's thread unwinds: nobody else would ever answer those who wait.
#[derive(Debug)]
pub(crate) struct PoisonOnPanic<'a>(pub(crate) &'a Stats);

impl Drop for PoisonOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.poison();
        }
    }
}

/// The thread's loop. Returns when the inbox is closed and everything is committed.
pub(crate) fn run<D: Disk>(inbox: &Inbox, log: &mut Log<D>, meta: &MetaInbox, clock: &Clock) -> io::Result<()> {
    let mut requests = Vec::new();
    loop {
        // First of all what the recovery had to rebuild.
        if let Some(update) = log.take_update() {
            meta.put(update);
        }
        inbox.at_work_unix_ms.store(0, Ordering::Relaxed);
        let next = inbox.take(&mut requests, log.is_unfinished());
        let now = clock.now_unix_ms();
        inbox.at_work_unix_ms.store(now, Ordering::Relaxed);
        match next {
            Next::Commit | Next::Look => log.step(&mut requests, false, now),
            Next::SyncIdle => log.step(&mut requests, true, now),
            Next::End => break,
        }
    }
    log.close(clock.now_unix_ms())
}
