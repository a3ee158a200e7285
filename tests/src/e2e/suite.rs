//! One run of the suite: installs, runs scenarios one after the other, and tells what was seen.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::app::SinkService;
use super::cluster::{Cluster, command, run};
use super::install::{self, BACKEND_PAGE};
use super::node::{Node, Process, Traces};
use super::options::Options;
use super::pods::{APPLICATIONS, BACKEND, SYSTEM, container_id, items, metadata, pods_path, summary};
use super::scenarios::{Need, SCENARIOS, Scenario};
use super::wait::until;

/// After the pods are gone: the grace for sockets, and a reconciliation.
const LEFT_PATIENCE: Duration = Duration::from_secs(60);

/// Of each log that is shown when a scenario fails.
const LOG_LINES: &str = "--tail=60";

/// What scenarios work with.
#[derive(Debug)]
pub struct Suite {
    /// The API.
    pub cluster: Cluster,
    /// How the backend is reached from pods.
    pub backend: String,
    options: Options,
    node: Option<Node>,
    base: Option<Base>,
}

/// What was there before the first application.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base {
    traces: Traces,
    tenants: u64,
}

impl Suite {
    /// Connects and installs.
    pub fn start(options: Options) -> Result<Self> {
        let started = Instant::now();
        let cluster = Cluster::connect(&options.via)?;
        let node = options.node.as_ref().map(|prefix| Node::new(prefix, &options.kubelet_dir));
        let installed = install::install(&options, &cluster, node.as_ref());
        let mut suite = Self { cluster, backend: String::new(), options, node, base: None };
        match installed {
            Ok(backend) => suite.backend = backend,
            Err(error) => {
                eprintln!("{}", suite.explain());
                return Err(error);
            }
        }
        if suite.node.is_some() {
            suite.base = Some(suite.look()?);
        }
        println!("installed in {:.1} s", started.elapsed().as_secs_f32());
        Ok(suite)
    }

    /// Runs the scenarios named, or all. True when all of them held.
    pub fn run(&self, names: &[String]) -> Result<bool> {
        for name in names {
            ensure!(
                SCENARIOS.iter().any(|scenario| scenario.name == name),
                "no such scenario: {name} (list names them)"
            );
        }
        let (mut failed, mut held) = (Vec::new(), 0);
        let started = Instant::now();
        for scenario in
            SCENARIOS.iter().filter(|scenario| names.is_empty() || names.iter().any(|name| name == scenario.name))
        {
            if let Some(need) = scenario.needs.iter().find(|need| !self.can(**need)) {
                println!("{}: not run, needs {}", scenario.name, need.option());
                failed.extend(names.iter().find(|name| *name == scenario.name).map(|_| scenario.name));
                continue;
            }
            match self.run_one(scenario) {
                Ok(()) => held += 1,
                Err(error) => {
                    println!("FAILED {}: {error:#}", scenario.name);
                    println!("{}", self.explain());
                    failed.push(scenario.name);
                    // The next one begins without what this one left; if that fails too, it says so itself.
                    drop(self.cluster.remove_applications());
                }
            }
        }
        println!("{held} scenarios held, {} failed: {failed:?}, in {} s", failed.len(), started.elapsed().as_secs());
        Ok(failed.is_empty())
    }

    fn run_one(&self, scenario: &Scenario) -> Result<()> {
        let started = Instant::now();
        println!("{}: {}", scenario.name, scenario.what);
        (scenario.run)(self)?;
        self.cluster.remove_applications()?;
        self.nothing_left()?;
        println!("  {} took {:.1} s", scenario.name, started.elapsed().as_secs_f32());
        Ok(())
    }

    /// A line of the report.
    pub fn seen(&self, guarantee: &str, figure: &str) {
        println!("  ok  {guarantee}: {figure}");
    }

    /// The node's shell; scenarios that use it say so in their needs.
    pub fn node(&self) -> Result<&Node> {
        self.node.as_ref().context("needs --node")
    }

    /// Runs the hook that restarts the kubelet.
    pub fn restart_kubelet(&self) -> Result<()> {
        let hook = self.options.restart_kubelet.as_ref().context("needs --restart-kubelet")?;
        run(command(hook, &[]), "").map(drop)
    }

    /// Runs the hook that restarts the node.
    pub fn reboot(&self) -> Result<()> {
        let hook = self.options.reboot.as_ref().context("needs --reboot")?;
        run(command(hook, &[]), "").map(drop)
    }

    fn can(&self, need: Need) -> bool {
        match need {
            Need::Node => self.options.node.is_some(),
            Need::RestartKubelet => self.options.restart_kubelet.is_some(),
            Need::Reboot => self.options.reboot.is_some(),
        }
    }

    /// What has arrived of a service.
    pub fn service(&self, name: &str) -> Result<SinkService> {
        let text = self.cluster.page(BACKEND, "backend", BACKEND_PAGE, &format!("/service/{name}"))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// The processes of one of Pillion's DaemonSets.
    pub fn processes_of(&self, component: &str) -> Result<Vec<Process>> {
        let pod = self.cluster.system_pod(component)?;
        self.node()?.processes(&container_id(&pod, component)?)
    }

    /// The gateway's worker, the child of its supervisor.
    pub fn worker(&self) -> Result<u32> {
        let all = self.processes_of("gateway")?;
        let worker = all.iter().find(|process| process.command.split(' ').nth(1) == Some("worker"));
        Ok(worker.with_context(|| format!("no worker among {all:?}"))?.pid)
    }

    /// The driver's process.
    pub fn csi(&self) -> Result<u32> {
        let all = self.processes_of("csi")?;
        Ok(all.first().context("the driver has no process")?.pid)
    }

    /// A number of the gateway's metrics, summed over its series.
    pub fn metric(&self, name: &str) -> Result<u64> {
        let text = self.node()?.gateway_page(self.worker()?, "/metrics")?;
        let series = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        let values: Vec<f64> = series.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect();
        ensure!(!values.is_empty(), "the gateway has no metric {name}");
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
        Ok(values.iter().sum::<f64>() as u64)
    }

    fn look(&self) -> Result<Base> {
        let traces = self.node()?.traces(self.worker()?, self.csi()?)?;
        Ok(Base { traces, tenants: self.metric("pillion_tenants")? })
    }

    /// Waits until nothing is there that was not before the first application.
    fn nothing_left(&self) -> Result<()> {
        let Some(base) = &self.base else { return Ok(()) };
        until("nothing of the applications is left on the node", LEFT_PATIENCE, || {
            let now = self.look()?;
            let more = now.traces.gateway_sockets > base.traces.gateway_sockets
                || now.traces.csi_sockets > base.traces.csi_sockets
                || now.traces.volumes > base.traces.volumes
                || now.traces.networks > base.traces.networks
                || now.tenants > base.tenants;
            ensure!(!more, "before: {base:?}; now: {now:?}");
            Ok(())
        })?;
        self.seen("nothing is left behind", &format!("{:?}, {} tenants", base.traces, base.tenants));
        Ok(())
    }

    /// Everything that helps to see why.
    pub fn explain(&self) -> String {
        let mut out = String::new();
        let mut part = |title: &str, text: Result<String>| {
            let text = text.unwrap_or_else(|error| format!("{error:#}"));
            // Writing to a String cannot fail.
            let _ = writeln!(out, "--- {title}\n{}", text.trim_end());
        };
        let cluster = &self.cluster;
        for namespace in [APPLICATIONS, SYSTEM, BACKEND] {
            part(
                &format!("pods of {namespace}"),
                cluster.get(&pods_path(namespace)).map(|list| lines(items(&list).map(summary))),
            );
            part(
                &format!("events of {namespace}"),
                cluster.get(&format!("/api/v1/namespaces/{namespace}/events")).map(|list| events(&list)),
            );
        }
        let pods = |namespace: &str| {
            let list = cluster.get(&pods_path(namespace)).unwrap_or_default();
            items(&list).map(|pod| metadata(pod, "name").to_owned()).collect::<Vec<_>>()
        };
        for pod in pods(SYSTEM) {
            for previous in ["--previous=false", "--previous"] {
                part(
                    &format!("log of {pod} {previous}"),
                    cluster.kubectl(&["-n", SYSTEM, "logs", LOG_LINES, previous, &pod], ""),
                );
            }
        }
        for pod in pods(APPLICATIONS).iter().take(4) {
            for arguments in [
                ["-c", "pillion-shim", "--previous=false"],
                ["-c", "pillion-shim", "--previous"],
                ["-c", "app", "--previous=false"],
            ] {
                let mut words = vec!["-n", APPLICATIONS, "logs", LOG_LINES, pod];
                words.extend(arguments);
                part(&format!("log of {pod} {}", arguments.join(" ")), cluster.kubectl(&words, ""));
            }
        }
        part(
            "gateway's metrics",
            cluster.system_pod("gateway").and_then(|pod| {
                let text = cluster.page(SYSTEM, metadata(&pod, "name"), 4380, "/metrics")?;
                Ok(lines(text.lines().filter(|line| line.starts_with("pillion_")).map(str::to_owned)))
            }),
        );
        part("gateway's tenants", self.worker().and_then(|pid| self.node()?.gateway_page(pid, "/tenants")));
        out
    }
}

fn lines(all: impl Iterator<Item = String>) -> String {
    all.collect::<Vec<_>>().join("\n")
}

/// Events by what they say, with how often.
fn events(list: &Value) -> String {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for event in items(list) {
        let word = |field: &str| event[field].as_str().unwrap_or("?");
        let object = event["involvedObject"]["name"].as_str().unwrap_or("?");
        *counts.entry(format!("{object} {} {}", word("reason"), word("message"))).or_default() +=
            event["count"].as_u64().unwrap_or(1);
    }
    lines(counts.into_iter().map(|(text, count)| format!("{count}x {text}")))
}
