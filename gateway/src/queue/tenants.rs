//! What the log knows of tenants and their cursors, and which records that makes done.
//!
//! Owns the table in memory. Pure: the writer appends what it says, and recovery fills it.

use std::collections::{BTreeMap, HashMap};

use super::footer::{ENTRY_BYTES, Entry, Range};
use super::record::{self, HEADER_BYTES};
use super::{CursorState, TenantRecord};
use crate::base::{DestinationName, Sequence, Signal, TenantId, TenantName};

/// A pod's name and uid: the key under which it registers.
type Key = (TenantName, Option<String>);

/// All tenants of the log.
#[derive(Debug)]
pub(crate) struct Tenants {
    all: BTreeMap<TenantId, Tenant>,
    by_key: HashMap<Key, TenantId>,
    next: u32,
    snapshot_bytes: Option<u64>,
}

/// One tenant.
#[derive(Debug)]
pub(crate) struct Tenant {
    /// As registered last.
    pub(crate) record: TenantRecord,
    /// By destination.
    pub(crate) cursors: BTreeMap<DestinationName, CursorState>,
    /// Its last data record.
    pub(crate) last: Sequence,
}

/// What a registration means for the log.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Registration {
    /// Known as it is: nothing to write.
    Known(TenantId),
    /// To be written under this number.
    Write(TenantId),
}

impl Tenants {
    /// No tenants; numbers from `next` on are free.
    pub(crate) fn new(next: u32) -> Self {
        Self { all: BTreeMap::new(), by_key: HashMap::new(), next: next.max(1), snapshot_bytes: None }
    }

    /// Number of tenants.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// The lowest free number.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    /// In order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (TenantId, &Tenant)> {
        self.all.iter().map(|(id, tenant)| (*id, tenant))
    }

    /// One of them.
    pub(crate) fn find(&self, id: TenantId) -> Option<&Tenant> {
        self.all.get(&id)
    }

    /// Notes a data record, and says which was the last one before.
    pub(crate) fn advance(&mut self, id: TenantId, sequence: Sequence) -> Sequence {
        self.all.get_mut(&id).map_or(Sequence::ZERO, |tenant| {
            let previous = tenant.last;
            tenant.last = previous.max(sequence);
            previous
        })
    }

    /// Whether a registration has to be written, and under which number.
    pub(crate) fn register(&self, record: &TenantRecord) -> Registration {
        let key = (record.name.clone(), record.pod_uid.clone());
        match self.by_key.get(&key) {
            Some(id) if self.all.get(id).is_some_and(|tenant| tenant.record == *record) => Registration::Known(*id),
            Some(id) => Registration::Write(*id),
            None => Registration::Write(TenantId(self.next)),
        }
    }

    /// Adds a tenant, or changes its record.
    pub(crate) fn insert(&mut self, id: TenantId, record: TenantRecord) {
        self.snapshot_bytes = None;
        self.next = self.next.max(id.0.saturating_add(1));
        self.by_key.insert((record.name.clone(), record.pod_uid.clone()), id);
        match self.all.get_mut(&id) {
            Some(tenant) => tenant.record = record,
            None => drop(self.all.insert(id, Tenant { record, cursors: BTreeMap::new(), last: Sequence::ZERO })),
        }
    }

    /// Takes a cursor unless a later one is known: a cursor never goes back, since what it passed may be gone.
    pub(crate) fn move_cursor(&mut self, cursor: CursorState) -> bool {
        let Some(tenant) = self.all.get_mut(&cursor.tenant) else { return false };
        let known = tenant.cursors.get(&cursor.destination);
        if known.is_some_and(|known| known.acknowledged > cursor.acknowledged) {
            return false;
        }
        self.snapshot_bytes = None;
        tenant.cursors.insert(cursor.destination.clone(), cursor);
        true
    }

    /// Whether nobody needs the range's records any more.
    pub(crate) fn is_done(&self, range: &Range) -> bool {
        let Some(tenant) = self.all.get(&range.tenant) else { return true };
        Signal::ALL.into_iter().all(|signal| range.items[signal.index()] == 0 || range.last <= tenant.floor(signal))
    }

    /// An upper bound of the bytes that a copy of everything takes at the head of a segment.
    pub(crate) fn snapshot_bytes(&mut self) -> u64 {
        let Self { all, snapshot_bytes, .. } = self;
        *snapshot_bytes.get_or_insert_with(|| {
            let mut scratch = Vec::new();
            all.values()
                .map(|tenant| {
                    scratch.clear();
                    record::put_tenant(&mut scratch, &tenant.record);
                    let copies = 2 * (record::stride(scratch.len()) + ENTRY_BYTES as u64);
                    scratch.clear();
                    tenant.cursors.values().for_each(|cursor| record::put_cursor(&mut scratch, cursor, true));
                    // As if each tenant had its own record of cursors.
                    copies + (scratch.len() + HEADER_BYTES + ENTRY_BYTES + 8) as u64
                })
                .sum()
        })
    }
}

impl Tenant {
    /// The record up to which everything of a signal is done everywhere. Without a destination nobody waits for anything.
    pub(crate) fn floor(&self, signal: Signal) -> Sequence {
        let acknowledged = |name| self.cursors.get(name).map_or(Sequence::ZERO, |cursor| cursor.acknowledged);
        self.record.destinations[signal.index()].iter().map(acknowledged).min().unwrap_or(Sequence(u64::MAX))
    }

    /// After this record nothing of a signal is done anywhere.
    pub(crate) fn ceiling(&self, signal: Signal) -> Sequence {
        let highest = |name| {
            let cursor = self.cursors.get(name)?;
            Some(cursor.beyond.last().map_or(cursor.acknowledged, |last| (*last).max(cursor.acknowledged)))
        };
        let names = &self.record.destinations[signal.index()];
        names.iter().filter_map(highest).max().unwrap_or(Sequence::ZERO)
    }

    /// Whether a destination still waits for a record.
    pub(crate) fn is_pending(&self, entry: &Entry) -> bool {
        let Some((signal, _)) = entry.items() else { return false };
        self.record.destinations[signal.index()].iter().any(|name| {
            self.cursors.get(name).is_none_or(|cursor| {
                entry.sequence > cursor.acknowledged && cursor.beyond.binary_search(&entry.sequence).is_err()
            })
        })
    }
}
