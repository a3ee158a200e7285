//! What is kept beside the log because it is small and changes: marks and cursors.
//!
//! Owns nothing that the log does not have. Whatever is missing, older, newer or damaged here costs at most a repetition:
//! a cursor that is ahead of the log's is true (it was delivered), one that is behind is not believed, and anything that
//! cannot be read is thrown away and written anew.
//!
//! ```text
//! state                  log id u64 | epoch u32 | next tenant u32 | crc u32
//! cursors/<tenant><key>  acknowledged u64 | delivered u64 | crc u32        tenant in big-endian; the key: see `cursor`
//! ```
//! Both checksums start from the log's id: metadata of another log is damage. Tenants' names and segments are not here:
//! nothing would look them up, since every segment begins with a copy of all tenants and ends with its own index.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::{CursorOf, CursorState};
use crate::base::TenantId;

pub(crate) mod sled;

/// What changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Update {
    /// Cursors that moved; later ones win.
    pub(crate) cursors: Vec<CursorState>,
    /// Tenants that are gone, and their cursors with them.
    pub(crate) forgotten: Vec<TenantId>,
    /// Whether a number was given to a tenant.
    pub(crate) tenants_changed: bool,
    /// The boot epoch.
    pub(crate) epoch: u32,
    /// The lowest free number.
    pub(crate) tenants_next: u32,
}

impl Update {
    /// Whether there is nothing to save.
    pub(crate) fn is_empty(&self) -> bool {
        self.cursors.is_empty() && self.forgotten.is_empty() && !self.tenants_changed
    }
}

/// What was saved.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saved {
    /// The latest boot epoch.
    pub(crate) epoch: u32,
    /// The lowest free number.
    pub(crate) tenants_next: u32,
    /// Without what is beyond the lowest gap.
    pub(crate) cursors: Vec<CursorState>,
}

/// A place for it.
pub(crate) trait Meta: Send {
    /// What is there; `None` if nothing was ever saved. An error means that it has to be discarded.
    fn load(&mut self) -> Result<Option<Saved>, String>;
    /// Saves, durably when it returns.
    fn save(&mut self, update: &Update) -> Result<(), String>;
    /// Throws everything away and begins anew, empty.
    fn discard(&mut self) -> Result<(), String>;
}

/// Loads what is there. What cannot be read is discarded: that is the `true`.
pub(crate) fn load_or_discard(meta: &mut dyn Meta) -> (Option<Saved>, bool) {
    match meta.load() {
        Ok(saved) => (saved, false),
        Err(problem) => {
            tracing::warn!(problem, "the queue's metadata is unusable: it is rebuilt from the log");
            if let Err(problem) = meta.discard() {
                tracing::warn!(problem, "the queue's metadata cannot be replaced: the log alone is used");
            }
            (None, true)
        }
    }
}

/// How much of the log's cursors sled may lack after a crash.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// The way from the writer to the thread that saves. Only the latest state of each cursor waits, so it stays small
/// however long a save takes.
#[derive(Debug, Default)]
pub(crate) struct MetaInbox {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// The latest state of each, by tenant.
type Cursors = BTreeMap<TenantId, BTreeMap<CursorOf, CursorState>>;

#[derive(Debug, Default)]
struct Waiting {
    cursors: Cursors,
    forgotten: Vec<TenantId>,
    tenants_changed: bool,
    epoch: u32,
    tenants_next: u32,
    closed: bool,
}

impl MetaInbox {
    /// Leaves an update for the thread.
    pub(crate) fn put(&self, update: Update) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for cursor in update.cursors {
            waiting.cursors.entry(cursor.tenant).or_default().insert(cursor.of.clone(), cursor);
        }
        // A number that is gone never gets a cursor again, so it does not matter which came first.
        update.forgotten.iter().for_each(|tenant| drop(waiting.cursors.remove(tenant)));
        waiting.forgotten.extend(update.forgotten);
        waiting.tenants_changed |= update.tenants_changed;
        (waiting.epoch, waiting.tenants_next) = (update.epoch, update.tenants_next);
        self.changed.notify_one();
    }

    /// Lets the thread end after what waits.
    pub(crate) fn close(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_one();
    }

    /// Waits for an update; `None` at the end.
    fn take(&self) -> Option<Update> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let is_idle = |waiting: &mut Waiting| {
            waiting.cursors.is_empty() && waiting.forgotten.is_empty() && !waiting.tenants_changed && !waiting.closed
        };
        let waiting = self.changed.wait_while(waiting, is_idle).unwrap_or_else(PoisonError::into_inner);
        // The log has it already: what follows within a second is saved with it.
        let is_open = |waiting: &mut Waiting| !waiting.closed;
        let collected = self.changed.wait_timeout_while(waiting, SAVE_INTERVAL, is_open);
        let mut waiting = collected.unwrap_or_else(PoisonError::into_inner).0;
        let update = Update {
            cursors: std::mem::take(&mut waiting.cursors).into_values().flat_map(BTreeMap::into_values).collect(),
            forgotten: std::mem::take(&mut waiting.forgotten),
            tenants_changed: std::mem::take(&mut waiting.tenants_changed),
            epoch: waiting.epoch,
            tenants_next: waiting.tenants_next,
        };
        (!update.is_empty()).then_some(update)
    }
}

/// The thread's loop. A failure discards what is there; `all` is every cursor saved by this process, so that a new
/// beginning is complete.
pub(crate) fn run(inbox: &Arc<MetaInbox>, meta: &mut dyn Meta, rebuilds: &AtomicU64) {
    let mut all = Cursors::new();
    while let Some(update) = inbox.take() {
        for cursor in &update.cursors {
            let kept = CursorState { beyond: Vec::new(), ..cursor.clone() };
            all.entry(cursor.tenant).or_default().insert(cursor.of.clone(), kept);
        }
        update.forgotten.iter().for_each(|tenant| drop(all.remove(tenant)));
        let Err(problem) = meta.save(&update) else { continue };
        tracing::warn!(problem, "the queue's metadata cannot be saved: it is made anew");
        rebuilds.fetch_add(1, Ordering::Relaxed);
        let everything = Update { cursors: all.values().flat_map(BTreeMap::values).cloned().collect(), ..update };
        if let Err(problem) = meta.discard().and_then(|()| meta.save(&everything)) {
            tracing::warn!(
                problem,
                "the queue's metadata cannot be made anew: the log alone is used until the next change"
            );
        }
    }
}
