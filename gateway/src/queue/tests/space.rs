//! What the log takes of the disk: at most 1.5 x what is live and eight segments, whoever takes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use bytes::Bytes;

use super::world::{Crash, World};
use super::{cursors_at, destination, posted, tenant_record};
use crate::base::handoff::{Arrival, Handoff};
use crate::base::mailbox::Mailbox;
use crate::base::{Batch, DestinationName, Sequence, Signal, TenantId};
use crate::queue::disk::Disk;
use crate::queue::disk::sim::{Faults, SimDisk};
use crate::queue::format::SegmentKey;
use crate::queue::group::Request;
use crate::queue::index::{Index, Wanted};
use crate::queue::log::Log;
use crate::queue::recovery::{Params, Survey, recover};
use crate::queue::scan::scan;
use crate::queue::stats::Stats;
use crate::queue::{Append, Completion, CursorOf, CursorState, MinFree, Recovery, Reply, TenantRecord, reader};

const SEGMENT_BYTES: u64 = 256 * 1024;
const DISK_BYTES_MAX: u64 = 64 * SEGMENT_BYTES;
/// Length of a record's header and the multiple at which records begin: the test's own, from the format's description.
const HEADER_BYTES: u64 = 48;

/// A record that was appended, and who still waits for it.
struct Known {
    number: u64,
    bytes: u64,
    waits: Vec<DestinationName>,
}

/// A log without threads, and a model of what is live in it.
struct Node {
    rng: fastrand::Rng,
    disk: Arc<SimDisk>,
    log: Log<SimDisk>,
    index: Arc<Index<SimDisk>>,
    stats: Arc<Stats>,
    handoff: Arc<Handoff>,
    now: u64,
    numbers: u64,
    appended_bytes: u64,
    relocated_bytes: u64,
    live: BTreeMap<(TenantId, Sequence), Known>,
    /// What each tenant's signals go to.
    routes: BTreeMap<TenantId, [Vec<DestinationName>; 3]>,
}

type Parts = (Log<SimDisk>, Recovery, Arc<Index<SimDisk>>, Arc<Stats>, Arc<Handoff>);

fn start(disk: &Arc<SimDisk>, seed: u64) -> Parts {
    let (index, stats, handoff) =
        (Arc::new(Index::default()), Arc::new(Stats::default()), Arc::new(Handoff::new(1 << 30)));
    let params = Params {
        segment_bytes: SEGMENT_BYTES,
        disk_bytes_max: DISK_BYTES_MAX,
        min_free: MinFree::Bytes(0),
        letter_bytes_max: 8 << 20,
        begin_at_tail: BTreeSet::new(),
        log_id: 5,
        rng: fastrand::Rng::with_seed(seed),
        saved: None,
    };
    let survey = Survey::of(&**disk).expect("it lists");
    let (log, recovery) =
        recover(disk.clone(), survey, params, (index.clone(), stats.clone(), handoff.clone())).expect("it opens");
    (log, recovery, index, stats, handoff)
}

impl Node {
    fn new(seed: u64) -> Self {
        let disk = Arc::new(SimDisk::new(seed));
        let (log, _, index, stats, handoff) = start(&disk, seed);
        Self {
            rng: fastrand::Rng::with_seed(seed),
            disk,
            log,
            index,
            stats,
            handoff,
            now: 1_000,
            numbers: 0,
            appended_bytes: 0,
            relocated_bytes: 0,
            live: BTreeMap::new(),
            routes: BTreeMap::new(),
        }
    }

    fn register(&mut self, name: &str, destinations: [Vec<DestinationName>; 3]) -> TenantId {
        let (reply, result) = sync_channel(1);
        let record = TenantRecord { destinations: destinations.clone(), ..tenant_record(name) };
        self.commit(vec![Request::Register(record, 1, reply)]);
        let id = result.try_recv().expect("answered").expect("room").id;
        self.routes.insert(id, destinations);
        id
    }

    fn commit(&mut self, mut requests: Vec<Request>) {
        self.log.step(&mut requests, false, self.now);
        let mut arrivals = std::collections::VecDeque::new();
        let _ = self.handoff.poll_take(&mut std::task::Context::from_waker(std::task::Waker::noop()), &mut arrivals);
        for arrival in arrivals {
            let Arrival::Committed(committed) = arrival else { panic!("nothing volatile goes through the log") };
            let payload = committed.payload.expect("it is handed over");
            let number = u64::from_le_bytes(payload[..8].try_into().expect("a number"));
            let bytes = (HEADER_BYTES + payload.len() as u64).next_multiple_of(8);
            self.appended_bytes += bytes;
            let waits = self.routes[&committed.tenant][committed.signal.index()].clone();
            self.live.insert((committed.tenant, committed.sequence), Known { number, bytes, waits });
        }
    }

    /// One record of each of the tenants, of the signal.
    fn append(&mut self, tenants: &[(TenantId, Signal)]) {
        let mailbox: Arc<Mailbox<Completion>> = Arc::default();
        let mut group = Vec::new();
        for (tenant, signal) in tenants {
            let mut payload = self.numbers.to_le_bytes().to_vec();
            payload.resize(self.rng.usize(300..1_500), self.numbers as u8);
            self.numbers += 1;
            let (tenant, payload) = (*tenant, Bytes::from(payload));
            let part = Batch { tenant, signal: *signal, items: 1, received_unix_ms: self.now, payload, guard: None };
            let reply = Some(Reply { mailbox: mailbox.clone(), ticket: 0 });
            group.push(Request::Append(Append { parts: [part].into(), sync: true, reply }));
        }
        let count = group.len();
        self.commit(group);
        let completions = posted(&mailbox);
        assert_eq!(
            completions.iter().filter(|completion| completion.result.is_ok()).count(),
            count,
            "nothing is refused"
        );
    }

    /// Everything of the tenant is taken by the destination.
    fn deliver(&mut self, lanes: &[(TenantId, &str)]) {
        let mut cursors = Vec::new();
        for (tenant, name) in lanes {
            let name = destination(name);
            let of_tenant = (*tenant, Sequence::ZERO)..=(*tenant, Sequence(u64::MAX));
            let Some(((_, last), _)) = self.live.range(of_tenant.clone()).next_back() else { continue };
            cursors.extend(Signal::ALL.map(|signal| CursorState {
                tenant: *tenant,
                of: CursorOf::Delivery(name.clone(), signal),
                acknowledged: *last,
                beyond: Vec::new(),
                delivered_items: 0,
            }));
            self.live.range_mut(of_tenant).for_each(|(_, known)| known.waits.retain(|other| *other != name));
        }
        self.live.retain(|_, known| !known.waits.is_empty());
        self.commit(vec![Request::Checkpoint(cursors)]);
    }

    /// What the other thread would do meanwhile.
    fn relocate(&mut self, steps: usize) {
        for _ in 0..steps {
            if self.log.relocation.desk.work(&*self.disk, &self.index, &self.stats) {
                self.commit(Vec::new());
            }
        }
    }

    fn disk_bytes(&self) -> u64 {
        let names = self.disk.list().expect("it lists");
        names.iter().map(|name| self.disk.bytes_of(name)).sum()
    }

    fn live_bytes(&self) -> u64 {
        self.live.values().map(|known| known.bytes).sum()
    }

    /// The promise.
    fn check_space(&self, when: &str) {
        let (disk, live) = (self.disk_bytes(), self.live_bytes());
        let allowed = live + live / 2 + 8 * SEGMENT_BYTES;
        assert!(
            disk <= allowed,
            "{when}: {disk} bytes on disk, {live} live: {} segments too much",
            (disk - allowed) / SEGMENT_BYTES
        );
        assert!(disk <= DISK_BYTES_MAX, "{when}: {disk} bytes are over the node's limit");
    }

    /// Everything live is read, once, in order and whole.
    fn check_records(&mut self, when: &str) {
        for tenant in self.routes.keys() {
            let mut expected = self.live.range((*tenant, Sequence::ZERO)..=(*tenant, Sequence(u64::MAX)));
            let mut wanted = Wanted { tenant: *tenant, after: Sequence::ZERO, bytes_max: 20_000 };
            let mut missing = expected.next();
            loop {
                let read =
                    reader::read(&*self.disk, &self.index, &self.stats.damaged_records, wanted).expect("it reads");
                if read.through == wanted.after {
                    break;
                }
                for record in &read.records {
                    assert!(record.sequence > wanted.after, "{when}: {tenant:?}: in order, and once");
                    wanted.after = record.sequence;
                    if let Some(((_, sequence), known)) = missing {
                        assert!(record.sequence <= *sequence, "{when}: {tenant:?} has lost record {}", known.number);
                        if record.sequence == *sequence {
                            assert_eq!(record.payload[..8], known.number.to_le_bytes());
                            missing = expected.next();
                        }
                    }
                }
                wanted.after = read.through;
            }
            assert!(missing.is_none(), "{when}: {tenant:?} has lost its last records");
        }
        assert_eq!(self.stats.damaged_records.count(), 0);
    }

    fn restart(&mut self, power_fails: bool) {
        self.log.step(&mut Vec::new(), true, self.now);
        if power_fails {
            self.disk.lose_power();
        } else {
            self.disk.kill();
        }
        self.relocated_bytes += self.stats.relocated_bytes.load(Ordering::Relaxed);
        let seed = self.rng.u64(..);
        let (log, recovery, index, stats, handoff) = start(&self.disk, seed);
        (self.log, self.index, self.stats, self.handoff) = (log, index, stats, handoff);
        for tenant in recovery.tenants {
            let of_tenant = (tenant.id, Sequence::ZERO)..=(tenant.id, Sequence(u64::MAX));
            let live = self.live.range(of_tenant).count() as u64;
            let pending: u64 = tenant.pending_items.iter().sum();
            assert_eq!(pending, live, "the balance of {:?} closes over a restart", tenant.id);
        }
    }
}

fn routes(traces: &[&str], rest: &[&str]) -> [Vec<DestinationName>; 3] {
    let names = |names: &[&str]| names.iter().map(|name| destination(name)).collect::<Vec<_>>();
    [names(traces), names(rest), names(rest)]
}

/// A week in steps of a quarter of an hour: 100 tenants whose destination takes everything, and `dead` ones. Each sends a record a step.
fn week(seed: u64, dead: &[[Vec<DestinationName>; 3]]) -> Node {
    let mut node = Node::new(seed);
    let alive: Vec<_> =
        (0..100).map(|pod| node.register(&format!("shop/live-{pod}"), routes(&["a"], &["a"]))).collect();
    let dead: Vec<_> = dead
        .iter()
        .enumerate()
        .map(|(pod, routes)| node.register(&format!("shop/dead-{pod}"), routes.clone()))
        .collect();
    let mut lanes: Vec<_> = alive.iter().map(|tenant| (*tenant, "a")).collect();
    lanes.extend(dead.iter().map(|tenant| (*tenant, "a")));
    let steps = Duration::from_secs(7 * 24 * 3600).as_secs() / 900;
    for step in 0..steps {
        let when = format!("step {step}");
        node.now += 900_000;
        let senders: Vec<_> =
            alive.iter().chain(&dead).map(|tenant| (*tenant, Signal::ALL[node.rng.usize(0..3)])).collect();
        node.append(&senders);
        node.check_space(&when);
        node.relocate(2);
        node.deliver(&lanes);
        node.check_space(&when);
        node.relocate(2);
        node.check_space(&when);
        if step % 200 == 199 {
            node.restart(step % 400 == 199);
            node.check_records(&when);
        }
    }
    node.check_records("the end");
    node.relocated_bytes += node.stats.relocated_bytes.load(Ordering::Relaxed);
    assert!(node.relocated_bytes > 0, "something was relocated");
    node
}

/// Scenario: a simulated week of 100 tenants whose data is taken and one whose destination never answers, with kills and power
/// losses; then the same with a tenant that has two destinations of which one is dead, and one whose traces alone wait.
/// Guarantees: after every step the log takes at most 1.5 x what is live and eight segments, and never more than the node's limit;
/// nothing live is lost, seen twice or in disorder; what is copied is at most a tenth of what was appended.
#[test]
fn a_dead_destination_among_a_hundred_live_tenants_costs_its_own_space_only() {
    for dead in
        [vec![routes(&["dead"], &["dead"])], vec![routes(&["a", "dead"], &["a", "dead"]), routes(&["dead"], &["a"])]]
    {
        let node = week(3, &dead);
        let share = node.relocated_bytes * 100 / node.appended_bytes;
        assert!(share <= 10, "{} of {} bytes were copied", node.relocated_bytes, node.appended_bytes);
    }
}

/// A log in which a relocation is due: of each sealed segment a little is live.
pub(super) fn due(seed: u64) -> (World, TenantId, TenantId) {
    let mut world = World::new(seed);
    let dead = world.register("shop/dead").expect("there is room");
    let live = world.register("shop/live").expect("there is room");
    while world.index.sealed_count() < 5 {
        fill(&mut world, dead, live);
    }
    (world, dead, live)
}

fn fill(world: &mut World, dead: TenantId, live: TenantId) {
    world.append(dead, true, &[200]).expect("there is room");
    for _ in 0..4 {
        let last = world.append(live, true, &[1_000]).expect("there is room");
        world.acknowledge(live, last);
    }
}

/// Goes on until nothing is under way.
pub(super) fn relocate(world: &mut World) {
    for _ in 0..50 {
        world.step(Vec::new());
        world.relocate();
    }
}

/// Records of the tenant in all segments, whatever an index says.
fn records_on_disk(world: &World, tenant: TenantId) -> Vec<Sequence> {
    let mut found = Vec::new();
    for name in world.disk.list().expect("it lists") {
        let Some((key, false)) = SegmentKey::parse(&name) else { continue };
        let file = world.disk.open(&name).expect("it is there");
        let length = world.disk.bytes_of(&name);
        scan((&*world.disk, &file, key), (64, length), |_, header, _| {
            if header.kind == 1 && header.tenant == tenant.0 {
                found.push(header.sequence);
            }
        })
        .expect("it scans");
    }
    found.sort_unstable();
    found
}

/// Scenario: the process dies, or the power fails, at each change of the disk that a relocation makes, one after the other; then
/// it starts again, goes on, and ends in an orderly way.
/// Guarantees: at whatever point, no record is lost or seen twice, the balance closes over the restart, and what the crash has left
/// twice on the disk is there once afterwards.
#[test]
fn a_crash_at_any_point_of_a_relocation_costs_nothing() {
    let mut twice = 0;
    for crash in [Crash::Kill, Crash::PowerLoss] {
        for dies_in in 1.. {
            let (mut world, dead, live) = due(dies_in);
            let all = records_on_disk(&world, dead).len();
            world.disk.set_faults(Faults { dies_in, ..Faults::default() });
            relocate(&mut world);
            let died = world.disk.sync_dir().is_err();
            assert_eq!(world.read(dead, Sequence::ZERO).len(), all, "whatever is under way, readers see everything");
            let before = records_on_disk(&world, dead);
            twice += usize::from(before.windows(2).any(|pair| pair[0] == pair[1]));
            world.restart(crash, false);
            let after = records_on_disk(&world, dead);
            assert!(after.windows(2).all(|pair| pair[0] < pair[1]), "{crash:?} at change {dies_in}: {after:?}");
            fill(&mut world, dead, live);
            relocate(&mut world);
            assert_eq!(world.read(dead, Sequence::ZERO).len(), all + 1);
            world.restart(Crash::Clean, false);
            if !died {
                assert!(dies_in > 10, "there was something to die in");
                break;
            }
        }
    }
    assert!(twice > 0, "a crash came between the copy and the end of what it replaces");
}

/// Scenario: relocations into segments whose ranges lie between each other; one target is then read in small pieces while more is
/// relocated.
/// Guarantees: ranges that overlap are merged: every record once, in order, whatever the size of the pieces.
#[test]
fn overlapping_ranges_are_read_in_order_and_once() {
    let (mut world, dead, live) = due(7);
    for round in 0..60 {
        fill(&mut world, dead, live);
        // Some segments have more of the dead tenant than others, so that neighbours are not emptied together.
        if round % 7 == 0 {
            for _ in 0..4 {
                world.append(dead, true, &[500]).expect("there is room");
            }
        }
        for _ in 0..4 {
            world.now += 2_000;
            world.step(Vec::new());
            world.relocate();
        }
    }
    let overlaps = world.index.sealed().windows(2).any(|pair| {
        let (Some(one), Some(next)) = (pair[0].range(dead), pair[1].range(dead)) else { return false };
        next.first < one.last
    });
    assert!(overlaps, "there is something to merge");
    let expected = records_on_disk(&world, dead);
    let found: Vec<_> = world.read(dead, Sequence::ZERO).iter().map(|record| record.sequence).collect();
    assert_eq!(found, expected);
    world.restart(Crash::PowerLoss, false);
}

/// Scenario: records of a tenant were taken out of order, and those that were not lie in segments that are emptied.
/// Guarantees: what was taken beyond the first gap is left behind, what waits stays.
#[test]
fn what_is_done_beyond_a_gap_is_left_behind() {
    let (mut world, dead, live) = due(5);
    world.note_positions();
    let all: Vec<_> = world.read(dead, Sequence::ZERO).iter().map(|record| record.sequence).collect();
    let beyond = |cursor| CursorState { beyond: all[2..].to_vec(), ..cursor };
    world.step(vec![Request::Checkpoint(cursors_at(dead, all[0]).into_iter().map(beyond).collect())]);
    for _ in 0..6 {
        fill(&mut world, dead, live);
        world.now += 2_000;
        relocate(&mut world);
    }
    let left = records_on_disk(&world, dead);
    assert!(left.contains(&all[1]) && !left.contains(&all[0]) && !left.contains(&all[3]), "{left:?} of {all:?}");
    world.restart(Crash::PowerLoss, false);
}

/// Four segments with little that is live, the open one nearly full, and the relocator asked what is worth it: it has not looked yet.
fn asked(seed: u64) -> (World, TenantId) {
    let mut world = World::new(seed);
    let dead = world.register("shop/dead").expect("there is room");
    let live = world.register("shop/live").expect("there is room");
    while world.index.sealed_count() < 4 {
        world.append(dead, true, &[1_400]).expect("there is room");
        for _ in 0..4 {
            let last = world.append(live, true, &[1_000]).expect("there is room");
            world.acknowledge(live, last);
        }
    }
    while world.log.appender.room() > 2_800 {
        let last = world.append(live, true, &[1_000]).expect("there is room");
        world.acknowledge(live, last);
    }
    // Whatever it was asked before is forgotten.
    world.log.relocation.desk.put(crate::queue::relocate::Turn::Rest, false);
    world.now += 100_000;
    world.step(Vec::new());
    (world, live)
}

/// Scenario: between the writer's question and the relocator's look a pod comes, sends something, and the segment is sealed.
/// Guarantees: what is newer than the question is not judged by it: the data is there after the relocation.
#[test]
fn a_tenant_that_comes_before_the_look_keeps_its_data() {
    let (mut world, live) = asked(21);
    let late = world.register("shop/late").expect("there is room");
    world.append(late, true, &[200]).expect("there is room");
    while world.index.sealed_count() < 5 {
        world.append(live, true, &[1_000]).expect("there is room");
    }
    relocate(&mut world);
    assert!(world.log.relocation.change_overs > 0);
    assert_eq!(world.read(late, Sequence::ZERO).len(), 1);
}

/// Scenario: the same with a dead letter that is filed meanwhile.
/// Guarantees: a letter that is kept is on disk.
#[test]
fn a_letter_that_comes_before_the_look_is_kept() {
    let (mut world, live) = asked(22);
    let reply = Reply { mailbox: Arc::default(), ticket: 1 };
    world.step(vec![Request::DeadLetter(super::letter(live, Sequence(1), vec![7; 100]), reply)]);
    while world.index.sealed_count() < 5 {
        world.append(live, true, &[1_000]).expect("there is room");
    }
    relocate(&mut world);
    assert!(world.log.relocation.change_overs > 0);
    let kept: Vec<_> = world.log.tenants.find(live).expect("known").letters.iter().collect();
    let sequence = kept.first().expect("it was filed").sequence;
    let owner = crate::queue::letters::owner_of_letters(live);
    let wanted = Wanted { tenant: owner, after: Sequence(sequence.0 - 1), bytes_max: 1 };
    let found = reader::letter(&*world.disk, &world.index, &world.stats.damaged_records, (wanted, sequence));
    assert!(found.expect("readable").is_some());
}

/// Scenario: a log that is full for data, whose last reserves cursors have taken and given back as a spare.
/// Guarantees: there is room for a relocation, or a full log with a dead destination would stay full.
#[test]
fn spares_of_a_full_log_make_room_for_a_relocation() {
    use crate::queue::format::SegmentHeader;
    use crate::queue::space::Space;
    let disk = Arc::new(SimDisk::new(1));
    let mut space = Space::new(disk, (SEGMENT_BYTES, 10 * SEGMENT_BYTES), 1, fastrand::Rng::with_seed(1));
    let header = SegmentHeader { class: 0, created_unix_ms: 0, log_id: 1, epoch: 1, tenants_next: 1 };
    for _ in 0..8 {
        space.ensure(1, 2 * SEGMENT_BYTES).expect("room for data");
        space.take(&header, SEGMENT_BYTES).expect("ready");
    }
    assert!(space.ensure(1, 2 * SEGMENT_BYTES).is_err(), "full for data");
    space.ensure(1, 0).expect("cursors");
    let (key, file, _) = space.take(&header, SEGMENT_BYTES).expect("ready");
    space.ensure(1, 0).expect("cursors");
    space.take(&header, SEGMENT_BYTES).expect("ready");
    let done = crate::queue::index::Segment {
        key,
        file,
        length: SEGMENT_BYTES,
        data_end: 64,
        ranges: Vec::new(),
        repaired: Default::default(),
        spoiled: Default::default(),
    };
    space.retire(&done).expect("it is done");
    drop(done);
    assert!(space.lend(4096).is_ok(), "nine of ten segments are in use");
    assert!(space.disk_bytes() <= 10 * SEGMENT_BYTES);
}

/// Scenario: every segment in turn has a sector that cannot be read while it is to be emptied, and can be read again later.
/// Guarantees: no record is left behind and freed with its segment: all of the dead destination's records are there in the end.
#[test]
fn what_cannot_be_read_today_may_be_tomorrow() {
    let (mut world, _) = asked(23);
    let dead = world.log.tenants.iter().map(|(id, _)| id).min().expect("two tenants");
    let sequences = |world: &mut World| -> Vec<_> {
        world.read(dead, Sequence::ZERO).iter().map(|record| record.sequence).collect()
    };
    let before = sequences(&mut world);
    let names: Vec<_> = world.index.sealed().iter().map(|segment| segment.key.name()).collect();
    for name in names {
        if !world.disk.list().expect("a list").contains(&name) {
            continue;
        }
        world.disk.make_unreadable(&name, 4);
        world.now += 100_000;
        world.step(Vec::new());
        relocate(&mut world);
    }
    world.disk.set_faults(Faults::default());
    assert_eq!(sequences(&mut world), before);
}

/// Scenario: at each of its reads in turn, a look or a copy of a relocation panics; a minute later it is tried again.
/// Guarantees: it is given up like one that has failed: nothing stays lent and no file is left behind, appends go on, and the next
/// try empties the segments.
#[test]
fn a_panic_of_a_relocation_is_a_failure_of_that_one() {
    let mut panicked = 0;
    for read in 1.. {
        let (mut world, dead, live) = due(2);
        let expected = world.read(dead, Sequence::ZERO).len();
        let files = |world: &World| world.disk.list().expect("it lists").len();
        let before = (files(&world), world.log.appender.space.disk_bytes());
        world.disk.set_faults(Faults { read_panics_in: read, ..Faults::default() });
        relocate(&mut world);
        if world.log.relocation.change_overs > 0 {
            break;
        }
        panicked += 1;
        assert_eq!((files(&world), world.log.appender.space.disk_bytes()), before, "read {read}");
        world.disk.set_faults(Faults::default());
        fill(&mut world, dead, live);
        world.now += 61_000;
        relocate(&mut world);
        assert!(world.log.relocation.change_overs > 0, "read {read}: it is tried again");
        assert_eq!(world.read(dead, Sequence::ZERO).len(), expected + 1);
    }
    assert!(panicked > 3, "{panicked} reads were made to panic");
}
