//! Random operations, faults and crashes, by seed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::letter;
use super::world::{Crash, DISK_BYTES_MAX, Damage, SEGMENT_BYTES, World};
use crate::base::mailbox::Mailbox;
use crate::base::{Sequence, TenantId};
use crate::queue::disk::sim::Faults;
use crate::queue::group::Request;
use crate::queue::{Completion, CursorState, Reply};

/// Replays one seed instead of all.
const SEED_VARIABLE: &str = "PILLION_QUEUE_SEED";

/// Threads that share the seeds: CI has two cores.
const THREADS: u64 = 2;

/// Says which seed failed, however it failed.
struct NameSeed(u64);

impl Drop for NameSeed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "replay with {SEED_VARIABLE}={} cargo test -p pillion-gateway --lib queue::tests::simulation",
                self.0
            );
        }
    }
}

/// `None` when a single seed was replayed: then nothing is to be said about all of them.
fn for_each_seed(count: u64, run: impl Fn(u64, &mut Seen) + Sync) -> Option<Seen> {
    if let Ok(seed) = std::env::var(SEED_VARIABLE) {
        let seed = seed.parse().expect("a number");
        let _name = NameSeed(seed);
        run(seed, &mut Seen::default());
        return None;
    }
    let share = |thread: u64| {
        let mut seen = Seen::default();
        for seed in (thread..count).step_by(THREADS as usize) {
            let _name = NameSeed(seed);
            run(seed, &mut seen);
        }
        seen
    };
    let seen = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || share(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no seed fails")).reduce(Seen::plus)
    });
    seen.inspect(|seen| println!("{seen:?}"))
}

/// What the runs went through, so that a test can tell that it tested something.
#[derive(Debug, Default)]
struct Seen {
    /// States of a disk after a crash, each recovered from and compared with the model.
    crash_points: u64,
    /// Of these, the starts that found records of a file's later life (the first is generation 1).
    recycled: u64,
    /// That found damage.
    damaged: u64,
    /// That were themselves interrupted by a crash.
    interrupted: u64,
    full: u64,
    poisoned: u64,
    relocated: u64,
}

impl Seen {
    fn plus(self, other: Self) -> Self {
        Self {
            crash_points: self.crash_points + other.crash_points,
            recycled: self.recycled + other.recycled,
            damaged: self.damaged + other.damaged,
            interrupted: self.interrupted + other.interrupted,
            full: self.full + other.full,
            poisoned: self.poisoned + other.poisoned,
            relocated: self.relocated + other.relocated,
        }
    }

    /// A crash was survived: what did the start find?
    fn note_start(&mut self, world: &World) {
        self.crash_points += 1;
        let sealed = world.index.sealed();
        self.recycled += u64::from(sealed.iter().any(|segment| segment.key.generation > 1));
        self.damaged += u64::from(world.damaged() > 0);
    }
}

fn random_append(world: &mut World, mailbox: &Arc<Mailbox<Completion>>) -> Request {
    let tenant = world.tenants[world.rng.usize(0..world.tenants.len())];
    // Many of the same size: then records of a file's earlier life begin where new ones do.
    let length = |rng: &mut fastrand::Rng| match rng.u8(0..4) {
        0 => rng.usize(0..3000),
        1 => 600,
        _ => 100,
    };
    let lengths: Vec<usize> = (0..world.rng.usize(1..4)).map(|_| length(&mut world.rng)).collect();
    let sync = world.rng.u8(0..3) > 0;
    world.append_of((tenant, sync), &lengths, mailbox)
}

/// Moves a cursor of a tenant to one of its records, and some beyond.
fn random_checkpoint(world: &mut World) -> Option<Request> {
    let tenant = world.tenants[world.rng.usize(0..world.tenants.len())];
    let mut all: Vec<Sequence> = positions_of(world, tenant);
    all.sort_unstable();
    let mut cursors = Vec::new();
    for CursorState { of, .. } in super::cursors_at(tenant, Sequence::ZERO) {
        let known = world.cursors.get(&(tenant, of.clone())).map(|cursor| cursor.acknowledged).unwrap_or_default();
        let later: Vec<Sequence> = all.iter().copied().filter(|sequence| *sequence > known).collect();
        if later.is_empty() {
            continue;
        }
        // Mostly nearly everything, so that segments become free.
        let at = if world.rng.bool() { later.len() - 1 } else { world.rng.usize(0..later.len()) };
        let beyond = later[at + 1..].iter().copied().filter(|_| world.rng.bool()).collect();
        cursors.push(CursorState { tenant, of, acknowledged: later[at], beyond, delivered_items: 1 });
    }
    (!cursors.is_empty()).then_some(Request::Checkpoint(cursors))
}

fn positions_of(world: &World, tenant: TenantId) -> Vec<Sequence> {
    world
        .known
        .iter()
        .filter(|(_, known)| known.tenant == tenant)
        .filter_map(|(number, _)| world.positions.get(number).copied())
        .collect()
}

fn random_group(world: &mut World) {
    if world.tenants.is_empty() && world.register("shop/late").is_none() {
        return;
    }
    let mailbox = Arc::default();
    let mut requests = Vec::new();
    for _ in 0..world.rng.usize(1..6) {
        let request = random_append(world, &mailbox);
        requests.push(request);
    }
    if world.rng.u8(0..3) == 0 {
        world.note_positions();
        requests.extend(random_checkpoint(world));
    }
    if world.rng.u8(0..40) == 0 {
        let letter = letter(world.tenants[0], Sequence(1), vec![7; 700]);
        requests.push(Request::DeadLetter(letter, Reply { mailbox: Arc::default(), ticket: 0 }));
    }
    world.step_with(requests, &mailbox);
    random_coming_and_going(world);
    world.now += 300;
    for _ in 0..world.rng.usize(0..4) {
        world.relocate();
    }
}

/// A pod comes, comes again, or goes.
fn random_coming_and_going(world: &mut World) {
    match world.rng.u8(0..24) {
        0 => {
            let name = format!("pods/{}", world.rng.u8(0..6));
            world.register(&name);
        }
        1 | 2 if world.tenants.len() > 1 => {
            let gone = world.tenants[world.rng.usize(0..world.tenants.len())];
            // What it still had may be delivered at once, later, or never.
            if world.rng.bool() {
                world.note_positions();
                let last = positions_of(world, gone).into_iter().max().unwrap_or_default();
                world.acknowledge(gone, last);
            }
            // It may have been told to go before, and have gone with this.
            if world.tenants.contains(&gone) {
                world.leave(&[world.departure(gone)], &Arc::default());
            }
        }
        _ => {}
    }
}

fn random_faults(world: &mut World) -> Faults {
    let mut faults = Faults::default();
    match world.rng.u8(0..12) {
        0 => faults.sync_fails_in = world.rng.u64(1..10),
        1 => faults.write_fails_in = world.rng.u64(1..10),
        2..5 => faults.dies_in = world.rng.u64(1..40),
        5 => faults.capacity = world.rng.u64(1..6) * SEGMENT_BYTES,
        6 => faults.full_in = world.rng.u64(1..12),
        _ => {}
    }
    faults
}

fn random_damage(world: &mut World, damages: &[Damage]) -> Option<Damage> {
    (!damages.is_empty() && world.rng.bool()).then(|| damages[world.rng.usize(0..damages.len())])
}

/// Another outcome of a crash at this very moment, and what a second crash right after the start makes of it.
fn look_ahead(world: &mut World, crash: Crash, damages: &[Damage], seen: &mut Seen) {
    let (damage, seed) = (random_damage(world, damages), world.rng.u64(..));
    let mut copy = world.what_if(crash, damage, seed);
    seen.note_start(&copy);
    if copy.rng.u8(0..8) == 0 {
        random_group(&mut copy);
        copy.restart_with(crash, None, 0);
        seen.note_start(&copy);
    }
}

fn run(seed: u64, crash: Crash, damages: &[Damage], seen: &mut Seen) {
    let mut world = World::new(seed);
    for name in ["shop/cart", "shop/pay", "kube/dns"] {
        world.register(name).expect("an empty log has room");
    }
    for _ in 0..world.rng.usize(1..5) {
        let faults = random_faults(&mut world);
        world.disk.set_faults(faults);
        for _ in 0..world.rng.usize(1..20) {
            random_group(&mut world);
            assert!(world.stats.disk_bytes.load(Ordering::Relaxed) <= DISK_BYTES_MAX, "the log keeps to its limit");
            seen.relocated += u64::from(world.stats.relocated_records.load(Ordering::Relaxed) > 0);
            seen.full += u64::from(world.stats.full.load(Ordering::Relaxed));
            if world.stats.is_poisoned() {
                seen.poisoned += 1;
                break;
            }
            if world.rng.u8(0..8) == 0 {
                look_ahead(&mut world, crash, damages, seen);
            }
        }
        for _ in 0..2 {
            look_ahead(&mut world, crash, damages, seen);
        }
        let is_clean = world.rng.u8(0..8) == 0 && !world.stats.is_poisoned() && faults.dies_in == 0;
        if is_clean {
            world.disk.set_faults(Faults::default());
            world.restart(Crash::Clean, false);
            continue;
        }
        let damage = random_damage(&mut world, damages);
        let dies_in = if world.rng.u8(0..4) == 0 { world.rng.u64(1..6) } else { 0 };
        world.restart_with(crash, damage, dies_in);
        seen.note_start(&world);
    }
    seen.interrupted += world.interrupted;
}

/// Scenario: runs of appends, checkpoints and dead letters of three tenants and more that come and go, through several
/// lives of each segment file, with failed writes and syncs, a full disk, and a death of the process at any change. At 10,000
/// points the power fails: what was not synced is dropped, torn and reordered, and metadata is missing, garbled, older or
/// newer. Some starts die themselves.
/// Guarantees: no record acknowledged as durable is lost before the cursors passed it, none is seen twice, in disorder,
/// under another tenant or after a refusal; no cursor claims more than was delivered, and the balance closes.
#[test]
fn power_loss_takes_nothing_that_was_acknowledged_as_durable() {
    let Some(seen) = for_each_seed(1100, |seed, seen| run(seed, Crash::PowerLoss, &[], seen)) else { return };
    assert!(seen.crash_points >= 10_000, "{seen:?}");
    assert!(seen.relocated > 100, "{seen:?}");
    assert!(seen.recycled > 1_000 && seen.full > 1_000 && seen.poisoned > 100 && seen.interrupted > 100, "{seen:?}");
}

/// Scenario: the same at 1,000 points, but the process is killed and what it wrote stays.
/// Guarantees: no record acknowledged at all is lost, synced or not.
#[test]
fn a_kill_takes_nothing_that_was_acknowledged_as_buffered() {
    let Some(seen) = for_each_seed(120, |seed, seen| run(seed, Crash::Kill, &[], seen)) else { return };
    assert!(seen.crash_points >= 1_000 && seen.recycled > 100, "{seen:?}");
}

/// Scenario: after a power loss, at 2,000 points, one bit of one segment is flipped, or one page of one cannot be read when
/// the log starts, wherever it may be: records, index, header, trailer.
/// Guarantees: the log opens, at most the records that were hit are gone, and no tenant is forgotten.
#[test]
fn damage_costs_at_most_the_records_that_it_hits() {
    let damages = [Damage::Bit, Damage::Page];
    let Some(seen) = for_each_seed(220, |seed, seen| run(seed, Crash::PowerLoss, &damages, seen)) else { return };
    assert!(seen.crash_points >= 2_000 && seen.damaged > 100, "{seen:?}");
}
