//! Committed batches on their way from the writer (or, for ack memory, from a worker) to the export runtime.
//!
//! Bounded by bytes: past the limit a batch is handed over without its payload, and export reads it from the log. Two
//! such batches of one tenant in a row become one entry, so the hand-over never grows with the backlog.
//!
//! ```text
//! Committed  previous -> sequence: the tenant's record before this one, so that a gap (batches handed over without
//!            payload, or records of before a restart) is seen and filled from the log.
//! GivenUp    what the log has given up at one destination: never sent from then on, and counted as lost by whoever knows
//!            what was delivered. After all arrivals of the records that it names.
//! ```

use std::collections::VecDeque;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::batch::{Batch, Signal};
use super::id::{DestinationName, Sequence, TenantId};
use super::stats::Loss;

/// What export is told.
#[derive(Debug)]
pub enum Arrival {
    /// In the log.
    Committed(Committed),
    /// Ack memory: nowhere else yet. Export delivers it or appends it to the log. Its guard is still held.
    Volatile(Batch),
    /// Records that were in the log.
    GivenUp(GivenUp),
}

/// A cursor that the log has moved by itself, durably with the group that needed the room.
#[derive(Debug)]
pub struct GivenUp {
    /// Whose records.
    pub tenant: TenantId,
    /// Who does not get them.
    pub destination: DestinationName,
    /// Of which signal.
    pub signal: Signal,
    /// Where the cursor is now.
    pub through: Sequence,
    /// What was passed and, as far as the log knows, not done: positions in order, and items.
    pub records: Vec<(Sequence, u32)>,
    /// Items of further such records, after those: nobody has met them yet.
    pub further_items: u64,
    /// Why.
    pub why: Loss,
}

/// A record that is in the log (synced, for ack durable).
#[derive(Debug)]
pub struct Committed {
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is. Meaningless without a payload.
    pub signal: Signal,
    /// Its position.
    pub sequence: Sequence,
    /// The same tenant's record before it; `Sequence::ZERO` if there was none.
    pub previous: Sequence,
    /// Items in it (all records since `previous`, without a payload).
    pub items: u64,
    /// When it was appended, on the log's clock.
    pub received_unix_ms: u64,
    /// `None`: read it from the log.
    pub payload: Option<Bytes>,
}

/// Records of [`GivenUp`] that may wait, 16 bytes each: with more, no more is given up.
const GIVEN_UP_MAX: usize = 64 * 1024;

/// The bounded hand-over. One receiver.
#[derive(Debug)]
pub struct Handoff {
    bytes_max: usize,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    entries: VecDeque<Arrival>,
    bytes: usize,
    given_up: usize,
    waker: Option<Waker>,
}

impl Handoff {
    /// A hand-over that holds at most `bytes_max` bytes of committed payload.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, inner: Mutex::default() }
    }

    /// Hands over a group and wakes the receiver once.
    pub fn push(&self, group: impl IntoIterator<Item = Arrival>) {
        let waker = {
            let mut inner = self.lock();
            for arrival in group {
                inner.add(arrival, self.bytes_max);
            }
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes everything handed over so far into `out` (which must be empty), or registers the task to be woken.
    pub fn poll_take(&self, cx: &mut Context<'_>, out: &mut VecDeque<Arrival>) -> Poll<()> {
        debug_assert!(out.is_empty(), "entries that were not handled would be handed back");
        let mut inner = self.lock();
        if inner.entries.is_empty() {
            inner.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        std::mem::swap(&mut inner.entries, out);
        (inner.bytes, inner.given_up) = (0, 0);
        Poll::Ready(())
    }

    /// Whether there is anything to take; nothing is taken. With nothing the task is registered to be woken, as by
    /// [`Handoff::poll_take`]; with something it is not, and whoever hands over more wakes nobody.
    pub fn poll_any(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.lock();
        if inner.entries.is_empty() {
            inner.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Whether more may be given up: while export does not take, what it is to be told is bounded like everything else.
    pub fn has_room_for_losses(&self) -> bool {
        self.lock().given_up < GIVEN_UP_MAX
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic while the lock is held leaves at worst a byte count that is reset by the next take.
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Inner {
    fn add(&mut self, arrival: Arrival, bytes_max: usize) {
        let mut committed = match arrival {
            Arrival::Committed(committed) => committed,
            // Bounded by the guard that it holds.
            volatile @ Arrival::Volatile(_) => return self.entries.push_back(volatile),
            Arrival::GivenUp(given_up) => {
                self.given_up += given_up.records.len();
                return self.entries.push_back(Arrival::GivenUp(given_up));
            }
        };
        let size = committed.payload.as_ref().map_or(0, Bytes::len);
        if size > 0 && self.bytes + size <= bytes_max {
            self.bytes += size;
            return self.entries.push_back(Arrival::Committed(committed));
        }
        committed.payload = None;
        let last = self.entries.iter_mut().rev().find_map(|entry| match entry {
            Arrival::Committed(last) if last.tenant == committed.tenant => Some(last),
            _ => None,
        });
        match last {
            Some(last) if last.payload.is_none() => {
                last.sequence = committed.sequence;
                last.items += committed.items;
            }
            _ => self.entries.push_back(Arrival::Committed(committed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn committed(tenant: u32, previous: u64, sequence: u64, size: usize) -> Arrival {
        Arrival::Committed(Committed {
            tenant: TenantId(tenant),
            signal: Signal::Traces,
            sequence: Sequence(sequence),
            previous: Sequence(previous),
            items: 1,
            received_unix_ms: 0,
            payload: Some(Bytes::from(vec![0; size])),
        })
    }

    fn take(handoff: &Handoff) -> Vec<(u32, u64, u64, u64, bool)> {
        let mut out = VecDeque::new();
        let waker = std::task::Waker::noop();
        let _ = handoff.poll_take(&mut Context::from_waker(waker), &mut out);
        out.into_iter()
            .map(|arrival| match arrival {
                Arrival::Committed(c) => (c.tenant.0, c.previous.0, c.sequence.0, c.items, c.payload.is_some()),
                Arrival::Volatile(_) | Arrival::GivenUp(_) => unreachable!("none was pushed"),
            })
            .collect()
    }

    /// Scenario: two tenants commit more than the hand-over may hold while export does not take.
    /// Guarantees: what is over the limit is told without payload, one entry a tenant, with no gap in the chain of
    /// sequences and no item uncounted.
    #[test]
    fn past_its_limit_it_tells_positions_instead_of_bytes() {
        let handoff = Handoff::new(100);
        handoff.push([committed(1, 0, 1, 60), committed(2, 0, 2, 40)]);
        handoff.push([committed(1, 1, 3, 1), committed(1, 3, 4, 1), committed(2, 2, 5, 1), committed(1, 4, 6, 1)]);

        assert_eq!(take(&handoff), [(1, 0, 1, 1, true), (2, 0, 2, 1, true), (1, 1, 6, 3, false), (2, 2, 5, 1, false)]);

        handoff.push([committed(1, 6, 7, 100)]);
        assert_eq!(take(&handoff), [(1, 6, 7, 1, true)], "taking makes room");
    }
}
