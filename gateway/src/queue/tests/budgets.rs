//! Who may have how much of the disk.

use std::collections::BTreeSet;

use super::world::{Crash, SEGMENT_BYTES, World};
use crate::base::ledger::MemoryLimit;
use crate::base::{Sequence, Signal, TenantId};
use crate::queue::disk::sim::Faults;
use crate::queue::group::Request;
use crate::queue::{AppendError, CursorOf, CursorState};

fn register(world: &mut World, name: &str, guarantee: u64, ceiling: u64) -> TenantId {
    let disk = MemoryLimit { guarantee, ceiling };
    world.register_as(crate::queue::TenantRecord { disk, ..super::tenant_record(name) }).expect("there is room")
}

/// Appends records of about a KiB until one is refused: how many, the last one, and the refusal.
fn fill(world: &mut World, tenant: TenantId) -> (u64, Sequence, AppendError) {
    let (mut count, mut last) = (0, Sequence::ZERO);
    loop {
        match world.append(tenant, true, &[950]) {
            Ok(sequence) => (count, last) = (count + 1, sequence),
            Err(error) => return (count, last, error),
        }
    }
}

/// Scenario: nobody takes the data of a tenant with a ceiling of 16 KiB; a neighbour has none. The gateway starts again; then half
/// of the data is delivered, then all.
/// Guarantees: the tenant is refused at its ceiling and never above it, over a restart too, while the neighbour is not; what is
/// delivered makes room, without a restart.
#[test]
fn a_ceiling_holds_for_one_tenant_alone() {
    let mut world = World::new(1);
    let tenant = register(&mut world, "shop/cart", 0, 16 << 10);
    let neighbour = register(&mut world, "shop/pay", 0, u64::MAX);
    let (count, last, refusal) = fill(&mut world, tenant);
    assert_eq!((count, refusal), (15, AppendError::OverBudget));
    assert!(world.append(neighbour, true, &[950]).is_ok());
    world.restart(Crash::Kill, false);
    assert_eq!(fill(&mut world, tenant).0, 0);

    let middle = world.read(tenant, Sequence::ZERO)[7].sequence;
    world.acknowledge(tenant, middle);
    // A start charges by the segment, so that only what is passed wholly counts.
    world.acknowledge(tenant, last);
    assert_eq!(fill(&mut world, tenant).0, 15);
    let middle = world.read(tenant, last)[7].sequence;
    world.acknowledge(tenant, middle);
    assert!((7..=8).contains(&fill(&mut world, tenant).0), "what is delivered makes room at once");
    assert!(world.append(neighbour, true, &[950]).is_ok());
}

/// Scenario: a tenant takes all of the log that it can get; another one has sent nothing, and is guaranteed a quarter of it.
/// Guarantees: the first is refused while the log still has the other's guarantee free, and the other one can use all of it. What
/// is promised to a tenant that is gone is free again.
#[test]
fn nobody_takes_what_is_guaranteed_to_another() {
    let mut world = World::new(1);
    let greedy = register(&mut world, "shop/cart", 0, u64::MAX);
    let modest = register(&mut world, "shop/pay", 40 << 10, u64::MAX);
    let (alone, last, refusal) = fill(&mut world, greedy);
    assert_eq!(refusal, AppendError::OverBudget);
    assert!(alone > 40, "{alone}");
    let (count, ..) = fill(&mut world, modest);
    assert!(count >= 40, "{count} KiB of the 40 that were promised");
    assert!(world.log.appender.space.disk_bytes() <= super::world::DISK_BYTES_MAX);

    let done = world.read(modest, Sequence::ZERO).last().expect("it sent").sequence;
    world.acknowledge(modest, done);
    world.acknowledge(greedy, last);
    world.leave(&[world.departure(modest)], &std::sync::Arc::default());
    world.step(Vec::new());
    let (more, ..) = fill(&mut world, greedy);
    assert!(more > alone + 20, "{more} after {alone}");
}

/// Scenario: two tenants are each promised more than the log is large.
/// Guarantees: both promises shrink alike: each gets its half, whoever comes first.
#[test]
fn guarantees_that_do_not_fit_shrink_evenly() {
    let mut world = World::new(1);
    let first = register(&mut world, "shop/cart", 1 << 20, u64::MAX);
    let second = register(&mut world, "shop/pay", 1 << 20, u64::MAX);
    fill(&mut world, first);
    let (count, ..) = fill(&mut world, second);
    assert!(count >= 40, "{count}: of 60 what small segments leave of them");
}

/// Scenario: others fill the filesystem below what is to be left free; later there is space again.
/// Guarantees: data is refused although the log has room, cursors are not; within a second of the change it goes on by itself.
#[test]
fn intake_stops_before_the_filesystem_is_full_and_resumes() {
    let mut world = World::new(1);
    let tenant = register(&mut world, "shop/cart", 0, u64::MAX);
    let last = world.append(tenant, true, &[10]).expect("there is room");
    world.disk.set_faults(Faults { free: 149, ..Faults::default() });
    world.now += 1_000;
    assert_eq!(world.append(tenant, true, &[10]), Err(AppendError::LowSpace));
    assert!(world.stats.snapshot().low);
    world.acknowledge(tenant, last);
    assert_eq!(world.log.tenants.find(tenant).expect("known").cursors.len(), 4);
    world.disk.set_faults(Faults { free: 150, ..Faults::default() });
    world.now += 1_000;
    assert!(world.append(tenant, true, &[10]).is_ok());
    assert!(world.log.appender.space.segment_bytes == SEGMENT_BYTES && !world.stats.snapshot().low);
}

/// Scenario: what is to be left free as a share and in bytes, to the byte.
/// Guarantees: a filesystem with exactly so much has enough, with one byte less it has not; nothing asked is always there.
#[test]
fn the_space_to_leave_free_is_counted_to_the_byte() {
    use crate::queue::MinFree;
    use crate::queue::disk::Free;
    let short = |min: MinFree, available| min.is_short(Free { available, total: 1_000 });
    for min in [MinFree::Bytes(150), MinFree::Percent(15)] {
        assert_eq!((short(min, 149), short(min, 150)), (true, false));
    }
    assert!(!short(MinFree::Bytes(0), 0) && !short(MinFree::Percent(0), 0));
}

/// Every record that was appended, as position, signal and items.
type Appended = Vec<(Sequence, Signal, u32)>;

/// Each destination waits for a record, or has it, or was told that it is given up, and never two of these.
fn check_given_up(
    world: &mut World,
    tenant: TenantId,
    appended: &Appended,
    delivered: &BTreeSet<(CursorOf, Sequence)>,
) {
    let records = world.read(tenant, Sequence::ZERO);
    for cursor in world.log.tenants.find(tenant).expect("known").cursors.values() {
        let CursorOf::Delivery(_, signal) = cursor.of;
        let given_up = world.given_up.get(&(tenant, cursor.of.clone())).cloned().unwrap_or_default();
        let waits = records.iter().filter(|record| record.signal == signal && cursor.is_pending(record.sequence));
        let accounted: Vec<_> =
            given_up.into_iter().chain(waits.map(|record| (record.sequence, record.items))).collect();
        let missing = |at| !delivered.contains(&(cursor.of.clone(), at));
        let expected = appended.iter().filter(|(at, of, _)| *of == signal && missing(*at));
        assert_eq!(accounted, expected.map(|(at, _, items)| (*at, *items)).collect::<Vec<_>>(), "{:?}", cursor.of);
    }
}

/// Appends a record that must be taken; nobody has it yet.
fn send(world: &mut World, tenant: TenantId, length: usize, appended: &mut Appended) {
    let at = world.append(tenant, true, &[length]).expect("never refused");
    let (number, known) = world.known.last_key_value().expect("just appended");
    appended.push((at, known.signal, 1 + (number % 5) as u32));
}

/// Scenario: a tenant with a ceiling of 16 KiB and `drop_oldest` sends several times as much, which nobody takes, and so does it after
/// a kill, a power loss and an orderly end; a neighbour's record waits all the while. Then it sends a request above its ceiling.
/// Guarantees: it is never refused and never above its ceiling; for each of its destinations what waits and what was told to be given
/// up are together exactly what was appended, over each restart; the neighbour keeps its record; the large request is refused and
/// costs nothing.
#[test]
fn who_drops_the_oldest_is_never_refused_and_loses_what_is_told() {
    let mut world = World::new(1);
    let disk = MemoryLimit { guarantee: 0, ceiling: 16 << 10 };
    let record = crate::queue::TenantRecord { disk, drops_oldest: true, ..super::tenant_record("shop/cart") };
    let tenant = world.register_as(record).expect("there is room");
    let neighbour = register(&mut world, "shop/pay", 0, u64::MAX);
    world.append(neighbour, true, &[950]).expect("there is room");
    let mut appended = Appended::new();
    for crash in [Crash::Kill, Crash::PowerLoss, Crash::Clean] {
        for _ in 0..60 {
            send(&mut world, tenant, 950, &mut appended);
            assert!(world.log.tenants.used_by(tenant) <= 16 << 10);
        }
        check_given_up(&mut world, tenant, &appended, &BTreeSet::new());
        world.restart(crash, false);
        check_given_up(&mut world, tenant, &appended, &BTreeSet::new());
    }
    assert_eq!(world.read(neighbour, Sequence::ZERO).len(), 1);
    assert_eq!(world.append(tenant, true, &[9_000, 9_000]), Err(AppendError::OverBudget));
    check_given_up(&mut world, tenant, &appended, &BTreeSet::new());
}

/// Takes a record out of order: what came before it still waits.
fn deliver(world: &mut World, tenant: TenantId, (of, at): (CursorOf, Sequence)) {
    let cursors = &world.log.tenants.find(tenant).expect("known").cursors;
    let fresh =
        CursorState { tenant, of: of.clone(), acknowledged: Sequence::ZERO, beyond: Vec::new(), delivered_items: 0 };
    let mut cursor = cursors.get(&of).cloned().unwrap_or(fresh);
    cursor.beyond.push(at);
    world.step(vec![Request::Checkpoint(vec![cursor])]);
}

/// Whether a tenant's records in one segment lie between those of an earlier one.
fn overlaps(world: &World, tenant: TenantId) -> bool {
    let ranges: Vec<_> = world.index.sealed().iter().filter_map(|segment| segment.range(tenant)).collect();
    ranges.windows(2).any(|pair| pair[1].first < pair[0].last)
}

/// Scenario: a tenant with a ceiling of 12 KiB and `drop_oldest` sends among a neighbour's data that is delivered, so that what
/// waits is relocated again and again, in between power losses; of each third record one destination has it already.
/// Guarantees: also where its records lie in segments between each other, exactly the oldest are given up: each destination has a
/// record, waits for it or was told that it is lost, in order and with its items.
#[test]
fn the_oldest_are_given_up_wherever_relocation_has_put_them() {
    let mut world = World::new(7);
    let disk = MemoryLimit { guarantee: 0, ceiling: 12 << 10 };
    let record = crate::queue::TenantRecord { disk, drops_oldest: true, ..super::tenant_record("shop/cart") };
    let tenant = world.register_as(record.clone()).expect("there is room");
    let neighbour = register(&mut world, "shop/pay", 0, u64::MAX);
    let (mut appended, mut delivered, mut merged) = (Appended::new(), BTreeSet::new(), 0);
    for round in 0..150 {
        // Some segments have more of it than others, so that neighbours are not emptied together.
        for number in 0..if round % 7 == 0 { 5 } else { 1 } {
            let before = (overlaps(&world, tenant), world.given_up.clone());
            send(&mut world, tenant, if number == 0 { 200 } else { 500 }, &mut appended);
            merged += usize::from(before.0 && before.1 != world.given_up);
            let (at, signal, _) = *appended.last().expect("just appended");
            if appended.len() % 3 == 0 {
                let taken = (CursorOf::Delivery(record.destinations[signal.index()][0].clone(), signal), at);
                deliver(&mut world, tenant, taken.clone());
                delivered.insert(taken);
            }
        }
        for _ in 0..4 {
            let last = world.append(neighbour, true, &[1_000]).expect("there is room");
            world.acknowledge(neighbour, last);
            world.now += 2_000;
            world.step(Vec::new());
            world.relocate();
        }
        if round % 50 == 49 {
            check_given_up(&mut world, tenant, &appended, &delivered);
            world.restart(Crash::PowerLoss, false);
            check_given_up(&mut world, tenant, &appended, &delivered);
        }
    }
    assert!(merged > 5, "{merged} times something was given up of segments that overlap");
}

/// Scenario: a group has more of one tenant than its ceiling; its commit fails.
/// Guarantees: what is not committed is not given up, and nobody is told that anything is given up whose commit failed.
#[test]
fn nothing_is_given_up_before_the_commit() {
    let mut world = World::new(1);
    let disk = MemoryLimit { guarantee: 0, ceiling: 8 << 10 };
    let record = crate::queue::TenantRecord { disk, drops_oldest: true, ..super::tenant_record("shop/cart") };
    let tenant = world.register_as(record).expect("there is room");
    let mailbox = std::sync::Arc::default();
    let group = (0..12).map(|_| world.append_of((tenant, true), &[950], &mailbox)).collect();
    let refused = world.step_with(group, &mailbox).iter().filter(|completion| completion.result.is_err()).count();
    assert_eq!((refused, world.given_up.len()), (5, 0));
    world.disk.set_faults(Faults { sync_fails_in: 1, ..Faults::default() });
    assert_eq!(world.append(tenant, true, &[950]), Err(AppendError::Poisoned));
    assert!(world.given_up.is_empty());
}

/// Scenario: two tenants send, one of them has everything delivered, the log is started again, and it is forgotten.
/// Guarantees: what is told of each is what its share of the disk is charged with, at any time, and nothing of who is gone.
#[test]
fn what_each_tenant_holds_is_told() {
    let mut world = World::new(1);
    let [cart, pay] = ["shop/cart", "shop/pay"].map(|name| register(&mut world, name, 0, u64::MAX));
    let told = |world: &World| -> Vec<u64> { world.log.tenants.held().by_name().into_values().collect() };
    world.append(cart, true, &[950]).expect("there is room");
    let last = world.append(pay, true, &[2_000]).expect("there is room");
    let charged = |world: &World| [cart, pay].map(|id| world.log.tenants.used_by(id));
    assert_eq!(told(&world), charged(&world));
    assert!(charged(&world)[0] >= 950 && charged(&world)[1] >= 2_000);
    world.acknowledge(pay, last);
    world.restart(Crash::Kill, false);
    assert_eq!(told(&world), charged(&world));
    world.acknowledge(pay, last);
    assert_eq!((told(&world)[1], charged(&world)[1]), (0, 0));
    world.leave(&[world.departure(pay)], &std::sync::Arc::default());
    world.step(Vec::new());
    assert_eq!(told(&world).len(), 1);
}

/// Scenario: a log is full of a tenant with `drop_oldest`, far below its ceiling, and a neighbour; then half of what the tenant has is
/// delivered.
/// Guarantees: it is refused like anybody else, and nobody gives anything up for it; its own space is taken again as soon as some of
/// it is free.
#[test]
fn on_a_full_log_who_drops_the_oldest_is_refused_and_loses_nothing() {
    let mut world = World::new(1);
    let disk = MemoryLimit { guarantee: 0, ceiling: 1 << 30 };
    let record = crate::queue::TenantRecord { disk, drops_oldest: true, ..super::tenant_record("shop/cart") };
    let tenant = world.register_as(record).expect("there is room");
    let neighbour = register(&mut world, "shop/pay", 0, u64::MAX);
    let mut last = Vec::new();
    let refused = loop {
        world.append(neighbour, true, &[100]).ok();
        match world.append(tenant, true, &[950]) {
            Ok(at) => last.push(at),
            Err(error) => break error,
        }
    };
    assert_eq!(refused, AppendError::Full);
    assert!(world.given_up.is_empty(), "nothing is given up");
    assert_eq!(world.read(tenant, Sequence::ZERO).len(), last.len());
    world.acknowledge(tenant, last[last.len() / 2]);
    for _ in 0..50 {
        world.now += 2_000;
        world.step(Vec::new());
        world.relocate();
    }
    assert!(world.append(tenant, true, &[950]).is_ok(), "what was emptied is taken again");
}
