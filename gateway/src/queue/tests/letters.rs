//! What was refused is kept within its budget until somebody decides about it, whatever crashes meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;

use super::world::{Crash, World};
use super::{cursors_at, letter};
use crate::base::{Sequence, TenantId};
use crate::queue::group::Request;
use crate::queue::index::Wanted;
use crate::queue::letters::owner_of_letters;
use crate::queue::{AppendError, LetterChange, Reply, Verdict, reader};

fn world() -> (World, TenantId) {
    let mut world = World::new(11);
    let tenant = world.register("shop/cart").expect("there is room");
    (world, tenant)
}

fn bury(world: &mut World, tenant: TenantId, bytes: usize) {
    let reply = Reply { mailbox: Arc::default(), ticket: 1 };
    let refused = letter(tenant, Sequence(1), vec![7; bytes]);
    world.step(vec![Request::DeadLetter(refused, reply)]);
}

/// Positions and marks of a tenant's letters, as the log knows them.
fn kept(world: &World, tenant: TenantId) -> Vec<(Sequence, bool)> {
    let letters = world.log.tenants.find(tenant).map(|tenant| tenant.letters.iter().collect::<Vec<_>>());
    letters.unwrap_or_default().into_iter().map(|kept| (kept.sequence, kept.again)).collect()
}

fn sequences(world: &World, tenant: TenantId) -> Vec<Sequence> {
    kept(world, tenant).into_iter().map(|(sequence, _)| sequence).collect()
}

fn change(world: &mut World, tenant: TenantId, which: &[Sequence], verdict: Verdict) -> Result<u32, AppendError> {
    let (reply, result) = sync_channel(1);
    let letters = which.iter().map(|sequence| (tenant, *sequence)).collect();
    world.step(vec![Request::Letters(LetterChange { letters, verdict }, reply)]);
    result.try_recv().expect("it is answered")
}

fn depart(world: &mut World, tenant: TenantId) {
    let departure = world.departure(tenant);
    world.leave(&[departure], &Arc::default());
}

/// A segment's worth of data that is delivered at once: whatever keeps a segment now, it is not data.
fn turn_over(world: &mut World, tenant: TenantId) {
    for _ in 0..14 {
        let last = world.append(tenant, true, &[1000]).expect("there is room");
        world.acknowledge(tenant, last);
    }
}

/// Scenario: letters, one of which is purged, one marked and one marked and unmarked; power loss right after each answer; then so
/// much data that every segment of before could be recycled, and another start.
/// Guarantees: what was answered holds: who is gone stays gone, who is kept is read back as it was, with its mark.
#[test]
fn what_was_decided_about_a_letter_holds() {
    let (mut world, tenant) = world();
    (0..4).for_each(|number| bury(&mut world, tenant, 100 + number));
    let all = sequences(&world, tenant);
    assert_eq!(all.len(), 4);
    assert_eq!(change(&mut world, tenant, &all[1..2], Verdict::Gone), Ok(1));
    world.restart(Crash::PowerLoss, false);
    assert_eq!(sequences(&world, tenant), [all[0], all[2], all[3]]);
    assert_eq!(change(&mut world, tenant, &all, Verdict::Again), Ok(3));
    assert_eq!(change(&mut world, tenant, &all[2..3], Verdict::Stays), Ok(1));
    assert_eq!(change(&mut world, tenant, &all[1..3], Verdict::Stays), Ok(0), "nothing is left to change");
    let expected = [(all[0], true), (all[2], false), (all[3], true)];
    for _ in 0..3 {
        world.restart(Crash::PowerLoss, false);
        assert_eq!(kept(&world, tenant), expected);
        for (sequence, bytes) in [(all[0], 100), (all[2], 102), (all[3], 103)] {
            let wanted = Wanted { tenant: owner_of_letters(tenant), after: Sequence(sequence.0 - 1), bytes_max: 1 };
            let found = reader::letter(&*world.disk, &world.index, &world.stats.damaged_records, (wanted, sequence));
            let expected = letter(tenant, Sequence(1), vec![7; bytes]);
            assert_eq!(format!("{:?}", found.expect("it reads")), format!("{:?}", Some(expected)));
        }
        turn_over(&mut world, tenant);
        turn_over(&mut world, tenant);
    }
    assert_eq!(world.damaged(), 0);
}

/// Scenario: a segment with nothing left but a letter, which then goes.
/// Guarantees: the letter keeps the segment, and nothing does after it; letters after the data keep no data undone.
#[test]
fn a_segment_is_kept_for_its_letters_and_no_longer() {
    let (mut world, tenant) = world();
    let last = world.append(tenant, true, &[100]).expect("there is room");
    bury(&mut world, tenant, 100);
    let first = sequences(&world, tenant);
    for cursor in cursors_at(tenant, last) {
        world.step(vec![Request::Checkpoint(vec![cursor])]);
    }
    assert_eq!(world.log.tenants.used(), 0);
    turn_over(&mut world, tenant);
    turn_over(&mut world, tenant);
    let holds =
        |world: &World| world.index.sealed().iter().any(|segment| segment.range(owner_of_letters(tenant)).is_some());
    assert!(holds(&world));
    assert_eq!(change(&mut world, tenant, &first, Verdict::Gone), Ok(1));
    world.step(Vec::new());
    assert!(!holds(&world));
}

/// Scenario: letters beyond their tenant's budget, of one tenant and of another; a crash after each.
/// Guarantees: the oldest of that tenant go, counted; the other's stay; what went stays gone.
#[test]
fn the_oldest_letters_of_a_tenant_make_room_for_its_own() {
    let (mut world, tenant) = world();
    let other = world.register("shop/till").expect("there is room");
    bury(&mut world, other, 500);
    for number in 1..=8 {
        world.log.letter_bytes_max = 2_000;
        bury(&mut world, tenant, 500);
        let before = sequences(&world, tenant);
        assert_eq!(before.len(), number.min(3));
        let dropped = world.stats.dead_letters_dropped.load(Ordering::Relaxed);
        assert_eq!(dropped, u64::from(number > 3), "since the start");
        world.restart(Crash::PowerLoss, false);
        assert_eq!(sequences(&world, tenant), before);
        assert_eq!(sequences(&world, other).len(), 1);
    }
}

/// Scenario: a pod goes whose data is delivered and which has a letter; the letter goes.
/// Guarantees: its name stays known as long as the letter, over a restart, and no longer.
#[test]
fn who_has_a_letter_is_not_forgotten() {
    let (mut world, tenant) = world();
    bury(&mut world, tenant, 100);
    depart(&mut world, tenant);
    world.step(Vec::new());
    assert!(world.log.tenants.find(tenant).is_some());
    world.restart(Crash::PowerLoss, false);
    let letters = sequences(&world, tenant);
    assert_eq!(letters.len(), 1);
    depart(&mut world, tenant);
    assert_eq!(change(&mut world, tenant, &letters, Verdict::Gone), Ok(1));
    world.step(Vec::new());
    assert!(world.log.tenants.find(tenant).is_none());
    world.restart(Crash::Kill, false);
    assert!(world.log.tenants.find(tenant).is_none());
}
