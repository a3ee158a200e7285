//! What is done in a run: a small file that users can write.
//!
//! ```toml
//! about = "one sentence"
//! pods = 5                      # each with a network of its own
//! seconds = 10.0                # of measured load, after `warmup` seconds of the same
//! requests_per_second = 20.0    # of each pod
//! items = {traces = 10}         # in a request; and metrics, logs
//! shares = {traces = 1.0}       # of the requests; without it, equal shares of the signals that have items
//! arrivals = "poisson"          # or "constant"
//! protocol = "grpc"             # or "http"
//! compression = "none"          # or "gzip", "zstd"
//! keep = true                   # connections outlive their request
//! connections = 1               # kept gRPC connections of a pod
//! outstanding = 64              # requests of a pod under way at once
//! timeout = 10.0                # seconds
//! phases = [{at = 2.0, factor = 20.0}, {at = 7.0, factor = 1.0}]
//! noisy = {pods = 1, factor = 100.0}   # each arm runs once more without their noise, in the same round
//! quota_kib_per_second = 192    # of a pod, for agents that have quotas
//! events = [{at = 3.0, do = "backend-down"}, {at = 8.0, do = "backend-up"}]
//! disk_mib = 256                # of a filesystem of its own under the agent's data; needed by "disk-full"
//! profile = "shop"              # or "cardinal": what is sent
//! allow = ["lost", "duplicated"]
//! ```

mod bounds;
#[cfg(test)]
mod tests;

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::generator::{Bounds, Compression, Protocol, Transport};
use crate::profile::{CARDINAL, SHOP};
use crate::schedule::{Arrivals, Phase, Rates};
use crate::template::Batch;

/// Those that come with the program: name and text.
pub const COMMITTED: &[(&str, &str)] = &[
    ("agent-killed", include_str!("../scenarios/agent-killed.toml")),
    ("agent-restarted", include_str!("../scenarios/agent-restarted.toml")),
    ("backend-down", include_str!("../scenarios/backend-down.toml")),
    ("backend-slow", include_str!("../scenarios/backend-slow.toml")),
    ("burst", include_str!("../scenarios/burst.toml")),
    ("disk-full", include_str!("../scenarios/disk-full.toml")),
    ("few-large", include_str!("../scenarios/few-large.toml")),
    ("high-cardinality", include_str!("../scenarios/high-cardinality.toml")),
    ("idle", include_str!("../scenarios/idle.toml")),
    ("many-small", include_str!("../scenarios/many-small.toml")),
    ("mixed", include_str!("../scenarios/mixed.toml")),
    ("new-connections", include_str!("../scenarios/new-connections.toml")),
    ("noisy-neighbour", include_str!("../scenarios/noisy-neighbour.toml")),
    ("pod-churn", include_str!("../scenarios/pod-churn.toml")),
    ("quick", include_str!("../scenarios/quick.toml")),
    ("steady", include_str!("../scenarios/steady.toml")),
];

/// Of a scenario's file.
const FILE_BYTES_MAX: usize = 256 << 10;

/// One scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is for.
    pub about: String,
    /// Pods.
    pub pods: usize,
    /// Of measured load.
    pub seconds: f64,
    /// Seconds of the same before.
    #[serde(default = "defaults::warmup")]
    pub warmup: f64,
    /// Of each pod.
    pub requests_per_second: f64,
    /// In a request.
    pub items: Items,
    /// Of the requests.
    #[serde(default)]
    pub shares: Option<Shares>,
    /// How gaps are drawn.
    #[serde(default)]
    pub arrivals: Arrivals,
    /// gRPC or HTTP.
    #[serde(default)]
    pub protocol: Protocol,
    /// Of requests.
    #[serde(default)]
    pub compression: Compression,
    /// Connections outlive their request.
    #[serde(default = "defaults::keep")]
    pub keep: bool,
    /// Kept gRPC connections of a pod.
    #[serde(default = "defaults::connections")]
    pub connections: usize,
    /// Requests of a pod under way at once.
    #[serde(default = "defaults::outstanding")]
    pub outstanding: usize,
    /// Seconds after which there is no answer.
    #[serde(default = "defaults::timeout")]
    pub timeout: f64,
    /// Changes of the rate.
    #[serde(default)]
    pub phases: Vec<Phase>,
    /// Pods that send more than the others.
    #[serde(default)]
    pub noisy: Option<Noisy>,
    /// KiB a second that a pod may send, for agents that know quotas; without it, their defaults.
    #[serde(default)]
    pub quota_kib_per_second: Option<u64>,
    /// What happens meanwhile, in order of time.
    #[serde(default)]
    pub events: Vec<Event>,
    /// MiB of a filesystem of its own under the agent's data; without it, wherever --scratch is.
    #[serde(default)]
    pub disk_mib: Option<u64>,
    /// What is sent.
    #[serde(default)]
    pub profile: Contents,
    /// Mistakes that are not held against an arm: what the scenario does makes them fair.
    #[serde(default)]
    pub allow: Vec<Allowed>,
}

/// Items in a request; 0: none are sent.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Items {
    /// Spans.
    pub traces: usize,
    /// Data points.
    pub metrics: usize,
    /// Log records.
    pub logs: usize,
}

/// Shares of the requests.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shares {
    /// Of spans.
    pub traces: f64,
    /// Of data points.
    pub metrics: f64,
    /// Of log records.
    pub logs: f64,
}

/// The first pods send more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Noisy {
    /// How many.
    pub pods: usize,
    /// How much more.
    pub factor: f64,
}

/// Something that happens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Seconds after the start of the measured load.
    pub at: f64,
    /// What.
    #[serde(rename = "do")]
    pub what: Deed,
}

/// What may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Deed {
    /// The backend answers UNAVAILABLE.
    BackendDown,
    /// The backend answers after half a second.
    BackendSlow,
    /// The backend answers, and at once.
    BackendUp,
    /// kill -9 of the agent, and its start at once.
    AgentKilled,
    /// SIGTERM of the agent, and its start when it has ended.
    AgentRestarted,
    /// What is in one pod is asked to end and started again, pod after pod.
    PodReplaced,
    /// Somebody else's file takes all that is left of the agent's disk.
    DiskFull,
    /// It is removed.
    DiskFree,
}

impl Deed {
    /// What a process has spent and was not seen before is gone with it.
    pub fn ends_a_process(self) -> bool {
        matches!(self, Self::AgentKilled | Self::AgentRestarted | Self::PodReplaced)
    }
}

/// What is sent: a committed profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Contents {
    /// An ordinary application's.
    #[default]
    Shop,
    /// Attributes with thousands of values.
    Cardinal,
}

impl Contents {
    /// The profile's text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Shop => SHOP,
            Self::Cardinal => CARDINAL,
        }
    }
}

/// A mistake that a scenario makes fair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowed {
    /// Acknowledged and lost.
    Lost,
    /// Arrived more than once.
    Duplicated,
}

mod defaults {
    pub(super) fn warmup() -> f64 {
        2.0
    }
    pub(super) fn keep() -> bool {
        true
    }
    pub(super) fn connections() -> usize {
        1
    }
    pub(super) fn outstanding() -> usize {
        64
    }
    pub(super) fn timeout() -> f64 {
        10.0
    }
}

impl Scenario {
    /// One of the committed ones by its name, or the file of that path.
    pub fn load(name: &str) -> Result<Self> {
        if let Some((_, text)) = COMMITTED.iter().find(|(committed, _)| *committed == name) {
            return Self::parse(text).with_context(|| format!("the scenario {name}"));
        }
        if !Path::new(name).is_file() {
            bail!("no scenario and no file is called {name:?}: `list` tells the names");
        }
        let mut text = String::new();
        let file = std::fs::File::open(name).with_context(|| format!("opening {name}"))?;
        file.take(FILE_BYTES_MAX as u64 + 1).read_to_string(&mut text).with_context(|| format!("reading {name}"))?;
        ensure!(text.len() <= FILE_BYTES_MAX, "{name}: a scenario has at most {} KiB", FILE_BYTES_MAX >> 10);
        Self::parse(&text).with_context(|| format!("the scenario of {name}"))
    }

    /// Reads a file's text, and refuses what cannot be run.
    pub fn parse(text: &str) -> Result<Self> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Refuses what cannot be run.
    pub fn check(&self) -> Result<()> {
        bounds::check(self)
    }

    /// Items in a request of each signal.
    pub fn batch(&self) -> Batch {
        [self.items.traces, self.items.metrics, self.items.logs]
    }

    fn shares(&self) -> [f64; 3] {
        match self.shares {
            Some(Shares { traces, metrics, logs }) => [traces, metrics, logs],
            None => self.batch().map(|items| if items > 0 { 1.0 } else { 0.0 }),
        }
    }

    /// Items of a request on average, by the shares of the signals.
    pub fn items_per_request(&self) -> f64 {
        let shares = self.shares();
        let items = shares.iter().zip(self.batch()).map(|(share, items)| share * items as f64).sum::<f64>();
        items / shares.iter().sum::<f64>()
    }

    /// Pods whose latencies are kept apart: the noisy ones.
    pub fn first_group(&self) -> usize {
        self.noisy.map_or(0, |noisy| noisy.pods)
    }

    /// The same without noise: what the others measure is what they have without such a neighbour. `None`: there is no noise.
    pub fn calm(&self) -> Option<Self> {
        let noisy = self.noisy?;
        Some(Self { noisy: Some(Noisy { factor: 1.0, ..noisy }), ..self.clone() })
    }

    /// The measured load.
    pub fn rates(&self) -> Rates {
        let mut pods = vec![self.requests_per_second; self.pods];
        if let Some(noisy) = self.noisy {
            pods[..noisy.pods].iter_mut().for_each(|rate| *rate *= noisy.factor);
        }
        let phases = self.phases.clone();
        Rates { pods, shares: self.shares(), phases, duration: self.seconds, arrivals: self.arrivals }
    }

    /// The load before: the same without phases and without noise.
    pub fn warmup_rates(&self) -> Rates {
        let pods = vec![self.requests_per_second; self.pods];
        Rates { pods, phases: Vec::new(), duration: self.warmup, ..self.rates() }
    }

    /// How requests travel.
    pub fn transport(&self) -> Transport {
        Transport {
            protocol: self.protocol,
            compression: self.compression,
            keep: self.keep,
            connections: self.connections,
        }
    }

    /// How much at once.
    pub fn bounds(&self) -> Bounds {
        Bounds { outstanding: self.outstanding, timeout: Duration::from_secs_f64(self.timeout), ..Bounds::default() }
    }

    /// Its load in words, as it belongs beside every figure.
    pub fn shape(&self) -> String {
        let names = ["spans", "data points", "log records"];
        let items = self.batch().into_iter().zip(names).filter(|(items, _)| *items > 0);
        let items = items.map(|(items, name)| format!("{items} {name}")).collect::<Vec<_>>().join(" or ");
        let compression = match self.compression {
            Compression::None => "no compression",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        let protocol = match self.protocol {
            Protocol::Grpc => "OTLP/gRPC",
            Protocol::Http => "OTLP/HTTP",
        };
        let connections = if self.keep { "kept connections" } else { "a connection for each request" };
        let arrivals = match self.arrivals {
            Arrivals::Poisson => "Poisson",
            Arrivals::Constant => "constant",
        };
        format!(
            "{} pods x {} requests/s of {items}, {arrivals} arrivals, open loop, {protocol}, {compression}, {connections}",
            self.pods, self.requests_per_second
        )
    }
}
