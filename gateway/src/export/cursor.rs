//! How far one destination has come with one signal of one tenant, in memory.
//!
//! Pure. Answers come out of order, so it keeps what is loaded and not yet done, and what is done beyond the first gap.
//!
//! ```text
//! acknowledged          seen                      the tenant's last record
//!      |  slots (done or not)  |   later (done, to be met again)   |
//! ```
//!
//! Never passes a record that was not loaded, so a record that the log still has is never skipped.

use std::collections::{BTreeSet, VecDeque};

use crate::base::Sequence;

/// See the module's picture.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    acknowledged: Sequence,
    seen: Sequence,
    slots: VecDeque<(Sequence, bool)>,
    later: BTreeSet<Sequence>,
}

impl Cursor {
    /// As it was saved. Everything after `acknowledged` is to be loaded again.
    pub(crate) fn recovered(acknowledged: Sequence, beyond: &[Sequence]) -> Self {
        let later = beyond.iter().copied().filter(|sequence| *sequence > acknowledged).collect();
        Self { acknowledged, seen: acknowledged, slots: VecDeque::new(), later }
    }

    /// Everything up to here is done.
    pub(crate) fn acknowledged(&self) -> Sequence {
        self.acknowledged
    }

    /// Everything up to here is loaded or done; the next record to load comes after it.
    pub(crate) fn seen(&self) -> Sequence {
        self.seen
    }

    /// Whether the record is loaded or done already.
    pub(crate) fn has_met(&self, sequence: Sequence) -> bool {
        sequence <= self.seen || self.later.contains(&sequence)
    }

    /// Records loaded and kept in the books: what bounds [`Cursor::beyond`].
    pub(crate) fn len(&self) -> usize {
        self.slots.len() + self.later.len()
    }

    /// Meets the tenant's next record. False if it is done already and must not be sent.
    pub(crate) fn load(&mut self, sequence: Sequence) -> bool {
        debug_assert!(sequence > self.seen, "records are loaded in order");
        let done = self.later.remove(&sequence);
        self.slots.push_back((sequence, done));
        self.seen = sequence;
        self.advance();
        !done
    }

    /// Nothing up to `through` is left to load (unread damage, or the end of a read).
    pub(crate) fn pass(&mut self, through: Sequence) {
        self.seen = self.seen.max(through);
        while self.later.first().is_some_and(|first| *first <= self.seen) {
            self.later.pop_first();
        }
        self.advance();
    }

    /// The record is done. One that is not loaded is remembered until it is met.
    pub(crate) fn done(&mut self, sequence: Sequence) {
        match self.slots.binary_search_by_key(&sequence, |slot| slot.0) {
            Ok(index) => self.slots[index].1 = true,
            Err(_) if sequence > self.seen => drop(self.later.insert(sequence)),
            Err(_) => {}
        }
        self.advance();
    }

    /// Takes back the last record loaded if it is `sequence`, so that it is loaded again later.
    ///
    /// Done records behind it are only remembered.
    pub(crate) fn unload(&mut self, sequence: Sequence) -> bool {
        let Ok(index) = self.slots.binary_search_by_key(&sequence, |slot| slot.0) else { return false };
        if self.slots[index].1 || self.slots.iter().skip(index + 1).any(|slot| !slot.1) {
            return false;
        }
        self.later.extend(self.slots.drain(index..).skip(1).map(|slot| slot.0));
        self.seen = self.slots.back().map_or(self.acknowledged, |slot| slot.0);
        true
    }

    /// Records done after the first that is not, in order.
    pub(crate) fn beyond(&self) -> Vec<Sequence> {
        self.slots.iter().filter(|slot| slot.1).map(|slot| slot.0).chain(self.later.iter().copied()).collect()
    }

    fn advance(&mut self) {
        while let Some((sequence, true)) = self.slots.front().copied() {
            self.acknowledged = sequence;
            self.slots.pop_front();
        }
        if self.slots.is_empty() {
            self.acknowledged = self.acknowledged.max(self.seen);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sequences(numbers: &[u64]) -> Vec<Sequence> {
        numbers.iter().copied().map(Sequence).collect()
    }

    /// Scenario: answers come in the wrong order.
    /// Guarantees: the cursor stays before the first record without an answer, and tells which ones after it are done.
    #[test]
    fn it_stays_before_the_first_gap() {
        let mut cursor = Cursor::recovered(Sequence(10), &[]);
        for sequence in [11, 15, 16, 20] {
            assert!(cursor.load(Sequence(sequence)));
        }
        cursor.done(Sequence(16));
        cursor.done(Sequence(15));
        assert_eq!((cursor.acknowledged(), cursor.beyond()), (Sequence(10), sequences(&[15, 16])));
        cursor.done(Sequence(11));
        assert_eq!((cursor.acknowledged(), cursor.beyond()), (Sequence(16), vec![]));
    }

    /// Scenario: a restart with records done beyond the gap.
    /// Guarantees: they are recognised when they are read again, and not sent twice.
    #[test]
    fn what_was_done_beyond_is_recognised_after_a_restart() {
        let mut cursor = Cursor::recovered(Sequence(10), &sequences(&[12, 13]));
        let sent: Vec<_> = (11..=14).map(Sequence).filter(|sequence| cursor.load(*sequence)).collect();
        assert_eq!(sent, sequences(&[11, 14]));
        cursor.done(Sequence(11));
        assert_eq!(cursor.acknowledged(), Sequence(13));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Load,
        Done(prop::sample::Index),
        Unload,
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => Just(Step::Load),
            3 => any::<prop::sample::Index>().prop_map(Step::Done),
            1 => Just(Step::Unload),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        /// Scenario: any interleaving of loading, finishing out of order, dropping memory, and restarting from what was
        /// saved.
        /// Guarantees: nothing is acknowledged that is not done, nothing is sent after it was done, and acknowledged and
        /// beyond together say exactly what is done.
        #[test]
        fn it_never_passes_what_is_not_done(steps in prop::collection::vec(step(), 1..200)) {
            let log: Vec<u64> = (1..=300).map(|n| n * 3).collect();
            let mut cursor = Cursor::recovered(Sequence::ZERO, &[]);
            let (mut done, mut open) = (BTreeSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Load => {
                        let next = log.iter().copied().map(Sequence).find(|s| *s > cursor.seen());
                        if let Some(next) = next {
                            let fresh = cursor.load(next);
                            prop_assert_eq!(fresh, !done.contains(&next));
                            if fresh { open.insert(next); }
                        }
                    }
                    Step::Done(index) if !open.is_empty() => {
                        let sequence = *index.get(&open.iter().copied().collect::<Vec<_>>());
                        open.remove(&sequence);
                        done.insert(sequence);
                        cursor.done(sequence);
                    }
                    Step::Unload => {
                        if let Some(last) = open.last().copied() {
                            prop_assert!(cursor.unload(last));
                            open.remove(&last);
                        }
                    }
                    Step::Restart => {
                        cursor = Cursor::recovered(cursor.acknowledged(), &cursor.beyond());
                        open.clear();
                    }
                    Step::Done(_) => {}
                }
                let below = log.iter().copied().map(Sequence).filter(|s| *s <= cursor.acknowledged());
                let said: BTreeSet<_> = below.chain(cursor.beyond()).collect();
                prop_assert_eq!(&said, &done);
            }
        }
    }
}
