//! Puts Pillion and the suite's backend into the cluster, as a user would: the plain manifests, with the backend's address.
//!
//! Changes nothing else in them, but for a capability that a node may be unable to give.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cluster::{Cluster, command, run};
use super::node::Node;
use super::options::Options;
use super::pods::{APPLICATIONS, BACKEND, IMAGE, Pod, SHIM, SYSTEM, is_ready, items, pods_path, summary};
use super::wait::until;

/// Of the node: the backend uses its network.
pub const BACKEND_OTLP: u16 = 24_317;

/// The backend's page.
pub const BACKEND_PAGE: u16 = 24_380;

const PATIENCE: Duration = Duration::from_secs(120);

/// Installs everything and waits until it serves; the backend's address.
pub fn install(options: &Options, cluster: &Cluster, node: Option<&Node>) -> Result<String> {
    if let (Some(load), false) = (&options.load_image, options.images.is_empty()) {
        let files: Vec<String> = options.images.iter().map(|file| file.display().to_string()).collect();
        let words: Vec<&str> = files.iter().map(String::as_str).collect();
        run(command(load, &words), "").context("loading images")?;
    }
    namespaces(cluster)?;
    let address = backend(cluster)?;
    // Pods that run would keep the images of an earlier run, whose names are the same.
    for name in ["pillion-csi", "pillion-gateway"] {
        cluster.delete(&format!("/apis/apps/v1/namespaces/{SYSTEM}/daemonsets/{name}"), None)?;
    }
    cluster.gone(SYSTEM, |_| true)?;
    let can_add = node.map(Node::has_sys_resource).transpose()?.unwrap_or(true);
    let manifests = manifests(&options.manifests, &address, can_add)?;
    cluster.kubectl(&["apply", "-f", "-"], &manifests)?;
    for name in ["pillion-csi", "pillion-gateway"] {
        let daemon_set = format!("daemonset/{name}");
        let wait = ["-n", "pillion-system", "rollout", "status", &daemon_set, "--timeout=120s"];
        cluster.kubectl(&wait, "").with_context(|| format!("{name} does not become ready"))?;
    }
    until("the admission policy injects", PATIENCE, || {
        let pod = cluster.dry_run(&pods_path(APPLICATIONS), Pod::new("anybody", &["idle"]).injected().object())?;
        ensure!(pod["spec"]["initContainers"][0]["name"] == SHIM, "not yet: {}", pod["spec"]["initContainers"]);
        Ok(())
    })?;
    Ok(address)
}

fn namespaces(cluster: &Cluster) -> Result<()> {
    let namespace = |name: &str, level: &str| {
        let labels = json!({"pod-security.kubernetes.io/enforce": level});
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    };
    let list = json!({
        "apiVersion": "v1", "kind": "List",
        "items": [namespace(APPLICATIONS, "restricted"), namespace(BACKEND, "privileged")],
    });
    cluster.kubectl(&["apply", "-f", "-"], &list.to_string())?;
    for name in [APPLICATIONS, BACKEND] {
        until("the default service account is there", PATIENCE, || {
            cluster.get(&format!("/api/v1/namespaces/{name}/serviceaccounts/default"))
        })?;
    }
    // What an earlier run left.
    cluster.remove_applications()?;
    cluster.delete(&format!("{}/backend", pods_path(BACKEND)), Some(1))?;
    cluster.gone(BACKEND, |_| true)
}

/// Starts the backend; the node's address.
fn backend(cluster: &Cluster) -> Result<String> {
    let (otlp, page) = (BACKEND_OTLP.to_string(), BACKEND_PAGE.to_string());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "backend", "namespace": BACKEND},
        "spec": {
            "hostNetwork": true,
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 2,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "backend", "image": IMAGE,
                "args": ["sink", "--otlp", otlp, "--page", page, "--journal", "/state/arrived"],
                "volumeMounts": [{"name": "state", "mountPath": "/state"}],
            }],
            "volumes": [{"name": "state", "emptyDir": {}}],
        },
    });
    cluster.create(&pods_path(BACKEND), &pod)?;
    until("the backend is Ready", PATIENCE, || {
        let list = cluster.get(&pods_path(BACKEND))?;
        let pod: &Value = items(&list).next().context("it is not there")?;
        ensure!(is_ready(pod), "it is {}", summary(pod));
        cluster.page(BACKEND, "backend", BACKEND_PAGE, "/services")?;
        Ok(pod["status"]["hostIP"].as_str().context("it has no address")?.to_owned())
    })
}

/// The manifests in the order of their names, as one stream of documents.
fn manifests(folder: &Path, backend: &str, can_add: bool) -> Result<String> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .with_context(|| format!("no manifests in {}", folder.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let texts: Vec<String> = files.iter().map(fs::read_to_string).collect::<Result<_, _>>()?;
    adapt(&texts.join("\n---\n"), backend, can_add)
}

fn adapt(text: &str, backend: &str, can_add: bool) -> Result<String> {
    let mut out = String::new();
    let mut endpoints = 0;
    for line in text.lines() {
        let trimmed = line.trim_start();
        let indent = &line[..line.len() - trimmed.len()];
        if trimmed.starts_with("endpoint: ") {
            endpoints += 1;
            out.push_str(&format!("{indent}endpoint: \"http://{backend}:{BACKEND_OTLP}\"\n"));
        } else if can_add || trimmed != "add: [SYS_RESOURCE]" {
            out.push_str(line);
            out.push('\n');
        }
        if trimmed.starts_with("data_dir: ") {
            // However full the disk of whoever runs the tests is.
            out.push_str(&format!("{indent}min_free: 1MiB\n"));
        }
    }
    ensure!(endpoints == 1, "the manifests have {endpoints} endpoints, not one");
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scenario: the manifests as they are in the repository.
    /// Guarantees: exactly the endpoint changes, what must be free of the disk, and the capability where a node cannot give it.
    #[test]
    fn only_the_endpoint_and_an_impossible_capability_change() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/yaml");
        let given = manifests(&folder, "192.0.2.1", true).unwrap();
        let less = manifests(&folder, "192.0.2.1", false).unwrap();

        assert_eq!(given.lines().filter(|line| line.contains("endpoint: \"http://192.0.2.1:24317\"")).count(), 1);
        assert_eq!(given.lines().filter(|line| line.trim() == "min_free: 1MiB").count(), 1);
        assert_eq!(given.lines().count(), less.lines().count() + 1);
        assert!(given.contains("add: [SYS_RESOURCE]") && !less.contains("add: [SYS_RESOURCE]"));
        assert!(adapt("kind: x", "192.0.2.1", true).unwrap_err().to_string().contains("0 endpoints"));
    }
}
