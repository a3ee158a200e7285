//! Real requests over real connections.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::Server;
use super::super::testing::Made;
use crate::base::{Sequence, Signal, TenantId};
use crate::sink::{Delivery, Sink};

struct Reply {
    status: u16,
    head: String,
    body: String,
}

fn start(made: &Made) -> Server {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    Server::start(listener, made.sources()).expect("within a runtime")
}

async fn send(address: SocketAddr, head: &str) -> Reply {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(head.as_bytes()).await.expect("it reads");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.expect("it answers");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    Reply { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
}

async fn get(address: SocketAddr, path: &str, headers: &str) -> Reply {
    send(address, &format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n")).await
}

/// Scenario: a person and a kubelet ask for everything there is.
/// Guarantees: each path answers with its content type, and with headers that keep browsers from guessing or framing.
#[tokio::test]
async fn each_path_answers_in_its_own_format() {
    let server = start(&Made::default());
    let json = "accept: application/json;q=0.9, text/html\r\n";
    for (path, headers, kind, part) in [
        ("/livez", "", "text/plain; charset=utf-8", "alive"),
        ("/readyz", "", "text/plain; charset=utf-8", "ready"),
        ("/readyz?format=json", "", "application/json", "{\"ready\":true,\"reasons\":[]}"),
        ("/metrics", "", "application/openmetrics-text; version=1.0.0; charset=utf-8", "# EOF\n"),
        ("/tenants", "", "text/html; charset=utf-8", "<td>shop/cart</td>"),
        ("/tenants", json, "application/json", "\"name\":\"shop/cart\""),
        ("/tenants?x=y&format=json", "", "application/json", "\"name\":\"shop/cart\""),
        ("/", "", "text/html; charset=utf-8", "<!doctype html>"),
    ] {
        let reply = get(server.address(), path, headers).await;
        assert_eq!(reply.status, 200, "{path}");
        assert!(reply.head.contains(&format!("content-type: {kind}")), "{path}: {}", reply.head);
        assert!(reply.head.contains("x-content-type-options: nosniff"), "{path}: {}", reply.head);
        assert!(reply.head.contains("frame-ancestors 'none'"), "{path}: {}", reply.head);
        assert!(reply.body.contains(part), "{path}: {}", reply.body);
    }
    let missing = get(server.address(), "/metricz", "").await;
    assert_eq!((missing.status, missing.body.contains("/metrics")), (404, true));
    assert_eq!(get(server.address(), "/sink", "").await.status, 404, "no sink was given");
    let head = send(server.address(), "HEAD /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

/// Whether the text begins like `onclick=`.
fn is_handler(text: &str) -> bool {
    text.trim_start_matches(|c: char| c.is_ascii_lowercase()).starts_with('=')
}

/// Scenario: the page is loaded twice.
/// Guarantees: its style and script run by a nonce that is new each time, and nothing else does.
#[tokio::test]
async fn the_page_runs_only_its_own_script() {
    let server = start(&Made::default());
    let mut nonces = Vec::new();
    for _ in 0..2 {
        let reply = get(server.address(), "/", "").await;
        let nonce = reply.head.split("script-src 'nonce-").nth(1).and_then(|rest| rest.split('\'').next());
        let nonce = nonce.expect("a nonce").to_owned();
        assert_eq!(reply.body.matches(&format!("nonce=\"{nonce}\"")).count(), 2, "style and script");
        assert!(!reply.head.contains("unsafe") && !reply.body.contains("{{"), "{}", reply.head);
        for makes_markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("] {
            assert!(!reply.body.contains(makes_markup), "{makes_markup} in the page");
        }
        let markup = reply.body.split("</style>").last().and_then(|rest| rest.split("<script").next()).expect("a body");
        assert!(!markup.match_indices(" on").any(|(at, _)| is_handler(&markup[at + 1..])), "a handler in an attribute");
        for loads in [" src=", "url(", "@import", "import("] {
            assert!(!reply.body.contains(loads), "{loads} in the page");
        }
        for link in reply.body.split("href=\"").skip(1) {
            assert!(
                ["/", "#", "data:"].iter().any(|own| link.starts_with(own)) && !link.starts_with("//"),
                "{link:.40}"
            );
        }
        nonces.push(nonce);
    }
    assert_ne!(nonces[0], nonces[1]);
}

/// Scenario: the gateway drains.
/// Guarantees: 503, and the reasons in words and as JSON; liveness is another question.
#[tokio::test]
async fn what_speaks_against_readiness_is_told() {
    let made = Made { reasons: vec!["draining".to_owned(), "a worker does not answer".to_owned()], ..Made::default() };
    let server = start(&made);
    let text = get(server.address(), "/readyz", "").await;
    assert_eq!((text.status, text.body.as_str()), (503, "not ready\ndraining\na worker does not answer\n"));
    let json = get(server.address(), "/readyz", "accept: application/json\r\n").await;
    let body = "{\"ready\":false,\"reasons\":[\"draining\",\"a worker does not answer\"]}";
    assert_eq!((json.status, json.body.as_str()), (503, body));
    assert_eq!(get(server.address(), "/livez", "").await.status, 200);
}

/// Scenario: a name of somebody else points at the loopback address; a client names no host; another method.
/// Guarantees: refused with a status that says why, whatever the path, also in absolute form.
#[tokio::test]
async fn requests_for_another_host_or_method_are_refused() {
    let server = start(&Made::default());
    let address = server.address();
    for (head, status) in [
        ("GET /tenants HTTP/1.1\r\nhost: evil.example\r\n", 421),
        ("GET /metrics HTTP/1.1\r\nhost: evil.example:4380\r\n", 421),
        ("GET http://evil.example/tenants HTTP/1.1\r\nhost: localhost\r\n", 421),
        ("GET /livez HTTP/1.1\r\n", 400),
        ("POST /tenants HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n", 405),
        ("GET /livez HTTP/1.1\r\nhost: pillion.localhost:1\r\n", 200),
        ("GET http://localhost/livez HTTP/1.1\r\nhost: localhost\r\n", 200),
    ] {
        let reply = send(address, &format!("{head}connection: close\r\n\r\n")).await;
        assert_eq!(reply.status, status, "{head}: {}", reply.body);
    }
}

/// Scenario: spans arrive in the embedded sink.
/// Guarantees: /sink counts them; the last ones are added only when asked for.
#[tokio::test]
async fn the_sink_is_shown_as_json() {
    let dir = tempfile::tempdir().expect("a directory");
    let sink = Sink::open(dir.path()).expect("a new sink");
    let delivery = Delivery {
        tenant: TenantId(1),
        name: super::super::testing::name("shop/cart"),
        sequence: Some(Sequence(1)),
        acknowledged: Sequence::ZERO,
        signal: Signal::Logs,
        items: 4,
        payload: bytes::Bytes::new(),
    };
    sink.store(&[delivery]).expect("the disk is there");
    let server = start(&Made { sink: Some(sink), ..Made::default() });

    let reply = get(server.address(), "/sink", "").await;
    let json: serde_json::Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(json["totals"], serde_json::json!({"traces": 0, "metrics": 0, "logs": 4}));
    assert_eq!(json["tenants"]["shop/cart"]["services"]["unknown_service"]["logs"], 4);
    assert!(json.get("latest").is_none());
    let reply = get(server.address(), "/sink?items=5", "").await;
    let json: serde_json::Value = serde_json::from_str(&reply.body).expect("JSON");
    assert_eq!(json["latest"]["logs"], serde_json::json!([]));
}

/// Scenario: the gateway ends while a client is idle on a kept-alive connection.
/// Guarantees: the server's task ends without waiting for the client's next request.
#[tokio::test]
async fn stopping_closes_idle_connections() {
    let server = start(&Made::default());
    let mut stream = TcpStream::connect(server.address()).await.expect("it listens");
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.expect("it reads");
    let mut first = [0; 15];
    stream.read_exact(&mut first).await.expect("it answers");
    assert_eq!(&first, b"HTTP/1.1 200 OK");

    server.stop();
    server.stopped().await;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.expect("the end of the stream");
    assert!(rest.ends_with(b"alive\n"));
}
