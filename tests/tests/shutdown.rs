//! SIGTERM while a pod sends.

use pillion_loadtest::sink::Fault;
use pillion_tests::gateway::Gateway;
use pillion_tests::one_pod::{OnePod, Setup, everything_arrives};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");

fn check(ack: &str) {
    let setup = Setup { ack, fault: Fault::Unavailable, ..Setup::new(NODE, POD) };
    let OnePod { mut gateway, sink, pod, dir } = OnePod::start(&setup);
    pod.wait_for_progress(4);

    let status = gateway.stop();
    assert!(status.success(), "{ack}: {status}\n{}", gateway.log());
    gateway.wait_for_line("drained in");

    let again = Gateway::start_again(NODE, dir.path());
    pod.wait_for_progress(2);
    let report = pod.stop();
    assert_eq!(report.connect_failed, 0, "{ack}: {:?}\n{}", report.examples, again.explain());
    sink.fail_with(Fault::None);
    everything_arrives(&sink, &report, &again);
}

/// Scenario: a gateway with a backlog that nobody takes is told to end under load, and another one starts.
/// Guarantees: exit status 0 within its deadline; connections wait for the next one; everything acknowledged arrives.
#[test]
fn a_durable_tenant_loses_nothing() {
    check("durable");
}

/// Scenario: the same for a tenant whose acknowledgements come from memory.
/// Guarantees: the same: an orderly end writes to the log what was only in memory.
#[test]
fn a_tenant_in_memory_loses_nothing_in_an_orderly_end() {
    check("memory");
}
