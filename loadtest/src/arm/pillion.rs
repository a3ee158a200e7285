//! Pillion: one gateway, one shim in each pod, donated sockets.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{Agent, Arm, Process, Running, Site, version};
use crate::identity::pod_name;
use crate::network::{Network, OTLP_GRPC, OTLP_HTTP, Place};

const READY: &str = "pillion is serving";

/// When the gateway acknowledges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// After it has the request in memory, as agents without a disk do.
    Memory,
    /// After fdatasync.
    Durable,
}

/// The arm.
#[derive(Debug, Clone)]
pub struct Pillion {
    /// The gateway's program.
    pub program: PathBuf,
    /// The shim's; `None`: `pillion shim`.
    pub shim: Option<PathBuf>,
    /// When it acknowledges.
    pub ack: Ack,
}

struct Node<'a> {
    shims: Vec<Agent>,
    gateway: Option<Agent>,
    arm: &'a Pillion,
    site: &'a Site<'a>,
}

impl Arm for Pillion {
    fn name(&self) -> &str {
        match self.ack {
            Ack::Memory => "pillion",
            Ack::Durable => "pillion-durable",
        }
    }

    fn about(&self) -> String {
        let shim = match &self.shim {
            Some(_) => "pillion-shim",
            None => "`pillion shim`, which is larger than pillion-shim",
        };
        let ack = match self.ack {
            Ack::Memory => "memory",
            Ack::Durable => "durable (after fdatasync)",
        };
        // Cargo's directory of builds without optimisation.
        let is_debug = self.program.parent().is_some_and(|dir| dir.ends_with("debug"));
        let build = if is_debug { " (a debug build: its figures say nothing)" } else { "" };
        format!("{}{build}, ack {ack}; one {shim} in each pod, sockets donated", version(&self.program))
    }

    fn attests(&self) -> Option<&'static str> {
        Some("k8s.pod.name")
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        ensure!(matches!(site.network, Network::Pods(_)), "each shim needs the ports of a pod of its own");
        fs::write(site.dir.join("pillion.yaml"), self.config(site))?;
        let gateway = self.start_gateway(site)?;
        let mut shims = Vec::with_capacity(site.pods);
        for pod in 0..site.pods {
            let mut run = self.shim_command("run", site.dir, pod);
            let log = fs::File::create(site.dir.join(format!("{}.log", pod_name(pod))))?;
            let child = site.network.spawn(Place::Pod(pod), run.stdin(Stdio::null()).stderr(log))?;
            shims.push(Agent { role: "shim", child });
        }
        for pod in 0..site.pods {
            let mut wait = self.shim_command("wait", site.dir, pod);
            let status = site.network.spawn(Place::Pod(pod), &mut wait)?.wait()?;
            ensure!(status.success(), "the shim of pod {pod} did not bind its ports: {status}");
        }
        Ok(Box::new(Node { shims, gateway: Some(gateway), arm: self, site }))
    }
}

impl Pillion {
    /// Defaults, but for the policy of acknowledging and for room enough for all pods.
    fn config(&self, site: &Site<'_>) -> String {
        let ack = match self.ack {
            Ack::Memory => "memory",
            Ack::Durable => "durable",
        };
        let dir = site.dir.display();
        let tenants = (0..site.pods).map(|pod| {
            let name = pod_name(pod);
            format!("  shop/{name}: {{socket_dir: {dir}/{name}, uid: 7d1f3a52-0000-4000-8000-{pod:012}}}\n")
        });
        format!(
            "node: {{data_dir: {dir}/data, admin: \"127.0.0.1:4380\", name: node-1}}
defaults: {{ack: {ack}, destinations: [backend]}}
destinations:
  backend: {{protocol: grpc, endpoint: \"http://{}\", compression: none, allow: [\"*\"]}}
tenants:
{}",
            site.network.sink(Place::Agent, site.sink_port),
            tenants.collect::<String>()
        )
    }

    fn start_gateway(&self, site: &Site<'_>) -> Result<Agent> {
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(site.dir.join("pillion.yaml"));
        command.env("PILLION_LOG", "info").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut gateway = Agent { role: "gateway", child: site.network.spawn(Place::Agent, &mut command)? };
        gateway.wait_for(READY)?;
        Ok(gateway)
    }

    fn shim_command(&self, verb: &str, dir: &Path, pod: usize) -> Command {
        let mut command = match &self.shim {
            Some(shim) => Command::new(shim),
            None => Command::new(&self.program),
        };
        if self.shim.is_none() {
            command.arg("shim");
        }
        command.arg(verb).arg("--dir").arg(dir.join(pod_name(pod)));
        command
    }
}

impl Running for Node<'_> {
    fn grpc(&self, _pod: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, OTLP_GRPC).into()
    }

    fn http(&self, _pod: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, OTLP_HTTP).into()
    }

    fn processes(&self) -> Vec<Process> {
        self.gateway.iter().chain(&self.shims).map(Agent::process).collect()
    }

    fn crash(&mut self) -> Result<()> {
        // The worker dies with its supervisor.
        drop(self.gateway.take());
        self.gateway = Some(self.arm.start_gateway(self.site)?);
        Ok(())
    }
}
