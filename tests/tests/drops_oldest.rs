//! A pod that sends more than it may keep, and would rather have the newest.

use std::time::Duration;

use pillion_loadtest::sink::Fault;
use pillion_tests::gateway::Gateway;
use pillion_tests::one_pod::{OnePod, Setup};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");
const PATIENCE: Duration = Duration::from_secs(300);

/// Items that the gateway says it has dropped.
fn dropped(gateway: &Gateway) -> u64 {
    let (_, metrics) = gateway.get("/metrics");
    let lines = metrics.lines().filter(|line| line.starts_with("pillion_lost_items_total{"));
    let dropped = lines.filter(|line| line.contains("reason=\"dropped_oldest\""));
    dropped.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// Scenario: the backend takes nothing while a pod with 64 KiB of the disk and `on_full: drop_oldest` sends many times that; then the
/// backend takes everything.
/// Guarantees: no request is refused; what arrives and what is counted as dropped are together exactly what was acknowledged, and
/// something arrives.
#[test]
fn a_pod_at_its_ceiling_keeps_sending_and_every_loss_is_counted() {
    let setup = Setup {
        ack: "durable, limits: {disk: {guarantee: 0, ceiling: 64KiB}}, queue: {on_full: drop_oldest}",
        destination: "retry_on_failure: {initial_interval: 50ms, max_interval: 200ms}",
        fault: Fault::Unavailable,
        ..Setup::new(NODE, POD)
    };
    let OnePod { gateway, sink, pod, dir: _dir } = OnePod::start(&setup);
    while dropped(&gateway) < 1_000 {
        pod.wait_for_progress(1);
    }
    let report = pod.stop();
    assert_eq!((report.connect_failed, report.unanswered), (0, 0), "{:?}", report.examples);
    assert_eq!(sink.distinct(), 0, "it refused everything");

    sink.fail_with(Fault::None);
    let acked = report.acked.len();
    let closes = |arrived: usize| arrived > 0 && arrived as u64 + dropped(&gateway) == acked as u64;
    let closed = sink.wait_until(PATIENCE, |ids, _| closes(ids.len()));
    assert!(closed, "{} arrived, {} dropped of {acked}\n{}", sink.distinct(), dropped(&gateway), gateway.explain());
}
