//! What a tenant's undelivered records take of the disk, and how much it may.
//!
//! Pure. Owns one tenant's ladder: bytes by the last record of each rung, so that what a cursor passes is given back without an
//! entry per record. A rung is given back when its last record is passed; so a tenant that has delivered everything has nothing,
//! and one that lags is charged for at most a rung too much.
//!
//! ```text
//! rung       last sequence | bytes          appended to while it is short, given back from the front
//! guarantee  nobody else may use it up: a log that borrows leaves the unused guarantees of all others free
//! ceiling    never above this; in between is borrowed
//! ```

use std::collections::VecDeque;

use crate::base::Sequence;
use crate::base::ledger::MemoryLimit;

/// The longest rung; a small ceiling has shorter ones.
const RUNG_BYTES_MAX: u64 = 256 * 1024;
/// Rungs that a ceiling has at least.
const RUNGS_MIN: u64 = 16;

/// One tenant's account.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    rungs: VecDeque<(Sequence, u64)>,
    used: u64,
}

/// What an append would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    /// Its own.
    Guaranteed,
    /// From what nobody is promised.
    Borrowed,
    /// More than it may ever have at once.
    Over,
}

impl Budget {
    /// Bytes that are not given back yet.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// What so many more bytes would be, of a guarantee that may have shrunk.
    pub(crate) fn share(&self, bytes: u64, guarantee: u64, ceiling: u64) -> Share {
        match self.used.saturating_add(bytes) {
            total if total <= guarantee.min(ceiling) => Share::Guaranteed,
            total if total <= ceiling => Share::Borrowed,
            _ => Share::Over,
        }
    }

    /// A record was appended.
    pub(crate) fn charge(&mut self, sequence: Sequence, bytes: u64, limit: MemoryLimit) {
        self.used += bytes;
        let longest = RUNG_BYTES_MAX.min(limit.ceiling / RUNGS_MIN);
        match self.rungs.back_mut().filter(|rung| rung.1 + bytes <= longest) {
            Some(rung) => *rung = (sequence, rung.1 + bytes),
            None => self.rungs.push_back((sequence, bytes)),
        }
    }

    /// Whether there is anything that it would give back if everything up to here was done.
    pub(crate) fn gives_back(&self, through: Sequence) -> bool {
        self.rungs.front().is_some_and(|rung| rung.0 <= through)
    }

    /// Everything up to here is done.
    pub(crate) fn give_back(&mut self, through: Sequence) {
        while let Some((_, bytes)) = self.rungs.front().filter(|rung| rung.0 <= through) {
            self.used -= bytes;
            self.rungs.pop_front();
        }
    }

    /// The record up to which everything is to go for so many bytes to be free: the end of a rung.
    pub(crate) fn frees(&self, bytes: u64) -> Option<Sequence> {
        let mut freed = 0;
        let enough = |rung: &&(Sequence, u64)| {
            freed += rung.1;
            freed >= bytes
        };
        self.rungs.iter().find(enough).map(|rung| rung.0)
    }

    /// What of its guarantee is not in use.
    pub(crate) fn unused(&self, limit: MemoryLimit) -> u64 {
        limit.guarantee.saturating_sub(self.used)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: MemoryLimit = MemoryLimit { guarantee: 1_000, ceiling: 16_000 };

    /// Scenario: records of 100 bytes come and are passed, one by one and all at once.
    /// Guarantees: what is charged is never below what is undelivered, at most a rung above it, and nothing once all is passed.
    #[test]
    fn what_is_passed_is_given_back() {
        let mut budget = Budget::default();
        for number in 1..=500 {
            budget.charge(Sequence(number), 100, LIMIT);
            let passed = Sequence(number / 2);
            let (before, gives_back) = (budget.used(), budget.gives_back(passed));
            budget.give_back(passed);
            assert_eq!(gives_back, budget.used() < before, "{number}");
            let undelivered = (number - passed.0) * 100;
            assert!((undelivered..undelivered + 1_000).contains(&budget.used()), "{number}");
        }
        budget.give_back(Sequence(500));
        assert_eq!(budget.used(), 0);
    }

    /// Scenario: appends up to the guarantee, up to the ceiling, and over it; a guarantee above the ceiling.
    /// Guarantees: each is what it is, to the byte.
    #[test]
    fn a_share_is_guaranteed_borrowed_or_over() {
        let mut budget = Budget::default();
        budget.charge(Sequence(1), 600, LIMIT);
        let share = |bytes| budget.share(bytes, LIMIT.guarantee, LIMIT.ceiling);
        assert_eq!(
            [share(400), share(401), share(15_400), share(15_401)],
            [Share::Guaranteed, Share::Borrowed, Share::Borrowed, Share::Over]
        );
        assert_eq!(budget.share(1, u64::MAX, 600), Share::Over);
        assert_eq!(budget.unused(LIMIT), 400);
    }
}
