//! What a record costs in the queue, beside a bare write and fdatasync of the same bytes in the same run.
//!
//! Prints a table; asserts nothing. `cargo bench -p pillion-gateway --bench queue [-- DIRECTORY]`: the directory decides
//! which disk is measured (default: the target directory's, since /tmp is often in memory).
//!
//! The bare loop is the floor: one thread, groups of the same size, one vectored write and one fdatasync into files that
//! are preallocated and used again, no checksum, no index, no hand-over.

use std::collections::VecDeque;
use std::fs::File;
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use pillion_gateway::base::handoff::{Arrival, Handoff};
use pillion_gateway::base::mailbox::Mailbox;
use pillion_gateway::base::{Batch, DestinationName, Sequence, Signal, TenantId, TenantName};
use pillion_gateway::queue::{Append, Completion, Config, CursorOf, CursorState, Queue, Reply, TenantRecord};
use rustix::fs::FallocateFlags;
use rustix::time::ClockId;
use smallvec::smallvec;

const SEGMENT_BYTES: u64 = 64 << 20;

/// One line of the table.
struct Scenario {
    name: &'static str,
    tenants: u32,
    record_bytes: usize,
    in_flight: usize,
    records: u64,
}

/// Wall time, CPU time of the whole process, and the latencies of single commits.
struct Measured {
    wall: Duration,
    cpu: Duration,
    p50: Duration,
    p99: Duration,
    note: String,
}

fn main() {
    let directory = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let base = directory.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    println!(
        "{:<34} {:>9} {:>11} {:>10} {:>10} {:>10}  notes",
        "", "MB/s", "CPU us/rec", "CPU s/GB", "p50 us", "p99 us"
    );
    let scenario =
        |name, tenants, record_bytes, in_flight, records| Scenario { name, tenants, record_bytes, in_flight, records };
    for scenario in [
        scenario("16 KiB, 110 tenants, 32 a commit", 110, 16 << 10, 32, 48_000),
        scenario("1 KiB, 1 tenant, 32 a commit", 1, 1 << 10, 32, 200_000),
        scenario("1 KiB, 250 tenants, 32 a commit", 250, 1 << 10, 32, 200_000),
        scenario("1 KiB, 1 at a time", 1, 1 << 10, 1, 4_000),
    ] {
        let dir = tempfile::tempdir_in(&base).expect("a directory");
        print_line(&format!("bare   {}", scenario.name), &scenario, &bare(&scenario, dir.path()));
        drop(dir);
        let dir = tempfile::tempdir_in(&base).expect("a directory");
        print_line(&format!("queue  {}", scenario.name), &scenario, &queue(&scenario, dir.path()));
    }
}

fn print_line(name: &str, scenario: &Scenario, measured: &Measured) {
    let bytes = scenario.records as f64 * scenario.record_bytes as f64;
    println!(
        "{name:<34} {:>9.0} {:>11.2} {:>10.2} {:>10} {:>10}  {}",
        bytes / 1e6 / measured.wall.as_secs_f64(),
        measured.cpu.as_secs_f64() * 1e6 / scenario.records as f64,
        measured.cpu.as_secs_f64() * 1e9 / bytes,
        measured.p50.as_micros(),
        measured.p99.as_micros(),
        measured.note,
    );
}

fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).expect("below a second"))
}

fn measure(run: impl FnOnce(&mut Vec<Duration>) -> String) -> Measured {
    let mut latencies = Vec::new();
    let (started, cpu_before) = (Instant::now(), cpu());
    let note = run(&mut latencies);
    let (wall, cpu) = (started.elapsed(), cpu() - cpu_before);
    latencies.sort_unstable();
    let at = |part: usize| latencies[(latencies.len() - 1) * part / 100];
    Measured { wall, cpu, p50: at(50), p99: at(99), note }
}

/// The floor.
fn bare(scenario: &Scenario, dir: &Path) -> Measured {
    let files: Vec<File> = (0..3)
        .map(|number| {
            let file = File::create(dir.join(number.to_string())).expect("a file");
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SEGMENT_BYTES).expect("space");
            file
        })
        .collect();
    let payload = vec![7; scenario.record_bytes];
    let group: Vec<IoSlice<'_>> = (0..scenario.in_flight).map(|_| IoSlice::new(&payload)).collect();
    let group_bytes = (scenario.in_flight * scenario.record_bytes) as u64;
    measure(|latencies| {
        let (mut file, mut offset) = (0, 0);
        for _ in 0..scenario.records / scenario.in_flight as u64 {
            if offset + group_bytes > SEGMENT_BYTES {
                (file, offset) = ((file + 1) % files.len(), 0);
            }
            let started = Instant::now();
            let written = rustix::io::pwritev(&files[file], &group, offset).expect("it writes");
            assert_eq!(written as u64, group_bytes, "a whole group");
            rustix::fs::fdatasync(&files[file]).expect("it syncs");
            latencies.push(started.elapsed());
            offset += group_bytes;
        }
        String::new()
    })
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// The queue: a fixed number of appends in flight, everything delivered at once, so that segments are recycled.
fn queue(scenario: &Scenario, dir: &Path) -> Measured {
    let handoff = Arc::new(Handoff::new(64 << 20));
    let config = Config {
        data_dir: dir.to_owned(),
        disk_bytes_max: 16 * SEGMENT_BYTES,
        segment_bytes: SEGMENT_BYTES,
        dead_letter_bytes_max: 8 << 20,
        min_free: pillion_gateway::queue::MinFree::Bytes(0),
        inbox_bytes_max: 64 << 20,
    };
    let (queue, _) = Queue::open(config, handoff.clone()).expect("it opens");
    let destination = DestinationName("backend".into());
    let tenants: Vec<TenantId> = (0..scenario.tenants)
        .map(|number| {
            let name = TenantName::parse(&format!("bench/t{number}")).expect("a valid name");
            let destinations = [vec![destination.clone()], Vec::new(), Vec::new()];
            let disk = pillion_gateway::base::ledger::MemoryLimit { guarantee: 32 << 20, ceiling: u64::MAX };
            let record = TenantRecord {
                name,
                pod_uid: None,
                destinations,
                max_age: Duration::from_secs(3600),
                disk,
                drops_oldest: false,
            };
            queue.register(&record).expect("there is room")
        })
        .collect();
    let payload = Bytes::from(vec![7; scenario.record_bytes]);
    let before = queue.snapshot();
    let measured = measure(|latencies| {
        let mut driver = Driver { queue: &queue, handoff, destination, last: vec![Sequence::ZERO; tenants.len() + 1] };
        driver.run(scenario, &tenants, &payload, latencies);
        let after = queue.snapshot();
        let commits = after.commits - before.commits;
        format!(
            "{:.1} records and {:.2} fdatasyncs a commit, {} segments left",
            (after.records - before.records) as f64 / commits as f64,
            (after.syncs - before.syncs) as f64 / commits as f64,
            after.segments
        )
    });
    queue.close().expect("it closes");
    measured
}

struct Driver<'a> {
    queue: &'a Queue,
    handoff: Arc<Handoff>,
    destination: DestinationName,
    last: Vec<Sequence>,
}

impl Driver<'_> {
    fn run(&mut self, scenario: &Scenario, tenants: &[TenantId], payload: &Bytes, latencies: &mut Vec<Duration>) {
        let mailbox = Arc::new(Mailbox::<Completion>::default());
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut started = vec![Instant::now(); scenario.in_flight];
        let (mut sent, mut done, mut since_checkpoint) = (0, 0, 0);
        let (mut out, mut arrivals) = (Vec::new(), VecDeque::new());
        // A ticket is a place in flight.
        let mut free: Vec<u64> = (0..scenario.in_flight as u64).collect();
        while done < scenario.records {
            // As a whole group, as workers do that were woken by one commit.
            for ticket in free.drain(..) {
                let batch = Batch {
                    tenant: tenants[usize::try_from(sent).expect("small") % tenants.len()],
                    signal: Signal::Traces,
                    items: 10,
                    received_unix_ms: 0,
                    payload: payload.clone(),
                    guard: None,
                };
                started[usize::try_from(ticket).expect("small")] = Instant::now();
                let reply = Some(Reply { mailbox: mailbox.clone(), ticket });
                self.queue.append(Append { parts: smallvec![batch], sync: true, reply }).expect("it fits");
                sent += 1;
            }
            while mailbox.poll_take(&mut Context::from_waker(&waker), &mut out).is_pending() {
                std::thread::park();
            }
            for completion in out.drain(..) {
                completion.result.expect("it commits");
                latencies.push(started[usize::try_from(completion.ticket).expect("small")].elapsed());
                done += 1;
                since_checkpoint += 1;
                free.push(completion.ticket);
            }
            self.deliver(&mut arrivals);
            if since_checkpoint >= 1000 {
                since_checkpoint = 0;
                self.checkpoint(tenants);
            }
        }
    }

    fn deliver(&mut self, arrivals: &mut VecDeque<Arrival>) {
        let _ = self.handoff.poll_take(&mut Context::from_waker(Waker::noop()), arrivals);
        for arrival in arrivals.drain(..) {
            if let Arrival::Committed(committed) = arrival {
                self.last[committed.tenant.0 as usize] = committed.sequence;
            }
        }
    }

    fn checkpoint(&self, tenants: &[TenantId]) {
        let cursor = |tenant: &TenantId| CursorState {
            tenant: *tenant,
            of: CursorOf::Delivery(self.destination.clone(), Signal::Traces),
            acknowledged: self.last[tenant.0 as usize],
            beyond: Vec::new(),
            delivered_items: 0,
        };
        self.queue.checkpoint(tenants.iter().map(cursor).collect()).expect("it fits");
    }
}
