//! What the log has given up of a lane's backlog: it passed the cursor there, and here it is dropped and counted.
//!
//! Only the lane knows what was delivered since its last checkpoint, so the counting is done here. What is in flight is left to
//! its answer: delivered, or, should it come back, lost then.

use std::collections::VecDeque;

use super::{Key, Lane, Record};
use crate::base::handoff::GivenUp;
use crate::base::stats::Loss;

impl Lane {
    /// Drops everything of a signal up to a record.
    pub(crate) fn give_up(&mut self, given_up: &GivenUp) {
        let (signal, through) = (given_up.signal, given_up.through);
        if !self.cursors.routes(signal) {
            return;
        }
        self.given_up[signal.index()] = self.given_up[signal.index()].max(through);
        let cursor = self.cursors.at(signal);
        let unmet = given_up.records.iter().filter(|(sequence, _)| !cursor.has_met(*sequence));
        let items: u64 = unmet.map(|(_, items)| u64::from(*items)).sum();
        self.gauge.stats.lost[Loss::DroppedOldest as usize][signal.index()].add(items);
        self.unqueue(items);

        let ready = std::mem::take(&mut self.ready[signal.index()]);
        let (gone, kept): (VecDeque<_>, VecDeque<_>) = ready.into_iter().partition(|record| self.is_given_up(record));
        self.ready[signal.index()] = kept;
        let suspects = std::mem::take(&mut self.suspects);
        let (suspected, kept): (VecDeque<_>, VecDeque<_>) =
            suspects.into_iter().partition(|record| self.is_given_up(record));
        self.suspects = kept;
        gone.iter().chain(&suspected).for_each(|record| self.drop_given_up(record));

        self.cursors.pass_of(signal, through);
        self.moved = true;
        self.load_ahead();
    }

    /// Whether the log has given the record up.
    pub(super) fn is_given_up(&self, record: &Record) -> bool {
        matches!(record.key, Key::Logged(sequence) if sequence <= self.given_up[record.signal.index()])
    }

    /// Counts a record (or piece) that is in memory, and is done with it.
    pub(super) fn drop_given_up(&mut self, record: &Record) {
        self.gauge.stats.lost[Loss::DroppedOldest as usize][record.signal.index()].add(u64::from(record.items));
        self.finish(record);
    }
}
