//! A tenant, its connections, and clients that speak exactly what they are told.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, metric};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use crate::base::Signal;
use crate::config::Policy;
use crate::intake::status::Status;
use crate::tenant::testing::{Bench, policy};
use crate::tenant::{Accepted, Handle, SocketKind};

/// One tenant on one worker.
pub(super) struct Pod {
    pub(super) bench: Bench,
    pub(super) handle: Arc<Handle>,
    clients: JoinSet<()>,
}

/// What came back.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) http: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
    pub(super) trailers: HeaderMap,
}

impl Pod {
    pub(super) fn new() -> Self {
        Self::with(policy())
    }

    pub(super) fn with(policy: Policy) -> Self {
        let bench = Bench::new(crate::intake::serve);
        let handle = bench.attach("shop/cart", policy);
        Self { bench, handle, clients: JoinSet::new() }
    }

    /// A connection that nobody speaks on yet.
    pub(super) fn connect(&self) -> TcpStream {
        let (client, accepted) = pair(&self.handle);
        self.handle.offer(accepted).expect("the inbox has room");
        client
    }

    pub(super) async fn grpc(&mut self) -> SendRequest<Bytes> {
        let (client, connection) = h2::client::handshake(self.connect()).await.expect("the handshake succeeds");
        self.clients.spawn(async move { drop(connection.await) });
        client
    }

    pub(super) async fn http1(&mut self) -> hyper::client::conn::http1::SendRequest<Full<Bytes>> {
        let io = hyper_util::rt::TokioIo::new(self.connect());
        let (client, connection) = hyper::client::conn::http1::handshake(io).await.expect("the handshake succeeds");
        self.clients.spawn(async move { drop(connection.await) });
        client
    }

    /// Items committed so far.
    pub(super) fn committed_items(&self) -> u32 {
        self.bench.log.committed().iter().map(|entry| entry.items).sum()
    }

    /// Closes the clients and waits until the gateway has closed as well.
    pub(super) async fn close(mut self) {
        self.clients.shutdown().await;
        self.handle.drain(tokio::time::Instant::now() + std::time::Duration::from_secs(20)).await;
        assert_eq!(self.handle.open(), 0, "a drained tenant has no connection");
        self.bench.registry.close();
        let snapshot = self.handle.snapshot();
        assert_eq!((snapshot.memory_used, self.bench.ledger.borrowed()), (0, 0), "the ledger returns to zero");
    }
}

/// A connection over a Unix socket, where a write returns when the peer can read it.
pub(super) fn pair_at_once(handle: &Arc<Handle>) -> (UnixStream, Accepted) {
    let (client, server) = std::os::unix::net::UnixStream::pair().unwrap();
    client.set_nonblocking(true).unwrap();
    let permit = handle.connection_permit().expect("the tenant takes connections");
    let accepted = Accepted { socket: OwnedFd::from(server), kind: SocketKind::Unix, permit };
    (UnixStream::from_std(client).unwrap(), accepted)
}

/// A connection and its permit, as lifecycle makes them.
pub(super) fn pair(handle: &Arc<Handle>) -> (TcpStream, Accepted) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has ports");
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    server.set_nodelay(true).unwrap();
    client.set_nodelay(true).unwrap();
    client.set_nonblocking(true).unwrap();
    let permit = handle.connection_permit().expect("the tenant takes connections");
    let accepted = Accepted { socket: OwnedFd::from(server), kind: SocketKind::Tcp, permit };
    (TcpStream::from_std(client).unwrap(), accepted)
}

impl Answer {
    /// `grpc-status`, from the trailers or from a head that is everything.
    pub(super) fn grpc_status(&self) -> i32 {
        let status = self.trailers.get("grpc-status").or_else(|| self.headers.get("grpc-status"));
        status.expect("every gRPC reply has a status").to_str().unwrap().parse().unwrap()
    }

    /// `google.rpc.Status`, from the details of gRPC or the body of HTTP.
    pub(super) fn status(&self) -> Status {
        use base64::Engine;
        match self.headers.get("grpc-status-details-bin") {
            Some(details) => {
                let bytes = base64::engine::general_purpose::STANDARD_NO_PAD.decode(details).expect("no padding");
                Status::decode(&bytes[..]).unwrap()
            }
            None => Status::decode(self.body.clone()).expect("the body is a Status"),
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The names of the details, without their prefix.
    pub(super) fn details(&self) -> Vec<String> {
        self.status().details.iter().map(|any| any.type_url.rsplit('.').next().unwrap().to_owned()).collect()
    }
}

/// Sends a request over HTTP/2 in pieces of 16 KiB and reads the whole answer.
pub(super) async fn send(client: &SendRequest<Bytes>, request: Request<()>, body: &[u8]) -> Answer {
    let mut client = client.clone().ready().await.expect("the connection is open");
    let (response, mut stream) = client.send_request(request, false).unwrap();
    let sent = async {
        for piece in body.chunks(16 << 10) {
            stream.reserve_capacity(piece.len());
            let mut piece = Bytes::copy_from_slice(piece);
            while !piece.is_empty() {
                let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { return };
                let _ = stream.send_data(piece.split_to(room.min(piece.len())), false);
            }
        }
        let _ = stream.send_data(Bytes::new(), true);
    };
    let (response, ()) = tokio::join!(response, sent);
    let (head, mut body) = response.expect("every request has an answer").into_parts();
    let mut bytes = BytesMut::new();
    while let Some(piece) = body.data().await {
        let piece = piece.unwrap();
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
    }
    let trailers = body.trailers().await.unwrap().unwrap_or_default();
    Answer { http: head.status.as_u16(), headers: head.headers, body: bytes.freeze(), trailers }
}

/// An Export call with one message.
pub(super) async fn call(client: &SendRequest<Bytes>, signal: Signal, encoding: &str, message: &[u8]) -> Answer {
    let flag = u8::from(encoding != "identity");
    send(client, grpc_head(signal.grpc_path(), encoding), &framed(flag, message)).await
}

pub(super) fn grpc_head(path: &str, encoding: &str) -> Request<()> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://gateway{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", encoding)
        .body(())
        .unwrap()
}

pub(super) fn framed(flag: u8, message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + 5);
    out.put_u8(flag);
    out.put_u32(u32::try_from(message.len()).unwrap());
    out.put_slice(message);
    out.freeze()
}

/// The head of an OTLP/HTTP request.
pub(super) fn http_head(path: &str, encoding: Option<&str>) -> Request<()> {
    let mut head = Request::builder()
        .method(Method::POST)
        .uri(format!("http://gateway{path}"))
        .header("content-type", "application/x-protobuf");
    if let Some(encoding) = encoding {
        head = head.header("content-encoding", encoding);
    }
    head.body(()).unwrap()
}

/// Sends a request over HTTP/1.1.
pub(super) async fn post(
    client: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    head: Request<()>,
    body: &[u8],
) -> Answer {
    client.ready().await.expect("the connection is open");
    let (mut head, ()) = head.into_parts();
    head.uri = head.uri.path().parse().unwrap();
    head.headers.insert("host", "gateway".parse().unwrap());
    let request = Request::from_parts(head, Full::new(Bytes::copy_from_slice(body)));
    let response: Response<hyper::body::Incoming> =
        client.send_request(request).await.expect("every request has an answer");
    let (head, body) = response.into_parts();
    let body = body.collect().await.expect("the body is whole").to_bytes();
    Answer { http: head.status.as_u16(), headers: head.headers, body, trailers: HeaderMap::new() }
}

/// A valid request with `items` items, the name of each `size` bytes long.
pub(super) fn message(signal: Signal, items: usize, size: usize) -> Vec<u8> {
    let name = "x".repeat(size);
    match signal {
        Signal::Traces => {
            let span = Span { trace_id: vec![1; 16], span_id: vec![2; 8], name, ..Default::default() };
            let scope = ScopeSpans { spans: vec![span; items], ..Default::default() };
            let resource = ResourceSpans { scope_spans: vec![scope], ..Default::default() };
            ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec()
        }
        Signal::Metrics => {
            let data_points = vec![NumberDataPoint::default(); items];
            let metric = Metric { name, data: Some(metric::Data::Gauge(Gauge { data_points })), ..Default::default() };
            let scope = ScopeMetrics { metrics: vec![metric], ..Default::default() };
            let resource = ResourceMetrics { scope_metrics: vec![scope], ..Default::default() };
            ExportMetricsServiceRequest { resource_metrics: vec![resource] }.encode_to_vec()
        }
        Signal::Logs => {
            let record = LogRecord { severity_text: name, ..Default::default() };
            let scope = ScopeLogs { log_records: vec![record; items], ..Default::default() };
            let resource = ResourceLogs { scope_logs: vec![scope], ..Default::default() };
            ExportLogsServiceRequest { resource_logs: vec![resource] }.encode_to_vec()
        }
    }
}

/// The same, compressed.
pub(super) fn compressed(encoding: &str, message: &[u8]) -> Vec<u8> {
    use std::io::Write;
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(message).unwrap();
            encoder.finish().unwrap()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(message).unwrap();
            encoder.finish().unwrap()
        }
        "zstd" => zstd::bulk::compress(message, 1).unwrap(),
        _ => message.to_vec(),
    }
}
