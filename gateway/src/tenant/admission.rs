//! What one request holds of its tenant's budgets, and what it adds to its counters.
//!
//! An [`Admission`] goes from the first byte of a message to its append, where its memory moves into the batches; a
//! `Receipt` goes from there to the commit. Dropping an admission returns its memory; what it took from the buckets stays
//! taken, unless the tenant's own gateway was short of something.

use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use smallvec::SmallVec;

use super::core::Core;
use super::refused::Refused;
use crate::base::ledger::Guard;
use crate::base::{Batch, Signal, TenantId};
use crate::pipeline::{Output, Part};

/// Budget of one request: its reservation in the ledger and what it took from the buckets.
#[derive(Debug)]
pub struct Admission {
    core: Rc<Core>,
    signal: Signal,
    guard: Guard,
    /// Bytes of message that were admitted.
    bytes: u64,
}

/// What a request adds to the tenant's counters when it is committed, whoever still waits for it.
#[derive(Debug)]
pub(super) struct Receipt {
    core: Rc<Core>,
    signal: Signal,
    items: u32,
    bytes: u64,
}

impl Admission {
    pub(super) fn new(core: Rc<Core>, signal: Signal, guard: Guard, bytes: u64) -> Self {
        Self { core, signal, guard, bytes }
    }

    pub(super) fn signal(&self) -> Signal {
        self.signal
    }

    /// Bytes of message admitted so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The message turns out to be at least `total` bytes long: takes the difference from the quota, never waiting.
    pub fn grow_to(&mut self, total: u64) -> Result<(), Refused> {
        let Some(more) = total.checked_sub(self.bytes).filter(|more| *more > 0) else { return Ok(()) };
        let limit = self.core.request_bytes_max();
        if total > limit {
            return Err(Refused::TooLarge { limit });
        }
        if let Err(refused) = self.core.take_bytes(more, Instant::now()) {
            self.core.refund(self.bytes);
            return Err(refused);
        }
        self.bytes = total;
        Ok(())
    }

    /// Memory reserved now.
    pub fn reserved(&self) -> u64 {
        self.guard.bytes()
    }

    /// Makes the reservation at least `bytes`: by trying, never by waiting.
    pub fn cover(&mut self, bytes: u64) -> Result<(), Refused> {
        let missing = bytes.saturating_sub(self.guard.bytes());
        if missing == 0 {
            return Ok(());
        }
        self.guard.grow(missing).map_err(|_exhausted| {
            self.core.refund(self.bytes);
            // With all else of the tenant gone there would still be no room: a client that waits would wait in vain.
            if self.core.could_ever_hold(bytes) {
                self.core.out_of_memory()
            } else {
                Refused::TooLarge { limit: self.core.request_bytes_max() }
            }
        })
    }

    /// Nothing but `bytes` is held for the request any more.
    pub fn settle(&mut self, bytes: u64) {
        self.guard.shrink_to(bytes);
    }

    /// Moves the reservation into the batches, where it ends at their commit.
    pub(super) fn into_batches(mut self, tenant: TenantId, output: Output) -> SmallVec<[Batch; 1]> {
        let received_unix_ms = unix_ms();
        let batch = |part: Part| Batch {
            tenant,
            signal: self.signal,
            items: part.items,
            received_unix_ms,
            guard: Some(self.guard.split(part.payload.len() as u64)),
            payload: part.payload,
        };
        output.parts.into_iter().map(batch).collect()
    }
}

impl Receipt {
    pub(super) fn new(core: Rc<Core>, signal: Signal, items: u32, bytes: u64) -> Self {
        Self { core, signal, items, bytes }
    }

    /// An append of the tenant is over.
    pub(super) fn settle(self, committed: bool) {
        self.core.append_ended();
        let stats = &self.core.handle.stats;
        if committed {
            stats.accepted[self.signal.index()].add(u64::from(self.items));
            stats.accepted_bytes.add(self.bytes);
        } else {
            stats.refused[self.signal.index()].add(u64::from(self.items));
        }
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
