//! A set of ids, kept as ranges: ids are given out in sequence, so a million of them are a handful of ranges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The set. Serialised as a list of `[first, last]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<(u64, u64)>", into = "Vec<(u64, u64)>")]
pub struct Ranges {
    /// First to last, both included; no two touch.
    ranges: BTreeMap<u64, u64>,
}

impl Ranges {
    /// Adds an id. False: it was there.
    pub fn insert(&mut self, id: u64) -> bool {
        if self.contains(id) {
            return false;
        }
        let mut last = id;
        if let Some(after) = id.checked_add(1).and_then(|next| self.ranges.remove(&next)) {
            last = after;
        }
        let before = self.ranges.range(..id).next_back().filter(|(_, end)| end.checked_add(1) == Some(id));
        let first = before.map_or(id, |(first, _)| *first);
        self.ranges.insert(first, last);
        true
    }

    /// Whether an id is there.
    pub fn contains(&self, id: u64) -> bool {
        self.ranges.range(..=id).next_back().is_some_and(|(_, last)| *last >= id)
    }

    /// How many ids there are.
    pub fn len(&self) -> u64 {
        self.ranges.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// All ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = u64> {
        self.ranges.iter().flat_map(|(first, last)| *first..=*last)
    }

    /// The ids that are not in `other`.
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Self::default();
        for id in self.iter().filter(|id| !other.contains(*id)) {
            left.insert(id);
        }
        left
    }

    /// The highest id in `first..=last`.
    pub fn highest_in(&self, first: u64, last: u64) -> Option<u64> {
        let (_, highest) = self.ranges.range(..=last).next_back()?;
        Some((*highest).min(last)).filter(|highest| *highest >= first)
    }
}

impl From<Vec<(u64, u64)>> for Ranges {
    fn from(list: Vec<(u64, u64)>) -> Self {
        Self { ranges: list.into_iter().collect() }
    }
}

impl From<Ranges> for Vec<(u64, u64)> {
    fn from(ranges: Ranges) -> Self {
        ranges.ranges.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: ids in sequence from two clients, out of order, some twice; another set lacks some.
    /// Guarantees: touching ranges become one, repeats are told, and what is missing is named exactly.
    #[test]
    fn ids_become_ranges_and_what_is_missing_is_named() {
        let mut sent = Ranges::default();
        for id in [3, 1, 2, 5, 4, 100, 102, 101, u64::MAX, u64::MAX - 1] {
            assert!(sent.insert(id), "{id}");
        }
        assert!(!sent.insert(4));
        assert_eq!(Vec::from(sent.clone()), [(1, 5), (100, 102), (u64::MAX - 1, u64::MAX)]);
        assert_eq!((sent.len(), sent.highest_in(1, 99), sent.highest_in(6, 99)), (10, Some(5), None));

        let mut arrived = sent.clone();
        arrived.ranges.remove(&100);
        arrived.insert(101);
        assert_eq!(Vec::from(sent.without(&arrived)), [(100, 100), (102, 102)]);
        assert!(arrived.without(&sent).is_empty());
    }
}
