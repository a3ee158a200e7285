//! OTLP's field numbers, as one table per message: what to check, never what it means.
//!
//! From opentelemetry-proto 1.x, `{collector,trace,metrics,logs,common,resource}/v1`. Where attributes of a resource are
//! told from other attributes, it is because enrichment rewrites them.

use crate::base::Signal;

/// What a field's value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Varint,
    Fixed64,
    Fixed32,
    Text,
    /// The key of a resource attribute: text that the observer is told of.
    Key,
    Bytes,
    /// Empty or 16 bytes.
    TraceId,
    /// Empty or 8 bytes.
    SpanId,
    /// Repeated fixed64 or double: packed, or one a field.
    PackedFixed64,
    /// Repeated varint: packed, or one a field.
    PackedVarint,
    Message(Message),
}

/// The messages of OTLP. The order matters: observed ones first, items last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Message {
    ResourceSpans,
    ResourceMetrics,
    ResourceLogs,
    Resource,
    ResourceAttribute,
    TraceRequest,
    MetricsRequest,
    LogsRequest,
    ScopeSpans,
    ScopeMetrics,
    ScopeLogs,
    Scope,
    EntityRef,
    Attribute,
    AnyValue,
    ArrayValue,
    KeyValueList,
    Event,
    Link,
    Status,
    Metric,
    Gauge,
    Sum,
    Histogram,
    ExponentialHistogram,
    Summary,
    Exemplar,
    Buckets,
    Quantile,
    /// Not a message: a group of an unknown field, in which nothing is known.
    Group,
    Span,
    LogRecord,
    NumberPoint,
    HistogramPoint,
    ExponentialHistogramPoint,
    SummaryPoint,
}

/// How many there are.
pub(crate) const MESSAGES: usize = Message::SummaryPoint as usize + 1;

impl Message {
    /// All of them, in order.
    const ALL: [Self; MESSAGES] = {
        use Message as M;
        [
            M::ResourceSpans,
            M::ResourceMetrics,
            M::ResourceLogs,
            M::Resource,
            M::ResourceAttribute,
            M::TraceRequest,
            M::MetricsRequest,
            M::LogsRequest,
            M::ScopeSpans,
            M::ScopeMetrics,
            M::ScopeLogs,
            M::Scope,
            M::EntityRef,
            M::Attribute,
            M::AnyValue,
            M::ArrayValue,
            M::KeyValueList,
            M::Event,
            M::Link,
            M::Status,
            M::Metric,
            M::Gauge,
            M::Sum,
            M::Histogram,
            M::ExponentialHistogram,
            M::Summary,
            M::Exemplar,
            M::Buckets,
            M::Quantile,
            M::Group,
            M::Span,
            M::LogRecord,
            M::NumberPoint,
            M::HistogramPoint,
            M::ExponentialHistogramPoint,
            M::SummaryPoint,
        ]
    };

    /// The request of a signal.
    pub(crate) fn request(signal: Signal) -> Self {
        match signal {
            Signal::Traces => Self::TraceRequest,
            Signal::Metrics => Self::MetricsRequest,
            Signal::Logs => Self::LogsRequest,
        }
    }

    /// Whether it is one of those that are counted.
    #[inline]
    pub(crate) fn is_item(self) -> bool {
        self >= Self::Span
    }

    /// Whether enrichment must know where it begins and ends.
    #[inline]
    pub(crate) fn is_observed(self) -> bool {
        self <= Self::ResourceAttribute
    }

    /// The field of that number, if OTLP knows one.
    pub(crate) fn field(self, number: u32) -> Option<&'static Field> {
        self.fields().iter().find(|field| u32::from(field.number) == number)
    }

    const fn fields(self) -> &'static [Field] {
        use Message as M;
        match self {
            M::TraceRequest => TRACE_REQUEST,
            M::MetricsRequest => METRICS_REQUEST,
            M::LogsRequest => LOGS_REQUEST,
            M::ResourceSpans => RESOURCE_SPANS,
            M::ResourceMetrics => RESOURCE_METRICS,
            M::ResourceLogs => RESOURCE_LOGS,
            M::Resource => RESOURCE,
            M::ResourceAttribute => RESOURCE_ATTRIBUTE,
            M::ScopeSpans => SCOPE_SPANS,
            M::ScopeMetrics => SCOPE_METRICS,
            M::ScopeLogs => SCOPE_LOGS,
            M::Scope => SCOPE,
            M::EntityRef => ENTITY_REF,
            M::Attribute => ATTRIBUTE,
            M::AnyValue => ANY_VALUE,
            M::ArrayValue => ARRAY_VALUE,
            M::KeyValueList => KEY_VALUE_LIST,
            M::Event => EVENT,
            M::Link => LINK,
            M::Status => STATUS,
            M::Metric => METRIC,
            M::Gauge => GAUGE,
            M::Sum => SUM,
            M::Histogram => HISTOGRAM,
            M::ExponentialHistogram => EXPONENTIAL_HISTOGRAM,
            M::Summary => SUMMARY,
            M::Exemplar => EXEMPLAR,
            M::Buckets => BUCKETS,
            M::Quantile => QUANTILE,
            M::Group => &[],
            M::Span => SPAN,
            M::LogRecord => LOG_RECORD,
            M::NumberPoint => NUMBER_POINT,
            M::HistogramPoint => HISTOGRAM_POINT,
            M::ExponentialHistogramPoint => EXPONENTIAL_HISTOGRAM_POINT,
            M::SummaryPoint => SUMMARY_POINT,
        }
    }
}

/// One field of a message.
#[derive(Debug)]
pub(crate) struct Field {
    pub(crate) number: u8,
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

const fn field(number: u8, name: &'static str, kind: Kind) -> Field {
    Field { number, name, kind }
}

use Kind::{Bytes, Fixed32, Fixed64, Key, PackedFixed64, PackedVarint, SpanId, Text, TraceId, Varint};

const fn message(number: u8, name: &'static str, child: Message) -> Field {
    field(number, name, Kind::Message(child))
}

const TRACE_REQUEST: &[Field] = &[message(1, "resource_spans", Message::ResourceSpans)];
const METRICS_REQUEST: &[Field] = &[message(1, "resource_metrics", Message::ResourceMetrics)];
const LOGS_REQUEST: &[Field] = &[message(1, "resource_logs", Message::ResourceLogs)];

const RESOURCE_SPANS: &[Field] = &[
    message(1, "resource", Message::Resource),
    message(2, "scope_spans", Message::ScopeSpans),
    field(3, "schema_url", Text),
];
const RESOURCE_METRICS: &[Field] = &[
    message(1, "resource", Message::Resource),
    message(2, "scope_metrics", Message::ScopeMetrics),
    field(3, "schema_url", Text),
];
const RESOURCE_LOGS: &[Field] = &[
    message(1, "resource", Message::Resource),
    message(2, "scope_logs", Message::ScopeLogs),
    field(3, "schema_url", Text),
];
const RESOURCE: &[Field] = &[
    message(1, "attributes", Message::ResourceAttribute),
    field(2, "dropped_attributes_count", Varint),
    message(3, "entity_refs", Message::EntityRef),
];
const RESOURCE_ATTRIBUTE: &[Field] =
    &[field(1, "key", Key), message(2, "value", Message::AnyValue), field(3, "key_strindex", Varint)];
const ENTITY_REF: &[Field] = &[
    field(1, "schema_url", Text),
    field(2, "type", Text),
    field(3, "id_keys", Text),
    field(4, "description_keys", Text),
];
const SCOPE_SPANS: &[Field] =
    &[message(1, "scope", Message::Scope), message(2, "spans", Message::Span), field(3, "schema_url", Text)];
const SCOPE_METRICS: &[Field] =
    &[message(1, "scope", Message::Scope), message(2, "metrics", Message::Metric), field(3, "schema_url", Text)];
const SCOPE_LOGS: &[Field] =
    &[message(1, "scope", Message::Scope), message(2, "log_records", Message::LogRecord), field(3, "schema_url", Text)];
const SCOPE: &[Field] = &[
    field(1, "name", Text),
    field(2, "version", Text),
    message(3, "attributes", Message::Attribute),
    field(4, "dropped_attributes_count", Varint),
];

const ATTRIBUTE: &[Field] =
    &[field(1, "key", Text), message(2, "value", Message::AnyValue), field(3, "key_strindex", Varint)];
const ANY_VALUE: &[Field] = &[
    field(1, "string_value", Text),
    field(2, "bool_value", Varint),
    field(3, "int_value", Varint),
    field(4, "double_value", Fixed64),
    message(5, "array_value", Message::ArrayValue),
    message(6, "kvlist_value", Message::KeyValueList),
    field(7, "bytes_value", Bytes),
    field(8, "string_value_strindex", Varint),
];
const ARRAY_VALUE: &[Field] = &[message(1, "values", Message::AnyValue)];
const KEY_VALUE_LIST: &[Field] = &[message(1, "values", Message::Attribute)];

const SPAN: &[Field] = &[
    field(1, "trace_id", TraceId),
    field(2, "span_id", SpanId),
    field(3, "trace_state", Text),
    field(4, "parent_span_id", SpanId),
    field(5, "name", Text),
    field(6, "kind", Varint),
    field(7, "start_time_unix_nano", Fixed64),
    field(8, "end_time_unix_nano", Fixed64),
    message(9, "attributes", Message::Attribute),
    field(10, "dropped_attributes_count", Varint),
    message(11, "events", Message::Event),
    field(12, "dropped_events_count", Varint),
    message(13, "links", Message::Link),
    field(14, "dropped_links_count", Varint),
    message(15, "status", Message::Status),
    field(16, "flags", Fixed32),
];
const EVENT: &[Field] = &[
    field(1, "time_unix_nano", Fixed64),
    field(2, "name", Text),
    message(3, "attributes", Message::Attribute),
    field(4, "dropped_attributes_count", Varint),
];
const LINK: &[Field] = &[
    field(1, "trace_id", TraceId),
    field(2, "span_id", SpanId),
    field(3, "trace_state", Text),
    message(4, "attributes", Message::Attribute),
    field(5, "dropped_attributes_count", Varint),
    field(6, "flags", Fixed32),
];
const STATUS: &[Field] = &[field(2, "message", Text), field(3, "code", Varint)];

const LOG_RECORD: &[Field] = &[
    field(1, "time_unix_nano", Fixed64),
    field(2, "severity_number", Varint),
    field(3, "severity_text", Text),
    message(5, "body", Message::AnyValue),
    message(6, "attributes", Message::Attribute),
    field(7, "dropped_attributes_count", Varint),
    field(8, "flags", Fixed32),
    field(9, "trace_id", TraceId),
    field(10, "span_id", SpanId),
    field(11, "observed_time_unix_nano", Fixed64),
    field(12, "event_name", Text),
];

const METRIC: &[Field] = &[
    field(1, "name", Text),
    field(2, "description", Text),
    field(3, "unit", Text),
    message(5, "gauge", Message::Gauge),
    message(7, "sum", Message::Sum),
    message(9, "histogram", Message::Histogram),
    message(10, "exponential_histogram", Message::ExponentialHistogram),
    message(11, "summary", Message::Summary),
    message(12, "metadata", Message::Attribute),
];
const GAUGE: &[Field] = &[message(1, "data_points", Message::NumberPoint)];
const SUM: &[Field] = &[
    message(1, "data_points", Message::NumberPoint),
    field(2, "aggregation_temporality", Varint),
    field(3, "is_monotonic", Varint),
];
const HISTOGRAM: &[Field] =
    &[message(1, "data_points", Message::HistogramPoint), field(2, "aggregation_temporality", Varint)];
const EXPONENTIAL_HISTOGRAM: &[Field] =
    &[message(1, "data_points", Message::ExponentialHistogramPoint), field(2, "aggregation_temporality", Varint)];
const SUMMARY: &[Field] = &[message(1, "data_points", Message::SummaryPoint)];
const NUMBER_POINT: &[Field] = &[
    field(2, "start_time_unix_nano", Fixed64),
    field(3, "time_unix_nano", Fixed64),
    field(4, "as_double", Fixed64),
    message(5, "exemplars", Message::Exemplar),
    field(6, "as_int", Fixed64),
    message(7, "attributes", Message::Attribute),
    field(8, "flags", Varint),
];
const HISTOGRAM_POINT: &[Field] = &[
    field(2, "start_time_unix_nano", Fixed64),
    field(3, "time_unix_nano", Fixed64),
    field(4, "count", Fixed64),
    field(5, "sum", Fixed64),
    field(6, "bucket_counts", PackedFixed64),
    field(7, "explicit_bounds", PackedFixed64),
    message(8, "exemplars", Message::Exemplar),
    message(9, "attributes", Message::Attribute),
    field(10, "flags", Varint),
    field(11, "min", Fixed64),
    field(12, "max", Fixed64),
];
const EXPONENTIAL_HISTOGRAM_POINT: &[Field] = &[
    message(1, "attributes", Message::Attribute),
    field(2, "start_time_unix_nano", Fixed64),
    field(3, "time_unix_nano", Fixed64),
    field(4, "count", Fixed64),
    field(5, "sum", Fixed64),
    field(6, "scale", Varint),
    field(7, "zero_count", Fixed64),
    message(8, "positive", Message::Buckets),
    message(9, "negative", Message::Buckets),
    field(10, "flags", Varint),
    message(11, "exemplars", Message::Exemplar),
    field(12, "min", Fixed64),
    field(13, "max", Fixed64),
    field(14, "zero_threshold", Fixed64),
];
const BUCKETS: &[Field] = &[field(1, "offset", Varint), field(2, "bucket_counts", PackedVarint)];
const SUMMARY_POINT: &[Field] = &[
    field(2, "start_time_unix_nano", Fixed64),
    field(3, "time_unix_nano", Fixed64),
    field(4, "count", Fixed64),
    field(5, "sum", Fixed64),
    message(6, "quantile_values", Message::Quantile),
    message(7, "attributes", Message::Attribute),
    field(8, "flags", Varint),
];
const QUANTILE: &[Field] = &[field(1, "quantile", Fixed64), field(2, "value", Fixed64)];
const EXEMPLAR: &[Field] = &[
    field(2, "time_unix_nano", Fixed64),
    field(3, "as_double", Fixed64),
    field(4, "span_id", SpanId),
    field(5, "trace_id", TraceId),
    field(6, "as_int", Fixed64),
    message(7, "filtered_attributes", Message::Attribute),
];

/// What to do about a tag of one byte: the field's kind if the wire type is right, else `None`, the slow path.
pub(crate) type Actions = [Option<Kind>; 128];

/// [`Actions`] of each message, by its number. Tags of two bytes and all surprises take the slow path.
pub(crate) static ACTIONS: [Actions; MESSAGES] = {
    let mut table = [[None; 128]; MESSAGES];
    let mut index = 0;
    while index < MESSAGES {
        let fields = Message::ALL[index].fields();
        let mut at = 0;
        while at < fields.len() {
            let Field { number, kind, .. } = fields[at];
            if number < 16 {
                let wire_type = match kind {
                    Kind::Varint => 0,
                    Kind::Fixed64 => 1,
                    Kind::Fixed32 => 5,
                    _ => 2,
                };
                table[index][(number << 3 | wire_type) as usize] = Some(kind);
            }
            at += 1;
        }
        index += 1;
    }
    table
};

/// The numbers that cutting a request needs: the same in all three signals where they exist.
pub(crate) mod number {
    /// Of `Resource{Spans,Metrics,Logs}` in a request.
    pub(crate) const ENVELOPE: u8 = 1;
    /// Of `Resource` in `Resource{Spans,Metrics,Logs}`.
    pub(crate) const RESOURCE: u8 = 1;
    /// Of `KeyValue` in `Resource`.
    pub(crate) const ATTRIBUTE: u8 = 1;
    /// Of `Scope{Spans,Metrics,Logs}` in `Resource{Spans,Metrics,Logs}`.
    pub(crate) const SCOPE: u8 = 2;
    /// Of `Span`, `Metric` or `LogRecord` in `Scope{Spans,Metrics,Logs}`.
    pub(crate) const ITEM: u8 = 2;
    /// Of the data points in `Gauge`, `Sum` and their like.
    pub(crate) const POINT: u8 = 1;
    /// Of `Gauge`, `Sum` and their like in `Metric`.
    pub(crate) const DATA: [u8; 5] = [5, 7, 9, 10, 11];
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the list of all messages and the numbers they are found by.
    /// Guarantees: a message finds its own table, so that no field is checked against another message's rules.
    #[test]
    fn messages_are_listed_in_the_order_of_their_numbers() {
        for (index, message) in Message::ALL.into_iter().enumerate() {
            assert_eq!(message as usize, index);
            let numbers: Vec<_> = message.fields().iter().map(|field| field.number).collect();
            assert!(numbers.is_sorted_by(|a, b| a < b), "{message:?} names a field twice");
        }
    }
}
