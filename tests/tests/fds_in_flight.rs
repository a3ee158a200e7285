//! Somebody with the user id of other pods' shims leaves passed descriptors unread (docs/threats.md row 18).

use pillion_tests::gateway::Gateway;
use pillion_tests::one_pod::{OnePod, Setup, everything_arrives};

const NODE: &str = env!("CARGO_BIN_EXE_pillion-node");
const POD: &str = env!("CARGO_BIN_EXE_pillion-pod");

/// Above this many in flight the kernel refuses the shim's descriptors: its own RLIMIT_NOFILE (unix(7), ETOOMANYREFS).
const SHIM_DESCRIPTORS: u32 = 64;

fn listeners(gateway: &Gateway) -> usize {
    gateway.json("/tenants?format=json")["tenants"][0]["listeners"].as_array().map_or(0, Vec::len)
}

/// Scenario: a process of the same user has more descriptors in flight than a pod's shim may see, when that shim starts
/// and wants to donate its listeners; some time later they are gone.
/// Guarantees: the pod is served all the while, by relaying at first; the shim donates when it can. Nothing is refused,
/// unanswered or lost.
#[test]
fn the_shims_of_the_same_user_relay_until_they_can_donate() {
    let attack = pillion_tests::attack::leave_descriptors_in_flight();
    let setup = Setup { mode: "auto", clients: 2, descriptors_max: Some(SHIM_DESCRIPTORS), ..Setup::new(NODE, POD) };
    let OnePod { gateway, sink, pod, dir: _dir } = OnePod::start(&setup);

    pod.wait_for_progress(2);
    assert_eq!(listeners(&gateway), 0, "the kernel must refuse to pass them\n{}", pod.errors());
    pod.wait_for_error("too many descriptors in flight");
    drop(attack);
    while listeners(&gateway) < 2 {
        pod.wait_for_progress(1);
    }
    pod.wait_for_progress(1);
    let report = pod.stop();

    assert_eq!((report.connect_failed, report.unanswered), (0, 0), "{:?}\n{}", report.examples, gateway.explain());
    everything_arrives(&sink, &report, &gateway);
}
