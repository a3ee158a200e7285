//! Destinations that come to a tenant, and go.

use std::collections::BTreeSet;

use super::world::{Crash, World};
use super::{destination, tenant_record};
use crate::base::{DestinationName, Sequence, Signal, TenantId};
use crate::queue::disk::sim::Faults;
use crate::queue::group::Request;
use crate::queue::{CursorOf, CursorState, TenantRecord};

/// The records of a signal that a destination still waits for.
fn waiting(world: &mut World, tenant: TenantId, name: &str, signal: Signal) -> Vec<Sequence> {
    let records = world.read(tenant, Sequence::ZERO);
    let known = world.log.tenants.find(tenant).expect("known");
    let cursor = known.cursors.get(&CursorOf::Delivery(destination(name), signal));
    let of_signal = records.iter().filter(|record| record.signal == signal).map(|record| record.sequence);
    of_signal.filter(|at| cursor.is_none_or(|cursor| cursor.is_pending(*at))).collect()
}

/// As `tenant_record`, with further destinations for all signals.
fn with(names: &[&str]) -> TenantRecord {
    let mut record = tenant_record("shop/cart");
    let names: Vec<DestinationName> = names.iter().map(|name| destination(name)).collect();
    record.destinations.iter_mut().for_each(|of| of.extend(names.iter().cloned()));
    record
}

/// Appends some records; where they are, by signal.
fn send(world: &mut World, tenant: TenantId, count: usize) -> [Vec<Sequence>; 3] {
    let mut out: [Vec<Sequence>; 3] = Default::default();
    for _ in 0..count {
        let at = world.append(tenant, true, &[300]).expect("there is room");
        let (_, known) = world.known.last_key_value().expect("just appended");
        out[known.signal.index()].push(at);
    }
    out
}

/// Scenario: two destinations are added to a tenant with a backlog, one at the tail and one at the oldest. A crash comes while that is
/// written, with whatever it leaves of it; it is registered again, and another crash comes before anything was delivered there.
/// Guarantees: the one at the tail waits for exactly what was appended after it was added, the other one for everything,
/// however often the tenant is registered so.
#[test]
fn a_new_destination_begins_where_it_was_added_whatever_a_crash_leaves() {
    for seed in 0..60 {
        let mut world = World::new(seed);
        let tenant = world.register("shop/cart").expect("there is room");
        let before = send(&mut world, tenant, 12);
        world.disk.set_faults(Faults { sync_fails_in: 1, ..Faults::default() });
        assert!(world.register_as(with(&["tail", "new"])).is_err(), "its commit failed");
        world.restart(Crash::PowerLoss, false);
        let crash = [Crash::Kill, Crash::PowerLoss, Crash::Clean][seed as usize % 3];
        assert_eq!(world.register_as(with(&["tail", "new"])), Ok(tenant));
        world.restart(crash, false);
        assert_eq!(world.register_as(with(&["tail", "new"])), Ok(tenant));
        let after = send(&mut world, tenant, 12);
        world.restart(crash, false);
        assert_eq!(world.register_as(with(&["new", "tail"])), Ok(tenant));
        for signal in Signal::ALL {
            let index = signal.index();
            assert_eq!(waiting(&mut world, tenant, "tail", signal), after[index], "seed {seed}");
            let all: Vec<_> = before[index].iter().chain(&after[index]).copied().collect();
            assert_eq!(waiting(&mut world, tenant, "new", signal), all, "seed {seed}");
        }
    }
}

/// Scenario: destination `a` has some of a tenant's backlog and `b` some more, in sealed segments and in the open one; then `a` is
/// removed, in one group with the last record for it; a crash; `a` is named again.
/// Guarantees: `a` is told to have given up exactly what it had not got and `b` does not wait for either, each record once and
/// with its items; what was given up does not come after all, and what is appended since does.
#[test]
fn a_removed_destination_gives_up_what_nobody_else_waits_for() {
    let mut world = World::new(3);
    let tenant = world.register("shop/cart").expect("there is room");
    let mut sent = send(&mut world, tenant, 60);
    assert!(world.index.sealed_count() > 0, "some of it is sealed");
    let position = |signal: Signal, at: usize| sent[signal.index()][at];
    let cursor = |name: &str, signal, acknowledged, beyond| {
        let of = CursorOf::Delivery(destination(name), signal);
        CursorState { tenant, of, acknowledged, beyond, delivered_items: 0 }
    };
    let beyond = vec![position(Signal::Traces, 9)];
    world.step(vec![Request::Checkpoint(vec![
        cursor("a", Signal::Traces, position(Signal::Traces, 2), beyond.clone()),
        cursor("b", Signal::Traces, position(Signal::Traces, 5), Vec::new()),
        cursor("a", Signal::Metrics, position(Signal::Metrics, 3), Vec::new()),
    ])]);
    let (a_has, b_has) = (position(Signal::Traces, 2), position(Signal::Traces, 5));
    let metrics_has = position(Signal::Metrics, 3);
    let mut record = tenant_record("shop/cart");
    record.destinations.iter_mut().for_each(|names| names.retain(|name| *name != destination("a")));

    let mailbox = std::sync::Arc::default();
    let last = world.append_of((tenant, true), &[300], &mailbox);
    let signal = world.known.last_key_value().expect("just made").1.signal;
    let (register, answer) = world.registration(record.clone());
    let done = world.step_with(vec![last, register], &mailbox);
    assert_eq!(answer.try_recv().expect("answered").expect("there is room").id, tenant);
    sent[signal.index()].push(done[0].result.expect("there is room"));

    let items = |world: &World, at: Sequence| {
        let number = world.positions.iter().find(|(_, known)| **known == at).expect("appended").0;
        (at, 1 + (number % 5) as u32)
    };
    let told = |world: &World, signal| {
        let of = (tenant, CursorOf::Delivery(destination("a"), signal));
        world.given_up.get(&of).cloned().unwrap_or_default()
    };
    let traces = sent[0].iter().filter(|at| **at > a_has && **at <= b_has && !beyond.contains(at));
    let expected: Vec<_> = traces.map(|at| items(&world, *at)).collect();
    assert_eq!((told(&world, Signal::Traces), expected.len()), (expected, 3));
    let expected: Vec<_> = sent[1].iter().filter(|at| **at > metrics_has).map(|at| items(&world, *at)).collect();
    assert_eq!(told(&world, Signal::Metrics), expected);
    assert_eq!(told(&world, Signal::Logs), [], "they never went there");

    world.restart(Crash::PowerLoss, false);
    assert_eq!(world.register_as(tenant_record("shop/cart")), Ok(tenant));
    let since = send(&mut world, tenant, 12);
    for signal in [Signal::Traces, Signal::Metrics] {
        assert_eq!(waiting(&mut world, tenant, "a", signal), since[signal.index()]);
    }
    let gone: BTreeSet<_> = world.given_up.keys().cloned().collect();
    assert_eq!(gone.len(), 2, "nothing else was given up");
}

/// Scenario: traces move from `a` and `b` to a new destination that begins at the oldest, and metrics to one that begins at the tail;
/// afterwards a change of everything fails to be committed.
/// Guarantees: a backlog that moves along is not given up, one that does not is; and nothing is told before the commit.
#[test]
fn a_backlog_that_moves_along_is_not_given_up() {
    let mut world = World::new(5);
    let tenant = world.register("shop/cart").expect("there is room");
    let sent = send(&mut world, tenant, 20);
    let mut record = tenant_record("shop/cart");
    record.destinations = [vec![destination("new")], vec![destination("tail")], vec![destination("b")]];
    assert_eq!(world.register_as(record.clone()), Ok(tenant));
    let told = |world: &World, name: &str, signal| {
        let of = (tenant, CursorOf::Delivery(destination(name), signal));
        world.given_up.get(&of).map_or(0, Vec::len)
    };
    assert_eq!((told(&world, "a", Signal::Traces), told(&world, "b", Signal::Traces)), (0, 0));
    assert_eq!(waiting(&mut world, tenant, "new", Signal::Traces), sent[0]);
    assert_eq!(told(&world, "a", Signal::Metrics), sent[1].len());
    record.destinations = [vec![destination("tail")], Vec::new(), Vec::new()];
    world.disk.set_faults(Faults { sync_fails_in: 1, ..Faults::default() });
    assert!(world.register_as(record).is_err(), "its commit failed");
    assert_eq!((told(&world, "new", Signal::Traces), told(&world, "b", Signal::Logs)), (0, 0));
}
