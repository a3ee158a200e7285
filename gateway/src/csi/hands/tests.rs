//! What is bound anew, what is left alone, and what is believed of a returned descriptor.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;

fn kubelet() -> (tempfile::TempDir, Target) {
    let root = tempfile::tempdir().expect("writable");
    let target = Target::new(Uid::parse("u-1").expect("a uid"), "pillion").expect("a name");
    fs::create_dir_all(root.path().join("pods/u-1/volumes/kubernetes.io~csi/pillion/mount")).expect("writable");
    (root, target)
}

/// Scenario: a driver secures a socket, dies while a gateway holds a duplicate, starts again, and again when the gateway is
/// gone as well.
/// Guarantees: what somebody holds is never bound anew; what nobody holds is at once.
#[test]
fn only_what_nobody_holds_is_bound_anew() {
    let (root, target) = kubelet();
    let mut driver = Hands::new(root.path());
    for kind in Kind::ALL {
        assert_eq!(driver.secure(&target, kind).expect("bound"), Secured::Bound);
        assert_eq!(driver.secure(&target, kind).expect("in hand"), Secured::Held);
        let socket = driver.socket(&target.uid, kind).expect("in hand");
        let gateway = socket.try_clone_to_owned().expect("a descriptor");
        assert_eq!(identify(gateway.as_fd()).expect("ours"), (target.uid.clone(), kind));

        driver = Hands::new(root.path());
        assert_eq!(driver.secure(&target, kind).expect("held elsewhere"), Secured::Held);
        assert!(driver.socket(&target.uid, kind).is_none());
        drop(gateway);
        assert_eq!(driver.secure(&target, kind).expect("bound"), Secured::Bound);
    }
    driver.release(&target.uid);
    assert_eq!(driver.secure(&target, Kind::Ctl).expect("bound"), Secured::Bound);
}

/// Scenario: whatever a gateway may give back that is not a pod's listener.
/// Guarantees: the kernel's word decides; nothing of it is taken for a pod's.
#[test]
fn nothing_but_a_pods_listener_is_one() {
    let root = tempfile::tempdir().expect("writable");
    let file = fs::File::create(root.path().join("file")).expect("writable");
    let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (connection, _peer) = UnixStream::pair().expect("a pair");
    let other = UnixListener::bind(root.path().join("other")).expect("bound");
    let wrong_type = UnixListener::bind(root.path().join(".ctl.u-1")).expect("bound");
    let path = rustix::fs::open(root.path(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("there");
    let right = UnixListener::bind(root.path().join(".otlp.u-1")).expect("bound");
    for (fd, reason) in [
        (file.as_fd(), "no socket"),
        (path.as_fd(), "no socket"),
        (tcp.as_fd(), "not a Unix socket"),
        (connection.as_fd(), "it does not listen"),
        (other.as_fd(), "bound by another name"),
        (wrong_type.as_fd(), "of the wrong type"),
    ] {
        assert_eq!(identify(fd).expect_err(reason).0, reason);
    }
    assert_eq!(identify(right.as_fd()).expect("ours").1, Kind::Otlp);
}
