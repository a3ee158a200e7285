//! One HTTP/2 connection, on the `h2` crate itself: gRPC calls and OTLP/HTTP requests side by side.
//!
//! Owns the connection, its requests in flight, and its keepalive. It never spawns: requests are polled here, and their
//! replies leave together with one write. It ends with the connection, with GOAWAY when the tenant drains, or when the peer
//! does not answer a PING.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, RecvStream};
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request};
use tokio::time::{Instant, Sleep};

use super::body::Body;
use super::latch::Latch;
use super::rejection::Rejection;
use super::wire::{Vitals, Wire};
use super::{grpc, otlp_http, reply};
use crate::tenant::{ConnectionPermit, Core, budget};

/// Requests that one connection may have open at once.
const STREAMS_MAX: u32 = 128;

/// Streams that a peer may open and reset before we have even looked at them (rapid reset).
const RESET_BEFORE_ACCEPT_MAX: usize = 20;

/// Streams that we may have to reset for the peer's errors before the connection is closed.
const RESET_FOR_ERRORS_MAX: usize = 128;

/// How often a peer is asked whether it is there. One that stopped in the middle of a frame cannot answer, so this is the
/// deadline of an unfinished head as well.
const QUESTION_INTERVAL: Duration = Duration::from_secs(60);

/// How long it may take to answer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(20);

/// Serves until the connection ends.
pub(super) async fn serve(wire: Wire, core: Rc<Core>, permit: ConnectionPermit) {
    let vitals = wire.vitals();
    match tokio::time::timeout(super::HEADER_DEADLINE, builder().handshake::<_, Bytes>(wire)).await {
        Ok(Ok(connection)) => drive(connection, core, vitals, permit).await,
        Ok(Err(error)) => note(&core, &error),
        Err(_elapsed) => core.count_violation("the HTTP/2 handshake took too long".into()),
    }
}

fn builder() -> Builder {
    let bytes = |bytes: u64| u32::try_from(bytes).expect("a constant below 4 GiB");
    let mut builder = Builder::new();
    builder
        // Streams share the connection's window, which starts narrow and is widened on demand.
        .initial_window_size(bytes(budget::WIDE_WINDOW_BYTES))
        .initial_connection_window_size(bytes(budget::WINDOW_BYTES))
        .max_frame_size(bytes(budget::FRAME_BYTES))
        .max_header_list_size(bytes(budget::HEADER_LIST_BYTES))
        .max_concurrent_streams(STREAMS_MAX)
        .max_pending_accept_reset_streams(RESET_BEFORE_ACCEPT_MAX)
        .max_local_error_reset_streams(Some(RESET_FOR_ERRORS_MAX))
        .max_send_buffer_size(usize::try_from(budget::WRITE_BYTES).expect("a constant below 4 GiB"));
    builder
}

async fn drive(
    mut connection: Connection<Wire, Bytes>,
    core: Rc<Core>,
    vitals: Rc<Vitals>,
    mut permit: ConnectionPermit,
) {
    let mut requests = FuturesUnordered::new();
    let mut keepalive = Keepalive::new(connection.ping_pong());
    let (mut leaving, mut widened) = (false, false);
    let latch = Latch::new();
    let waker = Waker::from(latch.clone());
    let mut round = |cx: &mut Context<'_>| {
        loop {
            latch.look();
            if core.is_leaving() && !leaving {
                leaving = true;
                connection.graceful_shutdown();
            }
            if vitals.large.get() && !widened {
                widened = true;
                if permit.widen() {
                    connection.set_target_window_size(u32::try_from(budget::WIDE_WINDOW_BYTES).expect("1 MiB"));
                }
            }
            // Reads what is there, and writes what the last round left.
            loop {
                match connection.poll_accept(cx) {
                    Poll::Ready(Some(Ok((request, respond)))) => {
                        requests.push(exchange(request, respond, core.clone(), vitals.clone()));
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => break,
                }
            }
            let mut answered = false;
            while let Poll::Ready(Some(())) = requests.poll_next_unpin(cx) {
                answered = true;
            }
            if answered || (vitals.large.get() && !widened) {
                continue;
            }
            if keepalive.poll_lost(cx) {
                connection.abrupt_shutdown(h2::Reason::NO_ERROR);
                return Poll::Ready(Ok(()));
            }
            return Poll::Pending;
        }
    };
    let ended = poll_fn(|cx| {
        latch.enter(cx.waker());
        let polled = round(&mut Context::from_waker(&waker));
        latch.leave();
        polled
    })
    .await;
    if let Err(error) = ended {
        note(&core, &error);
    }
}

/// What ended a connection. Only what the peer did wrong is counted; that it is gone is no news.
fn note(core: &Core, error: &h2::Error) {
    if error.is_library() {
        core.count_violation(format!("HTTP/2: {error}").into());
    }
}

/// One request and its reply.
async fn exchange(request: Request<RecvStream>, mut respond: SendResponse<Bytes>, core: Rc<Core>, vitals: Rc<Vitals>) {
    let (head, mut stream) = request.into_parts();
    let mut body = Body::Http2(&mut stream);
    let call = head.headers.get(CONTENT_TYPE).and_then(grpc::content_type).filter(|_| head.method == Method::POST);
    let outcome = match &call {
        Some(_) => grpc::call(head.uri.path(), &head.headers, &mut body, &core, &vitals).await,
        None => otlp_http::post(&head.method, head.uri.path(), &head.headers, &mut body, &core).await,
    };
    let format = otlp_http::format(&head.headers);
    let sent = match (outcome, call) {
        (Err(Rejection::Abandoned), _) => return,
        (Ok(()), call) => {
            core.count_success();
            match call {
                Some(content_type) => accept_call(&mut respond, content_type),
                None => answer(&mut respond, reply::http_ok(format)),
            }
        }
        (Err(rejection), call) => {
            core.count_refusal(rejection.reason(), rejection.words());
            match call {
                Some(content_type) => {
                    respond.send_response(reply::grpc_rejection(content_type, &rejection), true).map(drop)
                }
                None => answer(&mut respond, reply::http_rejection(format, &rejection)),
            }
        }
    };
    if let Err(error) = sent {
        tracing::trace!(%error, "the peer does not wait for its reply");
    }
    // Dropping a body that was not read to its end makes h2 reset the stream with NO_ERROR, after the reply (RFC 9113, 8.1).
}

fn accept_call(respond: &mut SendResponse<Bytes>, content_type: HeaderValue) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(reply::grpc_ok_head(content_type), false)?;
    stream.send_data(reply::EMPTY_MESSAGE, false)?;
    stream.send_trailers(reply::grpc_ok_trailers())
}

fn answer(respond: &mut SendResponse<Bytes>, response: http::Response<Bytes>) -> Result<(), h2::Error> {
    let (head, body) = response.into_parts();
    let empty = body.is_empty();
    let mut stream = respond.send_response(http::Response::from_parts(head, ()), empty)?;
    if empty { Ok(()) } else { stream.send_data(body, true) }
}

/// Asks the peer now and then whether it is there.
struct Keepalive {
    pings: Option<PingPong>,
    timer: Pin<Box<Sleep>>,
    asked: bool,
}

impl Keepalive {
    fn new(pings: Option<PingPong>) -> Self {
        Self { pings, timer: Box::pin(tokio::time::sleep(QUESTION_INTERVAL)), asked: false }
    }

    /// Whether the peer did not answer in time. Only PONG is an answer: bytes that trickle in are none.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(pings) = &mut self.pings else { return false };
        if self.asked && pings.poll_pong(cx).is_ready() {
            self.asked = false;
            self.timer.as_mut().reset(Instant::now() + QUESTION_INTERVAL);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            if self.asked || pings.send_ping(Ping::opaque()).is_err() {
                return true;
            }
            self.asked = true;
            self.timer.as_mut().reset(Instant::now() + ANSWER_DEADLINE);
            if pings.poll_pong(cx).is_ready() {
                return false;
            }
        }
        false
    }
}
