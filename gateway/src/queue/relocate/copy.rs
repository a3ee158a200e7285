//! Copying what is live of some segments into one.
//!
//! Owns the target until it is handed over: a file that has the name of a spare, so that a crash leaves nothing but a spare. It
//! checks both checksums of what it copies. A record that cannot be read ends the copy, and its segment stays where it is until
//! all of it is done: what a disk refuses today it may give tomorrow, and people may want to look at what is damaged.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crc32c::crc32c_append;

use super::super::appender::seal;
use super::super::damaged::Damaged;
use super::super::disk::Disk;
use super::super::footer::{Entry, METADATA};
use super::super::format::SegmentKey;
use super::super::index::{Run, Segment, entry_of};
use super::super::reader::fetch;
use super::super::record::{self, HEADER_BYTES, Header, Kind};
use super::{Feed, Plan, STEP_BYTES, Standing};
use crate::base::{Sequence, TenantId};

/// Written bytes after which they are synced, so that no sync has much to do.
const SYNC_BYTES: u64 = 4 << 20;

/// A copy that is under way.
#[derive(Debug)]
pub(crate) struct Copy<D: Disk> {
    sources: Vec<Arc<Segment<D>>>,
    standing: Box<Standing>,
    lent: u64,
    /// Tenants after the present one, the next one last.
    owners: Vec<TenantId>,
    feeds: Vec<Feed<D>>,
    target: Target<D>,
}

/// What is written so far.
#[derive(Debug)]
struct Target<D: Disk> {
    key: SegmentKey,
    file: Option<Arc<D::File>>,
    written: u64,
    unsynced: u64,
    buffer: Vec<u8>,
    /// The target's size bounds them.
    entries: Vec<(TenantId, Vec<Entry>)>,
    next: Sequence,
}

impl<D: Disk> Copy<D> {
    /// Nothing is done yet.
    pub(super) fn new(Plan { sources, bytes, standing }: Plan<D>, key: SegmentKey) -> Self {
        let mut owners: Vec<_> = sources.iter().flat_map(|segment| &segment.ranges).map(|range| range.tenant).collect();
        owners.sort_unstable_by(|one, other| other.cmp(one));
        owners.dedup();
        let target = Target {
            key,
            file: None,
            written: 0,
            unsynced: 0,
            buffer: standing.header.encode(key).to_vec(),
            entries: Vec::new(),
            next: standing.first,
        };
        Self { sources, standing, lent: bytes, owners, feeds: Vec::new(), target }
    }

    /// Copies some; the target when it is complete, sealed and durable.
    pub(super) fn step(&mut self, disk: &D, damaged: &Damaged) -> io::Result<Option<Segment<D>>> {
        let file = match self.target.file.clone() {
            Some(file) => file,
            None => {
                let file = Arc::new(disk.create(&self.target.key.free_name(), self.lent)?);
                self.target.file = Some(file.clone());
                file
            }
        };
        while self.target.buffer.len() < STEP_BYTES {
            let run = self.next_run(disk)?;
            // By a reader, or by the run before: nothing is sealed past this.
            self.refuse_spoiled()?;
            if !run.entries.is_empty() {
                let mut is_spoiled = false;
                fetch(disk, &run, damaged, |_, record| match record {
                    Some((header, payload)) => self.target.put(*header, &payload),
                    None => is_spoiled = true,
                })?;
                if is_spoiled {
                    let source = self.sources.iter().find(|segment| segment.key == run.key);
                    source.inspect(|segment| segment.spoiled.store(true, Ordering::Relaxed));
                }
            } else if !self.next_owner() {
                self.put_metadata();
                self.target.write_out(disk, &file)?;
                return self.target.seal(disk, &file).map(Some);
            }
        }
        self.target.write_out(disk, &file)?;
        Ok(None)
    }

    fn refuse_spoiled(&self) -> io::Result<()> {
        match self.sources.iter().find(|segment| segment.is_spoiled()) {
            Some(segment) => Err(io::Error::other(format!("a record of {} cannot be read", segment.key.name()))),
            None => Ok(()),
        }
    }

    /// What it copies to, and how much room it was given.
    pub(super) fn target(&self) -> (SegmentKey, u64) {
        (self.target.key, self.lent)
    }

    /// Lets the file go. Gives back how much room it was given.
    pub(super) fn give_up(self, disk: &D) -> u64 {
        if self.target.file.is_some() {
            drop(disk.remove(&self.target.key.free_name()));
        }
        self.lent
    }

    /// What was copied, and the room that was given.
    pub(super) fn into_sources(self) -> (Vec<Arc<Segment<D>>>, u64) {
        (self.sources, self.lent)
    }

    /// Goes on with the next tenant; false if there is none.
    fn next_owner(&mut self) -> bool {
        let Some(owner) = self.owners.pop() else { return false };
        let standing = &self.standing;
        let ranges = self.sources.iter().filter_map(|segment| Some((segment, segment.range(owner)?)));
        let live = ranges.filter(|(_, range)| standing.live_bytes(range) != Some(0));
        self.feeds = live.map(|(segment, range)| Feed::new(segment.clone(), range)).collect();
        self.target.entries.push((owner, Vec::new()));
        true
    }

    /// The present tenant's next live records, as far as they are in one source and can be read at once. Empty at its end.
    fn next_run(&mut self, disk: &D) -> io::Result<Run<D>> {
        let mut run: Option<(usize, Vec<Entry>)> = None;
        let mut bytes = 0;
        loop {
            let mut first: Option<(usize, Entry)> = None;
            for number in 0..self.feeds.len() {
                let Some(entry) = self.feeds[number].peek(disk)? else { continue };
                match first {
                    Some((_, other)) if other.sequence < entry.sequence => {}
                    // A record that an earlier crash has left in two segments.
                    Some((_, other)) if other.sequence == entry.sequence => self.feeds[number].skip(),
                    _ => first = Some((number, entry)),
                }
            }
            let Some((number, entry)) = first else { break };
            let owner = self.feeds[number].range.tenant;
            if self.standing.is_live(owner, &entry) {
                bytes += entry.length as usize;
                match &mut run {
                    Some((of, entries)) if *of == number && bytes <= STEP_BYTES => entries.push(entry),
                    Some(_) => break,
                    None => run = Some((number, vec![entry])),
                }
            }
            self.feeds[number].skip();
        }
        let (number, entries) = run.unwrap_or_default();
        let segment = self.feeds.get(number).map_or(&self.sources[0], |feed| &feed.segment);
        Ok(Run { key: segment.key, file: segment.file.clone(), entries })
    }

    /// Whose records these are, and which segments they were in.
    fn put_metadata(&mut self) {
        let now = self.standing.header.created_unix_ms;
        let mut payload = Vec::new();
        let copied = self.target.entries.iter().filter(|(_, entries)| !entries.is_empty());
        let owners = copied.filter_map(|(of, _)| self.standing.owner(*of));
        let owners: BTreeMap<_, _> = owners.map(|(id, tenant)| (id, tenant.record.clone())).collect();
        for (owner, record) in owners {
            payload.clear();
            record::put_tenant(&mut payload, &record);
            self.target.put_own(Kind::Tenant, (owner, now), &payload);
        }
        let ids: Vec<_> = self.sources.iter().map(|segment| segment.key.id).collect();
        payload.clear();
        record::put_sources(&mut payload, &ids);
        // Twice: without it everything would be there twice after a crash.
        for _ in 0..2 {
            self.target.put_own(Kind::Sources, (TenantId(0), now), &payload);
        }
    }
}

impl<D: Disk> Target<D> {
    /// Adds a record of the target's own.
    fn put_own(&mut self, kind: Kind, (tenant, now_unix_ms): (TenantId, u64), payload: &[u8]) {
        let header = Header {
            kind: kind as u8,
            signal: 0,
            tenant: tenant.0,
            items: 0,
            sequence: self.next,
            received_unix_ms: now_unix_ms,
            length: u32::try_from(payload.len()).expect("a tenant's record and a list of segments are short"),
            payload_crc: 0,
        };
        self.next = self.next.next();
        self.put(header, payload);
    }

    /// Adds a record as it is; only the checksums are of its new place.
    fn put(&mut self, header: Header, payload: &[u8]) {
        let offset = self.written + self.buffer.len() as u64;
        let seed = self.key.seed().at(offset);
        let header = Header { payload_crc: crc32c_append(seed, payload), ..header };
        let Some((owner, entry)) = entry_of(offset, &header) else { return };
        self.buffer.extend_from_slice(&header.encode(seed));
        self.buffer.extend_from_slice(payload);
        let padding = header.stride() - (HEADER_BYTES + payload.len()) as u64;
        self.buffer.extend_from_slice(&[0; 8][..usize::try_from(padding).expect("less than 8")]);
        match self.entries.last_mut() {
            Some((of, entries)) if *of == owner => entries.push(entry),
            _ => self.entries.push((owner, vec![entry])),
        }
    }

    fn write_out(&mut self, disk: &D, file: &Arc<D::File>) -> io::Result<()> {
        disk.write_at(file, self.written, &mut [IoSlice::new(&self.buffer)])?;
        self.written += self.buffer.len() as u64;
        self.unsynced += self.buffer.len() as u64;
        self.buffer.clear();
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            disk.sync(file)?;
        }
        Ok(())
    }

    fn seal(&mut self, disk: &D, file: &Arc<D::File>) -> io::Result<Segment<D>> {
        let entries = std::mem::take(&mut self.entries);
        let slices = entries.iter().map(|(owner, entries)| (*owner, entries.as_slice())).collect();
        debug_assert!(entries.iter().filter(|(owner, _)| *owner == METADATA).count() <= 1);
        seal(disk, (self.key, file.clone()), self.written, slices, None)
    }
}
