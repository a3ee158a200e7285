//! What is given up of a lane's backlog: the log passed the cursor, and here it is dropped and counted.
//!
//! For newer data, or because a signal does not go to the destination any more. Only the lane knows what was delivered since its
//! last checkpoint, so the counting is done here. What is in flight is left to its answer: delivered, or, should it come
//! back, lost then.
//!
//! A signal that goes to another destination instead takes its backlog along: that it left is no loss. Only the log knows for whom
//! else a record waits, only the lane what it has dropped, and either may speak first: see [`Left`].

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::Ordering;

use super::{Key, Lane, Record};
use crate::base::handoff::GivenUp;
use crate::base::stats::Loss;
use crate::base::{DestinationName, Sequence, Signal};
use crate::export::Route;

/// What a lane had met of a signal that does not go there any more: lost only if the log says that nobody else waits for it.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Up to where the log has spoken.
    through: Sequence,
    /// Records up to there that nobody else gets. Bounded by what a lane may have met and not done.
    nobodys: HashSet<Sequence>,
    /// Dropped beyond that: position and items. Bounded likewise.
    undecided: Vec<(Sequence, u32)>,
}

impl Left {
    /// Whether a record (or piece) that is dropped is lost; `None`: the log has not spoken yet, and it is noted.
    fn drop(&mut self, sequence: Sequence, items: u32) -> Option<bool> {
        if sequence <= self.through {
            return Some(self.nobodys.contains(&sequence));
        }
        self.undecided.push((sequence, items));
        None
    }

    /// The log has spoken; `records` are those that nobody else gets and the lane has met. Returns the items lost of what was dropped
    /// before.
    fn decide(&mut self, through: Sequence, records: impl Iterator<Item = Sequence>, done: Sequence) -> u64 {
        self.nobodys.retain(|sequence| *sequence > done);
        self.nobodys.extend(records);
        self.through = self.through.max(through);
        let (nobodys, until) = (&self.nobodys, self.through);
        let mut lost = 0;
        self.undecided.retain(|(sequence, items)| {
            if *sequence <= until && nobodys.contains(sequence) {
                lost += u64::from(*items);
            }
            *sequence > until
        });
        lost
    }
}

impl Lane {
    /// Drops everything of a signal up to a record. One that does not go here any more was told of by its route, before or after.
    pub(crate) fn give_up(&mut self, given_up: &GivenUp) {
        let (signal, why) = (given_up.signal, given_up.why);
        if why == Loss::DroppedOldest && !self.cursors.routes(signal) {
            return;
        }
        let cursor = self.cursors.at(signal);
        let unmet = given_up.records.iter().filter(|(sequence, _)| !cursor.has_met(*sequence));
        let items = unmet.map(|(_, items)| u64::from(*items)).sum::<u64>() + given_up.further_items;
        self.gauge.stats.lost[why as usize][signal.index()].add(items);
        self.unqueue(items);
        if why == Loss::DestinationRemoved {
            let (cursor, left) = (self.cursors.at(signal), &mut self.left[signal.index()]);
            let met =
                given_up.records.iter().map(|(sequence, _)| *sequence).filter(|sequence| cursor.has_met(*sequence));
            let lost = left.decide(given_up.through, met, cursor.acknowledged());
            self.gauge.stats.lost[why as usize][signal.index()].add(lost);
        }
        self.drop_through(signal, (given_up.through, why));
        self.load_ahead();
    }

    /// Books what a start found of signals that go here only from now on.
    pub(crate) fn note_recovered(&self, route: &Route, name: &DestinationName, begin: [Sequence; 3]) {
        let is_new =
            |signal: &Signal| !self.cursors.routes(*signal) && route.destinations[signal.index()].contains(name);
        for signal in Signal::ALL.into_iter().filter(is_new) {
            let items = route.pending_items[signal.index()];
            match begin[signal.index()] < route.last {
                true => drop(self.gauge.queued_items.fetch_add(items, Ordering::Relaxed)),
                false => self.gauge.stats.begun_after[signal.index()].add(items),
            }
        }
    }

    /// Says which signals go here from now on, and for those that did not before, up to where they are done. What is in memory of
    /// one that does not any more is dropped.
    pub(crate) fn route(&mut self, routed: [bool; 3], begin: [Sequence; 3]) {
        let before = Signal::ALL.map(|signal| self.cursors.routes(signal));
        for signal in Signal::ALL {
            match (before[signal.index()], routed[signal.index()]) {
                (true, false) => self.drop_through(signal, (Sequence(u64::MAX), Loss::DestinationRemoved)),
                (false, true) => {
                    self.given_up[signal.index()] = None;
                    self.cursors.pass_of(signal, begin[signal.index()]);
                }
                _ => {}
            }
        }
        self.cursors.route(routed);
        if !self.cursors.is_routed() {
            self.forget_ahead();
            self.gauge.queued_items.store(0, Ordering::Relaxed);
        }
    }

    fn drop_through(&mut self, signal: Signal, (through, why): (Sequence, Loss)) {
        let before = &mut self.given_up[signal.index()];
        // What a route has dropped stays so.
        *before = Some(before.map_or((through, why), |known| if known.0 > through { known } else { (through, why) }));
        let ready = std::mem::take(&mut self.ready[signal.index()]);
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            ready.into_iter().partition(|record| self.why_given_up(record).is_some());
        self.ready[signal.index()] = kept;
        let suspects = std::mem::take(&mut self.suspects);
        let (suspected, kept): (VecDeque<_>, VecDeque<_>) =
            suspects.into_iter().partition(|record| self.why_given_up(record).is_some());
        self.suspects = kept;
        gone.iter().chain(&suspected).for_each(|record| self.drop_if_given_up(record));
        if through < Sequence(u64::MAX) {
            self.cursors.pass_of(signal, through);
        }
        self.moved = true;
    }

    fn why_given_up(&self, record: &Record) -> Option<Loss> {
        let (through, why) = self.given_up[record.signal.index()]?;
        matches!(record.key, Key::Logged(sequence) if sequence <= through).then_some(why)
    }

    /// Whether the record is not to be sent any more.
    pub(super) fn is_given_up(&self, record: &Record) -> bool {
        self.why_given_up(record).is_some()
    }

    /// Counts a record (or piece) that is in memory, and is done with it.
    pub(super) fn drop_if_given_up(&mut self, record: &Record) {
        let Some(why) = self.why_given_up(record) else { return };
        let is_lost = match record.key {
            Key::Logged(sequence) if why == Loss::DestinationRemoved => {
                self.left[record.signal.index()].drop(sequence, record.items).unwrap_or_default()
            }
            _ => true,
        };
        if is_lost {
            self.gauge.stats.lost[why as usize][record.signal.index()].add(u64::from(record.items));
        }
        self.finish(record);
    }
}
