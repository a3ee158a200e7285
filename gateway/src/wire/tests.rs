//! Counting, naming and splitting against prost.

use std::collections::BTreeSet;

use fastrand::Rng;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{Gauge, Metric, NumberDataPoint, Sum};
use proptest::prelude::*;
use prost::Message as _;

use super::fields::fields;
use super::*;

struct Nobody;

impl validate::Observer for Nobody {
    fn enter(&mut self, _: schema::Message, _: usize, _: usize) {}
    fn key(&mut self, _: usize, _: usize) {}
    fn leave(&mut self, _: schema::Message, _: usize) -> Result<(), &'static str> {
        Ok(())
    }
}

fn any_signal() -> impl Strategy<Value = Signal> {
    prop::sample::select(&Signal::ALL[..])
}

/// Every item with what stands around it, flattened: what splitting must keep, in order. Metrics are cut at points.
fn flat(payload: &[u8], signal: Signal) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let depth = if signal == Signal::Metrics { 5 } else { 3 };
    flatten(payload, 0, depth, &[], &mut out);
    out
}

fn is_child(depth: usize, field: &fields::Field) -> bool {
    match depth {
        0 | 4 => field.is(1),
        3 => schema::number::DATA.into_iter().any(|number| field.is(number)),
        _ => field.is(2),
    }
}

fn flatten(body: &[u8], depth: usize, leaf: usize, around: &[u8], out: &mut Vec<Vec<u8>>) {
    let all: Vec<_> = fields(body, 0, body.len()).collect();
    let envelope: Vec<u8> = all
        .iter()
        .filter(|field| depth > 0 && !is_child(depth, field))
        .flat_map(|field| body[field.start..field.end].to_vec())
        .collect();
    let around = [around, &[u8::try_from(depth).unwrap()], &envelope].concat();
    for field in all.iter().filter(|field| is_child(depth, field)) {
        let child = &body[field.body..field.end];
        if depth + 1 == leaf {
            out.push([&around[..], child].concat());
        } else {
            flatten(child, depth + 1, leaf, &around, out);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Scenario: random requests with unknown fields at every level, split to limits from tiny to nearly whole.
    /// Guarantees: each part is within the limit and decodes; together they hold every item, in order, each with the very
    /// same resource, scope and metric around it; no unknown field of the request itself is lost or doubled.
    #[test]
    fn parts_hold_the_same_items_in_the_same_envelopes(signal in any_signal(), seed: u64, share in 1..100usize) {
        let mut rng = Rng::with_seed(seed);
        let plain = samples::request(signal, &mut rng);
        let payload = Bytes::from(samples::with_unknown_fields(signal, &plain, &mut rng));
        let max = payload.len() * share / 100;
        let parts = match split(&payload, signal, max) {
            Ok(parts) => parts,
            Err(error) => {
                prop_assert!(error.offset <= payload.len());
                return Ok(());
            }
        };
        let mut items = Vec::new();
        let mut unknown = Vec::new();
        for (part, counted) in &parts {
            prop_assert!(part.len() <= max);
            prop_assert_eq!(count(part, signal), *counted);
            items.extend(flat(part, signal));
            unknown.extend(fields(part, 0, part.len()).filter(|field| !field.is(1)).map(|field| part[field.start..field.end].to_vec()));
            let mut validator = validate::Validator::new(signal, part.len());
            prop_assert_eq!(validator.step(part, usize::MAX, &mut Nobody), Ok(true));
        }
        prop_assert_eq!(items, flat(&payload, signal));
        let sent: Vec<_> = fields(&payload, 0, payload.len()).filter(|field| !field.is(1)).map(|field| payload[field.start..field.end].to_vec()).collect();
        prop_assert_eq!(unknown, sent);
        let total: u32 = parts.iter().map(|(_, counted)| counted).sum();
        prop_assert_eq!(total, count(&payload, signal));
    }

    /// Scenario: random trace requests.
    /// Guarantees: services and their spans are what the decoded request says.
    #[test]
    fn resources_are_named_by_their_service(seed: u64) {
        let request = samples::traces(&mut Rng::with_seed(seed));
        let payload = request.encode_to_vec();
        let expected: Vec<_> = request.resource_spans.iter().map(|envelope| {
            let mut attributes = envelope.resource.iter().flat_map(|resource| &resource.attributes);
            let name = attributes.rfind(|pair| pair.key == "service.name").and_then(|pair| {
                match pair.value.as_ref()?.value.as_ref()? {
                    Value::StringValue(name) => Some(name.clone()),
                    _ => None,
                }
            });
            (name, envelope.scope_spans.iter().map(|scope| scope.spans.len()).sum::<usize>())
        }).collect();
        let found: Vec<_> = resources(&payload, Signal::Traces)
            .map(|view| (view.service_name.map(str::to_owned), view.items as usize))
            .collect();
        prop_assert_eq!(found, expected);
    }

    /// Scenario: random metrics requests with all five kinds of data.
    /// Guarantees: data points are counted, not metrics.
    #[test]
    fn data_points_are_counted(seed: u64) {
        let request = samples::metrics_request(&mut Rng::with_seed(seed));
        let scopes = request.resource_metrics.iter().flat_map(|envelope| &envelope.scope_metrics);
        let points: usize = scopes.flat_map(|scope| &scope.metrics).map(|metric| match &metric.data {
            None => 0,
            Some(Data::Gauge(data)) => data.data_points.len(),
            Some(Data::Sum(data)) => data.data_points.len(),
            Some(Data::Histogram(data)) => data.data_points.len(),
            Some(Data::ExponentialHistogram(data)) => data.data_points.len(),
            Some(Data::Summary(data)) => data.data_points.len(),
        }).sum();
        prop_assert_eq!(count(&request.encode_to_vec(), Signal::Metrics) as usize, points);
    }
}

fn metrics(all: Vec<Metric>) -> (ExportMetricsServiceRequest, Bytes) {
    let mut request = ExportMetricsServiceRequest::default();
    request.resource_metrics.push(Default::default());
    request.resource_metrics[0].scope_metrics.push(Default::default());
    request.resource_metrics[0].scope_metrics[0].metrics = all;
    let payload = request.encode_to_vec().into();
    (request, payload)
}

fn decoded(parts: &[(Bytes, u32)]) -> Vec<Metric> {
    let decode = |(part, _): &(Bytes, u32)| ExportMetricsServiceRequest::decode(&part[..]).unwrap();
    let scopes = parts.iter().map(decode).flat_map(|request| request.resource_metrics);
    scopes.flat_map(|envelope| envelope.scope_metrics).flat_map(|scope| scope.metrics).collect()
}

fn points(count: u64) -> Vec<NumberDataPoint> {
    (1..=count).map(|time_unix_nano| NumberDataPoint { time_unix_nano, ..Default::default() }).collect()
}

/// Scenario: one metric with more points than a part may hold.
/// Guarantees: it is cut between points; each piece repeats name, unit, kind, temporality and monotonicity.
#[test]
fn one_large_metric_is_cut_at_its_points() {
    let sum = Sum { data_points: points(1_000), aggregation_temporality: 2, is_monotonic: true };
    let metric = Metric { name: "hits".into(), unit: "1".into(), data: Some(Data::Sum(sum)), ..Default::default() };
    let (_, payload) = metrics(vec![metric]);
    let parts = split(&payload, Signal::Metrics, 2_000).expect("points are small");
    assert!((6..=8).contains(&parts.len()), "well filled: {}", parts.len());
    let mut times = Vec::new();
    for metric in decoded(&parts) {
        assert_eq!((&*metric.name, &*metric.unit), ("hits", "1"));
        let Some(Data::Sum(sum)) = metric.data else { panic!("still a sum") };
        assert!(sum.is_monotonic && sum.aggregation_temporality == 2);
        times.extend(sum.data_points.iter().map(|point| point.time_unix_nano));
    }
    assert!(times.into_iter().eq(1..=1_000));
}

/// Scenario: several metrics, each of which fits a part, together with more than fits.
/// Guarantees: they are kept whole.
#[test]
fn metrics_that_fit_are_kept_whole() {
    let metric = |name: u32| Metric {
        name: name.to_string(),
        data: Some(Data::Gauge(Gauge { data_points: points(50) })),
        ..Default::default()
    };
    let (request, payload) = metrics((0..40).map(metric).collect());
    let parts = split(&payload, Signal::Metrics, 2_000).expect("each fits");
    assert!(parts.len() > 5);
    assert_eq!(decoded(&parts), request.resource_metrics[0].scope_metrics[0].metrics);
}

/// Scenario: a request is exactly as large as allowed, then one byte too large for its only span.
/// Guarantees: the limit is exact: no copy at the limit, a refusal with the span's place beyond it.
#[test]
fn the_limit_is_exact() {
    let mut request = ExportTraceServiceRequest::default();
    request.resource_spans.push(Default::default());
    request.resource_spans[0].scope_spans.push(Default::default());
    request.resource_spans[0].scope_spans[0].spans.push(Default::default());
    request.resource_spans[0].scope_spans[0].spans[0].name = "n".repeat(300);
    let payload = Bytes::from(request.encode_to_vec());

    let parts = split(&payload, Signal::Traces, payload.len()).expect("fits");
    assert_eq!((parts[0].0.as_ptr(), parts[0].1), (payload.as_ptr(), 1));
    let error = split(&payload, Signal::Traces, payload.len() - 1).expect_err("does not fit");
    assert_eq!(error.offset, 6);

    let two = Bytes::from([&payload[..], &payload].concat());
    let parts = split(&two, Signal::Traces, payload.len()).expect("each fits alone");
    assert_eq!(parts, [(payload.clone(), 1), (payload, 1)]);
}

/// Scenario: a resource of nearly a part's size beside thousands of tiny spans.
/// Guarantees: repeating it does not multiply the request's memory: it is refused.
#[test]
fn a_resource_made_to_be_repeated_is_refused() {
    let mut envelope = Vec::new();
    primitive::put_field(&mut envelope, 3, &vec![b'u'; 9_980]);
    primitive::put_field(&mut envelope, 2, &[0x12, 0x00].repeat(100_000));
    let mut payload = Vec::new();
    primitive::put_field(&mut payload, 1, &envelope);
    let error = split(&payload.into(), Signal::Traces, 10_000).expect_err("10,000 times the resource");
    assert!(error.problem.contains("repeated"), "{error}");
}

/// Scenario: envelopes without items but with unknown fields, in a request that is split.
/// Guarantees: what they hold is in exactly one part.
#[test]
fn unknown_fields_of_empty_envelopes_survive_a_split() {
    let mut empty = Vec::new();
    primitive::put_field(&mut empty, 1, b"\xa2\x06\x05alone\x12\x07\xa2\x06\x04also");
    let span = b"\x0a\x06\x12\x04\x12\x02\x30\x01";
    let payload = Bytes::from([&span.repeat(10)[..], &empty, &span.repeat(10)].concat());
    let parts = split(&payload, Signal::Traces, 50).expect("all is small");
    let holders: BTreeSet<_> = [&b"alone"[..], b"also"]
        .iter()
        .flat_map(|word| {
            parts.iter().enumerate().filter(move |(_, (part, _))| part.windows(word.len()).any(|at| at == *word))
        })
        .map(|(index, _)| index)
        .collect();
    assert_eq!(holders.len(), 1);
    assert_eq!(parts.iter().map(|(_, items)| items).sum::<u32>(), 20);
}
