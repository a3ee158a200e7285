//! The conversation on `ctl`: when the shim connects, what it ignores, how it leaves.

use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use pillion_proto::control::{Capabilities, Mode, Nack, NackCode, ToGateway, ToShim, VERSION};

use crate::harness::{Gateway, PATIENCE, Ports, Shim, connect, v4};

/// Scenario: `ctl` exists, but nobody accepts: a gateway that is being restarted, whose listening socket csi keeps.
/// Guarantees: the shim waits in the queue with its HELLO, for as long as it takes, without a timer and without a second
/// connection, and is served when somebody comes.
#[test]
fn the_shim_waits_in_the_queue_without_a_timer() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let shim = Shim::start(dir.path(), &ports, &[]);
    shim.sleeps_without_a_timer();
    let (_session, donated) = gateway.serve();
    assert_eq!(donated.len(), 4);
    assert!(gateway.nobody_waits());
}

/// Scenario: the directory does not exist yet; it appears, then `ctl` in it.
/// Guarantees: the shim says what it waits for, and finds both.
#[test]
fn a_directory_that_comes_later_is_found() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let later = dir.path().join("later");
    let mut shim = Shim::start(&later, &ports, &[]);
    shim.says("no such file; waiting for the gateway");
    std::fs::create_dir(&later).unwrap();
    let gateway = Gateway::listen(&later);
    gateway.serve();
}

/// Scenario: the volume's path has 250 bytes, as kubelets' paths do, while the address of a Unix socket holds 107.
/// Guarantees: the shim connects all the same.
#[test]
fn a_long_path_works() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let long = dir.path().join("x".repeat(120)).join("y".repeat(120));
    std::fs::create_dir_all(&long).unwrap();
    let gateway = Gateway::listen(&long);
    let _shim = Shim::start(&long, &ports, &[]);
    gateway.serve();
}

/// Scenario: HELLO of a shim in each mode.
/// Guarantees: it says truly what it can do, so that no gateway asks for what the command line forbids.
#[test]
fn hello_says_what_the_shim_can_do() {
    let cases = [
        ("auto", Capabilities::DONATE | Capabilities::RELAY),
        ("donate", Capabilities::DONATE),
        ("relay", Capabilities::RELAY),
    ];
    for (mode, capabilities) in cases {
        let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
        let gateway = Gateway::listen(dir.path());
        let _shim = Shim::start(dir.path(), &ports, &["--mode", mode]);
        let hello = gateway.accept().hello();
        assert_eq!((hello.version, hello.capabilities), (VERSION, capabilities), "{mode}");
        assert_eq!(hello.shim_version, env!("CARGO_PKG_VERSION"));
    }
}

/// Scenario: a later gateway sends a message that this shim does not know, with two descriptors, and one that brings a
/// descriptor where none belongs; then asks for things of later versions.
/// Guarantees: both descriptors are closed, the session goes on, DIAL is refused with a reason, CREDIT and HANDOFF change
/// nothing.
#[test]
fn what_the_shim_does_not_know_is_ignored_and_its_descriptors_closed() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let _shim = Shim::start(dir.path(), &ports, &[]);
    let (session, _donated) = gateway.serve();

    let unknown = [b'P', 1, 0xef, 0, 0, 0, 0, 9, 1, 2, 3];
    for packet in [unknown.to_vec(), ToShim::Handoff.encode()] {
        let (mut kept, passed) = UnixStream::pair().unwrap();
        let second = passed.try_clone().unwrap();
        session.send_bytes(&packet, &[passed.as_fd(), second.as_fd()]);
        drop((passed, second));
        kept.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(kept.read(&mut [0; 1]).unwrap(), 0, "the shim still holds a descriptor");
    }
    session.send(&ToShim::Credit { connections: 5 });
    session.send(&ToShim::Dial { id: 77, port: 80 });
    match session.receive() {
        Some((ToGateway::Dialed { id: 77, error: Some(_) }, None)) => {}
        other => panic!("not a refusal of DIAL: {other:?}"),
    }
    session.settle();
}

/// Scenario: the gateway sends bytes that are no message.
/// Guarantees: the shim ends that session and begins another, in which everything is offered again.
#[test]
fn garbage_ends_the_session_and_not_the_shim() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &[]);
    for packet in [b"GET / HTTP/1.1".to_vec(), vec![b'P'; 5000]] {
        let (session, _donated) = gateway.serve();
        session.send_bytes(&packet, &[]);
        assert!(session.receive().is_none());
    }
    shim.says("not a control message");
    assert_eq!(gateway.serve().1.len(), 4);
}

/// Scenario: the pod ends; the gateway serves the backlog and acknowledges.
/// Guarantees: BYE is said, the ports stay bound until its ACK, and the exit status is 0.
#[test]
fn the_shim_leaves_when_bye_is_acknowledged() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let shim = Shim::start(dir.path(), &ports, &[]);
    let (session, donated) = gateway.serve();
    shim.terminate();
    let Some((ToGateway::Bye { id }, None)) = session.receive() else { panic!("not BYE") };
    drop(donated);
    connect(v4(ports.grpc));
    session.send(&ToShim::Ack { id });
    assert_eq!(shim.ended().code(), Some(0));
}

/// Scenario: the pod ends while its gateway hangs; another pod ends that never had one.
/// Guarantees: neither waits for ever, and the exit status is 0.
#[test]
fn the_shim_leaves_without_an_answer() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let shim = Shim::start(dir.path(), &ports, &[]);
    let (session, _donated) = gateway.serve();
    shim.terminate();
    assert!(matches!(session.receive(), Some((ToGateway::Bye { .. }, None))));
    assert_eq!(shim.ended().code(), Some(0));

    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let mut shim = Shim::start(dir.path(), &ports, &[]);
    shim.says("waiting for the gateway");
    shim.terminate();
    assert_eq!(shim.ended().code(), Some(0));
}

/// Scenario: a standalone gateway was killed for good.
/// Guarantees: its shim ends by itself, both when the gateway went away and when it never came.
#[test]
fn a_shim_that_nobody_ends_ends_alone() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let shim = Shim::start(dir.path(), &ports, &["--exit-after-alone", "1"]);
    drop(gateway.serve());
    drop(gateway);
    assert_eq!(shim.ended().code(), Some(0));

    let shim = Shim::start(dir.path(), &ports, &["--exit-after-alone", "0"]);
    assert_eq!(shim.ended().code(), Some(0));
}

/// Scenario: an init container's order depends on the ports: `wait` runs beside a shim whose gateway is absent.
/// Guarantees: it returns 0, since the ports are bound; no gateway is needed for that.
#[test]
fn wait_returns_when_the_ports_are_bound() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let _shim = Shim::start(dir.path(), &ports, &[]);
    let status = Command::new(env!("CARGO_BIN_EXE_pillion-shim"))
        .args(["wait", "--grpc", &ports.grpc.to_string(), "--http", &ports.http.to_string(), "--dir"])
        .arg(dir.path())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(0));
}

/// Scenario: `--mode donate`, and the gateway refuses a donation for a reason that stays, or asks to relay.
/// Guarantees: the shim says so, relays nothing, and goes on with the session.
#[test]
fn a_shim_that_may_not_relay_does_not() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let otlp = crate::harness::listen_otlp(dir.path());
    let gateway = Gateway::listen(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &["--mode", "donate"]);
    let session = gateway.accept();
    session.hello();
    session.welcome(Mode::Donate);
    let (id, address, _listener) = session.donation();
    session.send(&ToShim::Nack(Nack { id, code: NackCode::TooMany, reason: "no more".to_owned() }));
    session.donations();
    shim.says("--mode donate forbids to relay");

    let _client = connect(address);
    session.send(&ToShim::Mode { mode: Mode::Relay });
    shim.says("asks for mode relay, staying with donate");
    session.donations();
    session.settle();
    assert!(crate::harness::is_quiet(&otlp), "it relays");
}
