//! Relaying: when the shim does it, and that nothing is lost or changed on the way.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;

use pillion_proto::control::{Mode, Nack, NackCode, ToGateway, ToShim};

use crate::harness::{Gateway, Ports, Shim, accept, accept_otlp, connect, is_quiet, listen_otlp, v4, v6};

const LARGE: usize = 8 << 20;

/// Bytes in which every position shows.
fn pattern(seed: u32, length: usize) -> Vec<u8> {
    (0..u32::try_from(length).unwrap())
        .map(|at| (at.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8)
        .collect()
}

fn read_to_end(mut from: impl std::io::Read) -> Vec<u8> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).unwrap();
    all
}

/// Sends and receives at the same time, ends its own direction first, and returns what came.
fn exchange_tcp(mut stream: TcpStream, sent: Vec<u8>) -> Vec<u8> {
    let reader = stream.try_clone().unwrap();
    let reader = thread::spawn(move || read_to_end(reader));
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    reader.join().unwrap()
}

fn exchange_unix(mut stream: UnixStream, sent: Vec<u8>) -> Vec<u8> {
    let reader = stream.try_clone().unwrap();
    let reader = thread::spawn(move || read_to_end(reader));
    stream.write_all(&sent).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    reader.join().unwrap()
}

/// Scenario: 8 MiB in each direction at the same time, over a path of more than 107 bytes, on IPv4 and IPv6, eight
/// connections at once.
/// Guarantees: every byte arrives in order, and each direction's end is passed on by itself.
#[test]
fn large_data_passes_both_ways_at_once() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let dir = dir.path().join("x".repeat(120));
    std::fs::create_dir(&dir).unwrap();
    let otlp = listen_otlp(&dir);
    let mut shim = Shim::start(&dir, &ports, &["--mode", "relay"]);
    shim.says("waiting for the gateway");

    let clients: Vec<_> = (0..8)
        .map(|index| {
            let address = if index % 2 == 0 { v4(ports.grpc) } else { v6(ports.http) };
            thread::spawn(move || exchange_tcp(connect(address), pattern(1, LARGE)))
        })
        .collect();
    let servers: Vec<_> = (0..8)
        .map(|_| {
            let stream = accept_otlp(&otlp);
            thread::spawn(move || exchange_unix(stream, pattern(2, LARGE)))
        })
        .collect();
    for server in servers {
        assert!(server.join().unwrap() == pattern(1, LARGE), "changed on the way up");
    }
    for client in clients {
        assert!(client.join().unwrap() == pattern(2, LARGE), "changed on the way down");
    }
}

/// Scenario: a client ends its request, and the answer comes only after that; then the gateway ends first, and the client
/// goes on sending.
/// Guarantees: half-closed connections stay open in the other direction, both ways round.
#[test]
fn one_direction_may_end_before_the_other() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let otlp = listen_otlp(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &["--mode", "relay"]);
    shim.says("waiting for the gateway");

    let mut client = connect(v4(ports.grpc));
    client.write_all(b"request").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut server = accept_otlp(&otlp);
    assert_eq!(read_to_end(&server), b"request");
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(read_to_end(&client), b"answer");

    let mut client = connect(v4(ports.grpc));
    let server = accept_otlp(&otlp);
    server.shutdown(Shutdown::Write).unwrap();
    assert_eq!(read_to_end(&client), b"");
    client.write_all(b"still here").unwrap();
    drop(client);
    assert_eq!(read_to_end(&server), b"still here");
}

/// Scenario: applications connect and send while nobody listens on `otlp`.
/// Guarantees: nobody is reset; all of it arrives when somebody does.
#[test]
fn connections_wait_until_otlp_can_be_dialled() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let mut shim = Shim::start(dir.path(), &ports, &["--mode", "relay"]);
    shim.says("waiting for the gateway");
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let mut client = connect(v4(ports.http));
            client.write_all(b"patience").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            client
        })
        .collect();
    shim.says("/otlp: no such file; connections wait");

    let otlp = listen_otlp(dir.path());
    for _ in &clients {
        assert_eq!(read_to_end(accept_otlp(&otlp)), b"patience");
    }
    for client in clients {
        assert_eq!(read_to_end(client), b"");
    }
}

/// Scenario: 300 connections at once, more than the shim relays at a time; none ends before all have sent.
/// Guarantees: the surplus waits in the backlog and is served as others end.
#[test]
fn more_connections_than_fit_wait_their_turn() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let otlp = listen_otlp(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &["--mode", "relay"]);
    shim.says("waiting for the gateway");
    let mut clients: Vec<_> = (0..300).map(|_| connect(v4(ports.grpc))).collect();
    for client in &mut clients {
        client.write_all(b"x").unwrap();
    }
    let mut first = Vec::new();
    for _ in 0..128 {
        let mut server = accept_otlp(&otlp);
        server.read_exact(&mut [0]).unwrap();
        first.push(server);
    }
    assert!(is_quiet(&otlp), "more than the limit");
    drop(first);
    for _ in 128..300 {
        accept_otlp(&otlp).read_exact(&mut [0]).unwrap();
    }
}

/// Scenario: the gateway refuses one donation because no descriptor came along (a sandbox, a security module).
/// Guarantees: the shim says why and relays that address; the others stay donated.
#[test]
fn a_refused_listener_is_relayed() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let otlp = listen_otlp(dir.path());
    let gateway = Gateway::listen(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &[]);
    let session = gateway.accept();
    session.hello();
    session.welcome(Mode::Donate);
    let (id, refused, listener) = session.donation();
    drop(listener);
    session.send(&ToShim::Nack(Nack { id, code: NackCode::FdMissing, reason: "cut off".to_owned() }));
    let donated = session.donations();
    assert_eq!(donated.len(), 3);
    shim.says("cut off; relaying");

    connect(refused).write_all(b"relayed").unwrap();
    assert_eq!(read_to_end(accept_otlp(&otlp)), b"relayed");
    let (address, listener) = donated.iter().next().unwrap();
    connect(*address).write_all(b"donated").unwrap();
    assert_eq!(read_to_end(accept(listener)), b"donated");
    assert!(is_quiet(&otlp));
}

/// Scenario: the gateway refuses the whole shim as too old.
/// Guarantees: the shim says so once and relays, which needs no version.
#[test]
fn a_refused_shim_relays() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let otlp = listen_otlp(dir.path());
    let gateway = Gateway::listen(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &[]);
    let session = gateway.accept();
    session.hello();
    let reason = "version 1 is too old: upgrade the shim".to_owned();
    session.send(&ToShim::Nack(Nack { id: 0, code: NackCode::VersionTooOld, reason }));
    shim.says("upgrade the shim");
    connect(v4(ports.grpc)).write_all(b"relayed").unwrap();
    assert_eq!(read_to_end(accept_otlp(&otlp)), b"relayed");
}

/// Scenario: the gateway's watchdog shuts a listener down and asks to relay; later it asks to donate again, while a
/// relayed connection is under way.
/// Guarantees: relaying starts on a fresh socket; after the change new connections are the gateway's and the old one is
/// finished.
#[test]
fn the_gateway_changes_the_mode_and_back() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let otlp = listen_otlp(dir.path());
    let gateway = Gateway::listen(dir.path());
    let _shim = Shim::start(dir.path(), &ports, &[]);
    let (session, donated) = gateway.serve();
    rustix::net::shutdown(&donated[&v4(ports.grpc)], rustix::net::Shutdown::Read).unwrap();
    session.send(&ToShim::Mode { mode: Mode::Relay });
    assert_eq!(session.receive().map(|(message, _)| message), Some(ToGateway::Ready));

    let mut old = connect(v4(ports.grpc));
    let mut server = accept_otlp(&otlp);

    session.send(&ToShim::Mode { mode: Mode::Donate });
    let donated = session.donations();
    session.settle();
    connect(v4(ports.grpc)).write_all(b"new").unwrap();
    assert_eq!(read_to_end(accept(&donated[&v4(ports.grpc)])), b"new");
    assert!(is_quiet(&otlp));

    old.write_all(b"old").unwrap();
    let mut heard = [0; 3];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"old");
    server.write_all(b"answer").unwrap();
    drop(server);
    assert_eq!(read_to_end(old), b"answer");
}

/// Scenario: the pod ends while a relayed request is under way.
/// Guarantees: the shim stays until the request is answered, although BYE is acknowledged.
#[test]
fn a_relayed_request_is_finished_before_the_shim_leaves() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let otlp = listen_otlp(dir.path());
    let gateway = Gateway::listen(dir.path());
    let shim = Shim::start(dir.path(), &ports, &["--mode", "relay"]);
    let session = gateway.accept();
    session.hello();
    session.welcome(Mode::Relay);
    assert_eq!(session.receive().map(|(message, _)| message), Some(ToGateway::Ready));
    let mut client = connect(v4(ports.grpc));
    client.write_all(b"q").unwrap();
    let mut server = accept_otlp(&otlp);
    server.read_exact(&mut [0]).unwrap();

    shim.terminate();
    let Some((ToGateway::Bye { id }, None)) = session.receive() else { panic!("not BYE") };
    session.send(&ToShim::Ack { id });
    session.settle();
    server.write_all(b"a").unwrap();
    drop(server);
    assert_eq!(read_to_end(&client), b"a");
    drop(client);
    assert_eq!(shim.ended().code(), Some(0));
}
