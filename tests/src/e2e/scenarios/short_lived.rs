//! Programs that end: their last words are the ones that matter.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::identity::{arrived, is_of, never_again};
use crate::e2e::pods::{APPLICATIONS, Pod, items, metadata, pods_path};
use crate::e2e::suite::Suite;
use crate::e2e::wait::until;

const PATIENCE: Duration = Duration::from_secs(60);

/// A Job that sends one span and ends; a pod whose init container does.
pub(super) fn run(suite: &Suite) -> Result<()> {
    let started = Instant::now();
    let template = Pod::new("job", &["once"]).change(never_again).injected();
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"},
        "spec": {
            "backoffLimit": 0,
            "template": {"metadata": {"labels": {"app": "job"}, "annotations": template.object()["metadata"]["annotations"]},
                "spec": template.object()["spec"]},
        },
    });
    let path = format!("/apis/batch/v1/namespaces/{APPLICATIONS}/jobs");
    suite.cluster.create(&path, &job)?;
    until("the Job is complete", PATIENCE, || {
        let job = suite.cluster.get(&format!("{path}/job"))?;
        ensure!(job["status"]["succeeded"] == 1, "its status is {}", job["status"]);
        Ok(())
    })?;
    let took = started.elapsed();
    let service = arrived(suite, "job", [1, 0, 0])?;
    let list = suite.cluster.get(&format!("{}?labelSelector=app%3Djob", pods_path(APPLICATIONS)))?;
    let pod = items(&list).next().map(|pod| (is_of(&service, pod), metadata(pod, "name").to_owned()));
    let (is_of, name) = pod.unwrap_or((Ok(()), "gone".into()));
    is_of?;
    suite.seen(
        "a Job completes and its last span arrives",
        &format!("{name}, complete after {:.1} s", took.as_secs_f32()),
    );

    let pod = Pod::new("with-init", &["idle"]).with_init(&["once"], "from-init");
    let pod = suite.cluster.start_ready(&pod.injected())?;
    is_of_init(suite, &pod)
}

fn is_of_init(suite: &Suite, pod: &serde_json::Value) -> Result<()> {
    is_of(&arrived(suite, "from-init", [1, 0, 0])?, pod)?;
    suite.seen("an init container behind the shim can send", "one span, acknowledged before the application started");
    Ok(())
}
