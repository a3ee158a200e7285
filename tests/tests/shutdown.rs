//! SIGTERM while a pod sends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use pillion_loadtest::sink::{Fault, Keep, Sink};
use pillion_tests::gateway::{Gateway, below, directory};
use pillion_tests::pod::{Pod, Spec};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");

fn check(ack: &str) {
    let dir = directory();
    let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::TraceIds("service.name".into())).unwrap();
    sink.fail_with(Fault::Unavailable);
    let config = format!(
        "node:
  data_dir: DIR/data
  admin: ADMIN
defaults: {{destinations: [backend], ack: {ack}}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{}\"}}
tenants:
  shop/cart: {{socket_dir: DIR/cart}}
",
        sink.address()
    );
    let mut gateway = Gateway::start(NODE, dir.path(), &config);
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
    pod.wait_for_progress(4);

    let status = gateway.stop();
    assert!(status.success(), "{ack}: {status}\n{}", gateway.log());
    let drained = gateway.wait_for_line("drained in");
    assert!(!gateway.log().contains("draining took longer"), "{ack}: over its own deadline of 2 s: {drained}");

    let again = Gateway::start_again(NODE, dir.path());
    pod.wait_for_progress(2);
    let report = pod.stop();
    assert_eq!(report.connect_failed, 0, "{ack}: {:?}\n{}", report.examples, again.explain());
    sink.fail_with(Fault::None);
    let arrived = sink.wait_until(Duration::from_secs(60), |ids, _| report.acked.iter().all(|id| ids.contains_key(id)));
    assert!(arrived, "{ack}: {} of {}\n{}", sink.distinct(), report.acked.len(), again.explain());
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
