//! Tenants that come and go.

use std::sync::Arc;

use super::world::{Crash, SEGMENT_BYTES, World};
use crate::base::mailbox::Mailbox;
use crate::base::{Sequence, TenantId};
use crate::queue::group::Request;
use crate::queue::{AppendError, Completion};

fn cursors(tenants: &[(TenantId, Sequence)]) -> Request {
    Request::Checkpoint(tenants.iter().flat_map(|(tenant, at)| super::cursors_at(*tenant, *at)).collect())
}

/// Answers to requests to forget, as ticket and success.
fn told(mailbox: &Arc<Mailbox<Completion>>) -> Vec<(u64, bool)> {
    super::posted(mailbox).into_iter().map(|completion| (completion.ticket, completion.result.is_ok())).collect()
}

/// Scenario: 100,000 pods, eight at a time, register, send, have everything delivered and are gone, on a log that has room
/// for the records of about a dozen; one pod stays whose data nobody takes. Now and then the process is killed or the
/// power fails.
/// Guarantees: none of them is ever refused, each gets a number of its own, none comes back once its end is durable,
/// nothing is left of them in the table or in sled, and the pod that stays keeps its records.
#[test]
fn a_hundred_thousand_tenants_come_and_go() {
    let mut world = World::new(9);
    let stays = world.register("shop/stays").expect("there is room");
    world.append(stays, true, &[100]).expect("there is room");
    let mut highest = stays;
    let mailbox: Arc<Mailbox<Completion>> = Arc::default();
    for round in 0..12_500 {
        let names: Vec<_> = (0..8).map(|pod| format!("pods/{round}-{pod}")).collect();
        let ids = world.register_all(&names);
        assert!(ids.iter().all(|id| *id > highest), "a number is never given twice");
        highest = *ids.last().expect("eight");
        let appended = Arc::default();
        let group = ids.iter().map(|id| world.append_of((*id, round % 2 == 0), &[20], &appended)).collect();
        let committed = world.step_with(group, &appended);
        let sent: Vec<_> =
            ids.into_iter().zip(committed).map(|(id, one)| (id, one.result.expect("there is room"))).collect();
        world.step(vec![cursors(&sent)]);
        let departures: Vec<_> = sent.iter().map(|(id, _)| world.departure(*id)).collect();
        world.leave(&departures, &mailbox);
        if round % 100 == 99 {
            // Some of the ends are written, and not yet durable.
            world.step(Vec::new());
            world.restart(if round % 200 == 99 { Crash::Kill } else { Crash::PowerLoss }, false);
            told(&mailbox);
            // A power loss may take the cursors of the round and leave its records: they are delivered again.
            let again: Vec<_> =
                sent.iter().filter(|(id, _)| !world.read(*id, Sequence::ZERO).is_empty()).copied().collect();
            world.step(vec![cursors(&again)]);
            let back: Vec<_> = world.tenants.iter().filter(|id| **id != stays).map(|id| world.departure(*id)).collect();
            world.leave(&back, &mailbox);
        }
        world.step(Vec::new());
        assert!(told(&mailbox).iter().all(|(_, forgotten)| *forgotten));
        assert_eq!(world.log.tenants.len(), 1, "round {round}");
        // Of the one that stays, and what the last step has still to remove.
        assert!(world.meta.saved_cursors() <= 2 + 3 * 8, "round {round}: {}", world.meta.saved_cursors());
    }
    assert_eq!(world.read(stays, Sequence::ZERO).len(), 1);
    assert!(world.meta.saved_cursors() <= 2, "only of the one that stays");
    assert!(world.log.tenants.snapshot_bytes() < SEGMENT_BYTES / 16);
}

/// Scenario: a pod is gone while one of its records waits for a destination; then it is delivered.
/// Guarantees: it is not forgotten before, and told when it is; an append that comes too late is refused; the same pod may
/// register again, as a new tenant.
#[test]
fn nobody_is_forgotten_before_everything_is_delivered() {
    let mut world = World::new(1);
    let pod = world.register("shop/cart").expect("there is room");
    let last = world.append(pod, true, &[10]).expect("there is room");
    let mailbox = Arc::default();
    world.leave(&[world.departure(pod)], &mailbox);
    for _ in 0..3 {
        world.step(Vec::new());
    }
    assert_eq!(told(&mailbox), []);
    assert!(world.append(pod, true, &[10]).is_ok(), "what was on its way when the pod went is taken");
    world.acknowledge(pod, last);
    world.step(Vec::new());
    assert_eq!(told(&mailbox), []);
    world.note_positions();
    let last = world.read(pod, last)[0].sequence;
    world.acknowledge(pod, last);
    world.step(Vec::new());
    assert_eq!(told(&mailbox), [(pod.0.into(), true)]);
    assert_eq!(world.append(pod, true, &[10]), Err(AppendError::UnknownTenant));
    let again = world.register("shop/cart").expect("there is room");
    assert!(again > pod);
    world.restart(Crash::PowerLoss, false);
    assert_eq!(world.last_recovery.tenants.iter().map(|tenant| tenant.id).collect::<Vec<_>>(), [again]);
}

/// Scenario: a pod registers again while it waits to be forgotten, and an old request to forget it comes even later.
/// Guarantees: who asked is told that it stays; it keeps its number and its records; only a departure after the
/// registration counts.
#[test]
fn a_registration_is_stronger_than_an_earlier_departure() {
    let mut world = World::new(1);
    let pod = world.register("shop/cart").expect("there is room");
    let last = world.append(pod, true, &[10]).expect("there is room");
    let mailbox = Arc::default();
    let old = world.departure(pod);
    world.leave(&[old], &mailbox);
    assert_eq!(world.register("shop/cart"), Some(pod));
    assert_eq!(told(&mailbox), [(pod.0.into(), false)]);
    world.leave(&[old], &mailbox);
    world.acknowledge(pod, last);
    world.step(Vec::new());
    assert_eq!(told(&mailbox), [(pod.0.into(), false)]);
    assert!(world.append(pod, true, &[10]).is_ok());
}

/// Scenario: what a dead destination keeps is in an old segment, at whose head thirty pods are named; they end, and the
/// segments with their ends are recycled long before the old one.
/// Guarantees: after a crash they are still forgotten: the newest segment's roster knows.
#[test]
fn an_old_segment_brings_nobody_back() {
    let mut world = World::new(1);
    let stays = world.register("shop/stays").expect("there is room");
    let pods: Vec<_> = (0..3).map(|pod| world.register(&format!("pods/{pod}")).expect("there is room")).collect();
    let mut sent = Vec::new();
    for pod in &pods {
        sent.push((*pod, world.append(*pod, true, &[10]).expect("there is room")));
    }
    world.append(stays, true, &[100]).expect("there is room");
    let runner = world.register("shop/runner").expect("there is room");
    let fill = |world: &mut World| {
        let before = world.index.sealed_count();
        for number in 0.. {
            let last = world.append(runner, true, &[1000]).expect("what is acknowledged makes room");
            world.acknowledge(runner, last);
            if number > 40 {
                break;
            }
        }
        assert!(world.index.sealed_count() >= before.min(1));
    };
    fill(&mut world);
    world.step(vec![cursors(&sent)]);
    let departures: Vec<_> = pods.iter().map(|pod| world.departure(*pod)).collect();
    world.leave(&departures, &Arc::default());
    world.step(Vec::new());
    fill(&mut world);
    for crash in [Crash::Kill, Crash::PowerLoss] {
        world.restart(crash, false);
        let found: Vec<_> = world.last_recovery.tenants.iter().map(|tenant| tenant.id).collect();
        assert_eq!(found, [stays, runner]);
        fill(&mut world);
    }
    assert_eq!(world.read(stays, Sequence::ZERO).len(), 1);
}
