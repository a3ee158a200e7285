//! The floor, as a process in each pod: the same bytes over the `h2` crate, untouched. What no gateway can be cheaper than.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Result, ensure};

use super::sidecars::Sidecars;
use super::{Agent, Arm, Running, Site, log};
use crate::identity::pod_name;
use crate::network::{Network, OTLP_GRPC, OTLP_HTTP, Place};

/// What it does with requests; see [`crate::floor::Mode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloorMode {
    /// Small ones leave together.
    Merged,
    /// Each leaves alone.
    OneForOne,
    /// Merged, and on disk before the answer.
    Durable,
}

/// The arm. Spans over gRPC only.
#[derive(Debug, Clone)]
pub struct Floor {
    /// This program: it has the floor as a hidden subcommand.
    pub program: PathBuf,
    /// What it does.
    pub mode: FloorMode,
}

impl FloorMode {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Merged => "floor",
            Self::OneForOne => "floor-one-for-one",
            Self::Durable => "floor-durable",
        }
    }
}

impl Arm for Floor {
    fn name(&self) -> &str {
        self.mode.name()
    }

    fn about(&self) -> String {
        let does = match self.mode {
            FloorMode::Merged => "small requests leave together",
            FloorMode::OneForOne => "each request leaves alone",
            FloorMode::Durable => "as merged, each group written and fdatasynced before its answers",
        };
        format!("no agent but a floor: the same bytes in and out over the h2 crate, nothing looked at; {does}")
    }

    fn attests(&self) -> Option<&'static str> {
        None
    }

    fn is_durable(&self) -> bool {
        self.mode == FloorMode::Durable
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        ensure!(matches!(site.network, Network::Pods(_)), "each agent needs the ports of a pod of its own");
        let addresses = [OTLP_GRPC, OTLP_HTTP].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let start = move |pod| {
            let name = pod_name(pod);
            let mut command = site.cage.command(&self.program)?;
            command
                .args(["floor", self.mode.name(), &addresses[0].to_string()])
                .arg(site.network.sink(Place::Pod(pod), site.sink_port).to_string())
                .arg(site.dir.join(format!("{name}.data")))
                .stdin(Stdio::null())
                .stderr(log(site.dir, &name)?);
            Agent::start(site, "floor", Place::Pod(pod), &mut command)
        };
        Ok(Box::new(Sidecars::start(site, site.pods, addresses, start)?))
    }
}
