//! What a tenant gives up for its newer data.

use std::collections::BTreeSet;

use super::backend::{Backend, Say};
use super::names;
use super::node::{Node, count, grpc, queued};
use crate::base::ledger::MemoryLimit;
use crate::base::stats::{Counter, DeliveryStats, Loss};

fn dropped(stats: &DeliveryStats) -> &[Counter; 3] {
    &stats.lost[Loss::DroppedOldest as usize]
}

/// Scenario: a tenant with 64 KiB on disk and `drop_oldest` sends 300 KiB while its destination is down; then the destination comes
/// back; the node is started again.
/// Guarantees: nothing is refused; each item is delivered or counted as dropped, and none is both; the newest are delivered; after
/// the restart nothing that was given up comes again.
#[test]
fn each_item_is_delivered_or_dropped_and_never_both() {
    let dir = tempfile::tempdir().expect("a directory");
    let backend = Backend::grpc(|_| Say::Status(14, None));
    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    let mut record = node.record("a/a");
    (record.disk, record.drops_oldest) = (MemoryLimit { guarantee: 0, ceiling: 64 << 10 }, true);
    let id = node.route(&record);
    let filler = "x".repeat(1_000);
    let sent: Vec<_> = names("a/a", 0..300).into_iter().map(|name| format!("{name}{filler}")).collect();
    sent.iter().for_each(|body| node.commit(id, &[body]));
    let snapshot = node.wait(|snapshot| count(&snapshot[0], dropped) + queued(snapshot) == 300);
    // What is in flight is counted when it comes back.
    assert!(count(&snapshot[0], dropped) > 150, "{snapshot:?}");

    backend.now(|_| Say::Ok);
    let snapshot = node.wait(|snapshot| queued(snapshot) == 0);
    let (delivered, dropped) = (count(&snapshot[0], |stats| &stats.delivered), count(&snapshot[0], dropped));
    assert_eq!(delivered + dropped, 300);
    let arrived = backend.wait_for(usize::try_from(delivered).expect("few"));
    let unique: BTreeSet<_> = arrived.iter().collect();
    assert_eq!((arrived.len() as u64, unique.len() as u64), (delivered, delivered), "each once");
    assert!(sent[260..].iter().all(|body| unique.contains(body)), "the newest are there");
    node.stop(false);

    let node = Node::start(dir.path(), vec![grpc(&backend)]);
    assert_eq!(node.recovery.tenants[0].pending_items, [0; 3]);
    node.stop(false);
}
