//! What a kill at any moment leaves.

use std::fs;

use pillion_proto::otlp::Message;
use pillion_proto::otlp::collector_logs::ExportLogsServiceRequest;
use pillion_proto::otlp::collector_trace::ExportTraceServiceRequest;
use pillion_proto::otlp::common::{AnyValue, KeyValue, any_value};
use pillion_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use pillion_proto::otlp::resource::Resource;
use pillion_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;

use super::state::{ITEM_BYTES_MAX, ITEMS_MAX, OTHER, SERIES_MAX};
use super::*;

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn resource(service: &str) -> Option<Resource> {
    Some(Resource { attributes: vec![attribute("service.name", service)], ..Resource::default() })
}

fn spans(service: &str, names: impl IntoIterator<Item = String>) -> Bytes {
    let span = |name| Span { name, trace_id: vec![0xab; 16], span_id: vec![1; 8], ..Span::default() };
    let scope = ScopeSpans { spans: names.into_iter().map(span).collect(), ..ScopeSpans::default() };
    let spans = ResourceSpans { resource: resource(service), scope_spans: vec![scope], ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }.encode_to_vec().into()
}

fn logs(service: &str, records: Vec<LogRecord>) -> Bytes {
    let scope = ScopeLogs { log_records: records, ..ScopeLogs::default() };
    let logs = ResourceLogs { resource: resource(service), scope_logs: vec![scope], ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![logs] }.encode_to_vec().into()
}

fn delivery(tenant: u32, sequence: u64, acknowledged: u64, items: u32) -> Delivery {
    let names = (0..items).map(|number| format!("{tenant}/{sequence}/{number}"));
    Delivery {
        tenant: TenantId(tenant),
        name: TenantName::parse(&format!("shop/t{tenant}")).expect("a good name"),
        sequence: Some(Sequence(sequence)),
        acknowledged: Sequence(acknowledged),
        signal: Signal::Traces,
        items,
        payload: spans("cart", names),
    }
}

/// In memory where there is such a place: thousands of syncs, and no power to lose.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

fn reopen(dir: &Path) -> Arc<Sink> {
    Sink::open(dir).expect("a sink opens whatever is there")
}

/// Scenario: the process is killed, or power fails, after any byte of the last writes, and everything is delivered again.
/// Guarantees: after each cut the counts are those of the whole changes before it, and the repeat makes them exact.
#[test]
fn a_journal_cut_anywhere_counts_each_record_once() {
    let dir = directory();
    let sink = reopen(dir.path());
    sink.store(&[delivery(1, 10, 0, 1)]).expect("the disk is there");
    // Beginning with an image that is not empty, as after a compaction.
    let image = sink.state().image();
    lock(&sink.journal).rewrite(&image).expect("the disk is there");
    let groups = [
        vec![delivery(1, 20, 10, 2), delivery(2, 21, 0, 4)],
        vec![delivery(1, 30, 10, 8)],
        vec![delivery(2, 35, 21, 16)],
    ];
    let mut ends = vec![fs::metadata(dir.path().join("journal")).expect("it is there").len()];
    for group in &groups {
        sink.store(group).expect("the disk is there");
        ends.push(fs::metadata(dir.path().join("journal")).expect("it is there").len());
    }
    drop(sink);
    let whole = fs::read(dir.path().join("journal")).expect("it can be read");
    let sums = [1, 7, 15, 31];

    for length in usize::try_from(ends[0]).expect("small")..=whole.len() {
        let cut = directory();
        fs::write(cut.path().join("journal"), &whole[..length]).expect("the disk is there");
        let complete = ends.iter().filter(|end| **end <= length as u64).count() - 1;

        let sink = reopen(cut.path());
        assert_eq!(sink.view(0).totals.traces, sums[complete], "cut at {length}");
        for group in &groups {
            sink.store(group).expect("the disk is there");
        }
        assert_eq!(sink.view(0).totals.traces, 31, "cut at {length}, delivered again");
        drop(sink);
        assert_eq!(reopen(cut.path()).view(0).totals.traces, 31, "cut at {length}, opened again");
    }
}

/// Scenario: each byte of a journal in turn is damaged.
/// Guarantees: no panic and no invented count: what is counted is a prefix, or the damaged store is put aside.
#[test]
fn a_damaged_byte_never_adds_a_count() {
    let dir = directory();
    let sink = reopen(dir.path());
    sink.store(&[delivery(1, 10, 0, 1)]).expect("the disk is there");
    let image = sink.state().image();
    lock(&sink.journal).rewrite(&image).expect("the disk is there");
    let start = fs::metadata(dir.path().join("journal")).expect("it is there").len();
    sink.store(&[delivery(1, 20, 10, 2)]).expect("the disk is there");
    drop(sink);
    let whole = fs::read(dir.path().join("journal")).expect("it can be read");

    for at in 0..whole.len() {
        let hurt = directory();
        let mut bytes = whole.clone();
        bytes[at] ^= 0x20;
        fs::write(hurt.path().join("journal"), &bytes).expect("the disk is there");

        let sink = reopen(hurt.path());

        let (aside, count) = ((at as u64) < start, sink.view(0).totals.traces);
        assert_eq!(count, if aside { 0 } else { 1 }, "byte {at}");
        let kept = fs::read_dir(hurt.path()).expect("it is there").filter_map(Result::ok);
        let kept = kept.filter(|file| file.file_name().to_string_lossy().starts_with("journal.damaged-")).count();
        assert_eq!(kept, usize::from(aside), "byte {at}");
    }
}

/// Scenario: the disk is full for a while.
/// Guarantees: nothing of a failed store is counted; once there is room, the repeat is counted, once, durably.
#[test]
fn a_failed_write_counts_nothing_and_heals() {
    let dir = directory();
    let sink = reopen(dir.path());
    sink.store(&[delivery(1, 10, 0, 1)]).expect("the disk is there");

    lock(&sink.journal).break_file();
    sink.store(&[delivery(1, 20, 10, 2)]).expect_err("no space");
    assert_eq!(sink.view(0).totals.traces, 1);

    sink.store(&[delivery(1, 20, 10, 2)]).expect("a new file is begun");
    assert_eq!((sink.view(0).totals.traces, reopen(dir.path()).view(0).totals.traces), (3, 3));
}

/// Scenario: so much arrives that the journal is written anew several times.
/// Guarantees: its size stays bounded, the counts exact, and the last items are the last ones.
#[test]
fn the_journal_is_compacted_and_forgets_nothing_that_counts() {
    let dir = directory();
    let sink = reopen(dir.path());
    let long = "x".repeat(400);
    for sequence in 1..=120u64 {
        let names = (0..200).map(|number| format!("{sequence}.{number}.{long}"));
        let payload = spans("cart", names);
        sink.store(&[Delivery { payload, ..delivery(1, sequence, sequence - 1, 200) }]).expect("the disk is there");
    }
    let view = sink.view(10);
    drop(sink);

    let reopened = reopen(dir.path());
    assert_eq!(reopened.view(10), view);
    assert_eq!(view.totals.traces, 24_000);
    assert!(fs::metadata(dir.path().join("journal")).expect("it is there").len() < 6 << 20);
    let latest = view.latest.expect("asked for").traces;
    assert!(latest[0].name.starts_with("120.199."), "{}", latest[0].name);
    assert!(latest[9].name.starts_with("120.190."), "{}", latest[9].name);
}

/// Scenario: ack memory, whose records have no position.
/// Guarantees: each is counted, because none can be told from another.
#[test]
fn records_without_a_position_are_always_counted() {
    let dir = directory();
    let sink = reopen(dir.path());
    let volatile = Delivery { sequence: None, ..delivery(1, 0, 0, 3) };
    sink.store(&[volatile.clone(), volatile]).expect("the disk is there");
    assert_eq!(sink.view(0).totals.traces, 6);
}

/// Scenario: a pod invents service names without end.
/// Guarantees: the store stays bounded, no item goes uncounted, and names that were there keep their counts.
#[test]
fn services_beyond_the_limit_are_counted_as_other() {
    let dir = directory();
    let sink = reopen(dir.path());
    let services = SERIES_MAX as u64 + 50;
    let deliveries: Vec<_> = (1..=services)
        .map(|sequence| Delivery {
            payload: spans(&format!("s{sequence:05}"), [String::new()]),
            ..delivery(1, sequence, 0, 1)
        })
        .collect();
    for group in deliveries.chunks(100) {
        sink.store(group).expect("the disk is there");
    }
    sink.store(&[Delivery { payload: spans("s00001", [String::new()]), ..delivery(1, services + 1, 0, 1) }])
        .expect("the disk is there");
    sink.store(&[delivery(2, services + 2, 0, 1)]).expect("the disk is there");

    for view in [sink.view(0), reopen(dir.path()).view(0)] {
        let tenant = &view.tenants["shop/t1"];
        assert_eq!((tenant.services.len(), tenant.totals.traces), (SERIES_MAX + 1, services + 1));
        assert_eq!((tenant.services[OTHER].traces, tenant.services["s00001"].traces), (50, 2));
        assert_eq!(view.tenants["shop/t2"].services[OTHER].traces, 1, "the limit is the store's");
    }
}

/// Scenario: hostile items: huge names, many attributes, deep values, ids of odd lengths, markup.
/// Guarantees: what is kept is bounded in number and bytes, and still text.
#[test]
fn what_is_kept_of_an_item_is_bounded() {
    let dir = directory();
    let sink = reopen(dir.path());
    let body = AnyValue { value: Some(any_value::Value::StringValue("é<script>".repeat(300))) };
    let record = LogRecord {
        body: Some(body),
        severity_number: 17,
        attributes: (0..40).map(|number| attribute(&format!("{number}"), &"v".repeat(150))).collect(),
        ..LogRecord::default()
    };
    let huge = LogRecord { severity_text: "x".repeat(1 << 20), ..LogRecord::default() };
    let mut records = vec![record; 400];
    records.push(huge);
    let payload = logs("cart", records);
    sink.store(&[Delivery { signal: Signal::Logs, payload, ..delivery(1, 1, 0, 401) }]).expect("the disk is there");

    let latest = sink.view(usize::MAX).latest.expect("asked for").logs;
    let bytes: usize = latest.iter().map(prost::Message::encoded_len).sum();
    assert!((10..=ITEMS_MAX).contains(&latest.len()) && bytes <= ITEM_BYTES_MAX, "{} items, {bytes} B", latest.len());
    assert!(latest[0].name.contains("too large to show"), "{:?}", latest[0]);
    let item = &latest[1];
    assert!(item.name.starts_with("é<script>") && item.name.len() < 600 && item.kind == "ERROR", "{item:?}");
    assert_eq!(item.attributes.len(), 16);
    assert_eq!(sink.view(0).totals.logs, 401);
}

/// Scenario: a payload that is no OTLP at all (it cannot come through the pipeline, but the sink does not rely on that).
/// Guarantees: no panic; its items are counted.
#[test]
fn unreadable_bytes_are_counted_and_survived() {
    let dir = directory();
    let sink = reopen(dir.path());
    let payload = Bytes::from_static(b"\x0a\xff\xff\xff\xff\x0fnonsense");
    for (sequence, signal) in (1..).zip(Signal::ALL) {
        let delivery = Delivery { signal, payload: payload.clone(), ..delivery(1, sequence, 0, 5) };
        sink.store(&[delivery]).expect("the disk is there");
    }
    assert_eq!(sink.view(0).tenants["shop/t1"].services["unknown_service"], Counts { traces: 5, metrics: 5, logs: 5 });
}

/// Scenario: traces of a tenant have come far; then its logs are routed here too, whose backlog is older, and come twice. The
/// process starts again in between.
/// Guarantees: the backlog is counted, once: how far one signal is says nothing of another.
#[test]
fn a_signal_that_moves_here_is_not_taken_for_repeats() {
    let dir = directory();
    let sink = reopen(dir.path());
    sink.store(&[delivery(1, 101, 100, 2)]).expect("the disk is there");
    drop(sink);
    let sink = reopen(dir.path());
    let payload = logs("cart", vec![LogRecord::default(); 3]);
    let backlog = |sequence| Delivery { signal: Signal::Logs, payload: payload.clone(), ..delivery(1, sequence, 0, 3) };
    for _ in 0..2 {
        sink.store(&[backlog(50), backlog(102)]).expect("the disk is there");
        sink.store(&[delivery(1, 101, 100, 2), delivery(1, 99, 100, 2)]).expect("the disk is there");
    }
    let totals = sink.view(0).totals;
    assert_eq!((totals.traces, totals.logs, sink.view(0).repeated_records), (2, 6, 6));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Scenario: records of three tenants are delivered in any order, again and again, with crashes in between, while the
    /// cursor follows what was stored and now and then falls back to an older save.
    /// Guarantees: each is counted exactly once, and what is remembered stays bounded by what the cursor has not passed.
    #[test]
    fn redelivery_is_never_counted_twice(steps in prop::collection::vec((0u64..60, 0u8..10), 1..120)) {
        let dir = directory();
        let mut sink = reopen(dir.path());
        let mut stored = std::collections::BTreeSet::new();
        for (record, event) in steps {
            let (tenant, sequence) = (u32::try_from(record % 3).expect("small"), record + 1);
            // The tenant's records are every third one; the cursor stands before the first that is not stored.
            let own = (0..60).filter(|other| other % 3 == record % 3).map(|other| other + 1);
            let cursor = own.take_while(|sequence| stored.contains(sequence)).last().unwrap_or(0);
            let acknowledged = if event == 0 { cursor / 2 } else { cursor };
            sink.store(&[delivery(tenant, sequence, acknowledged, 1)]).expect("the disk is there");
            stored.insert(sequence);
            if event == 1 {
                drop(sink);
                sink = reopen(dir.path());
            }
        }
        prop_assert_eq!(sink.view(0).totals.traces, stored.len() as u64);
        let beyond: usize = sink.state().image().tenants.iter().flat_map(|tenant| &tenant.seen).map(|seen| seen.beyond.len()).sum();
        prop_assert!(beyond <= stored.len());
    }
}
