//! Reading one tenant's records back, in order.
//!
//! Owns nothing: it takes places from the index and bytes from the disk, and checks both checksums of every record. What is
//! damaged is never returned: it is counted, kept aside, and named by what the index says of it. It reads committed records
//! only, since no others are in the index.

use std::io;

use bytes::Bytes;
use crc32c::crc32c_append;

use super::damaged::Damaged;
use super::disk::Disk;
use super::footer::Entry;
use super::index::{Index, Run, Wanted};
use super::letters::owner_of_letters;
use super::record::{HEADER_BYTES, Header, Kind, stride, take_letter};
use super::{DeadLetter, Overdue, Read, Stored};
use crate::base::{Sequence, Signal, TenantId};

/// Records that lie close together are read at once, up to so many bytes.
const RUN_BYTES_MAX: u64 = 256 * 1024;

/// Reads what is wanted: at least one record if there is one, then up to the bytes.
pub(crate) fn read<D: Disk>(disk: &D, index: &Index<D>, damaged: &Damaged, mut wanted: Wanted) -> io::Result<Read> {
    let mut out = Read { records: Vec::new(), damaged: Vec::new(), through: wanted.after };
    let mut left = wanted.bytes_max;
    while out.records.is_empty() || left > 0 {
        let Some(place) = index.find(disk, Wanted { bytes_max: left, ..wanted })? else { break };
        let entries = place.runs.iter().flat_map(|run| &run.entries);
        let size: usize = entries.map(|entry| entry.length as usize).sum();
        if !out.records.is_empty() && size > left {
            break;
        }
        for run in &place.runs {
            fetch(disk, run, damaged, |entry, record| {
                let Some((header, payload)) = record else { return out.damaged.extend(missing(entry)) };
                let signal = Signal::from_number(header.signal);
                // The index is checked, so a record of somebody else is a fault of ours: it is not handed out.
                let is_wanted = header.kind == Kind::Data as u8 && header.tenant == wanted.tenant.0;
                if let Some(signal) = signal.filter(|_| is_wanted) {
                    out.records.push(Stored {
                        sequence: header.sequence,
                        signal,
                        items: header.items,
                        received_unix_ms: header.received_unix_ms,
                        payload,
                    });
                }
            })?;
        }
        left = left.saturating_sub(size.max(1));
        out.through = place.through;
        wanted.after = place.through;
    }
    Ok(out)
}

/// Records from `wanted.after` on that were appended before the limit, at most so many, by their headers alone.
pub(crate) fn overdue<D: Disk>(
    disk: &D,
    index: &Index<D>,
    damaged: &Damaged,
    (mut wanted, limit_unix_ms, records_max): (Wanted, u64, usize),
) -> io::Result<Overdue> {
    let mut out = Overdue { records: Vec::new(), damaged: Vec::new(), through: wanted.after, next_unix_ms: None };
    while let Some(place) = index.find(disk, wanted)? {
        for (run, entry) in place.runs.iter().flat_map(|run| run.entries.iter().map(move |entry| (run, entry))) {
            if out.records.len() >= records_max {
                return Ok(out);
            }
            let bytes = match read_exact(disk, run, entry.offset.into(), HEADER_BYTES as u64) {
                Err(error) if is_damage(&error) => Bytes::new(),
                read => read?,
            };
            let header = Header::decode(&bytes, run.key.seed().at(entry.offset.into()));
            match header.zip(entry.items()).filter(|(header, _)| header.sequence == entry.sequence) {
                Some((header, _)) if header.received_unix_ms >= limit_unix_ms => {
                    out.next_unix_ms = Some(header.received_unix_ms);
                    return Ok(out);
                }
                Some((header, (signal, items))) => out.records.push(Stored {
                    sequence: entry.sequence,
                    signal,
                    items,
                    received_unix_ms: header.received_unix_ms,
                    payload: Bytes::new(),
                }),
                None => {
                    damaged.note((run.key, entry.offset.into()), &bytes);
                    out.damaged.extend(missing(entry));
                }
            }
            out.through = entry.sequence;
        }
        out.through = place.through;
        wanted.after = place.through;
    }
    Ok(out)
}

/// When a record was appended, by its header alone.
pub(crate) fn appended_at<D: Disk>(disk: &D, run: &Run<D>, entry: &Entry) -> Option<u64> {
    let bytes = read_exact(disk, run, entry.offset.into(), HEADER_BYTES as u64).ok()?;
    let header = Header::decode(&bytes, run.key.seed().at(entry.offset.into()))?;
    Some(header.received_unix_ms)
}

/// The dead letter at a position, if it is there and intact.
pub(crate) fn letter<D: Disk>(
    disk: &D,
    index: &Index<D>,
    damaged: &Damaged,
    (wanted, sequence): (Wanted, Sequence),
) -> io::Result<Option<DeadLetter>> {
    let Some(place) = index.find(disk, wanted)? else { return Ok(None) };
    let is_in = |run: &Run<D>| run.entries.iter().any(|entry| entry.sequence == sequence);
    let Some(mut run) = place.runs.into_iter().find(is_in) else { return Ok(None) };
    run.entries.retain(|entry| entry.sequence == sequence);
    let mut letter = None;
    fetch(disk, &run, damaged, |_, record| {
        let Some((header, payload)) = record else { return };
        let is_wanted =
            header.kind == Kind::DeadLetter as u8 && owner_of_letters(TenantId(header.tenant)) == wanted.tenant;
        letter = is_wanted.then(|| take_letter(header, &payload)).flatten();
    })?;
    Ok(letter)
}

/// Calls `found` with each of the run's entries, and its record if that is intact; the others are counted and kept aside.
pub(crate) fn fetch<D: Disk>(
    disk: &D,
    run: &Run<D>,
    damaged: &Damaged,
    mut found: impl FnMut(&Entry, Option<(&Header, Bytes)>),
) -> io::Result<()> {
    let mut take = |entry: &Entry, start: u64, bytes: &Bytes| {
        let from = usize::try_from(u64::from(entry.offset) - start).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = bytes.slice(from..);
        match check(run, entry, &bytes) {
            Some((header, payload)) => found(entry, Some((&header, payload))),
            None => {
                let length = bytes.len().min(HEADER_BYTES + entry.length as usize);
                damaged.note((run.key, entry.offset.into()), &bytes[..length]);
                found(entry, None);
            }
        }
    };
    let mut rest = run.entries.as_slice();
    while let Some(first) = rest.first() {
        let (near, after) = rest.split_at(run_length(rest));
        rest = after;
        let start = u64::from(first.offset);
        match read_exact(disk, run, start, end_of(near.last().unwrap_or(first)) - start) {
            Ok(bytes) => near.iter().for_each(|entry| take(entry, start, &bytes)),
            // One bad sector costs its record, not its neighbours.
            Err(error) if is_damage(&error) => {
                for entry in near {
                    let start = u64::from(entry.offset);
                    match read_exact(disk, run, start, end_of(entry) - start) {
                        Ok(bytes) => take(entry, start, &bytes),
                        Err(error) if is_damage(&error) => take(entry, start, &Bytes::new()),
                        Err(error) => return Err(error),
                    }
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// How many of the entries to read at once: while at least half of what is read is wanted, so that a record which is kept
/// for long does not keep much more than itself.
fn run_length(entries: &[Entry]) -> usize {
    let start = u64::from(entries[0].offset);
    let mut useful = 0;
    let fits = |entry: &&Entry| {
        useful += stride(entry.length as usize);
        let span = end_of(entry) - start;
        useful == stride(entry.length as usize) || (span <= RUN_BYTES_MAX && useful * 2 >= span)
    };
    entries.iter().take_while(fits).count().max(1)
}

/// What the index says of a data record that is damaged.
fn missing(entry: &Entry) -> Option<Stored> {
    let (signal, items) = entry.items()?;
    Some(Stored { sequence: entry.sequence, signal, items, received_unix_ms: 0, payload: Bytes::new() })
}

fn end_of(entry: &Entry) -> u64 {
    u64::from(entry.offset) + (HEADER_BYTES + entry.length as usize) as u64
}

fn read_exact<D: Disk>(disk: &D, run: &Run<D>, offset: u64, length: u64) -> io::Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    let read = disk.read_at(&run.file, offset, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes.into())
}

fn is_damage(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

fn check<D: Disk>(run: &Run<D>, entry: &Entry, bytes: &Bytes) -> Option<(Header, Bytes)> {
    let seed = run.key.seed().at(entry.offset.into());
    let header = Header::decode(bytes, seed)?;
    let payload = bytes.get(HEADER_BYTES..HEADER_BYTES + header.length as usize)?;
    let is_it = header.sequence == entry.sequence && crc32c_append(seed, payload) == header.payload_crc;
    is_it.then(|| (header, bytes.slice_ref(payload)))
}
