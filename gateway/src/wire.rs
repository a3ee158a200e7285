//! Protobuf's wire format as far as OTLP needs it: tags, varints, lengths; and cutting a request at its items.
//!
//! Pure, no allocation on the reading side. Knows OTLP's field numbers, never its types. [`count`], [`resources`] and
//! [`split()`] read what was validated before: of anything else they make the best they can, and never panic.

use bytes::Bytes;

use crate::base::Signal;

pub(crate) mod assemble;
pub(crate) mod fields;
pub(crate) mod primitive;
mod read;
pub(crate) mod schema;
mod split;
mod text;
mod usual;
pub(crate) mod validate;

pub(crate) use read::text_value;
pub use read::{ResourceView, count, resources};
pub(crate) use split::Splitter;

/// Why a request is refused for good: INVALID_ARGUMENT or 400 with a BadRequest detail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {offset} ({path})")]
pub struct Invalid {
    /// What is wrong, for the pod's developer.
    pub problem: &'static str,
    /// Where, counted from the start of the message.
    pub offset: usize,
    /// The field path as far as it was known, for example `resource_spans.scope_spans.spans.trace_id`.
    pub path: String,
}

/// A request that cannot be cut into parts that are small enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{problem} at byte {offset}")]
pub struct ItemTooLarge {
    /// What does not fit.
    pub problem: &'static str,
    /// Where it begins.
    pub offset: usize,
}

/// Cuts a request into requests of at most `max` bytes and counts the items of each.
///
/// Cut between items, or between the data points of one metric that is too large. Each part repeats the resource, the
/// scope and what else stands beside its items; fields of the request itself that OTLP does not know appear once. No
/// copy when nothing has to be cut.
pub fn split(payload: &Bytes, signal: Signal, max: usize) -> Result<Vec<(Bytes, u32)>, ItemTooLarge> {
    if payload.len() <= max {
        return Ok(vec![(payload.clone(), count(payload, signal))]);
    }
    let mut splitter = Splitter::new(payload.clone(), signal, max, growth_max(payload.len()))?;
    while !splitter.step(usize::MAX)? {}
    Ok(splitter.into_parts())
}

/// How large a request may become by what is added and repeated. Without a limit, a request of many tiny resources, or
/// of one huge resource with many items, would need a multiple of the memory that was reserved for it.
pub(crate) fn growth_max(length: usize) -> usize {
    length.saturating_mul(2).saturating_add(4 * 1024 * 1024)
}

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
mod tests;
