//! rotel: one in each pod, as its users run it, with as many workers of its runtime as any agent has.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Result, ensure};

use super::sidecars::Sidecars;
use super::{Agent, Arm, Running, Site, log, version};
use crate::identity::pod_name;
use crate::network::{Network, OTLP_GRPC, OTLP_HTTP, Place};

/// The arm.
#[derive(Debug, Clone)]
pub struct Rotel {
    /// Its program.
    pub program: PathBuf,
}

impl Arm for Rotel {
    fn name(&self) -> &str {
        "rotel"
    }

    fn about(&self) -> String {
        format!(
            "{}, a build of 2025-07 whose listener lacks TCP_NODELAY: answers to small requests wait for some 40 ms; it sends gzip although it is told not to, which costs it CPU; one in each pod, in memory",
            version(&self.program)
        )
    }

    fn attests(&self) -> Option<&'static str> {
        Some("k8s.pod.name")
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        ensure!(matches!(site.network, Network::Pods(_)), "each agent needs the ports of a pod of its own");
        let addresses = [OTLP_GRPC, OTLP_HTTP].map(|port| (Ipv4Addr::LOCALHOST, port).into());
        let start = move |pod| self.start_one(site, pod);
        Ok(Box::new(Sidecars::start(site, site.pods, addresses, start)?))
    }
}

impl Rotel {
    fn start_one(&self, site: &Site<'_>, pod: usize) -> Result<Agent> {
        let name = pod_name(pod);
        let attributes = format!(
            "k8s.namespace.name=shop,k8s.pod.name={name},k8s.pod.uid=7d1f3a52-0000-4000-8000-{pod:012},k8s.node.name=node-1"
        );
        let sink = site.network.sink(Place::Pod(pod), site.sink_port);
        let mut command = site.cage.command(&self.program)?;
        command
            .args(["start", "--otlp-grpc-endpoint", "127.0.0.1:4317", "--otlp-http-endpoint", "127.0.0.1:4318"])
            .args(["--exporter", "otlp", "--otlp-exporter-protocol", "grpc", "--otlp-exporter-compression", "none"])
            .args(["--otlp-exporter-endpoint", &format!("http://{sink}"), "--otel-resource-attributes", &attributes])
            .arg("--pid-file")
            .arg(site.dir.join(format!("{name}.pid")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log(site.dir, &name)?);
        // It has no file of configuration: its arguments are it.
        let arguments = command
            .get_args()
            .skip_while(|argument| *argument != "start")
            .map(|argument| format!("{}\n", argument.display()));
        std::fs::write(site.dir.join(format!("{name}.arguments")), arguments.collect::<String>())?;
        Agent::start(site, "rotel", Place::Pod(pod), &mut command)
    }
}
