//! OTLP/gRPC over raw HTTP/2: one prepared request after the other, nothing decoded but the status.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// The path of the trace service's Export.
pub const TRACES: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The same of the metrics service.
pub const METRICS: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";

/// The same of the logs service.
pub const LOGS: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// The type of the detail that says when to try again.
const RETRY_INFO: &[u8] = b"type.googleapis.com/google.rpc.RetryInfo";

/// One HTTP/2 connection. Its driver ends with it.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Bytes>,
    _driver: JoinSet<()>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// `grpc-status`.
    pub status: u32,
    /// `grpc-message`.
    pub message: String,
    /// `grpc-status-details-bin` as it was sent, in base64: a serialised `google.rpc.Status`.
    pub details: String,
}

impl Connection {
    /// Connects with large windows, so that the client's flow control is never the limit.
    pub async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
        Self::over(stream).await
    }

    /// The same over a connection that exists.
    pub async fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(8 << 20)
            .initial_connection_window_size(64 << 20)
            .handshake(stream)
            .await?;
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            // The request that was in flight reports the error.
            drop(connection.await);
        });
        Ok(Self { sender, _driver: driver })
    }

    /// Sends one message, as framed by [`frame`], and waits for its status.
    pub async fn export(&self, path: &str, framed: Bytes) -> Result<Reply> {
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut body) = sender.send_request(request, false)?;
        // At once, for h2 to hold until the window allows it: head and body leave in one write, and a peer wakes once for both.
        body.send_data(framed, true)?;
        let response = response.await?;
        if let Some(reply) = Reply::read(response.headers()) {
            return Ok(reply);
        }
        let mut answer = response.into_body();
        while let Some(chunk) = answer.data().await {
            let chunk = chunk?;
            answer.flow_control().release_capacity(chunk.len())?;
        }
        let trailers = answer.trailers().await?.context("the response has no trailers")?;
        Reply::read(&trailers).context("the trailers have no grpc-status")
    }
}

impl Reply {
    /// Whether it says when to try again (`google.rpc.RetryInfo`).
    pub fn has_retry_info(&self) -> bool {
        let status = STANDARD_NO_PAD.decode(self.details.trim_end_matches('=')).unwrap_or_default();
        status.windows(RETRY_INFO.len()).any(|window| window == RETRY_INFO)
    }

    fn read(headers: &HeaderMap) -> Option<Self> {
        let status = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        Some(Self { status, message: text("grpc-message"), details: text("grpc-status-details-bin") })
    }
}

/// A gRPC message: no compression, length, bytes.
pub fn frame(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(5 + message.len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).expect("a test message is under 4 GiB"));
    out.extend_from_slice(message);
    out.freeze()
}

/// A closed loop: `connections` x `in_flight` requests at any time.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Where to.
    pub address: SocketAddr,
    /// HTTP/2 connections.
    pub connections: usize,
    /// Requests in flight on each.
    pub in_flight: usize,
    /// For how long.
    pub duration: Duration,
}

/// What a closed loop did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Requests answered with OK.
    pub accepted: u64,
    /// Requests answered with another status.
    pub refused: u64,
    /// Latency of each accepted request, in microseconds.
    pub latencies_us: Vec<u32>,
}

/// Sends the same framed message over and over.
pub async fn closed_loop(shape: Shape, path: &'static str, framed: Bytes) -> Result<Outcome> {
    let mut tasks = JoinSet::new();
    let end = Instant::now() + shape.duration;
    for _ in 0..shape.connections {
        let connection = std::sync::Arc::new(Connection::open(shape.address).await?);
        for _ in 0..shape.in_flight {
            let (connection, framed) = (connection.clone(), framed.clone());
            tasks.spawn(async move { one_by_one(&connection, path, &framed, end).await });
        }
    }
    let mut total = Outcome::default();
    while let Some(outcome) = tasks.join_next().await {
        let outcome = outcome??;
        total.accepted += outcome.accepted;
        total.refused += outcome.refused;
        total.latencies_us.extend(outcome.latencies_us);
    }
    total.latencies_us.sort_unstable();
    Ok(total)
}

async fn one_by_one(connection: &Connection, path: &str, framed: &Bytes, end: Instant) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    loop {
        let started = Instant::now();
        if started >= end {
            return Ok(outcome);
        }
        match connection.export(path, framed.clone()).await?.status {
            0 => outcome.accepted += 1,
            _ => outcome.refused += 1,
        }
        outcome.latencies_us.push(u32::try_from(started.elapsed().as_micros()).unwrap_or(u32::MAX));
    }
}

impl Outcome {
    /// The latency below which `share` (0 to 1) of the requests stayed, in microseconds.
    pub fn percentile_us(&self, share: f64) -> u32 {
        let last = self.latencies_us.len().saturating_sub(1);
        // Truncation is the nearest-rank rule; the share is at most 1.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank between 0 and last")]
        let rank = (last as f64 * share.clamp(0.0, 1.0)) as usize;
        self.latencies_us.get(rank).copied().unwrap_or(0)
    }
}
