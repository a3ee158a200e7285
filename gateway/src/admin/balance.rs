//! The books: what entered a tenant's way to a destination, and where it is now. Pure.
//!
//! ```text
//! accepted + recovered = delivered + queued + dead letters + lost   (rejected is among delivered: the cursor has passed)
//! ```
//!
//! In items, since the gateway's start. Figures are read one after the other while data flows, so that a small difference
//! that comes and goes is what is between two counters; one that stays is a fault.

use serde::Serialize;

use super::view::Items;
use crate::base::{DestinationName, Signal};

/// One line of the books.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Balance {
    /// Accepted and recovered.
    pub(super) entered: u64,
    pub(super) delivered: u64,
    pub(super) queued: u64,
    pub(super) dead_letters: u64,
    /// Given up, for whatever reason.
    pub(super) lost: u64,
    /// What entered and is nowhere; negative for what is somewhere and never entered.
    pub(super) difference: i64,
}

impl Balance {
    pub(super) fn of(entered: u64, delivered: u64, queued: u64, (dead_letters, lost): (u64, u64)) -> Self {
        let known = [delivered, queued, dead_letters, lost].map(i128::from).iter().sum::<i128>();
        let difference = i128::from(entered) - known;
        let bounded = difference.clamp(i128::from(i64::MIN), i128::from(i64::MAX));
        let difference = i64::try_from(bounded).unwrap_or_default();
        Self { entered, delivered, queued, dead_letters, lost, difference }
    }
}

/// Items of each signal, by its index; `None`: it is not routed to `destination`.
pub(super) fn entered(
    destination: &DestinationName,
    routes: &[Vec<DestinationName>; 3],
    accepted: [u64; 3],
    recovered: Items,
) -> [Option<u64>; 3] {
    let recovered = recovered.by_signal();
    Signal::ALL.map(Signal::index).map(|signal| {
        let is_routed = routes[signal].contains(destination);
        is_routed.then(|| accepted[signal].saturating_add(recovered[signal]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: books that close, miss something, and have too much; and figures at their limits.
    /// Guarantees: the difference says which and how much, without overflow.
    #[test]
    fn the_difference_is_what_is_nowhere() {
        assert_eq!(Balance::of(10, 4, 4, (1, 1)).difference, 0);
        assert_eq!(Balance::of(10, 5, 4, (0, 0)).difference, 1);
        assert_eq!(Balance::of(10, 11, 0, (0, 0)).difference, -1);
        assert_eq!(Balance::of(u64::MAX, 0, 0, (0, 0)).difference, i64::MAX);
        assert_eq!(Balance::of(0, u64::MAX, u64::MAX, (u64::MAX, u64::MAX)).difference, i64::MIN);
    }
}
