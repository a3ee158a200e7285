//! Bytes on the wire: compression, TLS, HTTP/1.1 and HTTP/2, answers that say when to come back.

use super::backend::{Backend, Say, items, tls};
use super::names;
use super::node::{Node, destination, grpc, http, queued};
use crate::base::Signal;
use crate::config::{Compression, Destination, DestinationKind};

fn delivers(backend: &Backend, destination: Destination) -> Vec<super::backend::Request> {
    let dir = tempfile::tempdir().expect("a directory");
    let node = Node::start(dir.path(), vec![destination]);
    let id = node.tenant("a/a");
    let expected = names("a/a", 0..50);
    expected.iter().for_each(|name| node.commit(id, &[name]));
    let filler = format!("z-{}", "x".repeat(300_000));
    node.commit(id, &[&filler]);
    let requests = backend.wait(|requests| items(requests).len() == 51);
    assert_eq!(items(&requests), [expected, vec![filler]].concat());
    node.wait(|snapshot| queued(snapshot) == 0);
    node.stop(false);
    requests
}

/// Scenario: each transport with each compression, small and large requests.
/// Guarantees: every item arrives once, compressed as configured, and the gateway says who it is.
#[test]
fn every_transport_carries_every_compression() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        for over_http in [false, true] {
            let backend = if over_http { Backend::http(|_| Say::Ok) } else { Backend::grpc(|_| Say::Ok) };
            let mut destination = if over_http { http(&backend) } else { grpc(&backend) };
            destination.compression = compression;
            for request in delivers(&backend, destination) {
                let encoding = if over_http { "content-encoding" } else { "grpc-encoding" };
                let said = request.headers.get(encoding).map(|value| value.to_str().expect("text"));
                let expected = match compression {
                    Compression::None => None,
                    Compression::Gzip => Some("gzip"),
                    Compression::Zstd => Some("zstd"),
                };
                assert_eq!(said, expected);
                assert_eq!(request.headers["user-agent"], concat!("pillion/", env!("CARGO_PKG_VERSION")));
            }
        }
    }
}

/// Scenario: an HTTP backend that is overloaded, limits, drops connections, and then works.
/// Guarantees: everything arrives; connections are kept for later requests.
#[test]
fn http_is_retried_and_its_connections_are_kept() {
    let mut turn = 0;
    let backend = Backend::http(move |_| {
        turn += 1;
        match turn {
            1 => Say::Http(503, Some("0")),
            2 => Say::Reset,
            3 => Say::Http(429, Some("Sun, 06 Nov 1994 08:49:37 GMT")),
            4 => Say::Http(502, None),
            _ => Say::Ok,
        }
    });
    let requests = delivers(&backend, http(&backend));
    let connections = requests.iter().map(|request| request.connection).max().expect("some");
    assert!(connections <= 9, "at most a window of connections and the one that was cut: {connections}");
}

/// Scenario: gRPC and HTTP over TLS with a private CA; the HTTP server offers HTTP/2, only HTTP/1.1, or nothing at all.
/// Guarantees: with the CA file everything arrives.
#[test]
fn tls_trusts_the_ca_file() {
    let table = [(true, &["h2"][..]), (false, &["h2"]), (false, &["http/1.1"]), (false, &[])];
    for (over_grpc, alpn) in table {
        let (server, ca) = tls(alpn);
        let backend =
            if over_grpc { Backend::grpc_tls(server, |_| Say::Ok) } else { Backend::http_tls(server, |_| Say::Ok) };
        let dir = tempfile::tempdir().expect("a directory");
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, ca).expect("written");
        let url = |path: &str| format!("https://localhost:{}{path}", backend.address.port()).parse().expect("a URL");
        let mut destination = destination(match over_grpc {
            true => DestinationKind::Grpc { endpoint: url("") },
            false => DestinationKind::Http { urls: Signal::ALL.map(|signal| url(signal.http_path())) },
        });
        destination.tls.ca_file = Some(ca_file);
        delivers(&backend, destination);
    }
}

/// Scenario: a server whose certificate nobody here trusts.
/// Guarantees: nothing is sent, everything stays queued, and the destination is said to be at fault.
#[test]
fn an_untrusted_certificate_is_the_destinations_fault() {
    let (server, _) = tls(&["h2"]);
    let backend = Backend::grpc_tls(server, |_| Say::Ok);
    let endpoint = format!("https://localhost:{}", backend.address.port()).parse().expect("a URL");
    let dir = tempfile::tempdir().expect("a directory");
    let node = Node::start(dir.path(), vec![destination(DestinationKind::Grpc { endpoint })]);
    let id = node.tenant("a/a");
    node.commit(id, &["one"]);
    let snapshot = node.wait(|snapshot| snapshot[0].state == "broken");
    assert!(snapshot[0].last_error.as_deref().is_some_and(|error| error.contains("TLS")), "{snapshot:?}");
    assert_eq!(node.stop(false).kept_items, 1);
    assert!(backend.wait(|_| true).is_empty());
}
