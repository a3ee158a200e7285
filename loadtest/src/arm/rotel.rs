//! rotel: one in each pod, as its users run it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use super::{Agent, Arm, Process, Running, Site, version, wait_for_ports};
use crate::identity::pod_name;
use crate::network::{Network, OTLP_GRPC, OTLP_HTTP, Place};

/// The arm.
#[derive(Debug, Clone)]
pub struct Rotel {
    /// Its program.
    pub program: PathBuf,
}

struct Pods {
    agents: Vec<Agent>,
}

impl Arm for Rotel {
    fn name(&self) -> &str {
        "rotel"
    }

    fn about(&self) -> String {
        format!("{}, a build of 2025-07, one in each pod, in memory", version(&self.program))
    }

    fn attests(&self) -> Option<&'static str> {
        Some("k8s.pod.name")
    }

    fn start<'a>(&'a self, site: &'a Site<'a>) -> Result<Box<dyn Running + 'a>> {
        ensure!(matches!(site.network, Network::Pods(_)), "each agent needs the ports of a pod of its own");
        let mut agents = Vec::with_capacity(site.pods);
        for pod in 0..site.pods {
            let name = pod_name(pod);
            let attributes = format!(
                "k8s.namespace.name=shop,k8s.pod.name={name},k8s.pod.uid=7d1f3a52-0000-4000-8000-{pod:012},k8s.node.name=node-1"
            );
            let sink = site.network.sink(Place::Pod(pod), site.sink_port);
            let mut command = Command::new(&self.program);
            command
                .args(["start", "--otlp-grpc-endpoint", "127.0.0.1:4317", "--otlp-http-endpoint", "127.0.0.1:4318"])
                .args(["--exporter", "otlp", "--otlp-exporter-protocol", "grpc", "--otlp-exporter-compression", "none"])
                .args([
                    "--otlp-exporter-endpoint",
                    &format!("http://{sink}"),
                    "--otel-resource-attributes",
                    &attributes,
                ])
                .arg("--pid-file")
                .arg(site.dir.join(format!("{name}.pid")))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            agents.push(Agent { role: "rotel", child: site.network.spawn(Place::Pod(pod), &mut command)? });
        }
        wait_for_ports(site.network, vec![(Ipv4Addr::LOCALHOST, OTLP_GRPC).into(); site.pods])?;
        Ok(Box::new(Pods { agents }))
    }
}

impl Running for Pods {
    fn grpc(&self, _pod: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, OTLP_GRPC).into()
    }

    fn http(&self, _pod: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, OTLP_HTTP).into()
    }

    fn processes(&self) -> Vec<Process> {
        self.agents.iter().map(Agent::process).collect()
    }
}
