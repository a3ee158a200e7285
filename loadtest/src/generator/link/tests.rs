use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};

use super::*;
use crate::generator::{Compression, Here, tcp_socket};

/// Long enough for anything that does happen.
const LONG: Duration = Duration::from_secs(60);

/// The kernel begins to stamp a moment after it was asked for the first time: so many requests are made meanwhile at most.
const UNSTAMPED_MAX: usize = 100_000;

/// One pod's links, and their peer: a server that does what a test tells it to.
struct Pair {
    links: Links,
    clock: Clock,
    listener: TcpListener,
    peer: TcpStream,
    protocol: Protocol,
    /// HTTP/2: the next call's.
    stream: u32,
}

/// SETTINGS.
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

impl Pair {
    /// Connected, with one request answered.
    fn new(protocol: Protocol) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let transport = Transport { protocol, compression: Compression::None, keep: true, connections: 1 };
        let target = Rc::new(Here(listener.local_addr().unwrap()));
        let mut links = Links::new(target, 1, transport).unwrap();
        let mut clock = Clock::start().unwrap();
        links.send(0, 0, Signal::Traces, b"first");
        assert!(links.is_pressing(), "not connected yet");
        let (peer, _) = listener.accept().unwrap();
        links.wait(LONG).unwrap();
        links.look(&mut clock).unwrap();
        let mut pair = Self { links, clock, listener, peer, protocol, stream: 1 };
        if protocol == Protocol::Grpc {
            pair.peer.write_all(SETTINGS).unwrap();
        }
        pair.take(b"first");
        pair.answer(1);
        pair.harvest(1);
        pair
    }

    /// The peer has the next connection, and the links know that it is made.
    fn accept(&mut self) {
        self.peer = self.listener.accept().unwrap().0;
        self.links.wait(LONG).unwrap();
        self.links.look(&mut self.clock).unwrap();
    }

    /// The peer reads until a request has ended with that.
    fn take(&mut self, end: &[u8]) {
        let (mut taken, mut buffer) = (Vec::new(), [0; 4096]);
        while !taken.ends_with(end) {
            let count = self.peer.read(&mut buffer).unwrap();
            assert!(count > 0, "the links closed the connection");
            taken.extend_from_slice(&buffer[..count]);
        }
    }

    /// The peer answers so many requests, all at once.
    fn answer(&mut self, count: u32) {
        let mut bytes = Vec::new();
        for _ in 0..count {
            match self.protocol {
                Protocol::Http => bytes.extend_from_slice(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"),
                Protocol::Grpc => {
                    // HEADERS that end headers and stream: `:status: 200` of the table, then grpc-status as it is spelt.
                    let block = [b"\x88\x00\x0bgrpc-status".as_slice(), b"\x010"].concat();
                    bytes.extend_from_slice(&[0, 0, u8::try_from(block.len()).unwrap(), 1, 5]);
                    bytes.extend_from_slice(&self.stream.to_be_bytes());
                    bytes.extend_from_slice(&block);
                    self.stream += 2;
                }
            }
        }
        self.peer.write_all(&bytes).unwrap();
    }

    /// So many ends, and when it was last known that they were there but not read.
    fn harvest(&mut self, count: usize) -> (Vec<Heard>, u64) {
        let (mut all, mut known) = (Vec::new(), 0);
        while all.len() < count {
            assert!(self.links.wait(LONG).unwrap());
            known = self.clock.elapsed();
            self.links.look(&mut self.clock).unwrap();
            all.extend(self.links.ends());
        }
        (all, known)
    }

    /// One request and its answer, again and again until the kernel stamps.
    fn stamped(&mut self) {
        for _ in 0..UNSTAMPED_MAX {
            if self.links.is_stamped {
                return;
            }
            self.links.send(1, 0, Signal::Traces, b"again");
            self.take(b"again");
            self.answer(1);
            self.harvest(1);
        }
        panic!("the kernel does not stamp what arrives");
    }
}

/// Scenario: a server answers; only when the answer has been there for a while is it read.
/// Guarantees: it is told to have arrived after the server sent it, and before it was read.
#[test]
fn an_answer_that_is_read_late_has_not_come_late() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let mut pair = Pair::new(protocol);
        pair.stamped();
        pair.links.send(7, 0, Signal::Traces, b"request");
        pair.take(b"request");
        let sent = pair.clock.elapsed();
        pair.answer(1);
        let (heard, known) = pair.harvest(1);
        let [Heard { ended, arrived: Some(arrived) }] = heard.as_slice() else { panic!("{protocol:?}: {heard:?}") };
        assert_eq!(*ended, Ended { token: 7, answer: Ok(crate::generator::Answer::Accepted) });
        assert!(
            (sent..=known).contains(arrived),
            "{protocol:?}: sent at {sent}, {arrived}, known to be there at {known}"
        );
    }
}

/// Scenario: one call is under way, then two on the same connection, then one that its window holds back.
/// Guarantees: an answer is waited for where it would have another's stamp, or where what it brings lets something leave; a single
/// call's is not.
#[test]
fn links_press_where_a_stamp_would_not_do() {
    let mut pair = Pair::new(Protocol::Grpc);
    pair.stamped();
    pair.links.send(1, 0, Signal::Traces, b"one");
    assert!(!pair.links.is_pressing());
    pair.links.send(2, 0, Signal::Traces, b"two");
    assert!(pair.links.is_pressing());
    pair.take(b"two");
    pair.answer(2);
    pair.harvest(2);
    assert!(!pair.links.is_pressing());
    pair.links.send(3, 0, Signal::Traces, &[0; 70_000]);
    assert!(pair.links.is_pressing());
}

/// Scenario: each of a thousand requests has a connection of its own, and none is open between them.
/// Guarantees: once the kernel stamps it goes on, although it stamps only while some socket asks for it.
#[test]
fn stamps_outlive_connections() {
    let mut pair = Pair::new(Protocol::Http);
    pair.stamped();
    for token in 0..1_000 {
        // The peer first, so that nothing of the other end lingers.
        pair.peer.shutdown(Shutdown::Both).unwrap();
        let key = pair.links.connections.iter().next().unwrap().0;
        pair.links.close(key);
        pair.links.send(token, 0, Signal::Traces, b"request");
        pair.accept();
        pair.take(b"request");
        pair.answer(1);
        let (heard, _) = pair.harvest(1);
        assert!(heard[0].arrived.is_some(), "request {token}: {heard:?}");
    }
}

/// Scenario: a socket that nobody asked for stamps is read from.
/// Guarantees: what was read has none, so that nobody relies on them where the kernel does not tell.
#[test]
fn without_stamps_answers_are_waited_for() {
    let mut pair = Pair::new(Protocol::Http);
    pair.stamped();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = tcp_socket().unwrap();
    // In progress, or done already.
    connect(&own, &listener.local_addr().unwrap()).ok();
    let (mut peer, _) = listener.accept().unwrap();
    // The links' connection now is one whose kernel knows no stamps.
    let key = pair.links.connections.iter().next().unwrap().0;
    pair.links.connections[key].socket = own;
    pair.links.send(9, 0, Signal::Traces, b"unstamped");
    assert!(!pair.links.is_pressing());
    peer.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    while pair.links.ends.is_empty() {
        pair.links.read(key, false, &pair.clock).unwrap();
    }
    assert_eq!(pair.links.ends()[0].arrived, None);
    assert!(pair.links.is_pressing());
}
