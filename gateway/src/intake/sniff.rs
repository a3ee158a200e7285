//! Tells HTTP/2 from HTTP/1 by the first bytes, on either port. What it read is put back.

use std::io;

use tokio::io::AsyncReadExt;

use super::wire::Wire;

/// How every HTTP/2 connection begins (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// The preface was seen.
    Http2,
    /// Anything else: HTTP/1 says so itself, or is refused there.
    Http1,
}

/// Reads as far as the first byte that decides. An error when the peer closes before.
pub(super) async fn sniff(mut wire: Wire) -> io::Result<(Protocol, Wire)> {
    let mut bytes = [0; PREFACE.len()];
    let mut filled = 0;
    let protocol = loop {
        match wire.read(&mut bytes[filled..]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => filled += count,
        }
        if bytes[..filled] != PREFACE[..filled] {
            break Protocol::Http1;
        }
        if filled == PREFACE.len() {
            break Protocol::Http2;
        }
    };
    wire.put_back(&bytes[..filled]);
    Ok((protocol, wire))
}
