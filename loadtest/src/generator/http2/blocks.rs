//! Header blocks of requests, as gRPC clients make them: each field is spelt out once a connection and is a byte from then on.
//!
//! ```text
//! first request of a connection   literal fields that enter the peer's table: shared ones, then the path
//! first of another path           the path enters the table
//! every other                     indices
//! ```
//!
//! [RFC 7541](https://www.rfc-editor.org/rfc/rfc7541). A peer whose table is too small for these fields gets literals each time.

use super::END_HEADERS;
use super::frame::{Kind, put_frame};
use crate::identity::Signal;

/// Bytes of all fields in the peer's table, with 32 for each: what they are made of is below.
const FIELDS_MAX: u32 = 1_024;

/// Bytes of the table unless the peer says otherwise, and the most that is used of a larger one.
const TABLE_DEFAULT: u32 = 4_096;

/// The newest field in the table has this index.
const NEWEST: u8 = 62;

/// `:method POST` and `:scheme http` of the static table.
const POST: u8 = 0x83;
const HTTP: u8 = 0x86;

/// Indices of names in the static table; 0: the name is spelt out.
const AUTHORITY: u8 = 1;
const PATH: u8 = 4;
const CONTENT_TYPE: u8 = 31;
const USER_AGENT: u8 = 58;

#[derive(Debug)]
pub(super) struct Blocks {
    shared: Vec<Field>,
    /// Fields in the table.
    entered: u8,
    /// Where each signal's path is among them.
    paths: [Option<u8>; 3],
    enters: bool,
    /// The size of the table that the peer is still to be told.
    resize: Option<u32>,
    table: u32,
    block: Vec<u8>,
}

#[derive(Debug)]
struct Field {
    name_index: u8,
    name: &'static str,
    value: &'static str,
}

impl Blocks {
    pub(super) fn new(encoding: Option<&'static str>) -> Self {
        let mut shared = vec![
            Field { name_index: AUTHORITY, name: ":authority", value: "localhost" },
            Field { name_index: CONTENT_TYPE, name: "content-type", value: "application/grpc" },
            Field { name_index: 0, name: "te", value: "trailers" },
            Field { name_index: USER_AGENT, name: "user-agent", value: "pillion-loadtest" },
        ];
        if let Some(value) = encoding {
            shared.push(Field { name_index: 0, name: "grpc-encoding", value });
        }
        let (paths, block) = ([None; 3], Vec::new());
        Self { shared, entered: 0, paths, enters: true, resize: None, table: TABLE_DEFAULT, block }
    }

    /// The peer's SETTINGS_HEADER_TABLE_SIZE. A table that was ever too small is not used again.
    pub(super) fn set_table_max(&mut self, bytes: u32) {
        self.enters &= bytes >= FIELDS_MAX;
        let table = if self.enters { bytes.min(TABLE_DEFAULT) } else { 0 };
        if table < self.table {
            self.resize = Some(table);
            self.table = table;
        }
    }

    /// Appends a HEADERS frame.
    pub(super) fn put(&mut self, out: &mut Vec<u8>, stream: u32, signal: Signal) {
        let mut block = std::mem::take(&mut self.block);
        block.clear();
        if let Some(bytes) = self.resize.take() {
            put_integer(&mut block, 0x20, 5, bytes);
        }
        block.extend_from_slice(&[POST, HTTP]);
        let path = Field { name_index: PATH, name: ":path", value: signal.grpc_path() };
        if self.enters {
            let is_first = self.entered == 0;
            // Pseudo-fields come first, so the path does, also where all the others enter the table with it.
            match self.paths[signal.index()] {
                Some(place) => block.push(0x80 | self.index(place)),
                None => {
                    path.put(&mut block, 0x40, 6);
                    self.paths[signal.index()] = Some(self.entered);
                    self.entered += 1;
                }
            }
            for (number, field) in (1u8..).zip(&self.shared) {
                if is_first {
                    field.put(&mut block, 0x40, 6);
                    self.entered += 1;
                } else {
                    block.push(0x80 | self.index(number));
                }
            }
        } else {
            path.put(&mut block, 0, 4);
            self.shared.iter().for_each(|field| field.put(&mut block, 0, 4));
        }
        put_frame(out, Kind::Headers, END_HEADERS, stream, &block);
        self.block = block;
    }

    /// Of the field that was the `place`th to enter the table. Below 127, since there are fewer than ten.
    fn index(&self, place: u8) -> u8 {
        NEWEST + self.entered - 1 - place
    }
}

impl Field {
    fn put(&self, block: &mut Vec<u8>, kind: u8, prefix_bits: u8) {
        put_integer(block, kind, prefix_bits, self.name_index.into());
        if self.name_index == 0 {
            put_string(block, self.name);
        }
        put_string(block, self.value);
    }
}

fn put_string(block: &mut Vec<u8>, text: &str) {
    put_integer(block, 0, 7, super::number(text.len()));
    block.extend_from_slice(text.as_bytes());
}

fn put_integer(block: &mut Vec<u8>, kind: u8, prefix_bits: u8, value: u32) {
    let max = (1u32 << prefix_bits) - 1;
    let Some(mut left) = value.checked_sub(max) else {
        block.push(kind | low_byte(value));
        return;
    };
    block.push(kind | low_byte(max));
    while left >= 128 {
        block.push(0x80 | low_byte(left & 0x7f));
        left >>= 7;
    }
    block.push(low_byte(left));
}

fn low_byte(value: u32) -> u8 {
    value.to_le_bytes()[0]
}
