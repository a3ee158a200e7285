//! The shim dies while its pod sends.

use pillion_tests::one_pod::{OnePod, Setup, everything_arrives};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");

/// Scenario: kill -9 of the shim ten times under load; each time a new one starts, as the kubelet would do.
/// Guarantees: the gateway keeps the sockets and returns them, so that no connection is refused and none that waited in
/// the backlog is lost; everything acknowledged arrives.
#[test]
fn its_sockets_are_kept_and_returned() {
    let OnePod { gateway, sink, mut pod, dir: _dir } = OnePod::start(&Setup::new(NODE, POD));

    for _ in 0..10 {
        pod.wait_for_progress(2);
        pod.kill_shim();
    }
    pod.wait_for_progress(2);
    let report = pod.stop();

    assert_eq!((report.connect_failed, report.unanswered), (0, 0), "{:?}\n{}", report.examples, gateway.explain());
    everything_arrives(&sink, &report, &gateway);
}
