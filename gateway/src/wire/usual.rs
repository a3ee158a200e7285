//! The short cut of validation: fields as every SDK writes them, passed over in a tight loop.
//!
//! It only ever says how far all is well. Whatever is long, rare, nested or wrong it leaves to the full machine, which
//! accepts the same bytes and more: removing this module changes no result.

use super::primitive::length_tag;
use super::schema::{ACTIONS, Kind, Message};
use super::text;

/// How many levels below a message the short cut looks: an attribute, and its value.
pub(super) const LEVELS: usize = 2;

/// Passes over fields of one `message` that begin before `stop` and end by `end`; returns where the first one begins
/// that needs a closer look.
#[inline]
pub(super) fn skip(bytes: &[u8], message: Message, mut pos: usize, end: usize, stop: usize) -> usize {
    let actions = &ACTIONS[message as usize];
    // From here on no offset is checked against both: what is beyond the message does not exist.
    let Some(bytes) = bytes.get(..end) else { return pos };
    while pos < stop {
        match field(bytes, message, actions, pos) {
            Some(next) => pos = next,
            None => break,
        }
    }
    pos
}

/// The end of the field at `pos`, if it is usual and right.
#[inline]
fn field(bytes: &[u8], message: Message, actions: &[Option<Kind>; 128], pos: usize) -> Option<usize> {
    let tag = *bytes.get(pos)?;
    let Some(action) = actions.get(usize::from(tag)) else { return long_tag(bytes, message, pos) };
    let past = match (*action)? {
        Kind::Varint => return (*bytes.get(pos + 1)? < 0x80).then_some(pos + 2),
        Kind::Fixed64 => pos + 9,
        Kind::Fixed32 => pos + 5,
        kind => {
            let length = *bytes.get(pos + 1)?;
            if length >= 0x80 {
                return None;
            }
            let past = pos + 2 + usize::from(length);
            let body = bytes.get(pos + 2..past)?;
            let is_right = match kind {
                Kind::Text => text::is_ascii(body),
                Kind::Message(Message::Attribute) => is_plain_attribute(body),
                Kind::TraceId => matches!(length, 0 | 16),
                Kind::SpanId => matches!(length, 0 | 8),
                Kind::Bytes => true,
                _ => false,
            };
            return is_right.then_some(past);
        }
    };
    (past <= bytes.len()).then_some(past)
}

/// `Span.flags` is the one field that every SDK sets and whose tag has two bytes.
fn long_tag(bytes: &[u8], message: Message, pos: usize) -> Option<usize> {
    let field = bytes.get(pos..pos + 6)?;
    (message == Message::Span && field.starts_with(&SPAN_FLAGS)).then_some(pos + 6)
}

const SPAN_FLAGS: [u8; 2] = [(16 << 3 | 5) & 0x7f | 0x80, 1];

/// Whether a `KeyValue` is an ASCII key and then one scalar value, all lengths in one byte.
#[inline]
pub(super) fn is_plain_attribute(body: &[u8]) -> bool {
    const KEY: u8 = length_tag(1);
    const VALUE: u8 = length_tag(2);
    const STRING: u8 = length_tag(1);
    const BOOL: u8 = 2 << 3;
    const INT: u8 = 3 << 3;
    const DOUBLE: u8 = 4 << 3 | 1;
    let [KEY, length, rest @ ..] = body else { return false };
    let Some((key, [VALUE, length, value @ ..])) = rest.split_at_checked(usize::from(*length)) else { return false };
    if usize::from(*length) != value.len() {
        return false;
    }
    match value {
        // Lengths of one byte are ASCII too, so that one look tells key, value and lengths.
        [STRING, length, text @ ..] => usize::from(*length) == text.len() && text::is_ascii(body),
        [BOOL | INT, varint] => *varint < 0x80 && key.len() < 0x80 && text::is_ascii(key),
        [INT, one, two] => *one >= 0x80 && *two < 0x80 && key.len() < 0x80 && text::is_ascii(key),
        [DOUBLE, double @ ..] => double.len() == 8 && key.len() < 0x80 && text::is_ascii(key),
        _ => false,
    }
}
