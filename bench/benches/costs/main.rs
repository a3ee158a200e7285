//! What a request costs that can be counted: system calls, context switches, allocations, bytes copied.
//!
//! `cargo bench -p pillion-bench --bench costs [-- --seconds N] [--only memory|durable] [--spans N] [--places] [--pods N]`
//!
//! ```text
//! calls, switches   of all threads of a gateway under an open loop: 1,000 requests a second, of ten pods, 10 connections, Poisson; 200 a
//!                   second of 512 spans. From the first request until the last span has been delivered. By perf stat and by /proc
//! allocations       of the same run, by an allocator that counts and asks jemalloc
//! copied            in the gateway's memory, by dhat, 4 connections x 4 in flight, less what a gateway copies that is sent nothing. Copies
//!                   of a few words are instructions and no calls: they are not in it. `--places` says where. The kernel's are on top: each
//!                   byte once in and once out, and once more for what is logged
//! ```
//!
//! With `--pods` so many idle pods more are attached to the gateway under the open loop: for a profile of its memory. Counts hardly depend on
//! how fast the machine is; how many batches leave as one does, and on a busy machine more do.
//! Where perf or valgrind is missing, or may not count, it says so and counts the rest.

mod copies;
mod perf;

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pillion_loadtest::arm::Ack;
use pillion_loadtest::client::{self, Shape};
use pillion_loadtest::generator::{self, Bounds, Here, Load, Transport};
use pillion_loadtest::ledger::Ledger;
use pillion_loadtest::profile::{Profile, SHOP};
use pillion_loadtest::schedule::{Arrivals, Rates, Schedule};
use pillion_loadtest::sink::{Keep, Sink};
use pillion_loadtest::subject::{Setup, Subject, Way};
use pillion_loadtest::template::Plan;
use pillion_loadtest::{measure, payload};

use self::copies::Places;
use self::perf::{Counter, NAMED};

const COUNTED: &str = env!("CARGO_BIN_EXE_pillion-counted");
const SPANS: [u64; 4] = [512, 100, 10, 1];
const PODS: usize = 10;
const SEED: u64 = 7;
/// Nothing is on its way any more.
const QUIET: Duration = Duration::from_millis(400);
/// The same under valgrind.
const QUIET_SLOW: Duration = Duration::from_secs(3);
const PATIENCE: Duration = Duration::from_secs(120);
/// Of the load under valgrind.
const COPYING: Duration = Duration::from_secs(5);

/// One gateway and its backend.
struct Node {
    subject: Subject,
    sink: Sink,
    dir: tempfile::TempDir,
}

/// Per request.
struct Row {
    calls: Result<[f64; 1 + NAMED.len()]>,
    switches: f64,
    allocations: f64,
    allocated: f64,
    sent_on: f64,
    message: usize,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let seconds: f64 = value("--seconds").map_or(Ok(5.0), |text| text.parse()).context("--seconds takes a number")?;
    let only = value("--only").map_or("", String::as_str);
    let spans: Option<u64> = value("--spans").map(|text| text.parse()).transpose().context("--spans takes a number")?;
    let pods: usize = value("--pods").map_or(Ok(0), |text| text.parse()).context("--pods takes a number")?;
    let places = arguments.iter().any(|argument| argument == "--places");
    println!("a request of each size, {seconds} s, per request:\n");
    println!(
        "| ack, spans, bytes | system calls ({}) | context switches | allocations, bytes | requests sent on | bytes copied |",
        NAMED.join(", ")
    );
    println!("|---|---|---|---|---|---|");
    for (name, ack) in
        [("memory", Ack::Memory), ("durable", Ack::Durable)].into_iter().filter(|(name, _)| name.contains(only))
    {
        let idle = Node::copying(ack, None);
        for spans in SPANS.into_iter().filter(|of| spans.is_none_or(|spans| spans == *of)) {
            let row =
                Node::open_loop(ack, spans, seconds, pods).with_context(|| format!("ack {name}, {spans} spans"))?;
            let copied = idle.as_ref().map_err(|error| anyhow::anyhow!("{error:#}")).and_then(|(idle, _)| {
                let (places, requests) = Node::copying(ack, Some(spans))?;
                Ok(per_request(&places, idle, requests))
            });
            print(name, spans, &row, &copied);
            if places && let Ok(copied) = &copied {
                tell_places(copied);
            }
        }
    }
    Ok(())
}

impl Node {
    fn start(ack: Ack, other_pods: usize, under: impl FnOnce(&Path) -> Vec<std::ffi::OsString>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pillion-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let sink = Sink::start((Ipv4Addr::LOCALHOST, 0).into(), Keep::Nothing)?;
        let subject = Subject::start(&Setup {
            program: vec![COUNTED.into(), dir.path().join("counts").into()],
            ack,
            backend: sink.address(),
            dir: dir.path(),
            way: Way::Direct,
            other_pods,
            under: under(dir.path()),
        })?;
        Ok(Self { subject, sink, dir })
    }

    fn open_loop(ack: Ack, spans: u64, seconds: f64, pods: usize) -> Result<Row> {
        let node = Self::start(ack, pods, |_| Vec::new())?;
        node.send(spans, 0.5)?;
        let mut calls = Counter::attach(node.subject.pid(), node.dir.path());
        if let Ok(counter) = &mut calls
            && let Err(error) = counter.begin()
        {
            calls = Err(error);
        }
        let (sent_on, switches) = (node.sink.requests(), measure::usage(node.subject.pid())?.switches);
        let (allocations, allocated) = node.allocations()?;
        let requests = node.send(spans, seconds)?;
        let calls = calls.and_then(Counter::end);
        let (allocations_after, allocated_after) = node.allocations()?;
        let per = |after: u64, before: u64| (after - before) as f64 / requests;
        Ok(Row {
            calls: calls.map(|calls| {
                let mut all = [calls.all as f64 / requests; 1 + NAMED.len()];
                all[1..].iter_mut().zip(calls.named).for_each(|(to, from)| *to = from as f64 / requests);
                all
            }),
            switches: per(measure::usage(node.subject.pid())?.switches, switches),
            allocations: per(allocations_after, allocations),
            allocated: per(allocated_after, allocated),
            sent_on: per(node.sink.requests(), sent_on),
            message: request(spans).len(),
        })
    }

    /// Sends in an open loop; returns the number of requests when all of them have been delivered.
    fn send(&self, spans: u64, seconds: f64) -> Result<f64> {
        let rate = if spans > 100 { 200.0 } else { 1_000.0 };
        let plan = Plan::new(&Profile::parse(SHOP)?, SEED, PODS, [usize::try_from(spans)?, 0, 0])?;
        let rates = Rates {
            pods: vec![rate / PODS as f64; PODS],
            shares: [1.0, 0.0, 0.0],
            phases: Vec::new(),
            duration: seconds,
            arrivals: Arrivals::Poisson,
        };
        let load = Load {
            plan: Arc::new(plan),
            schedule: Schedule::new(rates, SEED),
            transport: Transport::default(),
            bounds: Bounds::default(),
            first_group: PODS,
        };
        let before = self.sink.bytes();
        let target = Rc::new(Here(self.subject.intake()));
        let outcome = generator::run(load, target, Arc::new(Ledger::new(PODS)), Arc::default())?;
        let all = outcome.acknowledged == outcome.due;
        ensure!(all, "not all was acknowledged: {outcome:?}; {}", self.subject.explain());
        self.settle(before + outcome.bytes, QUIET)?;
        Ok(outcome.acknowledged as f64)
    }

    /// What is copied for requests of that many spans, and how many there were; without a size for none.
    fn copying(ack: Ack, spans: Option<u64>) -> Result<(Places, u64)> {
        let mut file = std::path::PathBuf::new();
        let node = Self::start(ack, 0, |dir| {
            file = dir.join("copies");
            copies::command(&file)
        })?;
        let mut requests = 0;
        if let Some(spans) = spans {
            let message = request(spans);
            let shape = Shape { address: node.subject.intake(), connections: 4, in_flight: 4, duration: COPYING };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let framed = client::frame(&message);
            let outcome = runtime.block_on(async { client::closed_loop(shape, client::TRACES, framed).await })?;
            ensure!(outcome.refused == 0, "{} requests were refused: {}", outcome.refused, node.subject.explain());
            requests = outcome.accepted;
            node.settle(requests * message.len() as u64, QUIET_SLOW)?;
        }
        node.subject.stop()?;
        Ok((copies::read(&file)?, requests))
    }

    /// Allocations since the start, and their bytes.
    fn allocations(&self) -> Result<(u64, u64)> {
        let mut text = String::new();
        UnixStream::connect(self.dir.path().join("counts"))?.read_to_string(&mut text)?;
        let (allocations, bytes) = text.trim().split_once(' ').context("two numbers")?;
        Ok((allocations.parse()?, bytes.parse()?))
    }

    /// Returns when so many bytes have arrived (attributes that were added make it a little more) and nothing moves any more.
    fn settle(&self, bytes: u64, quiet: Duration) -> Result<()> {
        let arrived = self.sink.wait_until(PATIENCE, |_, _| self.sink.bytes() >= bytes);
        ensure!(arrived, "not all of it arrived: {}", self.subject.explain());
        let mut last = self.sink.bytes();
        while self.sink.wait_until(quiet, |_, _| self.sink.bytes() != last) {
            last = self.sink.bytes();
        }
        Ok(())
    }
}

fn request(spans: u64) -> Vec<u8> {
    payload::traces("cart", &(1..=spans).collect::<Vec<_>>())
}

fn per_request(places: &Places, idle: &Places, requests: u64) -> Vec<(String, f64)> {
    let less = |(name, bytes): (&String, &u64)| {
        let bytes = *bytes as f64 - idle.get(name).copied().unwrap_or(0) as f64;
        (name.clone(), bytes / requests.max(1) as f64)
    };
    let mut places: Vec<_> = places.iter().map(less).collect();
    places.sort_by(|one, other| other.1.total_cmp(&one.1));
    places
}

fn print(name: &str, spans: u64, row: &Row, copied: &Result<Vec<(String, f64)>>) {
    let calls = match &row.calls {
        Ok([all, named @ ..]) => {
            let named: Vec<String> = named.iter().map(|calls| format!("{calls:.1}")).collect();
            format!("{all:.1} ({})", named.join(", "))
        }
        Err(error) => format!("not counted: {error:#}"),
    };
    let copied = match copied {
        Ok(places) => format!("{:.0}", places.iter().map(|(_, bytes)| bytes).sum::<f64>()),
        Err(error) => format!("not counted: {error:#}"),
    };
    println!(
        "| {name}, {spans}, {} | {calls} | {:.1} | {:.1}, {:.0} | {:.2} | {copied} |",
        row.message, row.switches, row.allocations, row.allocated, row.sent_on
    );
}

fn tell_places(copied: &[(String, f64)]) {
    for (place, bytes) in copied.iter().take(12) {
        println!("    {bytes:>10.0}  {place}");
    }
}
