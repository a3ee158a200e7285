//! The few messages a destination answers with, as far as export reads them.
//!
//! Owns no connection. What it reads came from the network: every text is cut and cleaned before it is kept.
//!
//! ```text
//! ExportResponse   1 partial_success { 1 rejected_{spans,data_points,log_records} int64, 2 error_message string }
//! google.rpc.Status  1 code, 2 message, 3 details: Any { 1 type_url, 2 value }; of these RetryInfo { 1 retry_delay }
//! ```

use std::time::Duration;

use prost::Message;

/// Texts of a destination are kept up to here: the limit of a dead letter's reason.
pub(crate) const REASON_BYTES_MAX: usize = 1024;

#[derive(Clone, PartialEq, Message)]
struct ExportResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<PartialSuccess>,
}

#[derive(Clone, PartialEq, Message)]
struct PartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// A request that was accepted, perhaps in part.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Accepted {
    /// Items that the destination says it rejected.
    pub(crate) rejected: u64,
    /// Its words about them, or a warning.
    pub(crate) message: String,
}

/// Reads an `Export*ServiceResponse`. An answer that is none counts as plain success: the status said so already.
pub(crate) fn accepted(body: &[u8]) -> Accepted {
    let partial = ExportResponse::decode(body).ok().and_then(|response| response.partial_success);
    let Some(partial) = partial else { return Accepted::default() };
    Accepted { rejected: u64::try_from(partial.rejected).unwrap_or(0), message: clean(&partial.error_message) }
}

/// RetryInfo's delay in a serialised `google.rpc.Status`.
pub(crate) fn retry_delay(status: &[u8]) -> Option<Duration> {
    let status = Status::decode(status).ok()?;
    let info = status.details.iter().find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
    Some(Duration::new(u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok().filter(|n| *n < 1 << 30)?))
}

/// The text of an error body: a serialised `google.rpc.Status`, or whatever text it is.
pub(crate) fn message(body: &[u8]) -> String {
    match Status::decode(body) {
        Ok(status) if !status.message.is_empty() => clean(&status.message),
        _ => clean(&String::from_utf8_lossy(&body[..body.len().min(REASON_BYTES_MAX)])),
    }
}

/// `grpc-message` is percent-encoded (gRPC over HTTP/2).
pub(crate) fn percent_decoded(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = rest.get(1..3).and_then(|hex| std::str::from_utf8(hex).ok());
        match code.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                out.push(byte);
                rest = &rest[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    clean(&String::from_utf8_lossy(&out))
}

/// Without control characters, at most [`REASON_BYTES_MAX`].
pub(crate) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(REASON_BYTES_MAX));
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > REASON_BYTES_MAX {
            break;
        }
        out.push(c);
    }
    out
}

/// What the tests' servers answer with.
#[cfg(test)]
pub(crate) mod answers {
    use super::*;

    /// A response with a partial success.
    pub(crate) fn partial(rejected: i64, message: &str) -> Vec<u8> {
        let partial_success = Some(PartialSuccess { rejected, error_message: message.to_owned() });
        ExportResponse { partial_success }.encode_to_vec()
    }

    /// A `google.rpc.Status`, with RetryInfo if there is a delay.
    pub(crate) fn status(code: i32, message: &str, delay: Option<Duration>) -> Vec<u8> {
        let details = delay.map(|delay| {
            let retry_delay =
                Some(Delay { seconds: delay.as_secs().cast_signed(), nanos: delay.subsec_nanos().cast_signed() });
            let value = RetryInfo { retry_delay }.encode_to_vec();
            Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(), value }
        });
        Status { code, message: message.to_owned(), details: details.into_iter().collect() }.encode_to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: answers as servers give them, and garbage.
    /// Guarantees: the count, the text and the delay are found; garbage is no error and no delay; nothing panics.
    #[test]
    fn answers_are_read_and_garbage_is_harmless() {
        assert_eq!(accepted(&answers::partial(3, "too old")), Accepted { rejected: 3, message: "too old".into() });
        assert_eq!(accepted(&answers::partial(-3, "")), Accepted::default());
        assert_eq!(accepted(b""), Accepted::default());
        assert_eq!(accepted(&[0xff; 40]), Accepted::default());

        let delay = Duration::from_millis(1_500);
        assert_eq!(retry_delay(&answers::status(14, "later", Some(delay))), Some(delay));
        assert_eq!(retry_delay(&answers::status(14, "later", None)), None);
        assert_eq!(retry_delay(&[0xff; 40]), None);
        assert_eq!(message(&answers::status(3, "bad\nid", None)), "bad id");
        assert_eq!(message(b"<html>nginx"), "<html>nginx");
        assert_eq!(message(&[0xff; 5_000]).len(), REASON_BYTES_MAX / 3 * 3);
    }

    /// Scenario: a status message with escapes, whole, cut and wrong.
    /// Guarantees: it is decoded as gRPC says, and what is no escape stays as it is.
    #[test]
    fn grpc_messages_are_percent_decoded() {
        for (encoded, text) in [("a%20b", "a b"), ("100%", "100%"), ("%zz", "%zz"), ("%C3%A9", "é"), ("%2", "%2")] {
            assert_eq!(percent_decoded(encoded.as_bytes()), text, "{encoded}");
        }
    }
}
