//! A job against prost and against a model that takes the request apart into a tree and puts it together again.

use fastrand::Rng;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::base::Attribute;
use crate::wire;
use crate::wire::fields::fields;
use crate::wire::primitive::{put_field, put_varint};
use crate::wire::samples;

fn plan() -> Plan {
    let attested = [Attribute::new("k8s.pod.uid", "cart"), Attribute::new("k8s.pod.name", "größer")];
    let defaults = [
        Attribute::new("k8s.pod.name", "never: attested wins"),
        Attribute::new("service.name", "fallback"),
        Attribute::new("deployment.environment.name", "prod"),
    ];
    Plan::new(&attested, &defaults)
}

fn no_plan() -> Plan {
    Plan::new(&[], &[])
}

fn run(signal: Signal, payload: &[u8], plan: &Plan) -> Result<Output, Invalid> {
    run_in_steps(signal, payload, plan, usize::MAX)
}

fn run_in_steps(signal: Signal, payload: &[u8], plan: &Plan, budget: usize) -> Result<Output, Invalid> {
    let mut job = Job::new(signal, Bytes::copy_from_slice(payload));
    // Each step does something, so there are never more steps than bytes in, out and noted.
    for _ in 0..payload.len() * 40 + 10_000 {
        if let Step::Done(output) = job.step(plan, budget)? {
            return Ok(output);
        }
    }
    panic!("the job makes no progress");
}

fn single(output: &Output) -> &[u8] {
    assert_eq!(output.parts.len(), 1);
    assert_eq!(output.parts[0].items, output.items);
    &output.parts[0].payload
}

/// What enrichment means, on decoded types. Returns how many values were overwritten.
fn enrich_resource(resource: &mut Option<Resource>) -> u32 {
    let resource = resource.get_or_insert_default();
    let attested = [("k8s.pod.uid", "cart"), ("k8s.pod.name", "größer")];
    let defaults = [("service.name", "fallback"), ("deployment.environment.name", "prod")];
    let mut overwritten = 0;
    let pair = |(key, value): (&str, &str)| KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) }),
        key_strindex: 0,
    };
    let before: Vec<_> = resource.attributes.drain(..).collect();
    for attribute in before {
        match attested.iter().find(|(key, _)| *key == attribute.key) {
            Some(entry) => {
                let right = pair(*entry);
                overwritten += u32::from(attribute.value != right.value);
                if attribute == right && !resource.attributes.contains(&right) {
                    resource.attributes.push(attribute);
                }
            }
            None => resource.attributes.push(attribute),
        }
    }
    for entry in attested.into_iter().chain(defaults) {
        if !resource.attributes.iter().any(|attribute| attribute.key == entry.0) {
            resource.attributes.push(pair(entry));
        }
    }
    overwritten
}

/// The same, on an encoded request; canonical bytes out.
fn enrich_decoded(signal: Signal, payload: &[u8]) -> (Vec<u8>, u32) {
    match signal {
        Signal::Traces => {
            let mut request = ExportTraceServiceRequest::decode(payload).unwrap();
            let overwritten = request.resource_spans.iter_mut().map(|spans| enrich_resource(&mut spans.resource)).sum();
            (request.encode_to_vec(), overwritten)
        }
        Signal::Metrics => {
            let mut request = ExportMetricsServiceRequest::decode(payload).unwrap();
            let overwritten = request.resource_metrics.iter_mut().map(|all| enrich_resource(&mut all.resource)).sum();
            (request.encode_to_vec(), overwritten)
        }
        Signal::Logs => {
            let mut request = ExportLogsServiceRequest::decode(payload).unwrap();
            let overwritten = request.resource_logs.iter_mut().map(|logs| enrich_resource(&mut logs.resource)).sum();
            (request.encode_to_vec(), overwritten)
        }
    }
}

fn canonical(signal: Signal, payload: &[u8]) -> Option<Vec<u8>> {
    match signal {
        Signal::Traces => ExportTraceServiceRequest::decode(payload).ok().map(|request| request.encode_to_vec()),
        Signal::Metrics => ExportMetricsServiceRequest::decode(payload).ok().map(|request| request.encode_to_vec()),
        Signal::Logs => ExportLogsServiceRequest::decode(payload).ok().map(|request| request.encode_to_vec()),
    }
}

/// Everything that enrichment must not touch: the bytes with the resources' attributes taken out, and these apart.
fn without_attributes(payload: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let (mut rest, mut attributes) = (Vec::new(), Vec::new());
    for envelope in fields(payload, 0, payload.len()) {
        if !envelope.is(1) {
            rest.extend_from_slice(&payload[envelope.start..envelope.end]);
            continue;
        }
        rest.extend_from_slice(b"<envelope>");
        for field in fields(payload, envelope.body, envelope.end) {
            if !field.is(1) {
                rest.extend_from_slice(&payload[field.start..field.end]);
                continue;
            }
            for field in fields(payload, field.body, field.end) {
                let bytes = &payload[field.start..field.end];
                if field.is(1) { attributes.push(bytes.to_vec()) } else { rest.extend_from_slice(bytes) }
            }
        }
    }
    (rest, attributes)
}

fn any_signal() -> impl Strategy<Value = Signal> {
    prop::sample::select(&Signal::ALL[..])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Scenario: random requests of all signals, with and without the resource attributes that a policy sets.
    /// Guarantees: enriching bytes means the same as decoding, changing and encoding; items and overwrites are counted.
    #[test]
    fn enriching_bytes_is_enriching_what_they_mean(signal in any_signal(), seed: u64) {
        let payload = samples::request(signal, &mut Rng::with_seed(seed));
        let output = run(signal, &payload, &plan()).expect("prost made it");

        prop_assert_eq!(output.items, wire::count(&payload, signal));
        if output.items == 0 {
            prop_assert!(output.parts.is_empty());
            return Ok(());
        }
        let (expected, overwritten) = enrich_decoded(signal, &payload);
        prop_assert_eq!(canonical(signal, single(&output)).expect("still valid"), expected);
        prop_assert_eq!(output.overwritten, overwritten);
    }

    /// Scenario: unknown fields of every wire type at every level, resource fields given several times, attested keys in
    /// them.
    /// Guarantees: every byte that is no attested attribute survives in its place; a second pass changes nothing.
    #[test]
    fn unknown_fields_survive_byte_for_byte(signal in any_signal(), seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let payload = samples::with_unknown_fields(signal, &samples::request(signal, &mut rng), &mut rng);
        let output = run(signal, &payload, &plan()).expect("unknown fields never fail a request");
        prop_assume!(output.items > 0);

        let (before, sent) = without_attributes(&payload);
        let (after, attributes) = without_attributes(single(&output));
        prop_assert_eq!(before, after);
        let survivors = sent.iter().filter(|attribute| attributes.contains(attribute)).count();
        let attested = |bytes: &&Vec<u8>| [&b"k8s.pod.uid"[..], b"k8s.pod.name"].iter().any(|key| bytes.windows(key.len()).any(|at| at == *key));
        prop_assert!(survivors + sent.iter().filter(attested).count() >= sent.len());

        let again = run(signal, single(&output), &plan()).expect("the output is valid");
        prop_assert_eq!(single(&again), single(&output));
        prop_assert_eq!(again.overwritten, 0);
    }

    /// Scenario: a job is stepped a byte at a time, in odd steps, and at once.
    /// Guarantees: the result never depends on where it was interrupted.
    #[test]
    fn interruptions_change_nothing(signal in any_signal(), seed: u64, budget in 1..300usize) {
        let mut rng = Rng::with_seed(seed);
        let mut payload = samples::with_unknown_fields(signal, &samples::request(signal, &mut rng), &mut rng);
        if rng.u8(0..3) == 0 && !payload.is_empty() {
            let at = rng.usize(0..payload.len());
            payload[at] = rng.u8(..);
        }
        let whole = run(signal, &payload, &plan());
        prop_assert_eq!(&run_in_steps(signal, &payload, &plan(), budget), &whole);
        prop_assert_eq!(&run_in_steps(signal, &payload, &plan(), 1), &whole);
    }

    /// Scenario: bytes of valid requests are changed, inserted and removed at random.
    /// Guarantees: what is accepted is what prost accepts, so nothing in the queue can poison a merged request. The only
    /// exceptions are stricter: ids of other lengths than in OTLP, and the limits of enrichment.
    #[test]
    fn a_mutated_request_is_judged_as_prost_judges_it(signal in any_signal(), seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let mut payload = samples::request(signal, &mut rng);
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(0..=payload.len());
            match rng.u8(0..3) {
                0 => payload.insert(at, rng.u8(..)),
                1 if at < payload.len() => drop(payload.remove(at)),
                _ if at < payload.len() => payload[at] ^= 1 << rng.u8(0..8),
                _ => payload.extend_from_slice(&samples::unknown_field(&mut rng)),
            }
        }
        let decoded = canonical(signal, &payload);
        match run(signal, &payload, &no_plan()) {
            Ok(_) => prop_assert!(decoded.is_some(), "accepted what prost refuses"),
            Err(invalid) if decoded.is_some() => prop_assert!(invalid.problem.contains(" id has "), "{}", invalid),
            Err(invalid) => prop_assert!(invalid.offset <= payload.len()),
        }
    }

    /// Scenario: arbitrary bytes.
    /// Guarantees: never a panic, and what is accepted comes out valid.
    #[test]
    fn arbitrary_bytes_never_panic(signal in any_signal(), payload in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(output) = run(signal, &payload, &plan()) {
            for part in &output.parts {
                prop_assert!(run(signal, &part.payload, &no_plan()).is_ok());
            }
        }
        let payload = Bytes::from(payload);
        let _ = wire::split(&payload, signal, 20);
        let _ = wire::resources(&payload, signal).count();
    }
}

/// Scenario: requests of each signal, with unknown fields, cut off after every byte.
/// Guarantees: a prefix is refused, or is a request of its own that prost reads as well; never a panic.
#[test]
fn a_request_cut_off_anywhere_is_refused_or_valid() {
    for signal in Signal::ALL {
        let mut rng = Rng::with_seed(7);
        let payload = std::iter::repeat_with(|| {
            let request = samples::request(signal, &mut rng);
            samples::with_unknown_fields(signal, &request, &mut rng)
        })
        .find(|payload| (1_000..4_000).contains(&payload.len()) && wire::count(payload, signal) > 2)
        .expect("the generator makes many sizes");
        let mut refused = 0;
        for end in 0..payload.len() {
            let decoded = canonical(signal, &payload[..end]);
            let job = run(signal, &payload[..end], &no_plan());
            assert_eq!(job.is_ok(), decoded.is_some(), "{signal:?} cut off at {end}");
            refused += usize::from(job.is_err());
        }
        assert!(refused > payload.len() / 2);
    }
}

/// Scenario: two requests, one behind the other.
/// Guarantees: that is one request with the items of both, and enriching it enriches both.
#[test]
fn a_concatenation_of_requests_is_a_request() {
    let mut rng = Rng::with_seed(3);
    for signal in Signal::ALL {
        for _ in 0..50 {
            let (one, two) = (samples::request(signal, &mut rng), samples::request(signal, &mut rng));
            let parts = [&one, &two].map(|request| run(signal, request, &plan()).expect("valid"));
            let whole = run(signal, &[one.clone(), two.clone()].concat(), &plan()).expect("valid");
            assert_eq!(whole.items, parts[0].items + parts[1].items);
            assert_eq!(whole.overwritten >= parts[0].overwritten.max(parts[1].overwritten), true);
            if parts.iter().all(|part| part.items > 0) {
                assert_eq!(single(&whole), [single(&parts[0]), single(&parts[1])].concat());
            }
        }
    }
}

/// A trace request of one span whose `ResourceSpans` begins with these fields.
fn around_a_span(fields: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put_field(&mut out, 1, &[fields, &[0x12, 0x02, 0x12, 0x00]].concat());
    out
}

fn resource_field(attributes: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    put_field(&mut out, 1, Plan::new(&attributes_of(attributes), &[]).block());
    out
}

fn attributes_of(pairs: &[(&str, &str)]) -> Vec<Attribute> {
    pairs.iter().map(|(key, value)| Attribute::new(key, value)).collect()
}

fn attributes_in(payload: &[u8]) -> Vec<(String, Option<Value>)> {
    let request = ExportTraceServiceRequest::decode(payload).unwrap();
    let resource = request.resource_spans[0].resource.clone().unwrap_or_default();
    resource.attributes.into_iter().map(|pair| (pair.key, pair.value.and_then(|value| value.value))).collect()
}

fn text(value: &str) -> Option<Value> {
    Some(Value::StringValue(value.to_owned()))
}

/// Scenario: the pod sent exactly what is attested and all that is added; or the policy adds nothing.
/// Guarantees: the payload comes out as the very same memory: no copy.
#[test]
fn no_change_means_no_copy() {
    let resource = resource_field(&[
        ("k8s.pod.uid", "cart"),
        ("k8s.pod.name", "größer"),
        ("service.name", "mine"),
        ("deployment.environment.name", ""),
    ]);
    for plan in [plan(), no_plan()] {
        let payload = Bytes::from(around_a_span(&resource));
        let Ok(Step::Done(output)) = Job::new(Signal::Traces, payload.clone()).step(&plan, usize::MAX) else {
            panic!("a valid request");
        };
        assert_eq!(single(&output).as_ptr(), payload.as_ptr());
        assert_eq!(output.overwritten, 0);
    }
}

/// Scenario: a pod claims another identity: by value, by type, several times, hidden behind a second key of the same
/// attribute, in a second resource field, without any value.
/// Guarantees: the backend sees the attested value once and no other; each false claim is counted, and only those.
#[test]
fn a_false_identity_is_overwritten_and_counted() {
    let uid = |value: &str| resource_field(&[("k8s.pod.uid", value)]);
    let raw = |attribute: &[u8]| {
        let (mut resource, mut field) = (Vec::new(), Vec::new());
        put_field(&mut resource, 1, attribute);
        put_field(&mut field, 1, &resource);
        field
    };
    let key = b"\x0a\x0bk8s.pod.uid";
    let cases: [(&str, Vec<u8>, u32); 11] = [
        ("absent", Vec::new(), 0),
        ("right", uid("cart"), 0),
        ("another value", uid("forged"), 1),
        ("right and another, in one resource", [uid("cart"), uid("forged")].concat(), 1),
        ("another and right", [uid("forged"), uid("cart")].concat(), 1),
        ("right twice", [uid("cart"), uid("cart")].concat(), 0),
        ("a number", raw(&[&key[..], b"\x12\x02\x18\x05"].concat()), 1),
        ("no value", raw(key), 1),
        ("behind another key", raw(&[b"\x0a\x01x", &key[..], b"\x12\x08\x0a\x06forged"].concat()), 1),
        ("right, then another member", raw(&[&key[..], b"\x12\x08\x0a\x04cart\x18\x05"].concat()), 1),
        ("right, with padded lengths", raw(&[&key[..], b"\x12\x87\x00\x0a\x84\x00cart"].concat()), 0),
    ];
    for (case, resource, overwritten) in cases {
        let output = run(Signal::Traces, &around_a_span(&resource), &plan()).expect(case);
        let attributes = attributes_in(single(&output));
        let claims: Vec<_> = attributes.iter().filter(|(key, _)| key == "k8s.pod.uid").collect();
        assert_eq!(claims.len(), 1, "{case}: {attributes:?}");
        assert_eq!(claims[0].1, text("cart"), "{case}");
        assert_eq!(output.overwritten, overwritten, "{case}");
    }
    let decoy = raw(&[&key[..], b"\x0a\x01x", b"\x12\x08\x0a\x06honest"].concat());
    let output = run(Signal::Traces, &around_a_span(&decoy), &plan()).expect("valid");
    assert_eq!(attributes_in(single(&output))[0], ("x".to_owned(), text("honest")), "the last key counts");
    assert_eq!(output.overwritten, 0);
}

/// Scenario: no, one and three resource fields around unknown fields and a schema URL.
/// Guarantees: one resource field comes out, at the first one's place, with the attributes of all in their order.
#[test]
fn several_resource_fields_become_one() {
    let (one, two, three) = (
        resource_field(&[("a", "1"), ("k8s.pod.uid", "forged")]),
        resource_field(&[("k8s.pod.uid", "false"), ("b", "2")]),
        resource_field(&[]),
    );
    let (unknown, url) = (b"\xa2\x06\x02hi".to_vec(), b"\x1a\x03url".to_vec());
    let sent = around_a_span(&[&unknown[..], &one, &url, &two, &unknown, &three].concat());
    let output = run(Signal::Traces, &sent, &plan()).expect("valid");

    let added = [
        ("a", "1"),
        ("b", "2"),
        ("k8s.pod.uid", "cart"),
        ("k8s.pod.name", "größer"),
        ("service.name", "fallback"),
        ("deployment.environment.name", "prod"),
    ];
    let expected = around_a_span(&[&unknown[..], &resource_field(&added), &url, &unknown].concat());
    assert_eq!(single(&output), expected);
    assert_eq!(output.overwritten, 2);
}

/// Scenario: ids of all lengths in spans, links, logs and exemplars.
/// Guarantees: empty or full length only, as the Collector has it; the refusal names the field and the place.
#[test]
fn an_id_is_empty_or_whole() {
    for length in 0..40 {
        let mut span = Vec::new();
        put_field(&mut span, 1, &vec![7; length]);
        let mut scope = Vec::new();
        put_field(&mut scope, 2, &span);
        let mut envelope = Vec::new();
        put_field(&mut envelope, 2, &scope);
        let mut payload = Vec::new();
        put_field(&mut payload, 1, &envelope);
        match run(Signal::Traces, &payload, &no_plan()) {
            Ok(_) => assert!(matches!(length, 0 | 16)),
            Err(invalid) => {
                assert!(!matches!(length, 0 | 16));
                assert_eq!(invalid.path, "resource_spans.scope_spans.spans.trace_id");
                assert_eq!(payload[invalid.offset], 0x0a);
                assert_eq!(
                    invalid.to_string(),
                    "a trace id has 16 bytes, or none at byte 6 (resource_spans.scope_spans.spans.trace_id)"
                );
            }
        }
    }
}

/// A log record's body: a list in a list in a list, and so on.
fn nested_value(levels: usize) -> Vec<u8> {
    let mut value = vec![0x10, 0x01];
    for _ in 0..levels {
        let mut list = Vec::new();
        put_varint(&mut list, 1 << 3 | 2);
        put_varint(&mut list, value.len());
        list.append(&mut value);
        put_varint(&mut value, 5 << 3 | 2);
        put_varint(&mut value, list.len());
        value.append(&mut list);
    }
    value
}

/// Scenario: values and groups nested to each depth around the limit, and a bomb far beyond it.
/// Guarantees: the limit is protobuf's own, met without recursion: what a backend could not decode is refused.
#[test]
fn nesting_has_the_limit_that_backends_have() {
    let request = |value: &[u8]| {
        let wrapped = [5u8, 2, 2, 1].into_iter().fold(value.to_vec(), |inner, number| {
            let mut out = Vec::new();
            put_field(&mut out, number, &inner);
            out
        });
        wrapped
    };
    let (mut accepted, mut refused) = (0, 0);
    for levels in 40..60 {
        let payload = request(&nested_value(levels));
        let result = run(Signal::Logs, &payload, &no_plan());
        assert_eq!(result.is_ok(), canonical(Signal::Logs, &payload).is_some(), "{levels} levels");
        accepted += usize::from(result.is_ok());
        refused += usize::from(result.is_err_and(|invalid| invalid.problem.contains("100 levels")));
    }
    assert!(accepted > 0 && refused > 0 && accepted + refused == 20);
    for groups in 80..110 {
        let payload = request(&[vec![0xa3, 0x06].repeat(groups), vec![0xa4, 0x06].repeat(groups)].concat());
        let result = run(Signal::Logs, &payload, &no_plan());
        assert_eq!(result.is_ok(), canonical(Signal::Logs, &payload).is_some(), "{groups} groups");
    }
    assert!(run(Signal::Logs, &request(&[0xa3, 0x06].repeat(100_000)), &no_plan()).is_err());
    assert!(run(Signal::Logs, &request(&nested_value(10_000)), &no_plan()).is_err());
}

/// Scenario: a string and a packed list of a megabyte, good and with the last byte broken, in small steps.
/// Guarantees: neither is checked in one go; the check is as strict as in one go.
#[test]
fn one_long_value_does_not_outlast_its_budget() {
    let scope = |text: &[u8]| {
        let wrapped = [2u8, 1].into_iter().fold(text.to_vec(), |inner, number| {
            let mut out = Vec::new();
            put_field(&mut out, if number == 2 { 3 } else { number }, &inner);
            out
        });
        wrapped
    };
    let text = "aé€😀".repeat(100_000).into_bytes();
    let mut broken = text.clone();
    broken.pop();
    for (text, good) in [(&text, true), (&broken, false)] {
        let payload = Bytes::from(scope(text));
        let mut job = Job::new(Signal::Traces, payload.clone());
        let mut steps = 1;
        let result = loop {
            match job.step(&no_plan(), 10_000) {
                Ok(Step::More) => steps += 1,
                Ok(Step::Done(_)) => break true,
                Err(invalid) => {
                    assert_eq!(invalid.problem, "a string is not UTF-8");
                    break false;
                }
            }
        };
        assert_eq!(result, good);
        assert!(steps >= payload.len() / 10_000, "{steps} steps");
    }
}

/// Scenario: a request of a few megabytes made of the smallest possible resources; resources given a hundred times;
/// an attested key given a thousand times.
/// Guarantees: none of them becomes a multiple of its own memory: each is refused.
#[test]
fn a_request_made_to_grow_is_refused() {
    let tiny = around_a_span(&[]).repeat(200_000);
    let invalid = run(Signal::Traces, &tiny, &plan()).expect_err("25 times its size");
    assert!(invalid.problem.contains("resources"), "{invalid}");
    assert!(run(Signal::Traces, &tiny, &no_plan()).is_ok());

    let invalid = run(Signal::Traces, &around_a_span(&[0x0a, 0x00].repeat(17)), &plan()).expect_err("17 resources");
    assert!(invalid.problem.contains("16 times"), "{invalid}");

    let mut attributes = Vec::new();
    for _ in 0..300 {
        let forged = Plan::new(&attributes_of(&[("k8s.pod.uid", "forged"), ("x", "y")]), &[]);
        attributes.extend_from_slice(forged.block());
    }
    let mut resource = Vec::new();
    put_field(&mut resource, 1, &[]);
    resource.clear();
    resource.push(0x0a);
    put_varint(&mut resource, attributes.len());
    resource.extend_from_slice(&attributes);
    let invalid = run(Signal::Traces, &around_a_span(&resource), &plan()).expect_err("300 claims");
    assert!(invalid.problem.contains("256 times"), "{invalid}");
}

/// Scenario: a request that holds nothing, or envelopes without items.
/// Guarantees: it succeeds, and nothing goes to the queue.
#[test]
fn a_request_without_items_succeeds_with_nothing() {
    for payload in [&b""[..], b"\x0a\x00", b"\x0a\x04\x12\x02\x1a\x00"] {
        let mut job = Job::new(Signal::Traces, Bytes::copy_from_slice(payload));
        let Ok(Step::Done(output)) = job.step(&plan(), usize::MAX) else { panic!("valid") };
        assert_eq!(output, Output::default());
    }
}

/// Scenario: a request of 9 MiB, enriched; then one whose single span is larger than a record may be.
/// Guarantees: parts within the limit, each enriched, with all spans in their order; the latter is refused.
#[test]
fn a_large_request_becomes_several_records() {
    let mut rng = Rng::with_seed(1);
    let mut request = samples::traces(&mut rng);
    while request.encoded_len() < 9 << 20 {
        request.resource_spans.extend(samples::traces(&mut rng).resource_spans);
    }
    let payload = request.encode_to_vec();
    for budget in [usize::MAX, 100_000] {
        let output = run_in_steps(Signal::Traces, &payload, &plan(), budget).expect("valid");
        assert!(output.parts.len() >= 3);
        let mut spans = Vec::new();
        for part in &output.parts {
            assert!(part.payload.len() <= Batch::PAYLOAD_BYTES_MAX);
            assert_eq!(part.items, wire::count(&part.payload, Signal::Traces));
            let request = ExportTraceServiceRequest::decode(&part.payload[..]).unwrap();
            for envelope in request.resource_spans {
                let attributes = envelope.resource.expect("enriched").attributes;
                assert!(attributes.iter().any(|pair| pair.key == "k8s.pod.uid"));
                spans.extend(envelope.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        let sent = request.resource_spans.iter().flat_map(|envelope| &envelope.scope_spans);
        assert!(sent.flat_map(|scope| &scope.spans).eq(&spans));
        assert_eq!(output.items as usize, spans.len());
    }

    let mut span = Vec::new();
    put_field(&mut span, 5, &vec![b'n'; Batch::PAYLOAD_BYTES_MAX]);
    let mut scope = Vec::new();
    put_field(&mut scope, 2, &span);
    let mut envelope = Vec::new();
    put_field(&mut envelope, 2, &scope);
    let mut payload = Vec::new();
    put_field(&mut payload, 1, &envelope);
    let invalid = run(Signal::Traces, &payload, &plan()).expect_err("too large");
    assert!(invalid.problem.contains("larger than"), "{invalid}");
}
