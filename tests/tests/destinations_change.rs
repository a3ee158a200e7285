//! A configuration that sends a pod's data elsewhere than before.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use pillion_loadtest::sink::{Fault, Keep, Sink};
use pillion_tests::gateway::{Gateway, below};
use pillion_tests::one_pod::{OnePod, Setup, everything_arrives};
use pillion_tests::pod::{Pod, Spec};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");
const PATIENCE: Duration = Duration::from_secs(300);

/// Scenario: a pod's only destination takes nothing; the gateway is started again with another destination instead, which begins at
/// the tail; another pod of the same tenant sends; the gateway is started once more.
/// Guarantees: all that was acknowledged before is counted as lost by its reason, exactly, and told in the log; the new destination
/// gets all that came after it was added, and nothing of what came before, over the restart too.
#[test]
fn a_removed_destinations_backlog_is_counted_and_a_new_one_begins_at_the_tail() {
    let setup = Setup { fault: Fault::Unavailable, ..Setup::new(NODE, POD) };
    let OnePod { mut gateway, sink, pod, dir } = OnePod::start(&setup);
    pod.wait_for_progress(1);
    let before = pod.stop();
    assert!(!before.acked.is_empty() && sink.distinct() == 0);
    assert!(gateway.stop().success());

    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let late = Sink::start(any, Keep::TraceIds("k8s.pod.name".into())).expect("a free port");
    let path = below(&dir, "pillion.yaml");
    let config = fs::read_to_string(&path).expect("it was started with it");
    let added = format!(
        "destinations:\n  late: {{allow: [\"*\"], protocol: grpc, endpoint: \"http://{}\", start: tail}}\n",
        late.address()
    );
    let config = config.replace("destinations: [backend]", "destinations: [late]").replace("destinations:\n", &added);
    fs::write(&path, config).expect("writable");
    let mut gateway = Gateway::start_again(NODE, dir.path());
    let acked = before.acked.len() as f64;
    gateway.wait_for("what is given up", |gateway| {
        gateway.metric_of("pillion_lost_items_total", &["reason=\"destination_removed\""]) == Some(acked)
    });
    // It may have said so before it served.
    assert!(gateway.log().contains("the tenant's data does not go to this destination any more"), "{}", gateway.log());
    let differences = gateway.metric_of("pillion_balance_difference_items", &[]);
    assert_eq!(differences, Some(0.0), "the books close\n{}", gateway.explain());

    let pod = Pod::start(&Spec {
        program: POD,
        node: NODE,
        socket_dir: &below(&dir, "cart"),
        mode: "donate",
        service: "cart",
        number: 2,
        clients: 4,
        descriptors_max: None,
    });
    pod.wait_for_progress(1);
    let after = pod.stop();
    everything_arrives(&late, &after, &gateway);
    assert!(gateway.stop().success());
    let gateway = Gateway::start_again(NODE, dir.path());
    let delivered = |ids: usize| ids == after.acked.len();
    assert!(
        late.wait_until(PATIENCE, |ids, _| delivered(ids.len())),
        "{} arrived\n{}",
        late.distinct(),
        gateway.explain()
    );
    let ids = late.ids();
    assert!(before.acked.iter().all(|id| !ids.contains_key(id)), "what came before was sent");
}
