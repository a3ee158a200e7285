//! Where the items are in a request, and what each of them says besides its id: read by the templates and by the judge.
//!
//! ```text
//! request    resource group*            ResourceSpans, ResourceMetrics, ResourceLogs: field 1
//! group      resource 1, scope group* 2
//! scope      scope 1, item* 2           traces and logs
//!            scope 1, metric* 2         metrics; metric: header, data 5 (gauge) or 7 (sum); data: point* 1, header
//! digest     of everything in the item that is not patched, of its scope and its metric's header. The order of fields and
//!            absent defaults do not count, since agents decode and encode again, some of them from the last field to
//!            the first; names, values and types do.
//! ```

use crate::identity::{ID_DIGITS, Signal, mix};
use crate::profile::OWN;
use crate::wire::{Field, Fields, Malformed, Value};

/// One item, where it stands.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The serialised resource that it belongs to.
    pub resource: &'a [u8],
    /// Where the resource begins in the request.
    pub resource_at: usize,
    /// Digest of the scope and of the metric's header.
    pub context: u64,
    /// The serialised item.
    pub item: &'a [u8],
    /// Where the item begins in the request.
    pub item_at: usize,
}

/// A patched field: what it holds and where that begins in the item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patched<T> {
    /// What it holds.
    pub value: T,
    /// Offset in the item.
    pub at: usize,
}

/// What an item says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parts {
    /// The id that says which item it is.
    pub id: Option<Patched<u64>>,
    /// The trace id.
    pub trace: Option<Patched<[u8; 16]>>,
    /// The parent's span id.
    pub parent: Option<Patched<u64>>,
    /// When it began.
    pub start: Option<Patched<u64>>,
    /// When it ended, was measured or observed.
    pub end: Option<Patched<u64>>,
    /// The text of the attribute [`OWN`].
    pub own: Option<Patched<[u8; ID_DIGITS]>>,
    /// Digest of all the rest.
    pub digest: u64,
}

/// Calls `each` for every item of a request.
pub fn each_item<'a>(
    signal: Signal,
    request: &'a [u8],
    each: &mut impl FnMut(Place<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    for group in messages(request, 1) {
        let (group, group_at) = group?;
        let (resource, resource_at) = messages(group, 1).next().transpose()?.unwrap_or((&[], 0));
        for scope_group in messages(group, 2) {
            let (scope_group, at) = scope_group?;
            let scope =
                messages(scope_group, 1).next().transpose()?.map_or(Ok(0), |(scope, _)| digest(scope, |_| true))?;
            for inner in messages(scope_group, 2) {
                let (inner, inner_at) = inner?;
                let inner_at = group_at + at + inner_at;
                let place = Place {
                    resource,
                    resource_at: group_at + resource_at,
                    context: scope,
                    item: inner,
                    item_at: inner_at,
                };
                match signal {
                    Signal::Metrics => each_point(place, each)?,
                    Signal::Traces | Signal::Logs => each(place)?,
                }
            }
        }
    }
    Ok(())
}

fn each_point<'a>(
    metric: Place<'a>,
    each: &mut impl FnMut(Place<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    const GAUGE: u64 = 5;
    const SUM: u64 = 7;
    let is_data = |field: &Field<'_>| matches!(field.number, GAUGE | SUM);
    let header = digest(metric.item, |field| !is_data(field))?;
    for field in Fields::of(metric.item) {
        let field = field?;
        if !is_data(&field) {
            continue;
        }
        let data = field.bytes()?;
        let kind = mix(field.number).wrapping_add(digest(data, |field| field.number != 1)?);
        let context = metric.context.wrapping_add(header).wrapping_add(mix(kind));
        for point in messages(data, 1) {
            let (item, at) = point?;
            each(Place { context, item, item_at: metric.item_at + field.at + at, ..metric })?;
        }
    }
    Ok(())
}

impl Parts {
    /// Reads one item.
    pub fn of(signal: Signal, item: &[u8]) -> Result<Self, Malformed> {
        let mut parts = Self::default();
        for field in Fields::of(item) {
            let field = field?;
            match (signal, field.number) {
                (Signal::Traces, 2) | (Signal::Logs, 10) => parts.id = big_endian(&field)?,
                (Signal::Metrics, 6) => parts.id = Some(Patched { value: field.fixed64()?, at: field.at }),
                (Signal::Traces, 1) | (Signal::Logs, 9) => {
                    let value = field.bytes()?.first_chunk().copied();
                    parts.trace = value.map(|value| Patched { value, at: field.at });
                }
                (Signal::Traces, 4) => parts.parent = big_endian(&field)?,
                (Signal::Traces, 7) | (Signal::Metrics, 2) | (Signal::Logs, 1) => {
                    parts.start = Some(Patched { value: field.fixed64()?, at: field.at });
                }
                (Signal::Traces, 8) | (Signal::Metrics, 3) | (Signal::Logs, 11) => {
                    parts.end = Some(Patched { value: field.fixed64()?, at: field.at });
                }
                (Signal::Traces, 9) | (Signal::Metrics, 7) | (Signal::Logs, 6) => {
                    let attribute = field.bytes()?;
                    match own(attribute)? {
                        Some(own) => parts.own = Some(Patched { at: field.at + own.at, ..own }),
                        None => parts.digest = parts.digest.wrapping_add(key_value(attribute)?),
                    }
                }
                _ if field.is_default() => {}
                _ => parts.digest = parts.digest.wrapping_add(term(&field)),
            }
        }
        Ok(parts)
    }
}

/// Bytes of the attribute [`OWN`]: each of its three fields (key, value, the value's text) has a tag and a length before it.
const OWN_ATTRIBUTE: usize = 2 + OWN.len() + 2 + 2 + ID_DIGITS;

/// The text of an attribute if it is [`OWN`], and where that begins.
fn own(attribute: &[u8]) -> Result<Option<Patched<[u8; ID_DIGITS]>>, Malformed> {
    // Nearly all others are told by their length.
    if attribute.len() != OWN_ATTRIBUTE {
        return Ok(None);
    }
    let Some((key, _)) = messages(attribute, 1).next().transpose()? else { return Ok(None) };
    let Some((value, value_at)) = messages(attribute, 2).next().transpose()? else { return Ok(None) };
    let Some((text, at)) = messages(value, 1).next().transpose()? else { return Ok(None) };
    Ok(text.try_into().ok().filter(|_| key == OWN.as_bytes()).map(|value| Patched { value, at: value_at + at }))
}

fn big_endian(field: &Field<'_>) -> Result<Option<Patched<u64>>, Malformed> {
    let bytes: Option<[u8; 8]> = field.bytes()?.try_into().ok();
    Ok(bytes.map(|bytes| Patched { value: u64::from_be_bytes(bytes), at: field.at }))
}

/// The messages in the fields of that number, with their offsets.
pub(crate) fn messages(message: &[u8], number: u64) -> impl Iterator<Item = Result<(&[u8], usize), Malformed>> {
    Fields::of(message).filter_map(move |field| match field {
        Ok(field) if field.number != number => None,
        Ok(field) => Some(field.bytes().map(|bytes| (bytes, field.at))),
        Err(malformed) => Some(Err(malformed)),
    })
}

/// Digest of the fields that count.
fn digest(message: &[u8], counts: impl Fn(&Field<'_>) -> bool) -> Result<u64, Malformed> {
    let mut sum = 0u64;
    for field in Fields::of(message) {
        let field = field?;
        if counts(&field) && !field.is_default() {
            sum = sum.wrapping_add(term(&field));
        }
    }
    Ok(sum)
}

/// Digest of an attribute: its value holds one field, so only the order of key and value is open.
fn key_value(message: &[u8]) -> Result<u64, Malformed> {
    // Mixed, so that a value that changes places with another one is seen.
    Fields::of(message).try_fold(0u64, |sum, field| Ok(sum.wrapping_add(term(&field?)))).map(mix)
}

/// One field's share of a digest: a sum, so that the order of fields does not matter.
fn term(field: &Field<'_>) -> u64 {
    let value = match field.value {
        Value::Varint(value) => mix(value ^ 0x5bd1),
        Value::Fixed64(bytes) => hash(&bytes),
        Value::Fixed32(bytes) => hash(&bytes),
        Value::Bytes(bytes) => hash(bytes),
    };
    mix(value ^ mix(field.number))
}

/// A hash of bytes, eight at a time. Tells accidents, not attacks.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut state = FACTOR ^ bytes.len() as u64;
    let (chunks, rest) = bytes.as_chunks::<8>();
    for chunk in chunks {
        state = (state ^ u64::from_le_bytes(*chunk)).wrapping_mul(FACTOR).rotate_left(29);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix((state ^ u64::from_le_bytes(last)).wrapping_mul(FACTOR))
}
