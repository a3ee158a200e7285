//! Whether what arrived is what was sent, item by item, apart from the resource attributes that were added.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::resource::v1::Resource;
use pillion_loadtest::sink::Received;
use prost::Message;

/// What the gateway adds to every resource of a configured tenant.
pub const ADDED: &[&str] = &["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name"];

/// An item with everything above it, serialised: signal, resource, scope, item. With how often it was there.
pub type Items = BTreeMap<(&'static str, Vec<u8>, Vec<u8>, Vec<u8>), u32>;

/// All items of the requests. Attributes in [`ADDED`] are taken off the resources.
///
/// # Panics
/// When a request is not valid, or came to a path that is no signal's.
pub fn items(requests: &[Received]) -> Items {
    let mut out = Items::new();
    let mut add = |signal, resource: &Option<Resource>, scope: Vec<u8>, item: Vec<u8>| {
        *out.entry((signal, stripped(resource), scope, item)).or_default() += 1;
    };
    for Received { path, payload, .. } in requests {
        let payload = &payload[..];
        if path.contains("trace") {
            let request = ExportTraceServiceRequest::decode(payload).expect("valid traces");
            for part in &request.resource_spans {
                for scope in &part.scope_spans {
                    let name = scope.scope.as_ref().map(Message::encode_to_vec).unwrap_or_default();
                    scope.spans.iter().for_each(|item| add("span", &part.resource, name.clone(), item.encode_to_vec()));
                }
            }
        } else if path.contains("metrics") {
            let request = ExportMetricsServiceRequest::decode(payload).expect("valid metrics");
            for part in &request.resource_metrics {
                for scope in &part.scope_metrics {
                    let name = scope.scope.as_ref().map(Message::encode_to_vec).unwrap_or_default();
                    let metrics = scope.metrics.iter();
                    metrics.for_each(|item| add("metric", &part.resource, name.clone(), item.encode_to_vec()));
                }
            }
        } else if path.contains("logs") {
            let request = ExportLogsServiceRequest::decode(payload).expect("valid logs");
            for part in &request.resource_logs {
                for scope in &part.scope_logs {
                    let name = scope.scope.as_ref().map(Message::encode_to_vec).unwrap_or_default();
                    let records = scope.log_records.iter();
                    records.for_each(|item| add("log", &part.resource, name.clone(), item.encode_to_vec()));
                }
            }
        } else {
            panic!("a request came to {path}");
        }
    }
    out
}

/// How many items of a signal there are: `span`, `metric` or `log`.
pub fn count(items: &Items, signal: &str) -> u32 {
    items.iter().filter(|((of, ..), _)| *of == signal).map(|(_, times)| times).sum()
}

fn stripped(resource: &Option<Resource>) -> Vec<u8> {
    let mut resource = resource.clone().unwrap_or_default();
    resource.attributes.retain(|attribute| !ADDED.contains(&attribute.key.as_str()));
    resource.encode_to_vec()
}

/// The values of an attribute over all resources of the requests, for what must have been added.
pub fn values(requests: &[Received], key: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut note = |resource: &Option<Resource>| {
        out.push(resource.as_ref().map(|r| pillion_loadtest::payload::value_of(r, key)).unwrap_or_default());
    };
    for Received { path, payload, .. } in requests {
        let payload = &payload[..];
        match path {
            path if path.contains("trace") => {
                let request = ExportTraceServiceRequest::decode(payload).expect("valid traces");
                request.resource_spans.iter().for_each(|part| note(&part.resource));
            }
            path if path.contains("metrics") => {
                let request = ExportMetricsServiceRequest::decode(payload).expect("valid metrics");
                request.resource_metrics.iter().for_each(|part| note(&part.resource));
            }
            _ => {
                let request = ExportLogsServiceRequest::decode(payload).expect("valid logs");
                request.resource_logs.iter().for_each(|part| note(&part.resource));
            }
        }
    }
    out.sort();
    out.dedup();
    out
}
