use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;

use super::*;
use crate::generator::chop;

/// Feeds a request's answer in random pieces, then the connection's end; how the request ended, and whether another may follow.
fn end_of(answer: &[u8], keep: bool) -> (Result<Answer, String>, bool) {
    let mut rng = chop::rng();
    let mut client = Http1::new(None, keep);
    client.start(7, Signal::Traces, b"body");
    let length = client.out().unsent().len();
    client.out().advance(length);
    let mut ends = Vec::new();
    let mut rest = answer;
    while !rest.is_empty() && ends.is_empty() {
        let (piece, later) = rest.split_at(chop::piece(&mut rng).min(rest.len()));
        rest = later;
        if let Err(error) = client.receive(piece, false, &mut ends) {
            return (Err(format!("{error:#}")), false);
        }
    }
    if ends.is_empty()
        && let Err(error) = client.receive(&[], true, &mut ends)
    {
        return (Err(format!("{error:#}")), false);
    }
    assert!(rest.is_empty() && ends[0].token == 7);
    (ends.remove(0).answer, client.is_open())
}

/// Scenario: a server of hyper's that answers with a length, in chunks, with refusals and partial successes; four requests on one
/// connection, in random pieces.
/// Guarantees: bodies arrive unchanged under their paths and headers; each answer is told as what it is.
#[tokio::test]
async fn a_real_server_gets_and_gives_what_was_meant() {
    let mut rng = chop::rng();
    let (mut stream, peer) = tokio::io::duplex(1 << 20);
    let mut server = JoinSet::new();
    server.spawn(async move {
        let service = service_fn(|request: Request<Incoming>| async {
            let (head, body) = request.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            assert_eq!(head.headers["content-type"], "application/x-protobuf");
            assert_eq!(
                (&head.headers["content-encoding"], head.headers.contains_key("host")),
                (&"gzip".parse().unwrap(), true)
            );
            assert!(body.iter().all(|byte| *byte == body[0]) && body.len() == 10 + usize::from(body[0]) * 100_000);
            let path = head.uri.path().to_owned();
            let status = if body[0] == 2 { 503 } else { 200 };
            let answer = if body[0] == 1 { vec![0x0a, 2, 8, 7] } else { path.into_bytes() };
            let pieces = answer.chunks(3).map(|piece| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(piece))));
            let pieces = StreamBody::new(futures_util::stream::iter(pieces.collect::<Vec<_>>()));
            let body = if body[0] == 3 { BodyExt::boxed(Full::new(answer.into())) } else { BodyExt::boxed(pieces) };
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        });
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(peer), service).await
    });
    let mut client = Http1::new(Some("gzip"), true);
    let answers = [Answer::Accepted, Answer::Partly, Answer::Refused(503), Answer::Accepted];
    for (number, answer) in (0u8..).zip(answers) {
        assert!(client.is_open());
        client.start(number.into(), Signal::ALL[rng.usize(..3)], &vec![number; 10 + usize::from(number) * 100_000]);
        let mut ends = Vec::new();
        while ends.is_empty() {
            chop::write(&mut stream, client.out(), &mut rng).await;
            let bytes = chop::read(&mut stream, &mut rng).await;
            assert!(!bytes.is_empty(), "the server ended");
            client.receive(&bytes, false, &mut ends).unwrap();
        }
        assert_eq!(ends, [Ended { token: number.into(), answer: Ok(answer) }]);
    }
    drop(stream);
    server.join_all().await.remove(0).unwrap();
}

/// Scenario: answers whose end is told in each of the ways that there are.
/// Guarantees: they end there, and the connection is used again only if both sides can.
#[test]
fn the_end_of_an_answer_is_found() {
    let accepted = Ok(Answer::Accepted);
    let cases: [(&[u8], Result<Answer, String>, bool); 9] = [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", accepted.clone(), true),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Keep-Alive, Close\r\n\r\n\x12\x00", accepted.clone(), false),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", accepted.clone(), false),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 429 Slow\r\nContent-Length: 1\r\n\r\nx", Ok(Answer::Refused(429)), true),
        (b"HTTP/1.1 204 None\r\n\r\n", Ok(Answer::Refused(204)), true),
        (b"HTTP/1.1 200 OK\r\n\r\n\x0a\x02\x08\x01", Ok(Answer::Partly), false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\n\x0a\x02\r\n2\r\n\x08\x01\r\n0\r\nt: u\r\n\r\n", Ok(Answer::Partly), true),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nab", Err("before the answer".into()), false),
        (b"", Err("before the answer".into()), false),
    ];
    for (answer, expected, is_open) in cases {
        match (end_of(answer, true), expected) {
            ((Err(why), _), Err(words)) => assert!(why.contains(&words), "{words}: {why}"),
            (got, expected) => assert_eq!(got, (expected, is_open), "{}", String::from_utf8_lossy(answer)),
        }
    }
}

/// Scenario: answers without an end, longer than are taken, in chunks that are none, or to nobody.
/// Guarantees: each fails with its reason, before more than the limit is kept.
#[test]
fn an_answer_beyond_a_limit_breaks_its_connection() {
    let long = "x".repeat(2 * ANSWER_MAX);
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let cases = [
        ("SSH-2.0-OpenSSH\r\n\r\n".to_owned(), "head"),
        (format!("HTTP/1.1 200 OK\r\nname: {long}"), "longer"),
        (format!("HTTP/1.1 200 OK\r\n{}\r\n", "n: v\r\n".repeat(FIELDS_MAX + 1)), "head"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9999999999\r\n\r\n".to_owned(), "longer"),
        ("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n".to_owned(), "number"),
        ("HTTP/1.1 101 Other\r\n\r\n".to_owned(), "protocol"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n".to_owned(), "coding"),
        (format!("{chunked}ffffffffffffffff\r\n"), "longer"),
        (format!("{chunked}z\r\n"), "size"),
        (format!("{chunked}1\r\nab\r\n"), "end"),
        (format!("{chunked}{}", "1\r\na\r\n".repeat(ANSWER_MAX)), "longer"),
        (format!("HTTP/1.1 200 OK\r\n\r\n{long}"), "longer"),
    ];
    for (answer, words) in cases {
        let why = end_of(answer.as_bytes(), true).0.unwrap_err();
        assert!(why.contains(words), "{words}: {why}");
    }
    let mut client = Http1::new(None, true);
    assert!(client.receive(b"HTTP/1.1 408 Timeout\r\n\r\n", false, &mut Vec::new()).is_err());
}
