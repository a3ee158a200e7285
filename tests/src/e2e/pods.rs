//! The suite's pods: what they look like, and waiting for what becomes of them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::cluster::Cluster;
use super::wait::until;

/// Where applications run; it enforces `restricted`.
pub const APPLICATIONS: &str = "pillion-e2e";

/// Where the backend runs; it uses the node's network, so that its address outlives it.
pub const BACKEND: &str = "pillion-e2e-backend";

/// Where Pillion is.
pub const SYSTEM: &str = "pillion-system";

/// The port of every page of an application.
pub const PAGE: u16 = 8080;

/// The suite's own image.
pub const IMAGE: &str = "pillion.dev/e2e:0.1.0";

/// The injected container.
pub const SHIM: &str = "pillion-shim";

/// Becoming Ready, or gone, on a machine with other work.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// An application's pod before it is created.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its name.
    pub name: String,
    object: Value,
}

impl Pod {
    /// One container of the suite's image in the given mode. Telemetry is named after the pod.
    pub fn new(name: &str, mode: &[&str]) -> Self {
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": APPLICATIONS, "labels": {"app": name}, "annotations": {}},
            "spec": {
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "terminationGracePeriodSeconds": 5,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "initContainers": [],
                "containers": [container("app", mode, name)],
                "volumes": [{"name": "state", "emptyDir": {}}],
            },
        });
        Self { name: name.to_owned(), object }
    }

    /// Opts in, by annotation.
    pub fn injected(mut self) -> Self {
        self.object["metadata"]["annotations"]["pillion.dev/inject"] = json!("enabled");
        self
    }

    /// What injection would have made of it, but with another volume.
    pub fn with_shim(mut self, volume: Value) -> Self {
        let shim = json!({
            "name": SHIM,
            "image": "pillion.dev/shim:0.1.0",
            "args": ["run", "--dir", "/run/pillion"],
            "restartPolicy": "Always",
            "resources": {"requests": {"cpu": "1m", "memory": "2Mi"}, "limits": {"memory": "16Mi"}},
            "securityContext": restricted(),
            "volumeMounts": [{"name": "pillion", "mountPath": "/run/pillion", "readOnly": true}],
        });
        // First, so that other init containers can send.
        self.object["spec"]["initContainers"].as_array_mut().expect("made with it").insert(0, shim);
        self.push("volumes", json!({"name": "pillion", "csi": volume}));
        self
    }

    /// A native sidecar that does nothing, with the resources of the shim.
    pub fn with_idle_sidecar(mut self) -> Self {
        let mut idle = container("idle", &["idle"], "idle");
        idle["restartPolicy"] = json!("Always");
        idle["resources"] = json!({"requests": {"cpu": "1m", "memory": "2Mi"}, "limits": {"memory": "16Mi"}});
        self.push("initContainers", idle);
        self
    }

    /// An init container that runs to its end before the application.
    pub fn with_init(mut self, mode: &[&str], service: &str) -> Self {
        self.push("initContainers", container("first", mode, service));
        self
    }

    /// An environment variable of the application.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        let env = self.object["spec"]["containers"][0]["env"].as_array_mut().expect("made with it");
        env.push(json!({"name": name, "value": value}));
        self
    }

    /// Changes its specification.
    pub fn change(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.object["spec"]);
        self
    }

    /// The object.
    pub fn object(&self) -> &Value {
        &self.object
    }

    fn push(&mut self, list: &str, item: Value) {
        self.object["spec"][list].as_array_mut().expect("made with it").push(item);
    }
}

/// The inline volume as injection writes it.
pub fn volume() -> Value {
    json!({"driver": "csi.pillion.dev", "readOnly": true})
}

fn container(name: &str, mode: &[&str], service: &str) -> Value {
    json!({
        "name": name,
        "image": IMAGE,
        "args": mode,
        "env": [{"name": "OTEL_SERVICE_NAME", "value": service}],
        "securityContext": restricted(),
        "volumeMounts": [{"name": "state", "mountPath": "/state"}],
    })
}

fn restricted() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"]},
    })
}

/// The API path of a namespace's pods.
pub fn pods_path(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// Questions about pods.
impl Cluster {
    /// Creates an application's pod. The default service account of a new namespace may not be there yet.
    pub fn start(&self, pod: &Pod) -> Result<()> {
        self.create(&pods_path(APPLICATIONS), &pod.object)
    }

    /// Creates it and waits until it is Ready.
    pub fn start_ready(&self, pod: &Pod) -> Result<Value> {
        self.start(pod)?;
        self.ready(&pod.name)
    }

    /// A pod of the applications' namespace.
    pub fn pod(&self, name: &str) -> Result<Value> {
        self.get(&format!("{}/{name}", pods_path(APPLICATIONS)))
    }

    /// Waits until it is Ready.
    pub fn ready(&self, name: &str) -> Result<Value> {
        until(&format!("pod {name} is Ready"), PATIENCE, || {
            let pod = self.pod(name)?;
            ensure!(is_ready(&pod), "it is {}", summary(&pod));
            Ok(pod)
        })
    }

    /// Waits for its phase, such as Succeeded.
    pub fn phase(&self, name: &str, phase: &str) -> Result<Value> {
        until(&format!("pod {name} is {phase}"), PATIENCE, || {
            let pod = self.pod(name)?;
            ensure!(pod["status"]["phase"] == phase, "it is {}", summary(&pod));
            Ok(pod)
        })
    }

    /// Deletes all applications and waits until they are gone.
    pub fn remove_applications(&self) -> Result<()> {
        for kind in ["/apis/batch/v1/namespaces/pillion-e2e/jobs", "/api/v1/namespaces/pillion-e2e/pods"] {
            let list = self.get(kind)?;
            for object in items(&list) {
                let name = object["metadata"]["name"].as_str().context("an object without a name")?;
                self.delete(&format!("{kind}/{name}"), None)?;
            }
        }
        self.gone(APPLICATIONS, |_| true)
    }

    /// Waits until no pod of a namespace is such a one.
    pub fn gone(&self, namespace: &str, such: impl Fn(&Value) -> bool) -> Result<()> {
        until(&format!("pods of {namespace} are gone"), PATIENCE, || {
            let list = self.get(&pods_path(namespace))?;
            let left: Vec<String> = items(&list).filter(|pod| such(pod)).map(summary).collect();
            ensure!(left.is_empty(), "left: {}", left.join("; "));
            Ok(())
        })
    }

    /// A page of a pod, through the API server.
    pub fn page(&self, namespace: &str, pod: &str, port: u16, path: &str) -> Result<String> {
        self.text(&format!("{}/{pod}:{port}/proxy{path}", pods_path(namespace)))
    }

    /// The newest pod of one of Pillion's DaemonSets that is Ready and not going.
    pub fn system_pod(&self, component: &str) -> Result<Value> {
        let selector = format!("?labelSelector=app.kubernetes.io/component%3D{component}");
        let list = self.get(&(pods_path(SYSTEM) + &selector))?;
        let going = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let ready = items(&list).filter(going).filter(|pod| is_ready(pod));
        let newest = ready.max_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned));
        newest.cloned().with_context(|| {
            format!("no pod of {component} is Ready: {:?}", items(&list).map(summary).collect::<Vec<_>>())
        })
    }

    /// The messages of a pod's events, with how often each came.
    pub fn events(&self, namespace: &str, pod: &str) -> Result<Vec<String>> {
        let selector = format!("?fieldSelector=involvedObject.name%3D{pod}");
        let list = self.get(&format!("/api/v1/namespaces/{namespace}/events{selector}"))?;
        let text = |event: &Value| {
            format!("{} {}", event["reason"].as_str().unwrap_or("?"), event["message"].as_str().unwrap_or("?"))
        };
        Ok(items(&list).map(text).collect())
    }
}

/// The items of a list.
pub fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

/// Whether the condition Ready is True.
pub fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// A pod's name, phase and what its containers wait for.
pub fn summary(pod: &Value) -> String {
    let name = pod["metadata"]["name"].as_str().unwrap_or("?");
    let phase = pod["status"]["phase"].as_str().unwrap_or("?");
    let states = ["initContainerStatuses", "containerStatuses"].into_iter().flat_map(|list| {
        let statuses = pod["status"][list].as_array().cloned().unwrap_or_default();
        statuses.into_iter().map(|status| {
            let state = status["state"].as_object().and_then(|state| {
                state
                    .iter()
                    .next()
                    .map(|(name, more)| format!("{name} {}", more["reason"].as_str().unwrap_or_default()))
            });
            format!("{} {}", status["name"].as_str().unwrap_or("?"), state.unwrap_or_default().trim())
        })
    });
    format!("{name} {phase} ({})", states.collect::<Vec<_>>().join(", "))
}

/// The runtime's id of a pod's container, without its scheme.
pub fn container_id(pod: &Value, name: &str) -> Result<String> {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let mut statuses = lists.iter().filter_map(|list| pod["status"][*list].as_array()).flatten();
    let status = statuses
        .find(|status| status["name"] == name)
        .with_context(|| format!("no container {name}: {}", summary(pod)))?;
    let id = status["containerID"].as_str().and_then(|id| id.split("://").nth(1));
    id.map(str::to_owned).with_context(|| format!("container {name} has not started: {}", summary(pod)))
}

/// A string of the object's metadata.
pub fn metadata<'a>(object: &'a Value, field: &str) -> &'a str {
    object["metadata"][field].as_str().unwrap_or_default()
}
