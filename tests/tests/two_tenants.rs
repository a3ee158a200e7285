//! Two pods, each in its own network namespace, on one gateway.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::time::Duration;

use pillion_loadtest::sink::{Ids, Keep, Sink};
use pillion_tests::gateway::{Gateway, below, directory};
use pillion_tests::pod::{Pod, Report, Spec};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");

fn config(backend: std::net::SocketAddr) -> String {
    format!(
        "node:
  data_dir: DIR/data
  admin: ADMIN
  name: node-7
defaults: {{destinations: [backend]}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{backend}\"}}
tenants:
  shop/cart: {{socket_dir: DIR/cart, uid: 11111111-aaaa-bbbb-cccc-000000000001}}
  shop/noisy: {{socket_dir: DIR/noisy, uid: 11111111-aaaa-bbbb-cccc-000000000002, policy: {{limits: {{requests_per_second: 1}}}}}}
"
    )
}

/// Both pods under load until `cart` has made progress and `noisy` was told to slow down.
fn run(mode: &str) -> ([Report; 2], Ids, serde_json::Value) {
    let dir = directory();
    let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::TraceIds("k8s.pod.name".into())).unwrap();
    let gateway = Gateway::start(NODE, dir.path(), &config(sink.address()));
    let dirs: Vec<PathBuf> = ["cart", "noisy"].iter().map(|name| below(&dir, name)).collect();
    let start = |index: usize, service: &str, number: u16| {
        let socket_dir = &dirs[index];
        Pod::start(&Spec {
            program: POD,
            node: NODE,
            socket_dir,
            mode,
            service,
            number,
            clients: 2,
            descriptors_max: None,
        })
    };
    // Each claims to be the other; what counts is the socket that it came through.
    let (cart, noisy) = (start(0, "noisy", 1), start(1, "cart", 2));
    cart.wait_for_progress(4);
    noisy.wait_for_progress(1);
    let reports = [cart.stop(), noisy.stop()];

    let acked: Vec<u64> = reports.iter().flat_map(|report| report.acked.iter().copied()).collect();
    let arrived = sink.wait_until(Duration::from_secs(60), |ids, _| acked.iter().all(|id| ids.contains_key(id)));
    assert!(arrived, "{mode}: {}", gateway.explain());
    (reports, sink.ids(), gateway.json("/tenants?format=json"))
}

fn check(mode: &str) {
    let ([cart, noisy], ids, tenants) = run(mode);

    for (id, seen) in &ids {
        let owner = if id >> 48 == 1 { "cart" } else { "noisy" };
        assert!(seen.owner == owner && !seen.disputed, "{mode}: a span of {owner} arrived as {}", seen.owner);
    }
    assert_eq!((cart.connect_failed, cart.unanswered), (0, 0), "{mode}: {:?}", cart.examples);
    assert!(cart.refused.is_empty(), "{mode}: the quota of one pod touched the other: {:?}", cart.refused);
    assert!(noisy.refused.contains_key("429"), "{mode}: five requests a second must have been enforced: {noisy:?}");
    let text = tenants.to_string();
    assert!(text.contains("shop/cart") && text.contains("shop/noisy"), "{mode}: {text}");
}

/// Scenario: two pods in namespaces of their own send at once, over donated listeners; one is over its quota.
/// Guarantees: identity comes from the socket and never from the data, and a quota stops only its own tenant.
#[test]
fn they_never_share_identity_budget_or_queue_when_they_donate() {
    check("donate");
}

/// Scenario: the same with bytes carried by the shims.
/// Guarantees: the same.
#[test]
fn they_never_share_identity_budget_or_queue_when_they_relay() {
    check("relay");
}
