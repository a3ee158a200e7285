//! Real files and the real sled, damaged in every way, and crashed at random.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use smallvec::smallvec;

use super::files::{batch, checkpoint, copy, open, read_all, wait};
use super::tenant_record;
use super::world::number_of;
use crate::base::mailbox::Mailbox;
use crate::base::{Sequence, TenantId};
use crate::queue::disk::{Disk, RealDisk};
use crate::queue::format::{SEGMENT_HEADER_BYTES, SegmentKey};
use crate::queue::record::Kind;
use crate::queue::scan::scan;
use crate::queue::{Append, Queue, Reply};

/// Appends records with these numbers, and waits until they are acknowledged.
fn append(queue: &Queue, tenant: TenantId, numbers: Range<u64>, sync: bool) {
    let mailbox = Arc::new(Mailbox::default());
    let count = numbers.clone().count();
    for number in numbers {
        let reply = Some(Reply { mailbox: mailbox.clone(), ticket: number });
        queue.append(Append { parts: smallvec![batch(tenant, number)], sync, reply }).expect("it fits");
    }
    assert!(wait(&mailbox, count).iter().all(|completion| completion.result.is_ok()));
}

fn numbers(queue: &Queue, tenant: TenantId) -> BTreeSet<u64> {
    let records = read_all(queue, tenant);
    let numbers: BTreeSet<u64> = records
        .iter()
        .map(|(_, payload)| {
            let number = number_of(payload);
            assert_eq!(*payload, batch(tenant, number).payload, "what is read is what was sent");
            number
        })
        .collect();
    assert_eq!(numbers.len(), records.len(), "no record twice");
    numbers
}

/// Number and place of every data record of a segment.
fn records_of(path: &Path) -> Vec<(u64, Range<u64>)> {
    let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
    let Some((key, false)) = SegmentKey::parse(name) else { return Vec::new() };
    let disk = RealDisk::open(path.parent().expect("a folder").to_owned()).expect("it opens");
    let file = disk.open(name).expect("it opens");
    let length = disk.length(&file).expect("it has one");
    let mut found = Vec::new();
    scan((&disk, &file, key), (SEGMENT_HEADER_BYTES, length), |offset, header, payload| {
        if header.kind == Kind::Data as u8 {
            found.push((number_of(payload), offset..offset + header.stride()));
        }
    })
    .expect("it scans");
    found
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("it lists") {
        let path = entry.expect("an entry").path();
        if path.is_dir() { files.extend(files_below(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

#[derive(Debug, Clone, Copy)]
enum Damage {
    Deleted,
    /// To so many hundredths of its length.
    Cut(u64),
    /// One bit of the byte at so many thousandths of its length.
    Flipped(u64),
}

/// Damages a file, and says whether a record at that place is still whole.
fn damage(path: &Path, damage: Damage) -> impl Fn(&Range<u64>) -> bool {
    let length = std::fs::metadata(path).expect("it is there").len();
    let mut cut = length;
    let mut flipped = None;
    match damage {
        Damage::Deleted => {
            std::fs::remove_file(path).expect("removed");
            cut = 0;
        }
        Damage::Cut(hundredths) => {
            cut = length * hundredths / 100;
            std::fs::OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(cut)).expect("cut");
        }
        Damage::Flipped(thousandths) if length > 0 => {
            let at = length * thousandths / 1000;
            let mut bytes = std::fs::read(path).expect("read");
            bytes[at as usize] ^= 1 << (thousandths % 8);
            std::fs::write(path, bytes).expect("written");
            flipped = Some(at);
        }
        Damage::Flipped(_) => {}
    }
    move |place| place.end <= cut && flipped.is_none_or(|at| !place.contains(&at))
}

/// Scenario: of a data directory with closed segments, an open one, spares and sled, each file in turn is deleted, emptied, cut,
/// or has one bit flipped in one of nine places.
/// Guarantees: the queue opens each time, delivers exactly the records that are whole, and takes new ones.
#[test]
fn whatever_happens_to_one_file_the_rest_is_delivered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (live, image) = (dir.path().join("live"), dir.path().join("image"));
    let mut tenant = TenantId(0);
    for boot in 0..3 {
        let (queue, _) = open(&live);
        tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
        append(&queue, tenant, boot * 40..boot * 40 + 40, true);
        if boot < 2 {
            queue.close().expect("it closes");
        } else {
            let first = read_all(&queue, tenant)[0].0;
            checkpoint(&queue, tenant, first);
            append(&queue, tenant, 200..201, true);
            copy(&live, &image);
        }
    }
    let all: BTreeSet<u64> = (0..120).chain([200]).collect();
    let files = files_below(&image);
    assert!(files.iter().filter(|file| file.extension().is_some_and(|ends| ends == "seg")).count() >= 3, "{files:?}");
    let flips = [0, 1, 60, 250, 500, 700, 900, 990, 999].map(Damage::Flipped);
    let damages =
        [Damage::Deleted, Damage::Cut(0), Damage::Cut(1), Damage::Cut(50), Damage::Cut(99)].into_iter().chain(flips);
    for (number, (file, how)) in files.iter().flat_map(|file| damages.clone().map(move |how| (file, how))).enumerate() {
        let (below, records) = (file.strip_prefix(&image).expect("below it"), records_of(file));
        let path = dir.path().join(number.to_string());
        copy(&image, &path);
        let target = path.join(below);
        let is_whole = damage(&target, how);
        let lost: BTreeSet<u64> =
            records.iter().filter(|(_, place)| !is_whole(place)).map(|(number, _)| *number).collect();
        let (queue, recovery) = open(&path);
        assert_eq!(recovery.tenants.len(), 1, "{below:?} {how:?}");
        let found = numbers(&queue, tenant);
        assert_eq!(found, &all - &lost, "{below:?} {how:?}");
        append(&queue, tenant, 300..301, true);
        queue.close().expect("it closes");
        drop(queue);
        std::fs::remove_dir_all(&path).expect("removed");
    }
}

/// Scenario: 100 crashes at random moments of a queue on real files with the real sled: the files as they are, the log's bytes
/// after the last durable record torn by the sector, and sled's file cut somewhere or that of an earlier crash.
/// Guarantees: what was acknowledged as durable is there, nothing is there twice or was never sent, and no cursor is ahead.
#[test]
fn a_hundred_crashes_with_the_real_sled_lose_nothing() {
    let seed = std::env::var("PILLION_QUEUE_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    println!("replay with PILLION_QUEUE_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().expect("a directory");
    let mut live = dir.path().join("0");
    let (mut queue, _) = open(&live);
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    let (mut next, mut durable, mut sent) = (0, BTreeSet::new(), Sequence::ZERO);
    // What the cursors have passed may be gone.
    let mut passed = BTreeSet::new();
    let mut crashes = 0;
    while crashes < 100 {
        let synced = next..next + rng.u64(1..12);
        append(&queue, tenant, synced.clone(), true);
        durable.extend(synced.clone());
        next = synced.end;
        if rng.u8(0..3) == 0 {
            let records = read_all(&queue, tenant);
            sent = sent.max(records[rng.usize(0..records.len())].0);
            passed.extend(records.iter().filter(|(at, _)| *at <= sent).map(|(_, payload)| number_of(payload)));
            checkpoint(&queue, tenant, sent);
        }
        let buffered = next..next + rng.u64(0..4);
        append(&queue, tenant, buffered.clone(), false);
        next = buffered.end;
        let image = dir.path().join((crashes + 1).to_string());
        copy(&live, &image);
        tear(&image, &durable, &mut rng);
        let (crashed, recovery) = open(&image);
        crashes += 1;
        let cursors = recovery.tenants.iter().flat_map(|tenant| &tenant.cursors);
        assert!(cursors.clone().all(|cursor| cursor.acknowledged <= sent), "seed {seed}, crash {crashes}");
        let found = numbers(&crashed, tenant);
        let lost: Vec<_> = durable.difference(&found).filter(|number| !passed.contains(number)).collect();
        assert!(lost.is_empty(), "seed {seed}, crash {crashes}: {lost:?} are lost");
        assert!(found.iter().all(|number| *number < next));
        if rng.u8(0..4) == 0 {
            // Life goes on from what the crash has left.
            queue.close().expect("it closes");
            (durable, live) = (found, image);
            queue = crashed;
        } else {
            crashed.close().expect("it closes");
            std::fs::remove_dir_all(&image).expect("removed");
        }
    }
}

/// Loses what was not synced: bytes of the newest segment after its last durable record, and of sled's file.
fn tear(image: &Path, durable: &BTreeSet<u64>, rng: &mut fastrand::Rng) {
    let segments = files_below(&image.join("log"));
    if let Some(newest) = segments.iter().rev().find(|file| file.extension().is_some_and(|ends| ends == "seg")) {
        let records = records_of(newest);
        let synced = records.iter().rev().find(|(number, _)| durable.contains(number)).map(|(_, place)| place.end);
        let mut bytes = std::fs::read(newest).expect("read");
        if let (Some(synced), Some((_, last))) = (synced, records.last()) {
            let sectors = (synced as usize).next_multiple_of(512)..last.end as usize;
            for sector in sectors.step_by(512).filter(|_| rng.bool()) {
                let end = (sector + 512).min(bytes.len());
                bytes[sector..end].fill(0);
            }
        }
        std::fs::write(newest, bytes).expect("written");
    }
    let sled = image.join("meta/db");
    if let Ok(file) = std::fs::OpenOptions::new().write(true).open(&sled)
        && rng.bool()
    {
        let length = file.metadata().expect("it has some").len();
        file.set_len(rng.u64(0..=length)).expect("cut");
    }
}

/// Scenario: the metadata of another log, whose cursors are further, stands in the place of our own.
/// Guarantees: it is not believed: the cursors are those of the log, all that waits is there, and metadata is made anew, counted.
#[test]
fn metadata_of_another_log_is_not_believed() {
    let dir = tempfile::tempdir().expect("a directory");
    let paths = ["ours", "other"].map(|name| dir.path().join(name));
    let mut acknowledged = Vec::new();
    for (path, at) in paths.iter().zip([4, 19]) {
        let (queue, _) = open(path);
        let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
        append(&queue, tenant, 0..20, true);
        acknowledged.push((tenant, read_all(&queue, tenant)[at].0));
        checkpoint(&queue, tenant, acknowledged[acknowledged.len() - 1].1);
        queue.close().expect("it closes");
    }
    let (tenant, ours) = acknowledged[0];
    assert!(acknowledged[1].0 == tenant && acknowledged[1].1 > ours, "they could be mistaken for one another");
    std::fs::remove_dir_all(paths[0].join("meta")).expect("removed");
    copy(&paths[1].join("meta"), &paths[0].join("meta"));
    let (queue, recovery) = open(&paths[0]);
    assert!(recovery.meta_rebuilt);
    assert_eq!(queue.snapshot().meta_rebuilds, 1);
    assert!(recovery.tenants[0].cursors.iter().all(|cursor| cursor.acknowledged == ours));
    assert_eq!(numbers(&queue, tenant).len(), 20);
}

/// Scenario: a record is damaged before a start has to scan its segment, and another in a closed segment, where a read finds it.
/// Guarantees: both are skipped, counted once and kept aside, byte by byte as they were found, also after another start.
#[test]
fn damaged_records_are_kept_aside() {
    let dir = tempfile::tempdir().expect("a directory");
    let (live, image) = (dir.path().join("live"), dir.path().join("image"));
    let (queue, _) = open(&live);
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    append(&queue, tenant, 0..20, true);
    queue.close().expect("it closes");
    drop(queue);
    let (queue, _) = open(&live);
    append(&queue, tenant, 20..40, true);
    copy(&live, &image);
    let mut expected = BTreeSet::new();
    for file in files_below(&image.join("log")) {
        let records = records_of(&file);
        let Some((number, place)) = records.get(7) else { continue };
        let mut bytes = std::fs::read(&file).expect("read");
        bytes[place.start as usize + 60] ^= 4;
        let length = 48 + batch(tenant, *number).payload.len();
        expected.insert(bytes[place.start as usize..][..length].to_vec());
        std::fs::write(&file, bytes).expect("written");
    }
    assert_eq!(expected.len(), 2);
    for _ in 0..2 {
        let (queue, _) = open(&image);
        for _ in 0..2 {
            assert_eq!(numbers(&queue, tenant).len(), 38);
        }
        assert!((1..=2).contains(&queue.snapshot().damaged_records));
        queue.close().expect("it closes");
        drop(queue);
        let kept: BTreeSet<Vec<u8>> =
            files_below(&image.join("damaged")).iter().map(|file| std::fs::read(file).expect("read")).collect();
        let as_found = |found: &Vec<u8>| kept.iter().any(|kept| kept.starts_with(found));
        assert!(kept.len() == 2 && expected.iter().all(as_found));
    }
}
