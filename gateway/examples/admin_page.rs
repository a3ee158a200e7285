//! The admin page with made-up figures, for whoever works on it: `cargo run --example admin_page [empty|trouble] [ADDRESS]`.
//!
//! The server, the views and the sink are the real ones; tenants, destinations and telemetry are invented. It ends with
//! Ctrl-C.

use std::error::Error;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pillion_gateway::admin::{Process, Readiness, Server, Sources, TenantSource};
use pillion_gateway::base::stats::DeliveryStats;
use pillion_gateway::base::{DestinationName, Sequence, Signal, TenantId, TenantName};
use pillion_gateway::export::{DestinationSnapshot, TenantDelivery};
use pillion_gateway::lifecycle::SiteSnapshot;
use pillion_gateway::sink::{Delivery, Sink};
use pillion_gateway::{queue, tenant};
use pillion_proto::otlp::Message;
use pillion_proto::otlp::collector_logs::ExportLogsServiceRequest;
use pillion_proto::otlp::collector_metrics::ExportMetricsServiceRequest;
use pillion_proto::otlp::collector_trace::ExportTraceServiceRequest;
use pillion_proto::otlp::common::{AnyValue, KeyValue, any_value::Value};
use pillion_proto::otlp::logs::{LogRecord, ResourceLogs, ScopeLogs};
use pillion_proto::otlp::metrics::{
    Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, metric, number_data_point,
};
use pillion_proto::otlp::resource::Resource;
use pillion_proto::otlp::trace::{ResourceSpans, ScopeSpans, Span, Status};

const TENANTS: [&str; 4] = ["shop/cart-5d8f7", "shop/checkout-77b4c", "shop/frontend-0", "payments/ledger-6f9d4"];

/// One tenant of the invented node.
struct Actor {
    name: TenantName,
    accepted: [AtomicU64; 3],
    refused: AtomicU64,
    delivered: Arc<DeliveryStats>,
}

struct World {
    actors: Vec<Actor>,
    trouble: bool,
    tick: AtomicU64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let scene = arguments.next().unwrap_or_else(|| "busy".to_owned());
    let address = arguments.next().unwrap_or_else(|| "127.0.0.1:4380".to_owned());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let dir = tempfile::tempdir()?;
        let sink = Sink::open(dir.path())?;
        let empty = scene == "empty";
        let names = if empty { &TENANTS[..1] } else { &TENANTS[..] };
        let actors = names.iter().map(|name| Actor {
            name: TenantName::parse(name).expect("a good name"),
            accepted: Default::default(),
            refused: AtomicU64::new(0),
            delivered: Arc::default(),
        });
        let world = Arc::new(World { actors: actors.collect(), trouble: scene == "trouble", tick: AtomicU64::new(0) });
        let server = Server::start(TcpListener::bind(&address)?, sources(&world, &sink))?;
        println!("http://{}/", server.address());
        let mut ticks = tokio::time::interval(Duration::from_millis(250));
        loop {
            ticks.tick().await;
            if !empty {
                world.advance(&sink)?;
            }
        }
    })
}

impl World {
    fn advance(&self, sink: &Sink) -> std::io::Result<()> {
        let tick = self.tick.fetch_add(1, Ordering::Relaxed) + 1;
        let mut deliveries = Vec::new();
        for (number, actor) in (0u32..).zip(&self.actors) {
            let wave = (tick * (7 - u64::from(number)) % 120).abs_diff(60);
            let items = [20 + wave + 4 * u64::from(number), 12, 6 + tick % 5];
            for signal in Signal::ALL {
                let count = items[signal.index()];
                actor.accepted[signal.index()].fetch_add(count, Ordering::Relaxed);
                if !self.trouble {
                    actor.delivered.delivered[signal.index()].add(count);
                }
            }
            if number == 1 && tick.is_multiple_of(3) {
                actor.refused.fetch_add(1, Ordering::Relaxed);
            }
            for signal in Signal::ALL {
                deliveries.push(Delivery {
                    tenant: TenantId(number),
                    name: actor.name.clone(),
                    sequence: None,
                    acknowledged: Sequence::ZERO,
                    signal,
                    items: 2,
                    payload: payload(signal, number, tick).into(),
                });
            }
        }
        sink.store(&deliveries)
    }

    fn tenants(&self) -> Vec<TenantSource> {
        let backend = DestinationName("backend".into());
        let source = |(number, actor): (usize, &Actor)| TenantSource {
            name: actor.name.clone(),
            figures: tenant::Snapshot {
                name: actor.name.to_string(),
                pod_uid: None,
                service_account: None,
                state: if number == 1 { "throttled" } else { "serving" },
                worker: number % 2,
                connections: 3,
                memory_used: 480_000 + 90_000 * number as u64,
                memory_guarantee: 512 * 1024,
                memory_ceiling: 64 << 20,
                accepted: actor.accepted.each_ref().map(|count| count.load(Ordering::Relaxed)),
                refused: [0; 3],
                refused_requests: [0, 0, 0, actor.refused.load(Ordering::Relaxed), 0, 0, 0],
                requests: 100,
                accepted_bytes: 100_000,
                overwritten: 0,
                slices: 0,
                last_refusal: (number == 1).then(|| "over requests_per_second: try again in 212 ms".to_owned()),
            },
            routes: [vec![backend.clone()], vec![backend.clone()], vec![backend.clone()]],
            site: Some(SiteSnapshot {
                shim_connected: true,
                mode: if number == 2 { "relay" } else { "donate" }.to_owned(),
                listeners: ["127.0.0.1:4317", "127.0.0.1:4318"].map(str::to_owned).to_vec(),
                ..SiteSnapshot::default()
            }),
        };
        self.actors.iter().enumerate().map(source).collect()
    }

    fn destinations(&self) -> Vec<DestinationSnapshot> {
        let tick = self.tick.load(Ordering::Relaxed);
        let tenants = self.actors.iter().map(|actor| TenantDelivery {
            name: actor.name.clone(),
            queued_items: actor.accepted.iter().map(|count| count.load(Ordering::Relaxed)).sum::<u64>()
                - pillion_gateway::base::stats::total(&actor.delivered.delivered),
            oldest_unix_ms: None,
            stats: actor.delivered.clone(),
        });
        let error = "UNAUTHENTICATED: the token expired at 05:12; everything stays queued, one probe every 30 s";
        vec![DestinationSnapshot {
            name: DestinationName("backend".into()),
            state: if self.trouble { "broken" } else { "ok" },
            last_error: self.trouble.then(|| error.to_owned()),
            in_flight: 2,
            requests: 4 * tick,
            failures: if self.trouble { 17 } else { 0 },
            tenants: tenants.collect(),
        }]
    }
}

fn sources(world: &Arc<World>, sink: &Arc<Sink>) -> Sources {
    let (tenants, destinations, ready, log) = (world.clone(), world.clone(), world.clone(), world.clone());
    Sources {
        process: Process {
            started: SystemTime::now(),
            restarts: u32::from(world.trouble),
            last_reason: world.trouble.then(|| "killed by SIGKILL".to_owned()),
        },
        readiness: Box::new(move || {
            let reasons = if ready.trouble { vec!["A data worker does not answer.".to_owned()] } else { Vec::new() };
            Box::pin(std::future::ready(Readiness::unless(reasons)))
        }),
        tenants: Box::new(move || tenants.tenants()),
        destinations: Box::new(move || destinations.destinations()),
        queue: Box::new(move || queue::Snapshot {
            segments: 2,
            disk_bytes: (64 << 20) + log.tick.load(Ordering::Relaxed) * 4096,
            ..queue::Snapshot::default()
        }),
        custody: Box::new(|| None),
        lifecycle: Box::new(|| None),
        recovered: Box::new(Default::default),
        held_bytes: Box::new(Default::default),
        tools: Box::new(|| None),
        sink: Box::new({
            let sink = sink.clone();
            move || Some(sink.clone())
        }),
    }
}

fn pair(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn payload(signal: Signal, number: u32, tick: u64) -> Vec<u8> {
    let service = ["cart", "checkout", "frontend", "ledger"][number as usize % 4];
    let resource = Some(Resource { attributes: vec![pair("service.name", service)], ..Resource::default() });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let now = u64::try_from(now).unwrap_or_default();
    match signal {
        Signal::Traces => {
            let scope = ScopeSpans {
                spans: vec![span(now, number, tick), span(now + 7, number, tick + 3)],
                ..Default::default()
            };
            let spans = ResourceSpans { resource, scope_spans: vec![scope], ..Default::default() };
            ExportTraceServiceRequest { resource_spans: vec![spans] }.encode_to_vec()
        }
        Signal::Metrics => {
            let scope = ScopeMetrics { metrics: vec![metric(now, tick), metric(now, tick + 1)], ..Default::default() };
            let metrics = ResourceMetrics { resource, scope_metrics: vec![scope], ..Default::default() };
            ExportMetricsServiceRequest { resource_metrics: vec![metrics] }.encode_to_vec()
        }
        Signal::Logs => {
            let scope = ScopeLogs { log_records: vec![log(now, tick), log(now + 9, tick + 1)], ..Default::default() };
            let logs = ResourceLogs { resource, scope_logs: vec![scope], ..Default::default() };
            ExportLogsServiceRequest { resource_logs: vec![logs] }.encode_to_vec()
        }
    }
}

fn span(now: u64, number: u32, tick: u64) -> Span {
    const NAMES: [&str; 5] =
        ["GET /api/cart/{id}", "POST /api/orders", "SELECT orders", "redis HGETALL", "publish order.created"];
    let choice = choice(tick + u64::from(number), NAMES.len());
    let failed = tick.is_multiple_of(13);
    let took = 180_000 + (tick * 7_919 + u64::from(number) * 104_729) % 48_000_000;
    Span {
        trace_id: id(tick).to_vec(),
        span_id: id(tick ^ u64::from(number) << 32)[..8].to_vec(),
        name: NAMES[choice].to_owned(),
        kind: [2, 3, 3, 3, 4][choice],
        start_time_unix_nano: now - took,
        end_time_unix_nano: now,
        attributes: vec![
            pair("http.request.method", "GET"),
            pair("url.path", "/api/cart/8841"),
            pair("user_agent.original", "<b>curl</b>/8.5 <script>alert(1)</script>"),
        ],
        status: failed.then(|| Status { message: "deadline exceeded".to_owned(), code: 2 }),
        ..Span::default()
    }
}

fn choice(number: u64, of: usize) -> usize {
    usize::try_from(number).unwrap_or_default() % of
}

/// Looks random.
fn id(number: u64) -> [u8; 16] {
    u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes()
}

fn metric(now: u64, tick: u64) -> Metric {
    let (name, unit) = [("http.server.active_requests", "{request}"), ("process.memory.usage", "By")][choice(tick, 2)];
    let point = NumberDataPoint {
        time_unix_nano: now,
        value: Some(number_data_point::Value::AsInt(i64::try_from(tick * 37 % 900).unwrap_or_default())),
        attributes: vec![pair("http.route", "/api/cart/{id}")],
        ..NumberDataPoint::default()
    };
    let data = metric::Data::Sum(Sum { data_points: vec![point], ..Sum::default() });
    Metric { name: name.to_owned(), unit: unit.to_owned(), data: Some(data), ..Metric::default() }
}

fn log(now: u64, tick: u64) -> LogRecord {
    const LINES: [(&str, &str); 4] = [
        ("INFO", "order 8841 placed: 3 items, 84.20 EUR"),
        ("WARN", "payment provider answered after 1,204 ms; retrying"),
        ("INFO", "cache warmed in 38 ms"),
        ("ERROR", "inventory lookup failed: connection reset by peer <img src=x onerror=alert(1)>"),
    ];
    let (severity, line) = LINES[choice(tick, LINES.len())];
    LogRecord {
        time_unix_nano: now,
        severity_text: severity.to_owned(),
        body: Some(AnyValue { value: Some(Value::StringValue(line.to_owned())) }),
        trace_id: id(tick).to_vec(),
        attributes: vec![pair("thread.name", "worker-3"), pair("code.function.name", "place_order")],
        ..LogRecord::default()
    }
}
