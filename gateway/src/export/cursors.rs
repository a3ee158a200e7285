//! The cursors of one tenant at one destination: one for each signal, since each has its own routes.
//!
//! Pure. The tenant's records are met in the log's order, whatever their signal: a cursor passes the others' records as soon
//! as it meets them, so a signal of which nothing comes keeps nothing in the log. A signal that does not go here has no part
//! in it: its cursor stays where it is, for the route may return.

use crate::base::{Sequence, Signal};

use super::cursor::Cursor;

/// By `Signal::index`.
#[derive(Debug)]
pub(crate) struct Cursors {
    of: [Cursor; 3],
    routed: [bool; 3],
}

/// What is to become of a record that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Met {
    /// To be sent.
    New,
    /// Not for this destination, or done before.
    Done,
    /// Met before: in memory or in flight, or done since.
    Again,
}

impl Cursors {
    /// As they were saved. Nothing is routed yet.
    pub(crate) fn recovered(of: [Cursor; 3]) -> Self {
        Self { of, routed: [false; 3] }
    }

    /// Says which signals go here.
    pub(crate) fn route(&mut self, routed: [bool; 3]) {
        self.routed = routed;
    }

    /// Whether a signal goes here.
    pub(crate) fn routes(&self, signal: Signal) -> bool {
        self.routed[signal.index()]
    }

    /// Whether anything goes here.
    pub(crate) fn is_routed(&self) -> bool {
        self.routed.contains(&true)
    }

    /// The cursor of one signal.
    pub(crate) fn at(&self, signal: Signal) -> &Cursor {
        &self.of[signal.index()]
    }

    fn in_use(&self) -> impl Iterator<Item = &Cursor> {
        self.of.iter().zip(self.routed).filter_map(|(cursor, routed)| routed.then_some(cursor))
    }

    /// Everything up to here is done. Means nothing without a route.
    pub(crate) fn acknowledged(&self) -> Sequence {
        self.in_use().map(Cursor::acknowledged).min().unwrap_or(Sequence::ZERO)
    }

    /// Everything up to here was met; the next record to meet comes after it.
    pub(crate) fn seen(&self) -> Sequence {
        self.in_use().map(Cursor::seen).min().unwrap_or(Sequence::ZERO)
    }

    /// Records met and kept in the books.
    pub(crate) fn len(&self) -> usize {
        self.of.iter().map(Cursor::len).sum()
    }

    /// Meets the tenant's next record. After a signal gave its memory back, or was routed here anew, the others meet theirs
    /// again.
    pub(crate) fn load(&mut self, sequence: Sequence, signal: Signal) -> Met {
        let mut met = Met::Done;
        for (index, cursor) in self.of.iter_mut().enumerate().filter(|(index, _)| self.routed[*index]) {
            let again = sequence <= cursor.seen();
            match index == signal.index() {
                true if again => met = Met::Again,
                true if cursor.load(sequence) => met = Met::New,
                true => {}
                false if again => {}
                false => cursor.pass(sequence),
            }
        }
        met
    }

    /// Nothing up to `through` is left to meet (unread damage, or the end of a read).
    pub(crate) fn pass(&mut self, through: Sequence) {
        let routed = self.routed;
        self.of.iter_mut().zip(routed).filter(|(_, routed)| *routed).for_each(|(cursor, _)| cursor.pass(through));
    }

    /// The same, of one signal.
    pub(crate) fn pass_of(&mut self, signal: Signal, through: Sequence) {
        self.of[signal.index()].pass(through);
    }

    /// The record is done.
    pub(crate) fn done(&mut self, sequence: Sequence, signal: Signal) {
        self.of[signal.index()].done(sequence);
    }

    /// Takes back a record that was loaded last of its signal, so that it is loaded again later.
    pub(crate) fn unload(&mut self, sequence: Sequence, signal: Signal) -> bool {
        self.of[signal.index()].unload(sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cursors(acknowledged: [u64; 3]) -> Cursors {
        let mut cursors = Cursors::recovered(acknowledged.map(|at| Cursor::recovered(Sequence(at), &[])));
        cursors.route([true; 3]);
        cursors
    }

    fn acknowledged(cursors: &Cursors) -> [u64; 3] {
        Signal::ALL.map(|signal| cursors.at(signal).acknowledged().0)
    }

    /// Scenario: records of two signals are met in turn; one of each is done, out of order.
    /// Guarantees: each cursor stays before its own first gap, and passes what is not its own.
    #[test]
    fn each_signal_stays_before_its_own_gap() {
        let mut cursors = cursors([0; 3]);
        for number in 1..=6 {
            let signal = if number % 2 == 0 { Signal::Traces } else { Signal::Logs };
            assert_eq!(cursors.load(Sequence(number), signal), Met::New);
        }
        cursors.done(Sequence(2), Signal::Traces);
        cursors.done(Sequence(5), Signal::Logs);
        assert_eq!(acknowledged(&cursors), [2, 6, 0]);
        assert_eq!(cursors.at(Signal::Logs).beyond(), [Sequence(5)]);
        cursors.done(Sequence(1), Signal::Logs);
        cursors.done(Sequence(3), Signal::Logs);
        assert_eq!((acknowledged(&cursors), cursors.acknowledged()), ([2, 6, 6], Sequence(2)));
    }

    /// Scenario: a destination that is far with traces gets the logs as well, of which nothing was delivered.
    /// Guarantees: what is read again for the logs' sake is not sent again as far as it is the traces'.
    #[test]
    fn a_signal_that_comes_later_finds_its_backlog_and_repeats_no_other() {
        let mut cursors = cursors([10, 10, 0]);
        cursors.route([true, true, false]);
        assert_eq!(cursors.seen(), Sequence(10));
        assert_eq!(cursors.load(Sequence(11), Signal::Logs), Met::Done);
        assert_eq!(cursors.load(Sequence(12), Signal::Traces), Met::New);
        cursors.route([true; 3]);
        assert_eq!(cursors.seen(), Sequence::ZERO);
        let met = [(3, Signal::Traces), (4, Signal::Logs), (11, Signal::Logs), (12, Signal::Traces)]
            .map(|(number, signal)| cursors.load(Sequence(number), signal));
        assert_eq!(met, [Met::Again, Met::New, Met::New, Met::Again]);
        assert_eq!((cursors.seen(), cursors.acknowledged()), (Sequence(12), Sequence(3)));
    }

    /// Scenario: the logs give their memory back, the traces do not.
    /// Guarantees: only the logs are loaded again.
    #[test]
    fn a_signal_gives_back_its_own_memory_alone() {
        let mut cursors = cursors([0; 3]);
        for (number, signal) in [(1, Signal::Logs), (2, Signal::Logs), (3, Signal::Traces)] {
            cursors.load(Sequence(number), signal);
        }
        assert!(cursors.unload(Sequence(2), Signal::Logs));
        assert_eq!(cursors.seen(), Sequence(1));
        assert_eq!(cursors.load(Sequence(2), Signal::Logs), Met::New);
        assert_eq!(cursors.load(Sequence(3), Signal::Traces), Met::Again);
        assert_eq!((cursors.seen(), cursors.acknowledged()), (Sequence(3), Sequence::ZERO));
    }
}
