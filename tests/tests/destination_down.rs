//! The backend refuses while a pod goes on sending.

use std::time::Duration;

use pillion_loadtest::sink::Fault;
use pillion_tests::one_pod::{OnePod, Setup, everything_arrives};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");
const PATIENCE: Duration = Duration::from_secs(300);

fn check(fault: Fault) {
    let destination = "retry_on_failure: {initial_interval: 50ms, max_interval: 200ms}";
    let setup = Setup { destination, fault, ..Setup::new(NODE, POD) };
    let OnePod { gateway, sink, pod, dir: _dir } = OnePod::start(&setup);
    pod.wait_for_progress(20);
    assert!(sink.wait_until_refused(PATIENCE, 3), "{fault:?}: it must go on trying\n{}", gateway.explain());
    let report = pod.stop();
    assert_eq!((report.connect_failed, report.unanswered), (0, 0), "{fault:?}: {:?}", report.examples);
    assert_eq!(sink.distinct(), 0, "{fault:?}: it refused everything");

    sink.fail_with(Fault::None);
    everything_arrives(&sink, &report, &gateway);
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
