//! Spans per CPU-second: one pod sends as fast as it is answered, in a closed loop, and the arm's CPU time is counted.
//!
//! ```text
//! 4 connections x 4 requests in flight, spans of one resource, ROUNDS x (arms x sizes) in shuffled order
//! CPU     of all threads of the arm, from the first request until nothing arrives any more
//! figure  acknowledged spans / CPU
//! ```
//!
//! It says nothing about latency in service: a closed loop waits for what it measures. Wall time is not reported, since generator
//! and sink share the machine.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::arm::{Arm, Site};
use crate::cell::Pinning;
use crate::client::{self, Outcome, Shape};
use crate::compare::{self, About, Missing};
use crate::generator::Target;
use crate::interrupt;
use crate::limits::Limits;
use crate::network::{Network, PodSockets};
use crate::payload;
use crate::roster::{self, Roster};
use crate::sink::{Keep, Sink};

/// The file in a result's directory.
pub const FILE: &str = "saturation.json";

const CONNECTIONS: usize = 4;
const IN_FLIGHT: usize = 4;
const SINK_PORT: u16 = 5317;

/// Before what is measured.
const WARM_UP: Duration = Duration::from_millis(500);

/// Nothing is on its way any more: longer than any of the arms holds a request back.
const QUIET: Duration = Duration::from_millis(800);

/// So often it is looked whether all is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Queues that are not empty by then are cut off, which the row tells.
const DRAIN_MAX: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Spans in a request; each a column.
    pub sizes: Vec<usize>,
    /// Of load, for each arm and size.
    pub seconds: f64,
    /// Runs of each.
    pub rounds: usize,
    /// Decides the order.
    pub seed: u64,
    /// The command that was given.
    pub command: String,
    /// Where data may lie meanwhile: on a disk, for what is durable.
    pub scratch: &'a Path,
}

/// All of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Saturation {
    /// Where.
    pub machine: String,
    /// What each agent may have.
    pub limits: String,
    /// The command that makes it again.
    pub command: String,
    /// What was compared.
    pub arms: Vec<About>,
    /// What is not there, with the reason.
    pub missing: Vec<Missing>,
    /// Spans in a request.
    pub sizes: Vec<usize>,
    /// Every run.
    pub runs: Vec<Run>,
}

/// One arm with one size, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The arm.
    pub arm: String,
    /// From 0.
    pub round: usize,
    /// Spans in a request.
    pub spans: usize,
    /// Requests acknowledged.
    pub accepted: u64,
    /// Requests answered with anything else.
    pub refused: u64,
    /// CPU seconds of the arm.
    pub cpu: f64,
    /// Latency in the closed loop, microseconds.
    pub p50_us: u32,
    /// One of a hundred was slower.
    pub p99_us: u32,
    /// Bytes that arrived for each byte that was acknowledged; attributes that are added make it more than 1.
    pub arrived: f64,
}

impl Run {
    /// Acknowledged spans for each CPU second of the arm.
    pub fn spans_per_cpu_second(&self) -> f64 {
        (self.accepted * self.spans as u64) as f64 / self.cpu.max(1e-9)
    }

    /// Less arrived than was acknowledged: a refusal of the backend, a loss, or a queue that was still full.
    pub fn is_short(&self) -> bool {
        self.arrived < 0.99
    }
}

/// Runs all of it. `watch` is told the arm and the size before each run.
pub fn run(
    request: Request<'_>,
    arms: &[Box<dyn Arm>],
    mut missing: Vec<Missing>,
    watch: &mut dyn FnMut(&str, usize, usize),
) -> Result<Saturation> {
    let (network, limits) = (Network::of_pods(1)?, Limits::find());
    let mut rng = Rng::with_seed(request.seed);
    let mut runs = Vec::new();
    for round in 0..request.rounds {
        let mut order: Vec<(&dyn Arm, usize)> =
            arms.iter().flat_map(|arm| request.sizes.iter().map(move |size| (arm.as_ref(), *size))).collect();
        rng.shuffle(&mut order);
        for (arm, spans) in order {
            watch(arm.name(), spans, round);
            let result = one(arm, spans, &request, &network, &limits);
            interrupt::check()?;
            match result {
                Ok(run) => runs.push(Run { round, ..run }),
                Err(error) => {
                    let why = format!("round {}, {spans} spans: {error:#}", round + 1);
                    missing.push(Missing { arm: arm.name().to_owned(), why });
                }
            }
        }
    }
    let arms = arms.iter().map(|arm| About::of(arm.as_ref())).collect();
    let (machine, limits) = (compare::machine(), limits.about());
    Ok(Saturation { machine, limits, command: request.command, arms, missing, sizes: request.sizes, runs })
}

fn one(arm: &dyn Arm, spans: usize, request: &Request<'_>, network: &Network, limits: &Limits) -> Result<Run> {
    let pinning = Pinning::new()?;
    let dir = tempfile::Builder::new().prefix("pl-").tempdir_in(request.scratch).context("a directory for the run")?;
    let sink = pinning.as_load(|| Sink::start((Ipv4Addr::UNSPECIFIED, SINK_PORT).into(), Keep::Nothing))??;
    let cage = limits.cage()?;
    let roster = Arc::new(Roster::default());
    let site = Site {
        network,
        pods: 1,
        sink_port: SINK_PORT,
        dir: dir.path(),
        is_disk_small: false,
        quota_kib_per_second: None,
        cage: &cage,
        roster: &roster,
    };
    let running = arm.start(&site).with_context(|| format!("starting {}", arm.name()))?;
    let message = payload::traces("cart", &(1..=spans as u64).collect::<Vec<_>>());
    let load = |duration| -> Result<Outcome> {
        let target = network.target(vec![running.grpc(0)])?;
        let shape = Shape { address: running.grpc(0), connections: CONNECTIONS, in_flight: IN_FLIGHT, duration };
        let framed = client::frame(&message);
        let thread = pinning.as_load(|| {
            std::thread::Builder::new().name("generator".into()).spawn(move || closed_loop(&target, shape, framed))
        })??;
        while !thread.is_finished() {
            // The process ends then, and what is sent with it.
            interrupt::check()?;
            std::thread::park_timeout(LOOK);
        }
        thread.join().expect("the closed loop does not panic")
    };
    load(WARM_UP).context("warming up")?;
    settle(&sink, 0)?;
    let bytes = sink.bytes();
    roster.look(true)?;
    let before = roster.spent();
    let outcome = load(Duration::from_secs_f64(request.seconds))?;
    let acknowledged = outcome.accepted * message.len() as u64;
    settle(&sink, bytes + acknowledged)?;
    roster.look(true)?;
    Ok(Run {
        arm: arm.name().to_owned(),
        round: 0,
        spans,
        accepted: outcome.accepted,
        refused: outcome.refused,
        cpu: roster::since(roster.spent(), &before).values().sum(),
        p50_us: outcome.percentile_us(0.5),
        p99_us: outcome.percentile_us(0.99),
        arrived: (sink.bytes() - bytes) as f64 / acknowledged.max(1) as f64,
    })
}

/// In the pod's network, on the thread that asks: making a socket moves it there.
fn closed_loop(target: &PodSockets, shape: Shape, framed: bytes::Bytes) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        drop(target.socket(0)?);
        client::closed_loop(shape, client::TRACES, framed).await
    })
}

/// Returns when as much has arrived as was acknowledged and nothing moves any more, or when patience ends.
fn settle(sink: &Sink, bytes: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        interrupt::check()?;
        let last = sink.bytes();
        let moves = sink.wait_until(QUIET, |_, _| sink.bytes() != last);
        if (!moves && last >= bytes) || started.elapsed() > DRAIN_MAX {
            return Ok(());
        }
    }
}

impl Saturation {
    /// Thousands of spans per CPU second: the median of the rounds of an arm and a size.
    pub fn median(&self, arm: &str, spans: usize) -> Option<f64> {
        let mut values: Vec<f64> = self.of(arm, spans).map(|run| run.spans_per_cpu_second() / 1e3).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len().checked_sub(1)? / 2).copied()
    }

    fn of<'a>(&'a self, arm: &'a str, spans: usize) -> impl Iterator<Item = &'a Run> {
        self.runs.iter().filter(move |run| run.arm == arm && run.spans == spans)
    }

    /// An arm a line, a size a column; beside each figure the CPU of a request, and what it is of the floor's.
    pub fn table(&self) -> String {
        let mut out = format!(
            "k spans per CPU-second of the arm (us of CPU a request; CPU against its floor)\n\
             OTLP/gRPC in and out, one pod, {CONNECTIONS} connections x {IN_FLIGHT} in flight, closed loop, no compression\n\
             {}\n{}\n\n{:26}",
            self.machine, self.limits, "spans a request"
        );
        for spans in &self.sizes {
            out.push_str(&format!("{spans:>26}"));
        }
        for arm in &self.arms {
            out.push_str(&format!("\n{:26}", arm.name));
            let floor = if arm.is_durable { "floor-durable" } else { "floor" };
            for spans in &self.sizes {
                let text = self.median(&arm.name, *spans).map_or_else(
                    || "-".to_owned(),
                    |k| {
                        let ratio = self.median(floor, *spans).filter(|_| arm.name != floor);
                        let ratio = ratio.map(|floor| format!("; {:.2}x", floor / k)).unwrap_or_default();
                        format!("{k:.1} ({:.1} us{ratio})", *spans as f64 * 1e3 / k)
                    },
                );
                out.push_str(&format!("{text:>26}"));
            }
        }
        out.push('\n');
        for run in self.runs.iter().filter(|run| run.refused > 0 || run.is_short()) {
            out.push_str(&format!(
                "DOUBT {} with {} spans, round {}: {} of {} requests refused, {:.0} % of the acknowledged bytes arrived\n",
                run.arm,
                run.spans,
                run.round + 1,
                run.refused,
                run.accepted + run.refused,
                run.arrived * 100.0
            ));
        }
        for missing in &self.missing {
            out.push_str(&format!("MISSING {}: {}\n", missing.arm, missing.why));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: an arm that takes twice the floor's CPU, one whose acknowledged data did not all arrive, and one that is missing.
    /// Guarantees: the table has the figure and its ratio to the floor of the same promise; shortfalls and gaps are told.
    #[test]
    fn the_table_tells_figures_ratios_and_doubts() {
        let about = |name: &str, is_durable| About { name: name.to_owned(), about: String::new(), is_durable };
        let run = |arm: &str, cpu, arrived| Run {
            arm: arm.to_owned(),
            round: 0,
            spans: 10,
            accepted: 1_000,
            refused: 0,
            cpu,
            p50_us: 1,
            p99_us: 2,
            arrived,
        };
        let saturation = Saturation {
            machine: "a machine".to_owned(),
            limits: String::new(),
            command: String::new(),
            arms: vec![about("floor", false), about("pillion", false), about("rotel", false)],
            missing: vec![Missing { arm: "otelcol".to_owned(), why: "no Go".to_owned() }],
            sizes: vec![10],
            runs: vec![run("floor", 0.01, 1.0), run("pillion", 0.02, 1.1), run("rotel", 0.1, 0.4)],
        };
        let table = saturation.table();
        for words in ["1000.0 (10.0 us)", "500.0 (20.0 us; 2.00x)", "DOUBT rotel", "40 %", "MISSING otelcol: no Go"] {
            assert!(table.contains(words), "{words}: {table}");
        }
        assert_eq!(table.matches("DOUBT").count(), 1, "{table}");
    }
}
