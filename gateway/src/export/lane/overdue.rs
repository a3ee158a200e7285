//! What of a lane is too old to be delivered. The log's clock is passed in.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Lane, Met, in_order};
use crate::base::Sequence;
use crate::base::stats::Loss;
use crate::queue::{Overdue, Stored};

impl Lane {
    /// Its tenant's retention.
    pub(crate) fn set_max_age(&mut self, max_age: Duration) {
        self.max_age_ms = u64::try_from(max_age.as_millis()).unwrap_or(u64::MAX);
    }

    /// Whether nothing is left in the log for it.
    pub(crate) fn is_caught_up(&self) -> bool {
        !self.cursors.is_routed() || self.cursors.acknowledged() >= self.tail
    }

    /// What was appended before this is too old.
    pub(crate) fn age_limit(&self) -> u64 {
        self.age_limit_unix_ms
    }

    /// Passes what is in memory and too old now. True if anything was.
    pub(crate) fn expire(&mut self, now_unix_ms: u64) -> bool {
        self.age_limit_unix_ms = now_unix_ms.saturating_sub(self.max_age_ms);
        let limit = self.age_limit_unix_ms;
        let mut passed = Vec::new();
        for queue in &mut self.ready {
            while queue.front().is_some_and(|record| record.appended_unix_ms < limit) {
                passed.extend(queue.pop_front());
            }
        }
        let (old, young): (VecDeque<_>, _) =
            std::mem::take(&mut self.suspects).into_iter().partition(|one| one.appended_unix_ms < limit);
        self.suspects = young;
        passed.extend(old);
        for record in &passed {
            self.lose((record.signal.index(), Loss::Expired), record.items);
            self.finish(record);
        }
        let loaded = self.ready.iter().filter_map(|queue| queue.front()).chain(&self.suspects);
        if let Some(oldest) = loaded.map(|record| record.appended_unix_ms).min() {
            self.note_oldest(Some(oldest));
        }
        !passed.is_empty()
    }

    /// Whether the first records in the log are to be looked at: none is in memory, and the oldest may be too old.
    pub(crate) fn is_overdue_look_due(&self) -> bool {
        let loaded = self.suspects.iter().chain(self.ready.iter().flatten()).next().is_some();
        let due = self.oldest_unix_ms.is_none_or(|oldest| oldest < self.age_limit_unix_ms);
        !self.is_caught_up()
            && self.cursors.seen() < self.tail
            && self.spills.is_empty()
            && !loaded
            && !self.reading
            && due
    }

    /// Passes records that were found too old in the log.
    pub(crate) fn take_overdue(&mut self, after: Sequence, overdue: Overdue) {
        if self.cursors.seen() != after {
            return;
        }
        for (record, is_damaged) in in_order(overdue.records, overdue.damaged) {
            if !self.may_load(record.sequence) {
                return;
            }
            self.pass_lost(&record, if is_damaged { Loss::Damaged } else { Loss::Expired });
        }
        if self.may_load(overdue.through) {
            self.cursors.pass(overdue.through);
        }
        self.note_oldest(overdue.next_unix_ms);
        self.load_ahead();
    }

    /// When the oldest record that waits was appended, as far as is known.
    pub(crate) fn note_oldest(&mut self, oldest: Option<u64>) {
        self.oldest_unix_ms = oldest;
        self.gauge.oldest_unix_ms.store(oldest.unwrap_or(0), Ordering::Relaxed);
    }

    /// Meets a record that is not to be delivered any more.
    pub(super) fn pass_lost(&mut self, record: &Stored, why: Loss) {
        match self.cursors.load(record.sequence, record.signal) {
            Met::New => {
                self.cursors.done(record.sequence, record.signal);
                self.lose((record.signal.index(), why), record.items);
            }
            Met::Done => {}
            Met::Again => return,
        }
        self.moved = true;
        self.unqueue(u64::from(record.items));
    }

    fn lose(&self, (signal, why): (usize, Loss), items: u32) {
        self.gauge.stats.lost[why as usize][signal].add(u64::from(items));
    }
}
