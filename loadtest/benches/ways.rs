//! What a request costs by the way it comes in: a listener that the gateway alone holds, one that a shim has donated, and relay.
//!
//! ```text
//! direct     application --------------------> gateway    no shim: the listener is handed over by the bench, which keeps no copy
//! donated    application --------------------> gateway    the shim holds a duplicate and sleeps
//! relayed    application --> shim --splice()--> gateway
//! ```
//!
//! `cargo build --release -p pillion-gateway && cargo bench -p pillion-loadtest --bench ways [-- --rounds N] [--seconds N] [--out DIR]`, on a machine with nothing else to do. The three run side by
//! side, each with a backend of its own, and take turns within each round, the order shuffled by a fixed seed: what disturbs a round
//! disturbs all. Ratios are of one round; the median is told with the lowest and the highest. CPU time is that of all threads, until
//! everything has been delivered; a GB is 10^9 bytes of serialised requests.

use std::fs::File;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pillion_loadtest::arm::Ack;
use pillion_loadtest::client::{self, Outcome, Shape};
use pillion_loadtest::sink::{Keep, Sink};
use pillion_loadtest::subject::{Setup, Subject, Way};
use pillion_loadtest::ways::{self, WayRatio, Ways};
use pillion_loadtest::{measure, payload};

const WAYS: [(&str, Way); 3] = [("direct", Way::Direct), ("donated", Way::Donated), ("relayed", Way::Relayed)];
const SPANS: [u64; 2] = [10, 512];
/// Nothing is on its way any more.
const QUIET: Duration = Duration::from_millis(200);
const SEED: u64 = 7;

/// One arm, for the whole of the run.
struct Arm {
    subject: Subject,
    sink: Sink,
    _dir: tempfile::TempDir,
}

/// One arm in one round.
#[derive(Debug, Clone, Copy)]
struct Measured {
    p50_us: f64,
    p99_us: f64,
    gateway_us: f64,
    shim_us: f64,
    gateway_s_per_gigabyte: f64,
    shim_s_per_gigabyte: f64,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let rounds: usize = value("--rounds").map_or(Ok(9), |text| text.parse()).context("--rounds takes a number")?;
    let seconds: f64 = value("--seconds").map_or(Ok(1.0), |text| text.parse()).context("--seconds takes a number")?;
    ensure!(rounds > 0, "at least one round");
    println!("{rounds} rounds of {seconds} s for each figure, ack memory; load average {}", load_average());
    let arms = WAYS.map(|(_, way)| Arm::start(way));
    let [direct, donated, relayed] = arms;
    let arms = [direct?, donated?, relayed?];
    let mut ratios = Vec::new();
    for spans in SPANS {
        let message = payload::traces("cart", &(1..=spans).collect::<Vec<_>>());
        let mut measured = [const { Vec::new() }; WAYS.len()];
        let mut random = fastrand::Rng::with_seed(SEED);
        for _ in 0..rounds {
            let mut order = [0, 1, 2];
            random.shuffle(&mut order);
            for arm in order {
                let figures = arms[arm].measure(&message, Duration::from_secs_f64(seconds));
                measured[arm].push(figures.with_context(|| format!("{}, {spans} spans", WAYS[arm].0))?);
            }
        }
        ratios.extend(print(spans, &measured));
    }
    println!("load average {}", load_average());
    if let Some(dir) = value("--out") {
        let command = format!("cargo bench -p pillion-loadtest --bench ways -- --rounds {rounds} --seconds {seconds}");
        let path = Path::new(dir).join(ways::FILE);
        std::fs::write(&path, serde_json::to_string_pretty(&Ways { command, ratios })?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

impl Arm {
    fn start(way: Way) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pillion-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let sink = Sink::start((Ipv4Addr::LOCALHOST, 0).into(), Keep::Nothing)?;
        let subject = Subject::start(&Setup {
            program: vec![pillion()?.into()],
            ack: Ack::Memory,
            backend: sink.address(),
            dir: dir.path(),
            way,
            other_pods: 0,
            under: Vec::new(),
        })?;
        Ok(Self { subject, sink, _dir: dir })
    }

    /// One request at a time for the latency, then 4 connections with 4 in flight for what they cost.
    fn measure(&self, message: &[u8], duration: Duration) -> Result<Measured> {
        let one = Shape { address: self.subject.intake(), connections: 1, in_flight: 1, duration };
        let many = Shape { connections: 4, in_flight: 4, ..one };
        self.load(Shape { duration: duration / 10, ..many }, message)?;
        let alone = self.load(one, message)?;

        let (pid, shim) = (self.subject.pid(), self.subject.shim_pid());
        let shim_cpu = || shim.map_or(Ok(Duration::ZERO), measure::cpu_time);
        let (gateway_before, shim_before) = (measure::cpu_time(pid)?, shim_cpu()?);
        let outcome = self.load(many, message)?;
        let gateway = (measure::cpu_time(pid)? - gateway_before).as_secs_f64();
        let shim = (shim_cpu()? - shim_before).as_secs_f64();

        let requests = outcome.accepted as f64;
        let gigabytes = requests * message.len() as f64 / 1e9;
        Ok(Measured {
            p50_us: alone.percentile_us(0.5).into(),
            p99_us: alone.percentile_us(0.99).into(),
            gateway_us: gateway * 1e6 / requests,
            shim_us: shim * 1e6 / requests,
            gateway_s_per_gigabyte: gateway / gigabytes,
            shim_s_per_gigabyte: shim / gigabytes,
        })
    }

    /// Returns when all of it has been delivered.
    fn load(&self, shape: Shape, message: &[u8]) -> Result<Outcome> {
        let before = self.sink.bytes();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let framed = client::frame(message);
        let outcome = runtime.block_on(async { client::closed_loop(shape, client::TRACES, framed).await })?;
        ensure!(outcome.refused == 0, "{} requests were refused: {}", outcome.refused, self.subject.explain());
        let mut last = self.sink.bytes();
        while self.sink.wait_until(QUIET, |_, _| self.sink.bytes() != last) {
            last = self.sink.bytes();
        }
        // Attributes that are added make it a little more.
        ensure!(
            last - before >= outcome.accepted * message.len() as u64,
            "not all of it arrived: {}",
            self.subject.explain()
        );
        Ok(outcome)
    }
}

/// The release build, beside which cargo puts benches.
fn pillion() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("../pillion");
    ensure!(program.is_file(), "{} is not there: cargo build --release -p pillion-gateway", program.display());
    Ok(program.canonicalize()?)
}

fn print(spans: u64, measured: &[Vec<Measured>; WAYS.len()]) -> Vec<WayRatio> {
    let mut all = Vec::new();
    println!("\n{spans} spans a request");
    println!(
        "{:<10} {:>9} {:>9} {:>14} {:>12} {:>16} {:>12}",
        "medians", "p50 us", "p99 us", "gateway us/req", "shim us/req", "gateway CPU-s/GB", "shim CPU-s/GB"
    );
    for ((name, _), rounds) in WAYS.iter().zip(measured) {
        let middle = |figure: fn(&Measured) -> f64| median(rounds.iter().map(figure).collect());
        println!(
            "{name:<10} {:>9.0} {:>9.0} {:>14.2} {:>12.2} {:>16.3} {:>12.3}",
            middle(|of| of.p50_us),
            middle(|of| of.p99_us),
            middle(|of| of.gateway_us),
            middle(|of| of.shim_us),
            middle(|of| of.gateway_s_per_gigabyte),
            middle(|of| of.shim_s_per_gigabyte),
        );
    }
    let [direct, donated, relayed] = measured;
    for (name, rounds) in [("donated", donated), ("relayed", relayed)] {
        let told = [
            ratio(spans, &format!("{name} / direct, p50"), rounds, direct, |of| of.p50_us),
            ratio(spans, &format!("{name} / direct, p99"), rounds, direct, |of| of.p99_us),
            ratio(spans, &format!("{name} / direct, CPU of gateway and shim"), rounds, direct, |of| {
                of.gateway_us + of.shim_us
            }),
        ];
        all.extend(told.into_iter().flatten());
    }
    all
}

/// The promise is at most 1.0 for what is donated.
fn ratio(spans: u64, what: &str, of: &[Measured], to: &[Measured], figure: fn(&Measured) -> f64) -> Option<WayRatio> {
    let ratio = WayRatio::of(spans, what, of.iter().zip(to).map(|(of, to)| figure(of) / figure(to)).collect())?;
    let WayRatio { median, lowest, highest, .. } = ratio;
    println!("  {what:<44} {median:>6.3} ({lowest:.3} to {highest:.3}): {}", ratio.verdict());
    Some(ratio)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn load_average() -> String {
    let mut text = String::new();
    drop(File::open("/proc/loadavg").and_then(|mut file| file.read_to_string(&mut text)));
    text.trim().to_owned()
}
