//! Load from many clients, and a strict account of what became of each request.
//!
//! Every other client opens a connection for each request, as short-lived programs do; the others keep theirs and open a new
//! one when it breaks. An id is used once: what is not acknowledged is not sent again, so "acknowledged and missing" is exact.
//! Acknowledged ids are in the journal, so that they outlive the container.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use pillion_loadtest::client::{self, Connection};
use pillion_loadtest::payload;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::journal::Journal;
use super::{Options, now_ms, page, until_terminated};
use crate::e2e::ranges::Ranges;

const GATEWAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4317);

/// Longer than any restart, shorter than the suite's patience.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A gap between two answers that is written down.
const PAUSE_MIN_MS: u64 = 100;

/// What is kept of pauses and of examples.
const NOTES_MAX: usize = 2_000;

/// Ids of client N are `(N + 1) << CLIENT_SHIFT` and upwards.
const CLIENT_SHIFT: u32 = 40;

/// What became of the requests, as the page tells it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// The pod's clock, which all other times are by.
    pub now_ms: u64,
    /// When the last answer came.
    pub last_answer_ms: u64,
    /// Connections opened.
    pub connects: u64,
    /// connect() calls that failed.
    pub connect_errors: u64,
    /// The first of them: when, and how.
    pub connect_examples: Vec<(u64, String)>,
    /// The longest that connect() took.
    pub slowest_connect_ms: u64,
    /// Requests acknowledged, by this process.
    pub answered: u64,
    /// Requests answered with another gRPC status, by status.
    pub refused: BTreeMap<u32, u64>,
    /// Requests whose connection ended before the answer, or that took longer than the timeout.
    pub unanswered: u64,
    /// Gaps between two answers, of all clients together: when they began, how long they were.
    pub pauses: Vec<(u64, u64)>,
    /// Ids acknowledged, by processes before this one as well.
    #[serde(default)]
    pub acknowledged: Ranges,
}

#[derive(Debug)]
struct Tally {
    report: Report,
    last_answer: Instant,
    journal: Journal,
}

#[derive(Debug, Clone)]
struct Shared(Arc<Mutex<Tally>>);

/// Sends until told to end. `/report` is everything, `/brief` the same without ids.
pub(super) fn run(options: &mut Options) -> Result<()> {
    let (port, path): (u16, PathBuf) = (options.take("page")?, options.take("journal")?);
    let (clients, each_second): (u64, u64) = (options.take("clients")?, options.take("each-second")?);
    options.finish()?;
    ensure!(
        (1..=1_000).contains(&clients) && (1..=10_000).contains(&each_second),
        "1 to 1,000 clients, 1 to 10,000 requests"
    );
    let mut report = Report::default();
    let journal = Journal::open(&path, |line| {
        if let Ok(id) = line.parse() {
            report.acknowledged.insert(id);
        }
    })?;
    let shared = Shared(Arc::new(Mutex::new(Tally { report, last_answer: Instant::now(), journal })));
    let for_page = shared.clone();
    page::serve(port, move |path| for_page.page(path))?;
    let service = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "load".to_owned());
    std::thread::Builder::new()
        .name("clients".into())
        .spawn(move || all_clients(&shared, &service, clients, each_second))?;
    until_terminated()
}

fn all_clients(shared: &Shared, service: &str, clients: u64, each_second: u64) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("the process has descriptors left");
    let every = Duration::from_micros(1_000_000 * clients / each_second);
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for number in 0..clients {
            tasks.spawn(one_client(shared.clone(), service.to_owned(), number, every));
        }
        tasks.join_all().await;
    });
}

async fn one_client(shared: Shared, service: String, number: u64, every: Duration) {
    let first = (number + 1) << CLIENT_SHIFT;
    let mut id = shared.first_free(first);
    let keeps = number % 2 == 1;
    let mut kept = None;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let connection = match kept.take() {
            Some(connection) => connection,
            None => match connect(&shared).await {
                Some(connection) => connection,
                None => continue,
            },
        };
        id += 1;
        let framed = client::frame(&payload::traces(&service, &[id]));
        match timeout(ANSWER_TIMEOUT, connection.export(client::TRACES, framed)).await {
            Ok(Ok(reply)) => {
                shared.answered(id, reply.status);
                kept = Some(connection).filter(|_| keeps);
            }
            Ok(Err(_)) | Err(_) => shared.note(|report| report.unanswered += 1),
        }
    }
}

async fn connect(shared: &Shared) -> Option<Connection> {
    let started = Instant::now();
    let connected = TcpStream::connect(GATEWAY).await;
    let took = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    shared.note(|report| {
        report.connects += 1;
        report.slowest_connect_ms = report.slowest_connect_ms.max(took);
        if let Err(error) = &connected {
            report.connect_errors += 1;
            if report.connect_examples.len() < NOTES_MAX {
                report.connect_examples.push((now_ms(), error.to_string()));
            }
        }
    });
    match Connection::over(connected.ok()?).await {
        Ok(connection) => Some(connection),
        Err(_) => {
            shared.note(|report| report.unanswered += 1);
            None
        }
    }
}

impl Shared {
    fn note(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).report);
    }

    fn answered(&self, id: u64, status: u32) {
        let mut tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if status != 0 {
            *tally.report.refused.entry(status).or_default() += 1;
            return;
        }
        tally.journal.append(&id.to_string()).expect("the journal's volume has room");
        let now = now_ms();
        let pause = u64::try_from(tally.last_answer.elapsed().as_millis()).unwrap_or(u64::MAX);
        tally.last_answer = Instant::now();
        let report = &mut tally.report;
        report.acknowledged.insert(id);
        report.answered += 1;
        report.last_answer_ms = now;
        if pause >= PAUSE_MIN_MS && report.pauses.len() < NOTES_MAX {
            report.pauses.push((now.saturating_sub(pause), pause));
        }
    }

    /// Ids that the process before this one may have had in flight are left out.
    fn first_free(&self, first: u64) -> u64 {
        let tally = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let last = first + ((1 << CLIENT_SHIFT) - 1);
        tally.report.acknowledged.highest_in(first, last).map_or(first, |highest| highest + 1_000)
    }

    fn page(&self, path: &str) -> Option<String> {
        let mut report = self.0.lock().unwrap_or_else(PoisonError::into_inner).report.clone();
        report.now_ms = now_ms();
        match path {
            "/report" => {}
            "/brief" => report.acknowledged = Ranges::default(),
            _ => return None,
        }
        serde_json::to_string(&report).ok()
    }
}
