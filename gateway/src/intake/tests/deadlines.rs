//! Deadlines of peers that stop in the middle, with the clock paused: it jumps when nothing else can happen. So what is written has to
//! be there to be read at once, which TCP does not promise on a busy machine.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::harness::*;
use crate::base::Signal;
use crate::intake::{BODY_DEADLINE, HEADER_DEADLINE};
use crate::tenant::Core;
use crate::tenant::testing::{Bench, policy};

/// A connection served on the test's own clock.
struct Local {
    core: Rc<Core>,
    _bench: Bench,
    serving: Pin<Box<dyn Future<Output = ()>>>,
    client: UnixStream,
}

impl Local {
    fn new() -> Self {
        let bench = Bench::new(crate::intake::serve);
        let handle = bench.attach("shop/cart", policy());
        let core = bench.local_core(&handle);
        let (client, accepted) = pair_at_once(&handle);
        let inner = core.clone();
        let mut serving = crate::intake::serve(accepted, core.clone());
        let serving = Box::pin(poll_fn(move |cx| {
            inner.begin_slice(cx.waker());
            serving.as_mut().poll(cx)
        }));
        Self { core, _bench: bench, serving, client }
    }

    /// Sends `bytes`, then nothing, until the gateway closes. What it said, and how long that took.
    async fn stall_after(mut self, bytes: &[u8]) -> (Vec<u8>, std::time::Duration, Rc<Core>) {
        let start = Instant::now();
        let mut reply = Vec::new();
        let peer = async {
            self.client.write_all(bytes).await.unwrap();
            let _ = self.client.read_to_end(&mut reply).await;
            start.elapsed()
        };
        let mut serving = self.serving;
        let mut peer = pin!(peer);
        let mut served = false;
        let took = poll_fn(|cx| {
            served = served || serving.as_mut().poll(cx).is_ready();
            match peer.as_mut().poll(cx) {
                Poll::Ready(took) => Poll::Ready(took),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
        (reply, took, self.core)
    }
}

fn refusals(core: &Core) -> u64 {
    core.handle.snapshot().refused_requests.iter().sum()
}

/// Scenario: slowloris: nothing at all, half a preface, half a head of HTTP/1.
/// Guarantees: each is closed at the header deadline, and counted.
#[tokio::test(start_paused = true)]
async fn an_unfinished_head_is_closed_at_its_deadline() {
    for bytes in [&b""[..], b"PRI * HTTP", b"POST /v1/traces HTTP/1.1\r\nhost: x\r\n"] {
        let (reply, took, core) = Local::new().stall_after(bytes).await;

        assert!(reply.is_empty());
        assert!((HEADER_DEADLINE..HEADER_DEADLINE * 2).contains(&took), "{took:?} after {bytes:?}");
        assert_eq!(refusals(&core), 1);
    }
}

/// Scenario: the body of an HTTP/1 request stops in its middle.
/// Guarantees: 503 with Retry-After at the body's deadline, and the connection is closed.
#[tokio::test(start_paused = true)]
async fn an_unfinished_body_is_answered_at_its_deadline() {
    let head =
        "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 100\r\n\r\nabc";

    let (reply, took, core) = Local::new().stall_after(head.as_bytes()).await;

    assert!(reply.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&reply));
    assert!((BODY_DEADLINE..BODY_DEADLINE * 2).contains(&took), "{took:?}");
    assert_eq!((refusals(&core), core.handle.account.used() > 100), (1, false));
}

/// Scenario: an HTTP/2 peer finishes its handshake and is never heard of again, or stops in the middle of a frame.
/// Guarantees: it is asked whether it is there, and closed when it does not answer.
#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_a_ping_is_closed() {
    let start = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    let half_a_frame = [&start[..], &[0, 1, 0, 1, 4, 0, 0, 0, 1, 0x82]].concat();

    for bytes in [start, half_a_frame] {
        let (reply, took, _core) = Local::new().stall_after(&bytes).await;
        let asked = reply.windows(9).any(|frame| frame[..5] == [0, 0, 8, 6, 0]);
        assert!(asked, "a PING without the ACK flag");
        assert!((80..160).contains(&took.as_secs()), "{took:?}");
    }
}

/// Scenario: an HTTP/1 connection is idle for an hour between two requests, as a metrics exporter may be.
/// Guarantees: it is still open: only an unfinished head has a deadline.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_stays_open() {
    let Local { core: _core, _bench, mut serving, mut client } = Local::new();
    let body = message(Signal::Traces, 0, 0);
    let head = format!(
        "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let peer = async {
        for _ in 0..2 {
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(&body).await.unwrap();
            let mut reply = vec![0; 15];
            client.read_exact(&mut reply).await.unwrap();
            assert_eq!(reply, b"HTTP/1.1 200 OK");
            let mut rest = vec![0; 4096];
            let _ = client.read(&mut rest).await.unwrap();
            tokio::time::sleep_until(Instant::now() + HEADER_DEADLINE * 360).await;
        }
    };
    let mut peer = pin!(peer);

    poll_fn(|cx| {
        assert!(serving.as_mut().poll(cx).is_pending(), "the connection was closed");
        peer.as_mut().poll(cx)
    })
    .await;
}
