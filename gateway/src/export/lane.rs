//! One tenant at one destination: its cursors, and the part of its backlog that is in memory.
//!
//! Owns what is loaded and not in flight. Never reads, sends or waits; it forgets payloads when it is told to, since the
//! log still has them.
//!
//! ```text
//! log  ... acknowledged | in flight, ready, suspects | (not loaded) | ahead | -> tail
//!                                             cursors.seen                     the tenant's last record
//! fresh      ack memory, in no log yet, and dead letters that are sent again: sent first
//! suspects   refused alone; tried again when the destination has accepted something since
//! ahead      arrived behind a gap that is to be read from the log first
//! ```

mod given_up;
mod overdue;

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;
use smallvec::SmallVec;

use super::board::LaneGauge;
use super::breaker::{Blame, Verdicts};
use super::cursor::Cursor;
use super::cursors::{Cursors, Met};
use super::drr::Head;
use super::merge::{Key, LONE_BYTES_MIN, Record, Refusals};
use crate::base::handoff::Committed;
use crate::base::stats::Loss;
use crate::base::{DestinationName, Sequence, Signal, TenantId};
use crate::queue::{CursorOf, CursorState, Read, Stored};

/// Records loaded and in the cursor's books: bounds a checkpoint to 128 KiB a lane.
const BOOKED_RECORDS_MAX: usize = 16 * 1024;

/// Records that may be under suspicion; with more, the lane sends nothing else until one of them is resolved.
const SUSPECTS_MAX: usize = 64;

/// See the module's picture.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) tenant: TenantId,
    pub(crate) outlet: usize,
    pub(crate) cursors: Cursors,
    pub(crate) tail: Sequence,
    ready: [VecDeque<Record>; 3],
    fresh: [VecDeque<Record>; 3],
    suspects: VecDeque<Record>,
    ahead: VecDeque<Committed>,
    ahead_bytes: usize,
    meter: Meter,
    /// Pieces of split records that are not done.
    pieces: SmallVec<[(Key, usize); 1]>,
    /// Appends of batches that this destination has taken already, and the last record that is certainly before each.
    spills: VecDeque<(u64, Sequence)>,
    pub(crate) flying: usize,
    pub(crate) blame: Blame,
    pub(crate) verdicts: Verdicts,
    pub(crate) rest_until: Option<Instant>,
    apart_until: Option<Instant>,
    apart_once: bool,
    pub(crate) in_ring: bool,
    pub(crate) listed_behind: bool,
    pub(crate) reading: bool,
    pub(crate) dirty: bool,
    /// It waits for a look at the age of its backlog.
    pub(crate) listed_overdue: bool,
    max_age_ms: u64,
    /// What was appended before is too old, as of the last look.
    age_limit_unix_ms: u64,
    /// The oldest record that waits, as far as is known.
    oldest_unix_ms: Option<u64>,
    moved: bool,
    /// Up to where nothing of a signal is sent any more, and why.
    given_up: [Option<(Sequence, Loss)>; 3],
    left: [given_up::Left; 3],
    pub(crate) gauge: Arc<LaneGauge>,
    delivered_items: [u64; 3],
}

/// Bytes held, of the lane and of all lanes of its destination.
#[derive(Debug)]
pub(crate) struct Meter {
    own: usize,
    shared: Rc<Cell<usize>>,
}

impl Meter {
    fn add(&mut self, bytes: usize) {
        self.own += bytes;
        self.shared.set(self.shared.get() + bytes);
    }

    fn sub(&mut self, bytes: usize) {
        self.own -= bytes;
        self.shared.set(self.shared.get() - bytes);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.shared.set(self.shared.get() - self.own);
    }
}

impl Lane {
    /// The states as recovered, by signal; without one it begins before the tenant's first record.
    pub(crate) fn new(
        tenant: TenantId,
        outlet: usize,
        states: [Option<&CursorState>; 3],
        gauge: Arc<LaneGauge>,
        shared: Rc<Cell<usize>>,
    ) -> Self {
        let cursor = |state: Option<&CursorState>| match state {
            Some(state) => Cursor::recovered(state.acknowledged, &state.beyond),
            None => Cursor::recovered(Sequence::ZERO, &[]),
        };
        let furthest = states.iter().flatten().map(|state| state.acknowledged).max();
        Self {
            tenant,
            outlet,
            tail: furthest.unwrap_or(Sequence::ZERO),
            cursors: Cursors::recovered(states.map(cursor)),
            ready: Default::default(),
            fresh: Default::default(),
            suspects: VecDeque::new(),
            ahead: VecDeque::new(),
            ahead_bytes: 0,
            meter: Meter { own: 0, shared },
            pieces: SmallVec::new(),
            spills: VecDeque::new(),
            flying: 0,
            blame: Blame::default(),
            verdicts: Verdicts::default(),
            rest_until: None,
            apart_until: None,
            apart_once: false,
            in_ring: false,
            listed_behind: false,
            reading: false,
            dirty: false,
            listed_overdue: false,
            max_age_ms: u64::MAX,
            age_limit_unix_ms: 0,
            oldest_unix_ms: None,
            moved: false,
            given_up: [None; 3],
            left: Default::default(),
            gauge,
            delivered_items: states.map(|state| state.map_or(0, |state| state.delivered_items)),
        }
    }

    /// Bytes of payload in memory, those in flight included.
    pub(crate) fn held_bytes(&self) -> usize {
        self.meter.own
    }

    /// Whether it holds so much that it need not read yet. What waits behind a gap does not count: the rest goes away by
    /// being sent, but that only goes when the gap is read.
    pub(crate) fn has_enough(&self, bytes: usize) -> bool {
        self.meter.own - self.ahead_bytes >= bytes
    }

    /// Whether a read from the log is to be started for it.
    pub(crate) fn wants_read(&self) -> bool {
        let arrived = self.ahead.front().map_or(self.tail, |first| first.previous);
        let certain = self.spills.front().map_or(self.tail, |(_, after)| *after);
        let missing = self.cursors.is_routed() && self.cursors.seen() < arrived.min(certain).min(self.tail);
        missing && !self.reading && self.cursors.len() < BOOKED_RECORDS_MAX && self.suspects.len() < SUSPECTS_MAX
    }

    /// Nothing is left to do: no record, no request, no read.
    pub(crate) fn is_idle(&self) -> bool {
        self.flying == 0 && !self.reading && self.spills.is_empty() && !self.has_unsent() && self.is_caught_up()
    }

    /// Whether anything is in memory to be sent.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.suspects.is_empty() || self.ready.iter().chain(&self.fresh).any(|queue| !queue.is_empty())
    }

    /// A record was committed. With `room`, its payload is kept until it is sent.
    pub(crate) fn offer(&mut self, arrival: &Committed, room: bool) {
        self.tail = self.tail.max(arrival.sequence);
        if !self.cursors.is_routed() {
            return;
        }
        self.gauge.queued_items.fetch_add(arrival.items, Ordering::Relaxed);
        if arrival.sequence <= self.cursors.seen() {
            return self.note_caught_up();
        }
        let routed = self.cursors.routes(arrival.signal);
        // Of a record that does not go here only the place in the chain is kept.
        let payload = arrival.payload.as_ref().map(|payload| if routed { payload.clone() } else { Bytes::new() });
        let chained = self.ahead.back().is_none_or(|last| last.sequence == arrival.previous);
        if !chained {
            self.forget_ahead();
        }
        if payload.is_some() && (room || !routed) && self.ahead.len() < BOOKED_RECORDS_MAX {
            let bytes = payload.as_ref().map_or(0, Bytes::len);
            self.meter.add(bytes);
            self.ahead_bytes += bytes;
            self.ahead.push_back(Committed { payload, ..*arrival });
            self.load_ahead();
        }
    }

    /// Loads what arrived ahead, as far as nothing is missing before it.
    pub(crate) fn load_ahead(&mut self) {
        while let Some(first) = self.ahead.front() {
            let (sequence, missed) = (first.sequence, first.previous > self.cursors.seen());
            let known = sequence <= self.cursors.seen();
            if !known && (missed || !self.may_load(sequence)) {
                break;
            }
            let Some(first) = self.ahead.pop_front() else { break };
            let payload = first.payload.unwrap_or_default();
            self.meter.sub(payload.len());
            self.ahead_bytes -= payload.len();
            if !known {
                let items = u32::try_from(first.items).unwrap_or(u32::MAX);
                self.load(sequence, (first.signal, items, first.received_unix_ms), payload);
            }
        }
        self.note_caught_up();
    }

    /// Takes what was read from the log after `after`.
    pub(crate) fn take_read(&mut self, after: Sequence, Read { records, damaged, through }: Read) {
        if self.cursors.seen() < after {
            // What it had loaded before was forgotten meanwhile: with this, that would be skipped.
            return;
        }
        let mut complete = true;
        for (record, is_damaged) in in_order(records, damaged) {
            if record.sequence <= self.cursors.seen() {
                continue;
            }
            complete = self.may_load(record.sequence);
            if !complete {
                break;
            }
            if is_damaged {
                self.pass_lost(&record, Loss::Damaged);
                continue;
            }
            self.load(record.sequence, (record.signal, record.items, record.received_unix_ms), record.payload);
        }
        if complete && self.may_load(through) {
            self.cursors.pass(through);
        }
        self.load_ahead();
    }

    fn may_load(&self, sequence: Sequence) -> bool {
        self.cursors.is_routed()
            && self.cursors.len() < BOOKED_RECORDS_MAX
            && self.spills.front().is_none_or(|(_, after)| sequence <= *after)
    }

    fn load(&mut self, sequence: Sequence, (signal, items, appended_unix_ms): (Signal, u32, u64), payload: Bytes) {
        match self.cursors.load(sequence, signal) {
            Met::New => {}
            Met::Again => return,
            Met::Done => {
                self.unqueue(u64::from(items));
                self.moved = true;
                return;
            }
        }
        self.meter.add(payload.len());
        let key = Key::Logged(sequence);
        self.ready[signal.index()].push_back(Record {
            key,
            signal,
            items,
            appended_unix_ms,
            payload,
            piece: false,
            refused: None,
            refusals: Refusals::default(),
        });
    }

    /// A batch that is in no log, or a dead letter.
    pub(crate) fn add_fresh(&mut self, record: Record) {
        self.meter.add(record.payload.len());
        self.insert(record);
    }

    /// Takes a batch that is not in flight out again; it goes to the log.
    pub(crate) fn remove_fresh(&mut self, key: Key, signal: Signal) {
        let queue = &mut self.fresh[signal.index()];
        if let Some(index) = queue.iter().position(|record| record.key == key)
            && let Some(record) = queue.remove(index)
        {
            self.meter.sub(record.payload.len());
        }
    }

    /// What stands first, for a request that begins with it.
    pub(crate) fn head(&mut self, now: Instant, accepted: u64) -> Head {
        if !self.has_unsent() {
            self.in_ring = false;
            return Head::Empty;
        }
        if self.rest_until.is_some_and(|until| now < until) {
            return Head::Pass;
        }
        self.suspect_due(accepted)
            .or_else(|| self.oldest())
            .map_or(Head::Pass, |record| Head::Bytes(record.payload.len() as u64))
    }

    /// What stands first, to be merged into a request of that signal with room for `bytes_max` more.
    pub(crate) fn head_to_merge(&mut self, now: Instant, signal: Option<Signal>, bytes_max: usize) -> Head {
        if !self.has_unsent() {
            self.in_ring = false;
            return Head::Empty;
        }
        if self.rest_until.is_some_and(|until| now < until) {
            return Head::Pass;
        }
        let record = match signal {
            Some(signal) => self.fresh[signal.index()].front().or(self.ready[signal.index()].front()),
            None => self.oldest(),
        };
        match record {
            Some(record) if !is_lone(record) && record.payload.len() <= bytes_max => {
                Head::Bytes(record.payload.len() as u64)
            }
            _ => Head::Pass,
        }
    }

    /// Takes what [`Lane::head`] showed.
    pub(crate) fn take(&mut self, accepted: u64) -> Option<Record> {
        if self.suspect_due(accepted).is_some() {
            return self.suspects.pop_front();
        }
        let (signal, fresh) = self.oldest().map(|record| (record.signal, !matches!(record.key, Key::Logged(_))))?;
        let queue = if fresh { &mut self.fresh } else { &mut self.ready };
        queue[signal.index()].pop_front()
    }

    /// Takes what [`Lane::head_to_merge`] showed.
    pub(crate) fn take_to_merge(&mut self, signal: Option<Signal>) -> Option<Record> {
        let signal = signal.or_else(|| self.oldest().map(|record| record.signal))?;
        self.fresh[signal.index()].pop_front().or_else(|| self.ready[signal.index()].pop_front())
    }

    fn suspect_due(&self, accepted: u64) -> Option<&Record> {
        let first = self.suspects.front()?;
        let evidence = first.refused.is_some_and(|mark| accepted > mark);
        (evidence || self.suspects.len() >= SUSPECTS_MAX || self.oldest().is_none()).then_some(first)
    }

    fn oldest(&self) -> Option<&Record> {
        let first = |queues: &'_ [VecDeque<Record>; 3]| {
            let signals =
                Signal::ALL.iter().filter_map(|signal| queues[signal.index()].front().map(|record| record.key));
            signals.min()
        };
        let (queues, key) = match first(&self.fresh) {
            Some(key) => (&self.fresh, key),
            None => (&self.ready, first(&self.ready)?),
        };
        queues.iter().filter_map(VecDeque::front).find(|record| record.key == key)
    }

    /// Sends nothing until then.
    pub(crate) fn rest(&mut self, until: Instant) {
        self.rest_until = self.rest_until.max(Some(until));
    }

    /// For a request that it must not share.
    pub(crate) fn pass(&mut self) -> Head {
        if self.has_unsent() {
            return Head::Pass;
        }
        self.in_ring = false;
        Head::Empty
    }

    /// Whether the cursor moved since it was asked the last time.
    pub(crate) fn moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    /// Puts back what was not delivered, in its old place.
    pub(crate) fn put_back(&mut self, record: Record) {
        match record.refused {
            _ if self.is_given_up(&record) => self.drop_if_given_up(&record),
            Some(_) => self.suspects.push_back(record),
            None => self.insert(record),
        }
    }

    fn insert(&mut self, record: Record) {
        let queues = if matches!(record.key, Key::Logged(_)) { &mut self.ready } else { &mut self.fresh };
        let queue = &mut queues[record.signal.index()];
        match queue.back() {
            Some(last) if last.key > record.key => {
                let index = queue.partition_point(|other| other.key < record.key);
                queue.insert(index, record);
            }
            _ => queue.push_back(record),
        }
    }

    /// Puts pieces in the place of a record (or of a piece of one).
    pub(crate) fn put_pieces(&mut self, record: &Record, pieces: Vec<(Bytes, u32)>) {
        match self.pieces.iter_mut().find(|(key, _)| *key == record.key) {
            Some((_, left)) => *left += pieces.len() - 1,
            None => self.pieces.push((record.key, pieces.len())),
        }
        self.meter.sub(record.payload.len());
        for (payload, items) in pieces {
            self.meter.add(payload.len());
            let piece = Record { items, payload, piece: true, refused: None, ..record.clone() };
            match self.is_given_up(&piece) {
                true => self.drop_if_given_up(&piece),
                false => self.insert(piece),
            }
        }
    }

    /// The record (or piece) was delivered.
    pub(crate) fn delivered(&mut self, record: &Record) {
        self.delivered_items[record.signal.index()] += u64::from(record.items);
        self.gauge.stats.delivered[record.signal.index()].add(u64::from(record.items));
        self.finish(record);
    }

    /// The record (or piece) is a durable dead letter.
    pub(crate) fn buried(&mut self, record: &Record) {
        self.gauge.stats.dead_letters[record.signal.index()].add(u64::from(record.items));
        self.finish(record);
    }

    fn finish(&mut self, record: &Record) {
        self.meter.sub(record.payload.len());
        self.moved = true;
        let last = !record.piece || self.was_last_piece(record.key);
        let Key::Logged(sequence) = record.key else { return };
        self.unqueue(u64::from(record.items));
        if last {
            self.cursors.done(sequence, record.signal);
        }
        self.note_caught_up();
    }

    /// A dead letter that was sent again is done with, whatever came of it: the books have it as a dead letter.
    pub(crate) fn drop_letter(&mut self, letter: &Record) {
        self.meter.sub(letter.payload.len());
    }

    fn was_last_piece(&mut self, key: Key) -> bool {
        let Some(index) = self.pieces.iter().position(|(of, _)| *of == key) else { return true };
        self.pieces[index].1 -= 1;
        let last = self.pieces[index].1 == 0;
        if last {
            self.pieces.swap_remove(index);
        }
        last
    }

    /// A batch that this destination has taken is being appended for the others: what comes after `tail` may be it.
    pub(crate) fn begin_spill(&mut self, ticket: u64) {
        self.spills.push_back((ticket, self.tail));
    }

    /// It is in the log there, or nowhere.
    pub(crate) fn end_spill(&mut self, ticket: u64, signal: Signal, sequence: Option<Sequence>) {
        self.spills.retain(|(other, _)| *other != ticket);
        if let Some(sequence) = sequence {
            self.cursors.done(sequence, signal);
        }
        self.load_ahead();
    }

    /// Forgets payloads that the log has, the newest first, until at most `keep` bytes of them are left.
    pub(crate) fn trim(&mut self, keep: usize) {
        self.forget_ahead();
        while self.meter.own > keep {
            let newest = (0..3).max_by_key(|index| self.ready[*index].back().map(|record| record.key)).unwrap_or(0);
            let Some(Record { key: Key::Logged(sequence), signal, piece: false, .. }) = self.ready[newest].back()
            else {
                return;
            };
            if !self.cursors.unload(*sequence, *signal) {
                return;
            }
            if let Some(record) = self.ready[newest].pop_back() {
                self.meter.sub(record.payload.len());
            }
        }
    }

    fn forget_ahead(&mut self) {
        while let Some(arrival) = self.ahead.pop_front() {
            let bytes = arrival.payload.map_or(0, |payload| payload.len());
            self.meter.sub(bytes);
            self.ahead_bytes -= bytes;
        }
    }

    /// Sent alone or with its own kind until `until`.
    pub(crate) fn keep_apart(&mut self, until: Instant) {
        self.apart_until = Some(until);
    }

    /// Sent apart until something of it is accepted.
    pub(crate) fn keep_apart_once(&mut self) {
        self.apart_once = true;
    }

    /// Something of it was accepted.
    pub(crate) fn accepted(&mut self, now: Instant) {
        self.blame.succeed();
        self.verdicts.push(true, now);
        self.apart_once = false;
        self.rest_until = None;
    }

    /// Whether it shares no request with other tenants now.
    pub(crate) fn is_apart(&self, now: Instant) -> bool {
        self.apart_once || self.apart_until.is_some_and(|until| now < until)
    }

    /// Everything up to here is done and never comes again, but what an earlier cursor repeats after a crash.
    pub(crate) fn acknowledged(&self) -> Sequence {
        self.cursors.acknowledged()
    }

    /// To be saved: of each signal that goes here.
    pub(crate) fn states(&self, destination: &DestinationName) -> impl Iterator<Item = CursorState> {
        Signal::ALL.into_iter().filter(|signal| self.cursors.routes(*signal)).map(|signal| CursorState {
            tenant: self.tenant,
            of: CursorOf::Delivery(destination.clone(), signal),
            acknowledged: self.cursors.at(signal).acknowledged(),
            beyond: self.cursors.at(signal).beyond(),
            delivered_items: self.delivered_items[signal.index()],
        })
    }

    fn unqueue(&self, items: u64) {
        let queued = self.gauge.queued_items.load(Ordering::Relaxed);
        self.gauge.queued_items.store(queued.saturating_sub(items), Ordering::Relaxed);
    }

    /// Counts of damaged or foreign records are estimates; with nothing left, the figure is exact again.
    pub(crate) fn note_caught_up(&self) {
        if self.cursors.acknowledged() >= self.tail {
            self.gauge.queued_items.store(0, Ordering::Relaxed);
        }
    }
}

/// Intact and damaged records as they follow one another in the log.
fn in_order(records: Vec<Stored>, damaged: Vec<Stored>) -> Vec<(Stored, bool)> {
    let intact = records.into_iter().map(|record| (record, false));
    let mut all: Vec<_> = intact.chain(damaged.into_iter().map(|record| (record, true))).collect();
    all.sort_by_key(|(record, _)| record.sequence);
    all
}

/// Whether a record goes in a request of its own.
pub(crate) fn is_lone(record: &Record) -> bool {
    let is_letter = matches!(record.key, Key::Letter(_));
    record.payload.len() >= LONE_BYTES_MIN || record.piece || record.refused.is_some() || is_letter
}

#[cfg(test)]
mod tests;
