//! The batch: an immutable run of OTLP bytes of one signal and one tenant, with its counts and its budget guard.

use bytes::Bytes;

use super::id::TenantId;
use super::ledger::Guard;

/// The three stable signals of OTLP. The number is the one on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Signal {
    /// `ExportTraceServiceRequest`; items are spans.
    Traces = 1,
    /// `ExportMetricsServiceRequest`; items are data points.
    Metrics = 2,
    /// `ExportLogsServiceRequest`; items are log records.
    Logs = 3,
}

impl Signal {
    /// All of them, in the order of their numbers; `signal.index()` is the position in it.
    pub const ALL: [Self; 3] = [Self::Traces, Self::Metrics, Self::Logs];

    /// 0, 1 or 2.
    pub fn index(self) -> usize {
        self as usize - 1
    }

    /// The signal of a number read from disk.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| *signal as u8 == number)
    }

    /// `traces`, `metrics`, `logs`: as in configuration, URLs and metrics.
    pub fn name(self) -> &'static str {
        ["traces", "metrics", "logs"][self.index()]
    }

    /// `spans`, `metric_points`, `log_records`: the Collector's word for the items, as in its metric names.
    pub fn items_name(self) -> &'static str {
        ["spans", "metric_points", "log_records"][self.index()]
    }

    /// The gRPC path of the signal's Export method.
    pub fn grpc_path(self) -> &'static str {
        [
            "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        ][self.index()]
    }

    /// The default HTTP path.
    pub fn http_path(self) -> &'static str {
        ["/v1/traces", "/v1/metrics", "/v1/logs"][self.index()]
    }
}

/// What an acknowledgement survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AckPolicy {
    /// After the group commit's fdatasync: survives power loss and kill -9.
    Durable,
    /// Written, not synced: survives kill -9.
    Buffered,
    /// Accepted: survives neither. Goes to the log only when undelivered after a second or over its budget.
    Memory,
}

/// A run of OTLP bytes on its way. Validated, enriched, at most [`Batch::PAYLOAD_BYTES_MAX`] long.
#[derive(Debug)]
pub struct Batch {
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is.
    pub signal: Signal,
    /// Spans, data points or log records in it.
    pub items: u32,
    /// When it was received, in milliseconds since the Unix epoch. For people and ages, never for order.
    pub received_unix_ms: u64,
    /// A serialised `Export*ServiceRequest`: concatenating two of them gives a valid third.
    pub payload: Bytes,
    /// The intake memory it holds; ends at commit.
    pub guard: Option<Guard>,
}

impl Batch {
    /// The largest payload of one record of the log. Larger requests are split at item level before they are appended.
    pub const PAYLOAD_BYTES_MAX: usize = 4 * 1024 * 1024;
}
