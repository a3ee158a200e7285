"""Sends the same telemetry to two places with OpenTelemetry's Python SDK: all signals, over gRPC and over HTTP.

usage: send.py THROUGH_GRPC THROUGH_HTTP DIRECTLY    (host:port each)
"""

import logging
import sys

from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogs
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogs
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind


class Tee(MetricExporter):
    """Gives one collection to both exporters, so that even the timestamps are the same."""

    def __init__(self, exporters):
        super().__init__()
        self._exporters = exporters

    def export(self, metrics_data, timeout_millis=10_000, **kwargs):
        results = [exporter.export(metrics_data, timeout_millis) for exporter in self._exporters]
        good = all(result is MetricExportResult.SUCCESS for result in results)
        return MetricExportResult.SUCCESS if good else MetricExportResult.FAILURE

    def force_flush(self, timeout_millis=10_000):
        return all(exporter.force_flush(timeout_millis) for exporter in self._exporters)

    def shutdown(self, timeout_millis=30_000, **kwargs):
        for exporter in self._exporters:
            exporter.shutdown()


def send(service, spans, metrics, logs):
    resource = Resource.create({"service.name": service, "team": "checkout"})
    tracers, loggers = TracerProvider(resource=resource), LoggerProvider(resource=resource)
    for exporter in spans:
        tracers.add_span_processor(BatchSpanProcessor(exporter))
    for exporter in logs:
        loggers.add_log_record_processor(BatchLogRecordProcessor(exporter))
    meters = MeterProvider(resource=resource, metric_readers=[PeriodicExportingMetricReader(Tee(metrics))])

    tracer = tracers.get_tracer("checkout")
    for n in range(100):
        with tracer.start_as_current_span(f"step {n}", kind=SpanKind.SERVER) as span:
            span.set_attribute("n", n)
            span.set_attribute("tags", ["a", "ü"])
            span.add_event("half way", {"ratio": 0.5})
    meter = meters.get_meter("checkout")
    meter.create_counter("requests", unit="{request}").add(7, {"route": "/cart"})
    meter.create_histogram("duration", unit="s").record(0.25)
    logger = logging.getLogger(service)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(LoggingHandler(logger_provider=loggers))
    for n in range(50):
        logger.warning("message %d", n)

    tracers.shutdown()
    meters.shutdown()
    loggers.shutdown()


def main():
    through_grpc, through_http, directly = sys.argv[1:]
    grpc = [f"http://{through_grpc}", f"http://{directly}"]
    send(
        "python-grpc",
        [GrpcSpans(endpoint=url, insecure=True) for url in grpc],
        [GrpcMetrics(endpoint=url, insecure=True) for url in grpc],
        [GrpcLogs(endpoint=url, insecure=True) for url in grpc],
    )
    http = [f"http://{through_http}", f"http://{directly}"]
    send(
        "python-http",
        [HttpSpans(endpoint=f"{url}/v1/traces") for url in http],
        [HttpMetrics(endpoint=f"{url}/v1/metrics") for url in http],
        [HttpLogs(endpoint=f"{url}/v1/logs") for url in http],
    )


if __name__ == "__main__":
    main()
