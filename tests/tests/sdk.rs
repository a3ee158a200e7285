//! A real SDK sends all three signals through the whole way.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use opentelemetry::logs::{AnyValue, LogRecord as _, Logger as _, LoggerProvider as _, Severity};
use opentelemetry::metrics::MeterProvider as _;
use opentelemetry::trace::{Span as _, SpanKind, Status, Tracer as _, TracerProvider as _};
use opentelemetry::{Array, KeyValue, Value};
use opentelemetry_otlp::{LogExporter, MetricExporter, Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::logs::SdkLoggerProvider;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider, Temporality};
use opentelemetry_sdk::trace::SdkTracerProvider;
use pillion_tests::station::Station;

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");

/// Both exporters get the same collection, so that even the timestamps are the same.
struct Tee<E>(E, E);

impl<E: PushMetricExporter> PushMetricExporter for Tee<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.0.export(metrics).await.and(self.1.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.0.force_flush().and(self.1.force_flush())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.0.shutdown_with_timeout(timeout).and(self.1.shutdown_with_timeout(timeout))
    }

    fn temporality(&self) -> Temporality {
        self.0.temporality()
    }
}

/// One of each kind of exporter.
struct Exporters {
    spans: SpanExporter,
    metrics: MetricExporter,
    logs: LogExporter,
}

fn grpc(to: SocketAddr) -> Exporters {
    let endpoint = format!("http://{to}");
    Exporters {
        spans: SpanExporter::builder().with_tonic().with_endpoint(&endpoint).build().unwrap(),
        metrics: MetricExporter::builder().with_tonic().with_endpoint(&endpoint).build().unwrap(),
        logs: LogExporter::builder().with_tonic().with_endpoint(&endpoint).build().unwrap(),
    }
}

fn http(to: SocketAddr) -> Exporters {
    let url = |signal: &str| format!("http://{to}/v1/{signal}");
    let protocol = Protocol::HttpBinary;
    Exporters {
        spans: SpanExporter::builder()
            .with_http()
            .with_protocol(protocol)
            .with_endpoint(url("traces"))
            .build()
            .unwrap(),
        metrics: MetricExporter::builder()
            .with_http()
            .with_protocol(protocol)
            .with_endpoint(url("metrics"))
            .build()
            .unwrap(),
        logs: LogExporter::builder().with_http().with_protocol(protocol).with_endpoint(url("logs")).build().unwrap(),
    }
}

/// Sends the same telemetry to the gateway and to the sink that tells what was sent.
fn send(through: Exporters, directly: Exporters) {
    let resource =
        Resource::builder().with_service_name("cart").with_attribute(KeyValue::new("team", "checkout")).build();
    let tracers = SdkTracerProvider::builder()
        .with_resource(resource.clone())
        .with_batch_exporter(through.spans)
        .with_batch_exporter(directly.spans)
        .build();
    let meters = SdkMeterProvider::builder()
        .with_resource(resource.clone())
        .with_reader(PeriodicReader::builder(Tee(through.metrics, directly.metrics)).build())
        .build();
    let loggers = SdkLoggerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(through.logs)
        .with_batch_exporter(directly.logs)
        .build();

    let tracer = tracers.tracer("checkout");
    for n in 0..100 {
        let mut span = tracer.span_builder(format!("step {n}")).with_kind(SpanKind::Server).start(&tracer);
        span.set_attribute(KeyValue::new("n", n));
        span.set_attribute(KeyValue::new("tags", Value::Array(Array::String(vec!["a".into(), "ü".into()]))));
        span.add_event("half way", vec![KeyValue::new("ratio", 0.5)]);
        span.set_status(Status::error("as asked"));
        span.end();
    }
    let meter = meters.meter("checkout");
    meter.u64_counter("requests").with_unit("{request}").build().add(7, &[KeyValue::new("route", "/cart")]);
    meter.f64_histogram("duration").with_unit("s").build().record(0.25, &[]);
    meter.i64_up_down_counter("queue").build().add(-3, &[]);
    let logger = loggers.logger("checkout");
    for n in 0..50 {
        let mut record = logger.create_log_record();
        record.set_severity_number(Severity::Warn);
        record.set_body(AnyValue::from(format!("message {n}")));
        record.add_attribute("n", n);
        logger.emit(record);
    }

    tracers.shutdown().unwrap();
    meters.shutdown().unwrap();
    loggers.shutdown().unwrap();
}

/// Scenario: the Rust SDK with its gRPC exporters, at the pod's gRPC port, the backend reached by gRPC.
/// Guarantees: every span, metric and log record arrives as it was sent; the resources say whose they are.
#[test]
fn everything_sent_over_grpc_arrives_as_it_was() {
    let station = Station::start(NODE, "{allow: [\"*\"], protocol: grpc, endpoint: \"http://SINK\"}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (through, directly) = runtime.block_on(async { (grpc(station.ports.grpc), grpc(station.sent.address())) });

    send(through, directly);

    assert_eq!(station.check(), [100, 3, 50]);
}

/// Scenario: the same with its HTTP/protobuf exporters, the backend reached by HTTP with gzip.
/// Guarantees: the same.
#[test]
fn everything_sent_over_http_arrives_as_it_was() {
    let station =
        Station::start(NODE, "{allow: [\"*\"], protocol: http, endpoint: \"http://SINK\", compression: gzip}");

    send(http(station.ports.http), http(station.sent.address()));

    assert_eq!(station.check(), [100, 3, 50]);
}

/// Scenario: both protocols at the port that is usually the other's; the backend takes zstd.
/// Guarantees: both ports speak both.
#[test]
fn either_port_speaks_either_protocol() {
    let station =
        Station::start(NODE, "{allow: [\"*\"], protocol: grpc, endpoint: \"http://SINK\", compression: zstd}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (through, directly) = runtime.block_on(async { (grpc(station.ports.http), grpc(station.sent.address())) });

    send(through, directly);
    send(http(station.ports.grpc), http(station.sent.address()));

    assert_eq!(station.check(), [200, 6, 100]);
}
