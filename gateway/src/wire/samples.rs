//! Requests to test with: random ones of all three signals, and the same with unknown fields at every level.

use fastrand::Rng;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    self as metrics, ExponentialHistogramDataPoint, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, SummaryDataPoint,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, span};
use prost::Message as _;

use super::fields::fields;
use super::primitive::put_varint;
use super::schema::{Kind, Message};
use crate::base::Signal;

/// Keys that resources draw from, so that plans meet what the pod has sent.
pub(crate) const KEYS: [&str; 8] = [
    "k8s.pod.uid",
    "k8s.pod.name",
    "k8s.namespace.name",
    "service.name",
    "deployment.environment.name",
    "host.name",
    "k8s.pod",
    "",
];

/// Values that they draw from.
pub(crate) const VALUES: [&str; 4] = ["cart", "forged", "", "größer"];

/// A random request, encoded by prost.
pub(crate) fn request(signal: Signal, rng: &mut Rng) -> Vec<u8> {
    match signal {
        Signal::Traces => traces(rng).encode_to_vec(),
        Signal::Metrics => metrics_request(rng).encode_to_vec(),
        Signal::Logs => logs(rng).encode_to_vec(),
    }
}

/// A random trace request.
pub(crate) fn traces(rng: &mut Rng) -> ExportTraceServiceRequest {
    let scope = |rng: &mut Rng| ScopeSpans { scope: scope(rng), spans: some(rng, 4, span), schema_url: text(rng) };
    let resource_spans = some(rng, 3, |rng| ResourceSpans {
        resource: resource(rng),
        scope_spans: some(rng, 3, scope),
        schema_url: text(rng),
    });
    ExportTraceServiceRequest { resource_spans }
}

/// A random metrics request.
pub(crate) fn metrics_request(rng: &mut Rng) -> ExportMetricsServiceRequest {
    let scope =
        |rng: &mut Rng| ScopeMetrics { scope: scope(rng), metrics: some(rng, 4, metric), schema_url: text(rng) };
    let resource_metrics = some(rng, 3, |rng| ResourceMetrics {
        resource: resource(rng),
        scope_metrics: some(rng, 3, scope),
        schema_url: text(rng),
    });
    ExportMetricsServiceRequest { resource_metrics }
}

/// A random logs request.
pub(crate) fn logs(rng: &mut Rng) -> ExportLogsServiceRequest {
    let scope =
        |rng: &mut Rng| ScopeLogs { scope: scope(rng), log_records: some(rng, 4, log_record), schema_url: text(rng) };
    let resource_logs = some(rng, 3, |rng| ResourceLogs {
        resource: resource(rng),
        scope_logs: some(rng, 3, scope),
        schema_url: text(rng),
    });
    ExportLogsServiceRequest { resource_logs }
}

fn some<T>(rng: &mut Rng, most: usize, mut one: impl FnMut(&mut Rng) -> T) -> Vec<T> {
    (0..rng.usize(0..=most)).map(|_| one(rng)).collect()
}

fn text(rng: &mut Rng) -> String {
    let most = if rng.u8(0..20) == 0 { 9_000 } else { 40 };
    let length = rng.usize(0..most);
    (0..length).map(|_| if rng.u8(0..30) == 0 { rng.char('¡'..'\u{1f600}') } else { rng.alphanumeric() }).collect()
}

fn id(rng: &mut Rng, length: usize) -> Vec<u8> {
    if rng.bool() { Vec::new() } else { (0..length).map(|_| rng.u8(..)).collect() }
}

fn value(rng: &mut Rng, depth: u32) -> Option<AnyValue> {
    let value = match rng.u8(0..if depth > 2 { 8 } else { 10 }) {
        0 => return None,
        1 => None,
        2 => Some(Value::BoolValue(rng.bool())),
        3 => Some(Value::IntValue(rng.i64(..))),
        4 => Some(Value::DoubleValue(rng.f64())),
        5 => Some(Value::BytesValue(id(rng, 9))),
        6 => Some(Value::StringValueStrindex(rng.i32(..))),
        7 => Some(Value::StringValue(text(rng))),
        8 => {
            let one = |rng: &mut Rng| value(rng, depth + 1).unwrap_or_default();
            Some(Value::ArrayValue(ArrayValue { values: some(rng, 3, one) }))
        }
        _ => {
            let one = |rng: &mut Rng| KeyValue { key: text(rng), value: value(rng, depth + 1), key_strindex: 0 };
            Some(Value::KvlistValue(KeyValueList { values: some(rng, 3, one) }))
        }
    };
    Some(AnyValue { value })
}

fn attributes(rng: &mut Rng) -> Vec<KeyValue> {
    some(rng, 4, |rng| KeyValue { key: text(rng), value: value(rng, 0), key_strindex: rng.i32(0..2) })
}

fn resource(rng: &mut Rng) -> Option<Resource> {
    let known = |rng: &mut Rng| KeyValue {
        key: KEYS[rng.usize(0..KEYS.len())].to_owned(),
        value: if rng.u8(0..4) == 0 {
            value(rng, 0)
        } else {
            Some(AnyValue { value: Some(Value::StringValue(VALUES[rng.usize(0..VALUES.len())].to_owned())) })
        },
        key_strindex: 0,
    };
    let mut all = attributes(rng);
    all.extend(some(rng, 5, known));
    rng.shuffle(&mut all);
    let entity = |rng: &mut Rng| EntityRef {
        schema_url: text(rng),
        r#type: text(rng),
        id_keys: some(rng, 2, text),
        description_keys: some(rng, 2, text),
    };
    (rng.u8(0..4) > 0).then(|| Resource {
        attributes: all,
        dropped_attributes_count: rng.u32(0..300),
        entity_refs: some(rng, 2, entity),
    })
}

fn scope(rng: &mut Rng) -> Option<InstrumentationScope> {
    rng.bool().then(|| InstrumentationScope {
        name: text(rng),
        version: text(rng),
        attributes: attributes(rng),
        dropped_attributes_count: rng.u32(..),
    })
}

fn span(rng: &mut Rng) -> Span {
    let event = |rng: &mut Rng| span::Event {
        time_unix_nano: rng.u64(..),
        name: text(rng),
        attributes: attributes(rng),
        dropped_attributes_count: rng.u32(0..2),
    };
    let link = |rng: &mut Rng| span::Link {
        trace_id: id(rng, 16),
        span_id: id(rng, 8),
        trace_state: text(rng),
        attributes: attributes(rng),
        dropped_attributes_count: 1,
        flags: rng.u32(..),
    };
    Span {
        trace_id: id(rng, 16),
        span_id: id(rng, 8),
        trace_state: text(rng),
        parent_span_id: id(rng, 8),
        flags: rng.u32(0..3),
        name: text(rng),
        kind: rng.i32(-1..6),
        start_time_unix_nano: rng.u64(..),
        end_time_unix_nano: rng.u64(..),
        attributes: attributes(rng),
        dropped_attributes_count: rng.u32(..),
        events: some(rng, 2, event),
        dropped_events_count: 0,
        links: some(rng, 2, link),
        dropped_links_count: rng.u32(..),
        status: rng.bool().then(|| Status { message: text(rng), code: rng.i32(0..3) }),
    }
}

fn log_record(rng: &mut Rng) -> LogRecord {
    LogRecord {
        time_unix_nano: rng.u64(..),
        observed_time_unix_nano: rng.u64(..),
        severity_number: rng.i32(0..25),
        severity_text: text(rng),
        body: value(rng, 0),
        attributes: attributes(rng),
        dropped_attributes_count: rng.u32(0..2),
        flags: rng.u32(0..2),
        trace_id: id(rng, 16),
        span_id: id(rng, 8),
        event_name: text(rng),
    }
}

fn metric(rng: &mut Rng) -> Metric {
    let data = match rng.u8(0..6) {
        0 => None,
        1 => Some(Data::Gauge(metrics::Gauge { data_points: some(rng, 5, number_point) })),
        2 => Some(Data::Sum(metrics::Sum {
            data_points: some(rng, 5, number_point),
            aggregation_temporality: rng.i32(0..3),
            is_monotonic: rng.bool(),
        })),
        3 => Some(Data::Histogram(metrics::Histogram {
            data_points: some(rng, 3, histogram_point),
            aggregation_temporality: 2,
        })),
        4 => Some(Data::ExponentialHistogram(metrics::ExponentialHistogram {
            data_points: some(rng, 3, exponential_point),
            aggregation_temporality: rng.i32(0..3),
        })),
        _ => Some(Data::Summary(metrics::Summary { data_points: some(rng, 3, summary_point) })),
    };
    Metric { name: text(rng), description: text(rng), unit: text(rng), metadata: attributes(rng), data }
}

fn exemplar(rng: &mut Rng) -> metrics::Exemplar {
    metrics::Exemplar {
        filtered_attributes: attributes(rng),
        time_unix_nano: rng.u64(..),
        span_id: id(rng, 8),
        trace_id: id(rng, 16),
        value: Some(metrics::exemplar::Value::AsInt(rng.i64(..))),
    }
}

fn number_point(rng: &mut Rng) -> NumberDataPoint {
    NumberDataPoint {
        attributes: attributes(rng),
        start_time_unix_nano: rng.u64(..),
        time_unix_nano: rng.u64(..),
        exemplars: some(rng, 2, exemplar),
        flags: rng.u32(0..2),
        value: Some(metrics::number_data_point::Value::AsDouble(rng.f64())),
    }
}

fn histogram_point(rng: &mut Rng) -> HistogramDataPoint {
    HistogramDataPoint {
        attributes: attributes(rng),
        time_unix_nano: rng.u64(..),
        count: rng.u64(..),
        sum: rng.bool().then(|| rng.f64()),
        bucket_counts: some(rng, 9, |rng| rng.u64(..)),
        explicit_bounds: some(rng, 9, Rng::f64),
        exemplars: some(rng, 2, exemplar),
        min: Some(0.0),
        ..Default::default()
    }
}

fn exponential_point(rng: &mut Rng) -> ExponentialHistogramDataPoint {
    let buckets = |rng: &mut Rng| metrics::exponential_histogram_data_point::Buckets {
        offset: rng.i32(..),
        bucket_counts: some(rng, 2_000, |rng| rng.u64(..)),
    };
    ExponentialHistogramDataPoint {
        attributes: attributes(rng),
        scale: rng.i32(..),
        zero_count: 1,
        positive: rng.bool().then(|| buckets(rng)),
        negative: rng.bool().then(|| buckets(rng)),
        zero_threshold: 0.5,
        ..Default::default()
    }
}

fn summary_point(rng: &mut Rng) -> SummaryDataPoint {
    let quantile = |rng: &mut Rng| metrics::summary_data_point::ValueAtQuantile { quantile: rng.f64(), value: 1.0 };
    SummaryDataPoint { quantile_values: some(rng, 3, quantile), attributes: attributes(rng), ..Default::default() }
}

/// The same request with unknown fields of every wire type before, between and after the fields of each message.
pub(crate) fn with_unknown_fields(signal: Signal, request: &[u8], rng: &mut Rng) -> Vec<u8> {
    sprinkle(Message::request(signal), request, rng)
}

fn sprinkle(message: Message, body: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = Vec::new();
    for field in fields(body, 0, body.len()) {
        if rng.u8(0..4) == 0 {
            out.extend_from_slice(&unknown_field(rng));
        }
        match message.field(field.number).map(|known| known.kind) {
            Some(Kind::Message(child)) if field.is_length => {
                let inner = sprinkle(child, &body[field.body..field.end], rng);
                put_varint(&mut out, (field.number << 3 | 2) as usize);
                put_varint(&mut out, inner.len());
                out.extend_from_slice(&inner);
            }
            _ => out.extend_from_slice(&body[field.start..field.end]),
        }
    }
    if rng.bool() {
        out.extend_from_slice(&unknown_field(rng));
    }
    out
}

/// A field that no message of OTLP has.
pub(crate) fn unknown_field(rng: &mut Rng) -> Vec<u8> {
    let number = rng.usize(100..200);
    let mut out = Vec::new();
    let wire_type = [0, 1, 2, 3, 5][rng.usize(0..5)];
    put_varint(&mut out, number << 3 | wire_type);
    match wire_type {
        0 => put_varint(&mut out, rng.usize(..)),
        1 => out.extend_from_slice(&rng.u64(..).to_le_bytes()),
        2 => {
            let bytes: Vec<u8> = some(rng, 200, |rng| rng.u8(..));
            put_varint(&mut out, bytes.len());
            out.extend_from_slice(&bytes);
        }
        3 => {
            if rng.bool() {
                out.extend_from_slice(&unknown_field(rng));
            }
            put_varint(&mut out, number << 3 | 4);
        }
        _ => out.extend_from_slice(&rng.u32(..).to_le_bytes()),
    }
    out
}
