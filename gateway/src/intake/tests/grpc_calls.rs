//! gRPC: clauses 1 to 13 and 17 of docs/otlp.md, which is where the clauses named below are.

use std::time::Duration;

use super::harness::*;
use crate::base::Signal;
use crate::tenant::testing::policy;

const ENCODINGS: [&str; 4] = ["identity", "gzip", "zstd", "deflate"];

/// Scenario: each signal with each compression, several calls on one connection (clauses 1, 2 and 9).
/// Guarantees: OK with an empty response whose partial success is unset; the content type is the request's (clause 11);
/// every item is in the log.
#[tokio::test]
async fn every_signal_is_accepted_with_every_compression() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;

    for signal in Signal::ALL {
        for encoding in ENCODINGS {
            let answer = call(&client, signal, encoding, &compressed(encoding, &message(signal, 3, 10))).await;
            assert_eq!((answer.http, answer.grpc_status()), (200, 0), "{signal:?} {encoding}");
            assert_eq!(answer.body, framed(0, b""));
            assert_eq!(answer.header("content-type"), Some("application/grpc"));
        }
    }

    assert_eq!(pod.committed_items(), 3 * 12);
    assert_eq!(pod.handle.snapshot().accepted, [12; 3]);
    drop(client);
    pod.close().await;
}

/// Scenario: a request that holds nothing, as an exporter sends on its flush (clause 9).
/// Guarantees: it succeeds, and nothing is written for it.
#[tokio::test]
async fn an_empty_request_succeeds() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;

    let answer = call(&client, Signal::Traces, "identity", b"").await;

    assert_eq!((answer.grpc_status(), pod.committed_items()), (0, 0));
    drop(client);
    pod.close().await;
}

/// Scenario: a client names its codec in the content type (clause 11).
/// Guarantees: the reply's content type equals the request's.
#[tokio::test]
async fn the_content_type_of_the_reply_is_that_of_the_request() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;
    let mut head = grpc_head(Signal::Logs.grpc_path(), "identity");
    head.headers_mut().insert("content-type", "application/grpc+proto".parse().unwrap());

    let answer = send(&client, head, &framed(0, &message(Signal::Logs, 1, 1))).await;

    assert_eq!((answer.grpc_status(), answer.header("content-type")), (0, Some("application/grpc+proto")));
    drop(client);
    pod.close().await;
}

/// Scenario: profiles, an unknown service, and an unknown method of a known one (clause 1).
/// Guarantees: UNIMPLEMENTED with words that say what is served; the connection goes on.
#[tokio::test]
async fn other_services_are_unimplemented() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;

    for path in [
        "/opentelemetry.proto.collector.profiles.v1development.ProfilesService/Export",
        "/grpc.health.v1.Health/Check",
        "/opentelemetry.proto.collector.trace.v1.TraceService/Import",
    ] {
        let answer = send(&client, grpc_head(path, "identity"), &framed(0, b"")).await;
        assert_eq!((answer.http, answer.grpc_status()), (200, 12), "{path}");
        assert!(answer.header("grpc-message").unwrap().contains("serves Export"));
        assert!(answer.details().is_empty(), "not retryable");
    }

    assert_eq!(call(&client, Signal::Traces, "identity", &message(Signal::Traces, 1, 1)).await.grpc_status(), 0);
    drop(client);
    pod.close().await;
}

/// Scenario: a compression that nobody here knows (clause 2).
/// Guarantees: UNIMPLEMENTED, with the list of those that are known.
#[tokio::test]
async fn an_unknown_compression_is_unimplemented() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;

    let answer = call(&client, Signal::Traces, "snappy", b"whatever").await;

    assert_eq!(answer.grpc_status(), 12);
    assert_eq!(answer.header("grpc-accept-encoding"), Some("identity,gzip,zstd,deflate"));
    drop(client);
    pod.close().await;
}

/// Scenario: messages and frames that cannot be read, of every kind, one after the other (clause 13).
/// Guarantees: INVALID_ARGUMENT with a BadRequest detail each time, and the next good request on the connection works.
#[tokio::test]
async fn malformed_calls_are_answered_and_the_next_good_one_works() {
    let mut pod = Pod::new();
    let client = pod.grpc().await;
    let good = message(Signal::Traces, 1, 1);
    let bodies: Vec<(&str, &str, Vec<u8>)> = vec![
        ("no message", "identity", vec![]),
        ("half a prefix", "identity", vec![0, 0]),
        ("a message cut short", "identity", framed(0, &good)[..good.len()].to_vec()),
        ("two messages", "identity", [framed(0, &good), framed(0, &good)].concat()),
        ("a strange flag", "identity", framed(7, &good).to_vec()),
        ("compressed with nothing", "identity", framed(1, &good).to_vec()),
        ("no gzip", "gzip", framed(1, &good).to_vec()),
        ("gzip cut short", "gzip", framed(1, &compressed("gzip", &good)[..20]).to_vec()),
        ("gzip and more", "gzip", framed(1, &[compressed("gzip", &good), vec![7; 9]].concat()).to_vec()),
        ("no zstd", "zstd", framed(1, &good).to_vec()),
        ("zstd cut short", "zstd", framed(1, &compressed("zstd", &good)[..20]).to_vec()),
        ("zstd and more", "zstd", framed(1, &[compressed("zstd", &good), vec![7; 9]].concat()).to_vec()),
        ("zlib and more", "deflate", framed(1, &[compressed("deflate", &good), vec![7; 9]].concat()).to_vec()),
        ("no protobuf", "identity", framed(0, b"\xff\xff\xff\xff").to_vec()),
        ("a trace id of 3 bytes", "identity", framed(0, &bad_trace_id()).to_vec()),
    ];

    for (what, encoding, body) in &bodies {
        let answer = send(&client, grpc_head(Signal::Traces.grpc_path(), encoding), body).await;
        assert_eq!((answer.http, answer.grpc_status()), (200, 3), "{what}: {:?}", answer.header("grpc-message"));
        assert_eq!(answer.details(), ["BadRequest"], "{what}");
        assert_eq!(call(&client, Signal::Traces, "identity", &good).await.grpc_status(), 0, "after {what}");
    }

    assert_eq!(pod.committed_items() as usize, bodies.len());
    drop(client);
    pod.close().await;
}

fn bad_trace_id() -> Vec<u8> {
    let span = [0x0a, 3, 1, 2, 3];
    let scope = [&[0x12, 5][..], &span].concat();
    let resource = [&[0x12, 7][..], &scope].concat();
    [&[0x0a, 9][..], &resource].concat()
}

/// Scenario: a message over the limit on the wire, and one that is only over it after decompression (clauses 3 and 5).
/// Guarantees: RESOURCE_EXHAUSTED without RetryInfo; nothing of it is kept; a request of exactly the limit passes.
#[tokio::test]
async fn messages_over_the_limit_are_refused_for_good() {
    let mut small = policy();
    let exact = message(Signal::Logs, 1, 50_000);
    small.limits.max_request_bytes = exact.len() as u64;
    let mut pod = Pod::with(small);
    let client = pod.grpc().await;
    let over = message(Signal::Logs, 1, 50_001);

    for encoding in ENCODINGS {
        let answer = call(&client, Signal::Logs, encoding, &compressed(encoding, &over)).await;
        assert_eq!((answer.grpc_status(), answer.details().len()), (8, 0), "{encoding}");
        let answer = call(&client, Signal::Logs, encoding, &compressed(encoding, &exact)).await;
        assert_eq!(answer.grpc_status(), 0, "{encoding}");
    }

    drop(client);
    pod.close().await;
}

/// Scenario: 4 MB of zeros in a few KB, in each compression, by a tenant that may send 256 KiB (clause 3, docs/threats.md row 13).
/// Guarantees: the bomb ends at the limit, never in memory: 3 MiB are enough for it, the wide window and zstd's own included.
#[tokio::test]
async fn a_bomb_ends_at_the_limit() {
    let mut small = policy();
    small.limits.max_request_bytes = 256 << 10;
    small.limits.memory.ceiling = 3 << 20;
    let mut pod = Pod::with(small);
    let client = pod.grpc().await;
    let zeros = vec![0; 4 << 20];

    for encoding in ["gzip", "zstd", "deflate"] {
        let answer = call(&client, Signal::Traces, encoding, &compressed(encoding, &zeros)).await;
        let words = answer.header("grpc-message");
        assert_eq!((answer.grpc_status(), answer.details().len()), (8, 0), "{encoding}: {words:?}");
    }

    drop(client);
    pod.close().await;
}

/// Scenario: more requests at once than the tenant's bucket holds (clause 17).
/// Guarantees: UNAVAILABLE with RetryInfo, its delay from the tenant's own bucket; the body is never buffered; the same
/// connection works again for a request within the quota.
#[tokio::test]
async fn over_quota_there_is_a_delay_from_the_tenants_own_bucket() {
    let mut slow = policy();
    slow.limits.bytes_per_second = 10;
    slow.limits.max_request_bytes = 100_000;
    let mut pod = Pod::with(slow);
    let client = pod.grpc().await;
    let large = message(Signal::Traces, 1, 90_000);
    assert_eq!(call(&client, Signal::Traces, "identity", &large).await.grpc_status(), 0);

    let answer = call(&client, Signal::Traces, "identity", &large).await;

    assert_eq!((answer.grpc_status(), answer.details()), (14, vec!["RetryInfo".to_owned()]));
    let delay = retry_delay(&answer);
    assert!((Duration::from_secs(7_000)..Duration::from_secs(9_000)).contains(&delay), "{delay:?} for 80 KB at 10 B/s");
    let small = message(Signal::Traces, 1, 10);
    assert_eq!(call(&client, Signal::Traces, "identity", &small).await.grpc_status(), 0);
    assert_eq!(pod.committed_items(), 2);
    drop(client);
    pod.close().await;
}

fn retry_delay(answer: &Answer) -> Duration {
    use prost::Message;
    let detail = &answer.status().details[0];
    let delay = crate::intake::status::RetryInfo::decode(&detail.value[..]).unwrap().retry_delay.unwrap();
    Duration::new(u64::try_from(delay.seconds).unwrap(), u32::try_from(delay.nanos).unwrap())
}

/// Scenario: 64 calls at once on one connection, more of them than fit a narrow window (clause 8).
/// Guarantees: all are answered, and all is in the log.
#[tokio::test]
async fn concurrent_calls_share_a_connection() {
    let mut fast = policy();
    fast.limits.bytes_per_second = 1 << 30;
    let mut pod = Pod::with(fast);
    let client = pod.grpc().await;
    let large = message(Signal::Logs, 10, 10_000);

    let calls = (0..64).map(|_| call(&client, Signal::Logs, "identity", &large));
    let answers = futures_util::future::join_all(calls).await;

    assert!(answers.iter().all(|answer| answer.grpc_status() == 0));
    assert_eq!(pod.committed_items(), 640);
    drop(client);
    pod.close().await;
}

/// Scenario: a request of 9 MB with several thousand items.
/// Guarantees: it is worked on in pieces and lands as several records that hold all of it.
#[tokio::test]
async fn a_large_request_becomes_several_records() {
    let mut fast = policy();
    fast.limits.bytes_per_second = 1 << 30;
    let mut pod = Pod::with(fast);
    let client = pod.grpc().await;

    let answer = call(&client, Signal::Traces, "identity", &message(Signal::Traces, 9_000, 1_000)).await;

    assert_eq!(answer.grpc_status(), 0);
    assert_eq!(pod.committed_items(), 9_000);
    assert!(pod.bench.log.committed().len() >= 3);
    drop(client);
    pod.close().await;
}
