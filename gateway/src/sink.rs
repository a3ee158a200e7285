//! The embedded destination: counts and the last items, on disk before the cursor advances.
//!
//! Exact across kill -9: it remembers which records it has counted, in the same write as the counts, so that a record
//! that is delivered again is not counted again. It never keeps more than the last items of each signal, and never looks
//! at the gateway's own queue. It ends with its last handle; nothing has to be flushed.
//!
//! - `extract` finds out what a record holds; `record` is what of it is kept, as bytes on disk and as JSON.
//! - `state` is the sum of all changes, and pure; `journal` is the file they are appended to.
//! - `view` is what GET /sink shows.

mod extract;
mod journal;
mod record;
mod state;
mod view;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use self::journal::Journal;
use self::record::Change;
use self::state::State;
use crate::base::{Sequence, Signal, TenantId, TenantName};

pub use self::record::{Attribute, Item};
pub use self::view::{Counts, TenantCounts, View};

/// The store. Thread-safe; `store` blocks on the disk.
#[derive(Debug)]
pub struct Sink {
    /// Held during a write and its sync. Taken before `state`.
    journal: Mutex<Journal>,
    /// Held for moments only, so that readers never wait for the disk. Changed only under `journal`.
    state: Mutex<State>,
}

/// One record delivered to the sink.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Whose.
    pub tenant: TenantId,
    /// Its name.
    pub name: TenantName,
    /// The record; `None` for ack memory, which cannot be recognised when it comes again.
    pub sequence: Option<Sequence>,
    /// The tenant's lowest cursor at this destination: nothing of its signal up to here comes again that was not stored before.
    /// What the sink may forget, so that its memory is bounded by what is in flight.
    pub acknowledged: Sequence,
    /// What it is.
    pub signal: Signal,
    /// Items in it.
    pub items: u32,
    /// The bytes.
    pub payload: Bytes,
}

impl Sink {
    /// Opens or makes the store in `dir`. A damaged store is put aside with a warning, never an error.
    pub fn open(dir: &Path) -> std::io::Result<Arc<Self>> {
        let (journal, state) = Journal::open(dir)?;
        Ok(Arc::new(Self { journal: Mutex::new(journal), state: Mutex::new(state) }))
    }

    /// Counts and keeps these records; durable when it returns. Blocking. After an error none of them is counted, and all
    /// may be delivered again.
    pub fn store(&self, deliveries: &[Delivery]) -> std::io::Result<()> {
        let mut journal = lock(&self.journal);
        if !journal.is_sound() {
            journal.rewrite(&self.state().image())?;
        }
        let fresh = self.fresh(deliveries);
        let change = Change::of(&fresh);
        if !change.records.is_empty() {
            journal.append(&change)?;
        }
        {
            let mut state = self.state();
            state.count_repeated(deliveries.len() - fresh.len());
            state.apply(change);
        }
        if journal.is_long() {
            let image = self.state().image();
            if let Err(error) = journal.rewrite(&image) {
                tracing::warn!(%error, "the sink's journal is not compacted; what was stored is safe");
            }
        }
        Ok(())
    }

    /// Present counts, and the last `items` of each signal.
    pub fn view(&self, items: usize) -> View {
        View::of(&self.state(), items)
    }

    /// Those that are not counted yet, once each.
    fn fresh<'a>(&self, deliveries: &'a [Delivery]) -> Vec<&'a Delivery> {
        let state = self.state();
        let mut met = HashSet::new();
        let is_fresh = |delivery: &&Delivery| match delivery.sequence {
            None => true,
            Some(sequence) => {
                !state.has_counted(delivery.tenant, delivery.signal, sequence)
                    && met.insert((delivery.tenant, sequence))
            }
        };
        deliveries.iter().filter(is_fresh).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Changes of the state are additions that cannot panic; a journal left half-written says so itself.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
