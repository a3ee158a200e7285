//! Whose fault a failure is. Pure: one table for gRPC, one for HTTP, one line for each kind of transport error.
//!
//! It decides nothing about queues; `settle` acts on what it says.
//!
//! ```text
//! Busy         keep queued, try again          CANCELLED DEADLINE_EXCEEDED ABORTED OUT_OF_RANGE UNAVAILABLE DATA_LOSS,
//!                                              RESOURCE_EXHAUSTED with RetryInfo; 429 502 503 504; no connection, reset,
//!                                              timeout (OTLP 1.11: the retryable codes, and no other)
//! Destination  keep queued, open the breaker   UNAUTHENTICATED PERMISSION_DENIED UNIMPLEMENTED NOT_FOUND; 401 403 404 405
//!                                              407 410 415 421 426 431 451 501 505, redirects; TLS; no gRPC status at all
//! TooLarge     send in smaller requests        RESOURCE_EXHAUSTED without RetryInfo; 413
//! Payload      unmerge, then a dead letter     INVALID_ARGUMENT and every other code; 400 and every other 4xx or 5xx;
//!                                              a response over 4 MiB
//! ```
//!
//! The last row says only what the destination says about one request. A lone record becomes a dead letter when the
//! destination has accepted something since it first refused the record, and then refuses it again.

use std::time::{Duration, SystemTime};

use super::retry::retry_after;
use super::status;
use crate::queue::Answer;

/// What a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody's: it may work later.
    Busy,
    /// The destination's: its credentials, its path, its certificate. No other payload would do better.
    Destination,
    /// The payload's size.
    TooLarge,
    /// The payload's content.
    Payload,
}

/// Why a request was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Whose fault.
    pub(crate) fault: Fault,
    /// When to come back, if the destination says so.
    pub(crate) retry_after: Option<Duration>,
    /// Whether credentials may be stale, so that they are read again.
    pub(crate) credentials: bool,
    /// For people; without credentials.
    pub(crate) reason: String,
    /// The status, if it came to that.
    pub(crate) answer: Option<Answer>,
}

impl Failure {
    /// With neither delay nor doubts about credentials.
    pub(crate) fn new(fault: Fault, reason: impl Into<String>) -> Self {
        Self { fault, retry_after: None, credentials: false, reason: status::clean(&reason.into()), answer: None }
    }

    /// Not reached, or lost on the way.
    pub(crate) fn busy(reason: impl Into<String>) -> Self {
        Self::new(Fault::Busy, reason)
    }
}

const GRPC_NAMES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A gRPC status other than OK. `details` is the decoded `grpc-status-details-bin`.
pub(crate) fn grpc(code: u16, message: &str, details: Option<&[u8]>) -> Failure {
    let delay = details.and_then(status::retry_delay);
    let fault = match code {
        1 | 4 | 10 | 11 | 14 | 15 => Fault::Busy,
        8 if delay.is_some() => Fault::Busy,
        8 => Fault::TooLarge,
        5 | 7 | 12 | 16 => Fault::Destination,
        _ => Fault::Payload,
    };
    let name = GRPC_NAMES.get(usize::from(code)).copied().unwrap_or("unknown status");
    let retry_after = delay.filter(|_| fault == Fault::Busy);
    let answer = Some(Answer::Grpc(code));
    Failure {
        retry_after,
        answer,
        credentials: code == 16,
        ..Failure::new(fault, format!("{name} ({code}): {message}"))
    }
}

/// An HTTP status other than 2xx.
pub(crate) fn http(status: http::StatusCode, after: Option<&str>, body: &[u8], now: SystemTime) -> Failure {
    let fault = match status.as_u16() {
        429 | 502 | 503 | 504 => Fault::Busy,
        413 => Fault::TooLarge,
        401 | 403 | 404 | 405 | 407 | 410 | 415 | 421 | 426 | 431 | 451 | 501 | 505 => Fault::Destination,
        code if code < 400 => Fault::Destination,
        _ => Fault::Payload,
    };
    let retry_after = after.filter(|_| fault == Fault::Busy).and_then(|value| retry_after(value, now));
    let reason = format!("HTTP {status}: {}", status::message(body));
    let (answer, credentials) = (Some(Answer::Http(status.as_u16())), status == http::StatusCode::UNAUTHORIZED);
    Failure { retry_after, answer, credentials, ..Failure::new(fault, reason) }
}

/// A connection that could not be made. A TLS failure is the destination's; anything else may pass.
pub(crate) fn connect(error: &std::io::Error) -> Failure {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(tls) => Failure::new(Fault::Destination, format!("TLS: {tls}")),
        None => Failure::busy(format!("connecting: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: every gRPC status, with and without RetryInfo.
    /// Guarantees: exactly OTLP's list is retried as it is; RESOURCE_EXHAUSTED only with RetryInfo; a delay is kept only
    /// where it is to be obeyed.
    #[test]
    fn every_grpc_status_has_its_fault() {
        let delay = Duration::from_secs(2);
        for code in 1..=20u16 {
            let details = status::answers::status(i32::from(code), "", Some(delay));
            let (plain, told) = (grpc(code, "m", None), grpc(code, "m", Some(&details)));
            let expected = match code {
                1 | 4 | 10 | 11 | 14 | 15 => (Fault::Busy, Fault::Busy),
                8 => (Fault::TooLarge, Fault::Busy),
                5 | 7 | 12 | 16 => (Fault::Destination, Fault::Destination),
                _ => (Fault::Payload, Fault::Payload),
            };
            assert_eq!((plain.fault, told.fault), expected, "{code}");
            assert_eq!(told.retry_after, (told.fault == Fault::Busy).then_some(delay), "{code}");
            assert_eq!(plain.credentials, code == 16, "{code}");
        }
    }

    /// Scenario: every HTTP status from 300 to 599.
    /// Guarantees: only 429, 502, 503 and 504 are retried as they are, with their Retry-After.
    #[test]
    fn every_http_status_has_its_fault() {
        let now = SystemTime::UNIX_EPOCH;
        let of = |fault| {
            let statuses = (300..600).filter_map(|code| http::StatusCode::from_u16(code).ok());
            let failures = statuses.map(|status| (status.as_u16(), http(status, Some("3"), b"", now)));
            failures.filter(|(_, failure)| failure.fault == fault).collect::<Vec<_>>()
        };
        let busy = of(Fault::Busy);
        assert_eq!(busy.iter().map(|(code, _)| *code).collect::<Vec<_>>(), [429, 502, 503, 504]);
        assert!(busy.iter().all(|(_, failure)| failure.retry_after == Some(Duration::from_secs(3))));
        assert_eq!(of(Fault::TooLarge).len(), 1);
        let destination: Vec<_> = of(Fault::Destination).into_iter().map(|(code, _)| code).skip(100).collect();
        assert_eq!(destination, [401, 403, 404, 405, 407, 410, 415, 421, 426, 431, 451, 501, 505]);
        assert!(of(Fault::Destination).iter().all(|(_, failure)| failure.retry_after.is_none()));
    }

    /// Scenario: a certificate that does not check out, and a port where nobody listens.
    /// Guarantees: the first is the destination's own fault, the second may pass.
    #[test]
    fn tls_is_the_destinations_fault_and_a_refused_connection_is_nobodys() {
        let tls = std::io::Error::other(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer));
        assert_eq!(connect(&tls).fault, Fault::Destination);
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(connect(&refused).fault, Fault::Busy);
    }
}
