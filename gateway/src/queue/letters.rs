//! Dead letters of one tenant: which are kept, and how many may be.
//!
//! Owns the list in memory, bounded by number, and what the log is told when one goes. Pure. The letters themselves are
//! records like data, in ranges of their own: their owner in an index is the tenant's number with the highest bit set. A letter
//! that is in the log is kept unless the latest state of its tenant says that it is gone:
//!
//! ```text
//! letters    = state*        state = tenant u32 | through u64 | count u32 | u64 * count (kept)
//!                                    | count u32 | u64 * count (to be sent again)
//! ```
//! Up to `through` only those in the list are kept; all that come after it are. So while the oldest go first, the list is empty;
//! it is as long as what is kept when somebody has taken letters out of the middle. The latest state counts, by its position;
//! every segment begins with a copy.

use std::collections::VecDeque;

use bytes::{Buf, BufMut};

use super::footer::METADATA;
use crate::base::{Sequence, TenantId};

/// Letters of a tenant, however small they are.
pub(crate) const LETTERS_MAX: usize = 1_000;

/// In the owner's number: the dead letters of that tenant.
const OF_LETTERS: u32 = 1 << 31;

/// Under whom an index keeps the dead letters of a tenant.
pub(crate) fn owner_of_letters(tenant: TenantId) -> TenantId {
    TenantId(tenant.0 | OF_LETTERS)
}

/// Whose dead letters an owner in an index means; `None`: it has something else.
pub(crate) fn tenant_of_letters(owner: TenantId) -> Option<TenantId> {
    (owner != METADATA && owner.0 & OF_LETTERS != 0).then_some(TenantId(owner.0 & !OF_LETTERS))
}

/// Whether a tenant may have that number. The last one would have the letters of nobody, METADATA.
pub(crate) fn is_tenant(number: TenantId) -> bool {
    number.0 < OF_LETTERS - 1
}

/// One that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// Its position.
    pub sequence: Sequence,
    /// It is to be sent again as soon as it can be.
    pub again: bool,
    bytes: u32,
}

/// What the log says about a tenant's letters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    through: Sequence,
    kept: Vec<Sequence>,
    again: Vec<Sequence>,
}

/// The letters of one tenant.
#[derive(Debug, Clone, Default)]
pub(crate) struct Letters {
    kept: VecDeque<Kept>,
    bytes: u64,
    through: Sequence,
}

impl State {
    fn keeps(&self, sequence: Sequence) -> bool {
        sequence > self.through || self.kept.binary_search(&sequence).is_ok()
    }
}

impl Letters {
    /// As a start finds them, before the letters themselves are noted.
    pub(crate) fn recovered(state: &State) -> Self {
        Self { through: state.through, ..Self::default() }
    }

    /// Notes a letter that a start finds; one that is there twice counts once.
    pub(crate) fn find(&mut self, sequence: Sequence, bytes: u32, state: &State) {
        if !state.keeps(sequence) {
            return;
        }
        let at = self.kept.partition_point(|kept| kept.sequence < sequence);
        if self.kept.get(at).is_none_or(|kept| kept.sequence != sequence) {
            let again = state.again.binary_search(&sequence).is_ok();
            self.kept.insert(at, Kept { sequence, again, bytes });
            self.bytes += u64::from(bytes);
        }
    }

    /// Adds a new one.
    pub(crate) fn add(&mut self, sequence: Sequence, bytes: u32) {
        self.kept.push_back(Kept { sequence, again: false, bytes });
        self.bytes += u64::from(bytes);
    }

    /// The oldest, which are too many or too large together. The newest always stays.
    pub(crate) fn excess(&self, bytes_max: u64) -> Vec<Sequence> {
        let (mut bytes, mut count) = (self.bytes, self.kept.len());
        let is_over = |kept: &&Kept| {
            let over = count > 1 && (bytes > bytes_max || count > LETTERS_MAX);
            (bytes, count) = (bytes - u64::from(kept.bytes), count - 1);
            over
        };
        self.kept.iter().take_while(is_over).map(|kept| kept.sequence).collect()
    }

    /// Takes these out, in order; how many were there.
    pub(crate) fn remove(&mut self, gone: &[Sequence]) -> u32 {
        let before = self.kept.len();
        self.kept.retain(|kept| {
            let stays = gone.binary_search(&kept.sequence).is_err();
            self.bytes -= if stays { 0 } else { u64::from(kept.bytes) };
            stays
        });
        let removed = before - self.kept.len();
        if removed > 0 {
            self.through = self.through.max(gone.last().copied().unwrap_or_default());
        }
        u32::try_from(removed).unwrap_or(u32::MAX)
    }

    /// Notes whether these, in order, are to be sent again; how many that changes.
    pub(crate) fn mark(&mut self, which: &[Sequence], again: bool) -> u32 {
        let mut changed = 0;
        for kept in self.kept.iter_mut().filter(|kept| which.binary_search(&kept.sequence).is_ok()) {
            changed += u32::from(kept.again != again);
            kept.again = again;
        }
        changed
    }

    /// In order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Kept> {
        self.kept.iter().copied()
    }

    /// The oldest one.
    pub(crate) fn oldest(&self) -> Option<Sequence> {
        self.kept.front().map(|kept| kept.sequence)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether there is one from the first to the last.
    pub(crate) fn is_any_within(&self, first: Sequence, last: Sequence) -> bool {
        let from = self.kept.partition_point(|kept| kept.sequence < first);
        self.kept.get(from).is_some_and(|kept| kept.sequence <= last)
    }

    /// What the log is to say; `None`: nothing has ever gone.
    pub(crate) fn state(&self) -> Option<State> {
        let again: Vec<_> = self.kept.iter().filter(|kept| kept.again).map(|kept| kept.sequence).collect();
        if self.through == Sequence::ZERO && again.is_empty() {
            return None;
        }
        let listed = self.kept.iter().map(|kept| kept.sequence).take_while(|sequence| *sequence <= self.through);
        Some(State { through: self.through, kept: listed.collect(), again })
    }
}

/// Appends one state of a payload.
pub(crate) fn put_state(out: &mut Vec<u8>, tenant: TenantId, state: &State) {
    out.put_u32_le(tenant.0);
    out.put_u64_le(state.through.0);
    for list in [&state.kept, &state.again] {
        out.put_u32_le(u32::try_from(list.len()).expect("bounded by LETTERS_MAX"));
        list.iter().for_each(|sequence| out.put_u64_le(sequence.0));
    }
}

/// Reads a payload back.
pub(crate) fn take_states(mut input: &[u8]) -> Option<Vec<(TenantId, State)>> {
    let input = &mut input;
    let mut states = Vec::new();
    while input.has_remaining() {
        let tenant = TenantId(input.try_get_u32_le().ok()?);
        let through = Sequence(input.try_get_u64_le().ok()?);
        let (kept, again) = (take_list(input)?, take_list(input)?);
        states.push((tenant, State { through, kept, again }));
    }
    Some(states)
}

fn take_list(input: &mut &[u8]) -> Option<Vec<Sequence>> {
    let count = input.try_get_u32_le().ok()? as usize;
    (count <= input.remaining() / 8).then(|| (0..count).map(|_| Sequence(input.get_u64_le())).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn after_a_restart(letters: &Letters, log: &BTreeMap<u64, u32>) -> Letters {
        let mut bytes = Vec::new();
        if let Some(state) = letters.state() {
            put_state(&mut bytes, TenantId(7), &state);
        }
        let states = take_states(&bytes).expect("as it was written");
        let state = states.into_iter().next().map(|(_, state)| state).unwrap_or_default();
        let mut found = Letters::recovered(&state);
        // Copied by relocation, a letter may be there twice, and in any order.
        for _ in 0..2 {
            log.iter().rev().for_each(|(sequence, bytes)| found.find(Sequence(*sequence), *bytes, &state));
        }
        found
    }

    /// Scenario: letters come, are dropped from the oldest, taken out of the middle, marked and unmarked, at random; after each
    /// step the state is written and all letters that were ever in the log are found again.
    /// Guarantees: exactly those are kept that should be, with their marks and sizes; what is written stays small.
    #[test]
    fn a_start_finds_what_was_kept() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let (mut letters, mut log, mut model) = (Letters::default(), BTreeMap::new(), BTreeMap::new());
            for sequence in 1..60 {
                let bytes = rng.u32(1..100);
                letters.add(Sequence(sequence), bytes);
                log.insert(sequence, bytes);
                model.insert(sequence, false);
                let some: Vec<u64> = model.keys().copied().filter(|_| rng.u8(..8) == 0).collect();
                let sequences: Vec<_> = some.iter().map(|sequence| Sequence(*sequence)).collect();
                match rng.u8(..8) {
                    0 => {
                        assert_eq!(letters.remove(&sequences) as usize, some.len());
                        model.retain(|sequence, _| !some.contains(sequence));
                    }
                    1 => {
                        let gone = letters.excess(200);
                        letters.remove(&gone);
                        model.retain(|sequence, _| !gone.contains(&Sequence(*sequence)));
                    }
                    number @ 2..4 => {
                        letters.mark(&sequences, number == 2);
                        model.extend(some.iter().map(|sequence| (*sequence, number == 2)));
                    }
                    _ => {}
                }
                letters = after_a_restart(&letters, &log);
                let kept: BTreeMap<_, _> = letters.iter().map(|kept| (kept.sequence.0, kept.again)).collect();
                assert_eq!(kept, model);
                assert_eq!(letters.bytes, model.keys().map(|sequence| u64::from(log[sequence])).sum::<u64>());
                let first = letters.oldest().map(|oldest| oldest.0);
                assert_eq!(first, model.keys().next().copied());
                assert_eq!(letters.is_any_within(Sequence(10), Sequence(20)), model.range(10..=20).next().is_some());
            }
        }
    }

    /// Scenario: more letters than may be kept, by bytes and by number, and one that is larger than the budget.
    /// Guarantees: the oldest go, as few as needed; the newest stays; then the state lists nothing.
    #[test]
    fn the_oldest_go_first() {
        let mut letters = Letters::default();
        (1..=10).for_each(|sequence| letters.add(Sequence(sequence), 10));
        assert_eq!(letters.excess(75), [Sequence(1), Sequence(2), Sequence(3)]);
        letters.remove(&letters.excess(75));
        assert_eq!(letters.state(), Some(State { through: Sequence(3), ..State::default() }));
        letters.add(Sequence(11), 1_000);
        assert_eq!(letters.excess(75).len(), 7);
        (12..2_000).for_each(|sequence| letters.add(Sequence(sequence), 0));
        let gone = letters.excess(u64::MAX);
        letters.remove(&gone);
        assert_eq!(letters.iter().count(), LETTERS_MAX);
    }

    /// Scenario: truncated and invented states.
    /// Guarantees: they are refused without a large allocation or a panic.
    #[test]
    fn damage_is_refused() {
        let state = State { through: Sequence(9), kept: vec![Sequence(3)], again: vec![Sequence(3)] };
        let mut bytes = Vec::new();
        put_state(&mut bytes, TenantId(1), &state);
        assert_eq!(take_states(&bytes), Some(vec![(TenantId(1), state)]));
        for end in 1..bytes.len() {
            assert_eq!(take_states(&bytes[..end]), None);
        }
        assert_eq!(take_states(&[255; 64]), None);
    }

    /// Scenario: tenants' numbers, the owners of their letters, and that of metadata.
    /// Guarantees: each is told from the others.
    #[test]
    fn owners_are_told_apart() {
        for number in [1, 77, OF_LETTERS - 2] {
            let tenant = TenantId(number);
            assert_eq!(tenant_of_letters(owner_of_letters(tenant)), Some(tenant));
            assert!(is_tenant(tenant) && tenant_of_letters(tenant).is_none());
        }
        assert!(tenant_of_letters(METADATA).is_none() && !is_tenant(METADATA));
        assert!(!is_tenant(TenantId(OF_LETTERS - 1)), "its letters would be metadata");
    }
}
