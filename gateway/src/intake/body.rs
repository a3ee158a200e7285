//! The body of a request, as HTTP/2 or HTTP/1 delivers it, gathered into one run of bytes.
//!
//! Owns the flow control of what it takes: capacity is given back at once, because what is taken is reserved in the ledger.
//! A message that arrives in one piece is not copied.

use bytes::Bytes;
use h2::RecvStream;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};

use super::rejection::Rejection;
use crate::tenant::Admission;

/// A body of either protocol.
#[derive(Debug)]
pub(super) enum Body<'a> {
    Http2(&'a mut RecvStream),
    Http1(&'a mut Incoming),
}

impl Body<'_> {
    /// The next piece; `None` at the end.
    pub(super) async fn piece(&mut self) -> Result<Option<Bytes>, Rejection> {
        match self {
            Self::Http2(stream) => {
                let Some(piece) = stream.data().await else { return Ok(None) };
                let piece = piece.map_err(|_reset| Rejection::Abandoned)?;
                stream.flow_control().release_capacity(piece.len()).map_err(|_closed| Rejection::Abandoned)?;
                Ok(Some(piece))
            }
            Self::Http1(incoming) => loop {
                let Some(frame) = incoming.frame().await else { return Ok(None) };
                // Trailers are nothing to us.
                if let Ok(piece) = frame.map_err(|_broken| Rejection::Abandoned)?.into_data() {
                    return Ok(Some(piece));
                }
            },
        }
    }

    /// Whether nothing more comes, as far as is known without waiting.
    pub(super) fn is_at_end(&self) -> bool {
        match self {
            Self::Http2(stream) => stream.is_end_stream(),
            Self::Http1(incoming) => incoming.is_end_stream(),
        }
    }
}

/// A message being put together.
#[derive(Debug)]
pub(super) enum Gathered {
    /// Nothing yet.
    Nothing,
    /// One piece, as it came.
    One(Bytes),
    /// Several, copied together.
    Many(Vec<u8>),
}

impl Gathered {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(piece) => piece.len(),
            Self::Many(buffer) => buffer.len(),
        }
    }

    /// Adds a piece to a message whose length is known and reserved.
    pub(super) fn add(&mut self, piece: Bytes, length: usize) {
        match self {
            Self::Nothing => *self = Self::One(piece),
            Self::One(first) => {
                let mut buffer = Vec::with_capacity(length);
                buffer.extend_from_slice(first);
                buffer.extend_from_slice(&piece);
                *self = Self::Many(buffer);
            }
            Self::Many(buffer) => buffer.extend_from_slice(&piece),
        }
    }

    /// Adds a piece to a message of unknown length: its quota and the memory of the grown buffer are reserved first.
    pub(super) fn add_unannounced(&mut self, piece: Bytes, admission: &mut Admission) -> Result<(), Rejection> {
        let needed = self.len() + piece.len();
        admission.grow_to(needed as u64)?;
        let capacity = if let Self::Many(buffer) = self { buffer.capacity() } else { 0 };
        if matches!(self, Self::Nothing) || needed <= capacity {
            admission.cover(needed as u64)?;
            self.add(piece, needed);
            return Ok(());
        }
        // Doubling, so that many small pieces are not copied each time.
        let grown = needed.max(2 * capacity);
        admission.cover(grown as u64)?;
        if let Self::Many(buffer) = self {
            buffer.reserve_exact(grown - buffer.len());
        }
        self.add(piece, grown);
        Ok(())
    }

    pub(super) fn into_bytes(self) -> Bytes {
        match self {
            Self::Nothing => Bytes::new(),
            Self::One(piece) => piece,
            Self::Many(buffer) => Bytes::from(buffer),
        }
    }
}
