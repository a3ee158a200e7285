//! Decompression within the limits: in pieces, against the ledger, between which the tenant's slice may end.
//!
//! Owns nothing beyond a call. Output is admitted before it is written, so a bomb ends at the limit of the request, at the
//! tenant's quota or at its memory, whichever comes first, and never in the gateway's memory.

use std::io::{self, Read};
use std::rc::Rc;

use bytes::Bytes;

use super::rejection::Rejection;
use crate::tenant::{Admission, Core};

/// A compression of OTLP's transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    /// Of zlib (RFC 1950), which is what HTTP and gRPC mean by the word.
    Deflate,
    Zstd,
}

impl Encoding {
    /// From `Content-Encoding` or `grpc-encoding`; absent means identity.
    pub(super) fn parse(header: Option<&http::HeaderValue>) -> Result<Self, Rejection> {
        let Some(header) = header else { return Ok(Self::Identity) };
        let name = header.as_bytes().trim_ascii();
        let known = [
            (&b"gzip"[..], Self::Gzip),
            (b"identity", Self::Identity),
            (b"zstd", Self::Zstd),
            (b"deflate", Self::Deflate),
            (b"", Self::Identity),
        ];
        known
            .into_iter()
            .find(|(word, _)| name.eq_ignore_ascii_case(word))
            .map(|(_, encoding)| encoding)
            .ok_or(Rejection::UnknownEncoding)
    }
}

/// Output that is made between two looks at the clock.
const PIECE_BYTES: usize = 64 * 1024;

/// What inflating a deflate stream holds beside its output: a 32 KiB window and tables.
const INFLATE_BYTES: u64 = 64 * 1024;

/// The largest zstd window: what RFC 8878 asks every decoder to support.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

/// How a zstd frame begins.
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// What zstd holds beside its window: blocks, literals and tables.
const ZSTD_BYTES: u64 = 384 * 1024;

enum Inflate<'a> {
    Gzip(flate2::bufread::MultiGzDecoder<&'a [u8]>),
    Deflate(flate2::bufread::ZlibDecoder<&'a [u8]>),
    Zstd(zstd::stream::read::Decoder<'static, &'a [u8]>),
}

impl<'a> Inflate<'a> {
    fn open(encoding: Encoding, wire: &'a [u8]) -> io::Result<Self> {
        Ok(match encoding {
            Encoding::Gzip => Self::Gzip(flate2::bufread::MultiGzDecoder::new(wire)),
            Encoding::Deflate | Encoding::Identity => Self::Deflate(flate2::bufread::ZlibDecoder::new(wire)),
            Encoding::Zstd if !wire.starts_with(&ZSTD_MAGIC) => {
                return Err(io::Error::other("it does not begin with a zstd frame"));
            }
            Encoding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(wire)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                // One frame: the memory that was reserved is that of the first one's window.
                Self::Zstd(decoder.single_frame())
            }
        })
    }

    /// What was not read.
    fn rest(&self) -> &'a [u8] {
        match self {
            Self::Gzip(decoder) => decoder.get_ref(),
            Self::Deflate(decoder) => decoder.get_ref(),
            Self::Zstd(decoder) => decoder.get_ref(),
        }
    }
}

impl Read for Inflate<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Deflate(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// Inflates a whole message. The admission covers the compressed bytes before, and the inflated ones after.
pub(super) async fn decode(
    encoding: Encoding,
    wire: Bytes,
    core: &Rc<Core>,
    admission: &mut Admission,
) -> Result<Bytes, Rejection> {
    if encoding == Encoding::Identity {
        return Ok(wire);
    }
    let held = admission.reserved() + working_bytes(encoding, &wire);
    admission.cover(held)?;
    let mut decoder = Inflate::open(encoding, &wire).map_err(damaged)?;
    let mut output = Vec::new();
    loop {
        let filled = output.len();
        if filled == output.capacity() {
            let grown = next_capacity(filled, wire.len(), core.request_bytes_max());
            admission.cover(held + grown as u64)?;
            output.reserve_exact(grown - filled);
        }
        output.resize(output.capacity().min(filled + PIECE_BYTES), 0);
        let count = decoder.read(&mut output[filled..]).map_err(damaged)?;
        output.truncate(filled + count);
        if count == 0 {
            break;
        }
        // What came over the wire is paid for; what it grows to beyond that is paid now.
        admission.grow_to(output.len() as u64)?;
        core.pace().breathe().await;
    }
    if !decoder.rest().is_empty() {
        return Err(Rejection::malformed("the compressed body goes on after its end"));
    }
    drop(decoder);
    admission.settle(output.capacity() as u64);
    Ok(Bytes::from(output))
}

/// Small messages are inflated into small buffers, large ones grow by a megabyte at a time, and none to more than it
/// takes to see that the limit is passed.
fn next_capacity(filled: usize, wire: usize, limit: u64) -> usize {
    let wanted = match filled {
        0 => wire.saturating_mul(8).clamp(4 * 1024, PIECE_BYTES),
        _ => filled + filled.clamp(PIECE_BYTES, 16 * PIECE_BYTES),
    };
    wanted.min(usize::try_from(limit).unwrap_or(usize::MAX).saturating_add(1)).max(filled + 1)
}

fn working_bytes(encoding: Encoding, wire: &[u8]) -> u64 {
    match encoding {
        Encoding::Identity => 0,
        Encoding::Gzip | Encoding::Deflate => INFLATE_BYTES,
        Encoding::Zstd => ZSTD_BYTES + zstd_window_bytes(wire),
    }
}

/// The window that a zstd frame says it needs (RFC 8878, section 3.1.1.1), at most what we accept. 0 when it says nothing.
fn zstd_window_bytes(wire: &[u8]) -> u64 {
    let header = wire.get(ZSTD_MAGIC.len()..).unwrap_or_default();
    let [descriptor, fields @ ..] = header else { return 0 };
    let window = if descriptor & 0b0010_0000 == 0 {
        let Some(window) = fields.first() else { return 0 };
        let base = 1u64 << (10 + (window >> 3));
        base + base / 8 * u64::from(window & 0b111)
    } else {
        // A single segment: the window is the content, whose size follows the dictionary's id.
        let dictionary_bytes = [0, 1, 2, 4][usize::from(descriptor & 0b11)];
        let size_bytes = [1, 2, 4, 8][usize::from(descriptor >> 6)];
        let Some(size) = fields.get(dictionary_bytes..dictionary_bytes + size_bytes) else { return 0 };
        let mut little_endian = [0; 8];
        little_endian[..size_bytes].copy_from_slice(size);
        // Two bytes begin to count at 256.
        u64::from_le_bytes(little_endian).saturating_add(if size_bytes == 2 { 256 } else { 0 })
    };
    window.min(1 << ZSTD_WINDOW_LOG_MAX)
}

fn damaged(error: io::Error) -> Rejection {
    Rejection::malformed(format!("the compressed body cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: frames as encoders write them: one segment of each width of its size, and windows with a mantissa.
    /// Guarantees: what is reserved for the window is what the frame asks for, and never more than is accepted.
    #[test]
    fn the_window_of_a_zstd_frame_is_read_from_its_header() {
        let window = |rest: &[u8]| zstd_window_bytes(&[&ZSTD_MAGIC[..], rest].concat());

        assert_eq!(window(&[0b0010_0000, 200]), 200);
        assert_eq!(window(&[0b0110_0000, 0x10, 0x01]), 0x110 + 256);
        assert_eq!(window(&[0b0110_0001, 77, 0x10, 0x01]), 0x110 + 256);
        assert_eq!(window(&[0b1010_0000, 0, 0, 1, 0]), 65_536);
        assert_eq!(window(&[0b1110_0000, 0, 0, 0, 0, 0, 0, 0, 0xff]), 8 << 20);
        assert_eq!(window(&[0, 11 << 3]), 2 << 20);
        assert_eq!(window(&[0, 10 << 3 | 0b111]), (1 << 20) + 7 * (128 << 10));
        assert_eq!(window(&[0, 0xff]), 8 << 20);
        for cut in [&[][..], &[0], &[0b0010_0000], &[0b1110_0000, 1, 2, 3]] {
            assert_eq!(window(cut), 0);
        }
        assert_eq!(zstd_window_bytes(&[]), 0);
        let real = zstd::bulk::compress(&[7; 3_000], 3).unwrap();
        assert_eq!(zstd_window_bytes(&real), 3_000);
    }
}
