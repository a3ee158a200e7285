//! The OpenTelemetry Collector: one in each pod, or one for all of them.
//!
//! As its documentation recommends for a sidecar: memory_limiter first, at 80 % of what it may have (the process is some 50 MiB above
//! its own count), GOMEMLIMIT the same, a queue in the exporter. In
//! memory the batch processor stands last. With a queue on the disk there is none: it would acknowledge what only memory has; there
//! the exporter makes the batches, behind the queue. It adds the attributes that Pillion attests; shared, it cannot know whose a
//! request is, and adds none. GOMAXPROCS is as many processors as any agent has workers for.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Result, ensure};

use super::sidecars::Sidecars;
use super::{Agent, Arm, Running, Site, log, version};
use crate::identity::pod_name;
use crate::limits::AGENT_MEMORY_MIB;
use crate::network::{Network, OTLP_GRPC, OTLP_HTTP, Place};

/// How many there are, and where its queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One in each pod, queue in memory.
    Sidecar,
    /// One in each pod, queue in file_storage with fsync: acknowledges after the disk.
    File,
    /// One for all pods, in a pod of its own, queue in memory.
    Daemonset,
}

/// Which components are in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// Those of an ordinary build.
    Ordinary,
    /// Only those that it uses here.
    Minimal,
}

/// The arm.
#[derive(Debug, Clone)]
pub struct Otelcol {
    /// Its program.
    pub program: PathBuf,
    /// Which one that is.
    pub build: Build,
    /// How many, and where the queue is.
    pub kind: Kind,
}

impl Arm for Otelcol {
    fn name(&self) -> &str {
        match (self.kind, self.build) {
            (Kind::Sidecar, Build::Ordinary) => "otelcol",
            (Kind::Sidecar, Build::Minimal) => "otelcol-minimal",
            (Kind::File, Build::Ordinary) => "otelcol-file",
            (Kind::File, Build::Minimal) => "otelcol-minimal-file",
            (Kind::Daemonset, _) => "otelcol-daemonset",
        }
    }

    fn about(&self) -> String {
        let build = match self.build {
            Build::Ordinary => "built with the components of an ordinary sidecar",
            Build::Minimal => "built with only the components that it uses here, its best case",
        };
        let kind = match self.kind {
            Kind::Sidecar => "one in each pod, queue in memory, batches of up to 200 ms, which its delivery waits for",
            Kind::File => {
                "one in each pod, queue in file_storage with fsync, acknowledged after it, batches of up to 200 ms"
            }
            Kind::Daemonset => {
                "one for all pods, which does not say whose items are, queue in memory, batches of up to 200 ms"
            }
        };
        format!("{}, {build}; {kind}", version(&self.program))
    }

    fn attests(&self) -> Option<&'static str> {
        (self.kind != Kind::Daemonset).then_some("k8s.pod.name")
    }

    fn is_durable(&self) -> bool {
        self.kind == Kind::File
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        ensure!(matches!(site.network, Network::Pods(_)), "each agent needs the ports of a pod of its own");
        let (count, host) = match self.kind {
            Kind::Sidecar | Kind::File => (site.pods, Ipv4Addr::LOCALHOST.into()),
            Kind::Daemonset => (1, site.network.agent()),
        };
        let addresses = [SocketAddr::new(host, OTLP_GRPC), SocketAddr::new(host, OTLP_HTTP)];
        let start = move |number| self.start_one(site, number, addresses);
        Ok(Box::new(Sidecars::start(site, count, addresses, start)?))
    }
}

impl Otelcol {
    fn start_one(&self, site: &Site<'_>, number: usize, addresses: [SocketAddr; 2]) -> Result<Agent> {
        let (place, name, attributes) = match self.kind {
            Kind::Daemonset => (Place::Agent, "otelcol".to_owned(), None),
            Kind::Sidecar | Kind::File => (Place::Pod(number), pod_name(number), Some(attributes(&identity(number)))),
        };
        let path = site.dir.join(format!("{name}.yaml"));
        let storage = site.dir.join("data").join(&name);
        let storage = match self.kind {
            Kind::File => {
                fs::create_dir_all(&storage)?;
                Some(storage.as_path())
            }
            Kind::Sidecar | Kind::Daemonset => None,
        };
        let sink = site.network.sink(place, site.sink_port);
        fs::write(&path, config(addresses, sink, attributes.as_deref(), storage))?;
        let mut command = site.cage.command(&self.program)?;
        command
            .arg("--config")
            .arg(&path)
            .env("GOMEMLIMIT", go_memory_limit())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(site.dir, &name)?);
        Agent::start(site, "otelcol", place, &mut command)
    }
}

/// The attributes that it adds to every resource.
pub(crate) const IDENTITY: [&str; 4] = ["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name"];

/// The values of a pod that is none.
fn identity(pod: usize) -> [String; 4] {
    ["shop".to_owned(), pod_name(pod), format!("7d1f3a52-0000-4000-8000-{pod:012}"), "node-1".to_owned()]
}

fn attributes(values: &[String; 4]) -> String {
    let lines = IDENTITY
        .iter()
        .zip(values)
        .map(|(key, value)| format!("      - {{key: {key}, value: \"{value}\", action: upsert}}\n"));
    format!("  resource:\n    attributes:\n{}", lines.collect::<String>())
}

/// What a sidecar with its queue in memory is configured with, for values of [`IDENTITY`], which may be references to its environment.
pub(crate) fn sidecar_config(values: &[String; 4], sink: SocketAddr) -> String {
    let addresses = [OTLP_GRPC, OTLP_HTTP].map(|port| (Ipv4Addr::LOCALHOST, port).into());
    config(addresses, sink, Some(&attributes(values)), None)
}

/// 80 % of the limit, as its documentation recommends.
pub(crate) fn go_memory_limit() -> String {
    format!("{}MiB", AGENT_MEMORY_MIB * 8 / 10)
}

fn config([grpc, http]: [SocketAddr; 2], sink: SocketAddr, attributes: Option<&str>, storage: Option<&Path>) -> String {
    let steps: Vec<&str> = [
        Some("memory_limiter"),
        attributes.map(|_| "resource"),
        // In front of a durable queue it would acknowledge what only memory has.
        storage.is_none().then_some("batch"),
    ]
    .into_iter()
    .flatten()
    .collect();
    let steps = steps.join(", ");
    let pipelines = ["traces", "metrics", "logs"]
        .map(|signal| format!("    {signal}: {{receivers: [otlp], processors: [{steps}], exporters: [otlp]}}\n"));
    let (extension, enabled, queue) = match storage {
        None => (String::new(), "", ""),
        Some(dir) => (
            format!("extensions:\n  file_storage: {{directory: {}, fsync: true}}\n", dir.display()),
            "  extensions: [file_storage]\n",
            "\n    sending_queue: {storage: file_storage, queue_size: 10000, batch: {flush_timeout: 200ms, min_size: 8192}}\n    \
             retry_on_failure: {max_elapsed_time: 0s}",
        ),
    };
    format!(
        "receivers:
  otlp: {{protocols: {{grpc: {{endpoint: \"{grpc}\"}}, http: {{endpoint: \"{http}\"}}}}}}
processors:
  memory_limiter: {{check_interval: 1s, limit_mib: {}, spike_limit_mib: {}}}
{}{}exporters:
  otlp:
    endpoint: \"{sink}\"
    tls: {{insecure: true}}
    compression: none{queue}
{extension}service:
{enabled}  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}
  pipelines:
{}",
        AGENT_MEMORY_MIB * 8 / 10,
        AGENT_MEMORY_MIB * 8 / 50,
        if storage.is_none() { "  batch: {}\n" } else { "" },
        attributes.unwrap_or_default(),
        pipelines.concat(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the configurations of both queues.
    /// Guarantees: nothing stands between the receiver and the durable queue that acknowledges from memory, and it is fsynced.
    #[test]
    fn a_durable_queue_acknowledges_after_the_disk() {
        let [any, sink] = [4317, 5317].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let durable = config([any; 2], sink, Some("  resource: {}\n"), Some(Path::new("/data")));
        assert!(durable.contains("fsync: true") && durable.contains("storage: file_storage"), "{durable}");
        assert!(durable.contains("processors: [memory_limiter, resource], exporters"), "{durable}");
        let memory = config([any; 2], sink, None, None);
        assert!(memory.contains("processors: [memory_limiter, batch], exporters"), "{memory}");
        assert!(!memory.contains("file_storage"), "{memory}");
    }
}
