//! `pillion send`: one span, one metric and one log record a round over OTLP/HTTP, as an SDK would send them.
//!
//! For the first minute of a new user and for checking a way from end to end. Plain HTTP only: what it talks to is on this
//! machine. Ends after the last answer, or at the first refusal.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric::Data,
    number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{
    ResourceSpans, ScopeSpans, Span, Status, span::SpanKind, status::StatusCode,
};
use prost::Message;
use tokio::net::TcpStream;

use super::cli::SendArgs;
use super::exit::Exit;
use super::output;
use crate::base::Signal;
use crate::config::DestinationKind;

/// For connecting, and for each answer: a durable acknowledgement is a disk write away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_BYTES_MAX: usize = 64 * 1024;
const SERVICE: &str = "pillion-send";

type Client = SendRequest<Full<Bytes>>;

/// Runs it.
pub fn run(args: &SendArgs) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(send(args)),
        Err(error) => Err(format!("no runtime: {error}")),
    };
    match outcome {
        Ok(()) => {
            let (count, plural) = (args.count, if args.count == 1 { "" } else { "s" });
            output::line(format_args!(
                "accepted by {}: {count} span{plural}, {count} data point{plural}, {count} log record{plural}\n\
                 they are called service.name={SERVICE}",
                args.endpoint
            ));
            Exit::Ok.into()
        }
        Err(message) => {
            eprintln!("error: {message}");
            Exit::Failure.into()
        }
    }
}

async fn send(args: &SendArgs) -> Result<(), String> {
    let endpoint = args.endpoint.to_string();
    if args.endpoint.scheme_str() != Some("http") {
        return Err("send speaks plain http only: write --endpoint http://127.0.0.1:4318".to_owned());
    }
    let kind = DestinationKind::http(&endpoint).map_err(|message| format!("--endpoint: {message}"))?;
    let DestinationKind::Http { urls } = kind else { return Err("not an OTLP/HTTP endpoint".to_owned()) };

    let host = args.endpoint.host().unwrap_or_default().trim_matches(['[', ']']);
    let port = args.endpoint.port_u16().unwrap_or(80);
    let connect = tokio::time::timeout(ANSWER_TIMEOUT, TcpStream::connect((host, port)));
    let stream = connect.await.map_err(|_| format!("{endpoint} does not answer")).and_then(|stream| {
        stream.map_err(|error| {
            format!("cannot connect to {endpoint}: {error}\n       is it running? start it with: pillion standalone")
        })
    })?;
    let (mut client, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| format!("{endpoint}: {error}"))?;
    let requests = async {
        for _ in 0..args.count {
            round(&mut client, &urls).await?;
        }
        Ok(())
    };
    tokio::pin!(requests);
    tokio::select! {
        biased;
        outcome = &mut requests => return outcome,
        // Its error is that of the request that is under way. A server may also close behind its last answer.
        _ = connection => {}
    }
    requests.await
}

/// One of each signal.
async fn round(client: &mut Client, urls: &[Uri; 3]) -> Result<(), String> {
    let ids = Ids { trace: fastrand::u128(1..).to_be_bytes(), span: fastrand::u64(1..).to_be_bytes() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    let now = u64::try_from(now).unwrap_or(u64::MAX);
    for signal in Signal::ALL {
        let body = match signal {
            Signal::Traces => trace(&ids, now).encode_to_vec(),
            Signal::Metrics => metric(now).encode_to_vec(),
            Signal::Logs => log(&ids, now).encode_to_vec(),
        };
        let url = &urls[signal.index()];
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, post(client, url, body));
        let answer = answer.await.map_err(|_| format!("{url} does not answer"))??;
        judge(signal, &answer).map_err(|message| format!("{url}: {message}"))?;
    }
    Ok(())
}

async fn post(client: &mut Client, url: &Uri, body: Vec<u8>) -> Result<Response<Bytes>, String> {
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header(header::HOST, url.authority().map_or("", |authority| authority.as_str()))
        .header(header::CONTENT_TYPE, "application/x-protobuf")
        .header(header::USER_AGENT, concat!("pillion-send/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| format!("{url}: {error}"))?;
    client.ready().await.map_err(|error| format!("{url}: {error}"))?;
    let (head, body) = client.send_request(request).await.map_err(|error| format!("{url}: {error}"))?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await.map_err(|error| format!("{url}: {error}"))?;
    Ok(Response::from_parts(head, body.to_bytes()))
}

/// `google.rpc.Status`, the body of every refusal (OTLP specification, "OTLP/HTTP response", failures).
#[derive(Clone, PartialEq, prost::Message)]
struct RpcStatus {
    #[prost(string, tag = "2")]
    message: String,
}

/// A refusal or a partial success in words.
fn judge(signal: Signal, answer: &Response<Bytes>) -> Result<(), String> {
    let body = answer.body().as_ref();
    if !answer.status().is_success() {
        let reason = RpcStatus::decode(body).map(|status| status.message).unwrap_or_default();
        let retry = match answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()) {
            Some(seconds) => format!(" (try again in {seconds} s)"),
            None => String::new(),
        };
        return Err(format!("refused with {}: {}{retry}", answer.status(), printable(&reason)));
    }
    let rejected = match signal {
        Signal::Traces => ExportTraceServiceResponse::decode(body)
            .map(|answer| answer.partial_success.map(|partial| (partial.rejected_spans, partial.error_message))),
        Signal::Metrics => ExportMetricsServiceResponse::decode(body)
            .map(|answer| answer.partial_success.map(|partial| (partial.rejected_data_points, partial.error_message))),
        Signal::Logs => ExportLogsServiceResponse::decode(body)
            .map(|answer| answer.partial_success.map(|partial| (partial.rejected_log_records, partial.error_message))),
    };
    match rejected {
        Err(error) => Err(format!("the answer is no OTLP: {error}")),
        Ok(Some((rejected, message))) if rejected > 0 => Err(format!("rejected {rejected}: {}", printable(&message))),
        Ok(_) => Ok(()),
    }
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(300).collect()
}

struct Ids {
    trace: [u8; 16],
    span: [u8; 8],
}

fn trace(ids: &Ids, now: u64) -> ExportTraceServiceRequest {
    let span = Span {
        trace_id: ids.trace.to_vec(),
        span_id: ids.span.to_vec(),
        name: "hello".to_owned(),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: now.saturating_sub(1_500_000),
        end_time_unix_nano: now,
        attributes: vec![attribute("greeting", "from pillion send")],
        status: Some(Status { code: StatusCode::Ok.into(), ..Status::default() }),
        ..Span::default()
    };
    let scope_spans = ScopeSpans { scope: scope(), spans: vec![span], ..ScopeSpans::default() };
    let resource_spans =
        ResourceSpans { resource: resource(), scope_spans: vec![scope_spans], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![resource_spans] }
}

fn metric(now: u64) -> ExportMetricsServiceRequest {
    let point = NumberDataPoint {
        start_time_unix_nano: now.saturating_sub(1_500_000),
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsInt(1)),
        ..NumberDataPoint::default()
    };
    let sum = Sum {
        data_points: vec![point],
        aggregation_temporality: AggregationTemporality::Delta.into(),
        is_monotonic: true,
    };
    let metric = Metric {
        name: "hello.count".to_owned(),
        unit: "{hello}".to_owned(),
        data: Some(Data::Sum(sum)),
        ..Metric::default()
    };
    let scope_metrics = ScopeMetrics { scope: scope(), metrics: vec![metric], ..ScopeMetrics::default() };
    let resource_metrics =
        ResourceMetrics { resource: resource(), scope_metrics: vec![scope_metrics], ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![resource_metrics] }
}

fn log(ids: &Ids, now: u64) -> ExportLogsServiceRequest {
    let record = LogRecord {
        time_unix_nano: now,
        observed_time_unix_nano: now,
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        body: Some(text("hello from pillion send")),
        trace_id: ids.trace.to_vec(),
        span_id: ids.span.to_vec(),
        ..LogRecord::default()
    };
    let scope_logs = ScopeLogs { scope: scope(), log_records: vec![record], ..ScopeLogs::default() };
    let resource_logs = ResourceLogs { resource: resource(), scope_logs: vec![scope_logs], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![resource_logs] }
}

fn resource() -> Option<Resource> {
    Some(Resource { attributes: vec![attribute("service.name", SERVICE)], ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope { name: SERVICE.to_owned(), ..InstrumentationScope::default() })
}

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(text(value)), ..KeyValue::default() }
}

fn text(value: &str) -> AnyValue {
    AnyValue { value: Some(Value::StringValue(value.to_owned())) }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

    use super::*;

    fn answer(status: u16, retry_after: Option<&str>, body: impl Message) -> Response<Bytes> {
        let mut response = Response::builder().status(status);
        if let Some(seconds) = retry_after {
            response = response.header(header::RETRY_AFTER, seconds);
        }
        response.body(Bytes::from(body.encode_to_vec())).expect("a valid response")
    }

    /// Scenario: success, partial success, refusals with a reason, and an answer that is no OTLP.
    /// Guarantees: only a full success counts as one, and a refusal is shown with its reason, without control characters.
    #[test]
    fn only_a_full_success_is_a_success() {
        let ok = ExportTraceServiceResponse::default();
        assert_eq!(judge(Signal::Traces, &answer(200, None, ok)), Ok(()));

        let partial = ExportTracePartialSuccess { rejected_spans: 1, error_message: "no".to_owned() };
        let partial = ExportTraceServiceResponse { partial_success: Some(partial) };
        assert_eq!(judge(Signal::Traces, &answer(200, None, partial)), Err("rejected 1: no".to_owned()));

        let busy = RpcStatus { message: "too\x1bfast".to_owned() };
        let expected = "refused with 429 Too Many Requests: too?fast (try again in 2 s)";
        assert_eq!(judge(Signal::Logs, &answer(429, Some("2"), busy)), Err(expected.to_owned()));

        let page = Response::builder().status(200).body(Bytes::from_static(b"<html>")).expect("valid");
        assert!(judge(Signal::Metrics, &page).is_err_and(|error| error.starts_with("the answer is no OTLP")));
    }
}
