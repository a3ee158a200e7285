//! The backend is down while a pod sends 5,000 spans a second; then it refuses with UNAUTHENTICATED for as long.
//!
//! Checks that the gateway's memory stays flat (its peak within 10 % of the peak of the first fifth of the time) and that
//! everything acknowledged arrives afterwards.
//!
//! usage: pillion-endurance [--seconds N]    (120 by default, for each of the two)

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pillion_loadtest::client::{self, Connection};
use pillion_loadtest::sink::{Fault, Keep, Sink};
use pillion_loadtest::{measure, payload};
use pillion_tests::gateway::{Gateway, below, directory};
use pillion_tests::shim::{Ports, Shim};
use pillion_tests::station;

const REQUESTS_PER_SECOND: u64 = 50;
const SPANS: u64 = 100;
const BACKEND: &str = "{allow: [\"*\"], protocol: grpc, endpoint: \"http://SINK\", \
                       retry_on_failure: {initial_interval: 1s, max_interval: 5s}}";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = match &arguments[..] {
        [] => Ok(120),
        [name, seconds] if name == "--seconds" => seconds.parse(),
        _ => {
            eprintln!("usage: pillion-endurance [--seconds N]");
            return ExitCode::from(2);
        }
    };
    match seconds.context("--seconds takes a number").and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Node {
    gateway: Gateway,
    sink: Sink,
    ports: Ports,
    _shim: Shim,
    _dir: tempfile::TempDir,
}

fn run(seconds: u64) -> Result<()> {
    ensure!(seconds >= 20, "memory needs some seconds to settle");
    let node = Node::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut acked = HashSet::new();
    // Warm: the allocator and every way through the code, an outage and its end included, have been used before anything is
    // compared. What is looked for is growth with the length of an outage.
    for (round, fault) in [Fault::None, Fault::Unavailable].into_iter().enumerate() {
        node.sink.fail_with(fault);
        runtime.block_on(send(&node, (round as u64 + 1) << 32, 5, &mut acked))?;
        node.sink.fail_with(Fault::None);
        node.wait_for(&acked)?;
    }
    for (round, fault) in [Fault::Unavailable, Fault::Unauthenticated].into_iter().enumerate() {
        node.sink.fail_with(fault);
        let first_id = (round as u64 + 1) << 40;
        let memory = runtime.block_on(send(&node, first_id, seconds, &mut acked))?;
        let (first, rest) = memory.split_at(memory.len() / 5);
        let base = first.iter().copied().max().unwrap_or_default();
        let peak = rest.iter().copied().max().unwrap_or_default();
        let tenths: Vec<u64> = memory.iter().copied().step_by(memory.len() / 10).collect();
        node.sink.fail_with(Fault::None);
        node.wait_for(&acked)?;
        println!(
            "{fault:?} for {seconds} s at {} spans/s: RSS at most {base} KiB in the first fifth, {peak} KiB afterwards ({:+.1} %; \
             each tenth: {tenths:?}); {} spans acknowledged so far, all arrived, {} requests refused by the backend",
            REQUESTS_PER_SECOND * SPANS,
            (peak as f64 / base as f64 - 1.0) * 100.0,
            acked.len(),
            node.sink.refused(),
        );
        ensure!(peak * 10 <= base * 11, "RSS grew by more than 10 %: {memory:?}");
    }
    Ok(())
}

/// Paced requests for so many seconds; the worker's RSS in KiB after each second.
async fn send(node: &Node, first: u64, seconds: u64, acked: &mut HashSet<u64>) -> Result<Vec<u64>> {
    let connection = Connection::open(node.ports.grpc).await?;
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / REQUESTS_PER_SECOND));
    let mut memory = Vec::new();
    for request in 0..seconds * REQUESTS_PER_SECOND {
        ticks.tick().await;
        let ids: Vec<u64> = (0..SPANS).map(|span| (first | (request * SPANS + span)) + 1).collect();
        let reply = connection.export(client::TRACES, client::frame(&payload::traces("cart", &ids))).await?;
        if reply.status != 0 {
            bail!(
                "refused with {} {}: the disk has room for this\n{}",
                reply.status,
                reply.message,
                node.gateway.explain()
            );
        }
        acked.extend(ids);
        if (request + 1).is_multiple_of(REQUESTS_PER_SECOND) {
            memory.push(measure::memory(node.gateway.worker())?.rss);
        }
    }
    Ok(memory)
}

impl Node {
    fn start() -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("pillion-node");
        let program = program.display().to_string();
        let dir = directory();
        let sink = Sink::start((Ipv4Addr::LOCALHOST, 0).into(), Keep::TraceIds("service.name".into()))?;
        let ports = Ports::free();
        let gateway = Gateway::start(&program, dir.path(), &station::config(BACKEND, sink.address(), ports));
        let shim = Shim::start(&program, &below(&dir, "cart"), ports);
        Ok(Self { gateway, sink, ports, _shim: shim, _dir: dir })
    }

    fn wait_for(&self, acked: &HashSet<u64>) -> Result<()> {
        let all = self.sink.wait_until(Duration::from_secs(300), |ids, _| ids.len() >= acked.len());
        ensure!(all, "{} of {} spans arrived\n{}", self.sink.distinct(), acked.len(), self.gateway.explain());
        let ids = self.sink.ids();
        let missing = acked.iter().filter(|id| !ids.contains_key(id)).count();
        ensure!(missing == 0, "{missing} acknowledged spans are missing");
        Ok(())
    }
}
