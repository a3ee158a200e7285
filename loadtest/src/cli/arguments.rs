//! Arguments, and nothing else.

use std::path::PathBuf;

use anyhow::Result;
use clap::builder::TypedValueParser;
use clap::{Args, Parser, Subcommand};

use super::{absolute, amount, pods_list, seconds};
use crate::report::Cluster;
use crate::scenario::Scenario;

const AFTER_HELP: &str = "\
Examples:
  pillion-loadtest list                                        the scenarios
  pillion-loadtest run steady                                  each arm once
  pillion-loadtest compare --quick                             a first comparison; gets rotel, and builds pillion
  pillion-loadtest baselines                                   gets the Collector and rotel; needs Go and npm
  pillion-loadtest compare steady --rounds 9 --out result      files: a page, JSON, CSV
  pillion-loadtest report before after                         what changed between two of them
  pillion-loadtest cost result --nodes 200 --pods 30           what a cluster would take
  pillion-loadtest run my-scenario.toml --arms direct,pillion  a scenario of one's own
  pillion-loadtest sweep pods=5,20,50 --name idle              the same with other numbers of pods
  pillion-loadtest saturate                                    spans per CPU-second, beside the floor
  pillion-loadtest compare steady --kubernetes --sink 192.0.2.7:24317
                                                               the same on a cluster; needs images, and Pillion installed

It needs neither root nor a cluster: each pod gets a network namespace in a user namespace, by `unshare` of util-linux and
`ip` of iproute2. `pillion` is looked for beside this program. On a cluster it needs kubectl and an address of this machine that
pods reach; PSS, threads and descriptors are not measured there, no agent is killed and no disk filled.

Exit status: 0 well, 1 it or one of its runs failed, 2 wrong arguments, 3 an arm lost, repeated, changed or misattributed items,
or has a slow tail, 4 an assertion of --assert does not hold, 130 and 143 ended by Ctrl-C
and SIGTERM.";

/// Compares ways in which telemetry may leave a pod: each started for real, under the same load, every item accounted for.
#[derive(Debug, Parser)]
#[command(name = "pillion-loadtest", version, after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[arg(long, hide = true)]
    pub(super) inside: bool,
    #[command(subcommand)]
    pub(super) task: Task,
}

#[derive(Debug, Subcommand)]
pub(super) enum Task {
    /// Lists the scenarios that come with it
    List,
    /// Runs a scenario once with each arm
    Run {
        /// One of `list`, or a file
        name: String,
        #[command(flatten)]
        load: Load,
    },
    /// Runs a scenario in shuffled rounds and says what is more than noise
    Compare {
        /// One of `list`, or a file
        #[arg(default_value = "steady")]
        name: String,
        /// Runs of each arm; below 5 nothing is decided
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000).map(usize::from))]
        rounds: usize,
        /// The scenario `quick`
        #[arg(long, conflicts_with = "name")]
        quick: bool,
        #[command(flatten)]
        kubernetes: KubernetesArguments,
        #[command(flatten)]
        load: Load,
    },
    /// Gets what others make into the cache, and says what is missing
    Baselines {
        /// Only these: rotel, otelcol-minimal, otelcol
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        /// The cache, unless it is below ~/.cache
        #[arg(long, value_parser = absolute)]
        cache: Option<PathBuf>,
    },
    /// Tells a comparison again, or what changed between two
    Report {
        /// A directory that --out wrote, or its comparison.json
        old: PathBuf,
        /// Another one
        new: Option<PathBuf>,
        /// What must hold of the last one, a file; exit status 4 when it does not
        #[arg(long = "assert", value_name = "FILE")]
        assertions: Option<PathBuf>,
        /// Another result's directory, whose figures stand beside the promises on the page: a comparison, a sweep, what saturate or
        /// the bench `ways` wrote; may be given several times
        #[arg(long, value_name = "DIR")]
        beside: Vec<PathBuf>,
        /// Writes the files of the last one again, as this version does
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Tells what a cluster would take, by a comparison that was made
    Cost {
        /// A directory that --out wrote, or its comparison.json
        result: PathBuf,
        #[command(flatten)]
        cluster: ClusterArguments,
    },
    /// Counts spans per CPU-second of saturated agents: one pod, 4 connections x 4 in flight, closed loop
    Saturate {
        /// Spans in a request
        #[arg(long, value_delimiter = ',', default_value = "512,100,10,1",
              value_parser = clap::value_parser!(u16).range(1..=10_000).map(usize::from))]
        sizes: Vec<usize>,
        /// Which arms, as for `run`
        #[arg(
            long,
            value_delimiter = ',',
            default_value = "floor,pillion,otelcol,otelcol-minimal,rotel,floor-durable,pillion-durable,otelcol-file"
        )]
        arms: Vec<String>,
        /// Of load, for each arm and size
        #[arg(long, default_value_t = 4.0, value_parser = seconds)]
        seconds: f64,
        /// Runs of each arm and size
        #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=1000).map(usize::from))]
        rounds: usize,
        /// Decides the order; by chance without it, and told
        #[arg(long)]
        seed: Option<u64>,
        #[command(flatten)]
        places: Places,
    },
    /// The floor's own process
    #[command(hide = true)]
    Floor { mode: String, listen: std::net::SocketAddr, backend: std::net::SocketAddr, data: PathBuf },
    /// The application of a pod on a cluster
    #[command(hide = true)]
    Pod {
        #[arg(long)]
        number: u16,
        #[arg(long)]
        run: u64,
        #[arg(long)]
        conductor: std::net::SocketAddr,
        #[arg(long)]
        target: std::net::SocketAddr,
    },
    /// Runs a scenario with several numbers of pods
    Sweep {
        /// Such as pods=5,20,50
        #[arg(value_name = "pods=N,N", value_parser = pods_list)]
        numbers: std::vec::Vec<usize>,
        /// One of `list`, or a file
        #[arg(long, default_value = "idle")]
        name: String,
        /// Runs of each arm for each number
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000).map(usize::from))]
        rounds: usize,
        #[command(flatten)]
        load: Load,
    },
}

#[derive(Debug, Args)]
pub(super) struct Load {
    /// Which arms: direct; pillion, pillion-durable, and each with -unmerged; otelcol, otelcol-minimal, and each with -file for a
    /// queue on the disk; otelcol-daemonset; rotel [default:
    /// direct,pillion,otelcol,otelcol-minimal,otelcol-daemonset,rotel; with --kubernetes, where there are no others:
    /// direct,pillion,otelcol]
    #[arg(long, value_delimiter = ',')]
    arms: Vec<String>,
    /// Decides load, contents and order; by chance without it, and told
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// Pods instead of the scenario's
    #[arg(long)]
    pods: Option<usize>,
    /// Seconds of load instead of the scenario's
    #[arg(long)]
    seconds: Option<f64>,
    /// Requests a second of each pod instead of the scenario's
    #[arg(long)]
    rate: Option<f64>,
    /// Spans in a request instead of the scenario's items
    #[arg(long)]
    spans: Option<usize>,
    #[command(flatten)]
    pub(super) places: Places,
}

/// The same on a cluster.
#[derive(Debug, Args)]
pub(super) struct KubernetesArguments {
    /// On a cluster, with sidecars as containers, instead of in network namespaces here
    #[arg(long, requires = "sink")]
    pub(super) kubernetes: bool,
    /// How the cluster is reached; split at spaces
    #[arg(long, env = "KUBECTL", default_value = "kubectl", value_name = "COMMAND")]
    pub(super) kubectl: String,
    /// This machine as pods, and Pillion's gateway, reach it: the sink listens at that port, and at the next one pods are told what
    /// to do
    #[arg(long, value_name = "IP:PORT", requires = "kubernetes")]
    pub(super) sink: Option<std::net::SocketAddr>,
    /// The application's image: this program (`deploy/images/build --loadtest`)
    #[arg(long, value_name = "IMAGE", default_value = concat!("pillion.dev/loadtest:", env!("CARGO_PKG_VERSION")))]
    pub(super) loadtest_image: String,
    /// The Collector's image
    #[arg(long, value_name = "IMAGE", default_value = concat!("pillion.dev/loadtest-otelcol:", env!("CARGO_PKG_VERSION")))]
    pub(super) otelcol_image: String,
    /// Where Pillion is installed, with a destination at --sink
    #[arg(long, value_name = "NAMESPACE", default_value = "pillion-system")]
    pub(super) pillion_namespace: String,
}

/// A cluster, with the defaults of [`Cluster`].
#[derive(Debug, Args)]
pub(super) struct ClusterArguments {
    /// Nodes
    #[arg(long, default_value_t = Cluster::default().nodes, value_parser = amount)]
    nodes: f64,
    /// Pods with telemetry on each node
    #[arg(long, default_value_t = Cluster::default().pods, value_parser = amount)]
    pods: f64,
    /// Items that each pod sends a second
    #[arg(long, default_value_t = Cluster::default().items_per_second, value_parser = amount)]
    items: f64,
    /// What a sidecar requests, MiB
    #[arg(long, default_value_t = Cluster::default().sidecar_memory_mib, value_parser = amount)]
    sidecar_memory: f64,
    /// What a sidecar requests, thousandths of a processor
    #[arg(long, default_value_t = Cluster::default().sidecar_cpu_milli, value_parser = amount)]
    sidecar_cpu: f64,
    /// What is shared on a node requests, MiB
    #[arg(long, default_value_t = Cluster::default().gateway_memory_mib, value_parser = amount)]
    gateway_memory: f64,
    /// What is shared on a node requests, thousandths of a processor
    #[arg(long, default_value_t = Cluster::default().gateway_cpu_milli, value_parser = amount)]
    gateway_cpu: f64,
    /// What a shim requests, MiB
    #[arg(long, default_value_t = Cluster::default().shim_memory_mib, value_parser = amount)]
    shim_memory: f64,
    /// What a shim requests, thousandths of a processor
    #[arg(long, default_value_t = Cluster::default().shim_cpu_milli, value_parser = amount)]
    shim_cpu: f64,
}

impl ClusterArguments {
    /// The cluster that is meant.
    pub(super) fn cluster(&self) -> Cluster {
        Cluster {
            nodes: self.nodes,
            pods: self.pods,
            items_per_second: self.items,
            sidecar_memory_mib: self.sidecar_memory,
            sidecar_cpu_milli: self.sidecar_cpu,
            gateway_memory_mib: self.gateway_memory,
            gateway_cpu_milli: self.gateway_cpu,
            shim_memory_mib: self.shim_memory,
            shim_cpu_milli: self.shim_cpu,
        }
    }
}

/// Where things are and go.
#[derive(Debug, Args)]
pub(super) struct Places {
    /// Writes the page, the table, the JSON and the CSV into this directory
    #[arg(long, value_parser = absolute)]
    pub(super) out: Option<PathBuf>,
    /// What must hold, a file; exit status 4 when it does not
    #[arg(long = "assert", value_name = "FILE", value_parser = absolute)]
    pub(super) assertions: Option<PathBuf>,
    /// Where data of the runs may lie meanwhile; on a disk, for what is durable
    #[arg(long, value_parser = absolute)]
    pub(super) scratch: Option<PathBuf>,
    /// The program `pillion`, unless it is beside this one
    #[arg(long, value_parser = absolute)]
    pub(super) pillion: Option<PathBuf>,
    /// The program `pillion-shim`; without it, the one that shim/build-static made, or `pillion shim`
    #[arg(long, value_parser = absolute)]
    pub(super) shim: Option<PathBuf>,
    /// The program `otelcol`, unless it is in the cache
    #[arg(long, value_parser = absolute)]
    pub(super) otelcol: Option<PathBuf>,
    /// The program `rotel-agent`, unless it is in the cache
    #[arg(long, value_parser = absolute)]
    pub(super) rotel: Option<PathBuf>,
    /// The cache of others' programs, unless it is below ~/.cache
    #[arg(long, value_parser = absolute)]
    pub(super) cache: Option<PathBuf>,
}

impl Load {
    /// The arms that were asked for, or those.
    pub(super) fn arms(&self, default: &[&str]) -> Vec<String> {
        if self.arms.is_empty() { default.iter().map(|&name| name.to_owned()).collect() } else { self.arms.clone() }
    }

    /// The scenario with what was asked for instead.
    pub(super) fn apply(&self, mut scenario: Scenario) -> Result<Scenario> {
        scenario.pods = self.pods.unwrap_or(scenario.pods);
        scenario.requests_per_second = self.rate.unwrap_or(scenario.requests_per_second);
        if let Some(seconds) = self.seconds {
            scenario.seconds = seconds;
        }
        if let Some(spans) = self.spans {
            scenario.items = crate::scenario::Items { traces: spans, ..Default::default() };
            scenario.shares = None;
        }
        scenario.check()?;
        Ok(scenario)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    /// Scenario: the command line is built, as every call of the command does; a sweep with its own numbers of pods is read.
    /// Guarantees: no two arguments of a subcommand have one name.
    #[test]
    fn every_subcommand_can_be_read() {
        Arguments::command().debug_assert();
        let sweep = Arguments::try_parse_from(["x", "sweep", "pods=2,40"]).expect("a valid command");
        assert!(matches!(sweep.task, Task::Sweep { numbers, .. } if numbers == [2, 40]));
    }

    /// Scenario: amounts and times that are no numbers, or none that could be meant.
    /// Guarantees: they are refused as arguments, before anything is read or started.
    #[test]
    fn amounts_are_finite() {
        for value in ["nan", "inf", "-1", "1e300", "x"] {
            let option = format!("--pods={value}");
            assert!(Arguments::try_parse_from(["x", "cost", "result", &option]).is_err(), "{value}");
            let option = format!("--seconds={value}");
            assert!(Arguments::try_parse_from(["x", "saturate", &option]).is_err(), "{value}");
        }
        assert!(Arguments::try_parse_from(["x", "saturate", "--seconds=0"]).is_err(), "nothing is measured");
        assert!(Arguments::try_parse_from(["x", "cost", "result", "--pods", "0"]).is_ok());
    }
}
