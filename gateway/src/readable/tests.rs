//! What people and other programs get to see of requests.

use pillion_proto::otlp::Message as _;
use pillion_proto::otlp::collector_logs::ExportLogsServiceRequest;
use pillion_proto::otlp::collector_metrics::ExportMetricsServiceRequest;
use pillion_proto::otlp::collector_trace::ExportTraceServiceRequest;
use pillion_proto::otlp::common::{
    AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList, any_value::Value,
};
use pillion_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use pillion_proto::otlp::metrics::{
    ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, Summary, SummaryDataPoint, metric::Data, number_data_point,
};
use pillion_proto::otlp::resource::Resource;
use pillion_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span, Status, span::Event};

use super::*;

fn text(text: &str) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(text.to_owned())) }
}

fn pair(key: &str, value: AnyValue) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn resource() -> Option<Resource> {
    Some(Resource { attributes: vec![pair("service.name", text("cart"))], ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope { name: "io.example.http".into(), version: "1.4.0".into(), ..Default::default() })
}

fn traces(name: &str, spans: usize) -> ExportTraceServiceRequest {
    let span = Span {
        trace_id: vec![0x4b; 16],
        span_id: vec![0xf0; 8],
        parent_span_id: vec![1; 8],
        name: name.to_owned(),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: 1_763_737_200_000_000_001,
        end_time_unix_nano: 1_763_737_200_003_200_001,
        attributes: vec![
            pair("http.request.method", text("GET")),
            pair(
                "list",
                AnyValue { value: Some(Value::ArrayValue(ArrayValue { values: vec![text("a"), text("b")] })) },
            ),
            pair(
                "map",
                AnyValue { value: Some(Value::KvlistValue(KeyValueList { values: vec![pair("k", text("v"))] })) },
            ),
            pair("raw", AnyValue { value: Some(Value::BytesValue(vec![1, 255])) }),
            pair("number", AnyValue { value: Some(Value::IntValue(i64::MAX)) }),
        ],
        events: vec![Event { time_unix_nano: 1_763_737_200_000_500_001, name: "exception".into(), ..Event::default() }],
        status: Some(Status { code: StatusCode::Error.into(), message: "no such cart".into() }),
        ..Span::default()
    };
    let scope_spans = ScopeSpans { scope: scope(), spans: vec![span; spans], ..ScopeSpans::default() };
    let spans = ResourceSpans { resource: resource(), scope_spans: vec![scope_spans], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

fn metrics() -> ExportMetricsServiceRequest {
    let point = NumberDataPoint {
        time_unix_nano: 1_763_737_200_000_000_000,
        attributes: vec![pair("shop", text("a"))],
        value: Some(number_data_point::Value::AsDouble(1.5)),
        ..NumberDataPoint::default()
    };
    let metric =
        |name: &str, data| Metric { name: name.into(), unit: "ms".into(), data: Some(data), ..Metric::default() };
    let histogram = HistogramDataPoint { count: 3, sum: Some(7.5), bucket_counts: vec![1, 2], ..Default::default() };
    let exponential = ExponentialHistogramDataPoint { count: 4, scale: 2, ..Default::default() };
    let summary = SummaryDataPoint { count: 5, sum: 9.0, ..Default::default() };
    let all = vec![
        metric("a.gauge", Data::Gauge(Gauge { data_points: vec![point.clone()] })),
        metric("a.sum", Data::Sum(Sum { data_points: vec![point], aggregation_temporality: 2, is_monotonic: true })),
        metric("a.histogram", Data::Histogram(Histogram { data_points: vec![histogram], aggregation_temporality: 1 })),
        metric(
            "an.exponential",
            Data::ExponentialHistogram(ExponentialHistogram {
                data_points: vec![exponential],
                aggregation_temporality: 1,
            }),
        ),
        metric("a.summary", Data::Summary(Summary { data_points: vec![summary] })),
    ];
    let scope_metrics = ScopeMetrics { scope: scope(), metrics: all, ..ScopeMetrics::default() };
    let all =
        ResourceMetrics { resource: resource(), scope_metrics: vec![scope_metrics], ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![all] }
}

fn logs() -> ExportLogsServiceRequest {
    let record = LogRecord {
        observed_time_unix_nano: 951_782_400_000_000_000,
        severity_text: "WARN".into(),
        body: Some(text("cart is \u{1b}[31mfull")),
        attributes: vec![pair("user", text("u-1"))],
        ..LogRecord::default()
    };
    let scope_logs = ScopeLogs { scope: scope(), log_records: vec![record], ..ScopeLogs::default() };
    let all = ResourceLogs { resource: resource(), scope_logs: vec![scope_logs], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![all] }
}

/// Scenario: a request of each signal with every kind of attribute and of metric.
/// Guarantees: resource, scope, names, times, ids, values and attributes are there to be read.
#[test]
fn people_can_read_each_signal() {
    let all = lines(&traces("GET /cart", 1).encode_to_vec(), Signal::Traces, 10).expect("OTLP");
    assert_eq!(
        all,
        "\
resource service.name=\"cart\"
  scope io.example.http 1.4.0
    span \"GET /cart\" SERVER 2025-11-21T15:00:00.000000001Z for 3.2 ms trace=4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b span=f0f0f0f0f0f0f0f0 parent=0101010101010101 ERROR \"no such cart\"
      http.request.method=\"GET\"
      list=[\"a\", \"b\"]
      map={k=\"v\"}
      raw=2 bytes 01ff
      number=9223372036854775807
      event \"exception\" at +500.0 us
"
    );
    let all = lines(&metrics().encode_to_vec(), Signal::Metrics, 10).expect("OTLP");
    for part in [
        "    metric \"a.gauge\" gauge [ms]\n      2025-11-21T15:00:00.000000000Z 1.5 shop=\"a\"\n",
        "    metric \"a.sum\" sum cumulative monotonic [ms]\n",
        "    metric \"a.histogram\" histogram delta [ms]\n      - count=3 sum=7.5 2 buckets\n",
        "    metric \"an.exponential\" exponential histogram delta [ms]\n      - count=4 scale=2\n",
        "    metric \"a.summary\" summary [ms]\n      - count=5 sum=9\n",
    ] {
        assert!(all.contains(part), "{part}\n{all}");
    }
    let all = lines(&logs().encode_to_vec(), Signal::Logs, 10).expect("OTLP");
    let record = "    log 2000-02-29T00:00:00.000000000Z WARN \"cart is \\u{1b}[31mfull\"\n      user=\"u-1\"\n";
    assert!(all.contains(record), "{all}");
}

/// Scenario: more items than asked for, long names, control and direction characters, bytes that are no OTLP.
/// Guarantees: the output is bounded and says what it leaves out; a terminal is told nothing but text.
#[test]
fn output_is_bounded_and_harmless() {
    let hostile = format!("\u{1b}]0;\u{202e}{}", "x".repeat(100_000));
    let all = lines(&traces(&hostile, 500).encode_to_vec(), Signal::Traces, 3).expect("OTLP");
    assert_eq!(all.matches("    span ").count(), 3);
    assert!(all.contains("... and 497 more spans") && all.len() < 4_000, "{all}");
    assert!(all.chars().all(|c| !c.is_control() || c == '\n') && !all.contains('\u{202e}'));
    assert!(lines(b"\xff\xff", Signal::Logs, 3).is_err());
    assert!(json(b"\xff\xff", Signal::Logs).is_err());
}

/// Scenario: requests of each signal as OTLP/JSON, read back as a Collector would.
/// Guarantees: nothing is lost, and it is the protocol's own JSON: lowerCamelCase, ids in hex, 64-bit numbers as text, enums as
/// numbers.
#[test]
fn json_is_the_protocols_own() {
    let request = traces("a\nb", 2);
    let value = json(&request.encode_to_vec(), Signal::Traces).expect("OTLP");
    let span = &value["resourceSpans"][0]["scopeSpans"][0]["spans"][0];
    assert_eq!(span["traceId"], "4b".repeat(16));
    assert_eq!(span["startTimeUnixNano"], "1763737200000000001");
    assert_eq!(span["kind"], 2);
    assert_eq!(span["attributes"][4]["value"]["intValue"], i64::MAX.to_string());
    assert_eq!(span["attributes"][3]["value"]["bytesValue"], "Af8=");
    assert!(!value.to_string().contains('\n'), "one line");
    assert_eq!(serde_json::from_value::<ExportTraceServiceRequest>(value).expect("OTLP/JSON"), request);
    let value = json(&metrics().encode_to_vec(), Signal::Metrics).expect("OTLP");
    assert_eq!(serde_json::from_value::<ExportMetricsServiceRequest>(value).expect("OTLP/JSON"), metrics());
    let value = json(&logs().encode_to_vec(), Signal::Logs).expect("OTLP");
    assert_eq!(serde_json::from_value::<ExportLogsServiceRequest>(value).expect("OTLP/JSON"), logs());
}

/// Scenario: dates around leap days and the ends of centuries, ages of every size.
/// Guarantees: they are those of the calendar, and are said in two units.
#[test]
fn times_are_those_of_the_calendar() {
    let day = |days: u64| instant(days * 86_400_000_000_000 + 1)[..10].to_owned();
    assert_eq!([day(0), day(59), day(789), day(11_016)], ["1970-01-01", "1970-03-01", "1972-02-29", "2000-02-29"]);
    assert_eq!([day(47_540), day(47_541)], ["2100-02-28", "2100-03-01"]);
    assert_eq!([age(900), age(61_000), age(3_600_000 * 25), age(86_400_000 * 3)], ["0s", "1m01s", "25h00m", "3d00h"]);
}
