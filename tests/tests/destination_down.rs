//! The backend refuses while a pod goes on sending.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use pillion_loadtest::sink::{Fault, Keep, Sink};
use pillion_tests::gateway::{Gateway, below, directory};
use pillion_tests::pod::{Pod, Spec};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");
const PATIENCE: Duration = Duration::from_secs(60);

fn check(fault: Fault) {
    let dir = directory();
    let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::TraceIds("service.name".into())).unwrap();
    sink.fail_with(fault);
    let config = format!(
        "node:
  data_dir: DIR/data
  admin: ADMIN
defaults: {{destinations: [backend]}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{}\", retry_on_failure: {{initial_interval: 50ms, max_interval: 200ms}}}}
tenants:
  shop/cart: {{socket_dir: DIR/cart}}
",
        sink.address()
    );
    let gateway = Gateway::start(NODE, dir.path(), &config);
    let socket_dir = below(&dir, "cart");
    let pod = Pod::start(&Spec {
        program: POD,
        node: NODE,
        socket_dir: &socket_dir,
        mode: "donate",
        service: "cart",
        number: 1,
        clients: 4,
        descriptors_max: None,
    });
    pod.wait_for_progress(20);
    assert!(sink.wait_until_refused(PATIENCE, 3), "{fault:?}: it must go on trying\n{}", gateway.explain());
    let report = pod.stop();
    assert_eq!((report.connect_failed, report.unanswered), (0, 0), "{fault:?}: {:?}", report.examples);
    assert_eq!(sink.distinct(), 0, "{fault:?}: it refused everything");

    sink.fail_with(Fault::None);
    let arrived = sink.wait_until(PATIENCE, |ids, _| report.acked.iter().all(|id| ids.contains_key(id)));
    assert!(arrived, "{fault:?}: {} of {}\n{}", sink.distinct(), report.acked.len(), gateway.explain());
    let (_, metrics) = gateway.get("/metrics");
    let dead = metrics.lines().filter(|line| line.starts_with("pillion_dead_letter_items_total{"));
    assert!(dead.into_iter().all(|line| line.ends_with(" 0")), "{fault:?}: a destination's fault makes no dead letter");
}

/// Scenario: the backend answers UNAVAILABLE to everything, then recovers.
/// Guarantees: what was acknowledged meanwhile arrives.
#[test]
fn an_unavailable_backend_costs_nothing() {
    check(Fault::Unavailable);
}

/// Scenario: the backend answers UNAUTHENTICATED to everything (a token has expired), then accepts.
/// Guarantees: the same: it is the destination's fault, so nothing is given up.
#[test]
fn an_expired_token_costs_nothing() {
    check(Fault::Unauthenticated);
}

/// Scenario: the backend refuses the content of everything, then accepts.
/// Guarantees: the same: who refuses everything is at fault itself.
#[test]
fn a_backend_that_refuses_everything_is_at_fault_itself() {
    check(Fault::Invalid);
}
