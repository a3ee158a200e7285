//! What nobody decodes must not change; what cannot be decoded must be answered, and must not spoil the next request.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use pillion_loadtest::client::{self, Connection};
use pillion_loadtest::payload;
use pillion_tests::station::Station;

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const BACKEND: &str = "{allow: [\"*\"], protocol: grpc, endpoint: \"http://SINK\"}";

/// Field 19,000 (reserved by no message of OTLP), length-delimited, with bytes that look like nothing.
const UNKNOWN: &[u8] = &[0xc2, 0xa3, 0x09, 0x05, 0xff, 0x00, 0x7f, 0x80, 0x01];

/// `tag, length, bytes` of a length-delimited field under 128 bytes, or under 16 KiB.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    match bytes.len() {
        short @ 0..128 => out.push(u8::try_from(short).unwrap()),
        long => out.extend([u8::try_from(long & 0x7f).unwrap() | 0x80, u8::try_from(long >> 7).unwrap()]),
    }
    out.extend_from_slice(bytes);
    out
}

/// A trace request with an unknown field in the span, the scope, the envelope of each, the resource and the message.
fn with_unknown_fields() -> (Vec<u8>, Vec<u8>) {
    let ids = [field(1, &[7; 16]), field(2, &[9; 8]), field(5, b"one")].concat();
    let span = [ids, UNKNOWN.to_vec()].concat();
    let scope = [field(1, b"checkout"), UNKNOWN.to_vec()].concat();
    let scope_spans = [field(1, &scope), field(2, &span), UNKNOWN.to_vec()].concat();
    let resource = UNKNOWN.to_vec();
    let resource_spans = [field(1, &resource), field(2, &scope_spans), UNKNOWN.to_vec()].concat();
    ([field(1, &resource_spans), UNKNOWN.to_vec()].concat(), field(2, &scope_spans))
}

/// One exchange over HTTP/1.1: status, head and body.
fn post(address: SocketAddr, path: &str, headers: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
    let mut stream = TcpStream::connect(address).expect("connect() never fails while the shim lives");
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).expect("the gateway reads or answers");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer, then the end");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, head, answer[end + 4..].to_vec())
}

const PROTOBUF: &str = "content-type: application/x-protobuf\r\n";

/// Scenario: a request with unknown fields at every level.
/// Guarantees: all of them are at the backend, byte for byte; only the resource was rewritten.
#[test]
fn unknown_fields_survive_at_every_level() {
    let station = Station::start(NODE, BACKEND);
    let (request, scope_spans) = with_unknown_fields();

    assert_eq!(post(station.ports.http, "/v1/traces", PROTOBUF, &request).0, 200);

    assert!(station.arrived.wait_until(Duration::from_secs(60), |_, requests| !requests.is_empty()));
    let arrived = station.arrived.payloads()[0].payload.clone();
    let times = |needle: &[u8]| arrived.windows(needle.len()).filter(|window| *window == needle).count();
    assert_eq!(times(&scope_spans), 1, "everything below the resource is untouched: {arrived:02x?}");
    assert_eq!(times(UNKNOWN), 6, "{arrived:02x?}");
}

/// Scenario: each kind of request that cannot be taken, over HTTP, each followed by a good one.
/// Guarantees: the right status, a google.rpc.Status as the body in the request's encoding, and no harm to the next.
#[test]
fn what_cannot_be_taken_is_answered_and_harms_nothing_over_http() {
    let station = Station::start(NODE, BACKEND);
    let good = payload::traces("cart", &[1]);
    let bomb = {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        let zeros = vec![0; 1 << 20];
        (0..100).for_each(|_| encoder.write_all(&zeros).unwrap());
        encoder.finish().unwrap()
    };
    let json = "content-type: application/json\r\n";
    let cases: [(&str, &str, String, &[u8], u16); 9] = [
        ("not protobuf", "/v1/traces", PROTOBUF.into(), b"\xff\xff\xff\xff", 400),
        ("cut off", "/v1/traces", PROTOBUF.into(), &good[..good.len() - 3], 400),
        ("not gzip", "/v1/traces", format!("{PROTOBUF}content-encoding: gzip\r\n"), &good, 400),
        ("unknown encoding", "/v1/traces", format!("{PROTOBUF}content-encoding: br\r\n"), &good, 415),
        ("text", "/v1/traces", "content-type: text/plain\r\n".into(), b"hello", 415),
        ("no content type", "/v1/traces", String::new(), &good, 415),
        ("JSON, not yet", "/v1/traces", json.into(), b"{}", 415),
        ("a path of nobody", "/v1/spans", PROTOBUF.into(), &good, 404),
        ("a bomb", "/v1/traces", format!("{PROTOBUF}content-encoding: zstd\r\n"), &bomb, 413),
    ];
    for (what, path, headers, body, expected) in &cases {
        let (status, head, answer) = post(station.ports.http, path, headers, body);
        assert_eq!(status, *expected, "{what}: {head}");
        let encoding = if headers.contains("json") { "application/json" } else { "application/x-protobuf" };
        assert!(head.contains(&format!("content-type: {encoding}")), "{what}: {head}");
        assert!(!answer.is_empty(), "{what}: a Status says why");
        assert_eq!(post(station.ports.http, "/v1/traces", PROTOBUF, &good).0, 200, "after {what}");
    }
    let mut stream = TcpStream::connect(station.ports.http).unwrap();
    stream.write_all(b"GET /v1/traces HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

/// Scenario: garbage instead of a protocol, a connection that says nothing, and half a request, while a good client works.
/// Guarantees: the good client is answered each time.
#[test]
fn garbage_on_a_connection_harms_no_other() {
    let station = Station::start(NODE, BACKEND);
    let good = payload::traces("cart", &[1]);
    let silent = TcpStream::connect(station.ports.grpc).unwrap();
    let mut half = TcpStream::connect(station.ports.http).unwrap();
    half.write_all(b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\ncontent-length: 999\r\n\r\nabc").unwrap();
    for seed in 0..20u64 {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut garbage: Vec<u8> = (0..2_000).map(|_| random.u8(..)).collect();
        if seed % 2 == 0 {
            garbage.splice(..0, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().copied());
        }
        let mut stream = TcpStream::connect(station.ports.grpc).unwrap();
        // The gateway may close before it has read everything.
        drop(stream.write_all(&garbage));
        drop(stream.shutdown(Shutdown::Write));
        let mut rest = Vec::new();
        drop(stream.read_to_end(&mut rest));
        assert_eq!(post(station.ports.grpc, "/v1/traces", PROTOBUF, &good).0, 200, "after the garbage of seed {seed}");
    }
    drop((silent, half));
}

/// Scenario: bad gRPC calls, each followed by a good one on the same connection.
/// Guarantees: the right status; the connection goes on.
#[test]
fn what_cannot_be_taken_is_answered_and_harms_nothing_over_grpc() {
    let station = Station::start(NODE, BACKEND);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connection = Connection::open(station.ports.grpc).await.unwrap();
        let good = client::frame(&payload::traces("cart", &[1]));
        let profiles = "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export";
        let cases = [
            ("not protobuf", client::TRACES, client::frame(b"\xff\xff\xff\xff"), 3),
            ("profiles", profiles, good.clone(), 12),
            ("no such method", "/opentelemetry.proto.collector.trace.v1.TraceService/Import", good.clone(), 12),
        ];
        for (what, path, framed, expected) in cases {
            let reply = connection.export(path, framed).await.unwrap();
            assert_eq!(reply.status, expected, "{what}: {}", reply.message);
            assert_eq!(connection.export(client::TRACES, good.clone()).await.unwrap().status, 0, "after {what}");
        }
    });
}
