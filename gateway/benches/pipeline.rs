//! What the pipeline costs a request, beside a plain copy and a decode by prost, in one process and one run.
//!
//! `cargo bench -p pillion-gateway --bench pipeline`. Prints the CPU time of the best of many rounds, which is what the
//! work costs on a machine that does nothing else; the rounds of all rows take turns. With `--profile NAME`, repeats one row for
//! about ten seconds instead, for a profiler.

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use pillion_gateway::base::{Attribute, Signal};
use pillion_gateway::pipeline::{Job, Plan, Step};
use pillion_gateway::wire;
use prost::Message as _;
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 41;
const ROUND: Duration = Duration::from_millis(4);

type Work<'a> = Box<dyn Fn() + 'a>;

fn main() {
    let profile = std::env::args().skip_while(|arg| arg != "--profile").nth(1);
    println!("{:>5} {:>8} {:<22} {:>10} {:>10} {:>8}", "spans", "bytes", "what", "us/request", "ns/span", "GB/s");
    for spans in [1, 10, 100, 512] {
        let payload = Bytes::from(request(spans).encode_to_vec());
        let plans = plans();
        let rows = rows(&payload, &plans);
        if let Some(name) = &profile {
            if let Some((_, work)) = rows.iter().find(|(row, _)| spans == 512 && row == name) {
                let start = Instant::now();
                while start.elapsed() < Duration::from_secs(10) {
                    work();
                }
            }
            continue;
        }
        for (name, nanoseconds) in measure(&rows) {
            println!(
                "{spans:>5} {:>8} {name:<22} {:>10.2} {:>10.1} {:>8.2}",
                payload.len(),
                nanoseconds / 1e3,
                nanoseconds / f64::from(spans),
                payload.len() as f64 / nanoseconds
            );
        }
    }
}

fn plans() -> [Plan; 2] {
    let attested = ["k8s.namespace.name", "k8s.pod.name", "k8s.pod.uid", "k8s.node.name"]
        .map(|key| Attribute::new(key, "0b7e1f2c-9d55-4a38-8a43-cafe00d15ea5"));
    [Plan::new(&[], &[]), Plan::new(&attested, &[Attribute::new("deployment.environment.name", "prod")])]
}

fn rows<'a>(payload: &'a Bytes, [nothing, everything]: &'a [Plan; 2]) -> [(&'static str, Work<'a>); 5] {
    let job = move |plan: &'a Plan| -> Work<'a> {
        Box::new(move || {
            let step = Job::new(Signal::Traces, payload.clone()).step(plan, usize::MAX);
            assert!(matches!(black_box(step), Ok(Step::Done(_))));
        })
    };
    [
        ("memcpy", Box::new(|| drop(black_box(payload.to_vec())))),
        ("count", Box::new(|| assert!(black_box(wire::count(payload, Signal::Traces)) > 0))),
        ("validate", job(nothing)),
        ("validate and enrich", job(everything)),
        ("prost decode", Box::new(|| drop(black_box(ExportTraceServiceRequest::decode(&payload[..]))))),
    ]
}

/// Nanoseconds of one call of each row, in the best of the rounds.
fn measure<'a>(rows: &[(&'a str, Work<'a>)]) -> Vec<(&'a str, f64)> {
    let repeats: Vec<_> = rows.iter().map(|(_, work)| repeats(work)).collect();
    let mut best = vec![f64::INFINITY; rows.len()];
    for _ in 0..ROUNDS {
        for (index, (_, work)) in rows.iter().enumerate() {
            let start = cpu_time();
            (0..repeats[index]).for_each(|_| work());
            best[index] = best[index].min((cpu_time() - start).as_nanos() as f64 / f64::from(repeats[index]));
        }
    }
    rows.iter().zip(best).map(|((name, _), best)| (*name, best)).collect()
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// How many calls take about one round.
fn repeats(work: &Work<'_>) -> u32 {
    let start = Instant::now();
    let mut calls = 0;
    while start.elapsed() < ROUND {
        work();
        calls += 1;
    }
    calls
}

/// Spans as an HTTP server's instrumentation makes them, about 434 bytes each.
fn request(spans: u32) -> ExportTraceServiceRequest {
    let resource = Resource {
        attributes: vec![
            text("service.name", "checkout"),
            text("service.version", "1.4.2"),
            text("service.instance.id", "627cc493-f310-47de-96bd-71410b7dec09"),
            text("telemetry.sdk.language", "go"),
            text("telemetry.sdk.name", "opentelemetry"),
            text("telemetry.sdk.version", "1.38.0"),
            text("host.name", "checkout-7d9c5b6f4-x2x7k"),
        ],
        ..Default::default()
    };
    let scope = InstrumentationScope {
        name: "go.opentelemetry.io/contrib/instrumentation/net/http".into(),
        version: "0.63.0".into(),
        ..Default::default()
    };
    let scope_spans = ScopeSpans { scope: Some(scope), spans: (0..spans).map(span).collect(), ..Default::default() };
    let envelope = ResourceSpans { resource: Some(resource), scope_spans: vec![scope_spans], ..Default::default() };
    ExportTraceServiceRequest { resource_spans: vec![envelope] }
}

fn span(index: u32) -> Span {
    let id = u64::from(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Span {
        trace_id: [id.to_le_bytes(), id.rotate_left(17).to_le_bytes()].concat(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: id.rotate_left(31).to_be_bytes().to_vec(),
        flags: 0x101,
        name: "GET /api/products/{id}".into(),
        kind: 2,
        start_time_unix_nano: 1_763_700_000_000_000_000 + id % 1_000_000_000,
        end_time_unix_nano: 1_763_700_001_000_000_000 + id % 1_000_000_000,
        attributes: vec![
            text("http.request.method", "GET"),
            text("url.path", "/api/products/OLJCESPC7Z"),
            text("url.scheme", "http"),
            text("server.address", "frontend.shop.svc.cluster.local"),
            number("server.port", 8080),
            number("http.response.status_code", 200),
            text("network.peer.address", "10.244.3.17"),
            text("user_agent.original", "python-requests/2.32.3"),
            text("http.route", "/api/products/{id}"),
        ],
        status: Some(Status::default()),
        ..Default::default()
    }
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}
