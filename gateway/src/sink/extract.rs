//! What a record holds: how many items of which service, and its last items for people.
//!
//! Off the hot path, but the bytes are a pod's: services are counted by walking, and only the few items that are kept are
//! decoded, one by one and only up to [`DECODED_BYTES_MAX`], because decoded structs are many times as large as the bytes
//! they come from.

use std::collections::{BTreeMap, VecDeque};

use pillion_proto::otlp::common::{AnyValue, KeyValue, any_value};
use pillion_proto::otlp::logs::LogRecord;
use pillion_proto::otlp::metrics::{Metric, NumberDataPoint, metric, number_data_point};
use pillion_proto::otlp::trace::{Span, span::SpanKind, status::StatusCode};
use prost::Message;

use super::Delivery;
use super::record::{Attribute, Item, ServiceItems};
use super::state::{ITEMS_MAX, Latest, OTHER, SERIES_MAX};
use crate::base::Signal;
use crate::wire;
use crate::wire::fields::{Field, fields};
use crate::wire::schema::number;

/// A larger item is kept without its content.
const DECODED_BYTES_MAX: usize = 16 * 1024;

/// Limits of what is kept of an item.
const SERVICE_BYTES_MAX: usize = 128;
const NAME_BYTES_MAX: usize = 512;
const KEY_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 256;
const ATTRIBUTES_MAX: usize = 16;

/// `service.name` of a resource that has none, by the semantic conventions.
const UNKNOWN: &str = "unknown_service";

/// The items of each service. Their sum is `items`, whatever the payload says: the balance counts those.
pub(super) fn services(payload: &[u8], signal: Signal, items: u32) -> Vec<ServiceItems> {
    let mut found: BTreeMap<&str, u64> = BTreeMap::new();
    for resource in wire::resources(payload, signal) {
        let mut service = service_name(resource.service_name);
        if found.len() >= SERIES_MAX && !found.contains_key(service) {
            service = OTHER;
        }
        *found.entry(service).or_default() += u64::from(resource.items);
    }
    if found.values().sum::<u64>() != u64::from(items) {
        tracing::debug!(%items, "a record's items differ from its contents");
        found = BTreeMap::from([(UNKNOWN, u64::from(items))]);
    }
    found.retain(|_, items| *items > 0);
    let mut kept: BTreeMap<String, u64> = BTreeMap::new();
    for (service, items) in found {
        *kept.entry(cut(service, SERVICE_BYTES_MAX)).or_default() += items;
    }
    kept.into_iter().map(|(service, items)| ServiceItems { service, items }).collect()
}

/// The last items of these records, oldest first within a signal.
pub(super) fn last_items(deliveries: &[&Delivery]) -> Vec<Item> {
    let mut kept = Vec::new();
    for signal in Signal::ALL {
        // Which records hold the last ones, from the end; then in order.
        let mut missing = ITEMS_MAX;
        let mut places: Vec<_> = deliveries
            .iter()
            .rev()
            .filter(|delivery| delivery.signal == signal)
            .map_while(|delivery| {
                let found = (missing > 0).then(|| last_places(&delivery.payload, signal, missing))?;
                missing -= found.len();
                Some((*delivery, found))
            })
            .collect();
        places.reverse();
        let mut latest = Latest::default();
        for (delivery, places) in &places {
            for (service, item) in places {
                let mut item = item_of(&delivery.payload[item.body..item.end], signal);
                item.signal = u32::from(signal as u8);
                item.tenant = delivery.name.to_string();
                item.service = cut(service, SERVICE_BYTES_MAX);
                latest.push(item);
            }
        }
        kept.extend(latest.items);
    }
    kept
}

/// Where the last `count` items are, and whose.
fn last_places(payload: &[u8], signal: Signal, count: usize) -> VecDeque<(&str, Field)> {
    let children =
        |parent: Field, number: u8| fields(payload, parent.body, parent.end).filter(move |field| field.is(number));
    let envelopes = fields(payload, 0, payload.len()).filter(|field| field.is(number::ENVELOPE));
    let mut places = VecDeque::with_capacity(count);
    for (envelope, resource) in envelopes.zip(wire::resources(payload, signal)) {
        let items = children(envelope, number::SCOPE).flat_map(|scope| children(scope, number::ITEM));
        for item in items {
            if places.len() == count {
                places.pop_front();
            }
            places.push_back((service_name(resource.service_name), item));
        }
    }
    places
}

fn service_name(name: Option<&str>) -> &str {
    name.filter(|name| !name.is_empty()).unwrap_or(UNKNOWN)
}

fn item_of(bytes: &[u8], signal: Signal) -> Item {
    if bytes.len() > DECODED_BYTES_MAX {
        return Item { name: format!("({} bytes: too large to show)", bytes.len()), ..Item::default() };
    }
    let decoded = match signal {
        Signal::Traces => Span::decode(bytes).map(span_item),
        Signal::Metrics => Metric::decode(bytes).map(metric_item),
        Signal::Logs => LogRecord::decode(bytes).map(log_item),
    };
    decoded.unwrap_or_else(|_| Item { name: "(cannot be decoded)".to_owned(), ..Item::default() })
}

fn span_item(span: Span) -> Item {
    let error = span.status.as_ref().filter(|status| status.code() == StatusCode::Error);
    let kind = match span.kind() {
        SpanKind::Unspecified | SpanKind::Internal => "internal",
        SpanKind::Server => "server",
        SpanKind::Client => "client",
        SpanKind::Producer => "producer",
        SpanKind::Consumer => "consumer",
    };
    Item {
        time_unix_nano: span.start_time_unix_nano,
        duration_nano: span.end_time_unix_nano.checked_sub(span.start_time_unix_nano),
        name: cut(&span.name, NAME_BYTES_MAX),
        kind: kind.to_owned(),
        error: error.map_or_else(String::new, |status| {
            if status.message.is_empty() { "error".to_owned() } else { cut(&status.message, VALUE_BYTES_MAX) }
        }),
        trace_id: hex(&span.trace_id),
        span_id: hex(&span.span_id),
        attributes: attributes(&span.attributes),
        ..Item::default()
    }
}

fn log_item(log: LogRecord) -> Item {
    let severity = match (log.severity_text.is_empty(), log.severity_number) {
        (false, _) => cut(&log.severity_text, 32),
        (true, ..=0) => String::new(),
        (true, 1..=4) => "TRACE".to_owned(),
        (true, 5..=8) => "DEBUG".to_owned(),
        (true, 9..=12) => "INFO".to_owned(),
        (true, 13..=16) => "WARN".to_owned(),
        (true, 17..=20) => "ERROR".to_owned(),
        (true, _) => "FATAL".to_owned(),
    };
    let body = log.body.as_ref().map(|body| show(body, NAME_BYTES_MAX)).unwrap_or_default();
    Item {
        time_unix_nano: if log.time_unix_nano == 0 { log.observed_time_unix_nano } else { log.time_unix_nano },
        name: if body.is_empty() { cut(&log.event_name, NAME_BYTES_MAX) } else { body },
        kind: severity,
        trace_id: hex(&log.trace_id),
        span_id: hex(&log.span_id),
        attributes: attributes(&log.attributes),
        ..Item::default()
    }
}

fn metric_item(metric: Metric) -> Item {
    let point = metric.data.as_ref().and_then(last_point);
    let (time_unix_nano, value, own) = point.unwrap_or_default();
    let unit = if matches!(metric.unit.as_str(), "" | "1") { String::new() } else { format!(" {}", metric.unit) };
    let kind = match &metric.data {
        None => "",
        Some(metric::Data::Gauge(_)) => "gauge",
        Some(metric::Data::Sum(sum)) if sum.is_monotonic => "counter",
        Some(metric::Data::Sum(_)) => "sum",
        Some(metric::Data::Histogram(_)) => "histogram",
        Some(metric::Data::ExponentialHistogram(_)) => "exponential histogram",
        Some(metric::Data::Summary(_)) => "summary",
    };
    Item {
        time_unix_nano,
        name: cut(&metric.name, NAME_BYTES_MAX),
        kind: kind.to_owned(),
        value: if value.is_empty() { value } else { cut(&format!("{value}{unit}"), VALUE_BYTES_MAX) },
        attributes: attributes(own),
        ..Item::default()
    }
}

/// Time, value and attributes of a metric's last point.
fn last_point(data: &metric::Data) -> Option<(u64, String, &[KeyValue])> {
    match data {
        metric::Data::Gauge(gauge) => gauge.data_points.last().map(number_point),
        metric::Data::Sum(sum) => sum.data_points.last().map(number_point),
        metric::Data::Histogram(histogram) => {
            let point = histogram.data_points.last()?;
            Some((point.time_unix_nano, distribution(point.count, point.sum), &point.attributes))
        }
        metric::Data::ExponentialHistogram(histogram) => {
            let point = histogram.data_points.last()?;
            Some((point.time_unix_nano, distribution(point.count, point.sum), &point.attributes))
        }
        metric::Data::Summary(summary) => {
            let point = summary.data_points.last()?;
            Some((point.time_unix_nano, distribution(point.count, Some(point.sum)), &point.attributes))
        }
    }
}

fn number_point(point: &NumberDataPoint) -> (u64, String, &[KeyValue]) {
    let value = match point.value {
        Some(number_data_point::Value::AsInt(value)) => value.to_string(),
        Some(number_data_point::Value::AsDouble(value)) => value.to_string(),
        None => String::new(),
    };
    (point.time_unix_nano, value, &point.attributes)
}

fn distribution(count: u64, sum: Option<f64>) -> String {
    match sum {
        Some(sum) if count > 0 => format!("{count} × mean {:.3}", sum / count as f64),
        _ => format!("{count} ×"),
    }
}

fn attributes(pairs: &[KeyValue]) -> Vec<Attribute> {
    let shown = pairs.iter().take(ATTRIBUTES_MAX).map(|pair| Attribute {
        key: cut(&pair.key, KEY_BYTES_MAX),
        value: pair.value.as_ref().map(|value| show(value, VALUE_BYTES_MAX)).unwrap_or_default(),
    });
    shown.collect()
}

/// A value as text, cut to `max` bytes.
fn show(value: &AnyValue, max: usize) -> String {
    let mut out = String::new();
    write_value(&mut out, value, max, false);
    cut(&out, max)
}

/// Stops soon after `max` bytes. As deep as the decoder lets values be nested, which is 100 levels.
fn write_value(out: &mut String, value: &AnyValue, max: usize, nested: bool) {
    match &value.value {
        None | Some(any_value::Value::StringValueStrindex(_)) => {}
        Some(any_value::Value::StringValue(text)) if nested => out.push_str(&format!("{:?}", cut(text, max))),
        Some(any_value::Value::StringValue(text)) => out.push_str(&cut(text, max)),
        Some(any_value::Value::BoolValue(value)) => out.push_str(&value.to_string()),
        Some(any_value::Value::IntValue(value)) => out.push_str(&value.to_string()),
        Some(any_value::Value::DoubleValue(value)) => out.push_str(&value.to_string()),
        Some(any_value::Value::BytesValue(bytes)) => out.push_str(&hex(&bytes[..bytes.len().min(max / 2 + 1)])),
        Some(any_value::Value::ArrayValue(array)) => {
            out.push('[');
            for (index, value) in array.values.iter().enumerate() {
                if out.len() > max {
                    break;
                }
                out.push_str(if index > 0 { ", " } else { "" });
                write_value(out, value, max, true);
            }
            out.push(']');
        }
        Some(any_value::Value::KvlistValue(list)) => {
            out.push('{');
            for (index, pair) in list.values.iter().enumerate() {
                if out.len() > max {
                    break;
                }
                out.push_str(if index > 0 { ", " } else { "" });
                out.push_str(&cut(&pair.key, KEY_BYTES_MAX));
                out.push_str(": ");
                if let Some(value) = &pair.value {
                    write_value(out, value, max, true);
                }
            }
            out.push('}');
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

/// At most `max` bytes and a sign that something is missing.
fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let end = (0..=max).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
    format!("{}…", &text[..end])
}
