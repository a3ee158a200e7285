//! The CSI driver as a process, called as the kubelet calls it. The gateway behind it is a stand-in, as far as custody goes.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use pillion_proto::custody::{ToDriver, ToGateway};
use pillion_tests::attack;
use pillion_tests::csi::{Driver, Holder, Paths, connect, cookie, lock};
use pillion_tests::gateway::{directory, kill};
use pillion_tests::kubelet::{Kubelet, Volume};
use rustix::net::SocketType;
use rustix::process::Signal;
use tempfile::TempDir;

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");

/// A kubelet and a registered driver.
struct Node {
    kubelet: Kubelet,
    driver: Driver,
    endpoint: PathBuf,
    dir: TempDir,
}

impl Node {
    fn start() -> Self {
        let dir = directory();
        let paths = Paths::below(dir.path());
        let kubelet = Kubelet::new(&paths.kubelet());
        let driver = Driver::start(NODE, &paths);
        let registered = driver.register(&kubelet);
        assert_eq!((registered.name.as_str(), registered.node_id.as_str()), ("csi.pillion.dev", "node-7"));
        assert_eq!(registered.endpoint, paths.endpoint());
        driver.wait_for_line("the kubelet has registered the driver");
        Self { kubelet, driver, endpoint: registered.endpoint, dir }
    }

    fn paths(&self) -> Paths {
        Paths::below(self.dir.path())
    }

    /// kill -9 of the driver, and a new one.
    fn restart_driver(self) -> Self {
        let Self { kubelet, driver, endpoint, dir } = self;
        driver.kill();
        let driver = Driver::start(NODE, &Paths::below(dir.path()));
        assert_eq!(driver.register(&kubelet).endpoint, endpoint);
        Self { kubelet, driver, endpoint, dir }
    }

    fn publish(&self, volume: &Volume) {
        self.kubelet
            .publish(&self.endpoint, volume)
            .unwrap_or_else(|failure| panic!("{failure:?}\n{}", self.driver.log()));
    }

    fn unpublish(&self, volume: &Volume) {
        let outcome = self.kubelet.unpublish(&self.endpoint, volume);
        outcome.unwrap_or_else(|failure| panic!("{failure:?}\n{}", self.driver.log()));
    }

    fn refuse(&self, volume: &Volume) -> String {
        self.kubelet.publish(&self.endpoint, volume).expect_err("it must be refused").message
    }

    fn mount(&self, volume: &Volume) -> PathBuf {
        volume.mount(self.kubelet.dir())
    }
}

fn volume(number: u8) -> Volume {
    Volume::of(&format!("11111111-aaaa-bbbb-cccc-00000000000{number}"), "shop", &format!("cart-{number}"))
}

/// What the gateway was handed, by words.
fn by_name(list: Vec<(ToGateway, OwnedFd)>) -> BTreeMap<String, OwnedFd> {
    let name = |message: ToGateway| match message {
        ToGateway::Volume(volume) => format!("volume {}/{} {:?}", volume.namespace, volume.pod, volume.ports),
        ToGateway::Otlp { uid } => format!("otlp {uid}"),
        other => format!("{other:?}"),
    };
    list.into_iter().map(|(message, fd)| (name(message), fd)).collect()
}

fn cookies(list: &BTreeMap<String, OwnedFd>) -> BTreeMap<String, u64> {
    list.iter().map(|(name, socket)| (name.clone(), cookie(socket))).collect()
}

fn shim(mount: &Path) -> OwnedFd {
    connect(&mount.join("ctl"), SocketType::SEQPACKET).expect("the shim connects")
}

/// Connections that wait on a listener.
fn waiting(listener: &OwnedFd) -> usize {
    std::iter::from_fn(|| rustix::net::accept(listener).ok()).count()
}

/// Scenario: the kubelet registers the driver and publishes a volume; a gateway comes, gets it, and sees it unpublished.
/// Guarantees: the sockets are there for any user, and nothing else that the driver makes is anybody else's to write; the
/// gateway gets listeners that the pod's connections arrive on; after the unpublish nothing is left of the volume; the end
/// of the driver takes its own names along.
#[test]
fn a_volume_goes_from_the_kubelet_to_the_gateway_and_back() {
    let node = Node::start();
    let volume = volume(1);
    node.publish(&volume);
    let mount = node.mount(&volume);
    for name in ["ctl", "otlp"] {
        let metadata = fs::symlink_metadata(mount.join(name)).expect("it is there");
        assert!(metadata.file_type().is_socket() && metadata.mode() & 0o777 == 0o666, "{name}: {metadata:?}");
    }
    let plugin = node.endpoint.parent().expect("in its folder").to_owned();
    let record = plugin.join("volumes").join(format!("{}.json", volume.uid));
    for path in [&mount, &plugin, &record, &plugin.join("volumes"), &node.endpoint, &node.paths().registration()] {
        let mode = fs::symlink_metadata(path).expect("it is there").mode();
        assert_eq!(mode & 0o022, 0, "{}: {mode:o}", path.display());
    }
    assert_eq!(fs::metadata(node.paths().data()).expect("prepared").mode() & 0o7777, 0o2770);
    assert_eq!(fs::metadata(node.paths().custody()).expect("bound").mode() & 0o777, 0o660);

    let lock = lock(&node.paths());
    let gateway = Holder::connect(&node.paths(), &lock);
    let list = by_name(gateway.list(&[]));
    let ctl = "volume shop/cart-1 [4317, 4318]";
    assert_eq!(list.keys().collect::<Vec<_>>(), [&format!("otlp {}", volume.uid), ctl]);
    let _shim = shim(&mount);
    assert_eq!(waiting(&list[ctl]), 1, "its connection arrives at the gateway");

    node.unpublish(&volume);
    let told = gateway.receive().map(|(message, _)| message);
    assert_eq!(told, Some(ToGateway::Unpublished { uid: volume.uid.clone() }));
    assert!(!mount.exists() && !record.exists());
    node.driver.wait_for_line("unpublished a volume");
    assert!(node.driver.stop().success());
    let own = [Paths::below(node.dir.path()).registration(), node.endpoint, Paths::below(node.dir.path()).custody()];
    assert!(own.iter().all(|path| !path.exists()), "its own names end with it");
}

/// Scenario: the kubelet publishes again, as it does every minute: the same, with other words in it, with a name removed or
/// replaced in the directory, with the whole directory gone.
/// Guarantees: it never fails; listeners in hand stay what they are; a name that leads nowhere is made again.
#[test]
fn a_repeated_publish_never_fails() {
    let node = Node::start();
    let volume = volume(1);
    node.publish(&volume);
    let lock = lock(&node.paths());
    let gateway = Holder::connect(&node.paths(), &lock);
    let first = cookies(&by_name(gateway.list(&[])));
    let mount = node.mount(&volume);

    node.publish(&volume);
    let mut odd = volume.clone();
    odd.read_only = false;
    node.publish(&odd);
    odd.attributes = vec![("grpcPort".to_owned(), "no port".to_owned())];
    odd.read_only = true;
    node.publish(&odd);
    node.driver.wait_for_line("cannot renew a published volume");
    let again = Holder::connect(&node.paths(), &lock);
    assert_eq!(cookies(&by_name(again.list(&[]))), first, "nothing was bound anew");

    let damage: &[fn(&Path)] = &[
        |mount| fs::remove_file(mount.join("ctl")).expect("it is there"),
        |mount| {
            fs::remove_file(mount.join("ctl")).expect("it is there");
            symlink("/etc/passwd", mount.join("ctl")).expect("writable");
        },
        |mount| {
            // The kubelet's path is too long to bind it there.
            let dead = directory();
            drop(UnixListener::bind(dead.path().join("dead")).expect("bound"));
            fs::rename(dead.path().join("dead"), mount.join("ctl")).expect("on one filesystem");
        },
        |mount| fs::remove_dir_all(mount).expect("it is there"),
    ];
    for change in damage {
        change(&mount);
        node.publish(&volume);
        let Some((ToGateway::Volume(told), Some(ctl))) = again.receive() else { panic!("{}", node.driver.log()) };
        assert_eq!(told.uid, volume.uid);
        let _shim = shim(&mount);
        assert_eq!(waiting(&ctl), 1, "the new name leads to what the gateway was told");
    }
}

/// Scenario: the driver is killed and started again, with a gateway that has its pods' sockets, with a backlog in them; then
/// both; then the gateway alone.
/// Guarantees: what anybody holds stays what it is, connections wait and are not lost; what nobody holds is bound at once,
/// before any gateway or kubelet comes.
#[test]
fn the_sockets_outlive_whoever_dies() {
    let node = Node::start();
    let volumes = [volume(1), volume(2)];
    volumes.iter().for_each(|volume| node.publish(volume));
    let first_lock = lock(&node.paths());
    let gateway = Holder::connect(&node.paths(), &first_lock);
    let held = by_name(gateway.list(&[]));
    let before = cookies(&held);
    let mount = node.mount(&volumes[0]);
    let ctl = "volume shop/cart-1 [4317, 4318]";

    // The driver.
    let waiting_shim = shim(&mount);
    let node = node.restart_driver();
    assert!(gateway.receive().is_none(), "the gateway notices");
    node.publish(&volumes[1]);
    let gateway = Holder::connect(&node.paths(), &first_lock);
    let held: Vec<OwnedFd> = held.into_values().collect();
    let list = by_name(gateway.list(&held));
    assert_eq!(cookies(&list), before);
    assert_eq!(waiting(&list[ctl]), 1, "what waited still waits");
    drop(waiting_shim);

    // The gateway.
    let waiting_shim = shim(&mount);
    drop((gateway, held, list, first_lock));
    node.driver.wait_for_line("the gateway is gone");
    let second_lock = lock(&node.paths());
    let gateway = Holder::connect(&node.paths(), &second_lock);
    let list = by_name(gateway.list(&[]));
    assert_eq!(cookies(&list), before);
    assert_eq!(waiting(&list[ctl]), 1, "what waited still waits");
    drop(waiting_shim);

    // Both.
    drop((gateway, list, second_lock));
    let node = node.restart_driver();
    let _shim = shim(&mount);
    let third_lock = lock(&node.paths());
    let list = by_name(Holder::connect(&node.paths(), &third_lock).list(&[]));
    assert_eq!(list.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
    assert!(cookies(&list).values().all(|cookie| !before.values().any(|old| old == cookie)));
    assert_eq!(waiting(&list[ctl]), 1, "bound before anybody came");
}

/// Scenario: two gateways in a rollout: one without the lock, then the next one while the old one's connection still stands.
/// Guarantees: only the holder of the lock gets sockets; the newest holder supersedes the one before, and the end of that one
/// changes nothing.
#[test]
fn the_newest_holder_of_the_lock_gets_the_sockets() {
    let node = Node::start();
    let first = volume(1);
    node.publish(&first);
    let old_lock = lock(&node.paths());
    let old = Holder::connect(&node.paths(), &old_lock);
    let before = cookies(&by_name(old.list(&[])));

    let standby = fs::File::open(node.paths().data().join("lock")).expect("it is there");
    let refused = Holder::connect(&node.paths(), &standby).refusal();
    assert!(refused.contains("locked by another process"), "{refused}");
    let foreign = fs::File::create(node.paths().data().join("other")).expect("writable");
    let refused = Holder::connect(&node.paths(), &foreign).refusal();
    assert!(refused.contains("mount the same host directory"), "{refused}");

    drop(old_lock);
    let new_lock = lock(&node.paths());
    let new = Holder::connect(&node.paths(), &new_lock);
    assert_eq!(cookies(&by_name(new.list(&[]))), before);
    assert!(old.receive().is_none(), "the older one is hung up on");
    drop(old);
    let second = volume(2);
    node.publish(&second);
    assert!(matches!(new.receive(), Some((ToGateway::Volume(told), Some(_))) if told.uid == second.uid));
    drop((new, new_lock));
    node.driver.wait_for_line("the gateway is gone");
    drop(lock(&node.paths()));
}

/// Scenario: a new driver starts before the old one ends, as in a rollout that overlaps; the old one is told to stop.
/// Guarantees: its end takes away none of the names, since they are the new one's by then; the kubelet and a gateway are
/// served by the new one.
#[test]
fn the_end_of_an_old_driver_takes_nothing_from_the_new_one() {
    let node = Node::start();
    let first = volume(1);
    node.publish(&first);
    let lock = lock(&node.paths());
    let before = cookies(&by_name(Holder::connect(&node.paths(), &lock).list(&[])));
    let new = Driver::start(NODE, &node.paths());
    assert!(new.log().contains("recorded=1"), "{}", new.log());
    let Node { kubelet, driver, endpoint, dir } = node;
    assert!(driver.stop().success());
    let node = Node { kubelet, driver: new, endpoint, dir };
    assert_eq!(node.driver.register(&node.kubelet).endpoint, node.endpoint);
    node.publish(&first);
    let after = by_name(Holder::connect(&node.paths(), &lock).list(&[]));
    assert_eq!(after.len(), before.len());
    let _shim = shim(&node.mount(&first));
    assert_eq!(waiting(&after["volume shop/cart-1 [4317, 4318]"]), 1);
}

/// Scenario: connections on the custody socket that say nothing, or something else than HELLO; a gateway that returns odd
/// descriptors, and one that ends in the middle of a message.
/// Guarantees: each is dropped or ignored with a line in the log; the pods' sockets stay, and the next gateway gets them.
#[test]
fn whatever_comes_to_the_custody_socket_the_driver_goes_on() {
    let node = Node::start();
    let volume = volume(1);
    node.publish(&volume);
    let silent: Vec<Holder> = (0..5).map(|_| Holder::silent(&node.paths())).collect();
    assert!(silent[0].receive().is_none(), "one more than may wait supersedes the oldest");
    silent[4].send(&ToDriver::Ready, None);
    assert!(silent[4].receive().is_none(), "what does not begin with HELLO is hung up on");

    let lock = lock(&node.paths());
    let odd = Holder::connect(&node.paths(), &lock);
    let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
    let foreign = UnixListener::bind(node.dir.path().join(".ctl.not-a-pod-of-ours")).expect("bound");
    let list = odd.list(&[one.into(), lock.try_clone().expect("a descriptor").into(), foreign.into()]);
    let before = cookies(&by_name(list));
    assert_eq!(before.len(), 2);
    node.driver.wait_for_line("closed what the gateway returned");
    odd.send(&ToDriver::Attached { uid: volume.uid.clone(), error: Some("no budget".to_owned()) }, None);
    node.driver.wait_for_line("the gateway does not serve a pod");
    odd.send(&ToDriver::Hello { version: 1, gateway_version: String::new(), instance: 0 }, Some(lock.as_fd()));
    assert!(odd.receive().is_none(), "HELLO is said once");

    let next = Holder::connect(&node.paths(), &lock);
    assert_eq!(cookies(&by_name(next.list(&[]))), before);
}

/// Scenario: sockets whose close takes an hour (SO_LINGER, and bytes that nobody reads): one left unread in a pod's `ctl`,
/// which is unpublished while there is no gateway; many that a gateway returns, and one that it leaves in a connection that is
/// hung up on.
/// Guarantees: the kubelet is answered all the while, the next gateway is served, and SIGTERM ends the driver.
#[test]
fn a_close_that_takes_an_hour_keeps_neither_kubelet_nor_gateway_waiting() {
    let node = Node::start();
    let [first, second] = [volume(1), volume(2)];
    node.publish(&first);
    let mut unread = vec![attack::hide_in(shim(&node.mount(&first)))];
    node.unpublish(&first);
    node.publish(&second);

    let lock = lock(&node.paths());
    let hostile = Holder::connect(&node.paths(), &lock);
    assert_eq!(hostile.list(&[]).len(), 2);
    // So that the driver's close of each is the last one, and never the test's.
    kill(node.driver.pid(), Signal::STOP);
    for _ in 0..8 {
        let (outer, hiding) = attack::pair();
        unread.push(attack::hide_in(hiding));
        hostile.send(&ToDriver::Return, Some(outer.as_fd()));
    }
    hostile.send(&ToDriver::Hello { version: 1, gateway_version: String::new(), instance: 0 }, Some(lock.as_fd()));
    drop(hostile);
    kill(node.driver.pid(), Signal::CONT);
    node.publish(&first);
    let next = Holder::connect(&node.paths(), &lock);
    assert_eq!(next.list(&[]).len(), 4);
    node.unpublish(&second);

    let Node { driver, .. } = node;
    assert!(driver.stop().success());
    drop(unread);
}

/// Scenario: a volume that is not read-only, one without information about its pod, one that is not ephemeral, with wrong
/// ports, of another pod than the path says, below another directory; and the second volume of a pod.
/// Guarantees: each is refused with the words of what to set, and leaves nothing behind; the pod's first volume is untouched
/// by the second, and by its unpublish.
#[test]
fn a_volume_that_cannot_be_served_safely_is_refused() {
    let node = Node::start();
    let mut writable = volume(1);
    writable.read_only = false;
    assert!(node.refuse(&writable).contains("readOnly: true"));
    assert!(!node.mount(&writable).exists());
    let mut ports = volume(1);
    ports.attributes = vec![("httpPort".to_owned(), "0".to_owned())];
    assert!(node.refuse(&ports).contains("httpPort is \"0\""));
    for (key, value, words) in [
        ("ephemeral", "false", "Ephemeral"),
        ("pod.name", "", "podInfoOnMount: true"),
        ("pod.uid", "another", "but the volume context says"),
    ] {
        let mut request = volume(1).request(node.kubelet.dir());
        request.volume_context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
        let refused = node.kubelet.call::<_, ToNothing>(&node.endpoint, "csi.v1.Node/NodePublishVolume", &request);
        let message = refused.expect_err(words).message;
        assert!(message.contains(words), "{message}");
    }
    let elsewhere = volume(1).request(node.dir.path());
    let refused = node.kubelet.call::<_, ToNothing>(&node.endpoint, "csi.v1.Node/NodePublishVolume", &elsewhere);
    assert!(refused.expect_err("another directory").message.contains("--kubelet-dir"));
    let unknown = node.kubelet.call::<_, ToNothing>(&node.endpoint, "csi.v1.Node/NodeStageVolume", &elsewhere);
    assert_eq!(unknown.expect_err("not served").code, 12, "UNIMPLEMENTED");

    let first = volume(2);
    node.publish(&first);
    let mut second = first.clone();
    second.volume = "another".to_owned();
    assert!(node.refuse(&second).contains("has a volume of csi.pillion.dev already, named \"pillion\""));
    node.unpublish(&second);
    let _shim = shim(&node.mount(&first));
    node.unpublish(&first);
}

/// What is not looked at.
type ToNothing = pillion_proto::csi::NodePublishVolumeResponse;

/// Scenario: unpublish comes without a publish: for what never was, after the driver has lost its records, twice; and the
/// directory is full of what keeps rmdir from working (docs/threats.md row 19): files, links in the place of `ctl` and of
/// `mount` itself, a deep tree, a directory without permissions.
/// Guarantees: the directory is gone and the kubelet's own becomes empty; nothing that a link led to is touched.
#[test]
fn unpublish_removes_whatever_is_there_and_follows_nothing() {
    let node = Node::start();
    node.unpublish(&volume(1));
    let victim = node.dir.path().join("victim");
    fs::create_dir(&victim).expect("writable");
    fs::write(victim.join("file"), "untouched").expect("writable");

    let hostile = volume(2);
    node.publish(&hostile);
    let node = {
        fs::remove_dir_all(node.endpoint.parent().expect("in its folder").join("volumes")).expect("it is there");
        node.restart_driver()
    };
    let mount = node.mount(&hostile);
    fs::remove_file(mount.join("ctl")).expect("it is there");
    symlink(victim.join("file"), mount.join("ctl")).expect("writable");
    symlink(&victim, mount.join("link")).expect("writable");
    fs::write(mount.join("file"), "in the way").expect("writable");
    fs::create_dir_all(mount.join("closed/inside")).expect("writable");
    symlink(&victim, mount.join("closed/link")).expect("writable");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o0);
    fs::set_permissions(mount.join("closed"), permissions).expect("its owner may");
    fs::create_dir_all(mount.join("d/".repeat(500))).expect("writable");
    node.unpublish(&hostile);
    node.unpublish(&hostile);

    let replaced = volume(3);
    node.publish(&replaced);
    fs::remove_dir_all(node.mount(&replaced)).expect("it is there");
    symlink(&victim, node.mount(&replaced)).expect("writable");
    node.publish(&replaced);
    assert!(!victim.join("ctl").exists(), "nothing is made through the link");
    node.unpublish(&replaced);

    let fresh = volume(4);
    fs::create_dir_all(node.mount(&fresh).parent().expect("below the pod")).expect("writable");
    symlink(&victim, node.mount(&fresh)).expect("writable");
    assert!(node.refuse(&fresh).contains("remove what stands in its place"));
    assert_eq!(fs::read_dir(&victim).expect("it is there").count(), 1);
    assert_eq!(fs::read_to_string(victim.join("file")).expect("it is there"), "untouched");
}

/// Scenario: the driver starts where the data directory cannot be prepared: a file has its name; later it can be.
/// Guarantees: it says what to do, and serves the kubelet meanwhile, so that pods start.
#[test]
fn without_a_data_directory_pods_start_all_the_same() {
    let dir = directory();
    let paths = Paths::below(dir.path());
    let kubelet = Kubelet::new(&paths.kubelet());
    fs::write(paths.data(), "in the way").expect("writable");
    let driver = Driver::spawn(NODE, &paths, None);
    let line = driver.wait_for_line("no gateway can be served");
    assert!(line.contains("the data directory") && line.contains("remove it"), "{line}");
    let endpoint = driver.register(&kubelet).endpoint;
    kubelet.publish(&endpoint, &volume(1)).expect("published");
    fs::remove_file(paths.data()).expect("it is there");
    driver.wait_for_line("waiting for a gateway");
}

/// Scenario: somebody of the driver's user leaves more passed descriptors unread than the driver may see, while a gateway
/// comes (docs/threats.md row 18); some time later they are gone.
/// Guarantees: the driver says so and keeps what waits; the kubelet is served; then the gateway gets everything in order.
#[test]
fn descriptors_that_the_kernel_refuses_are_sent_later() {
    let dir = directory();
    let paths = Paths::below(dir.path());
    let kubelet = Kubelet::new(&paths.kubelet());
    let driver = Driver::spawn(NODE, &paths, Some(64));
    driver.wait_for_line("waiting for a gateway");
    let endpoint = driver.register(&kubelet).endpoint;
    kubelet.publish(&endpoint, &volume(1)).expect("published");

    let attack = pillion_tests::attack::leave_descriptors_in_flight();
    let lock = lock(&paths);
    let gateway = Holder::connect(&paths, &lock);
    let welcome = gateway.receive().map(|(message, _)| message);
    assert!(matches!(welcome, Some(ToGateway::Welcome { .. })), "{welcome:?}");
    gateway.send(&ToDriver::Ready, None);
    driver.wait_for_line("too many descriptors under way");
    kubelet.publish(&endpoint, &volume(2)).expect("published");
    drop(attack);
    let list: Vec<_> = (0..5).filter_map(|_| gateway.receive()).collect();
    let kinds: Vec<&str> = list.iter().map(|(message, _)| kind(message)).collect();
    assert_eq!(kinds, ["volume", "otlp", "ready", "volume", "otlp"]);
}

fn kind(message: &ToGateway) -> &'static str {
    match message {
        ToGateway::Volume(_) => "volume",
        ToGateway::Otlp { .. } => "otlp",
        ToGateway::Ready => "ready",
        _ => "other",
    }
}
