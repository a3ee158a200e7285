//! Batches of ack memory: in no log, delivered straight from memory while that works.
//!
//! Owns the bytes and the intake's guard of each until every destination has taken it or it is in the log. Decides
//! nothing: the engine says when a batch goes to the log.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use crate::base::{Batch, TenantId};

/// How far one destination is with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Waiting,
    Flying,
    Taken,
}

/// One batch.
#[derive(Debug)]
pub(crate) struct Volatile {
    /// Its guard is given back when this is dropped.
    pub(crate) batch: Batch,
    pub(crate) lanes: SmallVec<[(u32, Stage); 1]>,
    /// It is on its way to the log.
    pub(crate) logging: bool,
}

/// All of them. Bounded by the ledger, whose guards they hold.
#[derive(Debug)]
pub(crate) struct Volatiles {
    /// How long a batch may wait for its destinations before it goes to the log.
    patience: Duration,
    entries: HashMap<u64, Volatile>,
    /// In order of time.
    due: VecDeque<(Instant, u64)>,
    next: u64,
}

impl Volatiles {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, entries: HashMap::new(), due: VecDeque::new(), next: 0 }
    }

    /// Takes a batch for these lanes.
    pub(crate) fn add(&mut self, batch: Batch, lanes: SmallVec<[(u32, Stage); 1]>, now: Instant) -> u64 {
        let id = self.next;
        self.next += 1;
        self.entries.insert(id, Volatile { batch, lanes, logging: false });
        self.due.push_back((now + self.patience, id));
        id
    }

    pub(crate) fn entry(&mut self, id: u64) -> Option<&mut Volatile> {
        self.entries.get_mut(&id)
    }

    /// Ends a batch: its guard is given back.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Volatile> {
        self.entries.remove(&id)
    }

    /// Gives a batch another second.
    pub(crate) fn defer(&mut self, id: u64, now: Instant) {
        self.due.push_back((now + self.patience, id));
    }

    /// Marks a lane's stage; true when every lane has taken the batch and
    /// nothing else is under way with it.
    pub(crate) fn mark(&mut self, id: u64, lane: u32, stage: Stage) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.lanes.iter_mut().filter(|(of, _)| *of == lane).for_each(|(_, at)| *at = stage);
        !entry.logging && entry.lanes.iter().all(|(_, stage)| *stage == Stage::Taken)
    }

    /// The next batch whose patience is over.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<u64> {
        while let Some((at, id)) = self.due.front().copied() {
            let gone = !self.entries.contains_key(&id);
            if !gone && at > now {
                return None;
            }
            self.due.pop_front();
            if !gone {
                return Some(id);
            }
        }
        None
    }

    /// When the next one's patience is over.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.due.front().map(|(at, _)| *at)
    }

    /// All that are here.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.entries.keys().copied().collect()
    }

    /// Whether one of a tenant is left.
    pub(crate) fn has(&self, tenant: TenantId) -> bool {
        self.entries.values().any(|entry| entry.batch.tenant == tenant)
    }

    /// Whether none is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
