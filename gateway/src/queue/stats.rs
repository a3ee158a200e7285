//! Figures of the queue, and the two states that everyone must be able to see: full, and poisoned.
//!
//! Owns the counters. Written by the writer and by readers, read by anyone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::watch;

use super::Snapshot;
use super::damaged::Damaged;

/// Shared by the writer, the readers and the handles.
#[derive(Debug)]
pub(crate) struct Stats {
    pub(crate) commits: AtomicU64,
    pub(crate) records: AtomicU64,
    pub(crate) syncs: AtomicU64,
    pub(crate) payload_bytes: AtomicU64,
    pub(crate) damaged_records: Damaged,
    pub(crate) meta_rebuilds: AtomicU64,
    pub(crate) dead_letters_dropped: AtomicU64,
    pub(crate) relocated_records: AtomicU64,
    pub(crate) relocated_bytes: AtomicU64,
    pub(crate) segments: AtomicU64,
    pub(crate) disk_bytes: AtomicU64,
    pub(crate) undelivered_bytes: AtomicU64,
    pub(crate) full: AtomicBool,
    pub(crate) low: AtomicBool,
    poisoned: watch::Sender<bool>,
}

impl Default for Stats {
    fn default() -> Self {
        Self {
            commits: AtomicU64::new(0),
            records: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            payload_bytes: AtomicU64::new(0),
            damaged_records: Damaged::default(),
            meta_rebuilds: AtomicU64::new(0),
            dead_letters_dropped: AtomicU64::new(0),
            relocated_records: AtomicU64::new(0),
            relocated_bytes: AtomicU64::new(0),
            segments: AtomicU64::new(0),
            disk_bytes: AtomicU64::new(0),
            undelivered_bytes: AtomicU64::new(0),
            full: AtomicBool::new(false),
            low: AtomicBool::new(false),
            poisoned: watch::Sender::new(false),
        }
    }
}

impl Stats {
    /// Says for good that nothing can be promised any more.
    pub(crate) fn poison(&self) {
        self.poisoned.send_replace(true);
    }

    /// Whether it was said.
    pub(crate) fn is_poisoned(&self) -> bool {
        *self.poisoned.borrow()
    }

    /// Resolves when it is said.
    pub(crate) async fn poisoned(&self) {
        // The sender lives as long as `self`.
        drop(self.poisoned.subscribe().wait_for(|poisoned| *poisoned).await);
    }

    /// All of them.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Snapshot {
            segments: value(&self.segments),
            disk_bytes: value(&self.disk_bytes),
            commits: value(&self.commits),
            records: value(&self.records),
            syncs: value(&self.syncs),
            payload_bytes: value(&self.payload_bytes),
            damaged_records: self.damaged_records.count(),
            meta_rebuilds: value(&self.meta_rebuilds),
            dead_letters_dropped: value(&self.dead_letters_dropped),
            relocated_records: value(&self.relocated_records),
            relocated_bytes: value(&self.relocated_bytes),
            poisoned: self.is_poisoned(),
            undelivered_bytes: value(&self.undelivered_bytes),
            full: self.full.load(Ordering::Relaxed),
            low: self.low.load(Ordering::Relaxed),
            stalled: false,
            now_unix_ms: 0,
        }
    }
}
