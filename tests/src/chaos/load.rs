//! Applications: each sends one request after the other and writes down what was acknowledged.
//!
//! Owns threads; they end when told to stop, after the request that they wait for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use pillion_loadtest::client::{self, Connection};
use pillion_loadtest::payload;

use super::item::Record;
use crate::ask::{self, PATIENCE};

/// One request in so many has content that every destination refuses.
const POISON_ONE_IN: u64 = 150;

const PATHS: [[&str; 2]; 3] =
    [["/v1/traces", client::TRACES], ["/v1/metrics", client::METRICS], ["/v1/logs", client::LOGS]];

/// What all clients saw.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Answered with OK.
    pub(super) acknowledged: BTreeSet<Record>,
    /// The first request of each tenant and client that was not sent.
    pub(super) unsent: BTreeMap<(usize, u8), u64>,
    /// Requests answered with another status than OK, by status.
    pub(super) refused: BTreeMap<String, u64>,
    /// Requests whose connection ended without an answer.
    pub(super) unanswered: u64,
    /// Connections that were refused.
    pub(super) unconnected: u64,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    tally: Mutex<Tally>,
    changed: Condvar,
}

/// All clients.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// Who sends, and where to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Client {
    pub(super) tenant: usize,
    pub(super) number: u8,
    pub(super) way: Way,
}

/// By which protocol.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// A connection for each request.
    Http(SocketAddr),
    /// One connection for as long as it lives.
    Grpc(SocketAddr),
}

impl Load {
    pub(super) fn start(clients: &[Client], rng: &mut Rng) -> Self {
        let shared: Arc<Shared> = Arc::default();
        let start = |client: &Client| {
            let (shared, client, rng) = (shared.clone(), *client, rng.fork());
            std::thread::spawn(move || match client.way {
                Way::Http(address) => run(client, &shared, rng, |record| over_http(address, record)),
                Way::Grpc(address) => over_grpc(client, &shared, rng, address),
            })
        };
        let threads = clients.iter().map(start).collect();
        Self { shared, threads }
    }

    /// Waits until so many more requests were acknowledged, but no longer than `patience`.
    pub(super) fn wait_for(&self, more: usize, patience: Duration) {
        let tally = self.shared.lock();
        let until = tally.acknowledged.len() + more;
        drop(self.shared.changed.wait_timeout_while(tally, patience, |tally| tally.acknowledged.len() < until));
    }

    /// Requests acknowledged so far.
    pub(super) fn acknowledged(&self) -> usize {
        self.shared.lock().acknowledged.len()
    }

    /// Stops all clients.
    pub(super) fn stop(self) -> Result<Tally> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("a client does not panic")?;
        }
        Ok(std::mem::take(&mut self.shared.lock()))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How one request ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// With OK.
    Acknowledged,
    /// With another status.
    Refused(String),
    /// Without an answer.
    Unanswered,
    /// Without a connection.
    Unconnected,
}

fn run(client: Client, shared: &Shared, mut rng: Rng, mut send: impl FnMut(Record) -> Outcome) -> Result<()> {
    for request in 0.. {
        if shared.stop.load(Ordering::SeqCst) {
            break;
        }
        let record = Record::new(client.tenant, client.number, request, rng.u64(..POISON_ONE_IN) == 0);
        let mut tally = shared.lock();
        tally.unsent.insert((client.tenant, client.number), request + 1);
        drop(tally);
        let outcome = send(record);
        let mut tally = shared.lock();
        tally.note(record, outcome);
        shared.changed.notify_all();
    }
    Ok(())
}

impl Tally {
    /// Writes down how a request ended.
    pub(super) fn note(&mut self, record: Record, outcome: Outcome) {
        match outcome {
            Outcome::Acknowledged => drop(self.acknowledged.insert(record)),
            Outcome::Refused(status) => *self.refused.entry(status).or_default() += 1,
            Outcome::Unanswered => self.unanswered += 1,
            Outcome::Unconnected => self.unconnected += 1,
        }
    }
}

fn body(record: Record) -> Vec<u8> {
    let make = [payload::traces, payload::metrics, payload::logs][record.signal()];
    make("chaos", &record.ids())
}

/// One request over HTTP/1.1, on a connection of its own.
pub(super) fn over_http(address: SocketAddr, record: Record) -> Outcome {
    match ask::over_http(address, PATHS[record.signal()][0], &body(record)) {
        Ok(answer) if answer.is_ok => Outcome::Acknowledged,
        Ok(answer) => Outcome::Refused(answer.status),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Outcome::Unconnected,
        Err(_) => Outcome::Unanswered,
    }
}

fn over_grpc(client: Client, shared: &Shared, rng: Rng, address: SocketAddr) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a client's runtime")?;
    let mut connection = None;
    run(client, shared, rng, |record| {
        runtime.block_on(async {
            let open = match connection.take() {
                Some(open) => open,
                None => match Connection::open(address).await {
                    Ok(open) => open,
                    Err(_) => return Outcome::Unconnected,
                },
            };
            let sent = open.export(PATHS[record.signal()][1], client::frame(&body(record)));
            match tokio::time::timeout(PATIENCE, sent).await {
                Ok(Ok(reply)) => {
                    connection = Some(open);
                    match reply.status {
                        0 => Outcome::Acknowledged,
                        status => Outcome::Refused(format!("gRPC {status}")),
                    }
                }
                Ok(Err(_)) | Err(_) => Outcome::Unanswered,
            }
        })
    })
}
