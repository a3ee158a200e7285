//! An OTLP/HTTP request: `POST /v1/{traces,metrics,logs}` with a protobuf body, over HTTP/1.1 or HTTP/2.

use std::rc::Rc;

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};

use super::body::{Body, Gathered};
use super::decode::{self, Encoding};
use super::rejection::Rejection;
use super::reply::Format;
use crate::base::Signal;
use crate::tenant::{Admission, Core};

/// How the reply is written: as the request says that it is.
pub(super) fn format(headers: &HeaderMap) -> Format {
    if is_media_type(headers.get(CONTENT_TYPE), "application/json") { Format::Json } else { Format::Protobuf }
}

/// One request, from its head to its commit.
pub(super) async fn post(
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: &mut Body<'_>,
    core: &Rc<Core>,
) -> Result<(), Rejection> {
    let signal = Signal::ALL.into_iter().find(|signal| signal.http_path() == path).ok_or(Rejection::UnknownPath)?;
    if method != Method::POST {
        return Err(Rejection::NotPost);
    }
    if format(headers) == Format::Json {
        return Err(Rejection::Json);
    }
    if !is_media_type(headers.get(CONTENT_TYPE), "application/x-protobuf") {
        return Err(Rejection::UnknownMediaType);
    }
    if headers.get_all(CONTENT_ENCODING).iter().nth(1).is_some() {
        return Err(Rejection::UnknownEncoding);
    }
    let encoding = Encoding::parse(headers.get(CONTENT_ENCODING))?;
    let length = content_length(headers);
    let received = tokio::time::timeout(super::BODY_DEADLINE, receive(signal, length, body, core)).await;
    let (body, mut admission) = received.map_err(|_elapsed| Rejection::Late)??;
    let message = decode::decode(encoding, body, core, &mut admission).await?;
    core.submit(message, admission).await?;
    Ok(())
}

/// Reads the whole body. Nothing of it is kept before it is admitted.
async fn receive(
    signal: Signal,
    length: Option<u64>,
    body: &mut Body<'_>,
    core: &Rc<Core>,
) -> Result<(Bytes, Admission), Rejection> {
    let mut admission = core.admit(signal, length.unwrap_or(0))?;
    let mut gathered = Gathered::Nothing;
    while !body.is_at_end() {
        let Some(piece) = body.piece().await? else { break };
        if piece.is_empty() {
            continue;
        }
        match length.and_then(|length| usize::try_from(length).ok()) {
            // The protocol below refuses a body that is longer or shorter than announced.
            Some(length) if gathered.len() + piece.len() <= length => gathered.add(piece, length),
            Some(_) => return Err(Rejection::malformed("the body is longer than its content-length")),
            None => gathered.add_unannounced(piece, &mut admission)?,
        }
    }
    Ok((gathered.into_bytes(), admission))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Whether a content type is this one, parameters aside.
fn is_media_type(header: Option<&HeaderValue>, media_type: &str) -> bool {
    let Some(text) = header.and_then(|header| header.to_str().ok()) else { return false };
    text.split(';').next().is_some_and(|essence| essence.trim().eq_ignore_ascii_case(media_type))
}
