//! Who may have how much of the disk.

use super::world::{Crash, SEGMENT_BYTES, World};
use crate::base::ledger::MemoryLimit;
use crate::base::{Sequence, TenantId};
use crate::queue::AppendError;
use crate::queue::disk::sim::Faults;

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
