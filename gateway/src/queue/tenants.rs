//! What the log knows of tenants and their cursors, and which records that makes done.
//!
//! Owns the table in memory. Pure: the writer appends what it says, and recovery fills it.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::budget::{Budget, Share};
use super::footer::{ENTRY_BYTES, Entry, Range};
use super::letters::{self, Letters, tenant_of_letters};
use super::record::{self, HEADER_BYTES};
use super::tools::TenantView;
use super::{CursorOf, CursorState, Departure, Reply, TenantRecord};
use crate::base::{Sequence, Signal, TenantId, TenantName};

/// A pod's name and uid: the key under which it registers.
type Key = (TenantName, Option<String>);

/// All tenants of the log.
#[derive(Debug)]
pub(crate) struct Tenants {
    all: BTreeMap<TenantId, Tenant>,
    by_key: HashMap<Key, TenantId>,
    /// Those whose pod is gone, and whom to tell when they are forgotten.
    leaving: BTreeMap<TenantId, Reply>,
    next: u32,
    snapshot_bytes: Option<u64>,
    /// Of each, for whoever asks without the writer.
    held: Arc<Held>,
    /// Sums over all tenants: bytes in use, guarantees, and what of those is not in use.
    used: u64,
    guaranteed: u64,
    unused: u64,
}

/// What each tenant's undelivered records take of the log, in bytes. Written by the writer, read by anyone.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<BTreeMap<TenantId, (TenantName, Arc<AtomicU64>)>>);

impl Held {
    /// Tenants of one name, pods that followed each other, are one.
    pub(crate) fn by_name(&self) -> BTreeMap<TenantName, u64> {
        let mut out = BTreeMap::new();
        for (name, bytes) in self.lock().values() {
            *out.entry(name.clone()).or_insert(0) += bytes.load(Ordering::Relaxed);
        }
        out
    }

    fn enter(&self, id: TenantId, name: TenantName) -> Arc<AtomicU64> {
        self.lock().entry(id).or_insert_with(|| (name, Arc::default())).1.clone()
    }

    fn leave(&self, id: TenantId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TenantId, (TenantName, Arc<AtomicU64>)>> {
        // Each is changed by one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One tenant.
#[derive(Debug)]
pub(crate) struct Tenant {
    /// As registered last.
    pub(crate) record: TenantRecord,
    /// Those of routes that were left are kept: a cursor never goes back.
    pub(crate) cursors: BTreeMap<CursorOf, CursorState>,
    /// What was refused for good.
    pub(crate) letters: Letters,
    /// Its last data record.
    pub(crate) last: Sequence,
    /// Which registration since the start named it last; 0: none yet.
    registered: u64,
    budget: Budget,
    /// The budget's, as others see it.
    held: Arc<AtomicU64>,
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
        Self {
            all: BTreeMap::new(),
            by_key: HashMap::new(),
            leaving: BTreeMap::new(),
            next: next.max(1),
            snapshot_bytes: None,
            held: Arc::default(),
            used: 0,
            guaranteed: 0,
            unused: 0,
        }
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

    /// Who they are and how far each of their cursors is, for whoever decides elsewhere what is live.
    pub(crate) fn standing(&self) -> BTreeMap<TenantId, Tenant> {
        let copy = |tenant: &Tenant| Tenant {
            record: tenant.record.clone(),
            cursors: tenant.cursors.clone(),
            letters: tenant.letters.clone(),
            last: tenant.last,
            registered: 0,
            budget: Budget::default(),
            held: Arc::default(),
        };
        self.all.iter().map(|(id, tenant)| (*id, copy(tenant))).collect()
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
        // Two may have one key when a crash took the end of the first: the later one is meant.
        let of_key = self.by_key.entry((record.name.clone(), record.pod_uid.clone())).or_insert(id);
        *of_key = id.max(*of_key);
        match self.all.get_mut(&id) {
            Some(tenant) => {
                self.guaranteed -= tenant.record.disk.guarantee;
                self.unused -= tenant.budget.unused(tenant.record.disk);
                tenant.record = record;
            }
            None => {
                let budget = Budget::default();
                let (cursors, letters) = (BTreeMap::new(), Letters::default());
                let held = self.held.enter(id, record.name.clone());
                let tenant = Tenant { record, cursors, letters, last: Sequence::ZERO, registered: 0, budget, held };
                self.all.insert(id, tenant);
            }
        }
        if let Some(tenant) = self.all.get(&id) {
            self.guaranteed = self.guaranteed.saturating_add(tenant.record.disk.guarantee);
            self.unused = self.unused.saturating_add(tenant.budget.unused(tenant.record.disk));
        }
        self.give_back(id);
    }

    /// What an append of so many bytes would be to the tenant, and how much is to be left for others: all of their guarantees that
    /// is not in use, unless it is within its own. Guarantees that do not fit into `capacity` shrink evenly.
    pub(crate) fn share(&self, id: TenantId, bytes: u64, capacity: u64) -> (Share, u64) {
        let Some(tenant) = self.all.get(&id) else { return (Share::Over, 0) };
        let shrunk = |bytes: u64| match self.guaranteed > capacity {
            true => u64::try_from(u128::from(bytes) * u128::from(capacity) / u128::from(self.guaranteed))
                .unwrap_or(capacity),
            false => bytes,
        };
        let limit = tenant.record.disk;
        let others = self.unused.saturating_sub(tenant.budget.unused(limit));
        match tenant.budget.share(bytes, shrunk(limit.guarantee), limit.ceiling) {
            Share::Borrowed => (Share::Borrowed, shrunk(others)),
            share => (share, 0),
        }
    }

    /// Notes what a data record takes.
    pub(crate) fn charge(&mut self, id: TenantId, sequence: Sequence, bytes: u64) {
        self.change_budget(id, |budget, tenant| budget.charge(sequence, bytes, tenant.disk));
    }

    /// Gives back what the cursors have passed.
    pub(crate) fn give_back(&mut self, id: TenantId) {
        let Some(floor) = self.all.get(&id).map(|tenant| Signal::ALL.map(|signal| tenant.floor(signal))) else {
            return;
        };
        let floor = floor.into_iter().min().unwrap_or_default();
        self.change_budget(id, |budget, _| budget.give_back(floor));
    }

    /// The record up to which a tenant is to give up its own for an append of so many bytes; `None` if that would not help.
    pub(crate) fn frees(&self, id: TenantId, bytes: u64) -> Option<Sequence> {
        let Tenant { record, budget, .. } = self.all.get(&id)?;
        let ceiling = record.disk.ceiling;
        let needed = budget.used().saturating_add(bytes).checked_sub(ceiling)?;
        (record.drops_oldest && bytes <= ceiling).then(|| budget.frees(needed)).flatten()
    }

    fn change_budget(&mut self, id: TenantId, change: impl FnOnce(&mut Budget, &TenantRecord)) {
        let Some(Tenant { budget, record, held, .. }) = self.all.get_mut(&id) else { return };
        let before = (budget.used(), budget.unused(record.disk));
        change(budget, record);
        held.store(budget.used(), Ordering::Relaxed);
        self.used = self.used - before.0 + budget.used();
        self.unused = self.unused.saturating_sub(before.1).saturating_add(budget.unused(record.disk));
    }

    /// The same, of one tenant.
    #[cfg(test)]
    pub(crate) fn used_by(&self, id: TenantId) -> u64 {
        self.all.get(&id).map_or(0, |tenant| tenant.budget.used())
    }

    /// Of each tenant, as it is at any time.
    pub(crate) fn held(&self) -> Arc<Held> {
        self.held.clone()
    }

    /// Bytes of records that are not done.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Notes that a registration has named the tenant: who is told to leave by an earlier word stays. Gives back whom that
    /// concerns.
    pub(crate) fn note_registered(&mut self, id: TenantId, number: u64) -> Option<Reply> {
        if let Some(tenant) = self.all.get_mut(&id) {
            tenant.registered = tenant.registered.max(number);
        }
        self.leaving.remove(&id)
    }

    /// Lets a tenant leave as soon as all its records are done. `Err`: it is gone already (`None`), or was registered since.
    pub(crate) fn leave(&mut self, departure: Departure, reply: Reply) -> Result<(), (Reply, Option<TenantId>)> {
        match self.all.get(&departure.tenant) {
            None => Err((reply, None)),
            Some(tenant) if tenant.registered > departure.seen => Err((reply, Some(departure.tenant))),
            Some(_) => {
                self.leaving.insert(departure.tenant, reply);
                Ok(())
            }
        }
    }

    /// Those who leave.
    pub(crate) fn leaving(&self) -> impl Iterator<Item = (TenantId, &Tenant)> {
        self.leaving.keys().filter_map(|id| Some((*id, self.all.get(id)?)))
    }

    /// Whether anybody leaves.
    pub(crate) fn has_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// Forgets a tenant for good. Its number is not given again.
    pub(crate) fn forget(&mut self, id: TenantId) -> Option<Reply> {
        self.snapshot_bytes = None;
        self.held.leave(id);
        if let Some(Tenant { record, budget, .. }) = self.all.remove(&id) {
            self.used -= budget.used();
            self.guaranteed -= record.disk.guarantee;
            self.unused = self.unused.saturating_sub(budget.unused(record.disk));
            let key = (record.name, record.pod_uid);
            if self.by_key.get(&key) == Some(&id) {
                self.by_key.remove(&key);
            }
        }
        self.leaving.remove(&id)
    }

    /// Takes a cursor unless a later one is known: a cursor never goes back, since what it passed may be gone.
    pub(crate) fn move_cursor(&mut self, cursor: CursorState) -> bool {
        let Some(tenant) = self.all.get_mut(&cursor.tenant) else { return false };
        let known = tenant.cursors.get(&cursor.of);
        if known.is_some_and(|known| known.acknowledged > cursor.acknowledged) {
            return false;
        }
        self.snapshot_bytes = None;
        let id = cursor.tenant;
        tenant.cursors.insert(cursor.of.clone(), cursor);
        self.give_back(id);
        true
    }

    /// The letters of a tenant, to be changed.
    pub(crate) fn letters_mut(&mut self, id: TenantId) -> Option<&mut Letters> {
        self.snapshot_bytes = None;
        self.all.get_mut(&id).map(|tenant| &mut tenant.letters)
    }

    /// Whether nobody needs the range's records any more.
    pub(crate) fn is_done(&self, range: &Range) -> bool {
        if let Some(id) = tenant_of_letters(range.tenant) {
            return self.all.get(&id).is_none_or(|tenant| !tenant.letters.is_any_within(range.first, range.last));
        }
        let Some(tenant) = self.all.get(&range.tenant) else { return true };
        Signal::ALL.into_iter().all(|signal| range.items[signal.index()] == 0 || range.last <= tenant.floor(signal))
    }

    /// An upper bound of the bytes that a copy of everything takes at the head of a segment.
    pub(crate) fn snapshot_bytes(&mut self) -> u64 {
        let Self { all, snapshot_bytes, .. } = self;
        *snapshot_bytes.get_or_insert_with(|| {
            let mut scratch = Vec::new();
            let rosters = 2 * (record::stride(4 + 4 * all.len()) + ENTRY_BYTES as u64);
            let tenants: u64 = all
                .values()
                .map(|tenant| {
                    scratch.clear();
                    record::put_tenant(&mut scratch, &tenant.record);
                    let copies = 2 * (record::stride(scratch.len()) + ENTRY_BYTES as u64);
                    scratch.clear();
                    tenant.cursors.values().for_each(|cursor| record::put_cursor(&mut scratch, cursor, true));
                    // As if each tenant had its own records of cursors and of letters.
                    let of_a_record = HEADER_BYTES + ENTRY_BYTES + 8;
                    let mut records = of_a_record;
                    if let Some(state) = tenant.letters.state() {
                        letters::put_state(&mut scratch, TenantId(0), &state);
                        records += of_a_record;
                    }
                    copies + (scratch.len() + records) as u64
                })
                .sum();
            rosters + tenants
        })
    }
}

impl Tenant {
    /// For tools.
    pub(crate) fn view(&self, id: TenantId) -> TenantView {
        TenantView {
            id,
            record: self.record.clone(),
            last: self.last,
            cursors: self.cursors.values().cloned().collect(),
            letters: self.letters.iter().collect(),
        }
    }

    /// The cursors of the destinations that a signal goes to; `None` for one that has done nothing yet.
    fn routes(&self, signal: Signal) -> impl Iterator<Item = Option<&CursorState>> {
        let names = self.record.destinations[signal.index()].iter();
        names.map(move |name| self.cursors.get(&CursorOf::Delivery(name.clone(), signal)))
    }

    /// The record up to which everything of a signal is done everywhere. Without a destination nobody waits for anything.
    pub(crate) fn floor(&self, signal: Signal) -> Sequence {
        let acknowledged =
            self.routes(signal).map(|cursor| cursor.map_or(Sequence::ZERO, |cursor| cursor.acknowledged));
        acknowledged.min().unwrap_or(Sequence(u64::MAX))
    }

    /// After this record somebody still waits for everything of a signal. Without a destination nobody waits for anything.
    pub(crate) fn ceiling(&self, signal: Signal) -> Sequence {
        let highest =
            |cursor: &CursorState| cursor.beyond.last().copied().max(Some(cursor.acknowledged)).unwrap_or_default();
        self.routes(signal).map(|cursor| cursor.map_or(Sequence::ZERO, highest)).min().unwrap_or(Sequence(u64::MAX))
    }

    /// What of a range is live, in bytes of the disk; `None`: only its entries can tell.
    pub(crate) fn live_bytes(&self, range: &Range) -> Option<u64> {
        let mut live = 0;
        for signal in Signal::ALL {
            match range.bytes[signal.index()] {
                0 => {}
                _ if range.last <= self.floor(signal) => {}
                bytes if range.first > self.ceiling(signal) => live += bytes,
                _ => return None,
            }
        }
        Some(live)
    }

    /// Whether a destination still waits for a record.
    pub(crate) fn is_pending(&self, entry: &Entry) -> bool {
        let Some((signal, _)) = entry.items() else { return false };
        self.routes(signal).any(|cursor| cursor.is_none_or(|cursor| cursor.is_pending(entry.sequence)))
    }
}
