//! One HTTP/1.1 connection, on hyper: OTLP/HTTP requests one after the other.
//!
//! Owns the connection and the deadline of a request's head. It never spawns. It ends with the connection, with
//! `Connection: close` when the tenant drains, or when a head does not arrive in time.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{FutureExt, LocalBoxFuture};
use http::header::{CONNECTION, EXPECT};
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection};
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Sleep;

use super::body::Body;
use super::rejection::Rejection;
use super::wire::{Vitals, Wire};
use super::{otlp_http, reply};
use crate::tenant::{Core, budget};

/// What of a refused request's body is read and thrown away so that the connection can be used again.
const DISCARD_BYTES_MAX: usize = 256 * 1024;

/// How long, and how much, is read from a connection that is closed with a request unread: closing at once would make the
/// kernel take back the reply (RFC 9112, section 9.6).
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Serves until the connection ends.
pub(super) async fn serve(wire: Wire, core: Rc<Core>) {
    let vitals = wire.vitals();
    let export = Export { core: core.clone(), vitals: vitals.clone() };
    let mut connection = builder().serve_connection(TokioIo::new(wire), export);
    let mut head_deadline = None;
    let mut leaving = false;
    let ended = poll_fn(|cx| {
        if core.is_leaving() && !leaving {
            leaving = true;
            Pin::new(&mut connection).graceful_shutdown();
        }
        let polled = connection.poll_without_shutdown(cx);
        if polled.is_pending() && is_head_late(&vitals, &mut head_deadline, cx) {
            core.count_violation("the head of an HTTP/1 request took too long".into());
            return Poll::Ready(Ok(()));
        }
        polled
    })
    .await;
    match ended {
        Ok(()) => close(connection, &vitals).await,
        Err(error) if error.is_parse() => core.count_violation(format!("HTTP/1: {error}").into()),
        // The peer is gone.
        Err(_broken) => {}
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    // Its deadline would also run while the connection is idle, and close it under a client's next request.
    builder.header_read_timeout(None).max_buf_size(usize::try_from(budget::FRAME_BYTES).expect("64 KiB"));
    builder
}

/// Watches a head that has begun and not ended. Heads nearly always arrive whole, and cost no timer.
fn is_head_late(vitals: &Vitals, deadline: &mut Option<Pin<Box<Sleep>>>, cx: &mut std::task::Context<'_>) -> bool {
    if !vitals.in_head.get() {
        *deadline = None;
        return false;
    }
    deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(super::HEADER_DEADLINE))).as_mut().poll(cx).is_ready()
}

/// Closes so that the last reply arrives.
async fn close(connection: Connection<TokioIo<Wire>, Export>, vitals: &Vitals) {
    let mut wire = connection.into_parts().io.into_inner();
    let shut = wire.shutdown().await;
    if shut.is_err() || !vitals.unread.get() {
        return;
    }
    let read = async {
        let mut scrap = vec![0; 16 * 1024];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match wire.read(&mut scrap).await {
                Ok(0) | Err(_) => break,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    };
    // Whoever still sends after that has had the time to read the reply.
    let _: Result<(), tokio::time::error::Elapsed> = tokio::time::timeout(LINGER, read).await;
}

/// What hyper calls for each request.
#[derive(Debug)]
struct Export {
    core: Rc<Core>,
    vitals: Rc<Vitals>,
}

impl Service<Request<Incoming>> for Export {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        self.vitals.in_head.set(false);
        self.vitals.busy.set(true);
        let (core, vitals) = (self.core.clone(), self.vitals.clone());
        async move {
            let response = exchange(request, &core, &vitals).await;
            vitals.busy.set(false);
            Ok(response.map(Full::new))
        }
        .boxed_local()
    }
}

/// One request and its reply.
async fn exchange(request: Request<Incoming>, core: &Rc<Core>, vitals: &Vitals) -> Response<Bytes> {
    let (head, mut incoming) = request.into_parts();
    let mut body = Body::Http1(&mut incoming);
    let format = otlp_http::format(&head.headers);
    let outcome = otlp_http::post(&head.method, head.uri.path(), &head.headers, &mut body, core).await;
    let Err(rejection) = outcome else {
        core.count_success();
        return reply::http_ok(format);
    };
    if rejection != Rejection::Abandoned {
        core.count_refusal(rejection.reason(), rejection.words());
    }
    let mut response = reply::http_rejection(format, &rejection);
    // A client that waits for "100 Continue" is spared sending the body at all.
    if head.headers.contains_key(EXPECT) || rejection == Rejection::Late || !discard(&mut body).await {
        vitals.unread.set(true);
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Reads a small rest and throws it away. Whether the body is at its end.
async fn discard(body: &mut Body<'_>) -> bool {
    let mut left = DISCARD_BYTES_MAX;
    let rest = async {
        while !body.is_at_end() {
            match body.piece().await {
                Ok(None) => break,
                Ok(Some(piece)) if piece.len() <= left => left -= piece.len(),
                Ok(Some(_)) | Err(_) => return false,
            }
        }
        true
    };
    tokio::time::timeout(super::HEADER_DEADLINE, rest).await.unwrap_or(false)
}
