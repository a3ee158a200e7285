//! Who holds the listening sockets, through every restart: no connection is refused or lost.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;

use pillion_proto::control::{Mode, Nack, NackCode, ToShim};

use crate::harness::{Gateway, Ports, Shim, accept, connect, v4, v6};

/// Scenario: a pod starts while its gateway is there.
/// Guarantees: all four addresses are donated, the gateway accepts on them without the shim between, and with nothing left
/// to do the shim sleeps without a timer.
#[test]
fn the_gateway_accepts_on_what_the_shim_donates() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let shim = Shim::start(dir.path(), &ports, &[]);
    let (_session, donated) = gateway.serve();

    let addresses = [v4(ports.grpc), v4(ports.http), v6(ports.grpc), v6(ports.http)];
    assert_eq!(donated.len(), addresses.len());
    for address in addresses {
        let mut client = connect(address);
        let mut server = accept(&donated[&address]);
        assert_eq!(server.peer_addr().unwrap(), client.local_addr().unwrap());
        server.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        client.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
    shim.sleeps_without_a_timer();
}

/// Scenario: the gateway is killed, applications go on connecting and sending, a new gateway comes.
/// Guarantees: nobody is refused, and what was sent meanwhile is there for the new gateway.
#[test]
fn connections_wait_while_the_gateway_is_away() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &[]);
    let (session, donated) = gateway.serve();
    drop((gateway, session, donated));
    shim.says("the gateway is gone");

    let mut clients: Vec<_> = (0..50).map(|_| connect(v4(ports.grpc))).collect();
    for client in &mut clients {
        client.write_all(b"while you were away").unwrap();
    }
    let gateway = Gateway::listen(dir.path());
    let (_session, donated) = gateway.serve();
    for _ in &clients {
        let mut heard = [0; 19];
        accept(&donated[&v4(ports.grpc)]).read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"while you were away");
    }
}

/// Scenario: the shim is killed and started again; then the gateway dies, too.
/// Guarantees: the gateway's copies keep the ports open; the new shim takes them back without breaking a queued
/// connection, holds them on its own, and donates them to the next gateway.
#[test]
fn a_restarted_shim_takes_its_sockets_back() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let shim = Shim::start(dir.path(), &ports, &[]);
    let session = gateway.accept();
    let first = session.hello().instance;
    session.welcome(Mode::Donate);
    let donated = session.donations();
    drop(shim);
    assert!(session.receive().is_none(), "a dead shim closes its session");

    let mut client = connect(v4(ports.http));
    client.write_all(b"queued").unwrap();

    let mut shim = Shim::start(dir.path(), &ports, &[]);
    shim.says("cannot listen on 127.0.0.1");
    let session = gateway.accept();
    assert_ne!(session.hello().instance, first, "a restart can be told from a reconnect");
    session.welcome(Mode::Donate);
    assert!(session.donations().is_empty(), "it has nothing yet");
    for (address, listener) in &donated {
        session.give_back(*address, listener);
    }
    session.send(&ToShim::Returned);
    session.settle();
    drop((gateway, session, donated));

    let gateway = Gateway::listen(dir.path());
    let (_session, donated) = gateway.serve();
    assert_eq!(donated.len(), 4);
    let mut heard = [0; 6];
    accept(&donated[&v4(ports.http)]).read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"queued");
    shim.sleeps_without_a_timer();
}

/// Scenario: another program holds one of the ports when the pod starts, and ends later.
/// Guarantees: the rest is served at once, the shim says what is wrong and lives on, and the port is donated when it is
/// free.
#[test]
fn a_port_that_a_stranger_holds_is_taken_when_it_is_free() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let stranger = TcpListener::bind(v4(ports.grpc)).unwrap();
    let gateway = Gateway::listen(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &[]);
    let (session, donated) = gateway.serve();
    assert_eq!(donated.len(), 3);
    shim.says("address in use");

    drop(stranger);
    let (_, address, _) = session.donation();
    assert_eq!(address, v4(ports.grpc));
}

/// Scenario: a gateway's watchdog has shut a listener down and asks for donations again.
/// Guarantees: a dead socket is not donated; a fresh one on the same address is.
#[test]
fn a_listener_that_was_shut_down_is_replaced() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let _shim = Shim::start(dir.path(), &ports, &[]);
    let (session, donated) = gateway.serve();
    rustix::net::shutdown(&donated[&v4(ports.grpc)], rustix::net::Shutdown::Read).unwrap();

    session.send(&ToShim::Mode { mode: Mode::Donate });
    let again = session.donations();
    assert_eq!(again.len(), 4);
    let _client = connect(v4(ports.grpc));
    accept(&again[&v4(ports.grpc)]);
}

/// Scenario: the gateway finds that an acknowledged listener was shut down, and names it.
/// Guarantees: the shim binds that address anew and donates it; the others stay as they are.
#[test]
fn a_listener_that_the_gateway_reports_dead_is_donated_anew() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let _shim = Shim::start(dir.path(), &ports, &[]);
    let session = gateway.accept();
    session.hello();
    session.welcome(Mode::Donate);
    let (id, address, dead) = session.donation();
    session.send(&ToShim::Ack { id });
    session.donations();
    rustix::net::shutdown(&dead, rustix::net::Shutdown::Read).unwrap();

    session.send(&ToShim::Nack(Nack { id, code: NackCode::ListenerDead, reason: "shut down".to_owned() }));
    let (_, again, fresh) = session.donation();
    assert_eq!(again, address);
    let _client = connect(address);
    accept(&fresh);
    session.settle();
}

/// Scenario: a sandbox was made anew, and a gateway returns the listener of the old one, which has the right address but
/// belongs to another network namespace.
/// Guarantees: the shim refuses it: the pod could never reach it, and another pod might.
#[test]
fn a_listener_of_another_namespace_is_not_adopted() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let gateway = Gateway::listen(dir.path());
    let mut shim = Shim::start_in_namespace(dir.path(), &ports);
    let session = gateway.accept();
    session.hello();
    session.welcome(Mode::Donate);
    assert!(!session.donations().contains_key(&v6(ports.grpc)), "its loopback interface is down, it could adopt ::1");
    let foreign = TcpListener::bind(v6(ports.grpc)).unwrap();
    session.give_back(v6(ports.grpc), &foreign);
    shim.says("it belongs to another network namespace");
    session.settle();
}

/// Scenario: a gateway returns things that are no listeners of this pod: a connection, a listener on another port, a
/// file.
/// Guarantees: each is refused with its reason and closed, and the session goes on.
#[test]
fn what_is_no_listener_of_the_pod_is_not_adopted() {
    let (dir, ports) = (tempfile::tempdir().unwrap(), Ports::reserve());
    let stranger = TcpListener::bind(v4(ports.grpc)).unwrap();
    let gateway = Gateway::listen(dir.path());
    let mut shim = Shim::start(dir.path(), &ports, &[]);
    let (session, _donated) = gateway.serve();

    let elsewhere = TcpListener::bind(v4(0)).unwrap();
    session.give_back(v4(ports.grpc), &elsewhere);
    shim.says("nobody wants its address");
    let connection = connect(elsewhere.local_addr().unwrap());
    session.give_back(v4(ports.grpc), &TcpListener::from(std::os::fd::OwnedFd::from(connection)));
    shim.says("it is not a listening TCP socket");
    let file = std::fs::File::open("/dev/null").unwrap();
    session.give_back(v4(ports.grpc), &TcpListener::from(std::os::fd::OwnedFd::from(file)));
    session.settle();
    drop(stranger);
    assert_eq!(session.donation().1, v4(ports.grpc));
}
