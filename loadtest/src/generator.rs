//! Sends what is due when it is due, whatever the agent does, on one thread.
//!
//! A request's latency counts from the time when it was due until the kernel received its answer, whose stamp says when that was.
//! So answers wake nobody: they are read when the next request is due, unless something waits for one. Each pod has a limit of
//! requests that are under way; what is due beyond it waits in a bounded line (only its time is kept), and what finds the line full
//! is never sent, counted as unsent, and without an answer in the percentiles. How late the generator itself was is kept apart: a
//! run in which it was late says nothing about an agent.
//!
//! It never sends an item twice: who retries is the agent.

mod answer;
mod body;
mod clock;
mod http1;
mod http2;
mod link;
mod out;
mod stamp;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::thread::set_current_timer_slack;
use serde::{Deserialize, Serialize};
use slab::Slab;

use self::answer::{Answer, Ended, Heard};
use self::body::Bodies;
use self::clock::Clock;
use self::link::{Links, nap};
use crate::histogram::Latencies;
use crate::identity::Signal;
use crate::ledger::Ledger;
use crate::measure;
use crate::schedule::{Due, Schedule};
use crate::template::{Plan, Stamp};

#[cfg(test)]
mod chop;
#[cfg(test)]
mod tests;

/// Errors that are kept word for word.
const EXAMPLES_MAX: usize = 10;

/// So often it is looked whether the run is to end early.
const LOOK: Duration = Duration::from_millis(50);

/// What arrives waits at most for so long: a peer may want an answer itself, or close.
const NAP_MAX: Duration = Duration::from_millis(5);

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
    /// A TCP socket in the pod's network, not connected yet, and where it is to be connected to.
    fn socket(&self, pod: usize) -> io::Result<(OwnedFd, SocketAddr)>;
}

/// Every pod sends to the same address, from this process's network.
#[derive(Debug, Clone, Copy)]
pub struct Here(pub SocketAddr);

impl Target for Here {
    fn socket(&self, _pod: usize) -> io::Result<(OwnedFd, SocketAddr)> {
        Ok((tcp_socket()?, self.0))
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
    /// Acknowledged, but the kernel did not tell when that arrived: it counts as arrived when it was read.
    #[serde(default)]
    pub unstamped: u64,
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
    plan: Arc<Plan>,
    bounds: Bounds,
    first_group: usize,
    ledger: Arc<Ledger>,
    links: Links,
    bodies: Bodies,
    /// Under way, by the token that names each to the links.
    calls: Slab<Call>,
    /// None of them times out before this.
    timeout_at: u64,
    pods: Vec<Pod>,
    /// Requests of all pods that wait for another one's end.
    waiting: usize,
    outcome: Outcome,
    live: Arc<Live>,
    clock: Clock,
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Call {
    due: Due,
    first: u64,
    items: usize,
    connection: Option<usize>,
    timeout_at: u64,
}

/// How the thread sleeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// Whatever arrives.
    Nap(Duration),
    /// Until something arrives.
    Wait(Duration),
}

#[derive(Debug, Default)]
struct Pod {
    outstanding: usize,
    waiting: VecDeque<Due>,
    requests: usize,
}

/// Runs to the end of the schedule and until every request has its answer or none. Blocks its thread.
pub fn run(load: Load, target: Rc<dyn Target>, ledger: Arc<Ledger>, live: Arc<Live>) -> Result<Outcome> {
    let cpu = measure::thread_cpu_time()?;
    // Or the kernel lets the thread sleep for up to 50 us longer than asked.
    set_current_timer_slack(NonZeroU64::new(1))?;
    let outcome = drive(load, target, ledger, live);
    set_current_timer_slack(None)?;
    let mut outcome = outcome?;
    outcome.cpu = measure::thread_cpu_time()?.saturating_sub(cpu);
    Ok(outcome)
}

fn drive(load: Load, target: Rc<dyn Target>, ledger: Arc<Ledger>, live: Arc<Live>) -> Result<Outcome> {
    let Load { plan, schedule, transport, bounds, first_group } = load;
    let mut generator = Generator {
        bounds,
        first_group,
        ledger,
        links: Links::new(target, plan.pods, transport)?,
        bodies: Bodies::new(transport),
        calls: Slab::new(),
        timeout_at: u64::MAX,
        pods: (0..plan.pods).map(|_| Pod::default()).collect(),
        waiting: 0,
        plan,
        outcome: Outcome::default(),
        live,
        clock: Clock::start()?,
    };
    generator.send_all(schedule)?;
    let mut outcome = generator.outcome;
    outcome.took = Duration::from_nanos(generator.clock.elapsed());
    outcome.connections = generator.links.opened();
    Ok(outcome)
}

impl Generator {
    fn send_all(&mut self, mut schedule: Schedule) -> Result<()> {
        let live = self.live.clone();
        let stops = || live.stop.load(Ordering::Relaxed);
        let mut has_arrived = false;
        loop {
            // First, since a request that is due may take the place or the connection of one that has ended.
            if has_arrived {
                self.links.look(&mut self.clock)?;
            }
            self.settle()?;
            let mut now = self.clock.elapsed();
            self.time_out(now)?;
            ensure!(!stops(), "the run was ended early");
            // A rate that cannot be kept would never let go of this thread.
            while schedule.peek().is_some_and(|at| at <= now) && !stops() {
                if let Some(due) = schedule.next() {
                    self.due(due, now)?;
                }
                now = self.clock.elapsed();
            }
            self.settle()?;
            let next = schedule.peek();
            if next.is_none() && self.calls.is_empty() {
                return Ok(());
            }
            has_arrived = self.rest(next)?;
        }
    }

    /// Until something is to be done; returns whether something may have arrived.
    fn rest(&self, next: Option<u64>) -> io::Result<bool> {
        let is_awaited = self.waiting > 0 || self.links.is_pressing();
        match Rest::of(next, self.timeout_at, self.clock.elapsed(), is_awaited) {
            Rest::Nap(time) => nap(time).map(|()| true),
            Rest::Wait(time) => self.links.wait(time),
        }
    }

    /// A request has come due, as is noticed now.
    fn due(&mut self, due: Due, now: u64) -> Result<()> {
        self.live.due.fetch_add(1, Ordering::Relaxed);
        self.outcome.due += 1;
        self.outcome.lateness.record_ns(now.saturating_sub(due.at));
        let pod = &mut self.pods[usize::from(due.pod)];
        if pod.outstanding < self.bounds.outstanding {
            pod.outstanding += 1;
            return self.start(due, now);
        }
        if pod.waiting.len() < self.bounds.waiting {
            pod.waiting.push_back(due);
            self.waiting += 1;
        } else {
            self.outcome.unsent += 1;
            let group = self.group(due.pod);
            self.outcome.latencies[group].record_unanswered();
        }
        Ok(())
    }

    fn start(&mut self, due: Due, now: u64) -> Result<()> {
        let templates = self.plan.templates(due.signal);
        let pod = &mut self.pods[usize::from(due.pod)];
        pod.requests += 1;
        let variant = (pod.requests + usize::from(due.pod)) % templates.len();
        let template = &templates[variant];
        let items = template.items();
        let taken = self.ledger.take(due.pod, due.signal, items);
        let first = taken.ok().context("the run is too long: the account of its items is full")?;
        let stamp = Stamp {
            pod: due.pod,
            variant: u8::try_from(variant).context("at most VARIANTS_MAX templates")?,
            first,
            // What waited for room was late by that, too.
            time: self.clock.unix(due.at),
        };
        let body = self.bodies.make(|out| template.write(due.signal, &self.plan.ids, stamp, out))?;
        self.outcome.bytes += body.len() as u64;
        let timeout = u64::try_from(self.bounds.timeout.as_nanos()).unwrap_or(u64::MAX);
        let timeout_at = now.saturating_add(timeout);
        let token = self.calls.insert(Call { due, first, items, connection: None, timeout_at });
        self.calls[token].connection = self.links.send(token, usize::from(due.pod), due.signal, body);
        self.timeout_at = self.timeout_at.min(timeout_at);
        Ok(())
    }

    /// Counts what has ended. What waited for that is sent, and may end at once.
    fn settle(&mut self) -> Result<()> {
        loop {
            let mut ends = self.links.ends();
            if ends.is_empty() {
                return Ok(());
            }
            for Heard { ended: Ended { token, answer }, arrived } in ends.drain(..) {
                if let Some(call) = self.calls.try_remove(token) {
                    self.outcome.unstamped += u64::from(arrived.is_none() && answer == Ok(Answer::Accepted));
                    self.ended(call, Some(answer), arrived)?;
                }
            }
            self.links.reuse(ends);
        }
    }

    /// A request has ended; `None`: no answer in time. The pod's next one, if one waits, takes its place.
    fn ended(&mut self, call: Call, answer: Option<Result<Answer, String>>, arrived: Option<u64>) -> Result<()> {
        let Due { at, pod, signal } = call.due;
        let arrived = arrived.unwrap_or_else(|| self.clock.elapsed());
        let latency = Duration::from_nanos(arrived.saturating_sub(at));
        if answer == Some(Ok(Answer::Accepted)) {
            self.ledger.acknowledge(pod, signal, call.first, call.items);
            self.live.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.outcome.count(answer, self.group(pod), latency);
        let pod = &mut self.pods[usize::from(pod)];
        match pod.waiting.pop_front() {
            Some(due) => {
                self.waiting -= 1;
                self.start(due, self.clock.elapsed())
            }
            None => {
                pod.outstanding -= 1;
                Ok(())
            }
        }
    }

    /// Gives up what has had no answer for too long. All are looked at, but at most once in the time that each of them has.
    fn time_out(&mut self, now: u64) -> Result<()> {
        if now < self.timeout_at {
            return Ok(());
        }
        let is_over = |call: &Call| call.timeout_at <= now;
        let over: Vec<usize> = self.calls.iter().filter(|(_, call)| is_over(call)).map(|(token, _)| token).collect();
        for token in over {
            // A connection that broke meanwhile has ended it, and its token may name a later one.
            let Some(call) = self.calls.get(token).copied().filter(is_over) else { continue };
            if let Some(connection) = call.connection {
                self.links.cancel(token, connection);
            }
            self.calls.remove(token);
            // What ended with it, before its token is given away.
            self.settle()?;
            self.ended(call, None, None)?;
        }
        self.timeout_at = self.calls.iter().map(|(_, call)| call.timeout_at).min().unwrap_or(u64::MAX);
        Ok(())
    }

    fn group(&self, pod: u16) -> usize {
        usize::from(usize::from(pod) >= self.first_group)
    }
}

impl Rest {
    /// Until the next request is due or one times out, both in nanoseconds after the start.
    fn of(next: Option<u64>, timeout_at: u64, now: u64, is_awaited: bool) -> Self {
        let until = next.unwrap_or(u64::MAX).min(timeout_at);
        let time = Duration::from_nanos(until.saturating_sub(now));
        // After the last request, answers are all that is left to wait for.
        if is_awaited || next.is_none() || time > NAP_MAX { Self::Wait(time.min(LOOK)) } else { Self::Nap(time) }
    }
}

impl Outcome {
    /// One request's end; `None`: no answer in time.
    fn count(&mut self, answer: Option<Result<Answer, String>>, group: usize, latency: Duration) {
        match answer {
            Some(Ok(Answer::Accepted)) => {
                self.acknowledged += 1;
                self.latencies[group].record(latency);
                return;
            }
            Some(Ok(Answer::Partly)) => self.partly += 1,
            Some(Ok(Answer::Refused(status))) => *self.refused.entry(status).or_default() += 1,
            Some(Err(words)) => {
                self.failed += 1;
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
        self.unstamped += other.unstamped;
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

/// A TCP socket that blocks nobody, in the network that the thread is in.
pub(crate) fn tcp_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?)
}
