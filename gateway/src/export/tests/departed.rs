//! Tenants whose pod is gone.

use super::backend::{Backend, Say};
use super::names;
use super::node::{Node, grpc};

/// Scenario: a pod goes while its destination is down and its last batch, of ack memory, is still on its way here; then the
/// destination comes back. The node starts again.
/// Guarantees: everything arrives; after that neither export nor the log knows the tenant, and the same pod gets a new number.
#[test]
fn who_is_gone_is_forgotten_when_everything_has_arrived() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let id = node.tenant("a/a");
    let stays = node.tenant("a/stays");
    names("a/a", 0..50).iter().for_each(|name| node.commit(id, &[name]));
    node.commit(stays, &["a/stays-0"]);
    node.detach(id);
    node.volatile(id, &["a/a-last"]);
    backend.wait(|requests| requests.len() > 1);
    assert_eq!(node.snapshot()[0].tenants.len(), 2, "nobody is forgotten who has something queued");

    backend.now(|_| Say::Ok);
    assert!(backend.wait_for(52).contains(&"a/a-last".to_owned()));
    node.wait(|snapshot| snapshot[0].tenants.len() == 1);
    assert_ne!(node.queue.register(&node.record("a/a")).expect("registered").id, id);
    node.stop(false);
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    assert!(node.recovery.tenants.iter().all(|tenant| tenant.id != id));
    node.stop(false);
}

/// Scenario: a hundred pods go, one after the other, each right after its last batch, of ack memory, was acknowledged; the
/// destination takes nothing until all are gone.
/// Guarantees: nobody is forgotten before the hand-over was looked at: every batch arrives.
#[test]
fn a_batch_on_its_way_keeps_its_tenant() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let expected: Vec<_> = (0..100).map(|number| format!("a/pod-{number}")).collect();
    for name in &expected {
        let id = node.tenant(name);
        node.volatile(id, &[name]);
        node.detach(id);
    }
    backend.now(|_| Say::Ok);
    let mut arrived = backend.wait_for(100);
    arrived.sort();
    arrived.dedup();
    assert_eq!(arrived.len(), 100);
    node.wait(|snapshot| snapshot[0].tenants.is_empty());
    node.stop(false);
}

/// Scenario: a pod is said to be gone, and registers again before its data is delivered.
/// Guarantees: it keeps its number and its lane, and what it sends then arrives.
#[test]
fn who_comes_back_in_time_is_not_forgotten() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let id = node.tenant("a/a");
    node.commit(id, &["a/a-0"]);
    node.detach(id);
    assert_eq!(node.tenant("a/a"), id);
    backend.now(|_| Say::Ok);
    backend.wait_for(1);
    node.commit(id, &["a/a-1"]);
    backend.wait_for(2);
    assert_eq!(node.snapshot()[0].tenants.len(), 1);
    node.stop(false);
}
