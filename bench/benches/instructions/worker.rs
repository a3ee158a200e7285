//! The whole worker, one request at a time.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pillion_loadtest::arm::Ack;
use pillion_loadtest::budget::Counted;
use pillion_loadtest::client::{self, Connection};
use pillion_loadtest::payload;
use pillion_loadtest::sink::{Keep, Pace, Sink};
use pillion_loadtest::subject::{Setup, Subject, Way};

use super::{PARTS, callgrind};

pub(crate) const MEMORY_1: [&str; 2] = ["intake, 1 span, ack memory", "export, 1 span alone, ack memory"];
pub(crate) const MEMORY_10: [&str; 2] = ["intake, 10 spans, ack memory", "export, 10 spans alone, ack memory"];
pub(crate) const DURABLE_1: [&str; 2] = ["intake and log, 1 span, ack durable", "export, 1 span alone, ack durable"];
pub(crate) const DURABLE_10: [&str; 2] =
    ["intake and log, 10 spans, ack durable", "export, 10 spans alone, ack durable"];

/// What only these threads call, each time that they do something.
const DATA: &str = "pillion_gateway::pipeline::";
const WRITER: &str = "pillion_gateway::queue::log::Log<D>::step";
pub(crate) const EXPORT: &str = "pillion_gateway::export::engine::Engine::turn";

/// Only within these is counted, none of which calls another one: tasks (tenants, and HTTP/2 connections of export), the exporter's own
/// steps, its requests, and the log. Not the runtime's: how often a thread goes to sleep between two steps, and finds a timer that has
/// rung, is the machine's speed.
pub(crate) const WITHIN: [&str; 5] = [
    "tokio::runtime::task::raw::poll",
    "pillion_gateway::export::engine::Engine::handle_inbox",
    EXPORT,
    "pillion_gateway::export::engine::Engine::launch::{{closure}}",
    WRITER,
];

/// Requests of a section. The first one is the warm-up; of the others the lowest counts: what a busy machine adds is a task that is polled
/// once more here and there, or a checkpoint, which comes once a second. So they are short.
pub(crate) const REQUESTS: u32 = 5;
pub(crate) const SECTIONS: u32 = 48;
/// The backend's time to answer: more than export gathers small batches for, or how fast the machine is would decide whether it does.
pub(crate) const ANSWER_AFTER: Duration = Duration::from_millis(10);
/// For one request to be delivered, on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn memory(base: &Path, spans: u64, [intake, export]: [&'static str; 2]) -> Result<Vec<Counted>> {
    let [data, sender] = run(base, Ack::Memory, spans, [DATA, EXPORT])?;
    Ok(vec![Counted { name: intake, instructions: data }, Counted { name: export, instructions: sender }])
}

pub(crate) fn durable(base: &Path, spans: u64, [intake, export]: [&'static str; 2]) -> Result<Vec<Counted>> {
    let [data, writer, sender] = run(base, Ack::Durable, spans, [DATA, WRITER, EXPORT])?;
    Ok(vec![Counted { name: intake, instructions: data + writer }, Counted { name: export, instructions: sender }])
}

/// What a request takes in each of the threads.
fn run<const N: usize>(base: &Path, ack: Ack, spans: u64, threads: [&str; N]) -> Result<[f64; N]> {
    let dir = tempfile::Builder::new().prefix("pillion-").tempdir_in(base)?;
    let profiles = tempfile::tempdir_in(base)?;
    let sink = Sink::start(([127, 0, 0, 1], 0).into(), Keep::Nothing)?;
    sink.answer(Pace::After(ANSWER_AFTER));
    let subject = Subject::start(&Setup {
        program: vec![PARTS.into(), "gateway".into()],
        ack,
        backend: sink.address(),
        dir: dir.path(),
        way: Way::Donated,
        other_pods: 0,
        under: callgrind::command(profiles.path(), &WITHIN),
    })?;
    one_by_one(&subject, &sink, spans)?;
    subject.stop()?;
    let mut counted = [0.0; N];
    for (thread, function) in counted.iter_mut().zip(threads) {
        *thread = callgrind::lowest(function, 2..=SECTIONS, profiles.path())? / f64::from(REQUESTS);
    }
    Ok(counted)
}

fn one_by_one(subject: &Subject, sink: &Sink, spans: u64) -> Result<()> {
    let framed = client::frame(&payload::traces("cart", &(1..=spans).collect::<Vec<_>>()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let connection = Connection::open(subject.intake()).await?;
        for number in 1..=u64::from(SECTIONS * REQUESTS) {
            let reply = connection.export(client::TRACES, framed.clone()).await?;
            ensure!(reply.status == 0, "request {number} was answered with {reply:?}: {}", subject.explain());
            // Blocks the connection's task, which has nothing to do.
            let has_arrived = sink.wait_until(PATIENCE, |_, _| sink.requests() >= number);
            ensure!(has_arrived, "request {number} was not delivered: {}", subject.explain());
            settle(subject)?;
            if number % u64::from(REQUESTS) == 0 {
                callgrind::end_section(subject.pid())?;
            }
        }
        Ok(())
    })
}

/// Returns when the answer of the backend has been worked through as well: nothing of a request runs beside the next one.
fn settle(subject: &Subject) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    // Each question costs the gateway an answer, on a thread that is not counted: that is what paces them.
    while !subject.explain().contains("\"in_flight\":0") {
        ensure!(Instant::now() < deadline, "a request is still in flight: {}", subject.explain());
    }
    Ok(())
}
