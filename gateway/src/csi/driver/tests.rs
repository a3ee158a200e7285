//! The loop's parts that a process test would have to wait minutes for, or cannot look into.

use std::fs;
use std::os::unix::fs::symlink;

use pillion_proto::custody::Kind;

use super::*;

struct Node {
    root: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().expect("writable");
        fs::create_dir(root.path().join("pods")).expect("writable");
        Self { root }
    }

    fn driver(&self) -> Driver {
        let config = Config {
            node_name: "node-7".to_owned(),
            kubelet_dir: self.root.path().to_owned(),
            custody: self.root.path().join("custody.sock"),
            data_dir: self.root.path().join("data"),
            gateway_id: rustix::process::getegid().as_raw(),
        };
        let (_, calls) = mpsc::channel(1);
        Driver::new(&config, &self.root.path().join("records"), calls).expect("the records can be made")
    }

    /// The volume's directory as the kubelet makes it.
    fn volume_dir(&self, uid: &str, volume: &str, driver: &str) -> std::path::PathBuf {
        let dir = self.root.path().join("pods").join(uid).join("volumes/kubernetes.io~csi").join(volume);
        fs::create_dir_all(&dir).expect("writable");
        fs::write(dir.join("vol_data.json"), format!("{{\"driverName\":{driver:?}}}")).expect("writable");
        dir
    }

    fn request(&self, uid: &str) -> NodePublishVolumeRequest {
        let mount = self.volume_dir(uid, "pillion", super::super::DRIVER).join("mount");
        let context = [("pod.uid", uid), ("pod.namespace", "shop"), ("pod.name", uid), ("ephemeral", "true")];
        let context = context.map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value.to_owned()));
        NodePublishVolumeRequest {
            volume_id: "csi-1".to_owned(),
            target_path: mount.display().to_string(),
            readonly: true,
            volume_context: context.into(),
        }
    }
}

fn uids(driver: &Driver) -> Vec<&str> {
    driver.volumes.keys().map(Uid::as_str).collect()
}

/// Scenario: a pod is deleted by force while the driver is away, so that its directory goes and no unpublish comes; another
/// pod's directory is absent for a moment.
/// Guarantees: the one is collected after two minutes, with its record and its sockets; the other is not.
#[test]
fn what_the_kubelet_has_removed_is_collected_after_an_age() {
    let node = Node::new();
    let mut before = node.driver();
    for uid in ["u-1", "u-2"] {
        before.publish(&node.request(uid)).expect("published");
    }
    drop(before);
    let mut driver = node.driver();
    driver.find_volumes();
    let gone = Uid::parse("u-1").expect("a uid");
    assert!(driver.hands.socket(&gone, Kind::Ctl).is_some());
    assert_eq!(uids(&driver), ["u-1", "u-2"]);
    let pod = |uid: &str| node.root.path().join("pods").join(uid);
    fs::remove_dir_all(pod("u-1")).expect("it is there");
    fs::rename(pod("u-2"), pod("aside")).expect("renamed");
    let start = Instant::now();
    driver.collect(start);
    fs::rename(pod("aside"), pod("u-2")).expect("renamed");
    driver.collect(start + scan::ABSENT_MAX - Duration::from_nanos(1));
    assert_eq!(uids(&driver), ["u-1", "u-2"]);
    driver.collect(start + scan::ABSENT_MAX);
    assert_eq!(uids(&driver), ["u-2"]);
    assert!(driver.hands.socket(&gone, Kind::Ctl).is_none());
    assert_eq!(driver.records.load().expect("readable").len(), 1);
}

/// Scenario: the records are lost. The kubelet's folders hold a volume of this driver, one that was refused and has no
/// sockets, one of another driver, one whose `vol_data.json` is a link, and a link in the place of a pod.
/// Guarantees: only the first is found; its sockets are bound again since nobody holds them, and the next publish makes it
/// whole.
#[test]
fn a_volume_without_a_record_is_found_and_waits_for_the_kubelet() {
    let node = Node::new();
    let request = node.request("u-1");
    node.driver().publish(&request).expect("published");
    fs::remove_dir_all(node.root.path().join("records")).expect("it is there");
    let refused = node.request("u-2");
    assert!(node.driver().publish(&NodePublishVolumeRequest { readonly: false, ..refused }).is_err());
    let other = node.volume_dir("u-3", "other", "csi.example.org").join("mount");
    fs::create_dir(&other).expect("writable");
    let links = node.volume_dir("u-4", "pillion", "csi.example.org");
    fs::remove_file(links.join("vol_data.json")).expect("it is there");
    let data = node.root.path().join("pods/u-1/volumes/kubernetes.io~csi/pillion/vol_data.json");
    symlink(data, links.join("vol_data.json")).expect("writable");
    symlink(node.root.path().join("pods/u-1"), node.root.path().join("pods/u-5")).expect("writable");
    let sockets = node.root.path().join("pods/u-1/volumes/kubernetes.io~csi/pillion/mount");
    for dir in [other, links.join("mount")] {
        fs::create_dir_all(&dir).expect("writable");
        fs::hard_link(sockets.join("ctl"), dir.join("ctl")).expect("on one filesystem");
    }

    let mut driver = node.driver();
    driver.find_volumes();

    assert_eq!(uids(&driver), ["u-1"]);
    let uid = Uid::parse("u-1").expect("a uid");
    assert!(driver.hands.socket(&uid, Kind::Ctl).is_some(), "bound again: nobody held it");
    assert!(driver.volumes[&uid].record.is_none());
    driver.publish(&request).expect("published");
    assert!(driver.volumes[&uid].record.is_some());
    assert_eq!(driver.records.load().expect("readable").len(), 1);
}
