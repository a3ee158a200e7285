//! The queue under load: a fixed number of appends on their way, everything delivered at once, so that segments are recycled.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use pillion_gateway::base::handoff::{Arrival, Handoff};
use pillion_gateway::base::ledger::MemoryLimit;
use pillion_gateway::base::mailbox::Mailbox;
use pillion_gateway::base::{Batch, DestinationName, Sequence, Signal, TenantId, TenantName};
use pillion_gateway::queue::{
    Append, Completion, Config, CursorOf, CursorState, MinFree, Queue, Recovery, Reply, Snapshot, TenantRecord,
};
use smallvec::smallvec;

use super::arm::{Engine, Latencies, Load};

/// As in the gateway.
pub(crate) const SEGMENT_BYTES: u64 = 64 << 20;
/// As in export.
const CHECKPOINT_RECORDS: u64 = 1_000;

/// Opens a queue that may hold so many bytes, as the gateway does.
pub(crate) fn open(dir: &Path, disk_bytes_max: u64, handoff: Arc<Handoff>) -> Result<(Queue, Recovery)> {
    let config = Config {
        data_dir: dir.to_owned(),
        disk_bytes_max,
        segment_bytes: SEGMENT_BYTES,
        dead_letter_bytes_max: 8 << 20,
        min_free: MinFree::Bytes(0),
        inbox_bytes_max: 64 << 20,
        begin_at_tail: BTreeSet::new(),
    };
    Ok(Queue::open(config, handoff)?)
}

/// Registers `bench/t0` and so on.
pub(crate) fn register(queue: &Queue, tenants: u32) -> Result<Vec<TenantId>> {
    let register = |number| {
        let name = TenantName::parse(&format!("bench/t{number}"))?;
        let destinations = [vec![destination()], Vec::new(), Vec::new()];
        let disk = MemoryLimit { guarantee: 32 << 20, ceiling: u64::MAX };
        let record = TenantRecord {
            name,
            pod_uid: None,
            destinations,
            max_age: Duration::from_secs(3600),
            disk,
            drops_oldest: false,
        };
        Ok(queue.register(&record)?.id)
    };
    (0..tenants).map(register).collect()
}

fn destination() -> DestinationName {
    DestinationName("backend".into())
}

/// See the module.
pub(crate) struct Pillion {
    queue: Queue,
    handoff: Arc<Handoff>,
    tenants: Vec<TenantId>,
    group: usize,
    in_flight: usize,
    payload: Bytes,
    destination: DestinationName,
    /// Whose records stay, counted from the first tenant.
    stuck: usize,
    sync: bool,
    /// By tenant.
    last: Vec<Sequence>,
    sent: u64,
    /// Records of the last run, and what was there before it.
    ran: u64,
    before: Snapshot,
}

impl Pillion {
    /// An empty queue in `dir`.
    pub(crate) fn open(dir: &Path, load: &Load) -> Result<Self> {
        Self::with_backlog(dir, load, 16 * SEGMENT_BYTES, 0)
    }

    /// The same, with tenants to whom nothing is delivered, and appends that do not wait for the disk if there are any.
    pub(crate) fn with_backlog(dir: &Path, load: &Load, disk_bytes_max: u64, stuck: usize) -> Result<Self> {
        let handoff = Arc::new(Handoff::new(16 << 20));
        let (queue, _) = open(dir, disk_bytes_max, handoff.clone())?;
        let tenants = register(&queue, load.tenants)?;
        let highest = tenants.iter().map(|tenant| tenant.0 as usize).max().unwrap_or(0);
        Ok(Self {
            before: queue.snapshot(),
            queue,
            handoff,
            tenants,
            group: load.group,
            in_flight: load.in_flight,
            payload: Bytes::from(vec![7; load.record_bytes]),
            destination: destination(),
            stuck,
            sync: stuck == 0,
            last: vec![Sequence::ZERO; highest + 1],
            sent: 0,
            ran: 0,
        })
    }

    fn send(&mut self, mailbox: &Arc<Mailbox<Completion>>, ticket: u64) {
        let batch = Batch {
            tenant: self.tenants[usize::try_from(self.sent).expect("small") % self.tenants.len()],
            signal: Signal::Traces,
            items: 10,
            received_unix_ms: 0,
            payload: self.payload.clone(),
            guard: None,
        };
        let reply = Some(Reply { mailbox: mailbox.clone(), ticket });
        self.queue.append(Append { parts: smallvec![batch], sync: self.sync, reply }).expect("it fits");
        self.sent += 1;
    }

    /// Waits until the writer has planned the first group. Sent at once, all that are on their way would be one group for good, and
    /// the writer would wait for the sender each time.
    fn let_the_writer_begin(&self) {
        let is_planned = |now: Snapshot| now.records - self.before.records >= self.group as u64 || now.poisoned;
        while !is_planned(self.queue.snapshot()) {
            std::thread::yield_now();
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

    fn checkpoint(&self) -> Result<()> {
        let cursor = |tenant: &TenantId| CursorState {
            tenant: *tenant,
            of: CursorOf::Delivery(self.destination.clone(), Signal::Traces),
            acknowledged: self.last[tenant.0 as usize],
            beyond: Vec::new(),
            delivered_items: 0,
        };
        Ok(self.queue.checkpoint(self.tenants[self.stuck..].iter().map(cursor).collect())?)
    }
}

impl Engine for Pillion {
    fn run(&mut self, records: u64, latencies: &mut Latencies) -> Result<()> {
        (self.ran, self.before) = (records, self.queue.snapshot());
        let mailbox = Arc::new(Mailbox::<Completion>::default());
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut started = vec![Instant::now(); self.in_flight];
        let (mut to_send, mut done, mut since_checkpoint) = (records, 0, 0);
        let (mut out, mut arrivals) = (Vec::new(), VecDeque::new());
        // A ticket is a place in flight.
        let mut free: Vec<u64> = (0..self.in_flight as u64).collect();
        while done < records {
            while to_send > 0
                && let Some(ticket) = free.pop()
            {
                started[usize::try_from(ticket)?] = Instant::now();
                self.send(&mailbox, ticket);
                to_send -= 1;
                if records - to_send == self.group as u64 {
                    self.let_the_writer_begin();
                }
            }
            while mailbox.poll_take(&mut Context::from_waker(&waker), &mut out).is_pending() {
                std::thread::park();
            }
            for completion in out.drain(..) {
                completion.result?;
                latencies.push(started[usize::try_from(completion.ticket)?].elapsed());
                done += 1;
                since_checkpoint += 1;
                free.push(completion.ticket);
            }
            self.deliver(&mut arrivals);
            if since_checkpoint >= CHECKPOINT_RECORDS {
                since_checkpoint = 0;
                self.checkpoint()?;
            }
        }
        Ok(())
    }

    fn group(&self) -> Option<f64> {
        // Copies of tenants and cursors at the head of a segment are records too, and not counted.
        Some(self.ran as f64 / (self.queue.snapshot().commits - self.before.commits) as f64)
    }

    fn note(&self) -> String {
        let (before, after) = (&self.before, self.queue.snapshot());
        let commits = (after.commits - before.commits) as f64;
        format!(
            "{:.1} records and {:.2} fdatasyncs a commit, {} segments",
            self.ran as f64 / commits,
            (after.syncs - before.syncs) as f64 / commits,
            after.segments
        )
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
