//! The gateway under test, and the shims of its pods on free ports of this host.
//!
//! Owns all processes and their directory; they end when dropped. Never decides when anything dies.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{DESTINATIONS, TENANTS, WINDOW};
use crate::gateway::{Gateway, directory, kill};
use crate::shim::{Ports, Shim};

/// All processes but this one.
#[derive(Debug)]
pub(super) struct Rig {
    node: String,
    gateway: Option<Gateway>,
    /// Workers of the present supervisor that were started after its first.
    restarts: u32,
    shims: Vec<Shim>,
    pub(super) ports: Vec<Ports>,
    dir: tempfile::TempDir,
}

impl Rig {
    /// Returns when the gateway serves and every pod's ports are bound.
    pub(super) fn start(node: &str, backends: &[SocketAddr]) -> Result<Self> {
        let dir = directory();
        let ports: Vec<Ports> = TENANTS.iter().map(|_| Ports::free()).collect();
        let gateway = Gateway::start(node, dir.path(), &config(backends, &ports));
        let mut rig =
            Self { node: node.to_owned(), gateway: Some(gateway), restarts: 0, shims: Vec::new(), ports, dir };
        for (tenant, ports) in TENANTS.iter().zip(&rig.ports) {
            rig.shims.push(Shim::start(node, &rig.dir.path().join(tenant.name), *ports));
        }
        Ok(rig)
    }

    /// The running gateway.
    pub(super) fn gateway(&self) -> &Gateway {
        self.gateway.as_ref().expect("only `stop` takes it, and `start_again` puts one back")
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// kill -9 of the worker that serves; returns at once.
    pub(super) fn kill_worker(&mut self) -> u32 {
        let worker = self.gateway().worker();
        kill(worker, Signal::KILL);
        self.restarts += 1;
        worker
    }

    /// Returns when there is another worker than `dead`, which may be before it has read its own name.
    pub(super) fn await_successor(&self, dead: u32) {
        self.gateway()
            .wait_for("the worker's successor", |gateway| gateway.any_worker().is_some_and(|pid| pid != dead));
    }

    /// Returns when the latest worker serves.
    pub(super) fn await_ready(&self) {
        self.gateway().wait_for_line(&format!("restarts={}", self.restarts));
    }

    /// kill -9 of the supervisor, and the kernel's of its worker. Nothing runs afterwards.
    pub(super) fn kill_all(&mut self) {
        if let Some(gateway) = self.gateway.take() {
            gateway.kill_all();
        }
    }

    /// An orderly end.
    pub(super) fn stop(&mut self) -> Result<()> {
        let Some(mut gateway) = self.gateway.take() else { return Ok(()) };
        let status = gateway.stop();
        ensure!(status.success(), "the gateway ended with {status}:\n{}", gateway.log());
        Ok(())
    }

    /// A new supervisor on what is there.
    pub(super) fn start_again(&mut self) {
        self.restarts = 0;
        self.gateway = Some(Gateway::start_again(&self.node, self.dir.path()));
    }

    /// Leaves the directory where it is, for people, and says where that is.
    pub(super) fn keep(self) -> PathBuf {
        let mut dir = tempfile::tempdir().expect("the temporary directory is writable");
        let mut rig = self;
        std::mem::swap(&mut rig.dir, &mut dir);
        dir.keep()
    }

    /// The `pillion` program under test.
    pub(super) fn node(&self) -> &Path {
        Path::new(&self.node)
    }
}

fn config(backends: &[SocketAddr], ports: &[Ports]) -> String {
    let mut text = "node:
  data_dir: DIR/data
  admin: ADMIN
  min_free: 64MiB
defaults:
  destinations: [grpc]
  limits: {bytes_per_second: 1GiB, requests_per_second: 1000000}
destinations:
"
    .to_owned();
    for (name, address) in DESTINATIONS.iter().zip(backends) {
        text += &format!(
            "  {name}: {{allow: [\"*\"], protocol: {name}, endpoint: \"http://{address}\", sending_queue: {{num_consumers: {WINDOW}}}, \
             retry_on_failure: {{initial_interval: 20ms, max_interval: 200ms}}}}\n"
        );
    }
    text += "tenants:\n";
    for (tenant, ports) in TENANTS.iter().zip(ports) {
        let destinations: Vec<_> = tenant.destinations.iter().map(|to| DESTINATIONS[*to]).collect();
        text += &format!(
            "  shop/{0}: {{socket_dir: DIR/{0}, {1}, policy: {{ack: {2}, destinations: [{3}]}}}}\n",
            tenant.name,
            ports.config(),
            tenant.ack,
            destinations.join(", ")
        );
    }
    text
}
