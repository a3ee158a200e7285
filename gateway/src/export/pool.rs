//! HTTP/1.1 connections to one destination: one request at a time on each, kept for the next.
//!
//! Never more than requests in flight, so the destination's window bounds it.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::classify::{Failure, Fault};
use super::connector::{Connector, Io};
use super::link::{Answer, RESPONSE_BYTES_MAX};

/// The idle connections, and the tasks that drive all of them.
#[derive(Debug)]
pub(crate) struct Pool {
    connector: Rc<Connector>,
    idle: RefCell<Vec<SendRequest<Full<Bytes>>>>,
    drivers: RefCell<JoinSet<()>>,
}

impl Pool {
    /// Connects with the first request.
    pub(crate) fn new(connector: Rc<Connector>) -> Self {
        Self { connector, idle: RefCell::default(), drivers: RefCell::default() }
    }

    /// Sends one request and reads its answer. The caller sets the deadline by dropping the future, which closes the
    /// connection.
    pub(crate) async fn call(&self, request: &Request<()>, body: &Bytes) -> Result<Answer, Failure> {
        loop {
            let (mut sender, reused) = match self.take() {
                Some(sender) => (sender, true),
                None => (self.adopt(self.connector.connect().await?).await?, false),
            };
            let response = match sender.send_request(request.clone().map(|()| Full::new(body.clone()))).await {
                Ok(response) => response,
                // The server closed it while it was idle: nothing was sent. Each turn uses up one idle connection.
                Err(error) if reused && error.is_canceled() => continue,
                Err(error) => return Err(Failure::busy(format!("request lost: {error}"))),
            };
            let answer = read(response).await?;
            if !sender.is_closed() {
                self.idle.borrow_mut().push(sender);
            }
            return Ok(answer);
        }
    }

    /// Takes over a connection that was made elsewhere.
    pub(crate) async fn adopt(&self, io: Io) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let shaken = http1::handshake(TokioIo::new(io)).await;
        let (sender, connection) = shaken.map_err(|error| Failure::busy(format!("HTTP/1.1: {error}")))?;
        let mut drivers = self.drivers.borrow_mut();
        while drivers.try_join_next().is_some() {}
        // Its error reaches the request on it; there is nobody else to tell.
        drivers.spawn_local(async move { drop(connection.await) });
        Ok(sender)
    }

    /// Keeps a connection for the next request.
    pub(crate) fn put(&self, sender: SendRequest<Full<Bytes>>) {
        self.idle.borrow_mut().push(sender);
    }

    fn take(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.borrow_mut();
        idle.retain(|sender| !sender.is_closed());
        // The last one used: the others may then be closed by the server for idleness.
        idle.iter().rposition(SendRequest::is_ready).map(|index| idle.remove(index))
    }
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Result<Answer, Failure> {
    let (head, mut incoming) = response.into_parts();
    let mut body = BytesMut::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| Failure::busy(format!("response lost: {error}")))?;
        let Ok(piece) = frame.into_data() else { continue };
        if body.len() + piece.len() > RESPONSE_BYTES_MAX {
            return Err(Failure::new(Fault::Payload, "the response is over 4 MiB"));
        }
        body.extend_from_slice(&piece);
    }
    Ok(Answer { status: head.status, headers: head.headers, body: body.freeze(), trailers: None })
}
