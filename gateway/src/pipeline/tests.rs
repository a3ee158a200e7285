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

mod identity;
mod limits;

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
    // Fewer, for each is run three times and byte by byte.
    #![proptest_config(ProptestConfig::with_cases(60))]

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
            let claims: u32 = parts.iter().map(|part| part.overwritten).sum();
            assert!(whole.overwritten >= claims, "a request without items has no output, nor claims");
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
