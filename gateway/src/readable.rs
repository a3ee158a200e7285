//! OTLP for people and for other programs: a request in indented lines, and as OTLP/JSON.
//!
//! Decodes into structs, which are many times as large as the bytes: for tools that look at one batch, never on the way of a
//! request. What it prints is bounded, and nothing that an application sent reaches a terminal as a control character.
//!
//! ```text
//! resource service.name="cart" k8s.pod.name="cart-0"
//!   scope io.example.http 1.4.0
//!     span "GET /cart" SERVER 2026-11-21T15:00:00.000000000Z for 3.2 ms trace=4bf9... span=00f0... ERROR "no such cart"
//!       http.request.method="GET"
//!     ... and 17 more spans
//! ```

mod metrics;
mod time;
mod values;

use std::fmt::Write as _;

use pillion_proto::otlp::collector_logs::ExportLogsServiceRequest;
use pillion_proto::otlp::collector_metrics::ExportMetricsServiceRequest;
use pillion_proto::otlp::collector_trace::ExportTraceServiceRequest;
use pillion_proto::otlp::common::InstrumentationScope;
use pillion_proto::otlp::logs::LogRecord;
use pillion_proto::otlp::resource::Resource;
use pillion_proto::otlp::trace::{Span, span::SpanKind, status::StatusCode};

use crate::base::Signal;

pub use self::time::{age, instant};
pub use self::values::printable;

use self::values::{attributes, hex, quoted, value};

/// Bytes that are no request of their signal.
#[derive(Debug, thiserror::Error)]
#[error("the data is not OTLP of its signal: {0}")]
pub struct NotOtlp(String);

/// Lines about a request, and how many items may still be shown.
#[derive(Debug)]
struct Lines {
    out: String,
    items_left: usize,
    left_out: u64,
}

/// A request in lines: at most `items_max` of its items, each within a limit of its own.
pub fn lines(payload: &[u8], signal: Signal, items_max: usize) -> Result<String, NotOtlp> {
    let mut lines = Lines { out: String::new(), items_left: items_max, left_out: 0 };
    match signal {
        Signal::Traces => {
            for resource in decode::<ExportTraceServiceRequest>(payload)?.resource_spans {
                lines.resource(resource.resource.as_ref());
                for scope in resource.scope_spans {
                    lines.scope(scope.scope.as_ref());
                    scope.spans.iter().for_each(|span| lines.item(|out| put_span(out, span)));
                }
            }
        }
        Signal::Metrics => {
            for resource in decode::<ExportMetricsServiceRequest>(payload)?.resource_metrics {
                lines.resource(resource.resource.as_ref());
                for scope in resource.scope_metrics {
                    lines.scope(scope.scope.as_ref());
                    scope.metrics.iter().for_each(|metric| metrics::put(&mut lines, metric));
                }
            }
        }
        Signal::Logs => {
            for resource in decode::<ExportLogsServiceRequest>(payload)?.resource_logs {
                lines.resource(resource.resource.as_ref());
                for scope in resource.scope_logs {
                    lines.scope(scope.scope.as_ref());
                    scope.log_records.iter().for_each(|record| lines.item(|out| put_log(out, record)));
                }
            }
        }
    }
    if lines.left_out > 0 {
        write(&mut lines.out, format_args!("    ... and {} more {}\n", lines.left_out, words(signal)));
    }
    Ok(lines.out)
}

/// A request as OTLP/JSON, in one line: what a Collector's `otlpjsonfile` receiver reads.
pub fn json(payload: &[u8], signal: Signal) -> Result<serde_json::Value, NotOtlp> {
    let value = match signal {
        Signal::Traces => serde_json::to_value(decode::<ExportTraceServiceRequest>(payload)?),
        Signal::Metrics => serde_json::to_value(decode::<ExportMetricsServiceRequest>(payload)?),
        Signal::Logs => serde_json::to_value(decode::<ExportLogsServiceRequest>(payload)?),
    };
    value.map_err(|error| NotOtlp(error.to_string()))
}

fn decode<M: pillion_proto::otlp::Message + Default>(payload: &[u8]) -> Result<M, NotOtlp> {
    M::decode(payload).map_err(|error| NotOtlp(error.to_string()))
}

/// Items in words, as a person says them.
pub fn words(signal: Signal) -> &'static str {
    ["spans", "data points", "log records"][signal.index()]
}

impl Lines {
    fn resource(&mut self, resource: Option<&Resource>) {
        let all = resource.map_or(&[][..], |resource| &resource.attributes);
        write(&mut self.out, format_args!("resource{}\n", attributes(all, " ")));
    }

    fn scope(&mut self, scope: Option<&InstrumentationScope>) {
        let Some(scope) = scope.filter(|scope| !scope.name.is_empty()) else { return };
        let (name, version) = (printable(&scope.name, 120), printable(&scope.version, 40));
        write(&mut self.out, format_args!("{}\n", format!("  scope {name} {version}").trim_end()));
    }

    /// One item, if there is still room for it.
    fn item(&mut self, put: impl FnOnce(&mut String)) {
        match self.items_left.checked_sub(1) {
            Some(left) => {
                self.items_left = left;
                put(&mut self.out);
            }
            None => self.left_out += 1,
        }
    }
}

fn put_span(out: &mut String, span: &Span) {
    let kind = SpanKind::try_from(span.kind).unwrap_or_default().as_str_name().trim_start_matches("SPAN_KIND_");
    let (start, took) =
        (instant(span.start_time_unix_nano), time::between(span.start_time_unix_nano, span.end_time_unix_nano));
    write(out, format_args!("    span {} {kind} {start} for {took}", quoted(&span.name)));
    write(out, format_args!(" trace={} span={}", hex(&span.trace_id), hex(&span.span_id)));
    if !span.parent_span_id.is_empty() {
        write(out, format_args!(" parent={}", hex(&span.parent_span_id)));
    }
    if let Some(status) = &span.status {
        match StatusCode::try_from(status.code) {
            Ok(StatusCode::Error) => write(out, format_args!(" ERROR {}", quoted(&status.message))),
            Ok(StatusCode::Ok) => out.push_str(" OK"),
            _ => {}
        }
    }
    out.push_str(&attributes(&span.attributes, "\n      "));
    out.push('\n');
    for event in span.events.iter().take(values::ATTRIBUTES_MAX) {
        let at = time::between(span.start_time_unix_nano, event.time_unix_nano);
        write(
            out,
            format_args!("      event {} at +{at}{}\n", quoted(&event.name), attributes(&event.attributes, " ")),
        );
    }
    if span.events.len() > values::ATTRIBUTES_MAX {
        write(out, format_args!("      ... and {} more events\n", span.events.len() - values::ATTRIBUTES_MAX));
    }
    if !span.links.is_empty() {
        write(out, format_args!("      {} links\n", span.links.len()));
    }
}

fn put_log(out: &mut String, record: &LogRecord) {
    let at = if record.time_unix_nano > 0 { record.time_unix_nano } else { record.observed_time_unix_nano };
    let severity = if record.severity_text.is_empty() { "-".into() } else { printable(&record.severity_text, 20) };
    let body = record.body.as_ref().map_or_else(String::new, value);
    write(out, format_args!("    log {} {severity} {body}", instant(at)));
    if !record.trace_id.is_empty() {
        write(out, format_args!(" trace={} span={}", hex(&record.trace_id), hex(&record.span_id)));
    }
    out.push_str(&attributes(&record.attributes, "\n      "));
    out.push('\n');
}

/// Writing to a String cannot fail.
fn write(out: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(what);
}

#[cfg(test)]
mod tests;
