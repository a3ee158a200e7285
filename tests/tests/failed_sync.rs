//! The disk fails, or does not answer: fdatasync of the real gateway's log returns EIO, or does not return.

use std::time::Duration;

use pillion_loadtest::client;
use pillion_loadtest::payload;
use pillion_loadtest::sink::{Keep, Sink};
use pillion_tests::ask::{self, Answer};
use pillion_tests::gateway::{Gateway, below, directory};
use pillion_tests::shim::{Ports, Shim};
use pillion_tests::station;
use pillion_tests::sync_gate::SyncGate;

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const GATED: &str = env!("CARGO_BIN_EXE_pillion-gated");
const PATIENCE: Duration = Duration::from_secs(300);

/// Requests that wait for the disk; as many connections.
const WAITING: u64 = 6;

struct Node {
    // Dropped in this order: nobody waits at a gate that is gone.
    gateway: Gateway,
    gate: SyncGate,
    sink: Sink,
    ports: Ports,
    _shim: Shim,
    dir: tempfile::TempDir,
}

impl Node {
    /// With the first request acknowledged.
    fn start() -> Self {
        let dir = directory();
        let sink = Sink::start(([127, 0, 0, 1], 0).into(), Keep::TraceIds("k8s.pod.name".into())).expect("a free port");
        let ports = Ports::free();
        let backend = "{allow: [\"*\"], protocol: grpc, endpoint: \"http://SINK\"}";
        let config = station::config(backend, sink.address(), ports);
        let gate = SyncGate::open(dir.path());
        let gateway = Gateway::start_through(gate.command(GATED), NODE, dir.path(), &config);
        let shim = Shim::start(NODE, &below(&dir, "cart"), ports);
        let node = Self { gateway, gate, sink, ports, _shim: shim, dir };
        assert!(send(ports, 1).expect("an answer").is_ok);
        node
    }

    /// Sends so many requests, half over each protocol; once the worker has all of them and the log's sync waits, does
    /// `then`. How each ended; `None` without an answer.
    fn while_some_wait(&self, then: impl FnOnce()) -> Vec<Option<Answer>> {
        self.gate.close();
        let ports = self.ports;
        let senders: Vec<_> = (2..2 + WAITING).map(|id| std::thread::spawn(move || send(ports, id))).collect();
        self.gateway.wait_for("the connections", |gateway| {
            gateway.metric_of("pillion_connections", &["workload=\"cart\""]) == Some(WAITING as f64)
        });
        self.gate.wait_for_one();
        then();
        senders.into_iter().map(|sender| sender.join().expect("it does not panic")).collect()
    }

    fn arrive(&self, ids: &[u64]) {
        let arrived = self.sink.wait_until(PATIENCE, |seen, _| ids.iter().all(|id| seen.contains_key(id)));
        assert!(arrived, "{ids:?} are acknowledged and not there\n{}", self.gateway.explain());
    }
}

/// One span; odd ids over HTTP, even ones over gRPC.
fn send(ports: Ports, id: u64) -> Option<Answer> {
    let body = payload::traces("cart", &[id]);
    match id % 2 {
        1 => ask::over_http(ports.http, "/v1/traces", &body).ok(),
        _ => ask::over_grpc(ports.grpc, client::TRACES, &body).ok(),
    }
}

/// Scenario: requests of six applications wait for an fdatasync, which then fails with EIO.
/// Guarantees: none of them is told OK; the log says which file, why, and what to do; the worker ends with its own status; its
/// successor serves, and what was acknowledged before and after arrives.
#[test]
fn after_a_failed_sync_nobody_is_told_ok_and_the_next_start_recovers() {
    let mut node = Node::start();
    for answer in node.while_some_wait(|| node.gate.fail()).into_iter().flatten() {
        let is_right = !answer.is_ok && answer.has_delay && ["HTTP 503", "gRPC 14"].contains(&answer.status.as_str());
        assert!(is_right, "{answer:?}\n{}", node.gateway.explain());
    }
    let line = node.gateway.wait_for_line("the queue's log is poisoned");
    for words in ["ERROR", "syncing the log", ".seg: ", "Input/output error", "Check the disk", "node.data_dir"] {
        assert!(line.contains(words), "{words:?} is missing: {line}");
    }
    node.gateway.wait_for_line("the worker ended: poisoned log");
    node.gateway.wait_for_line("restarts=1");
    assert!(send(node.ports, 101).is_some_and(|answer| answer.is_ok), "{}", node.gateway.explain());
    node.arrive(&[1, 101]);
    let reason = node.gateway.metric_of("pillion_worker_last_restart_info", &["reason=\"poisoned log\""]);
    assert_eq!(reason, Some(1.0));
    assert!(node.gateway.stop().success());
}

/// Scenario: an fdatasync does not return while six applications wait for it and others come; then it does.
/// Guarantees: all are told to come back later, those that come now at once; /readyz says why; nothing is restarted, intake
/// resumes by itself, and what was told to wait arrives too, since it was written.
#[test]
fn while_the_disk_does_not_answer_senders_are_told_to_wait() {
    let mut node = Node::start();
    for answer in node.while_some_wait(|| ()) {
        let answer = answer.expect("it is not left waiting");
        assert!(!answer.is_ok && answer.has_delay && answer.words.contains("the disk does not answer"), "{answer:?}");
    }
    let readiness = node.gateway.json("/readyz?format=json");
    assert!(readiness["reasons"].to_string().contains("has not answered for seconds"), "{readiness}");
    let late = send(node.ports, 100).expect("an answer");
    assert!(late.words.contains("the disk does not answer"), "{late:?}");

    node.gate.let_through();
    node.gateway.wait_for("intake resumes", |_| send(node.ports, 101).is_some_and(|answer| answer.is_ok));
    node.arrive(&[1, 2, 3, 4, 5, 6, 7, 101]);
    assert_eq!(node.gateway.metric("pillion_worker_restarts_total"), Some(0.0));
    assert!(node.gateway.stop().success());
}

/// Scenario: SIGTERM while an fdatasync does not return.
/// Guarantees: it ends by itself, with a status that says that it could not close the queue; the next start has everything.
#[test]
fn a_disk_that_does_not_answer_does_not_keep_the_process() {
    let mut node = Node::start();
    let mut status = None;
    node.gate.close();
    let ports = node.ports;
    let sender = std::thread::spawn(move || send(ports, 2));
    node.gate.wait_for_one();
    status.replace(node.gateway.stop());
    assert_eq!(status.and_then(|status| status.code()), Some(1), "{}", node.gateway.log());
    assert!(node.gateway.log().contains("the disk of node.data_dir does not answer"), "{}", node.gateway.log());
    assert!(sender.join().expect("it does not panic").is_none_or(|answer| !answer.is_ok));

    node.gateway = Gateway::start_again(NODE, node.dir.path());
    assert!(send(ports, 3).is_some_and(|answer| answer.is_ok), "{}", node.gateway.explain());
    node.arrive(&[1, 3]);
}
