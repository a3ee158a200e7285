//! The fields of one message, one by one, without descending: how bytes that were validated before are taken apart.

use super::primitive::{self, WireType};

/// One field as it stands in the bytes. All offsets count from the start of the bytes that were walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Field {
    /// Zero for the remainder of malformed bytes, which is one field of its own.
    pub(crate) number: u32,
    pub(crate) is_length: bool,
    /// Where its tag is.
    pub(crate) start: usize,
    /// Where its value is; for a length-delimited field, what the length announces.
    pub(crate) body: usize,
    /// Where the next field is.
    pub(crate) end: usize,
}

impl Field {
    /// Whether it is a length-delimited field of that number.
    #[inline]
    pub(crate) fn is(&self, number: u8) -> bool {
        self.is_length && self.number == u32::from(number)
    }
}

/// Reads the field at `pos`; `pos` must be before `end`, and `end` within `bytes`. Always makes progress.
#[inline]
pub(crate) fn field(bytes: &[u8], pos: usize, end: usize) -> Field {
    read(bytes, pos, end).unwrap_or(Field { number: 0, is_length: false, start: pos, body: pos, end })
}

#[inline]
fn read(bytes: &[u8], start: usize, end: usize) -> Option<Field> {
    let (number, wire_type, value) = primitive::tag(bytes, start).ok()?;
    let (is_length, body, past) = match wire_type {
        WireType::Length => {
            let (body, past) = primitive::length(bytes, value, end).ok()?;
            (true, body, past)
        }
        WireType::Varint => (false, value, primitive::varint(bytes, value)?.1),
        WireType::Fixed64 => (false, value, value + 8),
        WireType::Fixed32 => (false, value, value + 4),
        WireType::GroupStart => (false, value, group_end(bytes, value, end)?),
        WireType::GroupEnd => return None,
    };
    (past <= end).then_some(Field { number, is_length, start, body, end: past })
}

/// Where the group ends whose body begins at `pos`. Counts levels only: that the numbers match was validated before.
fn group_end(bytes: &[u8], mut pos: usize, end: usize) -> Option<usize> {
    let mut levels = 1usize;
    while levels > 0 {
        let (_, wire_type, value) = primitive::tag(bytes, pos).ok()?;
        pos = match wire_type {
            WireType::GroupStart => {
                levels += 1;
                value
            }
            WireType::GroupEnd => {
                levels -= 1;
                value
            }
            WireType::Varint => primitive::varint(bytes, value)?.1,
            WireType::Fixed64 => value + 8,
            WireType::Fixed32 => value + 4,
            WireType::Length => primitive::length(bytes, value, end).ok()?.1,
        };
        if pos > end {
            return None;
        }
    }
    Some(pos)
}

/// The fields of `bytes[start..end]`.
pub(crate) fn fields(bytes: &[u8], start: usize, end: usize) -> impl Iterator<Item = Field> {
    let mut pos = start;
    std::iter::from_fn(move || {
        let field = (pos < end).then(|| field(bytes, pos, end))?;
        pos = field.end;
        Some(field)
    })
}
