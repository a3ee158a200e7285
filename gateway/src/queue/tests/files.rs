//! The whole queue with its threads, on real files and with the real sled.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use bytes::Bytes;
use smallvec::smallvec;

use super::tenant_record;
use crate::base::handoff::Handoff;
use crate::base::mailbox::Mailbox;
use crate::base::{Batch, Sequence, Signal, TenantId};
use crate::queue::directory::{format_text, read_format};
use crate::queue::format::VERSION;
use crate::queue::writer::Inbox;
use crate::queue::{
    Append, AppendError, Completion, Config, CursorState, DirectoryLock, MinFree, OpenError, Queue, Recovery, Reply,
    Severity, verify,
};

pub(super) fn config(dir: &Path) -> Config {
    Config {
        data_dir: dir.to_owned(),
        disk_bytes_max: 64 << 20,
        segment_bytes: 1 << 20,
        inbox_bytes_max: 8 << 20,
        dead_letter_bytes_max: 8 << 20,
        min_free: MinFree::Bytes(0),
        begin_at_tail: BTreeSet::new(),
    }
}

pub(super) fn open(dir: &Path) -> (Queue, Recovery) {
    Queue::open(config(dir), Arc::new(Handoff::new(1 << 20))).expect("the queue opens")
}

/// Parks the test's thread until a mailbox has something.
struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

pub(super) fn wait(mailbox: &Mailbox<Completion>, count: usize) -> Vec<Completion> {
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let (mut all, mut out) = (Vec::new(), Vec::new());
    while all.len() < count {
        match mailbox.poll_take(&mut Context::from_waker(&waker), &mut out) {
            Poll::Ready(()) => all.append(&mut out),
            Poll::Pending => std::thread::park(),
        }
    }
    all
}

pub(super) fn batch(tenant: TenantId, number: u64) -> Batch {
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + (number as usize * 37) % 3000, number as u8);
    Batch { tenant, signal: Signal::Traces, items: 2, received_unix_ms: 1, payload: payload.into(), guard: None }
}

/// Appends so many records and waits until all are durable.
pub(super) fn fill(queue: &Queue, tenant: TenantId, count: u64) {
    let mailbox = Arc::new(Mailbox::default());
    for number in 0..count {
        let reply = Some(Reply { mailbox: mailbox.clone(), ticket: number });
        queue.append(Append { parts: smallvec![batch(tenant, number)], sync: true, reply }).expect("it fits");
    }
    assert!(wait(&mailbox, count as usize).iter().all(|completion| completion.result.is_ok()));
}

pub(super) fn read_all(queue: &Queue, tenant: TenantId) -> Vec<(Sequence, Bytes)> {
    let (mut after, mut all) = (Sequence::ZERO, Vec::new());
    loop {
        let read = queue.read(tenant, after, 10_000).expect("it reads");
        if read.through == after {
            return all;
        }
        after = read.through;
        all.extend(read.records.into_iter().map(|record| (record.sequence, record.payload)));
    }
}

fn assert_has(queue: &Queue, tenant: TenantId, count: u64) {
    let records = read_all(queue, tenant);
    assert_eq!(records.len() as u64, count);
    for (number, (_, payload)) in records.into_iter().enumerate() {
        assert_eq!(payload, batch(tenant, number as u64).payload);
    }
}

pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a new directory");
    for entry in std::fs::read_dir(from).expect("it lists") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            match std::fs::copy(entry.path(), target) {
                // Of sled's files one may go while they are copied.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.expect("it copies")),
            }
        }
    }
}

pub(super) fn checkpoint(queue: &Queue, tenant: TenantId, acknowledged: Sequence) {
    let cursors = super::cursors_at(tenant, acknowledged);
    let cursors = cursors.into_iter().map(|cursor| CursorState { delivered_items: 7, ..cursor }).collect();
    queue.checkpoint(cursors).expect("it fits");
}

/// Scenario: records and cursors are saved, the queue is closed and opened again.
/// Guarantees: everything is there, the numbers go on above the old ones, and metadata was not rebuilt.
#[test]
fn everything_is_there_after_an_orderly_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(dir.path());
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    fill(&queue, tenant, 200);
    let middle = read_all(&queue, tenant)[99].0;
    checkpoint(&queue, tenant, middle);
    queue.close().expect("it closes");
    assert!(matches!(queue.register(&tenant_record("shop/cart")), Err(AppendError::Closed)));

    let (queue, recovery) = open(dir.path());
    assert!(!recovery.meta_rebuilt);
    assert_eq!((recovery.tenants.len(), recovery.damaged_records), (1, 0));
    assert_eq!(recovery.tenants[0].pending_items, [200, 0, 0], "100 records of 2 items");
    assert_eq!(recovery.tenants[0].cursors[0].delivered_items, 7);
    assert_has(&queue, tenant, 200);
    fill(&queue, tenant, 1);
    let records = read_all(&queue, tenant);
    assert!(records[200].0 > records[199].0);
    queue.close().expect("it closes");
}

/// Scenario: the files are taken as they are while the queue runs, as after kill -9, and opened as another directory.
/// Guarantees: every acknowledged record is there.
#[test]
fn what_was_acknowledged_is_in_the_files_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(&dir.path().join("live"));
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    fill(&queue, tenant, 1500);
    copy(&dir.path().join("live"), &dir.path().join("killed"));
    let (killed, recovery) = open(&dir.path().join("killed"));
    assert_eq!(recovery.tenants[0].id, tenant);
    assert_eq!(recovery.tenants[0].pending_items, [3000, 0, 0]);
    assert_has(&killed, tenant, 1500);
}

/// Scenario: each file of sled is deleted, emptied, cut in half, or has bits flipped; or sled's directory is a file.
/// Guarantees: the queue opens, with all tenants, records and cursors; what cannot be used is made anew, and works.
#[test]
fn sled_may_be_damaged_in_any_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(&dir.path().join("0"));
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    fill(&queue, tenant, 20);
    let middle = read_all(&queue, tenant)[9].0;
    checkpoint(&queue, tenant, middle);
    queue.close().expect("it closes");
    type Damage = (&'static str, fn(&Path));
    let damages: [Damage; 7] = [
        ("deleted", |meta| std::fs::remove_dir_all(meta).expect("removed")),
        ("a file", |meta| {
            std::fs::remove_dir_all(meta).expect("removed");
            std::fs::write(meta, "x").expect("written");
        }),
        ("no db", |meta| std::fs::remove_file(meta.join("db")).expect("removed")),
        ("no conf", |meta| std::fs::remove_file(meta.join("conf")).expect("removed")),
        ("empty db", |meta| std::fs::write(meta.join("db"), "").expect("written")),
        ("garbled conf", |meta| std::fs::write(meta.join("conf"), [0xff; 64]).expect("written")),
        ("garbled db", |meta| {
            let mut bytes = std::fs::read(meta.join("db")).expect("read");
            bytes.iter_mut().step_by(97).for_each(|byte| *byte ^= 0x10);
            std::fs::write(meta.join("db"), bytes).expect("written");
        }),
    ];
    for (name, damage) in damages {
        let path = dir.path().join(name);
        copy(&dir.path().join("0"), &path);
        damage(&path.join("meta"));
        for boot in 0..2 {
            let (queue, recovery) = open(&path);
            assert_eq!(recovery.tenants.len(), 1, "{name}");
            assert!(recovery.tenants[0].cursors.iter().all(|cursor| cursor.acknowledged == middle), "{name}");
            assert!(boot == 0 || !recovery.meta_rebuilt, "{name}: it was made anew, and lasts");
            assert_has(&queue, tenant, 20);
            queue.close().expect("it closes");
        }
    }
}

/// Scenario: somebody waits for the lock of a directory whose holder has given a duplicate of it away, as the proof that it
/// holds it; the holder ends in good order.
/// Guarantees: who waits is told once that it does, and gets the lock at once, whatever became of the duplicate; a directory
/// that is not there is an error and not made.
#[test]
fn who_waits_for_the_lock_gets_it_though_a_proof_is_left() {
    let dir = tempfile::tempdir().expect("a directory");
    let holder = DirectoryLock::take(dir.path()).expect("nobody has it");
    let proof = holder.proof().expect("a duplicate");
    let (occupied, told) = std::sync::mpsc::sync_channel(2);
    let path = dir.path().to_owned();
    let waiting = std::thread::spawn(move || DirectoryLock::wait(&path, || occupied.send(()).expect("the test waits")));
    told.recv().expect("it waits");
    drop(holder);
    let lock = waiting.join().expect("no panic").expect("the lock is free");
    assert!(told.try_recv().is_err(), "told once");
    drop((proof, lock));

    let absent = DirectoryLock::wait(&dir.path().join("absent"), || ()).expect_err("there is no such directory");
    assert!(matches!(absent, OpenError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound));
    assert!(!dir.path().join("absent").exists());
}

/// Scenario: a second process opens the directory of a running queue.
/// Guarantees: it is refused with the holder's pid; after the first ends it may have it.
#[test]
fn a_directory_has_one_owner() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(dir.path());
    let Err(OpenError::Locked { holder, .. }) = Queue::open(config(dir.path()), Arc::new(Handoff::new(1))) else {
        panic!("two owners")
    };
    assert_eq!(holder, std::process::id().to_string());
    queue.close().expect("it closes");
    open(dir.path());
}

/// Scenario: the last handle of a queue is dropped without closing it.
/// Guarantees: what waited is committed and the lock is released.
#[test]
fn the_last_handle_ends_the_writer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(dir.path());
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    queue.append(Append { parts: smallvec![batch(tenant, 0)], sync: false, reply: None }).expect("it fits");
    drop(queue);
    let lock = std::fs::File::open(dir.path().join("lock")).expect("it is there");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("it is released");
    drop(lock);
    let (queue, _) = open(dir.path());
    assert_has(&queue, tenant, 1);
}

/// Scenario: a directory of a newer release, by its format file or by one of its segments.
/// Guarantees: it is refused by the number, and not a byte of it is changed; a garbled format file stops nothing.
#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(dir.path());
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    fill(&queue, tenant, 3);
    queue.close().expect("it closes");
    let format = dir.path().join("format");
    let text = std::fs::read_to_string(&format).expect("it is there");
    std::fs::write(&format, format_text(9, 7)).expect("written");
    let refused = Queue::open(config(dir.path()), Arc::new(Handoff::new(1)));
    assert!(matches!(refused, Err(OpenError::NewerFormat { found: 9, known: 1, .. })));
    assert!(std::fs::read_to_string(&format).expect("read").contains("queue 9"));
    for garbled in ["", "pillion", "pillion-queue x\n", "\u{0}\u{0}"] {
        std::fs::write(&format, garbled).expect("written");
        let (queue, recovery) = open(dir.path());
        assert!(!recovery.meta_rebuilt, "the segments say which log it is");
        assert_has(&queue, tenant, 3);
        queue.close().expect("it closes");
        assert_eq!(std::fs::read_to_string(&format).expect("read"), text, "it is written anew");
    }
}

/// Scenario: each bit of the format file in turn is the other way round.
/// Guarantees: none of them looks like a newer release, or like another log.
#[test]
fn no_flipped_bit_of_the_format_file_stops_a_start() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, intact) = (dir.path().join("format"), format_text(VERSION, 7).into_bytes());
    for bit in 0..intact.len() * 8 {
        let mut flipped = intact.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&file, flipped).expect("written");
        assert!(matches!(read_format(dir.path()), Ok(None)), "bit {bit}");
    }
    std::fs::write(&file, intact).expect("written");
    assert!(matches!(read_format(dir.path()), Ok(Some(7))));
}

/// Scenario: more bytes than may wait are left for a writer that does not come round.
/// Guarantees: what is over the limit is given back as busy; a single request always fits.
#[test]
fn the_inbox_is_bounded_by_bytes() {
    let inbox = Inbox::new(10_000);
    let append = |size: usize| {
        let batch = Batch { payload: vec![0; size].into(), ..batch(TenantId(1), 0) };
        crate::queue::group::Request::Append(Append { parts: smallvec![batch], sync: true, reply: None })
    };
    inbox.put(append(50_000)).expect("the first always fits");
    assert!(matches!(inbox.put(append(1)), Err((_, AppendError::Busy))));
    inbox.close();
    assert!(matches!(inbox.put(append(1)), Err((_, AppendError::Closed))));
}

/// Scenario: four threads append to a tenant each, and wait for every reply.
/// Guarantees: each thread gets its own replies, all are durable, and each tenant's records are in order.
#[test]
fn tenants_append_side_by_side() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(dir.path());
    std::thread::scope(|scope| {
        for name in ["a/a", "a/b", "a/c", "a/d"] {
            let queue = queue.clone();
            scope.spawn(move || {
                let tenant = queue.register(&tenant_record(name)).expect("there is room").id;
                fill(&queue, tenant, 300);
                assert_has(&queue, tenant, 300);
            });
        }
    });
    let snapshot = queue.snapshot();
    assert!(snapshot.syncs <= snapshot.records && !snapshot.poisoned && !snapshot.full);
}

/// Scenario: one tenant's data is taken at once and another's never, until segments were emptied; then the gateway starts again.
/// Guarantees: they are emptied beside the writer, without a request of their own, while appends go on; everything that waits is
/// there, before and after.
#[test]
fn segments_are_emptied_beside_the_writer() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(dir.path());
    let live = queue.register(&tenant_record("shop/live")).expect("there is room").id;
    let dead = queue.register(&tenant_record("shop/dead")).expect("there is room").id;
    let mailbox = Arc::new(Mailbox::default());
    let mut sent = 0;
    while queue.snapshot().relocated_records == 0 {
        let append = |batch| {
            let reply = Some(Reply { mailbox: mailbox.clone(), ticket: 0 });
            queue.append(Append { parts: smallvec![batch], sync: true, reply }).expect("it fits");
        };
        (0..50).for_each(|number| append(batch(live, number)));
        let last = wait(&mailbox, 50).into_iter().map(|completion| completion.result.expect("room")).max();
        checkpoint(&queue, live, last.expect("fifty"));
        append(batch(dead, sent));
        assert!(wait(&mailbox, 1)[0].result.is_ok());
        sent += 1;
        assert!(sent < 10_000, "nothing was emptied");
    }
    assert_has(&queue, dead, sent);
    let killed = tempfile::tempdir().expect("a directory");
    copy(&dir.path().join("log"), &killed.path().join("log"));
    let found = verify(killed.path()).expect("nobody has it").findings;
    let wrong = found.iter().find(|found| found.severity == Severity::Damage && found.file.starts_with("log"));
    assert_eq!(wrong, None, "what a kill leaves is intact");
    queue.close().expect("it closes");
    drop(queue);
    let (queue, recovery) = open(dir.path());
    assert_has(&queue, dead, sent);
    let found = recovery.tenants.iter().find(|tenant| tenant.id == dead).expect("it is known");
    assert_eq!(found.pending_items, [2 * sent, 0, 0]);
    assert_eq!(recovery.damaged_records, 0);
}

/// Scenario: a log is started with a limit far below what is in it; then everything is delivered.
/// Guarantees: nothing is accepted meanwhile; the cursors are saved, the segments are freed, and data is taken again, without a
/// restart.
#[test]
fn a_limit_below_what_is_used_is_reached_by_delivering() {
    let dir = tempfile::tempdir().expect("a directory");
    let (queue, _) = open(dir.path());
    let tenant = queue.register(&tenant_record("shop/cart")).expect("there is room").id;
    (0..16).for_each(|_| fill(&queue, tenant, 1_000));
    queue.close().expect("it closes");
    drop(queue);
    let smaller = Config { disk_bytes_max: 8 << 20, ..config(dir.path()) };
    let (queue, recovery) = Queue::open(smaller, Arc::new(Handoff::new(1 << 20))).expect("it opens");
    assert!(queue.snapshot().disk_bytes > 16 << 20, "{:?}", queue.snapshot());
    let mailbox = Arc::new(Mailbox::default());
    let append = || {
        let reply = Some(Reply { mailbox: mailbox.clone(), ticket: 0 });
        queue.append(Append { parts: smallvec![batch(tenant, 1)], sync: true, reply }).expect("it fits");
        wait(&mailbox, 1)[0].result
    };
    assert_eq!(append(), Err(AppendError::Full));
    checkpoint(&queue, tenant, recovery.tenants[0].last);
    // Each is a step of the writer, which frees what the one before has made durable.
    let is_below = |_| append().is_ok() && queue.snapshot().disk_bytes <= 8 << 20;
    assert!((0..20).any(is_below), "{:?}", queue.snapshot());
    queue.close().expect("it closes");
}
