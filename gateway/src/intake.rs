//! OTLP on one connection of one tenant: gRPC and HTTP told apart by the first bytes, limits, decoding, one reply mapper.
//!
//! Owns everything between an accepted socket and an admitted message, and the way back from an outcome to a reply. It never
//! looks inside a message (pipeline does), never waits for memory, and never spawns: a connection is one future within
//! its tenant's one task, and its requests are futures within that. It ends when either side closes the connection.
//!
//! - `wire` is the socket, read only while the tenant's slice of time lasts; `sniff` tells the protocols apart.
//! - `http2` and `http1` drive a connection; `body` is what either of them delivers; `latch` saves idle rounds.
//! - `grpc` and `otlp_http` are the two forms of a request; `decode` inflates within the limits.
//! - `rejection` says why a request was refused; `reply` is the one mapper to gRPC and HTTP; `status` is its encoding.

mod body;
mod decode;
mod grpc;
mod http1;
mod http2;
mod latch;
mod otlp_http;
mod rejection;
mod reply;
mod sniff;
mod status;
mod wire;

#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{FutureExt, LocalBoxFuture};

use self::sniff::Protocol;
use self::wire::Wire;
use crate::tenant::{Accepted, Core};

/// How long the first bytes, an HTTP/2 handshake or a request's head may take.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// How long the body of a request may take: longer than any SDK waits for its answer.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// How long a drain waits for the first bytes of a connection that has sent none.
const FAREWELL: Duration = Duration::from_millis(100);

/// Serves one connection until either side closes it. A [`crate::tenant::Serve`].
pub fn serve(accepted: Accepted, core: Rc<Core>) -> LocalBoxFuture<'static, ()> {
    connection(accepted, core).boxed_local()
}

async fn connection(accepted: Accepted, core: Rc<Core>) {
    let Accepted { socket, kind, permit } = accepted;
    let wire = match Wire::new(socket, kind, core.clone()) {
        Ok(wire) => wire,
        Err(error) => return tracing::warn!(%error, "an accepted socket cannot be polled"),
    };
    let sniffed = tokio::select! {
        biased;
        sniffed = tokio::time::timeout(HEADER_DEADLINE, sniff::sniff(wire)) => sniffed,
        // It had nothing to say yet; a client that connects again finds the next gateway, or its kernel's backlog.
        () = farewell(&core) => return,
    };
    let Ok(sniffed) = sniffed else {
        return core.count_violation("the connection sent nothing for too long".into());
    };
    match sniffed {
        Ok((Protocol::Http2, wire)) => http2::serve(wire, core, permit).await,
        Ok((Protocol::Http1, wire)) => http1::serve(wire, core).await,
        // Closed before it said anything: a probe of the port, or a client that gave up.
        Err(_closed) => {}
    }
}

/// Resolves a moment after the tenant begins to drain: what waited in the backlog has its first bytes by then.
async fn farewell(core: &Core) {
    poll_fn(|_| if core.is_leaving() { Poll::Ready(()) } else { Poll::Pending }).await;
    tokio::time::sleep(FAREWELL).await;
}
