//! The message types of OTLP, as the crate opentelemetry-proto generates them.
//!
//! Owns short names for what the gateway uses. It never holds a copy of a `.proto` file: a new release of OTLP is a new
//! version of that crate. On the hot path OTLP stays bytes; these types serve replies, tests and the embedded sink.

pub use opentelemetry_proto::tonic::collector::{
    logs::v1 as collector_logs, metrics::v1 as collector_metrics, trace::v1 as collector_trace,
};
pub use opentelemetry_proto::tonic::{
    common::v1 as common, logs::v1 as logs, metrics::v1 as metrics, resource::v1 as resource, trace::v1 as trace,
};
pub use prost::Message;
