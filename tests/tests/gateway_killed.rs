//! The gateway dies, again and again, under load.

use std::collections::HashSet;
use std::time::Duration;

use pillion_loadtest::sink::{Keep, Sink};
use pillion_tests::gateway::{Gateway, below, directory};
use pillion_tests::pod::{Pod, Report, Spec};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");

const KILLS: u64 = 50;

/// What a crash may repeat on average: records since the last checkpoint of the cursors (at most 1,000), 5 spans each.
const REPEATED_PER_KILL_MAX: u64 = 1_000 * 5;

const PATIENCE: Duration = Duration::from_secs(300);

fn config(backend: std::net::SocketAddr) -> String {
    format!(
        "node:
  data_dir: DIR/data
  admin: ADMIN
defaults:
  destinations: [backend]
  limits: {{bytes_per_second: 1GiB, requests_per_second: 1000000}}
destinations:
  backend: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{backend}\"}}
tenants:
  shop/durable: {{socket_dir: DIR/durable, policy: {{ack: durable}}}}
  shop/buffered: {{socket_dir: DIR/buffered, policy: {{ack: buffered}}}}
"
    )
}

fn pod<'a>(dir: &'a std::path::Path, service: &'a str, number: u16) -> Pod {
    Pod::start(&Spec {
        program: POD,
        node: NODE,
        socket_dir: dir,
        mode: "donate",
        service,
        number,
        clients: 8,
        descriptors_max: None,
    })
}

/// Scenario: kill -9 of the gateway fifty times under load of sixteen clients in two pods, each of which opens a new
/// connection for each request; one pod's tenant acknowledges after fdatasync, the other's after the write.
/// Guarantees: connect() never fails, because the listeners belong to the shims; everything that was acknowledged
/// arrives under its own pod's name; what arrives twice stays within what a checkpoint allows.
#[test]
fn fifty_deaths_lose_nothing_and_refuse_no_connection() {
    let dir = directory();
    let sink = Sink::start("127.0.0.1:0".parse().unwrap(), Keep::TraceIds("k8s.pod.name".into())).unwrap();
    let gateway = Gateway::start(NODE, dir.path(), &config(sink.address()));
    let (durable_dir, buffered_dir) = (below(&dir, "durable"), below(&dir, "buffered"));
    let durable = pod(&durable_dir, "durable", 1);
    let buffered = pod(&buffered_dir, "buffered", 2);

    for _ in 0..KILLS {
        durable.wait_for_progress(1);
        buffered.wait_for_progress(1);
        gateway.kill_worker();
    }
    durable.wait_for_progress(1);
    buffered.wait_for_progress(1);
    let reports = [("durable", durable.stop()), ("buffered", buffered.stop())];

    for (name, report) in &reports {
        assert_eq!(report.connect_failed, 0, "{name}: {:?}\n{}", report.examples, gateway.explain());
        assert!(report.acked.len() > 5 * 50, "{name}: the load must have been real: {report:?}");
        println!("{name}: {} spans acknowledged, {} requests unanswered", report.acked.len(), report.unanswered);
    }
    let acked: HashSet<u64> = reports.iter().flat_map(|(_, report)| report.acked.iter().copied()).collect();
    let arrived = sink.wait_until(PATIENCE, |ids, _| acked.iter().all(|id| ids.contains_key(id)));
    let ids = sink.ids();
    let missing = acked.iter().filter(|id| !ids.contains_key(id)).count();
    assert!(arrived, "{missing} of {} acknowledged spans are missing\n{}", acked.len(), gateway.explain());

    for (name, report) in &reports {
        let wrong = report.acked.iter().filter(|id| ids[id].owner != *name || ids[id].disputed).count();
        assert_eq!(wrong, 0, "{wrong} spans of {name} arrived under another name");
    }
    let repeated: u64 = ids.values().map(|seen| u64::from(seen.times - 1)).sum();
    println!("{repeated} of {} spans arrived more than once", ids.len());
    assert!(repeated <= KILLS * REPEATED_PER_KILL_MAX, "{repeated} spans were repeated");
    assert_eq!(refused(&reports), 0, "nothing asked for a refusal: {reports:?}");
}

fn refused(reports: &[(&str, Report)]) -> u64 {
    reports.iter().flat_map(|(_, report)| report.refused.values()).sum()
}
