//! How much later pods are Ready because of the shim, compared with a native sidecar that does nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::e2e::pods::{APPLICATIONS, Pod, is_ready, metadata, pods_path};
use crate::e2e::suite::Suite;

const PODS: usize = 40;

const PATIENCE: Duration = Duration::from_secs(180);

/// Which sidecar.
#[derive(Debug, Clone, Copy)]
enum Sidecar {
    Shim,
    Idle,
}

/// Two rounds of each, interleaved, each on an empty node.
pub(super) fn run(suite: &Suite) -> Result<()> {
    let mut medians = BTreeMap::new();
    for sidecar in [Sidecar::Idle, Sidecar::Shim, Sidecar::Shim, Sidecar::Idle] {
        let mut times = round(suite, sidecar)?;
        suite.cluster.remove_applications()?;
        times.sort_unstable();
        let seconds = |index: usize| times[index].as_secs_f32();
        let (median, last) = (seconds(times.len() / 2), seconds(times.len() - 1));
        suite.seen(
            &format!("{PODS} pods at once, {sidecar:?}"),
            &format!("Ready after {:.2} s (first), {median:.2} s (median), {last:.2} s (last)", seconds(0)),
        );
        medians.entry(format!("{sidecar:?}")).or_insert_with(Vec::new).push(median);
    }
    let mean = |name: &str| medians[name].iter().sum::<f32>() / 2.0;
    let ratio = mean("Shim") / mean("Idle");
    suite.seen(
        "Ready time with the shim against a sidecar that does nothing",
        &format!("{ratio:.2}x (aim 1.1x); medians {medians:?}"),
    );
    Ok(())
}

/// From each pod's creation to the event that says it is Ready.
fn round(suite: &Suite, sidecar: Sidecar) -> Result<Vec<Duration>> {
    let mut created = BTreeMap::new();
    for number in 0..PODS {
        let name = format!("{sidecar:?}-{number}").to_lowercase();
        let pod = Pod::new(&name, &["idle"]);
        let pod = match sidecar {
            Sidecar::Shim => pod.injected(),
            Sidecar::Idle => pod.with_idle_sidecar(),
        };
        created.insert(name, Instant::now());
        suite.cluster.start(&pod)?;
    }
    let mut times = BTreeMap::new();
    let path = format!("{}?watch=1", pods_path(APPLICATIONS));
    let watched = suite.cluster.watch(&path, PATIENCE, |event| {
        let pod = &event["object"];
        if let (true, Some(since)) = (is_ready(pod), created.get(metadata(pod, "name"))) {
            times.entry(metadata(pod, "name").to_owned()).or_insert_with(|| since.elapsed());
        }
        times.len() == PODS
    });
    ensure!(watched.is_ok(), "{} of {PODS} pods are Ready: {watched:?}", times.len());
    Ok(times.into_values().collect())
}
