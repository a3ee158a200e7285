//! Pillion's own processes, the kubelet and the node restart under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::e2e::pods::{APPLICATIONS, Pod, SYSTEM, items, metadata, pods_path};
use crate::e2e::suite::Suite;
use crate::e2e::wait::until;

const PATIENCE: Duration = Duration::from_secs(120);

/// Deaths of the worker, one after the other.
const DEATHS: usize = 10;

/// The longest that telemetry may pause for a death of the worker.
const DEATH_PAUSE_MS: u64 = 1_000;

/// The same for a rollout.
const ROLLOUT_PAUSE_MS: u64 = 2_000;

pub(super) fn worker_killed(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-worker")?;
    let mut pauses = Vec::new();
    for _ in 0..DEATHS {
        let since = load.now_ms()?;
        let worker = suite.worker()?;
        suite.node()?.kill(worker)?;
        until("another worker runs", PATIENCE, || {
            let now = suite.worker()?;
            ensure!(now != worker, "it is the one that was killed");
            Ok(())
        })?;
        load.flows()?;
        pauses.push(load.longest_pause_ms(since)?);
    }
    load.settle()?;
    pause_is_short(suite, &format!("{DEATHS} deaths of the worker in a row"), &pauses, DEATH_PAUSE_MS)
}

pub(super) fn gateway_rollout(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-rollout")?;
    let since = load.now_ms()?;
    let took = roll_out(suite, &["daemonset/pillion-gateway"])?;
    load.flows()?;
    let pauses = [load.longest_pause_ms(since)?];
    load.settle()?;
    suite.seen("the gateway is replaced", &format!("in {took:.1} s"));
    pause_is_short(suite, "a rollout of the gateway", &pauses, ROLLOUT_PAUSE_MS)
}

pub(super) fn both_rollout(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-both")?;
    let since = load.now_ms()?;
    let took = roll_out(suite, &["daemonset/pillion-gateway", "daemonset/pillion-csi"])?;
    load.flows()?;
    let pause = load.longest_pause_ms(since)?;
    load.settle()?;
    suite.seen("gateway and driver are replaced at once", &format!("in {took:.1} s, longest pause {pause} ms"));
    newcomer(suite, "after-both")
}

pub(super) fn csi_restart(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-csi")?;
    let since = load.now_ms()?;
    let driver = suite.csi()?;
    suite.node()?.kill(driver)?;
    until("the driver runs again", PATIENCE, || {
        ensure!(suite.csi()? != driver, "it is the one that was killed");
        Ok(())
    })?;
    newcomer(suite, "after-kill")?;
    let took = roll_out(suite, &["daemonset/pillion-csi"])?;
    newcomer(suite, "after-rollout")?;
    load.flows()?;
    let pause = load.longest_pause_ms(since)?;
    load.settle()?;
    suite.seen("the driver is killed, then replaced", &format!("the latter in {took:.1} s; longest pause {pause} ms"));
    Ok(())
}

pub(super) fn kubelet_restart(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-kubelet")?;
    let since = load.now_ms()?;
    for round in 1..=3 {
        suite.restart_kubelet()?;
        newcomer(suite, &format!("after-kubelet-{round}"))?;
    }
    load.flows()?;
    let pause = load.longest_pause_ms(since)?;
    load.settle()?;
    suite.seen("the kubelet restarts three times", &format!("longest pause {pause} ms"));
    Ok(())
}

pub(super) fn reboot(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-reboot")?;
    let before = load.brief()?;
    let restarts = restarts_of(suite, "load-reboot")?;
    let started = Instant::now();
    suite.reboot()?;
    until("the application has been started again", PATIENCE, || {
        let now = restarts_of(suite, "load-reboot")?;
        ensure!(now > restarts, "it has not yet: {now} restarts");
        Ok(())
    })?;
    suite.cluster.ready("load-reboot")?;
    load.flows()?;
    let took = started.elapsed().as_secs_f32();
    let pause = load.brief()?.now_ms.saturating_sub(before.now_ms);
    let report = load.settle()?;
    ensure!(
        report.acknowledged.len() >= before.answered,
        "the journal lost ids: {} of {}",
        report.acknowledged.len(),
        before.answered
    );
    suite
        .seen("the node restarts", &format!("telemetry flows again {took:.1} s ({pause} ms by the pod's clock) later"));
    newcomer(suite, "after-reboot")
}

/// A new pod attaches, as a proof that the driver is registered.
fn newcomer(suite: &Suite, name: &str) -> Result<()> {
    let started = Instant::now();
    suite.cluster.start_ready(&Pod::new(name, &["idle"]).injected())?;
    suite.seen("a new pod attaches", &format!("{name} Ready after {:.1} s", started.elapsed().as_secs_f32()));
    Ok(())
}

/// `kubectl rollout restart`, until done and the old pods are gone; seconds.
fn roll_out(suite: &Suite, daemon_sets: &[&str]) -> Result<f32> {
    let started = Instant::now();
    let list = suite.cluster.get(&pods_path(SYSTEM))?;
    let before: Vec<String> = items(&list).map(|pod| metadata(pod, "name").to_owned()).collect();
    let mut words = vec!["-n", SYSTEM, "rollout", "restart"];
    words.extend(daemon_sets);
    suite.cluster.kubectl(&words, "")?;
    for daemon_set in daemon_sets {
        suite.cluster.kubectl(&["-n", SYSTEM, "rollout", "status", daemon_set, "--timeout=120s"], "")?;
    }
    let parts: Vec<&str> = daemon_sets.iter().filter_map(|name| name.rsplit('-').next()).collect();
    suite.cluster.gone(SYSTEM, |pod| {
        let component = pod["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap_or_default();
        parts.contains(&component) && before.iter().any(|name| name == metadata(pod, "name"))
    })?;
    Ok(started.elapsed().as_secs_f32())
}

fn restarts_of(suite: &Suite, pod: &str) -> Result<u64> {
    let list = suite.cluster.get(&format!("{}/{pod}", pods_path(APPLICATIONS)))?;
    list["status"]["containerStatuses"][0]["restartCount"].as_u64().context("no container has run")
}

fn pause_is_short(suite: &Suite, what: &str, pauses: &[u64], at_most: u64) -> Result<()> {
    suite.seen(&format!("{what}: telemetry pauses for at most {at_most} ms"), &format!("{pauses:?} ms"));
    ensure!(pauses.iter().all(|pause| *pause <= at_most), "{what}: a pause above {at_most} ms: {pauses:?}");
    Ok(())
}
