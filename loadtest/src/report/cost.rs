//! What a cluster saves: the measured figures of two arms, times nodes and pods.
//!
//! ```text
//! sidecar   a pod's figure x pods x nodes
//! shared    the same, but never less than was measured for a whole node: an agent that all share costs that even with few pods
//! CPU       seconds a million items x items a second; what agents take while nothing is sent is not in it
//! requests  what pods ask the scheduler for, which a node is full by: given by the reader, not measured
//! ```

use serde::Serialize;

use crate::compare::Comparison;

/// What the reader says of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Cluster {
    /// Nodes.
    pub nodes: f64,
    /// Pods with telemetry on each.
    pub pods: f64,
    /// Items that each pod sends a second.
    pub items_per_second: f64,
    /// What a sidecar asks for: MiB of memory.
    pub sidecar_memory_mib: f64,
    /// What a sidecar asks for: thousandths of a processor.
    pub sidecar_cpu_milli: f64,
    /// What is shared on each node asks for, gateway and CSI driver together: MiB of memory.
    pub gateway_memory_mib: f64,
    /// The same: thousandths of a processor.
    pub gateway_cpu_milli: f64,
    /// What Pillion's shim asks for in each pod: MiB of memory.
    pub shim_memory_mib: f64,
    /// The same: thousandths of a processor.
    pub shim_cpu_milli: f64,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            nodes: 100.0,
            pods: 30.0,
            items_per_second: 100.0,
            sidecar_memory_mib: 128.0,
            sidecar_cpu_milli: 100.0,
            // As in deploy/yaml.
            gateway_memory_mib: 144.0,
            gateway_cpu_milli: 110.0,
            shim_memory_mib: 2.0,
            shim_cpu_milli: 1.0,
        }
    }
}

/// What was measured of one arm.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measured {
    /// Its name.
    pub arm: String,
    /// PSS after the load, on a cluster the working set, KiB a pod.
    pub memory_kib_per_pod: f64,
    /// CPU seconds a million items.
    pub cpu_s_per_million: f64,
    /// On one node.
    pub pods: f64,
    /// All pods of a node share it.
    pub is_shared: bool,
    /// A shim of its own is in each pod.
    pub has_shim: bool,
}

/// What an arm takes in a cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// GiB of memory in use.
    pub memory_gib: f64,
    /// Processors in use.
    pub processors: f64,
    /// GiB of memory asked for.
    pub requested_memory_gib: f64,
    /// Processors asked for.
    pub requested_processors: f64,
}

impl Measured {
    /// Of every arm with processes, by medians; shims and gateway are one arm.
    pub fn all(comparison: &Comparison) -> Vec<Self> {
        let items = comparison.items_per_request();
        let of = |arm: &str| {
            let memory = comparison.median(arm, |cell| Some(cell.memory_kib()? / cell.pods as f64))?;
            let cpu = comparison.median(arm, |cell| Some(1e6 / cell.items_per_cpu_second(items)?))?;
            Some(Self {
                arm: arm.to_owned(),
                memory_kib_per_pod: memory,
                cpu_s_per_million: cpu,
                pods: comparison.scenario.pods as f64,
                is_shared: arm.starts_with("pillion") || arm == "otelcol-daemonset",
                has_shim: arm.starts_with("pillion"),
            })
        };
        comparison.arms.iter().filter_map(|arm| of(&arm.name)).filter(|one| one.memory_kib_per_pod > 0.0).collect()
    }

    /// In that cluster.
    pub fn in_cluster(&self, cluster: &Cluster) -> Cost {
        let pods = if self.is_shared { cluster.pods.max(self.pods) } else { cluster.pods };
        let shims = if self.has_shim { cluster.pods } else { 0.0 };
        let sent = cluster.nodes * cluster.pods * cluster.items_per_second;
        let (memory_mib, cpu_milli) = match self.is_shared {
            true => (
                cluster.gateway_memory_mib + shims * cluster.shim_memory_mib,
                cluster.gateway_cpu_milli + shims * cluster.shim_cpu_milli,
            ),
            false => (cluster.sidecar_memory_mib * cluster.pods, cluster.sidecar_cpu_milli * cluster.pods),
        };
        Cost {
            memory_gib: self.memory_kib_per_pod * pods * cluster.nodes / (1024.0 * 1024.0),
            processors: self.cpu_s_per_million * sent / 1e6,
            requested_memory_gib: memory_mib * cluster.nodes / 1024.0,
            requested_processors: cpu_milli * cluster.nodes / 1000.0,
        }
    }
}

/// A table of all arms in that cluster, or why there is none.
pub fn cost(comparison: &Comparison, cluster: &Cluster) -> String {
    if let Some(why) = silence(comparison) {
        return why;
    }
    let Cluster { nodes, pods, items_per_second, .. } = cluster;
    let mut out = format!(
        "{nodes} nodes x {pods} pods x {items_per_second} items/s, from {} pods on one node ({}){}\n\n{:26}{:>12}{:>12}{:>16}{:>16}\n",
        comparison.scenario.pods,
        comparison.scenario.shape(),
        if *pods > comparison.scenario.pods as f64 { "; EXTRAPOLATED, more pods than were measured" } else { "" },
        "",
        "memory, GiB",
        "processors",
        "requested, GiB",
        "requested CPUs"
    );
    for measured in Measured::all(comparison) {
        let cost = measured.in_cluster(cluster);
        out.push_str(&format!(
            "{:26}{:>12.1}{:>12.2}{:>16.1}{:>16.1}\n",
            measured.arm, cost.memory_gib, cost.processors, cost.requested_memory_gib, cost.requested_processors
        ));
    }
    out
}

/// The same, to be played with on a page: fields for the cluster, a table that follows them.
pub(super) fn page(comparison: &Comparison) -> String {
    if let Some(why) = silence(comparison) {
        return format!("<p class=\"soft\">{}</p>", super::html::escaped(&why));
    }
    let default = Cluster::default();
    let fields = [
        ("nodes", "nodes", default.nodes),
        ("pods", "pods a node", default.pods),
        ("items_per_second", "items a second and pod", default.items_per_second),
        ("sidecar_memory_mib", "a sidecar requests, MiB", default.sidecar_memory_mib),
        ("sidecar_cpu_milli", "a sidecar requests, mCPU", default.sidecar_cpu_milli),
        ("gateway_memory_mib", "a node's gateway requests, MiB", default.gateway_memory_mib),
        ("gateway_cpu_milli", "a node's gateway requests, mCPU", default.gateway_cpu_milli),
        ("shim_memory_mib", "a shim requests, MiB", default.shim_memory_mib),
        ("shim_cpu_milli", "a shim requests, mCPU", default.shim_cpu_milli),
    ]
    .map(|(name, label, value)| {
        format!(
            "<label>{label}<input type=\"number\" min=\"0\" step=\"any\" name=\"{name}\" value=\"{value}\"></label>"
        )
    });
    // A name with `</script>` in it would end the element.
    let json = serde_json::to_string(&Measured::all(comparison)).unwrap_or_default().replace('<', "\\u003c");
    format!(
        "<form id=\"cost\">{}</form>\n<div class=\"scroll\"><table><thead><tr><th scope=\"col\">the whole cluster</th>\
         <th scope=\"col\">memory used, GiB</th><th scope=\"col\">processors used</th><th scope=\"col\">memory requested, GiB</th>\
         <th scope=\"col\">processors requested</th></tr></thead><tbody id=\"costs\"></tbody></table></div>\n\
         <noscript><p>This table is reckoned by the page's own script; `pillion-loadtest cost` prints it.</p></noscript>\n\
         <p class=\"soft\">Used: PSS after the load (on a cluster, working set) and CPU an item, as measured above with {} pods on one node; what all pods \
         share counts for at least so many pods. Requested: as given here.\
         <strong id=\"beyond\" hidden> More pods than were measured: extrapolated.</strong></p>\n\
         <script type=\"application/json\" id=\"measured\">{json}</script><script>{}</script>",
        fields.concat(),
        comparison.scenario.pods,
        include_str!("cost.js")
    )
}

/// Why nothing may be said of a cluster's cost.
pub(super) fn silence(comparison: &Comparison) -> Option<String> {
    if !comparison.has_collector_sidecars() {
        let why = "no Collector in each pod was measured (`pillion-loadtest baselines` gets it)";
        return Some(format!("Nothing is said about what a cluster saves: {why}"));
    }
    let nodes = comparison.cells.iter().filter_map(|cell| Some(cell.on_cluster.as_ref()?.nodes)).max()?;
    (nodes > 1).then(|| {
        format!(
            "Nothing is said about what a cluster saves: pods were on {nodes} nodes, and figures are reckoned from one"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: a shared agent and a sidecar, measured with ten pods on one node, in clusters with fewer and with more pods.
    /// Guarantees: a sidecar costs by the pod; what is shared never costs less than was measured for a node; requests are the
    /// reader's.
    #[test]
    fn what_is_shared_costs_a_whole_node() {
        let measured = |is_shared| Measured {
            arm: String::new(),
            memory_kib_per_pod: 1024.0,
            cpu_s_per_million: 10.0,
            pods: 10.0,
            is_shared,
            has_shim: is_shared,
        };
        let cluster = |pods| Cluster { nodes: 1024.0, pods, ..Cluster::default() };
        let (shared, sidecar) = (measured(true), measured(false));
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        near(shared.in_cluster(&cluster(5.0)).memory_gib, 10.0);
        near(shared.in_cluster(&cluster(20.0)).memory_gib, 20.0);
        near(sidecar.in_cluster(&cluster(5.0)).memory_gib, 5.0);
        near(sidecar.in_cluster(&cluster(10.0)).processors, 1024.0 * 10.0 * 100.0 * 10.0 / 1e6);
        near(sidecar.in_cluster(&cluster(10.0)).requested_memory_gib, 1280.0);
        near(shared.in_cluster(&cluster(10.0)).requested_memory_gib, 164.0);
    }
}
