//! What pods send: names, attributes and sizes from a file, put together by chance from a seed.
//!
//! Owns the file's form and the making of whole requests out of it. Ids, times and pods are placeholders here, which
//! [`crate::template`] finds and patches.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, span::SpanKind};
use prost::Message;
use serde::Deserialize;

use crate::identity::{Signal, pod_name};

/// The one that is used unless a scenario names another.
pub const SHOP: &str = include_str!("../profiles/shop.toml");

/// Attributes with a value of their own in each item.
pub const CARDINAL: &str = include_str!("../profiles/cardinal.toml");

/// The resource attribute that says which pod's an item is, as the pod itself says it.
pub const INSTANCE: &str = "service.instance.id";

/// The attribute of an item whose text is that item's id, where a profile has it: no two items of a run have the same.
pub const OWN: &str = "item.id";

/// Spans of one trace in a request; the first has no parent, the others have it as theirs.
pub const TRACE_SPANS: usize = 8;

const TIME: u64 = 1_760_000_000_000_000_000;
const PLACEHOLDER: [u8; 8] = [0xff; 8];

/// A parsed profile.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    resource: BTreeMap<String, String>,
    scope: Scope,
    spans: Vec<SpanKindOf>,
    metrics: Vec<MetricOf>,
    logs: Vec<LogOf>,
}

type Attributes = BTreeMap<String, Vec<Literal>>;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scope {
    name: String,
    version: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Literal {
    Integer(i64),
    Text(String),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SpanKindOf {
    name: String,
    kind: Kind,
    weight: u32,
    attributes: Attributes,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Internal,
    Server,
    Client,
    Producer,
    Consumer,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetricOf {
    name: String,
    description: String,
    unit: String,
    kind: MetricKind,
    points: usize,
    attributes: Attributes,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MetricKind {
    Sum,
    Gauge,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogOf {
    severity: String,
    weight: u32,
    body: String,
    attributes: Attributes,
}

impl Profile {
    /// Reads a profile's text.
    pub fn parse(text: &str) -> Result<Self> {
        let profile: Self = toml::from_str(text).context("the profile")?;
        let weights = |weights: &mut dyn Iterator<Item = u32>| weights.map(u64::from).sum::<u64>() > 0;
        ensure!(weights(&mut profile.spans.iter().map(|span| span.weight)), "the profile has no span with a weight");
        ensure!(weights(&mut profile.logs.iter().map(|log| log.weight)), "the profile has no log with a weight");
        ensure!(profile.metrics.iter().all(|metric| metric.points > 0), "a metric of the profile has no points");
        ensure!(!profile.metrics.is_empty(), "the profile has no metric");
        let lists = profile.spans.iter().map(|span| &span.attributes);
        let lists = lists.chain(profile.metrics.iter().map(|metric| &metric.attributes));
        let mut lists = lists.chain(profile.logs.iter().map(|log| &log.attributes));
        ensure!(lists.all(|list| list.values().all(|values| !values.is_empty())), "an attribute has no value");
        Ok(profile)
    }

    /// A serialised request of `count` items.
    pub fn request(&self, signal: Signal, count: usize, rng: &mut Rng) -> Vec<u8> {
        let resource = Some(self.resource());
        let scope = Some(InstrumentationScope {
            name: self.scope.name.clone(),
            version: self.scope.version.clone(),
            ..Default::default()
        });
        match signal {
            Signal::Traces => {
                let spans = (0..count).map(|slot| self.span(slot, rng)).collect();
                let scope_spans = vec![ScopeSpans { scope, spans, ..Default::default() }];
                let resource_spans = vec![ResourceSpans { resource, scope_spans, ..Default::default() }];
                ExportTraceServiceRequest { resource_spans }.encode_to_vec()
            }
            Signal::Metrics => {
                let scope_metrics =
                    vec![ScopeMetrics { scope, metrics: self.metrics(count, rng), ..Default::default() }];
                let resource_metrics = vec![ResourceMetrics { resource, scope_metrics, ..Default::default() }];
                ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
            }
            Signal::Logs => {
                let log_records = (0..count).map(|_| self.log(rng)).collect();
                let scope_logs = vec![ScopeLogs { scope, log_records, ..Default::default() }];
                let resource_logs = vec![ResourceLogs { resource, scope_logs, ..Default::default() }];
                ExportLogsServiceRequest { resource_logs }.encode_to_vec()
            }
        }
    }

    /// What a resource of it says of itself, all pods alike.
    pub fn says(&self) -> impl Iterator<Item = (&str, &str)> {
        self.resource.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    fn resource(&self) -> Resource {
        let said = self.resource.iter().map(|(key, value)| text(key, value.clone()));
        let attributes = said.chain([text(INSTANCE, pod_name(0))]).collect();
        Resource { attributes, ..Default::default() }
    }

    fn span(&self, slot: usize, rng: &mut Rng) -> Span {
        let chosen = weighted(&self.spans, |span| span.weight, rng);
        let parent = if slot.is_multiple_of(TRACE_SPANS) { Vec::new() } else { PLACEHOLDER.to_vec() };
        // Log-uniform from 0.1 ms to 1 s, as the durations of a service are.
        let duration = 10f64.powf(5.0 + 4.0 * rng.f64());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1e5 and 1e9")]
        let duration = duration as u64;
        Span {
            trace_id: [PLACEHOLDER; 2].concat(),
            span_id: PLACEHOLDER.to_vec(),
            parent_span_id: parent,
            name: chosen.name.clone(),
            kind: chosen.kind.number(),
            start_time_unix_nano: TIME,
            end_time_unix_nano: TIME + duration,
            attributes: attributes(&chosen.attributes, rng),
            ..Default::default()
        }
    }

    fn metrics(&self, count: usize, rng: &mut Rng) -> Vec<Metric> {
        let mut out = Vec::new();
        let mut left = count;
        for chosen in self.metrics.iter().cycle() {
            if left == 0 {
                break;
            }
            let points = chosen.points.min(left);
            left -= points;
            let data_points = (0..points).map(|_| NumberDataPoint {
                attributes: attributes(&chosen.attributes, rng),
                start_time_unix_nano: TIME,
                time_unix_nano: TIME + 1,
                value: Some(number_data_point::Value::AsInt(-1)),
                ..Default::default()
            });
            let data_points = data_points.collect();
            out.push(Metric {
                name: chosen.name.clone(),
                description: chosen.description.clone(),
                unit: chosen.unit.clone(),
                data: Some(match chosen.kind {
                    MetricKind::Gauge => Data::Gauge(Gauge { data_points }),
                    MetricKind::Sum => Data::Sum(Sum { data_points, aggregation_temporality: 2, is_monotonic: false }),
                }),
                ..Default::default()
            });
        }
        out
    }

    fn log(&self, rng: &mut Rng) -> LogRecord {
        let chosen = weighted(&self.logs, |log| log.weight, rng);
        let severity = match chosen.severity.as_str() {
            "ERROR" => 17,
            "WARN" => 13,
            _ => 9,
        };
        LogRecord {
            time_unix_nano: TIME,
            observed_time_unix_nano: TIME + 1,
            severity_number: severity,
            severity_text: chosen.severity.clone(),
            body: Some(AnyValue { value: Some(any_value::Value::StringValue(filled(&chosen.body, rng))) }),
            attributes: attributes(&chosen.attributes, rng),
            flags: 1,
            trace_id: [PLACEHOLDER; 2].concat(),
            span_id: PLACEHOLDER.to_vec(),
            ..Default::default()
        }
    }
}

impl Kind {
    fn number(self) -> i32 {
        match self {
            Self::Internal => SpanKind::Internal as i32,
            Self::Server => SpanKind::Server as i32,
            Self::Client => SpanKind::Client as i32,
            Self::Producer => SpanKind::Producer as i32,
            Self::Consumer => SpanKind::Consumer as i32,
        }
    }
}

fn weighted<'a, T>(list: &'a [T], weight: impl Fn(&T) -> u32, rng: &mut Rng) -> &'a T {
    let sum: u32 = list.iter().map(&weight).sum();
    let mut left = rng.u32(..sum);
    for entry in list {
        match left.checked_sub(weight(entry)) {
            None => return entry,
            Some(rest) => left = rest,
        }
    }
    unreachable!("the number was below the sum of the weights")
}

fn attributes(list: &Attributes, rng: &mut Rng) -> Vec<KeyValue> {
    let one = |(key, values): (&String, &Vec<Literal>)| match &values[rng.usize(..values.len())] {
        Literal::Text(value) => text(key, filled(value, rng)),
        Literal::Integer(value) => attribute(key, any_value::Value::IntValue(*value)),
    };
    list.iter().map(one).collect()
}

fn filled(pattern: &str, rng: &mut Rng) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    for character in pattern.chars() {
        match character {
            '#' => out.push_str(&format!("{:08x}", rng.u32(..))),
            other => out.push(other),
        }
    }
    out
}

fn text(key: &str, value: String) -> KeyValue {
    attribute(key, any_value::Value::StringValue(value))
}

fn attribute(key: &str, value: any_value::Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the committed profile, in requests of a hundred items.
    /// Guarantees: its items are of the sizes that figures are quoted for, and one seed makes one request.
    #[test]
    fn the_committed_profile_has_the_sizes_it_says() {
        let profile = Profile::parse(SHOP).unwrap();
        let sizes = Signal::ALL.map(|signal| {
            let request = profile.request(signal, 800, &mut Rng::with_seed(7));
            assert_eq!(request, profile.request(signal, 800, &mut Rng::with_seed(7)));
            request.len() / 800
        });
        let [span, point, record] = sizes;
        assert!((415..=455).contains(&span), "{sizes:?}");
        assert!((140..=200).contains(&point), "{sizes:?}");
        assert!((240..=320).contains(&record), "{sizes:?}");
    }

    /// Scenario: a profile with a mistake in it.
    /// Guarantees: it is refused when it is read, not when a run is under way.
    #[test]
    fn a_wrong_profile_is_refused() {
        for (right, wrong) in [("weight =", "wieght ="), ("[\"HikariPool-1\"]", "[]"), ("points = 2", "points = 0")] {
            assert!(SHOP.contains(right));
            assert!(Profile::parse(&SHOP.replace(right, wrong)).is_err(), "{wrong}");
        }
    }
}
