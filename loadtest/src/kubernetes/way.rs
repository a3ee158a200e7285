//! The arms that there are on a cluster: what a pod of each looks like, and what else counts as its agent.
//!
//! ```text
//! direct    the application sends to the sink
//! pillion   the pod asks for the shim that admission injects; the gateway and the driver of its node count, too
//! otelcol   the Collector as a native sidecar, with the limits and the configuration of the arm outside of a cluster
//! ```

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Site;
use crate::arm::{IDENTITY, go_memory_limit, sidecar_config};
use crate::compare::About;
use crate::generator::Protocol;
use crate::identity::pod_name;
use crate::limits::AGENT_MEMORY_MIB;
use crate::network::{OTLP_GRPC, OTLP_HTTP};

/// The container that sends.
pub(super) const APPLICATION: &str = "app";

/// The container that admission adds.
const SHIM: &str = "pillion-shim";

/// What every pod of Pillion's DaemonSets has.
const SYSTEM_SELECTOR: &str = "app.kubernetes.io/name=pillion";

/// One way out of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// No agent.
    Direct,
    /// As it is installed there.
    Pillion,
    /// A Collector in each pod.
    Otelcol,
}

/// An arm, and what was found of it on the cluster.
#[derive(Debug, Clone)]
pub struct Arm {
    /// Which one.
    pub way: Way,
    /// For the report.
    pub about: About,
}

impl Way {
    /// All of them, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Direct, Self::Pillion, Self::Otelcol];

    /// As on the command line; the same names as outside of a cluster.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pillion => "pillion",
            Self::Otelcol => "otelcol",
        }
    }

    /// What promises to say whose items are, by which resource attribute.
    pub fn attests(self) -> Option<&'static str> {
        (self != Self::Direct).then_some("k8s.pod.name")
    }

    /// Whether it can be run there, and what it is.
    pub fn find(self, site: &Site) -> Result<Arm> {
        let (about, is_durable) = match self {
            Self::Direct => ("no agent: pods send to the backend themselves".to_owned(), false),
            Self::Otelcol => {
                let image = &site.otelcol_image;
                (format!("{image} in each pod, a native sidecar, queue in memory"), false)
            }
            Self::Pillion => pillion(site)?,
        };
        Ok(Arm { way: self, about: About { name: self.name().to_owned(), about, is_durable } })
    }

    /// Where its pods send to.
    fn target(self, site: &Site, protocol: Protocol) -> SocketAddr {
        let port = match protocol {
            Protocol::Grpc => OTLP_GRPC,
            Protocol::Http => OTLP_HTTP,
        };
        match self {
            Self::Direct => site.sink,
            Self::Pillion | Self::Otelcol => (Ipv4Addr::LOCALHOST, port).into(),
        }
    }

    /// One pod, before admission.
    pub fn pod(self, site: &Site, protocol: Protocol, namespace: &str, number: usize) -> Value {
        let target = self.target(site, protocol);
        let sidecars = if self == Self::Otelcol { vec![collector(site)] } else { Vec::new() };
        let annotations = if self == Self::Pillion { json!({"pillion.dev/inject": "enabled"}) } else { json!({}) };
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": pod_name(number), "namespace": namespace,
                "labels": {"app.kubernetes.io/name": "pillion-loadtest"}, "annotations": annotations,
            },
            "spec": {
                "restartPolicy": "Never",
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 2,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "initContainers": sidecars,
                "containers": [{
                    "name": APPLICATION,
                    "image": site.application_image,
                    "args": [
                        "pod", "--number", number.to_string(), "--run", site.run.to_string(),
                        "--conductor", site.conductor.to_string(), "--target", target.to_string(),
                    ],
                    "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
                    "securityContext": restricted(),
                }],
            },
        })
    }

    /// What admission has left out, as far as it says why.
    pub fn check(self, pod: &Value) -> Result<()> {
        let containers = pod["spec"]["initContainers"].as_array();
        let is_injected = containers.into_iter().flatten().any(|container| container["name"] == SHIM);
        let status = pod["metadata"]["annotations"]["pillion.dev/status"].as_str().unwrap_or("no pillion.dev/status");
        ensure!(
            self != Self::Pillion || is_injected,
            "{} has no {SHIM}: {status}",
            pod["metadata"]["name"].as_str().unwrap_or("a pod")
        );
        Ok(())
    }

    /// Pods of others that work for these nodes, by namespace and name.
    pub fn shared(self, site: &Site, nodes: &[String]) -> Result<Vec<(String, String)>> {
        if self != Self::Pillion {
            return Ok(Vec::new());
        }
        let namespace = &site.pillion_namespace;
        let text = site.kubectl.run(&["get", "pods", "-n", namespace, "-l", SYSTEM_SELECTOR, "-o", "json"], "")?;
        let pods: Value = serde_json::from_str(&text)?;
        let on_nodes = pods["items"].as_array().into_iter().flatten().filter(|pod| {
            let node = pod["spec"]["nodeName"].as_str();
            pod["metadata"]["deletionTimestamp"].is_null()
                && node.is_some_and(|node| nodes.iter().any(|one| one == node))
        });
        let names = on_nodes.filter_map(|pod| pod["metadata"]["name"].as_str());
        let found: Vec<_> = names.map(|name| (namespace.clone(), name.to_owned())).collect();
        ensure!(found.len() >= 2 * nodes.len(), "gateway and driver are not on every node of the pods: {found:?}");
        Ok(found)
    }
}

/// The installed one must send to the sink; its policy of acknowledging decides with whom it is compared.
fn pillion(site: &Site) -> Result<(String, bool)> {
    let namespace = &site.pillion_namespace;
    let path = format!("/api/v1/namespaces/{namespace}/configmaps/pillion-config");
    let map = site.kubectl.get(&path).context("Pillion is not installed")?;
    let text = map["data"]["pillion.yaml"].as_str().context("pillion-config has no pillion.yaml")?;
    let sink = site.sink;
    ensure!(
        text.contains(&sink.to_string()),
        "the Pillion that is installed sends elsewhere: write http://{sink} as endpoint of its destination, compression none, \
         and restart daemonset/pillion-gateway"
    );
    let value = |key: &str| {
        let mut values = text.lines().filter_map(|line| line.trim().strip_prefix(key)?.split_whitespace().next());
        values.next_back().map(str::to_owned)
    };
    let (ack, compression) = (value("ack:"), value("compression:"));
    let (ack, compression) = (ack.as_deref().unwrap_or("durable"), compression.as_deref().unwrap_or("zstd"));
    let about = format!(
        "as installed in {namespace}, ack {ack}, compression {compression}; one shim in each pod; the gateway and the driver of \
         each node are counted"
    );
    Ok((about, ack == "durable"))
}

fn collector(site: &Site) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let paths = ["metadata.namespace", "metadata.name", "metadata.uid", "spec.nodeName"];
    // OpenTelemetry's operator passes a sidecar's configuration the same way.
    let mut env = vec![
        json!({"name": "OTEL_CONFIG", "value": collector_config(site.sink)}),
        json!({"name": "GOMEMLIMIT", "value": go_memory_limit()}),
    ];
    env.extend(IDENTITY.iter().zip(paths).map(|(key, path)| field(&variable(key), path)));
    json!({
        "name": "otelcol",
        "image": site.otelcol_image,
        "args": ["--config=env:OTEL_CONFIG"],
        "restartPolicy": "Always",
        "env": env,
        "resources": {
            // Small, so that as many pods fit on a node as with any other arm: what is used is measured.
            "requests": {"cpu": "10m", "memory": "16Mi"},
            "limits": {"memory": format!("{AGENT_MEMORY_MIB}Mi")},
        },
        "securityContext": restricted(),
    })
}

/// The sidecar's configuration; whose items are is in its environment.
pub(super) fn collector_config(sink: SocketAddr) -> String {
    sidecar_config(&IDENTITY.map(|key| format!("${{env:{}}}", variable(key))), sink)
}

/// `k8s.pod.name` as an environment variable.
fn variable(key: &str) -> String {
    key.to_uppercase().replace('.', "_")
}

fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}
