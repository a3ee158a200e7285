//! One arm of a table: a load for one engine, in a process of its own, and what it cost.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pillion_loadtest::measure;

use super::{again, engines, pillion};

/// What an arm does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) tenants: u32,
    pub(crate) record_bytes: usize,
    /// Records of one commit.
    pub(crate) group: usize,
    /// Records that are on their way at once, where an engine forms groups itself: no more than these can be in a group.
    pub(crate) in_flight: usize,
    /// Records before those that are measured: files are made, caches filled.
    pub(crate) warm_up: u64,
    pub(crate) records: u64,
}

impl Load {
    pub(crate) fn arguments(&self) -> [String; 6] {
        let Self { tenants, record_bytes, group, in_flight, warm_up, records } = self;
        [
            tenants.to_string(),
            record_bytes.to_string(),
            group.to_string(),
            in_flight.to_string(),
            warm_up.to_string(),
            records.to_string(),
        ]
    }

    fn parse(arguments: &[String]) -> Result<Self> {
        let [tenants, record_bytes, group, in_flight, warm_up, records] = arguments else {
            anyhow::bail!("an arm takes six numbers");
        };
        Ok(Self {
            tenants: tenants.parse()?,
            record_bytes: record_bytes.parse()?,
            group: group.parse()?,
            in_flight: in_flight.parse()?,
            warm_up: warm_up.parse()?,
            records: records.parse()?,
        })
    }
}

/// What it cost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Measured {
    pub(crate) records: f64,
    pub(crate) bytes: f64,
    pub(crate) wall_us: f64,
    pub(crate) cpu_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) rss_kib: f64,
    /// Records of a commit.
    pub(crate) group: f64,
    pub(crate) note: String,
}

impl Measured {
    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes / self.wall_us
    }

    pub(crate) fn cpu_us_per_record(&self) -> f64 {
        self.cpu_us / self.records
    }

    pub(crate) fn cpu_s_per_gigabyte(&self) -> f64 {
        self.cpu_us * 1e3 / self.bytes
    }

    pub(crate) fn rss_megabytes(&self) -> f64 {
        self.rss_kib * 1024.0 / 1e6
    }
}

/// Of commits, in microseconds: small, since memory is measured too.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<u32>);

impl Latencies {
    pub(crate) fn push(&mut self, latency: Duration) {
        self.0.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
    }
}

/// An engine under load.
pub(crate) trait Engine {
    /// Commits so many records, and adds the time that each commit took.
    fn run(&mut self, records: u64, latencies: &mut Latencies) -> Result<()>;

    /// Records of a commit in the last run, where that is not what was asked for.
    fn group(&self) -> Option<f64> {
        None
    }

    /// For people.
    fn note(&self) -> String {
        String::new()
    }
}

/// Runs an arm in a process of its own.
pub(crate) fn run(base: &Path, name: &str, load: &Load) -> Result<Measured> {
    one(base, name, load).with_context(|| format!("{name}, {load:?}"))
}

fn one(base: &Path, name: &str, load: &Load) -> Result<Measured> {
    let dir = tempfile::tempdir_in(base)?;
    let output = again(&["arm", name])?.arg(dir.path()).args(load.arguments()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let (numbers, note) = text.trim().split_once(';').context("numbers; note")?;
    let numbers = numbers.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<f64>, _>>()?;
    let [wall_us, cpu_us, p50_us, p99_us, rss_kib, group] = numbers[..] else { anyhow::bail!("it said {text:?}") };
    let records = load.records as f64;
    let bytes = records * load.record_bytes as f64;
    Ok(Measured { records, bytes, wall_us, cpu_us, p50_us, p99_us, rss_kib, group, note: note.trim().to_owned() })
}

/// The process of an arm.
pub(crate) fn child(arguments: &[String]) -> Result<()> {
    let [name, dir, numbers @ ..] = arguments else { anyhow::bail!("usage: arm NAME DIRECTORY NUMBER...") };
    let (load, dir) = (Load::parse(numbers)?, Path::new(dir));
    let mut engine: Box<dyn Engine> = match name.as_str() {
        "pillion" => Box::new(pillion::Pillion::open(dir, &load)?),
        _ => engines::open(name, dir, &load)?,
    };
    let mut latencies = Latencies::default();
    engine.run(load.warm_up, &mut latencies)?;
    latencies.0.clear();
    let pid = std::process::id();
    let (started, cpu_before) = (Instant::now(), measure::cpu_time(pid)?);
    engine.run(load.records, &mut latencies)?;
    let (wall, cpu) = (started.elapsed(), measure::cpu_time(pid)? - cpu_before);
    latencies.0.sort_unstable();
    let at = |part: usize| latencies.0[(latencies.0.len() - 1) * part / 100];
    let rss_kib = measure::memory(pid)?.rss;
    let (wall_us, cpu_us) = (wall.as_secs_f64() * 1e6, cpu.as_secs_f64() * 1e6);
    let group = engine.group().unwrap_or(load.group as f64);
    println!("{wall_us} {cpu_us} {} {} {rss_kib} {group}; {}", at(50), at(99), engine.note());
    Ok(())
}
