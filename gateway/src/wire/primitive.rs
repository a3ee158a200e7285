//! Varints, tags and lengths of protobuf. Every function checks its bounds; none panics or allocates.
//!
//! ```text
//! field   tag value
//! tag     varint: number << 3 | wire type; number 1 ..= 2^29 - 1
//! value   type 0  varint        type 1  8 bytes       type 2  length (varint), then that many bytes
//!         type 3  group start   type 4  group end     type 5  4 bytes
//! varint  7 bits a byte, low ones first, at most 10 bytes; not necessarily the shortest form
//! ```

/// A wire type, as in the low three bits of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireType {
    Varint,
    Fixed64,
    Length,
    GroupStart,
    GroupEnd,
    Fixed32,
}

/// Reads a varint at `pos` and returns it with the position behind it. `None`: cut short, or over 64 bits.
#[inline]
pub(crate) fn varint(bytes: &[u8], pos: usize) -> Option<(u64, usize)> {
    match bytes.get(pos) {
        Some(&byte) if byte < 0x80 => Some((u64::from(byte), pos + 1)),
        Some(_) => long_varint(bytes, pos),
        None => None,
    }
}

fn long_varint(bytes: &[u8], pos: usize) -> Option<(u64, usize)> {
    let mut value = 0u64;
    for (index, &byte) in bytes.get(pos..)?.iter().take(10).enumerate() {
        if index == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            return Some((value, pos + index + 1));
        }
    }
    None
}

/// Reads a tag: the field's number and wire type, and the position behind it.
#[inline]
pub(crate) fn tag(bytes: &[u8], pos: usize) -> Result<(u32, WireType, usize), &'static str> {
    let (key, next) = varint(bytes, pos).ok_or("a tag is cut short or too long")?;
    let key = u32::try_from(key).map_err(|_| "a tag is larger than 32 bits")?;
    let wire_type = match key & 7 {
        0 => WireType::Varint,
        1 => WireType::Fixed64,
        2 => WireType::Length,
        3 => WireType::GroupStart,
        4 => WireType::GroupEnd,
        5 => WireType::Fixed32,
        _ => return Err("wire types 6 and 7 do not exist"),
    };
    match key >> 3 {
        0 => Err("field number 0 does not exist"),
        number => Ok((number, wire_type, next)),
    }
}

/// Reads a length at `pos` and returns the range of the bytes it announces, which ends at `end` or before.
#[inline]
pub(crate) fn length(bytes: &[u8], pos: usize, end: usize) -> Result<(usize, usize), &'static str> {
    let (length, start) = varint(bytes, pos).ok_or("a length is cut short or too long")?;
    match usize::try_from(length) {
        Ok(length) if start <= end && length <= end - start => Ok((start, start + length)),
        _ => Err("a length reaches beyond the message that holds it"),
    }
}

/// How many bytes a varint takes in its shortest form.
pub(crate) fn varint_len(value: usize) -> usize {
    let bits = (usize::BITS - (value | 1).leading_zeros()) as usize;
    bits.div_ceil(7)
}

/// How many bytes a length-delimited field with a one-byte tag takes.
pub(crate) fn field_len(body: usize) -> usize {
    1 + varint_len(body) + body
}

/// Appends a varint in its shortest form.
#[expect(clippy::cast_possible_truncation, reason = "the masked value has seven bits")]
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a length-delimited field with a one-byte tag.
pub(crate) fn put_field(out: &mut Vec<u8>, number: u8, body: &[u8]) {
    debug_assert!((1..16).contains(&number), "a larger number needs a longer tag");
    out.push(number << 3 | 2);
    put_varint(out, body.len());
    out.extend_from_slice(body);
}

/// The tag of a length-delimited field with a number below 16.
pub(crate) const fn length_tag(number: u8) -> u8 {
    number << 3 | 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: varints of every length, shortest and padded, and the two ways to be wrong.
    /// Guarantees: exactly what protobuf's own decoders accept is accepted, with the same value.
    #[test]
    fn a_varint_has_at_most_ten_bytes_and_64_bits() {
        for shift in 0..64 {
            let value = 1u64 << shift;
            let mut bytes = Vec::new();
            prost::encoding::encode_varint(value, &mut bytes);
            assert_eq!(varint(&bytes, 0), Some((value, bytes.len())));
            assert_eq!(varint_len(usize::try_from(value).expect("64 bits")), bytes.len());
            assert_eq!(varint(&bytes[..bytes.len() - 1], 0), None, "cut short");
        }
        assert_eq!(varint(&[0x81, 0x80, 0x00], 0), Some((1, 3)), "padding is legal");
        assert_eq!(varint(&[0xff; 10], 0), None, "never ends");
        let mut bytes = [0xff; 10];
        bytes[9] = 1;
        assert_eq!(varint(&bytes, 0), Some((u64::MAX, 10)));
        bytes[9] = 2;
        assert_eq!(varint(&bytes, 0), None, "65 bits");
    }

    /// Scenario: lengths that end exactly at, and one past, the end of their message.
    /// Guarantees: no range ever leaves the message, whatever the length says.
    #[test]
    fn a_length_stays_within_its_message() {
        assert_eq!(length(&[2, 7, 7, 7], 0, 3), Ok((1, 3)));
        assert!(length(&[3, 7, 7, 7], 0, 3).is_err());
        assert!(length(&[0x80], 0, 1).is_err());
        assert!(length(&[0x81, 0x00, 7], 0, 1).is_err(), "the length itself reaches beyond the end");
        let mut huge = vec![0xff; 9];
        huge.push(1);
        assert!(length(&huge, 0, 10).is_err());
    }
}
