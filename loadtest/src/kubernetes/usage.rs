//! What containers use, as their kubelet counts it: `/stats/summary` through the API server.
//!
//! A kubelet tells what it saw last, which may be fifteen seconds old. A reading is taken once every container that is asked for has
//! been looked at again since the reading began: the time of its figures is another one. Clocks of nodes are never compared.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::kubectl::{Kubectl, until};

/// A kubelet that has not looked again by then does not.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two questions: each starts kubectl, which costs more than the answer.
pub const BETWEEN: Duration = Duration::from_secs(2);

/// A container, or a whole pod where the container has no name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Of the pod.
    pub namespace: String,
    /// Its pod's name.
    pub pod: String,
    /// Its own.
    pub container: String,
}

/// Of one container or pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since its start.
    pub cpu: Duration,
    /// Memory that the kubelet would not get back for the asking: KiB.
    pub working_set_kib: u64,
    /// When the kubelet looked, in its own words.
    looked: String,
}

/// Everything that was asked for, no older than the question.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Of containers, and of pods.
    pub used: BTreeMap<Name, Usage>,
    /// CPU time of the nodes, whoever used it.
    pub nodes: Duration,
    /// When it was complete.
    pub at: Instant,
}

impl Reading {
    /// Asks the kubelets of `nodes` for all containers of these pods, by namespace and name, and for the pods themselves; `between` two
    /// questions, [`BETWEEN`] but in tests.
    pub fn take(kubectl: &Kubectl, nodes: &[String], pods: &[(String, String)], between: Duration) -> Result<Self> {
        let ask = || -> Result<(BTreeMap<Name, Usage>, Duration)> {
            let (mut all, mut busy) = (BTreeMap::new(), Duration::ZERO);
            for node in nodes {
                let summary = kubectl.get(&format!("/api/v1/nodes/{node}/proxy/stats/summary"))?;
                busy += cpu(&summary["node"]).unwrap_or_default();
                all.append(&mut used(&summary));
            }
            all.retain(|name, _| pods.iter().any(|(namespace, pod)| *namespace == name.namespace && *pod == name.pod));
            Ok((all, busy))
        };
        let (before, _) = ask()?;
        let (used, nodes) = until(PATIENCE, between, || {
            let (now, busy) = ask()?;
            for (namespace, pod) in pods {
                let has = |name: &Name| name.namespace == *namespace && name.pod == *pod && !name.container.is_empty();
                ensure!(now.keys().any(has), "the kubelet does not know the containers of {namespace}/{pod}");
            }
            let old = now.iter().find(|(name, usage)| before.get(name).is_some_and(|then| then.looked == usage.looked));
            ensure!(old.is_none(), "the kubelet has not looked again at {:?}", old.map(|(name, _)| name));
            Ok((now, busy))
        })?;
        Ok(Self { used, nodes, at: Instant::now() })
    }

    /// CPU time of each since then. A container that has started again has forgotten what it used: an error.
    pub fn since(&self, before: &Self) -> Result<BTreeMap<Name, Duration>> {
        let mut spent = BTreeMap::new();
        for (name, then) in &before.used {
            let now = self.used.get(name).with_context(|| format!("{name:?} has ended during the run"))?;
            let more = now.cpu.checked_sub(then.cpu);
            spent.insert(name.clone(), more.with_context(|| format!("{name:?} has started again during the run"))?);
        }
        Ok(spent)
    }
}

/// Of all pods and containers of a summary; what the kubelet has not looked at yet is left out.
fn used(summary: &Value) -> BTreeMap<Name, Usage> {
    let mut all = BTreeMap::new();
    for pod in list(&summary["pods"]) {
        let name = |container: &Value| Name {
            namespace: text(&pod["podRef"]["namespace"]),
            pod: text(&pod["podRef"]["name"]),
            container: text(&container["name"]),
        };
        for part in list(&pod["containers"]).chain([pod]) {
            let (Some(cpu), Some(bytes)) = (cpu(part), part["memory"]["workingSetBytes"].as_u64()) else { continue };
            let looked = format!("{} {}", text(&part["cpu"]["time"]), text(&part["memory"]["time"]));
            all.insert(name(part), Usage { cpu, working_set_kib: bytes / 1024, looked });
        }
    }
    all
}

fn cpu(part: &Value) -> Option<Duration> {
    part["cpu"]["usageCoreNanoSeconds"].as_u64().map(Duration::from_nanos)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
