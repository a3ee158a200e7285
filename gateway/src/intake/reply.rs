//! The one mapper from outcomes to replies: a gRPC status, an HTTP status, and the same `google.rpc.Status` in both. The
//! clauses named here are those of docs/otlp.md.
//!
//! ```text
//! outcome                        gRPC                             HTTP (clause 18 but where OTLP/HTTP says otherwise)
//! success                        OK, an empty response            200, an empty response
//! invalid, malformed             INVALID_ARGUMENT + BadRequest    400 + BadRequest
//! too large                      RESOURCE_EXHAUSTED, no RetryInfo 413
//! unknown method, path, signal   UNIMPLEMENTED                    404
//! unknown encoding, media type   UNIMPLEMENTED                    415
//! not POST                       (never)                          405 + Allow
//! quota                          UNAVAILABLE + RetryInfo          429 + Retry-After
//! memory, queue, shutdown, late  UNAVAILABLE + RetryInfo          503 + Retry-After
//! ```

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};

use super::rejection::Rejection;
use super::status::{self, Detail};
use crate::tenant::Refused;

pub(super) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The compressions we read, as gRPC lists them.
const ENCODINGS: HeaderValue = HeaderValue::from_static("identity,gzip,zstd,deflate");
const ZERO: HeaderValue = HeaderValue::from_static("0");

/// A gRPC message of length zero: an `Export*ServiceResponse` whose partial success is unset.
pub(super) const EMPTY_MESSAGE: Bytes = Bytes::from_static(&[0; 5]);

/// The longest text that goes into a reply: a header must stay within what clients accept.
const WORDS_BYTES_MAX: usize = 512;

/// The status codes of gRPC that we answer with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Code {
    Cancelled = 1,
    InvalidArgument = 3,
    ResourceExhausted = 8,
    Unimplemented = 12,
    Unavailable = 14,
}

/// How a body is written; always as the request's was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `application/x-protobuf`, also for requests that name no format we know.
    Protobuf,
    /// `application/json`.
    Json,
}

impl Format {
    fn content_type(self) -> HeaderValue {
        match self {
            Self::Protobuf => HeaderValue::from_static("application/x-protobuf"),
            Self::Json => HeaderValue::from_static("application/json"),
        }
    }
}

/// What gRPC calls the rejection.
pub(super) fn code(rejection: &Rejection) -> Code {
    match rejection {
        Rejection::Refused(Refused::Invalid(_)) | Rejection::Malformed(_) => Code::InvalidArgument,
        Rejection::Refused(Refused::TooLarge { .. }) => Code::ResourceExhausted,
        Rejection::Refused(Refused::Unrouted(_))
        | Rejection::UnknownMethod
        | Rejection::UnknownPath
        | Rejection::NotPost
        | Rejection::UnknownMediaType
        | Rejection::Json
        | Rejection::UnknownEncoding => Code::Unimplemented,
        Rejection::Refused(Refused::Quota { .. } | Refused::Memory { .. } | Refused::Queue { .. })
        | Rejection::Late => Code::Unavailable,
        Rejection::Abandoned => Code::Cancelled,
    }
}

/// What HTTP calls the rejection.
pub(super) fn http_status(rejection: &Rejection) -> StatusCode {
    match rejection {
        Rejection::Refused(Refused::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
        Rejection::Refused(Refused::Quota { .. }) => StatusCode::TOO_MANY_REQUESTS,
        Rejection::NotPost => StatusCode::METHOD_NOT_ALLOWED,
        Rejection::UnknownMediaType | Rejection::Json | Rejection::UnknownEncoding => {
            StatusCode::UNSUPPORTED_MEDIA_TYPE
        }
        other => match code(other) {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::Unimplemented => StatusCode::NOT_FOUND,
            Code::Unavailable | Code::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        },
    }
}

/// The head of a gRPC success; the empty message and [`grpc_ok_trailers`] follow.
pub(super) fn grpc_ok_head(content_type: HeaderValue) -> Response<()> {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(CONTENT_TYPE, content_type);
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

/// `grpc-status: 0`.
pub(super) fn grpc_ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(GRPC_STATUS, ZERO);
    trailers
}

/// A gRPC refusal: everything in the head, nothing after it.
pub(super) fn grpc_rejection(content_type: HeaderValue, rejection: &Rejection) -> Response<()> {
    let (code, detail, words) = (code(rejection), detail(rejection), short(rejection));
    let mut response = grpc_ok_head(content_type);
    let headers = response.headers_mut();
    headers.insert(GRPC_STATUS, HeaderValue::from(code as i32));
    headers.insert(GRPC_MESSAGE, percent_encoded(&words));
    let status = STANDARD_NO_PAD.encode(status::to_protobuf(code as i32, &words, detail.as_ref()));
    headers.insert(GRPC_DETAILS, HeaderValue::try_from(status).expect("base64 is ASCII"));
    if *rejection == Rejection::UnknownEncoding {
        headers.insert(GRPC_ACCEPT_ENCODING, ENCODINGS);
    }
    response
}

/// An HTTP success: an empty `Export*ServiceResponse`.
pub(super) fn http_ok(format: Format) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    response.headers_mut().insert(CONTENT_TYPE, format.content_type());
    response
}

/// An HTTP refusal, its body a `google.rpc.Status` (clause 12).
pub(super) fn http_rejection(format: Format, rejection: &Rejection) -> Response<Bytes> {
    let (code, detail, words) = (code(rejection) as i32, detail(rejection), short(rejection));
    let body = match format {
        Format::Protobuf => status::to_protobuf(code, &words, detail.as_ref()),
        Format::Json => status::to_json(code, &words, detail.as_ref()),
    };
    let mut response = Response::new(Bytes::from(body));
    *response.status_mut() = http_status(rejection);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, format.content_type());
    if let Some(delay) = rejection.delay() {
        headers.insert(RETRY_AFTER, HeaderValue::from(whole_seconds(delay)));
    }
    if *rejection == Rejection::NotPost {
        headers.insert(ALLOW, HeaderValue::from_static("POST"));
    }
    response
}

/// Rounded up (clause 15), and never zero: a client that obeys is granted on its next try.
fn whole_seconds(delay: Duration) -> u64 {
    (delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).max(1)
}

fn detail(rejection: &Rejection) -> Option<Detail> {
    match rejection {
        Rejection::Refused(Refused::Invalid(invalid)) => {
            let description = format!("{} at byte {}", invalid.problem, invalid.offset);
            Some(Detail::Field(cut(&invalid.path).to_owned(), description))
        }
        Rejection::Malformed(words) => Some(Detail::Field(String::new(), cut(words).to_owned())),
        other => other.delay().map(Detail::Retry),
    }
}

fn short(rejection: &Rejection) -> String {
    cut(&rejection.words()).to_owned()
}

fn cut(words: &str) -> &str {
    let end = (0..=WORDS_BYTES_MAX.min(words.len())).rev().find(|end| words.is_char_boundary(*end));
    &words[..end.unwrap_or(0)]
}

/// gRPC's form of a text in a header: printable ASCII but `%` as it is, every other byte as `%XX`.
fn percent_encoded(words: &str) -> HeaderValue {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(words.len());
    for byte in words.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a string does not fail");
        }
    }
    HeaderValue::try_from(encoded).expect("printable ASCII")
}
