//! From files to a log: what a start does before the first append.
//!
//! Owns the order: survey the names and headers, load sealed segments by their footers, scan and seal the others, put
//! tenants and cursors together, and number the new boot above everything found. It never appends to an old segment and
//! never fails because of damage: only a file that cannot be opened, or one of a newer release, stops a start.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use super::appender::{Appender, seal};
use super::damaged::Damaged;
use super::disk::Disk;
use super::footer::{Entry, METADATA, RANGE_BYTES, Range, TRAILER_BYTES, Trailer};
use super::format::{APPENDED, FoundHeader, SEGMENT_HEADER_BYTES, SEGMENT_HEADER_LENGTH, SegmentHeader, SegmentKey};
use super::index::{Index, Run, Segment, Wanted, entry_of};
use super::letters::{self, Letters, tenant_of_letters};
use super::log::Log;
use super::meta::Saved;
use super::reader::fetch;
use super::record::{self, Header, Kind};
use super::scan::scan_with;
use super::space::Space;
use super::stats::Stats;
use super::tenants::{Tenant, Tenants};
use super::{CursorOf, CursorState, MinFree, RecoveredTenant, Recovery, TenantRecord};
use crate::base::handoff::Handoff;
use crate::base::{DestinationName, Sequence, Signal, TenantId};

/// Bits of a sequence below the boot epoch.
const COUNTER_BITS: u32 = 40;

/// Why a start stops.
#[derive(Debug)]
pub(crate) enum RecoverError {
    /// A segment of a newer release.
    Newer(u32),
    /// Doing what, with which file, and why not.
    Io(&'static str, String, io::Error),
}

/// The files of a log.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    segments: Vec<(SegmentKey, Option<SegmentHeader>)>,
    spares: Vec<SegmentKey>,
}

impl Survey {
    /// Reads names and headers, and changes nothing.
    pub(crate) fn of<D: Disk>(disk: &D) -> Result<Self, RecoverError> {
        let names = disk.list().map_err(|error| RecoverError::Io("listing", String::new(), error))?;
        let mut survey = Self::default();
        for (key, is_spare) in names.iter().filter_map(|name| SegmentKey::parse(name)) {
            if is_spare {
                survey.spares.push(key);
                continue;
            }
            let failed = |error| RecoverError::Io("opening", key.name(), error);
            let file = disk.open(&key.name()).map_err(failed)?;
            let mut bytes = [0; SEGMENT_HEADER_LENGTH];
            // What cannot be read is damaged; the name has all that is needed.
            drop(disk.read_at(&file, 0, &mut bytes));
            let header = match SegmentHeader::decode(&bytes, key) {
                FoundHeader::Valid(header) => Some(header),
                FoundHeader::Newer(version) => return Err(RecoverError::Newer(version)),
                FoundHeader::Damaged => None,
            };
            survey.segments.push((key, header));
        }
        survey.segments.sort_unstable_by_key(|(key, _)| *key);
        Ok(survey)
    }

    /// Which log it is, if any segment says so.
    pub(crate) fn log_id(&self) -> Option<u64> {
        self.segments.iter().find_map(|(_, header)| header.map(|header| header.log_id))
    }

    /// In order of their numbers.
    pub(crate) fn segments(&self) -> &[(SegmentKey, Option<SegmentHeader>)] {
        &self.segments
    }

    /// Files without records.
    pub(crate) fn spares(&self) -> &[SegmentKey] {
        &self.spares
    }

    /// Whether there is anything that metadata could have been about.
    pub(crate) fn has_segments(&self) -> bool {
        !self.segments.is_empty()
    }
}

/// What a recovery is given.
#[derive(Debug)]
pub(crate) struct Params {
    /// Of new segments.
    pub(crate) segment_bytes: u64,
    /// The log's limit.
    pub(crate) disk_bytes_max: u64,
    /// What the filesystem must keep.
    pub(crate) min_free: MinFree,
    /// Of one tenant's dead letters.
    pub(crate) letter_bytes_max: u64,
    /// See there.
    pub(crate) begin_at_tail: BTreeSet<DestinationName>,
    /// Which log.
    pub(crate) log_id: u64,
    /// For the salts of new segments.
    pub(crate) rng: fastrand::Rng,
    /// What sled has.
    pub(crate) saved: Option<Saved>,
}

/// What the records say, put together.
#[derive(Debug, Default)]
struct Facts {
    tenants: HashMap<TenantId, (Sequence, TenantRecord)>,
    /// The furthest of each, with the position of its checkpoint: however many there are, no more is kept.
    cursors: HashMap<(TenantId, CursorOf), (Sequence, CursorState)>,
    forgotten: HashSet<TenantId>,
    /// The latest of each tenant, with its position.
    letters: HashMap<TenantId, (Sequence, letters::State)>,
    /// The latest one, with its position and the number that was next.
    roster: Option<(Sequence, u32, HashSet<TenantId>)>,
    /// Segments whose live records are all in another one.
    replaced: Vec<u64>,
    highest: Sequence,
    newest_unix_ms: u64,
    epoch: u32,
    tenants_next: u32,
}

/// Recovers a log.
pub(crate) fn recover<D: Disk>(
    disk: Arc<D>,
    survey: Survey,
    params: Params,
    (index, stats, handoff): (Arc<Index<D>>, Arc<Stats>, Arc<Handoff>),
) -> Result<(Log<D>, Recovery), RecoverError> {
    let started = Instant::now();
    let next_id =
        survey.segments.iter().map(|(key, _)| key).chain(&survey.spares).map(|key| key.id + 1).max().unwrap_or(1);
    let limits = (params.segment_bytes, params.disk_bytes_max);
    let mut space = Space::new(disk.clone(), limits, next_id, params.rng);
    let mut facts = Facts::default();
    let total = survey.segments.len();
    let mut progress = Progress { logged: started, total };
    for (done, (key, header)) in survey.segments.into_iter().enumerate() {
        progress.note(done);
        facts.note_header(header);
        let segment = load(&*disk, key, &stats.damaged_records)?;
        facts.note_segment(&*disk, &segment, &stats.damaged_records);
        if segment.ranges.is_empty() {
            // Begun and never written to: nothing is lost with it.
            drop(disk.remove(&key.name()));
            continue;
        }
        space.used_bytes += segment.length;
        index.add_sealed(segment);
    }
    drop_replaced(&*disk, (&index, &mut space), &facts.replaced)?;
    space.found_all();
    survey.spares.into_iter().for_each(|key| space.adopt(key));
    facts.note_saved(params.saved);

    let newest_unix_ms = facts.newest_unix_ms;
    let epoch = facts.next_epoch();
    let strays = facts.strays();
    let tenants = facts.into_tenants(&*disk, &index);
    let recovered = tenants.iter().map(|(id, tenant)| recovered(&*disk, &index, id, tenant)).collect();
    let identity = SegmentHeader {
        class: APPENDED,
        created_unix_ms: 0,
        log_id: params.log_id,
        epoch,
        tenants_next: tenants.next(),
    };
    let first = Sequence(u64::from(epoch) << COUNTER_BITS).next();
    let appender = Appender::new((disk, index.clone(), stats.clone()), space, (identity, params.min_free), first);
    let recovery = Recovery {
        tenants: recovered,
        damaged_records: stats.damaged_records.count(),
        took: started.elapsed(),
        newest_unix_ms,
        meta_rebuilt: false,
    };
    let mut log = Log::new(appender, (tenants, params.letter_bytes_max), (index, stats, handoff));
    log.begin_at_tail = params.begin_at_tail;
    log.drop_saved(strays);
    Ok((log, recovery))
}

/// Removes what a crash has left of segments whose live records were copied. The copy was durable before it had its name, and its
/// name is before anything is removed.
fn drop_replaced<D: Disk>(
    disk: &D,
    (index, space): (&Index<D>, &mut Space<D>),
    replaced: &[u64],
) -> Result<(), RecoverError> {
    let sources = index.replace(replaced, None);
    if sources.is_empty() {
        return Ok(());
    }
    disk.sync_dir().map_err(|error| RecoverError::Io("syncing", "the directory".to_owned(), error))?;
    for source in sources {
        drop(disk.remove(&source.key.name()));
        space.used_bytes -= source.length;
    }
    Ok(())
}

/// Says every second how far a long recovery is.
struct Progress {
    logged: Instant,
    total: usize,
}

impl Progress {
    fn note(&mut self, done: usize) {
        if self.logged.elapsed() >= Duration::from_secs(1) {
            self.logged = Instant::now();
            tracing::info!(done, total = self.total, "recovering the queue's segments");
        }
    }
}

/// A segment by its footer, or else by a scan, after which it is sealed.
fn load<D: Disk>(disk: &D, key: SegmentKey, damaged: &Damaged) -> Result<Segment<D>, RecoverError> {
    let failed = |error| RecoverError::Io("reading", key.name(), error);
    let file = Arc::new(disk.open(&key.name()).map_err(failed)?);
    let length = disk.length(&file).map_err(failed)?;
    if let Some(segment) = load_sealed(disk, key, &file, length) {
        return Ok(segment);
    }
    let mut entries: HashMap<TenantId, Vec<Entry>> = HashMap::new();
    let found = |offset, header: &Header, _: &[u8]| {
        if let Some((tenant, entry)) = entry_of(offset, header) {
            entries.entry(tenant).or_default().push(entry);
        }
    };
    let mut told = 0;
    let note = |offset, bytes: &[u8]| {
        told += 1;
        damaged.note((key, offset), bytes);
    };
    let end = scan_with((disk, &file, key), (SEGMENT_HEADER_BYTES, length), found, note).map_err(failed)?;
    damaged.add(end.damaged.saturating_sub(told));
    let slices = || entries.iter().map(|(tenant, entries)| (*tenant, entries.as_slice())).collect::<Vec<_>>();
    match seal(disk, (key, file.clone()), end.end, slices(), None) {
        Ok(segment) => Ok(segment),
        Err(error) => {
            // A full or read-only disk: it is scanned again at the next start.
            tracing::warn!(segment = key.name(), %error, "a segment cannot be sealed: its index stays in memory");
            let mut ranges: Vec<Range> =
                slices().iter().filter_map(|(tenant, entries)| Range::of(*tenant, entries)).collect();
            ranges.sort_unstable_by_key(|range| range.tenant);
            let repaired = entries.into_iter().map(|(tenant, entries)| (tenant, entries.into())).collect();
            let repaired = std::sync::Mutex::new(repaired);
            Ok(Segment {
                key,
                file,
                length,
                data_end: end.end,
                ranges,
                repaired,
                spoiled: AtomicBool::new(end.damaged > 0),
            })
        }
    }
}

/// A segment by its footer; `None` where that is not intact.
pub(crate) fn load_sealed<D: Disk>(disk: &D, key: SegmentKey, file: &Arc<D::File>, length: u64) -> Option<Segment<D>> {
    let seed = key.seed();
    let mut bytes = [0; TRAILER_BYTES];
    let at = length.checked_sub(TRAILER_BYTES as u64)?;
    disk.read_at(file, at, &mut bytes).ok()?;
    let trailer = Trailer::decode(&bytes, seed)?;
    let table_bytes = u64::from(trailer.ranges) * RANGE_BYTES as u64;
    if trailer.table_offset.checked_add(table_bytes)? > at || trailer.data_end > trailer.table_offset {
        return None;
    }
    let mut table = vec![0; usize::try_from(table_bytes).ok()?];
    disk.read_at(file, trailer.table_offset, &mut table).ok()?;
    let ranges = trailer.table(&table, seed)?;
    let (data_end, repaired) = (trailer.data_end, Default::default());
    Some(Segment { key, file: file.clone(), length, data_end, ranges, repaired, spoiled: AtomicBool::new(false) })
}

impl Facts {
    fn note_header(&mut self, header: Option<SegmentHeader>) {
        if let Some(header) = header {
            self.newest_unix_ms = self.newest_unix_ms.max(header.created_unix_ms);
            self.epoch = self.epoch.max(header.epoch);
            self.tenants_next = self.tenants_next.max(header.tenants_next);
        }
    }

    fn note_segment<D: Disk>(&mut self, disk: &D, segment: &Segment<D>, damaged: &Damaged) {
        for range in &segment.ranges {
            self.highest = self.highest.max(range.last);
            if range.tenant != METADATA {
                let tenant = tenant_of_letters(range.tenant).unwrap_or(range.tenant);
                self.tenants_next = self.tenants_next.max(tenant.0.saturating_add(1));
            }
        }
        let Some(range) = segment.range(METADATA) else { return };
        let wanted = Wanted { tenant: METADATA, after: Sequence::ZERO, bytes_max: usize::MAX };
        let Ok(entries) = segment.entries_after(disk, &range, wanted) else { return };
        let run = Run { key: segment.key, file: segment.file.clone(), entries };
        let read = fetch(disk, &run, damaged, |_, record| {
            if let Some((header, payload)) = record {
                self.note_record(header, &payload);
            }
        });
        if let Err(error) = read {
            tracing::warn!(segment = segment.key.name(), %error, "tenants and cursors of a segment cannot be read");
        }
    }

    fn note_record(&mut self, header: &Header, payload: &[u8]) {
        self.newest_unix_ms = self.newest_unix_ms.max(header.received_unix_ms);
        match Kind::from_number(header.kind) {
            Some(Kind::Tenant) => {
                let Some((record, cursors)) = record::take_tenant(payload) else { return };
                cursors.into_iter().for_each(|cursor| self.note_cursor(header.sequence, cursor));
                self.tenants_next = self.tenants_next.max(header.tenant.saturating_add(1));
                let known = self.tenants.get(&TenantId(header.tenant));
                if known.is_none_or(|(sequence, _)| *sequence < header.sequence) {
                    self.tenants.insert(TenantId(header.tenant), (header.sequence, record));
                }
            }
            Some(Kind::Forgotten) => {
                self.tenants_next = self.tenants_next.max(header.tenant.saturating_add(1));
                self.forgotten.insert(TenantId(header.tenant));
            }
            Some(Kind::Roster) => {
                let Some((next, ids)) = record::take_roster(payload) else { return };
                self.tenants_next = self.tenants_next.max(next);
                if self.roster.as_ref().is_none_or(|(sequence, ..)| *sequence < header.sequence) {
                    self.roster = Some((header.sequence, next, ids.into_iter().collect()));
                }
            }
            Some(Kind::Sources) => self.replaced.extend(record::take_sources(payload)),
            Some(Kind::Cursors) => {
                let cursors = record::take_cursors(payload).unwrap_or_default();
                cursors.into_iter().for_each(|cursor| self.note_cursor(header.sequence, cursor));
            }
            Some(Kind::Letters) => {
                for (tenant, state) in letters::take_states(payload).unwrap_or_default() {
                    let known = self.letters.get(&tenant);
                    if known.is_none_or(|(sequence, _)| *sequence < header.sequence) {
                        self.letters.insert(tenant, (header.sequence, state));
                    }
                }
            }
            Some(Kind::Data | Kind::DeadLetter) | None => {}
        }
    }

    fn note_saved(&mut self, saved: Option<Saved>) {
        let Some(saved) = saved else { return };
        self.epoch = self.epoch.max(saved.epoch);
        self.tenants_next = self.tenants_next.max(saved.tenants_next);
        // Before all of the log: at equal positions the log's cursor wins, since it knows what is done beyond.
        saved.cursors.into_iter().for_each(|cursor| self.note_cursor(Sequence::ZERO, cursor));
    }

    fn note_cursor(&mut self, at: Sequence, cursor: CursorState) {
        let known = self.cursors.entry((cursor.tenant, cursor.of.clone()));
        let known = known.or_insert_with(|| (at, cursor.clone()));
        if (known.1.acknowledged, known.0) <= (cursor.acknowledged, at) {
            *known = (at, cursor);
        }
    }

    /// Whether it was forgotten. Old segments name such tenants for as long as they are needed for others.
    fn is_gone(&self, id: TenantId) -> bool {
        let in_roster = |(_, next, ids): &(Sequence, u32, HashSet<TenantId>)| id.0 >= *next || ids.contains(&id);
        self.forgotten.contains(&id) || !self.roster.as_ref().is_none_or(in_roster)
    }

    /// Tenants of cursors that nobody has any more: sled may still have them.
    fn strays(&self) -> Vec<TenantId> {
        let mut strays: Vec<_> = self.cursors.keys().map(|(id, _)| *id).filter(|id| self.is_gone(*id)).collect();
        strays.sort_unstable();
        strays.dedup();
        strays
    }

    /// Above everything: a number that was given before a crash is never given again.
    fn next_epoch(&self) -> u32 {
        let sequences = self.cursors.values().map(|(_, cursor)| cursor.acknowledged).chain([self.highest]);
        let highest = sequences.map(|sequence| sequence.0 >> COUNTER_BITS).max().unwrap_or(0);
        self.epoch.max(u32::try_from(highest).unwrap_or(u32::MAX)).saturating_add(1)
    }

    fn into_tenants<D: Disk>(mut self, disk: &D, index: &Index<D>) -> Tenants {
        let mut tenants = Tenants::new(self.tenants_next);
        for (id, (_, record)) in self.tenants.iter().filter(|(id, _)| !self.is_gone(**id)) {
            tenants.insert(*id, record.clone());
        }
        for (_, cursor) in self.cursors.values() {
            tenants.move_cursor(cursor);
        }
        let states = std::mem::take(&mut self.letters);
        let sealed = index.sealed();
        let mut ranges = Vec::new();
        for segment in &sealed {
            for range in segment.ranges.iter().filter(|range| range.tenant != METADATA) {
                let Some(id) = tenant_of_letters(range.tenant) else {
                    ranges.push(range);
                    continue;
                };
                let state = states.get(&id).map(|(_, state)| state.clone()).unwrap_or_default();
                find_letters((disk, segment), range, (&mut tenants, id, &state));
            }
        }
        // Relocated ranges come in any order.
        ranges.sort_unstable_by_key(|range| (range.tenant, range.last));
        for range in ranges {
            if tenants.find(range.tenant).is_none() && !self.is_gone(range.tenant) {
                tracing::error!(
                    tenant = range.tenant.0,
                    records = range.count,
                    "records of a tenant whose name is lost cannot be delivered"
                );
            }
            // A range is charged until it is passed wholly: what a start knows without looking at all of its index.
            let known = tenants.find(range.tenant).and_then(|tenant| tenant.live_bytes(range));
            tenants.append(range.tenant, range.last, known.unwrap_or_else(|| range.bytes.iter().sum()));
            tenants.give_back(range.tenant);
        }
        tenants
    }
}

fn find_letters<D: Disk>(
    (disk, segment): (&D, &Segment<D>),
    range: &Range,
    (tenants, id, state): (&mut Tenants, TenantId, &letters::State),
) {
    let Some(found) = tenants.letters_mut(id) else { return };
    if found.is_empty() {
        *found = Letters::recovered(state);
    }
    let wanted = Wanted { tenant: range.tenant, after: Sequence::ZERO, bytes_max: usize::MAX };
    match segment.entries_after(disk, range, wanted) {
        Ok(entries) => entries.iter().for_each(|entry| found.find(entry.sequence, entry.length, state)),
        Err(error) => {
            tracing::warn!(segment = segment.key.name(), %error, "the dead letters of a segment cannot be listed");
        }
    }
}

fn recovered<D: Disk>(disk: &D, index: &Index<D>, id: TenantId, tenant: &Tenant) -> RecoveredTenant {
    let mut pending_items = [0; 3];
    for segment in index.sealed() {
        let Some(range) = segment.range(id) else { continue };
        for (signal, pending) in Signal::ALL.into_iter().zip(&mut pending_items) {
            *pending += pending_in(disk, &segment, &range, (tenant, signal));
        }
    }
    RecoveredTenant {
        id,
        record: tenant.record.clone(),
        last: tenant.last,
        cursors: tenant.cursors.values().cloned().collect(),
        pending_items,
    }
}

fn pending_in<D: Disk>(disk: &D, segment: &Segment<D>, range: &Range, (tenant, signal): (&Tenant, Signal)) -> u64 {
    let all = range.items[signal.index()];
    if all == 0 || range.last <= tenant.floor(signal) {
        return 0;
    }
    if range.first > tenant.ceiling(signal) {
        return all;
    }
    let wanted = Wanted { tenant: range.tenant, after: Sequence::ZERO, bytes_max: usize::MAX };
    let entries = segment.entries_after(disk, range, wanted).unwrap_or_default();
    let pending = entries.iter().filter(|entry| tenant.is_pending(entry)).filter_map(Entry::items);
    pending.filter(|(of, _)| *of == signal).map(|(_, items)| u64::from(items)).sum()
}
