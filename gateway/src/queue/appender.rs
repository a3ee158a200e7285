//! Putting records at the end of the log.
//!
//! Owns the open segment: where its records end, what is planned and not yet written, what is written and not yet
//! committed. It knows nothing of waiters. After a failed call the caller poisons the log and uses it no more.
//!
//! ```text
//! stage      planned: bytes in the scratch, positions given
//! write_out  written: one vectored write of all that is planned
//! sync       durable
//! publish    committed: readers see it
//! seal       index, table and trailer written and synced: the segment is closed for good
//! ```

use std::io::{self, IoSlice};
use std::ops::Range as Span;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crc32c::crc32c_append;

use super::MinFree;
use super::disk::Disk;
use super::footer::{self, Entry, RANGE_BYTES};
use super::format::{SEGMENT_HEADER_BYTES, Seed, SegmentHeader, SegmentKey};
use super::group::Request;
use super::index::{Index, Segment, entry_of};
use super::letters;
use super::record::{self, Header, Kind};
use super::space::{Failure, Space};
use super::stats::Stats;
use super::tenants::Tenants;
use crate::base::{Sequence, TenantId};

/// Payloads up to this length are copied: cheaper than one more part of a vectored write.
const COPIED_BYTES_MAX: usize = 512;

/// The writing end of the log.
#[derive(Debug)]
pub(crate) struct Appender<D: Disk> {
    disk: Arc<D>,
    index: Arc<Index<D>>,
    stats: Arc<Stats>,
    /// Files to go on with.
    pub(crate) space: Space<D>,
    /// Which log, and which boot.
    identity: SegmentHeader,
    next: Sequence,
    open: Option<Open<D>>,
    scratch: Vec<u8>,
    pieces: Vec<Piece>,
    staged: Vec<(TenantId, Entry)>,
    unsynced: bool,
    min_free: MinFree,
}

#[derive(Debug)]
struct Open<D: Disk> {
    key: SegmentKey,
    seed: Seed,
    file: Arc<D::File>,
    length: u64,
    records: usize,
    /// Tenants that may have records in it, those that were forgotten meanwhile included.
    tenants: usize,
    written: u64,
    end: u64,
}

/// A part of the next write.
#[derive(Debug)]
enum Piece {
    Scratch(Span<usize>),
    Payload(Source),
}

/// Where a payload is that is not copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source {
    /// Position of the request in its group.
    pub(crate) request: usize,
    /// Position of the part in the request.
    pub(crate) part: usize,
}

/// What a record says beside its payload.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fields {
    /// What it is.
    pub(crate) kind: Kind,
    /// `Signal` as a number, or 0.
    pub(crate) signal: u8,
    /// Whose, or 0.
    pub(crate) tenant: TenantId,
    /// Items in it.
    pub(crate) items: u32,
    /// When it was received.
    pub(crate) received_unix_ms: u64,
}

impl Fields {
    /// Of a record that is neither data nor anybody's.
    pub(crate) fn metadata(kind: Kind, tenant: TenantId, now_unix_ms: u64) -> Self {
        Self { kind, signal: 0, tenant, items: 0, received_unix_ms: now_unix_ms }
    }
}

impl<D: Disk> Appender<D> {
    /// Nothing is open until the first record.
    pub(crate) fn new(
        (disk, index, stats): (Arc<D>, Arc<Index<D>>, Arc<Stats>),
        space: Space<D>,
        (identity, min_free): (SegmentHeader, MinFree),
        next: Sequence,
    ) -> Self {
        Self {
            disk,
            index,
            stats,
            space,
            identity,
            next,
            open: None,
            scratch: Vec::new(),
            pieces: Vec::new(),
            staged: Vec::new(),
            unsynced: false,
            min_free,
        }
    }

    /// Whether something written is not durable yet.
    pub(crate) fn is_unsynced(&self) -> bool {
        self.unsynced
    }

    /// Whether a segment is open.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether the filesystem has less space than it must keep. One that cannot tell has enough.
    pub(crate) fn is_low(&self) -> bool {
        self.disk.free().is_ok_and(|free| self.min_free.is_short(free))
    }

    /// What the filesystem has left, if it can tell.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        self.disk.free().ok().map(|free| free.available)
    }

    /// Which log, and which boot.
    pub(crate) fn identity(&self) -> SegmentHeader {
        self.identity
    }

    /// Gives so many positions away, of which this is the first.
    pub(crate) fn reserve(&mut self, count: u64) -> Sequence {
        let first = self.next;
        self.next = Sequence(first.0 + count);
        first
    }

    /// The log's files.
    pub(crate) fn disk(&self) -> &D {
        &self.disk
    }

    /// The next record's position.
    pub(crate) fn next(&self) -> Sequence {
        self.next
    }

    /// The boot epoch.
    pub(crate) fn epoch(&self) -> u32 {
        self.identity.epoch
    }

    /// Bytes left for records in the open segment.
    pub(crate) fn room(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| {
            let footer = footer::footer_bytes_max(open.records, open.tenants);
            open.length.saturating_sub(open.end + footer)
        })
    }

    /// One more tenant, or the dead letters of one, may have records from now on.
    pub(crate) fn note_tenant(&mut self) {
        if let Some(open) = &mut self.open {
            open.tenants += 1;
        }
    }

    /// Bytes for records in a segment that has just been begun.
    pub(crate) fn fresh_room(&self, tenants: &mut Tenants) -> u64 {
        let footer = footer::footer_bytes_max(0, tenants.len());
        let head = SEGMENT_HEADER_BYTES + self.snapshot_bytes(tenants);
        self.space.segment_bytes.saturating_sub(head + footer)
    }

    /// What a record takes of a segment's room, its share of the index included.
    pub(crate) fn cost(length: usize) -> u64 {
        footer::cost(length)
    }

    /// Bytes that the copy of tenants and cursors takes in a new segment.
    fn snapshot_bytes(&self, tenants: &mut Tenants) -> u64 {
        tenants.snapshot_bytes().min(self.space.segment_bytes / 2)
    }

    /// Whether one more tenant can be kept at all.
    pub(crate) fn has_room_for_tenants(&self, tenants: &mut Tenants) -> bool {
        tenants.snapshot_bytes() + (tenants.len() * RANGE_BYTES) as u64 <= self.space.segment_bytes / 4
    }

    /// Goes on in a new segment unless the open one has room for a record of this length.
    pub(crate) fn make_room(
        &mut self,
        length: usize,
        tenants: &mut Tenants,
        (requests, now_unix_ms): (&[Request], u64),
    ) -> Result<(), Failure> {
        if self.open.is_some() && Self::cost(length) <= self.room() {
            return Ok(());
        }
        if self.open.is_some() {
            self.write_out(requests)?;
            self.seal(false)?;
        }
        self.begin(length, tenants, now_unix_ms)
    }

    /// Of a segment that is begun for a record of this length, at least.
    pub(crate) fn bytes_to_begin(&self, length: usize, tenants: &mut Tenants) -> u64 {
        let footer = footer::footer_bytes_max(0, tenants.len());
        SEGMENT_HEADER_BYTES + self.snapshot_bytes(tenants) + footer + Self::cost(length)
    }

    fn begin(&mut self, length: usize, tenants: &mut Tenants, now_unix_ms: u64) -> Result<(), Failure> {
        let header = SegmentHeader { created_unix_ms: now_unix_ms, tenants_next: tenants.next(), ..self.identity };
        let bytes = self.bytes_to_begin(length, tenants);
        let (key, file, length) = self.space.take(&header, bytes)?;
        self.index.begin(key, file.clone());
        let start = SEGMENT_HEADER_BYTES;
        let tenants_now = tenants.len();
        self.open = Some(Open {
            key,
            seed: key.seed(),
            file,
            length,
            records: 0,
            tenants: tenants_now,
            written: start,
            end: start,
        });
        self.stage_snapshot(tenants, now_unix_ms);
        Ok(())
    }

    /// A copy of everything known, so that no older segment is needed for it.
    fn stage_snapshot(&mut self, tenants: &mut Tenants, now_unix_ms: u64) {
        let with_beyond = tenants.snapshot_bytes() <= self.space.segment_bytes / 4;
        let mut payload = Vec::new();
        let cursors = Fields::metadata(Kind::Cursors, TenantId(0), now_unix_ms);
        for copy in 0..2 {
            for (id, tenant) in tenants.iter() {
                payload.clear();
                record::put_tenant(&mut payload, &tenant.record);
                self.stage(Fields::metadata(Kind::Tenant, id, now_unix_ms), &payload, &[], None);
            }
            payload.clear();
            record::put_roster(&mut payload, tenants.next(), tenants.iter().map(|(id, _)| id));
            self.stage(Fields::metadata(Kind::Roster, TenantId(0), now_unix_ms), &payload, &[], None);
            if copy == 1 {
                break;
            }
            payload.clear();
            for cursor in tenants.iter().flat_map(|(_, tenant)| tenant.cursors.values()) {
                record::put_cursor(&mut payload, cursor, with_beyond);
                if payload.len() >= record::CURSORS_BYTES_MAX {
                    self.stage(cursors, &payload, &[], None);
                    payload.clear();
                }
            }
            if !payload.is_empty() {
                self.stage(cursors, &payload, &[], None);
            }
        }
        payload.clear();
        let states = tenants.iter().filter_map(|(id, tenant)| Some((id, tenant.letters.state()?)));
        for (id, state) in states {
            letters::put_state(&mut payload, id, &state);
            if payload.len() >= record::CURSORS_BYTES_MAX {
                self.stage(Fields::metadata(Kind::Letters, TenantId(0), now_unix_ms), &payload, &[], None);
                payload.clear();
            }
        }
        if !payload.is_empty() {
            self.stage(Fields::metadata(Kind::Letters, TenantId(0), now_unix_ms), &payload, &[], None);
        }
    }

    /// Plans a record whose payload is `head` and then `body`; there must be room. The body is copied unless it is long
    /// and its `source` is known.
    pub(crate) fn stage(&mut self, fields: Fields, head: &[u8], body: &[u8], source: Option<Source>) -> Sequence {
        let open = self.open.as_mut().expect("make_room has opened a segment");
        let sequence = self.next;
        self.next = sequence.next();
        let seed = open.seed.at(open.end);
        let header = Header {
            kind: fields.kind as u8,
            signal: fields.signal,
            tenant: fields.tenant.0,
            items: fields.items,
            sequence,
            received_unix_ms: fields.received_unix_ms,
            length: u32::try_from(head.len() + body.len()).expect("a payload is at most a few MiB"),
            payload_crc: crc32c_append(crc32c_append(seed, head), body),
        };
        let start = self.scratch.len();
        self.scratch.extend_from_slice(&header.encode(seed));
        self.scratch.extend_from_slice(head);
        let start = match source.filter(|_| body.len() > COPIED_BYTES_MAX) {
            Some(source) => {
                push_scratch(&mut self.pieces, start..self.scratch.len());
                self.pieces.push(Piece::Payload(source));
                self.scratch.len()
            }
            None => {
                self.scratch.extend_from_slice(body);
                start
            }
        };
        let stride = header.stride();
        let padding = stride - (record::HEADER_BYTES + head.len() + body.len()) as u64;
        self.scratch.extend_from_slice(&[0; 8][..usize::try_from(padding).expect("less than 8")]);
        push_scratch(&mut self.pieces, start..self.scratch.len());
        self.staged.extend(entry_of(open.end, &header));
        open.end += stride;
        open.records += 1;
        self.stats.records.fetch_add(1, Ordering::Relaxed);
        self.stats.payload_bytes.fetch_add(u64::from(header.length), Ordering::Relaxed);
        sequence
    }

    /// Writes all that is planned. `requests` are those that the sources speak of.
    pub(crate) fn write_out(&mut self, requests: &[Request]) -> Result<(), Failure> {
        let Some(open) = self.open.as_mut().filter(|open| open.end > open.written) else { return Ok(()) };
        let mut parts: Vec<IoSlice<'_>> = self
            .pieces
            .iter()
            .map(|piece| match piece {
                Piece::Scratch(span) => IoSlice::new(&self.scratch[span.clone()]),
                Piece::Payload(source) => IoSlice::new(requests[source.request].payload(source.part)),
            })
            .collect();
        self.disk
            .write_at(&open.file, open.written, &mut parts)
            .map_err(|error| Failure::Io("writing to the log", named(open.key, &error)))?;
        open.written = open.end;
        self.unsynced = true;
        self.scratch.clear();
        self.pieces.clear();
        Ok(())
    }

    /// Makes all that is written durable.
    pub(crate) fn sync(&mut self) -> Result<(), Failure> {
        let Some(open) = self.open.as_ref().filter(|_| self.unsynced) else { return Ok(()) };
        self.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.disk.sync(&open.file).map_err(|error| Failure::Io("syncing the log", named(open.key, &error)))?;
        self.unsynced = false;
        Ok(())
    }

    /// Shows readers what is written.
    pub(crate) fn publish(&mut self) {
        if !self.staged.is_empty() {
            self.index.publish(self.staged.drain(..));
        }
    }

    /// Closes the open segment for good. `shorten`: its unused blocks go back to the filesystem.
    pub(crate) fn seal(&mut self, shorten: bool) -> Result<(), Failure> {
        self.sync()?;
        self.publish();
        let Some(open) = self.open.take() else { return Ok(()) };
        let length = (!shorten).then_some(open.length);
        let key = open.key;
        let failed = |error| Failure::Io("sealing a segment", named(key, &error));
        let sealed = self
            .index
            .with_open(|entries| seal(&*self.disk, (open.key, open.file.clone()), open.end, entries, length))
            .expect("the open segment is in the index")
            .map_err(failed)?;
        self.stats.syncs.fetch_add(1, Ordering::Relaxed);
        self.space.used_bytes -= open.length - sealed.length.min(open.length);
        self.index.add_sealed(sealed);
        Ok(())
    }
}

/// The same error, with the file that it is about.
fn named(key: SegmentKey, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", key.name()))
}

fn push_scratch(pieces: &mut Vec<Piece>, span: Span<usize>) {
    match pieces.last_mut() {
        Some(Piece::Scratch(last)) if last.end == span.start => last.end = span.end,
        _ if span.is_empty() => {}
        _ => pieces.push(Piece::Scratch(span)),
    }
}

/// Writes and syncs the footer of a segment whose records end at `data_end`. Without a `length` the file ends with it.
pub(crate) fn seal<D: Disk>(
    disk: &D,
    (key, file): (SegmentKey, Arc<D::File>),
    data_end: u64,
    entries: Vec<(TenantId, &[Entry])>,
    length: Option<u64>,
) -> io::Result<Segment<D>> {
    let (body, trailer, ranges) = footer::encode(key.seed(), data_end, entries);
    let needed = data_end + (body.len() + trailer.len()) as u64;
    let length = length.unwrap_or(needed).max(needed);
    if length == needed {
        disk.write_at(&file, data_end, &mut [IoSlice::new(&body), IoSlice::new(&trailer)])?;
    } else {
        disk.write_at(&file, data_end, &mut [IoSlice::new(&body)])?;
        disk.write_at(&file, length - trailer.len() as u64, &mut [IoSlice::new(&trailer)])?;
    }
    disk.sync(&file)?;
    if disk.length(&file)? > length {
        disk.resize(&file, length)?;
        disk.sync(&file)?;
    }
    Ok(Segment { key, file, length, data_end, ranges, repaired: Default::default(), spoiled: AtomicBool::new(false) })
}
