//! What header blocks of answers say of the status, and nothing else of them.
//!
//! A peer that answers alike sends the same few bytes each time: indices of fields that its table has. Such a block changes no
//! table, so while no other comes, it means what it meant; two of them are remembered, headers and trailers.

use anyhow::{Result, anyhow};
use loona_hpack::Decoder;

/// Bytes of the table that the peer's header blocks refer to: the default.
const TABLE_MAX: usize = 4_096;

/// Bytes of a block that is remembered.
const KNOWN_MAX: usize = 16;

/// An index of a field: the highest bit. With all bits the index goes on in the next byte.
const INDEXED: u8 = 0x80;

pub(super) struct Statuses {
    decoder: Decoder<'static>,
    known: [(Vec<u8>, Status); 2],
    /// The one that is forgotten for another.
    oldest: usize,
}

/// Headers that matter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// `:status`
    pub(super) http: Option<u16>,
    /// `grpc-status`
    pub(super) grpc: Option<u32>,
}

impl Statuses {
    /// Of a connection's first answer.
    pub(super) fn new() -> Self {
        let mut decoder = Decoder::new();
        decoder.set_max_allowed_table_size(TABLE_MAX);
        Self { decoder, known: Default::default(), oldest: 0 }
    }

    /// The next block; all of a connection must be given, since they refer to one another.
    pub(super) fn read(&mut self, block: &[u8]) -> Result<Status> {
        let is_indexed = block.len() <= KNOWN_MAX && block.iter().all(|byte| (INDEXED..0xff).contains(byte));
        if !is_indexed {
            self.known.iter_mut().for_each(|(known, _)| known.clear());
            return self.decode(block);
        }
        if let Some((_, status)) = self.known.iter().find(|(known, _)| known == block && !block.is_empty()) {
            return Ok(*status);
        }
        let status = self.decode(block)?;
        let (known, meaning) = &mut self.known[self.oldest];
        known.clear();
        known.extend_from_slice(block);
        *meaning = status;
        self.oldest = 1 - self.oldest;
        Ok(status)
    }

    fn decode(&mut self, block: &[u8]) -> Result<Status> {
        let mut found = Status::default();
        let decoded = self.decoder.decode_with_cb(block, |name, value| {
            let value = || std::str::from_utf8(&value).ok();
            match &*name {
                b":status" => found.http = value().and_then(|value| value.parse().ok()),
                b"grpc-status" => found.grpc = value().and_then(|value| value.parse().ok()),
                _ => {}
            }
        });
        decoded.map_err(|error| anyhow!("the peer's headers: {error}"))?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a peer enters a field into its table and refers to it, twice; then another field moves it to another index.
    /// Guarantees: what a block meant is not taken for what it means once the table is another, and each means what a decoder
    /// without a memory says.
    #[test]
    fn a_known_block_means_what_it_does_in_the_table_of_its_time() {
        let enters = |status: &[u8; 1]| [b"\x40\x0bgrpc-status\x01".as_slice(), status].concat();
        // The newest field, then the same again, then the one before it.
        let blocks = [enters(b"0"), vec![0xbe], vec![0xbe], enters(b"7"), vec![0xbe], vec![0xbf], vec![0x88, 0xbe]];
        let mut statuses = Statuses::new();
        let told: Vec<Status> = blocks.iter().map(|block| statuses.read(block).unwrap()).collect();
        let mut plain = Statuses::new();
        let decoded: Vec<Status> = blocks.iter().map(|block| plain.decode(block).unwrap()).collect();
        assert_eq!(told, decoded);
        let grpc: Vec<u32> = told.iter().filter_map(|status| status.grpc).collect();
        assert_eq!(grpc, [0, 0, 0, 7, 7, 0, 7]);
        assert_eq!(told[6].http, Some(200));
        statuses.read(&[0x80]).expect_err("there is no such field");
    }
}
