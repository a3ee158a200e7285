//! What a segment file looks like, and the numbers that every part of it shares.
//!
//! Owns names, constants, the segment's header and the seed of all checksums. It does no I/O.
//!
//! ```text
//! data_dir/
//!   lock      flock'ed by the process that has the directory; holds its pid
//!   format    "pillion-queue 1\nlog <log id, 16 hex digits>\ncrc <of what is before, 8 hex digits>\n"
//!   log/      one file a segment: <id 16 hex>-<generation 8 hex>-<salt 8 hex>.seg, and <the same>.free for a segment
//!             whose records are all done and whose file waits for its next life
//!   meta/     sled; may be deleted at any time
//!   damaged/  bytes of damaged records, for people                                                        see `damaged`
//!
//! segment   = header(64) | record* | index | table | trailer(64), every part at a multiple of 8; little-endian throughout
//! header    = magic 8 | version u32 | generation u32 | id u64 | salt u32 | class u8 | 0 u8 * 3 | created unix ms u64
//!             | log id u64 | epoch u32 | next tenant u32 | 0 u32 | crc u32
//! record    = header(48) | payload | 0 to 7 bytes of padding                                              see `record`
//! index     = for each tenant blocks of at most 128 entries, each block with its crc                       see `footer`
//! table     = for each tenant its range, counts and where its blocks are
//! trailer   = the last 64 bytes of the file: where the table is. A file without a valid one is scanned.
//! ```
//!
//! - Ids grow by one a segment and are never used twice; a file that is recycled gets a new id, the next generation and a
//!   new salt. Name and header say the same, so that a damaged header costs nothing.
//! - Every checksum is a CRC-32C that starts from a seed made of id, generation, salt and the offset in the file. So a
//!   record of an earlier life never passes, even where sizes align; nor does one that a tenant hid in its own payload,
//!   since it cannot know the salt.
//! - `class` is 0 where records were appended in order, and 1 where they were relocated: what was live in other segments, tenant by
//!   tenant, with their sequences and times. Such a file has its name `.free` until it is sealed and durable, so it is either
//!   complete or a spare; then come the tenants that it has records of, and, twice, which segments it replaces. A start drops
//!   those if the crash came before they were freed. Its sequences may lie between those of other segments.
//! - `epoch` and `next tenant` are the marks below which nothing may be given out again, should everything else be gone.
//! - Every segment of class 0 starts with a copy of all tenants and cursors, so that no older segment is needed for them. Tenants are
//!   written twice: without a tenant's record its data has no owner. The roster beside them says that there are no others:
//!   older segments still name tenants that were forgotten since, whose last word may be in a segment that is recycled.
//!   A release that knows no roster would only remember them again, so the version stays.

use bytes::{Buf, BufMut};
use crc32c::{crc32c, crc32c_append};

/// The format of segments that this release writes, and the newest that it reads.
pub(crate) const VERSION: u32 = 1;
/// The class of segments to which records are appended.
pub(crate) const APPENDED: u8 = 0;
/// The class of segments of relocated records.
pub(crate) const RELOCATED: u8 = 1;
/// Length of a segment's header, in memory and as an offset: records begin after it.
pub(crate) const SEGMENT_HEADER_LENGTH: usize = 64;
/// See [`SEGMENT_HEADER_LENGTH`].
pub(crate) const SEGMENT_HEADER_BYTES: u64 = SEGMENT_HEADER_LENGTH as u64;
/// Records begin at multiples of it: the step of a scan that lost its place.
pub(crate) const ALIGN: u64 = 8;

const MAGIC: &[u8; 8] = b"PILLNSEG";
const CRC_AT: usize = 60;

/// `length` rounded up to the alignment of records.
pub(crate) fn aligned(length: u64) -> u64 {
    length.next_multiple_of(ALIGN)
}

/// One life of one segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SegmentKey {
    /// Position in the order of segments.
    pub(crate) id: u64,
    /// Lives of this file before this one.
    pub(crate) generation: u32,
    /// Random; makes checksums unpredictable for those whose bytes are stored.
    pub(crate) salt: u32,
}

/// The fixed part of a segment's checksum seeds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seed(u32);

impl Seed {
    /// The seed for what begins at `offset`.
    pub(crate) fn at(self, offset: u64) -> u32 {
        crc32c_append(self.0, &offset.to_le_bytes())
    }
}

impl SegmentKey {
    /// The segment's seed.
    pub(crate) fn seed(self) -> Seed {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.generation.to_le_bytes());
        bytes[12..].copy_from_slice(&self.salt.to_le_bytes());
        Seed(crc32c(&bytes))
    }

    /// The name of its file while it holds records.
    pub(crate) fn name(self) -> String {
        format!("{:016x}-{:08x}-{:08x}.seg", self.id, self.generation, self.salt)
    }

    /// The name of its file once its records are done.
    pub(crate) fn free_name(self) -> String {
        format!("{:016x}-{:08x}-{:08x}.free", self.id, self.generation, self.salt)
    }

    /// The key in a name, and whether the file is a spare one. `None`: not ours, leave it alone.
    pub(crate) fn parse(name: &str) -> Option<(Self, bool)> {
        let (stem, free) = match name.strip_suffix(".seg") {
            Some(stem) => (stem, false),
            None => (name.strip_suffix(".free")?, true),
        };
        let mut parts = stem.split('-');
        let id = u64::from_str_radix(parts.next()?, 16).ok()?;
        let generation = u32::from_str_radix(parts.next()?, 16).ok()?;
        let salt = u32::from_str_radix(parts.next()?, 16).ok()?;
        let key = Self { id, generation, salt };
        let canonical = if free { key.free_name() } else { key.name() };
        (canonical == name).then_some((key, free))
    }
}

/// What a segment's header says beside its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// 0: appended; 1: relocated.
    pub(crate) class: u8,
    /// When this life began.
    pub(crate) created_unix_ms: u64,
    /// Which log it belongs to.
    pub(crate) log_id: u64,
    /// The boot epoch of its writer.
    pub(crate) epoch: u32,
    /// The lowest tenant number that was free.
    pub(crate) tenants_next: u32,
}

/// A header as found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FoundHeader {
    /// Readable.
    Valid(SegmentHeader),
    /// Intact, of a later release.
    Newer(u32),
    /// Not what the file's name says, or damaged: the name is enough.
    Damaged,
}

impl SegmentHeader {
    /// Its bytes.
    pub(crate) fn encode(&self, key: SegmentKey) -> [u8; 64] {
        let mut bytes = [0; SEGMENT_HEADER_LENGTH];
        let mut out = &mut bytes[..];
        out.put_slice(MAGIC);
        out.put_u32_le(VERSION);
        out.put_u32_le(key.generation);
        out.put_u64_le(key.id);
        out.put_u32_le(key.salt);
        out.put_slice(&[self.class, 0, 0, 0]);
        out.put_u64_le(self.created_unix_ms);
        out.put_u64_le(self.log_id);
        out.put_u32_le(self.epoch);
        out.put_u32_le(self.tenants_next);
        let crc = crc32c_append(key.seed().at(0), &bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it back. Magic, version and checksum stay where they are in every version, so that an intact newer header
    /// is told from a damaged one.
    pub(crate) fn decode(bytes: &[u8; 64], key: SegmentKey) -> FoundHeader {
        let crc = u32::from_le_bytes([bytes[60], bytes[61], bytes[62], bytes[63]]);
        if !bytes.starts_with(MAGIC) || crc != crc32c_append(key.seed().at(0), &bytes[..CRC_AT]) {
            return FoundHeader::Damaged;
        }
        let version = (&bytes[8..]).get_u32_le();
        if version != VERSION {
            return FoundHeader::Newer(version);
        }
        let mut rest = &bytes[32..];
        FoundHeader::Valid(Self {
            class: bytes[28],
            created_unix_ms: rest.get_u64_le(),
            log_id: rest.get_u64_le(),
            epoch: rest.get_u32_le(),
            tenants_next: rest.get_u32_le(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: SegmentKey = SegmentKey { id: 7, generation: 2, salt: 0xdead_beef };
    const HEADER: SegmentHeader = SegmentHeader { class: 1, created_unix_ms: 5, log_id: 6, epoch: 7, tenants_next: 8 };

    /// Scenario: names of segments, of spares, and of strangers' files.
    /// Guarantees: each of our names gives its key back; nothing else is taken for ours.
    #[test]
    fn only_canonical_names_are_ours() {
        assert_eq!(SegmentKey::parse(&KEY.name()), Some((KEY, false)));
        assert_eq!(SegmentKey::parse(&KEY.free_name()), Some((KEY, true)));
        for name in ["", ".seg", "7-2-3.seg", "lost+found", "0000000000000007-00000002-DEADBEEF.seg"] {
            assert_eq!(SegmentKey::parse(name), None, "{name:?}");
        }
    }

    /// Scenario: a header of another life, another version, and one with each bit flipped.
    /// Guarantees: a flipped bit is damage and never a newer version, so it cannot stop a start.
    #[test]
    fn a_damaged_header_is_never_mistaken_for_a_newer_one() {
        let bytes = HEADER.encode(KEY);
        assert_eq!(SegmentHeader::decode(&bytes, KEY), FoundHeader::Valid(HEADER));
        assert_eq!(SegmentHeader::decode(&bytes, SegmentKey { generation: 3, ..KEY }), FoundHeader::Damaged);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped, KEY), FoundHeader::Damaged, "bit {bit}");
        }
        let mut newer = bytes;
        newer[8] = 2;
        let crc = crc32c_append(KEY.seed().at(0), &newer[..CRC_AT]);
        newer[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&newer, KEY), FoundHeader::Newer(2));
    }
}
