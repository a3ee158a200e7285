//! What enrichment adds and overwrites, encoded once per policy instead of once per request.

use std::ops::Range;

use crate::base::Attribute;
use crate::wire::primitive::put_field;
use crate::wire::schema::number;

/// What a tenant's policy does to every request, compiled once per policy change.
#[derive(Debug)]
pub struct Plan {
    entries: Vec<Entry>,
    /// The attributes as fields of a `Resource`, one after the other.
    block: Vec<u8>,
    /// Bit `n % 64` is set if some key has `n` bytes: most attributes of a pod are told apart by this alone.
    key_lengths: u64,
}

#[derive(Debug)]
struct Entry {
    key: Box<[u8]>,
    value: Box<[u8]>,
    field: Range<usize>,
    is_attested: bool,
}

impl Plan {
    /// `attested` overwrites what the pod sent under the same key (counted); `defaults` are added only where absent.
    /// Of several attributes with one key the first counts, attested before defaults.
    pub fn new(attested: &[Attribute], defaults: &[Attribute]) -> Self {
        let mut plan = Self { entries: Vec::new(), block: Vec::new(), key_lengths: 0 };
        let attested = attested.iter().map(|attribute| (attribute, true));
        for (Attribute { key, value }, is_attested) in attested.chain(defaults.iter().map(|default| (default, false))) {
            if plan.find(key.as_bytes()).is_some() {
                continue;
            }
            let (mut any_value, mut pair) = (Vec::new(), Vec::new());
            put_field(&mut any_value, 1, value.as_bytes());
            put_field(&mut pair, 1, key.as_bytes());
            put_field(&mut pair, 2, &any_value);
            let start = plan.block.len();
            put_field(&mut plan.block, number::ATTRIBUTE, &pair);
            plan.key_lengths |= 1 << (key.len() % 64);
            plan.entries.push(Entry {
                key: key.as_bytes().into(),
                value: value.as_bytes().into(),
                field: start..plan.block.len(),
                is_attested,
            });
        }
        plan
    }

    /// How many attributes it has. They are numbered from 0.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The number of the attribute with that key.
    #[inline]
    pub(super) fn find(&self, key: &[u8]) -> Option<usize> {
        if self.key_lengths >> (key.len() % 64) & 1 == 0 {
            return None;
        }
        self.entries.iter().position(|entry| *entry.key == *key)
    }

    /// Whether the pod's own value gives way.
    pub(super) fn is_attested(&self, index: usize) -> bool {
        self.entries[index].is_attested
    }

    /// The value.
    pub(super) fn value(&self, index: usize) -> &[u8] {
        &self.entries[index].value
    }

    /// Where the attribute is in [`Plan::block`].
    pub(super) fn field(&self, index: usize) -> Range<usize> {
        self.entries[index].field.clone()
    }

    /// All attributes, encoded.
    pub(super) fn block(&self) -> &[u8] {
        &self.block
    }
}
