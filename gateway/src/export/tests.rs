//! The exporter between the real queue and real servers on loopback.

mod backend;
mod departed;
mod dropped;
mod faults;
mod memory;
mod node;
mod replays;
mod retention;
mod routes;
mod transport;

use std::collections::BTreeSet;

use self::backend::{Backend, Say, items};
use self::node::{Node, count, grpc, queued};

fn names(tenant: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| format!("{tenant}-{number:04}")).collect()
}

/// Scenario: three tenants commit 600 batches; the node stops and starts again; more is committed.
/// Guarantees: each item arrives exactly once, in both lives; the cursors pass everything; the totals survive the restart.
#[test]
fn everything_committed_arrives_once_across_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Ok);
    let mut expected = Vec::new();
    for life in 0..2 {
        let node = Node::start(dir.path(), vec![grpc(&backend)]);
        for tenant in ["a/a", "b/b", "c/c"] {
            let id = node.tenant(tenant);
            for name in names(tenant, life * 200..(life + 1) * 200) {
                node.commit(id, &[&name]);
                expected.push(name);
            }
        }
        backend.wait_for(expected.len());
        node.wait(|snapshot| queued(snapshot) == 0);
        assert_eq!(node.stop(false).delivered_items, 600);
    }
    expected.sort();
    assert_eq!(items(&backend.wait(|_| true)), expected, "every item, and none twice");

    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    for tenant in &node.recovery.tenants {
        assert_eq!(tenant.cursors.iter().map(|cursor| cursor.delivered_items).sum::<u64>(), 400);
        assert_eq!(tenant.pending_items, [0; 3]);
    }
    node.stop(false);
}

/// Scenario: the backend looks into the log when a request arrives.
/// Guarantees: what arrives is committed: nothing is exported before its commit.
#[test]
fn nothing_is_exported_before_its_commit() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Ok);
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let tenant = node.tenant("a/a");
    let queue = node.queue.clone();
    backend.now(move |request| {
        let read = queue.read(tenant, Default::default(), 64 << 20).expect("readable");
        let committed: u64 = read.records.iter().map(|record| u64::from(record.items)).sum();
        let number = |name: &String| name.rsplit('-').next().and_then(|number| number.parse::<u64>().ok());
        let newest = request.items.iter().filter_map(number).max().expect("an item");
        assert!(newest < committed, "item {newest} arrived, {committed} are committed");
        Say::Ok
    });
    names("a/a", 0..100).iter().for_each(|name| node.commit(tenant, &[name]));
    backend.wait_for(100);
    node.stop(false);
}

/// Scenario: a crash before anything was answered, and a backlog larger than what is read at once.
/// Guarantees: all of it is read from the log after the restart and delivered.
#[test]
fn a_backlog_is_delivered_from_the_log_after_a_crash() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let filler = "x".repeat(40_000);
    for tenant in ["a/a", "b/b"] {
        let id = node.tenant(tenant);
        names(tenant, 0..100).iter().for_each(|name| node.commit(id, &[&format!("{name}{filler}")]));
    }
    node.abandon();

    backend.now(|_| Say::Ok);
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    // What the first node had sent may be answered, and so counted, only now.
    backend.wait(|requests| items(requests).into_iter().collect::<BTreeSet<_>>().len() == 200);
    let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
    assert_eq!(count(&snapshot[0], |stats| &stats.delivered), 200);
    assert_eq!(node.stop(false).kept_items, 0);
}

/// Scenario: the destination is slow and a drain asks for delivery; another does not.
/// Guarantees: the first delivers the backlog before it ends, the second ends with the backlog kept.
#[test]
fn a_drain_delivers_or_keeps() {
    for deliver in [true, false] {
        let dir = tempfile::tempdir().expect("a directory");
        let backend = Backend::grpc(|_| Say::Status(14, None));
        let node = Node::start(dir.path(), vec![grpc(&backend)]);
        let id = node.tenant("a/a");
        names("a/a", 0..50).iter().for_each(|name| node.commit(id, &[name]));
        backend.wait(|requests| !requests.is_empty());
        node.wait(|snapshot| queued(snapshot) == 50);
        if deliver {
            backend.now(|_| Say::Ok);
        }
        let report = node.stop(deliver);
        let expected = if deliver { (50, 0) } else { (0, 50) };
        assert_eq!((report.delivered_items, report.kept_items), expected);
    }
}
