//! One run: one arm under one scenario, from its start to its end, with everything measured.
//!
//! ```text
//! disk       of an arm that acknowledges what is on it: a bare write and fdatasync
//! start      the sink, then the arm, until every pod can send        -> startup
//! idle       nothing is sent                                         -> memory
//! warm up    the load without its phases and events; judged, not measured
//! load       the generator on its own thread; events                 -> CPU, latency, memory in its middle, the peak
//! drain      until everything acknowledged has arrived, or patience ends
//! after      -> memory, the account
//! ```
//!
//! Sink, generator and judge are threads of this process, on the first processor, the judge the least urgent; the arm has the others. Where there is only one,
//! nothing is pinned.

mod bare_sync;
mod costs;
mod pinning;
#[cfg(test)]
mod tests;
mod watcher;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use self::costs::Reading;
pub(crate) use self::pinning::Pinning;
pub use self::watcher::Peak;
use self::watcher::Watcher;
use crate::arm::{Arm, End, Running, Site};
use crate::generator::{self, Live, Load, Outcome, Protocol};
use crate::histogram::Latencies;
use crate::identity::{Ids, Signal};
use crate::interrupt;
use crate::item::hash;
use crate::judge::{Account, Desk, Judge, Settings};
use crate::kubernetes::OnCluster;
use crate::ledger::Ledger;
use crate::limits::{Cage, Limits};
use crate::measure::{Memory, Usage, memory_available};
use crate::network::Network;
use crate::profile::Profile;
use crate::roster::{self, Roster};
use crate::scenario::{Deed, Scenario};
use crate::schedule::{Rates, Schedule};
use crate::sink::{Fault, Keep, Pace, Sink, Taker};
use crate::small_disk::SmallDisk;
use crate::template::Plan;

/// The sink's port where it has a network of its own.
const SINK_PORT: u16 = 5317;

/// What is acknowledged and does not arrive for so long is lost: longer than any agent's delay between two tries.
pub const DRAIN_MAX: Duration = Duration::from_secs(60);

/// After everything has arrived: what comes now is a duplicate.
pub(crate) const QUIET: Duration = Duration::from_millis(500);

/// How often the run is looked at.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// A generator that is later than this, once in a hundred requests, may have measured itself...
const LATENESS_MAX_MS: f64 = 1.0;

/// ...if that is more than this share of the slowest hundredth's latency, too. Lateness is part of every latency; it
/// is told for each arm, because sinks of large batches make the generator later than sinks of small ones.
const LATENESS_SHARE_MAX: f64 = 0.25;

/// A percentile is told when at least so many were slower.
const SLOWER_MIN: f64 = 10.0;

/// The delay of a slow backend.
const SLOW: Duration = Duration::from_millis(500);

/// Everything about one run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cell {
    /// The arm's name.
    pub arm: String,
    /// Rounds are compared with themselves only.
    pub round: usize,
    /// Makes the same load again.
    pub seed: u64,
    /// Pods.
    pub pods: usize,
    /// Seconds from the first request to the last answer.
    pub seconds: f64,
    /// What became of the items, those of the warm-up included.
    pub account: Account,
    /// What became of the requests.
    pub requests: Requests,
    /// From due to acknowledged, of all pods but the noisy ones.
    pub latency: Percentiles,
    /// The same of the noisy ones, if there are any.
    pub noisy_latency: Option<Percentiles>,
    /// From due to the backend, of items that arrived.
    pub delivery: Percentiles,
    /// How late the generator was.
    pub lateness: Percentiles,
    /// CPU seconds during load and drain.
    pub cpu: Cpu,
    /// Of all the arm's processes, KiB.
    pub memory: Phases,
    /// The most memory that was seen under load and in the drain.
    #[serde(default)]
    pub peak: Peak,
    /// Memory by other ways of counting, at idle.
    #[serde(default)]
    pub held_idle: Held,
    /// The same after the load.
    #[serde(default)]
    pub held_after: Held,
    /// Of all the arm's processes: threads and descriptors after the load, context switches from idle on.
    pub usage: Usage,
    /// Bytes of bodies that the backend took after the warm-up, before decompression.
    #[serde(default)]
    pub bytes_out: u64,
    /// CPU seconds of the whole machine less generator, sink, and what is left then of the run without an agent in the same round:
    /// what the kernel does for an arm on nobody's account is in it, and so is all noise. Below 0 where noise is larger.
    #[serde(default)]
    pub cpu_beyond_direct: Option<f64>,
    /// From the start of the arm until every pod could send, milliseconds.
    pub startup_ms: f64,
    /// How long the first item was on its way to the backend, milliseconds.
    pub first_delivery_ms: Option<f64>,
    /// Before an arm that acknowledges what is on the disk: a bare write and fdatasync there, one a millisecond.
    #[serde(default)]
    pub bare_sync: Option<Percentiles>,
    /// What only a cluster has, where the run was made on one. Memory by processes, and [`Usage`], are not measured there.
    #[serde(default)]
    pub on_cluster: Option<OnCluster>,
    /// Why its latencies say nothing about the arm. CPU, memory and the account say what they say: none of them needs a
    /// punctual generator.
    pub void: Option<String>,
}

/// Numbers of requests.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Requests {
    /// Came due.
    pub due: u64,
    /// Acknowledged.
    pub acknowledged: u64,
    /// Refused, by status.
    pub refused: BTreeMap<u32, u64>,
    /// Acknowledged in part.
    pub partly: u64,
    /// On broken connections.
    pub failed: u64,
    /// Without an answer in time.
    pub timed_out: u64,
    /// Never sent, for lack of room.
    pub unsent: u64,
    /// Acknowledged, at a time that the kernel did not tell: each counts as answered when that was read, which is later.
    #[serde(default)]
    pub unstamped: u64,
    /// Bytes of bodies.
    pub bytes: u64,
    /// Connections opened.
    pub connections: u64,
    /// The first errors.
    pub examples: Vec<String>,
}

/// Milliseconds; `None`: more requests than that share had no answer, or there were too few of them to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half of them were faster.
    pub p50: Option<f64>,
    /// One of a hundred was slower.
    pub p99: Option<f64>,
    /// One of a thousand was slower.
    pub p999: Option<f64>,
    /// The slowest.
    pub max: Option<f64>,
    /// How many they are made of.
    #[serde(default)]
    pub count: u64,
    /// Of those, how many never had an answer.
    #[serde(default)]
    pub unanswered: u64,
}

/// CPU seconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Cpu {
    /// Of the arm's processes.
    pub arm: f64,
    /// The same by role.
    pub roles: BTreeMap<String, f64>,
    /// Of the generator.
    pub generator: f64,
    /// Of the sink, the judge, and who looks on.
    pub sink: f64,
    /// Of the whole machine, whoever used it.
    pub machine: f64,
    /// Asked for by the whole machine and not had: steal. Not in any of the others.
    #[serde(default)]
    pub stolen: f64,
    /// The length of the time in which all of these were spent.
    #[serde(default)]
    pub wall: f64,
}

impl Cpu {
    /// Processors that were busy with something else than arm, generator and sink, on average: other programs, and the kernel on
    /// nobody's account.
    pub fn others(&self) -> f64 {
        let own = self.arm + self.generator + self.sink;
        if self.wall > 0.0 { ((self.machine - own) / self.wall).max(0.0) } else { 0.0 }
    }

    /// The share of the CPU time which the machine asked for that its hypervisor gave to others.
    pub fn stolen_share(&self) -> f64 {
        if self.stolen > 0.0 { self.stolen / (self.stolen + self.machine) } else { 0.0 }
    }
}

/// Memory at three times.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Phases {
    /// Before any load.
    pub idle: Memory,
    /// In the middle of the load.
    pub load: Memory,
    /// After it.
    pub after: Memory,
}

/// Memory of an arm as others than its processes count it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Held {
    /// Working set of its cgroup, KiB; `None`: it has none.
    pub working_set: Option<u64>,
    /// What MemAvailable of the machine has lost since before its start, KiB; noise included.
    pub unavailable: Option<i64>,
}

impl Held {
    fn now(cage: &Cage, available: Option<u64>) -> Self {
        let lost = |before: u64| Some(i64::try_from(before).ok()? - i64::try_from(memory_available().ok()?).ok()?);
        Self { working_set: cage.working_set(), unavailable: available.and_then(lost) }
    }
}

/// What a run needs besides arm and scenario.
#[derive(Debug, Clone, Copy)]
pub struct Options<'a> {
    /// Where pods are.
    pub network: &'a Network,
    /// What each agent may have.
    pub limits: &'a Limits,
    /// An empty directory.
    pub dir: &'a Path,
    /// Decides load and contents.
    pub seed: u64,
    /// The round's number.
    pub round: usize,
    /// What is acknowledged and does not arrive for so long after the load is lost; [`DRAIN_MAX`] but in tests.
    pub drain: Duration,
}

/// Runs it. `watch` is told the live figures ten times a second.
pub fn run(
    arm: &dyn Arm,
    scenario: &Scenario,
    options: Options<'_>,
    watch: &mut dyn FnMut(&Live, f64),
) -> Result<Cell> {
    let pinning = Pinning::new()?;
    let roster = Arc::new(Roster::default());
    let bench = Bench::new(arm, scenario, options, &pinning, roster.clone())?;
    // Before what runs in it, so that it is dropped after it.
    let cage = options.limits.cage()?;
    let site = Site {
        network: options.network,
        pods: scenario.pods,
        sink_port: bench.sink.address().port(),
        dir: options.dir,
        is_disk_small: scenario.disk_mib.is_some(),
        quota_kib_per_second: scenario.quota_kib_per_second,
        cage: &cage,
        roster: &roster,
    };
    let is_compared_with_disk = arm.is_durable() && scenario.disk_mib.is_none();
    let bare_sync = is_compared_with_disk.then(|| bare_sync::measure(options.dir)).transpose()?;
    let available = memory_available().ok();
    let started = Instant::now();
    let mut running = arm.start(&site).with_context(|| format!("starting {}", arm.name()))?;
    let startup = started.elapsed();
    pause(Duration::from_secs(1))?;
    let mut cell = Cell { arm: arm.name().to_owned(), round: options.round, seed: options.seed, ..Cell::default() };
    cell.pods = scenario.pods;
    cell.bare_sync = bare_sync;
    cell.startup_ms = millis(startup);
    cell.memory.idle = roster.memory()?;
    cell.held_idle = Held::now(&cage, available);
    let switches_before = roster.usage()?.switches;
    if scenario.warmup > 0.0 {
        bench.load(running.as_mut(), scenario.warmup_rates(), &[], &pinning, &mut |_, _| {})?;
        bench.drain()?;
    }
    bench.judge.forget_delivery();
    let bytes_out = bench.sink.bytes();
    let before = Reading::take()?;
    roster.look(true)?;
    let at_start = roster.spent();
    let middle = Duration::from_secs_f64(scenario.seconds / 2.0);
    let watcher = Watcher::start(&pinning, roster.clone(), cage.working_set_file(), middle)?;
    let outcome = bench.load(running.as_mut(), scenario.rates(), &scenario.events, &pinning, watch)?;
    bench.drain()?;
    let now = Reading::take()?;
    let seen = watcher.end()?;
    roster.look(true)?;
    cell.first_delivery_ms = bench.judge.first_delivery().map(|nanos| millis(Duration::from_nanos(nanos)));
    cell.cpu = now.since(&before, outcome.cpu, roster::since(roster.spent(), &at_start));
    cell.usage = roster.usage()?;
    cell.usage.switches = cell.usage.switches.saturating_sub(switches_before);
    cell.bytes_out = bench.sink.bytes() - bytes_out;
    cell.held_after = Held::now(&cage, available);
    cell.memory.load = seen.middle;
    cell.peak = seen.peak;
    cell.memory.after = roster.memory()?;
    cell.account = bench.judge.account(&bench.ledger);
    cell.delivery = Percentiles::of(&bench.judge.delivery(&bench.ledger));
    cell.take_outcome(outcome, scenario);
    Ok(cell)
}

/// Is told the generator's figures and the time.
type Look<'a> = dyn FnMut(&Live, f64) + 'a;

/// What is there for the time of a run besides the arm.
struct Bench<'a> {
    plan: Arc<Plan>,
    ledger: Arc<Ledger>,
    judge: Arc<Judge>,
    /// Ends after the sink, which puts requests there.
    sink: Sink,
    desk: Desk,
    scenario: &'a Scenario,
    options: Options<'a>,
    disk: Option<SmallDisk>,
    roster: Arc<Roster>,
    /// Pods that were replaced, one after the other.
    replaced: std::cell::Cell<usize>,
}

impl<'a> Bench<'a> {
    fn new(
        arm: &dyn Arm,
        scenario: &'a Scenario,
        options: Options<'a>,
        pinning: &Pinning,
        roster: Arc<Roster>,
    ) -> Result<Self> {
        let profile = Profile::parse(scenario.profile.text())?;
        let plan = Arc::new(plan(&profile, scenario, options.seed, ids_seed(arm.name(), scenario, options.seed))?);
        let (judge, desk, taker) = pinning.as_load(|| judge(&profile, plan.clone(), arm.attests()))??;
        let port = match options.network {
            Network::Here => 0,
            Network::Pods(_) => SINK_PORT,
        };
        let sink = pinning.as_load(|| Sink::start((Ipv4Addr::UNSPECIFIED, port).into(), Keep::Hand(taker)))??;
        let ledger = Arc::new(Ledger::new(scenario.pods));
        let disk = scenario.disk_mib.map(|mib| SmallDisk::mount(options.dir.join("data"), mib)).transpose()?;
        Ok(Self { plan, ledger, judge, desk, sink, scenario, options, disk, roster, replaced: std::cell::Cell::new(0) })
    }

    /// Sends, on a thread of its own; this one looks on and does what is to happen.
    fn load(
        &self,
        running: &mut dyn Running,
        rates: Rates,
        events: &[crate::scenario::Event],
        pinning: &Pinning,
        look: &mut Look<'_>,
    ) -> Result<Outcome> {
        let addresses = (0..self.scenario.pods).map(|pod| match self.scenario.protocol {
            Protocol::Grpc => running.grpc(pod),
            Protocol::Http => running.http(pod),
        });
        let target = self.options.network.target(addresses.collect())?;
        let load = Load {
            plan: self.plan.clone(),
            schedule: Schedule::new(rates, self.options.seed),
            transport: self.scenario.transport(),
            bounds: self.scenario.bounds(),
            first_group: self.scenario.first_group(),
        };
        let live = Arc::new(Live::default());
        let (say, said) = sync_channel(1);
        let (for_thread, ledger) = (live.clone(), self.ledger.clone());
        let thread = pinning.as_load(|| {
            std::thread::Builder::new().name("generator".into()).spawn(move || {
                drop(say.send(generator::run(load, Rc::new(target), ledger, for_thread)));
            })
        })??;
        let outcome = self.look_on(running, events, &said, &live, look);
        if outcome.is_err() {
            live.stop.store(true, Ordering::Relaxed);
        }
        // The next arm's pods are this arm's: nothing of this load may go on.
        drop(thread.join());
        outcome
    }

    /// Until the generator has ended, or something has failed.
    fn look_on(
        &self,
        running: &mut dyn Running,
        events: &[crate::scenario::Event],
        said: &Receiver<Result<Outcome>>,
        live: &Live,
        look: &mut Look<'_>,
    ) -> Result<Outcome> {
        let began = Instant::now();
        let mut events = events.iter().peekable();
        let outcome = loop {
            match said.recv_timeout(TICK) {
                Ok(outcome) => break outcome?,
                Err(RecvTimeoutError::Timeout) => interrupt::check()?,
                Err(RecvTimeoutError::Disconnected) => anyhow::bail!("the generator ended without a word"),
            }
            look(live, began.elapsed().as_secs_f64());
            while let Some(event) = events.next_if(|event| event.at <= began.elapsed().as_secs_f64()) {
                if event.what.ends_a_process() {
                    // Of an agent that is killed, nobody waits for what it has started.
                    self.roster.look(false)?;
                }
                self.happen(event.what, running)?;
            }
        };
        for event in events {
            self.happen(event.what, running)?;
        }
        Ok(outcome)
    }

    fn happen(&self, deed: Deed, running: &mut dyn Running) -> Result<()> {
        match deed {
            Deed::BackendDown | Deed::BackendSlow | Deed::BackendUp => to_backend(&self.sink, deed),
            Deed::DiskFull => self.disk()?.fill()?,
            Deed::DiskFree => self.disk()?.free()?,
            Deed::AgentKilled => running.restart(End::Killed)?,
            Deed::AgentRestarted => running.restart(End::Graceful)?,
            Deed::PodReplaced => running.replace(self.next_pod())?,
        }
        Ok(())
    }

    fn disk(&self) -> Result<&SmallDisk> {
        self.disk.as_ref().context("a disk that fills up has a size: see Scenario::check")
    }

    fn next_pod(&self) -> usize {
        let pod = self.replaced.get();
        self.replaced.set((pod + 1) % self.scenario.pods);
        pod
    }

    /// Returns when nothing is owed any more, or patience has ended.
    fn drain(&self) -> Result<()> {
        drain(&self.judge, &self.ledger, self.options.drain)?;
        pause(QUIET)?;
        self.desk.settle();
        Ok(())
    }
}

impl Cell {
    pub(crate) fn take_outcome(&mut self, outcome: Outcome, scenario: &Scenario) {
        let [noisy, others] = &outcome.latencies;
        self.latency = Percentiles::of(others);
        self.noisy_latency = scenario.noisy.map(|_| Percentiles::of(noisy));
        self.lateness = Percentiles::of(&outcome.lateness);
        self.seconds = outcome.took.as_secs_f64();
        self.void = lateness_voids(&self.lateness, &self.latency, &self.cpu);
        self.requests = Requests {
            due: outcome.due,
            acknowledged: outcome.acknowledged,
            refused: outcome.refused,
            partly: outcome.partly,
            failed: outcome.failed,
            timed_out: outcome.timed_out,
            unsent: outcome.unsent,
            unstamped: outcome.unstamped,
            bytes: outcome.bytes,
            connections: outcome.connections,
            examples: outcome.examples,
        };
    }

    /// Items acknowledged for each second of the arm's CPU.
    pub fn items_per_cpu_second(&self, items_per_request: f64) -> Option<f64> {
        let items = self.requests.acknowledged as f64 * items_per_request;
        (self.cpu.arm > 0.0).then(|| items / self.cpu.arm)
    }

    /// A figure that is read from processes: nobody has it of a run on a cluster.
    pub fn of_processes(&self, figure: f64) -> Option<f64> {
        self.on_cluster.is_none().then_some(figure)
    }

    /// What the arm holds after the load, KiB: PSS, or the working set where processes cannot be read.
    pub fn memory_kib(&self) -> Option<f64> {
        let working_set = self.held_after.working_set.map(|kib| kib as f64);
        self.of_processes(self.memory.after.pss as f64).or(working_set)
    }

    /// The generator's share of all CPU that the run took.
    pub fn generator_share(&self) -> f64 {
        let run = self.cpu.arm + self.cpu.generator + self.cpu.sink;
        if run > 0.0 { self.cpu.generator / run } else { 0.0 }
    }
}

impl Percentiles {
    pub(crate) fn of(latencies: &Latencies) -> Self {
        let (count, unanswered) = (latencies.count(), latencies.unanswered());
        let at = |share| latencies.percentile(share).filter(|_| is_enough(count, share)).map(millis);
        Self { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: latencies.max().map(millis), count, unanswered }
    }

    /// The median; infinite when more than half had no answer. So that no median, ratio or assertion passes over a round because
    /// its agent did not answer.
    pub fn p50(&self) -> Option<f64> {
        self.or_never(self.p50, 0.5)
    }

    /// The same of 99 of a hundred.
    pub fn p99(&self) -> Option<f64> {
        self.or_never(self.p99, 0.99)
    }

    /// The same of 999 of a thousand.
    pub fn p999(&self) -> Option<f64> {
        self.or_never(self.p999, 0.999)
    }

    /// The slowest; infinite when any had no answer.
    pub fn max(&self) -> Option<f64> {
        self.max.or((self.unanswered > 0).then_some(f64::INFINITY))
    }

    fn or_never(&self, value: Option<f64>, share: f64) -> Option<f64> {
        let is_unanswered = self.unanswered as f64 > self.count as f64 * (1.0 - share);
        value.or((is_unanswered && is_enough(self.count, share)).then_some(f64::INFINITY))
    }
}

/// Whether a percentile is more than the luck of a few requests.
fn is_enough(count: u64, share: f64) -> bool {
    // Half a request for what floating point makes of 1 - 0.99.
    count as f64 * (1.0 - share) + 0.5 >= SLOWER_MIN
}

/// Why latencies say nothing when the generator was so late, and what to do about it.
fn lateness_voids(lateness: &Percentiles, latency: &Percentiles, cpu: &Cpu) -> Option<String> {
    let late = lateness.p99?;
    let is_much = latency.p99.is_none_or(|latency| late > LATENESS_SHARE_MAX * latency);
    (late > LATENESS_MAX_MS && is_much).then(|| {
        format!(
            "the generator was {late:.1} ms late once in a hundred requests (at most {LATENESS_MAX_MS} ms or a quarter of the \
             ack latency's p99), while others kept {:.1} processors busy and a hypervisor kept {:.0} % of the CPU time for others: \
             end what else runs here or on the host, or lower --rate or --pods",
            cpu.others(),
            cpu.stolen_share() * 100.0
        )
    })
}

/// What decides the ids of an arm's items. What of one run's arrives late is no repeat of the next one's.
pub(crate) fn ids_seed(arm: &str, scenario: &Scenario, seed: u64) -> u64 {
    seed ^ hash(format!("{arm} {scenario:?}").as_bytes())
}

/// What an arm is sent: the same for all arms but for the ids.
pub(crate) fn plan(profile: &Profile, scenario: &Scenario, seed: u64, ids_seed: u64) -> Result<Plan> {
    let mut plan = Plan::new(profile, seed, scenario.pods, scenario.batch())?;
    plan.ids = Ids::new(ids_seed);
    Ok(plan)
}

/// The judge of what arrives, the desk where that waits for it, and the sink's way there.
pub(crate) fn judge(profile: &Profile, plan: Arc<Plan>, attested: Option<&str>) -> Result<(Arc<Judge>, Desk, Taker)> {
    let resource = profile.says().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    let judge = Arc::new(Judge::new(Settings { plan, attested: attested.map(str::to_owned), resource }));
    let desk = Desk::start(judge.clone())?;
    let tray = desk.tray();
    let taker = Taker::new(move |received| {
        let signal = Signal::of_path(&received.path).ok_or("not a path of OTLP")?;
        tray.put(signal, received.payload.clone(), unix_now());
        Ok::<(), &str>(())
    });
    Ok((judge, desk, taker))
}

/// Does what may happen to a backend; all else is not its business.
pub(crate) fn to_backend(sink: &Sink, deed: Deed) {
    match deed {
        Deed::BackendDown => sink.fail_with(Fault::Unavailable),
        Deed::BackendSlow => sink.answer(Pace::After(SLOW)),
        Deed::BackendUp => {
            sink.answer(Pace::Now);
            sink.fail_with(Fault::None);
        }
        Deed::AgentKilled | Deed::AgentRestarted | Deed::PodReplaced | Deed::DiskFull | Deed::DiskFree => {}
    }
}

/// Returns when nothing is owed any more, or patience has ended.
pub(crate) fn drain(judge: &Judge, ledger: &Ledger, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    while judge.missing(ledger) > 0 && Instant::now() < deadline {
        pause(TICK)?;
    }
    Ok(())
}

/// A phase of a run is a length of time: nothing is waited for but the end of the run.
pub(crate) fn pause(length: Duration) -> Result<()> {
    let end = Instant::now() + length;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        interrupt::check()?;
        std::thread::park_timeout(left.min(TICK));
    }
    interrupt::check()
}

pub(crate) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn unix_now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}
