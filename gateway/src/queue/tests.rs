//! The queue's promises, each at the smallest layer that proves it.
//!
//! - `world`: a log on a simulated disk with simulated metadata, in lock-step with a model of what it promised.
//! - `simulation`: random operations, crashes and faults by seed. `PILLION_QUEUE_SEED=n` replays one.
//! - `budgets`: who may have how much of the disk.
//! - `space`: what the log takes of the disk.
//! - `churn`: tenants that come and go.
//! - `letters`: what was refused, and how long it is kept.
//! - `routes`: destinations that come to a tenant, and go.
//! - `promises`: single situations on the simulated disk.
//! - `damage`: real files, damaged and crashed in every way.
//! - `files`: the whole queue with its threads, on real files and with the real sled.
//! - `golden`: the bytes of format version 1.

#![expect(clippy::cast_possible_truncation, reason = "numbers of tests are small")]

mod budgets;
mod checks;
mod churn;
mod damage;
mod files;
mod golden;
mod letters;
mod promises;
mod routes;
mod simulation;
mod space;
mod world;

use std::sync::Arc;
use std::time::Duration;

use super::{Answer, CursorOf, CursorState, DeadLetter, TenantRecord};
use crate::base::{DestinationName, Sequence, Signal, TenantId, TenantName};

fn destination(name: &str) -> DestinationName {
    DestinationName(name.into())
}

/// Traces go to `a` and `b`, metrics to `a`, logs nowhere but `b`.
pub(super) fn tenant_record(name: &str) -> TenantRecord {
    TenantRecord {
        name: TenantName::parse(name).expect("a valid name"),
        pod_uid: Some("6d1b9f5e-uid".to_owned()),
        destinations: [vec![destination("a"), destination("b")], vec![destination("a")], vec![destination("b")]],
        max_age: Duration::from_secs(3600),
        disk: crate::base::ledger::MemoryLimit { guarantee: 0, ceiling: u64::MAX },
        drops_oldest: false,
    }
}

/// All cursors of a tenant that registered as `tenant_record` says.
fn cursors_at(tenant: TenantId, acknowledged: Sequence) -> Vec<CursorState> {
    let of = tenant_record("a/b").destinations;
    let keys = Signal::ALL.into_iter().flat_map(|signal| of[signal.index()].iter().map(move |name| (name, signal)));
    keys.map(|(name, signal)| CursorState {
        tenant,
        of: CursorOf::Delivery(name.clone(), signal),
        acknowledged,
        beyond: Vec::new(),
        delivered_items: 0,
    })
    .collect()
}

/// Everything posted to a mailbox so far.
fn posted<T>(mailbox: &Arc<crate::base::mailbox::Mailbox<T>>) -> Vec<T> {
    let mut out = Vec::new();
    let _ = mailbox.poll_take(&mut std::task::Context::from_waker(std::task::Waker::noop()), &mut out);
    out
}

/// A refusal of a record by a destination.
fn letter(tenant: TenantId, sequence: Sequence, payload: Vec<u8>) -> DeadLetter {
    DeadLetter {
        tenant,
        sequence,
        destination: destination("a"),
        signal: Signal::Logs,
        items: 3,
        answer: Some(Answer::Http(400)),
        reason: "400 no such field".to_owned(),
        attempts: 2,
        appended_unix_ms: 1,
        first_unix_ms: 2,
        last_unix_ms: 3,
        payload: payload.into(),
    }
}
