//! A real small filesystem fills up under load, by the queue and by somebody else's file, and is freed again.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use pillion_loadtest::client;
use pillion_loadtest::payload::{item_ids, resource};
use pillion_loadtest::sink::{Fault, Keep, Received, Sink, Taker};
use pillion_tests::ask::{self, Answer};
use pillion_tests::gateway::{Gateway, below, directory};
use pillion_tests::shim::{Ports, Shim};
use pillion_tests::small_disk::{Foreign, SmallDisk};
use prost::Message;

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");

/// Room for four segments and a half.
const DISK_BYTES: u64 = 300 << 20;

/// The text of each log record that is sent.
const BODY_BYTES: usize = 1 << 20;

/// Something that never happens has not happened after this long.
const PATIENCE: Duration = Duration::from_secs(300);

/// The tenants: one sends over gRPC, the other over HTTP, two applications each.
const TENANTS: [&str; 2] = ["cart", "till"];

struct Node {
    gateway: Gateway,
    sink: Sink,
    arrived: Arc<Mutex<BTreeSet<u64>>>,
    foreign: Foreign,
    ports: [Ports; 2],
    _shims: Vec<Shim>,
    _dir: tempfile::TempDir,
    next: u64,
    acknowledged: BTreeSet<u64>,
}

impl Node {
    fn start(min_free: &str) -> Self {
        let dir = directory();
        let disk = SmallDisk::make(dir.path(), DISK_BYTES);
        let arrived: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
        let for_sink = arrived.clone();
        let taker = Taker::new(move |received: &Received| {
            let ids = item_ids(&received.path, &received.payload, "")?;
            for_sink.lock().unwrap_or_else(PoisonError::into_inner).extend(ids.into_iter().map(|(id, _)| id));
            Ok::<(), prost::DecodeError>(())
        });
        let sink = Sink::start((Ipv4Addr::LOCALHOST, 0).into(), Keep::Hand(taker)).expect("a free port");
        let ports = [Ports::free(), Ports::free()];
        let tenants = TENANTS
            .iter()
            .zip(&ports)
            .map(|(name, ports)| format!("  shop/{name}: {{socket_dir: DIR/{name}, {}}}\n", ports.config()));
        let config = format!(
            "node:
  data_dir: DIR/disk/data
  admin: ADMIN
  disk_limit: 4GiB
  min_free: {min_free}
defaults: {{destinations: [backend], limits: {{bytes_per_second: 1GiB, requests_per_second: 1000000}}}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{}\", retry_on_failure: {{initial_interval: 50ms, max_interval: 200ms}}}}
tenants:
{}",
            sink.address(),
            tenants.collect::<String>()
        );
        let gateway = Gateway::start_through(disk.command(), NODE, dir.path(), &config);
        let foreign = Foreign::make(&disk.seen_through(gateway.supervisor()));
        let start = |(name, ports): (&&str, &Ports)| Shim::start(NODE, &below(&dir, name), *ports);
        let shims = TENANTS.iter().zip(&ports).map(start).collect();
        Self {
            gateway,
            sink,
            arrived,
            foreign,
            ports,
            _shims: shims,
            _dir: dir,
            next: 1,
            acknowledged: BTreeSet::new(),
        }
    }

    /// One request of each tenant at the same time.
    fn send(&mut self) -> [Answer; 2] {
        let ids = [self.next, self.next + 1];
        self.next += 2;
        let [grpc, http] = [self.ports[0].grpc, self.ports[1].http];
        let answers = std::thread::scope(|scope| {
            let over_grpc = scope.spawn(|| ask::over_grpc(grpc, client::LOGS, &body(ids[0])).expect("an answer"));
            let over_http = ask::over_http(http, "/v1/logs", &body(ids[1])).expect("an answer");
            [over_grpc.join().expect("it does not panic"), over_http]
        });
        self.acknowledged.extend(ids.iter().zip(&answers).filter(|(_, answer)| answer.is_ok).map(|(id, _)| id));
        answers
    }

    /// Sends until both tenants are refused at once, and returns how.
    fn send_until_refused(&mut self) -> [Answer; 2] {
        for _ in 0..=DISK_BYTES / BODY_BYTES as u64 {
            let answers = self.send();
            if answers.iter().all(|answer| !answer.is_ok) {
                return answers;
            }
        }
        panic!("it has taken more than the disk has\n{}", self.gateway.explain());
    }

    /// Sends until both tenants are taken from at once.
    fn send_until_taken(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answers = self.send();
            if answers.iter().all(|answer| answer.is_ok) {
                return;
            }
            assert!(Instant::now() < deadline, "intake does not resume: {answers:?}\n{}", self.gateway.explain());
        }
    }

    fn everything_arrives(&self) {
        let missing = || {
            let arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
            self.acknowledged.difference(&arrived).count()
        };
        let arrived = self.sink.wait_until(PATIENCE, |_, _| missing() == 0);
        assert!(arrived, "{} of {} are missing\n{}", missing(), self.acknowledged.len(), self.gateway.explain());
    }

    fn at_risk(&self) -> f64 {
        self.gateway.metric("pillion_queue_bytes_at_risk").expect("it is always there")
    }

    fn oldest(&self, tenant: &str) -> f64 {
        let labels = ["exporter=\"backend\"", "namespace=\"shop\"", &format!("workload=\"{tenant}\"")];
        self.gateway.metric_of("pillion_oldest_undelivered_age_seconds", &labels).expect("numbers")
    }

    /// Of /readyz, which stays ready: another gateway would find the same disk.
    fn reasons(&self) -> String {
        let readiness = self.gateway.json("/readyz?format=json");
        assert_eq!(readiness["ready"], true, "{readiness}");
        readiness["reasons"].to_string()
    }

    /// The worker that was started is the one that still serves.
    fn is_the_first(&self) {
        assert_eq!(self.gateway.metric("pillion_worker_restarts_total"), Some(0.0), "{}", self.gateway.explain());
    }
}

fn body(id: u64) -> Vec<u8> {
    let text = AnyValue { value: Some(Value::StringValue("x".repeat(BODY_BYTES))) };
    let trace_id = [!id, id].map(u64::to_be_bytes).concat();
    let log_records = vec![LogRecord { trace_id, body: Some(text), ..Default::default() }];
    let scope_logs = vec![ScopeLogs { log_records, ..Default::default() }];
    let resource_logs = vec![ResourceLogs { resource: Some(resource("cart")), scope_logs, ..Default::default() }];
    ExportLogsServiceRequest { resource_logs }.encode_to_vec()
}

/// As the senders must be told: come back later, and when.
fn is_told_to_wait(answers: &[Answer; 2]) {
    let statuses = answers.each_ref().map(|answer| (answer.status.as_str(), answer.has_delay));
    assert_eq!(statuses, [("gRPC 14", true), ("HTTP 503", true)], "{answers:?}");
}

/// Scenario: the backend is down and applications go on sending while somebody else's file leaves little space; the file goes;
/// the queue fills all there is; the file takes what is left to the last block, so that sled cannot write either; the backend
/// recovers; the file goes.
/// Guarantees: who sends is told to wait and when to come back; nothing that was acknowledged is lost; intake resumes by
/// itself, without a restart, when the space returns, and also when only the queue's own space does; the metrics and /readyz
/// say what is at risk, for whom, and since when; an orderly end is one.
#[test]
fn a_full_filesystem_costs_nothing_and_intake_resumes_by_itself() {
    let mut node = Node::start("0");
    node.sink.fail_with(Fault::Unavailable);
    node.send_until_taken();
    node.foreign.leave(80 << 20);
    let answers = node.send_until_refused();
    is_told_to_wait(&answers);
    let at_risk = node.at_risk();
    assert!(
        at_risk >= (node.acknowledged.len() * BODY_BYTES) as f64,
        "{at_risk} of {} requests",
        node.acknowledged.len()
    );
    assert_eq!(node.gateway.metric("pillion_queue_full"), Some(1.0));
    assert!(node.reasons().contains("the queue is full"), "{}", node.reasons());

    node.foreign.give_back();
    node.send_until_taken();
    assert_eq!(node.gateway.metric("pillion_queue_full"), Some(0.0), "it resumes with the backend still down");
    is_told_to_wait(&node.send_until_refused());
    assert!(node.at_risk() > at_risk);
    node.foreign.take_everything();
    assert_eq!(node.foreign.free(), 0);
    for tenant in TENANTS {
        node.gateway.wait_for("the oldest undelivered record has an age", |_| node.oldest(tenant) > 0.0);
    }

    node.sink.fail_with(Fault::None);
    node.everything_arrives();
    // What the queue gives back is taken as well: it goes on in what it has kept.
    node.foreign.take_everything();
    node.send_until_taken();
    node.everything_arrives();
    node.gateway.wait_for_metric("pillion_queue_bytes_at_risk", |bytes| bytes == 0.0);

    node.foreign.give_back();
    node.send_until_taken();
    node.everything_arrives();
    assert!(!node.reasons().contains("full"), "{}", node.reasons());
    node.is_the_first();
    let status = node.gateway.stop();
    assert!(status.success(), "{status}\n{}", node.gateway.log());
}

/// Scenario: the worker is killed while its filesystem is full to the last block; the backend recovers; the space returns.
/// Guarantees: it starts all the same, and delivers what was acknowledged; intake resumes with the space.
#[test]
fn a_gateway_starts_on_a_filesystem_that_is_full_to_the_last_block() {
    let mut node = Node::start("0");
    node.sink.fail_with(Fault::Unavailable);
    node.send_until_taken();
    node.send_until_refused();
    node.foreign.take_everything();
    assert_eq!(node.foreign.free(), 0);
    node.gateway.kill_worker();
    node.gateway.wait_for_metric("pillion_worker_restarts_total", |restarts| restarts == 1.0);

    node.sink.fail_with(Fault::None);
    node.everything_arrives();
    node.foreign.give_back();
    node.send_until_taken();
    node.everything_arrives();
    let status = node.gateway.stop();
    assert!(status.success(), "{status}\n{}", node.gateway.log());
}

/// Scenario: somebody else's file leaves less than `node.min_free`, under load; it goes.
/// Guarantees: intake stops before the filesystem is full, in words that name the setting, and resumes by itself; what is
/// queued is delivered meanwhile.
#[test]
fn intake_stops_at_min_free_and_resumes_by_itself() {
    const MIN_FREE: u64 = 32 << 20;
    let mut node = Node::start("32MiB");
    node.send_until_taken();
    node.foreign.leave(MIN_FREE - (1 << 20));
    let answers = node.send_until_refused();
    is_told_to_wait(&answers);
    assert!(answers[0].words.contains("node.min_free"), "{answers:?}");
    assert!(node.foreign.free() >= MIN_FREE / 2, "it is the queue that leaves it: {}", node.foreign.free());
    assert_eq!(node.gateway.metric("pillion_queue_low_on_space"), Some(1.0));
    assert!(node.reasons().contains("node.min_free"), "{}", node.reasons());
    node.everything_arrives();

    node.foreign.give_back();
    node.send_until_taken();
    node.everything_arrives();
    assert_eq!(node.gateway.metric("pillion_queue_low_on_space"), Some(0.0));
    assert_eq!(node.reasons(), "[]");
    node.is_the_first();
}
