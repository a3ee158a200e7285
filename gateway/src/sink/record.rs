//! What is kept of a record, as bytes on disk and as JSON.
//!
//! Protobuf messages of the sink's own; their tags are the format and never change their meaning. A journal is an
//! [`Image`] and the [`Change`]s after it.

use prost::Message;
use serde::ser::Serializer;

use super::Delivery;
use super::extract;

/// What one `store` adds.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Change {
    #[prost(message, repeated, tag = "1")]
    pub(super) records: Vec<Counted>,
    /// Oldest first. Only the last ones of the change, within the limits of what is kept at all.
    #[prost(message, repeated, tag = "2")]
    pub(super) items: Vec<Item>,
}

/// One record's counts.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Counted {
    #[prost(uint32, tag = "1")]
    pub(super) tenant: u32,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    /// Absent for ack memory.
    #[prost(uint64, optional, tag = "3")]
    pub(super) sequence: Option<u64>,
    #[prost(uint64, tag = "4")]
    pub(super) acknowledged: u64,
    /// `Signal as u8`.
    #[prost(uint32, tag = "5")]
    pub(super) signal: u32,
    #[prost(message, repeated, tag = "6")]
    pub(super) services: Vec<ServiceItems>,
}

/// Items of one service.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceItems {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(uint64, tag = "2")]
    pub(super) items: u64,
}

/// The whole state.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Image {
    #[prost(message, repeated, tag = "1")]
    pub(super) tenants: Vec<TenantImage>,
    /// Oldest first within a signal.
    #[prost(message, repeated, tag = "2")]
    pub(super) items: Vec<Item>,
}

/// One tenant's part of it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct TenantImage {
    #[prost(uint32, tag = "1")]
    pub(super) tenant: u32,
    #[prost(string, tag = "2")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "5")]
    pub(super) services: Vec<ServiceImage>,
    /// By `Signal::index`.
    #[prost(message, repeated, tag = "6")]
    pub(super) seen: Vec<SeenImage>,
}

/// Which records of a signal are counted.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SeenImage {
    /// Every record up to here.
    #[prost(uint64, tag = "1")]
    pub(super) below: u64,
    /// And these.
    #[prost(uint64, repeated, tag = "2")]
    pub(super) beyond: Vec<u64>,
}

/// One service's part of that.
#[derive(Clone, PartialEq, Message)]
pub(super) struct ServiceImage {
    #[prost(string, tag = "1")]
    pub(super) service: String,
    #[prost(uint64, tag = "2")]
    pub(super) spans: u64,
    #[prost(uint64, tag = "3")]
    pub(super) metric_points: u64,
    #[prost(uint64, tag = "4")]
    pub(super) log_records: u64,
}

/// One of the last items: a span, a metric with its last point, or a log record. Texts are cut to a bounded length.
#[derive(Clone, PartialEq, Message, serde::Serialize)]
pub struct Item {
    /// `Signal as u8`.
    #[serde(skip)]
    #[prost(uint32, tag = "1")]
    pub signal: u32,
    /// `namespace/name`.
    #[prost(string, tag = "2")]
    pub tenant: String,
    /// `service.name`.
    #[prost(string, tag = "3")]
    pub service: String,
    /// The item's own time; as text in JSON, where numbers have 53 bits.
    #[serde(serialize_with = "as_text")]
    #[prost(fixed64, tag = "4")]
    pub time_unix_nano: u64,
    /// The span's or the metric's name, or the log record's body.
    #[prost(string, tag = "5")]
    pub name: String,
    /// Kind of span, type of metric, or severity.
    #[prost(string, tag = "6")]
    pub kind: String,
    /// The last point of a metric, with its unit.
    #[prost(string, tag = "7")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// Of a span.
    #[prost(uint64, optional, tag = "8")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_nano: Option<u64>,
    /// Of a span that is an error: its message, or `error`.
    #[prost(string, tag = "9")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Hexadecimal; empty if there is none.
    #[prost(string, tag = "10")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub trace_id: String,
    /// Hexadecimal; empty if there is none.
    #[prost(string, tag = "11")]
    #[serde(skip_serializing_if = "String::is_empty")]
    pub span_id: String,
    /// The first ones of its own attributes.
    #[prost(message, repeated, tag = "12")]
    pub attributes: Vec<Attribute>,
}

/// A pair of texts, each cut to a bounded length.
#[derive(Clone, PartialEq, Message, serde::Serialize)]
pub struct Attribute {
    /// As sent.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Numbers, arrays and maps as text.
    #[prost(string, tag = "2")]
    pub value: String,
}

impl Change {
    /// Everything that is to be kept of these records.
    pub(super) fn of(deliveries: &[&Delivery]) -> Self {
        let records = deliveries.iter().map(|delivery| Counted {
            tenant: delivery.tenant.0,
            name: delivery.name.to_string(),
            sequence: delivery.sequence.map(|sequence| sequence.0),
            acknowledged: delivery.acknowledged.0,
            signal: u32::from(delivery.signal as u8),
            services: extract::services(&delivery.payload, delivery.signal, delivery.items),
        });
        Self { records: records.collect(), items: extract::last_items(deliveries) }
    }
}

fn as_text<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}
