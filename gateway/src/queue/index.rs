//! Where the committed records are: what the writer publishes and readers look up.
//!
//! Owns, for sealed segments, one range a tenant, and for the open one an entry a record (its size bounds them). A reader
//! that holds a segment's file keeps it from being recycled; it never keeps the writer waiting for longer than a copy.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::disk::Disk;
use super::footer::{ENTRY_BYTES, Entry, METADATA, Range, take_block};
use super::format::{SEGMENT_HEADER_BYTES, SegmentKey};
use super::letters::owner_of_letters;
use super::record::Kind;
use super::scan::scan;
use crate::base::{Sequence, Signal, TenantId};

/// All segments that hold records.
#[derive(Debug)]
pub(crate) struct Index<D: Disk>(RwLock<Inner<D>>);

#[derive(Debug)]
struct Inner<D: Disk> {
    sealed: BTreeMap<u64, Arc<Segment<D>>>,
    open: Option<OpenSegment<D>>,
}

/// The segment being written, as far as it is committed.
#[derive(Debug)]
struct OpenSegment<D: Disk> {
    key: SegmentKey,
    file: Arc<D::File>,
    entries: HashMap<TenantId, Vec<Entry>, BuildHasherDefault<NumberHasher>>,
}

/// Spreads tenants' numbers. They are given by us, one after the other: nobody can choose them to collide, so a hash that
/// holds against malice would only cost every record some time.
#[derive(Debug, Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32((*byte).into()));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A sealed segment.
#[derive(Debug)]
pub(crate) struct Segment<D: Disk> {
    /// Its name.
    pub(crate) key: SegmentKey,
    /// Its file; shared with readers only.
    pub(crate) file: Arc<D::File>,
    /// Of its file, in bytes.
    pub(crate) length: u64,
    /// Where its records end.
    pub(crate) data_end: u64,
    /// Sorted by tenant.
    pub(crate) ranges: Vec<Range>,
    /// Entries by tenant, where the index on disk is damaged or could not be written.
    pub(crate) repaired: Mutex<HashMap<TenantId, Arc<[Entry]>>>,
    /// A record in it could not be read: it may be readable again, so the segment stays until all of it is done.
    pub(crate) spoiled: AtomicBool,
}

/// Some records of one tenant, wherever they are.
#[derive(Debug)]
pub(crate) struct Place<D: Disk> {
    /// In order; relocated records may lie between those of another segment.
    pub(crate) runs: Vec<Run<D>>,
    /// Everything of the tenant up to here is in `runs`, or was before.
    pub(crate) through: Sequence,
}

/// Some records of one tenant in one segment.
#[derive(Debug)]
pub(crate) struct Run<D: Disk> {
    /// The segment.
    pub(crate) key: SegmentKey,
    /// Its file.
    pub(crate) file: Arc<D::File>,
    /// In order.
    pub(crate) entries: Vec<Entry>,
}

/// How much of a place is wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Whose.
    pub(crate) tenant: TenantId,
    /// Only records after it.
    pub(crate) after: Sequence,
    /// Payload bytes; one record is always given.
    pub(crate) bytes_max: usize,
}

impl<D: Disk> Default for Index<D> {
    fn default() -> Self {
        Self(RwLock::new(Inner { sealed: BTreeMap::new(), open: None }))
    }
}

impl<D: Disk> Index<D> {
    /// Adds a sealed segment; if it was the open one, that ends.
    pub(crate) fn add_sealed(&self, segment: Segment<D>) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if inner.open.as_ref().is_some_and(|open| open.key == segment.key) {
            inner.open = None;
        }
        inner.sealed.insert(segment.key.id, Arc::new(segment));
    }

    /// Begins a new open segment.
    pub(crate) fn begin(&self, key: SegmentKey, file: Arc<D::File>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).open =
            Some(OpenSegment { key, file, entries: HashMap::default() });
    }

    /// Publishes committed records of the open segment.
    pub(crate) fn publish(&self, committed: impl Iterator<Item = (TenantId, Entry)>) {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = &mut inner.open else { return };
        for (tenant, entry) in committed {
            open.entries.entry(tenant).or_default().push(entry);
        }
    }

    /// Calls `body` with the entries of the open segment.
    pub(crate) fn with_open<T>(&self, body: impl FnOnce(Vec<(TenantId, &[Entry])>) -> T) -> Option<T> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let open = inner.open.as_ref()?;
        Some(body(open.entries.iter().map(|(tenant, entries)| (*tenant, entries.as_slice())).collect()))
    }

    /// The same, of these tenants only.
    pub(crate) fn with_open_of<T>(
        &self,
        tenants: &[TenantId],
        body: impl FnOnce(Vec<(TenantId, &[Entry])>) -> T,
    ) -> Option<T> {
        let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let open = inner.open.as_ref()?;
        Some(body(tenants.iter().filter_map(|id| Some((*id, open.entries.get(id)?.as_slice()))).collect()))
    }

    /// Takes a segment out; readers that have it keep it alive.
    pub(crate) fn remove(&self, id: u64) -> Option<Arc<Segment<D>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).sealed.remove(&id)
    }

    /// Puts a copy of what was live in some segments in their place, so that no reader sees a record twice or not at all. Gives
    /// back those that were still there.
    pub(crate) fn replace(&self, sources: &[u64], copy: Option<Segment<D>>) -> Vec<Arc<Segment<D>>> {
        let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(copy) = copy {
            inner.sealed.insert(copy.key.id, Arc::new(copy));
        }
        sources.iter().filter_map(|id| inner.sealed.remove(id)).collect()
    }

    /// The sealed segments, oldest first.
    pub(crate) fn sealed(&self) -> Vec<Arc<Segment<D>>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).sealed.values().cloned().collect()
    }

    /// Number of sealed segments.
    pub(crate) fn sealed_count(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).sealed.len()
    }

    /// The first records of the tenant after `wanted.after`. Ranges of relocated records may overlap with others: they are merged by
    /// sequence, each record once.
    pub(crate) fn find(&self, disk: &D, wanted: Wanted) -> io::Result<Option<Place<D>>> {
        let mut first = Vec::new();
        let mut limit = Sequence(u64::MAX);
        {
            let inner = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let mut next = limit;
            for segment in inner.sealed.values() {
                let Some(range) = segment.range(wanted.tenant).filter(|range| range.last > wanted.after) else {
                    continue;
                };
                let start = range.first.max(wanted.after.next());
                if start < next {
                    // Whatever was found before begins later.
                    limit = if first.is_empty() { limit } else { next };
                    next = start;
                    first.clear();
                }
                if start == next {
                    first.push((segment.clone(), range));
                } else {
                    limit = limit.min(start);
                }
            }
            if first.is_empty() {
                // What is in the open segment comes after all that was ever sealed.
                return Ok(inner.open.as_ref().and_then(|open| open.find(wanted)));
            }
        }
        merge(disk, &first, limit, wanted).map(Some)
    }
}

/// The records of the segments' ranges after `wanted.after` and before `limit`.
fn merge<D: Disk>(
    disk: &D,
    segments: &[(Arc<Segment<D>>, Range)],
    limit: Sequence,
    wanted: Wanted,
) -> io::Result<Place<D>> {
    // What is looked up in each is bounded together.
    let share = Wanted { bytes_max: wanted.bytes_max / segments.len(), ..wanted };
    let mut through = segments.iter().map(|(_, range)| range.last).max().unwrap_or(limit);
    through = through.min(Sequence(limit.0 - 1));
    let mut found = Vec::new();
    for (number, (segment, range)) in segments.iter().enumerate() {
        let entries = segment.entries_after(disk, range, share)?;
        if let Some(last) = entries.last().filter(|last| last.sequence < range.last) {
            through = through.min(last.sequence);
        }
        found.extend(entries.into_iter().map(|entry| (number, entry)));
    }
    found.sort_by_key(|(_, entry)| entry.sequence);
    found.dedup_by_key(|(_, entry)| entry.sequence);
    found.truncate(found.partition_point(|(_, entry)| entry.sequence <= through));
    let mut bytes = 0;
    let too_many = found.iter().position(|(_, entry)| {
        let is_first = bytes == 0;
        bytes += entry.length as usize;
        !is_first && bytes > wanted.bytes_max
    });
    if let Some(count) = too_many {
        found.truncate(count);
        through = found.last().map_or(through, |(_, entry)| entry.sequence);
    }
    let runs = found.chunk_by(|one, next| one.0 == next.0).map(|run| {
        let (segment, _) = &segments[run[0].0];
        let entries = run.iter().map(|(_, entry)| *entry).collect();
        Run { key: segment.key, file: segment.file.clone(), entries }
    });
    Ok(Place { runs: runs.collect(), through })
}

impl<D: Disk> OpenSegment<D> {
    fn find(&self, wanted: Wanted) -> Option<Place<D>> {
        let entries = after(self.entries.get(&wanted.tenant)?, wanted);
        let through = entries.last()?.sequence;
        Some(Place { runs: vec![Run { key: self.key, file: self.file.clone(), entries }], through })
    }
}

impl<D: Disk> Segment<D> {
    /// Whether a record in it could not be read.
    pub(crate) fn is_spoiled(&self) -> bool {
        self.spoiled.load(Ordering::Relaxed)
    }

    /// What it has of the tenant.
    pub(crate) fn range(&self, tenant: TenantId) -> Option<Range> {
        let at = self.ranges.binary_search_by_key(&tenant, |range| range.tenant).ok()?;
        Some(self.ranges[at])
    }

    /// Entries of a range after a sequence: from the index on disk, or by a scan where that is damaged.
    pub(crate) fn entries_after(&self, disk: &D, range: &Range, wanted: Wanted) -> io::Result<Vec<Entry>> {
        let repaired = self.repaired.lock().unwrap_or_else(PoisonError::into_inner).get(&range.tenant).cloned();
        if let Some(entries) = repaired {
            return Ok(after(&entries, wanted));
        }
        if let Some(entries) = self.entries_from_disk(disk, range, wanted) {
            return Ok(entries);
        }
        let entries: Arc<[Entry]> = self.entries_by_scan(disk, range.tenant)?.into();
        tracing::warn!(
            segment = self.key.name(),
            "the index of a segment is damaged: the segment was read to rebuild it"
        );
        self.repaired.lock().unwrap_or_else(PoisonError::into_inner).insert(range.tenant, entries.clone());
        Ok(after(&entries, wanted))
    }

    /// The same from the index on disk alone; `None` where that is damaged.
    pub(crate) fn entries_from_disk(&self, disk: &D, range: &Range, wanted: Wanted) -> Option<Vec<Entry>> {
        let seed = self.key.seed();
        let block = |number: usize| {
            let (offset, count) = range.block(number);
            let mut bytes = vec![0; count * ENTRY_BYTES + 4];
            let read = disk.read_at(&self.file, offset, &mut bytes).ok()?;
            take_block(&bytes[..read], seed, offset).filter(|entries| entries.len() == count)
        };
        // The last block whose first entry is not after the wanted one.
        let (mut low, mut high) = (0, range.blocks());
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if block(middle)?.first()?.sequence <= wanted.after { low = middle } else { high = middle }
        }
        let mut out = Vec::new();
        let mut bytes = 0;
        for number in low..range.blocks() {
            let entries = block(number)?;
            for entry in entries.into_iter().filter(|entry| entry.sequence > wanted.after) {
                if !out.is_empty() && bytes + entry.length as usize > wanted.bytes_max {
                    return Some(out);
                }
                bytes += entry.length as usize;
                out.push(entry);
            }
        }
        Some(out)
    }

    fn entries_by_scan(&self, disk: &D, tenant: TenantId) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let end = scan((disk, &self.file, self.key), (SEGMENT_HEADER_BYTES, self.data_end), |offset, header, _| {
            if let Some((owner, entry)) = entry_of(offset, header)
                && owner == tenant
            {
                entries.push(entry);
            }
        })?;
        if end.damaged > 0 || end.end < self.data_end {
            self.spoiled.store(true, Ordering::Relaxed);
        }
        Ok(entries)
    }
}

/// The index entry of a record, and under whom it is kept. `None`: of a later release.
pub(crate) fn entry_of(offset: u64, header: &super::record::Header) -> Option<(TenantId, Entry)> {
    let offset = u32::try_from(offset).ok()?;
    match Kind::from_number(header.kind)? {
        kind @ (Kind::Data | Kind::DeadLetter) => {
            let signal = Signal::from_number(header.signal)?;
            let entry = Entry::data(header.sequence, offset, header.length, signal, header.items);
            let tenant = TenantId(header.tenant);
            Some((if kind == Kind::Data { tenant } else { owner_of_letters(tenant) }, entry))
        }
        kind => Some((METADATA, Entry::metadata(header.sequence, offset, header.length, kind))),
    }
}

/// The entries after a sequence, up to the wanted bytes but at least one.
fn after(entries: &[Entry], wanted: Wanted) -> Vec<Entry> {
    let entries = &entries[entries.partition_point(|entry| entry.sequence <= wanted.after)..];
    let mut bytes = 0;
    let within = |entry: &&Entry| {
        let first = bytes == 0;
        bytes += entry.length as usize;
        first || bytes <= wanted.bytes_max
    };
    entries.iter().take_while(within).copied().collect()
}
