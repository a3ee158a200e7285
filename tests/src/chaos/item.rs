//! What an id says of the item that carries it.
//!
//! ```text
//! item     tenant u8 | client u8 | poison 1 bit | request 39 bits | item u8
//! record   the same without the item: one request of a client, which is one record of the log
//! ```
//! How many items a record has and of which signal they are follows from its number, so that what was never sent is told from
//! what was.

/// Items of one record at most.
pub(super) const ITEMS_MAX: u64 = 4;

const POISON: u64 = 1 << 39;

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Record(u64);

impl Record {
    pub(super) fn new(tenant: usize, client: u8, request: u64, is_poison: bool) -> Self {
        let tenant = u64::try_from(tenant).expect("a handful") + 1;
        let poison = if is_poison { POISON } else { 0 };
        Self((tenant << 48) | (u64::from(client) << 40) | poison | (request % POISON))
    }

    /// Whose item it is, and which of its record's.
    pub(super) fn of(id: u64) -> (Self, u64) {
        (Self(id >> 8), id & 0xff)
    }

    /// The ids of its items.
    pub(super) fn ids(self) -> Vec<u64> {
        (0..self.items()).map(|item| (self.0 << 8) | item).collect()
    }

    pub(super) fn items(self) -> u64 {
        1 + self.request() % ITEMS_MAX
    }

    /// Which of the three signals.
    pub(super) fn signal(self) -> usize {
        usize::try_from(self.request() % 3).expect("less than 3")
    }

    /// Where its tenant stands in the list; what names none stands nowhere.
    pub(super) fn tenant(self) -> usize {
        usize::try_from((self.0 >> 48).wrapping_sub(1)).unwrap_or(usize::MAX)
    }

    pub(super) fn client(self) -> u8 {
        u8::try_from((self.0 >> 40) & 0xff).expect("eight bits")
    }

    pub(super) fn request(self) -> u64 {
        self.0 % POISON
    }

    /// Whether every destination refuses its content.
    pub(super) fn is_poison(self) -> bool {
        self.0 & POISON != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the ids of records at the borders of their fields.
    /// Guarantees: each says everything of its record.
    #[test]
    fn an_id_says_whose_it_is() {
        for (tenant, client, request, poison) in [(0, 0, 0, false), (6, 255, POISON - 1, true), (3, 7, 5, true)] {
            let record = Record::new(tenant, client, request, poison);
            for (item, id) in record.ids().into_iter().enumerate() {
                assert_eq!(Record::of(id), (record, item as u64));
            }
            assert_eq!(
                (record.tenant(), record.client(), record.request(), record.is_poison()),
                (tenant, client, request, poison)
            );
        }
        assert_eq!(Record::of(0).0.tenant(), usize::MAX, "an id that nobody made");
    }
}
