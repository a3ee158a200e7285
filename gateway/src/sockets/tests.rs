//! What a name in a directory tells, and what it never leads to.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use super::*;

fn directory() -> (tempfile::TempDir, OwnedFd) {
    let dir = tempfile::tempdir().expect("the temporary directory is writable");
    let fd = open_directory(&dir.path().join("volume")).expect("can be made");
    (dir, fd)
}

/// Scenario: a pod's sockets are asked for with a connection of the wrong type: while they live, with a full backlog, after
/// their end, and where something else has their name.
/// Guarantees: the answer is whether somebody holds the socket, and its backlog never notices.
#[test]
fn who_holds_a_socket_is_told_without_touching_it() {
    for kind in Kind::ALL {
        let (root, dir) = directory();
        let name = kind.as_str();
        assert_eq!(holder(&dir, name).expect("absent"), Holder::Nobody);

        let (socket, _) = bind_for_pod(&dir, kind, ".temporary").expect("bound");
        for _ in 0..3 {
            assert_eq!(holder(&dir, name).expect("alive"), Holder::Somebody, "{name}");
        }
        let duplicate = socket.try_clone().expect("a descriptor is free");
        drop(socket);
        assert_eq!(holder(&dir, name).expect("still held"), Holder::Somebody, "{name}");
        let accepted = rustix::net::accept(&duplicate).expect_err("nobody has connected");
        assert_eq!(accepted, Errno::AGAIN, "{name}: the probes were never in its queue");
        drop(duplicate);
        assert_eq!(holder(&dir, name).expect("dead"), Holder::Nobody, "{name}");

        let path = root.path().join("volume").join(name);
        fs::remove_file(&path).expect("the dead socket's name");
        let (_alive, _) = bind_for_pod(&dir, kind, ".other").expect("bound");
        fs::rename(&path, root.path().join("elsewhere")).expect("renamed");
        symlink(root.path().join("elsewhere"), &path).expect("a link in its place");
        assert_eq!(holder(&dir, name).expect("a link"), Holder::Nobody, "{name}: a link is not followed");
        assert!(fs::metadata(&path).is_ok(), "it leads to a living socket");
    }
}

/// Scenario: a socket is bound where a link and a stale file have its names; then another group is asked for.
/// Guarantees: mode and group are as asked, whatever the umask; what the link led to is untouched; the bound name sticks.
#[test]
fn a_socket_gets_its_mode_and_follows_nothing() {
    let (root, dir) = directory();
    let victim = root.path().join("victim");
    fs::write(&victim, "untouched").expect("writable");
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).expect("its owner may");
    symlink(&victim, root.path().join("volume/ctl")).expect("a link in its place");
    symlink(&victim, root.path().join("volume/.ctl.u-1")).expect("a link in the place of its first name");

    let (socket, inode) = bind_for_pod(&dir, Kind::Ctl, ".ctl.u-1").expect("bound");

    let metadata = fs::symlink_metadata(root.path().join("volume/ctl")).expect("there");
    assert_eq!((metadata.mode() & 0o7777, metadata.ino()), (0o666, inode.number));
    assert_eq!(fs::metadata(&victim).expect("there").mode() & 0o7777, 0o600);
    assert_eq!(fs::read_to_string(&victim).expect("there"), "untouched");
    let bound = rustix::net::getsockname(&socket).expect("bound");
    let bound = SocketAddrUnix::try_from(bound).expect("a Unix socket");
    let bytes = bound.path_bytes().expect("with a path");
    assert_eq!(pillion_proto::custody::parse_bound_name(bytes), Some((Kind::Ctl, "u-1")));

    let group = rustix::process::getegid().as_raw();
    let spec = Spec {
        name: "own",
        temporary: ".own",
        kind: SocketType::SEQPACKET,
        backlog: 1,
        mode: 0o660,
        group: Some(group),
    };
    let _own = bind(&dir, &spec).expect("bound");
    let metadata = fs::metadata(root.path().join("volume/own")).expect("there");
    assert_eq!((metadata.mode() & 0o7777, metadata.gid()), (0o660, group));

    let (_successor, _) = bind_for_pod(&dir, Kind::Ctl, ".ctl.u-1").expect("bound again");
    remove_own(&dir, "ctl", inode);
    assert!(root.path().join("volume/ctl").exists(), "it is the successor's");
}
