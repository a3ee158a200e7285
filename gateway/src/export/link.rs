//! One shared HTTP/2 connection to a destination, made when it is needed and made again when it ends.
//!
//! Owns the connection and the task that drives it. A request that the peer certainly did not process (refused, or
//! above the last stream of a GOAWAY) is sent again at once, one time; every other failure is the caller's to judge.
//!
//! h2 itself, not a client on top of it: an Export request is a path, constant headers and bytes that exist already, so
//! codecs, services and boxed bodies would only add to the cost of each (ARCHITECTURE.md, "h2 directly for gRPC": 60 to 155 us a
//! request, against 12 to 25).

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, StatusCode};
use tokio::task::JoinSet;

use super::classify::{Failure, Fault};
use super::connector::{Connector, Io};
use super::merge::Body;

/// A response is no larger (OTLP: 4 MiB); a larger one is not retried.
pub(crate) const RESPONSE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Of a response's headers.
const RESPONSE_HEADER_BYTES_MAX: u32 = 64 * 1024;

/// An answer, whatever it says.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

/// The shared connection.
#[derive(Debug)]
pub(crate) struct Link {
    connector: Rc<Connector>,
    current: RefCell<Option<(u64, SendRequest<Body>)>>,
    /// Held while connecting, so that a whole window of requests makes one connection.
    connecting: tokio::sync::Mutex<()>,
    /// Counts connections made and connections that failed.
    attempts: Cell<u64>,
    failed: RefCell<Option<Failure>>,
    drivers: RefCell<JoinSet<()>>,
}

/// Whether the request may be sent again without asking.
enum Lost {
    Unprocessed(Failure),
    Uncertain(Failure),
}

impl Link {
    /// Connects with the first request.
    pub(crate) fn new(connector: Rc<Connector>) -> Self {
        Self {
            connector,
            current: RefCell::default(),
            connecting: tokio::sync::Mutex::default(),
            attempts: Cell::default(),
            failed: RefCell::default(),
            drivers: RefCell::default(),
        }
    }

    /// Sends one request and reads its answer. The caller sets the deadline by dropping the future, which resets the
    /// stream.
    pub(crate) async fn call(&self, request: Request<()>, body: Body) -> Result<Answer, Failure> {
        match self.attempt(request.clone(), body.clone()).await {
            Ok(answer) => Ok(answer),
            Err(Lost::Uncertain(failure)) => Err(failure),
            Err(Lost::Unprocessed(_)) => self.attempt(request, body).await.map_err(|lost| match lost {
                Lost::Unprocessed(failure) | Lost::Uncertain(failure) => failure,
            }),
        }
    }

    /// Leaves the present connection to the requests that are on it: the next request makes a new one. For after a
    /// timeout, since nobody else would notice a peer that is gone without a word.
    pub(crate) fn retire(&self) {
        self.current.take();
    }

    /// Whether there is a connection (perhaps one that is about to end).
    pub(crate) fn is_connected(&self) -> bool {
        self.current.borrow().is_some()
    }

    /// Takes over a connection that was made elsewhere.
    pub(crate) async fn adopt(&self, io: Io) -> Result<(), Failure> {
        self.handshake(io).await.map(drop)
    }

    async fn attempt(&self, request: Request<()>, body: Body) -> Result<Answer, Lost> {
        let (number, sender) = self.sender().await.map_err(Lost::Uncertain)?;
        let unsent = |error: h2::Error| {
            self.forget(number);
            Lost::Unprocessed(Failure::busy(format!("connection lost: {error}")))
        };
        let mut sender = sender.ready().await.map_err(unsent)?;
        let (response, mut stream) = sender.send_request(request, false).map_err(unsent)?;
        // Flow control is h2's: it keeps the handle on the bytes, which are accounted for already, until they may go.
        let sent = stream.send_data(body, true);
        let response = response.await.map_err(|error| self.lost(number, &error))?;
        sent.map_err(|error| self.lost(number, &error))?;
        self.read(number, response).await
    }

    async fn read(&self, number: u64, response: http::Response<h2::RecvStream>) -> Result<Answer, Lost> {
        let (head, mut stream) = response.into_parts();
        let mut body = BytesMut::new();
        while let Some(piece) = stream.data().await {
            let piece = piece.map_err(|error| self.lost(number, &error))?;
            // Released even when it is the last: otherwise the connection's window would shrink for ever.
            let _ = stream.flow_control().release_capacity(piece.len());
            if body.len() + piece.len() > RESPONSE_BYTES_MAX {
                return Err(Lost::Uncertain(Failure::new(Fault::Payload, "the response is over 4 MiB")));
            }
            body.extend_from_slice(&piece);
        }
        let trailers = stream.trailers().await.map_err(|error| self.lost(number, &error))?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.freeze(), trailers })
    }

    fn lost(&self, number: u64, error: &h2::Error) -> Lost {
        let failure = Failure::busy(format!("request lost: {error}"));
        if error.reason() == Some(h2::Reason::REFUSED_STREAM) {
            return Lost::Unprocessed(failure);
        }
        if error.is_go_away() || error.is_io() {
            self.forget(number);
        }
        // Streams up to the GOAWAY's last one are answered; only those above it end with this error.
        if error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR) {
            return Lost::Unprocessed(failure);
        }
        Lost::Uncertain(failure)
    }

    fn forget(&self, number: u64) {
        self.current.borrow_mut().take_if(|current| current.0 == number);
    }

    async fn sender(&self) -> Result<(u64, SendRequest<Body>), Failure> {
        if let Some(current) = &*self.current.borrow() {
            return Ok(current.clone());
        }
        let attempts = self.attempts.get();
        let _connecting = self.connecting.lock().await;
        if let Some(current) = &*self.current.borrow() {
            return Ok(current.clone());
        }
        if attempts != self.attempts.get()
            && let Some(failure) = &*self.failed.borrow()
        {
            return Err(failure.clone());
        }
        let connected = match self.connector.connect().await {
            Ok(io) if self.connector.is_tls() && !io.agreed_on_http2() => {
                Err(Failure::new(Fault::Destination, "TLS: the server does not offer HTTP/2 (ALPN h2)"))
            }
            Ok(io) => self.handshake(io).await,
            Err(failure) => Err(failure),
        };
        if let Err(failure) = &connected {
            self.attempts.set(self.attempts.get() + 1);
            self.failed.replace(Some(failure.clone()));
        }
        connected
    }

    async fn handshake(&self, io: Io) -> Result<(u64, SendRequest<Body>), Failure> {
        let shaken = h2::client::Builder::new()
            .enable_push(false)
            .max_header_list_size(RESPONSE_HEADER_BYTES_MAX)
            .handshake(io)
            .await;
        let (sender, connection) = shaken.map_err(|error| Failure::busy(format!("HTTP/2 handshake: {error}")))?;
        let mut drivers = self.drivers.borrow_mut();
        while drivers.try_join_next().is_some() {}
        // Its error reaches every request on it; there is nobody else to tell.
        drivers.spawn_local(async move { drop(connection.await) });
        self.attempts.set(self.attempts.get() + 1);
        self.failed.take();
        let current = (self.attempts.get(), sender);
        self.current.replace(Some(current.clone()));
        Ok(current)
    }
}
