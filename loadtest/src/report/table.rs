//! The figures of a comparison, an arm a column.

use std::collections::BTreeSet;

use crate::cell::Cell;
use crate::compare::Comparison;
use crate::kubernetes::Used;

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Figure {
    /// What it is, with its unit.
    pub name: &'static str,
    /// The same without spaces, for CSV.
    pub key: &'static str,
    /// Digits after the point.
    pub digits: usize,
    /// Whether void runs have it too: it says nothing about latency.
    pub even_if_void: bool,
    /// Of an arm: the sum of its rounds instead of their median. A mistake in one of five rounds is a mistake.
    pub is_summed: bool,
    /// From one run, and the items of a request.
    pub of: fn(&Cell, f64) -> Option<f64>,
}

const fn figure(name: &'static str, key: &'static str, digits: usize, of: fn(&Cell, f64) -> Option<f64>) -> Figure {
    Figure { name, key, digits, even_if_void: true, is_summed: false, of }
}

const fn latency(name: &'static str, key: &'static str, of: fn(&Cell, f64) -> Option<f64>) -> Figure {
    Figure { name, key, digits: 2, even_if_void: false, is_summed: false, of }
}

const fn sum(name: &'static str, key: &'static str, of: fn(&Cell, f64) -> Option<f64>) -> Figure {
    Figure { name, key, digits: 0, even_if_void: true, is_summed: true, of }
}

/// All lines.
pub const FIGURES: &[Figure] = &[
    figure("requests due", "due", 0, |cell, _| Some(cell.requests.due as f64)),
    figure("requests acknowledged", "acknowledged", 0, |cell, _| Some(cell.requests.acknowledged as f64)),
    sum("items lost, all rounds", "lost", |cell, _| Some(cell.account.lost as f64)),
    sum("items repeated, all rounds", "duplicated", |cell, _| Some(cell.account.duplicated as f64)),
    sum("items changed, all rounds", "corrupted", |cell, _| Some(cell.account.corrupted as f64)),
    sum("items misattributed, all rounds", "misattributed", |cell, _| Some(cell.account.misattributed as f64)),
    sum("items reordered, all rounds", "reordered", |cell, _| Some(cell.account.reordered as f64)),
    latency("ack latency p50, ms", "ack_p50_ms", |cell, _| cell.latency.p50()),
    latency("ack latency p99, ms", "ack_p99_ms", |cell, _| cell.latency.p99()),
    latency("ack latency p99.9, ms", "ack_p999_ms", |cell, _| cell.latency.p999()),
    latency("ack latency max, ms", "ack_max_ms", |cell, _| cell.latency.max()),
    figure("bare write and fdatasync p50, ms", "bare_sync_p50_ms", 2, |cell, _| cell.bare_sync?.p50()),
    figure("bare write and fdatasync p99, ms", "bare_sync_p99_ms", 2, |cell, _| cell.bare_sync?.p99()),
    latency("noisy pods' ack latency p50, ms", "noisy_ack_p50_ms", |cell, _| cell.noisy_latency?.p50()),
    latency("noisy pods' ack latency p99, ms", "noisy_ack_p99_ms", |cell, _| cell.noisy_latency?.p99()),
    latency("delivery p50, ms", "delivery_p50_ms", |cell, _| cell.delivery.p50()),
    latency("delivery p99, ms", "delivery_p99_ms", |cell, _| cell.delivery.p99()),
    figure("agent CPU, s", "agent_cpu_s", 3, |cell, _| Some(cell.cpu.arm)),
    figure("agent CPU, s a million items", "agent_cpu_s_per_million", 2, |cell, items| {
        Some(1e6 / cell.items_per_cpu_second(items)?)
    }),
    figure("machine less generator and sink, s", "machine_cpu_s", 2, |cell, _| {
        Some((cell.cpu.machine - cell.cpu.generator - cell.cpu.sink).max(0.0))
    }),
    figure("the same, less direct, s", "cpu_beyond_direct_s", 2, |cell, _| cell.cpu_beyond_direct),
    figure("generator CPU, s", "generator_cpu_s", 3, |cell, _| Some(cell.cpu.generator)),
    figure("generator's share, %", "generator_share_percent", 1, |cell, _| Some(cell.generator_share() * 100.0)),
    figure("sink CPU, s", "sink_cpu_s", 3, |cell, _| Some(cell.cpu.sink)),
    figure("CPU time kept by a hypervisor, %", "stolen_percent", 1, |cell, _| Some(cell.cpu.stolen_share() * 100.0)),
    figure("PSS idle, KiB a pod", "pss_idle_kib_per_pod", 0, |cell, _| {
        cell.of_processes(cell.memory.idle.pss as f64 / cell.pods as f64)
    }),
    figure("PSS load, KiB a pod", "pss_load_kib_per_pod", 0, |cell, _| {
        cell.of_processes(cell.memory.load.pss as f64 / cell.pods as f64)
    }),
    figure("RSS peak, KiB a pod", "rss_peak_kib_per_pod", 0, |cell, _| Some(cell.peak.rss as f64 / cell.pods as f64)),
    figure("working set peak, KiB a pod", "working_set_peak_kib_per_pod", 0, |cell, _| {
        Some(cell.peak.working_set? as f64 / cell.pods as f64)
    }),
    figure("PSS after, KiB a pod", "pss_after_kib_per_pod", 0, |cell, _| {
        cell.of_processes(cell.memory.after.pss as f64 / cell.pods as f64)
    }),
    figure("private after, KiB a pod", "private_after_kib_per_pod", 0, |cell, _| {
        cell.of_processes(cell.memory.after.private as f64 / cell.pods as f64)
    }),
    figure("RSS after, KiB a pod", "rss_after_kib_per_pod", 0, |cell, _| {
        cell.of_processes(cell.memory.after.rss as f64 / cell.pods as f64)
    }),
    figure("working set idle, KiB a pod", "working_set_idle_kib_per_pod", 0, |cell, _| {
        Some(cell.held_idle.working_set? as f64 / cell.pods as f64)
    }),
    figure("working set after, KiB a pod", "working_set_after_kib_per_pod", 0, |cell, _| {
        Some(cell.held_after.working_set? as f64 / cell.pods as f64)
    }),
    figure("MemAvailable lost, KiB a pod", "unavailable_after_kib_per_pod", 0, |cell, _| {
        Some(cell.held_after.unavailable? as f64 / cell.pods as f64)
    }),
    figure("bytes in", "bytes_in", 0, |cell, _| Some(cell.requests.bytes as f64)),
    figure("bytes out", "bytes_out", 0, |cell, _| Some(cell.bytes_out as f64)),
    figure("threads", "threads", 0, |cell, _| cell.of_processes(cell.usage.threads as f64)),
    figure("descriptors", "descriptors", 0, |cell, _| cell.of_processes(cell.usage.descriptors as f64)),
    figure("context switches", "switches", 0, |cell, _| cell.of_processes(cell.usage.switches as f64)),
    figure("whole pod's working set idle, KiB", "pod_idle_kib", 0, |cell, _| {
        Some(cell.on_cluster.as_ref()?.whole.idle_kib as f64 / cell.pods as f64)
    }),
    figure("whole pod's working set after, KiB", "pod_after_kib", 0, |cell, _| {
        Some(cell.on_cluster.as_ref()?.whole.after_kib as f64 / cell.pods as f64)
    }),
    figure("whole pods' CPU, s", "pods_cpu_s", 3, |cell, _| Some(cell.on_cluster.as_ref()?.whole.cpu)),
    figure("pod Ready p50, ms", "pod_ready_p50_ms", 0, |cell, _| Some(cell.on_cluster.as_ref()?.ready_ms.0)),
    figure("pod Ready max, ms", "pod_ready_max_ms", 0, |cell, _| Some(cell.on_cluster.as_ref()?.ready_ms.1)),
    figure("startup, ms", "startup_ms", 0, |cell, _| Some(cell.startup_ms)),
    figure("first delivery, ms", "first_delivery_ms", 1, |cell, _| cell.first_delivery_ms),
    figure("generator late p99, ms", "late_p99_ms", 3, |cell, _| cell.lateness.p99),
];

impl Figure {
    /// The figure of one run, where it counts.
    pub fn value(&self, cell: &Cell, items: f64) -> Option<f64> {
        (self.even_if_void || cell.void.is_none()).then(|| (self.of)(cell, items)).flatten()
    }

    /// The figure of an arm over its rounds; `None`: no round has it, infinite: most rounds have no answer.
    pub fn of_arm(&self, comparison: &Comparison, arm: &str) -> Option<f64> {
        let items = comparison.items_per_request();
        if self.is_summed {
            return comparison.of(arm).map(|cell| self.value(cell, items)).sum();
        }
        comparison.median(arm, |cell| self.value(cell, items))
    }

    /// In words.
    pub fn told(&self, value: Option<f64>) -> String {
        match value {
            None => "-".to_owned(),
            Some(value) if value.is_infinite() => "no answer".to_owned(),
            Some(value) => format!("{value:.*}", self.digits),
        }
    }
}

/// Medians over the rounds.
pub fn table(comparison: &Comparison) -> String {
    let mut out = format!(
        "{}: {}\n{}\n{} s a run, {} rounds, seed {}, {}, {}\n{}\n\n",
        comparison.name,
        comparison.scenario.about,
        comparison.scenario.shape(),
        comparison.scenario.seconds,
        comparison.rounds,
        comparison.seed,
        super::day(comparison.started),
        comparison.machine,
        comparison.limits
    );
    let width = comparison.arms.iter().map(|arm| arm.name.len()).max().unwrap_or(0).max(10) + 2;
    out.push_str(&format!("{:36}", "median of the rounds"));
    for arm in &comparison.arms {
        out.push_str(&format!("{:>width$}", arm.name));
    }
    out.push('\n');
    for figure in FIGURES {
        out.push_str(&format!("{:36}", figure.name));
        for arm in &comparison.arms {
            out.push_str(&format!("{:>width$}", figure.told(figure.of_arm(comparison, &arm.name))));
        }
        out.push('\n');
    }
    out.push_str(&containers(comparison));
    out
}

/// What each container of a pod took on a cluster, and what a pod's share of the common ones is; empty elsewhere.
fn containers(comparison: &Comparison) -> String {
    let mut out = String::new();
    for arm in &comparison.arms {
        let on_cluster = comparison.of(&arm.name).filter_map(|cell| cell.on_cluster.as_ref());
        let names: BTreeSet<&String> = on_cluster.flat_map(|cluster| cluster.containers.keys()).collect();
        for name in names {
            // A pod's share: of the application and of a sidecar there is one in each pod.
            let median = |of: fn(&Used) -> f64| {
                let share = |cell: &Cell| Some(of(cell.on_cluster.as_ref()?.containers.get(name)?) / cell.pods as f64);
                comparison.median(&arm.name, share).unwrap_or_default()
            };
            let count = comparison.of(&arm.name).find_map(|cell| cell.on_cluster.as_ref()?.containers.get(name));
            let (count, is_shared) = count.map_or((0, false), |used| (used.count, used.is_shared));
            let whose = if is_shared { "shared" } else { "in pods" };
            out.push_str(&format!(
                "{:26}{:>10}{:>14.1}{:>14.0}{:>14.0}\n",
                format!("{} {name}", arm.name),
                format!("{count} {whose}"),
                median(|used| used.cpu * 1e3),
                median(|used| used.idle_kib as f64),
                median(|used| used.after_kib as f64)
            ));
        }
    }
    if out.is_empty() {
        return out;
    }
    let heads = ["container", "how many", "CPU, ms", "idle, KiB", "after, KiB"];
    format!("\n{:26}{:>10}{:>14}{:>14}{:>14}   a pod\n{out}", heads[0], heads[1], heads[2], heads[3], heads[4])
}

/// What an agent costs a pod, by the number of pods: a table for each figure, a comparison a column. What was asked for and could
/// not be run is named; memory a pod that was not measured, because so many agents do not fit, is what was measured last, marked.
pub fn by_pods(comparisons: &[Comparison]) -> String {
    let mut out = String::new();
    if let Some(first) = comparisons.first() {
        let Comparison { name, scenario, rounds, seed, machine, limits, command, .. } = first;
        out.push_str(&format!(
            "{name}: {}\n{} s a run, {rounds} rounds, seed {seed}, {}, {machine}\n{limits}\n{command}\n",
            scenario.about,
            scenario.seconds,
            super::day(first.started)
        ));
    }
    for comparison in comparisons {
        let missing = comparison.missing.iter();
        missing.for_each(|one| {
            out.push_str(&format!("MISSING {} with {} pods: {}\n", one.arm, comparison.scenario.pods, one.why));
        });
    }
    for key in ["pss_idle_kib_per_pod", "pss_after_kib_per_pod", "working_set_after_kib_per_pod", "agent_cpu_s"] {
        let Some(figure) = FIGURES.iter().find(|figure| figure.key == key) else { continue };
        let name = format!("{}, by pods", figure.name);
        out.push_str(&format!("\n{name:36}"));
        comparisons.iter().for_each(|comparison| out.push_str(&format!("{:>12}", comparison.scenario.pods)));
        let arms = comparisons.first().map(|first| first.arms.as_slice()).unwrap_or_default();
        for arm in arms.iter().filter(|arm| arm.name != "direct") {
            out.push_str(&format!("\n{:36}", arm.name));
            let mut last = None;
            for comparison in comparisons {
                let value = figure.of_arm(comparison, &arm.name);
                let text = match (value, last) {
                    (None, Some(last)) if key.ends_with("_per_pod") => format!("~{}", figure.told(Some(last))),
                    (value, _) => figure.told(value),
                };
                last = value.or(last);
                out.push_str(&format!("{text:>12}"));
            }
        }
        out.push('\n');
    }
    out
}

/// Every run, a line each.
pub fn csv(comparison: &Comparison) -> String {
    let items = comparison.items_per_request();
    let keys: Vec<&str> = FIGURES.iter().map(|figure| figure.key).collect();
    let mut out = format!("arm,round,void,{}\n", keys.join(","));
    for cell in &comparison.cells {
        let values =
            FIGURES.iter().map(|figure| (figure.of)(cell, items).map(|value| value.to_string()).unwrap_or_default());
        let values: Vec<String> = values.collect();
        out.push_str(&format!("{},{},{},{}\n", cell.arm, cell.round + 1, cell.void.is_some(), values.join(",")));
    }
    out
}
