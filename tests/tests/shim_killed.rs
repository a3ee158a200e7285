//! The shim dies while its pod sends.

use std::time::Duration;

use pillion_loadtest::sink::{Keep, Sink};
use pillion_tests::gateway::{Gateway, below, directory};
use pillion_tests::pod::{Pod, Spec};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");

/// Scenario: kill -9 of the shim ten times under load; each time a new one starts, as the kubelet would do.
/// Guarantees: the gateway keeps the sockets and returns them, so that no connection is refused and none that waited in
/// the backlog is lost; everything acknowledged arrives.
#[test]
fn its_sockets_are_kept_and_returned() {
    let dir = directory();
    let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::TraceIds("k8s.pod.name".into())).unwrap();
    let config = format!(
        "node:
  data_dir: DIR/data
  admin: ADMIN
defaults: {{destinations: [backend]}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{}\"}}
tenants:
  shop/cart: {{socket_dir: DIR/cart}}
",
        sink.address()
    );
    let gateway = Gateway::start(NODE, dir.path(), &config);
    let socket_dir = below(&dir, "cart");
    let mut pod = Pod::start(&Spec {
        program: POD,
        node: NODE,
        socket_dir: &socket_dir,
        mode: "donate",
        service: "cart",
        number: 1,
        clients: 4,
        descriptors_max: None,
    });

    for _ in 0..10 {
        pod.wait_for_progress(2);
        pod.kill_shim();
    }
    pod.wait_for_progress(2);
    let report = pod.stop();

    assert_eq!((report.connect_failed, report.unanswered), (0, 0), "{:?}\n{}", report.examples, gateway.explain());
    let arrived = sink.wait_until(Duration::from_secs(60), |ids, _| report.acked.iter().all(|id| ids.contains_key(id)));
    assert!(arrived, "{}", gateway.explain());
}
