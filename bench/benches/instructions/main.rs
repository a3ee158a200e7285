//! Instructions on the way of a request, counted by callgrind, held against `bench/instructions.toml`.
//!
//! `cargo bench -p pillion-bench --bench instructions [-- WORD...]` counts every path, or those with one of the words in their
//! name, prints a table, and fails when one of them has left its budget, up or down. It needs valgrind.
//!
//! ```text
//! intake    the whole worker, one request at a time over a real socket, each delivered and settled before the next one is sent: the
//!           tenant's task, and for ack durable the log's writer too
//! export    of the same run: the exporter, a request of its own for each; and 64 small batches that leave as one
//! pipeline  Job::step alone: validate and enrich
//! queue     records of 4 KiB, one at a time: the log's writer for an append, the caller for a read
//! ```
//!
//! Everything is counted only while certain functions run, and the worker and the exporter are asked for their counts after a warm-up and
//! then every few requests, so neither start nor end is in a figure. The kernel's instructions are not counted, nor are other threads', nor
//! those of the runtime between two tasks. With one request at a time the same things happen in the same order on any machine.

mod callgrind;
mod parts;
mod worker;

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use pillion_loadtest::budget::{self, Budgets, Build, Counted};

/// What is counted.
const PARTS: &str = env!("CARGO_BIN_EXE_pillion-parts");

const FILE: &str = "bench/instructions.toml";
/// Read when it runs: a new figure is no reason to build anew.
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.toml");

/// Paths that come from one pair of runs.
type Measure = fn(&Path) -> Result<Vec<Counted>>;

const MEASURES: [(&[&str], Measure); 8] = [
    (&worker::MEMORY_1, |base| worker::memory(base, 1, worker::MEMORY_1)),
    (&worker::MEMORY_10, |base| worker::memory(base, 10, worker::MEMORY_10)),
    (&worker::DURABLE_1, |base| worker::durable(base, 1, worker::DURABLE_1)),
    (&worker::DURABLE_10, |base| worker::durable(base, 10, worker::DURABLE_10)),
    (&parts::EXPORT, parts::export),
    (&parts::PIPELINE_10, |base| parts::pipeline(base, 10, parts::PIPELINE_10)),
    (&parts::PIPELINE_512, |base| parts::pipeline(base, 512, parts::PIPELINE_512)),
    (&parts::QUEUE, parts::queue),
];

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let budgets = fs::read_to_string(PATH).map_err(Into::into).and_then(|text| Budgets::parse(&text)).context(FILE)?;
    let is_wanted = |name: &str| arguments.is_empty() || arguments.iter().any(|word| name.contains(word.as_str()));
    let base = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mut counted = Vec::new();
    for (names, measure) in MEASURES {
        if names.iter().any(|name| is_wanted(name)) {
            counted.extend(measure(base).with_context(|| names.join(", "))?);
        }
    }
    counted.retain(|counted: &Counted| is_wanted(counted.name));
    let printed = String::from_utf8(Command::new("rustc").arg("--version").output()?.stdout)?;
    let build = Build { rustc: budget::version(&printed)?, target: std::env::consts::ARCH };
    let report = budgets.judge(&counted, build, FILE, !arguments.is_empty());
    println!("rustc {}, {}\n{}", build.rustc, build.target, report.table);
    report.faults.iter().for_each(|fault| println!("{fault}\n"));
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
