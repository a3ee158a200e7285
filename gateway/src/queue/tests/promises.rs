//! Single situations on the simulated disk.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::world::{Crash, SEGMENT_BYTES, World};
use super::{destination, letter};
use crate::base::{Sequence, TenantId};
use crate::queue::disk::Disk;
use crate::queue::disk::sim::{Faults, PAGE};
use crate::queue::format::{SEGMENT_HEADER_BYTES, SegmentKey};
use crate::queue::group::Request;
use crate::queue::index::Wanted;
use crate::queue::record::{HEADER_BYTES, Header, stride};
use crate::queue::scan::scan;
use crate::queue::{AppendError, Reply};

fn world() -> (World, TenantId) {
    let mut world = World::new(1);
    let tenant = world.register("shop/cart").expect("an empty log has room");
    (world, tenant)
}

/// Name and key of the newest segment file.
fn newest(world: &World) -> (String, SegmentKey) {
    let names = world.disk.list().expect("it lists");
    let keys = names.iter().filter_map(|name| SegmentKey::parse(name)).filter(|(_, is_spare)| !is_spare);
    let key = keys.map(|(key, _)| key).max().expect("there is a segment");
    (key.name(), key)
}

/// Offset of the data record whose payload begins with this number.
fn offset_of(world: &World, number: u64) -> usize {
    let bytes = world.disk.bytes(&newest(world).0);
    (0..bytes.len() - HEADER_BYTES - 8)
        .step_by(8)
        .find(|at| {
            bytes[*at..].starts_with(b"PILR\x01\x01") && bytes[at + HEADER_BYTES..].starts_with(&number.to_le_bytes())
        })
        .expect("the record is in the newest segment")
}

/// Scenario: twenty requests of two parts wait when the writer comes round, half of their payloads too long to copy.
/// Guarantees: one write and one fdatasync serve them all.
#[test]
fn a_group_takes_one_write_and_one_sync() {
    let (mut world, tenant) = world();
    let mailbox = Arc::default();
    let group: Vec<Request> =
        (0..20).map(|_| world.append_of((tenant, true), &[10, 600], &mailbox)).take_while(|_| true).take(6).collect();
    let before = world.disk.counts();
    let completions = world.step_with(group, &mailbox);
    let after = world.disk.counts();
    assert!(completions.iter().all(|completion| completion.result.is_ok()));
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 1), "syncs and writes");
}

/// Scenario: a group has a buffered and a durable append, and its fdatasync fails; another append follows.
/// Guarantees: the buffered one was told before the sync; nobody is told OK after it, and nothing is exported.
#[test]
fn after_a_failed_sync_nobody_is_told_that_all_is_well() {
    let (mut world, tenant) = world();
    let mailbox = Arc::default();
    let group =
        vec![world.append_of((tenant, false), &[10], &mailbox), world.append_of((tenant, true), &[10], &mailbox)];
    world.disk.set_faults(Faults { sync_fails_in: 1, ..Faults::default() });
    let results: Vec<_> = world.step_with(group, &mailbox).into_iter().map(|completion| completion.result).collect();
    assert!(results[0].is_ok());
    assert_eq!(results[1], Err(AppendError::Poisoned));
    assert!(world.read(tenant, Sequence::ZERO).is_empty(), "not even readers see what was not committed");
    assert_eq!(world.append(tenant, true, &[10]), Err(AppendError::Poisoned), "a second sync would have said OK");
    world.restart(Crash::PowerLoss, false);
    assert!(world.append(tenant, true, &[10]).is_ok());
}

/// Scenario: nobody acknowledges until the log's limit is reached; then everything is acknowledged.
/// Guarantees: data is refused as full, cursors can still be written, and intake resumes without a restart.
#[test]
fn a_full_log_refuses_data_takes_cursors_and_resumes() {
    let (mut world, tenant) = world();
    let mut last = Sequence::ZERO;
    let refusal = loop {
        match world.append(tenant, true, &[1000]) {
            Ok(sequence) => last = sequence,
            Err(error) => break error,
        }
    };
    assert_eq!(refusal, AppendError::Full);
    assert!(world.stats.full.load(Ordering::Relaxed));
    world.acknowledge(tenant, last);
    assert!(world.append(tenant, true, &[1000]).is_ok());
    assert!(!world.stats.full.load(Ordering::Relaxed));
}

/// Scenario: a log is full of one tenant's backlog, again and again after half of it was delivered; meanwhile the
/// cursors of another tenant are saved far more often than there is room for. Then the backlog is delivered.
/// Guarantees: cursors can be written however long the log stays full, and intake resumes without a restart.
#[test]
fn however_long_a_log_is_full_cursors_can_be_written() {
    let (mut world, tenant) = world();
    let other = world.register("shop/other").expect("there is room");
    let done = world.append(other, true, &[10]).expect("there is room");
    let mut last = Sequence::ZERO;
    for round in 0..4 {
        let first_refused = loop {
            match world.append(tenant, true, &[1000]) {
                Ok(sequence) => last = sequence,
                Err(error) => break error,
            }
        };
        assert_eq!(first_refused, AppendError::Full);
        for _ in 0..1_000 {
            world.acknowledge(other, done);
        }
        let backlog = world.read(tenant, Sequence::ZERO);
        let some = if round < 3 { backlog[backlog.len() / 2].sequence } else { last };
        world.acknowledge(tenant, some);
        assert!(world.append(tenant, true, &[1000]).is_ok(), "round {round}");
    }
    assert!(world.log.appender.space.disk_bytes() <= super::world::DISK_BYTES_MAX);
}

/// Scenario: others fill the disk; later they free it.
/// Guarantees: nothing is poisoned, no half request is written, and intake resumes by itself.
#[test]
fn a_full_disk_refuses_and_resumes_when_space_returns() {
    let (mut world, tenant) = world();
    world.disk.set_faults(Faults { capacity: 3 * SEGMENT_BYTES, ..Faults::default() });
    while world.append(tenant, true, &[1000, 1000]).is_ok() {}
    assert_eq!(world.append(tenant, true, &[1000, 1000]), Err(AppendError::Full));
    assert!(!world.stats.is_poisoned());
    world.disk.set_faults(Faults::default());
    assert!(world.append(tenant, true, &[1000, 1000]).is_ok());
    world.restart(Crash::PowerLoss, false);
}

/// Scenario: the process is killed on a disk that is full, and others leave half a segment of it; then everything is delivered.
/// Guarantees: cursors are saved there and free the rest: intake resumes with the disk as it is.
#[test]
fn half_a_segment_of_disk_is_enough_for_cursors() {
    let (mut world, tenant) = world();
    world.disk.set_faults(Faults { capacity: 3 * SEGMENT_BYTES, ..Faults::default() });
    let mut last = Sequence::ZERO;
    while let Ok(sequence) = world.append(tenant, true, &[1000]) {
        last = sequence;
    }
    world.restart(Crash::Kill, false);
    let left = world.log.appender.space.disk_bytes() + SEGMENT_BYTES / 2;
    world.disk.set_faults(Faults { capacity: left, ..Faults::default() });
    assert_eq!(world.append(tenant, true, &[1000]), Err(AppendError::Full));
    world.acknowledge(tenant, last);
    let resumed = (0..4).any(|_| world.append(tenant, true, &[1000]).is_ok());
    assert!(resumed && !world.stats.is_poisoned());
    world.restart(Crash::PowerLoss, false);
}

/// Scenario: there is no space at one call: at the first that can allocate, the second, and so on, through a run of appends that
/// makes, grows and recycles segments; then there is space again. Where the call leaves the log in doubt it is poisoned and the
/// process starts anew, with no space at one call once more.
/// Guarantees: nothing acknowledged is lost, whichever call it is; intake resumes.
#[test]
fn a_full_disk_at_any_call_costs_nothing() {
    let mut refused = 0;
    for call in 1..60 {
        let (mut world, tenant) = world();
        world.disk.set_faults(Faults { full_in: call, ..Faults::default() });
        for _ in 0..40 {
            let appended = world.append(tenant, true, &[1000]);
            refused += u64::from(appended == Err(AppendError::Full));
            if let Ok(last) = appended {
                world.acknowledge(tenant, last);
            }
        }
        if !world.stats.is_poisoned() {
            let length =
                |name: &String| world.disk.length(&world.disk.open(name).expect("listed")).expect("it is open");
            let found: u64 = world.disk.list().expect("listed").iter().map(length).sum();
            assert_eq!(found, world.log.appender.space.disk_bytes(), "nothing that nobody knows of stays, call {call}");
        }
        if world.stats.is_poisoned() {
            world.disk.set_faults(Faults { full_in: 1 + call % 3, ..Faults::default() });
            world.restart(Crash::PowerLoss, false);
            world.disk.set_faults(Faults::default());
        }
        assert!(world.append(tenant, true, &[1000]).is_ok(), "call {call}");
        world.restart(Crash::PowerLoss, false);
    }
    assert!(refused > 0, "where a segment is made it is a refusal");
}

/// Scenario: the process starts on a full disk with a backlog that was not sealed.
/// Guarantees: it starts, reads everything, and refuses only new data.
#[test]
fn it_starts_on_a_full_disk() {
    let (mut world, tenant) = world();
    for _ in 0..30 {
        world.append(tenant, true, &[1000]).expect("there is room");
    }
    world.disk.set_faults(Faults { capacity: 1, ..Faults::default() });
    world.restart(Crash::Kill, false);
    assert_eq!(world.read(tenant, Sequence::ZERO).len(), 30);
    assert_eq!(world.append(tenant, true, &[1000]), Err(AppendError::Full));
}

/// Scenario: the header of one record and the payload of another are damaged in the middle of an unsealed segment.
/// Guarantees: both are skipped and counted, and every record around them is found.
#[test]
fn damage_costs_the_record_it_hits_and_no_other() {
    let (mut world, tenant) = world();
    for _ in 0..8 {
        world.append(tenant, true, &[100]).expect("there is room");
    }
    let (name, _) = newest(&world);
    world.disk.flip_bit(&name, (offset_of(&world, 2) + 9) * 8);
    world.disk.flip_bit(&name, (offset_of(&world, 5) + HEADER_BYTES + 50) * 8);
    for number in [2, 5] {
        world.known.remove(&number);
    }
    world.restart(Crash::Kill, false);
    assert_eq!(world.known.keys().copied().collect::<Vec<_>>(), [0, 1, 3, 4, 6, 7]);
    assert_eq!(world.damaged(), 2);
}

/// Scenario: one page of a segment cannot be read: in the middle or where the records end, while the log runs, or when it starts
/// and has to scan.
/// Guarantees: the records in it are skipped and counted; all others are read, and the start is not stopped.
#[test]
fn an_unreadable_page_costs_the_records_in_it() {
    for (crash, last_page) in [(Crash::Clean, false), (Crash::Clean, true), (Crash::Kill, false), (Crash::Kill, true)] {
        let (mut world, tenant) = world();
        for _ in 0..6 {
            world.append(tenant, true, &[2000]).expect("there is room");
        }
        let starts: Vec<usize> = (0..6).map(|number| offset_of(&world, number)).collect();
        let page = if last_page { starts[5] / PAGE } else { starts[2] / PAGE };
        let is_hit = |start: usize| start / PAGE == page || (start + HEADER_BYTES + 2007) / PAGE == page;
        let intact: Vec<u64> = (0..6).filter(|number| !is_hit(starts[*number as usize])).collect();
        let (name, _) = newest(&world);
        if crash == Crash::Clean {
            world.restart(crash, false);
            world.disk.make_unreadable(&name, page);
        } else {
            world.disk.make_unreadable(&name, page);
            world.known.retain(|number, _| intact.contains(number));
            world.restart(crash, false);
        }
        let read = world.read(tenant, Sequence::ZERO);
        let numbers: Vec<u64> = read.iter().map(|record| super::world::number_of(&record.payload)).collect();
        assert_eq!(numbers, intact, "{crash:?}, page {page}");
        assert!(
            (1..=6 - intact.len() as u64).contains(&world.damaged()),
            "{crash:?}, page {page}: {}",
            world.damaged()
        );
        assert!(world.append(tenant, true, &[2000]).is_ok());
    }
}

/// Scenario: a file's records are done, it is recycled, and records of the same sizes are written over the old ones: each old one
/// that is left begins exactly where the next new one would.
/// Guarantees: a start after a crash finds the new ones and none of the old, though these are whole; with the checksums of their
/// own life they would have been found.
#[test]
fn a_record_of_a_files_earlier_life_never_passes() {
    let (mut world, tenant) = world();
    let mut lives = vec![newest(&world)];
    let mut since = 0;
    while lives.len() < 8 || since < 2 {
        let last = world.append(tenant, true, &[1000]).expect("what is acknowledged makes room");
        world.acknowledge(tenant, last);
        since += 1;
        if newest(&world) != lives[lives.len() - 1] {
            lives.push(newest(&world));
            since = 0;
        }
    }
    let (name, key) = lives.pop().expect("the last one");
    assert!(key.generation > 2, "the file was recycled");
    let file = world.disk.open(&name).expect("it is there");
    let scanned = |key, from| {
        let mut found = Vec::new();
        let range = (from, SEGMENT_BYTES);
        let end = scan((&*world.disk, &file, key), range, |offset, _, _| found.push(offset)).expect("it scans");
        (found, end.end)
    };
    let (_, end) = scanned(key, SEGMENT_HEADER_BYTES);
    let stale: Vec<_> = lives.iter().map(|(_, earlier)| scanned(*earlier, end).0).filter(|at| !at.is_empty()).collect();
    assert_eq!(stale.len(), 1, "one earlier life has whole records after the new ones");
    assert_eq!(stale[0][0], end, "and they begin where the next one would");
    let found = world.read(tenant, Sequence::ZERO).len();
    let copy = world.what_if(Crash::Kill, None, 1);
    assert_eq!(copy.known.len(), found);
    assert_eq!(copy.damaged(), 0, "what is stale is not damaged either");
}

/// Scenario: a tenant hides in its payload what looks like a record of its neighbour, made with all that it can know
/// (segment id, generation, offset); then the header of the record around it is damaged.
/// Guarantees: the scan that looks for the next record does not take it for one.
#[test]
fn a_record_hidden_in_a_payload_is_never_believed() {
    let (mut world, tenant) = world();
    let neighbour = world.register("shop/pay").expect("there is room");
    world.append(tenant, true, &[10]).expect("there is room");
    let (name, key) = newest(&world);
    let outer = offset_of(&world, 0) as u64 + stride(18);
    let inner = outer + HEADER_BYTES as u64 + 8;
    let forge = |salt| {
        let seed = SegmentKey { salt, ..key }.seed().at(inner);
        let header = Header {
            kind: 1,
            signal: 1,
            tenant: neighbour.0,
            items: 1,
            sequence: Sequence(u64::MAX / 2),
            received_unix_ms: 0,
            length: 8,
            payload_crc: crc32c::crc32c_append(seed, &7u64.to_le_bytes()),
        };
        [&header.encode(seed)[..], &7u64.to_le_bytes()].concat()
    };
    let mailbox = Arc::default();
    let Request::Append(mut append) = world.append_of((tenant, true), &[0], &mailbox) else { unreachable!() };
    append.parts[0].payload = [1u64.to_le_bytes().to_vec(), forge(0)].concat().into();
    world.step_with(vec![Request::Append(append)], &mailbox);
    assert_eq!(offset_of(&world, 1) as u64, outer, "the forgery is where it was made for");
    world.disk.flip_bit(&name, (usize::try_from(outer).expect("small") + 9) * 8);
    world.known.remove(&1);
    world.restart(Crash::Kill, false);
    assert!(world.read(neighbour, Sequence::ZERO).is_empty());
    // The test is about the salt: with it, the same bytes would have been believed.
    let mut bytes = world.disk.bytes(&name);
    bytes.resize(SEGMENT_BYTES as usize, 0);
    let at = usize::try_from(inner).expect("small");
    let forged = forge(key.salt);
    bytes[at..at + forged.len()].copy_from_slice(&forged);
    let mut found = Vec::new();
    world.disk.put(&name, bytes);
    let file = world.disk.open(&name).expect("it is there");
    let whole = (64, SEGMENT_BYTES);
    scan((&*world.disk, &file, key), whole, |offset, _, _| found.push(offset)).expect("it scans");
    assert!(found.contains(&inner));
}

/// Scenario: a reader holds a segment while the cursors pass it and new data wants its file.
/// Guarantees: the file is not written to as long as it is held.
#[test]
fn a_segment_is_not_recycled_while_it_is_read() {
    let (mut world, tenant) = world();
    let first = world.append(tenant, true, &[1000]).expect("there is room");
    let wanted = Wanted { tenant, after: Sequence::ZERO, bytes_max: 1 };
    let mut last = first;
    while world.index.sealed_count() == 0 {
        last = world.append(tenant, true, &[1000]).expect("there is room");
    }
    let place = world.index.find(&*world.disk, wanted).expect("it reads").expect("the first record");
    for _ in 0..100 {
        world.acknowledge(tenant, last);
        last = world.append(tenant, true, &[1000]).expect("what is acknowledged makes room");
    }
    let mut bytes = [0; HEADER_BYTES];
    let run = &place.runs[0];
    let at = u64::from(run.entries[0].offset);
    world.disk.read_at(&run.file, at, &mut bytes).expect("it reads");
    let header = Header::decode(&bytes, run.key.seed().at(at)).expect("still the record that was there");
    assert_eq!(header.sequence, first);
}

/// Scenario: a damaged block in the index of a sealed segment.
/// Guarantees: every record is still read, by scanning the segment.
#[test]
fn a_damaged_index_is_rebuilt_from_the_segment() {
    let (mut world, tenant) = world();
    for _ in 0..10 {
        world.append(tenant, true, &[100]).expect("there is room");
    }
    let (name, _) = newest(&world);
    world.restart(Crash::Clean, false);
    let range = world.index.sealed()[0].range(tenant).expect("it has records");
    for byte in 0..200 {
        let bit = (range.index_offset as usize + byte) * 8 + byte % 8;
        world.disk.flip_bit(&name, bit);
        assert_eq!(world.read(tenant, Sequence::ZERO).len(), 10, "byte {byte} of the block");
        assert_eq!(world.damaged(), 0, "byte {byte} of the block");
        world.disk.flip_bit(&name, bit);
    }
}

/// Scenario: a start after a crash; then the first append.
/// Guarantees: what was there is sealed and shortened, and the append goes to a new segment.
#[test]
fn an_old_segment_is_never_appended_to() {
    let (mut world, tenant) = world();
    world.append(tenant, true, &[100]).expect("there is room");
    let (name, key) = newest(&world);
    world.restart(Crash::Kill, false);
    let sealed = world.disk.bytes(&name);
    assert!((sealed.len() as u64) < SEGMENT_BYTES / 4, "the unused blocks are given back");
    world.append(tenant, true, &[100]).expect("there is room");
    assert_eq!(world.disk.bytes(&name), sealed);
    assert!(newest(&world).1.id > key.id);
}

/// Scenario: a pod registers again, with other destinations, and another pod takes its name; everything is delivered and
/// recycled, and the gateway starts anew without metadata.
/// Guarantees: the same pod keeps its number, another gets a new one, and no number is ever given twice.
#[test]
fn a_tenants_number_is_its_own_for_ever() {
    let (mut world, tenant) = world();
    assert_eq!(world.register("shop/cart"), Some(tenant));
    let mut record = super::tenant_record("shop/cart");
    let register = |world: &mut World, record: &crate::queue::TenantRecord| {
        world.register_as(record.clone()).expect("there is room")
    };
    record.destinations[0] = vec![destination("c")];
    assert_eq!(register(&mut world, &record), tenant);
    record.pod_uid = Some("another".to_owned());
    let other = register(&mut world, &record);
    assert!(other > tenant);
    world.restart(Crash::PowerLoss, false);
    let found = world.last_recovery.tenants.iter().find(|found| found.id == tenant).expect("it is known");
    assert_eq!(found.record.destinations[0], [destination("c")], "the latest registration counts");
    record.pod_uid = Some("a third".to_owned());
    assert!(register(&mut world, &record) > other);
}

/// Scenario: a cursor that was saved is followed by one that is behind it, as from a late or repeated checkpoint.
/// Guarantees: it does not go back, now or after a start: what it passed may be gone already.
#[test]
fn a_cursor_never_goes_back() {
    let (mut world, tenant) = world();
    let first = world.append(tenant, true, &[10]).expect("there is room");
    let last = world.append(tenant, true, &[10]).expect("there is room");
    world.acknowledge(tenant, last);
    world.acknowledge(tenant, first);
    let kept = |world: &World| {
        let tenant = world.log.tenants.find(tenant).expect("it is known");
        tenant.cursors.values().map(|cursor| cursor.acknowledged).collect::<Vec<_>>()
    };
    assert_eq!(kept(&world), [last; 4]);
    world.acknowledge(tenant, last);
    world.restart(Crash::Kill, false);
    assert_eq!(kept(&world), [last; 4]);
}

/// Scenario: dead letters of long ago keep segments, and the log becomes full.
/// Guarantees: they stay as long as there is room; then the oldest go, counted, and intake goes on.
#[test]
fn dead_letters_keep_their_segment_until_its_space_is_needed() {
    let (mut world, tenant) = world();
    let mailbox = Arc::default();
    let letter = letter(tenant, Sequence(1), vec![1; 100]);
    let dropped = |world: &World| world.stats.dead_letters_dropped.load(Ordering::Relaxed);
    for _ in 0..12 {
        let reply = Reply { mailbox: Arc::clone(&mailbox), ticket: 1 };
        let mut group = vec![Request::DeadLetter(letter.clone(), reply)];
        world.log.step(&mut group, false, 5);
        // A segment's worth of data that is delivered at once.
        for _ in 0..14 {
            if let Ok(last) = world.append(tenant, true, &[1000]) {
                world.acknowledge(tenant, last);
            }
        }
    }
    assert!(dropped(&world) > 0 && dropped(&world) < 12);
    assert!(world.append(tenant, true, &[1000]).is_ok());
}

/// Scenario: an append of a tenant that nobody registered, one without parts, and one larger than a record may be.
/// Guarantees: each is refused for good, and nothing of it is written.
#[test]
fn what_can_never_be_stored_is_refused() {
    let (mut world, tenant) = world();
    let before = world.disk.counts();
    assert_eq!(world.append(TenantId(99), true, &[10]), Err(AppendError::UnknownTenant));
    assert_eq!(world.append(tenant, true, &[]), Err(AppendError::UnknownTenant));
    assert_eq!(world.append(tenant, true, &[10, SEGMENT_BYTES as usize]), Err(AppendError::TooLarge));
    assert_eq!(world.disk.counts().1, before.1, "no write");
}

/// Scenario: records of three times, in a sealed segment and in the open one; the header of one is damaged.
/// Guarantees: a look finds those that are older than its limit, in order, and no further; it says when the first younger one
/// was appended, passes what is damaged, and stops at its number of records.
#[test]
fn a_look_finds_what_is_too_old_and_no_more() {
    let (mut world, tenant) = world();
    for time in [100, 200] {
        world.now = time;
        for _ in 0..4 {
            world.append(tenant, true, &[10]).expect("there is room");
        }
    }
    let (name, at) = (newest(&world).0, offset_of(&world, 1));
    world.restart(Crash::Clean, false);
    world.disk.flip_bit(&name, (at + 9) * 8);
    world.now = 300;
    world.append(tenant, true, &[10]).expect("there is room");
    let look = |limit, records_max| {
        let wanted = Wanted { tenant, after: Sequence::ZERO, bytes_max: 50 };
        let damaged = &world.stats.damaged_records;
        crate::queue::reader::overdue(&*world.disk, &world.index, damaged, (wanted, limit, records_max))
            .expect("it reads")
    };
    let counted = |limit, records_max| {
        let overdue = look(limit, records_max);
        (
            overdue.records.len(),
            overdue.records.last().map(|record| record.sequence) == Some(overdue.through),
            overdue.next_unix_ms,
        )
    };
    assert_eq!(counted(100, 9), (0, false, Some(100)));
    assert_eq!(counted(101, 9), (3, true, Some(200)));
    assert_eq!(counted(300, 9), (7, true, Some(300)));
    assert_eq!(counted(301, 9), (8, true, None));
    assert_eq!(counted(301, 2), (2, true, None));
}

/// Scenario: the disk is full of others' files and the open segment has no room left, so that checkpoints are refused; then the disk has space again, and nobody sends another checkpoint.
/// Guarantees: the cursors are saved by themselves, each as far as it ever was, and what they passed is free.
#[test]
fn a_refused_checkpoint_is_saved_when_there_is_room() {
    let (mut world, tenant) = world();
    let first = world.append(tenant, true, &[1000]).expect("there is room");
    let mut last = first;
    world.disk.set_faults(Faults { capacity: 3 * SEGMENT_BYTES, ..Faults::default() });
    while let Ok(sequence) = world.append(tenant, true, &[1000]) {
        last = sequence;
    }
    let saved = |world: &World| world.log.tenants.find(tenant).expect("known").cursors.values().next().cloned();
    // Cursors of nobody else fill what is left.
    world.disk.set_faults(Faults { capacity: 1, ..Faults::default() });
    let other = world.register("shop/other");
    let refused = (0..10_000).any(|_| {
        world.acknowledge(other.unwrap_or(TenantId(99)), first);
        world.log.is_refusing_cursors()
    });
    assert!(refused, "what finds no room is kept, to be tried again");
    let before = saved(&world);
    world.acknowledge(tenant, last);
    world.step(Vec::new());
    assert_eq!(saved(&world), before, "there is no room");
    assert!(world.log.is_unfinished(), "the writer comes round again");
    world.disk.set_faults(Faults::default());
    world.step(Vec::new());
    assert_eq!(saved(&world).map(|cursor| cursor.acknowledged), Some(last));
    assert!(!world.log.is_refusing_cursors());
    world.step(Vec::new());
    assert!(world.append(tenant, true, &[1000]).is_ok());
}
