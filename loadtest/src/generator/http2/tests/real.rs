use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::io::DuplexStream;
use tokio::task::JoinSet;

use super::*;
use crate::generator::chop;

/// What arrived of a request.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrived {
    path: String,
    encoding: Option<String>,
    body: Vec<u8>,
}

/// How the server answers; in the message that is sent, so that it knows.
const WAYS: [(u8, Answer); 6] = [
    (0, Answer::Accepted),
    (1, Answer::Refused(14)),
    (2, Answer::Partly),
    (3, Answer::Refused(3)),
    (4, Answer::Accepted),
    (5, Answer::Refused(8)),
];

async fn serve(stream: DuplexStream, builder: Builder) -> Vec<Arrived> {
    let mut connection = builder.handshake(stream).await.unwrap();
    let mut calls = JoinSet::new();
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.unwrap();
        calls.spawn(answer(request, respond));
    }
    calls.join_all().await
}

async fn answer(request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> Arrived {
    let (head, mut body) = request.into_parts();
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.unwrap();
        body.flow_control().release_capacity(chunk.len()).unwrap();
        bytes.extend_from_slice(&chunk);
    }
    let head_of = |name: &str| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(head_of("content-type").as_deref(), Some("application/grpc"));
    assert_eq!(head_of("te").as_deref(), Some("trailers"));
    assert!(head_of("user-agent").is_some());
    assert_eq!((head.method, head.uri.authority().unwrap().as_str()), (http::Method::POST, "localhost"));
    let arrived = Arrived { path: head.uri.path().to_owned(), encoding: head_of("grpc-encoding"), body: bytes };
    let mut trailers = HeaderMap::new();
    let mut message = vec![0; 5];
    let (mut status, mut is_alone) = (0, false);
    match arrived.body[0] {
        1 => (status, is_alone) = (14, true),
        // partial_success 1, rejected_spans 1: 7.
        2 => message.extend_from_slice(&[0x0a, 2, 8, 7]),
        3 => status = 3,
        // Long enough to be continued in other frames, and to be Huffman-coded.
        4 => drop(trailers.insert("grpc-message", HeaderValue::from_str(&"no need, ".repeat(4_000)).unwrap())),
        5 => {
            status = 8;
            message.resize(40_000, 0);
        }
        _ => {}
    }
    trailers.insert("grpc-status", status.into());
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    if is_alone {
        let (mut head, ()) = response.into_parts();
        head.headers.extend(trailers);
        respond.send_response(Response::from_parts(head, ()), true).unwrap();
    } else {
        let mut stream = respond.send_response(response, false).unwrap();
        stream.send_data(message.into(), false).unwrap();
        stream.send_trailers(trailers).unwrap();
    }
    arrived
}

/// Scenario: calls of all signals, from empty to larger than any window, three at a time, against servers with the default
/// limits, with tiny windows, with few streams, with no table for header fields, with large frames; bytes arrive in random pieces.
/// Guarantees: each message arrives once and unchanged, at its path, and each call ends as the server says.
#[tokio::test]
async fn a_real_server_gets_and_gives_what_was_meant() {
    let mut rng = chop::rng();
    let mut builders = vec![h2::server::Builder::new(); 5];
    builders[1].initial_window_size(777).initial_connection_window_size(70_000);
    builders[2].max_concurrent_streams(2);
    builders[3].header_table_size(if rng.bool() { 0 } else { 2_000 });
    builders[4].max_frame_size(1 << 20).initial_window_size(8 << 20).initial_connection_window_size(64 << 20);
    for (builder, encoding) in builders.into_iter().zip([None, Some("gzip"), None, Some("zstd"), None]) {
        let (mut stream, peer) = tokio::io::duplex(1 << 20);
        let mut server = JoinSet::new();
        server.spawn(serve(peer, builder));
        let mut client = Http2::new(encoding);
        let mut expected = Vec::new();
        let mut waiting = VecDeque::new();
        for token in 0..40 {
            let (way, answer) = WAYS[rng.usize(..WAYS.len())];
            let mut body = vec![way];
            let size = chop::piece(&mut rng);
            body.resize_with(1 + rng.usize(..size) * 4, || rng.u8(..));
            let signal = Signal::ALL[rng.usize(..3)];
            waiting.push_back((token, signal, body.clone()));
            let arrived = Arrived { path: signal.grpc_path().to_owned(), encoding: encoding.map(str::to_owned), body };
            expected.push((token, answer, arrived));
        }
        let mut ends = Vec::new();
        while ends.len() < expected.len() {
            // A server refuses what is beyond a limit that it has not told yet.
            while client.calls.len() < if client.has_settings { 3 } else { 2 } {
                let Some((token, signal, body)) = waiting.pop_front() else { break };
                client.start(token, signal, &body);
            }
            chop::write(&mut stream, client.out(), &mut rng).await;
            let bytes = chop::read(&mut stream, &mut rng).await;
            assert!(!bytes.is_empty(), "the server ended with {} calls done", ends.len());
            client.receive(&bytes, &mut ends).unwrap();
        }
        assert!(client.is_open() && client.is_idle());
        chop::write(&mut stream, client.out(), &mut rng).await;
        drop(stream);

        let answers: BTreeMap<usize, _> = ends.into_iter().map(|ended| (ended.token, ended.answer)).collect();
        let mut arrived = server.join_all().await.remove(0);
        arrived.sort();
        for (token, answer, _) in &expected {
            assert_eq!(answers[token], Ok(*answer), "call {token}");
        }
        let mut sent: Vec<Arrived> = expected.into_iter().map(|(_, _, arrived)| arrived).collect();
        sent.sort();
        assert!(arrived == sent, "all arrived as it was sent");
    }
}

/// Scenario: one call of the first two is given up before it has left as a whole; the server takes two at a time.
/// Guarantees: the server hears of it, its stream's place is taken by another call, and the others end as they should.
#[tokio::test]
async fn a_call_that_is_given_up_makes_room() {
    let mut rng = chop::rng();
    let (mut stream, peer) = tokio::io::duplex(1 << 20);
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut builder = h2::server::Builder::new();
        builder.max_concurrent_streams(2).initial_window_size(1_000);
        let mut connection = builder.handshake::<_, Bytes>(peer).await.unwrap();
        let (mut answers, mut given_up) = (JoinSet::new(), JoinSet::new());
        while let Some(accepted) = connection.accept().await {
            let (request, respond) = accepted.unwrap();
            if request.uri().path() == Signal::Metrics.grpc_path() {
                given_up.spawn(until_reset(request, respond));
            } else {
                answers.spawn(answer(request, respond));
            }
        }
        given_up.join_all().await
    });
    let mut client = Http2::new(None);
    let mut ends = Vec::new();
    while !client.has_settings {
        chop::write(&mut stream, client.out(), &mut rng).await;
        let bytes = chop::read(&mut stream, &mut rng).await;
        client.receive(&bytes, &mut ends).unwrap();
    }
    client.start(1, Signal::Metrics, &[0; 5_000]);
    for token in [2, 3, 4] {
        client.start(token, Signal::Logs, &[0; 3_000]);
    }
    assert_eq!(client.streams, 2);
    chop::write(&mut stream, client.out(), &mut rng).await;
    client.cancel(1);
    while ends.len() < 3 {
        chop::write(&mut stream, client.out(), &mut rng).await;
        let bytes = chop::read(&mut stream, &mut rng).await;
        client.receive(&bytes, &mut ends).unwrap();
    }
    drop(stream);
    assert!(ends.iter().all(|ended| ended.token != 1 && ended.answer == Ok(Answer::Accepted)), "{ends:?}");
    assert_eq!(server.join_all().await, [[Some(h2::Reason::CANCEL)]]);
}

/// Reads without making room for more, so that the call cannot leave as a whole.
async fn until_reset(mut request: Request<h2::RecvStream>, _respond: SendResponse<Bytes>) -> Option<h2::Reason> {
    loop {
        match request.body_mut().data().await {
            Some(Ok(_)) => {}
            other => return other.and_then(|chunk| chunk.unwrap_err().reason()),
        }
    }
}
