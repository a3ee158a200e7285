//! Pillion: one gateway, one shim in each pod, donated sockets; and the node's CSI driver.
//!
//! The driver has nothing to do here, where pods get their sockets without a kubelet. A node runs it all the same: what it holds is
//! part of the price.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{Agent, Arm, End, Running, Site, log, version};
use crate::identity::pod_name;
use crate::network::{Network, OTLP_GRPC, OTLP_HTTP, Place};

const READY: &str = "pillion is serving";
const DRIVER_READY: &str = "waiting for a gateway";

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
    /// Whether small requests may leave together, which is its default.
    pub merge: bool,
    /// What a pod may send.
    pub quota: Quota,
}

/// What a pod may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
    /// The defaults.
    Default,
    /// As much as it can: for what measures a saturated gateway.
    Open,
}

struct Node<'a> {
    shims: Vec<Agent>,
    gateway: Option<Agent>,
    _driver: Agent,
    arm: &'a Pillion,
    site: &'a Site<'a>,
}

impl Arm for Pillion {
    fn name(&self) -> &str {
        match (self.ack, self.merge) {
            (Ack::Memory, true) => "pillion",
            (Ack::Memory, false) => "pillion-unmerged",
            (Ack::Durable, true) => "pillion-durable",
            (Ack::Durable, false) => "pillion-durable-unmerged",
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
        let merge = if self.merge { "small requests leave together" } else { "each request leaves alone" };
        format!(
            "{}{build}, ack {ack}, {merge}; one {shim} in each pod, sockets donated; and the node's CSI driver",
            version(&self.program)
        )
    }

    fn is_durable(&self) -> bool {
        self.ack == Ack::Durable
    }

    fn attests(&self) -> Option<&'static str> {
        Some("k8s.pod.name")
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        ensure!(matches!(site.network, Network::Pods(_)), "each shim needs the ports of a pod of its own");
        fs::write(site.dir.join("pillion.yaml"), self.config(site))?;
        let (driver, gateway) = (self.start_driver(site)?, self.start_gateway(site)?);
        let mut shims = Vec::with_capacity(site.pods);
        for pod in 0..site.pods {
            shims.push(self.start_shim(site, pod)?);
        }
        (0..site.pods).try_for_each(|pod| self.wait_for_shim(site, pod))?;
        Ok(Box::new(Node { shims, gateway: Some(gateway), _driver: driver, arm: self, site }))
    }
}

impl Pillion {
    /// Defaults, but for the policies of acknowledging and merging.
    fn config(&self, site: &Site<'_>) -> String {
        let ack = match self.ack {
            Ack::Memory => "memory",
            Ack::Durable => "durable",
        };
        let merge = if self.merge { "auto" } else { "never" };
        let dir = site.dir.display();
        let tenants = (0..site.pods).map(|pod| {
            let name = pod_name(pod);
            format!("  shop/{name}: {{socket_dir: {dir}/{name}, uid: 7d1f3a52-0000-4000-8000-{pod:012}}}\n")
        });
        let workers = site.cage.processors();
        let min_free = if site.is_disk_small { ", min_free: 4MiB" } else { "" };
        let limits = match self.quota {
            Quota::Default => {
                // What may come at once is at least one request of the largest size.
                let bytes = site
                    .quota_kib_per_second
                    .map(|kib| format!(", limits: {{bytes_per_second: {kib}KiB, max_request_bytes: 1MiB}}"));
                bytes.unwrap_or_default()
            }
            Quota::Open => ", limits: {bytes_per_second: 100GiB, requests_per_second: 10000000, \
                 memory: {guarantee: 128MiB, ceiling: 256MiB}, disk: {guarantee: 1GiB, ceiling: 8GiB}}"
                .to_owned(),
        };
        format!(
            "node: {{data_dir: {dir}/data, admin: \"127.0.0.1:4380\", name: node-1, workers: {workers}{min_free}}}
defaults: {{ack: {ack}, destinations: [backend]{limits}}}
destinations:
  backend: {{protocol: grpc, endpoint: \"http://{}\", compression: none, merge: {merge}, allow: [\"*\"]}}
tenants:
{}",
            site.network.sink(Place::Agent, site.sink_port),
            tenants.collect::<String>()
        )
    }

    fn start_gateway(&self, site: &Site<'_>) -> Result<Agent> {
        let mut command = site.cage.command(&self.program)?;
        command.arg("run").arg("--config").arg(site.dir.join("pillion.yaml"));
        command.env("PILLION_LOG", "info").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut gateway = Agent::start(site, "gateway", Place::Agent, &mut command)?;
        gateway.wait_for(READY)?;
        Ok(gateway)
    }

    fn start_driver(&self, site: &Site<'_>) -> Result<Agent> {
        let dir = site.dir.join("csi");
        fs::create_dir_all(dir.join("kubelet/pods"))?;
        let mut command = site.cage.command(&self.program)?;
        command.args(["csi", "--node-name", "node-1", "--gateway-id", "0"]);
        command.arg("--kubelet-dir").arg(dir.join("kubelet")).arg("--custody").arg(dir.join("custody.sock"));
        command.arg("--data-dir").arg(dir.join("data"));
        command.env("PILLION_LOG", "info").stdin(Stdio::null()).stderr(Stdio::piped());
        let mut driver = Agent::start(site, "driver", Place::Agent, &mut command)?;
        driver.wait_for(DRIVER_READY)?;
        Ok(driver)
    }

    fn start_shim(&self, site: &Site<'_>, pod: usize) -> Result<Agent> {
        let mut run = site.cage.command(self.shim_program())?;
        self.shim_arguments(&mut run, "run", site.dir, pod);
        run.stdin(Stdio::null()).stderr(log(site.dir, &pod_name(pod))?);
        Agent::start(site, "shim", Place::Pod(pod), &mut run)
    }

    fn wait_for_shim(&self, site: &Site<'_>, pod: usize) -> Result<()> {
        let mut wait = Command::new(self.shim_program());
        self.shim_arguments(&mut wait, "wait", site.dir, pod);
        wait.stdin(Stdio::null());
        let mut waiting = Agent::start_uncounted(site, "the wait for a shim", Place::Pod(pod), &mut wait)?;
        let status = waiting.ended()?;
        ensure!(status.success(), "the shim of pod {pod} did not bind its ports: {status}");
        Ok(())
    }

    fn shim_program(&self) -> &Path {
        self.shim.as_ref().unwrap_or(&self.program)
    }

    fn shim_arguments(&self, command: &mut Command, verb: &str, dir: &Path, pod: usize) {
        if self.shim.is_none() {
            command.arg("shim");
        }
        command.arg(verb).arg("--dir").arg(dir.join(pod_name(pod)));
    }
}

impl Running for Node<'_> {
    fn grpc(&self, _pod: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, OTLP_GRPC).into()
    }

    fn http(&self, _pod: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, OTLP_HTTP).into()
    }

    fn restart(&mut self, end: End) -> Result<()> {
        if let Some(gateway) = &mut self.gateway {
            // The worker dies with its supervisor.
            gateway.ask(end)?;
            gateway.ended()?;
        }
        self.gateway = Some(self.arm.start_gateway(self.site)?);
        Ok(())
    }

    fn replace(&mut self, pod: usize) -> Result<()> {
        self.shims[pod].ask(End::Graceful)?;
        self.shims[pod].ended()?;
        self.shims[pod] = self.arm.start_shim(self.site, pod)?;
        self.arm.wait_for_shim(self.site, pod)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::limits::Limits;

    /// Scenario: the gateway's configuration.
    /// Guarantees: it has as many workers as any agent, said as the others are told, not by its own default.
    #[test]
    fn the_gateway_has_as_many_workers_as_any_agent() {
        let (dir, program) = (tempfile::tempdir().unwrap(), PathBuf::from("pillion"));
        let pillion = Pillion { program, shim: None, ack: Ack::Memory, merge: true, quota: Quota::Default };
        let cage = Limits::Ulimit(String::new()).cage().unwrap();
        let site = Site {
            network: &Network::Here,
            pods: 1,
            sink_port: 1,
            dir: dir.path(),
            is_disk_small: false,
            quota_kib_per_second: None,
            cage: &cage,
            roster: &Arc::default(),
        };
        let config = pillion.config(&site);
        assert!(config.contains(&format!("workers: {}}}", cage.processors())), "{config}");
    }
}
