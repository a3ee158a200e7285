//! Requests made to hurt: too deep, too long, too large, too many.

use super::*;

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
fn nested_value(levels: usize, innermost: Vec<u8>) -> Vec<u8> {
    let mut value = innermost;
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

/// A log record's body: a map with a map in it, and so on.
fn nested_map(levels: usize) -> Vec<u8> {
    (0..levels).fold(vec![0x10, 0x01], |value, _| {
        let (mut pair, mut map, mut outer) = (vec![0x0a, 0x01, b'k'], Vec::new(), Vec::new());
        put_field(&mut pair, 2, &value);
        put_field(&mut map, 1, &pair);
        put_field(&mut outer, 6, &map);
        outer
    })
}

/// Scenario: values and groups nested to each depth around the limit, and a bomb far beyond it.
/// Guarantees: the limit is protobuf's own, met without recursion: what a backend could not decode is refused.
#[test]
fn nesting_has_the_limit_that_backends_have() {
    let request = |value: &[u8]| {
        [5u8, 2, 2, 1].into_iter().fold(value.to_vec(), |inner, number| {
            let mut out = Vec::new();
            put_field(&mut out, number, &inner);
            out
        })
    };
    let (mut accepted, mut refused) = (0, 0);
    for levels in 40..60 {
        let payload = request(&nested_value(levels, vec![0x10, 0x01]));
        let result = run(Signal::Logs, &payload, &no_plan());
        assert_eq!(result.is_ok(), canonical(Signal::Logs, &payload).is_some(), "{levels} levels");
        accepted += usize::from(result.is_ok());
        refused += usize::from(result.is_err_and(|invalid| invalid.problem.contains("100 levels")));
    }
    assert!(accepted > 0 && refused > 0 && accepted + refused == 20);
    for (lists, maps) in (0..3).flat_map(|lists| (25..40).map(move |maps| (lists, maps))) {
        let payload = request(&nested_value(lists, nested_map(maps)));
        let result = run(Signal::Logs, &payload, &no_plan());
        assert_eq!(result.is_ok(), canonical(Signal::Logs, &payload).is_some(), "{maps} maps in {lists} lists");
    }
    for groups in 80..110 {
        let payload = request(&[[0xa3, 0x06].repeat(groups), [0xa4, 0x06].repeat(groups)].concat());
        let result = run(Signal::Logs, &payload, &no_plan());
        assert_eq!(result.is_ok(), canonical(Signal::Logs, &payload).is_some(), "{groups} groups");
    }
    assert!(run(Signal::Logs, &request(&[0xa3, 0x06].repeat(100_000)), &no_plan()).is_err());
    assert!(run(Signal::Logs, &request(&nested_value(10_000, Vec::new())), &no_plan()).is_err());
}

/// Scenario: a string and a packed list of a megabyte, good and with the last byte broken, in small steps.
/// Guarantees: neither is checked in one go; the check is as strict as in one go.
#[test]
fn one_long_value_does_not_outlast_its_budget() {
    let request = |text: &[u8]| {
        let (mut envelope, mut request) = (Vec::new(), Vec::new());
        put_field(&mut envelope, 3, text);
        put_field(&mut request, 1, &envelope);
        request
    };
    let text = "aé€😀".repeat(100_000).into_bytes();
    let mut broken = text.clone();
    broken.pop();
    for (text, good) in [(&text, true), (&broken, false)] {
        let payload = Bytes::from(request(text));
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

/// A field inside a field inside a field, outermost number first.
fn within(numbers: &[u8], innermost: &[u8]) -> Vec<u8> {
    numbers.iter().rev().fold(innermost.to_vec(), |body, number| {
        let mut field = Vec::new();
        put_field(&mut field, *number, &body);
        field
    })
}

/// Scenario: each way in which a single field can be malformed, in the smallest request that shows it; next to each the
/// same field when it is right.
/// Guarantees: the wrong one is refused with its reason, the right one accepted, and prost agrees with both.
#[test]
fn each_kind_of_malformed_field_is_refused() {
    /// Signal, path to the message, right field, wrong field, reason.
    type Case<'a> = (Signal, &'a [u8], &'a [u8], &'a [u8], &'a str);
    const SPAN: &[u8] = &[1, 2, 2];
    const POINT: &[u8] = &[1, 2, 2, 9, 1];
    let attribute: &[u8] = b"\x4a\x0a\x0a\x01k\x12\x05\x0a\x03abc";
    let wrong_value_length: &[u8] = b"\x4a\x0a\x0a\x01k\x12\x04\x0a\x03abc";
    let cases: [Case<'_>; 17] = [
        (Signal::Traces, SPAN, b"\x2a\x01n", b"\x2d1234", "wire type"), // name, as a fixed32
        (Signal::Traces, SPAN, b"\x30\x01", b"\x32\x01a", "wire type"), // kind, as bytes
        (Signal::Traces, SPAN, b"\x3912345678", b"\x3d1234", "wire type"), // start time, as a fixed32
        (Signal::Traces, SPAN, b"\x2a\x01n", b"\x2b\x2c", "wire type"), // name, as a group
        (Signal::Traces, SPAN, b"\x85\x011234", b"\x85\x01123", "beyond"), // flags, cut short
        (Signal::Traces, SPAN, b"\x3912345678", b"\x391234567", "beyond"), // start time, cut short
        (Signal::Traces, SPAN, b"\x2a\x01n", b"\x2a\x02n", "beyond"),   // name, longer than its span
        (Signal::Traces, SPAN, b"\x2a\x01n", b"\x2a\x01\xff", "UTF-8"),
        (Signal::Traces, SPAN, attribute, wrong_value_length, "beyond"),
        (Signal::Traces, SPAN, b"\xa3\x06\xa4\x06", b"\xa3\x06\xac\x06", "not begun"), // another group's end
        (Signal::Traces, SPAN, b"\xa3\x06\xa4\x06", b"\xa4\x06", "not begun"),
        (Signal::Traces, SPAN, b"\xa3\x06\xa4\x06", b"\xa3\x06", "not closed"),
        (Signal::Traces, SPAN, b"\xa0\x06\x01", b"\xa6\x06\x01", "wire types 6 and 7"),
        (Signal::Traces, SPAN, b"\xa0\x06\x01", b"\x00\x01", "number 0"),
        (Signal::Traces, SPAN, b"\x30\xff\x01", b"\x30\xff", "varint"), // kind, cut short
        (Signal::Metrics, POINT, b"\x32\x0812345678", b"\x32\x071234567", "8-byte"), // bucket counts, packed
        (Signal::Metrics, &[1, 2, 2, 10, 1, 8], b"\x12\x02\x81\x01", b"\x12\x02\x81\x81", "varint"),
    ];
    for (signal, path, right, wrong, reason) in cases {
        let (right, wrong) = (within(path, right), within(path, wrong));
        assert!(canonical(signal, &right).is_some() && run(signal, &right, &no_plan()).is_ok(), "{right:x?}");
        assert!(canonical(signal, &wrong).is_none(), "prost accepts {wrong:x?}");
        let invalid = run(signal, &wrong, &no_plan()).expect_err(reason);
        assert!(invalid.problem.contains(reason), "{invalid}, instead of: {reason}");
    }
}

/// Scenario: lists that may be packed, written one value a field.
/// Guarantees: both forms are legal, as in protobuf.
#[test]
fn a_packed_list_may_be_written_unpacked() {
    let counts = within(&[1, 2, 2, 9, 1], b"\x3112345678\x3112345678");
    let buckets = within(&[1, 2, 2, 10, 1, 8], b"\x10\x05\x10\xff\x01");
    for payload in [counts, buckets] {
        assert!(canonical(Signal::Metrics, &payload).is_some());
        assert_eq!(run(Signal::Metrics, &payload, &no_plan()).expect("legal").items, 1);
    }
}

/// Scenario: a request of nothing but the smallest possible spans.
/// Guarantees: a step counts them, not only their bytes, so it does not last many times as long as usual.
#[test]
fn a_step_pays_for_fields_as_well_as_for_bytes() {
    let payload = within(&[1, 2], &[0x12, 0x00].repeat(50_000));
    let mut job = Job::new(Signal::Traces, Bytes::from(payload));
    let mut steps = 1;
    while let Ok(Step::More) = job.step(&no_plan(), 10_000) {
        steps += 1;
    }
    assert!(steps >= 80, "{steps} steps for 50,000 spans");
}

/// Scenario: a request of a few megabytes made of the smallest possible resources; resources given a hundred times;
/// an attested key given a thousand times.
/// Guarantees: none of them becomes a multiple of its own memory: each is refused.
#[test]
fn a_request_made_to_grow_is_refused() {
    let tiny = around_a_span(&[]).repeat(200_000);
    let invalid = run(Signal::Traces, &tiny, &plan()).expect_err("25 times its size");
    assert!(invalid.problem.contains("too many resources"), "{invalid}");
    assert!(run(Signal::Traces, &tiny, &no_plan()).is_ok());

    let verbose = Plan::new(&[], &[Attribute::new("motto", &"m".repeat(1_000))]);
    assert!(run(Signal::Traces, &around_a_span(&[]).repeat(4_000), &verbose).is_ok(), "4 MB are added");
    let invalid = run(Signal::Traces, &around_a_span(&[]).repeat(4_300), &verbose).expect_err("4.3 MiB are added");
    assert!(invalid.problem.contains("double in size"), "{invalid}");

    let invalid = run(Signal::Traces, &around_a_span(&[0x0a, 0x00].repeat(17)), &plan()).expect_err("17 resources");
    assert!(invalid.problem.contains("16 times"), "{invalid}");

    let mut attributes = Vec::new();
    for _ in 0..300 {
        let forged = Plan::new(&attributes_of(&[("k8s.pod.uid", "forged"), ("x", "y")]), &[]);
        attributes.extend_from_slice(forged.block());
    }
    let mut resource = Vec::new();
    put_field(&mut resource, 1, &attributes);
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
