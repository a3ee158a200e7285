//! Spans per CPU-second, in and out, beside the floor: the same bytes over the `h2` crate, untouched.
//!
//! ```text
//! generator (this process) -- OTLP/gRPC, 4 connections x 4 in flight --> process under test -- OTLP/gRPC --> sink (this process)
//! ```
//!
//! The process under test is `pillion run` behind a donated listener, or one of the floors. Its CPU time is that of all its
//! threads, from the start of the load until the last span has arrived, so that nothing is left out. Wall time is not
//! reported: it depends on the generator and the sink, which share the machine.
//!
//! usage: cargo bench --bench spans [-- --seconds N] [--only memory|durable|floor]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pillion_loadtest::client::{self, Outcome, Shape};
use pillion_loadtest::sink::{Keep, Sink};
use pillion_loadtest::{floor, measure, payload};

const PILLION: &str = env!("CARGO_BIN_EXE_pillion");
const SPANS: [u64; 4] = [512, 100, 10, 1];
/// Nothing on its way any more: longer than any request is held back.
const QUIET: Duration = Duration::from_millis(400);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|argument| argument == "floor") {
        return be_the_floor(&arguments[1..]);
    }
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let seconds = value("--seconds").map_or(Ok(4), |text| text.parse()).context("--seconds takes a number")?;
    let only = value("--only").map_or("", String::as_str);
    println!("OTLP/gRPC in and out, 434 bytes a span, 4 connections x 4 in flight, {seconds} s each; {}", machine());
    println!(
        "{:>24} {:>6} {:>14} {:>12} {:>10} {:>10}",
        "", "spans", "k spans/CPU-s", "us/request", "p50 us", "p99 us"
    );
    for arm in ["floor merged", "floor one for one", "ack memory", "floor durable", "ack durable"] {
        for spans in SPANS.into_iter().filter(|_| arm.contains(only)) {
            let row = measure_arm(arm, spans, Duration::from_secs(seconds))?;
            println!(
                "{arm:>24} {spans:>6} {:>14.1} {:>12.1} {:>10} {:>10}",
                row.spans as f64 / row.cpu.as_secs_f64() / 1e3,
                row.cpu.as_secs_f64() * 1e6 / row.outcome.accepted as f64,
                row.outcome.percentile_us(0.5),
                row.outcome.percentile_us(0.99),
            );
        }
    }
    Ok(())
}

struct Row {
    cpu: Duration,
    spans: u64,
    outcome: Outcome,
}

fn measure_arm(arm: &str, spans: u64, duration: Duration) -> Result<Row> {
    let dir = tempfile::Builder::new().prefix("pillion-bench-").tempdir_in(target_dir())?;
    let sink = Sink::start((Ipv4Addr::LOCALHOST, 0).into(), Keep::Nothing)?;
    let subject = match arm.strip_prefix("floor ") {
        Some(mode) => Subject::floor(mode, sink.address(), dir.path())?,
        None => Subject::pillion(arm.trim_start_matches("ack "), sink.address(), dir.path())?,
    };
    let message = payload::traces("cart", &(1..=spans).collect::<Vec<_>>());
    let shape = Shape { address: subject.intake, connections: 4, in_flight: 4, duration };
    let warm = load(Shape { duration: Duration::from_millis(500), ..shape }, &message)?;
    settle(&sink, warm.accepted * message.len() as u64)
        .with_context(|| format!("{arm}, {spans} spans, warming up: {}", subject.explain()))?;

    let before = measure::cpu_time(subject.pid)?;
    let bytes_before = sink.bytes();
    let outcome = load(shape, &message)?;
    settle(&sink, bytes_before + outcome.accepted * message.len() as u64)
        .with_context(|| format!("{arm}, {spans} spans: {}", subject.explain()))?;
    let cpu = measure::cpu_time(subject.pid)? - before;

    if outcome.refused > 0 {
        bail!(
            "{arm}, {spans} spans: {} of {} requests were refused",
            outcome.refused,
            outcome.refused + outcome.accepted
        );
    }
    Ok(Row { cpu, spans: outcome.accepted * spans, outcome })
}

fn load(shape: Shape, message: &[u8]) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let framed = client::frame(message);
    runtime.block_on(async { client::closed_loop(shape, client::TRACES, framed).await })
}

/// The process under test, killed when dropped.
struct Subject {
    children: Vec<Child>,
    pid: u32,
    intake: SocketAddr,
    /// Where to ask why, if it can say.
    admin: Option<SocketAddr>,
}

impl Subject {
    /// What /tenants says; empty for a floor.
    fn explain(&self) -> String {
        let Some(admin) = self.admin else { return String::new() };
        let mut answer = String::new();
        let asked = TcpStream::connect(admin).and_then(|mut stream| {
            write!(stream, "GET /tenants?format=json HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n")?;
            stream.read_to_string(&mut answer)
        });
        asked.map_or_else(|error| error.to_string(), |_| answer)
    }

    fn floor(mode: &str, sink: SocketAddr, dir: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["floor", mode, &sink.to_string()])
            .arg(dir.join("log"))
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut line)?;
        let intake = line.trim().parse().with_context(|| format!("the floor said {line:?}"))?;
        Ok(Self { pid: child.id(), children: vec![child], intake, admin: None })
    }

    fn pillion(ack: &str, sink: SocketAddr, dir: &Path) -> Result<Self> {
        let [grpc, http, admin] = [(); 3].map(|()| free_address());
        let (grpc, http, admin) = (grpc?, http?, admin?);
        let config = dir.join("pillion.yaml");
        fs::write(
            &config,
            format!(
                "node: {{data_dir: {dir}/data, admin: \"{admin}\", workers: 1, memory_limit: 1GiB}}
defaults:
  ack: {ack}
  destinations: [backend]
  limits:
    bytes_per_second: 100GiB
    requests_per_second: 10000000
    memory: {{guarantee: 256MiB, ceiling: 512MiB}}
    disk: {{guarantee: 1GiB, ceiling: 8GiB}}
destinations:
  backend: {{protocol: grpc, endpoint: \"http://{sink}\", allow: [\"*\"]}}
tenants:
  shop/cart: {{socket_dir: {dir}/cart, ports: {{grpc: {}, http: {}}}}}
",
                grpc.port(),
                http.port(),
                dir = dir.display(),
            ),
        )?;
        let mut supervisor = Command::new(PILLION)
            .arg("run")
            .arg("--config")
            .arg(&config)
            .env("PILLION_LOG", "info")
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(supervisor.stderr.take().context("piped")?);
        let mut line = String::new();
        while !line.contains("pillion is serving") {
            line.clear();
            if log.read_line(&mut line)? == 0 {
                bail!("the gateway ended before it served");
            }
        }
        // Keeps the pipe empty; ends with the process.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::stderr()));
        let ports = [grpc.port().to_string(), http.port().to_string()];
        let shim = |verb: &str| {
            let mut command = Command::new(PILLION);
            command
                .args(["shim", verb, "--dir"])
                .arg(dir.join("cart"))
                .args(["--grpc", &ports[0], "--http", &ports[1]]);
            command
        };
        let mut children = vec![shim("run").spawn()?];
        if !shim("wait").status()?.success() {
            bail!("the shim did not bind its ports");
        }
        let pid = supervisor.id();
        let workers = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let pid = workers.split_ascii_whitespace().next().context("the supervisor has a worker")?.parse()?;
        children.push(supervisor);
        Ok(Self { children, pid, intake: grpc, admin: Some(admin) })
    }
}

/// Returns when everything that was acknowledged has arrived (attributes that were added make it a little more) and
/// nothing moves any more.
fn settle(sink: &Sink, bytes: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let last = sink.bytes();
        let moves = sink.wait_until(QUIET, |_, _| sink.bytes() != last);
        if !moves && last >= bytes {
            return Ok(());
        }
        if started.elapsed() > Duration::from_secs(30) {
            bail!("{last} bytes arrived of {bytes} that were acknowledged");
        }
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        for child in &mut self.children {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn be_the_floor(arguments: &[String]) -> Result<()> {
    let [mode, backend, log] = arguments else { bail!("usage: floor MODE BACKEND LOG") };
    let mode = match mode.as_str() {
        "merged" => floor::Mode::Merged,
        "one for one" => floor::Mode::OneForOne,
        "durable" => floor::Mode::Durable(PathBuf::from(log)),
        other => bail!("unknown floor {other:?}"),
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    floor::run(listener, backend.parse()?, mode)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// On the disk of the build, not in a memory-backed /tmp: fdatasync must cost what it costs.
fn target_dir() -> PathBuf {
    Path::new(PILLION).parent().expect("a program is in a folder").to_owned()
}

fn machine() -> String {
    let mut cpu = String::new();
    let read = fs::File::open("/proc/cpuinfo").and_then(|mut file| file.read_to_string(&mut cpu));
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} x {}, Linux {}", cores, read.ok().and(model).unwrap_or("unknown CPU"), kernel.trim())
}
