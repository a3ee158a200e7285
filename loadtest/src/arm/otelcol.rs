//! The OpenTelemetry Collector: one in each pod, or one for all of them.
//!
//! As its documentation recommends for a sidecar: memory_limiter first, batch last, a queue in the exporter, GOMEMLIMIT at 80 %
//! of the limit. It adds the attributes that Pillion attests; shared, it cannot know whose a request is, and adds none.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{Agent, Arm, Process, Running, Site, version, wait_for_ports};
use crate::identity::pod_name;
use crate::network::{Network, OTLP_GRPC, OTLP_HTTP, Place};

/// What each may use, as a container's limit would say.
const MEMORY_MIB: u32 = 512;

/// How many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// One in each pod.
    Sidecar,
    /// One for all pods, in a pod of its own.
    Daemonset,
}

/// The arm.
#[derive(Debug, Clone)]
pub struct Otelcol {
    /// Its program.
    pub program: PathBuf,
    /// How many.
    pub placement: Placement,
}

struct Collectors {
    agents: Vec<Agent>,
    address: [SocketAddr; 2],
}

impl Arm for Otelcol {
    fn name(&self) -> &str {
        match self.placement {
            Placement::Sidecar => "otelcol",
            Placement::Daemonset => "otelcol-daemonset",
        }
    }

    fn about(&self) -> String {
        let place = match self.placement {
            Placement::Sidecar => "one in each pod",
            Placement::Daemonset => "one for all pods, which does not say whose items are",
        };
        format!("{}, a build of few components, {place}, queue in memory", version(&self.program))
    }

    fn attests(&self) -> Option<&'static str> {
        (self.placement == Placement::Sidecar).then_some("k8s.pod.name")
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        ensure!(matches!(site.network, Network::Pods(_)), "each agent needs the ports of a pod of its own");
        let (places, host): (Vec<Place>, _) = match self.placement {
            Placement::Sidecar => ((0..site.pods).map(Place::Pod).collect(), Ipv4Addr::LOCALHOST.into()),
            Placement::Daemonset => (vec![Place::Agent], site.network.agent()),
        };
        let mut agents = Vec::with_capacity(places.len());
        for place in places {
            agents.push(self.start_one(
                site,
                place,
                SocketAddr::new(host, OTLP_GRPC),
                SocketAddr::new(host, OTLP_HTTP),
            )?);
        }
        let address = [SocketAddr::new(host, OTLP_GRPC), SocketAddr::new(host, OTLP_HTTP)];
        wait_for_ports(site.network, vec![address[0]; site.pods])?;
        Ok(Box::new(Collectors { agents, address }))
    }
}

impl Otelcol {
    fn start_one(&self, site: &Site<'_>, place: Place, grpc: SocketAddr, http: SocketAddr) -> Result<Agent> {
        let (name, attributes) = match place {
            Place::Agent => ("otelcol".to_owned(), None),
            Place::Pod(pod) => (pod_name(pod), Some(attributes(pod))),
        };
        let path = site.dir.join(format!("{name}.yaml"));
        let sink = site.network.sink(place, site.sink_port);
        fs::write(&path, config(grpc, http, sink, attributes.as_deref()))?;
        let mut command = Command::new(&self.program);
        command
            .arg("--config")
            .arg(&path)
            .env("GOMEMLIMIT", format!("{}MiB", MEMORY_MIB * 8 / 10))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(site.dir, &name)?);
        Ok(Agent { role: "otelcol", child: site.network.spawn(place, &mut command)? })
    }
}

fn log(dir: &Path, name: &str) -> Result<Stdio> {
    Ok(fs::File::create(dir.join(format!("{name}.log")))?.into())
}

fn attributes(pod: usize) -> String {
    let name = pod_name(pod);
    let values = [
        ("k8s.namespace.name", "shop".to_owned()),
        ("k8s.pod.name", name),
        ("k8s.pod.uid", format!("7d1f3a52-0000-4000-8000-{pod:012}")),
        ("k8s.node.name", "node-1".to_owned()),
    ];
    let lines =
        values.iter().map(|(key, value)| format!("      - {{key: {key}, value: \"{value}\", action: upsert}}\n"));
    format!("  resource:\n    attributes:\n{}", lines.collect::<String>())
}

fn config(grpc: SocketAddr, http: SocketAddr, sink: SocketAddr, attributes: Option<&str>) -> String {
    let steps = if attributes.is_some() { "memory_limiter, resource, batch" } else { "memory_limiter, batch" };
    let pipelines = ["traces", "metrics", "logs"]
        .map(|signal| format!("    {signal}: {{receivers: [otlp], processors: [{steps}], exporters: [otlp]}}\n"));
    format!(
        "receivers:
  otlp: {{protocols: {{grpc: {{endpoint: \"{grpc}\"}}, http: {{endpoint: \"{http}\"}}}}}}
processors:
  memory_limiter: {{check_interval: 1s, limit_percentage: 0, limit_mib: {MEMORY_MIB}, spike_limit_mib: {}}}
  batch: {{}}
{}exporters:
  otlp: {{endpoint: \"{sink}\", tls: {{insecure: true}}, compression: none}}
service:
  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}
  pipelines:
{}",
        MEMORY_MIB / 5,
        attributes.unwrap_or_default(),
        pipelines.concat(),
    )
}

impl Running for Collectors {
    fn grpc(&self, _pod: usize) -> SocketAddr {
        self.address[0]
    }

    fn http(&self, _pod: usize) -> SocketAddr {
        self.address[1]
    }

    fn processes(&self) -> Vec<Process> {
        self.agents.iter().map(Agent::process).collect()
    }
}
