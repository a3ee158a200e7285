//! Peers that do not mean well: docs/threats.md rows 6, 8 and 13, as far as intake meets them.

use std::future::poll_fn;

use bytes::Bytes;
use h2::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::harness::*;
use crate::base::Signal;
use crate::tenant::testing::policy;

async fn one_good_call(pod: &mut Pod) {
    let client = pod.grpc().await;
    let answer = call(&client, Signal::Traces, "identity", &message(Signal::Traces, 1, 1)).await;
    assert_eq!(answer.grpc_status(), 0);
}

/// Scenario: connections that begin with something else than HTTP: TLS, zeros, a preface that goes wrong at its end.
/// Guarantees: each is closed, the violation is counted, and a good client is served as before.
#[tokio::test]
async fn connections_that_speak_no_http_are_closed() {
    let mut pod = Pod::new();
    let tls = [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01][..], &[b'x'; 100]].concat();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r!".to_vec();
    let frame = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0xff; 64]].concat();

    for garbage in [tls, vec![0; 64], preface, frame] {
        let mut socket = pod.connect();
        socket.write_all(&garbage).await.unwrap();
        let mut rest = Vec::new();
        // Closed with or without a reset, depending on what was still unread.
        let _ = socket.read_to_end(&mut rest).await;
        assert!(!rest.starts_with(b"HTTP/1.1 200"));
    }

    while pod.handle.open() > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(pod.handle.snapshot().refused_requests[0], 4, "one violation each");
    one_good_call(&mut pod).await;
    pod.close().await;
}

/// Scenario: a peer opens streams and resets them at once, thousands of times (rapid reset).
/// Guarantees: the connection is ended for it, nothing is left of it in the ledger, a good client is served as before.
#[tokio::test]
async fn a_rapid_reset_ends_the_connection() {
    let mut pod = Pod::new();
    let mut socket = pod.connect();
    let mut attack = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    for stream in (1..4_000u32).step_by(2) {
        // HEADERS with END_HEADERS: `:method POST`, `:scheme http`, `:path /`; then RST_STREAM with CANCEL.
        attack.extend_from_slice(&[0, 0, 3, 1, 4]);
        attack.extend_from_slice(&stream.to_be_bytes());
        attack.extend_from_slice(&[0x83, 0x86, 0x84]);
        attack.extend_from_slice(&[0, 0, 4, 3, 0]);
        attack.extend_from_slice(&stream.to_be_bytes());
        attack.extend_from_slice(&[0, 0, 0, 8]);
    }

    // Cut short by the gateway or not: what counts is what it says last.
    let _ = socket.write_all(&attack).await;
    let mut reply = vec![0; 64 << 10];
    let mut heard = Vec::new();
    while let Ok(count @ 1..) = socket.read(&mut reply).await {
        heard.extend_from_slice(&reply[..count]);
    }

    let goaway = heard
        .windows(17)
        .find(|frame| frame[..9] == [0, 0, 8 + 18, 7, 0, 0, 0, 0, 0] || frame[3..9] == [7, 0, 0, 0, 0, 0]);
    assert_eq!(goaway.map(|frame| frame[13..17].to_vec()), Some(vec![0, 0, 0, 11]), "ENHANCE_YOUR_CALM");
    one_good_call(&mut pod).await;
    pod.close().await;
}

/// Scenario: a call announces 40 MB and sends none of it, then another does the same.
/// Guarantees: the first holds its tenant's budget and the second is refused with a delay, before a byte of it is buffered;
/// small requests still pass, and all of it is given back when the peer goes.
#[tokio::test]
async fn announced_messages_are_reserved_before_they_arrive() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;
    let mut head = Vec::from([0u8]);
    head.extend_from_slice(&(40u32 << 20).to_be_bytes());
    let mut ready = client.clone().ready().await.unwrap();
    let (_pending, mut stalled) = ready.send_request(grpc_head(Signal::Traces.grpc_path(), "identity"), false).unwrap();
    stalled.send_data(Bytes::from(head.clone()), false).unwrap();

    let answer = send(&client, grpc_head(Signal::Traces.grpc_path(), "identity"), &head).await;

    // 40 MB of quota are gone as well; whichever is short first refuses.
    assert_eq!((answer.grpc_status(), answer.details()), (14, vec!["RetryInfo".to_owned()]));
    assert!(pod.handle.snapshot().memory_used >= 40 << 20);
    assert_eq!(call(&client, Signal::Logs, "identity", &message(Signal::Logs, 1, 1)).await.grpc_status(), 0);
    stalled.send_reset(Reason::CANCEL);
    drop(client);
    pod.close().await;
}

/// Scenario: a request whose head is larger than we take.
/// Guarantees: it is refused on its stream, and the connection goes on.
#[tokio::test]
async fn a_head_of_20_kilobytes_is_refused() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;
    let mut head = grpc_head(Signal::Traces.grpc_path(), "identity");
    head.headers_mut().insert("x-padding", "y".repeat(20 << 10).parse().unwrap());

    let mut ready = client.clone().ready().await.unwrap();
    let (response, _stream) = ready.send_request(head, true).unwrap();

    assert!(response.await.map(|response| response.status() != 200).unwrap_or(true));
    assert_eq!(call(&client, Signal::Logs, "identity", &message(Signal::Logs, 1, 1)).await.grpc_status(), 0);
    drop(client);
    pod.close().await;
}

/// Scenario: a pod opens more connections than its policy allows.
/// Guarantees: the rest stays in the backlog (no permit), and a place is free again when one closes.
#[tokio::test]
async fn connections_are_limited() {
    let mut few = policy();
    few.limits.connections = 2;
    let pod = Pod::with(few);
    let (first, second) = (pod.connect(), pod.connect());

    assert!(pod.handle.connection_permit().is_none());
    drop((first, second));

    while pod.handle.open() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(pod.handle.connection_permit().is_some());
    assert_eq!((pod.handle.stats().connections.value(), pod.handle.stats().connections_closed.value()), (2, 2));
    pod.close().await;
}

/// Scenario: a client sends a hundred bad requests at once, five times what its budget for refusals holds.
/// Guarantees: each gets its clear answer, some of them after the tenant was left unread for a moment, and a good request
/// is served as before.
#[tokio::test]
async fn too_many_refusals_are_answered_all_the_same() {
    let mut slow = policy();
    slow.limits.requests_per_second = 150;
    let mut pod = Pod::with(slow);
    let client = pod.grpc().await;

    let calls = (0..100).map(|_| call(&client, Signal::Traces, "identity", b"\xff"));
    let answers = futures_util::future::join_all(calls).await;

    assert!(answers.iter().all(|answer| answer.grpc_status() == 3));
    let good = message(Signal::Traces, 1, 1);
    assert_eq!(call(&client, Signal::Traces, "identity", &good).await.grpc_status(), 0);
    drop(client);
    pod.close().await;
}

/// Scenario: peers that vanish in the middle of a message, of each protocol.
/// Guarantees: nothing of them is left in the ledger or among the open connections (checked at the end).
#[tokio::test]
async fn peers_that_vanish_leave_nothing_behind() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;
    let mut ready = client.clone().ready().await.unwrap();
    let (_response, mut stream) = ready.send_request(grpc_head(Signal::Traces.grpc_path(), "identity"), false).unwrap();
    stream.send_data(framed(0, &[1; 100]).slice(..50), false).unwrap();
    let mut socket = pod.connect();
    let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 9999\r\n\r\nabc";
    socket.write_all(head.as_bytes()).await.unwrap();
    // Both have been read as soon as a later request on a third connection is answered.
    one_good_call(&mut pod).await;
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if pod.handle.snapshot().memory_used > 9_999 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;

    drop((socket, stream, ready, client));

    pod.close().await;
}
