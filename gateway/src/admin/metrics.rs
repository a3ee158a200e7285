//! /metrics: one report, encoded for Prometheus (OpenMetrics text).
//!
//! What the Collector has carries the Collector's name, so that its dashboards work; `pillion_*` is what it has not.
//! Labels name namespace and workload, never a pod's uid. It counts nothing itself.

mod control;
mod series;

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

pub(super) use self::series::Series;
use super::process::Usage;
use super::view::{Items, Report, TenantDestinationView, TenantView};
use crate::base::Signal;

/// Label names and values, in order.
type Labels = Vec<(&'static str, String)>;

/// The samples of one family. What has the same labels is one sample.
type Samples<V> = BTreeMap<Labels, V>;

/// Encodes a report. `series` remembers which tenants have labels of their own.
pub(super) fn encode(report: Report, usage: Usage, series: &Series) -> Result<String, fmt::Error> {
    let labels = series.labels(report.tenants.iter().map(|tenant| tenant.name.as_str()));
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape { report, usage, labels }));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// What one scrape encodes.
#[derive(Debug)]
struct Scrape {
    report: Report,
    usage: Usage,
    /// By tenant, in the order of the report.
    labels: Vec<Labels>,
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        self.receiver(&mut out)?;
        self.exporter(&mut out)?;
        self.tenants(&mut out)?;
        self.destinations(&mut out)?;
        self.queue(&mut out)?;
        control::custody(&self.report, &mut out)?;
        control::lifecycle(&self.report, &mut out)?;
        self.process(&mut out)
    }
}

impl Scrape {
    fn receiver(&self, out: &mut Out<'_>) -> fmt::Result {
        for signal in Signal::ALL {
            let items = signal.items_name();
            let receiver = |labels: &Labels| with(&[("receiver", "otlp")], labels);
            let accepted = self.by_tenant(receiver, |tenant| tenant.accepted.by_signal()[signal.index()]);
            out.counter(
                &format!("otelcol_receiver_accepted_{items}"),
                "Items acknowledged to the sender, as its ack policy promises.",
                accepted,
            )?;
            let refused = self.by_tenant(receiver, |tenant| tenant.refused.by_signal()[signal.index()]);
            out.counter(
                &format!("otelcol_receiver_refused_{items}"),
                "Items refused, where they could be counted.",
                refused,
            )?;
        }
        Ok(())
    }

    fn exporter(&self, out: &mut Out<'_>) -> fmt::Result {
        for signal in Signal::ALL {
            let (items, index) = (signal.items_name(), signal.index());
            out.counter(
                &format!("otelcol_exporter_sent_{items}"),
                "Items acknowledged by the destination.",
                self.by_route(|at| at.delivered.by_signal()[index]),
            )?;
            out.counter(
                &format!("otelcol_exporter_send_failed_{items}"),
                "Items given up, because the destination refuses their content; they are kept as dead letters.",
                self.by_route(|at| at.dead_letters.by_signal()[index]),
            )?;
        }
        out.gauge(
            "otelcol_exporter_queue_size",
            "Items committed and not yet delivered.",
            self.by_route(|at| at.queued_items),
        )?;
        out.counter(
            "pillion_dead_letter_items",
            "Items kept as dead letters.",
            self.by_route_and_signal(|at| at.dead_letters),
        )?;
        out.counter(
            "pillion_rejected_items",
            "Items that a partial success reported as rejected; estimated for merged requests.",
            self.by_route_and_signal(|at| at.rejected),
        )?;
        out.counter(
            "pillion_retried_items",
            "Items sent again, because it was not certain that they had arrived.",
            self.by_route_and_signal(|at| at.retried),
        )?;
        out.counter(
            "pillion_lost_items",
            "Items given up without delivery, by reason.",
            self.by_route_signal_and_loss(),
        )?;
        out.gauge(
            "pillion_oldest_undelivered_age_seconds",
            "How long the oldest queued record waits, not counting the time that the gateway was down.",
            self.by_route(|at| at.oldest_age_seconds),
        )?;
        out.gauge(
            "pillion_balance_difference_items",
            "Items that entered and are neither delivered nor queued nor dead letters nor lost; 0 but for what is on its way.",
            self.by_route(|at| at.balance.difference),
        )
    }

    fn tenants(&self, out: &mut Out<'_>) -> fmt::Result {
        let attached = self.report.tenants.iter().filter(|tenant| !matches!(tenant.state, "detached" | "unserved"));
        out.gauge("pillion_tenants", "Tenants attached.", alone(attached.count() as u64))?;
        let mut refused = Samples::new();
        for (tenant, labels) in self.report.tenants.iter().zip(&self.labels) {
            for (reason, count) in &tenant.refused_requests {
                add(&mut refused, with(&[("reason", reason)], labels), *count);
            }
        }
        out.counter("pillion_refused_requests", "Requests refused, by reason.", refused)?;
        let own = Labels::clone;
        out.counter("pillion_requests", "Requests answered.", self.by_tenant(own, |tenant| tenant.requests))?;
        out.counter(
            "pillion_accepted_bytes",
            "Payload bytes acknowledged, after decompression.",
            self.by_tenant(own, |tenant| tenant.accepted_bytes),
        )?;
        out.counter(
            "pillion_recovered_items",
            "Items found undelivered in the log at the start.",
            self.by_tenant(own, |tenant| tenant.recovered.total()),
        )?;
        out.counter(
            "pillion_attributes_overwritten",
            "Resource attributes of the sender that an attested one replaced.",
            self.by_tenant(own, |tenant| tenant.overwritten_attributes),
        )?;
        out.counter(
            "pillion_donations_refused",
            "Listening sockets of a shim that were refused.",
            self.by_tenant(own, |tenant| tenant.refused_donations),
        )?;
        out.gauge(
            "pillion_connections",
            "Open connections.",
            self.by_tenant(own, |tenant| u64::from(tenant.connections)),
        )?;
        out.gauge(
            "pillion_memory_used_bytes",
            "Intake memory reserved.",
            self.by_tenant(own, |tenant| tenant.memory.used),
        )?;
        out.gauge(
            "pillion_tenant_queue_bytes",
            "Bytes of the log that undelivered records take, as limits.disk counts them.",
            self.by_tenant(own, |tenant| tenant.queue_bytes),
        )
    }

    fn destinations(&self, out: &mut Out<'_>) -> fmt::Result {
        let (mut states, mut flying) = (Samples::new(), Samples::new());
        let (mut requests, mut failures) = (Samples::new(), Samples::new());
        for destination in &self.report.destinations {
            let exporter = vec![("exporter", destination.name.clone())];
            for state in ["ok", "retrying", "broken"] {
                let labels = with(&[("state", state)], &exporter);
                add(&mut states, labels, u64::from(destination.state == state));
            }
            add(&mut flying, exporter.clone(), destination.in_flight as u64);
            add(&mut requests, exporter.clone(), destination.requests);
            add(&mut failures, exporter, destination.failures);
        }
        out.gauge("pillion_destination_state", "1 for the present state of the destination.", states)?;
        out.gauge("pillion_destination_in_flight_requests", "Requests without an answer yet.", flying)?;
        out.counter("pillion_destination_requests", "Requests sent.", requests)?;
        out.counter("pillion_destination_failed_requests", "Requests that failed.", failures)
    }

    fn queue(&self, out: &mut Out<'_>) -> fmt::Result {
        let queue = &self.report.node.queue;
        out.gauge("pillion_queue_disk_bytes", "Bytes of the log's segments.", alone(queue.disk_bytes))?;
        out.gauge(
            "pillion_queue_bytes_at_risk",
            "Bytes of records that are not delivered everywhere: what is lost if this node's disk is.",
            alone(queue.undelivered_bytes),
        )?;
        out.gauge(
            "pillion_queue_low_on_space",
            "1 while data is refused because the filesystem has less free space than node.min_free.",
            alone(u64::from(queue.low)),
        )?;
        out.gauge("pillion_queue_segments", "Segments of the log.", alone(queue.segments))?;
        out.counter("pillion_queue_commits", "Group commits.", alone(queue.commits))?;
        out.counter("pillion_queue_records", "Records written.", alone(queue.records))?;
        out.counter("pillion_queue_syncs", "Calls of fdatasync.", alone(queue.syncs))?;
        out.counter("pillion_queue_payload_bytes", "Payload bytes written.", alone(queue.payload_bytes))?;
        out.counter("pillion_queue_damaged_records", "Damaged records found.", alone(queue.damaged_records))?;
        out.counter(
            "pillion_queue_metadata_rebuilds",
            "Times that sled was missing, stale or damaged and was made anew from the log.",
            alone(queue.meta_rebuilds),
        )?;
        out.counter(
            "pillion_queue_relocated_records",
            "Records copied out of segments of which little was live.",
            alone(queue.relocated_records),
        )?;
        out.counter(
            "pillion_queue_relocated_bytes",
            "Bytes of the log that these copies took.",
            alone(queue.relocated_bytes),
        )?;
        out.counter(
            "pillion_queue_dead_letters_dropped",
            "Dead letters dropped for lack of space.",
            alone(queue.dead_letters_dropped),
        )?;
        out.gauge(
            "pillion_queue_full",
            "1 while appends are refused for lack of space.",
            alone(u64::from(queue.full)),
        )?;
        out.gauge("pillion_queue_poisoned", "1 after a failed write or fsync.", alone(u64::from(queue.poisoned)))
    }

    fn process(&self, out: &mut Out<'_>) -> fmt::Result {
        let (node, usage) = (&self.report.node, &self.usage);
        out.info("pillion_build", "The release.", vec![("version", node.version.to_owned())])?;
        out.counter(
            "pillion_worker_restarts",
            "Workers started again by the supervisor.",
            alone(u64::from(node.worker_restarts)),
        )?;
        if let Some(reason) = &node.last_restart_reason {
            let labels = vec![("reason", reason.clone())];
            out.info("pillion_worker_last_restart", "Why the worker before this one ended.", labels)?;
        }
        out.counter("process_cpu_seconds", "CPU time of user and system.", alone(usage.cpu_seconds))?;
        let started = node.started_unix_ms as f64 / 1e3;
        out.gauge("process_start_time_seconds", "Start, since the Unix epoch.", alone(started))?;
        for (name, help, value) in [
            ("process_resident_memory_bytes", "Resident memory.", usage.resident_bytes),
            ("process_virtual_memory_bytes", "Virtual memory.", usage.virtual_bytes),
            ("process_threads", "Threads.", usage.threads),
            ("process_open_fds", "Open file descriptors.", usage.open_fds),
            ("process_max_fds", "Most file descriptors that may be open.", usage.max_fds),
        ] {
            if let Some(value) = value {
                out.gauge(name, help, alone(value))?;
            }
        }
        Ok(())
    }

    fn by_tenant(&self, labels: impl Fn(&Labels) -> Labels, value: impl Fn(&TenantView) -> u64) -> Samples<u64> {
        let mut samples = Samples::new();
        for (tenant, own) in self.report.tenants.iter().zip(&self.labels) {
            add(&mut samples, labels(own), value(tenant));
        }
        samples
    }

    fn by_route<V: Number>(&self, value: impl Fn(&TenantDestinationView) -> V) -> Samples<V> {
        let mut samples = Samples::new();
        for (tenant, own) in self.report.tenants.iter().zip(&self.labels) {
            for at in &tenant.destinations {
                add(&mut samples, with(&[("exporter", &at.name)], own), value(at));
            }
        }
        samples
    }

    fn by_route_signal_and_loss(&self) -> Samples<u64> {
        let mut samples = Samples::new();
        for (tenant, own) in self.report.tenants.iter().zip(&self.labels) {
            for (at, (reason, items)) in
                tenant.destinations.iter().flat_map(|at| at.lost.iter().map(move |of| (at, of)))
            {
                for signal in Signal::ALL {
                    let labels = with(&[("exporter", &at.name), ("signal", signal.name()), ("reason", reason)], own);
                    add(&mut samples, labels, items.by_signal()[signal.index()]);
                }
            }
        }
        samples
    }

    fn by_route_and_signal(&self, items: impl Fn(&TenantDestinationView) -> Items) -> Samples<u64> {
        let mut samples = Samples::new();
        for (tenant, own) in self.report.tenants.iter().zip(&self.labels) {
            for at in &tenant.destinations {
                for signal in Signal::ALL {
                    let labels = with(&[("exporter", &at.name), ("signal", signal.name())], own);
                    add(&mut samples, labels, items(at).by_signal()[signal.index()]);
                }
            }
        }
        samples
    }
}

/// Writes families.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn counter<V: EncodeCounterValue>(&mut self, name: &str, help: &str, samples: Samples<V>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in &samples {
            if labels.is_empty() {
                family.encode_counter::<NoLabelSet, V, u64>(value, None)?;
            } else {
                family.encode_family(labels)?.encode_counter::<NoLabelSet, V, u64>(value, None)?;
            }
        }
        Ok(())
    }

    fn gauge<V: EncodeGaugeValue>(&mut self, name: &str, help: &str, samples: Samples<V>) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in &samples {
            if labels.is_empty() {
                family.encode_gauge(value)?;
            } else {
                family.encode_family(labels)?.encode_gauge(value)?;
            }
        }
        Ok(())
    }

    fn info(&mut self, name: &str, help: &str, labels: Labels) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }
}

/// What samples of the same labels are summed up as.
trait Number: Copy {
    fn plus(self, other: Self) -> Self;
}

impl Number for u64 {
    fn plus(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

impl Number for i64 {
    fn plus(self, other: Self) -> Self {
        self.saturating_add(other)
    }
}

fn add<V: Number>(samples: &mut Samples<V>, labels: Labels, value: V) {
    samples.entry(labels).and_modify(|sum| *sum = sum.plus(value)).or_insert(value);
}

fn alone<V>(value: V) -> Samples<V> {
    BTreeMap::from([(Labels::new(), value)])
}

fn with(first: &[(&'static str, &str)], rest: &Labels) -> Labels {
    first.iter().map(|(name, value)| (*name, (*value).to_owned())).chain(rest.iter().cloned()).collect()
}

#[cfg(test)]
mod tests;
