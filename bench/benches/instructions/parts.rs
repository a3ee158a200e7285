//! Single parts of the gateway, each in a process of its own that does one thing so many times.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use pillion_loadtest::budget::Counted;
use pillion_loadtest::sink::{Keep, Pace, Sink};

use super::{PARTS, callgrind, worker};

pub(crate) const PIPELINE_10: [&str; 1] = ["pipeline, 10 spans"];
pub(crate) const PIPELINE_512: [&str; 1] = ["pipeline, 512 spans"];
pub(crate) const EXPORT: [&str; 1] = ["export, 64 requests of 10 spans as one"];
pub(crate) const QUEUE: [&str; 2] = ["queue, append of 4 KiB", "queue, read of 4 KiB"];

/// Only within these functions is counted: start and end are not in it.
const PIPELINE: &str = "pillion_gateway::pipeline::Job::step";
const APPEND: &str = "pillion_gateway::queue::log::Log<D>::step";
const READ: &str = "pillion_gateway::queue::reader::read";
const RECORDS: u32 = 2_048;
const JOBS: u32 = 200;

pub(crate) fn pipeline(base: &Path, spans: u64, [name]: [&'static str; 1]) -> Result<Vec<Counted>> {
    let all = run(base, PIPELINE, ["pipeline", &spans.to_string(), &JOBS.to_string()])?;
    Ok(vec![Counted { name, instructions: all / f64::from(JOBS) }])
}

pub(crate) fn queue(base: &Path) -> Result<Vec<Counted>> {
    let run = |reads: &str, of| run(base, of, ["queue", &RECORDS.to_string(), reads]);
    let (append, read) = (run("0", APPEND)?, run("2", READ)?);
    let [append_name, read_name] = QUEUE;
    Ok(vec![
        Counted { name: append_name, instructions: append / f64::from(RECORDS) },
        Counted { name: read_name, instructions: read / f64::from(2 * RECORDS) },
    ])
}

/// One request of all batches at a time, as in the whole worker.
pub(crate) fn export(base: &Path) -> Result<Vec<Counted>> {
    let (dir, profiles) = (tempfile::tempdir_in(base)?, tempfile::tempdir_in(base)?);
    let sink = Sink::start(([127, 0, 0, 1], 0).into(), Keep::Nothing)?;
    sink.answer(Pace::After(worker::ANSWER_AFTER));
    let mut command = under_callgrind(profiles.path(), &worker::WITHIN);
    command.arg("export").arg(dir.path()).arg(sink.address().to_string());
    let mut child = command.stdin(Stdio::piped()).spawn()?;
    let mut orders = child.stdin.take().context("piped")?;
    for number in 1..=u64::from(worker::SECTIONS * worker::REQUESTS) {
        orders.write_all(b"\n")?;
        let has_arrived = sink.wait_until(worker::PATIENCE, |_, _| sink.requests() >= number);
        ensure!(has_arrived, "request {number} was not delivered");
        ensure!(sink.requests() == number, "the batches of a group left as more than one request");
        if number % u64::from(worker::REQUESTS) == 0 {
            callgrind::end_section(child.id())?;
        }
    }
    drop(orders);
    ensure!(child.wait()?.success(), "the exporter's process failed");
    let all = callgrind::lowest(worker::EXPORT, 2..=worker::SECTIONS, profiles.path())?;
    let [name] = EXPORT;
    Ok(vec![Counted { name, instructions: all / f64::from(worker::REQUESTS) }])
}

/// What is taken within `only` in a process that does this.
fn run(base: &Path, only: &str, [what, first, second]: [&str; 3]) -> Result<f64> {
    let (dir, profiles) = (tempfile::tempdir_in(base)?, tempfile::tempdir_in(base)?);
    let output = under_callgrind(profiles.path(), &[only]).arg(what).arg(dir.path()).args([first, second]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let all = callgrind::all(profiles.path())?;
    ensure!(all > 0.0, "{only} was not called: was it inlined?");
    Ok(all)
}

fn under_callgrind(profiles: &Path, within: &[&str]) -> Command {
    let words = callgrind::command(profiles, within);
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).args([PARTS, "part"]);
    command
}
