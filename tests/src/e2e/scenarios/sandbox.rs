//! Parts of the application's pod die under load.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::e2e::app::LoadReport;
use crate::e2e::pods::{APPLICATIONS, PAGE, container_id, metadata, pods_path};
use crate::e2e::suite::Suite;
use crate::e2e::wait::until;

const PATIENCE: Duration = Duration::from_secs(120);

pub(super) fn shim_killed(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-shim")?;
    let since = load.now_ms()?;
    let pod = suite.cluster.pod("load-shim")?;
    let shim = container_id(&pod, "pillion-shim")?;
    let process = suite.node()?.processes(&shim)?;
    suite.node()?.kill(process.first().context("the shim has no process")?.pid)?;
    let started = Instant::now();
    until("another shim runs", PATIENCE, || {
        let pod = suite.cluster.pod("load-shim")?;
        let state = &pod["status"]["initContainerStatuses"][0]["state"];
        ensure!(container_id(&pod, "pillion-shim")? != shim && state["running"].is_object(), "its state is {state}");
        Ok(())
    })?;
    let took = started.elapsed().as_secs_f32();
    load.flows()?;
    let pause = load.longest_pause_ms(since)?;
    let report = load.settle()?;
    ensure!(report.unanswered == 0, "{} requests were not answered", report.unanswered);
    suite.seen(
        "the shim is killed",
        &format!("longest pause {pause} ms, no request unanswered; another one after {took:.1} s"),
    );
    Ok(())
}

pub(super) fn recreated(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-sandbox")?;
    let before = load.brief()?.answered;
    let pod = suite.cluster.pod("load-sandbox")?;
    let uid = metadata(&pod, "uid").to_owned();
    let containers = [container_id(&pod, "pillion-shim")?, container_id(&pod, "app")?];
    let mut known = Vec::new();
    for container in &containers {
        known.extend(suite.node()?.processes(container)?.into_iter().map(|process| process.pid));
    }
    let all = suite.node()?.processes(&uid)?;
    let pause = all.iter().find(|process| !known.contains(&process.pid)).context("the pod has no sandbox process")?;
    suite.node()?.kill(pause.pid)?;
    let started = Instant::now();
    until("the containers run in another sandbox", PATIENCE, || {
        let now = suite.cluster.pod("load-sandbox")?;
        ensure!(container_id(&now, "app")? != containers[1] && restarted(&now), "it has not been made yet");
        Ok(())
    })?;
    suite.cluster.ready("load-sandbox")?;
    load.flows()?;
    let took = started.elapsed().as_secs_f32();
    let report = load.settle()?;
    ensure!(report.acknowledged.len() > before, "nothing was acknowledged in the other sandbox");
    suite.seen("the sandbox is made again", &format!("telemetry flows {took:.1} s later, under the same uid"));
    Ok(())
}

fn restarted(pod: &Value) -> bool {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().is_some_and(|count| count > 0)
}

pub(super) fn force_deleted(suite: &Suite) -> Result<()> {
    let load = suite.start_load("load-forced")?;
    load.flows()?;
    let report: LoadReport =
        serde_json::from_str(&suite.cluster.page(APPLICATIONS, "load-forced", PAGE, "/report")?)?;
    suite.cluster.delete(&format!("{}/load-forced", pods_path(APPLICATIONS)), Some(0))?;
    ensure!(report.connect_errors == 0, "connect() failed: {:?}", report.connect_examples);
    suite.arrived("load-forced", &report)
}
