//! The record: one part of a request, or one piece of what the log knows about tenants, cursors and refusals.
//!
//! Owns the bytes of headers and of the payloads that are not OTLP. It does no I/O, and decoding never panics or
//! allocates more than the input is long.
//!
//! ```text
//! header      = magic u32 | version u8 | kind u8 | signal u8 | flags u8 | tenant u32 | items u32 | sequence u64
//!               | received unix ms u64 | length u32 | payload crc u32 | 0 u32 | header crc u32        48 bytes, then length
//! kind        = 1 data | 2 tenant | 3 cursors | 4 dead letter | 5 forgotten | 6 roster | 7 letters | 8 sources
//! text        = length u16 | UTF-8
//! tenant      = name text | pod uid text ("" for none) | max age ms u64 | 3 * (count u16 | text * count)
//!               | disk guarantee u64 | disk ceiling u64 | drops oldest u8
//!               | cursor* (where destinations begin that are new in this record, and where those end that are not in it any more)
//! cursors     = cursor*     cursor = tenant u32 | kind u8 | signal u8 | destination text (the key: see `cursor`)
//!                                    | acknowledged u64 | delivered u64
//!                                    | count u32 | u64 * count (records beyond that are done as well)
//! dead letter = refused sequence u64 | 3 * unix ms u64 (appended, first refused, last refused) | attempts u32
//!               | answer kind u8 (0 none, 1 gRPC, 2 HTTP) | answer code u16 | destination text | message text | the data
//! forgotten   = nothing: the tenant in the header is gone for ever, and all that it had was done
//! letters     = which dead letters are kept: see `letters`
//! roster      = next tenant u32 | u32 * count, ascending: of the tenants below the next one, only these are still known
//! sources     = segment id u64 * count: everything live of these segments is in this one too, and was durable before it had its name
//! ```
//! The payload's crc is covered by the header's: damage in a payload leaves its length, and so the next record, known.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use crc32c::crc32c_append;

use super::{Answer, CursorOf, CursorState, DeadLetter, TenantRecord};
use crate::base::ledger::MemoryLimit;
use crate::base::{Batch, DestinationName, Sequence, Signal, TenantId, TenantName};

/// Length of a record's header.
pub(crate) const HEADER_BYTES: usize = 48;
/// The largest payload: a batch with the head of a dead letter before it.
pub(crate) const PAYLOAD_BYTES_MAX: usize = Batch::PAYLOAD_BYTES_MAX + 4096;
/// A checkpoint is cut into records of about this many bytes.
pub(crate) const CURSORS_BYTES_MAX: usize = 256 * 1024;
/// `PILR`; what a scan that lost its place looks for.
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"PILR");

const VERSION: u8 = 1;
const CRC_AT: usize = 44;
const REASON_BYTES_MAX: usize = 1024;

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// OTLP bytes.
    Data = 1,
    /// A tenant's identity and destinations.
    Tenant = 2,
    /// A checkpoint.
    Cursors = 3,
    /// A refused record with its refusal.
    DeadLetter = 4,
    /// The end of a tenant.
    Forgotten = 5,
    /// Who is left.
    Roster = 6,
    /// Which dead letters are kept.
    Letters = 7,
    /// Segments that this one replaces.
    Sources = 8,
}

impl Kind {
    /// `None` for kinds of later releases: skipped.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        let kinds = [
            Self::Data,
            Self::Tenant,
            Self::Cursors,
            Self::DeadLetter,
            Self::Forgotten,
            Self::Roster,
            Self::Letters,
            Self::Sources,
        ];
        kinds.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// A record's header, without magic and checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// `Kind` as a number.
    pub(crate) kind: u8,
    /// `Signal` as a number; 0 where there is none.
    pub(crate) signal: u8,
    /// Whose; 0 where it is nobody's.
    pub(crate) tenant: u32,
    /// Items in it.
    pub(crate) items: u32,
    /// Its position.
    pub(crate) sequence: Sequence,
    /// When it was received.
    pub(crate) received_unix_ms: u64,
    /// Of the payload, in bytes.
    pub(crate) length: u32,
    /// Of the payload, seeded.
    pub(crate) payload_crc: u32,
}

impl Header {
    /// Its bytes; `seed` is the segment's at the record's offset.
    pub(crate) fn encode(&self, seed: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut out = &mut bytes[..];
        out.put_u32_le(MAGIC);
        out.put_slice(&[VERSION, self.kind, self.signal, 0]);
        out.put_u32_le(self.tenant);
        out.put_u32_le(self.items);
        out.put_u64_le(self.sequence.0);
        out.put_u64_le(self.received_unix_ms);
        out.put_u32_le(self.length);
        out.put_u32_le(self.payload_crc);
        let crc = crc32c_append(seed, &bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it back; `None` if it is not a header of this segment at this offset.
    pub(crate) fn decode(bytes: &[u8], seed: u32) -> Option<Self> {
        let bytes: &[u8; HEADER_BYTES] = bytes.first_chunk()?;
        let mut input = &bytes[..];
        if input.get_u32_le() != MAGIC || (&bytes[CRC_AT..]).get_u32_le() != crc32c_append(seed, &bytes[..CRC_AT]) {
            return None;
        }
        let version = input.get_u8();
        let kind = input.get_u8();
        let signal = input.get_u8();
        input.advance(1);
        let header = Self {
            // A record of a later version is stepped over like one of an unknown kind.
            kind: if version == VERSION { kind } else { 0 },
            signal,
            tenant: input.get_u32_le(),
            items: input.get_u32_le(),
            sequence: Sequence(input.get_u64_le()),
            received_unix_ms: input.get_u64_le(),
            length: input.get_u32_le(),
            payload_crc: input.get_u32_le(),
        };
        (header.length as usize <= PAYLOAD_BYTES_MAX).then_some(header)
    }

    /// From this record's offset to the next one's.
    pub(crate) fn stride(&self) -> u64 {
        stride(self.length as usize)
    }
}

/// Bytes that a record with a payload of `length` takes.
pub(crate) fn stride(length: usize) -> u64 {
    super::format::aligned((HEADER_BYTES + length) as u64)
}

/// Appends a tenant's payload. The cursors of a change of its destinations may follow, by [`put_cursor`]: in one record, or a torn write
/// would leave one without the other.
pub(crate) fn put_tenant(out: &mut Vec<u8>, record: &TenantRecord) {
    put_text(out, &record.name.to_string());
    put_text(out, record.pod_uid.as_deref().unwrap_or(""));
    out.put_u64_le(u64::try_from(record.max_age.as_millis()).unwrap_or(u64::MAX));
    for names in &record.destinations {
        let names = &names[..names.len().min(usize::from(u16::MAX))];
        out.put_u16_le(u16::try_from(names.len()).expect("cut to what fits"));
        for name in names {
            put_text(out, &name.0);
        }
    }
    out.put_u64_le(record.disk.guarantee);
    out.put_u64_le(record.disk.ceiling);
    out.put_u8(u8::from(record.drops_oldest));
}

/// Reads a tenant's payload back, and the cursors behind it.
pub(crate) fn take_tenant(mut input: &[u8]) -> Option<(TenantRecord, Vec<CursorState>)> {
    let input = &mut input;
    let name = TenantName::parse(take_text(input)?).ok()?;
    let pod_uid = Some(take_text(input)?).filter(|uid| !uid.is_empty()).map(str::to_owned);
    let max_age = Duration::from_millis(input.try_get_u64_le().ok()?);
    let mut destinations: [Vec<DestinationName>; 3] = Default::default();
    for names in &mut destinations {
        let count = input.try_get_u16_le().ok()?;
        for _ in 0..count {
            names.push(DestinationName(take_text(input)?.into()));
        }
    }
    // Records of before the first release end here.
    let disk = match input.has_remaining() {
        true => MemoryLimit { guarantee: input.try_get_u64_le().ok()?, ceiling: input.try_get_u64_le().ok()? },
        false => MemoryLimit { guarantee: 0, ceiling: u64::MAX },
    };
    let drops_oldest = input.try_get_u8().is_ok_and(|drops| drops != 0);
    // Whatever a later release appends, the tenant is known.
    let cursors = take_cursors(input).unwrap_or_default();
    Some((TenantRecord { name, pod_uid, destinations, max_age, disk, drops_oldest }, cursors))
}

/// Appends one cursor of a checkpoint's payload.
pub(crate) fn put_cursor(out: &mut Vec<u8>, cursor: &CursorState, with_beyond: bool) {
    out.put_u32_le(cursor.tenant.0);
    let (kind, signal, destination) = cursor.of.parts();
    out.put_slice(&[kind, signal]);
    put_text(out, destination);
    out.put_u64_le(cursor.acknowledged.0);
    out.put_u64_le(cursor.delivered_items);
    // What is cut off is delivered twice after a crash.
    let kept = if with_beyond { cursor.beyond.len().min(BEYOND_MAX) } else { 0 };
    let beyond = &cursor.beyond[..kept];
    out.put_u32_le(u32::try_from(beyond.len()).expect("cut to what fits"));
    for sequence in beyond {
        out.put_u64_le(sequence.0);
    }
}

/// What [`put_cursor`] appends at most.
pub(crate) fn cursor_bytes(cursor: &CursorState) -> u64 {
    let (_, _, destination) = cursor.of.parts();
    let text = 2 + destination.len().min(usize::from(u16::MAX));
    (4 + 2 + text + 8 + 8 + 4 + 8 * cursor.beyond.len().min(BEYOND_MAX)) as u64
}

/// Acknowledgements beyond the lowest gap that a checkpoint keeps.
const BEYOND_MAX: usize = 8192;

/// Reads a checkpoint's payload back.
pub(crate) fn take_cursors(mut input: &[u8]) -> Option<Vec<CursorState>> {
    let input = &mut input;
    let mut cursors = Vec::new();
    while input.has_remaining() {
        let tenant = TenantId(input.try_get_u32_le().ok()?);
        let (kind, signal) = (input.try_get_u8().ok()?, input.try_get_u8().ok()?);
        let of = CursorOf::from_parts(kind, signal, take_text(input)?);
        let acknowledged = Sequence(input.try_get_u64_le().ok()?);
        let delivered_items = input.try_get_u64_le().ok()?;
        let count = input.try_get_u32_le().ok()? as usize;
        if count > input.remaining() / 8 {
            return None;
        }
        let beyond = (0..count).map(|_| Sequence(input.get_u64_le())).collect();
        cursors.extend(of.map(|of| CursorState { tenant, of, acknowledged, beyond, delivered_items }));
    }
    Some(cursors)
}

/// Appends a roster's payload.
pub(crate) fn put_roster(out: &mut Vec<u8>, next: u32, tenants: impl Iterator<Item = TenantId>) {
    out.put_u32_le(next);
    tenants.for_each(|tenant| out.put_u32_le(tenant.0));
}

/// Reads a roster's payload back: the next number, and who is left, ascending.
pub(crate) fn take_roster(mut input: &[u8]) -> Option<(u32, Vec<TenantId>)> {
    let next = input.try_get_u32_le().ok()?;
    let tenants = input.chunks_exact(4).map(|mut number| TenantId(number.get_u32_le())).collect();
    Some((next, tenants))
}

/// Appends the ids of replaced segments.
pub(crate) fn put_sources(out: &mut Vec<u8>, ids: &[u64]) {
    ids.iter().for_each(|id| out.put_u64_le(*id));
}

/// Reads the ids of replaced segments back.
pub(crate) fn take_sources(input: &[u8]) -> impl Iterator<Item = u64> {
    input.chunks_exact(8).map(|mut id| id.get_u64_le())
}

/// Appends what stands before the data in a dead letter's payload.
pub(crate) fn put_letter_head(out: &mut Vec<u8>, letter: &DeadLetter) {
    out.put_u64_le(letter.sequence.0);
    for time in [letter.appended_unix_ms, letter.first_unix_ms, letter.last_unix_ms] {
        out.put_u64_le(time);
    }
    out.put_u32_le(letter.attempts);
    let (kind, code) = match letter.answer {
        None => (0, 0),
        Some(Answer::Grpc(code)) => (1, code),
        Some(Answer::Http(code)) => (2, code),
    };
    out.put_u8(kind);
    out.put_u16_le(code);
    put_text(out, cut(&letter.destination.0, REASON_BYTES_MAX));
    put_text(out, cut(&letter.reason, REASON_BYTES_MAX));
}

/// Reads a dead letter's payload back.
pub(crate) fn take_letter(header: &Header, payload: &Bytes) -> Option<DeadLetter> {
    let mut rest = &payload[..];
    let input = &mut rest;
    let sequence = Sequence(input.try_get_u64_le().ok()?);
    let [appended_unix_ms, first_unix_ms, last_unix_ms] = [take_time(input)?, take_time(input)?, take_time(input)?];
    let attempts = input.try_get_u32_le().ok()?;
    let (kind, code) = (input.try_get_u8().ok()?, input.try_get_u16_le().ok()?);
    let answer = match kind {
        1 => Some(Answer::Grpc(code)),
        2 => Some(Answer::Http(code)),
        _ => None,
    };
    let destination = DestinationName(take_text(input)?.into());
    let reason = take_text(input)?.to_owned();
    Some(DeadLetter {
        tenant: TenantId(header.tenant),
        sequence,
        destination,
        signal: Signal::from_number(header.signal)?,
        items: header.items,
        answer,
        reason,
        attempts,
        appended_unix_ms,
        first_unix_ms,
        last_unix_ms,
        payload: payload.slice_ref(rest),
    })
}

fn take_time(input: &mut &[u8]) -> Option<u64> {
    input.try_get_u64_le().ok()
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    let text = cut(text, usize::from(u16::MAX));
    out.put_u16_le(u16::try_from(text.len()).expect("cut to what fits"));
    out.put_slice(text.as_bytes());
}

fn take_text<'a>(input: &mut &'a [u8]) -> Option<&'a str> {
    let length = usize::from(input.try_get_u16_le().ok()?);
    let (text, rest) = input.split_at_checked(length)?;
    *input = rest;
    std::str::from_utf8(text).ok()
}

fn cut(text: &str, bytes_max: usize) -> &str {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
