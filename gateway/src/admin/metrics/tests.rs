//! The text is parsed by the rules of OpenMetrics, and compared with the snapshots it came from.

use std::collections::{BTreeMap, BTreeSet};

use super::super::process;
use super::super::testing::Made;
use super::*;

/// Name and labels, sorted -> value.
type Parsed = BTreeMap<(String, Vec<(String, String)>), f64>;

/// A strict reading: each family is described once, before its samples; suffixes fit types; labels are escaped; EOF ends it.
fn parse(text: &str) -> Parsed {
    let body = text.strip_suffix("# EOF\n").expect("ends with EOF");
    let (mut samples, mut described, mut family) = (Parsed::new(), BTreeSet::new(), None::<(String, String)>);
    let mut help = None;
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, words) = rest.split_once(' ').expect("a name and words");
            assert!(described.insert(name.to_owned()), "{name} is described twice");
            assert!(words.ends_with('.') && words.len() > 5, "{line}");
            help = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert_eq!(help.take().as_deref(), Some(name), "HELP and TYPE come together");
            assert!(["counter", "gauge", "info"].contains(&kind), "{line}");
            assert!(!name.ends_with("_total") && !name.ends_with("_info"), "{name} must not have the suffix itself");
            family = Some((name.to_owned(), kind.to_owned()));
        } else {
            let (name, kind) = family.as_ref().expect("a sample follows its family");
            let (sample, labels, value) = sample(line);
            let suffix = match kind.as_str() {
                "counter" => "_total",
                "info" => "_info",
                _ => "",
            };
            assert_eq!(sample, format!("{name}{suffix}"), "{line}");
            assert!(samples.insert((sample, labels), value).is_none(), "twice: {line}");
        }
    }
    samples
}

fn sample(line: &str) -> (String, Vec<(String, String)>, f64) {
    let end = line.find(['{', ' ']).unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Vec::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        loop {
            let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
            assert!(is_name(label), "{line}");
            let (value, after) = quoted(value).unwrap_or_else(|| panic!("a bad value: {line}"));
            labels.push((label.to_owned(), value));
            match after.strip_prefix(',') {
                Some(more) => rest = more,
                None => {
                    rest = after.strip_prefix('}').unwrap_or_else(|| panic!("no end of labels: {line}"));
                    break;
                }
            }
        }
    }
    let value = rest.strip_prefix(' ').unwrap_or_else(|| panic!("no space: {line}"));
    let names: BTreeSet<_> = labels.iter().map(|(label, _)| label.clone()).collect();
    assert_eq!(names.len(), labels.len(), "a label is given twice: {line}");
    labels.sort();
    (name.to_owned(), labels, value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
}

/// Up to the closing quote, unescaped, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut out, mut characters) = (String::new(), text.char_indices());
    loop {
        match characters.next()? {
            (at, '"') => return Some((out, &text[at + 1..])),
            (_, '\\') => out.push(match characters.next()?.1 {
                'n' => '\n',
                escaped @ ('\\' | '"') => escaped,
                _ => return None,
            }),
            (_, other) => out.push(other),
        }
    }
}

fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(good)
}

fn scrape(made: &Made, series: &Series) -> Parsed {
    let usage = Usage { cpu_seconds: 1.5, open_fds: Some(9), ..process::usage() };
    parse(&encode(Report::gather(&made.sources()), usage, series).expect("a String takes everything"))
}

fn value(parsed: &Parsed, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let mut labels: Vec<_> = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    labels.sort();
    parsed.get(&(name.to_owned(), labels)).copied()
}

/// Scenario: a scrape of a node with three tenants and two destinations.
/// Guarantees: every promised name is there with the figure of its snapshot, labelled by namespace and workload.
#[test]
fn every_name_carries_the_figure_of_its_snapshot() {
    let parsed = scrape(&Made::default(), &Series::default());
    let cart = [("namespace", "shop"), ("workload", "cart")];
    let labelled = |name: &str, more: &[(&str, &str)]| value(&parsed, name, &[more, &cart].concat());
    for (name, more, expected) in [
        ("otelcol_receiver_accepted_spans_total", vec![("receiver", "otlp")], 100.0),
        ("otelcol_receiver_accepted_metric_points_total", vec![("receiver", "otlp")], 20.0),
        ("otelcol_receiver_accepted_log_records_total", vec![("receiver", "otlp")], 3.0),
        ("otelcol_receiver_refused_spans_total", vec![("receiver", "otlp")], 7.0),
        ("otelcol_receiver_refused_metric_points_total", vec![("receiver", "otlp")], 0.0),
        ("otelcol_receiver_refused_log_records_total", vec![("receiver", "otlp")], 0.0),
        ("otelcol_exporter_sent_spans_total", vec![("exporter", "archive")], 100.0),
        ("otelcol_exporter_sent_metric_points_total", vec![("exporter", "archive")], 20.0),
        ("otelcol_exporter_sent_log_records_total", vec![("exporter", "archive")], 0.0),
        ("otelcol_exporter_send_failed_log_records_total", vec![("exporter", "archive")], 3.0),
        ("otelcol_exporter_send_failed_spans_total", vec![("exporter", "archive")], 0.0),
        ("otelcol_exporter_send_failed_metric_points_total", vec![("exporter", "backend")], 0.0),
        ("otelcol_exporter_queue_size", vec![("exporter", "backend")], 10.0),
        ("pillion_dead_letter_items_total", vec![("exporter", "archive"), ("signal", "logs")], 3.0),
        ("pillion_lost_items_total", vec![("exporter", "archive"), ("signal", "logs"), ("reason", "expired")], 2.0),
        ("pillion_oldest_undelivered_age_seconds", vec![("exporter", "backend")], 60.0),
        ("pillion_rejected_items_total", vec![("exporter", "archive"), ("signal", "traces")], 2.0),
        ("pillion_retried_items_total", vec![("exporter", "archive"), ("signal", "traces")], 4.0),
        ("pillion_balance_difference_items", vec![("exporter", "archive")], 0.0),
        ("pillion_refused_requests_total", vec![("reason", "quota")], 4.0),
        ("pillion_refused_requests_total", vec![("reason", "malformed")], 0.0),
        ("pillion_attributes_overwritten_total", vec![], 6.0),
        ("pillion_donations_refused_total", vec![], 1.0),
        ("pillion_recovered_items_total", vec![], 5.0),
        ("pillion_connections", vec![], 2.0),
        ("pillion_memory_used_bytes", vec![], 4096.0),
        ("pillion_tenant_queue_bytes", vec![], 8192.0),
    ] {
        assert_eq!(labelled(name, &more), Some(expected), "{name} {more:?}");
    }
    for (name, labels, expected) in [
        ("pillion_tenants", vec![], 2.0),
        ("pillion_queue_disk_bytes", vec![], f64::from(1 << 20)),
        ("pillion_queue_bytes_at_risk", vec![], 9_000.0),
        ("pillion_queue_low_on_space", vec![], 0.0),
        ("pillion_queue_segments", vec![], 3.0),
        ("pillion_queue_commits_total", vec![], 11.0),
        ("pillion_queue_syncs_total", vec![], 12.0),
        ("pillion_queue_damaged_records_total", vec![], 1.0),
        ("pillion_queue_metadata_rebuilds_total", vec![], 1.0),
        ("pillion_queue_relocated_records_total", vec![], 4.0),
        ("pillion_queue_relocated_bytes_total", vec![], 4_096.0),
        ("pillion_queue_full", vec![], 1.0),
        ("pillion_queue_poisoned", vec![], 0.0),
        ("pillion_worker_restarts_total", vec![], 2.0),
        ("pillion_worker_last_restart_info", vec![("reason", "killed by \"SIGKILL\"\n\\")], 1.0),
        ("pillion_build_info", vec![("version", env!("CARGO_PKG_VERSION"))], 1.0),
        ("pillion_destination_state", vec![("exporter", "backend"), ("state", "broken")], 1.0),
        ("pillion_destination_state", vec![("exporter", "backend"), ("state", "ok")], 0.0),
        ("pillion_destination_requests_total", vec![("exporter", "backend")], 9.0),
        ("pillion_custody_connected", vec![], 1.0),
        ("pillion_custody_reconnects_total", vec![], 3.0),
        ("pillion_custody_volumes", vec![], 3.0),
        ("pillion_custody_volumes_refused_total", vec![("reason", "failed")], 5.0),
        ("pillion_custody_volumes_refused_total", vec![("reason", "malformed")], 0.0),
        ("pillion_shim_sessions_total", vec![], 21.0),
        ("pillion_accepted_connections_total", vec![], 22.0),
        ("pillion_accepts_hung_total", vec![], 1.0),
        ("pillion_shim_requests_refused_total", vec![("reason", "not_a_listener")], 3.0),
        ("process_cpu_seconds_total", vec![], 1.5),
        ("process_open_fds", vec![], 9.0),
        ("process_start_time_seconds", vec![], 1_700_000_000.5),
    ] {
        assert_eq!(value(&parsed, name, &labels), Some(expected), "{name} {labels:?}");
    }
    assert!(value(&parsed, "process_resident_memory_bytes", &[]).is_some_and(|bytes| bytes > 0.0));
    let text = format!("{parsed:?}");
    assert!(!text.contains("1d0c"), "a pod's uid is never a label");
}

/// Scenario: figures move between two scrapes.
/// Guarantees: the second one follows.
#[test]
fn values_follow_the_snapshots() {
    let labels = [("receiver", "otlp"), ("namespace", "shop"), ("workload", "cart")];
    let series = Series::default();
    for accepted in [100, 250] {
        let made = Made { accepted, ..Made::default() };
        let parsed = scrape(&made, &series);
        assert_eq!(value(&parsed, "otelcol_receiver_accepted_spans_total", &labels), Some(accepted as f64));
    }
}

/// Scenario: more tenants than may have labels.
/// Guarantees: the rest is one series, and the sum over all is the truth.
#[test]
fn what_is_over_the_limit_is_summed_up_as_other() {
    let parsed = scrape(&Made::default(), &Series::new(1));
    let labels = |namespace, workload| [("receiver", "otlp"), ("namespace", namespace), ("workload", workload)];
    let accepted = "otelcol_receiver_accepted_spans_total";
    assert_eq!(value(&parsed, accepted, &labels("shop", "cart")), Some(100.0));
    assert_eq!(
        value(&parsed, accepted, &labels("other", "other")),
        Some(50.0),
        "shop/web's; shop/gone accepts nothing"
    );
    assert_eq!(value(&parsed, accepted, &labels("shop", "web")), None);
}
