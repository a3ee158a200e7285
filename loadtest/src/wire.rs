//! Protobuf, read field by field where it lies: just enough to find ids in a request, and their places in a template.
//!
//! It never allocates and never knows what a field means; a length that leads outside the message ends the walk.

use std::fmt;

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Integers, enums, booleans.
    Varint(u64),
    /// `fixed64`, `sfixed64`, `double`.
    Fixed64([u8; 8]),
    /// Strings, bytes, messages.
    Bytes(&'a [u8]),
    /// `fixed32`, `sfixed32`, `float`.
    Fixed32([u8; 4]),
}

/// One field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its number.
    pub number: u64,
    /// What it holds.
    pub value: Value<'a>,
    /// Where the value's bytes begin in the message that was walked.
    pub at: usize,
}

/// The message is not protobuf from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed {
    /// Offset in the message that was walked.
    pub at: usize,
}

impl fmt::Display for Malformed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "not protobuf at byte {}", self.at)
    }
}

impl std::error::Error for Malformed {}

impl<'a> Field<'a> {
    /// The bytes of a string, of bytes or of a message.
    pub fn bytes(&self) -> Result<&'a [u8], Malformed> {
        match self.value {
            Value::Bytes(bytes) => Ok(bytes),
            _ => Err(Malformed { at: self.at }),
        }
    }

    /// A `fixed64`.
    pub fn fixed64(&self) -> Result<u64, Malformed> {
        match self.value {
            Value::Fixed64(bytes) => Ok(u64::from_le_bytes(bytes)),
            _ => Err(Malformed { at: self.at }),
        }
    }

    /// Whether the field says what its absence says.
    pub fn is_default(&self) -> bool {
        match self.value {
            Value::Varint(value) => value == 0,
            Value::Fixed64(bytes) => bytes == [0; 8],
            Value::Fixed32(bytes) => bytes == [0; 4],
            Value::Bytes(bytes) => bytes.is_empty(),
        }
    }
}

/// The fields of one message, in their order.
#[derive(Debug, Clone)]
pub struct Fields<'a> {
    message: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    /// Walks `message`.
    pub fn of(message: &'a [u8]) -> Self {
        Self { message, at: 0 }
    }

    fn read(&mut self) -> Option<Field<'a>> {
        let key = self.varint()?;
        let start = self.at;
        let value = match key & 7 {
            0 => Value::Varint(self.varint()?),
            1 => Value::Fixed64(*self.take(8)?.first_chunk()?),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                let bytes = self.take(length)?;
                return Some(Field { number: key >> 3, value: Value::Bytes(bytes), at: self.at - length });
            }
            5 => Value::Fixed32(*self.take(4)?.first_chunk()?),
            _ => return None,
        };
        Some(Field { number: key >> 3, value, at: start })
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = *self.message.get(self.at)?;
            self.at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let bytes = self.message.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.message.len() {
            return None;
        }
        let at = self.at;
        let field = self.read();
        if field.is_none() {
            self.at = self.message.len();
        }
        Some(field.ok_or(Malformed { at }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload;

    /// Scenario: every prefix of a request, and the request with each byte changed.
    /// Guarantees: reading ends, without a panic, whatever a broken agent sends.
    #[test]
    fn broken_bytes_end_the_walk() {
        fn walk(bytes: &[u8], depth: usize) {
            for field in Fields::of(bytes).map_while(Result::ok) {
                if let (Value::Bytes(inner), true) = (field.value, depth < 8) {
                    walk(inner, depth + 1);
                }
            }
        }
        let request = payload::traces("cart", &[1, 2]);
        for end in 0..request.len() {
            walk(&request[..end], 0);
            let mut changed = request.clone();
            changed[end] ^= 0xff;
            walk(&changed, 0);
        }
        assert_eq!(Fields::of(&[0x0a, 5, 1]).next(), Some(Err(Malformed { at: 0 })), "a length beyond the end");
    }

    /// Scenario: a field is found in a nested message.
    /// Guarantees: its offset is where its bytes lie, so that they can be patched there.
    #[test]
    fn offsets_point_at_the_value() {
        let request = payload::traces("cart", &[7]);
        let resource_spans = Fields::of(&request).next().unwrap().unwrap();
        let scope_spans =
            Fields::of(resource_spans.bytes().unwrap()).map(Result::unwrap).find(|f| f.number == 2).unwrap();
        let span = Fields::of(scope_spans.bytes().unwrap()).map(Result::unwrap).find(|f| f.number == 2).unwrap();
        let id = Fields::of(span.bytes().unwrap()).map(Result::unwrap).find(|f| f.number == 2).unwrap();
        let at = resource_spans.at + scope_spans.at + span.at + id.at;
        assert_eq!(request[at..at + 8], 7u64.to_be_bytes());
    }
}
