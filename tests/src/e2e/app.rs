//! The suite's own pods: one static program with a mode for each part.
//!
//! Each mode that stays serves its findings over HTTP, to be read through the API server's proxy, and ends on SIGTERM, which
//! a container's first process would ignore otherwise.

mod journal;
mod load;
mod page;
mod sdk;
mod sink;
mod small;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

const USAGE: &str = "\
usage: pillion-e2e-app MODE [--NAME VALUE]...

sink  --otlp PORT --page PORT --journal FILE        a backend that tells what arrived
sdk   --page PORT                                   the OpenTelemetry SDK, all signals, gRPC and HTTP, to its defaults
load  --page PORT --journal FILE --clients N --each-second N
                                                    many clients, every other with a connection of its own a request
once                                                one span by the SDK, then exit; 1 if it was not acknowledged
idle                                                nothing
dns   --answer IPV4                                 answers every query for an address, on port 53";

/// What the suite reads with [`crate::e2e::ranges`] of it.
pub use load::Report as LoadReport;
pub use sink::Service as SinkService;

/// Runs one mode.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = String>) -> Result<()> {
    let mode = arguments.next().context(USAGE)?;
    let mut options = Options::read(arguments)?;
    match mode.as_str() {
        "sink" => sink::run(&mut options),
        "sdk" => sdk::run(&mut options),
        "load" => load::run(&mut options),
        "once" => sdk::once(&mut options),
        "idle" => small::idle(&mut options),
        "dns" => small::dns(&mut options),
        _ => bail!("no such mode: {mode}\n{USAGE}"),
    }
}

/// `--name value`, each to be taken once.
struct Options(BTreeMap<String, String>);

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut options = BTreeMap::new();
        while let Some(name) = arguments.next() {
            let key = name.strip_prefix("--").with_context(|| format!("{name} is no option\n{USAGE}"))?;
            let value = arguments.next().with_context(|| format!("{name} has no value"))?;
            options.insert(key.to_owned(), value);
        }
        Ok(Self(options))
    }

    fn take<T: std::str::FromStr>(&mut self, name: &str) -> Result<T> {
        let value = self.0.remove(name).with_context(|| format!("--{name} is missing\n{USAGE}"))?;
        value.parse().ok().with_context(|| format!("--{name} {value}: not understood"))
    }

    /// No option may be left.
    fn finish(&self) -> Result<()> {
        ensure!(self.0.is_empty(), "unknown options: {:?}\n{USAGE}", self.0.keys());
        Ok(())
    }
}

/// Waits for SIGTERM or SIGINT.
fn until_terminated() -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (mut term, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} }
        Ok(())
    })
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
