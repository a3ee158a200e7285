//! A pod's connections: gRPC or HTTP/1.1, kept or opened for each request.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail};
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::{Compression, Protocol, Target, Transport};
use crate::identity::Signal;
use crate::item::messages;
use crate::wire::{Fields, Value};

/// How a request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// All of it was accepted.
    Accepted,
    /// gRPC's or HTTP's status of a refusal.
    Refused(u32),
    /// Accepted but for some items.
    Partly,
}

/// One pod's.
pub(super) struct Link {
    target: Rc<dyn Target>,
    pod: usize,
    transport: Transport,
    /// gRPC: shared by the requests, in turn.
    streams: Vec<Mutex<Option<Http2>>>,
    turn: Cell<usize>,
    /// HTTP/1.1: those that nobody uses now.
    idle: RefCell<Vec<Http1>>,
    uris: [Uri; 3],
    opened: Cell<u64>,
}

struct Http2 {
    sender: SendRequest<Bytes>,
    number: u64,
    _driver: JoinSet<()>,
}

struct Http1 {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    _driver: JoinSet<()>,
}

impl Link {
    pub(super) fn new(target: Rc<dyn Target>, pod: usize, transport: Transport) -> Result<Self> {
        let uri = |signal: Signal| match transport.protocol {
            Protocol::Grpc => format!("http://localhost{}", signal.grpc_path()).parse(),
            // HTTP/1.1 has a path in its request line.
            Protocol::Http => signal.http_path().parse(),
        };
        let uris = [uri(Signal::Traces)?, uri(Signal::Metrics)?, uri(Signal::Logs)?];
        let streams = (0..transport.connections.max(1)).map(|_| Mutex::new(None)).collect();
        let (turn, opened) = (Cell::new(0), Cell::new(0));
        Ok(Self { target, pod, transport, streams, turn, idle: RefCell::default(), uris, opened })
    }

    /// Connections opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.opened.get()
    }

    /// Sends a body that is compressed and framed already.
    pub(super) async fn send(&self, signal: Signal, body: Bytes) -> Result<Answer> {
        match self.transport.protocol {
            Protocol::Grpc => self.grpc(signal, body).await,
            Protocol::Http => self.http(signal, body).await,
        }
    }

    async fn connect(&self) -> Result<TcpStream> {
        self.opened.set(self.opened.get() + 1);
        let (socket, address) = self.target.socket(self.pod)?;
        let stream = socket.connect(address).await.with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn open_http2(&self) -> Result<Http2> {
        let stream = self.connect().await?;
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(stream)
            .await?;
        let mut driver = JoinSet::new();
        // The requests that are in flight report its error.
        driver.spawn_local(async move { drop(connection.await) });
        Ok(Http2 { sender, number: self.opened.get(), _driver: driver })
    }

    async fn grpc(&self, signal: Signal, body: Bytes) -> Result<Answer> {
        let request = Request::post(self.uris[signal.index()].clone())
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = match self.transport.compression.name() {
            None => request.body(())?,
            Some(name) => request.header("grpc-encoding", name).body(())?,
        };
        if !self.transport.keep {
            let connection = self.open_http2().await?;
            return call(connection.sender.clone(), request, body).await;
        }
        let turn = self.turn.get();
        self.turn.set((turn + 1) % self.streams.len());
        let slot = &self.streams[turn];
        let (sender, number) = {
            let mut slot = slot.lock().await;
            let connection = match slot.take() {
                Some(connection) => connection,
                None => self.open_http2().await?,
            };
            let used = (connection.sender.clone(), connection.number);
            *slot = Some(connection);
            used
        };
        let answer = call(sender, request, body).await;
        if answer.is_err() {
            let mut slot = slot.lock().await;
            if slot.as_ref().is_some_and(|connection| connection.number == number) {
                *slot = None;
            }
        }
        answer
    }

    async fn http(&self, signal: Signal, body: Bytes) -> Result<Answer> {
        let kept = self.idle.borrow_mut().pop().filter(|connection| !connection.sender.is_closed());
        let mut connection = match kept {
            Some(connection) => connection,
            None => {
                let (sender, driver) =
                    hyper::client::conn::http1::handshake(TokioIo::new(self.connect().await?)).await?;
                let mut drivers = JoinSet::new();
                drivers.spawn_local(async move { drop(driver.await) });
                Http1 { sender, _driver: drivers }
            }
        };
        let mut request = Request::post(self.uris[signal.index()].clone())
            .header("host", "localhost:4318")
            .header("content-type", "application/x-protobuf");
        if let Some(name) = self.transport.compression.name() {
            request = request.header("content-encoding", name);
        }
        if !self.transport.keep {
            request = request.header("connection", "close");
        }
        let response = connection.sender.send_request(request.body(Full::new(body))?).await?;
        let status = response.status().as_u16();
        let answer = response.into_body().collect().await?.to_bytes();
        if self.transport.keep && connection.sender.ready().await.is_ok() {
            self.idle.borrow_mut().push(connection);
        }
        Ok(match status {
            200 if rejects_some(&answer) => Answer::Partly,
            200 => Answer::Accepted,
            status => Answer::Refused(status.into()),
        })
    }
}

async fn call(sender: SendRequest<Bytes>, request: Request<()>, body: Bytes) -> Result<Answer> {
    let (response, mut stream) = sender.ready().await?.send_request(request, false)?;
    // Without waiting for capacity: headers and body leave in one write. What waits for a window is bounded by the requests
    // that may be under way.
    stream.send_data(body, true)?;
    let response = response.await?;
    if let Some(status) = grpc_status(response.headers()) {
        return Ok(if status == 0 { Answer::Accepted } else { Answer::Refused(status) });
    }
    let mut answer = response.into_body();
    let mut message = BytesMut::new();
    while let Some(chunk) = answer.data().await {
        let chunk = chunk?;
        answer.flow_control().release_capacity(chunk.len())?;
        message.extend_from_slice(&chunk);
    }
    let trailers = answer.trailers().await?.context("the response has no trailers")?;
    match grpc_status(&trailers).context("the trailers have no grpc-status")? {
        0 if message.len() > 5 && rejects_some(&message[5..]) => Ok(Answer::Partly),
        0 => Ok(Answer::Accepted),
        status => Ok(Answer::Refused(status)),
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<u32> {
    headers.get("grpc-status")?.to_str().ok()?.parse().ok()
}

/// Whether an Export*ServiceResponse says that items were rejected: partial_success 1, rejected 1.
fn rejects_some(response: &[u8]) -> bool {
    messages(response, 1).map_while(Result::ok).any(|(partial, _)| {
        Fields::of(partial).map_while(Result::ok).any(|field| field.number == 1 && field.value != Value::Varint(0))
    })
}

impl Compression {
    fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }
}

/// The body of a request: compressed as told, and framed for gRPC.
pub(super) fn body(message: Vec<u8>, transport: Transport) -> Result<Bytes> {
    let prefix = match transport.protocol {
        Protocol::Grpc => 5,
        Protocol::Http => 0,
    };
    // Without compression the prefix is already in front of the message: see `Generator::prepare`.
    let mut out = match transport.compression {
        Compression::None => message,
        Compression::Gzip => {
            let out = vec![0; prefix];
            let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(6));
            io::Write::write_all(&mut encoder, &message[prefix..])?;
            encoder.finish()?
        }
        Compression::Zstd => {
            let mut encoder = zstd::stream::write::Encoder::new(vec![0; prefix], 3)?;
            io::Write::write_all(&mut encoder, &message[prefix..])?;
            encoder.finish()?
        }
    };
    if prefix > 0 {
        let length = u32::try_from(out.len() - prefix).map_err(|_| anyhow!("a message above 4 GiB"))?;
        let Some((flag, rest)) = out.split_first_mut() else { bail!("the prefix is there") };
        *flag = u8::from(transport.compression != Compression::None);
        rest[..4].copy_from_slice(&length.to_be_bytes());
    }
    Ok(Bytes::from(out))
}
