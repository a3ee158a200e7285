//! Header and fields of a message, the same for both protocols but for their first byte.
//!
//! Owns the encoding in the table of [`crate::control`]. It never knows what a field means. Reading checks every length
//! against what is left of the packet; writing keeps each field within the limit that reading enforces.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Largest packet, in bytes. Anything longer is refused unread.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Longest text in a message, in bytes; encoding cuts what is longer at a character boundary.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Longest name of an object of Kubernetes, in bytes (a DNS subdomain); encoding cuts what is longer.
pub const NAME_BYTES_MAX: usize = 253;

/// Most ports in a message; encoding drops what is more.
pub const PORTS_MAX: usize = 8;

const ENCODING: u8 = 1;
const HEADER_BYTES: usize = 8;

/// Builds one packet, field by field.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(magic: u8, kind: u8, id: u32) -> Self {
        let mut packet = Vec::with_capacity(64);
        packet.extend_from_slice(&[magic, ENCODING, kind, 0]);
        packet.extend_from_slice(&id.to_be_bytes());
        Self(packet)
    }

    pub(crate) fn u8(self, value: u8) -> Self {
        self.field(&[value])
    }

    pub(crate) fn u16(self, value: u16) -> Self {
        self.field(&value.to_be_bytes())
    }

    pub(crate) fn u32(self, value: u32) -> Self {
        self.field(&value.to_be_bytes())
    }

    pub(crate) fn u64(self, value: u64) -> Self {
        self.field(&value.to_be_bytes())
    }

    pub(crate) fn text(self, text: &str) -> Self {
        self.text_of(text, TEXT_BYTES_MAX)
    }

    pub(crate) fn name(self, name: &str) -> Self {
        self.text_of(name, NAME_BYTES_MAX)
    }

    fn text_of(self, text: &str, bytes_max: usize) -> Self {
        let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        self.field(text.as_bytes().get(..end).unwrap_or_default())
    }

    /// Scope and flow label of an IPv6 address are left out: a loopback address has neither.
    pub(crate) fn address(self, address: SocketAddr) -> Self {
        let port = address.port().to_be_bytes();
        match address.ip() {
            IpAddr::V4(ip) => self.joined(&[&[4], &ip.octets(), &port]),
            IpAddr::V6(ip) => self.joined(&[&[6], &ip.octets(), &port]),
        }
    }

    pub(crate) fn ports(self, ports: &[u16]) -> Self {
        let mut bytes = Vec::with_capacity(2 * PORTS_MAX);
        for port in ports.iter().take(PORTS_MAX) {
            bytes.extend_from_slice(&port.to_be_bytes());
        }
        self.field(&bytes)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        debug_assert!(
            self.0.len() <= MESSAGE_BYTES_MAX,
            "no message has more than two texts, or four names and a text"
        );
        self.0
    }

    fn field(self, bytes: &[u8]) -> Self {
        self.joined(&[bytes])
    }

    fn joined(mut self, parts: &[&[u8]]) -> Self {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let length = u16::try_from(length).expect("texts and port lists are cut before they get here");
        self.0.extend_from_slice(&length.to_be_bytes());
        for part in parts {
            self.0.extend_from_slice(part);
        }
        self
    }
}

/// Takes one packet apart, field by field. What is left at the end belongs to a later version.
pub(crate) struct Reader<'a> {
    pub(crate) kind: u8,
    pub(crate) id: u32,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(magic: u8, packet: &'a [u8]) -> Result<Self, DecodeError> {
        if packet.len() > MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLong);
        }
        let (header, rest) = packet.split_first_chunk::<HEADER_BYTES>().ok_or(DecodeError::Truncated)?;
        match *header {
            [first, ..] if first != magic => Err(DecodeError::Magic),
            [_, ENCODING, kind, _, a, b, c, d] => Ok(Self { kind, id: u32::from_be_bytes([a, b, c, d]), rest }),
            [_, encoding, ..] => Err(DecodeError::Encoding(encoding)),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, DecodeError> {
        self.number().map(u8::from_be_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, DecodeError> {
        self.number().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, DecodeError> {
        self.number().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, DecodeError> {
        self.number().map(u64::from_be_bytes)
    }

    pub(crate) fn text(&mut self) -> Result<String, DecodeError> {
        self.text_of(TEXT_BYTES_MAX)
    }

    pub(crate) fn name(&mut self) -> Result<String, DecodeError> {
        self.text_of(NAME_BYTES_MAX)
    }

    fn text_of(&mut self, bytes_max: usize) -> Result<String, DecodeError> {
        let bytes = self.field()?;
        if bytes.len() > bytes_max {
            return Err(DecodeError::Length);
        }
        std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| DecodeError::Text)
    }

    pub(crate) fn address(&mut self) -> Result<SocketAddr, DecodeError> {
        match *self.field()? {
            [4, a, b, c, d, high, low] => {
                Ok(SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]))))
            }
            [6, ref ip @ .., high, low] => {
                let octets = <[u8; 16]>::try_from(ip).map_err(|_| DecodeError::Length)?;
                Ok(SocketAddr::from((Ipv6Addr::from(octets), u16::from_be_bytes([high, low]))))
            }
            [4, ..] | [6] | [6, _] | [] => Err(DecodeError::Length),
            _ => Err(DecodeError::Value),
        }
    }

    pub(crate) fn ports(&mut self) -> Result<Vec<u16>, DecodeError> {
        let (pairs, odd) = self.field()?.as_chunks::<2>();
        if !odd.is_empty() || pairs.len() > PORTS_MAX {
            return Err(DecodeError::Length);
        }
        Ok(pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect())
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.field()?.try_into().map_err(|_| DecodeError::Length)
    }

    fn field(&mut self) -> Result<&'a [u8], DecodeError> {
        let (length, rest) = self.rest.split_first_chunk::<2>().ok_or(DecodeError::Truncated)?;
        let (field, rest) =
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(field)
    }
}

/// Why bytes are not a message. The session cannot go on: what follows cannot be trusted either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// Longer than [`MESSAGE_BYTES_MAX`].
    TooLong,
    /// Ends inside the header or a field.
    Truncated,
    /// Does not begin with the magic byte: the peer speaks something else.
    Magic,
    /// Another encoding than 1.
    Encoding(u8),
    /// A field has a length that its type cannot have.
    Length,
    /// A field holds a value that its type does not have.
    Value,
    /// A text is not UTF-8.
    Text,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "message of more than {MESSAGE_BYTES_MAX} bytes"),
            Self::Truncated => f.write_str("message ends in the middle"),
            Self::Magic => f.write_str("not a message of this protocol: wrong first byte"),
            Self::Encoding(byte) => write!(f, "message in encoding {byte}, only 1 is known"),
            Self::Length => f.write_str("message with a field of impossible length"),
            Self::Value => f.write_str("message with a value out of range"),
            Self::Text => f.write_str("message with a text that is not UTF-8"),
        }
    }
}

impl std::error::Error for DecodeError {}
