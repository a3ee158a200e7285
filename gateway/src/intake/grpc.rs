//! A unary Export call of gRPC, without the machinery of a gRPC server.
//!
//! ```text
//! request    HEADERS  :path = /package.Service/Export, content-type = application/grpc[+proto], grpc-encoding
//!            DATA     flag: u8 (1 = compressed) | length: u32, big endian | message, exactly once
//! success    HEADERS, DATA: an empty message, HEADERS: grpc-status 0
//! refusal    HEADERS alone, with grpc-status, grpc-message and grpc-status-details-bin
//! ```

use std::rc::Rc;

use bytes::{Buf, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::body::{Body, Gathered};
use super::decode::{self, Encoding};
use super::rejection::Rejection;
use super::wire::Vitals;
use crate::base::Signal;
use crate::tenant::{Admission, Core};

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// Flag and length.
const PREFIX_BYTES: usize = 5;

/// From this size on a message is slowed down by the narrow window of a new connection.
const LARGE_BYTES: u64 = 32 * 1024;

/// The content type of the reply, if the request's says that it is gRPC.
pub(super) fn content_type(request: &HeaderValue) -> Option<HeaderValue> {
    let text = request.as_bytes();
    let rest = text.strip_prefix(b"application/grpc")?;
    match rest {
        [] | [b';', ..] => Some(HeaderValue::from_static("application/grpc")),
        _ if rest == b"+proto" || rest.starts_with(b"+proto;") => {
            Some(HeaderValue::from_static("application/grpc+proto"))
        }
        _ => None,
    }
}

/// One call, from its head to its commit.
pub(super) async fn call(
    path: &str,
    headers: &HeaderMap,
    body: &mut Body<'_>,
    core: &Rc<Core>,
    vitals: &Vitals,
) -> Result<(), Rejection> {
    let signal = Signal::ALL.into_iter().find(|signal| signal.grpc_path() == path).ok_or(Rejection::UnknownMethod)?;
    let received = tokio::time::timeout(super::BODY_DEADLINE, receive(signal, body, core, vitals)).await;
    let (message, compressed, mut admission) = received.map_err(|_elapsed| Rejection::Late)??;
    let message = match compressed {
        false => message,
        true => match Encoding::parse(headers.get(GRPC_ENCODING))? {
            Encoding::Identity => {
                return Err(Rejection::malformed("a compressed message needs a grpc-encoding"));
            }
            encoding => decode::decode(encoding, message, core, &mut admission).await?,
        },
    };
    core.submit(message, admission).await?;
    Ok(())
}

/// Reads exactly one message. Nothing of it is kept before it is admitted.
async fn receive(
    signal: Signal,
    body: &mut Body<'_>,
    core: &Rc<Core>,
    vitals: &Vitals,
) -> Result<(Bytes, bool, Admission), Rejection> {
    let (compressed, length, mut rest) = prefix(body).await?;
    if length > LARGE_BYTES {
        vitals.large.set(true);
    }
    let admission = core.admit(signal, length)?;
    let length = usize::try_from(length).expect("from 32 bits");
    let mut message = Gathered::Nothing;
    loop {
        if message.len() + rest.len() > length {
            return Err(Rejection::malformed("a unary call carries exactly one message"));
        }
        if !rest.is_empty() {
            message.add(rest, length);
        }
        if body.is_at_end() {
            break;
        }
        match body.piece().await? {
            Some(piece) => rest = piece,
            None => break,
        }
    }
    if message.len() < length {
        return Err(Rejection::malformed("the call ended before its message did"));
    }
    Ok((message.into_bytes(), compressed, admission))
}

/// Flag, length, and what came with them. The prefix nearly always comes in one piece.
async fn prefix(body: &mut Body<'_>) -> Result<(bool, u64, Bytes), Rejection> {
    let mut prefix = [0; PREFIX_BYTES];
    let mut filled = 0;
    loop {
        let Some(mut piece) = body.piece().await? else {
            return Err(Rejection::malformed("the call ended before its message began"));
        };
        let count = piece.len().min(PREFIX_BYTES - filled);
        piece.copy_to_slice(&mut prefix[filled..filled + count]);
        filled += count;
        if filled == PREFIX_BYTES {
            let [flag, length @ ..] = prefix;
            let compressed = match flag {
                0 => false,
                1 => true,
                _ => return Err(Rejection::malformed("the message's compression flag is neither 0 nor 1")),
            };
            return Ok((compressed, u64::from(u32::from_be_bytes(length)), piece));
        }
    }
}
