//! What the benches of this package measure, in one program: the gateway, and single parts of it.
//!
//! ```text
//! pillion-parts gateway ARGUMENT...            the same entry as the released `pillion`
//! pillion-parts part WHAT DIRECTORY NUMBER...  one thing, so many times
//!   pipeline DIRECTORY SPANS TIMES             validates and enriches a request
//!   queue DIRECTORY APPENDS READS              appends one record after the other, then reads all of them so many times
//!   export DIRECTORY BACKEND                   for each line of stdin, delivers batches of ack memory that make one request
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::io::BufRead;
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use pillion_gateway::base::handoff::{Arrival, Handoff};
use pillion_gateway::base::ledger::MemoryLimit;
use pillion_gateway::base::mailbox::Mailbox;
use pillion_gateway::base::{Attribute, Batch, DestinationName, Sequence, Signal, TenantId, TenantName};
use pillion_gateway::config::Config;
use pillion_gateway::export::{self, Exporter, Route, Spill};
use pillion_gateway::pipeline::{Job, Plan, Step};
use pillion_gateway::queue::{self, Append, Completion, MinFree, Queue, Reply, TenantRecord};
use pillion_loadtest::payload;
use smallvec::smallvec;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Batches that one request of the exporter is made of, and spans of each.
const MERGED: usize = 64;
const SPANS: u32 = 10;
const RECORD_BYTES: usize = 4 << 10;
/// Bytes of one read of the log, as export asks for them.
const READ_BYTES: usize = 1 << 20;
/// For what is left when it ends.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(word) if word == "gateway" => {
            Ok(pillion_gateway::app::main([OsString::from("pillion")].into_iter().chain(arguments)))
        }
        Some(word) if word == "part" => part(&std::env::args().skip(2).collect::<Vec<_>>()).map(|()| ExitCode::SUCCESS),
        _ => bail!("usage: pillion-parts gateway|part ..."),
    }
}

fn part(arguments: &[String]) -> Result<()> {
    let [what, dir, rest @ ..] = arguments else { bail!("usage: part WHAT DIRECTORY NUMBER...") };
    let dir = Path::new(dir);
    match (what.as_str(), rest) {
        ("pipeline", [spans, times]) => be_the_pipeline(spans.parse()?, times.parse()?),
        ("queue", [appends, reads]) => be_the_queue(dir, appends.parse()?, reads.parse()?),
        ("export", [backend]) => be_the_exporter(dir, backend.parse()?),
        _ => bail!("unknown part {what}"),
    }
}

fn request(spans: u64) -> Bytes {
    payload::traces("cart", &(1..=spans).collect::<Vec<_>>()).into()
}

fn be_the_pipeline(spans: u64, times: u32) -> Result<()> {
    let attested = ["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name"]
        .map(|key| Attribute::new(key, "0b7e1f2c-9d55-4a38-8a43-cafe00d15ea5"));
    let plan = Plan::new(&attested, &[Attribute::new("deployment.environment.name", "prod")]);
    let payload = request(spans);
    for _ in 0..times {
        let step = Job::new(Signal::Traces, payload.clone()).step(&plan, usize::MAX);
        ensure!(matches!(std::hint::black_box(step), Ok(Step::Done(_))), "the payload is valid");
    }
    Ok(())
}

fn open(dir: &Path) -> Result<(Queue, Arc<Handoff>, TenantRecord, TenantId)> {
    let handoff = Arc::new(Handoff::new(16 << 20));
    let config = queue::Config {
        data_dir: dir.join("data"),
        disk_bytes_max: 4 << 30,
        segment_bytes: 64 << 20,
        dead_letter_bytes_max: 8 << 20,
        min_free: MinFree::Bytes(0),
        inbox_bytes_max: 64 << 20,
        begin_at_tail: BTreeSet::new(),
    };
    let (queue, _) = Queue::open(config, handoff.clone())?;
    let record = TenantRecord {
        name: TenantName::parse("shop/cart")?,
        pod_uid: None,
        destinations: [vec![DestinationName("backend".into())], Vec::new(), Vec::new()],
        max_age: Duration::from_secs(3_600),
        disk: MemoryLimit { guarantee: 1 << 30, ceiling: u64::MAX },
        drops_oldest: false,
    };
    let tenant = queue.register(&record)?.id;
    Ok((queue, handoff, record, tenant))
}

/// As intake hands it on, but that nothing is reserved for it.
fn batch(tenant: TenantId, payload: &Bytes) -> Batch {
    let (signal, payload) = (Signal::Traces, payload.clone());
    Batch { tenant, signal, items: SPANS, received_unix_ms: 0, payload, guard: None }
}

/// Appends one record after the other, then reads all of them so many times.
fn be_the_queue(dir: &Path, appends: u32, reads: u32) -> Result<()> {
    let (queue, handoff, _, tenant) = open(dir)?;
    let mailbox = Arc::new(Mailbox::<Completion>::default());
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let payload = Bytes::from(vec![7; RECORD_BYTES]);
    let (mut done, mut arrivals) = (Vec::new(), VecDeque::new());
    for _ in 0..appends {
        let reply = Some(Reply { mailbox: mailbox.clone(), ticket: 0 });
        let parts = smallvec![batch(tenant, &payload)];
        let refused = queue.append(Append { parts, sync: true, reply }).is_err();
        ensure!(!refused, "there is room for it");
        while mailbox.poll_take(&mut Context::from_waker(&waker), &mut done).is_pending() {
            std::thread::park();
        }
        done.drain(..).try_for_each(|completion| completion.result.map(drop))?;
        // Nobody delivers: the hand-over is emptied, the log keeps all of it.
        let _ = handoff.poll_take(&mut Context::from_waker(Waker::noop()), &mut arrivals);
        arrivals.clear();
    }
    for _ in 0..reads {
        let (mut after, mut found) = (Sequence::ZERO, 0);
        loop {
            let read = queue.read(tenant, after, READ_BYTES)?;
            if read.records.is_empty() {
                break;
            }
            (after, found) = (read.through, found + read.records.len());
        }
        ensure!(found == usize::try_from(appends)?, "{found} records were read of {appends}");
    }
    Ok(queue.close()?)
}

/// For each line that it is sent, delivers as many batches of ack memory as make one request.
fn be_the_exporter(dir: &Path, backend: SocketAddr) -> Result<()> {
    let (queue, handoff, record, tenant) = open(dir)?;
    let text = format!("destinations: {{backend: {{protocol: grpc, endpoint: \"http://{backend}\", allow: [\"*\"]}}}}");
    let config = Config::parse(&text, "the bench", &|_| None).map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let exporter = Exporter::start(export::Deps {
        queue: queue.clone(),
        handoff: handoff.clone(),
        destinations: config.destinations,
        sink: None,
        buffer_bytes_max: 32 << 20,
        // Never: a slow machine would write to the log what is on its way.
        spill: Spill { patience: Duration::from_secs(3_600), reserve: Duration::from_millis(500) },
    })?;
    exporter.attach(Route {
        tenant,
        name: record.name,
        destinations: record.destinations,
        max_age: record.max_age,
        cursors: Vec::new(),
        last: Sequence::ZERO,
        pending_items: [0; 3],
    });
    let payload = request(SPANS.into());
    for line in std::io::stdin().lock().lines() {
        line?;
        handoff.push((0..MERGED).map(|_| Arrival::Volatile(batch(tenant, &payload))));
    }
    exporter.drain(true, Instant::now() + PATIENCE);
    Ok(queue.close()?)
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
