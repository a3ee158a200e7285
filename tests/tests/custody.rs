//! A node whose gateway, CSI driver and pods die and are replaced, one by one and together, under load. The driver, the
//! gateway, the shims and the applications are processes of their own, the pods in network namespaces of their own.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use pillion_proto::custody::ToGateway;
use pillion_tests::cluster::{Cluster, Pod, Programs};
use pillion_tests::csi::Holder;
use pillion_tests::gateway::{Gateway, free_address};

const PROGRAMS: Programs =
    Programs { node: env!("CARGO_BIN_EXE_pillion-node"), pod: env!("CARGO_BIN_EXE_pillion-pod") };

/// Both pods' sockets by name: a socket that was bound anew has another inode.
fn bound(cluster: &Cluster, pods: &[&Pod]) -> BTreeMap<String, u64> {
    let names = pods.iter().flat_map(|pod| {
        let mount = pod.volume.mount(cluster.kubelet.dir());
        ["ctl", "otlp"].map(|name| (format!("{}/{name}", pod.volume.pod), inode(&mount.join(name))))
    });
    names.collect()
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("it is there").ino()
}

/// What a process has open, by kind; files of the log come and go.
fn sockets(pid: u32) -> usize {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process runs");
    let names = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    names.filter(|name| name.to_string_lossy().starts_with("socket:")).count()
}

fn tenants(gateway: &Gateway) -> Vec<(String, String)> {
    let json = gateway.json("/tenants?format=json");
    let tenants = json["tenants"].as_array().expect("a list").iter();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    tenants.map(|tenant| (text(&tenant["name"]), text(&tenant["volume"]["state"]))).collect()
}

fn stop(cluster: &Cluster, pods: Vec<Pod>) {
    for pod in pods {
        let report = pod.inside.stop();
        cluster.check(&pod.volume, &report);
    }
}

/// Scenario: kill -9 of the gateway ten times in a row under load of two pods whose sockets the driver made.
/// Guarantees: no connect() fails, nothing acknowledged is lost, no socket is bound anew, and both pods are served again by
/// each successor.
#[test]
fn ten_deaths_of_the_gateway() {
    let cluster = Cluster::start(PROGRAMS);
    let pods = vec![cluster.pod("cart", 1, 4), cluster.pod("web", 2, 4)];
    let before = bound(&cluster, &[&pods[0], &pods[1]]);
    for _ in 0..10 {
        pods.iter().for_each(|pod| pod.inside.wait_for_progress(1));
        cluster.gateway.kill_worker();
        cluster.wait_until_listed();
    }
    pods.iter().for_each(|pod| pod.inside.wait_for_progress(2));
    assert_eq!(bound(&cluster, &[&pods[0], &pods[1]]), before);
    assert_eq!(tenants(&cluster.gateway).len(), 2);
    stop(&cluster, pods);
}

/// Scenario: kill -9 of the driver three times under load; it starts again.
/// Guarantees: no request is even unanswered: the gateway goes on, and gives the sockets back; none is bound anew.
#[test]
fn three_deaths_of_the_driver() {
    let mut cluster = Cluster::start(PROGRAMS);
    let pod = cluster.pod("cart", 1, 4);
    let before = bound(&cluster, &[&pod]);
    for _ in 0..3 {
        pod.inside.wait_for_progress(1);
        cluster.kill_driver();
        pod.inside.wait_for_progress(2);
        cluster.start_driver();
        cluster.wait_until_listed();
    }
    pod.inside.wait_for_progress(1);
    assert_eq!(bound(&cluster, &[&pod]), before);
    assert_eq!(cluster.gateway.metric("pillion_custody_reconnects_total"), Some(3.0));
    let report = pod.inside.stop();
    assert_eq!(report.unanswered, 0, "{:?}", report.examples);
    cluster.check(&pod.volume, &report);
}

/// Scenario: kill -9 of gateway and driver together, three times, under load. Nobody holds the pods' `ctl` any more.
/// Guarantees: no connect() fails, since the shims hold the ports; new sockets replace the old ones, the shims find them, and
/// everything acknowledged arrives.
#[test]
fn gateway_and_driver_die_together() {
    let mut cluster = Cluster::start(PROGRAMS);
    let pod = cluster.pod("cart", 1, 4);
    for _ in 0..3 {
        pod.inside.wait_for_progress(1);
        let before = bound(&cluster, &[&pod]);
        cluster.kill_driver();
        let next = cluster.another_gateway();
        std::mem::replace(&mut cluster.gateway, next).kill_all();
        cluster.start_driver();
        cluster.wait_until_listed();
        pod.inside.wait_for_progress(1);
        let after = bound(&cluster, &[&pod]);
        assert!(before.iter().all(|(name, inode)| after[name] != *inode), "{before:?} {after:?}");
    }
    stop(&cluster, vec![pod]);
}

/// Scenario: a rollout, three times: a second gateway starts, the first one is told to end.
/// Guarantees: the second waits as a standby that is ready, takes over, and gets the sockets; no connect() fails; nothing
/// acknowledged is lost; the first one ends with status 0.
#[test]
fn a_rollout() {
    let mut cluster = Cluster::start(PROGRAMS);
    let pod = cluster.pod("cart", 1, 4);
    let before = bound(&cluster, &[&pod]);
    for _ in 0..3 {
        pod.inside.wait_for_progress(1);
        let next = cluster.another_gateway();
        next.wait_for_line("standby: another gateway");
        assert_eq!(next.get("/readyz").0, 200);
        let mut last = std::mem::replace(&mut cluster.gateway, next);
        let status = last.stop();
        assert!(status.success(), "{status}\n{}", last.log());
        cluster.wait_until_listed();
        pod.inside.wait_for_progress(1);
    }
    assert_eq!(bound(&cluster, &[&pod]), before);
    stop(&cluster, vec![pod]);
}

/// Scenario: twenty pods come and go, after one that has warmed everything up.
/// Guarantees: each is forgotten when it is gone: tenants, volumes, and the descriptors of gateway and driver are what they
/// were.
#[test]
fn pods_come_and_go_and_leave_nothing() {
    let cluster = Cluster::start(PROGRAMS);
    let come_and_go = |number: u16| {
        let pod = cluster.pod("cart", number, 2);
        pod.inside.wait_for_progress(2);
        let report = pod.inside.stop();
        cluster.check(&pod.volume, &report);
        cluster.unpublish(&pod.volume);
        cluster.gateway.wait_for_line("a pod is gone");
    };
    come_and_go(1);
    let pids = [cluster.gateway.worker(), cluster.driver_pid()];
    let before = pids.map(sockets);
    for number in 2..=21 {
        come_and_go(number);
    }
    cluster.gateway.wait_for_metric("pillion_tenants", |tenants| tenants == 0.0);
    cluster.gateway.wait_for("the sockets of before", |_| pids.map(sockets) <= before);
    assert_eq!(cluster.gateway.metric("pillion_custody_volumes"), Some(0.0));
    // Its last cursor is saved a moment after the delivery, and only then it is forgotten.
    cluster.gateway.wait_for("nobody on /tenants", |gateway| tenants(gateway).is_empty());
}

/// Scenario: while no gateway runs, one pod is unpublished, and one is published.
/// Guarantees: the next gateway forgets the one, after delivering what it had acknowledged, and serves the other.
#[test]
fn a_pod_is_deleted_while_the_gateway_is_away() {
    let mut cluster = Cluster::start(PROGRAMS);
    let gone = cluster.pod("cart", 1, 4);
    gone.inside.wait_for_progress(2);
    let next = cluster.another_gateway();
    next.wait_for_line("standby: another gateway");
    // The standby gets the lock at once; the driver hears of the pod's end before the list, or after it.
    let report = gone.inside.stop();
    std::mem::replace(&mut cluster.gateway, next).kill_all();
    cluster.unpublish(&gone.volume);
    let volume = cluster.publish("web", 2);
    let come = cluster.inside(&volume, 2, 4);
    come.wait_for_progress(2);
    cluster.check(&gone.volume, &report);
    cluster.check(&volume, &come.stop());
    cluster.gateway.wait_for_metric("pillion_tenants", |tenants| tenants == 1.0);
    assert_eq!(tenants(&cluster.gateway), [("shop/web".to_owned(), "served".to_owned())]);
}

/// Scenario: a process that does not hold the data directory's lock asks the driver for the pods' sockets, with the lock file
/// opened anew, while a gateway serves.
/// Guarantees: it is refused in words, gets no descriptor, and the gateway notices nothing.
#[test]
fn without_the_lock_nobody_gets_the_sockets() {
    let cluster = Cluster::start(PROGRAMS);
    let pod = cluster.pod("cart", 1, 4);
    pod.inside.wait_for_progress(1);
    let lock: OwnedFd = fs::File::open(cluster.paths.data().join("lock")).expect("it is there").into();
    let stranger = Holder::connect(&cluster.paths, &lock);
    match stranger.receive() {
        Some((ToGateway::Refused { reason }, None)) => assert!(reason.contains("lock"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(stranger.receive().is_none(), "the driver hangs up");
    pod.inside.wait_for_progress(1);
    assert_eq!(cluster.gateway.metric("pillion_custody_connected"), Some(1.0));
    assert_eq!(cluster.gateway.metric("pillion_custody_reconnects_total"), Some(0.0));
    stop(&cluster, vec![pod]);
}

/// Scenario: a shim in the network of the gateway itself connects to a pod's `ctl` and donates its listeners.
/// Guarantees: it is refused by name: in a cluster a pod has a network of its own, and one network serves one pod.
#[test]
fn a_shim_in_the_gateways_own_network_is_refused() {
    let cluster = Cluster::start(PROGRAMS);
    let volume = cluster.publish("cart", 1);
    cluster.gateway.wait_for_line("a pod is served");
    let mount = volume.mount(cluster.kubelet.dir());
    let mut shim = Command::new(PROGRAMS.node);
    shim.args(["shim", "run", "--grpc", &free_address().port().to_string()]);
    shim.args(["--http", &free_address().port().to_string(), "--dir"]).arg(mount).stdin(Stdio::null());
    let mut shim = shim.spawn().expect("the command under test starts");
    let line = cluster.gateway.wait_for_line("refused a request of a shim");
    shim.kill().and_then(|()| shim.wait()).expect("it runs");
    assert!(line.contains("OwnNamespace"), "{line}");
}

/// Scenario: a pod is deleted by force: its successor of the same name comes while the kubelet still has its volume. Then the
/// gateway dies, and the older pod's volume is unpublished.
/// Guarantees: the successor is served, also by the next gateway, which learns of both at once; the older one's end does not
/// touch it; each one's data carries its own uid.
#[test]
fn a_successor_supersedes_a_pod_that_was_deleted_by_force() {
    // The uids are such that their order is not that of the pods.
    for (older, newer) in [(1, 2), (4, 3)] {
        let cluster = Cluster::start(PROGRAMS);
        let old = cluster.pod("cart", older, 4);
        old.inside.wait_for_progress(2);
        let report = old.inside.stop();
        let new = cluster.pod("cart", newer, 4);
        new.inside.wait_for_progress(1);
        cluster.gateway.kill_worker();
        cluster.wait_until_listed();
        new.inside.wait_for_progress(2);
        assert_eq!(cluster.gateway.metric("pillion_custody_volumes"), Some(2.0));
        cluster.unpublish(&old.volume);
        cluster.gateway.wait_for_metric("pillion_custody_volumes", |volumes| volumes == 1.0);
        new.inside.wait_for_progress(2);
        cluster.check(&old.volume, &report);
        stop(&cluster, vec![new]);
    }
}
