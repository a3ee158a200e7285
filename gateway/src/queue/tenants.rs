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
    /// Of each, for whoever asks without the writer.
    held: Arc<Held>,
    /// Sum of what their copies take, kept up to date, since every append asks: but for the letters of `reckon`.
    copies: u64,
    /// Whose letters were given out to be changed.
    reckon: Vec<TenantId>,
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
    copy: CopyBytes,
}

/// What the copy of a tenant takes at the head of a segment, at most.
#[derive(Debug, Default)]
struct CopyBytes {
    record: u64,
    cursors: u64,
    /// `None`: to be reckoned anew.
    letters: Option<u64>,
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
            held: Arc::default(),
            copies: 0,
            reckon: Vec::new(),
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
            copy: CopyBytes::default(),
        };
        self.all.iter().map(|(id, tenant)| (*id, copy(tenant))).collect()
    }

    /// One of them.
    pub(crate) fn find(&self, id: TenantId) -> Option<&Tenant> {
        self.all.get(&id)
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
        self.next = self.next.max(id.0.saturating_add(1));
        // Two may have one key when a crash took the end of the first: the later one is meant.
        let of_key = self.by_key.entry((record.name.clone(), record.pod_uid.clone())).or_insert(id);
        *of_key = id.max(*of_key);
        match self.all.get_mut(&id) {
            Some(tenant) => {
                self.guaranteed -= tenant.record.disk.guarantee;
                self.unused -= tenant.budget.unused(tenant.record.disk);
                self.copies -= tenant.copy.record;
                tenant.record = record;
            }
            None => {
                let held = self.held.enter(id, record.name.clone());
                let tenant = Tenant {
                    record,
                    cursors: BTreeMap::new(),
                    letters: Letters::default(),
                    last: Sequence::ZERO,
                    registered: 0,
                    budget: Budget::default(),
                    held,
                    // It has no letters.
                    copy: CopyBytes { letters: Some(0), ..CopyBytes::default() },
                };
                self.all.insert(id, tenant);
            }
        }
        if let Some(tenant) = self.all.get_mut(&id) {
            tenant.copy.record = copy_of_record(&tenant.record);
            self.copies += tenant.copy.record;
            self.guaranteed = self.guaranteed.saturating_add(tenant.record.disk.guarantee);
            self.unused = self.unused.saturating_add(tenant.budget.unused(tenant.record.disk));
        }
        self.give_back(id);
    }

    /// What an append of so many bytes would be to the tenant, and how much is to be left for others: all of their guarantees that
    /// is not in use, unless it is within its own. Guarantees that do not fit into `capacity` shrink evenly. `None`: nobody
    /// knows the tenant.
    pub(crate) fn share(&self, id: TenantId, bytes: u64, capacity: u64) -> Option<(Share, u64)> {
        let tenant = self.all.get(&id)?;
        let shrunk = |bytes: u64| match bytes.checked_mul(capacity) {
            _ if self.guaranteed <= capacity => bytes,
            // As below, and each append pays for it.
            Some(product) => product / self.guaranteed,
            None => u64::try_from(u128::from(bytes) * u128::from(capacity) / u128::from(self.guaranteed))
                .unwrap_or(capacity),
        };
        let limit = tenant.record.disk;
        let others = self.unused.saturating_sub(tenant.budget.unused(limit));
        Some(match tenant.budget.share(bytes, shrunk(limit.guarantee), limit.ceiling) {
            Share::Borrowed => (Share::Borrowed, shrunk(others)),
            share => (share, 0),
        })
    }

    /// Notes a data record and what it takes, and says which was the last one before: one look for a record, since every append
    /// pays for it.
    pub(crate) fn append(&mut self, id: TenantId, sequence: Sequence, bytes: u64) -> Sequence {
        self.change_budget(id, |tenant| {
            tenant.budget.charge(sequence, bytes, tenant.record.disk);
            tenant.advance(sequence)
        })
        .unwrap_or_default()
    }

    /// Gives back what the cursors have passed.
    pub(crate) fn give_back(&mut self, id: TenantId) {
        self.change_budget(id, |tenant| {
            let floor = Signal::ALL.into_iter().map(|signal| tenant.floor(signal)).min().unwrap_or_default();
            tenant.budget.give_back(floor);
        });
    }

    /// The record up to which a tenant is to give up its own for an append of so many bytes; `None` if that would not help.
    pub(crate) fn frees(&self, id: TenantId, bytes: u64) -> Option<Sequence> {
        let Tenant { record, budget, .. } = self.all.get(&id)?;
        let ceiling = record.disk.ceiling;
        let needed = budget.used().saturating_add(bytes).checked_sub(ceiling)?;
        (record.drops_oldest && bytes <= ceiling).then(|| budget.frees(needed)).flatten()
    }

    fn change_budget<T>(&mut self, id: TenantId, change: impl FnOnce(&mut Tenant) -> T) -> Option<T> {
        let tenant = self.all.get_mut(&id)?;
        let limit = tenant.record.disk;
        let before = (tenant.budget.used(), tenant.budget.unused(limit));
        let changed = change(tenant);
        tenant.held.store(tenant.budget.used(), Ordering::Relaxed);
        self.used = self.used - before.0 + tenant.budget.used();
        self.unused = self.unused.saturating_sub(before.1).saturating_add(tenant.budget.unused(limit));
        Some(changed)
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
        self.held.leave(id);
        if let Some(Tenant { record, budget, copy, .. }) = self.all.remove(&id) {
            self.copies -= copy.record + copy.cursors + copy.letters.unwrap_or(0);
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
    pub(crate) fn move_cursor(&mut self, cursor: &CursorState) -> bool {
        let Some(tenant) = self.all.get_mut(&cursor.tenant) else { return false };
        let id = cursor.tenant;
        let taken = record::cursor_bytes(cursor);
        match tenant.cursors.get_mut(&cursor.of) {
            Some(known) if known.acknowledged > cursor.acknowledged => return false,
            Some(known) => {
                let before = record::cursor_bytes(known);
                tenant.copy.cursors -= before;
                self.copies -= before;
                (known.acknowledged, known.delivered_items) = (cursor.acknowledged, cursor.delivered_items);
                known.beyond.clone_from(&cursor.beyond);
            }
            None => drop(tenant.cursors.insert(cursor.of.clone(), cursor.clone())),
        }
        tenant.copy.cursors += taken;
        self.copies += taken;
        // One that ends before the first rung does gives nothing back, whatever the others say.
        if tenant.budget.gives_back(cursor.acknowledged) {
            self.give_back(id);
        }
        true
    }

    /// The letters of a tenant, to be changed.
    pub(crate) fn letters_mut(&mut self, id: TenantId) -> Option<&mut Letters> {
        let tenant = self.all.get_mut(&id)?;
        if let Some(before) = tenant.copy.letters.take() {
            self.copies -= before;
            self.reckon.push(id);
        }
        Some(&mut tenant.letters)
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
        for id in self.reckon.drain(..) {
            // Who is forgotten meanwhile has no copy.
            let Some(tenant) = self.all.get_mut(&id).filter(|tenant| tenant.copy.letters.is_none()) else { continue };
            let letters = copy_of_letters(&tenant.letters);
            tenant.copy.letters = Some(letters);
            self.copies += letters;
        }
        let rosters = 2 * (record::stride(4 + 4 * self.all.len()) + ENTRY_BYTES as u64);
        rosters + self.copies
    }
}

/// What a record of cursors or of letters takes beside them, as if each tenant had its own.
const OF_A_RECORD: u64 = (HEADER_BYTES + ENTRY_BYTES + 8) as u64;

/// Two copies of a tenant's record, and what a record of its cursors takes beside them.
fn copy_of_record(record: &TenantRecord) -> u64 {
    let mut payload = Vec::new();
    record::put_tenant(&mut payload, record);
    2 * (record::stride(payload.len()) + ENTRY_BYTES as u64) + OF_A_RECORD
}

fn copy_of_letters(letters: &Letters) -> u64 {
    let Some(state) = letters.state() else { return 0 };
    let mut payload = Vec::new();
    letters::put_state(&mut payload, TenantId(0), &state);
    payload.len() as u64 + OF_A_RECORD
}

impl Tenant {
    /// Notes a data record, and says which was the last one before.
    fn advance(&mut self, sequence: Sequence) -> Sequence {
        let previous = self.last;
        self.last = previous.max(sequence);
        previous
    }

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::DestinationName;
    use crate::queue::tests::tenant_record;

    /// The same from what is there, not from what has changed.
    fn reckoned(tenants: &Tenants) -> u64 {
        let cursors = |tenant: &Tenant| {
            let mut payload = Vec::new();
            tenant.cursors.values().for_each(|cursor| record::put_cursor(&mut payload, cursor, true));
            payload.len() as u64
        };
        let of_a_tenant = |(_, tenant): (TenantId, &Tenant)| {
            copy_of_record(&tenant.record) + cursors(tenant) + copy_of_letters(&tenant.letters)
        };
        let rosters = 2 * (record::stride(4 + 4 * tenants.len()) + ENTRY_BYTES as u64);
        rosters + tenants.iter().map(of_a_tenant).sum::<u64>()
    }

    /// Scenario: tenants come, change, and go; cursors move with more and less beyond them, or are refused; letters come and go,
    /// and their tenant with them.
    /// Guarantees: the bytes of the copy that a new segment begins with are known to the byte after each, without a look at
    /// what has not changed: with less, a segment's head takes room that was promised to records.
    #[test]
    fn the_size_of_the_copy_follows_every_change() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut tenants = Tenants::new(1);
        for number in 0..2_000 {
            let id = TenantId(rng.u32(1..20));
            match rng.u8(..5) {
                0 => tenants.insert(id, tenant_record(&format!("shop/t{}", number % 1_000))),
                1 => drop(tenants.forget(id)),
                2 | 3 => {
                    let of =
                        CursorOf::Delivery(DestinationName(["d", "another"][rng.usize(..2)].into()), Signal::Traces);
                    let beyond = (0..rng.u64(..5)).map(Sequence).collect();
                    let acknowledged = Sequence(rng.u64(..1_000));
                    tenants.move_cursor(&CursorState { tenant: id, of, acknowledged, beyond, delivered_items: 1 });
                }
                _ => {
                    let Some(letters) = tenants.letters_mut(id) else { continue };
                    letters.add(Sequence(number + 1), 100);
                    let oldest = letters.oldest().filter(|_| rng.bool());
                    letters.remove(oldest.as_slice());
                }
            }
            if rng.bool() {
                assert_eq!(tenants.snapshot_bytes(), reckoned(&tenants), "after {number}");
            }
        }
    }
}
