//! What a sealed segment says about itself, so that neither a start nor a read has to look at all of it.
//!
//! Owns the bytes of index, table and trailer. No I/O.
//!
//! ```text
//! entry    = sequence u64 | offset u32 | length u32 | what u32                        20 bytes
//! what     = items << 2 | signal for data and dead letters (items above 2^30 - 1 are cut); kind << 2 for the rest
//! block    = entry * (1..=128) | crc u32, in order of sequence; a range's blocks are full but for its last
//! range    = tenant u32 | count u32 | first u64 | last u64 | 3 * (items u64) | 3 * (bytes u64) | index offset u32 | 0 u32
//!            80 bytes; bytes by signal are what the records take of the disk, see `Entry::cost`; the table is sorted by
//!            tenant. A tenant's dead letters have a range of their own, with the highest bit of its number set; tenant
//!            u32::MAX has all records that are neither
//! trailer  = magic 8 | version u32 | ranges u32 | table offset u64 | data end u64 | 0 u32 * 6
//!            | table crc u32 | trailer crc u32                                         64 bytes
//! ```
//! The checksums of blocks, table and trailer are seeded with where they begin.

use bytes::{Buf, BufMut};
use crc32c::crc32c_append;

use super::format::{Seed, VERSION, aligned};
use super::record::{self, Kind};
use crate::base::{Sequence, Signal, TenantId};

/// The range of all that is neither data nor a dead letter.
pub(crate) const METADATA: TenantId = TenantId(u32::MAX);
/// Entries of a full block.
pub(crate) const BLOCK_ENTRIES: usize = 128;
/// Length of an entry.
pub(crate) const ENTRY_BYTES: usize = 20;
/// Length of a range.
pub(crate) const RANGE_BYTES: usize = 80;
/// Length of a trailer.
pub(crate) const TRAILER_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"PILLNEND";
const ITEMS_MAX: u32 = (1 << 30) - 1;

/// Where one record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Its sequence.
    pub(crate) sequence: Sequence,
    /// Of its header in the segment.
    pub(crate) offset: u32,
    /// Of its payload.
    pub(crate) length: u32,
    what: u32,
}

impl Entry {
    /// An entry for a data record.
    pub(crate) fn data(sequence: Sequence, offset: u32, length: u32, signal: Signal, items: u32) -> Self {
        Self { sequence, offset, length, what: items.min(ITEMS_MAX) << 2 | signal as u32 }
    }

    /// An entry for any other record.
    pub(crate) fn metadata(sequence: Sequence, offset: u32, length: u32, kind: Kind) -> Self {
        Self { sequence, offset, length, what: (kind as u32) << 2 }
    }

    /// The signal and the items of a data record.
    pub(crate) fn items(&self) -> Option<(Signal, u32)> {
        let signal = Signal::ALL.into_iter().find(|signal| *signal as u32 == self.what & 3)?;
        Some((signal, self.what >> 2))
    }

    /// What its record takes of a segment, its share of the index included.
    pub(crate) fn cost(&self) -> u64 {
        cost(self.length as usize)
    }
}

/// What a segment holds of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Whose.
    pub(crate) tenant: TenantId,
    /// Records.
    pub(crate) count: u32,
    /// The first record.
    pub(crate) first: Sequence,
    /// The last record.
    pub(crate) last: Sequence,
    /// Items by signal.
    pub(crate) items: [u64; 3],
    /// What its records take of the disk, by signal.
    pub(crate) bytes: [u64; 3],
    /// Where its blocks begin.
    pub(crate) index_offset: u32,
}

impl Range {
    /// The range of entries that are in order; `index_offset` is to be set.
    pub(crate) fn of(tenant: TenantId, entries: &[Entry]) -> Option<Self> {
        let (first, last) = (entries.first()?, entries.last()?);
        let mut range = Self {
            tenant,
            count: u32::try_from(entries.len()).ok()?,
            first: first.sequence,
            last: last.sequence,
            items: [0; 3],
            bytes: [0; 3],
            index_offset: 0,
        };
        for entry in entries {
            if let Some((signal, items)) = entry.items() {
                range.items[signal.index()] += u64::from(items);
                range.bytes[signal.index()] += entry.cost();
            }
        }
        Some(range)
    }

    /// Number of its blocks.
    pub(crate) fn blocks(&self) -> usize {
        (self.count as usize).div_ceil(BLOCK_ENTRIES)
    }

    /// Offset in the segment and number of entries of a block.
    pub(crate) fn block(&self, number: usize) -> (u64, usize) {
        let offset = u64::from(self.index_offset) + (number * (BLOCK_ENTRIES * ENTRY_BYTES + 4)) as u64;
        (offset, (self.count as usize - number * BLOCK_ENTRIES).min(BLOCK_ENTRIES))
    }
}

/// What a record with a payload of so many bytes takes of a segment, its share of the index included.
pub(crate) fn cost(length: usize) -> u64 {
    record::stride(length) + ENTRY_BYTES as u64 + 1
}

/// An upper bound of the bytes that index, table and trailer take. A tenant's dead letters count as one more.
pub(crate) fn footer_bytes_max(records: usize, tenants: usize) -> u64 {
    (records * ENTRY_BYTES
        + (records / BLOCK_ENTRIES + tenants + 2) * 4
        + (tenants + 1) * RANGE_BYTES
        + TRAILER_BYTES
        + 16) as u64
}

/// The footer of a segment whose records end at `data_end`, and the table for memory. `length`: where the segment ends;
/// with `None` it ends right after what is returned.
pub(crate) fn encode(
    seed: Seed,
    data_end: u64,
    mut tenants: Vec<(TenantId, &[Entry])>,
) -> (Vec<u8>, Vec<u8>, Vec<Range>) {
    tenants.retain(|(_, entries)| !entries.is_empty());
    tenants.sort_unstable_by_key(|(tenant, _)| *tenant);
    let mut out = Vec::new();
    let mut ranges = Vec::with_capacity(tenants.len());
    for (tenant, entries) in tenants {
        let Some(mut range) = Range::of(tenant, entries) else { continue };
        range.index_offset = u32::try_from(data_end + out.len() as u64).unwrap_or(u32::MAX);
        for block in entries.chunks(BLOCK_ENTRIES) {
            put_block(&mut out, seed, data_end, block);
        }
        ranges.push(range);
    }
    out.resize(usize::try_from(aligned(out.len() as u64)).expect("a buffer's length"), 0);
    let table_offset = data_end + out.len() as u64;
    let table_start = out.len();
    for range in &ranges {
        put_range(&mut out, range);
    }
    let table_crc = crc32c_append(seed.at(table_offset), &out[table_start..]);

    let mut trailer = Vec::with_capacity(TRAILER_BYTES);
    trailer.put_slice(MAGIC);
    trailer.put_u32_le(VERSION);
    trailer.put_u32_le(u32::try_from(ranges.len()).expect("tenants are numbered in 32 bits"));
    trailer.put_u64_le(table_offset);
    trailer.put_u64_le(data_end);
    trailer.put_bytes(0, 24);
    trailer.put_u32_le(table_crc);
    // Not seeded with its own offset: it is the last thing in the file, wherever that ends.
    let crc = crc32c_append(seed.at(0), &trailer);
    trailer.put_u32_le(crc);
    (out, trailer, ranges)
}

/// A trailer, read back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trailer {
    /// Number of ranges.
    pub(crate) ranges: u32,
    /// Where the table begins.
    pub(crate) table_offset: u64,
    /// Where the records end.
    pub(crate) data_end: u64,
    table_crc: u32,
}

impl Trailer {
    /// `None`: the segment was not sealed, or its trailer is damaged.
    pub(crate) fn decode(bytes: &[u8; TRAILER_BYTES], seed: Seed) -> Option<Self> {
        let (body, mut crc) = bytes.split_at(TRAILER_BYTES - 4);
        if !body.starts_with(MAGIC) || crc.get_u32_le() != crc32c_append(seed.at(0), body) {
            return None;
        }
        let mut input = &body[8..];
        if input.get_u32_le() != VERSION {
            return None;
        }
        let ranges = input.get_u32_le();
        let table_offset = input.get_u64_le();
        let data_end = input.get_u64_le();
        input.advance(24);
        Some(Self { ranges, table_offset, data_end, table_crc: input.get_u32_le() })
    }

    /// Reads the table that it points to.
    pub(crate) fn table(&self, bytes: &[u8], seed: Seed) -> Option<Vec<Range>> {
        if crc32c_append(seed.at(self.table_offset), bytes) != self.table_crc {
            return None;
        }
        Some(bytes.chunks_exact(RANGE_BYTES).map(take_range).collect())
    }
}

fn put_block(out: &mut Vec<u8>, seed: Seed, data_end: u64, entries: &[Entry]) {
    let start = out.len();
    for entry in entries {
        out.put_u64_le(entry.sequence.0);
        out.put_u32_le(entry.offset);
        out.put_u32_le(entry.length);
        out.put_u32_le(entry.what);
    }
    let crc = crc32c_append(seed.at(data_end + start as u64), &out[start..]);
    out.put_u32_le(crc);
}

/// Reads a block back, all of `bytes`; `offset` is where it begins in the segment.
pub(crate) fn take_block(bytes: &[u8], seed: Seed, offset: u64) -> Option<Vec<Entry>> {
    let (body, mut crc) = bytes.split_at_checked(bytes.len().checked_sub(4)?)?;
    if crc.get_u32_le() != crc32c_append(seed.at(offset), body) {
        return None;
    }
    let take = |mut input: &[u8]| Entry {
        sequence: Sequence(input.get_u64_le()),
        offset: input.get_u32_le(),
        length: input.get_u32_le(),
        what: input.get_u32_le(),
    };
    Some(body.chunks_exact(ENTRY_BYTES).map(take).collect())
}

fn put_range(out: &mut Vec<u8>, range: &Range) {
    out.put_u32_le(range.tenant.0);
    out.put_u32_le(range.count);
    out.put_u64_le(range.first.0);
    out.put_u64_le(range.last.0);
    for items in range.items {
        out.put_u64_le(items);
    }
    for bytes in range.bytes {
        out.put_u64_le(bytes);
    }
    out.put_u32_le(range.index_offset);
    out.put_u32_le(0);
}

fn take_range(mut input: &[u8]) -> Range {
    Range {
        tenant: TenantId(input.get_u32_le()),
        count: input.get_u32_le(),
        first: Sequence(input.get_u64_le()),
        last: Sequence(input.get_u64_le()),
        items: [input.get_u64_le(), input.get_u64_le(), input.get_u64_le()],
        bytes: [input.get_u64_le(), input.get_u64_le(), input.get_u64_le()],
        index_offset: input.get_u32_le(),
    }
}
