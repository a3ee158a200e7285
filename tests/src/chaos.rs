//! The gateway killed again and again under load, and the books that must balance afterwards.
//!
//! - `rig` is the gateway and the shims of its pods, `load` the applications in them, `backend` the destinations.
//! - `item` is what an id says; `books` is what was acknowledged and where it is now.
//!
//! ```text
//! chaos    load; destinations change their minds; N times: wait for a random moment, kill -9
//! end      load stops; one destination refuses; the gateway ends, in order or not; what has arrived is "delivered"
//! rest     destinations take everything; the gateway starts again; what arrives now was "queued", until nothing is
//! books    dead letters are read from the data directory; the sum must come out, item by item
//! ```
//! A kill is of the worker that serves, of a worker that is just starting, or of the supervisor with its worker.

mod backend;
mod books;
mod item;
mod letters;
mod load;
mod rig;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use pillion_loadtest::sink::Fault;
use serde::Serialize;

pub use self::books::Row;

use self::backend::{Backend, Moment};
use self::books::Books;
use self::item::Record;
use self::load::{Client, Load, Outcome, Tally, Way};
use self::rig::Rig;
use crate::shim::Ports;

/// By number.
const DESTINATIONS: [&str; 2] = ["grpc", "http"];

/// Requests that a destination has at a time.
const WINDOW: u64 = 4;

/// A pod.
#[derive(Debug)]
struct Tenant {
    name: &'static str,
    ack: &'static str,
    destinations: &'static [usize],
}

const TENANTS: [Tenant; 5] = [
    Tenant { name: "durable", ack: "durable", destinations: &[0] },
    Tenant { name: "buffered", ack: "buffered", destinations: &[1] },
    Tenant { name: "both", ack: "durable", destinations: &[0, 1] },
    Tenant { name: "twice", ack: "buffered", destinations: &[0, 1] },
    // Kept only by an orderly end, as its policy says: here to disturb the others.
    Tenant { name: "memory", ack: "memory", destinations: &[0] },
];

/// A kill comes after so many more acknowledged requests, or after so long, whatever is first.
const STEPS_MAX: usize = 400;
const PAUSE_MS_MAX: u64 = 600;

/// Everything that is queued arrives within this time, or the run has failed.
const PATIENCE: Duration = Duration::from_secs(300);

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// The `pillion` program under test.
    pub node: String,
    /// How often it is killed.
    pub kills: u32,
    /// For all that is random here; the kernel's schedule is not.
    pub seed: u64,
    /// Words about the progress go to stderr.
    pub is_talkative: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub struct Report {
    /// As given.
    pub seed: u64,
    /// Kills: of serving workers, of starting ones, of supervisors with their worker.
    pub kills: [u32; 3],
    /// How long the load lasted.
    pub seconds: f64,
    /// A row for each tenant and destination.
    pub rows: Vec<Row>,
    /// Requests that each destination took, and refused.
    pub answers: BTreeMap<&'static str, [u64; 2]>,
    /// Requests of applications that were refused, by status.
    pub refused: BTreeMap<String, u64>,
    /// Requests of applications whose connection died with a gateway.
    pub unanswered: u64,
    /// connect() of applications that failed.
    pub unconnected: u64,
    /// Items lost for any reason, as the last gateway counts them.
    pub lost: u64,
    /// What is not as promised; empty when all is well.
    pub breaches: Vec<String>,
}

/// Runs it to the end.
///
/// # Panics
/// When the gateway does not come back or does not answer.
pub fn run(options: &Options) -> Result<Report> {
    let mut rng = Rng::with_seed(options.seed);
    let moment: Arc<Moment> = Arc::default();
    let backend = |_| Backend::start(rng.fork(), moment.clone());
    let mut backends = (0..DESTINATIONS.len()).map(backend).collect::<Result<Vec<_>>>()?;
    let addresses: Vec<_> = backends.iter().map(Backend::address).collect();
    let mut rig = Rig::start(&options.node, &addresses)?;
    let started = Instant::now();
    let load = Load::start(&clients(&rig), &mut rng);
    let kills = chaos(options, &mut rig, &load, (&moment, &mut rng));
    // The last one is to be seen alive.
    load.wait_for(STEPS_MAX, PATIENCE);
    let seconds = started.elapsed().as_secs_f64();
    let say =
        |words: &str| options.is_talkative.then(|| eprintln!("{:.0} s: {words}", started.elapsed().as_secs_f64()));
    say("the load ends");
    let mut tally = load.stop()?;

    end(&mut rig, &mut backends, (&moment, &mut rng))?;
    say("what is queued is delivered");
    drain(&mut rig, &backends, &mut tally)?;
    let lost = total(&rig, "pillion_lost_items_total");
    rig.stop()?;

    say("dead letters are read");
    let dead = letters::read(rig.node(), &rig.data_dir())?;
    let answers = DESTINATIONS.iter().zip(&backends).map(|(name, backend)| (*name, backend.answers())).collect();
    let mut books = Books { unsent: tally.unsent, dead, window: WINDOW, ..Books::default() };
    books.acknowledged = tally.acknowledged;
    books.arrivals = backends.into_iter().map(Backend::into_arrivals).collect();
    let mut breaches = books.breaches();
    if lost > 0 {
        breaches.push(format!("{lost} items were given up"));
    }
    if tally.unconnected > 0 {
        breaches.push(format!("{} connections were refused", tally.unconnected));
    }
    if !breaches.is_empty() {
        eprintln!("the data directory is kept in {}", rig.keep().display());
    }
    Ok(Report {
        seed: options.seed,
        kills,
        seconds,
        rows: books.rows(),
        answers,
        refused: tally.refused,
        unanswered: tally.unanswered,
        unconnected: tally.unconnected,
        lost,
        breaches,
    })
}

/// Two over HTTP and one over gRPC in each pod.
fn clients(rig: &Rig) -> Vec<Client> {
    let of_pod = |(tenant, ports): (usize, &Ports)| {
        let ways = [Way::Http(ports.http), Way::Http(ports.http), Way::Grpc(ports.grpc)];
        ways.into_iter().zip(1..).map(move |(way, number)| Client { tenant, number, way })
    };
    rig.ports.iter().enumerate().flat_map(of_pod).collect()
}

fn chaos(options: &Options, rig: &mut Rig, load: &Load, (moment, rng): (&Moment, &mut Rng)) -> [u32; 3] {
    let mut kills = [0; 3];
    let mut told = Instant::now();
    loop {
        let so_far = kills.iter().sum::<u32>();
        if so_far >= options.kills {
            return kills;
        }
        load.wait_for(rng.usize(1..STEPS_MAX), Duration::from_millis(rng.u64(..PAUSE_MS_MAX)));
        let note = |kind: usize, kills: &mut [u32; 3]| {
            kills[kind] += 1;
            moment.kills.fetch_add(1, Ordering::SeqCst);
        };
        if rng.u8(..10) == 0 {
            rig.kill_all();
            note(2, &mut kills);
            rig.start_again();
        } else {
            let mut dead = rig.kill_worker();
            note(0, &mut kills);
            while kills.iter().sum::<u32>() < options.kills && rng.u8(..6) == 0 {
                rig.await_successor(dead);
                // Somewhere between its first instruction and its first delivery.
                load.wait_for(1, Duration::from_micros(rng.u64(..60_000)));
                dead = rig.kill_worker();
                note(1, &mut kills);
            }
            rig.await_ready();
        }
        if options.is_talkative && told.elapsed() > Duration::from_secs(10) {
            told = Instant::now();
            let acknowledged = load.acknowledged();
            eprintln!("{} of {} kills, {acknowledged} requests acknowledged", so_far + 1, options.kills);
        }
    }
}

/// The last end of a gateway with a backlog: what has arrived by then counts as delivered.
fn end(rig: &mut Rig, backends: &mut [Backend], (moment, rng): (&Moment, &mut Rng)) -> Result<()> {
    let (refuses, takes) = if rng.bool() { (0, 1) } else { (1, 0) };
    backends[refuses].settle(Fault::Unavailable);
    backends[takes].settle(Fault::None);
    match rng.bool() {
        true => rig.stop()?,
        false => rig.kill_all(),
    }
    moment.is_late.store(true, Ordering::SeqCst);
    backends[refuses].settle(Fault::None);
    rig.start_again();
    Ok(())
}

/// Until nothing is queued. A record whose content is refused becomes a dead letter only after the destination has taken
/// something else, and only where it takes most of what most tenants send: so each of them sends something sound now and then.
fn drain(rig: &mut Rig, backends: &[Backend], tally: &mut Tally) -> Result<()> {
    const CLIENT: u8 = 200;
    let deadline = Instant::now() + PATIENCE;
    for request in 0.. {
        let mut sent = Vec::new();
        for (number, tenant) in TENANTS.iter().enumerate() {
            let record = Record::new(number, CLIENT, request, false);
            tally.unsent.insert((number, CLIENT), request + 1);
            let outcome = load::over_http(rig.ports[number].http, record);
            if matches!(outcome, Outcome::Acknowledged) {
                sent.extend(tenant.destinations.iter().map(|to| (&backends[*to], record)));
            }
            tally.note(record, outcome);
        }
        loop {
            let is_there = sent.iter().all(|(backend, record)| backend.has(*record));
            if is_there && total(rig, "otelcol_exporter_queue_size") == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not delivered within {PATIENCE:?}\n{}", rig.gateway().explain());
            if is_there {
                break;
            }
        }
    }
    Ok(())
}

/// The sum over all labels.
fn total(rig: &Rig, name: &str) -> u64 {
    let (_, body) = rig.gateway().get("/metrics");
    let samples = body.lines().filter_map(|line| line.strip_prefix(name));
    let values = samples.filter(|rest| rest.starts_with(['{', ' '])).filter_map(|rest| rest.rsplit(' ').next());
    values.filter_map(|value| value.parse::<u64>().ok()).sum()
}
