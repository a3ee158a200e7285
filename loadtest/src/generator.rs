//! Sends what is due when it is due, whatever the agent does, on one thread.
//!
//! A request's latency counts from the time when it was due. Each pod has a limit of requests that are under way; what is due
//! beyond it waits in a bounded line (only its time is kept), and what finds the line full is never sent, counted as unsent,
//! and without an answer in the percentiles. How late the generator itself was is kept apart: a run in which it was late says
//! nothing about an agent.
//!
//! It never sends an item twice: who retries is the agent.

mod link;
mod timer;

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::net::TcpSocket;
use tokio::runtime::LocalOptions;
use tokio::task::JoinSet;

use self::link::{Answer, Link};
use self::timer::Timer;
use crate::histogram::Latencies;
use crate::identity::Signal;
use crate::ledger::Ledger;
use crate::measure;
use crate::schedule::{Due, Schedule};
use crate::template::{Plan, Stamp};

#[cfg(test)]
mod tests;

/// Errors that are kept word for word.
const EXAMPLES_MAX: usize = 10;

/// A timer that ends sooner than any request's timeout.
const TIMER: Duration = Duration::from_millis(50);

/// OTLP's two transports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/2 and gRPC's framing.
    #[default]
    Grpc,
    /// HTTP/1.1, protobuf bodies.
    Http,
}

/// Of request bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As they are.
    #[default]
    None,
    /// Level 6, as most SDKs.
    Gzip,
    /// Level 3.
    Zstd,
}

/// How requests travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transport {
    /// gRPC or HTTP.
    pub protocol: Protocol,
    /// Of the bodies.
    pub compression: Compression,
    /// Connections outlive their request.
    pub keep: bool,
    /// Kept gRPC connections of a pod.
    pub connections: usize,
}

impl Default for Transport {
    fn default() -> Self {
        Self { protocol: Protocol::Grpc, compression: Compression::None, keep: true, connections: 1 }
    }
}

/// Where pods send to. Called on the generator's thread.
pub trait Target {
    /// A socket in the pod's network, not connected yet, and where it is to be connected to.
    fn socket(&self, pod: usize) -> io::Result<(TcpSocket, SocketAddr)>;
}

/// Every pod sends to the same address, from this process's network.
#[derive(Debug, Clone, Copy)]
pub struct Here(pub SocketAddr);

impl Target for Here {
    fn socket(&self, _pod: usize) -> io::Result<(TcpSocket, SocketAddr)> {
        Ok((TcpSocket::new_v4()?, self.0))
    }
}

/// What bounds a run.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Requests of a pod that are under way at once.
    pub outstanding: usize,
    /// Requests of a pod that are due and wait for one of those to end.
    pub waiting: usize,
    /// After this long there is no answer.
    pub timeout: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { outstanding: 64, waiting: 4_096, timeout: Duration::from_secs(10) }
    }
}

/// What to send.
#[derive(Debug)]
pub struct Load {
    /// The requests.
    pub plan: Arc<Plan>,
    /// When.
    pub schedule: Schedule,
    /// How.
    pub transport: Transport,
    /// How much at once.
    pub bounds: Bounds,
    /// Pods whose latencies are kept apart: those below this number are in the first group.
    pub first_group: usize,
}

/// Figures of a run under way, for whoever watches.
#[derive(Debug, Default)]
pub struct Live {
    /// Requests that were due so far.
    pub due: AtomicU64,
    /// Requests acknowledged so far.
    pub acknowledged: AtomicU64,
    /// Ends the run early.
    pub stop: AtomicBool,
}

/// What became of the requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// Came due.
    pub due: u64,
    /// Acknowledged as a whole.
    pub acknowledged: u64,
    /// Answered with another status, by status.
    pub refused: BTreeMap<u32, u64>,
    /// Acknowledged but for some items; none of them is owed then.
    pub partly: u64,
    /// Broken connections, and those that could not be made.
    pub failed: u64,
    /// No answer in time.
    pub timed_out: u64,
    /// Not even sent: too many were under way and waiting.
    pub unsent: u64,
    /// Connections opened.
    pub connections: u64,
    /// Bytes of bodies, as sent.
    pub bytes: u64,
    /// From the time when a request was due to its acknowledgement; of the first group of pods, and of the others.
    pub latencies: [Latencies; 2],
    /// From the time when a request was due to the generator's attention.
    pub lateness: Latencies,
    /// CPU time of the generator's thread.
    pub cpu: Duration,
    /// From the start until the last answer.
    pub took: Duration,
    /// The first errors, in words.
    pub examples: Vec<String>,
}

struct Generator {
    load: LoadParts,
    ledger: Arc<Ledger>,
    links: Vec<Link>,
    pods: RefCell<Vec<Pod>>,
    outcome: RefCell<Outcome>,
    live: Arc<Live>,
    started: Instant,
    started_unix: u64,
}

struct LoadParts {
    plan: Arc<Plan>,
    transport: Transport,
    bounds: Bounds,
    first_group: usize,
}

#[derive(Debug, Default)]
struct Pod {
    outstanding: usize,
    waiting: VecDeque<Due>,
    requests: usize,
}

/// Runs to the end of the schedule and until every request has its answer or none. Blocks its thread.
pub fn run(load: Load, target: Rc<dyn Target>, ledger: Arc<Ledger>, live: Arc<Live>) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let cpu = measure::thread_cpu_time()?;
    // A task as all others: waking what `block_on` itself waits for, or a task of a LocalSet, costs a write to an eventfd.
    let mut outcome = runtime.block_on(async move {
        let mut driver = JoinSet::new();
        let stopped = live.clone();
        driver.spawn_local(drive(load, target, ledger, live));
        // A timeout that would be the next timer of all wakes the runtime, by an eventfd again: now this one is.
        driver.spawn_local(async move {
            let mut interval = tokio::time::interval(TIMER);
            loop {
                interval.tick().await;
                ensure!(!stopped.stop.load(Ordering::Relaxed), "the run was ended early");
            }
        });
        driver.join_next().await.context("it is there")??
    })?;
    outcome.cpu = measure::thread_cpu_time()?.saturating_sub(cpu);
    Ok(outcome)
}

async fn drive(load: Load, target: Rc<dyn Target>, ledger: Arc<Ledger>, live: Arc<Live>) -> Result<Outcome> {
    let Load { plan, mut schedule, transport, bounds, first_group } = load;
    let links = (0..plan.pods).map(|pod| Link::new(target.clone(), pod, transport)).collect::<Result<_>>()?;
    let pods = RefCell::new((0..plan.pods).map(|_| Pod::default()).collect());
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("a clock after 1970")?;
    let generator = Rc::new(Generator {
        load: LoadParts { plan, transport, bounds, first_group },
        ledger,
        links,
        pods,
        outcome: RefCell::default(),
        live,
        started: Instant::now(),
        started_unix: u64::try_from(since_1970.as_nanos()).context("a clock before 2554")?,
    });
    let timer = Timer::new()?;
    let mut under_way = JoinSet::new();
    while let Some(next) = schedule.peek().filter(|_| !generator.live.stop.load(Ordering::Relaxed)) {
        tokio::select! {
            biased;
            waited = timer.until(generator.started + Duration::from_nanos(next)) => {
                waited?;
                // A rate that cannot be kept would never let go of this thread.
                let stops = || generator.live.stop.load(Ordering::Relaxed);
                while schedule.peek().is_some_and(|at| at <= generator.elapsed()) && !stops() {
                    if let Some(due) = schedule.next() {
                        generator.due(due, &mut under_way)?;
                    }
                }
            }
            Some(ended) = under_way.join_next() => generator.ended(ended??, &mut under_way)?,
        }
    }
    while let Some(ended) = under_way.join_next().await {
        generator.ended(ended??, &mut under_way)?;
    }
    let mut outcome = generator.outcome.take();
    outcome.took = generator.started.elapsed();
    outcome.connections = generator.links.iter().map(Link::opened).sum();
    Ok(outcome)
}

impl Generator {
    fn elapsed(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A request has come due.
    fn due(self: &Rc<Self>, due: Due, under_way: &mut JoinSet<Result<u16>>) -> Result<()> {
        self.live.due.fetch_add(1, Ordering::Relaxed);
        {
            let mut outcome = self.outcome.borrow_mut();
            outcome.due += 1;
            outcome.lateness.record_ns(self.elapsed().saturating_sub(due.at));
            let mut pods = self.pods.borrow_mut();
            let pod = &mut pods[usize::from(due.pod)];
            if pod.outstanding >= self.load.bounds.outstanding {
                if pod.waiting.len() < self.load.bounds.waiting {
                    pod.waiting.push_back(due);
                } else {
                    outcome.unsent += 1;
                    outcome.latencies[self.group(due.pod)].record_unanswered();
                }
                return Ok(());
            }
            pod.outstanding += 1;
        }
        self.start(due, under_way)
    }

    /// A request has ended: the pod's next one, if one waits, takes its place.
    fn ended(self: &Rc<Self>, pod: u16, under_way: &mut JoinSet<Result<u16>>) -> Result<()> {
        let next = {
            let mut pods = self.pods.borrow_mut();
            let pod = &mut pods[usize::from(pod)];
            let next = pod.waiting.pop_front();
            pod.outstanding -= usize::from(next.is_none());
            next
        };
        next.map_or(Ok(()), |due| self.start(due, under_way))
    }

    fn start(self: &Rc<Self>, due: Due, under_way: &mut JoinSet<Result<u16>>) -> Result<()> {
        let templates = self.load.plan.templates(due.signal);
        let variant = {
            let mut pods = self.pods.borrow_mut();
            let pod = &mut pods[usize::from(due.pod)];
            pod.requests += 1;
            (pod.requests + usize::from(due.pod)) % templates.len()
        };
        let template = &templates[variant];
        let items = template.items();
        let taken = self.ledger.take(due.pod, due.signal, items);
        let first = taken.ok().context("the run is too long: the account of its items is full")?;
        let prefix = if self.load.transport.protocol == Protocol::Grpc { 5 } else { 0 };
        let mut message = Vec::with_capacity(prefix + template.len());
        message.resize(prefix, 0);
        let variant = u8::try_from(variant).expect("at most VARIANTS_MAX templates");
        let stamp = Stamp { pod: due.pod, variant, first, time: self.started_unix + due.at };
        template.write(due.signal, &self.load.plan.ids, stamp, &mut message);
        let body = link::body(message, self.load.transport)?;
        self.outcome.borrow_mut().bytes += body.len() as u64;
        let generator = self.clone();
        under_way.spawn_local(async move {
            let link = &generator.links[usize::from(due.pod)];
            let sent = tokio::time::timeout(generator.load.bounds.timeout, link.send(due.signal, body));
            let answer = sent.await;
            let latency = Duration::from_nanos(generator.elapsed().saturating_sub(due.at));
            if matches!(answer, Ok(Ok(Answer::Accepted))) {
                generator.ledger.acknowledge(due.pod, due.signal, first, items);
                generator.live.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            let group = generator.group(due.pod);
            generator.outcome.borrow_mut().count(answer.ok(), group, latency);
            Ok(due.pod)
        });
        Ok(())
    }

    fn group(&self, pod: u16) -> usize {
        usize::from(usize::from(pod) >= self.load.first_group)
    }
}

impl Outcome {
    /// One request's end; `None`: no answer in time.
    fn count(&mut self, answer: Option<Result<Answer>>, group: usize, latency: Duration) {
        match answer {
            Some(Ok(Answer::Accepted)) => {
                self.acknowledged += 1;
                self.latencies[group].record(latency);
                return;
            }
            Some(Ok(Answer::Partly)) => self.partly += 1,
            Some(Ok(Answer::Refused(status))) => *self.refused.entry(status).or_default() += 1,
            Some(Err(error)) => {
                self.failed += 1;
                let words = format!("{error:#}");
                if self.examples.len() < EXAMPLES_MAX && !self.examples.contains(&words) {
                    self.examples.push(words);
                }
            }
            None => self.timed_out += 1,
        }
        self.latencies[group].record_unanswered();
    }

    /// The same of other pods, which sent at the same time.
    pub fn add(&mut self, other: Self) {
        self.due += other.due;
        self.acknowledged += other.acknowledged;
        for (status, count) in other.refused {
            *self.refused.entry(status).or_default() += count;
        }
        self.partly += other.partly;
        self.failed += other.failed;
        self.timed_out += other.timed_out;
        self.unsent += other.unsent;
        self.connections += other.connections;
        self.bytes += other.bytes;
        for (own, others) in self.latencies.iter_mut().zip(&other.latencies) {
            own.add(others);
        }
        self.lateness.add(&other.lateness);
        self.cpu += other.cpu;
        self.took = self.took.max(other.took);
        self.examples.extend(other.examples);
        self.examples.truncate(EXAMPLES_MAX);
    }

    /// Latencies of all pods.
    pub fn all_latencies(&self) -> Latencies {
        let mut all = self.latencies[0].clone();
        all.add(&self.latencies[1]);
        all
    }

    /// Requests that were not acknowledged, for whatever reason.
    pub fn unacknowledged(&self) -> u64 {
        self.due - self.acknowledged
    }
}

/// The signals that a plan has requests of, as shares of equal size.
pub fn equal_shares(plan: &Plan) -> [f64; 3] {
    Signal::ALL.map(|signal| if plan.templates(signal).is_empty() { 0.0 } else { 1.0 })
}
