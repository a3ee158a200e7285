//! The CSI driver as a process, called as the kubelet calls it.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use pillion_proto::custody::ToGateway;
use pillion_tests::csi::{Driver, Holder, Paths, lock};
use pillion_tests::gateway::directory;
use pillion_tests::kubelet::{Kubelet, Volume};
use rustix::net::SocketType;

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");

fn names(list: &[(ToGateway, std::os::fd::OwnedFd)]) -> Vec<String> {
    let name = |message: &ToGateway| match message {
        ToGateway::Volume(volume) => format!("volume {}/{} {:?}", volume.namespace, volume.pod, volume.ports),
        ToGateway::Otlp { uid } => format!("otlp {uid}"),
        other => format!("{other:?}"),
    };
    list.iter().map(|(message, _)| name(message)).collect()
}

/// Scenario: the kubelet registers the driver and publishes a volume; a gateway comes, gets it, and sees it unpublished.
/// Guarantees: the sockets are there for any user; the gateway gets listeners that the pod's connections arrive on; after
/// the unpublish nothing is left of the volume.
#[test]
fn a_volume_goes_from_the_kubelet_to_the_gateway_and_back() {
    let dir = directory();
    let kubelet = Kubelet::new(&Paths::below(dir.path()).kubelet());
    let driver = Driver::start(NODE, &Paths::below(dir.path()));
    let paths = driver.paths();
    let registered = driver.register(&kubelet);
    assert_eq!((registered.name.as_str(), registered.node_id.as_str()), ("csi.pillion.dev", "node-7"));
    assert_eq!(registered.endpoint, paths.endpoint());

    let volume = Volume::of("11111111-aaaa-bbbb-cccc-000000000001", "shop", "cart");
    kubelet.publish(&registered.endpoint, &volume).expect("published");
    let mount = volume.mount(kubelet.dir());
    for name in ["ctl", "otlp"] {
        let metadata = fs::symlink_metadata(mount.join(name)).expect("it is there");
        assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == 0o666, "{name}: {metadata:?}");
    }

    let lock = lock(paths);
    let gateway = Holder::connect(paths, &lock);
    let list = gateway.list();
    assert_eq!(names(&list), ["volume shop/cart [4317, 4318]".to_owned(), format!("otlp {}", volume.uid)]);
    let _shim = pillion_tests::csi::connect(&mount.join("ctl"), SocketType::SEQPACKET).expect("the shim connects");
    rustix::net::accept(&list[0].1).expect("its connection arrives at the gateway");

    kubelet.unpublish(&registered.endpoint, &volume).expect("unpublished");
    let told = gateway.receive().map(|(message, _)| message);
    assert_eq!(told, Some(ToGateway::Unpublished { uid: volume.uid.clone() }));
    assert!(!mount.exists());
    driver.wait_for_line("unpublished a volume");
    assert!(driver.stop().success());
}
