//! OTLP/HTTP over HTTP/1.1 and HTTP/2: clauses 1 to 15, 17 and 26 of docs/otlp.md, which is where the clauses named below are.

use bytes::Bytes;
use http::Method;
use prost::Message;

use super::harness::*;
use crate::base::Signal;
use crate::queue::AppendError;
use crate::tenant::testing::policy;

/// One client of each protocol, behind one face.
struct Clients {
    one: hyper::client::conn::http1::SendRequest<http_body_util::Full<Bytes>>,
    two: h2::client::SendRequest<Bytes>,
}

impl Clients {
    async fn of(pod: &mut Pod) -> Self {
        Self { one: pod.http1().await, two: pod.grpc().await }
    }

    /// The same request over both; `check` sees each answer.
    async fn post(&mut self, head: impl Fn() -> http::Request<()>, body: &[u8], check: impl Fn(&str, Answer)) {
        check("HTTP/1.1", post(&mut self.one, head(), body).await);
        check("HTTP/2", send(&self.two, head(), body).await);
    }
}

/// Scenario: each signal with each compression over HTTP/1.1 and HTTP/2 (clauses 1, 2, 9 and 11).
/// Guarantees: 200 with an empty response in protobuf; every item is in the log; the connections are kept alive.
#[tokio::test]
async fn every_signal_is_accepted_with_every_compression() {
    let mut pod = Pod::new();
    let mut clients = Clients::of(&mut pod).await;

    for signal in Signal::ALL {
        for encoding in [None, Some("identity"), Some("gzip"), Some("zstd"), Some("deflate")] {
            let body = compressed(encoding.unwrap_or_default(), &message(signal, 2, 10));
            let check = |protocol: &str, answer: Answer| {
                assert_eq!(answer.http, 200, "{protocol} {signal:?} {encoding:?}");
                assert_eq!(answer.header("content-type"), Some("application/x-protobuf"));
                assert!(answer.body.is_empty(), "partial success is unset");
            };
            clients.post(|| http_head(signal.http_path(), encoding), &body, check).await;
        }
    }

    assert_eq!(pod.committed_items(), 2 * 2 * 15);
    drop(clients);
    pod.close().await;
}

/// Scenario: a body of unknown length, in chunks over HTTP/1.1 (clause 1).
/// Guarantees: it is taken, its reservation growing with it.
#[tokio::test]
async fn a_body_of_unknown_length_is_accepted() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let pod = Pod::new();
    let mut socket = pod.connect();
    let body = message(Signal::Traces, 100, 1_000);

    let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/x-protobuf\r\ntransfer-encoding: chunked\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    for chunk in body.chunks(1_000) {
        socket.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await.unwrap();
        socket.write_all(chunk).await.unwrap();
        socket.write_all(b"\r\n").await.unwrap();
    }
    socket.write_all(b"0\r\n\r\n").await.unwrap();
    let mut reply = String::new();
    socket.read_to_string(&mut reply).await.unwrap();

    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
    assert_eq!(pod.committed_items(), 100);
    drop(socket);
    pod.close().await;
}

/// Scenario: what is no OTLP/HTTP request: another path, another method, another content type, another compression
/// (clauses 1, 2 and 13).
/// Guarantees: 404, 405 with Allow, 415, each with a Status body in protobuf (clause 12); the next good request works.
#[tokio::test]
async fn what_is_not_served_is_refused_with_a_status_body() {
    let mut pod = Pod::new();
    let mut clients = Clients::of(&mut pod).await;
    let good = message(Signal::Traces, 1, 1);
    let path = || http_head("/v1/profiles", None);
    let method = || {
        let mut head = http_head("/v1/traces", None);
        *head.method_mut() = Method::PUT;
        head
    };
    let text = || {
        let mut head = http_head("/v1/traces", None);
        head.headers_mut().insert("content-type", "text/plain".parse().unwrap());
        head
    };
    let none = || {
        let mut head = http_head("/v1/traces", None);
        head.headers_mut().remove("content-type");
        head
    };
    let encoding = || http_head("/v1/traces", Some("br"));
    let twice = || {
        let mut head = http_head("/v1/traces", Some("gzip"));
        head.headers_mut().append("content-encoding", "gzip".parse().unwrap());
        head
    };
    let cases: [(&dyn Fn() -> http::Request<()>, u16); 6] =
        [(&path, 404), (&method, 405), (&text, 415), (&none, 415), (&encoding, 415), (&twice, 415)];

    for (head, expected) in cases {
        let check = |protocol: &str, answer: Answer| {
            assert_eq!(answer.http, expected, "{protocol}");
            assert_eq!(answer.header("content-type"), Some("application/x-protobuf"));
            assert_eq!((answer.status().code, answer.status().message.is_empty()), (12, false));
            assert_eq!(answer.header("allow"), (expected == 405).then_some("POST"));
            assert_eq!(answer.header("retry-after"), None);
        };
        clients.post(head, &good, check).await;
        clients.post(|| http_head("/v1/traces", None), &good, |_, answer| assert_eq!(answer.http, 200)).await;
    }
    drop(clients);
    pod.close().await;
}

/// Scenario: a client that sends JSON.
/// Guarantees: 415 with a Status in JSON, whose words say which setting helps.
#[tokio::test]
async fn json_is_refused_in_json() {
    let mut pod = Pod::new();
    let mut clients = Clients::of(&mut pod).await;
    let head = || {
        let mut head = http_head("/v1/logs", None);
        head.headers_mut().insert("content-type", "application/json; charset=utf-8".parse().unwrap());
        head
    };

    let check = |_: &str, answer: Answer| {
        assert_eq!((answer.http, answer.header("content-type")), (415, Some("application/json")));
        let status: serde_json::Value = serde_json::from_slice(&answer.body).expect("the body is JSON");
        assert_eq!(status["code"], 12);
        assert!(status["message"].as_str().unwrap().contains("http/protobuf"));
    };
    clients.post(head, b"{}", check).await;

    drop(clients);
    pod.close().await;
}

/// Scenario: bodies that cannot be read (clause 13).
/// Guarantees: 400 with a BadRequest detail; the next good request on the same connection works.
#[tokio::test]
async fn malformed_bodies_are_bad_requests() {
    let mut pod = Pod::new();
    let mut clients = Clients::of(&mut pod).await;
    let good = message(Signal::Metrics, 1, 1);
    let cases: [(Option<&str>, &[u8]); 4] =
        [(None, b"\xff\xff"), (None, b"\x0a\x7f"), (Some("gzip"), &good), (Some("zstd"), &good)];

    for (encoding, body) in cases {
        let check = |protocol: &str, answer: Answer| {
            assert_eq!((answer.http, answer.details()), (400, vec!["BadRequest".to_owned()]), "{protocol}");
            assert_eq!(answer.status().code, 3);
        };
        clients.post(|| http_head("/v1/metrics", encoding), body, check).await;
        clients.post(|| http_head("/v1/metrics", None), &good, |_, answer| assert_eq!(answer.http, 200)).await;
    }
    drop(clients);
    pod.close().await;
}

/// Scenario: bodies over the limit on the wire, after decompression, and of unknown length (clauses 3 and 4).
/// Guarantees: 413 with a Status and without Retry-After.
#[tokio::test]
async fn bodies_over_the_limit_are_413() {
    let mut small = policy();
    small.limits.max_request_bytes = 20_000;
    let mut pod = Pod::with(small);
    let over = message(Signal::Traces, 1, 20_000);

    for encoding in [None, Some("gzip"), Some("zstd")] {
        let mut clients = Clients::of(&mut pod).await;
        let body = compressed(encoding.unwrap_or_default(), &over);
        let check = |protocol: &str, answer: Answer| {
            assert_eq!((answer.http, answer.status().code), (413, 8), "{protocol} {encoding:?}");
            assert_eq!((answer.header("retry-after"), answer.details().len()), (None, 0));
        };
        clients.post(|| http_head("/v1/traces", encoding), &body, check).await;
    }
    pod.close().await;
}

/// Scenario: a body far over the limit, sent by a client that reads the reply only after it has sent everything it can.
/// Guarantees: the 413 arrives all the same: the connection is closed after the reply, not under it.
#[tokio::test]
async fn the_reply_to_a_body_that_is_never_read_arrives() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut small = policy();
    small.limits.max_request_bytes = 20_000;
    let pod = Pod::with(small);
    let mut socket = pod.connect();

    let head = "POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 2000000\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.write_all(&vec![0; 2_000_000]).await.expect("the gateway lets the client finish");
    let mut reply = Vec::new();
    socket.read_to_end(&mut reply).await.unwrap();

    let reply = String::from_utf8_lossy(&reply);
    assert!(reply.starts_with("HTTP/1.1 413"), "{reply}");
    assert!(reply.contains("connection: close"), "{reply}");
    drop(socket);
    pod.close().await;
}

/// Scenario: a tenant over its request rate (clauses 14, 15 and 17).
/// Guarantees: 429 with Retry-After in whole seconds, at least one, and RetryInfo in the body.
#[tokio::test]
async fn over_quota_is_429_with_retry_after() {
    let mut slow = policy();
    slow.limits.bytes_per_second = 10;
    slow.limits.max_request_bytes = 50_000;
    let mut pod = Pod::with(slow);
    let mut clients = Clients::of(&mut pod).await;
    let body = message(Signal::Logs, 1, 40_000);
    assert_eq!(post(&mut clients.one, http_head("/v1/logs", None), &body).await.http, 200);

    let check = |protocol: &str, answer: Answer| {
        assert_eq!((answer.http, answer.status().code), (429, 14), "{protocol}");
        let seconds: u64 = answer.header("retry-after").expect("a delay").parse().expect("whole seconds");
        // Announced: what 30 KB take. Of unknown length, as here over HTTP/2: what the first piece takes.
        assert!((500..4_000).contains(&seconds), "6 to 30 KB at 10 B/s: {seconds}");
        assert_eq!(answer.details(), ["RetryInfo"]);
    };
    clients.post(|| http_head("/v1/logs", None), &body, check).await;

    drop(clients);
    pod.close().await;
}

/// Scenario: the queue is full, behind, or poisoned (clauses 14, 15 and 17).
/// Guarantees: 503 with Retry-After over HTTP, UNAVAILABLE with RetryInfo over gRPC; what was taken from the quota for it is
/// given back; nothing is counted as accepted.
#[tokio::test]
async fn a_queue_without_room_is_503_with_retry_after() {
    let mut pod = Pod::new();
    let mut clients = Clients::of(&mut pod).await;
    let body = message(Signal::Logs, 1, 1);

    for error in [
        AppendError::Full,
        AppendError::LowSpace,
        AppendError::Busy,
        AppendError::Stalled,
        AppendError::Poisoned,
        AppendError::Closed,
    ] {
        pod.bench.log.refuse(Some(error));
        let check = |protocol: &str, answer: Answer| {
            assert_eq!((answer.http, answer.details()), (503, vec!["RetryInfo".to_owned()]), "{protocol} {error}");
            assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
        };
        clients.post(|| http_head("/v1/logs", None), &body, check).await;
        let answer = call(&clients.two, Signal::Logs, "identity", &body).await;
        assert_eq!((answer.grpc_status(), answer.details()), (14, vec!["RetryInfo".to_owned()]), "{error}");
    }
    assert_eq!(pod.handle.snapshot().accepted, [0; 3]);
    assert_eq!(pod.handle.snapshot().refused, [0, 0, 18]);
    pod.bench.log.refuse(None);
    clients.post(|| http_head("/v1/logs", None), &body, |_, answer| assert_eq!(answer.http, 200)).await;

    drop(clients);
    pod.close().await;
}

/// Scenario: a policy that sends one signal nowhere.
/// Guarantees: that signal is refused for good and the others are taken.
#[tokio::test]
async fn a_signal_without_destination_is_refused() {
    let mut narrow = policy();
    narrow.destinations[Signal::Metrics.index()].clear();
    let mut pod = Pod::with(narrow);
    let mut clients = Clients::of(&mut pod).await;

    let refused = |_: &str, answer: Answer| assert_eq!((answer.http, answer.status().code), (404, 12));
    clients.post(|| http_head("/v1/metrics", None), &message(Signal::Metrics, 1, 1), refused).await;
    let taken = |_: &str, answer: Answer| assert_eq!(answer.http, 200);
    clients.post(|| http_head("/v1/traces", None), &message(Signal::Traces, 1, 1), taken).await;

    drop(clients);
    pod.close().await;
}

/// Scenario: fields of a later release of OTLP in a request (clause 26).
/// Guarantees: they reach the log byte for byte.
#[tokio::test]
async fn unknown_fields_survive() {
    let mut pod = Pod::new();
    let mut client = pod.http1().await;
    let mut body = message(Signal::Traces, 1, 1);
    let unknown = [0xfa, 0x3e, 3, b'n', b'e', b'w'];
    body.extend_from_slice(&unknown);

    assert_eq!(post(&mut client, http_head("/v1/traces", None), &body).await.http, 200);

    let stored = pod.bench.log.committed().remove(0).payload;
    assert!(stored.windows(unknown.len()).any(|window| window == unknown));
    let decoded = opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest::decode(stored);
    assert_eq!(decoded.unwrap().resource_spans[0].scope_spans[0].spans.len(), 1);
    drop(client);
    pod.close().await;
}
