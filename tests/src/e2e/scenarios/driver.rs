//! The driver is away, or is asked for what it must not give.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::identity::{arrived, never_again};
use crate::e2e::pods::{APPLICATIONS, Pod, SYSTEM, volume};
use crate::e2e::suite::Suite;
use crate::e2e::wait::until;

const DRIVER: &str = "/apis/apps/v1/namespaces/pillion-system/daemonsets/pillion-csi";

/// The kubelet's backoff for a mount may have grown to half a minute by then.
const PATIENCE: Duration = Duration::from_secs(150);

/// Takes the driver off the node, creates a pod, puts the driver back; then a pod with a writable volume.
pub(super) fn run(suite: &Suite) -> Result<()> {
    let away = json!({"spec": {"template": {"spec": {"nodeSelector": {"pillion.dev/e2e": "nowhere"}}}}});
    let back = json!({"spec": {"template": {"spec": {"nodeSelector": {"pillion.dev/e2e": null}}}}});
    suite.cluster.patch(DRIVER, &away)?;
    let waited = waits_for_the_driver(suite);
    // Whatever was seen, the driver comes back: other scenarios need it.
    suite.cluster.patch(DRIVER, &back)?;
    let event = waited?;
    suite.seen("a pod without the driver waits and says why", &event);
    let started = Instant::now();
    until("the pod has started and ended", PATIENCE, || suite.cluster.phase("early", "Succeeded"))?;
    arrived(suite, "early", [1, 0, 0])?;
    suite.seen(
        "it starts when the driver is there",
        &format!("done {:.1} s after the driver was called back", started.elapsed().as_secs_f32()),
    );
    writable(suite)
}

fn waits_for_the_driver(suite: &Suite) -> Result<String> {
    let is_driver = |pod: &serde_json::Value| pod["metadata"]["labels"]["app.kubernetes.io/component"] == "csi";
    suite.cluster.gone(SYSTEM, is_driver)?;
    suite.cluster.start(&Pod::new("early", &["once"]).change(never_again).injected())?;
    event_of(suite, "early", "csi.pillion.dev")
}

/// Waits for an event of the pod that holds these words.
fn event_of(suite: &Suite, pod: &str, words: &str) -> Result<String> {
    until(&format!("an event of {pod} says {words:?}"), PATIENCE, || {
        let events = suite.cluster.events(APPLICATIONS, pod)?;
        let found = events.iter().find(|event| event.starts_with("FailedMount") && event.contains(words));
        found.cloned().with_context(|| format!("its events are {events:?}"))
    })
}

fn writable(suite: &Suite) -> Result<()> {
    let mut writable = volume();
    writable["readOnly"] = json!(false);
    suite.cluster.start(&Pod::new("writable", &["idle"]).with_shim(writable))?;
    let event = event_of(suite, "writable", "readOnly")?;
    let pod = suite.cluster.pod("writable")?;
    ensure!(pod["status"]["phase"] == "Pending", "it runs all the same");
    suite.seen("a volume without readOnly is refused", &event);
    Ok(())
}
