//! The OpenTelemetry Rust SDK, configured by nothing: it sends to localhost, as every SDK does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use opentelemetry::KeyValue;
use opentelemetry::logs::{LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use opentelemetry_sdk::trace::SdkTracerProvider;
use serde_json::json;

use super::{Options, page, until_terminated};

/// Spans, metrics and log records that one protocol sends.
const SENT: [u32; 3] = [20, 2, 10];

struct Exporters {
    spans: SpanExporter,
    metrics: MetricExporter,
    logs: LogExporter,
}

/// Sends all signals over both protocols, once, and tells on the page what the exporters said.
pub(super) fn run(options: &mut Options) -> Result<()> {
    let port = options.take("page")?;
    options.finish()?;
    let results: Arc<Mutex<Option<String>>> = Arc::default();
    let for_page = results.clone();
    page::serve(port, move |_| {
        let results = for_page.lock().unwrap_or_else(PoisonError::into_inner);
        Some(results.clone().unwrap_or_else(|| "{\"done\":false}".to_owned()))
    })?;
    let runtime = runtime()?;
    let name = service_name();
    let grpc = runtime.block_on(async { grpc() })?;
    let outcome = BTreeMap::from([
        ("grpc", send(&format!("{name}-grpc"), grpc)),
        ("http", send(&format!("{name}-http"), http()?)),
    ]);
    let report = json!({"done": true, "sent": SENT, "errors": outcome});
    *results.lock().unwrap_or_else(PoisonError::into_inner) = Some(report.to_string());
    until_terminated()
}

/// One span, acknowledged or an error. `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` are obeyed by the SDK itself.
pub(super) fn once(options: &mut Options) -> Result<()> {
    options.finish()?;
    let runtime = runtime()?;
    let exporter = runtime.block_on(async { SpanExporter::builder().with_tonic().build() })?;
    let tracers = SdkTracerProvider::builder().with_batch_exporter(exporter).build();
    tracers.tracer("e2e").start("last words").end();
    tracers.force_flush().context("the span was not acknowledged")?;
    tracers.shutdown().context("shutting the SDK down")
}

/// The gRPC exporters need one with a thread of its own, for as long as they live.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}

fn service_name() -> String {
    std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "unnamed".to_owned())
}

fn grpc() -> Result<Exporters> {
    Ok(Exporters {
        spans: SpanExporter::builder().with_tonic().build()?,
        metrics: MetricExporter::builder().with_tonic().build()?,
        logs: LogExporter::builder().with_tonic().build()?,
    })
}

fn http() -> Result<Exporters> {
    let protocol = Protocol::HttpBinary;
    Ok(Exporters {
        spans: SpanExporter::builder().with_http().with_protocol(protocol).build()?,
        metrics: MetricExporter::builder().with_http().with_protocol(protocol).build()?,
        logs: LogExporter::builder().with_http().with_protocol(protocol).build()?,
    })
}

/// What each signal's exporter said when it was flushed; nothing where all was well.
fn send(service: &str, exporters: Exporters) -> BTreeMap<&'static str, String> {
    let resource = Resource::builder().with_service_name(service.to_owned()).build();
    let tracers =
        SdkTracerProvider::builder().with_resource(resource.clone()).with_batch_exporter(exporters.spans).build();
    let meters =
        SdkMeterProvider::builder().with_resource(resource.clone()).with_periodic_exporter(exporters.metrics).build();
    let loggers = SdkLoggerProvider::builder().with_resource(resource).with_batch_exporter(exporters.logs).build();
    let tracer = tracers.tracer("e2e");
    for n in 0..SENT[0] {
        let mut span = tracer.start(format!("step {n}"));
        span.set_attribute(KeyValue::new("n", i64::from(n)));
        span.end();
    }
    let meter = meters.meter("e2e");
    meter.u64_counter("requests").build().add(7, &[]);
    meter.f64_histogram("duration").build().record(0.25, &[]);
    let logger = loggers.logger("e2e");
    for n in 0..SENT[2] {
        let mut record = logger.create_log_record();
        record.set_severity_number(Severity::Info);
        record.set_body(format!("message {n}").into());
        logger.emit(record);
    }
    let flushed = |signal, result: OTelSdkResult| result.err().map(|error| (signal, error.to_string()));
    // The end of the meter provider is one more collection: a flush before it would send every metric twice.
    let outcome = [
        flushed("traces", tracers.shutdown()),
        flushed("metrics", meters.shutdown()),
        flushed("logs", loggers.shutdown()),
    ];
    outcome.into_iter().flatten().collect()
}
