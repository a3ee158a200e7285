//! `defaults:` and `tenants.*.policy:`, each laid over the policy of the level above, key by key.
//!
//! A ceiling that is lowered takes an inherited guarantee and an inherited `max_request_bytes` down with it; written beside each
//! other they must fit. Attributes are merged by key. Destinations of a signal are replaced, never appended to: whoever
//! reads a list sees all of it.

use std::time::Duration;

use super::Places;
use crate::base::ledger::MemoryLimit;
use crate::base::{AckPolicy, Attribute, DestinationName, Signal};
use crate::config::reader::{Section, Value};
use crate::config::types::{Enrich, Limits, OnFull, Policy, QueuePolicy};
use crate::config::unit::show_size;

const DESTINATIONS_MAX: usize = 16;
const ATTRIBUTES_MAX: usize = 128;
const ATTRIBUTE_BYTES_MAX: usize = 4096;

/// Attributes that the gateway vouches for.
const ATTESTED: [&str; 4] = ["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name"];

/// Reads a policy over `base`.
pub(in crate::config) fn read<'r>(value: &Value<'r>, base: &Policy, places: &mut Places<'r>) -> Policy {
    let mut policy = base.clone();
    let ack = [("durable", AckPolicy::Durable), ("buffered", AckPolicy::Buffered), ("memory", AckPolicy::Memory)];
    value.section(|section| {
        if let Some(value) = section.take("limits") {
            value.section(|section| limits(section, &mut policy.limits));
        }
        if let Some(ack) = section.take("ack").and_then(|value| value.choice(&ack, &[])) {
            policy.ack = ack;
        }
        if let Some(value) = section.take("queue") {
            value.section(|section| queue(section, &mut policy.queue));
        }
        if let Some(value) = section.take("sampling") {
            value.section(sampling);
        }
        if let Some(value) = section.take("enrich") {
            value.section(|section| enrich(section, &mut policy.enrich));
        }
        if let Some(value) = section.take("destinations") {
            destinations(&value, &mut policy.destinations, places);
        }
        section.refuse_later(&["filter", "redact", "transform", "priority", "scrape"]);
        section.refuse("sending_queue", "belongs to a destination", "retention is queue.max_age, space is limits.disk");
        section.refuse("retry_on_failure", "belongs to a destination", "move it below destinations.NAME");
        section.refuse("attributes", "belongs under enrich", "indent it below enrich:");
    });
    policy
}

fn limits(section: &mut Section<'_>, limits: &mut Limits) {
    let rate = |value: Option<Value<'_>>| value.and_then(|value| value.at_least_one(value.size()?));
    if let Some(bytes) = rate(section.take("bytes_per_second")) {
        limits.bytes_per_second = bytes;
    }
    if let Some(requests) = section.take("requests_per_second").and_then(|value| value.count(1..=1_000_000_000)) {
        limits.requests_per_second = requests;
    }
    let connections = section.take("connections").and_then(|value| value.count(1..=65_536));
    if let Some(connections) = connections.and_then(|count| u32::try_from(count).ok()) {
        limits.connections = connections;
    }
    if let Some(value) = section.take("memory") {
        limits.memory = pair(&value, limits.memory).unwrap_or(limits.memory);
    }
    if let Some(value) = section.take("disk") {
        limits.disk = pair(&value, limits.disk).unwrap_or(limits.disk);
    }
    let ceiling = limits.memory.ceiling;
    match section.take("max_request_bytes") {
        Some(value) => match value.size().and_then(|bytes| value.at_least_one(bytes)) {
            Some(bytes) if bytes > ceiling => {
                let message = format!("{} is above limits.memory's ceiling of {}", value.quoted(), show_size(ceiling));
                value.fail(message, "a request is held in memory until it is committed: lower it or raise the ceiling");
            }
            Some(bytes) => limits.max_request_bytes = bytes,
            None => {}
        },
        None => limits.max_request_bytes = limits.max_request_bytes.min(ceiling),
    }
    section.refuse("bytes_per_sec", "renamed", "write bytes_per_second");
    section.refuse("memory_limit", "belongs to node", "a tenant's is limits.memory");
    section.refuse_later(&["spans_per_second", "items_per_second", "series"]);
}

/// One size for both, or a mapping of the two.
fn pair(value: &Value<'_>, base: MemoryLimit) -> Option<MemoryLimit> {
    if !value.is_mapping() {
        let both = value.at_least_one(value.size()?)?;
        return Some(MemoryLimit { guarantee: both, ceiling: both });
    }
    let (guarantee, ceiling) = value.section(|section| {
        (
            section.take("guarantee").and_then(|value| value.size()),
            section.take("ceiling").and_then(|value| value.at_least_one(value.size()?)),
        )
    })?;
    let limit = match (guarantee, ceiling) {
        (Some(guarantee), Some(ceiling)) => MemoryLimit { guarantee, ceiling },
        (Some(guarantee), None) => MemoryLimit { guarantee, ceiling: base.ceiling },
        (None, Some(ceiling)) => MemoryLimit { guarantee: base.guarantee.min(ceiling), ceiling },
        (None, None) => base,
    };
    if limit.guarantee > limit.ceiling {
        let (guarantee, ceiling) = (show_size(limit.guarantee), show_size(limit.ceiling));
        value.fail(format!("guarantee {guarantee} is above ceiling {ceiling}"), "a guarantee is a part of the ceiling");
        return None;
    }
    Some(limit)
}

fn queue(section: &mut Section<'_>, queue: &mut QueuePolicy) {
    if let Some(value) = section.take("max_age")
        && let Some(max_age) = value.duration()
    {
        if max_age < Duration::from_secs(1) {
            value.fail(format!("{} is shorter than a second", value.quoted()), "everything would be dropped");
        } else {
            queue.max_age = max_age;
        }
    }
    let choices = [("reject", OnFull::Reject), ("drop_oldest", OnFull::DropOldest)];
    if let Some(on_full) = section.take("on_full").and_then(|value| value.choice(&choices, &[])) {
        queue.on_full = on_full;
    }
    section.refuse("queue_size", "the queue is limited in bytes", "write limits.disk");
    section.refuse("storage", "the queue is always on disk", "its directory is node.data_dir");
}

/// Everything is kept until there is a sampler: whatever asks for less is refused, never ignored.
fn sampling(section: &mut Section<'_>) {
    if let Some(value) = section.take("mode") {
        value.choice(&[("equalizing", ()), ("proportional", ())], &["hash_seed", "adaptive", "tail"]);
    }
    if let Some(value) = section.take("sampling_percentage") {
        let percentage = value.parsed(|text| match text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>() {
            Ok(percentage) if (0.0..=100.0).contains(&percentage) => Ok(percentage),
            _ => Err("not a percentage from 0 to 100"),
        });
        if percentage.is_some_and(|percentage| percentage < 100.0) {
            value.fail("sampling is not supported yet", "write 100, or remove it: everything is kept");
        }
    }
    section.refuse_later(&["hash_seed", "rules", "tail", "budget", "sampling_precision", "fail_closed"]);
}

fn enrich(section: &mut Section<'_>, enrich: &mut Enrich) {
    if let Some(value) = section.take("overwrite") {
        value.choice(&[("attested", ())], &["all", "none"]);
    }
    let Some(value) = section.take("attributes") else { return };
    for member in value.members() {
        if member.key.is_empty() || member.key.len() > 256 {
            value.fail_at(member.key_at, member.key, "an attribute's key has 1 to 256 bytes", "");
        } else if ATTESTED.contains(&member.key) {
            let message = "the gateway attests this attribute itself";
            value.fail_at(
                member.key_at,
                member.key,
                message,
                "remove it: it comes from the tenant's name, uid and node.name",
            );
        } else if member.value.is_typed() {
            member.value.fail("attributes are texts", "put it into quotes");
        } else if let Some(text) = member.value.text() {
            if text.len() > ATTRIBUTE_BYTES_MAX {
                member.value.fail(format!("longer than {ATTRIBUTE_BYTES_MAX} bytes"), "");
                continue;
            }
            enrich.attributes.retain(|attribute| attribute.key != member.key);
            enrich.attributes.push(Attribute::new(member.key, &text));
        }
    }
    if enrich.attributes.len() > ATTRIBUTES_MAX {
        value.fail(format!("more than {ATTRIBUTES_MAX} attributes"), "");
    }
}

/// A list for all signals, or a mapping with a list for each.
fn destinations<'r>(value: &Value<'r>, routes: &mut [Vec<DestinationName>; 3], places: &mut Places<'r>) {
    if !value.is_mapping() {
        if let Some(names) = names(value, places) {
            routes.fill(names);
        }
        return;
    }
    value.section(|section| {
        for signal in Signal::ALL {
            if let Some(names) = section.take(signal.name()).and_then(|value| names(&value, places)) {
                routes[signal.index()] = names;
            }
        }
        section.refuse_later(&["profiles"]);
    });
}

fn names<'r>(value: &Value<'r>, places: &mut Places<'r>) -> Option<Vec<DestinationName>> {
    let mut names: Vec<DestinationName> = Vec::new();
    for item in value.items()? {
        let Some(text) = item.filled_text() else { continue };
        let name = DestinationName(text.into());
        if names.contains(&name) {
            item.fail(format!("{} is listed twice", item.quoted()), "remove one of them");
        } else {
            places.mentions.push((name.clone(), item));
            names.push(name);
        }
    }
    if names.len() > DESTINATIONS_MAX {
        value.fail(format!("more than {DESTINATIONS_MAX} destinations"), "");
    }
    Some(names)
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            ack: AckPolicy::Durable,
            queue: QueuePolicy::default(),
            enrich: Enrich::default(),
            destinations: Default::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes_per_second: 4 << 20,
            requests_per_second: 2_000,
            connections: 64,
            memory: MemoryLimit { guarantee: 512 << 10, ceiling: 64 << 20 },
            disk: MemoryLimit { guarantee: 32 << 20, ceiling: 1 << 30 },
            max_request_bytes: 64 << 20,
        }
    }
}

impl Default for QueuePolicy {
    fn default() -> Self {
        Self { max_age: Duration::from_secs(72 * 3600), on_full: OnFull::Reject }
    }
}
