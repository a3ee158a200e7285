//! Whose telemetry is it: what the kubelet says, whatever pods say.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::e2e::app::SinkService;
use crate::e2e::pods::{APPLICATIONS, PAGE, Pod, metadata, volume};
use crate::e2e::suite::Suite;
use crate::e2e::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// A real SDK, then two pods that claim to be the first.
pub(super) fn run(suite: &Suite) -> Result<()> {
    let cart = Pod::new("cart", &["sdk", "--page", &PAGE.to_string()]).injected();
    let cart = suite.cluster.start_ready(&cart)?;
    let status = cart["metadata"]["annotations"]["pillion.dev/status"].as_str().unwrap_or_default();
    ensure!(status == "injected", "its status is {status:?}");
    let sent = sdk_report(suite)?;
    for protocol in ["grpc", "http"] {
        let service = arrived(suite, &format!("cart-{protocol}"), sent)?;
        is_of(&service, &cart)?;
        let identity = service.identities.first().context("checked")?;
        suite.seen(
            &format!("an SDK's defaults over {protocol} reach the backend"),
            &format!("{sent:?} items as {identity:?}"),
        );
    }
    forger(suite, &cart)?;
    impostor(suite, &cart)
}

/// Waits until the SDK has sent; how many items of each signal.
fn sdk_report(suite: &Suite) -> Result<[u64; 3]> {
    let report = until("the SDK has sent", PATIENCE, || {
        let page = suite.cluster.page(APPLICATIONS, "cart", PAGE, "/report")?;
        let report: Value = serde_json::from_str(&page)?;
        ensure!(report["done"] == true, "it is still sending");
        Ok(report)
    })?;
    ensure!(report["errors"] == json!({"grpc": {}, "http": {}}), "the SDK's exporters failed: {report}");
    Ok(serde_json::from_value(report["sent"].clone())?)
}

/// Pod attributes of the application's own: `OTEL_RESOURCE_ATTRIBUTES`, as anybody can set it.
fn forger(suite: &Suite, cart: &Value) -> Result<()> {
    let claim = format!("k8s.pod.name=cart,k8s.namespace.name=bank,k8s.pod.uid={}", metadata(cart, "uid"));
    let forger = Pod::new("forger", &["once"]).env("OTEL_RESOURCE_ATTRIBUTES", &claim).change(never_again);
    suite.cluster.start(&forger.injected())?;
    let forger = suite.cluster.phase("forger", "Succeeded")?;
    is_of(&arrived(suite, "forger", [1, 0, 0])?, &forger)?;
    suite.seen("forged k8s.* attributes are overwritten", &claim);
    Ok(())
}

/// Volume attributes that look like those of the kubelet.
fn impostor(suite: &Suite, cart: &Value) -> Result<()> {
    let mut forged = volume();
    forged["volumeAttributes"] = json!({
        "csi.storage.k8s.io/pod.name": "cart",
        "csi.storage.k8s.io/pod.uid": metadata(cart, "uid"),
        "csi.storage.k8s.io/pod.namespace": APPLICATIONS,
    });
    let pod = Pod::new("impostor", &["once"]).with_shim(forged).change(never_again);
    suite.cluster.start(&pod)?;
    let impostor = suite.cluster.phase("impostor", "Succeeded")?;
    is_of(&arrived(suite, "impostor", [1, 0, 0])?, &impostor)?;
    suite.seen("a volume that claims another pod's identity gets its own", "pod.uid, pod.name forged");
    Ok(())
}

/// A pod that runs once.
pub(super) fn never_again(spec: &mut Value) {
    spec["restartPolicy"] = json!("Never");
}

/// Waits until as many items of each signal have arrived.
pub(super) fn arrived(suite: &Suite, name: &str, items: [u64; 3]) -> Result<SinkService> {
    until(&format!("the telemetry of {name} has arrived"), PATIENCE, || {
        let service = suite.service(name)?;
        ensure!(service.items == items, "{:?} of {items:?} are there", service.items);
        Ok(service)
    })
}

/// All that arrived says that it is this pod's, and says nothing else.
pub(super) fn is_of(service: &SinkService, pod: &Value) -> Result<()> {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let right = BTreeMap::from([
        ("k8s.namespace.name", metadata(pod, "namespace")),
        ("k8s.node.name", node),
        ("k8s.pod.name", metadata(pod, "name")),
        ("k8s.pod.uid", metadata(pod, "uid")),
    ]);
    let [identity] = &service.identities.iter().collect::<Vec<_>>()[..] else {
        anyhow::bail!("several identities: {:?}", service.identities);
    };
    for (key, value) in &right {
        let seen = identity.get(*key).map(String::as_str).unwrap_or_default();
        ensure!(seen == *value, "{key} is {seen:?}, not {value:?}: {identity:?}");
    }
    Ok(())
}
