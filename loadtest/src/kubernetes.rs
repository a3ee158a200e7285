//! The comparison on a cluster: pods instead of network namespaces, sidecars instead of processes.
//!
//! ```text
//! start      a namespace, its pods, until each is Ready and its agent accepts        -> startup
//! idle       nothing is sent                                                         -> memory
//! warm up    as outside of a cluster
//! load       the generator in each pod, told to begin by the conductor here          -> CPU, latency
//! drain      until everything acknowledged has arrived here, or patience ends
//! after      -> memory, the account; the namespace is deleted
//! ```
//!
//! It needs kubectl, images that the nodes have or can pull, and an address of this machine that pods (and Pillion's gateway) reach:
//! sink and judge are here. What cannot be had so is left out of the report and named in it: PSS, threads, descriptors, the
//! largest memory under load; and agents are not killed.

pub mod conductor;
pub mod kubectl;
pub mod share;
pub mod usage;
mod way;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::conductor::{Conductor, Pods};
use self::kubectl::{Kubectl, until};
use self::share::Part;
use self::usage::{Name, Reading};
use self::way::APPLICATION;
pub use self::way::{Arm, Way};
use crate::cell::{self, Cell, Cpu, DRAIN_MAX, Percentiles, QUIET};
use crate::compare::{self, About, Comparison, Request, Turn};
use crate::generator::Outcome;
use crate::interrupt;
use crate::judge::{Desk, Judge, THREAD};
use crate::ledger::Ledger;
use crate::limits::AGENT_MEMORY_MIB;
use crate::measure;
use crate::profile::Profile;
use crate::scenario::{Deed, Scenario};
use crate::sink::{Keep, Sink};

#[cfg(test)]
mod tests;

/// Pods that are not Ready by then will not be.
const PATIENCE: Duration = Duration::from_secs(300);

/// Between two questions for what comes within a second.
const BETWEEN: Duration = Duration::from_millis(100);

/// Where a comparison is made, and with what.
#[derive(Debug)]
pub struct Site {
    /// How the cluster is reached.
    pub kubectl: Kubectl,
    /// This machine as pods see it, and the sink's port.
    pub sink: SocketAddr,
    /// The same, where pods call.
    pub conductor: SocketAddr,
    /// Of the application: this program.
    pub application_image: String,
    /// Of the Collector.
    pub otelcol_image: String,
    /// Where Pillion is installed.
    pub pillion_namespace: String,
    /// Tells this command's pods and namespaces from those of others.
    pub run: u64,
}

/// What only a cluster has to tell of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct OnCluster {
    /// Nodes that the pods were on.
    pub nodes: usize,
    /// From a pod's creation until it was Ready, milliseconds: the median of the pods, and the slowest.
    pub ready_ms: (f64, f64),
    /// By container's name: the application, sidecars, and what is shared.
    pub containers: BTreeMap<String, Used>,
    /// Of the whole pods, sandboxes included.
    pub whole: Used,
}

/// What containers of one name, or pods, used together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Used {
    /// How many.
    pub count: u64,
    /// They are in nobody's pod: what all pods of a node share.
    pub is_shared: bool,
    /// CPU seconds during load and drain.
    pub cpu: f64,
    /// Working set before any load, KiB.
    pub idle_kib: u64,
    /// The same after it.
    pub after_kib: u64,
}

/// Refuses what cannot be done to a cluster.
pub fn check(scenario: &Scenario) -> Result<()> {
    let deed = scenario
        .events
        .iter()
        .map(|event| event.what)
        .find(|deed| !matches!(deed, Deed::BackendDown | Deed::BackendSlow | Deed::BackendUp));
    ensure!(deed.is_none(), "{deed:?} is not done on a cluster: agents and disks there are left alone");
    ensure!(
        scenario.quota_kib_per_second.is_none(),
        "quota_kib_per_second: the quotas of a cluster's Pillion are those that it is installed with"
    );
    Ok(())
}

/// Runs them all; `say` is told what happens.
pub fn run(request: Request<'_>, site: &Site, arms: &[Arm], say: &mut dyn FnMut(&str)) -> Result<Comparison> {
    check(&request.scenario)?;
    let conductor = Conductor::bind((Ipv4Addr::UNSPECIFIED, site.conductor.port()).into())?;
    let limits = format!(
        "{AGENT_MEMORY_MIB} MiB of memory a sidecar, Pillion's containers as installed, no limit of processors and as many workers as each has by itself; CPU and working set \
         as the kubelet counts them, up to 15 s of idleness around the load included. Not measured on a cluster: PSS, private \
         memory, threads, descriptors, context switches, memory under load. Nothing is pinned; delivery times rely on the \
         nodes' clocks"
    );
    let about: Vec<About> = arms.iter().map(|arm| arm.about.clone()).collect();
    compare::rounds(request, &about, (machine(site)?, limits), &mut |turn| {
        say(&format!("round {}: {}", turn.round + 1, turn.name));
        Trial::new(site, arms[turn.arm].way, &conductor, &turn)?.run(say)
    })
}

/// The nodes in words.
fn machine(site: &Site) -> Result<String> {
    let nodes = site.kubectl.get("/api/v1/nodes")?;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for node in nodes["items"].as_array().into_iter().flatten() {
        let text = |key: &str| node["status"]["nodeInfo"][key].as_str().unwrap_or("?").to_owned();
        let processors = node["status"]["capacity"]["cpu"].as_str().unwrap_or("?");
        let kind = format!(
            "{processors} processors, kubelet {}, {}, Linux {}",
            text("kubeletVersion"),
            text("containerRuntimeVersion"),
            text("kernelVersion")
        );
        *kinds.entry(kind).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.into_iter().map(|(kind, count)| format!("{count} nodes of {kind}")).collect();
    Ok(format!("a cluster: {}", kinds.join("; ")))
}

/// A namespace that ends with the run.
struct Namespace<'a> {
    kubectl: &'a Kubectl,
    name: String,
}

impl<'a> Namespace<'a> {
    fn create(kubectl: &'a Kubectl, name: String) -> Result<Self> {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        kubectl.create(&[
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        ])?;
        let namespace = Self { kubectl, name };
        // A pod cannot be made before its service account is there.
        let account = format!("/api/v1/namespaces/{}/serviceaccounts/default", namespace.name);
        until(PATIENCE, BETWEEN, || kubectl.get(&account))?;
        Ok(namespace)
    }

    /// Returns when its pods are gone: they would be noise in the next run.
    fn delete(&self) -> Result<()> {
        self.kubectl.run(&["delete", "pods", "--all", "-n", &self.name, "--wait=true"], "")?;
        self.kubectl.run(&["delete", "namespace", &self.name, "--wait=false"], "").map(drop)
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        // Deleted already when the run went well.
        drop(self.kubectl.run(&["delete", "namespace", &self.name, "--ignore-not-found", "--wait=false"], ""));
    }
}

/// One run of one arm.
struct Trial<'a> {
    site: &'a Site,
    way: Way,
    scenario: &'a Scenario,
    conductor: &'a Conductor,
    turn: &'a Turn<'a>,
    /// Ends after the sink, which puts requests there.
    sink: Sink,
    desk: Desk,
    judge: Arc<Judge>,
    ledger: Arc<Ledger>,
}

/// The pods of a trial that runs.
struct Running {
    pods: Pods,
    /// By namespace and name: the trial's, then what is shared.
    names: Vec<(String, String)>,
    nodes: Vec<String>,
}

/// This process and the cluster at one time.
struct Look {
    reading: Reading,
    sink_cpu: Duration,
}

impl<'a> Trial<'a> {
    fn new(site: &'a Site, way: Way, conductor: &'a Conductor, turn: &'a Turn<'a>) -> Result<Self> {
        let scenario = turn.scenario;
        let profile = Profile::parse(scenario.profile.text())?;
        let ids_seed = cell::ids_seed(turn.name, scenario, turn.seed);
        let plan = Arc::new(cell::plan(&profile, scenario, turn.seed, ids_seed)?);
        let (judge, desk, taker) = cell::judge(&profile, plan, way.attests())?;
        let sink = Sink::start((Ipv4Addr::UNSPECIFIED, site.sink.port()).into(), Keep::Hand(taker))?;
        let ledger = Arc::new(Ledger::new(scenario.pods));
        Ok(Self { site, way, scenario, conductor, turn, sink, desk, judge, ledger })
    }

    fn run(self, say: &mut dyn FnMut(&str)) -> Result<Cell> {
        let name =
            format!("pillion-loadtest-{:08x}-{}-{}", self.site.run & 0xffff_ffff, self.turn.round + 1, self.way.name());
        let namespace = Namespace::create(&self.site.kubectl, name)?;
        let result = self.in_namespace(&namespace, say);
        if let Err(error) = &result {
            say(&format!("{}: {error:#}", self.way.name()));
        }
        namespace.delete()?;
        result
    }

    fn in_namespace(&self, namespace: &Namespace<'_>, say: &mut dyn FnMut(&str)) -> Result<Cell> {
        let Turn { seed, round, .. } = *self.turn;
        let mut cell =
            Cell { arm: self.way.name().to_owned(), round, seed, pods: self.scenario.pods, ..Cell::default() };
        let (mut running, ready, startup) = self.start(&namespace.name)?;
        cell.startup_ms = cell::millis(startup);
        say(&format!("  {} pods can send after {:.1} s", cell.pods, startup.as_secs_f64()));
        running.pods.prepare(seed, cell::ids_seed(self.turn.name, self.scenario, seed))?;
        let idle = self.look(&running)?;
        let mut before = None;
        if self.scenario.warmup > 0.0 {
            running.pods.send(Part::WarmUp, &self.ledger)?;
            self.drain()?;
            before = Some(self.look(&running)?);
        }
        let before = before.as_ref().unwrap_or(&idle);
        self.judge.forget_delivery();
        let bytes_out = self.sink.bytes();
        say(&format!("  {} s of load", self.scenario.seconds));
        let outcome = self.load(&mut running.pods)?;
        self.drain()?;
        let after = self.look(&running)?;
        cell.first_delivery_ms = self.judge.first_delivery().map(|nanos| cell::millis(Duration::from_nanos(nanos)));
        cell.bytes_out = self.sink.bytes() - bytes_out;
        cell.account = self.judge.account(&self.ledger);
        cell.delivery = Percentiles::of(&self.judge.delivery(&self.ledger));
        let on_cluster = costs(&namespace.name, [&idle.reading, &before.reading, &after.reading])?;
        let on_cluster = OnCluster { nodes: running.nodes.len(), ready_ms: median_and_most(ready), ..on_cluster };
        cell.cpu = Cpu {
            sink: after.sink_cpu.saturating_sub(before.sink_cpu).as_secs_f64(),
            machine: after.reading.nodes.saturating_sub(before.reading.nodes).as_secs_f64(),
            wall: after.reading.at.saturating_duration_since(before.reading.at).as_secs_f64(),
            ..on_cluster.cpu()
        };
        cell.held_idle.working_set = Some(on_cluster.agents(|used| used.idle_kib));
        cell.held_after.working_set = Some(on_cluster.agents(|used| used.after_kib));
        cell.on_cluster = Some(on_cluster);
        cell.take_outcome(outcome, self.scenario);
        Ok(cell)
    }

    /// Creates the pods; how long each took to be Ready, and all of them to be able to send.
    fn start(&self, namespace: &str) -> Result<(Running, Vec<Duration>, Duration)> {
        let Self { site, way, scenario, .. } = *self;
        let pods: Vec<Value> =
            (0..scenario.pods).map(|number| way.pod(site, scenario.protocol, namespace, number)).collect();
        self.keep(&pods[0])?;
        let watch = site.kubectl.watch(namespace)?;
        let created = Instant::now();
        site.kubectl.create(&pods)?;
        let mut seen: BTreeMap<String, Pod> = BTreeMap::new();
        while seen.values().filter(|pod| pod.ready.is_some()).count() < scenario.pods {
            let Some((at, event)) = watch.next(created + PATIENCE)? else {
                bail!("not all pods are Ready after {PATIENCE:?}: {}", self.explain(namespace));
            };
            let object = &event["object"];
            let Some(name) = object["metadata"]["name"].as_str() else { bail!("the watch of the pods says {event}") };
            let known = seen.contains_key(name);
            let pod = seen.entry(name.to_owned()).or_default();
            if !known {
                way.check(object)?;
                // A pod that has a node when it is first seen was made before the watch began.
                pod.created = if object["spec"]["nodeName"].is_null() { at } else { created }.into();
            }
            pod.see(at, object);
        }
        let ready: Vec<Duration> = seen.values().filter_map(Pod::took).collect();
        let pods = self.conductor.gather(site.run, scenario, PATIENCE).with_context(|| {
            format!("pods call {}: is --sink an address of this machine that they reach?", site.conductor)
        })?;
        let startup = created.elapsed();
        let nodes: BTreeSet<String> = seen.values().map(|pod| pod.node.clone()).collect();
        let nodes: Vec<String> = nodes.into_iter().collect();
        let mut names: Vec<_> = seen.into_keys().map(|name| (namespace.to_owned(), name)).collect();
        names.extend(way.shared(site, &nodes)?);
        Ok((Running { pods, names, nodes }, ready, startup))
    }

    /// Beside the report: the first pod, as it was asked for.
    fn keep(&self, pod: &Value) -> Result<()> {
        // JSON is YAML.
        std::fs::write(self.turn.dir.join("pod.yaml"), serde_json::to_string_pretty(pod)?)?;
        if self.way == Way::Otelcol {
            std::fs::write(self.turn.dir.join("otelcol.yaml"), way::collector_config(self.site.sink))?;
        }
        Ok(())
    }

    fn explain(&self, namespace: &str) -> String {
        let ask = |what: &[&str]| {
            let words: Vec<&str> = what.iter().copied().chain(["-n", namespace]).collect();
            self.site.kubectl.run(&words, "").unwrap_or_else(|error| format!("{error:#}"))
        };
        format!(
            "\n{}\n{}",
            ask(&["get", "pods", "-o", "wide"]),
            ask(&["get", "events", "--field-selector=type=Warning"])
        )
    }

    fn look(&self, running: &Running) -> Result<Look> {
        let reading = Reading::take(&self.site.kubectl, &running.nodes, &running.names, usage::BETWEEN)?;
        Ok(Look { reading, sink_cpu: measure::cpu_time_of_threads("sink")? + measure::cpu_time_of_threads(THREAD)? })
    }

    /// The measured load; this thread does what is to happen meanwhile.
    fn load(&self, pods: &mut Pods) -> Result<Outcome> {
        let mut events = self.scenario.events.iter().peekable();
        let (say, said) = sync_channel(1);
        std::thread::scope(|scope| {
            let ledger = &self.ledger;
            scope.spawn(move || drop(say.send(pods.send(Part::Measured, ledger))));
            let began = Instant::now();
            let outcome = loop {
                match said.recv_timeout(cell::TICK) {
                    Ok(outcome) => break outcome,
                    Err(RecvTimeoutError::Timeout) => interrupt::check()?,
                    Err(RecvTimeoutError::Disconnected) => bail!("the pods ended without a word"),
                }
                while let Some(event) = events.next_if(|event| event.at <= began.elapsed().as_secs_f64()) {
                    cell::to_backend(&self.sink, event.what);
                }
            };
            events.for_each(|event| cell::to_backend(&self.sink, event.what));
            outcome
        })
    }

    fn drain(&self) -> Result<()> {
        cell::drain(&self.judge, &self.ledger, DRAIN_MAX)?;
        cell::pause(QUIET)?;
        self.desk.settle();
        Ok(())
    }
}

/// What was seen of a pod.
#[derive(Debug, Default)]
struct Pod {
    created: Option<Instant>,
    ready: Option<Instant>,
    node: String,
}

impl Pod {
    fn see(&mut self, at: Instant, object: &Value) {
        if let Some(node) = object["spec"]["nodeName"].as_str() {
            node.clone_into(&mut self.node);
        }
        let conditions = object["status"]["conditions"].as_array();
        let is_ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
        if is_ready {
            self.ready.get_or_insert(at);
        }
    }

    fn took(&self) -> Option<Duration> {
        Some(self.ready?.saturating_duration_since(self.created?))
    }
}

/// Of all pods there are: no percentile of many more of them is guessed.
fn median_and_most(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().map(cell::millis).unwrap_or_default();
    (at(times.len() / 2), at(times.len().saturating_sub(1)))
}

/// Adds up what was read at idle, before the load and after it.
fn costs(namespace: &str, [idle, before, after]: [&Reading; 3]) -> Result<OnCluster> {
    let mut costs = OnCluster::default();
    let of = |reading: &Reading, name: &Name| reading.used.get(name).map_or(0, |usage| usage.working_set_kib);
    for (name, cpu) in after.since(before)? {
        let is_shared = name.namespace != namespace;
        let sum = match name.container.is_empty() {
            true if is_shared => continue,
            true => &mut costs.whole,
            false => costs.containers.entry(name.container.clone()).or_default(),
        };
        sum.count += 1;
        sum.is_shared = is_shared;
        sum.cpu += cpu.as_secs_f64();
        sum.idle_kib += of(idle, &name);
        sum.after_kib += of(after, &name);
    }
    Ok(costs)
}

impl OnCluster {
    /// Of all containers but the application's.
    fn agents(&self, of: impl Fn(&Used) -> u64) -> u64 {
        self.containers.iter().filter(|(name, _)| *name != APPLICATION).map(|(_, used)| of(used)).sum()
    }

    /// The same of CPU time, by container; the application is the generator.
    fn cpu(&self) -> Cpu {
        let mut roles: BTreeMap<String, f64> =
            self.containers.iter().map(|(name, used)| (name.clone(), used.cpu)).collect();
        let generator = roles.remove(APPLICATION).unwrap_or_default();
        // The sum of nothing is -0.0.
        Cpu { arm: roles.values().fold(0.0, |sum, seconds| sum + seconds), roles, generator, ..Cpu::default() }
    }
}
