//! `google.rpc.Status` and the two details that OTLP asks for, in protobuf and in JSON.
//!
//! <https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto> and `error_details.proto`.

use std::time::Duration;

use prost::Message;
use serde_json::{Value, json};

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Status {
    /// A `google.rpc.Code`.
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    /// For the developer of the application.
    #[prost(string, tag = "2")]
    pub(super) message: String,
    /// `RetryInfo` or `BadRequest`.
    #[prost(message, repeated, tag = "3")]
    pub(super) details: Vec<Any>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    /// `type.googleapis.com/` and the full name.
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    /// The message.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RetryInfo {
    /// Wait at least this long.
    #[prost(message, optional, tag = "1")]
    pub(super) retry_delay: Option<ProtoDuration>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, Copy, PartialEq, Message)]
pub(super) struct ProtoDuration {
    /// Whole seconds.
    #[prost(int64, tag = "1")]
    pub(super) seconds: i64,
    /// 0 to 999,999,999.
    #[prost(int32, tag = "2")]
    pub(super) nanos: i32,
}

/// `google.rpc.BadRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct BadRequest {
    /// What is wrong with the request.
    #[prost(message, repeated, tag = "1")]
    pub(super) field_violations: Vec<FieldViolation>,
}

/// `google.rpc.BadRequest.FieldViolation`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FieldViolation {
    /// The path of the field.
    #[prost(string, tag = "1")]
    pub(super) field: String,
    /// What is wrong with it.
    #[prost(string, tag = "2")]
    pub(super) description: String,
}

/// The one detail that a refusal has at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Detail {
    /// Try again after this long.
    Retry(Duration),
    /// This field is wrong, in this way.
    Field(String, String),
}

const RETRY_INFO: &str = "type.googleapis.com/google.rpc.RetryInfo";
const BAD_REQUEST: &str = "type.googleapis.com/google.rpc.BadRequest";

/// A status in protobuf.
pub(super) fn to_protobuf(code: i32, message: &str, detail: Option<&Detail>) -> Vec<u8> {
    let details = detail.into_iter().map(any).collect();
    Status { code, message: message.to_owned(), details }.encode_to_vec()
}

/// A status in protobuf's JSON form.
pub(super) fn to_json(code: i32, message: &str, detail: Option<&Detail>) -> Vec<u8> {
    let details: Vec<Value> = detail.into_iter().map(any_json).collect();
    json!({"code": code, "message": message, "details": details}).to_string().into_bytes()
}

fn any(detail: &Detail) -> Any {
    match detail {
        Detail::Retry(delay) => {
            let seconds = i64::try_from(delay.as_secs()).unwrap_or(i64::MAX);
            let nanos = i32::try_from(delay.subsec_nanos()).expect("less than a second");
            let info = RetryInfo { retry_delay: Some(ProtoDuration { seconds, nanos }) };
            Any { type_url: RETRY_INFO.to_owned(), value: info.encode_to_vec() }
        }
        Detail::Field(field, description) => {
            let violation = FieldViolation { field: field.clone(), description: description.clone() };
            let request = BadRequest { field_violations: vec![violation] };
            Any { type_url: BAD_REQUEST.to_owned(), value: request.encode_to_vec() }
        }
    }
}

fn any_json(detail: &Detail) -> Value {
    match detail {
        Detail::Retry(delay) => {
            json!({"@type": RETRY_INFO, "retryDelay": format!("{}.{:09}s", delay.as_secs(), delay.subsec_nanos())})
        }
        Detail::Field(field, description) => {
            json!({"@type": BAD_REQUEST, "fieldViolations": [{"field": field, "description": description}]})
        }
    }
}
