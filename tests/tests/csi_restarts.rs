//! A pod whose volume came from the CSI driver, served by a real gateway, while everything around it is restarted.

use std::collections::HashSet;
use std::time::Duration;

use pillion_loadtest::sink::{Keep, Sink};
use pillion_tests::csi::{Driver, Paths};
use pillion_tests::gateway::{Gateway, directory};
use pillion_tests::kubelet::{Kubelet, Volume};
use pillion_tests::pod::{Pod, Spec};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");

const PATIENCE: Duration = Duration::from_secs(300);

fn config(backend: std::net::SocketAddr, paths: &Paths) -> String {
    format!(
        "node:
  data_dir: DIR/data
  admin: ADMIN
  # However full the disk of whoever runs the tests is.
  min_free: 1MiB
  custody_socket: {}
defaults:
  destinations: [backend]
  limits: {{bytes_per_second: 1GiB, requests_per_second: 1000000}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{backend}\"}}
",
        paths.custody().display()
    )
}

/// Scenario: a pod sends all the time, each request over a new connection, while its node is maintained: the driver is
/// killed, the gateway is killed, its worker and then all of it, the driver and the gateway at once, the driver is stopped in
/// good order; the kubelet publishes again in between. Then the pod ends and its volume is unpublished.
/// Guarantees: no connection is ever refused; everything acknowledged arrives, under the identity that the kubelet asserted;
/// after the unpublish nothing is left of the volume.
#[test]
fn a_pod_is_served_through_every_restart_around_it() {
    let dir = directory();
    let paths = Paths::below(dir.path());
    let kubelet = Kubelet::new(&paths.kubelet());
    let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::TraceIds("k8s.pod.name".into())).unwrap();
    let mut driver = Driver::start(NODE, &paths);
    let endpoint = driver.register(&kubelet).endpoint;
    let volume = Volume::of("22222222-aaaa-bbbb-cccc-000000000001", "shop", "cart");
    kubelet.publish(&endpoint, &volume).expect("published");
    let mut gateway = Gateway::start(NODE, dir.path(), &config(sink.address(), &paths));
    let mount = volume.mount(kubelet.dir());
    let pod = Pod::start(&Spec {
        program: POD,
        node: NODE,
        socket_dir: &mount,
        mode: "donate",
        service: "liar",
        number: 1,
        clients: 4,
        descriptors_max: None,
    });
    pod.wait_for_progress(2);

    driver.kill();
    pod.wait_for_progress(2);
    driver = Driver::start(NODE, &paths);
    kubelet.publish(&endpoint, &volume).expect("published again");
    driver.wait_for_line("the gateway serves a pod");
    pod.wait_for_progress(2);

    gateway.kill_worker();
    driver.wait_for_line("the gateway serves a pod");
    pod.wait_for_progress(2);

    gateway.kill_all();
    driver.wait_for_line("the gateway is gone");
    kubelet.publish(&endpoint, &volume).expect("published without a gateway");
    gateway = Gateway::start_again(NODE, dir.path());
    pod.wait_for_progress(2);

    driver.kill();
    gateway.kill_all();
    driver = Driver::start(NODE, &paths);
    gateway = Gateway::start_again(NODE, dir.path());
    // What nobody has handed over yet ends with a driver that is stopped.
    driver.wait_for_line("the gateway serves a pod");
    pod.wait_for_progress(2);

    assert!(driver.stop().success());
    pod.wait_for_progress(2);
    driver = Driver::start(NODE, &paths);
    assert!(gateway.stop().success());
    gateway = Gateway::start_again(NODE, dir.path());
    pod.wait_for_progress(2);

    let explain = |what: &str| format!("{what}\n{}\ndriver:\n{}\npod:\n", gateway.explain(), driver.log());
    let report = pod.stop();
    assert_eq!(report.connect_failed, 0, "{:?}\n{}", report.examples, explain(""));
    let acked: HashSet<u64> = report.acked.iter().copied().collect();
    assert!(acked.len() > 500, "the load must have been real: {report:?}");
    let arrived = sink.wait_until(PATIENCE, |ids, _| acked.iter().all(|id| ids.contains_key(id)));
    assert!(arrived, "{}", explain("something that was acknowledged did not arrive"));
    assert!(sink.ids().values().all(|seen| seen.owner == "cart" && !seen.disputed), "identity is the kubelet's word");

    kubelet.unpublish(&endpoint, &volume).expect("unpublished");
    assert!(!mount.exists());
    println!("{} spans acknowledged, {} requests unanswered", acked.len(), report.unanswered);
}
