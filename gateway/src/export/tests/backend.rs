//! Backends that do what a test tells them: OTLP/gRPC over h2 and OTLP/HTTP over hyper, on loopback, with or without TLS.
//!
//! Each runs on a thread of its own and ends when it is dropped. Nothing here waits for time to pass: tests wait for
//! what has arrived.

use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};

use crate::export::status::answers;

/// Longer than any test takes, so that a hang ends with words.
const PATIENCE: Duration = Duration::from_secs(120);

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    /// The bodies of its log records, in order.
    pub(crate) items: Vec<String>,
    /// Of the message, after decompression.
    pub(crate) bytes: usize,
    pub(crate) headers: HeaderMap,
    /// Which connection, counted from one.
    pub(crate) connection: usize,
    /// Whether it was answered with success.
    pub(crate) accepted: bool,
}

/// What a backend does with a request.
#[derive(Debug, Clone)]
pub(crate) enum Say {
    Ok,
    Partial(i64),
    /// gRPC code, and RetryInfo.
    Status(u16, Option<Duration>),
    /// HTTP status, and Retry-After.
    Http(u16, Option<&'static str>),
    /// Reset the stream (gRPC) or cut the connection (HTTP).
    Reset,
    /// Answer with success and say GOAWAY.
    GoAway,
    /// No answer before the backend is told to do something else; then UNAVAILABLE or 503.
    Hang,
}

type Mind = Box<dyn FnMut(&Request) -> Say + Send>;

struct State {
    requests: Vec<Request>,
    connections: usize,
    mind: Mind,
    /// Closed when it is told to do something else.
    changed: Arc<Semaphore>,
}

/// A running backend.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    shared: Arc<(Mutex<State>, Condvar)>,
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Clone)]
enum Kind {
    Grpc,
    Http,
}

impl Backend {
    pub(crate) fn grpc(mind: impl FnMut(&Request) -> Say + Send + 'static) -> Self {
        Self::start(Kind::Grpc, None, Box::new(mind))
    }

    pub(crate) fn http(mind: impl FnMut(&Request) -> Say + Send + 'static) -> Self {
        Self::start(Kind::Http, None, Box::new(mind))
    }

    pub(crate) fn grpc_tls(tls: rustls::ServerConfig, mind: impl FnMut(&Request) -> Say + Send + 'static) -> Self {
        Self::start(Kind::Grpc, Some(Arc::new(tls)), Box::new(mind))
    }

    pub(crate) fn http_tls(tls: rustls::ServerConfig, mind: impl FnMut(&Request) -> Say + Send + 'static) -> Self {
        Self::start(Kind::Http, Some(Arc::new(tls)), Box::new(mind))
    }

    fn start(kind: Kind, tls: Option<Arc<rustls::ServerConfig>>, mind: Mind) -> Self {
        let state = State { requests: Vec::new(), connections: 0, mind, changed: Arc::new(Semaphore::new(0)) };
        let shared = Arc::new((Mutex::new(state), Condvar::new()));
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (bound, address) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn({
            let shared = shared.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
                let serve = async {
                    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                    bound.send(listener.local_addr().expect("bound")).expect("the test waits");
                    let mut connections = JoinSet::new();
                    tokio::select! {
                        () = accept(&listener, &kind, tls.as_ref(), &shared, &mut connections) => {}
                        _ = stopped => {}
                    }
                };
                LocalSet::new().block_on(&runtime, serve);
            }
        });
        let address = address.recv().expect("it starts");
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// Changes what it does from now on.
    pub(crate) fn now(&self, mind: impl FnMut(&Request) -> Say + Send + 'static) {
        let mut state = self.shared.0.lock().expect("no panic");
        state.mind = Box::new(mind);
        std::mem::replace(&mut state.changed, Arc::new(Semaphore::new(0))).close();
    }

    /// Waits until the requests so far satisfy the test, and returns them.
    pub(crate) fn wait(&self, enough: impl Fn(&[Request]) -> bool) -> Vec<Request> {
        let (state, arrived) = (&self.shared.0, &self.shared.1);
        let state = state.lock().expect("no panic in a backend");
        let (state, timeout) =
            arrived.wait_timeout_while(state, PATIENCE, |state| !enough(&state.requests)).expect("no panic");
        assert!(!timeout.timed_out(), "never arrived; so far: {:?}", summary(&state.requests));
        state.requests.clone()
    }

    /// Waits for so many accepted items.
    pub(crate) fn wait_for(&self, count: usize) -> Vec<String> {
        items(&self.wait(|requests| items(requests).len() >= count))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the backend panicked");
        }
    }
}

/// The items of accepted requests, sorted.
pub(crate) fn items(requests: &[Request]) -> Vec<String> {
    let accepted = requests.iter().filter(|request| request.accepted);
    let mut items: Vec<_> = accepted.flat_map(|request| request.items.iter().cloned()).collect();
    items.sort();
    items
}

/// A request of log records with these bodies.
pub(crate) fn logs<'a>(bodies: impl IntoIterator<Item = &'a str>) -> (Bytes, u32) {
    let record = |body: &str| LogRecord {
        body: Some(AnyValue { value: Some(Value::StringValue(body.to_owned())) }),
        ..LogRecord::default()
    };
    let log_records: Vec<_> = bodies.into_iter().map(record).collect();
    let count = u32::try_from(log_records.len()).expect("few");
    let scope_logs = vec![ScopeLogs { log_records, ..ScopeLogs::default() }];
    let resource_logs = vec![ResourceLogs { scope_logs, ..ResourceLogs::default() }];
    (ExportLogsServiceRequest { resource_logs }.encode_to_vec().into(), count)
}

fn bodies(message: &[u8]) -> Vec<String> {
    let request = ExportLogsServiceRequest::decode(message).expect("a valid OTLP message");
    let records = request.resource_logs.into_iter().flat_map(|r| r.scope_logs).flat_map(|s| s.log_records);
    let texts = records.filter_map(|record| match record.body?.value? {
        Value::StringValue(text) => Some(text),
        _ => None,
    });
    texts.collect()
}

fn summary(requests: &[Request]) -> Vec<(usize, bool)> {
    requests.iter().map(|request| (request.items.len(), request.accepted)).collect()
}

async fn accept(
    listener: &TcpListener,
    kind: &Kind,
    tls: Option<&Arc<rustls::ServerConfig>>,
    shared: &Arc<(Mutex<State>, Condvar)>,
    connections: &mut JoinSet<()>,
) {
    while let Ok((tcp, _)) = listener.accept().await {
        let number = {
            let mut state = shared.0.lock().expect("no panic");
            state.connections += 1;
            state.connections
        };
        let (kind, tls, shared) = (kind.clone(), tls.cloned(), shared.clone());
        connections.spawn_local(async move {
            match tls {
                None => serve((kind, false), tcp, number, shared).await,
                Some(tls) => {
                    // A client that does not trust us ends here.
                    let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(tcp).await else { return };
                    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    serve((kind, http2), stream, number, shared).await;
                }
            }
        });
    }
}

async fn serve<T: AsyncRead + AsyncWrite + Unpin + 'static>(
    (kind, http2): (Kind, bool),
    io: T,
    connection: usize,
    shared: Arc<(Mutex<State>, Condvar)>,
) {
    match kind {
        Kind::Grpc => serve_h2(io, connection, shared).await,
        // As ALPN says: OTLP/HTTP comes over either.
        Kind::Http if http2 => serve_h2(io, connection, shared).await,
        Kind::Http => {
            let service = hyper::service::service_fn(move |request| answer_http(request, connection, shared.clone()));
            // Its error is the client's going away, or the reset that the test asked for.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(hyper_util::rt::TokioIo::new(io), service)
                .await;
        }
    }
}

fn decide(
    shared: &(Mutex<State>, Condvar),
    message: &[u8],
    headers: HeaderMap,
    connection: usize,
) -> (Say, Arc<Semaphore>) {
    let mut state = shared.0.lock().expect("no panic");
    let mut request = Request { items: bodies(message), bytes: message.len(), headers, connection, accepted: false };
    let say = (state.mind)(&request);
    request.accepted = matches!(say, Say::Ok | Say::Partial(_) | Say::GoAway);
    state.requests.push(request);
    shared.1.notify_all();
    (say, state.changed.clone())
}

/// What is to be said, when it is to be said.
async fn settled((say, changed): (Say, Arc<Semaphore>)) -> Say {
    let Say::Hang = say else { return say };
    // It has no permits: this ends when it is closed.
    assert!(changed.acquire().await.is_err());
    Say::Status(14, None)
}

async fn serve_h2<T: AsyncRead + AsyncWrite + Unpin + 'static>(
    io: T,
    connection: usize,
    shared: Arc<(Mutex<State>, Condvar)>,
) {
    let Ok(mut h2) = h2::server::handshake(io).await else { return };
    let mut requests: JoinSet<bool> = JoinSet::new();
    loop {
        tokio::select! {
            accepted = h2.accept() => {
                let Some(Ok((request, respond))) = accepted else { return };
                let shared = shared.clone();
                if request.uri().path().ends_with("/Export") {
                    requests.spawn_local(answer_grpc(request, respond, connection, shared));
                } else {
                    requests.spawn_local(answer_http2(request, respond, connection, shared));
                }
            }
            Some(done) = requests.join_next() => {
                if done.expect("no panic while answering") {
                    h2.graceful_shutdown();
                }
            }
        }
    }
}

async fn answer_grpc(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    connection: usize,
    shared: Arc<(Mutex<State>, Condvar)>,
) -> bool {
    let (head, mut stream) = request.into_parts();
    let mut body = BytesMut::new();
    while let Some(piece) = stream.data().await {
        let Ok(piece) = piece else { return false };
        stream.flow_control().release_capacity(piece.len()).expect("just received");
        body.extend_from_slice(&piece);
    }
    let length = u32::from_be_bytes(body[1..5].try_into().expect("four bytes"));
    assert_eq!(length as usize, body.len() - 5, "one message of the length that it says");
    let message = decompressed(&head.headers, "grpc-encoding", &body[5..], body[0] == 1);
    let say = settled(decide(&shared, &message, head.headers, connection)).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let mut answer = Bytes::from_static(&[0; 5]);
    match &say {
        Say::Ok | Say::GoAway => {}
        Say::Partial(rejected) => {
            let message = answers::partial(*rejected, "some were bad");
            let length = u32::try_from(message.len()).expect("short").to_be_bytes();
            answer = [&[0], &length[..], &message].concat().into();
        }
        Say::Status(code, delay) => {
            let status = answers::status(i32::from(*code), "as the test says", *delay);
            let status = base64::Engine::encode(&base64::engine::general_purpose::STANDARD_NO_PAD, status);
            trailers.insert("grpc-status", HeaderValue::from(*code));
            trailers.insert("grpc-message", HeaderValue::from_static("as%20the%20test%20says"));
            trailers.insert("grpc-status-details-bin", HeaderValue::from_str(&status).expect("base64"));
        }
        Say::Http(status, _) => {
            let response = Response::builder().status(*status).body(()).expect("valid");
            respond.send_response(response, true).expect("the stream is open");
            return false;
        }
        Say::Reset => {
            respond.send_reset(h2::Reason::INTERNAL_ERROR);
            return false;
        }
        Say::Hang => unreachable!("it has been waited for"),
    }
    let response = Response::builder().header("content-type", "application/grpc").body(()).expect("valid");
    // The client may have given up meanwhile.
    if let Ok(mut stream) = respond.send_response(response, false) {
        let _ = stream.send_data(answer, false);
        let _ = stream.send_trailers(trailers);
    }
    matches!(say, Say::GoAway)
}

/// OTLP/HTTP over HTTP/2: always what `Say::Ok` means.
async fn answer_http2(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    connection: usize,
    shared: Arc<(Mutex<State>, Condvar)>,
) -> bool {
    let (head, mut stream) = request.into_parts();
    assert_eq!((head.uri.path(), head.headers.contains_key("host")), ("/v1/logs", false));
    let mut body = BytesMut::new();
    while let Some(Ok(piece)) = stream.data().await {
        stream.flow_control().release_capacity(piece.len()).expect("just received");
        body.extend_from_slice(&piece);
    }
    let (say, _) = decide(&shared, &body, head.headers, connection);
    assert!(matches!(say, Say::Ok));
    respond.send_response(Response::new(()), true).expect("the stream is open");
    false
}

async fn answer_http(
    request: http::Request<hyper::body::Incoming>,
    connection: usize,
    shared: Arc<(Mutex<State>, Condvar)>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (head, body) = request.into_parts();
    assert_eq!(head.uri.path(), "/v1/logs");
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    let encoded = head.headers.contains_key("content-encoding");
    let message = decompressed(&head.headers, "content-encoding", &body, encoded);
    let mut response = Response::new(Full::default());
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/x-protobuf"));
    match settled(decide(&shared, &message, head.headers, connection)).await {
        Say::Ok | Say::GoAway => {}
        Say::Partial(rejected) => *response.body_mut() = Full::from(answers::partial(rejected, "some were bad")),
        Say::Status(code, _) => {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            *response.body_mut() = Full::from(answers::status(i32::from(code), "as the test says", None));
        }
        Say::Http(status, after) => {
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            after.map(|after| response.headers_mut().insert("retry-after", HeaderValue::from_static(after)));
        }
        Say::Reset => return Err(std::io::Error::other("as the test says")),
        Say::Hang => unreachable!("it has been waited for"),
    }
    Ok(response)
}

fn decompressed(headers: &HeaderMap, name: &str, bytes: &[u8], compressed: bool) -> Vec<u8> {
    if !compressed {
        return bytes.to_vec();
    }
    let mut out = Vec::new();
    let read = match headers.get(name).map(HeaderValue::as_bytes) {
        Some(b"gzip") => std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut out),
        Some(b"zstd") => {
            let mut decoder = zstd::stream::read::Decoder::new(bytes).expect("a decoder");
            std::io::Read::read_to_end(&mut decoder, &mut out)
        }
        other => panic!("compressed with {other:?}"),
    };
    read.expect("valid compression");
    out
}

/// A TLS server with a certificate for `localhost`, and the PEM of who signed it.
pub(crate) fn tls(alpn: &[&str]) -> (rustls::ServerConfig, String) {
    let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let pem = signed.cert.pem();
    let key = rustls_pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .expect("a pair");
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    (config, pem)
}
