//! OTLP requests whose items carry unique ids.
//!
//! The id of an item is a `u64`, written as the span id (traces), the integer value of the only data point (metrics) or
//! the trailing eight bytes of the trace id (logs), so that loss, duplicates and corruption can be told at the sink.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;

/// When the made-up spans happened: constant, so that equal arguments give equal bytes.
const START_UNIX_NANO: u64 = 1_760_000_000_000_000_000;

/// A key with a string value.
pub fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
        ..Default::default()
    }
}

/// A resource as an SDK sends it.
pub fn resource(service: &str) -> Resource {
    let attributes = vec![
        attribute("service.name", service),
        attribute("service.version", "1.42.0"),
        attribute("telemetry.sdk.language", "rust"),
        attribute("telemetry.sdk.name", "opentelemetry"),
    ];
    Resource { attributes, ..Default::default() }
}

/// One `ExportTraceServiceRequest` of `ids.len()` spans, about 434 bytes each.
pub fn traces(service: &str, ids: &[u64]) -> Vec<u8> {
    let spans = ids.iter().map(|id| span(*id)).collect();
    let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, ..Default::default() }];
    let resource_spans = vec![ResourceSpans { resource: Some(resource(service)), scope_spans, ..Default::default() }];
    ExportTraceServiceRequest { resource_spans }.encode_to_vec()
}

/// One `ExportMetricsServiceRequest` of one gauge with `ids.len()` points.
pub fn metrics(service: &str, ids: &[u64]) -> Vec<u8> {
    let data_points = ids
        .iter()
        .map(|id| NumberDataPoint {
            attributes: vec![attribute("http.route", "/cart/{id}")],
            time_unix_nano: START_UNIX_NANO,
            value: Some(number_data_point::Value::AsInt(id.cast_signed())),
            ..Default::default()
        })
        .collect();
    let metric = Metric {
        name: "cart.items".into(),
        unit: "{item}".into(),
        data: Some(Data::Gauge(Gauge { data_points })),
        ..Default::default()
    };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope()), metrics: vec![metric], ..Default::default() }];
    let resource_metrics =
        vec![ResourceMetrics { resource: Some(resource(service)), scope_metrics, ..Default::default() }];
    ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
}

/// One `ExportLogsServiceRequest` of `ids.len()` records.
pub fn logs(service: &str, ids: &[u64]) -> Vec<u8> {
    let log_records = ids
        .iter()
        .map(|id| LogRecord {
            time_unix_nano: START_UNIX_NANO,
            severity_text: "INFO".into(),
            body: Some(AnyValue { value: Some(Value::StringValue("cart updated".into())) }),
            trace_id: trace_id(*id),
            ..Default::default()
        })
        .collect();
    let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records, ..Default::default() }];
    let resource_logs = vec![ResourceLogs { resource: Some(resource(service)), scope_logs, ..Default::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec()
}

/// The ids of all spans in a serialised request, with the value of one resource attribute each.
pub fn trace_ids(payload: &[u8], resource_key: &str) -> Result<Vec<(u64, String)>, prost::DecodeError> {
    let request = ExportTraceServiceRequest::decode(payload)?;
    let mut out = Vec::new();
    for resource_spans in &request.resource_spans {
        let owner = resource_spans.resource.as_ref().map(|r| value_of(r, resource_key)).unwrap_or_default();
        for span in resource_spans.scope_spans.iter().flat_map(|scope| &scope.spans) {
            out.push((id_of(&span.span_id), owner.clone()));
        }
    }
    Ok(out)
}

/// The ids of all items in a serialised request of the signal that `path` names, with the value of one resource attribute
/// each. Of a metric, the ids are its points'.
pub fn item_ids(path: &str, payload: &[u8], resource_key: &str) -> Result<Vec<(u64, String)>, prost::DecodeError> {
    let owner = |resource: &Option<Resource>| resource.as_ref().map(|r| value_of(r, resource_key)).unwrap_or_default();
    let mut out = Vec::new();
    if path.contains("trace") {
        return trace_ids(payload, resource_key);
    } else if path.contains("metrics") {
        for part in &ExportMetricsServiceRequest::decode(payload)?.resource_metrics {
            let owner = owner(&part.resource);
            for metric in part.scope_metrics.iter().flat_map(|scope| &scope.metrics) {
                let Some(Data::Gauge(gauge)) = &metric.data else { continue };
                out.extend(gauge.data_points.iter().map(|point| (id_of_point(point), owner.clone())));
            }
        }
    } else {
        for part in &ExportLogsServiceRequest::decode(payload)?.resource_logs {
            let owner = owner(&part.resource);
            let records = part.scope_logs.iter().flat_map(|scope| &scope.log_records);
            out.extend(records.map(|record| (id_of(&record.trace_id), owner.clone())));
        }
    }
    Ok(out)
}

fn id_of_point(point: &NumberDataPoint) -> u64 {
    match point.value {
        Some(number_data_point::Value::AsInt(id)) => id.cast_unsigned(),
        _ => 0,
    }
}

/// The string value of a resource's attribute; empty when it has none.
pub fn value_of(resource: &Resource, key: &str) -> String {
    let found = resource.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.as_ref()).and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}

/// The id in the trailing eight bytes; 0 where there are fewer.
pub fn id_of(bytes: &[u8]) -> u64 {
    bytes.last_chunk::<8>().map_or(0, |tail| u64::from_be_bytes(*tail))
}

fn trace_id(id: u64) -> Vec<u8> {
    [id.rotate_left(17) | 1, id].map(u64::to_be_bytes).concat()
}

fn scope() -> InstrumentationScope {
    InstrumentationScope { name: "checkout".into(), version: "1.0".into(), ..Default::default() }
}

fn span(id: u64) -> Span {
    let attributes = vec![
        attribute("http.request.method", "POST"),
        attribute("url.path", "/api/cart/7d1f3a/items"),
        attribute("http.route", "/api/cart/{cart}/items"),
        attribute("server.address", "cart.shop.svc.cluster.local"),
        attribute("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64)"),
        attribute("network.protocol.version", "1.1"),
        attribute("http.response.status_code", "200"),
        attribute("url.scheme", "http"),
        attribute("thread.name", "worker-3"),
    ];
    Span {
        trace_id: trace_id(id),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: (!id).to_be_bytes().to_vec(),
        name: "POST /api/cart/{cart}/items".into(),
        kind: 2,
        start_time_unix_nano: START_UNIX_NANO,
        end_time_unix_nano: START_UNIX_NANO + 3_141_592,
        attributes,
        status: Some(Status::default()),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a request is made from known ids and read back.
    /// Guarantees: what the sink counts is what was sent; a span has the size that the figures are quoted for.
    #[test]
    fn ids_survive_the_round_trip_and_a_span_has_the_quoted_size() {
        let ids: Vec<u64> = (1..=512).map(|n| n << 40 | n).collect();
        let payload = traces("cart", &ids);

        let read: Vec<u64> =
            trace_ids(&payload, "service.name").expect("valid").into_iter().map(|(id, _)| id).collect();

        assert_eq!(read, ids);
        for (path, payload) in [("metrics", metrics("cart", &ids)), ("logs", logs("cart", &ids))] {
            let read = item_ids(path, &payload, "service.name").expect("valid");
            assert!(read.iter().all(|(_, owner)| owner == "cart"), "{path}");
            assert_eq!(read.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), ids, "{path}");
        }
        let per_span = payload.len() / ids.len();
        assert!((415..=450).contains(&per_span), "{per_span} bytes a span");
    }
}
