//! What is sent of a request: compressed, and framed for gRPC, in buffers that are used again.

use std::io::{self, Write};

use anyhow::{Context, Result};

use super::{Compression, Protocol, Transport};

/// Makes bodies.
#[derive(Debug)]
pub(super) struct Bodies {
    transport: Transport,
    message: Vec<u8>,
    packed: Vec<u8>,
}

impl Bodies {
    pub(super) fn new(transport: Transport) -> Self {
        Self { transport, message: Vec::new(), packed: Vec::new() }
    }

    /// The body of the message that `write` appends to what it is given. Overwritten by the next.
    pub(super) fn make(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<&[u8]> {
        let prefix = if self.transport.protocol == Protocol::Grpc { 5 } else { 0 };
        self.message.clear();
        self.message.resize(prefix, 0);
        write(&mut self.message);
        let (body, flag) = if self.transport.compression == Compression::None {
            (&mut self.message, 0)
        } else {
            self.packed.clear();
            self.packed.resize(prefix, 0);
            self.transport.compression.pack(&self.message[prefix..], &mut self.packed)?;
            (&mut self.packed, 1)
        };
        if prefix > 0 {
            let length = u32::try_from(body.len() - prefix).context("a message above 4 GiB")?;
            body[0] = flag;
            body[1..prefix].copy_from_slice(&length.to_be_bytes());
        }
        Ok(body)
    }
}

impl Compression {
    /// As HTTP names it.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }

    fn pack(self, message: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Self::None => out.extend_from_slice(message),
            Self::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(6));
                encoder.write_all(message)?;
                encoder.finish()?;
            }
            Self::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, 3)?;
                encoder.write_all(message)?;
                encoder.finish()?;
            }
        }
        Ok(())
    }
}
